//! Static pods: manifests in a directory, run without the API server, and their mirrors in it.
//!
//! A mirror is only a picture: deleting it does not stop its pod, and it is painted again.

use crate::pod;
use crate::pods::Pods;
use crate::worker::Message;
use client::ErrorExt as _;
use k8s_openapi::api::core::v1::{Node, Pod, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use parking_lot::Mutex;
use serde::Deserialize as _;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

const SCAN: Duration = Duration::from_secs(1);
/// A manifest larger than this is refused.
const MANIFEST_BYTES: u64 = 10 << 20;

/// The static pods by uid, and the uids of their mirrors.
pub struct Mirrors {
    pods: Arc<Pods>,
    known: Mutex<BTreeMap<String, Known>>,
}

/// A static pod and its mirror's uid.
type Known = (Arc<Pod>, Option<String>);

impl Mirrors {
    pub fn new(pods: Arc<Pods>) -> Arc<Mirrors> {
        Arc::new(Mirrors { pods, known: Mutex::default() })
    }

    /// Starts the pods of new manifests, and ends those whose manifest is gone.
    pub async fn scan(&self) {
        let config = &self.pods.shared().config;
        let Some(directory) = &config.manifest_dir else { return };
        let (found, errors) = scan(directory, &config.node_name);
        for error in errors {
            tracing::warn!(error, "static pod manifest ignored");
        }
        let gone: Vec<Arc<Pod>> = {
            let mut known = self.known.lock();
            let gone =
                known.iter().filter(|(uid, _)| !found.contains_key(*uid)).map(|(_, (pod, _))| pod.clone()).collect();
            known.retain(|uid, _| found.contains_key(uid));
            gone
        };
        for pod in gone {
            self.pods.remove(&pod).await;
            self.delete(&pod).await;
        }
        for (uid, pod) in found {
            let pod = Arc::new(pod);
            let new = !self.known.lock().contains_key(&uid);
            if new {
                self.known.lock().insert(uid, (pod.clone(), None));
                self.pods.put(pod, None).await;
            }
        }
    }

    /// The API has, or no longer has, a mirror.
    pub async fn seen(&self, mirror: &Pod, deleted: bool) {
        let uid = pod::annotation(mirror, pod::MIRROR_ANNOTATION).unwrap_or_default().to_owned();
        let present = !deleted && mirror.metadata.deletion_timestamp.is_none();
        let wanted = {
            let mut known = self.known.lock();
            let entry = known.get_mut(&uid);
            let wanted = entry.is_some();
            entry.into_iter().for_each(|entry| entry.1 = present.then(|| pod::uid(mirror).to_owned()));
            wanted
        };
        if present && wanted {
            self.pods.send(&uid, Message::Mirror(pod::uid(mirror).to_owned())).await;
        } else if !deleted {
            self.delete(mirror).await;
        }
    }

    async fn delete(&self, mirror: &Pod) {
        let api: Api<Pod> = Api::namespaced(self.pods.shared().client.clone(), pod::namespace(mirror));
        let params = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        match api.delete(pod::name(mirror), &params).await {
            Err(error) if !error.is_not_found() => tracing::warn!(%error, "mirror pod not deleted"),
            _ => {}
        }
    }

    /// Paints the mirrors that are missing.
    async fn paint(&self, node: Option<&Node>) {
        let known: Vec<Known> = self.known.lock().values().cloned().collect();
        for (pod, _) in known.into_iter().filter(|(_, mirror)| mirror.is_none()) {
            let api: Api<Pod> = Api::namespaced(self.pods.shared().client.clone(), pod::namespace(&pod));
            match api.create(&PostParams::default(), &picture(&pod, node)).await {
                Ok(_) => {}
                // An older picture of that name: it is deleted when the informer shows it.
                Err(error) if error.is_already_exists() => {
                    if let Ok(old) = api.get(pod::name(&pod)).await
                        && pod::annotation(&old, pod::MIRROR_ANNOTATION) != pod::annotation(&pod, pod::HASH_ANNOTATION)
                    {
                        self.delete(&old).await;
                    }
                }
                Err(error) => tracing::debug!(%error, "mirror pod not created, will retry"),
            }
        }
    }
}

/// What the API shows of a static pod.
fn picture(pod: &Pod, node: Option<&Node>) -> Pod {
    let mut mirror = Pod { metadata: pod.metadata.clone(), spec: pod.spec.clone(), status: None };
    mirror.metadata.uid = None;
    let hash = pod::annotation(pod, pod::HASH_ANNOTATION).unwrap_or_default().to_owned();
    mirror.metadata.annotations.get_or_insert_default().insert(pod::MIRROR_ANNOTATION.to_owned(), hash);
    mirror.metadata.owner_references = node.and_then(|node| {
        Some(vec![OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: node.metadata.name.clone()?,
            uid: node.metadata.uid.clone()?,
            controller: Some(true),
            ..OwnerReference::default()
        }])
    });
    mirror
}

