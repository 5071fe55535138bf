//! Watches over nodes: one whose kubelet has been silent too long becomes Unknown, its pods not ready, and every node is
//! tainted as its conditions say. Evicting the pods is the taint eviction's work; how fast nodes may be given up to it,
//! [`zones`] says.
//!
//! Nothing polls: each node is looked at again when its lease would run out.

pub mod eviction;
mod zones;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use client::{Client, EventRecorder, EventType, Store, key_of, split_key};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, PodCondition, Taint};
use kube::Api;
use kube::api::PostParams;
use kube::core::ObjectMeta;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::common::{now, pods};
use crate::framework::{Context, Controller, Requeue};
use zones::Zones;

pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Conditions that a kubelet reports, and the NoSchedule taint of each while it is true.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];
/// How long a new node may take to report for the first time.
const STARTUP_GRACE: Duration = Duration::from_secs(60);

pub struct NodeLifecycle {
    client: Client,
    events: EventRecorder,
    nodes: Store<Node>,
    pods: Store<Pod>,
    grace: Duration,
    signs: Arc<Signs>,
    zones: Arc<Mutex<Zones>>,
}

/// When each node last gave a sign of life, by our own clock: the nodes' clocks may differ from it.
#[derive(Default)]
struct Signs(Mutex<HashMap<String, Instant>>);

impl Signs {
    fn note(&self, node: &ObjectMeta) {
        self.0.lock().insert(node.name.clone().unwrap_or_default(), Instant::now());
    }

    /// Begins anew for all: whoever was cut off has not heard what they may have said.
    fn forgive(&self) {
        self.0.lock().values_mut().for_each(|sign| *sign = Instant::now());
    }

    /// How long a node has been silent; one not yet heard of begins now.
    fn silence(&self, node: &str) -> Duration {
        self.0.lock().entry(node.to_owned()).or_insert_with(Instant::now).elapsed()
    }
}

impl Controller for NodeLifecycle {
    const NAME: &'static str = "node-controller";

    fn new(context: &Context) -> Self {
        let signs = Arc::<Signs>::default();
        let (by_lease, by_status) = (signs.clone(), signs.clone());
        // A renewal queues nothing: the deadline it moves is looked at when it would pass.
        context.on::<Lease>(move |event, _| {
            let renewed = |lease: &Lease| lease.spec.as_ref().and_then(|spec| spec.renew_time.clone());
            let lease = event.object();
            let of_node = lease.metadata.namespace.as_deref() == Some("kube-node-lease");
            if of_node && event.old().is_none_or(|old| renewed(old) != renewed(lease)) {
                by_lease.note(&lease.metadata);
            }
        });
        let (zones, known) = (Arc::<Mutex<Zones>>::default(), context.informer::<Node>().store());
        let (counted, forgiven) = (zones.clone(), signs.clone());
        let nodes = context.on::<Node>(move |event, queue| {
            let heartbeat = |node: &Node| condition(node, "Ready").and_then(|ready| ready.last_heartbeat_time.clone());
            let node = event.object();
            if event.old().is_none_or(|old| heartbeat(old) != heartbeat(node)) {
                by_status.note(&node.metadata);
            }
            let name = node.metadata.name.clone().unwrap_or_default();
            let mut zones = counted.lock();
            count_first(&mut zones, &known);
            let was_cut_off = zones.is_cut_off();
            if count(&mut zones, &name, known.get(&name).as_deref()) {
                zones.ill().for_each(|node| queue.add(node.clone()));
            }
            if was_cut_off && !zones.is_cut_off() {
                forgiven.forgive();
            }
            queue.add(name);
        });
        let pods = context.informer::<Pod>();
        pods.add_index("node", |pod| vec![pods::node_name(pod).to_owned()]);
        Self {
            client: context.client.clone(),
            events: context.events.clone(),
            nodes: nodes.store(),
            pods: pods.store(),
            grace: context.config.node_monitor_grace,
            signs,
            zones,
        }
    }

