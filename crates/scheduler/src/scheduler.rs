//! The task that owns the snapshot and the queue: takes events, decides, and hands binding and other writes to tasks.
//!
//! A chosen node is assumed at once, so that the next decision sees it; the informer's event confirms it. An assumption
//! that no event confirms in time is dropped, since then the binding was lost.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::{Client, ErrorExt as _, Event, EventRecorder, EventType, Informer, Informers, Subscription, key_of};
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::ListParams;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::decide::{Placement, Turn, Unschedulable, decide};
use crate::framework::{ClusterEvent, Framework, Nomination};
use crate::groups::{self, Group};
use crate::plugins;
use crate::pod::PodInfo;
use crate::queue::{Queue, Queued};
use crate::snapshot::Snapshot;
use crate::writes;

/// Bindings and other writes under way; decisions wait for one to end when there are more.
const WRITES: usize = 512;
/// How long a binding may be done without an event that shows it.
const CONFIRMATION: Duration = Duration::from_secs(60);

/// A pod on a node.
struct Placed {
    pod: Arc<PodInfo>,
    node: String,
    assumed: Assumed,
}

#[derive(PartialEq)]
enum Assumed {
    /// An event has shown the pod on the node.
    No,
    Binding,
    Until(Instant),
}

/// What a task of writes has to say when it ends.
enum Written {
    Bound { queued: Queued, node: String, outcome: anyhow::Result<()> },
    Other(anyhow::Result<()>),
}

struct Scheduler {
    name: String,
    client: Client,
    events: EventRecorder,
    framework: Arc<Framework>,
    snapshot: Snapshot,
    queue: Queue,
    placed: HashMap<String, Placed>,
    unconfirmed: BTreeSet<(Instant, String)>,
    pods: Informer<Pod>,
    writes: JoinSet<Written>,
    turn: Turn,
}

pub(crate) async fn run(name: String, client: Client, shutdown: CancellationToken) {
    let informers = Informers::new(client.clone());
    // As upstream: a pod that has finished leaves the watch like one that is deleted.
    let running = ListParams::default().fields("status.phase!=Succeeded,status.phase!=Failed");
    let pods = informers.get_with::<Pod>(&running);
    let nodes = informers.get::<Node>();
    let namespaces = informers.get::<Namespace>();
    let budgets = informers.get::<PodDisruptionBudget>();
    let claims = informers.get::<PersistentVolumeClaim>();
    let volumes = informers.get::<PersistentVolume>();
    let classes = informers.get::<StorageClass>();
    let storage = async { tokio::join!(claims.synced(), volumes.synced(), classes.synced()) };
    let synced = async { tokio::join!(pods.synced(), nodes.synced(), namespaces.synced(), storage) };
    if shutdown.run_until_cancelled(synced).await.is_none() {
        return;
    }
    let framework = Arc::new(plugins::default_profile());
    let mut watching = JoinSet::new();
    let mut feeds = Feeds {
        pods: pods.subscribe(),
        nodes: nodes.subscribe(),
        namespaces: namespaces.subscribe(),
        budgets: budgets.subscribe(),
        claims: claims.subscribe(),
        volumes: volumes.subscribe(),
        classes: classes.subscribe(),
        groups: groups::watch(&client, &mut watching),
    };
    let mut scheduler = Scheduler {
        events: EventRecorder::new(client.clone(), &name, ""),
        name,
        client,
        queue: Queue::new(framework.clone()),
        framework,
        snapshot: Snapshot::default(),
        placed: HashMap::new(),
        unconfirmed: BTreeSet::new(),
        pods,
        writes: JoinSet::new(),
        turn: Turn::default(),
    };
    tracing::info!("scheduling");
    while shutdown.run_until_cancelled(scheduler.step(&mut feeds)).await.is_some() {}
    // What is decided is written, unless the server does not answer.
    let _ =
        tokio::time::timeout(Duration::from_secs(5), async { while scheduler.writes.join_next().await.is_some() {} })
            .await;
}

struct Feeds {
    pods: Subscription<Pod>,
    nodes: Subscription<Node>,
    namespaces: Subscription<Namespace>,
    budgets: Subscription<PodDisruptionBudget>,
    claims: Subscription<PersistentVolumeClaim>,
    volumes: Subscription<PersistentVolume>,
    classes: Subscription<StorageClass>,
    groups: mpsc::Receiver<Group>,
}

