//! The embedded backend, on fjall: durable group commit on one disk.
//!
//! One thread writes ([`writer`]); it evaluates what waits ([`group`]), and publishes ([`hub`]).
//! Reads use immutable views ([`view`]) and never wait for it. Watches replay history from disk and
//! go on live ([`watch`]). What lies on disk is said in [`layout`].

mod disk;
mod group;
mod hub;
mod journal;
mod layout;
mod lease;
mod retention;
mod view;
mod watch;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};

pub use disk::OpenError;
use hub::Hub;
use writer::{Answer, Operation, Request, Writer};

use crate::{Error, KeyRange, LeaseId, Range, RangeResult, Revision, Store, Txn, TxnResult, WatchStream, Write};

/// How much of what it keeps; sizes in bytes.
#[derive(Clone, Debug)]
pub struct Options {
    /// History older than this is dropped; `None` keeps it until [`Store::compact`].
    pub retention: Option<Duration>,
    /// At most about this many revisions of history, however young.
    pub max_revisions: Revision,
    /// Blocks read from disk; the kernel caches the files as well.
    pub cache_bytes: u64,
    /// Writes not yet in a tree file. Reaching it flushes; used when the store is created.
    pub memtable_bytes: u64,
    /// Less free space than this counts as a full disk.
    pub reserve_bytes: u64,
    /// A watcher that leaves more unread is dropped.
    pub watch_buffer_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            // As often as kube-apiserver compacts etcd.
            retention: Some(Duration::from_secs(5 * 60)),
            max_revisions: 500_000,
            cache_bytes: 4 << 20,
            memtable_bytes: 4 << 20,
            reserve_bytes: 64 << 20,
            watch_buffer_bytes: 16 << 20,
        }
    }
}

/// Requests that may wait for the writer, in KiB.
const QUEUE: u32 = 64 << 10;

/// A store in a directory. One process at a time.
pub struct FjallStore {
    hub: Arc<Hub>,
    queue: mpsc::Sender<Request>,
    room: Arc<Semaphore>,
}

impl FjallStore {
    /// Opens the store in `dir`, creating both if need be. Blocks while it recovers.
    pub fn open(dir: impl AsRef<Path>, options: Options) -> Result<Self, OpenError> {
        let dir = dir.as_ref();
        let (queue, requests) = mpsc::channel();
        let (writer, hub) = Writer::open(dir.to_owned(), options, requests)?;
        std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(|| writer.run())
            .map_err(|source| OpenError::Io { dir: dir.to_owned(), source })?;
        Ok(FjallStore { hub, queue, room: Arc::new(Semaphore::new(QUEUE as usize)) })
    }

    async fn submit(&self, operation: Operation) -> Result<Answer, Error> {
        let room = self.room.clone().acquire_many_owned(operation.weight());
        let permit = room.await.map_err(|_| Error::Closed)?;
        let (reply, answer) = oneshot::channel();
        self.queue.send(Request { operation, reply, permit }).map_err(|_| Error::Closed)?;
        answer.await.unwrap_or(Err(Error::Closed))
    }
}

impl Operation {
    /// KiB in the queue.
    fn weight(&self) -> u32 {
        let bytes: usize = match self {
            Operation::Txn(txn) => txn.writes.iter().map(size).sum(),
            _ => 0,
        };
        u32::try_from(bytes >> 10).unwrap_or(QUEUE).clamp(1, QUEUE)
    }
}

fn size(write: &Write) -> usize {
    match write {
        Write::Put { key, value, .. } => key.len() + value.len(),
        Write::Delete { key } => key.len(),
    }
}

#[async_trait::async_trait]
impl Store for FjallStore {
    async fn range(&self, range: Range) -> Result<RangeResult, Error> {
        let view = self.hub.view()?;
        // One key is a few microseconds, less than handing it to another thread.
        match range.range.is_one_key() {
            true => view.range(&range),
            false => blocking(move || view.range(&range)).await,
        }
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResult, Error> {
        match self.submit(Operation::Txn(txn)).await? {
            Answer::Txn(result) => Ok(result),
            _ => unreachable!("a transaction is answered as one"),
        }
    }

    async fn watch(&self, range: KeyRange, from: Revision) -> Result<WatchStream, Error> {
        watch::start(self.hub.clone(), range, from)
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.submit(Operation::Compact(revision)).await.map(drop)
    }

    async fn revision(&self) -> Result<Revision, Error> {
        let revision = self.hub.view()?.revision;
        self.hub.notify();
        Ok(revision)
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, Error> {
        match self.submit(Operation::Grant(ttl)).await? {
            Answer::Lease(lease) => Ok(lease),
            _ => unreachable!("a grant is answered with a lease"),
        }
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), Error> {
        self.submit(Operation::KeepAlive(lease)).await.map(drop)
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), Error> {
        self.submit(Operation::Revoke(lease)).await.map(drop)
    }

    async fn close(&self) -> Result<(), Error> {
        match self.submit(Operation::Close).await {
            Err(Error::Closed) => Ok(()),
            closed => closed.map(drop),
        }
    }
}

/// Runs disk work where it delays no other task.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Error::Io { operation: "read the store", source: error.into() }))
}

#[cfg(test)]
mod tests {
    use fjall::Readable;

    use super::*;

    /// Compaction frees what it makes unreachable: versions, deletions and their entries.
    #[tokio::test]
    async fn compaction_leaves_one_version_per_key() {
        let dir = tempfile::TempDir::new().unwrap();
        let store = FjallStore::open(dir.path(), Options::default()).unwrap();
        let key = |n: usize| format!("/{n}").into();
        let commit = async |write| {
            let txn = Txn { compares: vec![], writes: vec![write] };
            let TxnResult::Committed { revision } = store.txn(txn).await.unwrap() else { panic!() };
            revision
        };
        let mut last = 0;
        for n in 0..600 {
            // Keys below 20 end deleted, others live, some after deletion.
            let (key, delete) = (key(n % 60), n / 60 % 3 == 1 || n >= 540 && n % 60 < 20);
            let put = |key| Write::Put { key, value: "x".into(), lease: 0 };
            last = commit(if delete { Write::Delete { key } } else { put(key) }).await;
        }
        store.compact(last).await.unwrap();
        let counts = || {
            let view = store.hub.view().unwrap();
            let current = view.disk.database.snapshot().len(&view.disk.current).unwrap();
            (view.versions(0, view.revision + 1).count(), current)
        };
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        // The 41st is what the newest event replaced: a watch from that revision shows it.
        while counts() != (41, 40) {
            assert!(std::time::Instant::now() < deadline, "{:?} left", counts());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
