//! Records core/v1 Events about objects: never blocks its caller, and never floods the API. It refuses to know what is
//! reported.
//!
//! As client-go: more than ten similar events in ten minutes are combined into one, a repeated event counts up by a
//! patch, and one object may cause 25 events at once and one per five minutes after that. All of that is decided by the
//! pure [`Correlator`]; a single task does its writes, so it needs no lock and keeps the order.

use std::collections::HashMap;
use std::collections::HashSet;
use std::hash::Hash;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use serde_json::json;
use tokio::sync::mpsc;

use crate::ErrorExt as _;

/// Events waiting to be written; more are dropped, since a report must never hold up the work it reports on.
const QUEUE: usize = 1000;
/// Attempts to write one event to an API server that does not answer.
const ATTEMPTS: u32 = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

#[derive(Clone)]
pub struct EventRecorder {
    queue: mpsc::Sender<Event>,
    source: EventSource,
}

impl EventRecorder {
    /// `component` reports, on host `instance` (empty if that does not matter). Spawns the task that writes.
    pub fn new(client: Client, component: &str, instance: &str) -> Self {
        let (queue, events) = mpsc::channel(QUEUE);
        tokio::spawn(Writer { client, correlator: Correlator::default() }.run(events));
        let host = Some(instance.to_owned()).filter(|host| !host.is_empty());
        Self { queue, source: EventSource { component: Some(component.to_owned()), host } }
    }

    pub fn event<K>(&self, object: &K, kind: EventType, reason: &str, message: impl Into<String>)
    where
        K: Resource<DynamicType = ()>,
    {
        let resource_version = object.meta().resource_version.clone();
        self.event_about(ObjectReference { resource_version, ..object.object_ref(&()) }, kind, reason, message);
    }

    /// An event about a part of an object (its `field_path`), or about one that is not at hand.
    pub fn event_about(
        &self,
        involved_object: ObjectReference,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        let event = draft(&self.source, involved_object, kind, reason, message.into(), Timestamp::now());
        if self.queue.try_send(event).is_err() {
            tracing::debug!(reason, "event dropped: the queue is full");
        }
    }
}

fn draft(
    source: &EventSource,
    involved_object: ObjectReference,
    kind: EventType,
    reason: &str,
    message: String,
    now: Timestamp,
) -> Event {
    let name = involved_object.name.as_deref().unwrap_or_default();
    let namespace = involved_object.namespace.clone().filter(|namespace| !namespace.is_empty());
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:x}", now.as_nanosecond())),
            namespace: Some(namespace.unwrap_or_else(|| "default".into())),
            ..Default::default()
        },
        involved_object,
        reason: Some(reason.to_owned()),
        message: Some(message),
        type_: Some(kind.as_str().to_owned()),
        count: Some(1),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        reporting_component: source.component.clone(),
        reporting_instance: source.host.clone(),
        source: Some(source.clone()),
        ..Default::default()
    }
}

struct Writer {
    client: Client,
    correlator: Correlator,
}

impl Writer {
    async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        while let Some(event) = events.recv().await {
            if let Some(write) = self.correlator.correlate(event, Timestamp::now()) {
                self.write(write).await;
            }
        }
    }

    async fn write(&mut self, mut write: Write) {
        let namespace = write.event.metadata.namespace.clone().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        for attempt in 0..ATTEMPTS {
            let outcome = match write.repeated {
                true => self.repeat(&api, &write.event).await,
                false => api.create(&PostParams::default(), &write.event).await.map(drop),
            };
            match outcome {
                Ok(()) => return self.correlator.written(write),
                Err(error) if write.repeated && error.is_not_found() => write.repeated = false,
                Err(error) if error.code().is_some_and(|code| code < 500 && code != 429) => {
                    return tracing::debug!(%error, "event rejected");
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(200 << (2 * attempt))).await,
            }
        }
        tracing::debug!(message = write.event.message, "event given up");
    }

    async fn repeat(&self, api: &Api<Event>, event: &Event) -> kube::Result<()> {
        let patch = json!({"count": event.count, "lastTimestamp": event.last_timestamp, "message": event.message});
        let name = event.metadata.name.as_deref().unwrap_or_default();
        api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
    }
}

/// What to write: a new event, or the count of one that is there.
#[derive(Debug)]
struct Write {
    event: Event,
    key: Similar,
    repeated: bool,
}

/// What makes events similar; with the message, what makes them the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Similar {
    object: [String; 6],
    report: [String; 4],
    message: Option<String>,
}

impl Similar {
    fn of(event: &Event) -> Self {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let (object, source) = (&event.involved_object, event.source.clone().unwrap_or_default());
        let object =
            [&object.kind, &object.namespace, &object.name, &object.uid, &object.api_version, &object.field_path];
        let report = [&source.component, &source.host, &event.type_, &event.reason];
        Self { object: object.map(text), report: report.map(text), message: None }
    }
}

#[derive(Default)]
struct Correlator {
    similar: Cache<Similar, Group>,
    seen: Cache<Similar, Seen>,
    spam: Cache<Similar, Bucket>,
}

struct Group {
    messages: HashSet<String>,
    last: Timestamp,
}

struct Seen {
    name: String,
    count: i32,
    first: Option<Time>,
}

struct Bucket {
    tokens: f64,
    refilled: Timestamp,
}

impl Correlator {
    const SIMILAR: usize = 10;
    const SIMILAR_SECONDS: i64 = 600;
    const BURST: f64 = 25.0;
    const REFILL_PER_SECOND: f64 = 1.0 / 300.0;

