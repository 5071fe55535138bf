//! Controllers of pods, killed.

use std::sync::OnceLock;

use futures::FutureExt as _;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod, ReplicationController};
use kube::api::DeleteParams;
use serde_json::{Value, json};

use super::kubelet::{ENDS, FAILURES};
use super::{Run, Scenario, survives};
use crate::Handy as _;

pub const SCENARIOS: &[Scenario] = &[
    DEPLOYMENT,
    RECREATED,
    REPLICA_SET,
    REPLICATION_CONTROLLER,
    STATEFUL_SET,
    DAEMON_SET,
    JOB,
    INDEXED_JOB,
    DELETED_JOB,
    CRON_JOB,
];

const GARBAGE_COLLECTOR: &str = "generic-garbage-collector";

const DEPLOYMENT: Scenario = Scenario {
    helpers: &["replicaset-controller", GARBAGE_COLLECTOR],
    ..Scenario::of(&["deployment-controller"], |run| deployment(run).boxed())
};
const RECREATED: Scenario = Scenario {
    helpers: &["replicaset-controller", GARBAGE_COLLECTOR],
    ..Scenario::of(&["deployment-controller"], |run| recreated(run).boxed())
};
const REPLICA_SET: Scenario = Scenario::of(&["replicaset-controller"], |run| replica_set(run).boxed());
const REPLICATION_CONTROLLER: Scenario =
    Scenario::of(&["replication-controller"], |run| replication_controller(run).boxed());
const STATEFUL_SET: Scenario = Scenario {
    helpers: &[GARBAGE_COLLECTOR, "persistentvolumeclaim-protection-controller"],
    ..Scenario::of(&["statefulset-controller"], |run| stateful_set(run).boxed())
};
const DAEMON_SET: Scenario = Scenario {
    identities: &["daemon-set-controller"],
    ..Scenario::of(&["daemonset-controller"], |run| daemon_set(run).boxed())
};
const JOB: Scenario = Scenario::of(&["job-controller"], |run| job(run).boxed());
const INDEXED_JOB: Scenario = Scenario::of(&["job-controller"], |run| indexed_job(run).boxed());
const DELETED_JOB: Scenario =
    Scenario { helpers: &[GARBAGE_COLLECTOR], ..Scenario::of(&["job-controller"], |run| deleted_job(run).boxed()) };