/// Follows the manifest directory.
pub async fn run(mirrors: Arc<Mirrors>, node: watch::Receiver<Option<Arc<Node>>>) {
    loop {
        let current = node.borrow().clone();
        if current.is_some() {
            mirrors.paint(current.as_deref()).await;
        }
        tokio::time::sleep(SCAN).await;
        mirrors.scan().await;
    }
}

/// The pods of a directory by uid, and what was wrong with other files.
fn scan(directory: &Path, node: &str) -> (BTreeMap<String, Pod>, Vec<String>) {
    let (mut found, mut errors) = (BTreeMap::new(), Vec::new());
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        if hidden || !path.is_file() {
            continue;
        }
        let text = match entry.metadata() {
            Ok(metadata) if metadata.len() <= MANIFEST_BYTES => std::fs::read_to_string(&path),
            _ => Err(std::io::Error::other("too large")),
        };
        match text.map_err(|error| error.to_string()).and_then(|text| parse(&text, node)) {
            Ok(pod) => drop(found.insert(pod::uid(&pod).to_owned(), pod)),
            Err(error) => errors.push(format!("{}: {error}", path.display())),
        }
    }
    (found, errors)
}

/// A manifest as a pod of this node; its uid is a hash of both, so that an edit makes another pod.
fn parse(text: &str, node: &str) -> Result<Pod, String> {
    // By way of a value: a typed decoder of YAML would be in the binary for this alone, and is large.
    let value: serde_json::Value = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    let mut pod = Pod::deserialize(&value).map_err(|error| error.to_string())?;
    let name = pod.metadata.name.clone().filter(|name| !name.is_empty()).ok_or("a static pod needs a name")?;
    let spec = pod.spec.as_mut().ok_or("a static pod needs a spec")?;
    spec.node_name = Some(node.to_owned());
    let tolerate = Toleration {
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        ..Toleration::default()
    };
    spec.tolerations.get_or_insert_default().push(tolerate);
    let hash: String =
        (0..4u8).map(|salt| format!("{:08x}", pod::fnv(format!("{salt}{node}\0{text}").as_bytes()))).collect();
    pod.metadata.name = Some(format!("{name}-{}", node.to_lowercase()));
    pod.metadata.namespace.get_or_insert_with(|| "default".to_owned());
    pod.metadata.uid = Some(hash.clone());
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(pod::SOURCE_ANNOTATION.to_owned(), "file".to_owned());
    annotations.insert(pod::HASH_ANNOTATION.to_owned(), hash);
    Ok(pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: x}]}\n";

    #[test]
    fn manifests() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("web.yaml"), MANIFEST).unwrap();
        std::fs::write(directory.path().join(".hidden"), MANIFEST).unwrap();
        std::fs::write(directory.path().join("bad.yaml"), "kind: Pod").unwrap();
        let (found, errors) = scan(directory.path(), "Node1");
        let pods: Vec<&Pod> = found.values().collect();
        assert_eq!((pods.len(), pod::name(pods[0]), errors.len()), (1, "web-node1", 1));
        assert!(pod::is_static(pods[0]) && !pod::is_mirror(pods[0]));
        let mirror = picture(pods[0], None);
        assert!(pod::is_mirror(&mirror) && mirror.metadata.uid.is_none());
        let edited = parse(&MANIFEST.replace("image: x", "image: other"), "Node1").unwrap();
        assert_ne!(pod::uid(&edited), pod::uid(pods[0]));
    }
}
