//! Collects pods that nobody else will: finished ones beyond the threshold, pods of nodes that are gone, and pods deleted
//! before they were ever bound.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use client::{Client, ErrorExt as _, Event, Store, split_key};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;

use crate::common::{now, pods};
use crate::framework::{Config, Context, Controller, Requeue};

/// The key under which finished pods are counted; every other key is a pod's.
const FINISHED: &str = "finished";

pub struct PodGarbageCollector {
    client: Client,
    config: Arc<Config>,
    pods: Store<Pod>,
    nodes: Store<Node>,
}

impl Controller for PodGarbageCollector {
    const NAME: &'static str = "pod-garbage-collector";
    const WORKERS: usize = 1;

    fn new(context: &Context) -> Self {
        let nodes = context.informer::<Node>().store();
        let (threshold, known) = (context.config.terminated_pod_threshold, nodes.clone());
        let pods = context.on::<Pod>(move |event, queue| {
            let pod = event.object();
            if matches!(event, Event::Deleted(_)) {
                return;
            }
            if threshold > 0 && pods::is_finished(pod) {
                queue.add(FINISHED.into());
            }
            let node = pods::node_name(pod);
            if if node.is_empty() { pods::is_terminating(pod) } else { known.get(node).is_none() } {
                queue.add(client::key_of(&pod.metadata));
            }
        });
        pods.add_index("node", |pod| vec![pods::node_name(pod).to_owned()]);
        pods.add_index("finished", |pod| if pods::is_finished(pod) { vec![String::new()] } else { vec![] });
        let bound = pods.store();
        context.on::<Node>(move |event, queue| {
            if let Event::Deleted(node) = event {
                let pods = bound.by_index("node", node.metadata.name.as_deref().unwrap_or_default());
                pods.iter().for_each(|pod| queue.add(client::key_of(&pod.metadata)));
            }
        });
        Self { client: context.client.clone(), config: context.config.clone(), pods: pods.store(), nodes }
    }

    async fn reconcile(&self, key: &str) -> anyhow::Result<Requeue> {
        if key == FINISHED {
            let surplus = surplus(self.pods.by_index("finished", ""), self.config.terminated_pod_threshold);
            for pod in surplus {
                self.collect(&pod, None).await?;
            }
            return Ok(Requeue::Never);
        }
        let Some(pod) = self.pods.get(key) else { return Ok(Requeue::Never) };
        match pods::node_name(&pod) {
            "" if pods::is_terminating(&pod) => self.collect(&pod, None).await?,
            "" => {}
            node if self.nodes.get(node).is_none() => return self.orphaned(&pod, node).await,
            _ => {}
        }
        Ok(Requeue::Never)
    }
}

impl PodGarbageCollector {
    /// A pod of a node that is not in the cache is collected once the node has been missing for a while, and the API
    /// server says so too.
    async fn orphaned(&self, pod: &Pod, node: &str) -> anyhow::Result<Requeue> {
        let quarantine = self.config.missing_node_quarantine;
        let bound = pods::condition(pod, "PodScheduled").and_then(|scheduled| scheduled.last_transition_time.as_ref());
        let since = bound.or(pod.metadata.creation_timestamp.as_ref()).map_or(Timestamp::UNIX_EPOCH, |time| time.0);
        let age = Duration::try_from(Timestamp::now().duration_since(since)).unwrap_or_default();
        if age < quarantine {
            return Ok(Requeue::After(quarantine - age));
        }
        if Api::<Node>::all(self.client.clone()).get_opt(node).await.context("look up the node")?.is_none() {
            self.collect(pod, Some("PodGC: node no longer exists")).await?;
        }
        Ok(Requeue::Never)
    }

    /// Deletes a pod at once, after noting that it failed: nobody else will say how it ended.
    async fn collect(&self, pod: &Pod, disruption: Option<&str>) -> anyhow::Result<()> {
        let key = client::key_of(&pod.metadata);
        let (namespace, name) = split_key(&key);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        if !pods::is_finished(pod) {
            let mut status = json!({"phase": "Failed"});
            if let Some(message) = disruption {
                status["conditions"] = json!([{"type": "DisruptionTarget", "status": "True", "lastTransitionTime": now(),
                    "reason": "DeletionByPodGC", "message": message, "observedGeneration": pod.metadata.generation}]);
            }
            let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": status});
            match api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Err(error) if !error.is_not_found() => return Err(error).context("mark the pod failed"),
                _ => {}
            }
        }
        let this = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        match api.delete(name, &DeleteParams::default().grace_period(0).preconditions(this)).await {
            Err(error) if !error.is_not_found() => Err(error).context("delete the pod"),
            _ => Ok(()),
        }
    }
}

/// The oldest finished pods beyond the threshold; evicted ones first, as there may be many and they tell little.
fn surplus(mut finished: Vec<Arc<Pod>>, threshold: usize) -> Vec<Arc<Pod>> {
    let evicted = |pod: &Pod| pod.status.as_ref().and_then(|status| status.reason.as_deref()) == Some("Evicted");
    finished.sort_by_key(|pod| (!evicted(pod), pod.metadata.creation_timestamp.clone(), pod.metadata.name.clone()));
    finished.truncate(finished.len().saturating_sub(threshold));
    finished
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evicted_then_oldest_finished_pods_go_first() {
        let pod = |name: &str, created: &str, reason: &str| -> Arc<Pod> {
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": name, "creationTimestamp": created},
                    "status": {"phase": "Failed", "reason": reason}}))
                .unwrap(),
            )
        };
        let pods = vec![
            pod("new", "2024-01-03T00:00:00Z", ""),
            pod("old", "2024-01-01T00:00:00Z", ""),
            pod("evicted", "2024-01-02T00:00:00Z", "Evicted"),
        ];
        let names = |threshold| -> Vec<_> {
            surplus(pods.clone(), threshold).iter().map(|pod| pod.metadata.name.clone().unwrap()).collect()
        };
        assert_eq!(names(1), ["evicted", "old"]);
        assert!(names(3).is_empty());
    }
}
