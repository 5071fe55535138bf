//! Hands committed events to watchers, and the newest view to readers.
//!
//! Publishing happens under one short lock, so that a watcher joins between two publications and
//! misses nothing. Nothing here waits for a watcher: one whose buffer is full is dropped with
//! [`Error::SlowWatcher`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock, RwLockWriteGuard};
use tokio::sync::mpsc;

use super::view::View;
use crate::{Error, Event, KeyRange, Revision, WatchBatch};

/// The state that readers, watchers and the writer share.
pub struct Hub {
    view: RwLock<Published>,
    watchers: Mutex<Watchers>,
    /// Some watcher has not been told the newest revision.
    lagging: AtomicBool,
    /// Per watcher, in bytes.
    buffer: usize,
}

/// What readers get.
pub enum Published {
    View(Arc<View>),
    /// Between a disk failure and recovery from it.
    Failed(String),
    Closed,
}

#[derive(Default)]
struct Watchers {
    revision: Revision,
    all: Vec<Watcher>,
    closed: bool,
}

struct Watcher {
    range: KeyRange,
    /// Wants no event before this.
    from: Revision,
    /// It was told of everything up to here.
    told: Revision,
    queue: mpsc::UnboundedSender<(Result<WatchBatch, Error>, usize)>,
    /// Bytes in the queue.
    queued: Arc<AtomicUsize>,
}

/// A watcher's end of the queue.
pub struct Subscription {
    queue: mpsc::UnboundedReceiver<(Result<WatchBatch, Error>, usize)>,
    queued: Arc<AtomicUsize>,
}

impl Subscription {
    /// `None` when the store is closed.
    pub async fn next(&mut self) -> Option<Result<WatchBatch, Error>> {
        let (batch, cost) = self.queue.recv().await?;
        self.queued.fetch_sub(cost, Ordering::Relaxed);
        Some(batch)
    }
}

impl Hub {
    pub fn new(view: Arc<View>, buffer: usize) -> Self {
        let watchers = Watchers { revision: view.revision, ..Watchers::default() };
        Hub {
            view: RwLock::new(Published::View(view)),
            watchers: Mutex::new(watchers),
            lagging: AtomicBool::new(false),
            buffer,
        }
    }

    pub fn view(&self) -> Result<Arc<View>, Error> {
        match &*self.view.read() {
            Published::View(view) => Ok(view.clone()),
            Published::Failed(why) => Err(Error::Io { operation: "read the store", source: why.as_str().into() }),
            Published::Closed => Err(Error::Closed),
        }
    }

    /// Makes a view the present and tells those who watch what led to it.
    pub fn publish(&self, view: Arc<View>, events: &[Event]) {
        let mut watchers = self.watchers.lock();
        watchers.revision = view.revision;
        *self.view.write() = Published::View(view);
        watchers.send(events, self.buffer);
        self.lagging.store(watchers.lagging(), Ordering::Release);
    }

    /// Tells every watcher the newest revision, if one does not know it.
    pub fn notify(&self) {
        if self.lagging.swap(false, Ordering::AcqRel) {
            self.watchers.lock().notify();
        }
    }

    pub fn is_lagging(&self) -> bool {
        self.lagging.load(Ordering::Acquire)
    }

    /// Starts a live feed of what follows the returned view.
    pub fn subscribe(&self, range: KeyRange, from: Revision) -> Result<(Arc<View>, Subscription), Error> {
        let mut watchers = self.watchers.lock();
        if watchers.closed {
            return Err(Error::Closed);
        }
        let view = self.view()?;
        let (sender, queue) = mpsc::unbounded_channel();
        let queued = Arc::new(AtomicUsize::new(0));
        let told = watchers.revision;
        watchers.all.push(Watcher { range, from, told, queue: sender, queued: queued.clone() });
        Ok((view, Subscription { queue, queued }))
    }

    /// The revision published last.
    pub fn revision(&self) -> Revision {
        self.watchers.lock().revision
    }

    /// Keeps readers out while the disk is replaced.
    pub fn replace(&self) -> RwLockWriteGuard<'_, Published> {
        self.view.write()
    }

    /// Ends every watch once it has read what is queued.
    pub fn close(&self) {
        let mut watchers = self.watchers.lock();
        watchers.closed = true;
        watchers.all.clear();
        *self.view.write() = Published::Closed;
    }
}

impl Watchers {
    fn send(&mut self, events: &[Event], buffer: usize) {
        let revision = self.revision;
        self.all.retain_mut(|watcher| {
            let wanted = |event: &&Event| event.revision() >= watcher.from && watcher.range.contains(event.key());
            let events: Vec<_> = events.iter().filter(wanted).cloned().collect();
            if events.is_empty() {
                return !watcher.queue.is_closed();
            }
            let cost = events.iter().map(Event::cost).sum();
            if watcher.queued.fetch_add(cost, Ordering::Relaxed) + cost > buffer {
                let _ = watcher.queue.send((Err(Error::SlowWatcher(watcher.told)), cost));
                return false;
            }
            watcher.told = revision;
            watcher.queue.send((Ok(WatchBatch { revision, events }), cost)).is_ok()
        });
    }

    fn notify(&mut self) {
        let revision = self.revision;
        self.all.retain_mut(|watcher| {
            if watcher.told == revision || revision < watcher.from {
                return true;
            }
            watcher.told = revision;
            let notice = WatchBatch { revision, events: Vec::new() };
            watcher.queue.send((Ok(notice), 0)).is_ok()
        });
    }

    fn lagging(&self) -> bool {
        self.all.iter().any(|watcher| watcher.told < self.revision)
    }
}