    async fn reconcile(&self, key: &str) -> anyhow::Result<Requeue> {
        let Some(node) = self.nodes.get(key) else {
            self.signs.0.lock().remove(key);
            return Ok(Requeue::Never);
        };
        let silent = self.signs.silence(key);
        let reported = condition(&node, "Ready").is_some();
        let grace = if reported { self.grace } else { STARTUP_GRACE };
        let mut node = node.as_ref().clone();
        if silent >= grace
            && let Some(unknown) = silenced(&node)
        {
            node = self.write_unknown(key, unknown).await?;
        }
        if ready_status(&node) != "True" {
            self.mark_pods(&node).await?;
        }
        let (gives_up, later) = self.give_up(&node);
        let taints = taints(&node, gives_up);
        if taints != current_taints(&node) {
            node.spec.get_or_insert_default().taints = (!taints.is_empty()).then_some(taints);
            let api: Api<Node> = Api::all(self.client.clone());
            api.replace(key, &PostParams::default(), &node).await.context("taint the node")?;
        }
        let next = if silent < grace { grace - silent } else { self.grace };
        Ok(Requeue::After(later.map_or(next, |later| later.min(next))))
    }
}

impl NodeLifecycle {
    /// Whether pods should leave the node now, and if they should but may not yet, when to ask again.
    fn give_up(&self, node: &Node) -> (bool, Option<Duration>) {
        let mut zones = self.zones.lock();
        let name = node.metadata.name.as_deref().unwrap_or_default();
        count_first(&mut zones, &self.nodes);
        count(&mut zones, name, Some(node));
        if ready_status(node) == "True" || zones.is_cut_off() {
            return (false, None);
        }
        let given_up =
            |taint: &Taint| [NOT_READY, UNREACHABLE].contains(&taint.key.as_str()) && taint.effect == "NoExecute";
        if current_taints(node).iter().any(given_up) {
            return (true, None);
        }
        // All may fall silent together, but not at the same instant: there must be one that was heard of lately.
        if !zones.well().any(|node| self.signs.silence(node) < self.grace / 2) {
            return (false, Some(self.grace / 4));
        }
        match zones.give_up(name, Instant::now()) {
            Ok(()) => (true, None),
            Err(later) => (false, later),
        }
    }

    async fn write_unknown(&self, key: &str, node: Node) -> anyhow::Result<Node> {
        let api: Api<Node> = Api::all(self.client.clone());
        let written = api.replace_status(key, &PostParams::default(), &node).await.context("mark the node unknown")?;
        let text = format!("Node {key} status is now: NodeNotReady");
        self.events.event(&written, EventType::Normal, "NodeNotReady", text);
        Ok(written)
    }

    /// Pods of a node that is not ready are not ready: services must stop sending to them.
    async fn mark_pods(&self, node: &Node) -> anyhow::Result<()> {
        for pod in self.pods.by_index("node", node.metadata.name.as_deref().unwrap_or_default()) {
            let Some(unready) = unready(&pod) else { continue };
            let key = key_of(&pod.metadata);
            let (namespace, name) = split_key(&key);
            let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
            match api.replace_status(name, &PostParams::default(), &unready).await {
                Ok(_) => self.events.event(pod.as_ref(), EventType::Warning, "NodeNotReady", "Node is not ready"),
                Err(error) if client::ErrorExt::is_not_found(&error) => {}
                Err(error) => return Err(error).context(format!("mark pod {key} not ready")),
            }
        }
        Ok(())
    }
}

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

/// Counts all nodes at once before any: a few of them must not look like all.
fn count_first(zones: &mut Zones, nodes: &Store<Node>) {
    if zones.is_empty() {
        nodes.list().iter().for_each(|node| {
            count(zones, node.metadata.name.as_deref().unwrap_or_default(), Some(node));
        });
    }
}

/// Counts a node as it is now, or no longer. Whether that changes how fast nodes may be given up.
fn count(zones: &mut Zones, name: &str, node: Option<&Node>) -> bool {
    let Some(node) = node else { return zones.remove(name) };
    let label =
        |key: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(key)).cloned().unwrap_or_default();
    let zone = format!("{}/{}", label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone"));
    zones.put(name, &zone, ready_status(node) == "True")
}

/// True, False or Unknown; a node that never reported is not ready.
fn ready_status(node: &Node) -> &str {
    condition(node, "Ready").map_or("False", |ready| ready.status.as_str())
}

/// The node with its conditions unknown, unless they are already.
fn silenced(node: &Node) -> Option<Node> {
    let mut silenced = node.clone();
    let conditions = silenced.status.get_or_insert_default().conditions.get_or_insert_default();
    for kind in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        match conditions.iter_mut().find(|condition| condition.type_ == kind) {
            Some(known) if known.status != "Unknown" => {
                known.status = "Unknown".into();
                known.reason = Some("NodeStatusUnknown".into());
                known.message = Some("Kubelet stopped posting node status.".into());
                known.last_transition_time = Some(now());
            }
            Some(_) => {}
            None => conditions.push(NodeCondition {
                type_: kind.into(),
                status: "Unknown".into(),
                reason: Some("NodeStatusNeverUpdated".into()),
                message: Some("Kubelet never posted node status.".into()),
                last_transition_time: Some(now()),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
            }),
        }
    }
    (silenced.status != node.status).then_some(silenced)
}

