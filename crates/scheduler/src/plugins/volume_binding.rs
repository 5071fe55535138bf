//! VolumeBinding: a node takes a pod if it reaches the volumes of the pod's claims, and for the claims that wait for
//! their first consumer, if volumes are there or can be made. Before the pod is bound, those claims are.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use client::Client;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Api;
use kube::api::PostParams;
use resources::volumes::{self, NO_PROVISIONER, SELECTED_NODE, Search, annotation};

use crate::framework::{ClusterEvent, Filter, Filtered, Plugin, PreBind, PreFilter, Refusal};
use crate::pod::PodInfo;
use crate::snapshot::{NodeId, Snapshot};

/// How long claims may take to be bound.
const PATIENCE: Duration = Duration::from_secs(600);

pub struct VolumeBinding;

/// A pod's claims, by what is left to do for them.
struct State<'a> {
    snapshot: &'a Snapshot,
    bound: Vec<&'a PersistentVolumeClaim>,
    waiting: Vec<&'a PersistentVolumeClaim>,
}

impl<'a> State<'a> {
    fn new(snapshot: &'a Snapshot, pod: &PodInfo) -> Result<Self, Refusal> {
        let mut state = State { snapshot, bound: Vec::new(), waiting: Vec::new() };
        let mut immediate = false;
        for used in &pod.claims {
            let claim = snapshot.storage.claim(pod.namespace(), &used.claim);
            let claim = usable(pod, used, claim.map(AsRef::as_ref)).map_err(Refusal::unresolvable)?;
            if volumes::is_fully_bound(claim) {
                state.bound.push(claim);
            } else if state.waits(claim)? {
                state.waiting.push(claim);
            } else {
                immediate = true;
            }
        }
        match immediate {
            true => Err(Refusal::unresolvable("pod has unbound immediate PersistentVolumeClaims")),
            false => Ok(state),
        }
    }

    /// A claim that names its volume does not wait.
    fn waits(&self, claim: &PersistentVolumeClaim) -> Result<bool, Refusal> {
        let class = volumes::claim_class(claim);
        if class.is_empty() || !volumes::volume_name(claim).is_empty() {
            return Ok(false);
        }
        let missing = || Refusal::unresolvable(format!("storageclass.storage.k8s.io {class:?} not found"));
        self.snapshot.storage.class(class).map(|class| volumes::waits_for_consumer(class)).ok_or_else(missing)
    }

    /// What is to be written if the pod goes to the node.
    fn plan(&self, node: &Node) -> Result<Vec<Write>, Refusal> {
        let storage = &self.snapshot.storage;
        let mut refusal = Refusal { reasons: Vec::new(), unresolvable: true };
        let found: Vec<_> = self.bound.iter().map(|claim| storage.volume(volumes::volume_name(claim))).collect();
        if found.iter().flatten().any(|volume| !storage.reaches(volume, node)) {
            refusal.reasons.push("node(s) had volume node affinity conflict".into());
        }
        let mut writes = Vec::new();
        for claim in &self.waiting {
            match self.provide(claim, node, &writes) {
                Some(write) => writes.extend(write),
                None => {
                    refusal.reasons.push("node(s) didn't find available persistent volumes to bind".into());
                    break;
                }
            }
        }
        if found.iter().any(Option::is_none) {
            refusal.reasons.push("node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)".into());
        }
        if refusal.reasons.is_empty() { Ok(writes) } else { Err(refusal) }
    }

    /// A volume for the claim, or a provisioner's promise to make one; None if there is neither. Nothing is written for a
    /// claim that has all it needs already.
    fn provide(&self, claim: &PersistentVolumeClaim, node: &Node, before: &[Write]) -> Option<Option<Write>> {
        let storage = &self.snapshot.storage;
        let name = node.metadata.name.as_deref().unwrap_or_default();
        if let Some(selected) = annotation(&claim.metadata, SELECTED_NODE) {
            return (selected == name).then_some(None);
        }
        let taken = |volume: &&Arc<PersistentVolume>| {
            before
                .iter()
                .any(|write| matches!(write, Write::Volume(other) if other.metadata.name == volume.metadata.name))
        };
        let reaches = |volume: &PersistentVolume| storage.reaches(volume, node);
        let free = storage.volumes().filter(|volume| !taken(volume)).map(AsRef::as_ref);
        if let Some(volume) = volumes::best(claim, free, &Search::Reachable(&reaches)) {
            return Some(volumes::bind_volume(volume, claim).map(|bound| Write::Volume(Arc::new(bound))));
        }
        if !storage.class(volumes::claim_class(claim)).is_some_and(|class| provisions(class, node)) {
            return None;
        }
        let mut chosen = claim.clone();
        chosen.metadata.annotations.get_or_insert_default().insert(SELECTED_NODE.into(), name.into());
        Some(Some(Write::Claim(Arc::new(chosen))))
    }
}

/// The claim, if a pod may start with it; else why not.
fn usable<'a>(
    pod: &PodInfo,
    used: &volumes::Use,
    claim: Option<&'a PersistentVolumeClaim>,
) -> Result<&'a PersistentVolumeClaim, String> {
    let name = &used.claim;
    let Some(claim) = claim else {
        return Err(match used.ephemeral {
            true => format!("waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}"),
            false => format!("persistentvolumeclaim {name:?} not found"),
        });
    };
    if claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Lost") {
        let volume = volumes::volume_name(claim);
        return Err(format!("persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}"));
    }
    if claim.metadata.deletion_timestamp.is_some() {
        return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
    }
    if used.ephemeral && client::controller_of(&claim.metadata).is_none_or(|owner| owner.uid != pod.uid) {
        let (namespace, pod) = (pod.namespace(), pod.name());
        return Err(format!("PVC {namespace}/{name} was not created for pod {namespace}/{pod} (pod is not owner)"));
    }
    Ok(claim)
}

