//! The endpoints a service should have, grouped as slices group them: by address family and by ports. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointHints, EndpointPort, ForNode, ForZone};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{MANAGED_BY, SERVICE_NAME};
use crate::common::{pods, services};

const HEADLESS: &str = "service.kubernetes.io/headless";

/// Endpoints that share a slice.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    pub address_type: &'static str,
    pub ports: Vec<EndpointPort>,
    pub endpoints: Vec<Endpoint>,
}

/// IPv4 and IPv6 as the service has families.
pub fn address_types(service: &Service) -> Vec<&'static str> {
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.clone()).unwrap_or_default();
    let types: Vec<_> = families.iter().map(|family| if family == "IPv6" { "IPv6" } else { "IPv4" }).collect();
    if types.is_empty() { vec!["IPv4"] } else { types }
}

/// What every slice of the service carries.
pub fn metadata(service: &Service, manager: &str) -> ObjectMeta {
    let name = service.metadata.name.clone().unwrap_or_default();
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if services::is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(SERVICE_NAME.into(), name.clone());
    labels.insert(MANAGED_BY.into(), manager.into());
    ObjectMeta {
        generate_name: Some(format!("{name}-")),
        namespace: service.metadata.namespace.clone(),
        labels: Some(labels),
        owner_references: Some(vec![client::owner_reference(service)]),
        ..Default::default()
    }
}

pub fn groups(service: &Service, candidates: &[Arc<Pod>], node: impl Fn(&str) -> Option<Arc<Node>>) -> Vec<Group> {
    let mut groups: BTreeMap<(&'static str, String), Group> = BTreeMap::new();
    for address_type in address_types(service) {
        for pod in candidates.iter().filter(|pod| !pods::is_finished(pod)) {
            let Some(address) = services::address(pod, address_type == "IPv6") else { continue };
            let ports = ports(service, pod);
            let key = serde_json::to_string(&ports).unwrap_or_default();
            let new = || Group { address_type, ports, endpoints: Vec::new() };
            let group = groups.entry((address_type, key)).or_insert_with(new);
            group.endpoints.push(endpoint(service, pod, address, node(pods::node_name(pod))));
        }
    }
    groups.into_values().collect()
}

fn endpoint(service: &Service, pod: &Pod, address: String, node: Option<Arc<Node>>) -> Endpoint {
    let (serving, terminating) = (pods::is_ready(pod), pods::is_terminating(pod));
    let publishes = services::publishes_not_ready(service);
    let zone = node.and_then(|node| node.metadata.labels.as_ref()?.get("topology.kubernetes.io/zone").cloned());
    Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(publishes || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: services::hostname(pod, service),
        node_name: Some(pods::node_name(pod).to_owned()).filter(|name| !name.is_empty()),
        target_ref: Some(services::target(pod)),
        hints: hints(service, zone.as_deref(), pods::node_name(pod)),
        zone,
        ..Default::default()
    }
}

/// Who should use an endpoint, if the service prefers that traffic stays near.
fn hints(service: &Service, zone: Option<&str>, node: &str) -> Option<EndpointHints> {
    let preference = service.spec.as_ref()?.traffic_distribution.as_deref()?;
    let same_node = preference == "PreferSameNode";
    if !same_node && !matches!(preference, "PreferClose" | "PreferSameZone") {
        return None;
    }
    let zones = zone.map(|zone| vec![ForZone { name: zone.to_owned() }]);
    let nodes = (same_node && !node.is_empty()).then(|| vec![ForNode { name: node.to_owned() }]);
    (zones.is_some() || nodes.is_some()).then_some(EndpointHints { for_zones: zones, for_nodes: nodes })
}

fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    let port = |port: &k8s_openapi::api::core::v1::ServicePort| {
        Some(EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(services::target_port(pod, port)?),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
            app_protocol: port.app_protocol.clone(),
        })
    };
    ports.filter_map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(name: &str, ready: &str, more: Value) -> Arc<Pod> {
        let mut pod = json!({"metadata": {"name": name, "namespace": "ns", "uid": name},
            "spec": {"nodeName": "n", "containers": [{"name": "c"}], "hostname": name, "subdomain": "s"},
            "status": {"podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
                "conditions": [{"type": "Ready", "status": ready}]}});
        machinery::patch::merge_patch(&mut pod, &more).unwrap();
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn service(more: Value) -> Service {
        let mut service = json!({"metadata": {"name": "s", "namespace": "ns"}, "spec": {"ports": [{"port": 80}]}});
        machinery::patch::merge_patch(&mut service, &more).unwrap();
        serde_json::from_value(service).unwrap()
    }

    fn only(service: &Service, pod: Arc<Pod>) -> Vec<Endpoint> {
        let zoned = json!({"metadata": {"name": "n", "labels": {"topology.kubernetes.io/zone": "z"}}});
        let node = Arc::new(serde_json::from_value::<Node>(zoned).unwrap());
        groups(service, &[pod], |name| (name == "n").then(|| node.clone()))
            .into_iter()
            .flat_map(|g| g.endpoints)
            .collect()
    }

    #[test]
    fn conditions_tell_ready_from_serving_from_terminating() {
        let deleted = json!({"metadata": {"deletionTimestamp": "2024-01-01T00:00:00Z"}});
        let publishes = json!({"spec": {"publishNotReadyAddresses": true}});
        let table = [
            (json!({}), "True", json!({}), (true, true, false)),
            (json!({}), "False", json!({}), (false, false, false)),
            (json!({}), "True", deleted.clone(), (false, true, true)),
            (publishes.clone(), "False", json!({}), (true, false, false)),
            (publishes, "False", deleted, (true, false, true)),
        ];
        for (service_patch, ready, pod_patch, expected) in table {
            let found = only(&service(service_patch), pod("p", ready, pod_patch)).remove(0).conditions.unwrap();
            assert_eq!((found.ready.unwrap(), found.serving.unwrap(), found.terminating.unwrap()), expected);
        }
        assert!(only(&service(json!({})), pod("p", "True", json!({"status": {"phase": "Failed"}}))).is_empty());
        assert!(only(&service(json!({})), pod("p", "True", json!({"status": {"podIPs": null}}))).is_empty());
    }

    #[test]
    fn endpoints_know_where_they_are_and_who_should_use_them() {
        let near = service(json!({"spec": {"trafficDistribution": "PreferSameNode", "ipFamilies": ["IPv6", "IPv4"]}}));
        let endpoints = only(&near, pod("p", "True", json!({})));
        let addresses: Vec<_> = endpoints.iter().map(|endpoint| endpoint.addresses[0].as_str()).collect();
        assert_eq!(addresses, ["10.0.0.1", "fd00::1"]);
        let endpoint = &endpoints[0];
        assert_eq!((endpoint.zone.as_deref(), endpoint.node_name.as_deref()), (Some("z"), Some("n")));
        assert_eq!(endpoint.hostname.as_deref(), Some("p"));
        let hints = endpoint.hints.as_ref().unwrap();
        assert_eq!(
            (hints.for_zones.as_ref().unwrap()[0].name.as_str(), hints.for_nodes.as_ref().unwrap().len()),
            ("z", 1)
        );
        assert!(only(&service(json!({})), pod("p", "True", json!({})))[0].hints.is_none());
    }
}
