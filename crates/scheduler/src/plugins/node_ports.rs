//! NodePorts: two pods cannot have the same port of one node's addresses.

use crate::framework::{ClusterEvent, Filter, Filtered, Plugin, PreFilter, Refusal};
use crate::pod::{HostPort, PodInfo};
use crate::snapshot::{NodeId, Snapshot};

pub struct NodePorts;

struct State<'a> {
    snapshot: &'a Snapshot,
    pod: &'a PodInfo,
    /// Pods to count in or out.
    assumed: Vec<(NodeId, &'a PodInfo, bool)>,
}

fn conflict(pod: &PodInfo, used: &HostPort) -> bool {
    pod.host_ports.iter().any(|port| port.conflicts(used))
}

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn pre_filter<'a>(&self, snapshot: &'a Snapshot, pod: &'a PodInfo) -> PreFilter<'a> {
        if pod.host_ports.is_empty() {
            return PreFilter::Skip;
        }
        PreFilter::Use(Box::new(State { snapshot, pod, assumed: Vec::new() }))
    }

    fn hint(&self, event: ClusterEvent<'_>, pod: &PodInfo) -> bool {
        match event {
            ClusterEvent::Node { old, .. } => old.is_none(),
            ClusterEvent::PodGone(gone) => gone.host_ports.iter().any(|port| conflict(pod, port)),
            _ => false,
        }
    }
}

impl<'a> Filter<'a> for State<'a> {
    fn filter(&self, node: NodeId) -> Filtered {
        let used = &self.snapshot.node(node).host_ports;
        let mut conflicts = used.iter().filter(|used| conflict(self.pod, used)).count() as i64;
        for (_, pod, present) in self.assumed.iter().filter(|(assumed, ..)| *assumed == node) {
            let theirs = pod.host_ports.iter().filter(|port| conflict(self.pod, port)).count() as i64;
            conflicts += if *present { theirs } else { -theirs };
        }
        if conflicts > 0 {
            return Err(Refusal::new("node(s) didn't have free ports for the requested pod ports"));
        }
        Ok(())
    }

    fn assume(&mut self, node: NodeId, pod: &'a PodInfo, present: bool) {
        if pod.host_ports.is_empty() {
            return;
        }
        let undoes = |assumed: &(NodeId, &PodInfo, bool)| {
            assumed.0 == node && std::ptr::eq(assumed.1, pod) && assumed.2 != present
        };
        match self.assumed.iter().position(undoes) {
            Some(index) => drop(self.assumed.swap_remove(index)),
            None => self.assumed.push((node, pod, present)),
        }
    }
}
