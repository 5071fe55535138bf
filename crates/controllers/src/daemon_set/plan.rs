//! What a DaemonSet should do about its pods, node by node: one on each node that fits, and old ones replaced as the
//! update strategy allows. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::placement::{Fit, fit, node_of};
use crate::common::{history::pod_revision, pods};

pub struct View<'a> {
    pub set: &'a DaemonSet,
    pub spec: &'a DaemonSetSpec,
    /// The hash of the present template.
    pub hash: &'a str,
    pub now: Timestamp,
}

#[derive(Debug, Default)]
pub struct Plan {
    /// Nodes to create a pod for.
    pub create: Vec<String>,
    pub delete: Vec<Arc<Pod>>,
    /// Pods that ended: to delete with a word about it, failed ones after a back-off.
    pub ended: Vec<Arc<Pod>>,
    pub status: DaemonSetStatus,
    pub requeue: Option<Duration>,
}

/// The nodes that matter, each with its pods.
type Places<'a> = BTreeMap<&'a str, (Fit, Vec<&'a Arc<Pod>>)>;

impl View<'_> {
    fn is_available(&self, pod: &Pod) -> bool {
        pods::is_available(pod, self.spec.min_ready_seconds.unwrap_or(0), self.now)
    }

    fn is_new(&self, pod: &Pod) -> bool {
        pod_revision(&pod.metadata) == self.hash
    }

    fn rolls(&self) -> bool {
        self.spec.update_strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) != Some("OnDelete")
    }

    /// How many pods may be extra, and how many missing. Both round up.
    fn limits(&self, desired: usize) -> (usize, usize) {
        let rolling = self.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.clone());
        let rolling = rolling.unwrap_or_default();
        let resolve = |value: Option<IntOrString>, default: usize| match value {
            None => default,
            Some(IntOrString::Int(number)) => number.max(0) as usize,
            Some(IntOrString::String(text)) => {
                (text.trim_end_matches('%').parse().unwrap_or(0) * desired).div_ceil(100)
            }
        };
        let surge = resolve(rolling.max_surge, 0);
        let unavailable = resolve(rolling.max_unavailable, 1);
        (surge, if surge == 0 { unavailable.max(1) } else { unavailable })
    }
}

pub fn plan(view: &View, nodes: &[Arc<Node>], pods: &[Arc<Pod>]) -> Plan {
    let mut places: Places = nodes
        .iter()
        .map(|node| (node.metadata.name.as_deref().unwrap_or_default(), (fit(&view.spec.template, node), Vec::new())))
        .collect();
    let mut lost = Vec::new();
    // What has ended and is being deleted takes no place any more.
    for pod in pods.iter().filter(|pod| !(pods::is_terminating(pod) && pods::is_finished(pod))) {
        match node_of(pod).and_then(|node| places.get_mut(node)) {
            Some((_, there)) => there.push(pod),
            // Its node is gone before it got there. One that did get there is the pod collector's.
            None if pods::node_name(pod).is_empty() && !pods::is_terminating(pod) => lost.push(pod.clone()),
            None => {}
        }
    }
    let mut plan = Plan { status: status(view, &places), ..Plan::default() };
    let waits = pods.iter().filter_map(|pod| {
        pods::available_in(pod, view.spec.min_ready_seconds.unwrap_or(0), view.now).filter(|wait| !wait.is_zero())
    });
    plan.requeue = waits.min();
    if view.set.metadata.deletion_timestamp.is_none() {
        let desired = plan.status.desired_number_scheduled.max(0) as usize;
        let (surge, unavailable) = view.limits(desired);
        plan.delete = lost;
        places.iter().for_each(|(node, (fit, there))| place(view, node, *fit, there, surge > 0, &mut plan));
        // What is amiss is put right first.
        if view.rolls() && plan.create.is_empty() && plan.delete.is_empty() {
            match surge {
                0 => replace(view, &places, unavailable, &mut plan),
                surge => overlap(view, &places, surge, unavailable, &mut plan),
            }
        }
    }
    plan
}

