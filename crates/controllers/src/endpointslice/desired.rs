//! The endpoints a service should have, grouped as slices group them: by address family and by ports. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};
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
        zone,
        ..Default::default()
    }
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
