//! Decides what to do next for one pod: the heart of the kubelet.
//!
//! Pure: [`plan`] takes what is wanted, what is known and what is under way, and returns actions; it
//! never waits. It is asked again after every change, so an action that is neither started nor
//! refused is simply planned again. Operations under way are part of its input (`busy`): that is
//! what makes repeated planning safe.

use crate::backoff::Backoff;
use crate::pod::{self, Kind, Member};
use crate::probe::{ProbeKind, Results};
use crate::resize::Outdated;
use crate::state::{Instance, RunState, Runtime, Sandbox};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use std::collections::{BTreeMap, BTreeSet};

/// An operation of which at most one runs at a time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Volumes,
    Sandbox,
    /// Start of the container of this name.
    Start(String),
    /// Stop of the instance of this id.
    Kill(String),
    StopSandbox(String),
    /// Bring the cgroups of the pod and its containers up to date.
    Resize,
    TearDown,
    /// A full look at what the runtime holds: nothing is made meanwhile, or it would seem lost.
    Relist,
}

/// How far the pod's life has come.
#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    Running,
    /// Containers are being stopped; after `deadline` they are killed.
    Terminating {
        deadline: Timestamp,
    },
    /// Nothing runs, and nothing is left but dead containers and their logs.
    Finished,
}

/// What is remembered about a container between its instances.
#[derive(Clone, Debug, Default)]
pub struct Track {
    pub backoff: Backoff,
    /// Why it does not run: reason and message.
    pub waiting: Option<(String, String)>,
    /// Restarts the API knows of although the runtime has lost their containers.
    pub lost: u32,
}

pub struct View<'a> {
    pub pod: &'a Pod,
    pub runtime: &'a Runtime,
    pub probes: &'a Results,
    pub tracks: &'a BTreeMap<String, Track>,
    pub busy: &'a BTreeSet<Operation>,
    /// Operations that failed, and when they may be tried again.
    pub retries: &'a BTreeMap<Operation, Timestamp>,
    pub volumes_ready: bool,
    pub stage: &'a Stage,
    /// Containers whose cgroups lag behind what was granted.
    pub outdated: &'a [Outdated],
    /// The pod's own cgroup may lag behind, too.
    pub resize_due: bool,
    pub now: Timestamp,
}

/// Why a container is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillReason {
    Liveness,
    Startup,
    Changed,
    Resize,
    PostStart,
    PodEnds,
}

impl KillReason {
    pub fn message(self, container: &str) -> String {
        match self {
            KillReason::Liveness => format!("Container {container} failed liveness probe, will be restarted"),
            KillReason::Startup => format!("Container {container} failed startup probe, will be restarted"),
            KillReason::Changed => format!("Container {container} definition changed, will be restarted"),
            KillReason::Resize => format!("Container {container} resize requires restart"),
            KillReason::PostStart => "FailedPostStartHook".to_owned(),
            KillReason::PodEnds => format!("Stopping container {container}"),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    MountVolumes,
    CreateSandbox {
        attempt: u32,
    },
    StopSandbox {
        id: String,
    },
    Start {
        name: String,
        attempt: u32,
    },
    /// The container waits for its next start.
    BackOff {
        name: String,
        until: Timestamp,
        delay: SignedDuration,
    },
    /// `grace` in seconds, preStop hook included.
    Kill {
        id: String,
        name: String,
        grace: i64,
        reason: KillReason,
    },
    Resize,
    WakeAt(Timestamp),
    /// Every container is done for good: begin to end the pod.
    Complete,
    /// Nothing runs any more: release volumes and cgroups.
    TearDown,
}

/// Even a forced stop leaves this many seconds between TERM and KILL, as upstream.
pub const MINIMUM_GRACE: i64 = 2;

pub fn plan(view: &View<'_>) -> Vec<Action> {
    let mut planner = Planner { view, members: pod::members(view.pod), actions: Vec::new() };
    match view.stage {
        _ if view.busy.contains(&Operation::Relist) => {}
        Stage::Running => planner.run(),
        Stage::Terminating { deadline } => planner.terminate(*deadline),
        Stage::Finished => {}
    }
    planner.actions
}

struct Planner<'a> {
    view: &'a View<'a>,
    members: Vec<Member<'a>>,
    actions: Vec<Action>,
}

/// Whether planning may go on to what comes after.
enum Progress {
    Continue,
    Hold,
}

impl<'a> Planner<'a> {
    fn run(&mut self) {
        if self.is_complete() {
            return self.actions.push(Action::Complete);
        }
        if !self.view.volumes_ready {
            self.attempt(Operation::Volumes, Action::MountVolumes);
        }
        let Some(sandbox) = self.view.runtime.sandbox().filter(|sandbox| usable(self.view.pod, sandbox)) else {
            return self.replace_sandbox();
        };
        if !self.view.volumes_ready {
            return;
        }
        if self.view.resize_due || self.view.outdated.iter().any(|outdated| !outdated.restart) {
            self.attempt(Operation::Resize, Action::Resize);
        }
        self.ephemeral();
        let initialized = self.initialize(sandbox);
        if initialized {
            self.apps();
        }
    }

