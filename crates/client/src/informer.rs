//! Shared informers: one list and one watch per kind, selector and identity in a process, an indexed store of shared
//! objects, and typed events for any number of subscribers.
//!
//! Subscribers get every object's changes in order and never miss a final state, and none can hold up another or the
//! watch: what a slow subscriber has not yet received is folded per object (consecutive modifications become one from
//! the first old to the last new state; a life that began and ended within the backlog, after an earlier deletion,
//! vanishes). A backlog therefore holds at most three events per object. Creations and deletions of distinct objects are
//! never folded away, since expectations count them.

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt::Debug;
use std::ops::Bound;
use std::sync::{Arc, Weak};

use kube::{Api, Client, Resource, api::ListParams};
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::reference::key_of;
use crate::reflector;

/// An object that an informer can hold.
pub trait Object: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static {}
impl<K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static> Object for K {}

/// The informers of one process and identity. Cheap to clone; informers stop with the last handle to them.
#[derive(Clone)]
pub struct Informers {
    client: Client,
    running: Arc<Mutex<Running>>,
}

/// By kind and selectors.
type Running = HashMap<(TypeId, String), Box<dyn Any + Send + Sync>>;

impl Informers {
    pub fn new(client: Client) -> Self {
        Self { client, running: Arc::default() }
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The informer of a whole kind, started on first use.
    pub fn get<K: Object<DynamicType = ()>>(&self) -> Informer<K> {
        self.get_with(&ListParams::default())
    }

    /// The informer of the objects that the parameters' selectors choose; other parameters do not apply.
    pub fn get_with<K: Object<DynamicType = ()>>(&self, params: &ListParams) -> Informer<K> {
        let selectors = format!("{:?}{:?}", params.label_selector, params.field_selector);
        let mut running = self.running.lock();
        let informer = running.entry((TypeId::of::<K>(), selectors)).or_insert_with(|| {
            let api: Api<K> = Api::all(self.client.clone());
            Box::new(Informer::start(api, params.clone(), |_| {}))
        });
        informer.downcast_ref::<Informer<K>>().expect("keyed by its type").clone()
    }
}

/// A running list and watch of one kind.
pub struct Informer<K> {
    shared: Arc<Shared<K>>,
    _stop: Arc<DropGuard>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), _stop: self._stop.clone() }
    }
}

pub(crate) struct Shared<K> {
    store: Store<K>,
    synced: watch::Sender<bool>,
}

impl<K: Object> Informer<K> {
    /// Starts an informer of its own on `api`; `transform` may drop what its user does not need before it is stored.
    /// managedFields are always dropped: nobody reads them from a cache, and they are half the bytes.
    pub fn start(api: Api<K>, params: ListParams, transform: fn(&mut K)) -> Self {
        let shared = Arc::new(Shared { store: Store::default(), synced: watch::Sender::new(false) });
        let stop = CancellationToken::new();
        let reflector = reflector::Reflector { api, params, transform, shared: shared.clone() };
        tokio::spawn(reflector.run(stop.clone()));
        Self { shared, _stop: Arc::new(stop.drop_guard()) }
    }
}

impl<K: Resource> Informer<K> {
    pub fn store(&self) -> Store<K> {
        self.shared.store.clone()
    }

    /// Adds an index under a name; a second index of that name is ignored, so that any user may declare what it needs.
    pub fn add_index(&self, name: &'static str, extract: impl Fn(&K) -> Vec<String> + Send + Sync + 'static) {
        self.shared.store.contents.write().add_index(name, Box::new(extract));
    }

    /// Events from now on, preceded by an `Added` for every object already known.
    pub fn subscribe(&self) -> Subscription<K> {
        let mut contents = self.shared.store.contents.write();
        let backlog = Arc::new(Backlog::default());
        for (key, object) in &contents.objects {
            backlog.push(key.clone(), Event::Added(object.clone()));
        }
        contents.subscribers.push(Arc::downgrade(&backlog));
        Subscription { backlog, _informer: self.clone() }
    }

    /// Whether the first list is in the store.
    pub fn has_synced(&self) -> bool {
        *self.shared.synced.borrow()
    }

    /// Waits until the first list is in the store.
    pub async fn synced(&self) {
        // The sender lives in `shared`, so this cannot fail while `self` lives.
        let _ = self.shared.synced.subscribe().wait_for(|synced| *synced).await;
    }
}

