//! Acts on the graph's suspicions, after asking the API server what is really there.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use client::ErrorExt as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::Shared;
use super::graph::{FOREGROUND, Node, ORPHANING, State};
use crate::common::discovery::{Discovered, Meta, discover};

/// Owners found absent are not asked for again for a while: a thousand dependents of one owner are one question. A uid
/// never comes back.
const ABSENT: Duration = Duration::from_secs(60);
const ABSENT_CAPACITY: usize = 4096;

pub(super) struct Collector {
    shared: Shared,
    absent: Mutex<HashMap<String, Instant>>,
    kinds: Mutex<HashMap<(String, String), Option<Discovered>>>,
}

/// What an owner's state means for its dependent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Owner {
    /// Keeps its dependent alive.
    Solid,
    Gone,
    /// Deleted in the foreground: wants its dependent gone.
    Waiting,
    /// A namespaced owner of an object of the cluster: nobody can tell which object is meant.
    Invalid,
}

impl Collector {
    pub(super) fn new(shared: Shared) -> Self {
        Self { shared, absent: Mutex::default(), kinds: Mutex::default() }
    }

    /// Deletes the object if nothing owns it any more, or frees it from owners that are gone.
    pub(super) async fn attempt_to_delete(&self, uid: &str) -> anyhow::Result<()> {
        let Some(node) = self.suspect(uid) else { return Ok(()) };
        let api = self.api(&node);
        let Some(live) = self.live(&api, uid, &node).await? else { return Ok(()) };
        if State::of(&live) == State::DeletingDependents {
            return self.release_or_hurry(&api, uid, &live).await;
        }
        let owners = live.owner_references.clone().unwrap_or_default();
        if live.deletion_timestamp.is_some() || owners.is_empty() {
            return Ok(());
        }
        let mut verdicts = Vec::with_capacity(owners.len());
        for owner in &owners {
            verdicts.push(self.judge(&node, owner).await?);
        }
        let has = |verdict| verdicts.contains(&verdict);
        if has(Owner::Invalid) || verdicts.iter().all(|verdict| *verdict == Owner::Solid) {
            return Ok(());
        }
        if has(Owner::Solid) {
            let solid = owners.into_iter().zip(&verdicts).filter(|(_, verdict)| **verdict == Owner::Solid);
            let kept: Vec<_> = solid.map(|(owner, _)| owner).collect();
            return self.patch(&api, &live, json!({"ownerReferences": kept})).await;
        }
        if has(Owner::Waiting) && self.has_dependents(uid) {
            self.break_cycle(&api, uid, &live, owners).await?;
            return self.delete(&api, uid, &live, DeleteParams::foreground()).await;
        }
        let finalized = |wanted: &str| live.finalizers.iter().flatten().any(|finalizer| finalizer == wanted);
        let params = match () {
            () if finalized(ORPHANING) => DeleteParams::orphan(),
            () if finalized(FOREGROUND) => DeleteParams::foreground(),
            () => DeleteParams::background(),
        };
        self.delete(&api, uid, &live, params).await
    }

    /// Sets the dependents of an owner free, then lets it go.
    pub(super) async fn orphan_dependents(&self, uid: &str) -> anyhow::Result<()> {
        let Some(owner) = self.shared.graph.lock().get(uid).cloned() else { return Ok(()) };
        let api = self.api(&owner);
        let Some(live) = self.live(&api, uid, &owner).await? else { return Ok(()) };
        if State::of(&live) != State::Orphaning {
            return Ok(());
        }
        let dependents: Vec<_> = {
            let graph = self.shared.graph.lock();
            graph.dependents(uid).map(|(dependent, node)| (dependent.clone(), node.clone())).collect()
        };
        for (dependent, node) in dependents {
            let api = self.api(&node);
            let Some(meta) = self.live(&api, &dependent, &node).await? else { continue };
            let mut owners = meta.owner_references.clone().unwrap_or_default();
            owners.retain(|reference| reference.uid != uid);
            self.patch(&api, &meta, json!({"ownerReferences": owners})).await?;
        }
        self.remove_finalizer(&api, &live, ORPHANING).await
    }

    /// The node, unless the graph itself says that there is nothing to do.
    fn suspect(&self, uid: &str) -> Option<Node> {
        let graph = self.shared.graph.lock();
        let node = graph.get(uid)?;
        let idle = match node.state {
            State::Alive => graph.is_owned_safely(node),
            State::DeletingDependents => false,
            State::Deleting | State::Orphaning => true,
        };
        (!idle).then(|| node.clone())
    }

    fn api(&self, node: &Node) -> Api<Meta> {
        self.scoped(&node.resource, &node.namespace)
    }

    fn scoped(&self, resource: &Discovered, namespace: &str) -> Api<Meta> {
        let client = self.shared.client.clone();
        match resource.namespaced {
            true => Api::namespaced_with(client, namespace, &resource.resource),
            false => Api::all_with(client, &resource.resource),
        }
    }

    /// The object as it is now; if it is gone the graph learns so.
    async fn live(&self, api: &Api<Meta>, uid: &str, node: &Node) -> anyhow::Result<Option<ObjectMeta>> {
        let found = api.get_opt(&node.name).await.with_context(|| format!("look up {}", node.name))?;
        let found = found.map(|found| found.metadata).filter(|meta| meta.uid.as_deref() == Some(uid));
        if found.is_none() {
            let keys = self.shared.graph.lock().forget(uid);
            keys.into_iter().for_each(|key| self.shared.queue.add(key));
        }
        Ok(found)
    }

