//! The proxy's loop: gathers what informers report, has it applied, tells how that went.
//!
//! One task owns everything; the engine, which blocks, goes to a thread and comes back.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use client::{Client, Event, EventRecorder, EventType, Informers, Subscription, key_of};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node as NodeObject, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::ListParams;
use tokio::time::Instant;

use crate::Config;
use crate::cidr::Cidr;
use crate::engine::{BY_SERVICE, Engine, Synced, Touched};
use crate::health::{Health, HealthChecks};
use crate::plan::Node;

const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// Neither headless Services nor those of other proxies, which their EndpointSlices say too.
const OURS: &str = "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// The cluster autoscaler is about to remove a node with this taint.
const LEAVING_TAINT: &str = "ToBeDeletedByClusterAutoscaler";
/// When the change was made that an EndpointSlice's newest state comes from.
const TRIGGER_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Events come in swarms: they are gathered for this long after the first, or for as long as the
/// last synchronisation took, so that half of the time at most is spent in them.
const GATHER: Duration = Duration::from_millis(10);
const GATHER_AT_MOST: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(1);
const RETRY_AT_MOST: Duration = Duration::from_secs(30);

pub(crate) async fn keep(config: &Config, client: Client, health: &Arc<Health>) -> anyhow::Result<()> {
    let informers = Informers::new(client.clone());
    let mut feed = Feed::start(config, &informers).await;
    let mut recorder = Reporter {
        recorder: EventRecorder::new(client, "kube-proxy", &config.node_name),
        services: informers.get_with::<Service>(&ours()).store(),
        node: config.node_name.clone(),
        health: health.clone(),
        health_checks: HealthChecks::default(),
    };
    let slices = informers.get_with::<EndpointSlice>(&ours()).store();
    let mut engine = Engine::new(config, recorder.services.clone(), slices)?;
    let (mut gather, mut retry) = (GATHER, None::<Duration>);
    loop {
        // What is known at first is an event too.
        feed.gather(gather, retry, health).await;
        let started = Instant::now();
        let (touched, triggers) = (std::mem::take(&mut feed.touched), std::mem::take(&mut feed.triggers));
        let synchronised = tokio::task::spawn_blocking(move || {
            let (synced, result) = engine.sync(touched);
            (engine, synced, result)
        });
        let (returned, synced, result) = synchronised.await.unwrap_or_else(|error| resume_unwind(error.into_panic()));
        engine = returned;
        let took = started.elapsed();
        gather = took.clamp(GATHER, GATHER_AT_MOST);
        recorder.report(took, synced, &triggers, result.is_err()).await;
        retry = match result {
            Ok(()) => None,
            Err(error) => {
                let wait = retry.map_or(RETRY, |last| (last * 2).min(RETRY_AT_MOST));
                tracing::error!("{error:#}; all rules are written anew in {wait:?}");
                Some(wait)
            }
        };
    }
}

fn ours() -> ListParams {
    ListParams::default().labels(OURS)
}

/// What the informers have reported and nobody has applied.
struct Feed {
    config: Config,
    services: Subscription<Service>,
    slices: Subscription<EndpointSlice>,
    nodes: Subscription<NodeObject>,
    service_cidrs: Subscription<ServiceCIDR>,
    known_cidrs: client::Store<ServiceCIDR>,
    touched: Touched,
    triggers: Vec<Timestamp>,
    leaving: bool,
}

impl Feed {
    /// Waits until the cluster is known: rules from a part of it would cut off the rest. An API
    /// server may not know ServiceCIDRs.
    async fn start(config: &Config, informers: &Informers) -> Feed {
        let (services, slices) = (informers.get_with::<Service>(&ours()), informers.get_with::<EndpointSlice>(&ours()));
        slices.add_index(BY_SERVICE, |slice: &EndpointSlice| service_key(slice).into_iter().collect());
        let this_node = ListParams::default().fields(&format!("metadata.name={}", config.node_name));
        let (nodes, service_cidrs) = (informers.get_with::<NodeObject>(&this_node), informers.get::<ServiceCIDR>());
        services.synced().await;
        slices.synced().await;
        nodes.synced().await;
        let mut feed = Feed {
            services: services.subscribe(),
            slices: slices.subscribe(),
            nodes: nodes.subscribe(),
            known_cidrs: service_cidrs.store(),
            service_cidrs: service_cidrs.subscribe(),
            config: config.clone(),
            touched: Touched::default(),
            triggers: Vec::new(),
            leaving: false,
        };
        // A node without Services needs its rules too; and what was there first triggered nothing now.
        feed.touched.service_cidrs = Some(config.service_cidrs.clone());
        while feed.try_next() {}
        feed.triggers.clear();
        feed
    }

