//! NodeResourcesFit: a node takes a pod if what the pods on it requested leaves enough; emptier nodes are better
//! (LeastAllocated).

use std::collections::HashMap;

use k8s_openapi::api::core::v1::Node;

use crate::framework::{ClusterEvent, Filter, Filtered, MAX_SCORE, Plugin, PreFilter, Refusal, Score};
use crate::pod::PodInfo;
use crate::requests::{BASE, Requests};
use crate::snapshot::{NodeId, Snapshot};

pub struct NodeResourcesFit;

struct State<'a> {
    snapshot: &'a Snapshot,
    pod: &'a PodInfo,
    /// What assumed pods add to or take from nodes, and how many they are.
    assumed: HashMap<NodeId, (Requests, i64)>,
}

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn pre_filter<'a>(&self, snapshot: &'a Snapshot, pod: &'a PodInfo) -> PreFilter<'a> {
        PreFilter::Use(Box::new(State { snapshot, pod, assumed: HashMap::new() }))
    }

    fn pre_score<'a>(&self, snapshot: &'a Snapshot, pod: &'a PodInfo, _: &[NodeId]) -> Option<Box<dyn Score + 'a>> {
        Some(Box::new(LeastAllocated { snapshot, pod }))
    }

    fn hint(&self, event: ClusterEvent<'_>, pod: &PodInfo) -> bool {
        match event {
            ClusterEvent::Node { old, new } => {
                let enough = could_hold(new, pod);
                enough && old.is_none_or(|old| allocatable(old) != allocatable(new))
            }
            // Any pod that goes leaves room for one, and a pod may be resized.
            ClusterEvent::PodGone(_) => true,
            ClusterEvent::PodPlaced { old, new } => old.is_some_and(|old| old.requests != new.requests),
            _ => false,
        }
    }
}

fn allocatable(node: &Node) -> Requests {
    let amounts = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
    Requests::new(amounts.into_iter().flatten())
}

/// Whether the node would do if it were empty.
fn could_hold(node: &Node, pod: &PodInfo) -> bool {
    let all = allocatable(node);
    let base = pod.requests.base.iter().zip(all.base).all(|(wanted, has)| *wanted <= has);
    base && pod.requests.extended.iter().all(|(name, wanted)| all.extended.get(name).unwrap_or(&0) >= wanted)
}

impl State<'_> {
    fn judge(&self, refusal: &mut Refusal, name: &str, wanted: i64, allocatable: i64, requested: i64) {
        if wanted > 0 && wanted > allocatable - requested {
            refusal.reasons.push(format!("Insufficient {name}").into());
            refusal.unresolvable |= wanted > allocatable;
        }
    }
}

impl<'a> Filter<'a> for State<'a> {
    fn filter(&self, node: NodeId) -> Filtered {
        let (snapshot, wanted) = (self.snapshot, &self.pod.requests);
        let assumed = if self.assumed.is_empty() { None } else { self.assumed.get(&node) };
        let mut refusal = Refusal { reasons: Vec::new(), unresolvable: false };
        let pods = snapshot.node(node).pods.len() as i64 + assumed.map_or(0, |(_, pods)| *pods);
        if pods + 1 > snapshot.capacity[node] {
            refusal.reasons.push("Too many pods".into());
        }
        for (index, wanted) in wanted.base.into_iter().enumerate() {
            let requested = snapshot.requested.base[index][node] + assumed.map_or(0, |(more, _)| more.base[index]);
            self.judge(&mut refusal, BASE[index], wanted, snapshot.allocatable.base[index][node], requested);
        }
        for (name, wanted) in &wanted.extended {
            let more = assumed.and_then(|(more, _)| more.extended.get(name)).copied().unwrap_or_default();
            let requested = snapshot.requested.extended(name, node) + more;
            self.judge(&mut refusal, name, *wanted, snapshot.allocatable.extended(name, node), requested);
        }
        if refusal.reasons.is_empty() { Ok(()) } else { Err(refusal) }
    }

    fn assume(&mut self, node: NodeId, pod: &'a PodInfo, present: bool) {
        let (sum, pods) = self.assumed.entry(node).or_default();
        if present {
            sum.add(&pod.requests);
        } else {
            sum.subtract(&pod.requests);
        }
        *pods += if present { 1 } else { -1 };
    }
}

struct LeastAllocated<'a> {
    snapshot: &'a Snapshot,
    pod: &'a PodInfo,
}

impl Score for LeastAllocated<'_> {
    /// The mean share of cpu and memory that stays free.
    fn score(&self, node: NodeId) -> i64 {
        let (mut sum, mut resources) = (0, 0);
        for (index, wanted) in self.pod.assumed.into_iter().enumerate() {
            let allocatable = self.snapshot.allocatable.base[index][node];
            let requested = self.snapshot.assumed[index][node] + wanted;
            if allocatable > 0 {
                resources += 1;
                sum += (allocatable - requested).max(0) as i128 * i128::from(MAX_SCORE) / allocatable as i128;
            }
        }
        if resources == 0 { 0 } else { (sum / resources) as i64 }
    }
}
