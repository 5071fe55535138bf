//! Tables for the planner: a pod, what the runtime has, and what must follow.

use super::*;
use crate::state::{Instance, Sandbox};
use serde_json::{Value, json};

const NOW: i64 = 1_000_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(NOW + second).unwrap()
}

/// One situation; everything not said is as if nothing had happened.
struct Case {
    pod: Pod,
    runtime: Runtime,
    probes: Results,
    tracks: BTreeMap<String, Track>,
    busy: BTreeSet<Operation>,
    retries: BTreeMap<Operation, Timestamp>,
    volumes_ready: bool,
    stage: Stage,
    outdated: Vec<Outdated>,
}

impl Case {
    /// A pod whose volumes and sandbox are ready.
    fn new(spec: Value) -> Case {
        let mut case = Case::fresh(spec);
        case.volumes_ready = true;
        case.runtime.sandboxes.push(sandbox("s0", 0, true));
        case
    }

    /// A pod of which there is nothing yet.
    fn fresh(spec: Value) -> Case {
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec});
        Case {
            pod: serde_json::from_value(pod).unwrap(),
            runtime: Runtime::default(),
            probes: Results::default(),
            tracks: BTreeMap::new(),
            busy: BTreeSet::new(),
            retries: BTreeMap::new(),
            volumes_ready: false,
            stage: Stage::Running,
            outdated: Vec::new(),
        }
    }

    fn running(mut self, name: &str) -> Case {
        self.runtime.observe(self.instance(name, RunState::Running, 0));
        self
    }

    /// An instance that ended ten seconds ago.
    fn exited(mut self, name: &str, code: i32) -> Case {
        self.runtime.observe(self.instance(name, RunState::Exited, code));
        self
    }

    fn instance(&self, name: &str, state: RunState, exit_code: i32) -> Instance {
        let attempt = self.runtime.latest(name).map_or(0, |latest| latest.attempt + 1);
        let ended = (NOW - 10) * 1_000_000_000;
        let container = pod::member(&self.pod, name).unwrap().container;
        Instance {
            id: format!("{name}-{attempt}"),
            name: name.into(),
            attempt,
            sandbox: self.runtime.sandboxes.first().map(|sandbox| sandbox.id.clone()).unwrap_or_default(),
            state,
            created_at: ended - 1,
            started_at: ended - 1,
            finished_at: if state == RunState::Exited { ended } else { 0 },
            exit_code,
            reason: String::new(),
            message: String::new(),
            message_read: true,
            image: String::new(),
            image_id: String::new(),
            hash: pod::container_hash(&container),
            log_path: String::new(),
            message_file: None,
            message_policy: String::new(),
            user: None,
            resources: None,
            stop_signal: None,
        }
    }

    fn busy(mut self, operation: Operation) -> Case {
        self.busy.insert(operation);
        self
    }

    fn probe(mut self, id: &str, kind: ProbeKind, healthy: bool) -> Case {
        self.probes.set(id, kind, healthy);
        self
    }

    fn with(mut self, change: impl FnOnce(&mut Case)) -> Case {
        change(&mut self);
        self
    }

    fn ending(mut self, seconds: i64) -> Case {
        self.stage = Stage::Terminating { deadline: at(seconds) };
        self
    }

    fn plan(&self) -> Vec<String> {
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
            resize_due: false,
            now: at(0),
        };
        plan(&view).iter().map(show).collect()
    }

    #[track_caller]
    fn expect(self, expected: &[&str]) {
        assert_eq!(self.plan(), expected);
    }
}

/// Actions in a word or two.
fn show(action: &Action) -> String {
    match action {
        Action::MountVolumes => "volumes".into(),
        Action::CreateSandbox { attempt } => format!("sandbox {attempt}"),
        Action::StopSandbox { id } => format!("stop {id}"),
        Action::Start { name, attempt } => format!("start {name} {attempt}"),
        Action::BackOff { name, until, .. } => format!("backoff {name} {}", until.as_second() - NOW),
        Action::Kill { id, grace, reason, .. } => format!("kill {id} {grace} {reason:?}"),
        Action::WakeAt(at) => format!("wake {}", at.as_second() - NOW),
        Action::Resize => "resize".into(),
        Action::Complete => "complete".into(),
        Action::TearDown => "teardown".into(),
    }
}

