//! Stored objects, read from the caches and committed to the store.
//!
//! The one place that knows the key layout and that bytes in the store lack a resourceVersion.
//! Whether a write is allowed or sensible has been decided before it comes here.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use machinery::{
    meta,
    status::{ApiError, Result},
};
use parking_lot::Mutex;
use resources::{Resource, registry};
use serde_json::Value;
use store::{Compare, LeaseId, Store, Txn, TxnResult, Write};

use crate::{
    allocate::Claims,
    cache::{CacheRef, Entry, Hub, ROOT, entry, storage_error},
    request::key,
};

pub struct Objects {
    pub hub: Arc<Hub>,
    store: Arc<dyn Store>,
    leases: Mutex<Vec<SharedLease>>,
}

/// Objects that expire share leases, or a cluster's events would have thousands of them.
struct SharedLease {
    seconds: u64,
    lease: LeaseId,
    since: Instant,
    objects: usize,
}

/// A lease lives this much longer than its youngest object needs, and is shared for as long.
const LEASE_SLACK: Duration = Duration::from_secs(60);
/// Objects on one lease, as upstream.
const LEASE_OBJECTS: usize = 1000;

/// What became of a commit.
pub enum Committed {
    /// The object's bytes as they are served now; for a delete, nothing.
    Done(Bytes),
    /// The object is not at the expected revision.
    Conflict,
    /// The claim with this index belongs to somebody else.
    Taken(usize),
}

/// One object to write. An `expected` revision of 0 means that there is none yet.
pub struct Commit<'a> {
    pub resource: &'static dyn Resource,
    pub key: &'a str,
    pub expected: i64,
    /// `None` deletes.
    pub object: Option<&'a Value>,
    pub claims: Claims,
}

impl Objects {
    pub fn new(store: Arc<dyn Store>, hub: Arc<Hub>) -> Objects {
        Objects { hub, store, leases: Mutex::default() }
    }

    /// The filled cache of a resource's storage.
    pub async fn cache(&self, resource: &'static dyn Resource) -> Result<CacheRef> {
        self.hub.cache(registry().storage_of(resource)).await
    }

    /// The object as of now: every write acknowledged before the call is seen.
    pub async fn get(
        &self,
        resource: &'static dyn Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Entry>>> {
        let cache = self.cache(resource).await?;
        self.hub.consistent().await?;
        Ok(cache.get(&key(namespace, name)))
    }

    /// The object as some recent moment knew it, or as of now when that knew none.
    pub async fn recent(
        &self,
        resource: &'static dyn Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Entry>>> {
        let cache = self.cache(resource).await?;
        match cache.get(&key(namespace, name)) {
            Some(entry) => Ok(Some(entry)),
            None => self.get(resource, namespace, name).await,
        }
    }

    /// All objects of a namespace, or of all when it is empty, as of now.
    pub async fn list(&self, resource: &'static dyn Resource, namespace: &str) -> Result<Vec<Arc<Entry>>> {
        let cache = self.cache(resource).await?;
        self.hub.consistent().await?;
        let snapshot = cache.snapshot(|| self.hub.applied());
        Ok(range(&snapshot.objects, namespace, "").map(|(_, entry)| entry.clone()).collect())
    }

    pub async fn commit(&self, commit: Commit<'_>) -> Result<Committed> {
        let facts = registry().storage_of(commit.resource).facts();
        let full: Bytes = format!("{ROOT}{}/{}", facts.storage_prefix, commit.key).into();
        let stored = commit.object.map(|object| stored_form(commit.resource, object));
        let mut compares = vec![Compare::ModRevision { key: full.clone(), revision: commit.expected }];
        let mut writes = vec![match &stored {
            Some(stored) => {
                let lease = self.lease(facts.ttl_seconds).await?;
                Write::Put { key: full, value: stored.clone(), lease }
            }
            None => Write::Delete { key: full },
        }];
        for claim in &commit.claims.take {
            compares.push(Compare::ModRevision { key: claim.key.clone(), revision: 0 });
            writes.push(Write::Put { key: claim.key.clone(), value: claim.value.clone(), lease: 0 });
        }
        writes.extend(commit.claims.release.iter().map(|key| Write::Delete { key: key.clone() }));
        match self.store.txn(Txn { compares, writes }).await.map_err(storage_error)? {
            TxnResult::Committed { revision } => {
                // Whoever hears of the write finds it in the cache. That it lags is no failure of the write.
                let _ = self.hub.reach(revision).await;
                Ok(Committed::Done(match (stored, commit.object) {
                    (Some(stored), Some(object)) => served(commit.resource, object, &stored, revision)?,
                    _ => Bytes::new(),
                }))
            }
            TxnResult::Conflict { current, .. } => Ok(conflict(&current, commit.expected)),
        }
    }

