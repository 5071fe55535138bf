//! Which of two nodes each score prefers.

use super::*;

/// Node `b` is better for the pod; the nodes are otherwise alike.
#[track_caller]
fn prefers_b(a: Value, b: Value, pods: Vec<(&'static str, Value)>, pod: Value) {
    for turned in [false, true] {
        let mut nodes = vec![node("a", a.clone()), node("b", b.clone())];
        if turned {
            nodes.reverse(); // so that neither the order nor the lot explains it
        }
        assert_eq!(outcome(&snapshot(nodes, pods.clone()), pod.clone()), "b");
    }
}

#[test]
fn emptier_nodes_are_better() {
    prefers_b(json!({}), json!({}), vec![("a", pod("x", "1", json!({})))], pod("p", "1", json!({})));
    // Also when nobody requests anything.
    prefers_b(json!({}), json!({}), vec![("a", pod("x", "", json!({})))], pod("p", "", json!({})));
}

#[test]
fn balanced_nodes_are_better() {
    let requests = |cpu: &str, memory: &str| {
        let requests = json!({"cpu": cpu, "memory": memory});
        pod("x", "", json!({"spec": {"containers": [{"name": "c", "resources": {"requests": requests}}]}}))
    };
    // As much is left on both in sum.
    let pods = vec![("a", requests("3", "1Gi")), ("b", requests("1", "5Gi"))];
    prefers_b(json!({}), json!({}), pods, requests("1", "0"));
}

#[test]
fn soft_taints_repel() {
    let taint = json!({"spec": {"taints": [{"key": "k", "effect": "PreferNoSchedule"}]}});
    prefers_b(taint, json!({}), vec![], pod("p", "1", json!({})));
}

#[test]
fn preferred_affinity_attracts() {
    let expressions = json!([{"key": "disk", "operator": "In", "values": ["ssd"]}]);
    let preferred = json!([{"weight": 1, "preference": {"matchExpressions": expressions}}]);
    let affinity = json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}});
    let ssd = json!({"metadata": {"labels": {"disk": "ssd"}}});
    prefers_b(json!({}), ssd, vec![], pod("p", "1", json!({"spec": {"affinity": affinity}})));
}

#[test]
fn images_attract() {
    let images = json!({"status": {"images": [{"names": ["i:latest"], "sizeBytes": 900 << 20}]}});
    prefers_b(json!({}), images, vec![], pod("p", "1", json!({})));
}
