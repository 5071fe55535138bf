//! From one Service and its EndpointSlices to rules: a pure function.
//!
//! The result names every address and port that is caught and what happens there, in terms that any
//! applier can express. Services are planned one by one, so that a change costs what it touches.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint as SliceEndpoint, EndpointSlice};

/// What the plan depends on besides the objects.
#[derive(Clone, Debug)]
pub struct Node {
    pub name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    fn parse(text: Option<&str>) -> Protocol {
        match text {
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            _ => Protocol::Tcp,
        }
    }

    /// IPPROTO_*.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

/// A pod's address and port.
pub type Endpoint = (Ipv4Addr, u16);

/// Where a connection may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    pub protocol: Protocol,
    /// In order, without duplicates, never empty.
    pub endpoints: Vec<Endpoint>,
    /// A client keeps its endpoint for this long after its last connection.
    pub affinity: Option<Duration>,
    pub masquerade: Masquerade,
    /// Only clients in these ranges (address and prefix length); empty means all.
    pub allowed_sources: Vec<(Ipv4Addr, u8)>,
}

/// Whose source address is rewritten, so that replies come back through this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Masquerade {
    /// Clients outside the pod range.
    OffCluster,
    Always,
    /// The client's address is to be seen.
    Never,
}

/// What happens at a caught address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// To the backend of this name.
    Balance(String),
    /// Refused: there are no endpoints.
    Reject,
    /// Dropped: there are none on this node, which the policy demands.
    Drop,
}

/// Everything one Service needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceRules {
    pub backends: BTreeMap<String, Backend>,
    /// On the Service's own addresses.
    pub addresses: BTreeMap<(Ipv4Addr, Protocol, u16), Action>,
    /// On every local address of the node.
    pub node_ports: BTreeMap<(Protocol, u16), Action>,
}

/// The name of the load balancer's or the node's own traffic policy that keeps the client's address.
const LOCAL: &str = "Local";

pub fn plan(service: &Service, slices: &[Arc<EndpointSlice>], node: &Node) -> ServiceRules {
    let mut rules = ServiceRules::default();
    let Some(spec) = &service.spec else { return rules };
    let cluster_ips = parse_all(spec.cluster_ips.as_deref().unwrap_or_default());
    if spec.type_.as_deref() == Some("ExternalName") || cluster_ips.is_empty() {
        return rules;
    }
    for port in spec.ports.iter().flatten() {
        plan_port(service, spec, port, &cluster_ips, slices, node, &mut rules);
    }
    rules
}