fn sandbox(id: &str, attempt: u32, ready: bool) -> Sandbox {
    let ips = vec!["10.0.0.1".into()];
    Sandbox { id: id.into(), attempt, ready, created_at: i64::from(attempt), host_network: false, ips }
}

fn containers(names: &[&str]) -> Value {
    names.iter().map(|name| json!({"name": name, "image": "x"})).collect()
}

fn one() -> Value {
    json!({"containers": containers(&["a"])})
}

fn two(policy: &str) -> Value {
    json!({"restartPolicy": policy, "containers": containers(&["a", "b"])})
}

/// An init container, a sidecar, another init container, and one app container.
fn staged(policy: &str) -> Value {
    let sidecar = json!({"name": "side", "image": "x", "restartPolicy": "Always"});
    let init = |name: &str| json!({"name": name, "image": "x"});
    json!({
        "restartPolicy": policy,
        "initContainers": [init("first"), sidecar, init("second")],
        "containers": containers(&["app"]),
    })
}

fn start(name: &str) -> Operation {
    Operation::Start(name.into())
}

#[test]
fn a_new_pod_gets_volumes_and_a_sandbox_at_once() {
    Case::fresh(one()).expect(&["volumes", "sandbox 0"]);
    Case::fresh(one()).busy(Operation::Relist).expect(&[]);
    Case::fresh(one()).busy(Operation::Volumes).busy(Operation::Sandbox).expect(&[]);
    let volumes_missing = Case::new(one()).with(|case| case.volumes_ready = false);
    volumes_missing.expect(&["volumes"]);
    let waiting = Case::fresh(one()).with(|case| {
        case.retries.insert(Operation::Sandbox, at(5));
    });
    waiting.expect(&["volumes", "wake 5"]);
}

#[test]
fn app_containers_start_one_after_another() {
    Case::new(two("Always")).expect(&["start a 0"]);
    Case::new(two("Always")).busy(start("a")).expect(&[]);
    Case::new(two("Always")).running("a").expect(&["start b 0"]);
    Case::new(two("Always")).running("a").running("b").expect(&[]);
    // One whose image cannot be pulled does not hold up the next.
    let stuck = Case::new(two("Always")).with(|case| {
        case.retries.insert(start("a"), at(7));
    });
    stuck.expect(&["wake 7", "start b 0"]);
}

#[test]
fn restart_policies() {
    for (policy, code, expected) in [
        ("Always", 0, "start a 1"),
        ("Always", 1, "start a 1"),
        ("OnFailure", 0, ""),
        ("OnFailure", 1, "start a 1"),
        ("Never", 1, ""),
    ] {
        let expected: Vec<&str> = Some(expected).filter(|expected| !expected.is_empty()).into_iter().collect();
        Case::new(two(policy)).exited("a", code).running("b").expect(&expected);
    }
    Case::new(two("OnFailure")).exited("a", 0).exited("b", 0).expect(&["complete"]);
    Case::new(two("Never")).exited("a", 0).exited("b", 3).expect(&["complete"]);
    // One that is just being started is not over, even if an earlier run of it is.
    Case::new(two("Never")).exited("a", 0).exited("b", 0).busy(start("b")).expect(&[]);
    Case::new(two("Always")).exited("a", 0).exited("b", 0).expect(&["start a 1"]);
}

#[test]
fn own_restart_rules_win() {
    let rule = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
    let spec = json!({"restartPolicy": "Never", "containers": [
        {"name": "a", "image": "x", "restartPolicy": "Never", "restartPolicyRules": rule}]});
    Case::new(spec.clone()).exited("a", 42).expect(&["start a 1"]);
    Case::new(spec).exited("a", 1).expect(&["complete"]);
}

