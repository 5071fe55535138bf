//! Which volume a claim gets, and what is due for a volume that is no longer needed. Pure.

use k8s_openapi::api::core::v1::{
    LocalVolumeSource, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, ObjectReference,
    PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, VolumeNodeAffinity,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use kube::core::ObjectMeta;
use machinery::quantity::Quantity;
use resources::volumes::{self, PROVISIONED_BY, annotation};

use super::{NODE, NODE_DIRECTORY, PROVISIONER};

/// Keeps a volume that its user deletes until its directory is gone.
pub const FINALIZER: &str = "external-provisioner.volume.kubernetes.io/finalizer";
const HOSTNAME: &str = "kubernetes.io/hostname";

/// Why there is no volume for a claim.
#[derive(Debug, PartialEq)]
pub enum Refusal {
    /// Another node may do.
    Node(String),
    Claim(&'static str),
}

impl Refusal {
    pub fn text(&self) -> &str {
        match self {
            Refusal::Node(text) => text,
            Refusal::Claim(text) => text,
        }
    }
}

pub fn is_ours_to_provision(claim: &PersistentVolumeClaim) -> bool {
    volumes::volume_name(claim).is_empty()
        && claim.metadata.deletion_timestamp.is_none()
        && volumes::PROVISIONER.iter().any(|key| annotation(&claim.metadata, key) == Some(PROVISIONER))
}

pub fn volume(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    node: Option<&Node>,
) -> Result<PersistentVolume, Refusal> {
    let spec = claim.spec.clone().unwrap_or_default();
    let on_one_node = |mode: &String| matches!(mode.as_str(), "ReadWriteOnce" | "ReadWriteOncePod");
    if !spec.access_modes.iter().flatten().all(on_one_node) {
        return Err(Refusal::Claim("NodePath only supports ReadWriteOnce and ReadWriteOncePod (1.22+) access modes"));
    }
    if spec.selector.is_some() {
        return Err(Refusal::Claim("claim.Spec.Selector is not supported"));
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err(Refusal::Claim("block volumes are not supported"));
    }
    if annotation(&claim.metadata, volumes::SELECTED_NODE).is_none_or(str::is_empty) {
        return Err(Refusal::Claim("configuration error, no node was specified"));
    }
    let Some(node) = node else {
        return Err(Refusal::Node("failed to get target node: the selected node does not exist".into()));
    };
    let node_name = node.metadata.name.clone().unwrap_or_default();
    let Some(root) = annotation(&node.metadata, NODE_DIRECTORY) else {
        return Err(Refusal::Node(format!("node {node_name} offers no directory for local volumes")));
    };
    let hostname = node.metadata.labels.as_ref().and_then(|labels| labels.get(HOSTNAME)).unwrap_or(&node_name).clone();
    let [uid, namespace, claim_name] = [&claim.metadata.uid, &claim.metadata.namespace, &claim.metadata.name]
        .map(|text| text.as_deref().unwrap_or_default());
    let name = format!("pvc-{uid}");
    let requirement =
        NodeSelectorRequirement { key: HOSTNAME.into(), operator: "In".into(), values: Some(vec![hostname]) };
    let term = NodeSelectorTerm { match_expressions: Some(vec![requirement]), match_fields: None };
    let requests = spec.resources.and_then(|resources| resources.requests).unwrap_or_default();
    Ok(PersistentVolume {
        metadata: ObjectMeta {
            annotations: Some([(PROVISIONED_BY.into(), PROVISIONER.into()), (NODE.into(), node_name)].into()),
            finalizers: Some(vec![FINALIZER.into()]),
            name: Some(name.clone()),
            ..Default::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: spec.access_modes,
            capacity: Some(requests.into_iter().filter(|(name, _)| name == "storage").collect()),
            claim_ref: Some(ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("PersistentVolumeClaim".into()),
                namespace: claim.metadata.namespace.clone(),
                name: claim.metadata.name.clone(),
                uid: claim.metadata.uid.clone(),
                resource_version: claim.metadata.resource_version.clone(),
                field_path: None,
            }),
            local: Some(LocalVolumeSource { path: format!("{root}/{name}_{namespace}_{claim_name}"), fs_type: None }),
            mount_options: class.mount_options.clone(),
            node_affinity: Some(VolumeNodeAffinity {
                required: Some(NodeSelector { node_selector_terms: vec![term] }),
            }),
            persistent_volume_reclaim_policy: class.reclaim_policy.clone(),
            storage_class_name: Some(volumes::claim_class(claim).to_owned()),
            volume_attributes_class_name: spec.volume_attributes_class_name,
            volume_mode: spec.volume_mode,
            ..Default::default()
        }),
        status: None,
    })
}

fn is_ours(volume: &PersistentVolume) -> bool {
    annotation(&volume.metadata, PROVISIONED_BY) == Some(PROVISIONER)
}

/// The size a bound claim asks for and does not have.
pub fn growth(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Option<Text> {
    if !is_ours(volume) || !volumes::is_meant_for(volume, claim) || !volumes::is_fully_bound(claim) {
        return None;
    }
    let asked = claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get("storage")?;
    let has = claim.status.as_ref()?.capacity.as_ref()?.get("storage")?;
    let parse = |text: &Text| Quantity::parse(&text.0).unwrap_or_default();
    (parse(asked) > parse(has)).then(|| asked.clone())
}

/// What is due for a volume.
#[derive(Debug, PartialEq)]
pub enum Reclaim<'a> {
    Nothing,
    /// Deleted by its user, who keeps the data.
    LetGo,
    Delete {
        node: &'a str,
        directory: &'a str,
    },
}

pub fn reclaim(volume: &PersistentVolume) -> Reclaim<'_> {
    let Some(spec) = volume.spec.as_ref().filter(|_| is_ours(volume)) else { return Reclaim::Nothing };
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    let deleted = volume.metadata.deletion_timestamp.is_some();
    match (spec.persistent_volume_reclaim_policy.as_deref(), phase) {
        (Some("Delete"), "Released" | "Failed") => {
            let directory = spec.local.as_ref().and_then(|local| local.path.rsplit('/').next());
            let place = annotation(&volume.metadata, NODE).zip(directory);
            place.map_or(Reclaim::LetGo, |(node, directory)| Reclaim::Delete { node, directory })
        }
        (_, phase) if deleted && phase != "Bound" => Reclaim::LetGo,
        _ => Reclaim::Nothing,
    }
}
