//! Evicts pods from nodes with NoExecute taints that they do not tolerate, or no longer do: a toleration with
//! tolerationSeconds holds that long from when the taint was added.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context as _;
use client::{Client, ErrorExt as _, Event, EventRecorder, EventType, Store, key_of, split_key};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use parking_lot::Mutex;
use serde_json::json;

use crate::common::{now, pods};
use crate::framework::{Context, Controller, Requeue};

pub struct TaintEviction {
    client: Client,
    events: EventRecorder,
    nodes: Store<Node>,
    pods: Store<Pod>,
    /// Pods that will be evicted if nothing changes, by key: their uid and since when. A taint need not tell when it
    /// was added.
    waiting: Mutex<HashMap<String, (String, Timestamp)>>,
}

impl Controller for TaintEviction {
    const NAME: &'static str = "taint-eviction-controller";
    const IDENTITY: &'static str = "node-controller";

    fn new(context: &Context) -> Self {
        let nodes = context.informer::<Node>().store();
        let known = nodes.clone();
        let pods = context.on::<Pod>(move |event, queue| {
            let pod = event.object();
            let tainted = known.get(pods::node_name(pod)).is_some_and(|node| !no_execute(&node).is_empty());
            if tainted && !matches!(event, Event::Deleted(_)) {
                queue.add(key_of(&pod.metadata));
            }
        });
        pods.add_index("node", |pod| vec![pods::node_name(pod).to_owned()]);
        let bound = pods.store();
        context.on::<Node>(move |event, queue| {
            let node = event.object();
            if event.old().map_or_else(|| no_execute(node).is_empty(), |old| no_execute(old) == no_execute(node)) {
                return;
            }
            let pods = bound.by_index("node", node.metadata.name.as_deref().unwrap_or_default());
            pods.iter().for_each(|pod| queue.add(key_of(&pod.metadata)));
        });
        Self {
            client: context.client.clone(),
            events: context.events.clone(),
            nodes,
            pods: pods.store(),
            waiting: Mutex::default(),
        }
    }

    async fn reconcile(&self, key: &str) -> anyhow::Result<Requeue> {
        let waited = self.waiting.lock().remove(key);
        let Some(pod) = self.pods.get(key).filter(|pod| pods::is_active(pod)) else { return Ok(Requeue::Never) };
        let Some(node) = self.nodes.get(pods::node_name(&pod)) else { return Ok(Requeue::Never) };
        let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.clone()).unwrap_or_default();
        let (uid, now) = (pod.metadata.uid.clone().unwrap_or_default(), Timestamp::now());
        let waited = waited.filter(|(waiter, _)| *waiter == uid).map(|(_, since)| since);
        let since = waited.unwrap_or(now);
        match evict_in(&no_execute(&node), &tolerations, since, now) {
            None => {
                if waited.is_some() {
                    let text = format!("Cancelling deletion of Pod {key}");
                    self.events.event(pod.as_ref(), EventType::Normal, "TaintManagerEviction", text);
                }
                Ok(Requeue::Never)
            }
            Some(wait) if !wait.is_zero() => {
                self.waiting.lock().insert(key.to_owned(), (uid, since));
                Ok(Requeue::After(wait))
            }
            Some(_) => self.evict(&pod).await,
        }
    }
}

impl TaintEviction {
    async fn evict(&self, pod: &Pod) -> anyhow::Result<Requeue> {
        let key = key_of(&pod.metadata);
        let (namespace, name) = split_key(&key);
        self.events.event(pod, EventType::Normal, "TaintManagerEviction", format!("Marking for deletion Pod {key}"));
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint", "lastTransitionTime": now(),
            "observedGeneration": pod.metadata.generation});
        let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [condition]}});
        let marked = api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await;
        let this = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        let deleted = match marked {
            Ok(_) => api.delete(name, &DeleteParams::default().preconditions(this)).await.map(drop),
            Err(error) => Err(error),
        };
        match deleted {
            Err(error) if !error.is_not_found() => Err(error).context("evict the pod"),
            _ => Ok(Requeue::Never),
        }
    }
}

fn no_execute(node: &Node) -> Vec<Taint> {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    taints.filter(|taint| taint.effect == "NoExecute").cloned().collect()
}

/// When to evict a pod that has waited since `since`: None if it tolerates all taints for ever, zero for now.
fn evict_in(taints: &[Taint], tolerations: &[Toleration], since: Timestamp, now: Timestamp) -> Option<Duration> {
    let deadlines = taints.iter().filter_map(|taint| {
        let mut tolerating = tolerations.iter().filter(|toleration| tolerates(toleration, taint)).peekable();
        if tolerating.peek().is_none() {
            return Some(Duration::ZERO);
        }
        // The shortest limit counts; a toleration without one does not lengthen another.
        let seconds = tolerating.filter_map(|toleration| toleration.toleration_seconds).min()?.max(0);
        let added = taint.time_added.as_ref().map_or(since, |time| time.0);
        let left = (added + SignedDuration::from_secs(seconds)).duration_since(now);
        Some(Duration::try_from(left).unwrap_or_default())
    });
    deadlines.min()
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    let value = || toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default();
    (effect.is_empty() || effect == taint.effect)
        && (key.is_empty() || key == taint.key)
        && (toleration.operator.as_deref() == Some("Exists") || (!key.is_empty() && value()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_stay_as_long_as_they_tolerate() {
        let at = |second: i64| Timestamp::from_second(1_700_000_000 + second).unwrap();
        let taints: Vec<Taint> = serde_json::from_value(json!([
            {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute", "timeAdded": "2023-11-14T22:13:20Z"}]))
        .unwrap();
        let evict = |tolerations: serde_json::Value, second| {
            let tolerations = serde_json::from_value::<Vec<Toleration>>(tolerations).unwrap();
            evict_in(&taints, &tolerations, at(second), at(second)).map(|wait| wait.as_secs())
        };
        let default = json!({"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
            "tolerationSeconds": 300});
        assert_eq!(evict(json!([]), 0), Some(0));
        assert_eq!(evict(json!([default]), 0), Some(300));
        assert_eq!(evict(json!([default]), 250), Some(50));
        assert_eq!(evict(json!([default]), 400), Some(0));
        assert_eq!(evict(json!([{"operator": "Exists"}]), 400), None);
        assert_eq!(evict(json!([{"operator": "Exists"}, default]), 0), Some(300));
        assert_eq!(evict(json!([{"key": "other", "operator": "Exists"}]), 0), Some(0));
        assert_eq!(evict_in(&[], &[], at(0), at(0)), None);
        let untimed = [Taint { time_added: None, ..taints[0].clone() }];
        let default: Vec<Toleration> = serde_json::from_value(json!([default])).unwrap();
        assert_eq!(evict_in(&untimed, &default, at(100), at(150)), Some(Duration::from_secs(250)));
    }
}
