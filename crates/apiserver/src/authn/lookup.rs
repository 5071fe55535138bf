//! What authentication, authorization, admission and the proxies read of the stored objects.
//!
//! The generic path implements [`Lookup`] over its watch caches; a test implements it over a map
//! ([`memory`]). Objects come as stored JSON bytes, and each reader decodes only the fields it needs,
//! because on the path of every request a whole pod decoded for its UID would cost more than the rest.

use std::sync::{Arc, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use machinery::status::{ApiError, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::watch;

/// A stored kind, named by its plural.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kind {
    pub group: &'static str,
    pub version: &'static str,
    pub plural: &'static str,
}

const fn kind(group: &'static str, plural: &'static str) -> Kind {
    Kind { group, version: "v1", plural }
}

pub const CLUSTER_ROLES: Kind = kind("rbac.authorization.k8s.io", "clusterroles");
pub const CLUSTER_ROLE_BINDINGS: Kind = kind("rbac.authorization.k8s.io", "clusterrolebindings");
pub const ENDPOINT_SLICES: Kind = kind("discovery.k8s.io", "endpointslices");
pub const IP_ADDRESSES: Kind = kind("networking.k8s.io", "ipaddresses");
pub const LIMIT_RANGES: Kind = kind("", "limitranges");
pub const NAMESPACES: Kind = kind("", "namespaces");
pub const NODES: Kind = kind("", "nodes");
pub const PERSISTENT_VOLUMES: Kind = kind("", "persistentvolumes");
pub const PODS: Kind = kind("", "pods");
pub const PRIORITY_CLASSES: Kind = kind("scheduling.k8s.io", "priorityclasses");
pub const RUNTIME_CLASSES: Kind = kind("node.k8s.io", "runtimeclasses");
pub const RESOURCE_QUOTAS: Kind = kind("", "resourcequotas");
pub const ROLES: Kind = kind("rbac.authorization.k8s.io", "roles");
pub const ROLE_BINDINGS: Kind = kind("rbac.authorization.k8s.io", "rolebindings");
pub const SECRETS: Kind = kind("", "secrets");
pub const SERVICES: Kind = kind("", "services");
pub const SERVICE_ACCOUNTS: Kind = kind("", "serviceaccounts");
pub const SERVICE_CIDRS: Kind = kind("networking.k8s.io", "servicecidrs");
pub const STORAGE_CLASSES: Kind = kind("storage.k8s.io", "storageclasses");
pub const VOLUME_ATTACHMENTS: Kind = kind("storage.k8s.io", "volumeattachments");

/// One step of a kind's history, as [`Lookup::watch`] tells it.
#[derive(Clone, Debug)]
pub enum Change {
    /// Everything told so far is void; a new list follows.
    Reset,
    Put(Bytes),
    Delete {
        namespace: String,
        name: String,
    },
    /// All that existed when the watch began (or after the last `Reset`) has been told.
    Synced,
}

#[async_trait]
pub trait Lookup: Send + Sync + 'static {
    /// `namespace` is empty for cluster-scoped kinds. A kind that is not served is never found.
    async fn get(&self, kind: Kind, namespace: &str, name: &str) -> Result<Option<Bytes>>;

    /// All objects of a namespace, or of the cluster when it is empty.
    async fn list(&self, kind: Kind, namespace: &str) -> Result<Vec<Bytes>>;

    /// The present and then every change, in order. Ends when the server stops.
    fn watch(&self, kind: Kind) -> BoxStream<'static, Change>;

    /// Writes the status of `object` under its `metadata.resourceVersion`; a conflict is 409.
    async fn update_status(&self, kind: Kind, object: Value) -> Result<()>;
}

impl dyn Lookup {
    pub async fn get_as<T: DeserializeOwned>(&self, kind: Kind, namespace: &str, name: &str) -> Result<Option<T>> {
        self.get(kind, namespace, name).await?.map(|bytes| decode(kind, &bytes)).transpose()
    }

    /// [`Lookup::get`], absence being a 404.
    pub async fn require<T: DeserializeOwned>(&self, kind: Kind, namespace: &str, name: &str) -> Result<T> {
        let found = self.get_as(kind, namespace, name).await?;
        found.ok_or_else(|| ApiError::not_found(kind.group, kind.plural, name))
    }

    pub async fn list_as<T: DeserializeOwned>(&self, kind: Kind, namespace: &str) -> Result<Vec<T>> {
        self.list(kind, namespace).await?.iter().map(|bytes| decode(kind, bytes)).collect()
    }
}

fn decode<T: DeserializeOwned>(kind: Kind, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|error| ApiError::internal(format!("stored object of {} cannot be decoded: {error}", kind.plural)))
}

/// The part of `metadata` that identity checks need.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Meta {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub deletion_timestamp: Option<jiff::Timestamp>,
}

/// An object of which only the metadata matters.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Partial {
    #[serde(default)]
    pub metadata: Meta,
}

/// Something kept up to date by a watch.
pub trait Index: Send + Sync + 'static {
    fn change(&self, kind: Kind, change: &Change);
}

