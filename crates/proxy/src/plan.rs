//! From one Service and its EndpointSlices to rules: a pure function.
//!
//! Services are planned one by one, so that a change costs what it touches.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::cidr::Cidr;
use crate::endpoints::Endpoints;
use crate::rules::{Family, HealthCheck, PortName, PortRules, Protocol, Route, ServiceRules};

/// This node, as far as plans depend on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    /// Its label topology.kubernetes.io/zone.
    pub zone: Option<String>,
    pub ips: Vec<IpAddr>,
}

/// Services implemented by somebody else.
const OTHER_PROXY_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// The traffic policy that keeps to this node.
const LOCAL: &str = "Local";
/// Of session affinity, where the API server left it out.
const DEFAULT_AFFINITY_SECONDS: i32 = 10_800;

/// `None` for a Service that this proxy has nothing to do with.
pub fn plan(service: &Service, slices: &[Arc<EndpointSlice>], node: &Node) -> Option<ServiceRules> {
    let spec = service.spec.as_ref()?;
    let elsewhere = service.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(OTHER_PROXY_LABEL));
    if elsewhere || spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    let key: Arc<str> = client::key_of(&service.metadata).into();
    let mut rules = ServiceRules::default();
    let mut local = BTreeSet::new();
    for cluster_ip in cluster_ips(spec) {
        for port in spec.ports.iter().flatten() {
            let name = PortName {
                family: Family::of(cluster_ip),
                service: key.clone(),
                port: port.name.clone().unwrap_or_default(),
                protocol: Protocol::parse(port.protocol.as_deref()),
            };
            let endpoints = Endpoints::collect(slices, name.family, &name.port, name.protocol, node);
            local.extend(endpoints.local_ready());
            rules
                .ports
                .insert(name.clone(), Arc::new(plan_port(service, spec, port, cluster_ip, &name, &endpoints, node)));
        }
    }
    rules.health_check = health_check_port(spec).map(|port| HealthCheck { port, local_endpoints: local.len() });
    (!rules.ports.is_empty()).then_some(rules)
}

fn plan_port(
    service: &Service,
    spec: &ServiceSpec,
    port: &ServicePort,
    cluster_ip: IpAddr,
    name: &PortName,
    endpoints: &Endpoints,
    node: &Node,
) -> PortRules {
    let of_family = |addresses: Vec<IpAddr>| -> Vec<IpAddr> {
        addresses.into_iter().filter(|address| Family::of(*address) == name.family).collect()
    };
    let external_ips = of_family(parse_all(spec.external_ips.as_deref().unwrap_or_default()));
    let load_balancer_ips = of_family(load_balancer_ips(service));
    let node_port = port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
    let accessible = node_port.is_some() || !external_ips.is_empty() || !load_balancer_ips.is_empty();

    let internal_local = spec.internal_traffic_policy.as_deref() == Some(LOCAL);
    let external_local = external_local(spec);
    // A local external policy needs the cluster's endpoints too, for clients in the cluster.
    let usable = endpoints.usable(!internal_local || accessible, internal_local || external_local && accessible);
    let route = |local: bool| match (usable.any, local) {
        (false, _) => Route::Reject,
        (true, false) => Route::Cluster,
        (true, true) if usable.local.is_empty() => Route::Drop,
        (true, true) => Route::Local,
    };
    PortRules {
        cluster_ip,
        port: port.port as u16,
        allowed_sources: allowed_sources(spec, &load_balancer_ips, name.family, node),
        external_ips,
        load_balancer_ips,
        node_port,
        affinity: affinity(spec),
        internal: route(internal_local),
        external: route(external_local),
        external_local,
        serving: if name.protocol == Protocol::Udp { endpoints.serving() } else { Vec::new() },
        cluster: usable.cluster,
        local: usable.local,
    }
}

/// One of each family at most; none for a headless Service.
fn cluster_ips(spec: &ServiceSpec) -> Vec<IpAddr> {
    match spec.cluster_ips.as_deref() {
        Some(several) if !several.is_empty() => parse_all(several),
        _ => parse_all(spec.cluster_ip.as_slice()),
    }
}

fn external_local(spec: &ServiceSpec) -> bool {
    let external = matches!(spec.type_.as_deref(), Some("LoadBalancer" | "NodePort"))
        || spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty());
    external && spec.external_traffic_policy.as_deref() == Some(LOCAL)
}

fn health_check_port(spec: &ServiceSpec) -> Option<u16> {
    let needed = spec.type_.as_deref() == Some("LoadBalancer") && external_local(spec);
    spec.health_check_node_port.filter(|_| needed).and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0)
}

