//! What the binder is to do about one claim or one volume. Pure.
//!
//! A binding is written in two objects, one after the other, and may stop between any two writes: every state in between
//! is planned for, and leads on.

use std::sync::Arc;

use client::EventType::{self, Normal, Warning};
use k8s_openapi::api::core::v1::{PersistentVolume as Volume, PersistentVolumeClaim as Claim};
use k8s_openapi::api::storage::v1::StorageClass;
use resources::volumes::{
    self, BIND_COMPLETED, BOUND_BY_CONTROLLER, PROVISIONED_BY, PROVISIONER, SELECTED_NODE, Search, annotation,
};

#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    pub kind: EventType,
    pub reason: &'static str,
    pub message: String,
}

fn report(kind: EventType, reason: &'static str, message: impl Into<String>) -> Report {
    Report { kind, reason, message: message.into() }
}

/// What is to be done about a claim.
#[derive(Debug, PartialEq)]
pub enum ClaimStep {
    /// Claim and volume refer to each other, and both show it.
    Bind(Arc<Volume>),
    Update(Box<Claim>),
    Tell(Report),
    /// Reported only if it is a change.
    Phase(&'static str, Option<Report>),
}

/// What is to be done about a volume.
#[derive(Debug, PartialEq)]
pub enum VolumeStep {
    /// Reported only if it is a change.
    Phase(&'static str, Option<Report>),
    /// Frees the volume for others, but for the claim its maker reserved it for.
    Unbind,
    /// The binding goes on with its claim.
    LookAtClaim,
    Tell(Report),
    TellClaim(Report),
}

/// What a claim's plan depends on.
pub struct World<'a> {
    /// The volume that the claim names, if it exists.
    pub named: Option<Arc<Volume>>,
    pub volumes: &'a dyn Fn() -> Vec<Arc<Volume>>,
    pub classes: &'a [Arc<StorageClass>],
    /// Names of the pods that use the claim and have no node.
    pub waiting: &'a dyn Fn() -> Vec<String>,
}

impl World<'_> {
    fn class(&self, name: &str) -> Option<&StorageClass> {
        let found = self.classes.iter().find(|class| class.metadata.name.as_deref() == Some(name));
        found.map(AsRef::as_ref)
    }
}

pub fn claim(claim: &Claim, world: &World<'_>) -> anyhow::Result<Vec<ClaimStep>> {
    match annotation(&claim.metadata, BIND_COMPLETED) {
        Some(_) => Ok(vec![bound(claim, world)]),
        None if volumes::volume_name(claim).is_empty() => Ok(unbound(claim, world)),
        None => named(claim, world),
    }
}

fn bound(claim: &Claim, world: &World<'_>) -> ClaimStep {
    let lost = |reason, message: &str| ClaimStep::Phase("Lost", Some(report(Warning, reason, message)));
    if volumes::volume_name(claim).is_empty() {
        let text = "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!";
        return lost("ClaimLost", text);
    }
    let Some(volume) = &world.named else {
        return lost("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!");
    };
    match claim_ref(volume) {
        Some(reference) if reference.uid != claim.metadata.uid => {
            lost("ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly")
        }
        _ => ClaimStep::Bind(volume.clone()),
    }
}

fn claim_ref(volume: &Volume) -> Option<&k8s_openapi::api::core::v1::ObjectReference> {
    volume.spec.as_ref()?.claim_ref.as_ref()
}

/// The user does not care which volume.
fn unbound(claim: &Claim, world: &World<'_>) -> Vec<ClaimStep> {
    let class = world.class(volumes::claim_class(claim));
    let waits = class.is_some_and(volumes::waits_for_consumer);
    let all = (world.volumes)();
    let search = if waits { Search::Reserved } else { Search::Anywhere };
    let best = volumes::best(claim, all.iter().map(AsRef::as_ref), &search);
    if let Some(found) = best.and_then(|best| all.iter().find(|volume| std::ptr::eq(volume.as_ref(), best))) {
        return vec![ClaimStep::Bind(found.clone())];
    }
    if !volumes::has_class(claim)
        && let Some(default) = volumes::default_class(world.classes.iter().map(AsRef::as_ref))
    {
        let mut updated = claim.clone();
        updated.spec.get_or_insert_default().storage_class_name = default.metadata.name.clone();
        return vec![ClaimStep::Update(Box::new(updated))];
    }
    let tell = match class {
        _ if waits && annotation(&claim.metadata, SELECTED_NODE).is_none() => waiting(&(world.waiting)()),
        Some(class) => return provision(claim, class),
        None if volumes::claim_class(claim).is_empty() => report(
            Normal,
            "FailedBinding",
            "no persistent volumes available for this claim and no storage class is set",
        ),
        None => {
            let text = format!("storageclass.storage.k8s.io {:?} not found", volumes::claim_class(claim));
            report(Warning, "ProvisioningFailed", text)
        }
    };
    vec![ClaimStep::Tell(tell), ClaimStep::Phase("Pending", None)]
}