fn current_taints(node: &Node) -> Vec<Taint> {
    node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default()
}

/// The node's taints with ours as its conditions demand, and those that drive pods away only if it is given up; ours that
/// are there already keep their time.
fn taints(node: &Node, gives_up: bool) -> Vec<Taint> {
    let ready = ready_status(node);
    let is = |kind: &str| condition(node, kind).is_some_and(|condition| condition.status == "True");
    let unschedulable = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
    let ours = [
        (NOT_READY, "NoSchedule", ready == "False"),
        (UNREACHABLE, "NoSchedule", ready == "Unknown"),
        (NOT_READY, "NoExecute", gives_up && ready == "False"),
        (UNREACHABLE, "NoExecute", gives_up && ready == "Unknown"),
        (UNSCHEDULABLE, "NoSchedule", unschedulable),
    ];
    let pressures = PRESSURES.map(|(kind, key)| (key, "NoSchedule", is(kind)));
    let mut taints = current_taints(node);
    for (key, effect, wanted) in ours.into_iter().chain(pressures) {
        let found = taints.iter().position(|taint| taint.key == key && taint.effect == effect);
        match (found, wanted) {
            (Some(index), false) => drop(taints.remove(index)),
            (None, true) => taints.push(Taint {
                key: key.into(),
                effect: effect.into(),
                time_added: Some(now()),
                ..Default::default()
            }),
            _ => {}
        }
    }
    taints
}

/// The pod with its Ready condition false, if it is true.
fn unready(pod: &Pod) -> Option<Pod> {
    let mut unready = pod.clone();
    let conditions = unready.status.as_mut()?.conditions.as_mut()?;
    let ready = conditions.iter_mut().find(|condition| condition.type_ == "Ready" && condition.status == "True")?;
    *ready = PodCondition { status: "False".into(), last_transition_time: Some(now()), ..ready.clone() };
    Some(unready)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(ready: Option<&str>, unschedulable: bool) -> Node {
        let mut node = json!({"metadata": {"name": "n"}, "spec": {"unschedulable": unschedulable,
            "taints": [{"key": "mine", "effect": "NoSchedule"}]}, "status": {"conditions": [
                {"type": "MemoryPressure", "status": "True"}]}});
        if let Some(ready) = ready {
            let condition = json!({"type": "Ready", "status": ready, "reason": "KubeletReady"});
            node["status"]["conditions"].as_array_mut().unwrap().push(condition);
        }
        serde_json::from_value(node).unwrap()
    }

    fn names(node: &Node) -> String {
        let names: Vec<_> = taints(node, true)
            .iter()
            .map(|t| format!("{}:{}", t.key.rsplit('/').next().unwrap(), &t.effect[2..]))
            .collect();
        names.join(" ")
    }

    #[test]
    fn taints_follow_conditions_and_spare_others() {
        assert_eq!(names(&node(Some("True"), false)), "mine:Schedule memory-pressure:Schedule");
        assert_eq!(
            names(&node(Some("Unknown"), true)),
            "mine:Schedule unreachable:Schedule unreachable:Execute unschedulable:Schedule memory-pressure:Schedule"
        );
        assert!(names(&node(None, false)).contains("not-ready:Execute"));
        let mut tainted = node(Some("False"), false);
        tainted.spec.as_mut().unwrap().taints = Some(taints(&tainted, true));
        assert_eq!(taints(&tainted, true), current_taints(&tainted), "nothing to write the second time");
        let cut_off = taints(&tainted, false);
        assert!(cut_off.iter().all(|taint| taint.effect == "NoSchedule") && cut_off.len() == 3);
        tainted.status = node(Some("True"), false).status;
        assert_eq!(names(&tainted), "mine:Schedule memory-pressure:Schedule");
    }

    #[test]
    fn a_silent_node_is_unknown_once() {
        let silent = silenced(&node(Some("True"), false)).unwrap();
        let ready = condition(&silent, "Ready").unwrap();
        assert_eq!((ready.status.as_str(), ready.reason.as_deref()), ("Unknown", Some("NodeStatusUnknown")));
        assert_eq!(condition(&silent, "PIDPressure").unwrap().reason.as_deref(), Some("NodeStatusNeverUpdated"));
        assert!(silenced(&silent).is_none());
    }
}
