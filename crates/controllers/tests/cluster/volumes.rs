//! Claims and persistent volumes: found, bound, kept, released. The provisioner's node is a stand-in without a kubelet.

use k8s_openapi::api::core::v1::{Event, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};

use crate::{Cluster, Handy as _, until, until_get, until_gone};

fn claim(name: &str, class: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class,
        "resources": {"requests": {"storage": "1Gi"}}}})
}

fn phase(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

fn volume_phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

async fn event(cluster: &Cluster, object: &str, reason: &str) -> String {
    let events: Api<Event> = cluster.api();
    let about = ListParams::default().fields(&format!("involvedObject.name={object},reason={reason}"));
    until(&format!("{reason} of {object}"), || async { events.list(&about).await.unwrap().items.pop()?.message }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_find_volumes_and_leave_them() {
    let cluster = Cluster::start().await;
    let claims = cluster.api::<PersistentVolumeClaim>();
    let (volumes, pods) = (cluster.all::<PersistentVolume>(), cluster.api::<Pod>());
    claims.make(claim("early", json!(""))).await;
    let text = "no persistent volumes available for this claim and no storage class is set";
    assert_eq!(event(&cluster, "early", "FailedBinding").await, text);

    volumes
        .make(
            json!({"metadata": {"name": "v"}, "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "2Gi"},
            "hostPath": {"path": "/data"}}}),
        )
        .await;
    let bound = until_get("bound", &claims, "early", |claim| phase(claim) == "Bound").await;
    assert_eq!(bound.spec.as_ref().unwrap().volume_name.as_deref(), Some("v"));
    assert_eq!(bound.status.unwrap().capacity.unwrap()["storage"].0, "2Gi");
    assert_eq!(bound.metadata.finalizers.unwrap(), ["kubernetes.io/pvc-protection"]);
    let volume = until_get("bound too", &volumes, "v", |volume| volume_phase(volume) == "Bound").await;
    assert_eq!(volume.spec.unwrap().claim_ref.unwrap().uid, bound.metadata.uid);
    assert_eq!(volume.metadata.annotations.unwrap()["pv.kubernetes.io/bound-by-controller"], "yes");
    assert!(volume.status.unwrap().last_phase_transition_time.is_some());

    cluster.all::<Node>().make(json!({"metadata": {"name": "n"}})).await;
    // Both wait to be let go: the volume for its claim, the claim for the pod on a node.
    let user = json!({"metadata": {"name": "user"}, "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "early"}}]}});
    pods.make(user).await;
    volumes.remove("v", DeleteParams::default()).await;
    claims.remove("early", DeleteParams::default()).await;
    // A claim that nobody uses shows that the controller has come by.
    claims.make(claim("unused", json!(""))).await;
    claims.remove("unused", DeleteParams::default()).await;
    until_gone("the unused claim", &claims, "unused").await;
    assert_eq!(phase(&claims.get("early").await.unwrap()), "Bound");
    assert_eq!(volume_phase(&volumes.get("v").await.unwrap()), "Bound");
    pods.remove("user", DeleteParams::default().grace_period(0)).await;
    until_gone("the claim", &claims, "early").await;
    until_gone("the volume", &volumes, "v").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reserved_volumes_wait_and_lost_ones_are_told() {
    let cluster = Cluster::start().await;
    let (claims, volumes) = (cluster.api::<PersistentVolumeClaim>(), cluster.all::<PersistentVolume>());
    let volume = |name: &str, reference: Value| {
        json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
            "hostPath": {"path": "/data"}, "claimRef": reference}})
    };
    volumes.make(volume("kept", json!({"namespace": "default", "name": "chosen"}))).await;
    until_get("reserved", &volumes, "kept", |volume| volume_phase(volume) == "Available").await;
    claims.make(claim("other", json!(""))).await;
    event(&cluster, "other", "FailedBinding").await;
    claims.make(claim("chosen", json!(""))).await;
    until_get("bound", &claims, "chosen", |claim| phase(claim) == "Bound").await;
    assert_eq!(phase(&claims.get("other").await.unwrap()), "Pending");

    // Retained: released, and for nobody.
    claims.remove("chosen", DeleteParams::default()).await;
    until_get("released", &volumes, "kept", |volume| volume_phase(volume) == "Released").await;
    claims.make(claim("chosen", json!(""))).await;
    event(&cluster, "chosen", "FailedBinding").await;

    let mut named = claim("named", json!(""));
    named["spec"]["volumeName"] = json!("later");
    claims.make(named).await;
    volumes.make(volume("later", json!({"namespace": "default", "name": "named"}))).await;
    until_get("bound", &claims, "named", |claim| phase(claim) == "Bound").await;
    volumes.remove("later", DeleteParams::default()).await;
    volumes.merge("later", json!({"metadata": {"finalizers": null}})).await;
    until_get("lost", &claims, "named", |claim| phase(claim) == "Lost").await;
    let text = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
    assert_eq!(event(&cluster, "named", "ClaimLost").await, text);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn local_volumes_are_provisioned_grown_and_given_up() {
    let cluster = Cluster::start().await;
    let claims = cluster.api::<PersistentVolumeClaim>();
    let (volumes, nodes) = (cluster.all::<PersistentVolume>(), cluster.all::<Node>());
    claims.make(claim("early", json!(null))).await;
    cluster
        .all::<StorageClass>()
        .make(json!({"metadata": {"name": "local-path", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
            "provisioner": "isopod.io/local-path", "volumeBindingMode": "WaitForFirstConsumer", "allowVolumeExpansion": true}))
        .await;
    // A class that comes later is taken by the claims that have none.
    let classed = |claim: &PersistentVolumeClaim| {
        claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref()) == Some("local-path")
    };
    until_get("classed", &claims, "early", classed).await;
    let text = "waiting for first consumer to be created before binding";
    assert_eq!(event(&cluster, "early", "WaitForFirstConsumer").await, text);

    let select = |node: &str| json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": node}}});
    claims.merge("early", select("bare")).await;
    nodes.make(json!({"metadata": {"name": "bare"}})).await;
    let failed = event(&cluster, "early", "ProvisioningFailed").await;
    assert!(failed.starts_with("failed to provision volume with StorageClass \"local-path\": "), "{failed}");
    until_get("given back", &claims, "early", |claim| {
        !claim.metadata.annotations.iter().flatten().any(|(key, _)| key.ends_with("selected-node"))
    })
    .await;

    nodes.make(json!({"metadata": {"name": "n", "annotations": {"isopod.io/local-volumes": "/data"}}})).await;
    claims.merge("early", select("n")).await;
    let bound = until_get("bound", &claims, "early", |claim| phase(claim) == "Bound").await;
    let name = bound.spec.unwrap().volume_name.unwrap();
    assert_eq!(name, format!("pvc-{}", bound.metadata.uid.unwrap()));
    assert_eq!(
        event(&cluster, "early", "ProvisioningSucceeded").await,
        format!("Successfully provisioned volume {name}")
    );

    claims.merge("early", json!({"spec": {"resources": {"requests": {"storage": "3Gi"}}}})).await;
    let grown = |claim: &PersistentVolumeClaim| {
        let capacity = claim.status.as_ref().and_then(|status| status.capacity.as_ref());
        capacity.is_some_and(|capacity| capacity["storage"].0 == "3Gi")
    };
    until_get("grown", &claims, "early", grown).await;
    assert_eq!(volumes.get(&name).await.unwrap().spec.unwrap().capacity.unwrap()["storage"].0, "3Gi");

    // No kubelet answers, so the volume stays, and says why; with its node it goes.
    claims.remove("early", DeleteParams::default()).await;
    let about = ListParams::default().fields("reason=VolumeFailedDelete");
    let events: Api<Event> = cluster.api();
    until("the failure is told", || async { events.list(&about).await.unwrap().items.pop() }).await;
    assert_eq!(volume_phase(&volumes.get(&name).await.unwrap()), "Released");
    nodes.remove("n", DeleteParams::default()).await;
    until_gone("the volume", &volumes, &name).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ephemeral_claims_belong_to_their_pod() {
    let cluster = Cluster::start().await;
    let (claims, pods) = (cluster.api::<PersistentVolumeClaim>(), cluster.api::<Pod>());
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}});
    let pod = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "v", "ephemeral": {"volumeClaimTemplate": template}}]}})
    };
    let owner = pods.make(pod("p")).await;
    let made = until_get("the claim", &claims, "p-v", |_| true).await;
    assert_eq!(client::controller_of(&made.metadata).unwrap().uid, owner.metadata.uid.unwrap());
    claims.make(claim("q-v", json!(""))).await;
    pods.make(pod("q")).await;
    let text = "ephemeral volume v: PVC default/q-v was not created for pod default/q (pod is not owner)";
    assert_eq!(event(&cluster, "q", "FailedBinding").await, text);
    pods.remove("p", DeleteParams::default().grace_period(0)).await;
    until_gone("the claim", &claims, "p-v").await;
    cluster.stop().await;
}
