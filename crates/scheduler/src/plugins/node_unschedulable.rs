//! NodeUnschedulable: cordoned nodes take only pods that tolerate the taint that says so.

use k8s_openapi::api::core::v1::{Node, Taint};

use crate::framework::{ClusterEvent, Filter, Filtered, Plugin, PreFilter, Refusal};
use crate::pod::PodInfo;
use crate::snapshot::{NodeId, Snapshot};

pub struct NodeUnschedulable;

struct State<'a>(&'a Snapshot);

fn tolerates(pod: &PodInfo) -> bool {
    let key = "node.kubernetes.io/unschedulable".to_owned();
    pod.tolerates(&Taint { key, effect: "NoSchedule".into(), ..Default::default() })
}

fn is_cordoned(node: &Node) -> bool {
    node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or_default()
}

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn pre_filter<'a>(&self, snapshot: &'a Snapshot, pod: &'a PodInfo) -> PreFilter<'a> {
        if tolerates(pod) { PreFilter::Skip } else { PreFilter::Use(Box::new(State(snapshot))) }
    }

    fn hint(&self, event: ClusterEvent<'_>, _: &PodInfo) -> bool {
        matches!(event, ClusterEvent::Node { old, new } if !is_cordoned(new) && old.is_none_or(is_cordoned))
    }
}

impl<'a> Filter<'a> for State<'a> {
    fn filter(&self, node: NodeId) -> Filtered {
        if is_cordoned(self.0.node(node).object()) {
            return Err(Refusal::unresolvable("node(s) were unschedulable"));
        }
        Ok(())
    }
}
