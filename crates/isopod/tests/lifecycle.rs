//! `up`, `down`, Ctrl-C, kill -9 and a second start.

mod common;

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use common::{BUSYBOX, ISOPOD, cluster};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::{Cluster, Traces, eventually};

const SLEEPER: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: sleeper}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: sleeper, image: BUSYBOX, imagePullPolicy: IfNotPresent, command: [sleep, "100000"]}]
"#;

fn run_sleeper(cluster: &Cluster) {
    cluster.apply(&SLEEPER.replace("BUSYBOX", BUSYBOX));
    cluster.run(&["wait", "--for=condition=Ready", "pod/sleeper", "--timeout=120s"]);
}

/// The pids that outlive the main process: shims, pause and containers.
fn pod_processes(cluster: &Cluster) -> Vec<String> {
    let all = Traces::of(&cluster.name).processes.into_iter();
    all.filter(|p| p.contains("pause") || p.contains("sleep 100000")).collect()
}

#[test]
fn pods_and_objects_survive_kill_9() {
    let (cluster, archive) = cluster();
    run_sleeper(&cluster);
    cluster.run(&["create", "configmap", "kept", "--from-literal=a=b"]);
    let before = pod_processes(&cluster);
    assert!(before.len() >= 2, "pause and sleep should run: {before:?}");
    let pod = cluster.get(&["pod", "sleeper"]);

    cluster.crash();
    cluster.up(&[&archive]);

    assert_eq!(cluster.get(&["configmap", "kept"])["data"]["a"], "b");
    cluster.run(&["wait", "--for=condition=Ready", "node", "--all", "--timeout=120s"]);
    assert_eq!(pod_processes(&cluster), before);
    let after = cluster.get(&["pod", "sleeper"]);
    assert_eq!(after["metadata"]["uid"], pod["metadata"]["uid"]);
    assert_eq!(
        after["status"]["containerStatuses"][0]["containerID"],
        pod["status"]["containerStatuses"][0]["containerID"]
    );
    assert_eq!(after["status"]["containerStatuses"][0]["restartCount"], 0);
    // The found pod is managed on: exec works, and so does deletion.
    assert_eq!(cluster.run(&["exec", "sleeper", "--", "echo", "hello"]), "hello\n");
    cluster.run(&["delete", "pod", "sleeper"]);
    eventually("the processes end", || {
        let left = pod_processes(&cluster);
        left.is_empty().then_some(()).ok_or(format!("{left:?} are left"))
    });
}

#[test]
fn down_leaves_nothing_after_a_crash() {
    let cluster = Cluster::named(ISOPOD);
    let before = Traces::of(&cluster.name);
    let archive = testkit::busybox_archive(cluster.directory.path(), BUSYBOX);
    cluster.up(&[&archive]);
    run_sleeper(&cluster);
    assert_ne!(Traces::of(&cluster.name), before);
    kill(Pid::from_raw(cluster.pid()), Signal::SIGKILL).unwrap();
    cluster.down();
    let after = Traces::of(&cluster.name);
    assert_eq!(
        (after.processes, after.mounts, after.cgroups, after.directories),
        (before.processes, before.mounts, before.cgroups, before.directories)
    );
    // Removing what is not there is no error.
    cluster.down();
}

#[test]
fn ctrl_c_leaves_nothing() {
    let cluster = Cluster::named(ISOPOD);
    let before = Traces::of(&cluster.name);
    let archive = testkit::busybox_archive(cluster.directory.path(), BUSYBOX);
    let mut up = cluster
        .isopod(&[
            "up",
            "--kubeconfig",
            &cluster.kubeconfig.to_string_lossy(),
            "--image-archive",
            &archive.to_string_lossy(),
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // A reader that has seen enough, as `head -1`, stops nothing.
    let mut line = String::new();
    BufReader::new(up.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, format!("starting cluster {:?}\n", cluster.name));
    eventually("the cluster is up", || {
        cluster.kubectl(&["get", "nodes"]).output().unwrap().status.success().then_some(()).ok_or("not yet".into())
    });
    eventually("the service account exists", || {
        cluster
            .kubectl(&["get", "serviceaccount", "default"])
            .output()
            .unwrap()
            .status
            .success()
            .then_some(())
            .ok_or("not yet".into())
    });
    run_sleeper(&cluster);

    // A second start of the same name is refused in one sentence.
    let second = cluster.isopod(&["up"]).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let complaint = String::from_utf8(second.stderr).unwrap();
    assert!(complaint.contains("is already running") && complaint.lines().count() == 1, "{complaint}");

    kill(Pid::from_raw(up.id() as i32), Signal::SIGINT).unwrap();
    assert!(up.wait().unwrap().success());
    let after = Traces::of(&cluster.name);
    assert_eq!(
        (after.processes, after.mounts, after.cgroups, after.directories),
        (before.processes, before.mounts, before.cgroups, before.directories)
    );
}

#[test]
fn a_start_that_is_refused_says_why_and_leaves_nothing() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let cluster = Cluster::named(ISOPOD);
    let before = Traces::of(&cluster.name);
    let refused = |command: &mut std::process::Command, expected: &str| {
        let output = command.output().unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{complaint}");
        assert!(complaint.contains(expected) && complaint.lines().count() == 1, "{complaint}");
        assert_eq!(Traces::of(&cluster.name), before);
    };
    let complaint = format!("listen on 127.0.0.1:{port} for the API: Address already in use");
    refused(&mut cluster.isopod(&["up", &format!("--api-port={port}")]), &complaint);
    refused(&mut cluster.isopod(&["up", "--image-archive", "/nonesuch.tar"]), "open image archive /nonesuch.tar");
    refused(&mut cluster.isopod(&["up", "--cluster-dns", "1.2.3.4"]), "is not in --service-cidr");
    for command in ["up", "demo"] {
        refused(cluster.isopod(&[command]).uid(65534).gid(65534), "a cluster needs root");
    }
    refused(cluster.isopod(&["down"]).uid(65534).gid(65534), "removing a cluster needs root");
}

#[test]
fn wrong_flags_print_usage_and_exit_with_2() {
    for arguments in [&["up", "--nonsense"][..], &["nonsense"], &["up", "--api-port", "many"], &[]] {
        let output = std::process::Command::new(ISOPOD).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(complaint.contains("Usage") || complaint.contains("--help"), "{arguments:?}: {complaint}");
    }
    let output = std::process::Command::new(ISOPOD).args(["up", "--name", "Not_A_Name"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cluster name \"Not_A_Name\" must be"));
}