    /// No restart is due for any container, and none is under way. Sidecars do not count.
    fn is_complete(&self) -> bool {
        let starting = self.view.busy.iter().any(|operation| matches!(operation, Operation::Start(_)));
        if starting {
            return false;
        }
        let over = |member: &Member<'_>| {
            let latest = self.view.runtime.latest(member.name()).filter(|i| i.state == RunState::Exited);
            latest.filter(|instance| !pod::restarts(self.view.pod, member, instance.exit_code))
        };
        let of = |kind: Kind| self.members.iter().filter(move |member| member.kind == kind);
        let init_failed = of(Kind::Init).any(|member| over(member).is_some_and(|instance| instance.exit_code != 0));
        init_failed || (of(Kind::App).count() > 0 && of(Kind::App).all(|member| over(member).is_some()))
    }

    /// Stops what is left of an unusable sandbox, then makes a new one.
    fn replace_sandbox(&mut self) {
        let left: Vec<&Instance> = self.view.runtime.running().collect();
        if !left.is_empty() {
            return left.into_iter().for_each(|instance| self.kill(instance, None, KillReason::PodEnds));
        }
        match self.view.runtime.sandbox() {
            Some(sandbox) if sandbox.ready => {
                let id = sandbox.id.clone();
                self.attempt(Operation::StopSandbox(id.clone()), Action::StopSandbox { id });
            }
            sandbox => {
                let attempt = sandbox.map_or(0, |sandbox| sandbox.attempt + 1);
                self.attempt(Operation::Sandbox, Action::CreateSandbox { attempt });
            }
        }
    }

    fn ephemeral(&mut self) {
        let waiting: Vec<String> = self
            .members
            .iter()
            .filter(|member| member.kind == Kind::Ephemeral && self.view.runtime.latest(member.name()).is_none())
            .map(|member| member.name().to_owned())
            .collect();
        for name in waiting {
            self.start(name, 0);
        }
    }

    /// Walks the init containers in order; true once the app containers may start.
    fn initialize(&mut self, sandbox: &Sandbox) -> bool {
        // Once an app container was made in this sandbox, finished init containers are history,
        // even if the runtime has forgotten them. Sidecars are still looked after.
        let apps_begun = self.members.iter().any(|member| {
            let begun = self.view.runtime.latest(member.name()).is_some_and(|i| i.sandbox == sandbox.id);
            member.kind == Kind::App && begun
        });
        for index in 0..self.members.len() {
            let progress = match self.members[index].kind {
                Kind::Init if apps_begun => Progress::Continue,
                Kind::Init => self.init(index),
                Kind::Sidecar => self.sidecar(index),
                Kind::App | Kind::Ephemeral => Progress::Continue,
            };
            if matches!(progress, Progress::Hold) && !apps_begun {
                return false;
            }
        }
        true
    }

    fn init(&mut self, index: usize) -> Progress {
        let name = self.members[index].name().to_owned();
        match self.view.runtime.current(&name) {
            Some(instance) if instance.state == RunState::Exited && instance.exit_code == 0 => {
                return Progress::Continue;
            }
            Some(instance) if instance.state == RunState::Running => {}
            _ => self.start_again(index),
        }
        Progress::Hold
    }

    fn sidecar(&mut self, index: usize) -> Progress {
        let name = self.members[index].name().to_owned();
        match self.view.runtime.current(&name) {
            Some(instance) if instance.state == RunState::Running => {
                self.keep(index, instance);
                let started = self.view.probes.started(&self.members[index].container, &instance.id);
                if started && !self.is_busy(&Operation::Start(name)) { Progress::Continue } else { Progress::Hold }
            }
            _ => {
                self.start_again(index);
                Progress::Hold
            }
        }
    }

    fn apps(&mut self) {
        for index in 0..self.members.len() {
            if self.members[index].kind != Kind::App {
                continue;
            }
            match self.view.runtime.latest(self.members[index].name()) {
                Some(instance) if instance.state == RunState::Running => self.keep(index, instance),
                Some(instance) if instance.state == RunState::Exited => {
                    if pod::restarts(self.view.pod, &self.members[index], instance.exit_code) {
                        self.start_again(index);
                    }
                }
                _ => self.start_again(index),
            }
        }
    }

    /// Kills a running container that must be replaced.
    fn keep(&mut self, index: usize, instance: &Instance) {
        let member = &self.members[index];
        let failed = |kind| self.view.probes.get(&instance.id, kind) == Some(false);
        let (reason, probe) = if changed(instance, member) {
            (KillReason::Changed, None)
        } else if failed(ProbeKind::Liveness) {
            (KillReason::Liveness, member.container.liveness_probe.as_ref())
        } else if failed(ProbeKind::Startup) {
            (KillReason::Startup, member.container.startup_probe.as_ref())
        } else if self.view.outdated.iter().any(|outdated| outdated.id == instance.id && outdated.restart) {
            (KillReason::Resize, None)
        } else {
            return;
        };
        let grace = probe.and_then(|probe| probe.termination_grace_period_seconds);
        self.kill(instance, grace, reason);
    }

