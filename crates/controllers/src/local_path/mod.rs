//! The built-in provisioner `isopod.io/local-path`: volumes that are directories of a node. What to do is decided in
//! [`plan`]; here it is carried out.
//!
//! A node says in an annotation where it keeps such directories. It makes one itself when a pod first mounts the volume;
//! to delete one, this asks the node's kubelet through the API server. So a node needs no rights to volumes, and it works
//! the same for one node and for many.

mod plan;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use anyhow::Context as _;
use client::EventType::{Normal, Warning};
use client::{Client, ErrorExt as _, EventRecorder, Store, key_of};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::core::request::Request;
use resources::volumes::{self, SELECTED_NODE};
use serde_json::json;

use crate::common::message;
use crate::framework::{Context, Controller, Requeue};
use plan::{Reclaim, Refusal};

pub const PROVISIONER: &str = "isopod.io/local-path";
/// On a node: where it keeps the directories of local volumes.
const NODE_DIRECTORY: &str = "isopod.io/local-volumes";
/// On a volume: the node that has its directory.
const NODE: &str = "isopod.io/node";

/// Keys are those of claims, which have a namespace, and of volumes, which have none.
pub struct LocalPathProvisioner {
    client: Client,
    events: EventRecorder,
    claims: Store<PersistentVolumeClaim>,
    volumes: Store<PersistentVolume>,
    classes: Store<StorageClass>,
    nodes: Store<Node>,
}

impl Controller for LocalPathProvisioner {
    const NAME: &'static str = "local-path-provisioner";

    fn new(context: &Context) -> Self {
        Self {
            client: context.client.clone(),
            events: EventRecorder::new(context.client.clone(), PROVISIONER, ""),
            claims: context.watch::<PersistentVolumeClaim>().store(),
            volumes: context.watch::<PersistentVolume>().store(),
            classes: context.informer::<StorageClass>().store(),
            nodes: context.informer::<Node>().store(),
        }
    }

    async fn reconcile(&self, key: &str) -> anyhow::Result<Requeue> {
        if !key.contains('/') {
            if let Some(volume) = self.volumes.get(key) {
                self.reclaim(&volume).await?;
            }
            return Ok(Requeue::Never);
        }
        let Some(claim) = self.claims.get(key) else { return Ok(Requeue::Never) };
        if plan::is_ours_to_provision(&claim) {
            self.provision(&claim).await?;
        } else if let Some(volume) = self.volumes.get(volumes::volume_name(&claim)) {
            self.grow(&claim, &volume).await?;
        }
        Ok(Requeue::Never)
    }
}

impl LocalPathProvisioner {
    async fn provision(&self, claim: &PersistentVolumeClaim) -> anyhow::Result<()> {
        let Some(class) = self.classes.get(volumes::claim_class(claim)) else { return Ok(()) };
        let node = volumes::annotation(&claim.metadata, SELECTED_NODE).unwrap_or_default();
        if node.is_empty() && volumes::waits_for_consumer(&class) {
            return Ok(());
        }
        let (key, class_name) = (key_of(&claim.metadata), volumes::claim_class(claim));
        let node = match self.nodes.get(node) {
            None if !node.is_empty() => self.node(node).await.context("look up the selected node")?.map(Arc::new),
            known => known,
        };
        let volume = match plan::volume(claim, &class, node.as_deref()) {
            Ok(volume) => volume,
            Err(refusal) => {
                let text = format!("failed to provision volume with StorageClass {class_name:?}: {}", refusal.text());
                self.events.event(claim, Warning, "ProvisioningFailed", text);
                return self.give_back(claim, &refusal).await;
            }
        };
        let name = key_of(&volume.metadata);
        if self.volumes.get(&name).is_some() {
            return Ok(());
        }
        let text = format!("External provisioner is provisioning volume for claim {key:?}");
        self.events.event(claim, Normal, "Provisioning", text);
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        match api.create(&PostParams::default(), &volume).await {
            Err(error) if !error.is_already_exists() => {
                let text = format!("failed to provision volume with StorageClass {class_name:?}: {}", message(&error));
                self.events.event(claim, Warning, "ProvisioningFailed", text);
                Err(error).with_context(|| format!("create volume {name}"))
            }
            Err(_) => Ok(()), // the cache is behind
            Ok(_) => {
                let text = format!("Successfully provisioned volume {name}");
                self.events.event(claim, Normal, "ProvisioningSucceeded", text);
                Ok(())
            }
        }
    }

