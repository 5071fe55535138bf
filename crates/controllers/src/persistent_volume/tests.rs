//! Every state that a claim and a volume can be in, and where it leads.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::{Value, json};

use super::plan::{self, ClaimStep, VolumeStep, World};

fn merge(object: &mut Value, change: Value) {
    match (object, change) {
        (Value::Object(object), Value::Object(change)) => {
            change.into_iter().for_each(|(key, value)| merge(object.entry(key).or_insert(Value::Null), value));
        }
        (object, change) => *object = change,
    }
}

fn claim(change: Value) -> PersistentVolumeClaim {
    let mut claim = json!({"metadata": {"name": "c", "namespace": "ns", "uid": "1"}, "status": {"phase": "Pending"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "resources": {"requests": {"storage": "1Gi"}}}});
    merge(&mut claim, change);
    serde_json::from_value(claim).unwrap()
}

fn volume(change: Value) -> PersistentVolume {
    let mut volume = json!({"metadata": {"name": "v"}, "status": {"phase": "Available"},
        "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}}});
    merge(&mut volume, change);
    serde_json::from_value(volume).unwrap()
}

fn class(name: &str, provisioner: &str, mode: &str, default: &str) -> Arc<StorageClass> {
    let annotations = json!({"storageclass.kubernetes.io/is-default-class": default});
    let class = json!({"metadata": {"name": name, "annotations": annotations}, "provisioner": provisioner,
        "volumeBindingMode": mode});
    Arc::new(serde_json::from_value(class).unwrap())
}

/// The steps in words.
fn claim_steps(claim: &PersistentVolumeClaim, volumes: Vec<PersistentVolume>, classes: &[Arc<StorageClass>]) -> String {
    let volumes: Vec<_> = volumes.into_iter().map(Arc::new).collect();
    let named = claim.spec.as_ref().unwrap().volume_name.clone().unwrap_or_default();
    let world = World {
        named: volumes.iter().find(|volume| volume.metadata.name.as_ref() == Some(&named)).cloned(),
        volumes: &|| volumes.clone(),
        classes,
        waiting: &|| claim.metadata.labels.iter().flatten().map(|(pod, _)| pod.clone()).collect(),
    };
    let steps = match plan::claim(claim, &world) {
        Ok(steps) => steps,
        Err(error) => return format!("error: {error}"),
    };
    let told = |step: &ClaimStep| match step {
        ClaimStep::Bind(volume) => format!("bind {}", volume.metadata.name.as_ref().unwrap()),
        ClaimStep::Update(claim) => {
            let provisioner =
                claim.metadata.annotations.iter().flatten().find(|(key, _)| key.ends_with("storage-provisioner"));
            let class = claim.spec.as_ref().unwrap().storage_class_name.clone().unwrap_or_default();
            format!("update {class} {}", provisioner.map_or("", |(_, value)| value))
        }
        ClaimStep::Tell(report) => format!("{}: {}", report.reason, report.message),
        ClaimStep::Phase(phase, report) => {
            format!("{phase} {}", report.as_ref().map_or("", |report| report.reason))
        }
    };
    steps.iter().map(told).collect::<Vec<_>>().join("; ").trim().to_owned()
}

#[test]
fn claims() {
    let classes = [
        class("waits", "x", "WaitForFirstConsumer", "false"),
        class("now", "x.io/y", "Immediate", "false"),
        class("manual", "kubernetes.io/no-provisioner", "Immediate", "false"),
    ];
    let free = || volume(json!({}));
    let owned =
        |uid: Value, name: &str| volume(json!({"spec": {"claimRef": {"name": name, "namespace": "ns", "uid": uid}}}));
    let of_class = |class: Value| claim(json!({"spec": {"storageClassName": class}}));
    let named =
        |annotations: Value| claim(json!({"metadata": {"annotations": annotations}, "spec": {"volumeName": "v"}}));
    let bound = || named(json!({"pv.kubernetes.io/bind-completed": "yes"}));
    let external = "ExternalProvisioning: Waiting for a volume to be created either by the external provisioner 'x.io/y' or \
        manually by the system administrator. If volume creation is delayed, please verify that the provisioner is \
        running and correctly registered.";
    let provisioner = json!({"volume.kubernetes.io/storage-provisioner": "x.io/y",
        "volume.beta.kubernetes.io/storage-provisioner": "x.io/y"});
    let asked = claim(json!({"metadata": {"annotations": provisioner}, "spec": {"storageClassName": "now"}}));
    let waiting = |pods: Value| claim(json!({"metadata": {"labels": pods}, "spec": {"storageClassName": "waits"}}));
    let no_volume =
        "FailedBinding: no persistent volumes available for this claim and no storage class is set; Pending";
    let table = [
        (claim(json!({})), vec![free()], "bind v".to_owned()),
        (claim(json!({})), vec![], no_volume.into()),
        (of_class(json!(null)), vec![], no_volume.into()),
        (claim(json!({})), vec![owned(json!("2"), "other")], no_volume.into()),
        (claim(json!({})), vec![owned(json!(null), "c")], "bind v".into()),
        (
            of_class(json!("gone")),
            vec![],
            "ProvisioningFailed: storageclass.storage.k8s.io \"gone\" not found; Pending".into(),
        ),
        (of_class(json!("now")), vec![], format!("update now x.io/y; {external}")),
        (asked, vec![], external.into()),
        (
            of_class(json!("manual")),
            vec![],
            "ProvisioningFailed: no volume plugin matched name: kubernetes.io/no-provisioner; Pending".into(),
        ),
        (
            waiting(json!({})),
            vec![volume(json!({"spec": {"storageClassName": "waits"}}))],
            "WaitForFirstConsumer: waiting for first consumer to be created before binding; Pending".into(),
        ),
        (waiting(json!({"p": ""})), vec![], "WaitForPodScheduled: waiting for pod p to be scheduled; Pending".into()),
        (
            waiting(json!({"p": "", "q": ""})),
            vec![],
            "WaitForPodScheduled: waiting for pods p,q to be scheduled; Pending".into(),
        ),
        (named(json!({})), vec![], "Pending".into()),
        (named(json!({})), vec![free()], "bind v".into()),
        (named(json!({})), vec![owned(json!(null), "c")], "bind v".into()),
        (
            named(json!({})),
            vec![volume(json!({"spec": {"capacity": {"storage": "1Mi"}}}))],
            "VolumeMismatch: Cannot bind to requested volume \"v\": requested PV is too small; Pending".into(),
        ),
        (
            named(json!({})),
            vec![owned(json!("2"), "other")],
            "FailedBinding: volume \"v\" already bound to a different claim.; Pending".into(),
        ),
        (
            named(json!({"pv.kubernetes.io/bound-by-controller": "yes"})),
            vec![owned(json!("2"), "other")],
            "error: invalid binding of claim \"ns/c\" to volume \"v\": volume already claimed by \"ns/other\"".into(),
        ),
        (bound(), vec![owned(json!("1"), "c")], "bind v".into()),
        (bound(), vec![free()], "bind v".into()),
        (bound(), vec![], "Lost ClaimLost".into()),
        (bound(), vec![owned(json!("2"), "c")], "Lost ClaimMisbound".into()),
    ];
    for (claim, volumes, expected) in table {
        assert_eq!(claim_steps(&claim, volumes, &classes), expected, "{claim:?}");
    }
    let mut selected = waiting(json!({}));
    selected.metadata.annotations = Some([("volume.kubernetes.io/selected-node".into(), "n".into())].into());
    assert!(claim_steps(&selected, vec![], &classes).starts_with("update waits x; ExternalProvisioning"));
    let default = [class("standard", "x", "Immediate", "true")];
    assert_eq!(claim_steps(&of_class(json!(null)), vec![], &default), "update standard");
    assert_eq!(claim_steps(&claim(json!({})), vec![], &default), no_volume, "it asked for no class");
}

#[test]
fn volumes() {
    let steps = |change: Value, claim: Option<PersistentVolumeClaim>| {
        let told = |step: &VolumeStep| match step {
            VolumeStep::Phase(phase, report) => {
                format!("{phase} {}", report.as_ref().map_or("", |report| report.reason)).trim().to_owned()
            }
            VolumeStep::Unbind => "unbind".into(),
            VolumeStep::LookAtClaim => "look".into(),
            VolumeStep::Tell(report) => format!("tell {}", report.reason),
            VolumeStep::TellClaim(report) => format!("tell claim {}", report.reason),
        };
        plan::volume(&volume(change), claim.as_ref()).iter().map(told).collect::<Vec<_>>().join("; ")
    };
    let reference = |uid: Value, more: Value| {
        let mut change = json!({"spec": {"claimRef": {"name": "c", "namespace": "ns", "uid": uid}}});
        merge(&mut change, more);
        change
    };
    let policy = |policy: &str| json!({"spec": {"persistentVolumeReclaimPolicy": policy}});
    let provisioned = json!({"metadata": {"annotations": {"pv.kubernetes.io/provisioned-by": "x"}},
        "spec": {"persistentVolumeReclaimPolicy": "Delete"}});
    let bound_to = |name: &str| Some(claim(json!({"spec": {"volumeName": name}})));
    for (change, claim, expected) in [
        (json!({}), None, "Available"),
        (reference(json!(null), json!({})), None, "Available"),
        (reference(json!("1"), json!({})), bound_to("v"), "Bound"),
        (reference(json!("1"), json!({})), bound_to(""), "look"),
        (
            reference(json!("1"), json!({"spec": {"volumeMode": "Block"}})),
            bound_to(""),
            "tell VolumeMismatch; tell claim VolumeMismatch",
        ),
        (reference(json!("1"), json!({})), bound_to("other"), "unbind"),
        (reference(json!("1"), provisioned.clone()), bound_to("other"), "Released"),
        (reference(json!("0"), json!({})), bound_to("v"), "Released"),
        (reference(json!("1"), policy("Retain")), None, "Released"),
        (reference(json!("1"), provisioned), None, "Released"),
        (reference(json!("1"), policy("Delete")), None, "Released; Failed VolumeFailedDelete"),
        (reference(json!("1"), policy("Recycle")), None, "Released; Failed VolumeFailedRecycle"),
        (reference(json!("1"), json!({"status": {"phase": "Failed"}})), None, ""),
    ] {
        assert_eq!(steps(change.clone(), claim), expected, "{change}");
    }
}

#[test]
fn bound_claims_show_what_they_have() {
    let volume = volume(json!({"spec": {"capacity": {"storage": "5Gi"}}}));
    let bound = plan::bind_claim(&claim(json!({})), &volume).unwrap();
    let annotations: Vec<_> = bound.metadata.annotations.as_ref().unwrap().keys().map(String::as_str).collect();
    assert_eq!(annotations, ["pv.kubernetes.io/bind-completed", "pv.kubernetes.io/bound-by-controller"]);
    assert_eq!(bound.spec.as_ref().unwrap().volume_name.as_deref(), Some("v"));
    assert_eq!(plan::bind_claim(&bound, &volume), None);
    let chosen = plan::bind_claim(&claim(json!({"spec": {"volumeName": "v"}})), &volume).unwrap();
    assert_eq!(chosen.metadata.annotations.unwrap().len(), 1, "its user chose the volume");

    let shown = plan::claim_status(&bound, "Bound", Some(&volume)).unwrap();
    assert_eq!(shown.status.as_ref().unwrap().capacity.as_ref().unwrap()["storage"].0, "5Gi");
    assert_eq!(plan::claim_status(&shown, "Bound", Some(&volume)), None);
    let lost = plan::claim_status(&shown, "Lost", None).unwrap().status.unwrap();
    assert_eq!((lost.phase.as_deref(), lost.capacity, lost.access_modes), (Some("Lost"), None, None));
}

#[test]
fn unbinding_keeps_what_its_user_reserved() {
    let reference = json!({"name": "c", "namespace": "ns", "uid": "1"});
    let reserved = plan::unbind(&volume(json!({"spec": {"claimRef": reference}})));
    let reference_left = reserved.spec.unwrap().claim_ref.unwrap();
    assert_eq!((reference_left.name.as_deref(), reference_left.uid), (Some("c"), None));
    let annotations = json!({"pv.kubernetes.io/bound-by-controller": "yes"});
    let ours = volume(json!({"metadata": {"annotations": annotations}, "spec": {"claimRef": reference}}));
    assert!(plan::unbind(&ours).spec.unwrap().claim_ref.is_none());
}
