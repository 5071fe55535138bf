//! One pass over a StatefulSet: which pods to create, repair and delete, and in which order. Pure.
//!
//! OrderedReady does one thing at a time, from the lowest ordinal up (deletion from the highest down), and waits for each
//! pod to be available; Parallel does everything at once.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::identity::ordinal;
use crate::common::{history::pod_revision, pods};

#[derive(Debug)]
pub enum Action {
    /// An ordinal to fill, from the update revision or else the current one.
    Create {
        ordinal: i32,
        updated: bool,
    },
    /// Claims that a pending pod may wait for.
    Claims {
        ordinal: i32,
    },
    /// Labels that the pod should have.
    Identify {
        ordinal: i32,
        pod: Arc<Pod>,
    },
    Delete(Arc<Pod>),
}

#[derive(Debug, Default)]
pub struct Plan {
    pub actions: Vec<Action>,
    pub status: StatefulSetStatus,
    /// When a ready pod becomes available.
    pub requeue: Option<Duration>,
}

pub struct View<'a> {
    pub set: &'a StatefulSet,
    pub spec: &'a StatefulSetSpec,
    pub current: &'a str,
    pub update: &'a str,
    pub collisions: Option<i32>,
    pub now: Timestamp,
}

impl View<'_> {
    pub fn start(&self) -> i32 {
        self.spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0)
    }

    pub fn replicas(&self) -> i32 {
        self.spec.replicas.unwrap_or(1).max(0)
    }

    fn is_ordered(&self) -> bool {
        self.spec.pod_management_policy.as_deref() != Some("Parallel")
    }

    fn rolls(&self) -> bool {
        self.spec.update_strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) != Some("OnDelete")
    }

    /// The first ordinal that is updated.
    fn partition(&self) -> i32 {
        let rolling = self.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
        self.start() + rolling.and_then(|rolling| rolling.partition).unwrap_or(0)
    }

    /// How many pods may be unavailable, if the set says so. Percentages round down, and one always may.
    fn max_unavailable(&self) -> Option<usize> {
        let rolling = self.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
        let number = match rolling.and_then(|rolling| rolling.max_unavailable.as_ref())? {
            IntOrString::Int(number) => *number,
            IntOrString::String(text) => text.trim_end_matches('%').parse().unwrap_or(0) * self.replicas() / 100,
        };
        Some(number.max(1) as usize)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        is_running(pod) && pods::is_available(pod, self.spec.min_ready_seconds.unwrap_or(0), self.now)
    }

    fn is_usable(&self, pod: &Pod) -> bool {
        self.is_available(pod) && !pods::is_terminating(pod)
    }

    fn is_old(&self, pod: &Pod) -> bool {
        pod_revision(&pod.metadata) != self.update && !pods::is_terminating(pod)
    }

    /// With Parallel, an old pod that does not work costs nothing to replace.
    fn is_free(&self, pod: &Pod) -> bool {
        !self.is_ordered() && self.is_old(pod) && !self.is_available(pod)
    }

    fn counts_as_missing(&self, slot: &Option<Arc<Pod>>) -> bool {
        slot.as_ref().is_none_or(|pod| !self.is_usable(pod) && !self.is_free(pod))
    }

    pub fn is_condemned(&self, ordinal: i32) -> bool {
        !(self.start()..self.start() + self.replicas()).contains(&ordinal)
    }
}

fn is_running(pod: &Pod) -> bool {
    pods::phase(pod) == "Running" && pods::is_ready(pod)
}

pub fn plan(view: &View, pods: &[Arc<Pod>]) -> Plan {
    let mut plan = Plan { status: status(view, pods), ..Plan::default() };
    let waits = pods.iter().filter_map(|pod| {
        pods::available_in(pod, view.spec.min_ready_seconds.unwrap_or(0), view.now).filter(|wait| !wait.is_zero())
    });
    plan.requeue = waits.min();
    if view.set.metadata.deletion_timestamp.is_none() {
        let (replicas, condemned) = split(view, pods);
        let settled = fill(view, &replicas, &mut plan) && shrink(view, &replicas, &condemned, &mut plan);
        if settled && view.rolls() {
            update(view, &replicas, &mut plan);
        }
    }
    plan
}

