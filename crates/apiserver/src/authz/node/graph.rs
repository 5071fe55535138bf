//! Which objects lead to which node: node <- pod <- secret, config map, claim, service account;
//! claim <- volume <- secret; node <- volume attachment.

use std::collections::{HashMap, HashSet};

use parking_lot::RwLock;
use serde::Deserialize;
use serde_json::Value;

use super::references::{Target, references};
use crate::authn::lookup::{Change, Index, Kind, PERSISTENT_VOLUMES, PODS, Synced, VOLUME_ATTACHMENTS};

type Key = (String, String);
type Edges = HashMap<(Target, Key), HashMap<String, usize>>;

#[derive(Default)]
struct State {
    pods: HashMap<Key, Pod>,
    /// For each target, the nodes that reach it and through how many pods.
    targets: Edges,
    volumes: HashMap<String, Volume>,
    /// Secrets that volumes name.
    volume_secrets: HashMap<Key, HashSet<String>>,
    attachments: HashMap<String, String>,
}

struct Pod {
    uid: String,
    node: String,
    ephemeral_containers: usize,
    targets: Vec<(Target, Key)>,
}

#[derive(Default)]
struct Volume {
    claim: Key,
    secrets: Vec<Key>,
}

/// Read-locked for a decision, write-locked for a pod that came to or left a node.
#[derive(Default)]
pub struct Graph {
    state: RwLock<State>,
    pub(super) synced: Synced,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    name: String,
    namespace: String,
    uid: String,
    annotations: HashMap<String, String>,
}

/// Enough of a pod to see whether its edges may have changed.
#[derive(Deserialize)]
struct Glance {
    metadata: Metadata,
    #[serde(default)]
    spec: GlanceSpec,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct GlanceSpec {
    node_name: String,
    ephemeral_containers: Vec<serde::de::IgnoredAny>,
}

impl Graph {
    pub fn pod_is_on(&self, node: &str, namespace: &str, name: &str) -> bool {
        self.state.read().pods.get(&key(namespace, name)).is_some_and(|pod| pod.node == node)
    }

    pub fn leads_to(&self, node: &str, target: Target, namespace: &str, name: &str) -> bool {
        let state = self.state.read();
        let target = (target, key(namespace, name));
        state.reaches(node, &target)
            || target.0 == Target::Secret
                && state
                    .volume_secrets
                    .get(&target.1)
                    .is_some_and(|volumes| volumes.iter().any(|volume| state.volume_is_on(node, volume)))
    }

    pub fn volume_is_on(&self, node: &str, name: &str) -> bool {
        self.state.read().volume_is_on(node, name)
    }

    pub fn attachment_is_on(&self, node: &str, name: &str) -> bool {
        self.state.read().attachments.get(name).is_some_and(|on| on == node)
    }
}

fn key(namespace: &str, name: &str) -> Key {
    (namespace.to_owned(), name.to_owned())
}

impl State {
    fn reaches(&self, node: &str, target: &(Target, Key)) -> bool {
        self.targets.get(target).is_some_and(|nodes| nodes.contains_key(node))
    }

    fn volume_is_on(&self, node: &str, name: &str) -> bool {
        let claim = self.volumes.get(name).map(|volume| &volume.claim).filter(|claim| !claim.1.is_empty());
        claim.is_some_and(|claim| self.reaches(node, &(Target::PersistentVolumeClaim, claim.clone())))
    }

    fn put_pod(&mut self, bytes: &[u8]) -> serde_json::Result<()> {
        let Glance { metadata, spec } = serde_json::from_slice(bytes)?;
        let pod_key = (metadata.namespace, metadata.name);
        let known = self.pods.get(&pod_key).is_some_and(|pod| {
            pod.uid == metadata.uid
                && pod.node == spec.node_name
                && pod.ephemeral_containers == spec.ephemeral_containers.len()
        });
        if known {
            return Ok(());
        }
        self.remove_pod(&pod_key);
        if spec.node_name.is_empty() {
            return Ok(());
        }
        // A mirror pod is the node's own word and must not open anything to it.
        let targets = match metadata.annotations.contains_key("kubernetes.io/config.mirror") {
            true => Vec::new(),
            false => references(&pod_key.1, &serde_json::from_slice::<Value>(bytes)?["spec"]),
        };
        let targets: Vec<_> = targets.into_iter().map(|(t, name)| (t, (pod_key.0.clone(), name))).collect();
        for target in &targets {
            *self.targets.entry(target.clone()).or_default().entry(spec.node_name.clone()).or_default() += 1;
        }
        let ephemeral_containers = spec.ephemeral_containers.len();
        self.pods.insert(pod_key, Pod { uid: metadata.uid, node: spec.node_name, ephemeral_containers, targets });
        Ok(())
    }

