//! What each filter refuses, in the words users read.

use super::*;

/// How one node that a filter refuses shows up.
fn refused(reason: &str) -> String {
    format!("0/1 nodes are available: 1 {reason}.")
}

#[track_caller]
fn check(cases: impl IntoIterator<Item = (Value, Value, &'static str)>) {
    for (node_change, pod_change, reason) in cases {
        let snapshot = snapshot([node("a", node_change.clone())], []);
        let expected = if reason.is_empty() { "a".to_owned() } else { refused(reason) };
        assert_eq!(outcome(&snapshot, pod("p", "1", pod_change.clone())), expected, "{node_change} {pod_change}");
    }
}

#[test]
fn without_nodes_there_is_nothing_to_refuse() {
    let refusal = attempt(&Snapshot::default(), pod("p", "1", json!({}))).unwrap_err();
    assert_eq!((refusal.message.as_str(), refusal.refused_by.len()), ("no nodes available to schedule pods", 0));
}

#[test]
fn cordoned_nodes_take_only_what_tolerates_it() {
    let cordoned = json!({"spec": {"unschedulable": true}});
    let tolerates =
        json!({"spec": {"tolerations": [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}]}});
    check([
        (cordoned.clone(), json!({}), "node(s) were unschedulable"),
        (cordoned, tolerates, ""),
        (json!({}), json!({"spec": {"nodeName": ""}}), ""),
    ]);
}

#[test]
fn taints_keep_out() {
    let taint = |effect: &str| json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": effect}]}});
    let toleration = |toleration: Value| json!({"spec": {"tolerations": [toleration]}});
    let no = "node(s) had untolerated taint(s)";
    check([
        (taint("NoSchedule"), json!({}), no),
        (taint("NoExecute"), json!({}), no),
        (taint("PreferNoSchedule"), json!({}), ""),
        (taint("NoSchedule"), toleration(json!({"operator": "Exists"})), ""),
        (taint("NoSchedule"), toleration(json!({"key": "k", "operator": "Exists"})), ""),
        (taint("NoSchedule"), toleration(json!({"key": "k", "value": "v"})), ""),
        (taint("NoSchedule"), toleration(json!({"key": "k", "value": "w"})), no),
        (taint("NoSchedule"), toleration(json!({"key": "k", "operator": "Exists", "effect": "NoExecute"})), no),
    ]);
}

#[test]
fn node_affinity_chooses() {
    let label = json!({"metadata": {"labels": {"disk": "ssd", "size": "5"}}});
    let required = |terms: Value| {
        let required = json!({"nodeSelectorTerms": terms});
        json!({"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}}})
    };
    let labels = |key: &str, operator: &str, values: Value| {
        required(json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]))
    };
    let field = |values: Value| json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": values}]});
    let no = "node(s) didn't match Pod's node affinity/selector";
    check([
        (label.clone(), json!({"spec": {"nodeSelector": {"disk": "ssd"}}}), ""),
        (label.clone(), json!({"spec": {"nodeSelector": {"disk": "hdd"}}}), no),
        (label.clone(), labels("disk", "In", json!(["hdd", "ssd"])), ""),
        (label.clone(), labels("disk", "NotIn", json!(["ssd"])), no),
        (label.clone(), labels("none", "NotIn", json!(["ssd"])), ""),
        (label.clone(), labels("disk", "DoesNotExist", json!([])), no),
        (label.clone(), labels("size", "Gt", json!(["4"])), ""),
        (label.clone(), labels("size", "Lt", json!(["4"])), no),
        (label.clone(), required(json!([{}])), no),
        (label.clone(), required(json!([{}, field(json!(["a"]))])), ""),
        (label.clone(), required(json!([field(json!(["b"]))])), "node(s) didn't satisfy plugin(s) [NodeAffinity]"),
    ]);
}

