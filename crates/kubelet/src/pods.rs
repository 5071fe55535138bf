//! The pods of this node: which tasks own them, and how messages find their way.
//!
//! Knows uids and inboxes; what a pod does is its worker's business.

use crate::admit;
use crate::pod;
use crate::resize::{self, Pending};
use crate::resources::{self, Qos, Quantities};
use crate::shared::Shared;
use crate::state::{Instance, POD_UID, Runtime, Sandbox};
use crate::status;
use crate::status_writer::StatusWriter;
use crate::worker::{INBOX, Message, Snapshot, Worker};
use client::EventType::Warning;
use cri::v1;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Node, Pod, PodStatus};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

/// Nobody knows any more what grace an orphan was promised; upstream gives it this, in seconds.
const ORPHAN_GRACE: i64 = 1;
const ORPHANS_AT_ONCE: usize = 16;
/// How long a request for an unknown pod waits for a kubelet that has just started.
const CATCH_UP: Duration = Duration::from_secs(5);

struct Handle {
    inbox: mpsc::Sender<Message>,
    snapshot: watch::Receiver<Snapshot>,
    /// As the API has it.
    wanted: Arc<Pod>,
    /// With the resources it was granted, which is what its task works on.
    granted: Arc<Pod>,
    pending: Option<Pending>,
}

pub struct Pods {
    shared: Arc<Shared>,
    workers: Mutex<HashMap<String, Handle>>,
    /// What earlier kubelets left in the runtime, until the pods that own it are known.
    left: Mutex<BTreeMap<String, Runtime>>,
    /// Pods that were refused, until the API shows it.
    rejected: Mutex<HashSet<String>>,
    /// Whether all pods that were bound to this node when the kubelet started are known.
    caught_up: watch::Sender<bool>,
}

impl Pods {
    pub fn new(shared: Arc<Shared>, left: BTreeMap<String, Runtime>) -> Arc<Pods> {
        Arc::new(Pods {
            shared,
            workers: Mutex::default(),
            left: Mutex::new(left),
            rejected: Mutex::default(),
            caught_up: watch::Sender::default(),
        })
    }

    /// Every pod that was bound to this node at the start has been put.
    pub fn catch_up(&self) {
        self.caught_up.send_replace(true);
    }

    /// Waits for [`Pods::catch_up`], though not for ever: the API server may be away.
    pub async fn caught_up(&self) {
        let mut caught_up = self.caught_up.subscribe();
        let _ = tokio::time::timeout(CATCH_UP, caught_up.wait_for(|caught_up| *caught_up)).await;
    }

    /// A pod that is bound to this node, or that changed.
    pub async fn put(self: &Arc<Self>, pod: Arc<Pod>, node: Option<&Node>) {
        let uid = pod::uid(&pod).to_owned();
        let known = self.workers.lock().get(&uid).map(|handle| (handle.granted.clone(), handle.pending.clone()));
        if let Some((granted, before)) = known {
            return self.update(pod, &granted, before).await;
        }
        if self.rejected.lock().contains(&uid) && !pod::is_terminal(&pod) && pod.metadata.deletion_timestamp.is_none() {
            return;
        }
        let runtime = self.left.lock().remove(&uid).unwrap_or_default();
        let known = runtime != Runtime::default() || pod::status(&pod).start_time.is_some();
        if !known && pod.metadata.deletion_timestamp.is_none() && !pod::is_terminal(&pod) {
            let others = self.active();
            let allocatable = self.shared.allocatable.read().clone();
            let pressures = self.shared.pressures();
            let sysctls = &self.shared.config.allowed_unsafe_sysctls;
            if let Err(refusal) = admit::check(&pod, &others, &allocatable, &pressures, sysctls, node) {
                return self.reject(pod, &refusal);
            }
        }
        let weighs = resources::qos(&pod) == Qos::Burstable;
        self.start(pod, runtime);
        // Other pods change nothing, and most starts should not wait for this.
        if weighs {
            self.weigh_classes().await;
        }
    }

    /// Gives the QoS classes their shares of the processors.
    pub async fn weigh_classes(&self) {
        let (pods, config) = (self.active(), self.shared.config.clone());
        let weigh = move || crate::cgroup::weigh_classes(pods.iter().map(|pod| pod.as_ref()), &config);
        let _ = tokio::task::spawn_blocking(weigh).await;
    }