enum Input {
    Pod(Event<Pod>),
    Node(Event<Node>),
    Namespace(Event<Namespace>),
    Budget(Event<PodDisruptionBudget>),
    Claim(Event<PersistentVolumeClaim>),
    Volume(Event<PersistentVolume>),
    Class(Event<StorageClass>),
    Group(Group),
    Written(Written),
    Time,
}

impl Feeds {
    /// What has arrived already; nodes first, so that pods find them.
    fn ready(&mut self) -> Option<Input> {
        None.or_else(|| self.namespaces.try_recv().map(Input::Namespace))
            .or_else(|| self.budgets.try_recv().map(Input::Budget))
            .or_else(|| self.classes.try_recv().map(Input::Class))
            .or_else(|| self.volumes.try_recv().map(Input::Volume))
            .or_else(|| self.claims.try_recv().map(Input::Claim))
            .or_else(|| self.groups.try_recv().ok().map(Input::Group))
            .or_else(|| self.nodes.try_recv().map(Input::Node))
            .or_else(|| self.pods.try_recv().map(Input::Pod))
    }

    async fn next(&mut self) -> Option<Input> {
        tokio::select! {
            biased;
            event = self.namespaces.recv() => event.map(Input::Namespace),
            event = self.budgets.recv() => event.map(Input::Budget),
            event = self.classes.recv() => event.map(Input::Class),
            event = self.volumes.recv() => event.map(Input::Volume),
            event = self.claims.recv() => event.map(Input::Claim),
            Some(group) = self.groups.recv() => Some(Input::Group(group)),
            event = self.nodes.recv() => event.map(Input::Node),
            event = self.pods.recv() => event.map(Input::Pod),
        }
    }
}

impl Scheduler {
    /// Takes in all there is to know, then decides one pod, or waits.
    async fn step(&mut self, feeds: &mut Feeds) {
        while let Some(input) = feeds.ready() {
            self.take(input);
        }
        while let Some(Ok(written)) = self.writes.try_join_next() {
            self.take(Input::Written(written));
        }
        let now = Instant::now();
        self.expire(now);
        if self.writes.len() < WRITES
            && let Some(queued) = self.queue.pop(now)
        {
            self.schedule(queued, now);
            return tokio::task::yield_now().await;
        }
        let input = self.wait(feeds).await;
        self.take(input);
    }

