//! One task per pod: it alone owns what is known of the pod, and acts on the plan.
//!
//! Messages and finished operations change its state; after each change it plans, starts what the
//! plan says, and reports the status. It never waits for an operation: those run beside it.

use crate::backoff::{self, Backoff};
use crate::check::Target;
use crate::objects::PodObjects;
use crate::operations::{self, Job, StartError};
use crate::plan::{self, Action, KillReason, Operation, Stage, Track, View};
use crate::pod::{self, Kind};
use crate::probe::{self, ProbeKind, Report, Results};
use crate::resize::{self, Outdated, Pending};
use crate::shared::Shared;
use crate::state::{Instance, RunState, Runtime, Sandbox};
use crate::status;
use crate::status_writer::{self, StatusWriter};
use crate::{logs, volume};
use client::EventType::{Normal, Warning};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Messages waiting for one pod; senders wait when it is full.
pub const INBOX: usize = 1024;

/// How long a status that is not ours may stand in the API, as upstream. Until then our own may be on its way.
const COMPARISON: SignedDuration = SignedDuration::from_secs(10);
/// How long the end of a container that is replaced stays untold: about as long as upstream takes to notice it.
const REPLACEMENT: SignedDuration = SignedDuration::from_secs(1);

#[derive(Debug)]
pub enum Message {
    /// The pod's object changed.
    Pod {
        pod: Arc<Pod>,
        /// What it wants beyond the resources in `pod`, and cannot have now.
        pending: Option<Pending>,
    },
    /// The API has forgotten the pod.
    Gone,
    /// The runtime told of the pod's sandbox and containers.
    Observed {
        sandbox: Option<Sandbox>,
        instances: Vec<Instance>,
        deleted: Option<String>,
    },
    /// Something may have been missed: ask the runtime for everything.
    Relist,
    Probe {
        id: String,
        kind: ProbeKind,
        healthy: bool,
    },
    /// The node wants its resources back.
    Evict {
        verdict: Verdict,
        grace: i64,
    },
    /// Remove dead containers that nothing needs any more.
    DropDead,
    /// The uid of the mirror pod that shows a static pod's status.
    Mirror(String),
}

/// A judgement on the whole pod that makes it Failed.
#[derive(Clone, Debug)]
pub struct Verdict {
    pub reason: String,
    pub message: String,
    /// Whether the pod is told as a victim of the node, by the condition DisruptionTarget.
    pub disruption: bool,
}

/// What others may see of a pod.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub pod: Arc<Pod>,
    pub runtime: Runtime,
    pub status: PodStatus,
    pub finished: bool,
    /// It is being stopped, or stopped already.
    pub ending: bool,
}

/// How operations end.
enum Done {
    Volumes(Result<(), String>),
    Sandbox(Result<Sandbox, String>),
    Started(Result<Instance, StartError>),
    Killed(Option<Instance>),
    SandboxStopped(Result<(), String>),
    TornDown(Result<(), String>),
    Listed(Result<Runtime, String>),
    Resized(Result<Vec<(String, cri::v1::LinuxContainerResources)>, String>),
}

pub struct Worker {
    shared: Arc<Shared>,
    pod: Arc<Pod>,
    inbox: mpsc::Receiver<Message>,
    sender: mpsc::Sender<Message>,
    snapshot: watch::Sender<Snapshot>,
    writer: StatusWriter,
    objects: PodObjects,
    objects_changed: Arc<Notify>,
    _follower: AbortOnDropHandle<()>,
    runtime: Runtime,
    probes: Results,
    probers: BTreeMap<(String, ProbeKind), AbortOnDropHandle<()>>,
    tracks: BTreeMap<String, Track>,
    busy: BTreeSet<Operation>,
    retries: BTreeMap<Operation, Timestamp>,
    failures: BTreeMap<Operation, u32>,
    operations: JoinSet<(Operation, Done)>,
    aborts: BTreeMap<Operation, AbortHandle>,
    hooked: BTreeSet<String>,
    stop: CancellationToken,
    stage: Stage,
    verdict: Option<Verdict>,
    /// The pod was over before its task began, and its status stays as it is.
    settled: bool,
    volumes_ready: bool,
    volumes_stale: bool,
    last: PodStatus,
    relist_wanted: bool,
    gone: bool,
    deleting: bool,
    pub pending: Option<Pending>,
    outdated: Vec<Outdated>,
    /// The pod's own cgroup has to be set anew.
    resize_due: bool,
    resize_error: Option<String>,
    resizing: bool,
    /// When to look whether somebody else has changed our status.
    compare_at: Option<Timestamp>,
    /// Instances that make room for a new definition of their container.
    giving_way: BTreeSet<String>,
}

