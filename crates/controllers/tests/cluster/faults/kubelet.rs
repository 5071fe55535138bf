//! A stand-in for every kubelet, outside the process that dies: it declares pods running and ready, ends those of jobs,
//! and lets go of those that are deleted. It counts the pods that there ever were.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use client::{Client, Event, Informers};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, Patch, Preconditions};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;

/// The annotation of a pod template that says how its pods end, if they do: `Succeeded`.
pub const ENDS: &str = "test/ends";
/// How many pods of such a template fail first (of index 1, if the job has indexes).
pub const FAILURES: &str = "test/failures";

#[derive(Clone)]
pub struct Kubelet {
    client: Client,
    world: Arc<Mutex<World>>,
    _running: Arc<Mutex<Option<AbortOnDropHandle<()>>>>,
}

#[derive(Default)]
struct World {
    /// By namespace, the uids of pods ever seen.
    seen: HashMap<String, HashSet<String>>,
    started: HashSet<String>,
    failures: HashMap<String, usize>,
    addresses: u32,
}

impl Kubelet {
    pub fn start(client: Client, informers: &Informers) -> Self {
        let kubelet = Self { client, world: Arc::default(), _running: Arc::default() };
        let (mut events, following) = (informers.get::<Pod>().subscribe(), kubelet.clone());
        let follow = async move {
            while let Some(event) = events.recv().await {
                if !matches!(event, Event::Deleted(_)) {
                    tokio::spawn(following.clone().put(event.object().clone()));
                }
            }
        };
        *kubelet._running.lock() = Some(AbortOnDropHandle::new(tokio::spawn(follow)));
        kubelet
    }

    pub fn pods_ever(&self, namespace: &str) -> usize {
        self.world.lock().seen.get(namespace).map_or(0, HashSet::len)
    }

    async fn put(self, pod: Arc<Pod>) {
        let (name, namespace) = (pod.metadata.name.clone().unwrap(), pod.metadata.namespace.clone().unwrap());
        let uid = pod.metadata.uid.clone().unwrap();
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
        let ended = ["Succeeded", "Failed"].contains(&phase);
        if pod.metadata.deletion_timestamp.is_some() {
            if !ended {
                set_status(&pods, &name, &uid, json!({"phase": "Failed"})).await;
            }
            let this = Preconditions { uid: Some(uid), resource_version: None };
            // It may be gone, or wait for a finalizer.
            let _ = pods.delete(&name, &DeleteParams::default().grace_period(0).preconditions(this)).await;
        } else if let Some(status) = self.world.lock().status(&pod, &namespace, &uid) {
            tokio::spawn(async move { set_status(&pods, &name, &uid, status).await });
        }
    }
}

async fn set_status(pods: &Api<Pod>, name: &str, uid: &str, status: Value) {
    let patch = Patch::Merge(json!({"metadata": {"uid": uid}, "status": status}));
    let _ = pods.patch_status(name, &Default::default(), &patch).await; // it may be gone
}

impl World {
    /// What to say about a pod seen for the first time.
    fn status(&mut self, pod: &Pod, namespace: &str, uid: &str) -> Option<Value> {
        self.seen.entry(namespace.to_owned()).or_default().insert(uid.to_owned());
        if !self.started.insert(uid.to_owned()) {
            return None;
        }
        let annotation = |key: &str| pod.metadata.annotations.as_ref()?.get(key).cloned();
        let Some(ends) = annotation(ENDS) else { return Some(self.running()) };
        let index = annotation("batch.kubernetes.io/job-completion-index");
        let failures = annotation(FAILURES).and_then(|failures| failures.parse().ok()).unwrap_or(0);
        let failed = self.failures.entry(namespace.to_owned()).or_default();
        if *failed < failures && index.is_none_or(|index| index == "1") {
            *failed += 1;
            return Some(ended("Failed", 1));
        }
        Some(ended(&ends, 0))
    }

    fn running(&mut self) -> Value {
        self.addresses += 1;
        let address = format!("10.42.{}.{}", self.addresses / 250, self.addresses % 250 + 2);
        json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2024-01-01T00:00:00Z"}]})
    }
}

/// Ended so long ago that a job's back-off is over.
fn ended(phase: &str, code: i32) -> Value {
    let finished = Timestamp::now() - SignedDuration::from_secs(60);
    let terminated = json!({"exitCode": code, "finishedAt": finished, "startedAt": finished});
    json!({"phase": phase, "containerStatuses": [{"name": "c", "image": "i", "imageID": "i", "ready": false,
        "restartCount": 0, "state": {"terminated": terminated}}]})
}
