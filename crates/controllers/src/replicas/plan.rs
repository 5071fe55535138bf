//! What a replica controller should do about its pods, and what to say about them. Pure.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use machinery::labels::Selector;

use super::kinds::{Condition, Replicator, Status};
use crate::common::{pods, selects};

#[derive(Debug)]
pub struct Plan {
    pub create: usize,
    /// In the order in which to give them up.
    pub delete: Vec<Arc<Pod>>,
    /// When a pod that is ready becomes available, if one does so later.
    pub available_in: Option<Duration>,
}

/// Why pods could not be created or deleted.
#[derive(Debug)]
pub struct Failure {
    pub reason: &'static str,
    pub message: String,
}

/// Active pods of the owner and its siblings, by node.
type Crowds = HashMap<String, usize>;

/// `crowds` is asked once, and only if there is a choice of pods to delete.
pub fn plan<R: Replicator>(owner: &R, owned: &[Arc<Pod>], crowds: impl FnOnce() -> Crowds, now: Timestamp) -> Plan {
    let active: Vec<_> = owned.iter().filter(|pod| pods::is_active(pod)).cloned().collect();
    let wanted = owner.replicas().max(0) as usize;
    let waits = active.iter().filter_map(|pod| pods::available_in(pod, owner.min_ready_seconds(), now));
    Plan {
        create: wanted.saturating_sub(active.len()),
        available_in: waits.filter(|wait| !wait.is_zero()).min(),
        delete: surplus(active, wanted, crowds, now),
    }
}

fn surplus(mut active: Vec<Arc<Pod>>, wanted: usize, crowds: impl FnOnce() -> Crowds, now: Timestamp) -> Vec<Arc<Pod>> {
    let Some(count) = active.len().checked_sub(wanted).filter(|count| *count > 0) else { return Vec::new() };
    if wanted == 0 {
        return active; // no choice, no ranking
    }
    let crowds = crowds();
    let crowd = |pod: &Pod| crowds.get(pods::node_name(pod)).copied().unwrap_or(0);
    active.sort_by_cached_key(|pod| pods::deletion_order(pod, crowd(pod), now));
    active.truncate(count);
    active
}

pub fn status<R: Replicator>(owner: &R, owned: &[Arc<Pod>], failure: Option<&Failure>, now: Timestamp) -> Status {
    let template_labels = owner.template().metadata.and_then(|meta| meta.labels).unwrap_or_default();
    let template = Selector::from_map(&template_labels);
    let (active, terminating): (Vec<_>, Vec<_>) = owned.iter().partition(|pod| pods::is_active(pod));
    let count = |wanted: &dyn Fn(&Pod) -> bool| active.iter().filter(|pod| wanted(pod)).count() as i32;
    Status {
        replicas: active.len() as i32,
        fully_labeled: count(&|pod| selects(&template, &pod.metadata)),
        ready: count(&pods::is_ready),
        available: count(&|pod| pods::is_available(pod, owner.min_ready_seconds(), now)),
        terminating: R::COUNTS_TERMINATING.then_some(terminating.len() as i32),
        observed_generation: owner.meta().generation.unwrap_or(0),
        conditions: conditions(owner.status().conditions, failure, now),
    }
}