    /// Returns with something touched, some time after the first of it, or when it is time to retry.
    async fn gather(&mut self, gather: Duration, retry: Option<Duration>, health: &Health) {
        let mut deadline = retry.map(|wait| Instant::now() + wait);
        if deadline.is_none() && !self.touched.is_empty() {
            return health.queued();
        }
        loop {
            let sleep = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now));
            tokio::select! {
                Some(event) = self.services.recv() => self.service(&event),
                Some(event) = self.slices.recv() => self.slice(&event),
                Some(event) = self.nodes.recv() => self.node(&event),
                Some(_) = self.service_cidrs.recv() => self.service_cidr(),
                () = sleep, if deadline.is_some() => return,
            }
            while self.try_next() {}
            health.set_leaving(self.leaving);
            if !self.touched.is_empty() {
                health.queued();
                deadline.get_or_insert_with(|| Instant::now() + gather);
            }
        }
    }

    /// Takes one event that has come already.
    fn try_next(&mut self) -> bool {
        if let Some(event) = self.services.try_recv() {
            self.service(&event);
        } else if let Some(event) = self.slices.try_recv() {
            self.slice(&event);
        } else if let Some(event) = self.nodes.try_recv() {
            self.node(&event);
        } else if self.service_cidrs.try_recv().is_some() {
            self.service_cidr();
        } else {
            return false;
        }
        true
    }

    fn service(&mut self, event: &Event<Service>) {
        self.touched.services.insert(key_of(&event.object().metadata));
    }

    fn slice(&mut self, event: &Event<EndpointSlice>) {
        let states = [Some(event.object()), event.old()];
        self.touched.services.extend(states.into_iter().flatten().filter_map(|slice| service_key(slice)));
        let trigger = |slice: &EndpointSlice| -> Option<Timestamp> {
            slice.metadata.annotations.as_ref()?.get(TRIGGER_ANNOTATION)?.parse().ok()
        };
        let new = trigger(event.object()).filter(|new| event.old().and_then(|old| trigger(old)) != Some(*new));
        self.triggers.extend(new.filter(|_| !matches!(event, Event::Deleted(_))));
    }

    fn node(&mut self, event: &Event<NodeObject>) {
        let node = event.object();
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
        self.leaving = node.metadata.deletion_timestamp.is_some()
            || taints.into_iter().flatten().any(|taint| taint.key == LEAVING_TAINT);
        let addresses = node.status.as_ref().and_then(|status| status.addresses.as_ref());
        let own = addresses.into_iter().flatten().filter_map(|address| address.address.parse().ok());
        let mut ips: Vec<_> = self.config.node_ips.iter().copied().chain(own).collect();
        ips.sort();
        ips.dedup();
        let zone = node.metadata.labels.as_ref().and_then(|labels| labels.get(ZONE_LABEL)).cloned();
        self.touched.node = Some(Node { name: self.config.node_name.clone(), zone, ips });
    }

    fn service_cidr(&mut self) {
        let known = self.known_cidrs.list();
        let ranges = known.iter().filter_map(|object| object.spec.as_ref()?.cidrs.as_ref()).flatten();
        let mut ranges: Vec<Cidr> =
            ranges.filter_map(|range| range.parse().ok()).chain(self.config.service_cidrs.iter().copied()).collect();
        ranges.sort();
        ranges.dedup();
        self.touched.service_cidrs = Some(ranges);
    }
}

fn service_key(slice: &EndpointSlice) -> Option<String> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_LABEL)?;
    Some(format!("{}/{name}", slice.metadata.namespace.as_deref().unwrap_or_default()))
}

/// Tells the world what was done.
struct Reporter {
    recorder: EventRecorder,
    services: client::Store<Service>,
    node: String,
    health: Arc<Health>,
    health_checks: HealthChecks,
}

impl Reporter {
    async fn report(&mut self, took: Duration, synced: Synced, triggers: &[Timestamp], failed: bool) {
        let now = Timestamp::now();
        self.health.metrics.synced(took, now.as_millisecond() as f64 / 1e3, synced.ports_changed, failed);
        if !failed {
            self.health.updated();
            let latencies = triggers.iter().filter_map(|trigger| Duration::try_from(now.duration_since(*trigger)).ok());
            latencies.for_each(|latency| self.health.metrics.programmed(latency));
        }
        tracing::debug!(?took, ports = synced.ports_changed, failed, "synchronised Services");
        for (service, wanted) in synced.health_checks {
            let Err(error) = self.health_checks.set(&service, wanted, &self.health).await else { continue };
            let port = wanted.map_or(0, |check| check.port);
            let message = format!("node {} failed to start healthcheck {service:?} on port {port}: {error}", self.node);
            tracing::warn!("{message}");
            if let Some(object) = self.services.get(&service) {
                self.recorder.event(&*object, EventType::Warning, "FailedToStartServiceHealthcheck", message);
            }
        }
    }
}
