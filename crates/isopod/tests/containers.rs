//! How containers start, fail, are told to end, and what their pods say of it.

mod common;

use common::{cluster, container, events, first_status, pod, shell, with};
use serde_json::{Value, json};
use testkit::{Cluster, eventually};

const NOT_FOUND: &str = "exec: \"no-such-command\": executable file not found in $PATH";

fn says_not_found(state: &Value) -> bool {
    state["message"].as_str().is_some_and(|message| message.contains(NOT_FOUND))
}

/// What the API shows of pods, change by change.
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
    let containers = json!([container("main", json!({"command": ["no-such-command"]}))]);
    cluster.apply(&pod("once", json!({"restartPolicy": "Never", "containers": containers})).to_string());
    cluster.apply(&pod("again", json!({"containers": containers})).to_string());

    let once = cluster.wait(&["pod", "once"], |pod| pod["status"]["phase"] == "Failed");
    let ended = &first_status(&once)["state"]["terminated"];
    assert_eq!((&ended["reason"], &ended["exitCode"]), (&json!("StartError"), &json!(128)));
    assert!(says_not_found(ended), "{ended:#}");

    let waiting = |pod: &Value, reason: &str| first_status(pod)["state"]["waiting"]["reason"] == reason;
    let again = cluster.wait(&["pod", "again"], |pod| waiting(pod, "CrashLoopBackOff"));
    let last = &first_status(&again)["lastState"]["terminated"];
    assert_eq!((&last["reason"], &last["exitCode"]), (&json!("StartError"), &json!(128)));
    assert!(says_not_found(last), "{last:#}");
    let seen = || {
        let seen = std::fs::read_to_string(&file).unwrap();
        let events = serde_json::Deserializer::from_str(&seen).into_iter::<Value>().map_while(Result::ok);
        events.map(|event| event["object"].clone()).collect::<Vec<_>>()
    };
    let of = |name: &str| seen().into_iter().filter(|pod| pod["metadata"]["name"] == name).collect::<Vec<_>>();
    let refused = eventually("the first failure is told before the back-off", || {
        of("again").into_iter().find(|pod| waiting(pod, "RunContainerError")).ok_or_else(|| "not seen".to_owned())
    });
    assert!(says_not_found(&first_status(&refused)["state"]["waiting"]), "{refused:#}");
    let finals = eventually("the end of the other one is seen", || {
        let finals: Vec<Value> = of("once").into_iter().filter(|pod| pod["status"]["phase"] == "Failed").collect();
        if finals.is_empty() { Err("not seen".to_owned()) } else { Ok(finals) }
    });
    drop(watch);
    for pod in finals {
        let status = first_status(&pod);
        assert!(says_not_found(&status["state"]["terminated"]), "a final phase without its cause: {pod:#}");
        assert_eq!(status["lastState"], json!({}), "one end is not shown twice");
    }
}

/// A pod whose object stays after its end, so that the end can be looked at.
fn kept(pod: Value) -> Value {
    let metadata = with(pod["metadata"].clone(), json!({"finalizers": ["example.com/keep"]}));
    with(pod, json!({"metadata": metadata}))
}

