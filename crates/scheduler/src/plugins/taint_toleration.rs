//! TaintToleration: taints keep out, or make less welcome, the pods that do not tolerate them.

use k8s_openapi::api::core::v1::Toleration;

use super::stretch;
use crate::affinity::tolerates;
use crate::framework::{ClusterEvent, Filter, Filtered, Plugin, PreFilter, Refusal, Score};
use crate::pod::PodInfo;
use crate::snapshot::{NodeId, Snapshot, taints};

pub struct TaintToleration;

struct State<'a> {
    snapshot: &'a Snapshot,
    pod: &'a PodInfo,
}

struct Preference<'a> {
    snapshot: &'a Snapshot,
    tolerations: Vec<&'a Toleration>,
}

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn weight(&self) -> i64 {
        3
    }

    fn pre_filter<'a>(&self, snapshot: &'a Snapshot, pod: &'a PodInfo) -> PreFilter<'a> {
        PreFilter::Use(Box::new(State { snapshot, pod }))
    }

    fn pre_score<'a>(&self, snapshot: &'a Snapshot, pod: &'a PodInfo, _: &[NodeId]) -> Option<Box<dyn Score + 'a>> {
        let concerns = |found: &&Toleration| matches!(found.effect.as_deref(), None | Some("" | "PreferNoSchedule"));
        Some(Box::new(Preference { snapshot, tolerations: pod.tolerations().iter().filter(concerns).collect() }))
    }

    fn hint(&self, event: ClusterEvent<'_>, pod: &PodInfo) -> bool {
        let kept_out = |node| pod.is_kept_out_by(taints(node));
        matches!(event, ClusterEvent::Node { old, new } if !kept_out(new) && old.is_none_or(kept_out))
    }
}

impl<'a> Filter<'a> for State<'a> {
    fn filter(&self, node: NodeId) -> Filtered {
        if self.pod.is_kept_out_by(self.snapshot.node(node).taints()) {
            return Err(Refusal::unresolvable("node(s) had untolerated taint(s)"));
        }
        Ok(())
    }
}

impl Score for Preference<'_> {
    fn score(&self, node: NodeId) -> i64 {
        let soft = self.snapshot.node(node).taints().iter().filter(|taint| taint.effect == "PreferNoSchedule");
        soft.filter(|taint| !self.tolerations.iter().any(|found| tolerates(found, taint))).count() as i64
    }

    fn normalize(&self, scores: &mut [i64]) {
        stretch(scores, true);
    }
}