/// The pods by place, and those beyond, highest ordinal first.
fn split(view: &View, pods: &[Arc<Pod>]) -> (Vec<Option<Arc<Pod>>>, Vec<Arc<Pod>>) {
    let mut replicas = vec![None; view.replicas() as usize];
    let mut condemned = Vec::new();
    for pod in pods {
        let Some(ordinal) = ordinal(view.set, pod) else { continue };
        match view.is_condemned(ordinal) {
            true => condemned.push((ordinal, pod.clone())),
            false => replicas[(ordinal - view.start()) as usize] = Some(pod.clone()),
        }
    }
    condemned.sort_by_key(|(ordinal, _)| -ordinal);
    (replicas, condemned.into_iter().map(|(_, pod)| pod).collect())
}

/// False if nothing after may be done in this pass.
fn fill(view: &View, replicas: &[Option<Arc<Pod>>], plan: &mut Plan) -> bool {
    for (ordinal, slot) in (view.start()..).zip(replicas) {
        let Some(pod) = slot else {
            let updated = !view.rolls() || ordinal >= view.partition();
            plan.actions.push(Action::Create { ordinal, updated });
            if view.is_ordered() {
                return false;
            }
            continue;
        };
        if pods::is_finished(pod) {
            // However it ended, another takes its place once it is gone.
            if !pods::is_terminating(pod) {
                plan.actions.push(Action::Delete(pod.clone()));
            }
            if view.is_ordered() {
                return false;
            }
            continue;
        }
        if pods::phase(pod) == "Pending" {
            plan.actions.push(Action::Claims { ordinal });
        }
        // As upstream, this also waits for a broken pod of a revision that has been replaced: only its user knows whether
        // deleting it loses data.
        if view.is_ordered() && !view.is_usable(pod) {
            return false;
        }
        if super::identity::identify(&mut pod.as_ref().clone(), ordinal) {
            plan.actions.push(Action::Identify { ordinal, pod: pod.clone() });
        }
    }
    true
}

fn shrink(view: &View, replicas: &[Option<Arc<Pod>>], condemned: &[Arc<Pod>], plan: &mut Plan) -> bool {
    let all = || replicas.iter().flatten().chain(condemned.iter().rev());
    let first_unavailable = all().find(|pod| !view.is_usable(pod));
    for pod in condemned {
        let ordered = view.is_ordered();
        let first = first_unavailable.is_some_and(|first| first.metadata.uid == pod.metadata.uid);
        if pods::is_terminating(pod) {
            if ordered {
                return false;
            }
            continue;
        }
        if ordered && !first && !view.is_available(pod) {
            return false;
        }
        plan.actions.push(Action::Delete(pod.clone()));
        if ordered {
            return false;
        }
    }
    true
}

/// Deletes pods of other revisions, highest ordinal first: one, if none above it is unavailable, or as many as the set
/// allows.
fn update(view: &View, replicas: &[Option<Arc<Pod>>], plan: &mut Plan) {
    let doomed = |pod: &Arc<Pod>| {
        plan.actions.iter().any(|action| matches!(action, Action::Delete(other) if Arc::ptr_eq(other, pod)))
    };
    let updated = (view.partition() - view.start()).max(0) as usize..;
    let mut candidates = replicas.get(updated).unwrap_or_default().iter().rev();
    let delete: Vec<_> = match view.max_unavailable() {
        None => {
            let settled = |pod: &Arc<Pod>| view.is_usable(pod) && !view.is_old(pod);
            let next = candidates.find(|slot| !slot.as_ref().is_some_and(settled)).and_then(Option::as_ref);
            next.filter(|pod| view.is_old(pod) && !doomed(pod)).into_iter().collect()
        }
        Some(limit) => {
            let mut budget = limit.saturating_sub(replicas.iter().filter(|slot| view.counts_as_missing(slot)).count());
            let mut affordable = |pod: &&Arc<Pod>| {
                let free = view.is_free(pod);
                let may = free || budget > 0;
                budget -= usize::from(may && !free);
                may
            };
            let old = candidates.flatten().filter(|pod| view.is_old(pod) && !doomed(pod));
            old.filter(|pod| affordable(pod)).collect()
        }
    };
    let delete: Vec<_> = delete.into_iter().cloned().map(Action::Delete).collect();
    plan.actions.extend(delete);
}