impl<K: Resource> Shared<K> {
    pub(crate) fn replace(&self, objects: Vec<K>) {
        let mut contents = self.store.contents.write();
        let mut gone: BTreeSet<Arc<str>> = contents.objects.keys().cloned().collect();
        for object in objects {
            gone.remove(key_of(object.meta()).as_str());
            contents.put(object);
        }
        for key in gone {
            contents.remove(&key, None);
        }
        drop(contents);
        self.synced.send_if_modified(|synced| !std::mem::replace(synced, true));
    }

    pub(crate) fn put(&self, object: K) {
        self.store.contents.write().put(object);
    }

    pub(crate) fn delete(&self, object: K) {
        let key = key_of(object.meta());
        self.store.contents.write().remove(&key, Some(object));
    }
}

/// What an informer knows, shared with everybody in the process: objects are never changed in place.
pub struct Store<K> {
    contents: Arc<RwLock<Contents<K>>>,
}

impl<K> Clone for Store<K> {
    fn clone(&self) -> Self {
        Self { contents: self.contents.clone() }
    }
}

impl<K> Default for Store<K> {
    fn default() -> Self {
        let contents = Contents { objects: BTreeMap::new(), indexes: HashMap::new(), subscribers: Vec::new() };
        Self { contents: Arc::new(RwLock::new(contents)) }
    }
}

impl<K: Resource> Store<K> {
    /// The object of a `namespace/name` key, or of a `name` for kinds of the cluster.
    pub fn get(&self, key: &str) -> Option<Arc<K>> {
        self.contents.read().objects.get(key).cloned()
    }

    /// All objects, ordered by key.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.contents.read().objects.values().cloned().collect()
    }

    pub fn list_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let (from, to) = (format!("{namespace}/"), format!("{namespace}0")); // '0' follows '/'
        let contents = self.contents.read();
        let range = (Bound::Included(from.as_str()), Bound::Excluded(to.as_str()));
        contents.objects.range::<str, _>(range).map(|(_, object)| object.clone()).collect()
    }

    /// The objects for which the index of that name yields `value`, ordered by key; none if there is no such index.
    pub fn by_index(&self, name: &str, value: &str) -> Vec<Arc<K>> {
        let contents = self.contents.read();
        let keys = contents.indexes.get(name).and_then(|index| index.keys.get(value));
        keys.into_iter().flatten().filter_map(|key| contents.objects.get(key).cloned()).collect()
    }

    pub fn len(&self) -> usize {
        self.contents.read().objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts an object in by hand: for tests of what reads a store.
    pub fn insert(&self, object: K) {
        self.contents.write().put(object);
    }
}

struct Contents<K> {
    objects: BTreeMap<Arc<str>, Arc<K>>,
    indexes: HashMap<&'static str, Index<K>>,
    subscribers: Vec<Weak<Backlog<K>>>,
}

type Extract<K> = Box<dyn Fn(&K) -> Vec<String> + Send + Sync>;

struct Index<K> {
    extract: Extract<K>,
    keys: HashMap<String, BTreeSet<Arc<str>>>,
}

impl<K> Index<K> {
    fn add(&mut self, key: &Arc<str>, object: &K) {
        for value in (self.extract)(object) {
            self.keys.entry(value).or_default().insert(key.clone());
        }
    }

    fn remove(&mut self, key: &str, object: &K) {
        for value in (self.extract)(object) {
            if let Some(keys) = self.keys.get_mut(&value) {
                keys.remove(key);
                if keys.is_empty() {
                    self.keys.remove(&value);
                }
            }
        }
    }
}

impl<K: Resource> Contents<K> {
    fn add_index(&mut self, name: &'static str, extract: Extract<K>) {
        let objects = &self.objects;
        self.indexes.entry(name).or_insert_with(|| {
            let mut index = Index { extract, keys: HashMap::new() };
            objects.iter().for_each(|(key, object)| index.add(key, object));
            index
        });
    }

