//! Controllers of volumes and claims, killed.

use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::DeleteParams;
use serde_json::{Value, json};

use super::{Run, Scenario, survives};
use crate::Handy as _;

pub const SCENARIOS: &[Scenario] = &[BOUND, EPHEMERAL, LOCAL];

const CLAIM_PROTECTION: &str = "persistentvolumeclaim-protection-controller";
const VOLUME_PROTECTION: &str = "persistentvolume-protection-controller";

const BOUND: Scenario = Scenario {
    identities: &["persistent-volume-binder", "pvc-protection-controller", "pv-protection-controller"],
    ..Scenario::of(&["persistentvolume-controller", CLAIM_PROTECTION, VOLUME_PROTECTION], |run| bound(run).boxed())
};
const EPHEMERAL: Scenario = Scenario {
    helpers: &["generic-garbage-collector", CLAIM_PROTECTION],
    ..Scenario::of(&["ephemeral-volume-controller"], |run| ephemeral(run).boxed())
};
/// Volumes are made under names that tell no run: of what the provisioner writes, only what it says of claims counts.
const LOCAL: Scenario = Scenario {
    helpers: &["persistentvolume-controller", CLAIM_PROTECTION, VOLUME_PROTECTION],
    ..Scenario::of(&["local-path-provisioner"], |run| local(run).boxed())
};

#[tokio::test(flavor = "multi_thread")]
async fn killed_volume_controllers_bind_and_let_go() {
    survives(BOUND).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_ephemeral_volume_controller_makes_claims() {
    survives(EPHEMERAL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_provisioner_grows_claims() {
    survives(LOCAL).await;
}

fn claim(name: &str, class: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class,
        "resources": {"requests": {"storage": "1Gi"}}}})
}

fn claim_is(phase: &str) -> impl Fn(&PersistentVolumeClaim) -> bool {
    move |claim| claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some(phase)
}

fn volume_is(phase: &str) -> impl Fn(&PersistentVolume) -> bool {
    move |volume| volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some(phase)
}

/// Volumes of a class of the run's own, so that no run takes another's.
async fn bound(run: Run) {
    for (volume, name) in [("going", "going"), ("kept", "kept")] {
        let volume = run.own(volume);
        let spec = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "storageClassName": run.name,
            "hostPath": {"path": "/data"}});
        run.cluster::<PersistentVolume>().make(json!({"metadata": {"name": volume}, "spec": spec})).await;
        run.until_key(&volume, volume_is("Available")).await;
        run.make::<PersistentVolumeClaim>(claim(name, &run.name)).await;
        run.until_get(name, claim_is("Bound")).await;
        run.until_key(&volume, volume_is("Bound")).await;
    }
    // A bound volume waits for its claim, and a retained one outlives it.
    run.cluster::<PersistentVolume>().remove(&run.own("going"), DeleteParams::default()).await;
    run.remove::<PersistentVolumeClaim>("going", DeleteParams::default()).await;
    run.remove::<PersistentVolumeClaim>("kept", DeleteParams::default()).await;
    run.until_gone_key::<PersistentVolume>(&run.own("going")).await;
    run.until_key(&run.own("kept"), volume_is("Released")).await;
    run.until_list::<PersistentVolumeClaim>("no claims", <[_]>::is_empty).await;
}

async fn ephemeral(run: Run) {
    let template = json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    for name in ["stays", "goes"] {
        let volumes: Vec<_> =
            ["a", "b"].map(|name| json!({"name": name, "ephemeral": {"volumeClaimTemplate": template}})).into();
        let spec = json!({"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "i"}],
            "volumes": volumes});
        run.make::<Pod>(json!({"metadata": {"name": name}, "spec": spec})).await;
    }
    run.until_list::<PersistentVolumeClaim>("four claims", |claims| claims.len() == 4).await;
    run.remove::<Pod>("goes", DeleteParams::default()).await;
    run.until_list::<PersistentVolumeClaim>("two claims", |claims| claims.len() == 2).await;
}

async fn local(run: Run) {
    let class = json!({"metadata": {"name": run.own("local")}, "provisioner": "isopod.io/local-path",
        "volumeBindingMode": "WaitForFirstConsumer", "allowVolumeExpansion": true});
    run.cluster::<StorageClass>().make(class).await;
    let directory = json!({"isopod.io/local-volumes": "/data"});
    run.cluster::<Node>().make(json!({"metadata": {"name": run.own("n"), "annotations": directory}})).await;
    // The scheduler's choice.
    let mut wanted = claim("data", &run.own("local"));
    wanted["metadata"]["annotations"] = json!({"volume.kubernetes.io/selected-node": run.own("n")});
    run.make::<PersistentVolumeClaim>(wanted).await;
    run.until_get("data", claim_is("Bound")).await;
    let size = json!({"spec": {"resources": {"requests": {"storage": "3Gi"}}}});
    run.merge::<PersistentVolumeClaim>("data", size).await;
    run.until_get::<PersistentVolumeClaim>("data", |claim| {
        let capacity = claim.status.as_ref().and_then(|status| status.capacity.as_ref());
        capacity.is_some_and(|capacity| capacity["storage"].0 == "3Gi")
    })
    .await;
}