    /// Hands a changed pod to its task, with as much as it can be granted.
    async fn update(&self, wanted: Arc<Pod>, granted: &Pod, before: Option<Pending>) {
        let (granted, pending) = self.grant(&wanted, granted);
        if let Some(pending) = pending.as_ref().filter(|pending| before.as_ref() != Some(pending)) {
            let reason = pending.reason;
            let text = format!("Pod resize {reason}: {}", resize::summary(&wanted, Some(&pending.message)));
            self.shared.event(&wanted, Warning, &format!("Resize{reason}"), text);
        }
        let inbox = self.workers.lock().get_mut(pod::uid(&wanted)).map(|handle| {
            (handle.wanted, handle.granted, handle.pending) = (wanted, granted.clone(), pending.clone());
            handle.inbox.clone()
        });
        if let Some(inbox) = inbox {
            let _ = inbox.send(Message::Pod { pod: granted, pending }).await;
        }
    }

    fn grant(&self, wanted: &Arc<Pod>, granted: &Pod) -> (Arc<Pod>, Option<Pending>) {
        if !resize::differ(wanted, granted) {
            return (wanted.clone(), None);
        }
        let mut others = self.active();
        others.retain(|other| pod::uid(other) != pod::uid(wanted));
        match resize::decide(wanted, &others, &self.shared.allocatable.read()) {
            Ok(()) => (wanted.clone(), None),
            Err(pending) => (Arc::new(resize::restrict(wanted, granted)), Some(pending)),
        }
    }

    /// Tries deferred resizes again, the most important pods first.
    pub async fn retry_resizes(&self) {
        let mut deferred: Vec<(Arc<Pod>, Arc<Pod>, Option<Pending>)> = {
            let workers = self.workers.lock();
            let waiting = workers.values().filter(|handle| handle.pending.as_ref().is_some_and(Pending::is_deferred));
            waiting.map(|h| (h.wanted.clone(), h.granted.clone(), h.pending.clone())).collect()
        };
        deferred.sort_by_key(|(wanted, ..)| std::cmp::Reverse(pod::spec(wanted).priority));
        for (wanted, granted, pending) in deferred {
            if self.grant(&wanted, &granted).1 != pending {
                self.update(wanted, &granted, pending).await;
            }
        }
    }

    fn start(self: &Arc<Self>, wanted: Arc<Pod>, runtime: Runtime) {
        let (pod, pending) = self.grant(&wanted, &resize::granted_before(&wanted));
        let found = runtime != Runtime::default() && !pod::is_terminal(&pod);
        if found && pod::spec(&pod).resources.is_some() {
            // What the pod as a whole may have can have changed while no kubelet ran, and no container tells of it.
            let (pod, config) = (pod.clone(), self.shared.config.clone());
            tokio::task::spawn_blocking(move || crate::cgroup::create(&pod, &config));
        }
        let uid = pod::uid(&pod).to_owned();
        let (sender, receiver) = mpsc::channel(INBOX);
        let initial = Snapshot {
            status: pod::status(&pod).clone(),
            pod: pod.clone(),
            runtime: runtime.clone(),
            finished: pod::is_terminal(&pod),
            ending: pod::is_terminal(&pod),
        };
        let (snapshot_sender, snapshot) = watch::channel(initial);
        let channel = (sender.clone(), receiver);
        let granted = pod.clone();
        let mut worker = Worker::new(self.shared.clone(), pod, runtime, channel, snapshot_sender);
        worker.pending = pending.clone();
        self.workers.lock().insert(uid.clone(), Handle { inbox: sender, snapshot, wanted, granted, pending });
        let pods = self.clone();
        tokio::spawn(async move {
            let task = AbortOnDropHandle::new(tokio::spawn(worker.run()));
            tokio::select! {
                // A defect in one pod's task must not take its handle, and so its name, for ever.
                result = task => if let Err(error) = result {
                    tracing::error!(uid, %error, "pod task failed");
                },
                () = pods.shared.shutdown.cancelled() => {}
            }
            pods.workers.lock().remove(&uid);
        });
    }