    fn put(&mut self, object: K) {
        let key = key_of(object.meta());
        let old = self.objects.get(key.as_str()).cloned();
        if let Some(old) = &old {
            if old.meta().resource_version.is_some() && old.meta().resource_version == object.meta().resource_version {
                return;
            }
            if old.meta().uid != object.meta().uid {
                self.remove(&key, None);
                return self.put(object);
            }
        }
        let (key, new): (Arc<str>, _) = (key.into(), Arc::new(object));
        for index in self.indexes.values_mut() {
            if let Some(old) = &old {
                index.remove(&key, old);
            }
            index.add(&key, &new);
        }
        self.objects.insert(key.clone(), new.clone());
        match old {
            Some(old) => self.publish(key, Event::Modified { old, new }),
            None => self.publish(key, Event::Added(new)),
        }
    }

    fn remove(&mut self, key: &str, last_state: Option<K>) {
        let Some((key, old)) = self.objects.remove_entry(key) else { return };
        self.indexes.values_mut().for_each(|index| index.remove(&key, &old));
        let last = last_state.filter(|last| last.meta().uid == old.meta().uid).map_or(old, Arc::new);
        self.publish(key, Event::Deleted(last));
    }

    fn publish(&mut self, key: Arc<str>, event: Event<K>) {
        self.subscribers.retain(|subscriber| {
            let backlog = subscriber.upgrade();
            backlog.inspect(|backlog| backlog.push(key.clone(), event.clone())).is_some()
        });
    }
}

/// One change of one object.
#[derive(Debug)]
pub enum Event<K> {
    Added(Arc<K>),
    Modified { old: Arc<K>, new: Arc<K> },
    Deleted(Arc<K>),
}

impl<K> Clone for Event<K> {
    fn clone(&self) -> Self {
        match self {
            Self::Added(object) => Self::Added(object.clone()),
            Self::Modified { old, new } => Self::Modified { old: old.clone(), new: new.clone() },
            Self::Deleted(object) => Self::Deleted(object.clone()),
        }
    }
}

impl<K> Event<K> {
    /// The newest state the event knows of.
    pub fn object(&self) -> &Arc<K> {
        match self {
            Self::Added(object) | Self::Deleted(object) | Self::Modified { new: object, .. } => object,
        }
    }

    /// The state before a modification.
    pub fn old(&self) -> Option<&Arc<K>> {
        match self {
            Self::Modified { old, .. } => Some(old),
            _ => None,
        }
    }
}

/// The events of one subscriber. Keeps the informer running.
pub struct Subscription<K> {
    backlog: Arc<Backlog<K>>,
    _informer: Informer<K>,
}

impl<K> Subscription<K> {
    /// The next event. Never `None` while the subscription lives; an Option so that it reads like any receiver.
    pub async fn recv(&mut self) -> Option<Event<K>> {
        loop {
            if let Some(event) = self.try_recv() {
                return Some(event);
            }
            self.backlog.arrival.notified().await; // keeps a permit for what arrived since
        }
    }

    /// The next event if there is one already.
    pub fn try_recv(&mut self) -> Option<Event<K>> {
        self.backlog.pending.lock().pop()
    }
}

struct Backlog<K> {
    pending: Mutex<Pending<K>>,
    arrival: Notify,
}

struct Pending<K> {
    order: VecDeque<Arc<str>>,
    events: HashMap<Arc<str>, VecDeque<Event<K>>>,
}

impl<K> Default for Backlog<K> {
    fn default() -> Self {
        let pending = Pending { order: VecDeque::new(), events: HashMap::new() };
        Self { pending: Mutex::new(pending), arrival: Notify::new() }
    }
}

impl<K> Backlog<K> {
    fn push(&self, key: Arc<str>, event: Event<K>) {
        self.pending.lock().push(key, event);
        self.arrival.notify_one();
    }
}

impl<K> Pending<K> {
    fn push(&mut self, key: Arc<str>, event: Event<K>) {
        let events = self.events.entry(key.clone()).or_insert_with(|| {
            self.order.push_back(key);
            VecDeque::new()
        });
        let follows_a_life = events.len() > 1;
        match (events.back_mut(), event) {
            (Some(Event::Added(last) | Event::Modified { new: last, .. }), Event::Modified { new, .. }) => *last = new,
            (Some(Event::Added(_)), Event::Deleted(_)) if follows_a_life => drop(events.pop_back()),
            (_, event) => events.push_back(event),
        }
    }

    fn pop(&mut self) -> Option<Event<K>> {
        let key = self.order.pop_front()?;
        let events = self.events.get_mut(&key)?;
        let event = events.pop_front();
        if events.is_empty() {
            self.events.remove(&key);
        } else {
            self.order.push_back(key);
        }
        event
    }
}
