//! Makes the claims of generic ephemeral volumes: one per volume of a pod, owned by the pod, so that it goes with it.

use anyhow::Context as _;
use client::{Client, ErrorExt as _, Event, EventRecorder, EventType, Store, key_of, owner_reference, split_key};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume};
use kube::Api;
use kube::api::PostParams;
use kube::core::ObjectMeta;

use crate::common::{message, pods};
use crate::framework::{Context, Controller, Requeue};

pub struct EphemeralVolumeController {
    client: Client,
    events: EventRecorder,
    pods: Store<Pod>,
    claims: Store<PersistentVolumeClaim>,
}

impl Controller for EphemeralVolumeController {
    const NAME: &'static str = "ephemeral-volume-controller";

    fn new(context: &Context) -> Self {
        let pods = context.on::<Pod>(|event, queue| {
            let pod = event.object();
            if ephemeral(pod).next().is_some() && !matches!(event, Event::Deleted(_)) {
                queue.add(key_of(&pod.metadata));
            }
        });
        let claims = context.on::<PersistentVolumeClaim>(|event, queue| {
            let Event::Deleted(claim) = event else { return };
            crate::framework::owner_key(&claim.metadata, "Pod").into_iter().for_each(|key| queue.add(key));
        });
        Self {
            client: context.client.clone(),
            events: EventRecorder::new(context.client.clone(), "ephemeral_volume", ""),
            pods: pods.store(),
            claims: claims.store(),
        }
    }

    async fn reconcile(&self, key: &str) -> anyhow::Result<Requeue> {
        let Some(pod) = self.pods.get(key) else { return Ok(Requeue::Never) };
        if pods::is_terminating(&pod) {
            return Ok(Requeue::Never);
        }
        for volume in ephemeral(&pod) {
            if let Err(error) = self.provide(key, &pod, volume).await {
                let text = format!("ephemeral volume {}: {error:#}", volume.name);
                self.events.event(pod.as_ref(), EventType::Warning, "FailedBinding", text);
                return Err(error.context(format!("pod {key}, ephemeral volume {}", volume.name)));
            }
        }
        Ok(Requeue::Never)
    }
}

fn ephemeral(pod: &Pod) -> impl Iterator<Item = &Volume> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter(|volume| volume.ephemeral.is_some())
}

/// The claim of a volume, from its template.
fn claim(pod: &Pod, volume: &Volume) -> Option<PersistentVolumeClaim> {
    let template = volume.ephemeral.as_ref()?.volume_claim_template.clone()?;
    let ObjectMeta { labels, annotations, .. } = template.metadata.unwrap_or_default();
    let metadata = ObjectMeta {
        name: Some(format!("{}-{}", pod.metadata.name.as_deref()?, volume.name)),
        namespace: pod.metadata.namespace.clone(),
        owner_references: Some(vec![owner_reference(pod)]),
        labels,
        annotations,
        ..Default::default()
    };
    Some(PersistentVolumeClaim { metadata, spec: Some(template.spec), status: None })
}

impl EphemeralVolumeController {
    async fn provide(&self, key: &str, pod: &Pod, volume: &Volume) -> anyhow::Result<()> {
        let claim = claim(pod, volume).context("the volume has no claim template")?;
        let claim_key = key_of(&claim.metadata);
        let (namespace, name) = split_key(&claim_key);
        if let Some(found) = self.claims.get(&claim_key) {
            let owned = client::controller_of(&found.metadata).map(|owner| &owner.uid) == pod.metadata.uid.as_ref();
            anyhow::ensure!(owned, "PVC {claim_key} was not created for pod {key} (pod is not owner)");
            return Ok(());
        }
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        match api.create(&PostParams::default(), &claim).await {
            Err(error) if error.is_already_exists() => Ok(()), // by us, and not in the cache yet
            Err(error) => anyhow::bail!("create PVC {name}: {}", message(&error)),
            Ok(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn claims_come_from_the_template_and_belong_to_the_pod() {
        let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"accessModes": ["ReadWriteOnce"]}});
        let pod = json!({"metadata": {"name": "p", "namespace": "ns", "uid": "1"}, "spec": {"containers": [],
            "volumes": [{"name": "plain", "emptyDir": {}}, {"name": "v", "ephemeral": {"volumeClaimTemplate": template}}]}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let claims: Vec<_> = ephemeral(&pod).filter_map(|volume| claim(&pod, volume)).collect();
        assert_eq!(claims.len(), 1);
        assert_eq!(key_of(&claims[0].metadata), "ns/p-v");
        assert_eq!(claims[0].metadata.labels.as_ref().unwrap()["a"], "b");
        assert_eq!(client::controller_of(&claims[0].metadata).unwrap().uid, "1");
    }
}