#[test]
fn crashes_back_off() {
    let crashed = |delays: usize| {
        Case::new(one()).exited("a", 1).with(|case| {
            let track = case.tracks.entry("a".into()).or_default();
            (0..delays).for_each(|_| {
                track.backoff.next(at(-10), at(-10));
            });
        })
    };
    crashed(0).expect(&["start a 1"]);
    crashed(1).expect(&["start a 1"]); // ten seconds have just passed
    crashed(2).expect(&["backoff a 10", "wake 10"]);
    crashed(9).expect(&["backoff a 290", "wake 290"]);
    crashed(9).busy(start("a")).expect(&[]);
}

#[test]
fn lost_containers_count_on() {
    let lost = Case::new(one()).with(|case| case.tracks.entry("a".into()).or_default().lost = 4);
    lost.expect(&["start a 4"]);
}

#[test]
fn init_containers_run_in_order() {
    Case::new(staged("Always")).expect(&["start first 0"]);
    Case::new(staged("Always")).running("first").expect(&[]);
    Case::new(staged("Always")).exited("first", 1).expect(&["start first 1"]);
    Case::new(staged("Never")).exited("first", 1).expect(&["complete"]);
    Case::new(staged("Always")).exited("first", 0).expect(&["start side 0"]);
    let after_side = || Case::new(staged("Always")).exited("first", 0).running("side");
    after_side().busy(start("side")).expect(&[]); // its postStart hook has not finished
    after_side().expect(&["start second 0"]);
    after_side().running("second").expect(&[]);
    after_side().exited("second", 0).expect(&["start app 0"]);
    after_side().exited("second", 0).running("app").expect(&[]);
}

#[test]
fn sidecars_wait_for_their_startup_probe_and_restart_always() {
    let mut spec = staged("Never");
    spec["initContainers"][1]["startupProbe"] = json!({"exec": {"command": ["true"]}});
    let begun = || Case::new(spec.clone()).exited("first", 0).running("side");
    begun().expect(&[]);
    begun().probe("side-0", ProbeKind::Startup, true).expect(&["start second 0"]);
    begun().probe("side-0", ProbeKind::Startup, false).expect(&["kill side-0 30 Startup"]);
    let dead = || Case::new(staged("Never")).exited("first", 0).exited("side", 0);
    dead().expect(&["start side 1"]);
    // With the app begun, a dead sidecar is restarted and finished init containers are history.
    dead().running("app").expect(&["start side 1"]);
    Case::new(staged("Always")).running("side").running("app").expect(&[]);
    // Sidecars do not keep a pod whose containers are done.
    Case::new(staged("Never")).exited("first", 0).running("side").exited("app", 0).expect(&["complete"]);
}

#[test]
fn a_dead_sandbox_is_replaced_and_init_runs_again() {
    let broken = |case: Case| case.with(|case| case.runtime.sandboxes[0].ready = false);
    broken(Case::new(staged("Always")).exited("first", 0).running("app")).expect(&["kill app-0 30 PodEnds"]);
    broken(Case::new(staged("Always")).exited("first", 0).exited("app", 137)).expect(&["sandbox 1"]);
    broken(Case::new(two("Never")).exited("a", 0).exited("b", 255)).expect(&["complete"]);
    let replaced = Case::new(staged("Always")).exited("first", 0).exited("app", 137).with(|case| {
        case.runtime.sandboxes.insert(0, sandbox("s1", 1, true));
    });
    replaced.expect(&["start first 1"]);
    let without_address = Case::new(one()).with(|case| case.runtime.sandboxes[0].ips.clear());
    without_address.expect(&["stop s0"]);
    let other_network = Case::new(json!({"hostNetwork": true, "containers": containers(&["a"])}));
    other_network.expect(&["stop s0"]);
}