fn plan_port(
    service: &Service,
    spec: &ServiceSpec,
    port: &ServicePort,
    cluster_ips: &[Ipv4Addr],
    slices: &[Arc<EndpointSlice>],
    node: &Node,
    rules: &mut ServiceRules,
) {
    let protocol = Protocol::parse(port.protocol.as_deref());
    let number = port.port as u16;
    let (all, local) = endpoints(port, slices, node);
    let name = |role: &str| {
        let meta = &service.metadata;
        let (namespace, name) =
            (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
        format!("{role}-{namespace}/{name}/{}/{number}", protocol.name())
    };
    let backend = |endpoints: &[Endpoint], masquerade| Backend {
        protocol,
        endpoints: endpoints.to_vec(),
        affinity: affinity(spec),
        masquerade,
        allowed_sources: Vec::new(),
    };

    let internal_local = spec.internal_traffic_policy.as_deref() == Some(LOCAL);
    let internal = if internal_local { &local } else { &all };
    let action = add(
        rules,
        name("svc"),
        backend(internal, Masquerade::OffCluster),
        if internal_local && !all.is_empty() { Action::Drop } else { Action::Reject },
    );
    for ip in cluster_ips {
        rules.addresses.insert((*ip, protocol, number), action.clone());
    }

    let external_ips = parse_all(spec.external_ips.as_deref().unwrap_or_default());
    let balancer_ips = balancer_ips(service);
    let node_port = port.node_port.filter(|port| *port > 0).map(|port| port as u16);
    if external_ips.is_empty() && balancer_ips.is_empty() && node_port.is_none() {
        return;
    }
    let keep_source = spec.external_traffic_policy.as_deref() == Some(LOCAL);
    let (external, masquerade, missing) = match keep_source {
        true if all.is_empty() => (&local, Masquerade::Never, Action::Reject),
        true => (&local, Masquerade::Never, Action::Drop),
        false => (&all, Masquerade::Always, Action::Reject),
    };
    let action = add(rules, name("ext"), backend(external, masquerade), missing.clone());
    for ip in external_ips {
        rules.addresses.insert((ip, protocol, number), action.clone());
    }
    if let Some(node_port) = node_port {
        rules.node_ports.insert((protocol, node_port), action.clone());
    }
    let sources = parse_ranges(spec.load_balancer_source_ranges.as_deref().unwrap_or_default());
    let balanced = match (&action, sources.is_empty()) {
        (Action::Balance(_), false) => {
            add(rules, name("lb"), Backend { allowed_sources: sources, ..backend(external, masquerade) }, missing)
        }
        _ => action,
    };
    for ip in balancer_ips {
        rules.addresses.insert((ip, protocol, number), balanced.clone());
    }
}

/// Records the backend, unless it has no endpoints.
fn add(rules: &mut ServiceRules, name: String, backend: Backend, missing: Action) -> Action {
    if backend.endpoints.is_empty() {
        return missing;
    }
    rules.backends.insert(name.clone(), backend);
    Action::Balance(name)
}

/// Usable endpoints of a port: all, and those on this node.
fn endpoints(port: &ServicePort, slices: &[Arc<EndpointSlice>], node: &Node) -> (Vec<Endpoint>, Vec<Endpoint>) {
    let mut found: Vec<(Endpoint, &SliceEndpoint)> = Vec::new();
    for slice in slices.iter().filter(|slice| slice.address_type == "IPv4") {
        let matching = slice.ports.iter().flatten().find(|candidate| {
            candidate.name.as_deref().unwrap_or_default() == port.name.as_deref().unwrap_or_default()
                && Protocol::parse(candidate.protocol.as_deref()) == Protocol::parse(port.protocol.as_deref())
        });
        let Some(target) = matching.and_then(|port| u16::try_from(port.port?).ok()) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            let address = endpoint.addresses.first().and_then(|address| address.parse().ok());
            found.extend(address.map(|address| ((address, target), endpoint)));
        }
    }
    let here = |endpoint: &SliceEndpoint| endpoint.node_name.as_deref() == Some(&node.name);
    (usable(found.iter()), usable(found.iter().filter(|(_, endpoint)| here(endpoint))))
}

/// The ready ones; if there is none, those that still serve while they terminate (KEP-1669).
fn usable<'a>(endpoints: impl Iterator<Item = &'a (Endpoint, &'a SliceEndpoint)> + Clone) -> Vec<Endpoint> {
    let condition =
        |endpoint: &SliceEndpoint, pick: fn(&k8s_openapi::api::discovery::v1::EndpointConditions) -> Option<bool>| {
            endpoint.conditions.as_ref().and_then(pick)
        };
    let ready: BTreeSet<Endpoint> = endpoints
        .clone()
        .filter(|(_, e)| condition(e, |c| c.ready).unwrap_or(true))
        .map(|(address, _)| *address)
        .collect();
    let chosen = if ready.is_empty() {
        endpoints
            .filter(|(_, e)| {
                condition(e, |c| c.serving).unwrap_or(false) && condition(e, |c| c.terminating).unwrap_or(false)
            })
            .map(|(address, _)| *address)
            .collect()
    } else {
        ready
    };
    chosen.into_iter().collect()
}

fn affinity(spec: &ServiceSpec) -> Option<Duration> {
    const DEFAULT: i32 = 10_800;
    (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let configured = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref()?.timeout_seconds);
        Duration::from_secs(configured.unwrap_or(DEFAULT).max(1) as u64)
    })
}

fn balancer_ips(service: &Service) -> Vec<Ipv4Addr> {
    let ingress = service.status.as_ref().and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
    let caught = ingress.into_iter().flatten().filter(|entry| entry.ip_mode.as_deref() != Some("Proxy"));
    caught.filter_map(|entry| entry.ip.as_deref()?.parse().ok()).collect()
}

fn parse_all(addresses: &[String]) -> Vec<Ipv4Addr> {
    let parsed = addresses.iter().filter_map(|address| address.parse::<IpAddr>().ok());
    parsed.filter_map(|address| if let IpAddr::V4(v4) = address { Some(v4) } else { None }).collect()
}