    async fn judge(&self, dependent: &Node, owner: &OwnerReference) -> anyhow::Result<Owner> {
        let question =
            format!("{}|{}|{}|{}|{}", owner.uid, owner.api_version, owner.kind, owner.name, dependent.namespace);
        if self.absent.lock().get(&question).is_some_and(|since| since.elapsed() < ABSENT) {
            return Ok(Owner::Gone);
        }
        let kind = self.kind(owner).await?;
        let kind =
            kind.with_context(|| format!("no resource is known for owner {} {}", owner.api_version, owner.kind))?;
        if kind.namespaced && dependent.namespace.is_empty() {
            return Ok(Owner::Invalid);
        }
        let api = self.scoped(&kind, &dependent.namespace);
        let found = api.get_opt(&owner.name).await.with_context(|| format!("look up owner {}", owner.name))?;
        match found.filter(|found| found.metadata.uid.as_ref() == Some(&owner.uid)) {
            Some(found) if State::of(&found.metadata) == State::DeletingDependents => Ok(Owner::Waiting),
            Some(_) => Ok(Owner::Solid),
            None => {
                let mut absent = self.absent.lock();
                if absent.len() >= ABSENT_CAPACITY {
                    absent.clear();
                }
                absent.insert(question, Instant::now());
                Ok(Owner::Gone)
            }
        }
    }

    /// The resource of an owner's kind, whatever version the reference names.
    async fn kind(&self, owner: &OwnerReference) -> anyhow::Result<Option<Discovered>> {
        let key = (owner.api_version.clone(), owner.kind.clone());
        if let Some(Some(known)) = self.kinds.lock().get(&key) {
            return Ok(Some(known.clone()));
        }
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        let discovery = discover(&self.shared.client).await.context("discover the kinds of owners")?;
        let mut resources = discovery.resources.into_iter();
        let found = resources.find(|found| found.resource.group == group && found.resource.kind == owner.kind);
        self.kinds.lock().insert(key, found.clone());
        Ok(found)
    }

    /// An owner deleted in the foreground goes once nothing blocks it; until then its dependents are looked at.
    async fn release_or_hurry(&self, api: &Api<Meta>, uid: &str, live: &ObjectMeta) -> anyhow::Result<()> {
        let blocking = {
            let graph = self.shared.graph.lock();
            let blocking = graph.blocking(uid);
            let waits = |uid: &String| graph.get(uid).is_some_and(|node| node.state == State::DeletingDependents);
            blocking.iter().filter(|uid| !waits(uid)).for_each(|uid| self.shared.queue.add(uid.clone()));
            blocking
        };
        match blocking.is_empty() {
            true => self.remove_finalizer(api, live, FOREGROUND).await,
            false => Ok(()),
        }
    }

    fn has_dependents(&self, uid: &str) -> bool {
        self.shared.graph.lock().dependents(uid).next().is_some()
    }

    /// In a circle of owners that are all deleted in the foreground somebody has to stop blocking.
    async fn break_cycle(
        &self,
        api: &Api<Meta>,
        uid: &str,
        live: &ObjectMeta,
        owners: Vec<OwnerReference>,
    ) -> anyhow::Result<()> {
        let waiting = |node: &Node| node.state == State::DeletingDependents;
        let circular = self.shared.graph.lock().dependents(uid).any(|(_, node)| waiting(node));
        if !circular || owners.iter().all(|owner| owner.block_owner_deletion != Some(true)) {
            return Ok(());
        }
        let unblocked = owners.into_iter().map(|owner| OwnerReference { block_owner_deletion: Some(false), ..owner });
        let live = ObjectMeta { resource_version: None, ..live.clone() }; // the uid guards; the delete comes next
        self.patch(api, &live, json!({"ownerReferences": unblocked.collect::<Vec<_>>()})).await
    }

    async fn remove_finalizer(&self, api: &Api<Meta>, live: &ObjectMeta, finalizer: &str) -> anyhow::Result<()> {
        let mut finalizers = live.finalizers.clone().unwrap_or_default();
        finalizers.retain(|found| found != finalizer);
        self.patch(api, live, json!({"finalizers": finalizers})).await
    }

    /// Merges into the metadata of this very object, as it was read.
    async fn patch(&self, api: &Api<Meta>, live: &ObjectMeta, mut metadata: Value) -> anyhow::Result<()> {
        metadata["uid"] = json!(live.uid);
        if let Some(version) = &live.resource_version {
            metadata["resourceVersion"] = json!(version);
        }
        let name = live.name.as_deref().unwrap_or_default();
        let patch = Patch::Merge(json!({"metadata": metadata}));
        match api.patch_metadata(name, &PatchParams::default(), &patch).await {
            Err(error) if !error.is_not_found() => Err(error).with_context(|| format!("patch {name}")),
            _ => Ok(()),
        }
    }

    async fn delete(&self, api: &Api<Meta>, uid: &str, live: &ObjectMeta, params: DeleteParams) -> anyhow::Result<()> {
        let name = live.name.as_deref().unwrap_or_default();
        let this = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        match api.delete(name, &params.preconditions(this)).await {
            Err(error) if !error.is_not_found() => Err(error).with_context(|| format!("delete {name}")),
            _ => Ok(()),
        }
    }
}