    /// Starts the next instance, or waits for its time.
    fn start_again(&mut self, index: usize) {
        let name = self.members[index].name().to_owned();
        // The back-off of a start under way is for the one after it.
        if self.is_busy(&Operation::Start(name.clone())) {
            return;
        }
        let track = self.view.tracks.get(&name);
        let latest = self.view.runtime.latest(&name);
        let attempt = match latest {
            Some(instance) => instance.attempt + 1,
            None => track.map_or(0, |track| track.lost),
        };
        let exited = latest.filter(|instance| instance.state == RunState::Exited);
        // The failures of an earlier definition say nothing about this one.
        let exited = exited.filter(|instance| !changed(instance, &self.members[index]));
        if let (Some(instance), Some(track)) = (exited, track)
            && let Some(until) = track.backoff.until(finished(instance), self.view.now)
        {
            let delay = track.backoff.delay();
            self.actions.push(Action::BackOff { name, until, delay });
            return self.actions.push(Action::WakeAt(until));
        }
        self.start(name, attempt);
    }

    /// Containers start one after another, so that a postStart hook holds up those behind it.
    fn start(&mut self, name: String, attempt: u32) {
        let planned = self.actions.iter().any(|action| matches!(action, Action::Start { .. }));
        let starting = self.view.busy.iter().any(|operation| matches!(operation, Operation::Start(_)));
        if !planned && !starting {
            self.attempt(Operation::Start(name.clone()), Action::Start { name, attempt });
        }
    }

    fn attempt(&mut self, operation: Operation, action: Action) {
        match self.view.retries.get(&operation) {
            _ if self.is_busy(&operation) => {}
            Some(&at) if at > self.view.now => self.actions.push(Action::WakeAt(at)),
            _ => self.actions.push(action),
        }
    }

    fn kill(&mut self, instance: &Instance, grace: Option<i64>, reason: KillReason) {
        if self.is_busy(&Operation::Kill(instance.id.clone())) {
            return;
        }
        let own = pod::spec(self.view.pod).termination_grace_period_seconds.unwrap_or(30);
        let grace = grace.unwrap_or(own);
        self.actions.push(Action::Kill { id: instance.id.clone(), name: instance.name.clone(), grace, reason });
    }

    /// Stops app, init and ephemeral containers together; then sidecars, the last one first.
    fn terminate(&mut self, deadline: Timestamp) {
        let grace = (deadline.duration_since(self.view.now).as_millis() + 999) / 1000;
        let grace = Some(grace.max(0) as i64);
        let running: Vec<&Instance> = self.view.runtime.running().collect();
        let position = |instance: &Instance| {
            self.members.iter().position(|m| m.kind == Kind::Sidecar && m.name() == instance.name)
        };
        let (sidecars, others): (Vec<&Instance>, Vec<&Instance>) =
            running.into_iter().partition(|instance| position(instance).is_some());
        let victims = match others.is_empty() && !self.is_starting() {
            false if self.view.now < deadline => others,
            false => others.into_iter().chain(sidecars).collect(),
            true => sidecars.into_iter().max_by_key(|instance| position(instance)).into_iter().collect(),
        };
        if !victims.is_empty() {
            victims.into_iter().for_each(|instance| self.kill(instance, grace, KillReason::PodEnds));
            // Past the deadline nothing changes by waiting for it.
            if deadline > self.view.now {
                self.actions.push(Action::WakeAt(deadline));
            }
            return;
        }
        if !self.view.busy.is_empty() {
            return;
        }
        match self.view.runtime.sandboxes.iter().find(|sandbox| sandbox.ready) {
            Some(sandbox) => {
                let id = sandbox.id.clone();
                self.attempt(Operation::StopSandbox(id.clone()), Action::StopSandbox { id });
            }
            None => self.attempt(Operation::TearDown, Action::TearDown),
        }
    }

    fn is_starting(&self) -> bool {
        self.view.busy.iter().any(|operation| matches!(operation, Operation::Start(_)))
    }

    fn is_busy(&self, operation: &Operation) -> bool {
        self.view.busy.contains(operation)
    }
}

/// A sandbox that can hold containers: ready, in the right network, with an address.
fn usable(pod: &Pod, sandbox: &Sandbox) -> bool {
    sandbox.ready && sandbox.host_network == pod::host_network(pod) && (sandbox.host_network || !sandbox.ips.is_empty())
}

/// Whether the container was defined otherwise when this instance was made.
pub fn changed(instance: &Instance, member: &Member<'_>) -> bool {
    !instance.hash.is_empty() && instance.hash != pod::container_hash(&member.container)
}

/// When an instance ended; a runtime that does not know says zero, which counts as its creation.
pub fn finished(instance: &Instance) -> Timestamp {
    let nanoseconds = if instance.finished_at > 0 { instance.finished_at } else { instance.created_at };
    Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests;