fn parse_ranges(ranges: &[String]) -> Vec<(Ipv4Addr, u8)> {
    let parse = |range: &String| {
        let (base, prefix) = range.trim().split_once('/')?;
        Some((base.parse().ok()?, prefix.parse().ok().filter(|prefix| *prefix <= 32)?))
    };
    ranges.iter().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn rules(spec: Value, endpoints: Value) -> ServiceRules {
        let service = json!({ "metadata": { "name": "web", "namespace": "ns" }, "spec": spec });
        let slice = json!({
            "metadata": {}, "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        });
        let node = Node { name: "here".into() };
        plan(&serde_json::from_value(service).unwrap(), &[Arc::new(serde_json::from_value(slice).unwrap())], &node)
    }

    fn spec(more: Value) -> Value {
        let mut spec =
            json!({ "clusterIPs": ["10.43.0.5"], "ports": [{ "name": "http", "port": 80, "nodePort": 30080 }] });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    }

    fn endpoint(last: u8, node: &str, ready: bool, terminating: bool) -> Value {
        json!({
            "addresses": [format!("10.42.0.{last}")], "nodeName": node,
            "conditions": { "ready": ready, "serving": true, "terminating": terminating },
        })
    }

    /// Endpoints' last octets behind the cluster IP, behind the node port, and the masquerading there.
    fn summary(rules: &ServiceRules) -> String {
        let show = |action: &Action| match action {
            Action::Balance(name) => {
                let backend = &rules.backends[name];
                let last: Vec<u8> = backend
                    .endpoints
                    .iter()
                    .map(|(ip, port)| {
                        assert_eq!(*port, 8080);
                        ip.octets()[3]
                    })
                    .collect();
                format!("{last:?} {:?}", backend.masquerade)
            }
            other => format!("{other:?}"),
        };
        let inside = &rules.addresses[&(Ipv4Addr::new(10, 43, 0, 5), Protocol::Tcp, 80)];
        format!("{}; {}", show(inside), show(&rules.node_ports[&(Protocol::Tcp, 30080)]))
    }

    #[test]
    fn policies_and_conditions() {
        let two = json!([endpoint(2, "here", true, false), endpoint(3, "there", true, false)]);
        let away = json!([endpoint(3, "there", true, false)]);
        let leaving = json!([endpoint(2, "here", false, true), endpoint(3, "there", false, false)]);
        let local = json!({ "externalTrafficPolicy": "Local" });
        for (more, endpoints, expected) in [
            (json!({}), &two, "[2, 3] OffCluster; [2, 3] Always"),
            (local.clone(), &two, "[2, 3] OffCluster; [2] Never"),
            (local.clone(), &away, "[3] OffCluster; Drop"),
            (json!({ "internalTrafficPolicy": "Local" }), &two, "[2] OffCluster; [2, 3] Always"),
            (json!({ "internalTrafficPolicy": "Local" }), &away, "Drop; [3] Always"),
            (json!({}), &leaving, "[2] OffCluster; [2] Always"),
            (local, &json!([]), "Reject; Reject"),
            (json!({}), &json!([]), "Reject; Reject"),
        ] {
            assert_eq!(summary(&rules(spec(more.clone()), endpoints.clone())), expected, "{more} {endpoints}");
        }
    }

    #[test]
    fn what_has_no_address_has_no_rules() {
        assert_eq!(
            rules(json!({ "clusterIPs": ["None"], "ports": [{ "port": 80 }] }), json!([])),
            ServiceRules::default()
        );
        assert_eq!(rules(json!({ "type": "ExternalName", "externalName": "x" }), json!([])), ServiceRules::default());
    }

    #[test]
    fn affinity_and_external_addresses() {
        let rules = rules(
            spec(json!({ "sessionAffinity": "ClientIP", "externalIPs": ["192.0.2.7"] })),
            json!([endpoint(2, "here", true, false)]),
        );
        assert_eq!(rules.backends["svc-ns/web/tcp/80"].affinity, Some(Duration::from_secs(10_800)));
        let external = &rules.addresses[&(Ipv4Addr::new(192, 0, 2, 7), Protocol::Tcp, 80)];
        assert_eq!(*external, Action::Balance("ext-ns/web/tcp/80".into()));
    }
}