fn affinity(spec: &ServiceSpec) -> Option<Duration> {
    (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let configured = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref()?.timeout_seconds);
        Duration::from_secs(configured.unwrap_or(DEFAULT_AFFINITY_SECONDS).max(1) as u64)
    })
}

/// The addresses at which the load balancer delivers packets as they came: none where it is a proxy.
fn load_balancer_ips(service: &Service) -> Vec<IpAddr> {
    let ingress = service.status.as_ref().and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
    let caught = ingress.into_iter().flatten().filter(|entry| entry.ip_mode.as_deref() != Some("Proxy"));
    caught.filter_map(|entry| entry.ip.as_deref()?.parse().ok()).collect()
}

fn allowed_sources(spec: &ServiceSpec, addresses: &[IpAddr], family: Family, node: &Node) -> Option<Vec<Cidr>> {
    let ranges = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    let parsed = ranges.iter().filter_map(|range| range.trim().parse::<Cidr>().ok());
    let mut allowed: Vec<Cidr> = parsed.filter(|range| range.family() == family).collect();
    if addresses.is_empty() || allowed.is_empty() {
        return None;
    }
    // Where the address is one of the node's own, the node's packets to it come from it.
    if node.ips.iter().any(|ip| allowed.iter().any(|range| range.contains(*ip))) {
        allowed.extend(addresses.iter().copied().map(Cidr::host));
    }
    Some(allowed)
}

