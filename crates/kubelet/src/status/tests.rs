//! Tables for phases, conditions and container states.

use super::*;
use crate::state::Sandbox;
use serde_json::{Value, json};

/// `name state` pairs: `a running`, `a exit 1`, `a waiting CrashLoopBackOff`; a waiting container that
/// also exited says both.
fn build_with(spec: Value, last: Value, states: &[&str], finished: bool, verdict: Option<(&str, &str)>) -> PodStatus {
    let pod: Pod =
        serde_json::from_value(json!({"metadata": {"name": "p", "generation": 3}, "spec": spec, "status": last}))
            .unwrap();
    let sandbox = Sandbox {
        id: "s".into(),
        attempt: 0,
        ready: true,
        created_at: 0,
        host_network: false,
        ips: vec!["10.0.0.9".into()],
    };
    let mut runtime = Runtime { sandboxes: vec![sandbox], instances: vec![] };
    let mut waiting = BTreeMap::new();
    for state in states {
        let words: Vec<&str> = state.split(' ').collect();
        let instance = |state, exit_code| Instance {
            id: format!("{}-id", words[0]),
            name: words[0].into(),
            attempt: 2,
            sandbox: "s".into(),
            state,
            created_at: 1,
            started_at: 2_000_000_000,
            finished_at: 3_000_000_000,
            exit_code,
            reason: String::new(),
            message: String::new(),
            message_read: true,
            image: "img".into(),
            image_id: "sha256:1".into(),
            hash: String::new(),
            log_path: String::new(),
            message_file: None,
            message_policy: String::new(),
            user: None,
            resources: None,
            stop_signal: Some("SIGTERM".into()),
        };
        match words[1..] {
            ["running"] => runtime.observe(instance(RunState::Running, 0)),
            ["exit", code] => runtime.observe(instance(RunState::Exited, code.parse().unwrap())),
            ["waiting", reason] => drop(waiting.insert(words[0].to_owned(), (reason.to_owned(), "why".to_owned()))),
            _ => panic!("{state}"),
        }
    }
    let last = pod.status.clone().unwrap_or_default();
    let verdict = verdict.map(|(reason, message)| Verdict {
        reason: reason.to_owned(),
        message: message.to_owned(),
        disruption: reason == "Evicted",
    });
    build(&Input {
        pod: &pod,
        last: &last,
        runtime: &runtime,
        probes: &Results::default(),
        waiting: &waiting,
        hooked: &BTreeSet::new(),
        starting: &BTreeSet::new(),
        pending: None,
        outdated: &[],
        resizing: None,
        finished,
        verdict: verdict.as_ref(),
        host_ips: &["192.0.2.1".to_owned()],
        runtime_name: "rt",
        now: Timestamp::from_second(50).unwrap(),
    })
}

fn spec(policy: &str, init: &[&str], apps: &[&str]) -> Value {
    let container = |name: &str| match name.strip_prefix('+') {
        Some(name) => json!({"name": name, "restartPolicy": "Always"}),
        None => json!({"name": name}),
    };
    let list = |names: &[&str]| names.iter().map(|name| container(name)).collect::<Vec<_>>();
    json!({"restartPolicy": policy, "initContainers": list(init), "containers": list(apps)})
}

