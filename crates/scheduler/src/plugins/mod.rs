//! The plugins, one file each. To add one: a file that implements [`Plugin`], and a line in [`default_profile`].

mod balanced_allocation;
mod default_binder;
mod default_preemption;
mod image_locality;
mod inter_pod_affinity;
mod node_affinity;
mod node_name;
mod node_ports;
mod node_unschedulable;
mod pod_topology_spread;
mod priority_sort;
mod resources_fit;
mod scheduling_gates;
mod taint_toleration;
mod volume_binding;
mod volume_restrictions;
mod volume_zone;

use crate::framework::{Framework, MAX_SCORE, Plugin};

/// The plugins of the default profile, in upstream's order: a node is refused by the first that refuses it.
pub fn default_profile() -> Framework {
    let plugins: Vec<Box<dyn Plugin>> = vec![
        Box::new(scheduling_gates::SchedulingGates),
        Box::new(priority_sort::PrioritySort),
        Box::new(node_unschedulable::NodeUnschedulable),
        Box::new(node_name::NodeName),
        Box::new(taint_toleration::TaintToleration),
        Box::new(node_affinity::NodeAffinity),
        Box::new(node_ports::NodePorts),
        Box::new(resources_fit::NodeResourcesFit),
        Box::new(volume_restrictions::VolumeRestrictions),
        Box::new(volume_binding::VolumeBinding),
        Box::new(volume_zone::VolumeZone),
        Box::new(pod_topology_spread::PodTopologySpread),
        Box::new(inter_pod_affinity::InterPodAffinity),
        Box::new(default_preemption::DefaultPreemption),
        Box::new(balanced_allocation::NodeResourcesBalancedAllocation),
        Box::new(image_locality::ImageLocality),
        Box::new(default_binder::DefaultBinder),
    ];
    Framework { plugins }
}

/// Stretches scores so that the highest becomes MAX_SCORE; reversed, so that the highest becomes 0.
fn stretch(scores: &mut [i64], reverse: bool) {
    let highest = scores.iter().max().copied().unwrap_or_default();
    for score in scores {
        *score = if highest == 0 { 0 } else { *score * MAX_SCORE / highest };
        if reverse {
            *score = MAX_SCORE - *score;
        }
    }
}
