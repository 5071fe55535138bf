//! From what the informers know to what the kernel does: plans the Services that were touched, and
//! applies what differs. It blocks, and knows nothing of when it is called.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Context;
use client::Store;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::applier::{Applier, mode};
use crate::cidr::Cidr;
use crate::plan::{Node, plan};
use crate::rules::{Changes, HealthCheck, PortName, PortRules, Protocol, RuleSet};
use crate::{Config, flows};

/// The index of EndpointSlices by their Service's key.
pub(crate) const BY_SERVICE: &str = "service";

pub(crate) struct Engine {
    services: Store<Service>,
    slices: Store<EndpointSlice>,
    node: Node,
    rules: RuleSet,
    applier: Box<dyn Applier>,
    /// For flows; `None` where connections are not tracked.
    connections: Option<nft::Socket>,
    /// What the kernel has is not known.
    replace: bool,
}

/// What has changed since the last time.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    pub(crate) services: BTreeSet<String>,
    pub(crate) node: Option<Node>,
    pub(crate) service_cidrs: Option<Vec<Cidr>>,
}

impl Touched {
    pub(crate) fn is_empty(&self) -> bool {
        self.services.is_empty() && self.node.is_none() && self.service_cidrs.is_none()
    }
}

/// What a synchronisation did.
#[derive(Debug, Default)]
pub(crate) struct Synced {
    pub(crate) ports_changed: usize,
    /// Of the Services that were planned.
    pub(crate) health_checks: Vec<(Arc<str>, Option<HealthCheck>)>,
}

impl Engine {
    pub(crate) fn new(
        config: &Config,
        services: Store<Service>,
        slices: Store<EndpointSlice>,
    ) -> anyhow::Result<Engine> {
        let applier =
            (mode(&config.mode)?.build)(config).with_context(|| format!("start proxy mode {}", config.mode))?;
        Ok(Engine {
            services,
            slices,
            node: Node { name: config.node_name.clone(), zone: None, ips: config.node_ips.clone() },
            rules: RuleSet { service_cidrs: config.service_cidrs.clone(), ..RuleSet::default() },
            applier,
            connections: nft::Socket::open().ok(),
            replace: true,
        })
    }

    /// Brings the kernel up to date. After an error the next call replaces everything.
    pub(crate) fn sync(&mut self, touched: Touched) -> (Synced, anyhow::Result<()>) {
        let mut keys = touched.services;
        if let Some(node) = touched.node.filter(|node| *node != self.node) {
            self.node = node;
            keys.extend(self.services.list().iter().map(|service| client::key_of(&service.metadata)));
        }
        let mut changes = Changes {
            ports: Vec::new(),
            service_cidrs: touched.service_cidrs.filter(|ranges| *ranges != self.rules.service_cidrs),
        };
        let mut synced = Synced::default();
        for key in keys {
            let key: Arc<str> = key.into();
            let planned = self
                .services
                .get(&key)
                .and_then(|service| plan(&service, &self.slices.by_index(BY_SERVICE, &key), &self.node));
            synced.health_checks.push((key.clone(), planned.as_ref().and_then(|rules| rules.health_check)));
            changes.ports.extend(self.rules.put(&key, planned));
        }
        if let Some(ranges) = &changes.service_cidrs {
            self.rules.service_cidrs.clone_from(ranges);
        }
        synced.ports_changed = changes.ports.len();
        let result = self.apply(&changes);
        (synced, result)
    }

    fn apply(&mut self, changes: &Changes) -> anyhow::Result<()> {
        if std::mem::replace(&mut self.replace, true) {
            self.applier.replace(&self.rules).context("replace the Services' rules")?;
            let all = self.rules.services.values().flat_map(|service| &service.ports);
            end_stale_flows(&mut self.connections, all);
        } else if !changes.is_empty() {
            self.applier.update(changes).context("change the Services' rules")?;
            let changed = changes.ports.iter().filter_map(|change| Some((&change.name, change.new.as_ref()?)));
            end_stale_flows(&mut self.connections, changed);
        }
        self.replace = false;
        Ok(())
    }
}

/// Failures cost UDP clients a wait, and are not worth a retry.
fn end_stale_flows<'a>(
    connections: &mut Option<nft::Socket>,
    ports: impl Iterator<Item = (&'a PortName, &'a Arc<PortRules>)>,
) {
    let Some(socket) = connections else { return };
    match flows::end_stale(socket, ports.filter(|(name, _)| name.protocol == Protocol::Udp)) {
        Ok(0) => {}
        Ok(count) => tracing::debug!(count, "ended UDP flows to former endpoints"),
        Err(error) => tracing::warn!("UDP clients may talk to former endpoints for a while: {error}"),
    }
}