#[test]
fn phases() {
    type Row =
        (&'static str, &'static [&'static str], &'static [&'static str], &'static [&'static str], bool, &'static str);
    let table: &[Row] = &[
        ("Always", &[], &["a"], &[], false, "Pending"),
        ("Always", &[], &["a", "b"], &["a running"], false, "Pending"),
        ("Always", &[], &["a", "b"], &["a running", "b running"], false, "Running"),
        ("Always", &[], &["a"], &["a exit 1"], false, "Running"),
        ("Always", &[], &["a"], &["a exit 1", "a waiting CrashLoopBackOff"], false, "Running"),
        ("Never", &[], &["a", "b"], &["a exit 0", "b running"], false, "Running"),
        ("Never", &[], &["a", "b"], &["a exit 0", "b exit 0"], false, "Succeeded"),
        ("Never", &[], &["a", "b"], &["a exit 0", "b exit 1"], false, "Failed"),
        ("OnFailure", &[], &["a"], &["a exit 1"], false, "Running"),
        ("OnFailure", &[], &["a"], &["a exit 0"], false, "Succeeded"),
        ("Always", &["i"], &["a"], &["i running"], false, "Pending"),
        ("Always", &["i"], &["a"], &["i exit 1"], false, "Pending"),
        ("Never", &["i"], &["a"], &["i exit 1"], false, "Failed"),
        ("Always", &["i"], &["a"], &["i exit 0", "a running"], false, "Running"),
        ("Never", &["+s"], &["a"], &["s running", "a exit 0"], false, "Running"),
        ("Never", &["+s"], &["a"], &["s exit 0", "a exit 0"], true, "Succeeded"),
        ("Never", &["+s"], &["a"], &["s exit 137", "a exit 0"], true, "Succeeded"),
        ("Always", &[], &["a"], &["a exit 0"], true, "Succeeded"),
        ("Always", &[], &["a"], &["a exit 143"], true, "Failed"),
    ];
    for (policy, init, apps, states, finished, expected) in table {
        let status = build_with(spec(policy, init, apps), json!({}), states, *finished, None);
        assert_eq!(status.phase.as_deref(), Some(*expected), "{policy} {init:?} {apps:?} {states:?} {finished}");
    }
    let final_phase = build_with(spec("Never", &[], &["a"]), json!({"phase": "Failed"}), &["a exit 0"], true, None);
    assert_eq!(final_phase.phase.as_deref(), Some("Failed"), "a final phase stays");
    let late = build_with(spec("Always", &[], &["a"]), json!({}), &["a exit 0"], true, Some(("DeadlineExceeded", "m")));
    assert_eq!((late.phase.as_deref(), late.reason.as_deref()), (Some("Failed"), Some("DeadlineExceeded")));
}

fn shown(status: &PodStatus) -> Vec<String> {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let conditions = status.conditions.iter().flatten();
    conditions
        .map(|c| format!("{}={} {} {}", c.type_, c.status, text(&c.reason), text(&c.message)).trim().into())
        .collect()
}

#[test]
fn conditions_say_what_is_missing() {
    let pending = build_with(spec("Always", &["i"], &["a", "b"]), json!({}), &["i running"], false, None);
    assert_eq!(
        shown(&pending),
        [
            "PodReadyToStartContainers=True",
            "Initialized=False ContainersNotInitialized containers with incomplete status: [i]",
            "Ready=False ContainersNotReady containers with unready status: [a b]",
            "ContainersReady=False ContainersNotReady containers with unready status: [a b]",
            "PodScheduled=True",
        ]
    );
    let mut gated = spec("Always", &[], &["a"]);
    gated["readinessGates"] = json!([{"conditionType": "x/one"}, {"conditionType": "x/two"}]);
    let other = json!({"conditions": [{"type": "x/two", "status": "False"}]});
    let ready = &build_with(gated.clone(), other, &["a running"], false, None);
    assert_eq!(
        shown(ready)[2],
        "Ready=False ReadinessGatesNotReady corresponding condition of pod readiness gate \"x/one\" does not exist., \
         the status of pod readiness gate \"x/two\" is not \"True\", but False"
    );
    assert_eq!(shown(ready).last().unwrap(), "x/two=False", "others' conditions are kept");
    let met = json!({"conditions": [{"type": "x/one", "status": "True"}, {"type": "x/two", "status": "True"}]});
    assert_eq!(shown(&build_with(gated, met, &["a running"], false, None))[2], "Ready=True");
    let done = build_with(spec("Never", &["i"], &["a"]), json!({}), &["i exit 0", "a exit 0"], true, None);
    assert_eq!(
        shown(&done)[1..4],
        ["Initialized=True PodCompleted", "Ready=False PodCompleted", "ContainersReady=False PodCompleted"]
    );
}

#[test]
fn transition_times_move_with_the_status_only() {
    let old = json!({"conditions": [
        {"type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:00:10Z"},
        {"type": "Initialized", "status": "False", "lastTransitionTime": "1970-01-01T00:00:10Z"}]});
    let status = build_with(spec("Always", &[], &["a"]), old, &["a running"], false, None);
    let since = |kind: &str| {
        let condition = status.conditions.iter().flatten().find(|condition| condition.type_ == kind).unwrap();
        condition.last_transition_time.as_ref().unwrap().0.as_second()
    };
    assert_eq!((since("Ready"), since("Initialized")), (10, 50));
}

#[test]
fn container_states() {
    let crash =
        build_with(spec("Always", &[], &["a"]), json!({}), &["a exit 7", "a waiting CrashLoopBackOff"], false, None);
    let container = &crash.container_statuses.as_ref().unwrap()[0];
    let waiting = container.state.as_ref().unwrap().waiting.as_ref().unwrap();
    assert_eq!((waiting.reason.as_deref(), waiting.message.as_deref()), (Some("CrashLoopBackOff"), Some("why")));
    let last = container.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (7, Some("Error")));
    assert_eq!((container.restart_count, container.container_id.as_deref()), (2, Some("rt://a-id")));

    // One that is not started again shows its end, also while the start's failure is known.
    let failed = build_with(
        spec("Never", &[], &["a"]),
        json!({"containerStatuses": [{"name": "a", "ready": false, "restartCount": 2, "image": "x", "imageID": "y",
            "lastState": {"terminated": {"exitCode": 128, "containerID": "rt://a-id"}}}]}),
        &["a exit 128", "a waiting RunContainerError"],
        false,
        None,
    );
    let container = &failed.container_statuses.as_ref().unwrap()[0];
    assert_eq!(container.state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 128);
    assert_eq!(container.last_state, None, "one end is not shown twice");
    assert_eq!(container.stop_signal.as_deref(), Some("SIGTERM"));

    let fresh = build_with(spec("Always", &["i"], &["a"]), json!({}), &[], false, None);
    let reason = |list: &Option<Vec<ContainerStatus>>| {
        list.as_ref().unwrap()[0].state.as_ref().unwrap().waiting.as_ref().unwrap().reason.clone().unwrap()
    };
    assert_eq!(reason(&fresh.init_container_statuses), "PodInitializing");
    assert_eq!(reason(&fresh.container_statuses), "PodInitializing");

    // A container the runtime lost keeps its history, and is accounted for at the end.
    let old = json!({"containerStatuses": [{"name": "a", "ready": true, "restartCount": 4, "image": "x", "imageID": "y",
        "containerID": "rt://gone", "state": {"running": {}}}]});
    let lost = build_with(spec("Always", &[], &["a"]), old, &[], true, None);
    let container = &lost.container_statuses.as_ref().unwrap()[0];
    let terminated = container.state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((terminated.exit_code, terminated.reason.as_deref()), (137, Some("ContainerStatusUnknown")));
    assert_eq!(container.restart_count, 4);
}