fn place(view: &View, node: &str, fit: Fit, there: &[&Arc<Pod>], surges: bool, plan: &mut Plan) {
    let standing = || there.iter().filter(|pod| !pods::is_terminating(pod));
    if !fit.may_continue {
        plan.delete.extend(standing().map(|pod| (*pod).clone()));
        return;
    }
    if there.is_empty() && fit.should_run {
        plan.create.push(node.to_owned());
        return;
    }
    let (ended, mut running): (Vec<&Arc<Pod>>, Vec<_>) = standing().copied().partition(|pod| pods::is_finished(pod));
    plan.ended.extend(ended.into_iter().cloned());
    running.sort_by_key(|pod| (!pods::is_ready(pod), seniority(pod)));
    if !surges {
        plan.delete.extend(running.into_iter().skip(1).cloned());
        return;
    }
    if running.is_empty() && fit.should_run {
        plan.create.push(node.to_owned()); // beside the one that is going
    }
    let (new, old): (Vec<_>, Vec<_>) = running.into_iter().partition(|pod| view.is_new(pod));
    plan.delete.extend(new.iter().skip(1).chain(old.iter().skip(1)).map(|pod| (*pod).clone()));
    // The old pod stays only while it serves and the new one does not.
    if let (Some(new), Some(old)) = (new.first(), old.first())
        && (!pods::is_ready(old) || view.is_available(new))
    {
        plan.delete.push((*old).clone());
    }
}

/// Bound pods first, then by age.
fn seniority(pod: &Pod) -> (bool, Option<Timestamp>, Option<String>) {
    let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    (pods::node_name(pod).is_empty(), created, pod.metadata.name.clone())
}

type Pair<'a> = (Option<&'a Arc<Pod>>, Option<&'a Arc<Pod>>);

/// The new and the old pod of a node; None if the node is to be cleared up first.
fn pair<'a>(view: &View, there: &[&'a Arc<Pod>]) -> Option<Pair<'a>> {
    let standing = there.iter().copied().filter(|pod| !pods::is_terminating(pod));
    let (new, old): (Vec<_>, Vec<_>) = standing.partition(|pod| view.is_new(pod));
    (new.len() <= 1 && old.len() <= 1).then(|| (new.first().copied(), old.first().copied()))
}

/// Deletes old pods: those that are unavailable anyway, and as many available ones as may be missing.
fn replace(view: &View, places: &Places, max_unavailable: usize, plan: &mut Plan) {
    let (mut unavailable, mut candidates) = (0, Vec::new());
    for (_, there) in places.values().filter(|(fit, _)| fit.should_run) {
        match pair(view, there) {
            Some((None, Some(old))) if view.is_available(old) => candidates.push(old.clone()),
            Some((None, Some(old))) => {
                unavailable += 1;
                plan.delete.push(old.clone());
            }
            Some((Some(new), None)) if view.is_available(new) => {}
            _ => unavailable += 1,
        }
    }
    candidates.truncate(max_unavailable.saturating_sub(unavailable));
    plan.delete.extend(candidates);
}

/// Creates new pods beside old ones, and deletes the old when the new are available.
fn overlap(view: &View, places: &Places, max_surge: usize, max_unavailable: usize, plan: &mut Plan) {
    let (mut surging, mut candidates) = (0, Vec::new());
    let (mut unavailable, mut waiting) = (0, Vec::new());
    for (node, (_, there)) in places.iter().filter(|(_, (fit, _))| fit.should_run) {
        match pair(view, there) {
            Some((None, Some(old))) if view.is_available(old) => candidates.push((*node).to_owned()),
            Some((None, Some(_))) => plan.create.push((*node).to_owned()),
            Some((Some(new), Some(old))) if view.is_available(new) => plan.delete.push(old.clone()),
            Some((Some(_), Some(old))) => {
                surging += 1;
                waiting.push(old.clone());
            }
            Some((Some(new), None)) if view.is_available(new) => {}
            _ => unavailable += 1,
        }
    }
    candidates.truncate(max_surge.saturating_sub(surging));
    plan.create.extend(candidates);
    // With room for missing pods too, old ones need not wait for the new.
    waiting.truncate(max_unavailable.saturating_sub(unavailable));
    plan.delete.extend(waiting);
}

