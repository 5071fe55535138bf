//! Who a StatefulSet's pods are: names, labels, host names and claims, all by ordinal. Pure.

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::common::history::POD_REVISION;
use crate::common::template;

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// The ordinal in the name of a pod of the set.
pub fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let number = pod.metadata.name.as_deref()?.strip_prefix(set.metadata.name.as_deref()?)?.strip_prefix('-')?;
    number.bytes().all(|digit| digit.is_ascii_digit()).then(|| number.parse().ok())?
}

pub fn pod_name(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", set.metadata.name.as_deref().unwrap_or_default())
}

pub fn pod(set: &StatefulSet, spec: &StatefulSetSpec, template: &PodTemplateSpec, ordinal: i32, revision: &str) -> Pod {
    let owner = client::owner_reference(set);
    let mut pod = template::pod(template, owner, set.metadata.namespace.as_deref().unwrap_or_default());
    let name = pod_name(set, ordinal);
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(name.clone());
    identify(&mut pod, ordinal);
    pod.metadata.labels = Some(template::with_label(pod.metadata.labels.take(), POD_REVISION, revision));
    let pod_spec = pod.spec.get_or_insert_default();
    pod_spec.hostname = Some(name);
    pod_spec.subdomain = spec.service_name.clone();
    let claims = claims(set, spec, ordinal);
    if !claims.is_empty() {
        let volumes = pod_spec.volumes.get_or_insert_default();
        volumes.retain(|volume| !claims.iter().any(|(template, _)| *template == volume.name));
        volumes.extend(claims.into_iter().map(|(template, claim)| Volume {
            name: template,
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim.metadata.name.unwrap_or_default(),
                read_only: Some(false),
            }),
            ..Default::default()
        }));
    }
    pod
}

/// Gives a pod the labels of its ordinal. Tells whether it lacked them.
pub fn identify(pod: &mut Pod, ordinal: i32) -> bool {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let labels = pod.metadata.labels.get_or_insert_default();
    let mut changed = false;
    for (key, value) in [(POD_NAME, name), (POD_INDEX, ordinal.to_string())] {
        changed |= labels.insert(key.to_owned(), value.clone()) != Some(value);
    }
    changed
}

/// The claims of an ordinal, each with the name of its template.
pub fn claims(set: &StatefulSet, spec: &StatefulSetSpec, ordinal: i32) -> Vec<(String, PersistentVolumeClaim)> {
    let claim = |template: &PersistentVolumeClaim| {
        let name = template.metadata.name.clone().unwrap_or_default();
        let mut labels = template.metadata.labels.clone().unwrap_or_default();
        labels.extend(spec.selector.match_labels.clone().unwrap_or_default());
        let metadata = ObjectMeta {
            name: Some(format!("{name}-{}", pod_name(set, ordinal))),
            namespace: set.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: template.metadata.annotations.clone(),
            ..Default::default()
        };
        (name, PersistentVolumeClaim { metadata, spec: template.spec.clone(), status: None })
    };
    spec.volume_claim_templates.iter().flatten().map(claim).collect()
}

/// The owners a claim should have, given those it has: by the retention policy the set, or for a pod that is scaled away
/// the pod. Owners from elsewhere stay.
pub fn claim_owners(
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    pod: Option<&Pod>,
    condemned: bool,
    owners: &[OwnerReference],
) -> Vec<OwnerReference> {
    let policy = spec.persistent_volume_claim_retention_policy.clone().unwrap_or_default();
    let deletes = |when: &Option<String>| when.as_deref() == Some("Delete");
    let with_pod = condemned && deletes(&policy.when_scaled);
    let set_reference = client::owner_reference(set);
    let is_pod = |owner: &OwnerReference| {
        owner.kind == "Pod" && pod.is_none_or(|pod| Some(&owner.name) == pod.metadata.name.as_ref())
    };
    let mut wanted: Vec<_> =
        owners.iter().filter(|owner| owner.uid != set_reference.uid && !is_pod(owner)).cloned().collect();
    match pod.filter(|_| with_pod) {
        Some(pod) => wanted.push(client::owner_reference(pod)),
        None if deletes(&policy.when_deleted) => wanted.push(set_reference),
        None => {}
    }
    wanted
}