/// Whether volumes of a class can be made for a node.
fn provisions(class: &StorageClass, node: &Node) -> bool {
    let has = |key: &str, values: &[String]| {
        let label = node.metadata.labels.as_ref().and_then(|labels| labels.get(key));
        label.is_some_and(|label| values.contains(label))
    };
    let terms = class.allowed_topologies.as_deref().unwrap_or_default();
    let allowed = |term: &k8s_openapi::api::core::v1::TopologySelectorTerm| {
        term.match_label_expressions.iter().flatten().all(|found| has(&found.key, &found.values))
    };
    !matches!(class.provisioner.as_str(), "" | NO_PROVISIONER) && (terms.is_empty() || terms.iter().any(allowed))
}

#[async_trait]
impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        "VolumeBinding"
    }

    fn pre_filter<'a>(&self, snapshot: &'a Snapshot, pod: &'a PodInfo) -> PreFilter<'a> {
        if pod.claims.is_empty() {
            return PreFilter::Skip;
        }
        match State::new(snapshot, pod) {
            Ok(state) => PreFilter::Use(Box::new(state)),
            Err(refusal) => PreFilter::Refuse(refusal),
        }
    }

    fn hint(&self, event: ClusterEvent<'_>, pod: &PodInfo) -> bool {
        match event {
            ClusterEvent::Node { old, new } => old.is_none_or(|old| old.metadata.labels != new.metadata.labels),
            ClusterEvent::Claim(claim) => pod.uses_claim(claim),
            ClusterEvent::Storage => true,
            _ => false,
        }
    }

    fn reserve(
        &self,
        snapshot: &mut Snapshot,
        pod: &PodInfo,
        node: NodeId,
    ) -> anyhow::Result<Option<Box<dyn PreBind>>> {
        if pod.claims.is_empty() {
            return Ok(None);
        }
        let failed = |refusal: Refusal| anyhow::anyhow!("{}", refusal.reasons.join(", "));
        let state = State::new(snapshot, pod).map_err(failed)?;
        let writes = state.plan(snapshot.node(node).object()).map_err(failed)?;
        let claims: Vec<_> = state.waiting.iter().filter_map(|claim| claim.metadata.name.clone()).collect();
        for write in &writes {
            match write {
                Write::Claim(claim) => snapshot.storage.reserve_claim(&pod.uid, claim.clone()),
                Write::Volume(volume) => snapshot.storage.reserve_volume(&pod.uid, volume.clone()),
            }
        }
        let binding = Binding { namespace: pod.namespace().to_owned(), writes, claims };
        Ok((!binding.claims.is_empty()).then(|| Box::new(binding) as Box<dyn PreBind>))
    }

    fn unreserve(&self, snapshot: &mut Snapshot, pod: &PodInfo) {
        if !pod.claims.is_empty() {
            snapshot.storage.release(&pod.uid);
        }
    }
}

impl<'a> Filter<'a> for State<'a> {
    fn filter(&self, node: NodeId) -> Filtered {
        self.plan(self.snapshot.node(node).object()).map(drop)
    }
}

enum Write {
    /// A volume that is given to a claim.
    Volume(Arc<PersistentVolume>),
    /// A claim whose volume is to be made for a node.
    Claim(Arc<PersistentVolumeClaim>),
}

/// What is written and waited for before the pod is bound.
struct Binding {
    namespace: String,
    writes: Vec<Write>,
    claims: Vec<String>,
}

#[async_trait]
impl PreBind for Binding {
    async fn run(&self, client: &Client) -> anyhow::Result<()> {
        let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &self.namespace);
        for write in &self.writes {
            self.write(client, &api, write).await.context("binding volumes")?;
        }
        let all = futures::future::try_join_all(self.claims.iter().map(|claim| bound(&api, claim)));
        tokio::time::timeout(PATIENCE, all).await.context("binding volumes: context deadline exceeded")??;
        Ok(())
    }
}

impl Binding {
    async fn write(&self, client: &Client, api: &Api<PersistentVolumeClaim>, write: &Write) -> kube::Result<()> {
        let params = PostParams::default();
        match write {
            Write::Claim(claim) => {
                api.replace(claim.metadata.name.as_deref().unwrap_or_default(), &params, claim).await.map(drop)
            }
            Write::Volume(volume) => {
                let api: Api<PersistentVolume> = Api::all(client.clone());
                api.replace(volume.metadata.name.as_deref().unwrap_or_default(), &params, volume).await.map(drop)
            }
        }
    }
}

/// Waits until the claim is bound, or cannot be any more.
async fn bound(api: &Api<PersistentVolumeClaim>, name: &str) -> anyhow::Result<()> {
    let settled = |claim: Option<&PersistentVolumeClaim>| {
        claim.is_none_or(|claim| {
            volumes::is_fully_bound(claim)
                || claim.metadata.deletion_timestamp.is_some()
                || volumes::volume_name(claim).is_empty() && given_back(claim)
        })
    };
    match client::await_condition(api.clone(), name, settled).await {
        Some(claim) if volumes::is_fully_bound(&claim) => Ok(()),
        Some(claim) if claim.metadata.deletion_timestamp.is_none() => {
            anyhow::bail!("binding volumes: provisioning failed for PVC {name:?}")
        }
        _ => anyhow::bail!("binding volumes: PVC {name:?} is gone"),
    }
}

/// A provisioner that cannot serve the node takes the choice back.
fn given_back(claim: &PersistentVolumeClaim) -> bool {
    let asked = volumes::PROVISIONER.iter().any(|key| annotation(&claim.metadata, key).is_some());
    asked && annotation(&claim.metadata, SELECTED_NODE).is_none()
}