#[test]
fn resources_must_fit() {
    let requests =
        |requests: Value| json!({"spec": {"containers": [{"name": "c", "resources": {"requests": requests}}]}});
    let gpu = json!({"status": {"allocatable": {"example.com/gpu": "1"}}});
    check([
        (json!({}), requests(json!({"cpu": "4"})), ""),
        (json!({}), requests(json!({"cpu": "4001m"})), "Insufficient cpu"),
        (json!({}), requests(json!({"cpu": "5", "memory": "9Gi"})), "Insufficient cpu, 1 Insufficient memory"),
        (json!({}), requests(json!({"ephemeral-storage": "1"})), "Insufficient ephemeral-storage"),
        (gpu.clone(), requests(json!({"example.com/gpu": "1"})), ""),
        (gpu, requests(json!({"example.com/gpu": "2"})), "Insufficient example.com/gpu"),
        (json!({}), json!({"spec": {"overhead": {"cpu": "3500m"}}}), "Insufficient cpu"),
        (json!({"status": {"allocatable": {"pods": "0"}}}), json!({}), "Too many pods"),
    ]);
}

#[test]
fn pods_on_a_node_count_and_leave_nothing_behind() {
    let mut snapshot = snapshot([node("a", json!({}))], [("a", pod("x", "3", json!({})))]);
    assert_eq!(outcome(&snapshot, pod("p", "2", json!({}))), refused("Insufficient cpu"));
    snapshot.remove_pod("a", "x");
    assert_eq!(outcome(&snapshot, pod("p", "4", json!({}))), "a");
    assert_eq!(snapshot.classes().count(), 0);
    // Pods outlive their node, and are known before it.
    snapshot.add_pod("b", info(pod("y", "3", json!({}))));
    snapshot.remove_node("a");
    assert!(attempt(&snapshot, pod("p", "1", json!({}))).is_err());
    snapshot.set_node(Arc::new(serde_json::from_value(node("b", json!({}))).unwrap()));
    assert_eq!(outcome(&snapshot, pod("p", "2", json!({}))), refused("Insufficient cpu"));
    assert_eq!(outcome(&snapshot, pod("p", "1", json!({}))), "b");
}

#[test]
fn host_ports_are_not_shared() {
    let ports = |port: Value| json!({"spec": {"containers": [{"name": "c", "ports": [port]}]}});
    let used = ports(json!({"hostPort": 80, "hostIP": "10.0.0.1"}));
    for (port, fits) in [
        (json!({"hostPort": 80}), false),
        (json!({"hostPort": 80, "hostIP": "0.0.0.0"}), false),
        (json!({"hostPort": 80, "hostIP": "10.0.0.1"}), false),
        (json!({"hostPort": 80, "hostIP": "10.0.0.2"}), true),
        (json!({"hostPort": 81}), true),
        (json!({"hostPort": 80, "protocol": "UDP"}), true),
        (json!({"containerPort": 80}), true),
    ] {
        let snapshot = snapshot([node("a", json!({}))], [("a", pod("x", "", used.clone()))]);
        let no = refused("node(s) didn't have free ports for the requested pod ports");
        assert_eq!(outcome(&snapshot, pod("p", "", ports(port.clone()))), if fits { "a" } else { &no }, "{port}");
    }
}

#[test]
fn reasons_are_counted_over_nodes() {
    let cordoned = json!({"spec": {"unschedulable": true}});
    let nodes = [node("a", json!({})), node("b", json!({})), node("c", cordoned)];
    let message = attempt(&snapshot(nodes, []), pod("p", "5", json!({}))).unwrap_err().message;
    assert_eq!(
        message,
        "0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient cpu. \
         preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
    );
}

#[test]
fn large_clusters_are_sampled_all_around() {
    let names: Vec<String> = (0..1000).map(|number| format!("n{number}")).collect();
    let snapshot = snapshot(names.iter().map(|name| node(name, json!({}))), []);
    let (framework, pod) = (default_profile(), info(pod("p", "1", json!({}))));
    let at = |start| decide(&framework, &snapshot, &pod, Turn { start, lot: 0 }).unwrap();
    assert_eq!(at(0), Placement { node: 0, next_start: 420 });
    assert_eq!(at(840).next_start, 260);
    for (nodes, enough) in [(1, 1), (99, 99), (100, 100), (200, 100), (1000, 420), (5000, 500), (10000, 500)] {
        assert_eq!(scheduler::decide::enough(nodes), enough, "{nodes}");
    }
}
