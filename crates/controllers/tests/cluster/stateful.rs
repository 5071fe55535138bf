//! StatefulSets and DaemonSets, with a stand-in for the kubelet that declares pods ready.

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, StatefulSet};
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod};
use kube::api::DeleteParams;
use serde_json::{Value, json};

use crate::workloads::kubelet;
use crate::{Cluster, Handy as _, name_of, until_get, until_list};

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "db"}}, "spec": {"terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": image}]}})
}

fn image(pod: &Pod) -> &str {
    pod.spec.as_ref().unwrap().containers[0].image.as_deref().unwrap()
}

fn names<K: kube::Resource>(objects: &[K]) -> Vec<String> {
    objects.iter().map(name_of).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stateful_set_lives() {
    let cluster = Cluster::start().await;
    let (sets, pods) = (cluster.api::<StatefulSet>(), cluster.api::<Pod>());
    let claims = cluster.api::<PersistentVolumeClaim>();
    let _kubelet = kubelet(pods.clone());
    sets.make(json!({"metadata": {"name": "db"}, "spec": {"replicas": 2, "serviceName": "db",
        "selector": {"matchLabels": {"app": "db"}}, "template": template("v1"),
        "persistentVolumeClaimRetentionPolicy": {"whenScaled": "Delete", "whenDeleted": "Retain"},
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}}]}}))
        .await;
    let is_done = |set: &StatefulSet, replicas: i32| {
        let status = set.status.clone().unwrap_or_default();
        status.observed_generation == set.metadata.generation
            && (status.replicas, status.ready_replicas, status.updated_replicas)
                == (replicas, Some(replicas), Some(replicas))
            && status.current_revision == status.update_revision
    };
    until_get("two ready", &sets, "db", |set| is_done(set, 2)).await;
    let first = pods.get("db-1").await.unwrap();
    let spec = first.spec.as_ref().unwrap();
    assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("db-1"), Some("db")));
    assert_eq!(first.metadata.labels.as_ref().unwrap()["apps.kubernetes.io/pod-index"], "1");
    assert_eq!(names(&claims.list(&Default::default()).await.unwrap().items), ["data-db-0", "data-db-1"]);

    sets.merge("db", json!({"spec": {"template": template("v2")}})).await;
    until_get("rolled on", &sets, "db", |set| is_done(set, 2)).await;
    let rolled = pods.list(&Default::default()).await.unwrap().items;
    assert!(rolled.iter().all(|pod| image(pod) == "v2"));
    assert_ne!(pods.get("db-1").await.unwrap().metadata.uid, first.metadata.uid);
    let revisions = cluster.api::<ControllerRevision>();
    let numbers = |revisions: &[ControllerRevision]| revisions.iter().map(|revision| revision.revision).max();
    until_list("two revisions", &revisions, |found| found.len() == 2 && numbers(found) == Some(2)).await;

    // Back to the first template: its revision is taken up again.
    sets.merge("db", json!({"spec": {"template": template("v1")}})).await;
    until_get("rolled back", &sets, "db", |set| is_done(set, 2)).await;
    until_list("still two", &revisions, |found| found.len() == 2 && numbers(found) == Some(3)).await;

    sets.merge("db", json!({"spec": {"replicas": 1}})).await;
    until_list("the highest goes first", &pods, |pods| names(pods) == ["db-0"]).await;
    until_list("its claim goes too", &claims, |claims| names(claims) == ["data-db-0"]).await;

    sets.remove("db", DeleteParams::background()).await;
    until_list("pods collected", &pods, <[_]>::is_empty).await;
    assert_eq!(names(&claims.list(&Default::default()).await.unwrap().items), ["data-db-0"]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_revision_is_overcome() {
    let cluster = Cluster::start().await;
    let (sets, pods) = (cluster.api::<StatefulSet>(), cluster.api::<Pod>());
    for (name, policy) in [("ordered", "OrderedReady"), ("parallel", "Parallel")] {
        let mut template = template("broken");
        template["metadata"]["labels"] = json!({"set": name});
        sets.make(json!({"metadata": {"name": name}, "spec": {"replicas": 2, "serviceName": "db",
            "podManagementPolicy": policy, "selector": {"matchLabels": {"set": name}}, "template": template}}))
            .await;
    }
    let broken = ["ordered-0", "parallel-0", "parallel-1"];
    until_list("the first, never ready", &pods, |pods| names(pods) == broken).await;
    let mend = json!({"spec": {"template": {"spec": template("mended")["spec"]}}});
    for name in ["ordered", "parallel"] {
        sets.merge(name, mend.clone()).await;
    }
    let mended =
        |pods: &[Pod]| -> Vec<String> { pods.iter().filter(|pod| image(pod) == "mended").map(name_of).collect() };
    until_list("parallel replaces", &pods, |pods| mended(pods) == ["parallel-1"]).await;
    let noticed = |set: &StatefulSet| {
        set.status.as_ref().is_some_and(|status| status.observed_generation == set.metadata.generation)
    };
    until_get("ordered has noticed", &sets, "ordered", noticed).await;
    // Only its user knows whether deleting the pod of an ordered set loses data.
    assert_eq!(image(&pods.get("ordered-0").await.unwrap()), "broken");
    pods.remove("ordered-0", DeleteParams::default()).await;
    until_list("ordered goes on", &pods, |pods| mended(pods).contains(&"ordered-0".to_owned())).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_set_follows_the_nodes() {
    let cluster = Cluster::start().await;
    let (sets, pods, nodes) = (cluster.api::<DaemonSet>(), cluster.api::<Pod>(), cluster.all::<Node>());
    let _kubelet = kubelet(pods.clone());
    let node = |name: &str, zone: &str| json!({"metadata": {"name": name, "labels": {"zone": zone}}});
    nodes.make(node("a", "in")).await;
    nodes.make(node("b", "out")).await;
    let mut template = template("v1");
    template["spec"]["nodeSelector"] = json!({"zone": "in"});
    // No kubelet declares these nodes ready.
    template["spec"]["tolerations"] = json!([{"key": "node.kubernetes.io/not-ready", "operator": "Exists"},
        {"key": "node.kubernetes.io/unreachable", "operator": "Exists"}]);
    sets.make(json!({"metadata": {"name": "ds"}, "spec": {"selector": {"matchLabels": {"app": "db"}},
        "template": template}}))
        .await;
    let on = |pod: &Pod| -> String {
        let value = serde_json::to_value(pod).unwrap();
        let required = &value["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        required["nodeSelectorTerms"][0]["matchFields"][0]["values"][0].as_str().unwrap_or_default().to_owned()
    };
    let places = |pods: &[Pod]| {
        let mut places: Vec<_> = pods.iter().map(on).collect();
        places.sort();
        places.join(" ")
    };
    until_list("one node", &pods, |pods| places(pods) == "a").await;
    nodes.merge("b", json!({"metadata": {"labels": {"zone": "in"}}})).await;
    until_list("a node is labelled", &pods, |pods| places(pods) == "a b").await;
    nodes.make(node("c", "in")).await;
    until_list("a node is added", &pods, |pods| places(pods) == "a b c").await;
    nodes.merge("a", json!({"spec": {"taints": [{"key": "x", "effect": "NoExecute"}]}})).await;
    until_list("a node is tainted", &pods, |pods| places(pods) == "b c").await;

    template["spec"]["containers"][0]["image"] = json!("v2");
    sets.merge("ds", json!({"spec": {"template": template}})).await;
    until_list("rolled on", &pods, |pods| pods.len() == 2 && pods.iter().all(|pod| image(pod) == "v2")).await;
    until_get("status", &sets, "ds", |set| {
        let status = set.status.clone().unwrap_or_default();
        (status.desired_number_scheduled, status.number_available, status.updated_number_scheduled)
            == (2, Some(2), Some(2))
    })
    .await;
    cluster.stop().await;
}