/// Counts the kinds an index still waits for.
#[derive(Debug)]
pub struct Synced(watch::Sender<usize>);

impl Default for Synced {
    fn default() -> Self {
        Synced(watch::channel(0).0)
    }
}

impl Synced {
    pub async fn wait(&self) {
        // The sender lives in self, so the channel cannot close while we wait.
        let _ = self.0.subscribe().wait_for(|missing| *missing == 0).await;
    }
}

/// Feeds `index` with all `kinds` until it is dropped or the watch ends.
pub fn follow<I: Index>(index: &Arc<I>, synced: fn(&I) -> &Synced, lookup: &dyn Lookup, kinds: &[Kind]) {
    synced(index).0.send_modify(|missing| *missing += kinds.len());
    for &kind in kinds {
        tokio::spawn(feed(Arc::downgrade(index), synced, kind, lookup.watch(kind)));
    }
}

async fn feed<I: Index>(
    index: Weak<I>,
    synced: fn(&I) -> &Synced,
    kind: Kind,
    mut changes: BoxStream<'static, Change>,
) {
    let mut first = true;
    while let Some(change) = changes.next().await {
        let Some(index) = index.upgrade() else { return };
        index.change(kind, &change);
        if matches!(change, Change::Synced) && std::mem::take(&mut first) {
            synced(&index).0.send_modify(|missing| *missing -= 1);
        }
    }
}

#[cfg(test)]
pub(crate) mod memory {
    //! A [`Lookup`] over a map, with working watches.

    use std::collections::BTreeMap;

    use parking_lot::Mutex;
    use serde_json::json;
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::UnboundedReceiverStream;

    use super::*;

    type Key = (Kind, String, String);

    #[derive(Default)]
    pub(crate) struct Memory(Mutex<State>);

    #[derive(Default)]
    struct State {
        objects: BTreeMap<Key, Value>,
        watchers: Vec<(Kind, mpsc::UnboundedSender<Change>)>,
        version: u64,
    }

    impl Memory {
        pub(crate) fn new(objects: impl IntoIterator<Item = (Kind, Value)>) -> Arc<Self> {
            let memory = Arc::new(Memory::default());
            objects.into_iter().for_each(|(kind, object)| memory.put(kind, object));
            memory
        }

        pub(crate) fn put(&self, kind: Kind, mut object: Value) {
            let mut state = self.0.lock();
            state.version += 1;
            object["metadata"]["resourceVersion"] = json!(state.version.to_string());
            state.tell(kind, Change::Put(object.to_string().into()));
            state.objects.insert(key(kind, &object), object);
        }

        pub(crate) fn delete(&self, kind: Kind, namespace: &str, name: &str) {
            let mut state = self.0.lock();
            state.objects.remove(&(kind, namespace.to_owned(), name.to_owned()));
            state.tell(kind, Change::Delete { namespace: namespace.to_owned(), name: name.to_owned() });
        }
    }

    fn key(kind: Kind, object: &Value) -> Key {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        (kind, text("namespace"), text("name"))
    }

    impl State {
        fn tell(&mut self, kind: Kind, change: Change) {
            self.watchers.retain(|(k, watcher)| *k != kind || watcher.send(change.clone()).is_ok());
        }
    }

    #[async_trait]
    impl Lookup for Memory {
        async fn get(&self, kind: Kind, namespace: &str, name: &str) -> Result<Option<Bytes>> {
            let key = (kind, namespace.to_owned(), name.to_owned());
            Ok(self.0.lock().objects.get(&key).map(|object| object.to_string().into()))
        }

        async fn list(&self, kind: Kind, namespace: &str) -> Result<Vec<Bytes>> {
            let state = self.0.lock();
            let wanted = |(k, ns, _): &Key| *k == kind && (namespace.is_empty() || ns == namespace);
            Ok(state.objects.iter().filter(|(key, _)| wanted(key)).map(|(_, o)| o.to_string().into()).collect())
        }

        fn watch(&self, kind: Kind) -> BoxStream<'static, Change> {
            let (sender, receiver) = mpsc::unbounded_channel();
            let mut state = self.0.lock();
            for (_, object) in state.objects.iter().filter(|(key, _)| key.0 == kind) {
                let _ = sender.send(Change::Put(object.to_string().into()));
            }
            let _ = sender.send(Change::Synced);
            state.watchers.push((kind, sender));
            UnboundedReceiverStream::new(receiver).boxed()
        }

        async fn update_status(&self, kind: Kind, object: Value) -> Result<()> {
            let key = key(kind, &object);
            let current = self.0.lock().objects.get(&key).cloned();
            let Some(mut current) = current else { return Err(ApiError::not_found(kind.group, kind.plural, &key.2)) };
            if current["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] {
                return Err(ApiError::conflict(kind.group, kind.plural, &key.2, "changed"));
            }
            current["status"] = object["status"].clone();
            self.put(kind, current);
            Ok(())
        }
    }
}