    async fn wait(&mut self, feeds: &mut Feeds) -> Input {
        let due = if self.writes.len() < WRITES { self.queue.next_due() } else { None };
        let expiry = self.unconfirmed.first().map(|(until, _)| *until);
        let alarm = due.into_iter().chain(expiry).min();
        let sleep = async {
            match alarm {
                Some(alarm) => tokio::time::sleep_until(alarm.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(input) = feeds.next() => input,
            Some(written) = self.writes.join_next() => {
                Input::Written(written.unwrap_or_else(|error| Written::Other(Err(error.into()))))
            }
            () = sleep => Input::Time,
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Pod(event) => self.on_pod(event),
            Input::Node(event) => self.on_node(event),
            Input::Namespace(event) => self.on_namespace(event),
            Input::Budget(Event::Deleted(budget)) => drop(self.snapshot.budgets.remove(&key_of(&budget.metadata))),
            Input::Budget(Event::Added(budget) | Event::Modified { new: budget, .. }) => {
                self.snapshot.budgets.insert(key_of(&budget.metadata), budget);
            }
            Input::Claim(event) => self.on_claim(event),
            Input::Volume(event) => {
                let (name, volume) = state(event);
                self.snapshot.storage.set_volume(name, volume);
                self.queue.on_event(ClusterEvent::Storage, Instant::now());
            }
            Input::Class(event) => {
                let (name, class) = state(event);
                self.snapshot.storage.set_class(name, class);
                self.queue.on_event(ClusterEvent::Storage, Instant::now());
            }
            Input::Group(group) => self.snapshot.set_group(group),
            Input::Written(Written::Bound { queued, node, outcome }) => self.on_bound(queued, &node, outcome),
            Input::Written(Written::Other(Ok(()))) | Input::Time => {}
            Input::Written(Written::Other(Err(error))) => tracing::warn!("{error:#}"),
        }
    }
}

/// Events.
impl Scheduler {
    fn on_node(&mut self, event: Event<Node>) {
        if let Event::Deleted(node) = &event {
            self.snapshot.remove_node(node.metadata.name.as_deref().unwrap_or_default());
            return self.queue.on_event(ClusterEvent::Other, Instant::now()); // a skew may be smaller without it
        }
        self.snapshot.set_node(event.object().clone());
        let old = event.old().map(|old| &**old);
        self.queue.on_event(ClusterEvent::Node { old, new: event.object() }, Instant::now());
    }

    fn on_claim(&mut self, event: Event<PersistentVolumeClaim>) {
        let object = event.object().clone();
        let (key, claim) = state(event);
        self.snapshot.storage.set_claim(key, claim);
        self.queue.on_event(ClusterEvent::Claim(&object), Instant::now());
    }

    fn on_namespace(&mut self, event: Event<Namespace>) {
        let meta = &event.object().metadata;
        let labels = (!matches!(event, Event::Deleted(_))).then(|| meta.labels.clone().unwrap_or_default());
        self.snapshot.set_namespace(meta.name.as_deref().unwrap_or_default(), labels);
        let relabelled = event.old().is_some_and(|old| old.metadata.labels != meta.labels);
        if relabelled {
            self.queue.on_event(ClusterEvent::Other, Instant::now());
        }
    }

    fn on_pod(&mut self, event: Event<Pod>) {
        let gone = matches!(event, Event::Deleted(_));
        let object = event.object().clone();
        let phase = object.status.as_ref().and_then(|status| status.phase.as_deref());
        let finished = matches!(phase, Some("Succeeded" | "Failed"));
        let uid = object.metadata.uid.clone().unwrap_or_default();
        if gone || finished {
            return self.forget(&uid);
        }
        // Most updates of a pod on a node are of its status: nothing that decisions depend on.
        if let (Some(old), Some(placed)) = (event.old(), self.placed.get(&uid))
            && placed.assumed == Assumed::No
            && !matters(old, &object)
        {
            return;
        }
        let pod = Arc::new(PodInfo::new(object));
        match pod.node_name().map(str::to_owned) {
            Some(node) => self.on_placed(pod, node),
            None => self.on_pending(pod, event.old().is_some_and(|old| is_nominated(old))),
        }
    }

    fn forget(&mut self, uid: &str) {
        let queued = self.queue.remove(uid);
        let nominated = self.snapshot.drop_nomination(uid).is_some();
        let now = Instant::now();
        match self.unplace(uid) {
            Some(placed) => self.queue.on_event(ClusterEvent::PodGone(&placed.pod), now),
            None => {
                if let Some(pod) = queued.filter(|_| nominated) {
                    self.queue.on_event(ClusterEvent::PodGone(&pod), now);
                }
            }
        }
    }

    fn on_placed(&mut self, pod: Arc<PodInfo>, node: String) {
        self.queue.remove(&pod.uid);
        self.snapshot.drop_nomination(&pod.uid);
        let old = self.unplace(&pod.uid);
        let known = old.as_ref().filter(|old| old.assumed == Assumed::No).map(|old| old.pod.clone());
        self.place(pod.clone(), node, Assumed::No);
        self.queue.on_event(ClusterEvent::PodPlaced { old: known.as_deref(), new: &pod }, Instant::now());
    }

    fn on_pending(&mut self, pod: Arc<PodInfo>, was_nominated: bool) {
        let ours = pod.spec().scheduler_name.as_deref().unwrap_or("default-scheduler") == self.name;
        if !ours || self.placed.contains_key(&pod.uid) {
            return;
        }
        if pod.class.terminating {
            return self.forget(&pod.uid);
        }
        // A nomination of ours may not be in the pod yet; one that was there and is gone is taken back.
        let nominated = self.snapshot.drop_nomination(&pod.uid);
        let nominated = pod.nominated_node().map(str::to_owned).or(nominated.filter(|_| !was_nominated));
        if let Some(node) = nominated {
            self.snapshot.nominate(&node, pod.clone());
        }
        if let Some(message) = self.queue.put(pod.clone(), Instant::now()) {
            tracing::debug!("pod {}/{}: {message}", pod.namespace(), pod.name());
            self.write_status(&pod, "SchedulingGated", "Scheduling is blocked due to non-empty scheduling gates", None);
        }
    }
}

/// The key of an object, and what there is of it after the event.
fn state<K: kube::Resource>(event: Event<K>) -> (String, Option<Arc<K>>) {
    let key = key_of(event.object().meta());
    let object = (!matches!(event, Event::Deleted(_))).then(|| event.object().clone());
    (key, object)
}

fn is_nominated(pod: &Pod) -> bool {
    let name = pod.status.as_ref().and_then(|status| status.nominated_node_name.as_deref());
    name.is_some_and(|name| !name.is_empty())
}

/// Whether decisions about other pods can depend on what changed of a pod on a node.
fn matters(old: &Pod, new: &Pod) -> bool {
    let resources = |pod: &Pod| {
        let status = pod.status.as_ref();
        let statuses = status.map(|status| [status.container_statuses.clone(), status.init_container_statuses.clone()]);
        let statuses = statuses.into_iter().flatten().flatten().flatten();
        let whole = status.map(|status| status.allocated_resources.clone());
        whole.into_iter().chain(statuses.map(|status| status.allocated_resources)).collect::<Vec<_>>()
    };
    let (before, after) = (&old.metadata, &new.metadata);
    before.labels != after.labels
        || before.deletion_timestamp != after.deletion_timestamp
        || old.spec != new.spec
        || resources(old) != resources(new)
}

/// Pods on nodes.
impl Scheduler {
    fn place(&mut self, pod: Arc<PodInfo>, node: String, assumed: Assumed) {
        self.snapshot.add_pod(&node, pod.clone());
        self.placed.insert(pod.uid.clone(), Placed { pod, node, assumed });
    }

    fn unplace(&mut self, uid: &str) -> Option<Placed> {
        let placed = self.placed.remove(uid)?;
        self.snapshot.remove_pod(&placed.node, uid);
        if let Assumed::Until(until) = placed.assumed {
            self.unconfirmed.remove(&(until, uid.to_owned()));
        }
        Some(placed)
    }

    fn on_bound(&mut self, queued: Queued, node: &str, outcome: anyhow::Result<()>) {
        let (pod, now) = (queued.pod.clone(), Instant::now());
        let Err(error) = outcome else {
            let message = format!("Successfully assigned {}/{} to {node}", pod.namespace(), pod.name());
            self.events.event(&*pod.object, EventType::Normal, "Scheduled", message);
            if let Some(placed) = self.placed.get_mut(&pod.uid).filter(|placed| placed.assumed == Assumed::Binding) {
                placed.assumed = Assumed::Until(now + CONFIRMATION);
                self.unconfirmed.insert((now + CONFIRMATION, pod.uid.clone()));
            }
            return;
        };
        self.framework.unreserve(&mut self.snapshot, &pod);
        if self.placed.get(&pod.uid).is_none_or(|placed| placed.assumed != Assumed::Binding) {
            return; // deleted, or bound by someone else
        }
        self.unplace(&pod.uid);
        self.queue.on_event(ClusterEvent::PodGone(&pod), now);
        let gone = error.downcast_ref::<kube::Error>().is_some_and(|error| error.is_not_found());
        if !gone && let Some(pod) = self.still_pending(&pod) {
            self.fail(queued.with(pod), error, now);
        }
    }

    /// The latest state of a pod, if it still is to be scheduled.
    fn still_pending(&self, pod: &PodInfo) -> Option<Arc<PodInfo>> {
        let latest = self.pods.store().get(&key_of(&pod.object.metadata))?;
        let latest = Some(PodInfo::new(latest)).filter(|latest| latest.uid == pod.uid)?;
        (latest.node_name().is_none() && !latest.class.terminating).then(|| Arc::new(latest))
    }

    /// Drops assumptions that were never confirmed; their pods are tried again if they still wait.
    fn expire(&mut self, now: Instant) {
        while let Some((until, uid)) = self.unconfirmed.first().cloned()
            && until <= now
        {
            let Some(placed) = self.unplace(&uid) else { return };
            tracing::warn!("no event has shown the binding of pod {}/{}", placed.pod.namespace(), placed.pod.name());
            if let Some(pod) = self.still_pending(&placed.pod) {
                self.queue.put(pod, now);
            }
        }
    }
}

/// Decisions.
impl Scheduler {
    fn schedule(&mut self, queued: Queued, now: Instant) {
        self.turn.lot = rand::random_range(0..usize::MAX);
        match decide(&self.framework, &self.snapshot, &queued.pod, self.turn) {
            Ok(placement) => self.assign(queued, placement, now),
            Err(refusal) => self.refuse(queued, refusal, now),
        }
    }

    fn assign(&mut self, queued: Queued, placement: Placement, now: Instant) {
        self.turn.start = placement.next_start;
        let node = self.snapshot.node(placement.node).name.clone();
        let reserved = match self.framework.reserve(&mut self.snapshot, &queued.pod, placement.node) {
            Ok(reserved) => reserved,
            Err(error) => return self.fail(queued, error, now),
        };
        self.snapshot.drop_nomination(&queued.pod.uid);
        self.place(queued.pod.clone(), node.clone(), Assumed::Binding);
        let (framework, client) = (self.framework.clone(), self.client.clone());
        self.writes.spawn(async move {
            let outcome = framework.bind(&client, &queued.pod, &node, reserved).await;
            Written::Bound { queued, node, outcome }
        });
    }

    /// An attempt that went wrong, rather than a pod that fits nowhere.
    fn fail(&mut self, queued: Queued, error: anyhow::Error, now: Instant) {
        let (pod, message) = (queued.pod.clone(), format!("{error:#}"));
        tracing::debug!("{message}");
        self.events.event(&*pod.object, EventType::Warning, "FailedScheduling", &message);
        self.write_status(&pod, "SchedulerError", &message, None);
        self.queue.retry(queued, now);
    }

    fn refuse(&mut self, queued: Queued, refusal: Unschedulable, now: Instant) {
        let Unschedulable { message, refused_by, nomination } = refusal;
        let pod = queued.pod.clone();
        self.events.event(&*pod.object, EventType::Warning, "FailedScheduling", &message);
        self.queue.refuse(queued, refused_by, now);
        let nominated = match nomination {
            Nomination::Keep => None,
            Nomination::Clear => {
                self.snapshot.drop_nomination(&pod.uid);
                Some(String::new())
            }
            Nomination::Set { node, victims } => {
                let node = self.snapshot.node(node).name.clone();
                self.preempt(&pod, &node, victims, now);
                Some(node)
            }
        };
        self.write_status(&pod, "Unschedulable", &message, nominated.as_deref());
    }

    fn preempt(&mut self, pod: &Arc<PodInfo>, node: &str, victims: Vec<Arc<PodInfo>>, now: Instant) {
        // Less important pods that waited for this node have to look again.
        let displaced = self.snapshot.nominated_to(node).iter().filter(|other| other.priority < pod.priority);
        for other in displaced.cloned().collect::<Vec<_>>() {
            self.snapshot.drop_nomination(&other.uid);
            self.spawn_write(other.clone(), serde_json::json!({"nominatedNodeName": null}));
            self.queue.wake(&other.uid.as_str().into(), now);
        }
        self.snapshot.nominate(node, pod.clone());
        for victim in victims.into_iter().filter(|victim| !victim.class.terminating) {
            let message = format!("Preempted by pod {} on node {node}", pod.uid);
            self.events.event(&*victim.object, EventType::Normal, "Preempted", message);
            let (client, name) = (self.client.clone(), self.name.clone());
            self.writes
                .spawn(async move { Written::Other(writes::in_time(writes::evict(&client, &name, &victim)).await) });
        }
    }

    fn write_status(&mut self, pod: &Arc<PodInfo>, reason: &str, message: &str, nominated: Option<&str>) {
        if let Some(status) = writes::refusal_patch(pod, reason, message, nominated) {
            self.spawn_write(pod.clone(), status);
        }
    }

    fn spawn_write(&mut self, pod: Arc<PodInfo>, status: serde_json::Value) {
        let client = self.client.clone();
        self.writes
            .spawn(async move { Written::Other(writes::in_time(writes::patch_status(&client, &pod, status)).await) });
    }
}
