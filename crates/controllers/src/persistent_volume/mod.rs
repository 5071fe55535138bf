//! Binds claims and persistent volumes to each other, and releases volumes whose claims are gone. What to do is decided
//! in [`plan`]; here it is carried out. Volumes are made and deleted by provisioners, which are controllers of their own.

mod plan;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use anyhow::Context as _;
use client::{Client, EventRecorder, Store, WorkQueue, key_of, split_key};
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Api;
use kube::api::PostParams;
use resources::volumes;

use crate::common::pods;
use crate::common::written::Written;
use crate::framework::{Context, Controller, Requeue};
use plan::{ClaimStep, Report, VolumeStep, World};

/// An index of claims that are not bound, by their class.
const UNBOUND: &str = "unbound";
/// An index of volumes, by the key of the claim they refer to.
const CLAIM: &str = "claim";

/// Keys are those of claims, which have a namespace, and of volumes, which have none.
pub struct PersistentVolumeBinder {
    client: Client,
    events: EventRecorder,
    queue: WorkQueue<String>,
    claims: Store<PersistentVolumeClaim>,
    volumes: Store<PersistentVolume>,
    classes: Store<StorageClass>,
    pods: Store<Pod>,
    written: Written,
}

fn claim_key(volume: &PersistentVolume) -> Option<String> {
    let reference = volume.spec.as_ref()?.claim_ref.as_ref()?;
    Some(format!("{}/{}", reference.namespace.as_deref()?, reference.name.as_deref()?))
}

fn add_all(queue: &WorkQueue<String>, claims: &[Arc<PersistentVolumeClaim>]) {
    claims.iter().for_each(|claim| queue.add(key_of(&claim.metadata)));
}

impl Controller for PersistentVolumeBinder {
    const NAME: &'static str = "persistentvolume-controller";
    const IDENTITY: &'static str = "persistent-volume-binder";
    /// Two at once could give one volume to two claims.
    const WORKERS: usize = 1;

    fn new(context: &Context) -> Self {
        let volumes = context.informer::<PersistentVolume>();
        volumes.add_index(CLAIM, |volume| claim_key(volume).into_iter().collect());
        let known = volumes.store();
        let claims = context.on::<PersistentVolumeClaim>(move |event, queue| {
            let claim = event.object();
            let key = key_of(&claim.metadata);
            known.by_index(CLAIM, &key).iter().for_each(|volume| queue.add(key_of(&volume.metadata)));
            queue.add(key);
            let name = volumes::volume_name(claim);
            if !name.is_empty() {
                queue.add(name.to_owned());
            }
        });
        claims.add_index(UNBOUND, |claim| {
            let unbound = !volumes::is_fully_bound(claim);
            unbound.then(|| volumes::claim_class(claim).to_owned()).into_iter().collect()
        });
        let unbound = claims.store();
        context.on::<PersistentVolume>(move |event, queue| {
            let volume = event.object();
            queue.add(key_of(&volume.metadata));
            let claims = event.old().into_iter().chain([volume]).filter_map(|volume| claim_key(volume));
            claims.for_each(|key| queue.add(key));
            add_all(queue, &unbound.by_index(UNBOUND, volumes::volume_class(volume)));
        });
        let unbound = claims.store();
        let classes = context.on::<StorageClass>(move |event, queue| {
            let name = event.object().metadata.name.as_deref().unwrap_or_default();
            add_all(queue, &unbound.by_index(UNBOUND, name));
            add_all(queue, &unbound.by_index(UNBOUND, ""));
        });
        Self {
            client: context.client.clone(),
            events: context.events.clone(),
            queue: context.queue.clone(),
            claims: claims.store(),
            volumes: volumes.store(),
            classes: classes.store(),
            pods: context.informer::<Pod>().store(),
            written: Written::default(),
        }
    }

    async fn reconcile(&self, key: &str) -> anyhow::Result<Requeue> {
        match key.contains('/') {
            true => self.sync_claim(key).await?,
            false => self.sync_volume(key).await?,
        }
        Ok(Requeue::Never)
    }
}