    fn reject(&self, pod: Arc<Pod>, refusal: &admit::Refusal) {
        self.rejected.lock().insert(pod::uid(&pod).to_owned());
        self.shared.event(&pod, Warning, refusal.reason, refusal.message.clone());
        let now = jiff::Timestamp::now();
        let status = status::rejected(&pod, refusal.reason, &refusal.message, now);
        let writer = StatusWriter::start(self.shared.client.clone(), &pod);
        writer.write(status, false);
        // Kept until written; the pod's next appearance is a terminal one.
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(60)).await;
            drop(writer);
        });
    }

    /// A pod the API no longer has.
    pub async fn remove(&self, pod: &Pod) {
        self.rejected.lock().remove(pod::uid(pod));
        self.send(pod::uid(pod), Message::Gone).await;
    }

    pub async fn send(&self, uid: &str, message: Message) {
        let inbox = self.workers.lock().get(uid).map(|handle| handle.inbox.clone());
        if let Some(inbox) = inbox {
            let _ = inbox.send(message).await;
        }
    }

    /// Routes one runtime event.
    pub async fn observe(&self, event: v1::ContainerEventResponse) {
        let Some(status) = event.pod_sandbox_status.clone() else {
            return self.relist_owner(&event.container_id).await;
        };
        let Some(uid) = status.metadata.as_ref().map(|metadata| metadata.uid.clone()) else { return };
        let sandbox = Sandbox::from_cri(status);
        let instances =
            event.containers_statuses.iter().cloned().map(|status| Instance::from_cri(status, &sandbox.id)).collect();
        let deleted = (event.container_event_type() == v1::ContainerEventType::ContainerDeletedEvent)
            .then(|| event.container_id.clone());
        let gone = deleted.as_deref() == Some(&sandbox.id);
        let message = Message::Observed { sandbox: (!gone).then_some(sandbox), instances, deleted };
        self.send(&uid, message).await;
    }

    /// Has the pod of one container ask the runtime; all pods if nobody is known to own it.
    async fn relist_owner(&self, id: &str) {
        let snapshots = self.snapshots();
        let owner = snapshots.iter().find(|snapshot| snapshot.runtime.by_id(id).is_some());
        match owner {
            Some(snapshot) => self.send(pod::uid(&snapshot.pod), Message::Relist).await,
            None => self.relist().await,
        }
    }

    /// Has every pod compare itself with the runtime: after a lost event stream, and now and then.
    pub async fn relist(&self) {
        self.send_all(|| Message::Relist).await;
    }

    pub async fn send_all(&self, message: impl Fn() -> Message) {
        let uids: Vec<String> = self.workers.lock().keys().cloned().collect();
        for uid in uids {
            self.send(&uid, message()).await;
        }
    }

    /// Names and ids of images that containers hold or pods will want.
    pub fn used_images(&self) -> BTreeSet<String> {
        let mut used = BTreeSet::new();
        for snapshot in self.snapshots() {
            let instances = snapshot.runtime.instances.iter();
            used.extend(instances.flat_map(|instance| [instance.image.clone(), instance.image_id.clone()]));
            if !snapshot.finished {
                let wanted = pod::members(&snapshot.pod);
                let images = wanted.iter().filter_map(|member| member.container.image.as_deref());
                let volumes = pod::spec(&snapshot.pod).volumes.iter().flatten();
                let volumes = volumes.filter_map(|volume| volume.image.as_ref()?.reference.as_deref());
                used.extend(images.chain(volumes).filter_map(|image| crate::images::normalize(image).ok()));
            }
        }
        used
    }

    pub async fn relist_pod(&self, uid: &str) {
        self.send(uid, Message::Relist).await;
    }

    pub fn snapshots(&self) -> Vec<Snapshot> {
        self.workers.lock().values().map(|handle| handle.snapshot.borrow().clone()).collect()
    }

    /// The pod of this name, the newest if an older one is still ending.
    pub fn find(&self, namespace: &str, name: &str, uid: Option<&str>) -> Option<watch::Receiver<Snapshot>> {
        let workers = self.workers.lock();
        let matching = workers.values().filter(|handle| {
            let snapshot = handle.snapshot.borrow();
            let pod = &snapshot.pod;
            pod::name(pod) == name && pod::namespace(pod) == namespace && uid.is_none_or(|uid| pod::uid(pod) == uid)
        });
        let newest = matching.max_by_key(|handle| {
            let snapshot = handle.snapshot.borrow();
            snapshot.pod.metadata.creation_timestamp.as_ref().map(|time| time.0)
        });
        newest.map(|handle| handle.snapshot.clone())
    }

    /// Pods that hold resources.
    fn active(&self) -> Vec<Arc<Pod>> {
        // What was granted last counts, even if the pod's task has not heard of it yet.
        let workers = self.workers.lock();
        // A pod that is told to be over has nothing left to run: the scheduler has given its place away already.
        let over = |snapshot: &Snapshot| snapshot.finished || pod::is_over(&snapshot.status);
        let active = workers.values().filter(|handle| !over(&handle.snapshot.borrow()));
        active.map(|handle| handle.granted.clone()).collect()
    }

    /// Ends what earlier kubelets left running of pods that are no more, and clears the disk of them.
    pub async fn clean_orphans(&self) {
        let left = std::mem::take(&mut *self.left.lock());
        let removals = left.into_iter().map(|(uid, runtime)| async move {
            tracing::info!(uid, "removing an orphaned pod");
            self.remove_orphan(&uid, runtime).await;
        });
        futures::stream::iter(removals).for_each_concurrent(ORPHANS_AT_ONCE, |removal| removal).await;
        let known: HashSet<String> = self.workers.lock().keys().cloned().collect();
        let entries = std::fs::read_dir(self.shared.config.root_dir.join("pods")).into_iter().flatten().flatten();
        for uid in entries.filter_map(|entry| entry.file_name().into_string().ok()) {
            if !known.contains(&uid) {
                self.clear_disk(&uid).await;
            }
        }
    }

    async fn remove_orphan(&self, uid: &str, runtime: Runtime) {
        let cri = &self.shared.cri;
        let stops = runtime.running().map(|instance| cri.stop_container(&instance.id, ORPHAN_GRACE));
        futures::future::join_all(stops).await;
        for sandbox in &runtime.sandboxes {
            let id = sandbox.id.clone();
            let stopped = cri.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await;
            let removed = cri.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: id }).await;
            if let Err(error) = stopped.map(drop).and(removed.map(drop)) {
                tracing::warn!(uid, %error, "orphaned sandbox not removed");
            }
        }
        for instance in &runtime.instances {
            let _ = cri.remove_container(v1::RemoveContainerRequest { container_id: instance.id.clone() }).await;
        }
        self.clear_disk(uid).await;
    }

    async fn clear_disk(&self, uid: &str) {
        let (shared, uid) = (self.shared.clone(), uid.to_owned());
        let work = tokio::task::spawn_blocking(move || {
            let config = &shared.config;
            match crate::volume::tear_down(config, &uid) {
                Ok(()) => shared.users.release(&uid),
                Err(error) => tracing::warn!(uid, error, "orphaned volumes not removed"),
            }
            crate::cgroup::remove_uid(&uid, config);
            let suffix = format!("_{uid}");
            let logs = std::fs::read_dir(&config.pod_logs_dir).into_iter().flatten().flatten();
            for entry in logs.filter(|entry| entry.file_name().to_string_lossy().ends_with(&suffix)) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        });
        let _ = work.await;
    }

    pub fn allocatable(&self) -> Arc<Quantities> {
        self.shared.allocatable.read().clone()
    }

    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub fn statuses(&self) -> Vec<(Arc<Pod>, PodStatus)> {
        self.snapshots().into_iter().map(|snapshot| (snapshot.pod, snapshot.status)).collect()
    }
}

/// Everything the runtime holds, by pod uid.
pub async fn list_runtime(
    cri: &crate::cri_client::Cri,
) -> Result<BTreeMap<String, Runtime>, crate::cri_client::CriError> {
    let (sandboxes, containers) = tokio::try_join!(cri.sandboxes(None), cri.containers(None))?;
    let uid = |labels: &HashMap<String, String>| labels.get(POD_UID).cloned();
    let uids: HashSet<String> = sandboxes
        .iter()
        .filter_map(|sandbox| uid(&sandbox.labels))
        .chain(containers.iter().filter_map(|container| uid(&container.labels)))
        .collect();
    let mut found = BTreeMap::new();
    for uid in uids {
        let runtime = cri.pod(&uid).await?;
        found.insert(uid, runtime);
    }
    Ok(found)
}
