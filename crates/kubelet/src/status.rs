//! The status a pod reports, from its spec, its runtime state and what the API last said.
//!
//! Pure. Conditions that others own (readiness gates, DisruptionTarget) are passed through.

use crate::pod::{self, Kind, Member};
use crate::probe::Results;
use crate::resize::{self, Outdated, Pending};
use crate::resources;
use crate::state::{Instance, RunState, Runtime};
use crate::worker::Verdict;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    ContainerUser, HostIP, LinuxContainerUser, Pod, PodCondition, PodIP, PodStatus, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::collections::{BTreeMap, BTreeSet};

pub struct Input<'a> {
    pub pod: &'a Pod,
    /// The last status we reported, or the API's at the beginning.
    pub last: &'a PodStatus,
    pub runtime: &'a Runtime,
    pub probes: &'a Results,
    /// Why a container does not run: reason and message.
    pub waiting: &'a BTreeMap<String, (String, String)>,
    /// Containers whose postStart hook has not finished yet: they do not count as running.
    pub hooked: &'a BTreeSet<String>,
    /// Containers whose start is under way.
    pub starting: &'a BTreeSet<&'a str>,
    /// A resize that was not granted.
    pub pending: Option<&'a Pending>,
    /// Containers that do not have yet what was granted.
    pub outdated: &'a [Outdated],
    /// A resize is being carried out, and what went wrong with it.
    pub resizing: Option<&'a str>,
    /// Nothing runs and nothing will: the phase must be a final one.
    pub finished: bool,
    /// Overrides the phase.
    pub verdict: Option<&'a Verdict>,
    pub host_ips: &'a [String],
    /// The runtime's name, as in `containerd://ID`.
    pub runtime_name: &'a str,
    pub now: Timestamp,
}

pub fn build(input: &Input<'_>) -> PodStatus {
    let members = pod::members(input.pod);
    let statuses: Vec<(Kind, ContainerStatus)> =
        members.iter().map(|member| (member.kind, container_status(input, member))).collect();
    let of = |wanted: &[Kind]| -> Option<Vec<ContainerStatus>> {
        let list: Vec<ContainerStatus> =
            statuses.iter().filter(|(kind, _)| wanted.contains(kind)).map(|(_, status)| status.clone()).collect();
        (!list.is_empty()).then_some(list)
    };
    let phase = match input.verdict {
        Some(_) => "Failed",
        None => phase(input, &statuses),
    };
    let (reason, message) = input.verdict.map(|verdict| (verdict.reason.clone(), verdict.message.clone())).unzip();
    let sandbox = input.runtime.sandbox();
    let ips: Vec<String> = match pod::host_network(input.pod) {
        true => input.host_ips.to_vec(),
        // A stopped sandbox keeps its last address in the status, as upstream.
        false => match sandbox.map(|sandbox| sandbox.ips.clone()).filter(|ips| !ips.is_empty()) {
            Some(ips) => ips,
            None => input.last.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect(),
        },
    };
    let mut status = PodStatus {
        phase: Some(phase.to_owned()),
        reason,
        message,
        start_time: Some(input.last.start_time.clone().unwrap_or(Time(input.now))),
        host_ip: input.host_ips.first().cloned(),
        host_ips: list(input.host_ips, |ip| HostIP { ip }),
        pod_ip: ips.first().cloned(),
        pod_ips: list(&ips, |ip| PodIP { ip }),
        qos_class: Some(input.last.qos_class.clone().unwrap_or_else(|| resources::qos(input.pod).as_str().to_owned())),
        init_container_statuses: of(&[Kind::Init, Kind::Sidecar]),
        container_statuses: of(&[Kind::App]),
        ephemeral_container_statuses: of(&[Kind::Ephemeral]),
        observed_generation: input.pod.metadata.generation,
        ..PodStatus::default()
    };
    status.conditions = Some(conditions(input, phase, &statuses));
    if let Some(granted) = pod::spec(input.pod).resources.as_ref().filter(|_| sandbox.is_some()) {
        status.allocated_resources = granted.requests.clone();
        // What the pod's cgroup has, which follows what was granted.
        let before = input.last.resources.as_ref().filter(|_| input.resizing.is_some());
        status.resources = Some(before.unwrap_or(granted).clone());
    }
    status
}