fn status(view: &View, pods: &[Arc<Pod>]) -> StatefulSetStatus {
    let count = |wanted: &dyn Fn(&Pod) -> bool| pods.iter().filter(|pod| wanted(pod)).count() as i32;
    let some = |number: i32| Some(number).filter(|number| *number > 0);
    let of = |revision: &str| count(&|pod| pod_revision(&pod.metadata) == revision && !pods::is_terminating(pod));
    let (ready, updated, replicas) = (count(&is_running), of(view.update), pods.len() as i32);
    let done = view.rolls() && [ready, updated, replicas].iter().all(|number| *number == view.replicas());
    let current = if done { view.update } else { view.current };
    let previous = view.set.status.clone().unwrap_or_default();
    StatefulSetStatus {
        replicas,
        ready_replicas: some(ready),
        available_replicas: Some(count(&|pod| view.is_available(pod))),
        current_replicas: some(of(current)),
        updated_replicas: some(updated),
        current_revision: Some(current.to_owned()),
        update_revision: Some(view.update.to_owned()),
        collision_count: view.collisions,
        observed_generation: view.set.metadata.generation,
        conditions: previous.conditions,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn set(spec: Value) -> StatefulSet {
        let mut set = json!({"metadata": {"name": "web", "uid": "u"}, "spec": {"replicas": 3, "serviceName": "web",
            "selector": {}, "template": {}}});
        machinery::patch::merge_patch(&mut set["spec"], &spec).unwrap();
        serde_json::from_value(set).unwrap()
    }

    /// `0r:a` is pod 0, ready, of revision a; p is pending, t terminating, f failed, and - no pod.
    fn pods(text: &str) -> Vec<Arc<Pod>> {
        let pod = |word: &str| {
            let (who, revision) = word.split_once(':').unwrap();
            let (ordinal, state) = who.split_at(who.len() - 1);
            let name = format!("web-{ordinal}");
            let mut pod = json!({"metadata": {"name": name, "uid": name, "labels": {"controller-revision-hash": revision,
                "statefulset.kubernetes.io/pod-name": name, "apps.kubernetes.io/pod-index": ordinal}},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True",
                "lastTransitionTime": "2024-01-01T00:00:00Z"}]}});
            match state {
                "p" => pod["status"] = json!({"phase": "Pending"}),
                "f" => pod["status"] = json!({"phase": "Failed"}),
                "t" => pod["metadata"]["deletionTimestamp"] = json!("2024-01-01T00:00:00Z"),
                _ => {}
            }
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        text.split_whitespace().map(pod).collect()
    }

    fn planned(spec: Value, text: &str) -> (String, StatefulSetStatus) {
        let set = set(spec);
        let now = "2024-01-01T01:00:00Z".parse().unwrap();
        let spec = set.spec.as_ref().unwrap();
        let view = View { set: &set, spec, current: "a", update: "b", collisions: None, now };
        let plan = plan(&view, &pods(text));
        let word = |action: &Action| match action {
            Action::Create { ordinal, updated } => format!("+{ordinal}{}", if *updated { "b" } else { "a" }),
            Action::Claims { ordinal } => format!("?{ordinal}"),
            Action::Identify { ordinal, .. } => format!("={ordinal}"),
            Action::Delete(pod) => pod.metadata.name.as_deref().unwrap().replace("web", ""),
        };
        (plan.actions.iter().map(word).collect::<Vec<_>>().join(" "), plan.status)
    }

    #[test]
    fn passes() {
        let parallel = json!({"podManagementPolicy": "Parallel"});
        let with = |spec: &Value, more: Value| {
            let mut spec = spec.clone();
            machinery::patch::merge_patch(&mut spec, &more).unwrap();
            spec
        };
        let rolling = |rolling: Value| json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": rolling}});
        for (spec, pods, expected) in [
            (json!({}), "", "+0b"),
            (json!({}), "0p:b", "?0"),
            (json!({}), "0r:b", "+1b"),
            (json!({}), "0r:b 2r:b", "+1b"),
            (json!({}), "0t:b 1r:b 2r:b", ""),
            (json!({}), "0f:b 1r:b 2r:b", "-0"),
            (parallel.clone(), "0p:b", "?0 +1b +2b"),
            (json!({"ordinals": {"start": 5}}), "", "+5b"),
            (json!({"ordinals": {"start": 1}, "replicas": 2}), "0r:b 1r:b 2r:b", "-0"),
            (json!({"replicas": 1}), "0r:b 1r:b 2r:b", "-2"),
            (json!({"replicas": 1}), "0r:b 1r:b 2t:b", ""),
            (json!({"replicas": 1}), "0r:b 1r:b 2p:b", "-2"),
            (json!({"replicas": 1, "podManagementPolicy": "Parallel"}), "0r:b 1r:b 2r:b", "-2 -1"),
            (json!({}), "0r:a 1r:a 2r:a", "-2"),
            (json!({}), "0r:a 1r:a 2r:b", "-1"),
            (json!({}), "0r:a 1r:a 2p:b", "?2"),
            (rolling(json!({"partition": 2})), "0r:a 1r:a 2r:b", ""),
            (rolling(json!({"partition": 2})), "1r:a 2r:b", "+0a"),
            (rolling(json!({"maxUnavailable": 2})), "0r:a 1r:a 2r:a", "-2 -1"),
            (rolling(json!({"maxUnavailable": "70%"})), "0r:a 1r:a 2r:a", "-2 -1"),
            (json!({"updateStrategy": {"type": "OnDelete"}}), "0r:a 1r:a 2r:a", ""),
            (json!({}), "0r:a 1r:a 2p:broken", "?2"),
            (parallel.clone(), "0r:a 1r:a 2p:broken", "?2 -2"),
            (parallel.clone(), "0p:a 1r:a 2r:a", "?0 -2"),
            (parallel.clone(), "0p:a 1r:a 2p:b", "?0 ?2"),
            (parallel.clone(), "0f:b 1r:b 2r:b 3r:b", "-0 -3"),
            (with(&parallel, rolling(json!({"maxUnavailable": 1}))), "0p:a 1r:a 2r:a", "?0 -2 -0"),
            (with(&parallel, rolling(json!({"maxUnavailable": 1}))), "0p:a 1r:a 2p:b", "?0 ?2 -0"),
            (json!({"minReadySeconds": 7200}), "0r:b", ""),
        ] {
            assert_eq!(planned(spec.clone(), pods).0, expected, "{spec} {pods}");
        }
    }

    #[test]
    fn an_update_is_complete_when_all_are_ready() {
        let status = planned(json!({}), "0r:a 1r:b 2p:b").1;
        assert_eq!((status.replicas, status.ready_replicas, status.updated_replicas), (3, Some(2), Some(2)));
        assert_eq!((status.current_revision.as_deref(), status.current_replicas), (Some("a"), Some(1)));
        let status = planned(json!({}), "0r:b 1r:b 2r:b").1;
        assert_eq!((status.current_revision.as_deref(), status.current_replicas), (Some("b"), Some(3)));
    }
}