fn status(view: &View, places: &Places) -> DaemonSetStatus {
    let should: Vec<_> = places.values().filter(|(fit, _)| fit.should_run).map(|(_, there)| there).collect();
    // The oldest pod speaks for its node: while a surge lasts, that is the old one.
    let pods: Vec<_> = should.iter().filter_map(|there| there.iter().min_by_key(|pod| seniority(pod))).collect();
    let count = |wanted: &dyn Fn(&Pod) -> bool| pods.iter().filter(|pod| wanted(pod)).count();
    let (desired, available) = (should.len(), count(&|pod| view.is_available(pod)));
    let some = |number: usize| Some(number as i32).filter(|number| *number > 0);
    let before = view.set.status.clone().unwrap_or_default();
    DaemonSetStatus {
        desired_number_scheduled: desired as i32,
        current_number_scheduled: pods.len() as i32,
        number_misscheduled: places.values().filter(|(fit, there)| !fit.should_run && !there.is_empty()).count() as i32,
        number_ready: count(&pods::is_ready) as i32,
        number_available: some(available),
        number_unavailable: some(desired - available),
        updated_number_scheduled: some(count(&|pod| view.is_new(pod))),
        observed_generation: view.set.metadata.generation,
        collision_count: before.collision_count,
        conditions: before.conditions,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// `a:r1` is a ready pod of revision 1 on node a; p is pending, u not even bound, t terminating, f failed.
    fn planned(strategy: Value, pods: &str) -> (String, DaemonSetStatus) {
        let set: DaemonSet =
            serde_json::from_value(json!({"metadata": {"name": "ds", "uid": "u"}, "spec": {"selector": {},
            "updateStrategy": strategy, "template": {"spec": {"nodeSelector": {"run": "yes"}, "containers": []}}}}))
            .unwrap();
        let node = |name: &str| {
            let labels = if name == "x" { json!({}) } else { json!({"run": "yes"}) };
            Arc::new(serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}})).unwrap())
        };
        let pod = |word: &str| {
            let (node, rest) = word.split_once(':').unwrap();
            let (state, revision) = rest.split_at(1);
            let mut pod = json!({"metadata": {"name": word, "uid": word, "labels": {"controller-revision-hash": revision}},
                "spec": {"nodeName": node, "containers": []},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
            match state {
                "p" => pod["status"] = json!({"phase": "Pending"}),
                "u" => {
                    pod["spec"] = json!({"containers": [], "affinity": {"nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": [
                        {"key": "metadata.name", "operator": "In", "values": [node]}]}]}}}})
                }
                "f" => pod["status"] = json!({"phase": "Failed"}),
                "t" => pod["metadata"]["deletionTimestamp"] = json!("2024-01-01T00:00:00Z"),
                _ => {}
            }
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        let now = "2024-01-01T01:00:00Z".parse().unwrap();
        let view = View { set: &set, spec: set.spec.as_ref().unwrap(), hash: "2", now };
        let plan = plan(&view, &["a", "b", "x"].map(node), &pods.split_whitespace().map(pod).collect::<Vec<_>>());
        let name =
            |sign: &'static str| move |pod: &Arc<Pod>| format!("{sign}{}", pod.metadata.name.as_deref().unwrap());
        let words = plan.create.iter().map(|node| format!("+{node}"));
        let words = words.chain(plan.delete.iter().map(name("-"))).chain(plan.ended.iter().map(name("!")));
        (words.collect::<Vec<_>>().join(" "), plan.status)
    }

    #[test]
    fn passes() {
        let rolling = |rolling: Value| json!({"type": "RollingUpdate", "rollingUpdate": rolling});
        let surge = rolling(json!({"maxSurge": 1, "maxUnavailable": 0}));
        for (strategy, pods, expected) in [
            (json!({}), "", "+a +b"),
            (json!({}), "a:r2 b:r2", ""),
            (json!({}), "a:t2 b:r2", ""),
            (json!({}), "a:r2 b:r2 x:r2", "-x:r2"),
            (json!({}), "a:r2 a:p2 b:r2", "-a:p2"),
            (json!({}), "a:u2 b:r2 gone:r2", ""),
            (json!({}), "a:u2 b:r2 gone:u2", "-gone:u2"),
            (json!({}), "a:f2 b:r2", "!a:f2"),
            (json!({}), "a:r1 b:r1", "-a:r1"),
            (json!({}), "a:p2 b:r1", ""),
            (json!({}), "a:p1 b:r1", "-a:p1"),
            (rolling(json!({"maxUnavailable": "60%"})), "a:r1 b:r1", "-a:r1 -b:r1"),
            (json!({"type": "OnDelete"}), "a:r1 b:r1", ""),
            (surge.clone(), "a:r1 b:r1", "+a"),
            (surge.clone(), "a:r1 a:p2 b:r1", ""),
            (surge.clone(), "a:r1 a:r2 b:r1", "-a:r1"),
            (surge.clone(), "a:p1 b:r2", "+a"),
            (surge.clone(), "a:t1 b:r2", "+a"),
            (surge, "a:p1 a:p2 b:r1", "-a:p1"),
        ] {
            assert_eq!(planned(strategy.clone(), pods).0, expected, "{strategy} {pods}");
        }
    }

    #[test]
    fn status_counts_nodes() {
        let status = planned(json!({}), "a:r2 b:p1 x:r1").1;
        assert_eq!((status.desired_number_scheduled, status.current_number_scheduled), (2, 2));
        assert_eq!((status.number_ready, status.number_misscheduled), (1, 1));
        assert_eq!((status.number_unavailable, status.updated_number_scheduled), (Some(1), Some(1)));
        let surging = planned(json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}), "a:r1 a:r2 b:r2").1;
        assert_eq!((surging.number_available, surging.updated_number_scheduled), (Some(2), Some(1)));
    }
}