fn list<T>(ips: &[String], make: impl Fn(String) -> T) -> Option<Vec<T>> {
    (!ips.is_empty()).then(|| ips.iter().cloned().map(make).collect())
}

/// A pod that is refused before anything of it ran.
pub fn rejected(pod: &Pod, reason: &str, message: &str, now: Timestamp) -> PodStatus {
    PodStatus {
        phase: Some("Failed".to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(format!("Pod was rejected: {message}")),
        start_time: Some(pod::status(pod).start_time.clone().unwrap_or(Time(now))),
        qos_class: Some(resources::qos(pod).as_str().to_owned()),
        observed_generation: pod.metadata.generation,
        ..PodStatus::default()
    }
}

fn time(nanoseconds: i64) -> Option<Time> {
    let second = Timestamp::from_second(nanoseconds.div_euclid(1_000_000_000)).ok()?;
    (nanoseconds > 0).then_some(Time(second))
}

fn container_status(input: &Input<'_>, member: &Member<'_>) -> ContainerStatus {
    let name = member.name();
    let old = pod::container_status(input.last, name);
    let latest = input.runtime.latest(name);
    let waiting = input.waiting.get(name);
    let container = &member.container;
    let mut status = ContainerStatus {
        name: name.to_owned(),
        image: container.image.clone().unwrap_or_default(),
        started: Some(false),
        ..ContainerStatus::default()
    };
    match latest {
        Some(instance) => {
            status.restart_count = instance.attempt as i32;
            status.image = if instance.image.is_empty() { status.image } else { instance.image.clone() };
            status.image_id = instance.image_id.clone();
            status.container_id = Some(format!("{}://{}", input.runtime_name, instance.id));
            status.user = instance.user.as_ref().map(|user| ContainerUser {
                linux: Some(LinuxContainerUser {
                    uid: user.uid,
                    gid: user.gid,
                    supplemental_groups: Some(user.supplemental_groups.clone()).filter(|groups| !groups.is_empty()),
                }),
            });
            status.stop_signal = instance.stop_signal.clone();
            let previous = input.runtime.previous(name).filter(|previous| previous.state == RunState::Exited);
            status.last_state = match previous {
                Some(previous) => Some(terminated(previous, input.runtime_name)),
                // Waiting showed the latest one there.
                None => old.and_then(|old| old.last_state.clone()).filter(|last| {
                    last.terminated.as_ref().and_then(|last| last.container_id.as_ref()) != status.container_id.as_ref()
                }),
            };
        }
        // The runtime has lost it: what it was remains known.
        None => {
            if let Some(old) = old {
                status.restart_count = old.restart_count;
                status.image_id = old.image_id.clone();
                status.container_id = old.container_id.clone();
                status.last_state = old.last_state.clone();
            }
        }
    }
    let state = match latest {
        Some(instance) if instance.state == RunState::Running && !input.hooked.contains(name) => {
            status.started = Some(input.probes.started(container, &instance.id));
            ContainerState {
                running: Some(ContainerStateRunning { started_at: time(instance.started_at) }),
                ..Default::default()
            }
        }
        // Its start is still being given up: the reason to wait comes with the end of that.
        Some(instance) if instance.started_at == 0 && waiting.is_none() && input.starting.contains(name) => {
            self::waiting(&(default_reason(input, member).to_owned(), String::new()))
        }
        Some(instance) if instance.state == RunState::Exited => {
            let terminated = terminated(instance, input.runtime_name);
            let restarts = !input.finished
                && input.pod.metadata.deletion_timestamp.is_none()
                && pod::restarts(input.pod, member, instance.exit_code);
            match waiting.filter(|_| restarts) {
                Some(waiting) => {
                    status.last_state = Some(terminated);
                    self::waiting(waiting)
                }
                None => terminated,
            }
        }
        None if input.finished && old.is_some_and(|old| old.container_id.is_some()) => lost(old),
        _ => match waiting {
            Some(waiting) => self::waiting(waiting),
            None => self::waiting(&(default_reason(input, member).to_owned(), String::new())),
        },
    };
    let running = latest.filter(|_| state.running.is_some());
    status.ready = match (member.kind, running) {
        // A finished init container counts as ready when it succeeded.
        (Kind::Init, _) => state.terminated.as_ref().is_some_and(|terminated| terminated.exit_code == 0),
        (Kind::Ephemeral, _) | (_, None) => false,
        (_, Some(instance)) => input.probes.ready(container, &instance.id),
    };
    if running.is_some() {
        status.resources = resize::actual(container, input.outdated.iter().find(|outdated| outdated.name == name));
        let granted = container.resources.as_ref();
        status.allocated_resources = granted.and_then(|granted| granted.requests.clone());
    }
    status.state = Some(state);
    status.volume_mounts = mounts(member);
    status
}

fn mounts(member: &Member<'_>) -> Option<Vec<VolumeMountStatus>> {
    let mounts = member.container.volume_mounts.as_ref()?;
    let status = mounts.iter().map(|mount| {
        let read_only = mount.read_only.filter(|&read_only| read_only);
        let recursive = mount.recursive_read_only.as_deref();
        VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only,
            recursive_read_only: read_only.map(|_| match recursive {
                Some("Enabled" | "IfPossible") => "Enabled".to_owned(),
                _ => "Disabled".to_owned(),
            }),
            ..Default::default()
        }
    });
    Some(status.collect())
}

