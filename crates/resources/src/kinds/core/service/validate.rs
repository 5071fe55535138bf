//! Validation of services, by the fields' order in the spec.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use machinery::field::Path;
use machinery::names;

use super::super::endpoints::forbidden_address;
use super::{TOPOLOGY_HINTS, TOPOLOGY_MODE};
use crate::validate::{Errors, IMMUTABLE, indexed, meta, text};

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const HEADLESS: &str = "None";
/// A balancer in front of the kubelet would expose the node.
const KUBELET_PORT: i32 = 10250;
const MAX_AFFINITY_SECONDS: i32 = 86400;

pub fn service(service: &Service, errors: &mut Errors) {
    let path = Path::new("spec");
    let default = ServiceSpec::default();
    let spec = service.spec.as_ref().unwrap_or(&default);
    let type_ = text(&spec.type_);
    let headless = is_headless(spec);
    topology(service, errors);
    if spec.ports.as_ref().is_none_or(Vec::is_empty) && !headless && type_ != "ExternalName" {
        errors.required(&path.child("ports"), "");
    }
    of_type(spec, type_, headless, &path, errors);
    ports(spec, type_, &path.child("ports"), errors);
    meta::labels(spec.selector.as_ref(), &path.child("selector"), errors);
    affinity(spec, &path, errors);
    cluster_ips(spec, type_, &path, errors);
    errors.one_of(&path.child("type"), Some(type_), TYPES);
    for (at, ip) in indexed(spec.external_ips.as_ref(), &path.child("externalIPs")) {
        match ip.parse::<IpAddr>() {
            Ok(_) => forbidden_address(ip, &at, errors),
            Err(_) => errors.ip(&at, ip),
        }
    }
    balancer(service, spec, &path, errors);
    traffic(spec, type_, &path, errors);
}

/// The annotation and the one that it replaced must agree.
fn topology(service: &Service, errors: &mut Errors) {
    let annotation = |key: &str| service.metadata.annotations.as_ref().and_then(|map| map.get(key));
    if let (Some(mode), Some(hints)) = (annotation(TOPOLOGY_MODE), annotation(TOPOLOGY_HINTS))
        && mode != hints
    {
        let at = Path::new("metadata").child("annotations").key(TOPOLOGY_MODE);
        errors.invalid(&at, mode, format!("must match annotations[{TOPOLOGY_HINTS}] when both are specified"));
    }
}

pub(super) fn is_headless(spec: &ServiceSpec) -> bool {
    spec.cluster_ip.as_deref() == Some(HEADLESS)
        || spec.cluster_ips.as_ref().and_then(|ips| ips.first()).is_some_and(|ip| ip == HEADLESS)
}

fn of_type(spec: &ServiceSpec, type_: &str, headless: bool, path: &Path, errors: &mut Errors) {
    match type_ {
        "LoadBalancer" | "NodePort" if headless => {
            let detail = format!("may not be set to 'None' for {type_} services");
            errors.invalid(&path.child("clusterIPs").index(0), HEADLESS, detail);
        }
        "LoadBalancer" => {
            for (at, port) in indexed(spec.ports.as_ref(), &path.child("ports")) {
                if port.port == KUBELET_PORT {
                    let detail = format!("may not expose port {KUBELET_PORT} externally since it is used by kubelet");
                    errors.invalid(&at, port.port, detail);
                }
            }
        }
        "ExternalName" => {
            let filled = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
            let set = [
                ("clusterIPs", filled(&spec.cluster_ips)),
                ("ipFamilies", filled(&spec.ip_families)),
                ("ipFamilyPolicy", spec.ip_family_policy.is_some()),
            ];
            for (key, _) in set.iter().filter(|(_, set)| *set) {
                errors.forbidden(&path.child(*key), "may not be set for ExternalName services");
            }
            let name = text(&spec.external_name);
            let name = name.strip_suffix('.').unwrap_or(name);
            if name.is_empty() {
                errors.required(&path.child("externalName"), "");
            } else {
                errors.all_invalid(&path.child("externalName"), name, names::is_dns1123_subdomain(name));
            }
        }
        _ => {}
    }
}

fn ports(spec: &ServiceSpec, type_: &str, path: &Path, errors: &mut Errors) {
    let list = spec.ports.as_deref().unwrap_or_default();
    let (mut seen_names, mut seen_ports, mut seen_node_ports) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (at, port) in indexed(spec.ports.as_ref(), path) {
        let name = text(&port.name);
        if !name.is_empty() {
            errors.all_invalid(&at.child("name"), name, names::is_dns1123_label(name));
            if !seen_names.insert(name) {
                errors.duplicate(&at.child("name"), name);
            }
        } else if list.len() > 1 {
            errors.required(&at.child("name"), "");
        }
        self::port(port, &at, errors);
        let protocol = text(&port.protocol);
        if !seen_ports.insert((protocol, port.port)) {
            errors.duplicate(&at, serde_json::json!({"protocol": protocol, "port": port.port, "targetPort": 0}));
        }
        let node_port = port.node_port.unwrap_or(0);
        if node_port != 0 && type_ == "ClusterIP" {
            errors.forbidden(&at.child("nodePort"), "may not be used when `type` is 'ClusterIP'");
        }
        if node_port != 0 && !seen_node_ports.insert((protocol, node_port)) {
            errors.duplicate(&at.child("nodePort"), node_port);
        }
    }
}

