//! Jobs and CronJobs, with the test as the kubelet: it says how each pod ends.

use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::DeleteParams;
use serde_json::{Value, json};

use crate::{Cluster, Handy as _, name_of, until_get, until_list};

fn job(spec: Value) -> Value {
    let mut job = json!({"metadata": {"name": "j"}, "spec": {"template": {"spec": {"restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "i"}]}}}});
    job["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    job
}

fn condition(job: &Job, kind: &str) -> Option<String> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let found = conditions.iter().find(|condition| condition.type_ == kind && condition.status == "True")?;
    Some(found.reason.clone().unwrap_or_default())
}

fn is_running(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    !["Succeeded", "Failed"].contains(&phase.unwrap_or_default()) && pod.metadata.deletion_timestamp.is_none()
}

fn has_finalizer(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == "batch.kubernetes.io/job-tracking")
}

async fn end(cluster: &Cluster, phase: &str, count: usize) {
    let pods = cluster.api::<Pod>();
    let running = until_list("pods to end", &pods, |pods| pods.iter().filter(|pod| is_running(pod)).count() >= count);
    for pod in running.await.iter().filter(|pod| is_running(pod)).take(count) {
        pods.merge_status(&name_of(pod), json!({"phase": phase})).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_completes_and_is_cleaned_up() {
    let cluster = Cluster::start().await;
    let (jobs, pods) = (cluster.api::<Job>(), cluster.api::<Pod>());
    jobs.make(job(json!({"parallelism": 2, "completions": 3, "suspend": true}))).await;
    until_get("suspended", &jobs, "j", |job| condition(job, "Suspended").is_some()).await;
    jobs.merge("j", json!({"spec": {"suspend": false}})).await;
    let two = until_list("two at once", &pods, |pods| pods.len() == 2).await;
    assert!(two.iter().all(has_finalizer));
    end(&cluster, "Succeeded", 2).await;
    end(&cluster, "Succeeded", 1).await;
    let done = until_get("complete", &jobs, "j", |job| condition(job, "Complete").is_some()).await;
    let status = done.status.unwrap();
    assert_eq!((status.succeeded, status.failed, status.active, status.ready), (Some(3), None, None, Some(0)));
    assert!(status.completion_time.is_some() && status.start_time.is_some());
    let left = pods.list(&Default::default()).await.unwrap().items;
    assert!(left.len() == 3 && !left.iter().any(has_finalizer));

    jobs.merge("j", json!({"spec": {"ttlSecondsAfterFinished": 0}})).await;
    until_list("the job expired", &jobs, <[_]>::is_empty).await;
    until_list("pods went with it", &pods, <[_]>::is_empty).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_indexed_job_runs_each_index() {
    let cluster = Cluster::start().await;
    let (jobs, pods) = (cluster.api::<Job>(), cluster.api::<Pod>());
    jobs.make(job(json!({"parallelism": 3, "completions": 3, "completionMode": "Indexed", "backoffLimitPerIndex": 0})))
        .await;
    let three = until_list("three indexes", &pods, |pods| pods.len() == 3).await;
    let index = |pod: &Pod| pod.metadata.labels.as_ref().unwrap()["batch.kubernetes.io/job-completion-index"].clone();
    for pod in &three {
        let phase = if index(pod) == "1" { "Failed" } else { "Succeeded" };
        pods.merge_status(&name_of(pod), json!({"phase": phase})).await;
    }
    let done = until_get("failed", &jobs, "j", |job| condition(job, "Failed").is_some()).await;
    assert_eq!(condition(&done, "Failed").as_deref(), Some("FailedIndexes"));
    let status = done.status.unwrap();
    assert_eq!((status.completed_indexes.as_deref(), status.failed_indexes.as_deref()), (Some("0,2"), Some("1")));
    assert_eq!((status.succeeded, status.failed), (Some(2), Some(1)));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_fails_beyond_its_limit_and_deletes_what_runs() {
    let cluster = Cluster::start().await;
    let (jobs, pods, events) = (cluster.api::<Job>(), cluster.api::<Pod>(), cluster.api::<Event>());
    jobs.make(job(json!({"parallelism": 2, "completions": 2, "backoffLimit": 0}))).await;
    end(&cluster, "Failed", 1).await;
    let failed = until_get("failed", &jobs, "j", |job| condition(job, "Failed").is_some()).await;
    assert_eq!(condition(&failed, "Failed").as_deref(), Some("BackoffLimitExceeded"));
    assert!(condition(&failed, "FailureTarget").is_some());
    until_list("only the failed pod stays", &pods, |pods| pods.len() == 1 && !has_finalizer(&pods[0])).await;
    until_list("an event", &events, |events| {
        events.iter().any(|event| event.reason.as_deref() == Some("BackoffLimitExceeded"))
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_job_lets_its_pods_go() {
    let cluster = Cluster::start().await;
    let (jobs, pods) = (cluster.api::<Job>(), cluster.api::<Pod>());
    jobs.make(job(json!({}))).await;
    until_list("a pod", &pods, |pods| pods.len() == 1).await;
    jobs.remove("j", DeleteParams::background()).await;
    until_list("nothing is left", &pods, <[_]>::is_empty).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cron_job_starts_jobs() {
    let cluster = Cluster::start().await;
    let (cron_jobs, jobs) = (cluster.api::<CronJob>(), cluster.api::<Job>());
    let template = json!({"spec": job(json!({}))["spec"]});
    cron_jobs
        .make(json!({"metadata": {"name": "cj"}, "spec": {"schedule": "@every 1s", "concurrencyPolicy": "Forbid",
            "jobTemplate": template}}))
        .await;
    let started = until_list("a job", &jobs, |jobs| jobs.len() == 1).await.remove(0);
    assert_eq!(started.metadata.owner_references.as_ref().unwrap()[0].kind, "CronJob");
    let noted = until_get("noted", &cron_jobs, "cj", |cron_job| {
        cron_job.status.as_ref().is_some_and(|status| status.active.is_some())
    })
    .await;
    let active = noted.status.unwrap().active.unwrap().remove(0);
    assert_eq!((active.uid, active.kind.as_deref()), (started.metadata.uid.clone(), Some("Job")));
    end(&cluster, "Succeeded", 1).await;
    until_get("seen to succeed", &cron_jobs, "cj", |cron_job| {
        cron_job.status.as_ref().is_some_and(|status| status.last_successful_time.is_some())
    })
    .await;
    cluster.stop().await;
}
