//! The older Endpoints of services with a selector: one object per service, at most 1000 addresses. Kept for clients that
//! still read them; nothing of ours does.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;
use client::{Client, ErrorExt as _, Event, EventRecorder, EventType, Store, key_of, split_key};
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service};
use kube::Api;
use kube::api::{DeleteParams, PostParams};

use crate::common::services::{self, observe_pod, service_selector};
use crate::common::trigger_time::{TriggerTimes, annotate};
use crate::common::{is_namespace_terminating, message, pods, selects};
use crate::framework::{Context, Controller, Requeue};

const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY: (&str, &str) = ("endpoints.kubernetes.io/managed-by", "endpoint-controller");
const HEADLESS: &str = "service.kubernetes.io/headless";
const MAX_ADDRESSES: usize = 1000;

pub struct EndpointsController {
    client: Client,
    events: EventRecorder,
    services: Store<Service>,
    pods: Store<Pod>,
    endpoints: Store<Endpoints>,
    triggers: TriggerTimes,
}

impl Controller for EndpointsController {
    const NAME: &'static str = "endpoint-controller";

    fn new(context: &Context) -> Self {
        let services = context.watch::<Service>().store();
        let known = services.clone();
        let pods = context.on::<Pod>(move |event, queue| observe_pod(&known, event, queue));
        let endpoints = context.on::<Endpoints>(|event, queue| {
            if !matches!(event, Event::Modified { .. }) {
                queue.add(key_of(&event.object().metadata));
            }
        });
        Self {
            client: context.client.clone(),
            events: context.events.clone(),
            services,
            pods: pods.store(),
            endpoints: endpoints.store(),
            triggers: TriggerTimes::default(),
        }
    }

    async fn reconcile(&self, key: &str) -> anyhow::Result<Requeue> {
        let (namespace, name) = split_key(key);
        let api: Api<Endpoints> = Api::namespaced(self.client.clone(), namespace);
        let found = self.endpoints.get(key);
        let Some(service) = self.services.get(key) else {
            self.triggers.forget(key);
            if found.is_some_and(|found| is_ours(&found)) {
                match api.delete(name, &DeleteParams::default()).await {
                    Err(error) if !error.is_not_found() => return Err(error).context("delete the endpoints"),
                    _ => {}
                }
            }
            return Ok(Requeue::Never);
        };
        let Some(selector) = service_selector(&service) else { return Ok(Requeue::Never) };
        let mut pods = self.pods.list_namespace(namespace);
        pods.retain(|pod| selects(&selector, &pod.metadata));
        let triggered = self.triggers.observe(key, &service, &pods);
        let mut wanted = wanted(&service, subsets(&service, &pods), found.as_deref());
        if found.as_deref() == Some(&wanted) {
            return Ok(Requeue::Never);
        }
        annotate(&mut wanted.metadata, triggered);
        let (outcome, reason, failed) = match &found {
            Some(_) => {
                let outcome = api.replace(name, &PostParams::default(), &wanted).await;
                (outcome, "FailedToUpdateEndpoint", "Failed to update endpoint")
            }
            None => {
                let outcome = api.create(&PostParams::default(), &wanted).await;
                (outcome, "FailedToCreateEndpoint", "Failed to create endpoint for service")
            }
        };
        match outcome {
            Ok(_) => Ok(Requeue::Never),
            Err(error) if is_namespace_terminating(&error) => Ok(Requeue::Never),
            Err(error) => {
                // The cache is behind what was written a moment ago: no news for the user.
                if !error.is_conflict() && !error.is_already_exists() {
                    let text = format!("{failed} {key}: {}", message(&error));
                    self.events.event(service.as_ref(), EventType::Warning, reason, text);
                }
                Err(error).context("write the endpoints")
            }
        }
    }
}

fn is_ours(endpoints: &Endpoints) -> bool {
    let labels = endpoints.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(MANAGED_BY.0)).is_some_and(|manager| manager == MANAGED_BY.1)
}

fn wanted(
    service: &Service,
    (subsets, truncated): (Vec<EndpointSubset>, bool),
    found: Option<&Endpoints>,
) -> Endpoints {
    let mut endpoints = found.cloned().unwrap_or_default();
    let meta = &mut endpoints.metadata;
    (meta.name, meta.namespace) = (service.metadata.name.clone(), service.metadata.namespace.clone());
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.0.into(), MANAGED_BY.1.into());
    labels.remove(HEADLESS);
    if services::is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    meta.labels = Some(labels);
    if truncated {
        meta.annotations.get_or_insert_default().insert(OVER_CAPACITY.into(), "truncated".into());
    } else if let Some(annotations) = &mut meta.annotations {
        annotations.remove(OVER_CAPACITY);
    }
    endpoints.subsets = (!subsets.is_empty()).then_some(subsets);
    endpoints
}

/// Name, number, protocol, application protocol.
type Port = (String, i32, String, Option<String>);
/// Ready and not ready.
type Addresses = (Vec<EndpointAddress>, Vec<EndpointAddress>);

