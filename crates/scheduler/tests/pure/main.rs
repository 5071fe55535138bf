//! Decisions and the queue, without a cluster: tables of nodes and pods, and what is to become of them.

mod affinity;
mod decisions;
mod preemption;
mod queue;
mod scores;
mod volumes;

use std::sync::Arc;

use scheduler::decide::{Placement, Turn, Unschedulable, decide};
use scheduler::framework::Framework;
use scheduler::plugins::default_profile;
use scheduler::pod::PodInfo;
use scheduler::snapshot::Snapshot;
use serde_json::{Value, json};

/// Merges a change into an object.
fn with(mut object: Value, change: Value) -> Value {
    merge(&mut object, change);
    object
}

fn merge(object: &mut Value, change: Value) {
    match (object, change) {
        (Value::Object(object), Value::Object(change)) => {
            for (key, value) in change {
                merge(object.entry(key).or_insert(Value::Null), value);
            }
        }
        (object, change) => *object = change,
    }
}

/// A node with 4 cores, 8 GiB and room for ten pods.
fn node(name: &str, change: Value) -> Value {
    let node = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10"}},
    });
    with(node, change)
}

/// A pod whose only container requests this much cpu.
fn pod(name: &str, cpu: &str, change: Value) -> Value {
    let requests = if cpu.is_empty() { json!({}) } else { json!({"cpu": cpu}) };
    let pod = json!({
        "metadata": {"name": name, "namespace": "default", "uid": name},
        "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": requests}}]},
    });
    with(pod, change)
}

fn info(pod: Value) -> Arc<PodInfo> {
    Arc::new(PodInfo::new(Arc::new(serde_json::from_value(pod).unwrap())))
}

/// A snapshot of nodes, and pods on them.
fn snapshot(nodes: impl IntoIterator<Item = Value>, pods: impl IntoIterator<Item = (&'static str, Value)>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    nodes.into_iter().for_each(|node| snapshot.set_node(Arc::new(serde_json::from_value(node).unwrap())));
    pods.into_iter().for_each(|(node, pod)| snapshot.add_pod(node, info(pod)));
    snapshot
}

fn attempt(snapshot: &Snapshot, pod: Value) -> Result<Placement, Unschedulable> {
    let framework: Framework = default_profile();
    decide(&framework, snapshot, &info(pod), Turn::default())
}

/// The node's name, or the message of what refused the pod without that about preemption.
fn outcome(snapshot: &Snapshot, pod: Value) -> String {
    match attempt(snapshot, pod) {
        Ok(placement) => snapshot.node(placement.node).name.clone(),
        Err(refusal) => refusal.message.split(" preemption: ").next().unwrap().to_owned(),
    }
}
