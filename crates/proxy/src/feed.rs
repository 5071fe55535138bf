//! From informers to the applier: which Services are touched, planned again, applied together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use client::{Client, Informers, Store, key_of};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::time::Instant;

use crate::Config;
use crate::nftables::{Change, Nftables};
use crate::plan::{Node, ServiceRules, plan};

const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// Services implemented by somebody else.
const OTHER_PROXY_LABEL: &str = "service.kubernetes.io/service-proxy-name";
const BY_SERVICE: &str = "service";
/// Events are gathered for this long after the first, since they come in swarms.
const GATHER: Duration = Duration::from_millis(5);
const RETRY: Duration = Duration::from_secs(1);

pub(crate) async fn keep(config: Config, client: Client) -> anyhow::Result<()> {
    let informers = Informers::new(client);
    let (services, slices) = (informers.get::<Service>(), informers.get::<EndpointSlice>());
    slices.add_index(BY_SERVICE, |slice: &EndpointSlice| service_key(slice).into_iter().collect());
    services.synced().await;
    slices.synced().await;
    let (mut service_events, mut slice_events) = (services.subscribe(), slices.subscribe());
    let applier = Nftables::new(config.cluster_cidr, config.service_cidr).context("open nf_tables")?;
    let node = Node { name: config.node_name };
    let mut proxy = Proxy {
        services: services.store(),
        slices: slices.store(),
        node,
        applier,
        applied: BTreeMap::new(),
        replace: true,
    };
    let mut touched: BTreeSet<String> = proxy.services.list().iter().map(|service| key_of(&service.metadata)).collect();
    loop {
        let wait = match proxy.sync(std::mem::take(&mut touched)) {
            Ok(()) => None,
            Err(error) => {
                tracing::error!("cannot apply the Services' rules; trying all of them again: {error}");
                Some(RETRY)
            }
        };
        let mut deadline = wait.map(|wait| Instant::now() + wait);
        loop {
            let keys = tokio::select! {
                Some(event) = service_events.recv() => vec![key_of(&event.object().metadata)],
                Some(event) = slice_events.recv() => {
                    [Some(event.object()), event.old()].into_iter().flatten().filter_map(|slice| service_key(slice)).collect()
                }
                () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => break,
                else => return Ok(()),
            };
            touched.extend(keys);
            deadline.get_or_insert_with(|| Instant::now() + GATHER);
        }
    }
}

struct Proxy {
    services: Store<Service>,
    slices: Store<EndpointSlice>,
    node: Node,
    applier: Nftables,
    applied: BTreeMap<String, ServiceRules>,
    /// What the kernel has is not known.
    replace: bool,
}

impl Proxy {
    fn sync(&mut self, touched: BTreeSet<String>) -> Result<(), nft::Error> {
        let planned: Vec<(String, Option<ServiceRules>)> = touched
            .into_iter()
            .map(|key| {
                let rules = self.plan(&key);
                (key, rules)
            })
            .filter(|(key, rules)| self.applied.get(key) != rules.as_ref())
            .collect();
        let result = if self.replace {
            Ok(())
        } else {
            let changes: Vec<Change> = planned
                .iter()
                .map(|(service, new)| Change { service, old: self.applied.get(service), new: new.as_ref() })
                .collect();
            self.applier.update(&changes)
        };
        for (key, rules) in planned {
            match rules {
                Some(rules) => self.applied.insert(key, rules),
                None => self.applied.remove(&key),
            };
        }
        if result.is_err() || self.replace {
            self.replace = true;
            self.applier.replace(self.applied.iter().map(|(key, rules)| (key.as_str(), rules)))?;
            self.replace = false;
        }
        Ok(())
    }

    fn plan(&self, key: &str) -> Option<ServiceRules> {
        let service = self.services.get(key)?;
        if service.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(OTHER_PROXY_LABEL)) {
            return None;
        }
        let slices: Vec<Arc<EndpointSlice>> = self.slices.by_index(BY_SERVICE, key);
        let rules = plan(&service, &slices, &self.node);
        (rules != ServiceRules::default()).then_some(rules)
    }
}

fn service_key(slice: &EndpointSlice) -> Option<String> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_LABEL)?;
    Some(format!("{}/{name}", slice.metadata.namespace.as_deref().unwrap_or_default()))
}
