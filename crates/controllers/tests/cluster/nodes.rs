//! Nodes: their addresses, their silence, and what becomes of their pods.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::Api;
use kube::api::DeleteParams;
use serde_json::json;
use tokio_util::task::AbortOnDropHandle;

use crate::{Cluster, Handy as _, until_get, until_gone, until_list};

async fn ready_node(nodes: &Api<Node>, name: &str) {
    nodes.make(json!({"metadata": {"name": name}})).await;
    let ready = json!([{"type": "Ready", "status": "True", "reason": "KubeletReady",
        "lastHeartbeatTime": "2024-01-01T00:00:00Z", "lastTransitionTime": "2024-01-01T00:00:00Z"}]);
    nodes.merge_status(name, json!({"conditions": ready})).await;
}

/// A node that is well until dropped: pods leave a node only if there is one that is.
pub fn keeper(nodes: Api<Node>) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        ready_node(&nodes, "keeper").await;
        beat(nodes, "keeper").await;
    }))
}

/// A node's kubelet declares it ready, again and again.
pub async fn beat(nodes: Api<Node>, name: &str) {
    loop {
        let ready = json!([{"type": "Ready", "status": "True", "reason": "KubeletReady",
            "lastHeartbeatTime": jiff::Timestamp::now(), "lastTransitionTime": "2024-01-01T00:00:00Z"}]);
        nodes.merge_status(name, json!({"conditions": ready})).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

pub fn taints(node: &Node) -> Vec<String> {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let mut names: Vec<_> = taints.map(|taint| format!("{}:{}", taint.key, taint.effect)).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_get_ranges_of_their_own() {
    let cluster = Cluster::start().await;
    let nodes = cluster.all::<Node>();
    let mut ranges = Vec::new();
    for name in ["a", "b"] {
        ready_node(&nodes, name).await;
        let cidr = |node: &Node| node.spec.as_ref().and_then(|spec| spec.pod_cidr.clone());
        ranges.push(cidr(&until_get("podCIDR", &nodes, name, |node| cidr(node).is_some()).await).unwrap());
    }
    ranges.sort();
    assert_eq!(ranges, ["10.42.0.0/24", "10.42.1.0/24"]);
    until_get("no taints once ready", &nodes, "a", |node| taints(node).is_empty()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_node_loses_its_pods() {
    let cluster = Cluster::with(|config| config.node_monitor_grace = Duration::from_millis(1500)).await;
    let (nodes, pods) = (cluster.all::<Node>(), cluster.api::<Pod>());
    let keeper = keeper(nodes.clone());
    ready_node(&nodes, "n").await;
    let pod = |name: &str, seconds: i32| {
        json!({"metadata": {"name": name}, "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}],
            "terminationGracePeriodSeconds": 0,
            "tolerations": [{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": seconds}]}})
    };
    for (name, seconds) in [("brief", 0), ("patient", 3600)] {
        pods.make(pod(name, seconds)).await;
        let ready = json!([{"type": "Ready", "status": "True", "lastTransitionTime": "2024-01-01T00:00:00Z"}]);
        pods.merge_status(name, json!({"phase": "Running", "conditions": ready})).await;
    }
    let unreachable = ["node.kubernetes.io/unreachable:NoExecute", "node.kubernetes.io/unreachable:NoSchedule"];
    let node = until_get("unreachable", &nodes, "n", |node| taints(node) == unreachable).await;
    let ready = node.status.unwrap().conditions.unwrap().into_iter().find(|c| c.type_ == "Ready").unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_deref()), ("Unknown", Some("NodeStatusUnknown")));
    until_get("not ready", &pods, "patient", |pod| {
        pod.status.as_ref().unwrap().conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "False")
    })
    .await;
    until_gone("the pod that does not tolerate", &pods, "brief").await;
    assert!(pods.get("patient").await.unwrap().metadata.deletion_timestamp.is_none());

    let ready = json!([{"type": "Ready", "status": "True", "reason": "KubeletReady",
        "lastHeartbeatTime": "2024-01-01T00:10:00Z", "lastTransitionTime": "2024-01-01T00:00:00Z"}]);
    nodes.merge_status("n", json!({"conditions": ready})).await;
    until_get("back again", &nodes, "n", |node| taints(node).is_empty()).await;
    until_list("the eviction is called off", &cluster.api::<Event>(), |events| {
        let text = Some("Cancelling deletion of Pod default/patient");
        events.iter().any(|event| event.message.as_deref() == text)
    })
    .await;

    // Silent again, and then all are: no more pods are driven away, nor held to be.
    until_get("silent again", &nodes, "n", |node| taints(node) == unreachable).await;
    drop(keeper);
    until_get("cut off", &nodes, "n", |node| taints(node) == ["node.kubernetes.io/unreachable:NoSchedule"]).await;
    assert!(pods.get("patient").await.unwrap().metadata.deletion_timestamp.is_none());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_a_vanished_node_are_collected() {
    let cluster = Cluster::with(|config| config.missing_node_quarantine = Duration::from_millis(500)).await;
    let (nodes, pods) = (cluster.all::<Node>(), cluster.api::<Pod>());
    ready_node(&nodes, "n").await;
    let spec = json!({"nodeName": "n", "containers": [{"name": "c", "image": "i"}]});
    pods.make(json!({"metadata": {"name": "p"}, "spec": spec})).await;
    nodes.remove("n", DeleteParams::default()).await;
    until_gone("the pod", &pods, "p").await;
    cluster.stop().await;
}