    fn correlate(&mut self, mut event: Event, now: Timestamp) -> Option<Write> {
        let key = self.aggregate(&mut event, now);
        let repeated = match self.seen.get(&key) {
            Some(seen) => {
                event.metadata.name = Some(seen.name.clone());
                event.count = Some(seen.count + 1);
                event.first_timestamp = seen.first.clone();
                true
            }
            None => false,
        };
        self.allow(&event, now).then_some(Write { event, key, repeated })
    }

    /// The key to count the event under; an event like many others takes a combined message.
    fn aggregate(&mut self, event: &mut Event, now: Timestamp) -> Similar {
        let mut key = Similar::of(event);
        let group = self.similar.entry(&key, || Group { messages: HashSet::new(), last: now });
        if now.as_second() - group.last.as_second() > Self::SIMILAR_SECONDS {
            group.messages.clear();
        }
        group.last = now;
        let message = event.message.clone().unwrap_or_default();
        if group.messages.len() < Self::SIMILAR {
            group.messages.insert(message.clone());
        }
        if group.messages.len() < Self::SIMILAR {
            key.message = Some(message);
        } else {
            event.message = Some(format!("(combined from similar events): {message}"));
        }
        key
    }

    fn allow(&mut self, event: &Event, now: Timestamp) -> bool {
        let mut key = Similar::of(event);
        key.report[2..].fill(String::new()); // one bucket per source and object
        let bucket = self.spam.entry(&key, || Bucket { tokens: Self::BURST, refilled: now });
        let elapsed = now.duration_since(bucket.refilled).as_secs_f64().max(0.0);
        bucket.tokens = (bucket.tokens + elapsed * Self::REFILL_PER_SECOND).min(Self::BURST);
        bucket.refilled = now;
        let allowed = bucket.tokens >= 1.0;
        if allowed {
            bucket.tokens -= 1.0;
        }
        allowed
    }

    fn written(&mut self, write: Write) {
        let event = write.event;
        let seen = self.seen.entry(&write.key, || Seen { name: String::new(), count: 0, first: None });
        seen.name = event.metadata.name.unwrap_or_default();
        (seen.count, seen.first) = (event.count.unwrap_or(1), event.first_timestamp);
    }
}

/// A map that forgets its least recently used half when full.
struct Cache<K, V> {
    entries: HashMap<K, (u64, V)>,
    clock: u64,
}

impl<K, V> Default for Cache<K, V> {
    fn default() -> Self {
        Self { entries: HashMap::new(), clock: 0 }
    }
}

impl<K: Eq + Hash + Clone, V> Cache<K, V> {
    const CAPACITY: usize = 4096;

    fn get(&mut self, key: &K) -> Option<&mut V> {
        self.clock += 1;
        let (used, value) = self.entries.get_mut(key)?;
        *used = self.clock;
        Some(value)
    }

    fn entry(&mut self, key: &K, new: impl FnOnce() -> V) -> &mut V {
        self.clock += 1;
        if self.entries.len() >= Self::CAPACITY && !self.entries.contains_key(key) {
            let mut uses: Vec<u64> = self.entries.values().map(|(used, _)| *used).collect();
            let median = *uses.select_nth_unstable(Self::CAPACITY / 2).1;
            self.entries.retain(|_, (used, _)| *used > median);
        }
        let entry = self.entries.entry(key.clone()).or_insert_with(|| (0, new()));
        entry.0 = self.clock;
        &mut entry.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(pod: &str, message: &str, now: Timestamp) -> Event {
        let source = EventSource { component: Some("test".into()), host: None };
        let object = ObjectReference { kind: Some("Pod".into()), name: Some(pod.into()), ..Default::default() };
        draft(&source, object, EventType::Normal, "Started", message.into(), now)
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    #[test]
    fn a_repeated_event_counts_up_under_its_first_name() {
        let mut correlator = Correlator::default();
        let first = correlator.correlate(event("a", "x", at(0)), at(0)).unwrap();
        let name = first.event.metadata.name.clone();
        assert!(!first.repeated);
        correlator.written(first);
        let second = correlator.correlate(event("a", "x", at(9)), at(9)).unwrap();
        assert!(second.repeated);
        assert_eq!((second.event.count, &second.event.metadata.name), (Some(2), &name));
        assert_eq!(second.event.first_timestamp, Some(Time(at(0))));
        assert!(!correlator.correlate(event("a", "y", at(9)), at(9)).unwrap().repeated);
    }

    #[test]
    fn the_tenth_similar_event_is_combined_and_time_forgives() {
        let mut correlator = Correlator::default();
        let mut combined = |message: &str, second| {
            let write = correlator.correlate(event("a", message, at(second)), at(second)).unwrap();
            let combined = write.event.message.as_deref().unwrap().starts_with("(combined from similar events): ");
            correlator.written(write);
            combined
        };
        let outcomes: Vec<bool> = (0..11).map(|number| combined(&number.to_string(), 0)).collect();
        assert_eq!(outcomes.iter().position(|combined| *combined), Some(9));
        assert!(!combined("later", 601));
    }

    #[test]
    fn an_object_may_burst_25_and_then_one_in_five_minutes() {
        let mut correlator = Correlator::default();
        let mut allowed = |pod: &str, second| correlator.correlate(event(pod, "x", at(second)), at(second)).is_some();
        assert_eq!((0..40).filter(|_| allowed("a", 0)).count(), 25);
        assert!(allowed("b", 0), "other objects are not affected");
        assert!(!allowed("a", 299));
        assert!(allowed("a", 301));
        assert!(!allowed("a", 302));
    }

    #[test]
    fn a_full_cache_forgets_what_was_used_least_recently() {
        let mut cache = Cache::default();
        for number in 0..4096 {
            cache.entry(&number, || number);
        }
        cache.get(&0);
        cache.entry(&9999, || 9999);
        assert!(cache.get(&0).is_some() && cache.get(&1).is_none() && cache.entries.len() < 4096);
    }
}