    fn remove_pod(&mut self, pod: &Key) {
        let Some(pod) = self.pods.remove(pod) else { return };
        for target in &pod.targets {
            let Some(nodes) = self.targets.get_mut(target) else { continue };
            if let Some(count) = nodes.get_mut(&pod.node) {
                *count -= 1;
                if *count == 0 {
                    nodes.remove(&pod.node);
                }
            }
            if nodes.is_empty() {
                self.targets.remove(target);
            }
        }
    }

    fn put_volume(&mut self, bytes: &[u8]) -> serde_json::Result<()> {
        let object: Value = serde_json::from_slice(bytes)?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let name = text(&object["metadata"]["name"]);
        let claim = &object["spec"]["claimRef"];
        let claim = (text(&claim["namespace"]), text(&claim["name"]));
        let mut secrets = Vec::new();
        volume_secrets(&object["spec"], &claim.0, &mut secrets);
        self.remove_volume(&name);
        for secret in &secrets {
            self.volume_secrets.entry(secret.clone()).or_default().insert(name.clone());
        }
        self.volumes.insert(name, Volume { claim, secrets });
        Ok(())
    }

    fn remove_volume(&mut self, name: &str) {
        let Some(volume) = self.volumes.remove(name) else { return };
        for secret in volume.secrets {
            if let Some(volumes) = self.volume_secrets.get_mut(&secret) {
                volumes.remove(name);
                if volumes.is_empty() {
                    self.volume_secrets.remove(&secret);
                }
            }
        }
    }

    fn forget(&mut self, kind: Kind, change: &Change) {
        match (kind, change) {
            (PODS, Change::Delete { namespace, name }) => self.remove_pod(&key(namespace, name)),
            (PERSISTENT_VOLUMES, Change::Delete { name, .. }) => self.remove_volume(name),
            (VOLUME_ATTACHMENTS, Change::Delete { name, .. }) => drop(self.attachments.remove(name)),
            (PODS, Change::Reset) => (self.pods, self.targets) = Default::default(),
            (PERSISTENT_VOLUMES, Change::Reset) => (self.volumes, self.volume_secrets) = Default::default(),
            (VOLUME_ATTACHMENTS, Change::Reset) => self.attachments.clear(),
            _ => {}
        }
    }

    fn put_attachment(&mut self, bytes: &[u8]) -> serde_json::Result<()> {
        let object: Value = serde_json::from_slice(bytes)?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        self.attachments.insert(text(&object["metadata"]["name"]), text(&object["spec"]["nodeName"]));
        Ok(())
    }
}

/// Secrets that a node needs to mount a volume; those without a namespace are in the claim's.
fn volume_secrets(spec: &Value, claim_namespace: &str, found: &mut Vec<Key>) {
    for source in spec.as_object().into_iter().flat_map(|fields| fields.values()) {
        for reference in ["secretRef", "nodePublishSecretRef", "nodeStageSecretRef", "nodeExpandSecretRef"] {
            if let Some(name) = source[reference]["name"].as_str() {
                let namespace = source[reference]["namespace"].as_str().unwrap_or(claim_namespace);
                found.push(key(namespace, name));
            }
        }
        if let Some(name) = source["secretName"].as_str() {
            let namespace = source["secretNamespace"].as_str().unwrap_or(claim_namespace);
            found.push(key(namespace, name));
        }
    }
}

impl Index for Graph {
    fn change(&self, kind: Kind, change: &Change) {
        let mut state = self.state.write();
        let put = match (kind, change) {
            (PODS, Change::Put(bytes)) => state.put_pod(bytes),
            (PERSISTENT_VOLUMES, Change::Put(bytes)) => state.put_volume(bytes),
            (VOLUME_ATTACHMENTS, Change::Put(bytes)) => state.put_attachment(bytes),
            (_, change) => {
                state.forget(kind, change);
                Ok(())
            }
        };
        if let Err(error) = put {
            tracing::error!(%error, kind = kind.plural, "a stored object cannot be decoded for the node authorizer");
        }
    }
}
