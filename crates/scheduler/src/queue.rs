//! The scheduling queue: active pods in the order of their rank, pods backing off after an attempt, and parked ones that
//! wait for an event that may help them. It refuses to know the time: callers say what it is.
//!
//! An event moves only pods whose refusing plugins think it may help; whatever the hints miss is tried again after five
//! minutes. A pod handed out by `pop` is no longer here: it comes back through `refuse` or `retry`, or not at all.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::framework::{ClusterEvent, Framework};
use crate::pod::PodInfo;

const INITIAL_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// How long a pod stays parked at most.
const PATIENCE: Duration = Duration::from_secs(300);

/// A pod on its way through attempts.
#[derive(Clone, Debug)]
pub struct Queued {
    pub pod: Arc<PodInfo>,
    attempts: u32,
}

impl Queued {
    /// The same attempts with a newer state of the pod.
    pub fn with(self, pod: Arc<PodInfo>) -> Self {
        Self { pod, ..self }
    }
}

#[derive(Debug)]
struct Entry {
    queued: Queued,
    place: Place,
    tried: Option<Instant>,
    refused_by: Vec<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Rank and number of arrival.
    Active(i64, u64),
    /// Until then.
    Backoff(Instant),
    /// Until then, or an event.
    Parked(Instant),
    /// Until its gates are gone.
    Gated,
}

pub struct Queue {
    framework: Arc<Framework>,
    entries: HashMap<Arc<str>, Entry>,
    active: BTreeSet<(i64, u64, Arc<str>)>,
    /// Pods that become active by themselves, and when.
    due: BTreeSet<(Instant, Arc<str>)>,
    parked: HashSet<Arc<str>>,
    arrivals: u64,
}

/// Doubles with every attempt.
fn backoff(attempts: u32) -> Duration {
    let doublings = attempts.saturating_sub(1).min(10);
    (INITIAL_BACKOFF * 2u32.pow(doublings)).min(MAX_BACKOFF)
}

impl Queue {
    pub fn new(framework: Arc<Framework>) -> Self {
        let (entries, active, due, parked) = Default::default();
        Self { framework, entries, active, due, parked, arrivals: 0 }
    }

    /// Adds a pod, or its new state. What keeps it from being tried at all, if anything does and is new.
    pub fn put(&mut self, pod: Arc<PodInfo>, now: Instant) -> Option<String> {
        let uid: Arc<str> = pod.uid.as_str().into();
        let refusal = self.framework.pre_enqueue(&pod);
        let Some(entry) = self.entries.get_mut(&uid) else {
            let entry =
                Entry { queued: Queued { pod, attempts: 0 }, place: Place::Gated, tried: None, refused_by: Vec::new() };
            self.entries.insert(uid.clone(), entry);
            return self.admit(&uid, refusal.map(|(_, refusal)| refusal.reasons.join(", ")));
        };
        let old = std::mem::replace(&mut entry.queued.pod, pod.clone());
        let changed = old.object.spec != pod.object.spec || old.object.metadata.labels != pod.object.metadata.labels;
        match entry.place {
            Place::Gated if changed => return self.admit(&uid, refusal.map(|(_, refusal)| refusal.reasons.join(", "))),
            Place::Parked(_) if changed => self.wake(&uid, now),
            _ => {}
        }
        None
    }

    fn admit(&mut self, uid: &Arc<str>, refusal: Option<String>) -> Option<String> {
        if refusal.is_none() {
            self.activate(uid);
        }
        refusal
    }

    pub fn remove(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let uid: Arc<str> = uid.into();
        self.take_place(&uid);
        Some(self.entries.remove(&uid)?.queued.pod)
    }

    /// The pod to try next, and the count of its attempts with this one.
    pub fn pop(&mut self, now: Instant) -> Option<Queued> {
        while let Some((due, uid)) = self.due.first().cloned()
            && due <= now
        {
            self.activate(&uid);
        }
        let (.., uid) = self.active.pop_first()?;
        let mut queued = self.entries.remove(&uid)?.queued;
        queued.attempts += 1;
        Some(queued)
    }

    /// When a waiting pod becomes active by itself.
    pub fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Parks a pod that these plugins refused.
    pub fn refuse(&mut self, queued: Queued, refused_by: Vec<&'static str>, now: Instant) {
        self.give_back(queued, Place::Parked(now + PATIENCE), refused_by, now);
    }

    /// Takes a pod back whose attempt failed for reasons of its own.
    pub fn retry(&mut self, queued: Queued, now: Instant) {
        let place = Place::Backoff(now + backoff(queued.attempts));
        self.give_back(queued, place, Vec::new(), now);
    }

    fn give_back(&mut self, queued: Queued, place: Place, refused_by: Vec<&'static str>, now: Instant) {
        let uid: Arc<str> = queued.pod.uid.as_str().into();
        self.entries.insert(uid.clone(), Entry { queued, place: Place::Gated, tried: Some(now), refused_by });
        self.set_place(&uid, place);
    }

    /// Wakes the parked pods that an event may help.
    pub fn on_event(&mut self, event: ClusterEvent<'_>, now: Instant) {
        let helped = |uid: &&Arc<str>| {
            let entry = self.entries.get(*uid);
            entry.is_some_and(|entry| self.framework.hint(event, &entry.queued.pod, &entry.refused_by))
        };
        let helped: Vec<Arc<str>> = self.parked.iter().filter(helped).cloned().collect();
        helped.iter().for_each(|uid| self.wake(uid, now));
    }

    /// Makes a parked pod active, once its back-off is over.
    pub fn wake(&mut self, uid: &Arc<str>, now: Instant) {
        let Some(Entry { queued, tried, place: Place::Parked(_), .. }) = self.entries.get(uid) else { return };
        match tried.map(|tried| tried + backoff(queued.attempts)).filter(|until| *until > now) {
            Some(until) => self.set_place(uid, Place::Backoff(until)),
            None => self.activate(uid),
        }
    }

    fn activate(&mut self, uid: &Arc<str>) {
        let Some(entry) = self.entries.get(uid) else { return };
        let rank = self.framework.rank(&entry.queued.pod);
        self.arrivals += 1;
        self.set_place(uid, Place::Active(rank, self.arrivals));
    }

    fn set_place(&mut self, uid: &Arc<str>, place: Place) {
        self.take_place(uid);
        match place {
            Place::Active(rank, arrival) => drop(self.active.insert((rank, arrival, uid.clone()))),
            Place::Backoff(until) => drop(self.due.insert((until, uid.clone()))),
            Place::Parked(until) => {
                self.due.insert((until, uid.clone()));
                self.parked.insert(uid.clone());
            }
            Place::Gated => {}
        }
        if let Some(entry) = self.entries.get_mut(uid) {
            entry.place = place;
        }
    }

    fn take_place(&mut self, uid: &Arc<str>) {
        match self.entries.get(uid).map(|entry| entry.place) {
            Some(Place::Active(rank, arrival)) => drop(self.active.remove(&(rank, arrival, uid.clone()))),
            Some(Place::Backoff(until)) => drop(self.due.remove(&(until, uid.clone()))),
            Some(Place::Parked(until)) => {
                self.due.remove(&(until, uid.clone()));
                self.parked.remove(uid);
            }
            Some(Place::Gated) | None => {}
        }
    }
}