fn waiting((reason, message): &(String, String)) -> ContainerState {
    let message = Some(message.clone()).filter(|message| !message.is_empty());
    let waiting = ContainerStateWaiting { reason: Some(reason.clone()), message };
    ContainerState { waiting: Some(waiting), ..Default::default() }
}

fn default_reason(input: &Input<'_>, member: &Member<'_>) -> &'static str {
    let has_init = pod::spec(input.pod).init_containers.as_ref().is_some_and(|list| !list.is_empty());
    let initialized = has_init
        && member.kind == Kind::App
        && pod::members(input.pod)
            .iter()
            .any(|other| other.kind == Kind::App && input.runtime.latest(other.name()).is_some());
    if has_init && !initialized { "PodInitializing" } else { "ContainerCreating" }
}

fn terminated(instance: &Instance, runtime_name: &str) -> ContainerState {
    let reason = match (instance.reason.as_str(), instance.exit_code) {
        ("", 0) => "Completed",
        ("", _) => "Error",
        (reason, _) => reason,
    };
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: instance.exit_code,
            reason: Some(reason.to_owned()),
            message: Some(instance.message.clone()).filter(|message| !message.is_empty()),
            started_at: time(instance.started_at),
            finished_at: time(instance.finished_at),
            container_id: Some(format!("{runtime_name}://{}", instance.id)),
            signal: None,
        }),
        ..Default::default()
    }
}

