//! Keeps claims while pods use them, and volumes while they are bound: two controllers, each the keeper of one finalizer.
//! The finalizer goes from an object that is being deleted once nothing uses it.

use std::fmt::Debug;

use anyhow::Context as _;
use client::{Client, ErrorExt as _, Event, Store, key_of, split_key};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::Api;
use kube::api::{ListParams, PostParams};
use kube::core::ObjectMeta;
use resources::volumes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::common::pods;
use crate::framework::{Context, Controller, Requeue};

const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Add,
    Remove,
    None,
}

/// What a finalizer needs, given that nothing else keeps the object.
fn change(meta: &ObjectMeta, finalizer: &str) -> Change {
    let has = meta.finalizers.iter().flatten().any(|known| known == finalizer);
    match meta.deletion_timestamp.is_some() {
        true if has => Change::Remove,
        false if !has => Change::Add,
        _ => Change::None,
    }
}

async fn apply<K>(api: &Api<K>, object: &K, finalizer: &str, change: Change) -> anyhow::Result<()>
where
    K: kube::Resource + Clone + Serialize + DeserializeOwned + Debug,
{
    let mut updated = object.clone();
    let finalizers = updated.meta_mut().finalizers.get_or_insert_default();
    match change {
        Change::Add => finalizers.push(finalizer.to_owned()),
        Change::Remove => finalizers.retain(|known| known != finalizer),
        Change::None => return Ok(()),
    }
    let name = object.meta().name.as_deref().unwrap_or_default();
    match api.replace(name, &PostParams::default(), &updated).await {
        Err(error) if !error.is_not_found() => Err(error).with_context(|| format!("change the finalizers of {name}")),
        _ => Ok(()),
    }
}

/// Whether a pod on a node uses a claim. Pods without a node do not count: they cannot start any more.
fn uses(pod: &Pod, claim: &str) -> bool {
    !pods::node_name(pod).is_empty() && volumes::claims_of(pod).iter().any(|used| used.claim == claim)
}

pub struct ClaimProtection {
    client: Client,
    claims: Store<PersistentVolumeClaim>,
    pods: Store<Pod>,
}

impl Controller for ClaimProtection {
    const NAME: &'static str = "persistentvolumeclaim-protection-controller";
    const IDENTITY: &'static str = "pvc-protection-controller";

    fn new(context: &Context) -> Self {
        let claims = context.on::<PersistentVolumeClaim>(|event, queue| {
            if change(&event.object().metadata, CLAIM_FINALIZER) != Change::None {
                queue.add(key_of(&event.object().metadata));
            }
        });
        let pods = context.on::<Pod>(|event, queue| {
            // A pod lets go of its claims when it is gone, or was another of that name.
            if !matches!(event, Event::Deleted(_)) && event.old().is_none() {
                return;
            }
            for pod in event.old().into_iter().chain([event.object()]) {
                let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                volumes::claims_of(pod).iter().for_each(|used| queue.add(format!("{namespace}/{}", used.claim)));
            }
        });
        Self { client: context.client.clone(), claims: claims.store(), pods: pods.store() }
    }

    async fn reconcile(&self, key: &str) -> anyhow::Result<Requeue> {
        let Some(claim) = self.claims.get(key) else { return Ok(Requeue::Never) };
        let (namespace, name) = split_key(key);
        let change = change(&claim.metadata, CLAIM_FINALIZER);
        if change == Change::Remove && self.is_used(namespace, name).await? {
            return Ok(Requeue::Never); // the pod's end is an event
        }
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        apply(&api, &claim, CLAIM_FINALIZER, change).await?;
        Ok(Requeue::Never)
    }
}

impl ClaimProtection {
    /// By the cache, and if that knows of none by the API server.
    async fn is_used(&self, namespace: &str, claim: &str) -> anyhow::Result<bool> {
        if self.pods.list_namespace(namespace).iter().any(|pod| uses(pod, claim)) {
            return Ok(true);
        }
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let live = api.list(&ListParams::default()).await.context("look for pods that use the claim")?;
        Ok(live.items.iter().any(|pod| uses(pod, claim)))
    }
}

pub struct VolumeProtection {
    client: Client,
    volumes: Store<PersistentVolume>,
}

impl Controller for VolumeProtection {
    const NAME: &'static str = "persistentvolume-protection-controller";
    const IDENTITY: &'static str = "pv-protection-controller";

    fn new(context: &Context) -> Self {
        Self { client: context.client.clone(), volumes: context.watch::<PersistentVolume>().store() }
    }

    async fn reconcile(&self, key: &str) -> anyhow::Result<Requeue> {
        let Some(volume) = self.volumes.get(key) else { return Ok(Requeue::Never) };
        let bound = volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
        let change = change(&volume.metadata, VOLUME_FINALIZER);
        if change == Change::Add || !bound {
            apply(&Api::all(self.client.clone()), volume.as_ref(), VOLUME_FINALIZER, change).await?;
        }
        Ok(Requeue::Never)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn finalizers_come_and_go() {
        let meta = |deleted: bool, finalizers: &[&str]| -> ObjectMeta {
            let deleted = deleted.then_some("2024-01-01T00:00:00Z");
            serde_json::from_value(json!({"deletionTimestamp": deleted, "finalizers": finalizers})).unwrap()
        };
        for (deleted, finalizers, expected) in [
            (false, &[][..], Change::Add),
            (false, &["f"], Change::None),
            (true, &["other", "f"], Change::Remove),
            (true, &["other"], Change::None),
        ] {
            assert_eq!(change(&meta(deleted, finalizers), "f"), expected, "{deleted} {finalizers:?}");
        }
    }

    #[test]
    fn only_pods_with_a_node_use_a_claim() {
        let pod = |node: &str, volume: serde_json::Value| -> Pod {
            let mut volume = volume;
            volume["name"] = json!("v");
            let spec = json!({"nodeName": node, "containers": [], "volumes": [volume]});
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
        };
        let claim = json!({"persistentVolumeClaim": {"claimName": "c"}});
        assert!(uses(&pod("n", claim.clone()), "c"));
        assert!(!uses(&pod("", claim.clone()), "c") && !uses(&pod("n", claim), "other"));
        assert!(uses(&pod("n", json!({"ephemeral": {}})), "p-v"));
    }
}
