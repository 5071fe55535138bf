//! Deployments, replica sets and replication controllers, with a stand-in for the kubelet that declares pods ready.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Event, Pod, ReplicationController};
use kube::Api;
use kube::api::DeleteParams;
use serde_json::{Value, json};

use crate::{Cluster, Handy as _, name_of, until, until_get, until_gone, until_list};

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}})
}

fn deployment(replicas: i32) -> Value {
    json!({"metadata": {"name": "web"}, "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
        "template": template("v1")}})
}

/// Declares every pod ready until dropped.
pub fn kubelet(pods: Api<Pod>) -> tokio_util::task::AbortOnDropHandle<()> {
    tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            for pod in pods.list(&Default::default()).await.unwrap() {
                let status = pod.status.as_ref();
                let ready = status.is_some_and(|status| status.phase.as_deref() == Some("Running"));
                if !ready && pod.metadata.deletion_timestamp.is_none() {
                    let ready = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True",
                        "lastTransitionTime": "2024-01-01T00:00:00Z"}]}});
                    let patch = kube::api::Patch::Merge(ready);
                    let _ = pods.patch_status(&name_of(&pod), &Default::default(), &patch).await; // it may be gone
                }
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }))
}

fn condition(deployment: &Deployment, kind: &str) -> String {
    let conditions = deployment.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let found = conditions.into_iter().find(|condition| condition.type_ == kind);
    found.map(|condition| condition.reason.clone().unwrap_or_default()).unwrap_or_default()
}

fn is_done(deployment: &Deployment, replicas: i32) -> bool {
    let status = deployment.status.clone().unwrap_or_default();
    status.observed_generation == deployment.metadata.generation
        && status.updated_replicas == Some(replicas)
        && status.replicas == Some(replicas)
        && status.available_replicas == Some(replicas)
        && condition(deployment, "Progressing") == "NewReplicaSetAvailable"
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_lives() {
    let cluster = Cluster::start().await;
    let (deployments, sets, pods) = (cluster.api::<Deployment>(), cluster.api::<ReplicaSet>(), cluster.api::<Pod>());
    let _kubelet = kubelet(pods.clone());
    deployments.make(deployment(3)).await;
    let first = until_get("rolled out", &deployments, "web", |found| is_done(found, 3)).await;
    assert_eq!(first.metadata.annotations.unwrap()["deployment.kubernetes.io/revision"], "1");
    let events = cluster.api::<Event>();
    let told = |reason: &'static str, text: &'static str| {
        let events = events.clone();
        async move {
            until_list(text, &events, |events| {
                events.iter().any(|event| {
                    event.reason.as_deref() == Some(reason)
                        && event.message.as_deref().unwrap_or_default().starts_with(text)
                })
            })
            .await
        }
    };
    told("ScalingReplicaSet", "Scaled up replica set web-").await;
    told("SuccessfulCreate", "Created pod: web-").await;

    deployments.merge("web", json!({"spec": {"template": template("v2")}})).await;
    until_get("rolled on", &deployments, "web", |found| is_done(found, 3)).await;
    let images: Vec<_> = pods.list(&Default::default()).await.unwrap().items;
    assert!(images.iter().all(|pod| pod.spec.as_ref().unwrap().containers[0].image.as_deref() == Some("v2")));
    assert_eq!(sets.list(&Default::default()).await.unwrap().items.len(), 2);

    deployments.merge("web", json!({"spec": {"replicas": 1}})).await;
    until_get("scaled", &deployments, "web", |found| is_done(found, 1)).await;
    until_list("one pod", &pods, |pods| pods.len() == 1).await;

    deployments.remove("web", DeleteParams::background()).await;
    until_list("sets collected", &sets, <[_]>::is_empty).await;
    until_list("pods collected", &pods, <[_]>::is_empty).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_are_adopted_released_and_replaced() {
    let cluster = Cluster::start().await;
    let (controllers, pods) = (cluster.api::<ReplicationController>(), cluster.api::<Pod>());
    let mut orphan = json!({"metadata": {"name": "orphan", "labels": {"app": "web"}}, "spec": template("v1")["spec"]});
    orphan["spec"]["terminationGracePeriodSeconds"] = json!(0);
    pods.make(orphan).await;
    let spec = json!({"replicas": 2, "selector": {"app": "web"}, "template": template("v1")});
    controllers.make(json!({"metadata": {"name": "rc"}, "spec": spec})).await;
    let owned = |pod: &Pod| pod.metadata.owner_references.iter().flatten().any(|owner| owner.name == "rc");
    until_get("adopted", &pods, "orphan", owned).await;
    let two = until_list("one more", &pods, |pods| pods.iter().filter(|pod| owned(pod)).count() == 2).await;
    assert_eq!(two.len(), 2);
    until_get("counted", &controllers, "rc", |rc| rc.status.as_ref().is_some_and(|status| status.replicas == 2)).await;

    pods.merge("orphan", json!({"metadata": {"labels": {"app": "other"}}})).await;
    until_get("released", &pods, "orphan", |pod| !owned(pod)).await;
    let three = until_list("replaced", &pods, |pods| pods.len() == 3).await;
    let victim = name_of(three.iter().find(|pod| owned(pod)).unwrap());
    pods.remove(&victim, DeleteParams::default().grace_period(0)).await;
    until_gone("the victim", &pods, &victim).await;
    until_list("replaced again", &pods, |pods| pods.iter().filter(|pod| owned(pod)).count() == 2).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_to_create_is_reported() {
    let cluster = Cluster::start().await;
    let (sets, events) = (cluster.api::<ReplicaSet>(), cluster.api::<Event>());
    let mut set = deployment(1);
    set["spec"]["template"]["spec"]["serviceAccountName"] = json!("nobody");
    sets.make(set).await;
    let failed = until_get("a condition", &sets, "web", |set| {
        set.status.as_ref().is_some_and(|status| status.conditions.as_ref().is_some_and(|c| !c.is_empty()))
    })
    .await;
    let condition = failed.status.unwrap().conditions.unwrap().remove(0);
    assert_eq!((condition.type_.as_str(), condition.reason.as_deref()), ("ReplicaFailure", Some("FailedCreate")));
    until("an event", || async {
        let found = events.list(&Default::default()).await.unwrap().items;
        found.into_iter().find(|event| event.reason.as_deref() == Some("FailedCreate"))
    })
    .await;
    cluster.stop().await;
}