impl Worker {
    /// `runtime` is what an earlier kubelet left running of this pod.
    pub fn new(
        shared: Arc<Shared>,
        pod: Arc<Pod>,
        runtime: Runtime,
        channel: (mpsc::Sender<Message>, mpsc::Receiver<Message>),
        snapshot: watch::Sender<Snapshot>,
    ) -> Worker {
        let (objects, changed) = (shared.objects.of(&pod), Arc::new(Notify::new()));
        let last = pod::status(&pod).clone();
        let mut tracks: BTreeMap<String, Track> = BTreeMap::new();
        let known = [&last.init_container_statuses, &last.container_statuses];
        for status in known.into_iter().flatten().flatten().filter(|status| status.container_id.is_some()) {
            tracks.entry(status.name.clone()).or_default().lost = status.restart_count as u32 + 1;
        }
        let writer = StatusWriter::start(shared.client.clone(), &pod);
        let follower = follow(objects.clone(), changed.clone());
        let mut worker = Worker {
            inbox: channel.1,
            sender: channel.0,
            snapshot,
            writer,
            objects,
            objects_changed: changed,
            _follower: follower,
            runtime: Runtime::default(),
            probes: Results::default(),
            probers: BTreeMap::new(),
            tracks,
            busy: BTreeSet::new(),
            retries: BTreeMap::new(),
            failures: BTreeMap::new(),
            operations: JoinSet::new(),
            aborts: BTreeMap::new(),
            hooked: BTreeSet::new(),
            stop: CancellationToken::new(),
            stage: Stage::Running,
            verdict: None,
            settled: false,
            volumes_ready: false,
            volumes_stale: false,
            last,
            relist_wanted: false,
            gone: false,
            deleting: false,
            pending: None,
            outdated: Vec::new(),
            resize_due: false,
            resize_error: None,
            resizing: false,
            compare_at: None,
            giving_way: BTreeSet::new(),
            shared,
            pod,
        };
        worker.take_over(runtime);
        worker
    }

    fn adopt(&mut self, runtime: Runtime) {
        runtime.sandboxes.into_iter().for_each(|sandbox| self.runtime.observe_sandbox(sandbox));
        runtime.instances.into_iter().for_each(|instance| self.observe(instance));
    }

    /// Takes over from an earlier kubelet: a container that the API called ready stays so until probed.
    fn take_over(&mut self, runtime: Runtime) {
        self.adopt(runtime);
        for member in pod::members(&self.pod) {
            let running = self.runtime.latest(member.name()).filter(|instance| instance.state == RunState::Running);
            let status = pod::container_status(&self.last, member.name());
            if let (Some(instance), Some(status)) = (running, status)
                && status.container_id.as_deref().is_some_and(|id| id.ends_with(&instance.id))
            {
                if status.started == Some(true) {
                    self.probes.set(&instance.id, ProbeKind::Startup, true);
                }
                if status.ready {
                    self.probes.set(&instance.id, ProbeKind::Readiness, true);
                }
            }
        }
        if pod::is_terminal(&self.pod) {
            // Refused, or forgotten by the runtime: nothing is known that the API does not know.
            self.settled = self.runtime == Runtime::default();
            let reason = self.last.reason.clone().filter(|_| self.last.phase.as_deref() == Some("Failed"));
            let message = self.last.message.clone().unwrap_or_default();
            self.verdict = reason.map(|reason| Verdict { reason, message, disruption: false });
            self.terminate(pod::grace_seconds(&self.pod));
        }
    }