    async fn lease(&self, ttl: Option<u64>) -> Result<LeaseId> {
        let Some(seconds) = ttl else { return Ok(0) };
        if let Some(lease) = self.shared_lease(seconds) {
            return Ok(lease);
        }
        let lease = self.store.grant_lease(Duration::from_secs(seconds) + LEASE_SLACK).await.map_err(storage_error)?;
        let mut leases = self.leases.lock();
        leases.retain(|shared| shared.seconds != seconds);
        leases.push(SharedLease { seconds, lease, since: Instant::now(), objects: 1 });
        Ok(lease)
    }

    fn shared_lease(&self, seconds: u64) -> Option<LeaseId> {
        let mut leases = self.leases.lock();
        let fresh = |shared: &&mut SharedLease| {
            shared.seconds == seconds && shared.since.elapsed() < LEASE_SLACK && shared.objects < LEASE_OBJECTS
        };
        let shared = leases.iter_mut().find(fresh)?;
        shared.objects += 1;
        Some(shared.lease)
    }
}

fn conflict(current: &[Option<store::KeyValue>], expected: i64) -> Committed {
    let object = current.first().and_then(Option::as_ref).map_or(0, |kv| kv.mod_revision);
    match current.iter().skip(1).position(Option::is_some) {
        Some(claim) if object == expected => Committed::Taken(claim),
        _ => Committed::Conflict,
    }
}

/// The object as its own version shows it.
pub fn load(resource: &dyn Resource, entry: &Entry) -> Value {
    let mut value = entry.value();
    if let Some(conversion) = resource.conversion() {
        (conversion.from_storage)(&mut value);
    }
    value
}

/// The bytes a reader of this version gets.
pub fn bytes<'a>(resource: &dyn Resource, entry: &'a Entry) -> &'a Bytes {
    match resource.conversion() {
        None => &entry.json,
        Some(conversion) => entry.converted(|mut value| {
            (conversion.from_storage)(&mut value);
            value
        }),
    }
}

/// What is stored for an object: its storage version without resourceVersion.
pub fn stored_form(resource: &dyn Resource, object: &Value) -> Bytes {
    let Some(conversion) = resource.conversion() else { return entry::encode_stored(object).into() };
    let mut object = object.clone();
    (conversion.to_storage)(&mut object);
    entry::encode_stored(&object).into()
}

fn served(resource: &dyn Resource, object: &Value, stored: &[u8], revision: i64) -> Result<Bytes> {
    if resource.conversion().is_none() {
        return entry::splice(stored, revision)
            .ok_or_else(|| ApiError::internal("an object was encoded without metadata"));
    }
    let mut object = object.clone();
    meta::set_resource_version(&mut object, &revision.to_string());
    Ok(entry::encode(&object).into())
}

/// The objects of a namespace (all when empty) from the key `start` on, in key order.
pub fn range<'a>(
    objects: &'a crate::cache::resource::Objects,
    namespace: &str,
    start: &str,
) -> impl Iterator<Item = (&'a Arc<str>, &'a Arc<Entry>)> {
    let prefix = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
    let start = if start > prefix.as_str() { start.to_owned() } else { prefix.clone() };
    objects
        .range::<_, str>((std::ops::Bound::Included(start.as_str()), std::ops::Bound::Unbounded))
        .take_while(move |(key, _)| key.starts_with(&prefix))
}
