//! Volumes for claims, and their end.

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::{Value, json};

use super::plan::{Reclaim, Refusal, growth, reclaim, volume};

fn claim(spec: Value) -> PersistentVolumeClaim {
    let mut claim = json!({"metadata": {"name": "c", "namespace": "ns", "uid": "1",
        "annotations": {"volume.kubernetes.io/selected-node": "n", "pv.kubernetes.io/bind-completed": "yes"}},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "local-path", "volumeName": "pvc-1",
            "resources": {"requests": {"storage": "1Gi"}}}});
    claim["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    serde_json::from_value(claim).unwrap()
}

fn class() -> StorageClass {
    serde_json::from_value(json!({"metadata": {"name": "local-path"}, "provisioner": "isopod.io/local-path",
        "reclaimPolicy": "Delete"}))
    .unwrap()
}

fn node(directory: Value) -> Node {
    serde_json::from_value(json!({"metadata": {"name": "n", "labels": {"kubernetes.io/hostname": "host"},
        "annotations": {"isopod.io/local-volumes": directory}}}))
    .unwrap()
}

fn made() -> PersistentVolume {
    volume(&claim(json!({})), &class(), Some(&node(json!("/data")))).unwrap()
}

#[test]
fn volumes_are_directories_of_the_selected_node() {
    let made = serde_json::to_value(made()).unwrap();
    assert_eq!(made["metadata"]["name"], "pvc-1");
    assert_eq!(made["metadata"]["annotations"]["pv.kubernetes.io/provisioned-by"], "isopod.io/local-path");
    assert_eq!(made["spec"]["local"]["path"], "/data/pvc-1_ns_c");
    assert_eq!(made["spec"]["capacity"], json!({"storage": "1Gi"}));
    assert_eq!(made["spec"]["claimRef"]["uid"], "1");
    assert_eq!(made["spec"]["persistentVolumeReclaimPolicy"], "Delete");
    let term = &made["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0];
    assert_eq!(*term, json!({"key": "kubernetes.io/hostname", "operator": "In", "values": ["host"]}));
}

#[test]
fn what_cannot_be_is_refused() {
    let refused = |spec: Value| volume(&claim(spec), &class(), Some(&node(json!("/data")))).unwrap_err();
    let modes = "NodePath only supports ReadWriteOnce and ReadWriteOncePod (1.22+) access modes";
    assert_eq!(refused(json!({"accessModes": ["ReadWriteMany"]})), Refusal::Claim(modes));
    assert!(matches!(refused(json!({"volumeMode": "Block"})), Refusal::Claim(_)));
    assert!(matches!(refused(json!({"selector": {}})), Refusal::Claim(_)));
    let plain: Node = serde_json::from_value(json!({"metadata": {"name": "n"}})).unwrap();
    for node in [None, Some(&plain)] {
        assert!(matches!(volume(&claim(json!({})), &class(), node), Err(Refusal::Node(_))), "{node:?}");
    }
}

#[test]
fn released_volumes_are_deleted_where_they_are() {
    let state = |phase: &str, policy: &str, deleted: bool| {
        let mut volume = made();
        volume.status.get_or_insert_default().phase = Some(phase.into());
        volume.spec.as_mut().unwrap().persistent_volume_reclaim_policy = Some(policy.into());
        volume.metadata.deletion_timestamp =
            deleted.then(|| serde_json::from_value(json!("2024-01-01T00:00:00Z")).unwrap());
        volume
    };
    let delete = Reclaim::Delete { node: "n", directory: "pvc-1_ns_c" };
    assert_eq!(reclaim(&state("Released", "Delete", false)), delete);
    assert_eq!(reclaim(&state("Released", "Delete", true)), delete);
    assert_eq!(reclaim(&state("Released", "Retain", false)), Reclaim::Nothing);
    assert_eq!(reclaim(&state("Released", "Retain", true)), Reclaim::LetGo);
    assert_eq!(reclaim(&state("Bound", "Delete", true)), Reclaim::Nothing);
    let mut foreign = state("Released", "Delete", false);
    foreign.metadata.annotations = None;
    assert_eq!(reclaim(&foreign), Reclaim::Nothing);
}

#[test]
fn claims_grow() {
    let asks = |size: &str| {
        let mut claim = claim(json!({"resources": {"requests": {"storage": size}}}));
        claim.status = serde_json::from_value(json!({"phase": "Bound", "capacity": {"storage": "1Gi"}})).unwrap();
        claim
    };
    assert_eq!(growth(&asks("1024Mi"), &made()), None);
    assert_eq!(growth(&asks("2Gi"), &made()).unwrap().0, "2Gi");
    let mut foreign = made();
    foreign.metadata.annotations = None;
    assert_eq!(growth(&asks("2Gi"), &foreign), None);
}