fn waiting(pods: &[String]) -> Report {
    match pods {
        [] => report(Normal, "WaitForFirstConsumer", "waiting for first consumer to be created before binding"),
        [pod] => report(Normal, "WaitForPodScheduled", format!("waiting for pod {pod} to be scheduled")),
        pods => report(Normal, "WaitForPodScheduled", format!("waiting for pods {} to be scheduled", pods.join(","))),
    }
}

/// All provisioners are external ones: they see by an annotation that it is their turn.
fn provision(claim: &Claim, class: &StorageClass) -> Vec<ClaimStep> {
    let provisioner = &class.provisioner;
    if provisioner.starts_with("kubernetes.io/") {
        let text = format!("no volume plugin matched name: {provisioner}");
        return vec![ClaimStep::Tell(report(Warning, "ProvisioningFailed", text)), ClaimStep::Phase("Pending", None)];
    }
    let mut annotated = claim.clone();
    let annotations = annotated.metadata.annotations.get_or_insert_default();
    annotations.extend(PROVISIONER.map(|key| (key.to_owned(), provisioner.clone())));
    let changed = annotated != *claim;
    let text = format!(
        "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system \
         administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
    );
    let update = changed.then(|| ClaimStep::Update(Box::new(annotated)));
    update.into_iter().chain([ClaimStep::Tell(report(Normal, "ExternalProvisioning", text))]).collect()
}

/// The user asks for this very volume.
fn named(claim: &Claim, world: &World<'_>) -> anyhow::Result<Vec<ClaimStep>> {
    let Some(volume) = &world.named else { return Ok(vec![ClaimStep::Phase("Pending", None)]) };
    let name = volumes::volume_name(claim);
    let refuse = |kind, reason, text: String| {
        Ok(vec![ClaimStep::Tell(report(kind, reason, text)), ClaimStep::Phase("Pending", None)])
    };
    match claim_ref(volume) {
        None => match volumes::mismatch(volume, claim) {
            Some(why) => refuse(Warning, "VolumeMismatch", format!("Cannot bind to requested volume {name:?}: {why}")),
            None => Ok(vec![ClaimStep::Bind(volume.clone())]),
        },
        Some(_) if volumes::is_meant_for(volume, claim) => Ok(vec![ClaimStep::Bind(volume.clone())]),
        Some(_) if annotation(&claim.metadata, BOUND_BY_CONTROLLER).is_none() => {
            refuse(Warning, "FailedBinding", format!("volume {name:?} already bound to a different claim."))
        }
        Some(other) => {
            let other = [&other.namespace, &other.name].map(|part| part.as_deref().unwrap_or_default()).join("/");
            let key = client::key_of(&claim.metadata);
            anyhow::bail!("invalid binding of claim {key:?} to volume {name:?}: volume already claimed by {other:?}")
        }
    }
}

/// The claim with the volume's name in it, if that needs any change.
pub fn bind_claim(claim: &Claim, volume: &Volume) -> Option<Claim> {
    let mut bound = claim.clone();
    let mut mark = |key: &str| {
        let annotations = bound.metadata.annotations.get_or_insert_default();
        annotations.entry(key.to_owned()).or_insert_with(|| "yes".into());
    };
    if volume.metadata.name.as_deref() != Some(volumes::volume_name(claim)) {
        mark(BOUND_BY_CONTROLLER);
    }
    mark(BIND_COMPLETED);
    bound.spec.get_or_insert_default().volume_name = volume.metadata.name.clone();
    (bound != *claim).then_some(bound)
}