const CRON_JOB: Scenario = Scenario {
    helpers: &["job-controller", GARBAGE_COLLECTOR],
    configure: |config| config.clock = half_past_midnight,
    ..Scenario::of(&["cronjob-controller"], |run| cron_job(run).boxed())
};

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_deployment_controller_rolls_on() {
    survives(DEPLOYMENT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_deployment_controller_recreates() {
    survives(RECREATED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_replica_set_controller_keeps_count() {
    survives(REPLICA_SET).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_replication_manager_keeps_count() {
    survives(REPLICATION_CONTROLLER).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_stateful_set_controller_keeps_order() {
    survives(STATEFUL_SET).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_set_controller_keeps_places() {
    survives(DAEMON_SET).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_job_controller_counts_right() {
    survives(JOB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_job_controller_knows_its_indexes() {
    survives(INDEXED_JOB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_job_controller_lets_go() {
    survives(DELETED_JOB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_cron_job_controller_starts_once() {
    survives(CRON_JOB).await;
}

/// A pod template whose pods end as the annotations say, if at all.
fn template(image: &str, annotations: Value) -> Value {
    json!({"metadata": {"labels": {"app": "web"}, "annotations": annotations},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": image}]}})
}

fn of(name: &str, replicas: i32) -> Value {
    json!({"metadata": {"name": name}, "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
        "template": template("v1", json!({}))}})
}

fn image(image: &str) -> Value {
    json!({"spec": {"template": template(image, json!({}))}})
}

fn rolled_out(deployment: &Deployment, replicas: i32) -> bool {
    let status = deployment.status.clone().unwrap_or_default();
    let some = Some(replicas);
    status.observed_generation == deployment.metadata.generation
        && (status.replicas, status.updated_replicas, status.available_replicas) == (some, some, some)
}

async fn deployment(run: Run) {
    run.make::<Deployment>(of("web", 2)).await;
    run.until_get("web", |found| rolled_out(found, 2)).await;
    let mut second = image("v2");
    second["spec"]["revisionHistoryLimit"] = json!(0);
    run.merge::<Deployment>("web", second).await;
    run.until_get("web", |found| rolled_out(found, 2)).await;
    run.merge::<Deployment>("web", json!({"spec": {"replicas": 1}})).await;
    run.until_get("web", |found| rolled_out(found, 1)).await;
    run.until_list::<ReplicaSet>("the old set is cleaned up", |sets| sets.len() == 1).await;
    run.until_list::<Pod>("one pod", |pods| pods.len() == 1).await;
}

/// No pod of the new template may start before the last of the old one is gone.
async fn recreated(run: Run) {
    let mut web = of("web", 2);
    web["spec"]["strategy"] = json!({"type": "Recreate"});
    run.make::<Deployment>(web).await;
    run.until_get("web", |found| rolled_out(found, 2)).await;
    run.merge::<Deployment>("web", image("v2")).await;
    let runs = |pod: &Pod, image: &str| pod.spec.as_ref().unwrap().containers[0].image.as_deref() == Some(image);
    run.until_list::<Pod>("pods of the new template", |pods| {
        let new = pods.iter().filter(|pod| runs(pod, "v2")).count();
        assert!(new == 0 || new == pods.len(), "{}: old pods beside new ones: {pods:#?}", run.name);
        new == 2
    })
    .await;
    run.until_get("web", |found| rolled_out(found, 2)).await;
    run.until_list::<ReplicaSet>("the old set is kept for a rollback", |sets| sets.len() == 2).await;
}

async fn replica_set(run: Run) {
    let ready = |set: &ReplicaSet, replicas: i32| {
        let status = set.status.clone().unwrap_or_default();
        (status.replicas, status.ready_replicas.unwrap_or(0)) == (replicas, replicas)
            && status.observed_generation == set.metadata.generation
    };
    orphan(&run).await;
    run.make::<ReplicaSet>(of("web", 3)).await;
    run.until_get("web", |found| ready(found, 3)).await;
    run.merge::<Pod>("orphan", json!({"metadata": {"labels": {"app": "other"}}})).await;
    run.until_get::<Pod>("orphan", |pod| pod.metadata.owner_references.is_none()).await;
    run.until_list::<Pod>("a replacement", |pods| pods.len() == 4).await;
    run.merge::<ReplicaSet>("web", json!({"spec": {"replicas": 1}})).await;
    run.until_get("web", |found| ready(found, 1)).await;
    run.until_list::<Pod>("one pod and the orphan", |pods| pods.len() == 2).await;
}

/// A pod that a controller will adopt.
async fn orphan(run: &Run) {
    let mut orphan = template("v1", json!({}));
    orphan["metadata"]["name"] = json!("orphan");
    run.make::<Pod>(orphan).await;
    run.until_get::<Pod>("orphan", |pod| pod.status.as_ref().is_some_and(|status| status.pod_ip.is_some())).await;
}

async fn replication_controller(run: Run) {
    let ready = |owner: &ReplicationController, replicas: i32| {
        let status = owner.status.clone().unwrap_or_default();
        (status.replicas, status.ready_replicas.unwrap_or(0)) == (replicas, replicas)
    };
    let spec = json!({"replicas": 3, "selector": {"app": "web"}, "template": template("v1", json!({}))});
    run.make::<ReplicationController>(json!({"metadata": {"name": "web"}, "spec": spec})).await;
    run.until_get("web", |found| ready(found, 3)).await;
    let victim = run.until_list::<Pod>("three pods", |pods| pods.len() == 3).await.remove(0);
    run.remove::<Pod>(&crate::name_of(victim.as_ref()), DeleteParams::default()).await;
    run.until_list::<Pod>("another", |pods| {
        pods.len() == 3 && pods.iter().all(|pod| pod.metadata.uid != victim.metadata.uid)
    })
    .await;
    run.merge::<ReplicationController>("web", json!({"spec": {"replicas": 2}})).await;
    run.until_get("web", |found| ready(found, 2)).await;
    run.until_list::<Pod>("two pods", |pods| pods.len() == 2).await;
}

async fn stateful_set(run: Run) {
    let done = |set: &StatefulSet, replicas: i32| {
        let status = set.status.clone().unwrap_or_default();
        status.observed_generation == set.metadata.generation
            && (status.replicas, status.ready_replicas, status.updated_replicas)
                == (replicas, Some(replicas), Some(replicas))
            && status.current_revision == status.update_revision
    };
    let mut set = of("db", 2);
    set["spec"]["persistentVolumeClaimRetentionPolicy"] = json!({"whenScaled": "Delete", "whenDeleted": "Retain"});
    set["spec"]["volumeClaimTemplates"] = json!([{"metadata": {"name": "data"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]);
    run.make::<StatefulSet>(set).await;
    run.until_get("db", |found| done(found, 2)).await;
    run.merge::<StatefulSet>("db", image("v2")).await;
    run.until_get("db", |found| done(found, 2)).await;
    run.merge::<StatefulSet>("db", json!({"spec": {"replicas": 1, "revisionHistoryLimit": 0}})).await;
    run.until_get("db", |found| done(found, 1)).await;
    run.until_list::<Pod>("one pod", |pods| pods.len() == 1).await;
    run.until_list::<PersistentVolumeClaim>("one claim", |claims| claims.len() == 1).await;
    run.until_list::<ControllerRevision>("one revision", |revisions| revisions.len() == 1).await;
}

async fn daemon_set(run: Run) {
    for name in ["a", "b"] {
        let labels = json!({"run": run.name, "node": name});
        run.cluster::<Node>().make(json!({"metadata": {"name": run.own(name), "labels": labels}})).await;
    }
    let done = |set: &DaemonSet, nodes: i32| {
        let status = set.status.clone().unwrap_or_default();
        status.observed_generation == set.metadata.generation
            && (status.desired_number_scheduled, status.number_ready) == (nodes, nodes)
            && status.updated_number_scheduled == Some(nodes)
            && status.number_misscheduled == 0
    };
    let mut set = of("agent", 0);
    set["spec"].as_object_mut().unwrap().remove("replicas");
    set["spec"]["revisionHistoryLimit"] = json!(0);
    set["spec"]["template"]["spec"]["nodeSelector"] = json!({"run": run.name});
    // No kubelet declares these nodes ready.
    set["spec"]["template"]["spec"]["tolerations"] =
        json!([{"key": "node.kubernetes.io/not-ready", "operator": "Exists"}]);
    run.make::<DaemonSet>(set).await;
    run.until_get("agent", |found| done(found, 2)).await;
    run.merge::<DaemonSet>(
        "agent",
        json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "v2"}]}}}}),
    )
    .await;
    run.until_get("agent", |found| done(found, 2)).await;
    run.cluster::<Node>().merge(&run.own("b"), json!({"metadata": {"labels": {"run": null}}})).await;
    run.until_get("agent", |found| done(found, 1)).await;
    run.until_list::<Pod>("one pod", |pods| pods.len() == 1).await;
    run.until_list::<ControllerRevision>("one revision", |revisions| revisions.len() == 1).await;
}

fn job_of(annotations: Value, spec: Value) -> Value {
    let mut job = json!({"metadata": {"name": "job"}, "spec": spec});
    job["spec"]["template"] = template("v1", annotations);
    job["spec"]["template"]["spec"]["restartPolicy"] = json!("Never");
    job
}

fn is_complete(job: &Job) -> bool {
    let conditions = job.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Complete" && condition.status == "True")
}

fn holds_nothing(pod: &Pod) -> bool {
    pod.metadata.finalizers.as_ref().is_none_or(Vec::is_empty)
}

async fn job(run: Run) {
    let spec = json!({"parallelism": 2, "completions": 3, "backoffLimit": 3});
    run.make::<Job>(job_of(json!({ENDS: "Succeeded", FAILURES: "1"}), spec)).await;
    let status = run.until_get("job", is_complete).await.status.clone().unwrap();
    assert_eq!((status.succeeded, status.failed, status.active), (Some(3), Some(1), None), "{}", run.name);
    run.until_list::<Pod>("pods to look at", |pods| pods.len() == 4 && pods.iter().all(|pod| holds_nothing(pod))).await;
}

async fn indexed_job(run: Run) {
    let spec = json!({"parallelism": 2, "completions": 3, "completionMode": "Indexed", "backoffLimitPerIndex": 1});
    run.make::<Job>(job_of(json!({ENDS: "Succeeded", FAILURES: "1"}), spec)).await;
    let status = run.until_get("job", is_complete).await.status.clone().unwrap();
    assert_eq!((status.succeeded, status.failed), (Some(3), Some(1)), "{}", run.name);
    assert_eq!(status.completed_indexes.as_deref(), Some("0-2"));
    run.until_list::<Pod>("pods to look at", |pods| pods.len() == 4 && pods.iter().all(|pod| holds_nothing(pod))).await;
}

/// The pods run when the job is deleted.
async fn deleted_job(run: Run) {
    run.make::<Job>(job_of(json!({}), json!({"parallelism": 2, "completions": 2}))).await;
    run.until_list::<Pod>("two pods", |pods| pods.len() == 2).await;
    run.remove::<Job>("job", DeleteParams::background()).await;
    run.until_list::<Pod>("no pods", <[_]>::is_empty).await;
}

/// The schedule's clock stands still at a moment after every run's start.
fn half_past_midnight() -> Timestamp {
    const DAY: i64 = 24 * 3600;
    static MOMENT: OnceLock<Timestamp> = OnceLock::new();
    *MOMENT.get_or_init(|| Timestamp::from_second((Timestamp::now().as_second() / DAY + 2) * DAY + 1800).unwrap())
}

async fn cron_job(run: Run) {
    let template = json!({"spec": job_of(json!({ENDS: "Succeeded"}), json!({}))["spec"]});
    let spec = json!({"schedule": "0 0 * * *", "timeZone": "Etc/UTC", "successfulJobsHistoryLimit": 1,
        "jobTemplate": template});
    run.make::<CronJob>(json!({"metadata": {"name": "nightly"}, "spec": spec})).await;
    let idle = |cron_job: &CronJob| cron_job.status.as_ref().is_some_and(|status| status.active.is_none());
    let first = run.until_list::<Job>("a job", |jobs| jobs.len() == 1 && is_complete(&jobs[0])).await.remove(0);
    let noted = |cron_job: &CronJob| {
        let noted = |status: &k8s_openapi::api::batch::v1::CronJobStatus| status.last_successful_time.is_some();
        idle(cron_job) && cron_job.status.as_ref().is_some_and(noted)
    };
    run.until_get("nightly", noted).await;
    // A quarter past is due as well then.
    run.merge::<CronJob>("nightly", json!({"spec": {"schedule": "15 0 * * *"}})).await;
    run.until_list::<Job>("the second alone", |jobs| {
        jobs.len() == 1 && is_complete(&jobs[0]) && jobs[0].metadata.uid != first.metadata.uid
    })
    .await;
    run.until_get("nightly", idle).await;
}