    /// Lets the scheduler choose another node, if it was the node that did not do.
    async fn give_back(&self, claim: &PersistentVolumeClaim, refusal: &Refusal) -> anyhow::Result<()> {
        if !matches!(refusal, Refusal::Node(_)) {
            return Ok(());
        }
        let mut updated = claim.clone();
        updated.metadata.annotations.get_or_insert_default().remove(SELECTED_NODE);
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        self.claim_api(claim).replace(name, &PostParams::default(), &updated).await.context("give the claim back")?;
        Ok(())
    }

    fn claim_api(&self, claim: &PersistentVolumeClaim) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), claim.metadata.namespace.as_deref().unwrap_or_default())
    }

    /// A directory has no size of its own: growing is a matter of saying so.
    async fn grow(&self, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> anyhow::Result<()> {
        let Some(size) = plan::growth(claim, volume) else { return Ok(()) };
        let (name, volume_name) = (claim.metadata.name.as_deref().unwrap_or_default(), key_of(&volume.metadata));
        let text = format!("External resizer is resizing volume {volume_name}");
        self.events.event(claim, Normal, "Resizing", text);
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let capacity = Patch::Merge(json!({"spec": {"capacity": {"storage": size}}}));
        api.patch(&volume_name, &PatchParams::default(), &capacity).await.context("grow the volume")?;
        let capacity = Patch::Merge(json!({"status": {"capacity": {"storage": size}}}));
        let api = self.claim_api(claim);
        api.patch_status(name, &PatchParams::default(), &capacity).await.context("show that the claim has grown")?;
        self.events.event(claim, Normal, "VolumeResizeSuccessful", "Resize volume succeeded");
        Ok(())
    }

    async fn reclaim(&self, volume: &Arc<PersistentVolume>) -> anyhow::Result<()> {
        let name = key_of(&volume.metadata);
        match plan::reclaim(volume) {
            Reclaim::Nothing => return Ok(()),
            Reclaim::LetGo => {}
            Reclaim::Delete { node, directory } => {
                if let Err(error) = self.delete_directory(node, directory).await {
                    let text = format!("delete {directory} on node {node}: {}", message(&error));
                    self.events.event(volume.as_ref(), Warning, "VolumeFailedDelete", text);
                    return Err(error).with_context(|| format!("delete the directory of volume {name}"));
                }
            }
        }
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let mut freed = volume.as_ref().clone();
        freed.metadata.finalizers.get_or_insert_default().retain(|known| known != plan::FINALIZER);
        if freed.metadata.finalizers != volume.metadata.finalizers {
            match api.replace(&name, &PostParams::default(), &freed).await {
                Err(error) if !error.is_not_found() => return Err(error).context("let the volume go"),
                _ => {}
            }
        }
        if volume.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        match api.delete(&name, &DeleteParams::default()).await {
            Err(error) if !error.is_not_found() => Err(error).with_context(|| format!("delete volume {name}")),
            _ => Ok(()),
        }
    }

    /// What the API server says: the cache may be behind.
    async fn node(&self, name: &str) -> kube::Result<Option<Node>> {
        Api::all(self.client.clone()).get_opt(name).await
    }

    /// The directories of a node that is gone are gone with it.
    async fn delete_directory(&self, node: &str, directory: &str) -> kube::Result<()> {
        if self.node(node).await?.is_none() {
            return Ok(());
        }
        let request = Request::new(format!("/api/v1/nodes/{node}/proxy/localVolumes"));
        let request = request.delete(directory, &DeleteParams::default()).map_err(kube::Error::BuildRequest)?;
        self.client.request_text(request).await.map(drop)
    }
}