/// The subsets of a service, and whether there were too many addresses: ready ones are kept first.
fn subsets(service: &Service, candidates: &[Arc<Pod>]) -> (Vec<EndpointSubset>, bool) {
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.as_ref());
    let ipv6 = families.and_then(|families| families.first()).is_some_and(|family| family == "IPv6");
    let publishes = services::publishes_not_ready(service);
    let eligible = |pod: &&Arc<Pod>| !pods::is_finished(pod) && (publishes || !pods::is_terminating(pod));
    let mut groups: BTreeMap<Vec<Port>, Addresses> = BTreeMap::new();
    for pod in candidates.iter().filter(eligible) {
        let Some(ip) = services::address(pod, ipv6) else { continue };
        let ports = ports(service, pod);
        let declares = service.spec.as_ref().is_some_and(|spec| spec.ports.as_ref().is_some_and(|p| !p.is_empty()));
        if ports.is_empty() && declares {
            continue; // no port of the service exists on this pod
        }
        let address = EndpointAddress {
            ip,
            hostname: services::hostname(pod, service),
            node_name: Some(pods::node_name(pod).to_owned()).filter(|name| !name.is_empty()),
            target_ref: Some(services::target(pod)),
        };
        let (ready, not_ready) = groups.entry(ports).or_default();
        if publishes || pods::is_ready(pod) { ready.push(address) } else { not_ready.push(address) }
    }
    let total: usize = groups.values().map(|(ready, not_ready)| ready.len() + not_ready.len()).sum();
    let mut room = MAX_ADDRESSES;
    let mut cut = |addresses: &mut Vec<EndpointAddress>| {
        addresses.sort_by(|a, b| a.ip.cmp(&b.ip));
        addresses.truncate(room);
        room -= addresses.len();
    };
    groups.values_mut().for_each(|(ready, _)| cut(ready));
    groups.values_mut().for_each(|(_, not_ready)| cut(not_ready));
    let subset = |(ports, (ready, not_ready)): (Vec<_>, Addresses)| EndpointSubset {
        addresses: (!ready.is_empty()).then_some(ready),
        not_ready_addresses: (!not_ready.is_empty()).then_some(not_ready),
        ports: (!ports.is_empty()).then(|| ports.into_iter().map(port).collect()),
    };
    let subsets = groups.into_iter().map(subset);
    let subsets = subsets.filter(|subset| subset.addresses.is_some() || subset.not_ready_addresses.is_some());
    (subsets.collect(), total > MAX_ADDRESSES)
}

fn ports(service: &Service, pod: &Pod) -> Vec<Port> {
    let declared = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    let found = declared.filter_map(|port| {
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
        let number = services::target_port(pod, port)?;
        Some((port.name.clone().unwrap_or_default(), number, protocol, port.app_protocol.clone()))
    });
    found.collect()
}

fn port((name, port, protocol, app_protocol): Port) -> EndpointPort {
    EndpointPort { name: Some(name).filter(|name| !name.is_empty()), port, protocol: Some(protocol), app_protocol }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(ip: &str, ready: &str, port: i32, deleted: bool) -> Arc<Pod> {
        let mut pod = json!({"metadata": {"name": ip, "namespace": "ns", "uid": ip},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": port}]}]},
            "status": {"podIP": ip, "podIPs": [{"ip": ip}], "conditions": [{"type": "Ready", "status": ready}]}});
        if deleted {
            pod["metadata"]["deletionTimestamp"] = json!("2024-01-01T00:00:00Z");
        }
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn describe(subsets: &[EndpointSubset]) -> Vec<String> {
        let ips = |addresses: &Option<Vec<EndpointAddress>>| {
            addresses.iter().flatten().map(|address| address.ip.clone()).collect::<Vec<_>>().join(",")
        };
        let ports = |subset: &EndpointSubset| subset.ports.iter().flatten().map(|port| port.port).collect::<Vec<_>>();
        subsets
            .iter()
            .map(|s| format!("{:?} {} / {}", ports(s), ips(&s.addresses), ips(&s.not_ready_addresses)))
            .collect()
    }

    #[test]
    fn pods_are_grouped_by_the_numbers_of_their_named_ports() {
        let service: Service = serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "ns"},
            "spec": {"ports": [{"port": 80, "targetPort": "web"}]}}))
        .unwrap();
        let pods = [
            pod("10.0.0.2", "True", 80, false),
            pod("10.0.0.1", "True", 80, false),
            pod("10.0.0.3", "False", 80, false),
            pod("10.0.0.4", "True", 81, false),
            pod("10.0.0.5", "True", 80, true),
        ];
        let (subsets, truncated) = subsets(&service, &pods);
        assert_eq!(describe(&subsets), ["[80] 10.0.0.1,10.0.0.2 / 10.0.0.3", "[81] 10.0.0.4 / "]);
        assert!(!truncated);
    }

    #[test]
    fn unready_pods_may_be_published_and_a_thousand_are_enough() {
        let service: Service = serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "ns"},
            "spec": {"publishNotReadyAddresses": true, "clusterIP": "None"}}))
        .unwrap();
        let many: Vec<_> =
            (0..1100).map(|n| pod(&format!("10.0.{}.{}", n / 250, n % 250), "False", 80, n == 0)).collect();
        let (subsets, truncated) = subsets(&service, &many);
        assert_eq!(subsets[0].addresses.as_ref().unwrap().len(), 1000);
        assert!(truncated && subsets[0].not_ready_addresses.is_none());
        let labels = wanted(&service, (subsets, truncated), None).metadata.labels.unwrap();
        assert!(labels.contains_key(HEADLESS) && labels.contains_key(MANAGED_BY.0));
    }
}