fn port(port: &ServicePort, path: &Path, errors: &mut Errors) {
    errors.port(&path.child("port"), port.port);
    errors.one_of(&path.child("protocol"), port.protocol.as_deref(), &["SCTP", "TCP", "UDP"]);
    if let Some(target) = &port.target_port {
        errors.port_or_name(&path.child("targetPort"), target);
    }
    if let Some(protocol) = &port.app_protocol {
        errors.all_invalid(&path.child("appProtocol"), protocol, names::is_qualified_name(protocol));
    }
}

fn affinity(spec: &ServiceSpec, path: &Path, errors: &mut Errors) {
    let affinity = spec.session_affinity.as_deref();
    errors.one_of(&path.child("sessionAffinity"), affinity, &["ClientIP", "None"]);
    let at = path.child("sessionAffinityConfig");
    let config = spec.session_affinity_config.as_ref();
    match (affinity, config) {
        (Some("ClientIP"), config) => {
            let at = at.child("clientIP").child("timeoutSeconds");
            match config.and_then(|config| config.client_ip.as_ref()).and_then(|client| client.timeout_seconds) {
                None => errors.required(&at, "when session affinity type is ClientIP"),
                Some(seconds) if !(1..=MAX_AFFINITY_SECONDS).contains(&seconds) => {
                    let detail = format!("must be greater than 0 and less than {MAX_AFFINITY_SECONDS}");
                    errors.invalid(&at, seconds, detail);
                }
                Some(_) => {}
            }
        }
        (Some("None"), Some(_)) => {
            errors.forbidden(&at, "must not be set when session affinity is None");
        }
        _ => {}
    }
}

/// Where the ranges stood before they had a field.
const RANGES_ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
const BALANCED_ONLY: &str = "may only be used when `type` is 'LoadBalancer'";

fn balancer(service: &Service, spec: &ServiceSpec, path: &Path, errors: &mut Errors) {
    let balanced = text(&spec.type_) == "LoadBalancer";
    let annotated = service.metadata.annotations.as_ref().and_then(|map| map.get(RANGES_ANNOTATION));
    // The field's name in paths is upstream's.
    let at = path.child("LoadBalancerSourceRanges");
    let (at, ranges) = match (spec.load_balancer_source_ranges.as_deref(), annotated) {
        (Some(ranges @ [_, ..]), _) => (at.clone(), (0..).map(|index| at.index(index)).zip(ranges.to_vec()).collect()),
        (_, Some(text)) => {
            let at = Path::new("metadata").child("annotations").key(RANGES_ANNOTATION);
            let ranges = text.split(',').filter(|_| !text.trim().is_empty());
            (at.clone(), ranges.map(|range| (at.clone(), range.to_owned())).collect())
        }
        _ => (at, Vec::new()),
    };
    if !balanced && !ranges.is_empty() {
        errors.forbidden(&at, BALANCED_ONLY);
    }
    for (at, range) in ranges {
        errors.all_invalid(&at, range.trim(), names::is_valid_cidr(range.trim()));
    }
    if balanced {
        if spec.allocate_load_balancer_node_ports.is_none() {
            errors.required(&Path::new("allocateLoadBalancerNodePorts"), "");
        }
        if let Some(class) = &spec.load_balancer_class {
            errors.all_invalid(&path.child("loadBalancerClass"), class, names::is_qualified_name(class));
        }
        return;
    }
    let set = [
        ("allocateLoadBalancerNodePorts", spec.allocate_load_balancer_node_ports.is_some()),
        ("loadBalancerClass", spec.load_balancer_class.is_some()),
    ];
    for (key, _) in set.iter().filter(|(_, set)| *set) {
        errors.forbidden(&path.child(*key), BALANCED_ONLY);
    }
}

/// What a balancer reports.
pub fn status(service: &Service, errors: &mut Errors) {
    let balanced = service.spec.as_ref().is_some_and(|spec| text(&spec.type_) == "LoadBalancer");
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_ref()).filter(|ingress| !ingress.is_empty());
    let path = Path::new("status").child("loadBalancer").child("ingress");
    if !balanced && ingress.is_some() {
        return errors.forbidden(&path, "may only be used when `spec.type` is \"LoadBalancer\"");
    }
    for (at, ingress) in indexed(ingress, &path) {
        let (ip, host) = (text(&ingress.ip), text(&ingress.hostname));
        if !ip.is_empty() {
            errors.ip(&at.child("ip"), ip);
        }
        match &ingress.ip_mode {
            None if !ip.is_empty() => errors.required(&at.child("ipMode"), "must be specified when `ip` is set"),
            Some(_) if ip.is_empty() => {
                errors.forbidden(&at.child("ipMode"), "may not be specified when `ip` is not set");
            }
            mode => errors.optional_one_of(&at.child("ipMode"), mode.as_deref(), &["Proxy", "VIP"]),
        }
        if !host.is_empty() {
            errors.all_invalid(&at.child("hostname"), host, names::is_dns1123_subdomain(host));
            if host.parse::<IpAddr>().is_ok() {
                errors.invalid(&at.child("hostname"), host, "must be a DNS name, not an IP address");
            }
        }
    }
}