fn let_go(cluster: &Cluster, name: &str) {
    cluster.run(&["patch", "pod", name, "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#]);
}

fn logs_end_with(cluster: &Cluster, name: &str, line: &str) {
    eventually(&format!("{name} says {line}"), || {
        // It may not have started yet.
        let log = cluster.kubectl(&["logs", name, "-c", "main"]).output().unwrap().stdout;
        let log = String::from_utf8_lossy(&log).into_owned();
        if log.trim_end().ends_with(line) { Ok(()) } else { Err(log) }
    });
}

#[test]
fn containers_end_by_the_signal_they_ask_for() {
    let (cluster, _archive) = cluster();
    let script = "trap 'echo usr1 > /dev/termination-log; exit 3' USR1; echo ready; while true; do sleep 0.1; done";
    let main = shell("main", script, json!({"lifecycle": {"stopSignal": "SIGUSR1"}}));
    let refused = cluster.directory.path().join("refused.json");
    std::fs::write(&refused, pod("refused", json!({"containers": [main]})).to_string()).unwrap();
    let complaint = cluster.refuse(&["create", "-f", &refused.to_string_lossy()]);
    assert!(complaint.contains("may not be set for containers with empty `spec.os.name`"), "{complaint}");

    let spec = json!({"os": {"name": "linux"}, "terminationGracePeriodSeconds": 60, "containers": [main]});
    cluster.apply(&kept(pod("signal", spec)).to_string());
    logs_end_with(&cluster, "signal", "ready");
    cluster.wait(&["pod", "signal"], |pod| first_status(pod)["stopSignal"] == "SIGUSR1");
    cluster.run(&["delete", "pod", "signal", "--wait=false"]);
    let ended = cluster.wait(&["pod", "signal"], |pod| !first_status(pod)["state"]["terminated"].is_null());
    let state = &first_status(&ended)["state"]["terminated"];
    assert_eq!((&state["exitCode"], &state["message"]), (&json!(3), &json!("usr1\n")), "{state:#}");
    let_go(&cluster, "signal");
}

/// Hooks tell a server in another pod, which writes down what it was asked for.
#[test]
fn hooks_run_before_the_end_and_after_the_start() {
    let (cluster, _archive) = cluster();
    let serve = "mkdir -p /www/cgi-bin; printf '#!/bin/sh\\necho \"hook $QUERY_STRING\" > /proc/1/fd/1\\n\
                 printf \"Content-Type: text/plain\\\\r\\\\n\\\\r\\\\nok\"\\n' > /www/cgi-bin/hook; \
                 chmod +x /www/cgi-bin/hook; exec httpd -f -p 8080 -h /www";
    cluster.apply(&pod("server", json!({"containers": [shell("main", serve, json!({}))]})).to_string());
    let server = cluster.wait(&["pod", "server"], |pod| first_status(pod)["ready"] == true);
    let address = server["status"]["podIP"].as_str().unwrap();
    let http =
        |what: &str| json!({"httpGet": {"host": address, "port": 8080, "path": format!("/cgi-bin/hook?{what}")}});
    let exec = |what: &str| json!({"exec": {"command": ["wget", "-qO-", format!("http://{address}:8080/cgi-bin/hook?{what}")]}});
    let hooks = [("http", http("http-start"), http("http-stop")), ("exec", exec("exec-start"), exec("exec-stop"))];
    for (name, start, stop) in &hooks {
        let lifecycle = json!({"lifecycle": {"postStart": start, "preStop": stop}});
        let main = shell("main", "sleep 100000", lifecycle);
        let spec = json!({"terminationGracePeriodSeconds": 30, "containers": [main]});
        cluster.apply(&pod(name, spec).to_string());
    }
    let told = |what: &str| {
        eventually(&format!("the server hears of {what}"), || {
            let log = cluster.run(&["logs", "server"]);
            if log.contains(&format!("hook {what}\n")) { Ok(()) } else { Err(log) }
        });
    };
    for (name, ..) in &hooks {
        cluster.run(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=120s"]);
        told(&format!("{name}-start"));
        cluster.run(&["delete", "pod", name, "--wait=false"]);
        told(&format!("{name}-stop"));
    }

    // A sleep holds the signal back; a hook that fails is told, and nothing more.
    let script = "trap 'cut -d. -f1 /proc/uptime > /dev/termination-log; exit 0' TERM; \
                  echo ready; while true; do sleep 0.1; done";
    let sleeps = shell("main", script, json!({"lifecycle": {"preStop": {"sleep": {"seconds": 3}}}}));
    let fails = shell("main", script, json!({"lifecycle": {"preStop": {"exec": {"command": ["false"]}}}}));
    for (name, main) in [("sleeps", sleeps), ("fails", fails)] {
        let spec = json!({"terminationGracePeriodSeconds": 30, "containers": [main]});
        cluster.apply(&kept(pod(name, spec)).to_string());
        logs_end_with(&cluster, name, "ready");
        let uptime = || -> u64 {
            let text = cluster.run(&["exec", "server", "--", "cut", "-d.", "-f1", "/proc/uptime"]);
            text.trim().parse().unwrap()
        };
        let asked = uptime();
        cluster.run(&["delete", "pod", name, "--wait=false"]);
        let ended = cluster.wait(&["pod", name], |pod| !first_status(pod)["state"]["terminated"].is_null());
        let state = &first_status(&ended)["state"]["terminated"];
        let signalled: u64 = state["message"].as_str().unwrap().trim().parse().unwrap();
        assert_eq!(state["exitCode"], 0);
        assert!(name == "fails" || signalled >= asked + 3, "asked at {asked}, signalled at {signalled}");
        let_go(&cluster, name);
    }
    eventually("the failed hook is told", || {
        let all = events(&cluster, "fails");
        let told = all.iter().any(|(reason, message)| reason == "FailedPreStopHook" && message == "PreStopHook failed");
        if told { Ok(()) } else { Err(format!("{all:?}")) }
    });
}

#[test]
fn restart_rules_and_policies_decide_what_follows_an_exit() {
    let (cluster, _archive) = cluster();
    let counting = |code: i32| format!("echo x >> /data/runs; [ $(wc -l < /data/runs) -ge 2 ] && exit 0; exit {code}");
    let data = json!({"volumeMounts": [{"name": "data", "mountPath": "/data"}]});
    let rule = json!({"restartPolicy": "Never",
        "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]});
    let cases = [
        ("onfailure", "OnFailure", json!({}), 1, "Succeeded", 1),
        ("never", "Never", json!({}), 1, "Failed", 0),
        ("rule", "Never", rule.clone(), 42, "Succeeded", 1),
        ("norule", "Never", rule, 41, "Failed", 0),
    ];
    for (name, policy, extra, code, ..) in &cases {
        let main = shell("main", &counting(*code), with(data.clone(), extra.clone()));
        let volumes = json!([{"name": "data", "emptyDir": {}}]);
        let spec = json!({"restartPolicy": policy, "containers": [main], "volumes": volumes});
        cluster.apply(&pod(name, spec).to_string());
    }
    for (name, _, _, _, phase, restarts) in cases {
        let pod =
            cluster.wait(&["pod", name], |pod| matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")));
        let status = first_status(&pod);
        assert_eq!((&pod["status"]["phase"], &status["restartCount"]), (&json!(phase), &json!(restarts)), "{name}");
    }
}
