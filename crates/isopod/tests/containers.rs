//! How containers start, fail, are told to end, and what their pods say of it.

mod common;

use common::{BUSYBOX, cluster};
use serde_json::{Value, json};
use testkit::{Cluster, eventually};

/// A pod of one busybox container named `main`, with what the test adds.
fn pod(name: &str, spec: Value, container: Value) -> String {
    let mut main = json!({"name": "main", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent"});
    main.as_object_mut().unwrap().extend(container.as_object().unwrap().clone());
    let mut all = json!({"terminationGracePeriodSeconds": 0, "containers": [main]});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": all}).to_string()
}

fn main_status(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

const NOT_FOUND: &str = "exec: \"no-such-command\": executable file not found in $PATH";

fn says_not_found(state: &Value) -> bool {
    state["message"].as_str().is_some_and(|message| message.contains(NOT_FOUND))
}

/// What the API shows of a pod, change by change.
struct Watch(std::process::Child);

impl Watch {
    fn pods(cluster: &Cluster, file: &std::path::Path) -> Watch {
        let output = std::fs::File::create(file).unwrap();
        let arguments = ["get", "pods", "--watch", "-o", "json", "--output-watch-events"];
        Watch(cluster.kubectl(&arguments).stdout(output).spawn().unwrap())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_missing_command_is_told_at_once_and_in_full() {
    let (cluster, _archive) = cluster();
    let file = cluster.directory.path().join("watch.json");
    let watch = Watch::pods(&cluster, &file);
    let command = json!({"command": ["no-such-command"]});
    cluster.apply(&pod("once", json!({"restartPolicy": "Never"}), command.clone()));
    cluster.apply(&pod("again", json!({}), command));

    let once = cluster.wait(&["pod", "once"], |pod| pod["status"]["phase"] == "Failed");
    let ended = &main_status(&once)["state"]["terminated"];
    assert_eq!((&ended["reason"], &ended["exitCode"]), (&json!("StartError"), &json!(128)));
    assert!(says_not_found(ended), "{ended:#}");
    assert_eq!(main_status(&once)["lastState"], json!({}), "one end is not shown twice");

    let waiting = |pod: &Value, reason: &str| main_status(pod)["state"]["waiting"]["reason"] == reason;
    let again = cluster.wait(&["pod", "again"], |pod| waiting(pod, "CrashLoopBackOff"));
    let last = &main_status(&again)["lastState"]["terminated"];
    assert_eq!((&last["reason"], &last["exitCode"]), (&json!("StartError"), &json!(128)));
    assert!(says_not_found(last), "{last:#}");
    assert_eq!(again["status"]["phase"], "Running");
    drop(watch);

    let seen = std::fs::read_to_string(&file).unwrap();
    let seen: Vec<Value> = serde_json::Deserializer::from_str(&seen).into_iter().map_while(Result::ok).collect();
    let of = |name: &'static str| {
        seen.iter().map(|event| &event["object"]).filter(move |pod| pod["metadata"]["name"] == name)
    };
    for pod in of("once") {
        let complete = says_not_found(&main_status(pod)["state"]["terminated"]);
        assert!(complete || pod["status"]["phase"] != "Failed", "a final phase without its cause: {pod:#}");
    }
    let refused = of("again").find(|pod| waiting(pod, "RunContainerError"));
    let refused = refused.expect("the first failure is told before the back-off");
    assert!(says_not_found(&main_status(refused)["state"]["waiting"]), "{refused:#}");
}

#[test]
fn containers_end_by_the_signal_they_ask_for() {
    let (cluster, _archive) = cluster();
    let script = "trap 'echo usr1 > /dev/termination-log; exit 3' USR1; echo ready; while true; do sleep 0.1; done";
    let command = json!({"command": ["sh", "-c", script], "lifecycle": {"stopSignal": "SIGUSR1"}});
    let refused = cluster.directory.path().join("refused.json");
    std::fs::write(&refused, pod("refused", json!({}), command.clone())).unwrap();
    let complaint = cluster.refuse(&["create", "-f", &refused.to_string_lossy()]);
    assert!(complaint.contains("may not be set for containers with empty `spec.os.name`"), "{complaint}");

    let spec = json!({"os": {"name": "linux"}, "restartPolicy": "Never", "terminationGracePeriodSeconds": 60});
    let mut with_finalizer: Value = serde_json::from_str(&pod("signal", spec, command)).unwrap();
    with_finalizer["metadata"]["finalizers"] = json!(["example.com/keep"]);
    cluster.apply(&with_finalizer.to_string());
    eventually("the trap is set", || match cluster.run(&["logs", "signal"]).as_str() {
        "ready\n" => Ok(()),
        other => Err(other.to_owned()),
    });
    assert_eq!(main_status(&cluster.get(&["pod", "signal"]))["stopSignal"], "SIGUSR1");
    cluster.run(&["delete", "pod", "signal", "--wait=false"]);
    let ended = cluster.wait(&["pod", "signal"], |pod| !main_status(pod)["state"]["terminated"].is_null());
    let state = &main_status(&ended)["state"]["terminated"];
    assert_eq!((&state["exitCode"], &state["message"]), (&json!(3), &json!("usr1\n")), "{state:#}");
    cluster.run(&["patch", "pod", "signal", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#]);
}
