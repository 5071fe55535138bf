//! NodeResourcesBalancedAllocation: nodes are better on which cpu and memory run out together.

use crate::framework::{MAX_SCORE, Plugin, Score};
use crate::pod::PodInfo;
use crate::snapshot::{NodeId, Snapshot};

pub struct NodeResourcesBalancedAllocation;

struct State<'a> {
    snapshot: &'a Snapshot,
    pod: &'a PodInfo,
}

impl Plugin for NodeResourcesBalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    /// A pod that requests neither changes no balance.
    fn pre_score<'a>(&self, snapshot: &'a Snapshot, pod: &'a PodInfo, _: &[NodeId]) -> Option<Box<dyn Score + 'a>> {
        let requests = pod.requests.base[..2].iter().any(|amount| *amount > 0);
        requests.then(|| Box::new(State { snapshot, pod }) as Box<dyn Score>)
    }
}

impl Score for State<'_> {
    fn score(&self, node: NodeId) -> i64 {
        let share = |index: usize| {
            let allocatable = self.snapshot.allocatable.base[index][node];
            let requested = self.snapshot.requested.base[index][node] + self.pod.requests.base[index];
            (allocatable > 0).then(|| (requested as f64 / allocatable as f64).min(1.0))
        };
        // The standard deviation of two numbers is half their distance.
        let deviation = match (share(0), share(1)) {
            (Some(cpu), Some(memory)) => (cpu - memory).abs() / 2.0,
            _ => 0.0,
        };
        ((1.0 - deviation) * MAX_SCORE as f64) as i64
    }
}