    pub async fn run(mut self) {
        if self.pod.metadata.deletion_timestamp.is_some() {
            self.terminate(pod::grace_seconds(&self.pod));
        }
        loop {
            let wake = self.step();
            if self.gone && self.stage == Stage::Finished && self.busy.is_empty() {
                break;
            }
            tokio::select! {
                message = self.inbox.recv() => match message {
                    Some(message) => self.handle(message),
                    None => return,
                },
                Some(done) = self.operations.join_next() => match done {
                    Ok((operation, done)) => self.finish(operation, done),
                    Err(error) if error.is_cancelled() => {}
                    Err(error) => {
                        // A panic in one operation must not leave the pod stuck behind it.
                        tracing::error!(pod = pod::full_name(&self.pod), %error, "operation failed");
                        self.busy.retain(|operation| self.aborts.get(operation).is_some_and(|abort| !abort.is_finished()));
                    }
                },
                () = self.objects_changed.notified() => self.objects_have_changed(),
                () = sleep_until(wake) => {}
            }
        }
        let sandboxes = self.runtime.sandboxes.iter().map(|sandbox| sandbox.id.clone()).collect();
        let containers = self.runtime.instances.iter().map(|instance| instance.id.clone()).collect();
        self.job().erase(sandboxes, containers).await;
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Pod { pod, pending } => {
                self.pending = pending;
                self.pod_changed(pod);
            }
            Message::Gone => {
                self.gone = true;
                self.terminate(pod::grace_seconds(&self.pod));
            }
            Message::Observed { sandbox, instances, deleted } => {
                if let Some(sandbox) = sandbox {
                    self.runtime.observe_sandbox(sandbox);
                }
                instances.into_iter().for_each(|instance| self.observe(instance));
                if let Some(id) = deleted {
                    self.runtime.forget(&id);
                }
            }
            Message::Relist => self.relist_wanted = true,
            Message::Probe { id, kind, healthy } => {
                if self.runtime.by_id(&id).is_some_and(|instance| instance.state == RunState::Running) {
                    self.probes.set(&id, kind, healthy);
                }
            }
            Message::Evict { verdict, grace } => {
                self.verdict.get_or_insert(verdict);
                self.terminate(grace);
            }
            Message::DropDead => {
                self.remove_containers(self.runtime.garbage(0));
                if self.stage == Stage::Finished {
                    self.remove_containers(self.runtime.instances.iter().map(|instance| instance.id.clone()).collect());
                }
            }
            Message::Mirror(uid) => self.writer.retarget(uid, &self.last),
        }
    }

    fn pod_changed(&mut self, pod: Arc<Pod>) {
        let spec_changed = self.pod.spec != pod.spec;
        let meta_changed = self.pod.metadata.labels != pod.metadata.labels
            || self.pod.metadata.annotations != pod.metadata.annotations;
        let resized = resize::differ(&pod, &self.pod);
        self.pod = pod;
        self.compare_at = Some(Timestamp::now() + COMPARISON);
        if resized && self.stage == Stage::Running {
            (self.resize_due, self.resize_error) = (true, None);
            self.retries.remove(&Operation::Resize);
            let text = format!("Pod resize started: {}", resize::summary(&self.pod, None));
            self.shared.event(&self.pod, Normal, "ResizeStarted", text);
        }
        if spec_changed {
            self.objects = self.shared.objects.of(&self.pod);
            self._follower = follow(self.objects.clone(), self.objects_changed.clone());
        }
        if meta_changed || spec_changed {
            self.volumes_stale = true;
            // What kept a container from starting may be mended.
            self.retries.retain(|operation, _| !matches!(operation, Operation::Start(_)));
        }
        if self.pod.metadata.deletion_timestamp.is_some() {
            self.terminate(pod::grace_seconds(&self.pod));
        }
    }

    fn objects_have_changed(&mut self) {
        self.volumes_stale = true;
        self.retries.remove(&Operation::Volumes);
        let tracks = &self.tracks;
        self.retries.retain(|operation, _| match operation {
            Operation::Start(name) => {
                let waiting = tracks.get(name).and_then(|track| track.waiting.as_ref());
                waiting.is_none_or(|(reason, _)| reason != "CreateContainerConfigError")
            }
            _ => true,
        });
    }

    /// Begins to end the pod, or shortens the grace it was given.
    fn terminate(&mut self, grace: i64) {
        let deadline = Timestamp::now() + SignedDuration::from_secs(grace.clamp(0, 1 << 32));
        match self.stage {
            Stage::Running => self.stage = Stage::Terminating { deadline },
            Stage::Terminating { deadline: earlier } if deadline + SignedDuration::from_secs(1) < earlier => {
                self.stage = Stage::Terminating { deadline };
                let kills: Vec<Operation> =
                    self.busy.iter().filter(|operation| matches!(operation, Operation::Kill(_))).cloned().collect();
                for kill in kills {
                    self.busy.remove(&kill);
                    self.aborts.remove(&kill).inspect(AbortHandle::abort);
                }
            }
            _ => {}
        }
        self.stop.cancel();
        self.probers.retain(|(_, kind), _| *kind == ProbeKind::Readiness);
    }

    fn observe(&mut self, mut instance: Instance) {
        let read = self.runtime.by_id(&instance.id).is_some_and(|known| known.message_read);
        if instance.state == RunState::Exited {
            self.probes.forget(&instance.id);
            if !read {
                logs::read_termination_message(&mut instance);
            }
        }
        self.runtime.observe(instance);
    }

    fn finish(&mut self, operation: Operation, done: Done) {
        if self.aborts.remove(&operation).is_none() {
            return;
        }
        self.busy.remove(&operation);
        match done {
            Done::Volumes(Ok(())) => {
                self.volumes_ready = true;
                self.succeeded(&operation);
            }
            Done::Volumes(Err(error)) => {
                self.shared.event(&self.pod, Warning, "FailedMount", error);
                self.failed(operation);
            }
            Done::Sandbox(Ok(sandbox)) => {
                self.runtime.observe_sandbox(sandbox);
                self.succeeded(&operation);
            }
            Done::Sandbox(Err(error)) => {
                let text = format!("Failed to create pod sandbox: {error}");
                self.shared.event(&self.pod, Warning, "FailedCreatePodSandBox", text);
                self.failed(operation);
            }
            Done::Started(result) => self.started(operation, result),
            Done::Killed(instance) => instance.into_iter().for_each(|instance| self.observe(instance)),
            Done::SandboxStopped(Ok(())) => {
                if let Operation::StopSandbox(id) = &operation {
                    self.runtime.sandboxes.iter_mut().filter(|s| s.id == *id).for_each(|s| s.ready = false);
                }
                self.succeeded(&operation);
            }
            Done::SandboxStopped(Err(error)) => {
                self.shared.event(&self.pod, Warning, "FailedKillPod", format!("error killing pod: {error}"));
                self.failed(operation);
            }
            Done::Listed(Ok(listing)) => {
                self.runtime.retain(&listing);
                self.adopt(listing);
            }
            Done::Listed(Err(error)) => {
                tracing::warn!(pod = pod::full_name(&self.pod), error, "cannot list the pod");
                self.relist_wanted = true;
                self.failed(operation);
            }
            Done::Resized(Ok(figures)) => {
                for (id, figures) in figures {
                    if let Some(instance) = self.runtime.instances.iter_mut().find(|instance| instance.id == id) {
                        instance.resources = Some(figures);
                    }
                }
                (self.resize_due, self.resize_error) = (false, None);
                self.succeeded(&operation);
            }
            Done::Resized(Err(error)) => {
                // While a container awaits its restart its pod cannot shrink.
                if self.resize_error.as_ref() != Some(&error) && !self.outdated.iter().any(|outdated| outdated.restart)
                {
                    let text = format!("Pod resize error: {}", resize::summary(&self.pod, Some(&error)));
                    self.shared.event(&self.pod, Warning, "ResizeError", text);
                    self.resize_error = Some(error);
                }
                self.failed(operation);
            }
            Done::TornDown(Ok(())) => self.stage = Stage::Finished,
            Done::TornDown(Err(error)) => {
                tracing::warn!(pod = pod::full_name(&self.pod), error, "cannot clean up");
                self.failed(operation);
            }
        }
    }

    fn started(&mut self, operation: Operation, result: Result<Instance, StartError>) {
        let Operation::Start(name) = &operation else { return };
        self.hooked.remove(name);
        let track = self.tracks.entry(name.clone()).or_default();
        match result {
            Ok(instance) => {
                track.waiting = None;
                self.retries.remove(&operation);
                self.observe(instance);
                self.collect_garbage();
            }
            Err(_) if self.stop.is_cancelled() => {}
            Err(error) => {
                let exited = error.instance.as_ref().is_some_and(|instance| instance.state == RunState::Exited);
                track.waiting = Some((error.reason, error.message));
                // An instance that was made and died is subject to the restart back-off instead.
                if !exited {
                    self.retries.insert(operation.clone(), error.retry_at);
                }
                error.instance.into_iter().for_each(|instance| self.observe(instance));
            }
        }
    }

    fn succeeded(&mut self, operation: &Operation) {
        self.failures.remove(operation);
        self.retries.remove(operation);
    }

    /// Retries after 0.5 s, doubling to two minutes.
    fn failed(&mut self, operation: Operation) {
        let failures = self.failures.entry(operation.clone()).or_default();
        let delay = SignedDuration::from_millis(500 << (*failures).min(8)).min(SignedDuration::from_secs(120));
        *failures += 1;
        self.retries.insert(operation, Timestamp::now() + delay);
    }

    /// Keeps one dead instance per container beside the latest, for `logs --previous`.
    fn collect_garbage(&mut self) {
        self.remove_containers(self.runtime.garbage(1));
    }

    fn remove_containers(&mut self, ids: Vec<String>) {
        for id in ids {
            if let Some(instance) = self.runtime.by_id(&id) {
                logs::remove(&instance.log_path);
            }
            self.runtime.forget(&id);
            let shared = self.shared.clone();
            tokio::spawn(async move {
                let request = cri::v1::RemoveContainerRequest { container_id: id };
                if let Err(error) = shared.cri.remove_container(request).await {
                    tracing::debug!(%error, "dead container not removed");
                }
            });
        }
    }

    /// Plans and acts until nothing is left to do now; returns when to look again.
    fn step(&mut self) -> Option<Timestamp> {
        let mut wake = earliest(self.check_deadline(), self.relist());
        self.follow_resize();
        let view = View {
            pod: &self.pod,
            runtime: &self.runtime,
            probes: &self.probes,
            tracks: &self.tracks,
            busy: &self.busy,
            retries: &self.retries,
            volumes_ready: self.volumes_ready,
            stage: &self.stage,
            outdated: &self.outdated,
            resize_due: self.resize_due,
            now: Timestamp::now(),
        };
        let actions = plan::plan(&view);
        for action in actions {
            match action {
                Action::WakeAt(at) => wake = earliest(wake, Some(at)),
                // The next plan is for another stage.
                Action::Complete => {
                    self.terminate(pod::grace_seconds(&self.pod));
                    return self.step();
                }
                action => self.act(action),
            }
        }
        wake = earliest(wake, self.refresh_volumes());
        self.adjust_probers();
        let held = self.replacing();
        if held.is_none() {
            self.report();
        }
        self.show();
        earliest(earliest(wake, held), self.compare())
    }

    /// Says again what somebody else has overwritten; returns when to look.
    fn compare(&mut self) -> Option<Timestamp> {
        let at = self.compare_at.filter(|_| !pod::is_static(&self.pod))?;
        if at > Timestamp::now() {
            return Some(at);
        }
        self.compare_at = None;
        if !status_writer::agree(pod::status(&self.pod), &self.last) {
            self.writer.write(self.last.clone(), self.deleting);
        }
        None
    }

    /// A changed container gives way to its successor within moments: its pod's status waits that long, so that
    /// nobody sees a gap. Returns until when.
    fn replacing(&mut self) -> Option<Timestamp> {
        let (runtime, busy) = (&self.runtime, &self.busy);
        let last = |instance: &Instance| runtime.latest(&instance.name).is_some_and(|latest| latest.id == instance.id);
        let awaited = |instance: &Instance| last(instance) || busy.contains(&Operation::Start(instance.name.clone()));
        self.giving_way.retain(|id| runtime.by_id(id).is_some_and(awaited));
        let ended = self.giving_way.iter().filter_map(|id| runtime.by_id(id)).filter(|i| i.state == RunState::Exited);
        let until = ended.map(plan::finished).max()? + REPLACEMENT;
        (self.stage == Stage::Running && Timestamp::now() < until).then_some(until)
    }

    /// Compares what containers have with what they were granted.
    fn follow_resize(&mut self) {
        self.outdated = match self.stage {
            Stage::Running => resize::outdated(&self.pod, &self.runtime, self.shared.node_memory()),
            _ => Vec::new(),
        };
        self.resize_due &= self.stage == Stage::Running;
        let was = std::mem::replace(&mut self.resizing, self.resize_due || !self.outdated.is_empty());
        if was && !self.resizing && self.stage == Stage::Running {
            let text = format!("Pod resize completed: {}", resize::summary(&self.pod, None));
            self.shared.event(&self.pod, Normal, "ResizeCompleted", text);
        }
    }

    /// Asks the runtime for everything once nothing else is under way.
    fn relist(&mut self) -> Option<Timestamp> {
        if !self.relist_wanted || !self.busy.is_empty() {
            return None;
        }
        if let Some(&at) = self.retries.get(&Operation::Relist).filter(|at| **at > Timestamp::now()) {
            return Some(at);
        }
        self.relist_wanted = false;
        let (cri, uid) = (self.shared.cri.clone(), pod::uid(&self.pod).to_owned());
        self.spawn(
            Operation::Relist,
            async move { Done::Listed(cri.pod(&uid).await.map_err(|error| error.to_string())) },
        );
        None
    }

    fn check_deadline(&mut self) -> Option<Timestamp> {
        if self.stage != Stage::Running {
            return None;
        }
        let seconds = pod::spec(&self.pod).active_deadline_seconds?;
        let start = self.last.start_time.as_ref().map_or_else(Timestamp::now, |start| start.0);
        let deadline = start + SignedDuration::from_secs(seconds);
        if Timestamp::now() < deadline {
            return Some(deadline);
        }
        let message = "Pod was active on the node longer than the specified deadline";
        self.shared.event(&self.pod, Normal, "DeadlineExceeded", message);
        let (reason, message) = ("DeadlineExceeded".to_owned(), message.to_owned());
        self.verdict = Some(Verdict { reason, message, disruption: false });
        self.terminate(pod::spec(&self.pod).termination_grace_period_seconds.unwrap_or(30));
        None
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::MountVolumes => self.mount_volumes(),
            Action::CreateSandbox { attempt } => {
                if attempt > 0 {
                    let text = "Pod sandbox changed, it will be killed and re-created.";
                    self.shared.event(&self.pod, Normal, "SandboxChanged", text);
                }
                let job = self.job();
                self.spawn(Operation::Sandbox, async move { Done::Sandbox(job.create_sandbox(attempt).await) });
            }
            Action::StopSandbox { id } => {
                let (job, operation) = (self.job(), Operation::StopSandbox(id.clone()));
                self.spawn(operation, async move {
                    Done::SandboxStopped(job.stop_sandbox(id).await.map_err(|error| error.to_string()))
                });
            }
            Action::Start { name, attempt } => self.start(name, attempt),
            Action::BackOff { name, delay, .. } => self.back_off(name, delay),
            Action::Kill { id, grace, reason, .. } => {
                let Some(instance) = self.runtime.by_id(&id).cloned() else { return };
                if reason == KillReason::Changed {
                    self.giving_way.insert(id.clone());
                }
                let job = self.job();
                self.spawn(Operation::Kill(id), async move { Done::Killed(job.kill(instance, grace, reason).await) });
            }
            Action::Resize => {
                let job = self.job();
                let outdated = self.outdated.iter().filter(|outdated| !outdated.restart).cloned().collect();
                self.spawn(Operation::Resize, async move { Done::Resized(job.resize(outdated).await) });
            }
            Action::TearDown => {
                let job = self.job();
                self.spawn(Operation::TearDown, async move { Done::TornDown(job.tear_down().await) });
            }
            Action::Complete | Action::WakeAt(_) => {}
        }
    }

    fn spawn(&mut self, operation: Operation, work: impl Future<Output = Done> + Send + 'static) {
        let key = operation.clone();
        let abort = self.operations.spawn(async move { (key, work.await) });
        self.busy.insert(operation.clone());
        self.aborts.insert(operation, abort);
    }

    fn job(&self) -> Job {
        Job {
            shared: self.shared.clone(),
            pod: self.pod.clone(),
            objects: self.objects.clone(),
            sandbox: self.runtime.sandbox().cloned(),
            stop: self.stop.clone(),
        }
    }

    fn mount_volumes(&mut self) {
        self.volumes_stale = false;
        let job = self.job();
        self.spawn(Operation::Volumes, async move { Done::Volumes(job.mount_volumes().await) });
    }

    /// Brings live volumes up to date; returns when a token wants renewal.
    fn refresh_volumes(&mut self) -> Option<Timestamp> {
        if !self.volumes_ready || self.stage != Stage::Running || self.busy.contains(&Operation::Volumes) {
            return None;
        }
        let now = Timestamp::now();
        let retry = self.retries.get(&Operation::Volumes).copied();
        let renew = self.shared.tokens.renew_at(pod::uid(&self.pod));
        let due = self.volumes_stale || renew.is_some_and(|at| at <= now) || retry.is_some_and(|at| at <= now);
        if due && volume::is_live(&self.pod) && retry.is_none_or(|at| at <= now) {
            self.mount_volumes();
        }
        earliest(renew, retry).map(|at| at.max(now + SignedDuration::from_secs(1)))
    }

    fn start(&mut self, name: String, attempt: u32) {
        let Some(member) = pod::member(&self.pod, &name) else { return };
        if operations::has_post_start(&member) {
            self.hooked.insert(name.clone());
        }
        let target = member.target.and_then(|target| self.runtime.latest(target)).map(|instance| instance.id.clone());
        let track = self.tracks.entry(name.clone()).or_default();
        if let Some(instance) = self.runtime.latest(&name).filter(|instance| instance.state == RunState::Exited) {
            if plan::changed(instance, &member) {
                track.backoff = Backoff::default();
            }
            track.backoff.next(plan::finished(instance), Timestamp::now());
        }
        volume::clean_container(&self.shared.config, pod::uid(&self.pod), &name);
        let job = self.job();
        self.spawn(
            Operation::Start(name.clone()),
            async move { Done::Started(job.start(name, attempt, target).await) },
        );
    }

    fn back_off(&mut self, name: String, delay: SignedDuration) {
        let full = pod::full_name(&self.pod);
        let delay = go_duration(delay);
        let message = format!("back-off {delay} restarting failed container={name} pod={full}");
        let track = self.tracks.entry(name.clone()).or_default();
        let waiting = ("CrashLoopBackOff".to_owned(), message);
        if track.waiting.as_ref() != Some(&waiting) {
            track.waiting = Some(waiting);
            if let Some(member) = pod::member(&self.pod, &name) {
                let text = format!("Back-off restarting failed container {name} in pod {full}");
                self.shared.container_event(&self.pod, &member, Warning, "BackOff", text);
            }
        }
    }

    /// Probes run for running containers: startup first, then the others.
    fn adjust_probers(&mut self) {
        let mut wanted = BTreeSet::new();
        for member in pod::members(&self.pod) {
            let Some(instance) = self.runtime.latest(member.name()) else { continue };
            let probed = matches!(member.kind, Kind::App | Kind::Sidecar)
                && instance.state == RunState::Running
                && !self.hooked.contains(member.name());
            if !probed {
                continue;
            }
            let started = self.probes.started(&member.container, &instance.id);
            let running = self.stage == Stage::Running;
            for kind in ProbeKind::ALL {
                let due = match kind {
                    ProbeKind::Startup => !started && running,
                    ProbeKind::Liveness => started && running,
                    ProbeKind::Readiness => started && self.stage != Stage::Finished,
                };
                if due && kind.of(&member.container).is_some() {
                    wanted.insert((instance.id.clone(), kind));
                }
            }
        }
        self.probers.retain(|key, _| wanted.contains(key));
        for key in wanted {
            if !self.probers.contains_key(&key) {
                self.start_prober(key);
            }
        }
    }

    fn start_prober(&mut self, (id, kind): (String, ProbeKind)) {
        let Some(instance) = self.runtime.by_id(&id) else { return };
        let Some(member) = pod::member(&self.pod, &instance.name) else { return };
        let Some(probe) = kind.of(&member.container).cloned() else { return };
        let sandbox_ips = self.runtime.sandbox().map(|sandbox| sandbox.ips.clone()).unwrap_or_default();
        let target = Target {
            cri: self.shared.cri.clone(),
            container_id: id.clone(),
            container: Arc::new(member.container.clone().into_owned()),
            pod_ip: self.shared.facts(&self.pod, &sandbox_ips).pod_ips.first().cloned().unwrap_or_default(),
        };
        let age = Timestamp::now().as_nanosecond() - i128::from(instance.started_at);
        let age = Duration::from_nanos(u64::try_from(age.max(0)).unwrap_or(0));
        let (sender, shared, pod) = (self.sender.clone(), self.shared.clone(), self.pod.clone());
        let (name, own) = (instance.name.clone(), id.clone());
        let report = move |report: Report| match report {
            // A verdict that finds the inbox full is given again with the next check.
            Report::Verdict(healthy) => drop(sender.try_send(Message::Probe { id: own.clone(), kind, healthy })),
            Report::Unhealthy { warning, message } => {
                if let Some(member) = pod::member(&pod, &name) {
                    let reason = if warning { "ProbeWarning" } else { "Unhealthy" };
                    shared.container_event(&pod, &member, Warning, reason, message);
                }
            }
        };
        let task = tokio::spawn(probe::run(target, probe, kind, age, report));
        self.probers.insert((id, kind), AbortOnDropHandle::new(task));
    }

    /// Reports the status if it changed, and asks for the pod's deletion once nothing is left of it.
    fn report(&mut self) {
        let waiting = self.tracks.iter().filter_map(|(name, track)| Some((name.clone(), track.waiting.clone()?)));
        let waiting: BTreeMap<String, (String, String)> = waiting.collect();
        let finished = self.stage == Stage::Finished;
        let starting = self.busy.iter().filter_map(|operation| match operation {
            Operation::Start(name) => Some(name.as_str()),
            _ => None,
        });
        let starting = starting.collect();
        let build = || {
            status::build(&status::Input {
                pod: &self.pod,
                last: &self.last,
                runtime: &self.runtime,
                probes: &self.probes,
                waiting: &waiting,
                hooked: &self.hooked,
                starting: &starting,
                pending: self.pending.as_ref(),
                outdated: &self.outdated,
                resizing: self.resizing.then(|| self.resize_error.as_deref().unwrap_or_default()),
                finished,
                verdict: self.verdict.as_ref().filter(|_| finished || self.runtime.running().next().is_none()),
                host_ips: &self.shared.config.host_ips(),
                runtime_name: &self.shared.runtime_name,
                now: Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_else(|_| Timestamp::now()),
            })
        };
        let status = if self.settled { self.last.clone() } else { build() };
        let delete = finished && !self.gone && self.pod.metadata.deletion_timestamp.is_some();
        if status != self.last || (delete && !self.deleting) {
            self.deleting |= delete;
            self.last = status.clone();
            self.writer.write(status, self.deleting);
        }
    }

    /// Shows others what is known of the pod.
    fn show(&self) {
        self.snapshot.send_replace(Snapshot {
            pod: self.pod.clone(),
            runtime: self.runtime.clone(),
            status: self.last.clone(),
            finished: self.stage == Stage::Finished,
            ending: self.stage != Stage::Running,
        });
    }
}

fn follow(objects: PodObjects, changed: Arc<Notify>) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move { objects.follow(|| changed.notify_one()).await }))
}

fn earliest(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    one.into_iter().chain(other).min()
}

async fn sleep_until(at: Option<Timestamp>) {
    match at {
        Some(at) => {
            let left = at.duration_since(Timestamp::now()).max(SignedDuration::ZERO);
            tokio::time::sleep(left.unsigned_abs() + Duration::from_millis(1)).await;
        }
        None => std::future::pending().await,
    }
}

/// `1m20s`, as Go writes whole seconds.
fn go_duration(duration: SignedDuration) -> String {
    match (duration.as_secs() / 60, duration.as_secs() % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    }
}

const _: () = assert!(backoff::MAXIMUM.as_secs() < 3600, "go_duration shows no hours");