impl PersistentVolumeBinder {
    async fn sync_claim(&self, key: &str) -> anyhow::Result<()> {
        let Some(claim) = self.claims.get(key) else {
            self.written.forget(key);
            return Ok(());
        };
        let named = self.volumes.get(volumes::volume_name(&claim));
        // What the cache does not show yet, an event will.
        if self.written.is_ahead_of(key, &claim.metadata) || named.as_deref().is_some_and(|found| self.is_behind(found))
        {
            return Ok(());
        }
        for step in self.plan(&claim, named)? {
            self.take_claim_step(&claim, step).await?;
        }
        Ok(())
    }

    fn plan(
        &self,
        claim: &PersistentVolumeClaim,
        named: Option<Arc<PersistentVolume>>,
    ) -> anyhow::Result<Vec<ClaimStep>> {
        let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
        let uses_it = |pod: &Arc<Pod>| {
            let name = claim.metadata.name.as_deref();
            let waits = pods::node_name(pod).is_empty() && !pods::is_finished(pod);
            waits && volumes::claims_of(pod).iter().any(|used| Some(used.claim.as_str()) == name)
        };
        let waiting = || {
            let pods = self.pods.list_namespace(namespace).into_iter().filter(uses_it);
            pods.filter_map(|pod| pod.metadata.name.clone()).collect()
        };
        let world = World {
            named,
            volumes: &|| self.volumes.list().into_iter().filter(|volume| !self.is_behind(volume)).collect(),
            classes: &self.classes.list(),
            waiting: &waiting,
        };
        plan::claim(claim, &world)
    }

    fn is_behind(&self, volume: &PersistentVolume) -> bool {
        self.written.is_ahead_of(volume.metadata.name.as_deref().unwrap_or_default(), &volume.metadata)
    }

    async fn take_claim_step(&self, claim: &PersistentVolumeClaim, step: ClaimStep) -> anyhow::Result<()> {
        match step {
            ClaimStep::Bind(volume) => self.bind(claim, &volume).await,
            ClaimStep::Update(claim) => self.update_claim(&claim).await.map(drop),
            ClaimStep::Tell(Report { kind, reason, message }) => {
                self.events.event(claim, kind, reason, message);
                Ok(())
            }
            ClaimStep::Phase(phase, report) => {
                let Some(updated) = plan::claim_status(claim, phase, None) else { return Ok(()) };
                let becomes = claim.status.as_ref().and_then(|status| status.phase.as_deref()) != Some(phase);
                self.update_claim_status(&updated).await?;
                if let Some(Report { kind, reason, message }) = report.filter(|_| becomes) {
                    self.events.event(claim, kind, reason, message);
                }
                Ok(())
            }
        }
    }

    /// Volume, its phase, claim, its phase: whoever finds the one finds the other.
    async fn bind(&self, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> anyhow::Result<()> {
        let volume = match volumes::bind_volume(volume, claim) {
            Some(bound) => &self.update_volume(&bound).await?,
            None => volume,
        };
        let volume = match plan::volume_status(volume, "Bound", "") {
            Some(bound) => &self.update_volume_status(&bound).await?,
            None => volume,
        };
        let claim = match plan::bind_claim(claim, volume) {
            Some(bound) => &self.update_claim(&bound).await?,
            None => claim,
        };
        if let Some(bound) = plan::claim_status(claim, "Bound", Some(volume)) {
            self.update_claim_status(&bound).await?;
        }
        Ok(())
    }

    async fn sync_volume(&self, key: &str) -> anyhow::Result<()> {
        let Some(volume) = self.volumes.get(key) else {
            self.written.forget(key);
            return Ok(());
        };
        if self.is_behind(&volume) {
            return Ok(());
        }
        let claim = self.claim_of(&volume).await?;
        for step in plan::volume(&volume, claim.as_deref()) {
            self.take_volume_step(&volume, claim.as_deref(), step).await?;
        }
        Ok(())
    }

    /// Asks the API server before it believes that a claim is gone: its data goes with it.
    async fn claim_of(&self, volume: &PersistentVolume) -> anyhow::Result<Option<Arc<PersistentVolumeClaim>>> {
        let Some(key) = claim_key(volume) else { return Ok(None) };
        let uid = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()?.uid.clone());
        let cached = self.claims.get(&key);
        if uid.is_none() || cached.as_ref().is_some_and(|claim| claim.metadata.uid == uid) {
            return Ok(cached);
        }
        let (namespace, name) = split_key(&key);
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        Ok(api.get_opt(name).await.context("look up the volume's claim")?.map(Arc::new))
    }