/// The state of a container that ran but that nobody can account for.
fn lost(old: Option<&ContainerStatus>) -> ContainerState {
    if let Some(state) = old.and_then(|old| old.state.clone()).filter(|state| state.terminated.is_some()) {
        return state;
    }
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: 137,
            reason: Some("ContainerStatusUnknown".to_owned()),
            message: Some("The container could not be located when the pod was terminated".to_owned()),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn phase(input: &Input<'_>, statuses: &[(Kind, ContainerStatus)]) -> &'static str {
    let last = input.last.phase.as_deref();
    if let Some(phase @ ("Succeeded" | "Failed")) = last {
        return if phase == "Failed" { "Failed" } else { "Succeeded" };
    }
    let never = pod::restart_policy(input.pod) == "Never";
    let exit = |status: &ContainerStatus| status.state.as_ref()?.terminated.as_ref().map(|t| t.exit_code);
    let runs = |status: &ContainerStatus| status.state.as_ref().is_some_and(|state| state.running.is_some());
    let ended_before =
        |status: &ContainerStatus| status.last_state.as_ref().is_some_and(|state| state.terminated.is_some());
    let apps: Vec<&ContainerStatus> =
        statuses.iter().filter(|(kind, _)| *kind == Kind::App).map(|(_, status)| status).collect();
    let begun = apps.iter().any(|status| runs(status) || exit(status).is_some() || ended_before(status));
    let (mut pending, mut init_failed, mut sidecars_running) = (false, false, false);
    for (kind, status) in statuses {
        match kind {
            Kind::Init => match exit(status) {
                Some(0) => {}
                Some(_) => {
                    init_failed = true;
                    pending |= !begun;
                }
                None => pending |= !begun,
            },
            Kind::Sidecar => {
                sidecars_running |= runs(status);
                pending |= !begun && status.started != Some(true);
            }
            Kind::App | Kind::Ephemeral => {}
        }
    }
    if init_failed && (never || input.finished) {
        return if sidecars_running && !input.finished { "Pending" } else { "Failed" };
    }
    let running = apps.iter().filter(|status| runs(status)).count();
    let exits: Vec<i32> = apps.iter().filter_map(|status| exit(status)).collect();
    let waiting = apps.iter().filter(|status| !runs(status) && exit(status).is_none() && !ended_before(status)).count();
    let succeeded = exits.iter().filter(|&&code| code == 0).count();
    if input.finished && !exits.is_empty() {
        return if succeeded == apps.len() { "Succeeded" } else { "Failed" };
    }
    if pending || waiting > 0 {
        return "Pending";
    }
    if running > 0 || exits.len() < apps.len() || sidecars_running {
        return "Running";
    }
    let restarting = statuses.iter().zip(pod::members(input.pod)).any(|((kind, status), member)| {
        *kind == Kind::App && exit(status).is_some_and(|code| pod::restarts(input.pod, &member, code))
    });
    match restarting {
        true => "Running",
        false if succeeded == apps.len() => "Succeeded",
        false => "Failed",
    }
}

/// The conditions in upstream's order, with those of others kept as they are.
fn conditions(input: &Input<'_>, phase: &str, statuses: &[(Kind, ContainerStatus)]) -> Vec<PodCondition> {
    let sandbox_ready = input
        .runtime
        .sandbox()
        .is_some_and(|sandbox| sandbox.ready && (sandbox.host_network || !sandbox.ips.is_empty()));
    let fact = |kind: &str, value: bool| condition(kind, value, "", "");
    let initialized = initialized(phase, statuses);
    let containers_ready = containers_ready(phase, statuses, "ContainersReady");
    let ready = match containers_ready.status.as_str() {
        "True" => gates(input.pod, input.last),
        _ => PodCondition { type_: "Ready".to_owned(), ..containers_ready.clone() },
    };
    let mut conditions = vec![
        fact("PodReadyToStartContainers", sandbox_ready),
        initialized,
        ready,
        containers_ready,
        fact("PodScheduled", true),
    ];
    if let Some(verdict) = input.verdict.filter(|verdict| verdict.disruption) {
        conditions.push(condition("DisruptionTarget", true, "TerminationByKubelet", &verdict.message));
    }
    if let Some(pending) = input.pending {
        conditions.push(condition("PodResizePending", true, pending.reason, &pending.message));
    }
    if let Some(error) = input.resizing {
        let reason = if error.is_empty() { "" } else { "Error" };
        conditions.push(condition("PodResizeInProgress", true, reason, error));
    }
    let old = |kind: &str| input.last.conditions.iter().flatten().find(|old| old.type_ == kind);
    for condition in &mut conditions {
        condition.observed_generation = input.pod.metadata.generation;
        let unchanged = old(&condition.type_).filter(|old| old.status == condition.status);
        condition.last_transition_time =
            unchanged.and_then(|old| old.last_transition_time.clone()).or(Some(Time(input.now)));
    }
    let ours: Vec<String> = conditions.iter().map(|condition| condition.type_.clone()).collect();
    let api = pod::status(input.pod).conditions.iter().flatten();
    let passing = |other: &&PodCondition| !ours.contains(&other.type_) && !PASSING.contains(&other.type_.as_str());
    conditions.extend(api.filter(passing).cloned());
    conditions
}

/// Conditions of ours that are there only while they hold.
pub const PASSING: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];

fn condition(kind: &str, value: bool, reason: &str, message: &str) -> PodCondition {
    let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    PodCondition {
        type_: kind.to_owned(),
        status: if value { "True" } else { "False" }.to_owned(),
        reason: text(reason),
        message: text(message),
        ..PodCondition::default()
    }
}

fn initialized(phase: &str, statuses: &[(Kind, ContainerStatus)]) -> PodCondition {
    let kind = "Initialized";
    let begun = statuses.iter().any(|(kind, status)| *kind == Kind::App && status.container_id.is_some());
    let incomplete: Vec<&str> = statuses
        .iter()
        .filter(|(kind, status)| match kind {
            Kind::Init => !status.ready && !begun,
            Kind::Sidecar => status.started != Some(true) && !begun,
            Kind::App | Kind::Ephemeral => false,
        })
        .map(|(_, status)| status.name.as_str())
        .collect();
    match phase {
        "Succeeded" => condition(kind, true, "PodCompleted", ""),
        _ if incomplete.is_empty() => condition(kind, true, "", ""),
        _ => {
            let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
            condition(kind, false, "ContainersNotInitialized", &message)
        }
    }
}

fn containers_ready(phase: &str, statuses: &[(Kind, ContainerStatus)], kind: &str) -> PodCondition {
    let counted = statuses.iter().filter(|(kind, _)| matches!(kind, Kind::App | Kind::Sidecar));
    let unready: Vec<&str> = counted.filter(|(_, status)| !status.ready).map(|(_, s)| s.name.as_str()).collect();
    match phase {
        "Succeeded" => condition(kind, false, "PodCompleted", ""),
        "Failed" => condition(kind, false, "PodFailed", ""),
        _ if unready.is_empty() => condition(kind, true, "", ""),
        _ => {
            let message = format!("containers with unready status: [{}]", unready.join(" "));
            condition(kind, false, "ContainersNotReady", &message)
        }
    }
}

fn gates(pod: &Pod, last: &PodStatus) -> PodCondition {
    let api = pod::status(pod).conditions.iter().flatten();
    let all: Vec<&PodCondition> = api.chain(last.conditions.iter().flatten()).collect();
    let complaints: Vec<String> = pod::spec(pod)
        .readiness_gates
        .iter()
        .flatten()
        .filter_map(|gate| {
            let gate = &gate.condition_type;
            match all.iter().find(|condition| condition.type_ == *gate) {
                None => Some(format!("corresponding condition of pod readiness gate {gate:?} does not exist.")),
                Some(condition) if condition.status == "True" => None,
                Some(condition) => {
                    Some(format!("the status of pod readiness gate {gate:?} is not \"True\", but {}", condition.status))
                }
            }
        })
        .collect();
    match complaints.is_empty() {
        true => condition("Ready", true, "", ""),
        false => condition("Ready", false, "ReadinessGatesNotReady", &complaints.join(", ")),
    }
}

#[cfg(test)]
mod tests;
