//! A watcher's queue and the index by which a change finds its watchers.
//!
//! Queues hold pointers to shared changes. A watcher that does not drain its queue in time is dropped:
//! its client lists again, which costs less than a queue without end.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{
    change::Change,
    entry::{Filter, Trigger},
};

/// Changes a watcher may be behind. Pointers to shared changes: 64 KiB at most.
const QUEUE: usize = 8192;

pub struct Watcher {
    pub filter: Filter,
    queue: Mutex<VecDeque<Arc<Change>>>,
    wake: Notify,
    /// Overflown, or its cache was rebuilt: nothing further will come.
    closed: AtomicBool,
}

impl Watcher {
    pub fn new(filter: Filter, replay: VecDeque<Arc<Change>>) -> Watcher {
        Watcher { filter, queue: Mutex::new(replay), wake: Notify::new(), closed: AtomicBool::new(false) }
    }

    fn push(&self, change: &Arc<Change>) -> bool {
        let mut queue = self.queue.lock();
        if queue.len() >= QUEUE {
            drop(queue);
            self.close();
            return false;
        }
        queue.push_back(change.clone());
        drop(queue);
        self.wake.notify_one();
        true
    }

    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// What has come since the last call, oldest first; `None` once closed and drained.
    pub fn drain(&self) -> Option<VecDeque<Arc<Change>>> {
        let changes = std::mem::take(&mut *self.queue.lock());
        (!changes.is_empty() || !self.closed.load(Ordering::Acquire)).then_some(changes)
    }

    /// Resolves when there is something to drain (and perhaps when there is not).
    pub async fn changed(&self) {
        self.wake.notified().await;
    }
}

/// Watchers of one resource, found by what their selectors pin down.
#[derive(Default)]
pub struct Watchers {
    by_trigger: HashMap<Trigger, Vec<Arc<Watcher>>>,
    count: usize,
}

impl Watchers {
    pub fn add(&mut self, watcher: Arc<Watcher>) {
        self.by_trigger.entry(watcher.filter.trigger()).or_default().push(watcher);
        self.count += 1;
    }

    pub fn remove(&mut self, watcher: &Arc<Watcher>) {
        let trigger = watcher.filter.trigger();
        let Some(list) = self.by_trigger.get_mut(&trigger) else { return };
        let before = list.len();
        list.retain(|other| !Arc::ptr_eq(other, watcher));
        self.count -= before - list.len();
        if list.is_empty() {
            self.by_trigger.remove(&trigger);
        }
    }

    pub fn dispatch(&self, change: &Arc<Change>) {
        if self.count == 0 {
            return;
        }
        let entries = change.entry.iter().chain(&change.previous);
        let triggers: HashSet<Trigger> = entries.flat_map(|entry| Trigger::of(entry)).collect();
        for watcher in triggers.iter().filter_map(|trigger| self.by_trigger.get(trigger)).flatten() {
            watcher.push(change);
        }
    }

    /// Ends all of them.
    pub fn close(&mut self) {
        self.by_trigger.drain().flat_map(|(_, list)| list).for_each(|watcher| watcher.close());
        self.count = 0;
    }

    pub fn count(&self) -> usize {
        self.count
    }
}
