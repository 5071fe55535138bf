//! What the binary's tests share: a cluster with busybox in it, and pods to run there.

// Each test crate uses its part.
#![allow(dead_code)]

use std::path::PathBuf;

use serde_json::{Value, json};
use testkit::Cluster;

pub const ISOPOD: &str = env!("CARGO_BIN_EXE_isopod");
pub const BUSYBOX: &str = "docker.io/library/busybox:test";

/// A started cluster that has [`BUSYBOX`], and the archive it came from.
pub fn cluster() -> (Cluster, PathBuf) {
    let cluster = Cluster::named(ISOPOD);
    let archive = testkit::busybox_archive(cluster.directory.path(), BUSYBOX);
    cluster.up(&[&archive]);
    (cluster, archive)
}

/// A container of busybox, with `extra` fields.
pub fn container(name: &str, extra: Value) -> Value {
    with(json!({"name": name, "image": BUSYBOX, "imagePullPolicy": "IfNotPresent"}), extra)
}

/// A container that runs a shell script.
pub fn shell(name: &str, script: &str, extra: Value) -> Value {
    container(name, with(json!({"command": ["sh", "-c", script]}), extra))
}

/// A pod that ends as fast as it can, with `extra` fields in its spec.
pub fn pod(name: &str, extra: Value) -> Value {
    let spec = with(json!({"terminationGracePeriodSeconds": 0}), extra);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
}

/// `object` with the fields of `extra` over its own.
pub fn with(mut object: Value, extra: Value) -> Value {
    if let (Value::Object(object), Value::Object(extra)) = (&mut object, extra) {
        object.extend(extra);
    }
    object
}

/// The status of a pod's first container.
pub fn first_status(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

/// Reason and message of an object's events, in the order in which they first happened.
pub fn events(cluster: &Cluster, name: &str) -> Vec<(String, String)> {
    let list = cluster.get(&["events", "--field-selector", &format!("involvedObject.name={name}")]);
    let mut items = list["items"].as_array().cloned().unwrap_or_default();
    items.sort_by_key(|event| event["firstTimestamp"].as_str().unwrap_or_default().to_owned());
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    items.iter().map(|event| (text(&event["reason"]), text(&event["message"]))).collect()
}

/// A variable with the value of a field of the pod.
pub fn field(name: &str, path: &str) -> Value {
    json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}})
}

/// Runs a pod to its end, which must be a success, and returns its log.
pub fn output(cluster: &Cluster, namespace: &str, name: &str, spec: Value) -> String {
    let mut pod = pod(name, with(json!({"restartPolicy": "Never"}), spec));
    pod["metadata"]["namespace"] = namespace.into();
    cluster.apply(&pod.to_string());
    let ended = cluster.wait(&["-n", namespace, "pod", name], |pod| {
        matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
    });
    let log = cluster.run(&["-n", namespace, "logs", name]);
    assert_eq!(ended["status"]["phase"], "Succeeded", "{log}{:#}", ended["status"]);
    log
}

/// An object's time in seconds since 1970.
pub fn seconds(time: &Value) -> i64 {
    let output = std::process::Command::new("date").args(["+%s", "-d", time.as_str().unwrap()]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}
