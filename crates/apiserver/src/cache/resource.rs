//! The watch cache of one resource: the present, the recent past, and who listens.
//!
//! The present is an immutable map, so that a reader takes a snapshot in O(1) and lists from it
//! without holding anything up; pages of one list share a snapshot through its revision. The recent
//! past is a ring bounded in bytes, trimmed only when something is added: a quiet resource keeps what it
//! has, or clients would list, watch, get 410 and list again for ever.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use imbl::OrdMap;
use parking_lot::Mutex;
use resources::Resource;
use store::{Event, KeyValue, RangeResult};

use super::{
    change::Change,
    entry::{Entry, Filter},
    watcher::{Watcher, Watchers},
};

pub type Objects = OrdMap<Arc<str>, Arc<Entry>>;

/// Bytes of past changes kept per resource. Entries still present are counted too, so real use is less.
const RING_BYTES: usize = 8 << 20;
/// Changes kept whatever their size, so that a few huge objects do not empty the ring.
const RING_FLOOR: usize = 64;
/// Snapshots pinned by unfinished lists, per resource, and how long each may take.
const PINS: usize = 32;
const PIN_AGE: Duration = Duration::from_secs(300);

/// A resource at one revision.
#[derive(Clone)]
pub struct Snapshot {
    pub objects: Objects,
    pub revision: i64,
}

/// Changes of one resource read back from the store: all after the revision asked for, up to `until`.
pub struct History {
    pub events: Vec<Event>,
    pub until: i64,
}

pub struct Cache {
    pub resource: &'static dyn Resource,
    /// `/registry/pods/`.
    pub prefix: String,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Events that came while the first list was read; `None` once it is in.
    pending: Option<Vec<Event>>,
    loaded: bool,
    objects: Objects,
    /// Of the last change here, or of the first list.
    revision: i64,
    ring: VecDeque<Arc<Change>>,
    ring_bytes: usize,
    /// Every change after this revision is in the ring.
    ring_start: i64,
    watchers: Watchers,
    pins: VecDeque<Pin>,
}

struct Pin {
    snapshot: Snapshot,
    since: Instant,
}

impl Cache {
    pub fn new(resource: &'static dyn Resource, prefix: String) -> Cache {
        Cache { resource, prefix, inner: Mutex::default() }
    }

    /// From now on events are kept for [`Cache::load`].
    pub fn begin(&self) {
        let mut inner = self.inner.lock();
        inner.watchers.close();
        *inner = Inner { pending: Some(Vec::new()), ..Inner::default() };
    }

    /// Takes the first list, then what happened since it was read.
    pub fn load(&self, listed: RangeResult) {
        let mut inner = self.inner.lock();
        inner.objects = listed.kvs.iter().filter_map(|kv| self.pair(kv)).collect();
        inner.revision = listed.revision;
        inner.ring_start = listed.revision;
        inner.loaded = true;
        for event in inner.pending.take().unwrap_or_default() {
            self.apply_one(&mut inner, &event);
        }
    }

    pub fn apply(&self, event: &Event) {
        let mut inner = self.inner.lock();
        if let Some(pending) = &mut inner.pending {
            pending.push(event.clone());
        } else if inner.loaded {
            self.apply_one(&mut inner, event);
        }
    }

    fn apply_one(&self, inner: &mut Inner, event: &Event) {
        if event.revision() <= inner.ring_start {
            return;
        }
        let Some(change) = self.change(event, |key| inner.objects.get(key).cloned()) else { return };
        let change = Arc::new(change);
        match (&change.entry, &change.previous) {
            (Some(entry), _) => drop(inner.objects.insert(entry.key.clone(), entry.clone())),
            (None, Some(previous)) => drop(inner.objects.remove(&previous.key)),
            (None, None) => return,
        }
        inner.revision = change.revision;
        inner.ring_bytes += change.cost();
        inner.ring.push_back(change.clone());
        while inner.ring_bytes > RING_BYTES && inner.ring.len() > RING_FLOOR {
            let Some(oldest) = inner.ring.pop_front() else { break };
            inner.ring_bytes -= oldest.cost();
            inner.ring_start = oldest.revision;
        }
        inner.watchers.dispatch(&change);
    }

    /// A store event as a change; `None` when it touches no object that readers can see.
    fn change(&self, event: &Event, previous: impl FnOnce(&str) -> Option<Arc<Entry>>) -> Option<Change> {
        let key = self.relative(event.key())?;
        let entry = match event {
            Event::Put { kv, .. } => self.entry(kv),
            Event::Delete { .. } => None,
        };
        let previous = previous(key);
        (entry.is_some() || previous.is_some()).then(|| Change::new(event.revision(), entry, previous))
    }