fn parse_all(addresses: &[String]) -> Vec<IpAddr> {
    addresses.iter().filter_map(|address| address.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::rules::{Change, RuleSet};

    fn merged(mut base: Value, more: &Value) -> Value {
        base.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        base
    }

    fn rules_of(service: Value, endpoints: Value) -> Option<ServiceRules> {
        let slice = json!({
            "metadata": {}, "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        });
        let node = Node { name: "here".into(), zone: None, ips: vec!["192.0.2.1".parse().unwrap()] };
        plan(&serde_json::from_value(service).unwrap(), &[Arc::new(serde_json::from_value(slice).unwrap())], &node)
    }

    fn port_of(more: &Value, status: Value, endpoints: &Value) -> PortRules {
        let spec = json!({ "type": "NodePort", "clusterIPs": ["10.43.0.5"],
            "ports": [{ "name": "http", "port": 80, "nodePort": 30080 }] });
        let service =
            json!({ "metadata": { "name": "web", "namespace": "ns" }, "spec": merged(spec, more), "status": status });
        let rules = rules_of(service, endpoints.clone()).unwrap();
        PortRules::clone(rules.ports.values().next().unwrap())
    }

    fn endpoint(last: u8, node: &str, ready: bool, terminating: bool) -> Value {
        json!({
            "addresses": [format!("10.42.0.{last}")], "nodeName": node,
            "conditions": { "ready": ready, "serving": true, "terminating": terminating },
        })
    }

    #[test]
    fn policies_and_conditions() {
        use Route::*;
        let two = json!([endpoint(2, "here", true, false), endpoint(3, "there", true, false)]);
        let away = json!([endpoint(3, "there", true, false)]);
        let leaving = json!([endpoint(2, "here", false, true), endpoint(3, "there", false, false)]);
        let external = json!({ "externalTrafficPolicy": "Local" });
        let internal = json!({ "internalTrafficPolicy": "Local" });
        for (more, endpoints, routes, counts) in [
            (&json!({}), &two, (Cluster, Cluster), (2, 0)),
            (&external, &two, (Cluster, Local), (2, 1)),
            (&external, &away, (Cluster, Drop), (1, 0)),
            (&internal, &two, (Local, Cluster), (2, 1)),
            (&internal, &away, (Drop, Cluster), (1, 0)),
            (&json!({}), &leaving, (Cluster, Cluster), (1, 0)),
            (&external, &leaving, (Cluster, Local), (1, 1)),
            (&external, &json!([]), (Reject, Reject), (0, 0)),
        ] {
            let port = port_of(more, Value::Null, endpoints);
            assert_eq!((port.internal, port.external), routes, "{more} {endpoints}");
            assert_eq!((port.cluster.len(), port.local.len()), counts, "{more} {endpoints}");
        }
    }

    #[test]
    fn others_services_have_no_rules() {
        for (labels, spec) in [
            (json!({}), json!({ "clusterIP": "None", "clusterIPs": ["None"], "ports": [{ "port": 80 }] })),
            (json!({}), json!({ "type": "ExternalName", "externalName": "x", "ports": [{ "port": 80 }] })),
            (json!({ OTHER_PROXY_LABEL: "cilium" }), json!({ "clusterIP": "10.43.0.9", "ports": [{ "port": 80 }] })),
        ] {
            let service = json!({ "metadata": { "name": "web", "namespace": "ns", "labels": labels }, "spec": spec });
            assert_eq!(rules_of(service, json!([])), None, "{spec}");
        }
    }

    #[test]
    fn load_balancers() {
        let status = json!({ "loadBalancer": { "ingress": [
            { "ip": "192.0.2.7" }, { "ip": "192.0.2.8", "ipMode": "Proxy" }, { "hostname": "x" }, { "ip": "2001:db8::1" }] } });
        let spec = |ranges: Value| json!({ "type": "LoadBalancer", "loadBalancerSourceRanges": ranges });
        let sources = |ranges| {
            let port = port_of(&spec(ranges), status.clone(), &json!([]));
            assert_eq!(port.load_balancer_ips, ["192.0.2.7".parse::<IpAddr>().unwrap()]);
            port.allowed_sources.map(|sources| sources.len())
        };
        assert_eq!(sources(json!([])), None);
        assert_eq!(sources(json!([" 198.51.100.0/24 ", "2001:db8::/32"])), Some(1));
        assert_eq!(sources(json!(["192.0.2.0/24"])), Some(2), "the node is allowed, so is the address itself");
        assert_eq!(port_of(&spec(json!(["192.0.2.0/24"])), Value::Null, &json!([])).allowed_sources, None);
    }

    #[test]
    fn health_checks_count_ready_endpoints_here() {
        let service = |policy: &str| {
            json!({ "metadata": { "name": "web", "namespace": "ns" }, "spec": {
                "type": "LoadBalancer", "clusterIPs": ["10.43.0.5"], "healthCheckNodePort": 31000,
                "externalTrafficPolicy": policy, "ports": [{ "name": "http", "port": 80, "nodePort": 30080 }] } })
        };
        let endpoints = json!([
            endpoint(2, "here", true, false),
            endpoint(3, "there", true, false),
            endpoint(4, "here", false, true)
        ]);
        let rules = rules_of(service("Local"), endpoints.clone()).unwrap();
        assert_eq!(rules.health_check, Some(HealthCheck { port: 31000, local_endpoints: 1 }));
        assert_eq!(rules_of(service("Cluster"), endpoints).unwrap().health_check, None);
    }

    #[test]
    fn both_families_and_affinity() {
        let service = json!({ "metadata": { "name": "web", "namespace": "ns" }, "spec": {
            "clusterIP": "10.43.0.5", "clusterIPs": ["10.43.0.5", "fd43::5"], "sessionAffinity": "ClientIP",
            "ports": [{ "name": "http", "port": 80 }, { "name": "http3", "port": 443, "protocol": "UDP" }] } });
        let rules = rules_of(service, json!([endpoint(2, "here", true, false)])).unwrap();
        let seen: Vec<(Family, &str, usize)> =
            rules.ports.iter().map(|(name, port)| (name.family, &*name.port, port.cluster.len())).collect();
        assert_eq!(
            seen,
            [
                (Family::Ipv4, "http", 1),
                (Family::Ipv4, "http3", 0),
                (Family::Ipv6, "http", 0),
                (Family::Ipv6, "http3", 0)
            ]
        );
        assert!(rules.ports.values().all(|port| port.affinity == Some(Duration::from_secs(10_800))));
    }

    #[test]
    fn only_what_differs_is_a_change() {
        let service = |port: u16| {
            let ports = json!([{ "name": "a", "port": 1 }, { "name": "b", "port": port }]);
            let spec = json!({ "clusterIP": "10.43.0.5", "ports": ports });
            rules_of(json!({ "metadata": { "name": "web", "namespace": "ns" }, "spec": spec }), json!([]))
        };
        let key: Arc<str> = "ns/web".into();
        let mut set = RuleSet::default();
        assert_eq!(set.put(&key, service(2)).len(), 2);
        assert_eq!(set.put(&key, service(2)), []);
        let [Change { name, old: Some(_), new: Some(_) }] = &set.put(&key, service(3))[..] else {
            panic!("one change")
        };
        assert_eq!(name.port, "b");
        assert!(set.put(&key, None).iter().all(|change| change.new.is_none()));
        assert_eq!(set, RuleSet::default());
    }
}
