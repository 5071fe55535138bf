//! VolumeRestrictions: a claim of mode ReadWriteOncePod serves one pod at a time.

use std::collections::HashSet;

use crate::framework::{ClusterEvent, Filter, Filtered, Plugin, PreFilter, Refusal};
use crate::pod::PodInfo;
use crate::snapshot::{NodeId, Snapshot};

const CONFLICT: &str = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";

pub struct VolumeRestrictions;

struct State<'a> {
    namespace: &'a str,
    exclusive: HashSet<&'a str>,
    /// How often other pods use one of the claims.
    uses: i64,
}

impl Plugin for VolumeRestrictions {
    fn name(&self) -> &'static str {
        "VolumeRestrictions"
    }

    fn pre_filter<'a>(&self, snapshot: &'a Snapshot, pod: &'a PodInfo) -> PreFilter<'a> {
        let mut state = State { namespace: pod.namespace(), exclusive: HashSet::new(), uses: 0 };
        for used in pod.claims.iter().filter(|used| !used.ephemeral) {
            let Some(claim) = snapshot.storage.claim(pod.namespace(), &used.claim) else {
                return PreFilter::Refuse(Refusal::unresolvable(format!(
                    "persistentvolumeclaim {:?} not found",
                    used.claim
                )));
            };
            let modes = claim.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
            if modes.iter().any(|mode| mode == "ReadWriteOncePod") && state.exclusive.insert(&used.claim) {
                state.uses += snapshot.uses_of(pod.namespace(), &used.claim);
            }
        }
        if state.exclusive.is_empty() { PreFilter::Skip } else { PreFilter::Use(Box::new(state)) }
    }

    fn hint(&self, event: ClusterEvent<'_>, pod: &PodInfo) -> bool {
        match event {
            ClusterEvent::PodGone(gone) => {
                gone.namespace() == pod.namespace() && gone.claims.iter().any(|used| pod.claims.contains(used))
            }
            ClusterEvent::Claim(claim) => pod.uses_claim(claim),
            _ => false,
        }
    }
}

impl<'a> Filter<'a> for State<'a> {
    fn filter(&self, _: NodeId) -> Filtered {
        if self.uses > 0 { Err(Refusal::new(CONFLICT)) } else { Ok(()) }
    }

    fn assume(&mut self, _: NodeId, pod: &'a PodInfo, present: bool) {
        let shared = pod.claims.iter().filter(|used| self.exclusive.contains(used.claim.as_str())).count() as i64;
        if pod.namespace() == self.namespace {
            self.uses += if present { shared } else { -shared };
        }
    }
}
