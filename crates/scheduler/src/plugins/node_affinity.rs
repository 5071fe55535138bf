//! NodeAffinity: nodeSelector, required and preferred node affinity.

use super::stretch;
use crate::framework::{ClusterEvent, Filter, Filtered, Plugin, PreFilter, Refusal, Score};
use crate::pod::PodInfo;
use crate::snapshot::{NodeId, Snapshot};

pub struct NodeAffinity;

struct State<'a> {
    snapshot: &'a Snapshot,
    pod: &'a PodInfo,
}

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn weight(&self) -> i64 {
        2
    }

    fn pre_filter<'a>(&self, snapshot: &'a Snapshot, pod: &'a PodInfo) -> PreFilter<'a> {
        if pod.node_demands.is_empty() {
            return PreFilter::Skip;
        }
        let names = pod.node_demands.required.as_ref().and_then(|required| required.names());
        if names.is_some_and(|names| names.is_empty()) {
            let reason = "pod affinity terms conflict";
            return PreFilter::Refuse(Refusal::unresolvable(reason));
        }
        PreFilter::Use(Box::new(State { snapshot, pod }))
    }

    fn pre_score<'a>(&self, snapshot: &'a Snapshot, pod: &'a PodInfo, _: &[NodeId]) -> Option<Box<dyn Score + 'a>> {
        (!pod.node_demands.preferred.is_empty()).then(|| Box::new(State { snapshot, pod }) as Box<dyn Score>)
    }

    fn hint(&self, event: ClusterEvent<'_>, pod: &PodInfo) -> bool {
        let matches = |node| pod.node_demands.are_met_by(node);
        matches!(event, ClusterEvent::Node { old, new } if matches(new) && !old.is_some_and(matches))
    }
}

impl<'a> Filter<'a> for State<'a> {
    fn filter(&self, node: NodeId) -> Filtered {
        if self.pod.node_demands.are_met_by(self.snapshot.node(node).object()) {
            return Ok(());
        }
        Err(Refusal::unresolvable("node(s) didn't match Pod's node affinity/selector"))
    }

    fn only(&self) -> Option<Vec<NodeId>> {
        let names = self.pod.node_demands.required.as_ref()?.names()?;
        Some(names.into_iter().filter_map(|name| self.snapshot.id(name)).collect())
    }
}

impl Score for State<'_> {
    fn score(&self, node: NodeId) -> i64 {
        let node = self.snapshot.node(node).object();
        let met = self.pod.node_demands.preferred.iter().filter(|(_, term)| term.matches(node));
        met.map(|(weight, _)| weight).sum()
    }

    fn normalize(&self, scores: &mut [i64]) {
        stretch(scores, false);
    }
}
