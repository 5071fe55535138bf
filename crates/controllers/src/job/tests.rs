//! Tables for what a Job does about its pods.

use std::collections::HashSet;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use serde_json::{Value, json};

use super::*;
use crate::job::track;

fn job(spec: Value, status: Value) -> Job {
    let mut job = json!({"metadata": {"name": "j", "namespace": "ns", "uid": "u"}, "status": status, "spec": {
        "parallelism": 2, "completions": 3, "backoffLimit": 6, "template": {"spec": {"containers": [{"name": "c"}]}}}});
    machinery::patch::merge_patch(&mut job["spec"], &spec).unwrap();
    serde_json::from_value(job).unwrap()
}

/// Pods from letters: r running, s succeeded, f failed, t terminating, each with its place as its index.
fn pods(letters: &str) -> Vec<Arc<Pod>> {
    let pod = |(number, letter): (usize, char)| {
        let mut pod = json!({"metadata": {"name": number.to_string(), "uid": number.to_string(), "namespace": "ns",
            "finalizers": [FINALIZER], "annotations": {INDEX: number.to_string()}}, "status": {"phase": "Running"}});
        match letter {
            's' => pod["status"]["phase"] = json!("Succeeded"),
            'f' => pod["status"]["phase"] = json!("Failed"),
            't' => pod["metadata"]["deletionTimestamp"] = json!("2024-01-01T00:00:00Z"),
            _ => {}
        }
        Arc::new(serde_json::from_value(pod).unwrap())
    };
    letters.chars().enumerate().map(pod).collect()
}

fn now() -> Timestamp {
    "2024-01-01T01:00:00Z".parse().unwrap()
}

fn with<T>(job: &Job, pods: &[Arc<Pod>], look: impl FnOnce(&View, &Tally) -> T) -> T {
    let released = HashSet::new();
    let view = View { job, spec: job.spec.as_ref().unwrap(), pods, released: &released, now: now() };
    look(&view, &Tally::of(&view))
}

fn planned(job: &Job, pods: &[Arc<Pod>]) -> Plan {
    with(job, pods, |view, tally| plan(view, tally, Backoff::default(), true))
}

#[test]
fn brings_pods_to_the_number_wanted() {
    let indexed = json!({"completionMode": "Indexed"});
    let waits = json!({"podReplacementPolicy": "Failed"});
    for (spec, letters, create, delete) in [
        (json!({}), "", 2, 0),
        (json!({}), "r", 1, 0),
        (json!({}), "ss", 1, 0),
        (json!({}), "ssr", 0, 0),
        (json!({}), "t", 2, 0),
        (waits, "t", 1, 0),
        (json!({"parallelism": 1}), "rrr", 0, 2),
        (json!({"suspend": true}), "rr", 0, 2),
        (json!({"completions": null}), "sr", 0, 0),
        (json!({"completions": null, "parallelism": 3}), "r", 2, 0),
        (indexed.clone(), "r", 1, 0),
        (indexed, "srr", 0, 0),
    ] {
        let plan = planned(&job(spec.clone(), json!({})), &pods(letters));
        assert_eq!((plan.create.len(), plan.delete.len(), plan.ending), (create, delete, None), "{spec} {letters}");
    }
}

#[test]
fn indexed_pods_know_their_index() {
    let plan = planned(&job(json!({"completionMode": "Indexed"}), json!({"completedIndexes": "0"})), &pods(""));
    let pod = &plan.create[0];
    assert_eq!(pod.metadata.generate_name.as_deref(), Some("j-1-"));
    assert_eq!(pod.metadata.labels.as_ref().unwrap()[INDEX], "1");
    assert_eq!(pod.spec.as_ref().unwrap().hostname.as_deref(), Some("j-1"));
    assert_eq!(pod.spec.as_ref().unwrap().containers[0].env.as_ref().unwrap()[0].name, "JOB_COMPLETION_INDEX");
    assert!(pod.metadata.finalizers.as_ref().unwrap().contains(&FINALIZER.to_owned()));
}

