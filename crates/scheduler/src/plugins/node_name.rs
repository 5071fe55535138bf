//! NodeName: a pod that names its node goes nowhere else.

use crate::framework::{ClusterEvent, Filter, Filtered, Plugin, PreFilter, Refusal};
use crate::pod::PodInfo;
use crate::snapshot::{NodeId, Snapshot};

pub struct NodeName;

struct State<'a> {
    snapshot: &'a Snapshot,
    name: &'a str,
}

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn pre_filter<'a>(&self, snapshot: &'a Snapshot, pod: &'a PodInfo) -> PreFilter<'a> {
        pod.node_name().map_or(PreFilter::Skip, |name| PreFilter::Use(Box::new(State { snapshot, name })))
    }

    fn hint(&self, event: ClusterEvent<'_>, pod: &PodInfo) -> bool {
        matches!(event, ClusterEvent::Node { old: None, new } if new.metadata.name.as_deref() == pod.node_name())
    }
}

impl<'a> Filter<'a> for State<'a> {
    fn filter(&self, node: NodeId) -> Filtered {
        if self.snapshot.node(node).name != self.name {
            return Err(Refusal::unresolvable("node(s) didn't match the requested node name"));
        }
        Ok(())
    }
}
