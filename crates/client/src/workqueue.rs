//! The queue between informers and reconcilers, with client-go's semantics: a key waits at most once, is never worked on
//! twice at a time, and is worked on again when it was added meanwhile. It refuses to know what keys mean.
//!
//! Delayed keys need no task of their own: whoever waits for work also waits for the earliest of them.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

pub struct WorkQueue<K: Eq + Hash + Clone> {
    shared: Arc<Shared<K>>,
}

struct Shared<K> {
    state: Mutex<State<K>>,
    changed: Notify,
}

struct State<K> {
    queue: VecDeque<K>,
    /// Waiting in `queue`, or added again while being processed.
    dirty: HashSet<K>,
    processing: HashSet<K>,
    delayed: BTreeMap<(Instant, u64), K>,
    due: HashMap<K, (Instant, u64)>,
    sequence: u64,
    limiter: RateLimiter<K>,
    shutting_down: bool,
}

impl<K: Eq + Hash + Clone> Clone for WorkQueue<K> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<K: Eq + Hash + Clone> Default for WorkQueue<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Eq + Hash + Clone> WorkQueue<K> {
    /// A queue with the default limiter: per key 5 ms doubling to 1000 s, and 10 a second with a burst of 100 over all.
    pub fn new() -> Self {
        Self::with_backoff(Duration::from_millis(5), Duration::from_secs(1000))
    }

    /// A queue whose keys back off from `base` to `max`.
    pub fn with_backoff(base: Duration, max: Duration) -> Self {
        let state = State {
            queue: VecDeque::new(),
            dirty: HashSet::new(),
            processing: HashSet::new(),
            delayed: BTreeMap::new(),
            due: HashMap::new(),
            sequence: 0,
            limiter: RateLimiter::new(base, max),
            shutting_down: false,
        };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), changed: Notify::new() }) }
    }

    pub fn add(&self, key: K) {
        if self.shared.state.lock().add(key) {
            self.shared.changed.notify_one();
        }
    }

    /// Adds the key after a delay; of several delays of one key the earliest counts.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        if self.shared.state.lock().add_at(key, Instant::now() + delay) {
            self.shared.changed.notify_one();
        }
    }

    /// Adds the key after the pause that its failures so far have earned.
    pub fn add_rate_limited(&self, key: K) {
        let delay = self.shared.state.lock().limiter.when(&key, Instant::now());
        self.add_after(key, delay);
    }

    /// Forgets the failures of a key: call it after success.
    pub fn forget(&self, key: &K) {
        self.shared.state.lock().limiter.failures.remove(key);
    }

    /// How often the key has been added rate-limited since it was last forgotten.
    pub fn retries(&self, key: &K) -> u32 {
        self.shared.state.lock().limiter.failures.get(key).copied().unwrap_or_default()
    }

    /// The next key, once there is one; the key is being processed until the item is dropped. None after shut-down.
    pub async fn get(&self) -> Option<Item<K>> {
        loop {
            let changed = self.shared.changed.notified();
            let next = self.shared.state.lock().next(Instant::now());
            match next {
                Next::Key(key, more) => {
                    if more {
                        self.shared.changed.notify_one();
                    }
                    return Some(Item { key, shared: self.shared.clone() });
                }
                Next::ShutDown => return None,
                Next::Wait(None) => changed.await,
                Next::Wait(Some(until)) => drop(tokio::time::timeout_at(until, changed).await),
            }
        }
    }

    /// Lets `get` end once the queue is empty, and refuses new keys.
    pub fn shut_down(&self) {
        self.shared.state.lock().shutting_down = true;
        self.shared.changed.notify_waiters();
        self.shared.changed.notify_one();
    }

    /// Keys ready to be worked on; delayed ones do not count.
    pub fn len(&self) -> usize {
        self.shared.state.lock().queue.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A key being processed; dropping it says that it is done.
pub struct Item<K: Eq + Hash + Clone> {
    key: K,
    shared: Arc<Shared<K>>,
}

impl<K: Eq + Hash + Clone> Deref for Item<K> {
    type Target = K;
    fn deref(&self) -> &K {
        &self.key
    }
}

impl<K: Eq + Hash + Clone> Drop for Item<K> {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.processing.remove(&self.key);
        if state.dirty.contains(&self.key) {
            state.queue.push_back(self.key.clone());
            self.shared.changed.notify_one();
        }
    }
}

enum Next<K> {
    /// A key, and whether another getter can have one too.
    Key(K, bool),
    Wait(Option<Instant>),
    ShutDown,
}

impl<K: Eq + Hash + Clone> State<K> {
    /// Whether a getter should look again.
    fn add(&mut self, key: K) -> bool {
        if self.shutting_down || !self.dirty.insert(key.clone()) {
            return false;
        }
        let waits = !self.processing.contains(&key);
        if waits {
            self.queue.push_back(key);
        }
        waits
    }

