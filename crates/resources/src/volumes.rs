//! How claims and persistent volumes go together: the annotations they carry, their classes, and which volume serves a
//! claim. Pure.
//!
//! The binder and the scheduler must come to the same answer, so it is here, where both find it.

use std::cmp::Reverse;

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use machinery::labels::Selector;
use machinery::quantity::Quantity;

use crate::validate::quantity;

pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a volume: the provisioner that made it, and is to delete it.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// On a claim: the node that the scheduler chose for its first consumer.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On a claim: who is to provision it; the second one for old provisioners.
pub const PROVISIONER: [&str; 2] =
    ["volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"];
/// Claims and volumes named their class here before they had a field for it.
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";
pub const DEFAULT_CLASS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
/// The provisioner of classes whose volumes an administrator makes by hand.
pub const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

pub fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// The class a claim asks for; empty for none.
pub fn claim_class(claim: &PersistentVolumeClaim) -> &str {
    let field = || claim.spec.as_ref()?.storage_class_name.as_deref();
    annotation(&claim.metadata, CLASS).or_else(field).unwrap_or_default()
}

/// Whether a claim says anything of its class, be it that it wants none.
pub fn has_class(claim: &PersistentVolumeClaim) -> bool {
    annotation(&claim.metadata, CLASS).is_some()
        || claim.spec.as_ref().is_some_and(|spec| spec.storage_class_name.is_some())
}

pub fn volume_class(volume: &PersistentVolume) -> &str {
    let field = || volume.spec.as_ref()?.storage_class_name.as_deref();
    annotation(&volume.metadata, CLASS).or_else(field).unwrap_or_default()
}

/// The volume a claim names; empty for none.
pub fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default()
}

/// Whether the binder has done all it does for a claim.
pub fn is_fully_bound(claim: &PersistentVolumeClaim) -> bool {
    !volume_name(claim).is_empty() && annotation(&claim.metadata, BIND_COMPLETED).is_some()
}

/// Whether claims of a class wait until a pod that uses them has a node.
pub fn waits_for_consumer(class: &StorageClass) -> bool {
    class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
}

/// The class of claims that name none: the newest default; of two made at once the first by name.
pub fn default_class<'a>(classes: impl IntoIterator<Item = &'a StorageClass>) -> Option<&'a StorageClass> {
    let is_default =
        |class: &&StorageClass| DEFAULT_CLASS.iter().any(|key| annotation(&class.metadata, key) == Some("true"));
    let age = |class: &&StorageClass| (Reverse(class.metadata.creation_timestamp.clone()), class.metadata.name.clone());
    classes.into_iter().filter(is_default).min_by_key(age)
}

/// A claim that a pod uses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Use {
    pub claim: String,
    /// The claim is made for the pod, and goes with it.
    pub ephemeral: bool,
}

pub fn claims_of(pod: &Pod) -> Vec<Use> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let used = volumes.filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(source), _) => Some(Use { claim: source.claim_name.clone(), ephemeral: false }),
        (None, Some(_)) => Some(Use { claim: format!("{name}-{}", volume.name), ephemeral: true }),
        (None, None) => None,
    });
    used.collect()
}

/// Whether a volume is meant for a claim, already or by whoever made it.
pub fn is_meant_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let Some(reference) = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) else { return false };
    let meta = &claim.metadata;
    let same_uid = reference.uid.as_deref().is_none_or(|uid| uid.is_empty() || Some(uid) == meta.uid.as_deref());
    reference.name == meta.name && reference.namespace == meta.namespace && same_uid
}

/// The volume bound to the claim, if that needs any change.
pub fn bind_volume(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<PersistentVolume> {
    let meant = is_meant_for(volume, claim);
    let mut bound = volume.clone();
    let spec = bound.spec.get_or_insert_default();
    let (meta, before) = (&claim.metadata, spec.claim_ref.as_ref());
    if !meant || before.and_then(|reference| reference.uid.as_ref()) != meta.uid.as_ref() {
        spec.claim_ref = Some(ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("PersistentVolumeClaim".into()),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
            field_path: None,
        });
    }
    if !meant {
        let annotations = bound.metadata.annotations.get_or_insert_default();
        annotations.entry(BOUND_BY_CONTROLLER.into()).or_insert_with(|| "yes".into());
    }
    (bound != *volume).then_some(bound)
}