fn conditions(mut conditions: Vec<Condition>, failure: Option<&Failure>, now: Timestamp) -> Vec<Condition> {
    const TYPE: &str = "ReplicaFailure";
    let known = conditions.iter().any(|condition| condition.type_ == TYPE);
    match failure {
        Some(failure) if !known => conditions.push(Condition {
            type_: TYPE.into(),
            status: "True".into(),
            reason: Some(failure.reason.into()),
            message: Some(failure.message.clone()),
            last_transition_time: Some(Time(Timestamp::from_second(now.as_second()).unwrap_or(now))),
        }),
        None => conditions.retain(|condition| condition.type_ != TYPE),
        Some(_) => {}
    }
    conditions
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use serde_json::json;

    fn owner(replicas: i32, min_ready_seconds: i32) -> ReplicaSet {
        serde_json::from_value(json!({"metadata": {"name": "rs", "generation": 3}, "spec": {
            "replicas": replicas, "minReadySeconds": min_ready_seconds, "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b", "c": "d"}}}}}))
        .unwrap()
    }

    /// Pods from letters: p pending, r ready, f failed, t terminating.
    fn pods(letters: &str) -> Vec<Arc<Pod>> {
        let pod = |(number, letter): (usize, char)| {
            let labels = if number == 0 { json!({"a": "b", "c": "d"}) } else { json!({"a": "b"}) };
            let mut pod = json!({"metadata": {"name": number.to_string(), "uid": number.to_string(), "labels": labels},
                "status": {"phase": "Pending"}});
            match letter {
                'r' => {
                    pod["status"] = json!({"phase": "Running", "conditions": [
                    {"type": "Ready", "status": "True", "lastTransitionTime": "2024-01-01T00:00:00Z"}]})
                }
                'f' => pod["status"]["phase"] = json!("Failed"),
                't' => pod["metadata"]["deletionTimestamp"] = json!("2024-01-01T00:00:00Z"),
                _ => {}
            }
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        letters.chars().enumerate().map(pod).collect()
    }

    fn at(second: i64) -> Timestamp {
        "2024-01-01T00:00:00Z".parse::<Timestamp>().unwrap() + jiff::SignedDuration::from_secs(second)
    }

    #[test]
    fn creates_what_is_missing_and_deletes_the_least_useful() {
        for (replicas, letters, create, delete) in [
            (3, "", 3, ""),
            (3, "rpr", 0, ""),
            (3, "rft", 2, ""),
            (1, "rpr", 0, "1 0"),
            (0, "rt", 0, "0"),
            (2, "rrp", 0, "2"),
        ] {
            let plan = plan(&owner(replicas, 0), &pods(letters), HashMap::new, at(60));
            let names: Vec<_> = plan.delete.iter().map(|pod| pod.metadata.name.clone().unwrap()).collect();
            assert_eq!((plan.create, names.join(" ").as_str()), (create, delete), "{replicas} of {letters}");
        }
    }

    /// Half of them became ready in one second and half in another, as when a thousand start at once.
    #[test]
    fn many_pods_of_like_age_have_an_order() {
        let mut all = pods(&"r".repeat(1000));
        for (number, pod) in all.iter_mut().enumerate() {
            let (ready, created, restarts) = (number % 2, number / 2 % 3, number % 7);
            let pod = Arc::make_mut(pod);
            *pod = serde_json::from_value(json!({"metadata": {"name": number.to_string(),
                "uid": (number * 619 % 1000).to_string(), "creationTimestamp": at(created as i64).to_string()},
                "status": {"phase": "Running", "conditions": [
                    {"type": "Ready", "status": "True", "lastTransitionTime": at(10 + ready as i64).to_string()}],
                    "containerStatuses": [{"name": "c", "image": "i", "imageID": "i", "ready": true,
                        "restartCount": restarts}]}}))
            .unwrap();
        }
        let plan = plan(&owner(750, 0), &all, HashMap::new, at(30));
        assert_eq!(plan.delete.len(), 250);
        let restarts =
            |pod: &Arc<Pod>| pod.status.as_ref()?.container_statuses.as_ref()?.first().map(|c| c.restart_count);
        assert!(plan.delete.iter().all(|pod| restarts(pod) >= Some(5)), "those that restarted most go");
    }

    #[test]
    fn status_counts_and_waits_for_availability() {
        let status_at = |second| status(&owner(3, 10), &pods("rrpt"), None, at(second));
        let early = status_at(4);
        assert_eq!((early.replicas, early.ready, early.available, early.fully_labeled), (3, 2, 0, 1));
        assert_eq!((early.terminating, early.observed_generation), (Some(1), 3));
        assert_eq!(status_at(10).available, 2);
        let wait = |second| plan(&owner(3, 10), &pods("rrp"), HashMap::new, at(second)).available_in;
        assert_eq!((wait(4), wait(10)), (Some(Duration::from_secs(6)), None));
    }

    #[test]
    fn a_failure_is_a_condition_until_it_is_over() {
        let failure = Failure { reason: "FailedCreate", message: "quota".into() };
        let mut owner = owner(1, 0);
        let failed = status(&owner, &[], Some(&failure), at(1));
        assert_eq!(failed.conditions[0].reason.as_deref(), Some("FailedCreate"));
        owner.set_status(failed.clone());
        assert_eq!(status(&owner, &[], Some(&failure), at(9)), failed, "the first time counts");
        assert!(status(&owner, &[], None, at(9)).conditions.is_empty());
    }
}