    fn add_at(&mut self, key: K, at: Instant) -> bool {
        match self.due.get(&key) {
            _ if self.shutting_down => return false,
            Some(known) if known.0 <= at => return false,
            Some(known) => drop(self.delayed.remove(known)),
            None => {}
        }
        self.sequence += 1;
        self.due.insert(key.clone(), (at, self.sequence));
        self.delayed.insert((at, self.sequence), key);
        true
    }

    fn next(&mut self, now: Instant) -> Next<K> {
        while let Some(entry) = self.delayed.first_entry().filter(|entry| entry.key().0 <= now) {
            let key = entry.remove();
            self.due.remove(&key);
            self.add(key);
        }
        match self.queue.pop_front() {
            Some(key) => {
                self.dirty.remove(&key);
                self.processing.insert(key.clone());
                Next::Key(key, !self.queue.is_empty() || !self.delayed.is_empty())
            }
            None if self.shutting_down => Next::ShutDown,
            None => Next::Wait(self.delayed.keys().next().map(|(at, _)| *at)),
        }
    }
}

/// The larger of an exponential pause per key and a token bucket over all keys.
struct RateLimiter<K> {
    base: Duration,
    max: Duration,
    failures: HashMap<K, u32>,
    tokens: f64,
    refilled: Instant,
}

impl<K: Eq + Hash + Clone> RateLimiter<K> {
    const RATE: f64 = 10.0;
    const BURST: f64 = 100.0;

    fn new(base: Duration, max: Duration) -> Self {
        Self { base, max, failures: HashMap::new(), tokens: Self::BURST, refilled: Instant::now() }
    }

    fn when(&mut self, key: &K, now: Instant) -> Duration {
        let failures = self.failures.entry(key.clone()).or_default();
        let exponential = self.base.saturating_mul(1 << (*failures).min(30)).min(self.max);
        *failures += 1;
        exponential.max(self.reserve(now))
    }

    fn reserve(&mut self, now: Instant) -> Duration {
        let refill = now.saturating_duration_since(self.refilled).as_secs_f64() * Self::RATE;
        (self.tokens, self.refilled) = ((self.tokens + refill).min(Self::BURST) - 1.0, now);
        Duration::from_secs_f64((-self.tokens / Self::RATE).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> WorkQueue<&'static str> {
        WorkQueue::new()
    }

    #[tokio::test]
    async fn a_key_waits_once_and_is_never_processed_twice_at_a_time() {
        let queue = queue();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.len(), 1);
        let item = queue.get().await.unwrap();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.len(), 0, "a key in process is put back only when done");
        drop(item);
        assert_eq!(queue.len(), 1);
        drop(queue.get().await.unwrap());
        assert_eq!(queue.len(), 0);
    }

    #[tokio::test]
    async fn shutting_down_drains_then_ends() {
        let queue = queue();
        queue.add("a");
        queue.shut_down();
        queue.add("b");
        assert_eq!(*queue.get().await.unwrap(), "a");
        assert!(queue.get().await.is_none());
    }

    #[tokio::test]
    async fn shutting_down_wakes_every_waiter() {
        let queue = queue();
        let waiters: Vec<_> = (0..3)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { queue.get().await.is_none() })
            })
            .collect();
        tokio::task::yield_now().await;
        queue.shut_down();
        for waiter in waiters {
            assert!(waiter.await.unwrap());
        }
    }

    #[tokio::test]
    async fn the_earliest_delay_of_a_key_counts() {
        let queue = queue();
        queue.add_after("slow", Duration::from_secs(3600));
        queue.add_after("slow", Duration::from_millis(20));
        queue.add_after("slow", Duration::from_secs(60));
        queue.add_after("fast", Duration::from_millis(1));
        assert_eq!(*queue.get().await.unwrap(), "fast");
        assert_eq!(*queue.get().await.unwrap(), "slow");
        assert!(queue.shared.state.lock().delayed.is_empty());
    }

    #[test]
    fn failures_double_the_pause_up_to_the_maximum_and_share_a_bucket() {
        let now = Instant::now();
        let mut limiter = RateLimiter::new(Duration::from_millis(5), Duration::from_secs(1000));
        let pauses: Vec<_> = (0..20).map(|_| limiter.when(&0, now).as_millis()).collect();
        assert_eq!(pauses[..4], [5, 10, 20, 40]);
        assert_eq!(pauses[18..], [1_000_000, 1_000_000]);
        let other: Vec<_> = (1..=100).map(|key| limiter.when(&key, now)).collect();
        assert_eq!(other[79].as_millis(), 5, "the burst of 100 is spent with the 20 before");
        assert_eq!(other[99].as_millis(), 2000);
    }
}