fn requested(claim: &PersistentVolumeClaim) -> Quantity {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    resources.and_then(|resources| quantity::get(resources.requests.as_ref(), "storage")).unwrap_or_default()
}

fn capacity(volume: &PersistentVolume) -> Quantity {
    let capacity = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref());
    quantity::get(capacity, "storage").unwrap_or_default()
}

/// Unset is a file system.
pub fn same_mode(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let mode = |mode: Option<&String>| mode.cloned().unwrap_or_else(|| "Filesystem".into());
    mode(volume.spec.as_ref().and_then(|spec| spec.volume_mode.as_ref()))
        == mode(claim.spec.as_ref().and_then(|spec| spec.volume_mode.as_ref()))
}

fn volume_modes(volume: &PersistentVolume) -> &[String] {
    volume.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default()
}

fn has_access_modes(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let wanted = claim.spec.iter().flat_map(|spec| spec.access_modes.iter().flatten());
    wanted.into_iter().all(|mode| volume_modes(volume).contains(mode))
}

fn same_attributes(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let text = |name: Option<&String>| name.cloned().unwrap_or_default();
    text(volume.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_ref()))
        == text(claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_ref()))
}

/// Why a volume that the claim names cannot serve it.
pub fn mismatch(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<&'static str> {
    if capacity(volume) < requested(claim) {
        Some("requested PV is too small")
    } else if volume_class(volume) != claim_class(claim) {
        Some("storageClassName does not match")
    } else if !same_attributes(volume, claim) {
        Some("volumeAttributesClassName does not match")
    } else if !same_mode(volume, claim) {
        Some("incompatible volumeMode")
    } else if !has_access_modes(volume, claim) {
        Some("incompatible accessMode")
    } else {
        None
    }
}

/// A claim's selector; absent, it selects every volume, unlike elsewhere.
fn selector(selector: Option<&LabelSelector>) -> Selector {
    let Some(selector) = selector else { return Selector::everything() };
    let value = serde_json::to_value(selector).unwrap_or_default();
    Selector::from_label_selector(&value).unwrap_or_else(|_| Selector::nothing())
}

/// Where a claim looks for a volume.
pub enum Search<'a> {
    /// Anywhere: what the binder does at once.
    Anywhere,
    /// Only what is meant for the claim: the scheduler chooses among the others.
    Reserved,
    /// Within reach of a node, which this tells.
    Reachable(&'a dyn Fn(&PersistentVolume) -> bool),
}

