//! The real kubectl's verbs against a running cluster: by tables of commands, with the newest kubectl and an older one,
//! and one by one where a table does not do.

#[path = "../common/mod.rs"]
mod common;
mod nodes;
mod objects;
mod script;
mod workloads;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;

use common::{BUSYBOX, cluster};
use testkit::eventually;

#[test]
fn kubectl_verbs_work() {
    let (cluster, _) = cluster();
    let image = format!("--image={BUSYBOX}");

    // Deployment life.
    cluster.run(&["create", "deployment", "web", &image, "--", "sh", "-c", "echo started; exec sleep 100000"]);
    cluster.run(&["rollout", "status", "deployment/web", "--timeout=120s"]);
    cluster.run(&["scale", "deployment/web", "--replicas=2"]);
    cluster.wait(&["deployment", "web"], |d| d["status"]["readyReplicas"] == 2);
    cluster.run(&["expose", "deployment/web", "--port=80"]);
    assert!(cluster.run(&["get", "service", "web"]).contains("ClusterIP"));
    assert!(cluster.run(&["get", "deployments"]).contains("2/2"));
    for output in ["wide", "yaml", "json", "name", "jsonpath={.metadata.name}", "custom-columns=N:.metadata.name"] {
        assert!(cluster.run(&["get", "deployment", "web", "-o", output]).contains("web"), "-o {output}");
    }
    assert!(cluster.run(&["describe", "deployment", "web"]).contains("NewReplicaSet"));
    let pods = cluster.run(&["get", "pods", "-l", "app=web", "-o", "name"]);
    let pod = pods.lines().next().unwrap();
    let described = cluster.run(&["describe", pod]);
    for expected in ["Successfully assigned default/", "Container started", "Service Account:  default", "QoS Class:"] {
        assert!(described.contains(expected), "describe lacks {expected:?}:\n{described}");
    }
    cluster.run(&["patch", "deployment", "web", "-p", r#"{"metadata":{"annotations":{"a":"b"}}}"#]);
    cluster.run(&["label", "deployment", "web", "x=y"]);
    assert!(cluster.run(&["get", "deployments", "-l", "x=y"]).contains("web"));

    // Inside pods.
    assert_eq!(cluster.run(&["exec", pod, "--", "sh", "-c", "cat; echo out; echo err >&2"]), "out\n");
    let failing = cluster.kubectl(&["exec", pod, "--", "sh", "-c", "exit 7"]).output().unwrap();
    assert_eq!(failing.status.code(), Some(7));
    let mut with_input = cluster
        .kubectl(&["exec", "-i", pod, "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    with_input.stdin.take().unwrap().write_all(b"from the client").unwrap();
    let output = with_input.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"from the client");
    eventually("logs", || {
        let log = cluster.run(&["logs", pod]);
        (log == "started\n").then_some(()).ok_or(log)
    });
    assert_eq!(cluster.run(&["logs", pod, "--tail=0"]), "");
    let file = cluster.directory.path().join("sent");
    std::fs::write(&file, "copied").unwrap();
    let name = pod.trim_start_matches("pod/");
    cluster.run(&["cp", &file.to_string_lossy(), &format!("{name}:/tmp/received")]);
    assert_eq!(cluster.run(&["exec", pod, "--", "cat", "/tmp/received"]), "copied");

    // Meta.
    assert!(cluster.run(&["explain", "deployment.spec.replicas"]).contains("<integer>"));
    let resources = cluster.run(&["api-resources"]);
    for expected in ["deployments", "endpointslices", "leases", "clusterroles"] {
        assert!(resources.contains(expected), "api-resources lacks {expected}");
    }
    assert_eq!(cluster.run(&["auth", "can-i", "create", "pods"]), "yes\n");
    assert!(cluster.refuse(&["auth", "can-i", "create", "pods", "--as=nobody"]).is_empty());
    assert!(cluster.run(&["version"]).contains("Server Version: v1.36"));
    assert!(cluster.run(&["top", "--help"]).contains("top"));

    // Endings.
    cluster.run(&["delete", "deployment", "web", "--wait"]);
    cluster.run(&["wait", "--for=delete", pod, "--timeout=120s"]);
    cluster.run(&["create", "namespace", "passing"]);
    cluster.run(&["create", "configmap", "c", "-n", "passing"]);
    cluster.run(&["delete", "namespace", "passing", "--timeout=120s"]);
}

/// Both kubectls at once, each in a namespace of its own.
fn both(run: fn(&testkit::Cluster, &str, &std::path::Path)) {
    let (cluster, _) = cluster();
    std::thread::scope(|scope| {
        for (name, kubectl) in [("new", testkit::kubectl()), ("old", testkit::kubectl_1_32())] {
            let cluster = &cluster;
            let thread = std::thread::Builder::new().name(name.into());
            thread.spawn_scoped(scope, move || run(cluster, name, &kubectl)).expect("start a thread");
        }
    });
}

#[test]
fn verbs_about_workloads() {
    both(workloads::run);
}

#[test]
fn verbs_about_objects() {
    both(objects::run);
}

#[test]
fn verbs_about_nodes() {
    let (cluster, _) = cluster();
    nodes::run(&cluster, "new", &testkit::kubectl());
    nodes::run(&cluster, "old", &testkit::kubectl_1_32());
}

#[test]
fn port_forward_carries_bytes() {
    let (cluster, _) = cluster();
    cluster.run(&[
        "run",
        "echo",
        &format!("--image={BUSYBOX}"),
        "--",
        "sh",
        "-c",
        "echo pong > /www/index.html; exec httpd -f -p 8080 -h /www",
    ]);
    cluster.run(&["wait", "--for=condition=Ready", "pod/echo", "--timeout=120s"]);
    let mut forward = cluster.kubectl(&["port-forward", "pod/echo", ":8080"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = Vec::new();
    let mut stdout = forward.stdout.take().unwrap();
    while !line.ends_with(b"\n") {
        let mut byte = [0];
        assert_eq!(stdout.read(&mut byte).unwrap(), 1, "port-forward ended: {}", String::from_utf8_lossy(&line));
        line.push(byte[0]);
    }
    let line = String::from_utf8(line).unwrap();
    let port: u16 = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().parse().unwrap();
    let answer = eventually("an answer through the forwarded port", || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).map_err(|e| e.to_string())?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").map_err(|e| e.to_string())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(|e| e.to_string())?;
        if answer.is_empty() { Err("nothing came back".into()) } else { Ok(answer) }
    });
    forward.kill().unwrap();
    forward.wait().unwrap();
    assert!(answer.ends_with("pong\n"), "{answer}");
}

#[test]
fn mistakes_are_explained_as_upstream_does() {
    let (cluster, _) = cluster();
    let pod = |spec: &str| format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: bad}}\nspec: {spec}\n");
    let refuse = |manifest: &str| {
        let file = cluster.directory.path().join("bad.yaml");
        std::fs::write(&file, manifest).unwrap();
        cluster.refuse(&["create", "-f", &file.to_string_lossy()])
    };
    for (manifest, expected) in [
        (pod("{containers: [{name: a}]}"), "spec.containers[0].image: Required value"),
        (
            pod("{containers: [{name: A, image: x}]}"),
            "spec.containers[0].name: Invalid value: \"A\": a lowercase RFC 1123 label",
        ),
        (pod("{containers: [{name: a, image: x, nonsense: 1}]}"), "unknown field \"spec.containers[0].nonsense\""),
    ] {
        let complaint = refuse(&manifest);
        assert!(complaint.contains(expected), "expected {expected:?} in {complaint}");
    }
    // With validation on, kubectl 1.36 would also look for a CRD of that kind, which come later.
    let unknown = cluster.directory.path().join("unknown.yaml");
    std::fs::write(&unknown, "apiVersion: v1\nkind: Nonsense\nmetadata: {name: a}\n").unwrap();
    let complaint = cluster.refuse(&["create", "--validate=false", "-f", &unknown.to_string_lossy()]);
    assert!(complaint.contains("no matches for kind \"Nonsense\" in version \"v1\""), "{complaint}");
    assert!(cluster.refuse(&["get", "pod", "absent"]).contains("pods \"absent\" not found"));
    cluster.run(&["create", "configmap", "twice"]);
    assert!(cluster.refuse(&["create", "configmap", "twice"]).contains("configmaps \"twice\" already exists"));
    let forbidden = cluster.refuse(&["get", "secrets", "--as=somebody"]);
    assert!(forbidden.contains("secrets is forbidden: User \"somebody\" cannot list resource \"secrets\" in API group \"\" in the namespace \"default\""), "{forbidden}");

    // What fails on the node says so in the pod.
    cluster.run(&["run", "missing", "--image=isopod.invalid/missing:1", "--image-pull-policy=Never"]);
    cluster.wait(&["pod", "missing"], |p| {
        p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "ErrImageNeverPull"
    });
    cluster.run(&["run", "crash", &format!("--image={BUSYBOX}"), "--", "sh", "-c", "echo broken; exit 3"]);
    cluster.wait(&["pod", "crash"], |p| {
        p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    });
    let crashed = cluster.get(&["pod", "crash"]);
    assert_eq!(crashed["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 3);
    assert_eq!(cluster.run(&["logs", "crash", "--previous"]), "broken\n");
    cluster.run(&[
        "run",
        "nocommand",
        &format!("--image={BUSYBOX}"),
        "--restart=Never",
        "--command",
        "--",
        "no-such-command",
    ]);
    cluster.wait(&["pod", "nocommand"], |p| {
        let message = p["status"]["containerStatuses"][0]["state"]["terminated"]["message"].as_str();
        p["status"]["phase"] == "Failed" && message.is_some_and(|m| m.contains("executable file not found in $PATH"))
    });
}