fn traffic(spec: &ServiceSpec, type_: &str, path: &Path, errors: &mut Errors) {
    const POLICIES: &[&str] = &["Cluster", "Local"];
    let external_ips = spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty());
    let external = matches!(type_, "NodePort" | "LoadBalancer") || (type_ == "ClusterIP" && external_ips);
    let at = path.child("externalTrafficPolicy");
    let policy = text(&spec.external_traffic_policy);
    match (external, policy) {
        (false, "") => {}
        (false, policy) => errors.invalid(&at, policy, "may only be set for externally-accessible services"),
        (true, policy) => errors.one_of(&at, Some(policy), POLICIES),
    }
    let health = spec.health_check_node_port.unwrap_or(0);
    let at = path.child("healthCheckNodePort");
    if health < 0 {
        errors.invalid(&at, health, "must be between 1 and 65535, inclusive");
    } else if health > 0 && !(type_ == "LoadBalancer" && policy == "Local") {
        let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.invalid(&at, health, detail);
    }
    if matches!(type_, "NodePort" | "LoadBalancer" | "ClusterIP") {
        let internal = spec.internal_traffic_policy.as_deref();
        errors.one_of(&path.child("internalTrafficPolicy"), internal, POLICIES);
    } else {
        let internal = spec.internal_traffic_policy.as_deref();
        errors.optional_one_of(&path.child("internalTrafficPolicy"), internal, POLICIES);
    }
    errors.optional_one_of(
        &path.child("trafficDistribution"),
        spec.traffic_distribution.as_deref(),
        &["PreferClose", "PreferSameNode", "PreferSameZone"],
    );
}

fn cluster_ips(spec: &ServiceSpec, type_: &str, path: &Path, errors: &mut Errors) {
    if type_ == "ExternalName" {
        return;
    }
    let ips = spec.cluster_ips.as_deref().unwrap_or_default();
    let at = path.child("clusterIPs");
    let single = text(&spec.cluster_ip);
    if ips.first().is_some_and(|first| first != single) {
        errors.invalid(&at, ips, "first value must match `clusterIP`");
    }
    if ips.len() > 2 {
        errors.invalid(&at, ips, "may only hold up to 2 values");
    }
    for (at, ip) in indexed(spec.cluster_ips.as_ref(), &at) {
        if ip == HEADLESS {
            if ips.len() > 1 {
                errors.invalid(&at, ips, "'None' must be the first and only value");
            }
        } else {
            errors.ip(&at, ip);
        }
    }
    let families: Vec<bool> = ips.iter().filter_map(|ip| ip.parse::<IpAddr>().ok()).map(|ip| ip.is_ipv6()).collect();
    if families.len() == 2 && families[0] == families[1] {
        errors.invalid(&at, ips, "may specify no more than one IP for each IP family");
    }
    let policies = &["PreferDualStack", "RequireDualStack", "SingleStack"];
    errors.optional_one_of(&path.child("ipFamilyPolicy"), spec.ip_family_policy.as_deref(), policies);
    let mut seen = BTreeSet::new();
    for (at, family) in indexed(spec.ip_families.as_ref(), &path.child("ipFamilies")) {
        errors.one_of(&at, Some(family), &["IPv4", "IPv6"]);
        if !seen.insert(family) {
            errors.duplicate(&at, family);
        }
    }
}

/// The primary address and the balancer's class stay while the type does.
pub fn update(new: &Service, old: &Service, errors: &mut Errors) {
    let path = Path::new("spec");
    let (Some(new), Some(old)) = (&new.spec, &old.spec) else { return };
    let external = |spec: &ServiceSpec| text(&spec.type_) == "ExternalName";
    let before = text(&old.cluster_ip);
    if !external(new) && !external(old) && !before.is_empty() && text(&new.cluster_ip) != before {
        let at = path.child("clusterIPs").index(0);
        let detail = if text(&new.cluster_ip).is_empty() {
            "primary clusterIP can not be unset"
        } else {
            "may not change once set"
        };
        errors.invalid(&at, &new.cluster_ips, detail);
    }
    let balanced = |spec: &ServiceSpec| text(&spec.type_) == "LoadBalancer";
    let local = |spec: &ServiceSpec| balanced(spec) && text(&spec.external_traffic_policy) == "Local";
    if local(new) && local(old) && new.health_check_node_port != old.health_check_node_port {
        errors.forbidden(&path.child("healthCheckNodePort"), IMMUTABLE);
    }
    if balanced(new) && balanced(old) && new.load_balancer_class != old.load_balancer_class {
        let at = path.child("loadBalancerClass");
        errors.invalid(&at, &new.load_balancer_class, "may not change once set");
    }
}