/// The volume that serves a claim best: one meant for it, or else the one with the fewest access modes, and the smallest.
pub fn best<'a>(
    claim: &PersistentVolumeClaim,
    volumes: impl IntoIterator<Item = &'a PersistentVolume>,
    search: &Search<'_>,
) -> Option<&'a PersistentVolume> {
    let selector = selector(claim.spec.as_ref().and_then(|spec| spec.selector.as_ref()));
    let reachable = |volume: &PersistentVolume| match search {
        Search::Reachable(reaches) => reaches(volume),
        Search::Anywhere | Search::Reserved => true,
    };
    let fits = |volume: &&PersistentVolume| {
        let taken = volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_some());
        (!taken || is_meant_for(volume, claim))
            && volume.metadata.deletion_timestamp.is_none()
            && capacity(volume) >= requested(claim)
            && same_mode(volume, claim)
            && same_attributes(volume, claim)
            && has_access_modes(volume, claim)
    };
    let is_free = |volume: &PersistentVolume| {
        !matches!(search, Search::Reserved)
            && volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Available")
            && selector.matches_map(volume.metadata.labels.as_ref().unwrap_or(&Default::default()))
            && volume_class(volume) == claim_class(claim)
            && reachable(volume)
    };
    let (meant, free): (Vec<_>, Vec<_>) =
        volumes.into_iter().filter(fits).partition(|volume| is_meant_for(volume, claim));
    if let Some(meant) = meant.into_iter().min_by_key(|volume| volume.metadata.name.as_ref()) {
        return Some(meant).filter(|volume| reachable(volume));
    }
    let free = free.into_iter().filter(|volume| is_free(volume));
    free.min_by_key(|volume| (volume_modes(volume).len(), capacity(volume), volume.metadata.name.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn claim(spec: Value) -> PersistentVolumeClaim {
        let mut claim = json!({"metadata": {"name": "c", "namespace": "ns", "uid": "1"},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "resources": {"requests": {"storage": "5Gi"}}}});
        claim["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(claim).unwrap()
    }

    fn volume(name: &str, size: &str, spec: Value) -> PersistentVolume {
        let mut volume = json!({"metadata": {"name": name, "labels": {"disk": name}}, "status": {"phase": "Available"},
            "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": size}}});
        volume["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(volume).unwrap()
    }

    #[test]
    fn the_best_volume() {
        let all = [
            volume("tiny", "1Gi", json!({})),
            volume("large", "20Gi", json!({})),
            volume("fits", "10Gi", json!({})),
            volume("many", "5Gi", json!({"accessModes": ["ReadWriteOnce", "ReadWriteMany"]})),
            volume("block", "5Gi", json!({"volumeMode": "Block"})),
            volume("fast", "5Gi", json!({"storageClassName": "fast"})),
            volume("taken", "5Gi", json!({"claimRef": {"name": "other", "namespace": "ns", "uid": "2"}})),
            volume("mine", "50Gi", json!({"claimRef": {"name": "mine", "namespace": "ns"}})),
            volume("stale", "5Gi", json!({"claimRef": {"name": "c", "namespace": "ns", "uid": "0"}})),
        ];
        let anywhere = Search::Anywhere;
        let chosen = |claim: &PersistentVolumeClaim, search: &Search<'_>| {
            best(claim, &all, search).map(|volume| volume.metadata.name.clone().unwrap()).unwrap_or_default()
        };
        let mut named = claim(json!({}));
        named.metadata.name = Some("mine".into());
        for (claim, expected) in [
            (claim(json!({})), "fits"),
            (claim(json!({"accessModes": ["ReadWriteMany"]})), "many"),
            (claim(json!({"volumeMode": "Block"})), "block"),
            (claim(json!({"storageClassName": "fast"})), "fast"),
            (claim(json!({"storageClassName": "slow"})), ""),
            (claim(json!({"selector": {"matchLabels": {"disk": "large"}}})), "large"),
            (claim(json!({"resources": {"requests": {"storage": "100Gi"}}})), ""),
            (claim(json!({"accessModes": ["ReadWriteOncePod"]})), ""),
            (named.clone(), "mine"),
        ] {
            assert_eq!(chosen(&claim, &anywhere), expected, "{claim:?}");
        }
        // The binder leaves a waiting claim what is meant for it, and nothing else.
        assert_eq!(
            (chosen(&claim(json!({})), &Search::Reserved), chosen(&named, &Search::Reserved)),
            ("".into(), "mine".into())
        );
        let only = |name: &'static str| move |volume: &PersistentVolume| volume.metadata.name.as_deref() == Some(name);
        assert_eq!(chosen(&claim(json!({})), &Search::Reachable(&only("large"))), "large");
        assert_eq!(chosen(&named, &Search::Reachable(&only("large"))), "", "what is meant for it is out of reach");
    }

    #[test]
    fn binding_marks_what_the_controller_chose() {
        let claim = claim(json!({}));
        let free = bind_volume(&volume("v", "5Gi", json!({})), &claim).unwrap();
        assert_eq!(annotation(&free.metadata, BOUND_BY_CONTROLLER), Some("yes"));
        assert_eq!(free.spec.as_ref().unwrap().claim_ref.as_ref().unwrap().uid.as_deref(), Some("1"));
        assert_eq!(bind_volume(&free, &claim), None, "nothing left to do");
        let reserved = volume("v", "5Gi", json!({"claimRef": {"name": "c", "namespace": "ns"}}));
        let bound = bind_volume(&reserved, &claim).unwrap();
        assert_eq!(annotation(&bound.metadata, BOUND_BY_CONTROLLER), None, "its user chose it");
    }

    #[test]
    fn the_newest_default_class_wins() {
        let class = |name: &str, time: &str, default: &str| -> StorageClass {
            serde_json::from_value(json!({"provisioner": "p", "metadata": {"name": name, "creationTimestamp": time,
                "annotations": {DEFAULT_CLASS[0]: default}}}))
            .unwrap()
        };
        let classes = [
            class("old", "2024-01-01T00:00:00Z", "true"),
            class("b", "2024-02-01T00:00:00Z", "true"),
            class("a", "2024-02-01T00:00:00Z", "true"),
            class("none", "2024-03-01T00:00:00Z", "false"),
        ];
        assert_eq!(default_class(&classes).unwrap().metadata.name.as_deref(), Some("a"));
        assert!(default_class(&classes[3..]).is_none());
    }
}
