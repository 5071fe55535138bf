//! Watch caches: everything that reads is served from here, in bytes that were encoded once.
//!
//! One supervised feed follows the whole store; it hands each event to the cache it belongs to and
//! then publishes the revision it has reached. Since the feed sees every event, "applied up to R" holds
//! for all resources at once, and a consistent read is: ask the store for its revision, wait until the
//! feed is there, read the map. Caches start on first use, so an unused kind costs nothing.
//!
//! It knows keys, revisions and selectors, but no HTTP and no kind.

pub mod change;
pub mod entry;
pub mod resource;
pub mod watcher;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use machinery::status::{ApiError, Result};
use parking_lot::RwLock;
use resources::Resource;
use store::{Event, KeyRange, Range, Store, WatchBatch};
use tokio::sync::{OnceCell, watch};
use tokio_util::sync::CancellationToken;

pub use change::{Change, EventType};
pub use entry::{Entry, Filter};
pub use resource::{Cache, History, Snapshot};
pub use watcher::Watcher;

pub const ROOT: &str = "/registry/";

/// How long a read waits for the cache to reach its revision, as upstream.
const FRESH_TIMEOUT: Duration = Duration::from_secs(3);
/// A feed that has said nothing for this long is compared with the store.
const LIVENESS: Duration = Duration::from_secs(10);
/// Batches of the feed applied before their revision is published.
const GROUP: usize = 256;
/// Past changes read back from the store for one watch that starts before the ring, in bytes.
const HISTORY_BYTES: usize = 16 << 20;

/// All watch caches and the feed that fills them.
pub struct Hub {
    store: Arc<dyn Store>,
    /// By storage prefix (`pods`, `services/specs`).
    caches: RwLock<HashMap<&'static str, Arc<Slot>>>,
    applied: AtomicI64,
    progress: watch::Sender<i64>,
    shutdown: CancellationToken,
}

struct Slot {
    cache: Cache,
    loaded: OnceCell<()>,
}

impl Hub {
    /// Starts the feed at the store's present revision; it ends with `shutdown`.
    pub async fn start(store: Arc<dyn Store>, shutdown: CancellationToken) -> Result<Arc<Hub>, store::Error> {
        let revision = store.revision().await?;
        let hub = Arc::new(Hub {
            store,
            caches: RwLock::default(),
            applied: AtomicI64::new(revision),
            progress: watch::channel(revision).0,
            shutdown: shutdown.clone(),
        });
        let feed = hub.clone();
        tokio::spawn(async move {
            tokio::select! { _ = feed.supervise() => {}, _ = shutdown.cancelled() => {} }
            feed.caches.read().values().for_each(|slot| slot.cache.close());
        });
        Ok(hub)
    }

    /// The cache of a resource, filled.
    pub async fn cache(&self, resource: &'static dyn Resource) -> Result<CacheRef> {
        let prefix = resource.facts().storage_prefix;
        let slot = self.caches.read().get(prefix).cloned();
        let slot = slot.unwrap_or_else(|| {
            let make = || Slot { cache: Cache::new(resource, format!("{ROOT}{prefix}/")), loaded: OnceCell::new() };
            self.caches.write().entry(prefix).or_insert_with(|| Arc::new(make())).clone()
        });
        slot.loaded.get_or_try_init(|| self.load(&slot.cache)).await?;
        Ok(CacheRef(slot))
    }

    async fn load(&self, cache: &Cache) -> Result<()> {
        cache.begin();
        let listed = self.store.range(everything(&cache.prefix)).await.map_err(storage_error)?;
        cache.load(listed);
        Ok(())
    }

