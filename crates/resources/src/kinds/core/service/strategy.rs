//! What an update of a service inherits from the stored one, and what it loses with its type.
//!
//! Clients that PUT without the allocated fields mean "leave them", not "give me new ones".

use serde_json::{Value, json};

use crate::value::Defaulting;

/// The singular and plural forms of the cluster address agree; the singular wins where it changed.
pub(super) fn sync_cluster_ips(spec: &mut Value, old: Option<&Value>) {
    let single = spec.text("clusterIP").to_owned();
    let first = spec["clusterIPs"][0].as_str().unwrap_or_default().to_owned();
    if single == first {
        return;
    }
    let singular_unchanged = old.is_some_and(|old| old.text("clusterIP") == single);
    if single.is_empty() && !first.is_empty() && old.is_none_or(|old| old.text("clusterIP").is_empty()) {
        spec["clusterIP"] = json!(first);
    } else if first.is_empty() || !singular_unchanged {
        let plural_unchanged = old.is_none_or(|old| old["clusterIPs"] == spec["clusterIPs"]);
        if single.is_empty() {
            Defaulting::remove(spec, "clusterIPs");
        } else if first.is_empty() || plural_unchanged {
            spec["clusterIPs"] = json!([single]);
        }
    }
}

fn needs_cluster_ip(spec: &Value) -> bool {
    matches!(spec.text("type"), "ClusterIP" | "NodePort" | "LoadBalancer")
}

fn needs_node_port(spec: &Value) -> bool {
    matches!(spec.text("type"), "NodePort" | "LoadBalancer")
}

fn needs_health_check(spec: &Value) -> bool {
    spec.text("type") == "LoadBalancer" && spec.text("externalTrafficPolicy") == "Local"
}

/// Allocated values the new spec leaves out.
pub(super) fn carry_over(new: &mut Value, old: &Value) {
    if needs_cluster_ip(new) && needs_cluster_ip(old) {
        for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            if old.has(key) {
                new.or(key, old[key].clone());
            }
        }
    }
    if needs_node_port(new) && needs_node_port(old) {
        let before: Vec<Value> = old["ports"].as_array().cloned().unwrap_or_default();
        let mut used: Vec<i64> = Vec::new();
        if let Some(ports) = new["ports"].as_array() {
            used.extend(ports.iter().filter_map(|port| port["nodePort"].as_i64()));
        }
        new.each("ports", |port| {
            let same = |other: &&Value| other.text("name") == port.text("name");
            let node_port = before.iter().find(same).and_then(|other| other["nodePort"].as_i64()).unwrap_or(0);
            if port["nodePort"].as_i64().unwrap_or(0) == 0 && node_port != 0 && !used.contains(&node_port) {
                port["nodePort"] = json!(node_port);
                used.push(node_port);
            }
        });
    }
    if needs_health_check(new) && needs_health_check(old) && old.has("healthCheckNodePort") {
        new.or_zero("healthCheckNodePort", old["healthCheckNodePort"].as_i64().unwrap_or(0));
    }
}

/// Fields the new type has no use for, where the client did not set them itself.
pub(super) fn drop_fields_of_type(new: &mut Value, old: &Value) {
    let balanced = |spec: &Value| spec.text("type") == "LoadBalancer";
    let external =
        |spec: &Value| needs_node_port(spec) || spec["externalIPs"].as_array().is_some_and(|l| !l.is_empty());
    let lost: [(bool, &[&str]); 4] = [
        (
            needs_cluster_ip(old) && !needs_cluster_ip(new),
            &["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"],
        ),
        (needs_health_check(old) && !needs_health_check(new), &["healthCheckNodePort"]),
        (balanced(old) && !balanced(new), &["allocateLoadBalancerNodePorts", "loadBalancerClass"]),
        (external(old) && !external(new), &["externalTrafficPolicy"]),
    ];
    for key in lost.into_iter().filter(|(lost, _)| *lost).flat_map(|(_, keys)| keys) {
        if new[*key] == old[*key] {
            Defaulting::remove(new, key);
        }
    }
    if needs_node_port(old) && !needs_node_port(new) {
        let before = old["ports"].clone();
        let taken = |port: &Value| {
            before.as_array().is_some_and(|ports| ports.iter().any(|other| other["nodePort"] == port["nodePort"]))
        };
        new.each("ports", |port| {
            if port.has("nodePort") && taken(port) {
                Defaulting::remove(port, "nodePort");
            }
        });
    }
}
