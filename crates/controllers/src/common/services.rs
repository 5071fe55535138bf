//! What a Service finds in pods: which pods, under which address and port numbers. Pure. Endpoints and EndpointSlices are
//! two ways to write this down.

use std::net::IpAddr;

use client::{Event, Store, WorkQueue, key_of};
use k8s_openapi::api::core::v1::{ContainerPort, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use machinery::labels::Selector;

use super::{pods, selects};

/// The selector of a service that has one.
pub fn service_selector(service: &Service) -> Option<Selector> {
    let labels = service.spec.as_ref()?.selector.as_ref().filter(|labels| !labels.is_empty())?;
    Some(Selector::from_map(labels))
}

pub fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

pub fn publishes_not_ready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false)
}

/// Queues every service whose selector chooses the pod, or chose it before, unless the change matters to none.
pub fn observe_pod(services: &Store<Service>, event: &Event<Pod>, queue: &WorkQueue<String>) {
    let pod = event.object();
    if event.old().is_some_and(|old| !matters(old, pod)) {
        return;
    }
    for service in services.list_namespace(pod.metadata.namespace.as_deref().unwrap_or_default()) {
        let Some(selector) = service_selector(&service) else { continue };
        let chooses = |pod: &Pod| selects(&selector, &pod.metadata);
        if chooses(pod) || event.old().is_some_and(|old| chooses(old)) {
            queue.add(key_of(&service.metadata));
        }
    }
}

fn matters(old: &Pod, new: &Pod) -> bool {
    let ips = |pod: &Pod| pod.status.as_ref().map(|status| (status.pod_ip.clone(), status.pod_ips.clone()));
    pods::is_ready(old) != pods::is_ready(new)
        || pods::is_finished(old) != pods::is_finished(new)
        || pods::is_terminating(old) != pods::is_terminating(new)
        || pods::node_name(old) != pods::node_name(new)
        || old.metadata.labels != new.metadata.labels
        || ips(old) != ips(new)
}

/// The pod's address of one family.
pub fn address(pod: &Pod, ipv6: bool) -> Option<String> {
    let status = pod.status.as_ref()?;
    let listed = status.pod_ips.iter().flatten().map(|ip| &ip.ip);
    let mut all = listed.chain(status.pod_ip.as_ref());
    all.find(|ip| ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6() == ipv6)).cloned()
}

/// The hostname under which DNS knows the pod, if it belongs to this service's subdomain.
pub fn hostname(pod: &Pod, service: &Service) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let member = spec.subdomain.is_some()
        && spec.subdomain == service.metadata.name
        && pod.metadata.namespace == service.metadata.namespace;
    spec.hostname.clone().filter(|name| member && !name.is_empty())
}

pub fn target(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..Default::default()
    }
}

/// The number of a service's port on a pod; None if the pod has no port of that name.
pub fn target_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    let name = match &port.target_port {
        Some(IntOrString::Int(0)) | None => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) => name,
    };
    let spec = pod.spec.as_ref()?;
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let named = |candidate: &&ContainerPort| {
        candidate.name.as_ref() == Some(name) && candidate.protocol.as_deref().unwrap_or("TCP") == protocol
    };
    ports.into_iter().find(named).map(|port| port.container_port)
}
