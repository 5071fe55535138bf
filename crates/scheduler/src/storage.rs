//! Claims, volumes and classes as decisions see them: as the API has them, or as reservations are about to change them.
//!
//! A reservation overlays an object until an event about it comes, be it the one that our own write causes. A write that
//! was decided on an older state than the server's conflicts, and its pod is tried again.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;

use crate::affinity::NodeSelector;

/// An object, and how the reservation of a pod (by uid) is about to change it.
#[derive(Debug)]
struct Entry<T> {
    object: Arc<T>,
    reserved: Option<(String, Arc<T>)>,
}

impl<T> Entry<T> {
    fn latest(&self) -> &Arc<T> {
        self.reserved.as_ref().map_or(&self.object, |(_, reserved)| reserved)
    }
}

#[derive(Debug)]
struct Table<T>(HashMap<String, Entry<T>>);

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> Table<T> {
    fn get(&self, key: &str) -> Option<&Arc<T>> {
        self.0.get(key).map(Entry::latest)
    }

    fn set(&mut self, key: String, object: Option<Arc<T>>) {
        match object {
            Some(object) => drop(self.0.insert(key, Entry { object, reserved: None })),
            None => drop(self.0.remove(&key)),
        }
    }

    fn reserve(&mut self, key: &str, pod: &str, object: Arc<T>) {
        if let Some(entry) = self.0.get_mut(key) {
            entry.reserved = Some((pod.to_owned(), object));
        }
    }

    fn release(&mut self, pod: &str) {
        for entry in self.0.values_mut() {
            entry.reserved.take_if(|(by, _)| by == pod);
        }
    }
}

#[derive(Debug, Default)]
pub struct Storage {
    claims: Table<PersistentVolumeClaim>,
    volumes: Table<PersistentVolume>,
    /// Compiled node affinity, of the volumes that have one.
    affinity: HashMap<String, NodeSelector>,
    classes: HashMap<String, Arc<StorageClass>>,
}

impl Storage {
    pub fn claim(&self, namespace: &str, name: &str) -> Option<&Arc<PersistentVolumeClaim>> {
        self.claims.get(&format!("{namespace}/{name}"))
    }

    pub fn volume(&self, name: &str) -> Option<&Arc<PersistentVolume>> {
        self.volumes.get(name)
    }

    pub fn volumes(&self) -> impl Iterator<Item = &Arc<PersistentVolume>> {
        self.volumes.0.values().map(Entry::latest)
    }

    pub fn class(&self, name: &str) -> Option<&Arc<StorageClass>> {
        self.classes.get(name)
    }

    /// Whether a volume can be reached from a node.
    pub fn reaches(&self, volume: &PersistentVolume, node: &Node) -> bool {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        self.affinity.get(name).is_none_or(|affinity| affinity.matches(node))
    }

    pub fn set_claim(&mut self, key: String, claim: Option<Arc<PersistentVolumeClaim>>) {
        self.claims.set(key, claim);
    }

    pub fn set_volume(&mut self, name: String, volume: Option<Arc<PersistentVolume>>) {
        let spec = volume.as_ref().and_then(|volume| volume.spec.as_ref());
        match spec.and_then(|spec| spec.node_affinity.as_ref()?.required.as_ref()) {
            Some(required) => drop(self.affinity.insert(name.clone(), NodeSelector::new(required))),
            None => drop(self.affinity.remove(&name)),
        }
        self.volumes.set(name, volume);
    }

    pub fn set_class(&mut self, name: String, class: Option<Arc<StorageClass>>) {
        match class {
            Some(class) => drop(self.classes.insert(name, class)),
            None => drop(self.classes.remove(&name)),
        }
    }

    pub fn reserve_claim(&mut self, pod: &str, claim: Arc<PersistentVolumeClaim>) {
        self.claims.reserve(&client::key_of(&claim.metadata), pod, claim);
    }

    pub fn reserve_volume(&mut self, pod: &str, volume: Arc<PersistentVolume>) {
        self.volumes.reserve(&client::key_of(&volume.metadata), pod, volume);
    }

    /// Forgets what was reserved for a pod.
    pub fn release(&mut self, pod: &str) {
        self.claims.release(pod);
        self.volumes.release(pod);
    }
}