    async fn supervise(&self) {
        loop {
            let from = self.applied() + 1;
            match self.feed(from).await {
                Ok(()) | Err(store::Error::SlowWatcher(_)) => {}
                Err(store::Error::Closed) => return,
                Err(store::Error::Compacted { .. }) => self.reload().await,
                Err(error) => {
                    tracing::warn!(%error, "the store's watch failed; trying again");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }

    /// Applies batches until the watch ends, or has fallen silent behind the store.
    async fn feed(&self, from: i64) -> Result<(), store::Error> {
        let mut stream = self.store.watch(KeyRange::prefix(ROOT), from).await?;
        loop {
            let batch = match tokio::time::timeout(LIVENESS, stream.next()).await {
                Ok(Some(batch)) => batch?,
                Ok(None) => return Err(store::Error::Closed),
                Err(_) if self.store.revision().await? > self.applied() => {
                    tracing::warn!(applied = self.applied(), "the store's watch has stalled; starting it again");
                    return Ok(());
                }
                Err(_) => continue,
            };
            let mut revision = self.apply_batch(&batch);
            // What is there already is applied before anybody is woken, as commits come in groups.
            for _ in 1..GROUP {
                let Some(Some(batch)) = stream.next().now_or_never() else { break };
                revision = batch.map(|batch| self.apply_batch(&batch)).inspect_err(|_| self.advance(revision))?;
            }
            self.advance(revision);
        }
    }

    fn apply_batch(&self, batch: &WatchBatch) -> i64 {
        for event in &batch.events {
            self.apply(event);
        }
        batch.revision
    }

    fn apply(&self, event: &Event) {
        let Some(prefix) = prefix_of(event.key()) else { return };
        let caches = self.caches.read();
        if let Some(slot) = prefix.into_iter().find_map(|prefix| caches.get(prefix)) {
            slot.cache.apply(event);
        }
    }

    fn advance(&self, revision: i64) {
        if self.applied.fetch_max(revision, Ordering::AcqRel) < revision {
            self.progress.send_replace(revision);
        }
    }

    /// History was compacted under the feed: every cache starts again and every watcher lists again.
    async fn reload(&self) {
        let Ok(revision) = self.store.revision().await else { return };
        let slots: Vec<Arc<Slot>> = self.caches.read().values().cloned().collect();
        for slot in slots.iter().filter(|slot| slot.loaded.initialized()) {
            while let Err(error) = self.load(&slot.cache).await {
                tracing::warn!(%error, prefix = slot.cache.prefix, "cannot list from the store; trying again");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
        self.advance(revision);
    }

    /// The revision up to which everything has been applied.
    pub fn applied(&self) -> i64 {
        self.applied.load(Ordering::Acquire)
    }

    /// Waits until every write acknowledged before this call can be read.
    pub async fn consistent(&self) -> Result<i64> {
        let revision = self.store.revision().await.map_err(storage_error)?;
        self.reach(revision).await?;
        Ok(revision)
    }

    /// Waits until `revision` has been applied.
    pub async fn reach(&self, revision: i64) -> Result<()> {
        if self.applied() >= revision {
            return Ok(());
        }
        let mut progress = self.progress.subscribe();
        let reached = progress.wait_for(|applied| *applied >= revision);
        match tokio::time::timeout(FRESH_TIMEOUT, reached).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(too_large(revision, self.applied())),
        }
    }

    /// The resource as it was at `revision`; `None` when that is no longer known anywhere.
    pub async fn at(&self, cache: &Cache, revision: i64) -> Result<Option<Snapshot>> {
        self.reach(revision).await?;
        if let Some(snapshot) = cache.pinned(revision, self.applied()) {
            return Ok(Some(snapshot));
        }
        let range = Range { revision: Some(revision), ..everything(&cache.prefix) };
        match self.store.range(range).await {
            Ok(listed) => Ok(Some(Snapshot { objects: cache.objects(&listed), revision })),
            Err(store::Error::Compacted { .. }) => Ok(None),
            Err(error) => Err(storage_error(error)),
        }
    }

    /// Registers a watcher: of the present and what follows, or of all changes after `from`.
    pub async fn watch(&self, cache: &Cache, filter: Filter, from: Option<i64>) -> Result<(Snapshot, Arc<Watcher>)> {
        let ring_start = match cache.watch(filter.clone(), from, None, || self.applied()) {
            Ok(watching) => return Ok(watching),
            Err(ring_start) => ring_start,
        };
        let from = from.unwrap_or_default();
        let too_old = |oldest| ApiError::expired(format!("too old resource version: {from} ({oldest})"));
        let history = self.history(cache, from, ring_start).await.ok_or_else(|| too_old(ring_start))?;
        cache.watch(filter, Some(from), Some(&history), || self.applied()).map_err(too_old)
    }

    /// Changes after `from` up to at least `until`, from the store; `None` when it has forgotten them or
    /// they are too much.
    async fn history(&self, cache: &Cache, from: i64, until: i64) -> Option<History> {
        let mut stream = self.store.watch(KeyRange::prefix(cache.prefix.clone()), from + 1).await.ok()?;
        let (mut events, mut bytes) = (Vec::new(), 0);
        // The store has `until` behind it, so its progress gets there; the time bounds a store that stalls.
        let deadline = tokio::time::Instant::now() + FRESH_TIMEOUT;
        loop {
            let batch = tokio::time::timeout_at(deadline, stream.next()).await.ok()??.ok()?;
            bytes += batch.events.iter().map(cost).sum::<usize>();
            if bytes > HISTORY_BYTES {
                return None;
            }
            events.extend(batch.events);
            if batch.revision >= until {
                return Some(History { events, until: batch.revision });
            }
        }
    }

    /// The server stops: watches that end now stay ended.
    pub fn stopped(&self) -> bool {
        self.shutdown.is_cancelled()
    }

    /// `(storage prefix, objects, watchers)` of every cache in use.
    pub fn statistics(&self) -> Vec<(&'static str, usize, usize)> {
        let caches = self.caches.read();
        caches.iter().map(|(prefix, slot)| (*prefix, slot.cache.size(), slot.cache.watchers())).collect()
    }
}

/// A filled cache.
pub struct CacheRef(Arc<Slot>);

impl std::ops::Deref for CacheRef {
    type Target = Cache;

    fn deref(&self) -> &Cache {
        &self.0.cache
    }
}

impl Clone for CacheRef {
    fn clone(&self) -> Self {
        CacheRef(self.0.clone())
    }
}

fn everything(prefix: &str) -> Range {
    Range {
        range: KeyRange::prefix(Bytes::copy_from_slice(prefix.as_bytes())),
        revision: None,
        limit: 0,
        count_only: false,
    }
}

fn cost(event: &Event) -> usize {
    match event {
        Event::Put { kv, .. } => kv.value.len() + 128,
        Event::Delete { previous, .. } => previous.as_ref().map_or(0, |kv| kv.value.len()) + 128,
    }
}

/// The storage prefixes a key may belong to: one segment, or two (`services/specs`).
fn prefix_of(key: &[u8]) -> Option<[&str; 2]> {
    let rest = std::str::from_utf8(key).ok()?.strip_prefix(ROOT)?;
    let first = rest.find('/')?;
    let second = rest[first + 1..].find('/').map_or(first, |at| first + 1 + at);
    Some([&rest[..second], &rest[..first]])
}

fn too_large(revision: i64, current: i64) -> ApiError {
    ApiError::timeout(format!("Too large resource version: {revision}, current: {current}"), 1).with_cause(
        "ResourceVersionTooLarge",
        "Too large resource version",
        "",
    )
}

/// A store failure as the client sees it.
pub fn storage_error(error: store::Error) -> ApiError {
    match error {
        store::Error::Closed => ApiError::unavailable("the store is shut down"),
        error => ApiError::internal(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_belong_to_prefixes() {
        for (key, want) in [
            ("/registry/pods/default/a", Some(["pods/default", "pods"])),
            ("/registry/services/specs/ns/a", Some(["services/specs", "services"])),
            ("/registry/namespaces/a", Some(["namespaces", "namespaces"])),
            ("/other/a", None),
        ] {
            assert_eq!(prefix_of(key.as_bytes()), want, "{key}");
        }
    }
}