    async fn take_volume_step(
        &self,
        volume: &PersistentVolume,
        claim: Option<&PersistentVolumeClaim>,
        step: VolumeStep,
    ) -> anyhow::Result<()> {
        match step {
            VolumeStep::Phase(phase, report) => {
                let message = report.as_ref().map_or("", |report| &report.message);
                // The step before may have been another phase.
                let name = volume.metadata.name.as_deref().unwrap_or_default();
                let latest = match self.written.is_ahead_of(name, &volume.metadata) {
                    true => Api::all(self.client.clone()).get(name).await.context("read the volume again")?,
                    false => volume.clone(),
                };
                let Some(updated) = plan::volume_status(&latest, phase, message) else { return Ok(()) };
                self.update_volume_status(&updated).await?;
                if let Some(Report { kind, reason, message }) = report {
                    self.events.event(volume, kind, reason, message);
                }
            }
            VolumeStep::Unbind => {
                let freed = self.update_volume(&plan::unbind(volume)).await?;
                if let Some(available) = plan::volume_status(&freed, "Available", "") {
                    self.update_volume_status(&available).await?;
                }
            }
            VolumeStep::LookAtClaim => claim_key(volume).into_iter().for_each(|key| self.queue.add(key)),
            VolumeStep::Tell(Report { kind, reason, message }) => self.events.event(volume, kind, reason, message),
            VolumeStep::TellClaim(Report { kind, reason, message }) => {
                claim.into_iter().for_each(|claim| self.events.event(claim, kind, reason, message.clone()));
            }
        }
        Ok(())
    }

    async fn update_claim(&self, claim: &PersistentVolumeClaim) -> anyhow::Result<PersistentVolumeClaim> {
        let (api, name) = self.claim_api(claim);
        let updated = api.replace(&name, &PostParams::default(), claim).await;
        let updated = updated.with_context(|| format!("update claim {name}"))?;
        self.written.wrote(&key_of(&updated.metadata), &updated.metadata);
        Ok(updated)
    }

    async fn update_claim_status(&self, claim: &PersistentVolumeClaim) -> anyhow::Result<()> {
        let (api, name) = self.claim_api(claim);
        let updated = api.replace_status(&name, &PostParams::default(), claim).await;
        let updated = updated.with_context(|| format!("update the status of claim {name}"))?;
        self.written.wrote(&key_of(&updated.metadata), &updated.metadata);
        Ok(())
    }

    fn claim_api(&self, claim: &PersistentVolumeClaim) -> (Api<PersistentVolumeClaim>, String) {
        let ObjectReference { namespace, name, .. } = kube::Resource::object_ref(claim, &());
        (Api::namespaced(self.client.clone(), &namespace.unwrap_or_default()), name.unwrap_or_default())
    }

    async fn update_volume(&self, volume: &PersistentVolume) -> anyhow::Result<PersistentVolume> {
        let (api, name) = (Api::<PersistentVolume>::all(self.client.clone()), key_of(&volume.metadata));
        let updated = api.replace(&name, &PostParams::default(), volume).await;
        let updated = updated.with_context(|| format!("update volume {name}"))?;
        self.written.wrote(&name, &updated.metadata);
        Ok(updated)
    }

    async fn update_volume_status(&self, volume: &PersistentVolume) -> anyhow::Result<PersistentVolume> {
        let (api, name) = (Api::<PersistentVolume>::all(self.client.clone()), key_of(&volume.metadata));
        let updated = api.replace_status(&name, &PostParams::default(), volume).await;
        let updated = updated.with_context(|| format!("update the status of volume {name}"))?;
        self.written.wrote(&name, &updated.metadata);
        Ok(updated)
    }
}