    fn relative<'a>(&self, key: &'a [u8]) -> Option<&'a str> {
        std::str::from_utf8(key.strip_prefix(self.prefix.as_bytes())?).ok()
    }

    /// An object that cannot be decoded is as good as absent: it may not fail a list or end a watch.
    pub fn entry(&self, kv: &KeyValue) -> Option<Arc<Entry>> {
        let key = self.relative(&kv.key)?;
        match Entry::new(self.resource, key.into(), &kv.value, kv.mod_revision) {
            Ok(entry) => Some(Arc::new(entry)),
            Err(error) => {
                tracing::error!(prefix = self.prefix, key, error, "cannot decode a stored object; skipping it");
                None
            }
        }
    }

    fn pair(&self, kv: &KeyValue) -> Option<(Arc<str>, Arc<Entry>)> {
        self.entry(kv).map(|entry| (entry.key.clone(), entry))
    }

    pub fn objects(&self, listed: &RangeResult) -> Objects {
        listed.kvs.iter().filter_map(|kv| self.pair(kv)).collect()
    }

    /// The present. `applied` reads the revision up to which the feed has been applied: it is asked
    /// under the lock, so that the snapshot holds exactly what happened up to its revision.
    pub fn snapshot(&self, applied: impl FnOnce() -> i64) -> Snapshot {
        let inner = self.inner.lock();
        Snapshot { objects: inner.objects.clone(), revision: applied().max(inner.revision) }
    }

    pub fn get(&self, key: &str) -> Option<Arc<Entry>> {
        self.inner.lock().objects.get(key).cloned()
    }

    pub fn size(&self) -> usize {
        self.inner.lock().objects.len()
    }

    pub fn watchers(&self) -> usize {
        self.inner.lock().watchers.count()
    }

    /// The snapshot of an unfinished list, if it is still known.
    pub fn pinned(&self, revision: i64, applied: i64) -> Option<Snapshot> {
        let inner = self.inner.lock();
        if inner.loaded && inner.revision <= revision && revision <= applied.max(inner.revision) {
            return Some(Snapshot { objects: inner.objects.clone(), revision });
        }
        inner.pins.iter().find(|pin| pin.snapshot.revision == revision).map(|pin| pin.snapshot.clone())
    }

    pub fn pin(&self, snapshot: Snapshot) {
        let mut inner = self.inner.lock();
        inner.pins.retain(|pin| pin.since.elapsed() < PIN_AGE && pin.snapshot.revision != snapshot.revision);
        if inner.pins.len() == PINS {
            inner.pins.pop_front();
        }
        inner.pins.push_back(Pin { snapshot, since: Instant::now() });
    }

    /// Registers a watcher that first hears the state (`from` is `None`), or all changes after `from`.
    /// Where the ring does not reach back to `from`, `older` must; else this fails with the revision
    /// the ring begins after.
    pub fn watch(
        &self,
        filter: Filter,
        from: Option<i64>,
        older: Option<&History>,
        applied: impl FnOnce() -> i64,
    ) -> Result<(Snapshot, Arc<Watcher>), i64> {
        let mut inner = self.inner.lock();
        let mut replay = VecDeque::new();
        if let Some(from) = from {
            if from < inner.ring_start {
                let older = older.filter(|older| older.until >= inner.ring_start).ok_or(inner.ring_start)?;
                let events = older.events.iter().filter(|event| event.revision() <= inner.ring_start);
                replay.extend(events.filter_map(|event| self.historic(event)).map(Arc::new));
            }
            let first = inner.ring.partition_point(|change| change.revision <= from);
            replay.extend(inner.ring.iter().skip(first).cloned());
        }
        let watcher = Arc::new(Watcher::new(filter, replay));
        inner.watchers.add(watcher.clone());
        Ok((Snapshot { objects: inner.objects.clone(), revision: applied().max(inner.revision) }, watcher))
    }

    /// A change from before the ring, as the store's own history tells it.
    fn historic(&self, event: &Event) -> Option<Change> {
        let previous = match event {
            Event::Put { previous, .. } | Event::Delete { previous, .. } => previous.as_ref(),
        };
        self.change(event, |_| previous.and_then(|kv| self.entry(kv)))
    }

    /// Ends all watches.
    pub fn close(&self) {
        self.inner.lock().watchers.close();
    }

    pub fn unwatch(&self, watcher: &Arc<Watcher>) {
        self.inner.lock().watchers.remove(watcher);
    }
}
