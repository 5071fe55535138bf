//! Where a name leads: a pod's address, a service's endpoint, a node's kubelet.

use std::net::IpAddr;

use machinery::status::{ApiError, Result};
use rand::seq::IndexedRandom;
use serde::Deserialize;

use super::forward::{Scheme, Target};
use crate::authn::lookup::{ENDPOINT_SLICES, Lookup, PODS, SERVICES};

const KUBELET_PORT: u16 = 10250;
const SERVICE_NAME: &str = "kubernetes.io/service-name";

#[derive(Deserialize)]
pub struct Pod {
    pub spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodSpec {
    pub node_name: String,
    containers: Vec<Container>,
    init_containers: Vec<Container>,
    ephemeral_containers: Vec<Container>,
}

#[derive(Deserialize)]
struct Container {
    name: String,
    #[serde(default)]
    ports: Vec<ContainerPort>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerPort {
    container_port: u16,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodStatus {
    #[serde(rename = "podIP")]
    pod_ip: String,
}

impl Pod {
    /// The container asked for, or the only one.
    pub fn container<'a>(&'a self, pod: &str, asked: &'a str) -> Result<&'a str> {
        let spec = &self.spec;
        let names = |list: &'a [Container]| list.iter().map(|container| container.name.as_str());
        if !asked.is_empty() {
            let mut all = [&spec.containers, &spec.init_containers, &spec.ephemeral_containers].into_iter();
            return match all.any(|list| names(list).any(|name| name == asked)) {
                true => Ok(asked),
                false => Err(ApiError::bad_request(format!("container {asked} is not valid for pod {pod}"))),
            };
        }
        let main: Vec<_> = names(&spec.containers).collect();
        match main[..] {
            [only] => Ok(only),
            [] => Err(ApiError::bad_request(format!("a container name must be specified for pod {pod}"))),
            _ => {
                let init: Vec<_> = names(&spec.init_containers).collect();
                let init = match init.is_empty() {
                    true => String::new(),
                    false => format!(" or one of the init containers: [{}]", init.join(" ")),
                };
                let main = main.join(" ");
                let why = format!("a container name must be specified for pod {pod}, choose one of: [{main}]{init}");
                Err(ApiError::bad_request(why))
            }
        }
    }
}

#[derive(Deserialize)]
pub struct Node {
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct NodeStatus {
    addresses: Vec<Address>,
    daemon_endpoints: DaemonEndpoints,
}

#[derive(Deserialize)]
struct Address {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct DaemonEndpoints {
    kubelet_endpoint: KubeletEndpoint,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct KubeletEndpoint {
    #[serde(rename = "Port")]
    port: u16,
}

impl Node {
    pub fn kubelet(&self, name: &str) -> Result<Target> {
        let preferred = ["InternalIP", "Hostname", "InternalDNS", "ExternalIP", "ExternalDNS"].into_iter();
        let mut found = preferred.filter_map(|kind| self.status.addresses.iter().find(|a| a.kind == kind));
        let address = found.next().ok_or_else(|| {
            ApiError::internal(format!("node {name:?} reports no address at which its kubelet can be reached"))
        })?;
        let port = match self.status.daemon_endpoints.kubelet_endpoint.port {
            0 => KUBELET_PORT,
            port => port,
        };
        Ok(Target { scheme: Scheme::Kubelet, host: address.address.clone(), port })
    }
}

/// `name`, `name:port` or `scheme:name:port`.
pub fn split(id: &str) -> Option<(&str, &str, &str)> {
    let parts: Vec<_> = id.split(':').collect();
    let (scheme, name, port) = match parts[..] {
        [name] => ("", name, ""),
        [name, port] => ("", name, port),
        [scheme, name, port] => (scheme, name, port),
        _ => return None,
    };
    (["", "http", "https"].contains(&scheme) && !name.is_empty()).then_some((scheme, name, port))
}

pub fn scheme(scheme: &str) -> Scheme {
    if scheme == "https" { Scheme::Tls } else { Scheme::Plain }
}

pub fn port(port: &str) -> Result<Option<u16>> {
    match port {
        "" => Ok(None),
        port => match port.parse() {
            Ok(1..) => Ok(Some(port.parse().unwrap_or_default())),
            _ => Err(ApiError::bad_request(format!("invalid port {port:?}"))),
        },
    }
}

pub async fn pod(lookup: &dyn Lookup, namespace: &str, id: &str) -> Result<Target> {
    let (scheme_name, name, asked) =
        split(id).ok_or_else(|| ApiError::bad_request(format!("invalid pod request {id:?}")))?;
    let pod: Pod = lookup.require(PODS, namespace, name).await?;
    let declared = || pod.spec.containers.iter().flat_map(|container| &container.ports).next();
    let default = if scheme_name == "https" { 443 } else { 80 };
    let port = port(asked)?.or_else(|| declared().map(|port| port.container_port)).unwrap_or(default);
    let host = pod.status.pod_ip;
    if !host.parse().is_ok_and(is_global_unicast) {
        return Err(ApiError::bad_request("address not allowed"));
    }
    Ok(Target { scheme: scheme(scheme_name), host, port })
}

/// A pod may say any address; the server's own and its link's are not for it to point at.
fn is_global_unicast(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || link_local)
}

#[derive(Deserialize)]
struct Service {
    #[serde(default)]
    spec: ServiceSpec,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ServiceSpec {
    ports: Vec<Port>,
}

/// Of a service and of an endpoint slice.
#[derive(Deserialize)]
struct Port {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    port: Option<u16>,
}

impl Port {
    fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }
}

#[derive(Deserialize)]
struct EndpointSlice {
    metadata: SliceMeta,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
    #[serde(default)]
    ports: Vec<Port>,
}

#[derive(Deserialize)]
struct SliceMeta {
    #[serde(default)]
    labels: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Endpoint {
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(default)]
    conditions: Conditions,
}

#[derive(Default, Deserialize)]
struct Conditions {
    #[serde(default)]
    ready: Option<bool>,
}

pub async fn service(lookup: &dyn Lookup, namespace: &str, id: &str) -> Result<Target> {
    let (scheme_name, name, asked) =
        split(id).ok_or_else(|| ApiError::bad_request(format!("invalid service request {id:?}")))?;
    let service: Service = lookup.require(SERVICES, namespace, name).await?;
    let port_name =
        match asked.parse::<u16>() {
            Err(_) => asked,
            Ok(number) => {
                service.spec.ports.iter().find(|port| port.port == Some(number)).map(Port::name).ok_or_else(|| {
                    ApiError::unavailable(format!("no service port {number} found for service {name:?}"))
                })?
            }
        };
    let slices: Vec<EndpointSlice> = lookup.list_as(ENDPOINT_SLICES, namespace).await?;
    let mut candidates = Vec::new();
    for slice in slices.iter().filter(|slice| slice.metadata.labels.get(SERVICE_NAME).is_some_and(|of| of == name)) {
        let ports = slice.ports.iter().filter(|port| port.name() == port_name).filter_map(|port| port.port);
        for port in ports {
            let ready = slice.endpoints.iter().filter(|endpoint| endpoint.conditions.ready != Some(false));
            candidates.extend(ready.filter_map(|endpoint| Some((endpoint.addresses.first()?, port))));
        }
    }
    candidates.retain(|(address, _)| address.parse().is_ok_and(is_global_unicast));
    let (host, port) = candidates
        .choose(&mut rand::rng())
        .ok_or_else(|| ApiError::unavailable(format!("no endpoints available for service {id:?}")))?;
    Ok(Target { scheme: scheme(scheme_name), host: (*host).clone(), port: *port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_split() {
        let cases = [
            ("a", Some(("", "a", ""))),
            ("a:80", Some(("", "a", "80"))),
            ("https:a:web", Some(("https", "a", "web"))),
            ("https:a:", Some(("https", "a", ""))),
            ("ftp:a:1", None),
            (":80", None),
            ("a:b:c:d", None),
        ];
        for (id, expected) in cases {
            assert_eq!(split(id), expected, "{id}");
        }
    }

    #[test]
    fn only_global_unicast_addresses_are_dialled() {
        for (address, allowed) in [
            ("10.42.0.3", true),
            ("fd00::3", true),
            ("127.0.0.1", false),
            ("169.254.169.254", false),
            ("fe80::1", false),
            ("224.0.0.1", false),
            ("0.0.0.0", false),
        ] {
            assert_eq!(is_global_unicast(address.parse().unwrap()), allowed, "{address}");
        }
    }
}
