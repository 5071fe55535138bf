//! A revisioned key-value store with etcd's semantics, behind one trait.
//!
//! Everything above it relies on four promises, which [`conformance`] checks on every backend:
//! 1. One global revision: each committed transaction that writes gets the next one, and readers see
//!    revisions in order.
//! 2. A transaction's compares and writes happen at one instant.
//! 3. A watch from revision R delivers every event with a revision of at least R, in order, exactly
//!    once, or fails with [`Error::Compacted`].
//! 4. What was acknowledged survives kill -9 and power loss.
//!
//! It knows nothing of Kubernetes: keys and values are bytes.

pub mod conformance;
mod fjall_backend;

use std::time::Duration;

use bytes::Bytes;

pub use fjall_backend::{FjallStore, OpenError, Options};

/// A point in the store's history. Starts at 1 for an empty store, as etcd does.
pub type Revision = i64;

/// Identifies a lease; 0 means none.
pub type LeaseId = i64;

/// One key at one moment (etcd's `mvccpb.KeyValue`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Bytes,
    pub value: Bytes,
    /// Revision that created the key in its present life.
    pub create_revision: Revision,
    /// Revision of the last write.
    pub mod_revision: Revision,
    /// Writes since creation; 1 after the first.
    pub version: i64,
    pub lease: LeaseId,
}

/// Keys `start <= key < end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    pub start: Bytes,
    pub end: Bytes,
}

impl KeyRange {
    /// Exactly one key.
    pub fn key(key: impl Into<Bytes>) -> Self {
        let start = key.into();
        let mut end = start.to_vec();
        end.push(0);
        KeyRange { start, end: end.into() }
    }

    /// Every key that starts with `prefix`; an empty prefix means every key.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start = prefix.into();
        let mut end = start.to_vec();
        while let Some(last) = end.pop() {
            if last < 0xff {
                end.push(last + 1);
                return KeyRange { start, end: end.into() };
            }
        }
        KeyRange { start, end: Bytes::from_static(&[0xff; 8]) }
    }

    /// Whether no second key can lie in it.
    pub fn is_one_key(&self) -> bool {
        self.end.strip_prefix(&self.start[..]) == Some(&[0])
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && key < &self.end[..]
    }
}

/// What to read.
#[derive(Clone, Debug)]
pub struct Range {
    pub range: KeyRange,
    /// Read at this revision; `None` reads the present, after every acknowledged write.
    pub revision: Option<Revision>,
    /// At most this many keys; 0 means all.
    pub limit: usize,
    /// Count only; `kvs` stays empty.
    pub count_only: bool,
}

/// Answer to a [`Range`], in key order.
#[derive(Clone, Debug)]
pub struct RangeResult {
    pub kvs: Vec<KeyValue>,
    /// Keys in the range, `limit` aside.
    pub count: usize,
    pub more: bool,
    /// The store's revision when it was read.
    pub revision: Revision,
}

/// A precondition of a [`Txn`].
#[derive(Clone, Debug)]
pub enum Compare {
    /// The key's mod revision is this one; 0 means that the key is absent.
    ModRevision { key: Bytes, revision: Revision },
}

/// A write in a [`Txn`].
#[derive(Clone, Debug)]
pub enum Write {
    Put { key: Bytes, value: Bytes, lease: LeaseId },
    Delete { key: Bytes },
}

/// Writes that happen together if every compare holds.
#[derive(Clone, Debug, Default)]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub writes: Vec<Write>,
}

/// Outcome of a [`Txn`].
#[derive(Clone, Debug)]
pub enum TxnResult {
    /// All compares held; the writes are durable at this revision.
    Committed { revision: Revision },
    /// A compare failed; what is stored under each compared key now, in the order of the compares.
    Conflict { current: Vec<Option<KeyValue>>, revision: Revision },
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Put {
        kv: KeyValue,
        previous: Option<KeyValue>,
    },
    /// `kv` carries the key and the revision of the deletion; `previous` what was deleted.
    Delete {
        key: Bytes,
        revision: Revision,
        previous: Option<KeyValue>,
    },
}

impl Event {
    pub fn revision(&self) -> Revision {
        match self {
            Event::Put { kv, .. } => kv.mod_revision,
            Event::Delete { revision, .. } => *revision,
        }
    }

    pub fn key(&self) -> &Bytes {
        match self {
            Event::Put { kv, .. } => &kv.key,
            Event::Delete { key, .. } => key,
        }
    }
}

/// What a watch delivers: all events of one revision together, never split.
#[derive(Clone, Debug)]
pub struct WatchBatch {
    /// Events up to and including this revision have been delivered. A batch without events is a
    /// progress notice.
    pub revision: Revision,
    pub events: Vec<Event>,
}

/// A feed of changes; ends with an error or when the store closes.
pub type WatchStream = futures::stream::BoxStream<'static, Result<WatchBatch, Error>>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// History before `oldest` is gone (etcd's ErrCompacted).
    #[error("required revision {requested} has been compacted; the oldest kept is {oldest}")]
    Compacted { requested: Revision, oldest: Revision },
    /// etcd's ErrFutureRev.
    #[error("revision {requested} is in the future; the store is at {current}")]
    Future { requested: Revision, current: Revision },
    #[error("lease {0} not found")]
    LeaseNotFound(LeaseId),
    /// The watcher did not keep up with its bounded buffer; watch again from the last revision seen.
    #[error("the watcher fell behind and was dropped at revision {0}")]
    SlowWatcher(Revision),
    /// No backend accepts such a request; nothing was written.
    #[error("invalid request: {0}")]
    Invalid(&'static str),
    #[error("the store is closed")]
    Closed,
    /// Disk or network failure. A write that ends so may or may not have happened.
    #[error("{operation}: {source}")]
    Io { operation: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
}

/// The seam. Backends: [`FjallStore`] (embedded), etcd.
#[async_trait::async_trait]
pub trait Store: Send + Sync + 'static {
    async fn range(&self, range: Range) -> Result<RangeResult, Error>;

    async fn txn(&self, txn: Txn) -> Result<TxnResult, Error>;

    /// Events of `range` with a revision of at least `from`, then live.
    ///
    /// Caught up, the stream says so with a progress notice. Afterwards notices come within a
    /// second of revisions that hold nothing for it, and at once when [`Store::revision`] is asked:
    /// a reader may take that revision and wait for the watch to reach it.
    async fn watch(&self, range: KeyRange, from: Revision) -> Result<WatchStream, Error>;

    /// Drops history before `revision`; present values stay. That revision itself stays readable.
    async fn compact(&self, revision: Revision) -> Result<(), Error>;

    /// The revision of the last acknowledged write.
    async fn revision(&self) -> Result<Revision, Error>;

    /// A lease whose keys are deleted when it is not kept alive for `ttl`.
    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, Error>;

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), Error>;

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), Error>;

    /// Flushes and refuses further work.
    async fn close(&self) -> Result<(), Error>;
}