/// The claim with that phase and what its volume offers, if that is a change.
pub fn claim_status(claim: &Claim, phase: &str, volume: Option<&Volume>) -> Option<Claim> {
    let mut updated = claim.clone();
    let status = updated.status.get_or_insert_default();
    let becomes = status.phase.as_deref() != Some(phase);
    status.phase = Some(phase.to_owned());
    match volume.and_then(|volume| volume.spec.as_ref()) {
        None => (status.access_modes, status.capacity) = (None, None),
        Some(spec) => {
            status.access_modes = spec.access_modes.clone();
            // A volume that has grown may be ahead of its file system.
            if becomes || status.capacity.is_none() {
                let storage = spec.capacity.iter().flatten().filter(|(name, _)| *name == "storage");
                status.capacity = Some(storage.map(|(name, size)| (name.clone(), size.clone())).collect());
                let attributes = claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.clone());
                status.current_volume_attributes_class_name = attributes.filter(|name| !name.is_empty());
            }
        }
    }
    (updated != *claim).then_some(updated)
}

/// `claim` is what the volume's claim reference leads to by name, if it exists.
pub fn volume(volume: &Volume, claim: Option<&Claim>) -> Vec<VolumeStep> {
    let Some(reference) = claim_ref(volume) else { return vec![VolumeStep::Phase("Available", None)] };
    if reference.uid.as_deref().unwrap_or_default().is_empty() {
        return vec![VolumeStep::Phase("Available", None)]; // reserved; the claim's turn
    }
    let Some(claim) = claim.filter(|claim| claim.metadata.uid == reference.uid) else { return release(volume) };
    let (name, bound_to) = (volume.metadata.name.as_deref().unwrap_or_default(), volumes::volume_name(claim));
    if bound_to == name {
        return vec![VolumeStep::Phase("Bound", None)];
    }
    if !bound_to.is_empty() {
        let made_for_it = annotation(&volume.metadata, PROVISIONED_BY).is_some() && policy(volume) == "Delete";
        return if made_for_it { release(volume) } else { vec![VolumeStep::Unbind] };
    }
    if volumes::same_mode(volume, claim) {
        return vec![VolumeStep::LookAtClaim];
    }
    let claim_name = claim.metadata.name.as_deref().unwrap_or_default();
    let to_volume = format!(
        "Cannot bind PersistentVolume to requested PersistentVolumeClaim {claim_name:?} due to incompatible volumeMode."
    );
    let to_claim = format!(
        "Cannot bind PersistentVolume {name:?} to requested PersistentVolumeClaim due to incompatible volumeMode."
    );
    vec![
        VolumeStep::Tell(report(Warning, "VolumeMismatch", to_volume)),
        VolumeStep::TellClaim(report(Warning, "VolumeMismatch", to_claim)),
    ]
}

fn policy(volume: &Volume) -> &str {
    volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref()).unwrap_or("Retain")
}

/// The claim is gone. Who made the volume deletes it; nobody else does.
fn release(volume: &Volume) -> Vec<VolumeStep> {
    let failed = |reason, text: String| VolumeStep::Phase("Failed", Some(report(Warning, reason, text)));
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let reclaim = match policy(volume) {
        "Delete" if annotation(&volume.metadata, PROVISIONED_BY).is_none() => {
            let text =
                format!("error getting deleter volume plugin for volume {name:?}: no deletable volume plugin matched");
            Some(failed("VolumeFailedDelete", text))
        }
        "Recycle" => Some(failed("VolumeFailedRecycle", "No recycler plugin found for the volume!".into())),
        _ => None,
    };
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    let release = (phase != Some("Failed")).then_some(VolumeStep::Phase("Released", None));
    release.into_iter().chain(reclaim).collect()
}

/// The volume with that phase, if that is a change.
pub fn volume_status(volume: &Volume, phase: &str, message: &str) -> Option<Volume> {
    let mut updated = volume.clone();
    let status = updated.status.get_or_insert_default();
    if status.phase.as_deref() == Some(phase) {
        return None;
    }
    status.phase = Some(phase.to_owned());
    status.message = Some(message.to_owned()).filter(|message| !message.is_empty());
    Some(updated)
}

/// Free again; what its user reserved stays reserved.
pub fn unbind(volume: &Volume) -> Volume {
    let mut freed = volume.clone();
    let annotations = freed.metadata.annotations.as_mut();
    let ours = annotations.is_some_and(|annotations| annotations.remove(BOUND_BY_CONTROLLER).is_some());
    let spec = freed.spec.get_or_insert_default();
    match &mut spec.claim_ref {
        Some(reference) if !ours => reference.uid = None,
        _ => spec.claim_ref = None,
    }
    freed
}