#[test]
fn unhealthy_or_changed_containers_are_killed() {
    let spec = json!({"terminationGracePeriodSeconds": 9, "containers": [{"name": "a", "image": "x",
        "livenessProbe": {"exec": {}, "terminationGracePeriodSeconds": 3},
        "startupProbe": {"exec": {}}, "readinessProbe": {"exec": {}}}]});
    let case = || Case::new(spec.clone()).running("a");
    case().probe("a-0", ProbeKind::Readiness, false).expect(&[]);
    case().probe("a-0", ProbeKind::Liveness, true).expect(&[]);
    case().probe("a-0", ProbeKind::Liveness, false).expect(&["kill a-0 3 Liveness"]);
    case().probe("a-0", ProbeKind::Startup, false).expect(&["kill a-0 9 Startup"]);
    case().probe("a-0", ProbeKind::Liveness, false).busy(Operation::Kill("a-0".into())).expect(&[]);
    case().with(|case| case.runtime.instances[0].hash = "old".into()).expect(&["kill a-0 9 Changed"]);
    case().with(|case| case.runtime.instances[0].hash.clear()).expect(&[]);
}

#[test]
fn ephemeral_containers_start_once() {
    let spec = json!({"containers": containers(&["a"]), "ephemeralContainers": containers(&["debug"])});
    Case::new(spec.clone()).running("a").expect(&["start debug 0"]);
    Case::new(spec.clone()).running("a").running("debug").expect(&[]);
    Case::new(spec).running("a").exited("debug", 1).expect(&[]);
}

#[test]
fn ending_stops_apps_then_sidecars_then_the_sandbox() {
    let begun = || Case::new(staged("Always")).exited("first", 0).running("side").running("app");
    begun().ending(30).expect(&["kill app-0 30 PodEnds", "wake 30"]);
    begun().busy(Operation::Kill("app-0".into())).ending(30).expect(&["wake 30"]);
    // Out of time, everything goes together.
    begun().ending(-1).expect(&["kill app-0 0 PodEnds", "kill side-0 0 PodEnds"]);
    let side_left = || Case::new(staged("Always")).exited("first", 0).running("side").exited("app", 0);
    side_left().ending(20).expect(&["kill side-0 20 PodEnds", "wake 20"]);
    // A start under way may still bring a container: nothing is taken away beneath it.
    Case::new(one()).busy(start("a")).ending(30).expect(&[]);
    Case::new(one()).exited("a", 0).ending(30).expect(&["stop s0"]);
    let stopped = |case: Case| case.with(|case| case.runtime.sandboxes[0].ready = false);
    stopped(Case::new(one()).exited("a", 0)).ending(30).expect(&["teardown"]);
    stopped(Case::new(one()).exited("a", 0)).ending(30).busy(Operation::Volumes).expect(&[]);
    Case::fresh(one()).ending(30).expect(&["teardown"]);
    Case::new(one()).running("a").with(|case| case.stage = Stage::Finished).expect(&[]);
}

#[test]
fn sidecars_end_in_reverse_order() {
    let sidecar = |name: &str| json!({"name": name, "image": "x", "restartPolicy": "Always"});
    let spec = json!({"initContainers": [sidecar("s1"), sidecar("s2")], "containers": containers(&["app"])});
    let case = || Case::new(spec.clone()).running("s1").running("s2").exited("app", 0);
    case().ending(5).expect(&["kill s2-0 5 PodEnds", "wake 5"]);
    let one_left = Case::new(spec.clone()).running("s1").exited("s2", 0).exited("app", 0);
    one_left.ending(5).expect(&["kill s1-0 5 PodEnds", "wake 5"]);
}

#[test]
fn a_resize_changes_or_restarts() {
    let outdated = |case: &Case, restart| Outdated {
        id: case.runtime.latest("a").unwrap().id.clone(),
        name: "a".into(),
        wanted: Default::default(),
        current: Default::default(),
        restart,
    };
    let case = |restart| Case::new(one()).running("a").with(|case| case.outdated = vec![outdated(case, restart)]);
    case(false).expect(&["resize"]);
    case(false).busy(Operation::Resize).expect(&[]);
    case(true).expect(&["kill a-0 30 Resize"]);
}