#[test]
fn ends_for_a_reason() {
    let policy = json!({"rules": [{"action": "FailJob", "onPodConditions": [{"type": "X", "status": "True"}]}]});
    let per_index = |more: Value| {
        let mut spec = json!({"completionMode": "Indexed", "backoffLimitPerIndex": 0, "backoffLimit": i32::MAX});
        machinery::patch::merge_patch(&mut spec, &more).unwrap();
        spec
    };
    let early = json!({"startTime": "2024-01-01T00:00:00Z"});
    for (spec, status, letters, expected) in [
        (json!({"backoffLimit": 1}), json!({}), "f", None),
        (json!({"backoffLimit": 1}), json!({"failed": 1}), "f", Some("BackoffLimitExceeded")),
        (json!({"backoffLimit": 0, "podFailurePolicy": policy}), json!({}), "t", None),
        (json!({"activeDeadlineSeconds": 3600}), early.clone(), "r", Some("DeadlineExceeded")),
        (json!({"activeDeadlineSeconds": 3601}), early.clone(), "r", None),
        (json!({"activeDeadlineSeconds": 1, "suspend": true}), early, "r", None),
        (per_index(json!({})), json!({}), "fr", None),
        (per_index(json!({})), json!({}), "fss", Some("FailedIndexes")),
        (per_index(json!({"maxFailedIndexes": 0})), json!({}), "fr", Some("MaxFailedIndexesExceeded")),
        (
            json!({"completionMode": "Indexed", "successPolicy": {"rules": [{"succeededIndexes": "1"}]}}),
            json!({}),
            "rs",
            Some("SuccessPolicy"),
        ),
        (
            json!({}),
            json!({"conditions": [{"type": "FailureTarget", "status": "True", "reason": "Why"}]}),
            "rr",
            Some("Why"),
        ),
    ] {
        let plan = planned(&job(spec.clone(), status), &pods(letters));
        let reason = plan.ending.as_ref().map(|ending| ending.reason.as_str());
        assert_eq!(reason, expected, "{spec} {letters}");
    }
}

#[test]
fn a_failed_pod_of_an_index_stays_until_it_is_replaced() {
    let spec = json!({"completionMode": "Indexed", "backoffLimitPerIndex": 2, "backoffLimit": i32::MAX});
    let (job, failed) = (job(spec, json!({})), pods("f"));
    with(&job, &failed, |view, tally| {
        let tracked = track::track(view, tally, None, Default::default());
        assert!(tracked.release.is_empty());
        let plan = plan(view, tally, Backoff::default(), true);
        assert_eq!(plan.create.len(), 1, "index 1 at once, index 0 after its back-off");
        assert_eq!(plan.requeue, Some(Duration::from_secs(10)));
    });
}

#[test]
fn a_pod_counts_once_whenever_the_controller_dies() {
    let (mut job, ended) = (job(json!({}), json!({})), pods("sfr"));
    let tracked = with(&job, &ended, |view, tally| {
        track::track(view, tally, None, {
            k8s_openapi::api::batch::v1::JobStatus {
                uncounted_terminated_pods: Some(Default::default()),
                ..Default::default()
            }
        })
    });
    assert_eq!(tracked.release.len(), 2);
    job.status = Some(tracked.status.clone());
    // Died before any finalizer was taken: the same again.
    let again = with(&job, &ended, |view, tally| {
        assert_eq!((tally.succeeded, tally.failed), (1, 1));
        track::track(view, tally, None, job.status.clone().unwrap())
    });
    assert_eq!(again.status, tracked.status);
    // Died after: the pods are counted, though gone.
    let rest = with(&job, &ended[2..], |view, tally| {
        assert_eq!((tally.succeeded, tally.failed), (1, 1));
        track::track(view, tally, None, job.status.clone().unwrap())
    });
    assert_eq!((rest.status.succeeded, rest.status.failed), (Some(1), Some(1)));
    job.status = Some(rest.status);
    with(&job, &ended[2..], |_, tally| assert_eq!((tally.succeeded, tally.failed), (1, 1)));
}
