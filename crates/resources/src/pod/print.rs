//! What `kubectl get pods` shows. STATUS is a summary of phase, reasons and container states; users
//! and scripts know its words by heart.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod, PodSpec, PodStatus};
use serde_json::{Value, json};

use super::container::is_sidecar;
use crate::print::{self, NONE, or};
use crate::validate::text;

pub fn cells(object: &Value, pod: &Pod, now: Timestamp) -> Vec<Value> {
    let summary = summarize(pod);
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    let ip = status.and_then(|status| {
        status.pod_ips.iter().flatten().next().map(|ip| ip.ip.as_str()).or(status.pod_ip.as_deref())
    });
    vec![
        print::name(object),
        json!(format!("{}/{}", summary.ready, summary.total)),
        json!(summary.status),
        json!(summary.restarts(now)),
        print::age(object, now),
        json!(or(ip.unwrap_or_default(), NONE)),
        json!(or(spec.map_or("", |spec| text(&spec.node_name)), NONE)),
        json!(or(status.map_or("", |status| text(&status.nominated_node_name)), NONE)),
        json!(readiness_gates(spec, status)),
    ]
}

/// The STATUS column alone.
pub fn status_text(pod: &Pod) -> String {
    summarize(pod).status
}

#[derive(Default)]
struct Summary {
    status: String,
    ready: usize,
    total: usize,
    restarts: i32,
    last_restart: Option<Timestamp>,
}

impl Summary {
    fn restarts(&self, now: Timestamp) -> String {
        match self.last_restart {
            Some(time) if self.restarts != 0 => format!("{} ({} ago)", self.restarts, print::ago(time, now)),
            _ => self.restarts.to_string(),
        }
    }

    fn count_restarts(&mut self, container: &ContainerStatus) {
        self.restarts += container.restart_count;
        let last = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
        let finished = last.and_then(|ended| ended.finished_at.as_ref()).map(|time| time.0);
        self.last_restart = self.last_restart.max(finished);
    }
}

fn summarize(pod: &Pod) -> Summary {
    let (default_spec, default_status) = (PodSpec::default(), PodStatus::default());
    let spec = pod.spec.as_ref().unwrap_or(&default_spec);
    let status = pod.status.as_ref().unwrap_or(&default_status);
    let mut summary =
        Summary { status: or(text(&status.reason), text(&status.phase)).to_owned(), ..Summary::default() };
    let gated = status
        .conditions
        .iter()
        .flatten()
        .any(|condition| condition.type_ == "PodScheduled" && text(&condition.reason) == "SchedulingGated");
    if gated {
        summary.status = "SchedulingGated".to_owned();
    }
    let sidecar = |name: &str| {
        spec.init_containers.iter().flatten().any(|container| container.name == name && is_sidecar(container))
    };
    summary.total = spec.containers.len() + spec.init_containers.iter().flatten().filter(|c| is_sidecar(c)).count();
    let mut sidecars = Summary::default();
    let initializing = initialize(&mut summary, &mut sidecars, spec, status, sidecar);
    if !initializing || condition(status, "Initialized") {
        summary.restarts = sidecars.restarts;
        summary.last_restart = sidecars.last_restart;
        run(&mut summary, status);
    }
    if pod.metadata.deletion_timestamp.is_some() {
        if text(&status.reason) == "NodeLost" {
            summary.status = "Unknown".to_owned();
        } else if !matches!(text(&status.phase), "Succeeded" | "Failed") {
            summary.status = "Terminating".to_owned();
        }
    }
    summary
}

/// Goes through the init containers; true when the pod is still at one of them.
fn initialize(
    summary: &mut Summary,
    sidecars: &mut Summary,
    spec: &PodSpec,
    status: &PodStatus,
    sidecar: impl Fn(&str) -> bool,
) -> bool {
    for (index, container) in status.init_container_statuses.iter().flatten().enumerate() {
        summary.count_restarts(container);
        let restartable = sidecar(&container.name);
        if restartable {
            sidecars.count_restarts(container);
        }
        let default = ContainerState::default();
        let state = container.state.as_ref().unwrap_or(&default);
        let waiting = state.waiting.as_ref().map_or("", |waiting| text(&waiting.reason));
        match &state.terminated {
            Some(ended) if ended.exit_code == 0 => continue,
            _ if restartable && container.started == Some(true) => {
                summary.ready += usize::from(container.ready);
                continue;
            }
            Some(_) => summary.status = format!("Init:{}", end_reason(state)),
            None if !waiting.is_empty() && waiting != "PodInitializing" => {
                summary.status = format!("Init:{waiting}");
            }
            None => {
                let total = spec.init_containers.as_ref().map_or(0, Vec::len);
                summary.status = format!("Init:{index}/{total}");
            }
        }
        return true;
    }
    false
}

/// Goes through the containers; the first one's trouble is the one shown.
fn run(summary: &mut Summary, status: &PodStatus) {
    let mut running = false;
    for container in status.container_statuses.iter().flatten().rev() {
        summary.count_restarts(container);
        let default = ContainerState::default();
        let state = container.state.as_ref().unwrap_or(&default);
        let waiting = state.waiting.as_ref().map_or("", |waiting| text(&waiting.reason));
        if !waiting.is_empty() {
            summary.status = waiting.to_owned();
        } else if state.terminated.is_some() {
            summary.status = end_reason(state);
        } else if container.ready && state.running.is_some() {
            running = true;
            summary.ready += 1;
        }
    }
    if summary.status == "Completed" && running {
        summary.status = if condition(status, "Ready") { "Running" } else { "NotReady" }.to_owned();
    }
}

fn end_reason(state: &ContainerState) -> String {
    let Some(ended) = &state.terminated else { return String::new() };
    match (text(&ended.reason), ended.signal.unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", ended.exit_code),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn condition(status: &PodStatus, type_: &str) -> bool {
    status.conditions.iter().flatten().any(|condition| condition.type_ == type_ && condition.status == "True")
}

fn readiness_gates(spec: Option<&PodSpec>, status: Option<&PodStatus>) -> String {
    let gates = spec.and_then(|spec| spec.readiness_gates.as_deref()).unwrap_or_default();
    if gates.is_empty() {
        return NONE.to_owned();
    }
    let met = gates.iter().filter(|gate| status.is_some_and(|status| condition(status, &gate.condition_type))).count();
    format!("{met}/{}", gates.len())
}
