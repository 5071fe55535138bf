//! Probes of real containers: what they ask, and what follows from the answers.

mod common;

use common::{cluster, events, first_status, pod, seconds, shell, with};
use serde_json::{Value, json};
use testkit::eventually;

fn probe(handler: Value, extra: Value) -> Value {
    with(with(json!({"periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 10}), handler), extra)
}

fn exec(script: &str) -> Value {
    json!({"exec": {"command": ["sh", "-c", script]}})
}

#[test]
fn unhealthy_containers_restart_and_healthy_ones_do_not() {
    let (cluster, _archive) = cluster();
    let serve = "mkdir /site; echo ok > /site/healthz; httpd -p 8080 -h /site; touch /ready; ";
    // Those named `bad-` fail after a while; the file tells that they were healthy before.
    let spoil = "sleep 3; rm -rf /site/healthz /ready; sleep 100000";
    let hang = "sleep 100000";
    let http = json!({"httpGet": {"path": "/healthz", "port": "web"}});
    let tcp = json!({"tcpSocket": {"port": 8080}});
    let delayed = json!({"initialDelaySeconds": 2, "failureThreshold": 2});
    let cases = [
        ("good-http", hang, http.clone(), json!({})),
        ("good-tcp", hang, tcp, json!({})),
        ("good-exec", hang, exec("cat /ready"), json!({})),
        ("bad-http", spoil, http, json!({})),
        ("bad-exec", spoil, exec("cat /ready"), json!({})),
    ];
    for (name, then, handler, extra) in &cases {
        let extra = with(delayed.clone(), extra.clone());
        let main = shell(
            "main",
            &format!("{serve}{then}"),
            json!({"livenessProbe": probe(handler.clone(), extra), "ports": [{"name": "web", "containerPort": 8080}]}),
        );
        cluster.apply(&pod(name, json!({"containers": [main]})).to_string());
    }
    for (name, message) in [
        ("bad-http", "Liveness probe failed: HTTP probe failed with statuscode: 404"),
        ("bad-exec", "Liveness probe failed: cat: can't open '/ready': No such file or directory"),
    ] {
        // More than once: the count goes on.
        cluster.wait(&["pod", name], |pod| first_status(pod)["restartCount"].as_i64() >= Some(2));
        eventually("the failure is told", || {
            let all = events(&cluster, name);
            let told = all.iter().any(|(reason, text)| reason == "Unhealthy" && text.trim_end() == message);
            let killed = "Container main failed liveness probe, will be restarted";
            let killed = all.iter().any(|(reason, text)| reason == "Killing" && text == killed);
            if told && killed { Ok(()) } else { Err(format!("{all:?}")) }
        });
    }
    for name in ["good-http", "good-tcp", "good-exec"] {
        let pod = cluster.get(&["pod", name]);
        assert_eq!((&first_status(&pod)["restartCount"], &first_status(&pod)["ready"]), (&json!(0), &json!(true)));
    }
}

#[test]
fn readiness_and_startup_hold_back_what_they_should() {
    let (cluster, _archive) = cluster();
    // Ready after the file is there; not before the initial delay; never if the probe fails.
    let main = |readiness: Value| shell("main", "sleep 100000", json!({"readinessProbe": readiness}));
    let delayed = main(probe(exec("true"), json!({"initialDelaySeconds": 5})));
    let never = main(probe(exec("false"), json!({})));
    cluster.apply(&pod("delayed", json!({"containers": [delayed]})).to_string());
    cluster.apply(&pod("never", json!({"containers": [never]})).to_string());

    // A startup probe that passes after some failures; until then liveness, which fails, is not asked.
    let script = "sleep 3; touch /started; sleep 100000";
    let startup = probe(exec("cat /started"), json!({"failureThreshold": 100}));
    let liveness = probe(exec("cat /started"), json!({}));
    let slow = shell("main", script, json!({"startupProbe": startup, "livenessProbe": liveness}));
    cluster.apply(&pod("slow", json!({"containers": [slow]})).to_string());

    // A probe's own grace period, for a process that does not end by itself.
    let stubborn = shell(
        "main",
        "trap '' TERM; while true; do sleep 1; done",
        json!({"livenessProbe": probe(exec("false"), json!({"terminationGracePeriodSeconds": 3}))}),
    );
    let spec = json!({"terminationGracePeriodSeconds": 3600, "containers": [stubborn]});
    cluster.apply(&pod("stubborn", spec).to_string());

    let ready = cluster.wait(&["pod", "delayed"], |pod| first_status(pod)["ready"] == true);
    let conditions = ready["status"]["conditions"].as_array().unwrap();
    let since = &conditions.iter().find(|condition| condition["type"] == "Ready").unwrap()["lastTransitionTime"];
    let started = &first_status(&ready)["state"]["running"]["startedAt"];
    assert!(seconds(since) - seconds(started) >= 5, "ready {since} after a start {started}");

    let slow = cluster.wait(&["pod", "slow"], |pod| first_status(pod)["started"] == true);
    assert_eq!(first_status(&slow)["restartCount"], 0);

    let stubborn = cluster.wait(&["pod", "stubborn"], |pod| first_status(pod)["restartCount"] == 1);
    assert_eq!(first_status(&stubborn)["lastState"]["terminated"]["exitCode"], 137);
    cluster.run(&["delete", "pod", "stubborn", "--grace-period=0", "--force"]);

    let never = cluster.get(&["pod", "never"]);
    assert_eq!((&first_status(&never)["ready"], &first_status(&never)["restartCount"]), (&json!(false), &json!(0)));
    assert_eq!(never["status"]["phase"], "Running");
}
