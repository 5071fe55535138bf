//! VolumeZone: a node takes a pod if it is in the zones and regions that the pod's volumes are labelled with.

use k8s_openapi::api::core::v1::PersistentVolume;
use resources::volumes;

use crate::framework::{ClusterEvent, Filter, Filtered, Plugin, PreFilter, Refusal};
use crate::pod::PodInfo;
use crate::snapshot::{NodeId, NodeInfo, Snapshot};

/// Labels that mean the same, by pairs: today's and the one before.
const TOPOLOGY: [[&str; 2]; 2] = [
    ["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"],
    ["topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"],
];

pub struct VolumeZone;

/// Labels (either of a pair), and the values that will do.
type Demand<'a> = ([&'static str; 2], Vec<&'a str>);

struct State<'a> {
    snapshot: &'a Snapshot,
    demands: Vec<Demand<'a>>,
}

fn demands(volume: &PersistentVolume) -> impl Iterator<Item = Demand<'_>> {
    let labels = volume.metadata.labels.as_ref();
    TOPOLOGY.into_iter().filter_map(move |pair| {
        let values = pair.iter().find_map(|key| labels?.get(*key))?;
        Some((pair, values.split("__").collect()))
    })
}

impl Plugin for VolumeZone {
    fn name(&self) -> &'static str {
        "VolumeZone"
    }

    /// What claims and classes lack is VolumeBinding's to say.
    fn pre_filter<'a>(&self, snapshot: &'a Snapshot, pod: &'a PodInfo) -> PreFilter<'a> {
        let claims = pod.claims.iter().filter_map(|used| snapshot.storage.claim(pod.namespace(), &used.claim));
        let bound = claims.filter_map(|claim| snapshot.storage.volume(volumes::volume_name(claim)));
        let demands: Vec<_> = bound.flat_map(|volume| demands(volume)).collect();
        if demands.is_empty() { PreFilter::Skip } else { PreFilter::Use(Box::new(State { snapshot, demands })) }
    }

    fn hint(&self, event: ClusterEvent<'_>, pod: &PodInfo) -> bool {
        match event {
            ClusterEvent::Node { old, new } => old.is_none_or(|old| old.metadata.labels != new.metadata.labels),
            ClusterEvent::Claim(claim) => pod.uses_claim(claim),
            ClusterEvent::Storage => true,
            _ => false,
        }
    }
}

impl<'a> Filter<'a> for State<'a> {
    fn filter(&self, node: NodeId) -> Filtered {
        let node = self.snapshot.node(node);
        let label = |node: &'a NodeInfo, pair: &[&str; 2]| pair.iter().find_map(|key| node.label(key));
        // A node without any such label is everywhere.
        let placed = TOPOLOGY.iter().any(|pair| label(node, pair).is_some());
        let met = |(pair, values): &Demand<'_>| label(node, pair).is_some_and(|value| values.contains(&value));
        match placed && !self.demands.iter().all(met) {
            true => Err(Refusal::unresolvable("node(s) had no available volume zone")),
            false => Ok(()),
        }
    }
}
