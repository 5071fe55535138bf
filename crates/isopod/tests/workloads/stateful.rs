//! StatefulSets.

use std::path::PathBuf;
use std::process::{Child, Stdio};

use serde_json::Value;
use testkit::{eventually, name, uid};

use crate::{Scene, is_ready, names, play};

#[test]
fn stateful_sets() {
    play(&[
        ("ordered", scale_in_order),
        ("burst", scale_in_bursts),
        ("rolling", roll_and_roll_back),
        ("canary", update_in_phases),
        ("failed", recreate_failed_pods),
        ("api", operations),
    ]);
}

/// A set of pods that are ready unless they have a file /tmp/broken.
fn set(replicas: u32, more: &str) -> String {
    r#"
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: web, labels: {app: web}}
spec:
  replicas: REPLICAS
  serviceName: web
  selector: {matchLabels: {app: web}}
  MORE
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: main, IMAGE, command: [sleep, "100000"],
         readinessProbe: {exec: {command: [sh, -c, "! test -e /tmp/broken"]}, periodSeconds: 1, failureThreshold: 1}}
"#
    .replace("REPLICAS", &replicas.to_string())
    .replace("MORE", more)
}

fn all_ready(count: i64) -> impl Fn(&Value) -> bool {
    move |set| {
        let status = &set["status"];
        let caught_up = status["observedGeneration"] == set["metadata"]["generation"];
        caught_up && status["replicas"] == count && status["availableReplicas"] == count
    }
}

fn break_pods(scene: &Scene, pods: &[&str]) {
    pods.iter().for_each(|pod| drop(scene.run(&["exec", pod, "--", "touch", "/tmp/broken"])));
}

fn mend_pods(scene: &Scene, pods: &[&str]) {
    pods.iter().for_each(|pod| drop(scene.run(&["exec", pod, "--", "rm", "/tmp/broken"])));
}

fn revision_of(pod: &Value) -> &str {
    pod["metadata"]["labels"]["controller-revision-hash"].as_str().expect("a revision")
}

/// Notes in which order pods come and go.
struct Watch {
    child: Child,
    file: PathBuf,
}

impl Watch {
    fn start(scene: &Scene) -> Watch {
        let file = scene.file("events", "");
        let template = r#"jsonpath={.type} {.object.metadata.name}{"\n"}"#;
        let arguments = ["get", "pods", "-l", "app=web", "--watch", "--output-watch-events", "-o", template];
        let out = std::fs::File::create(&file).expect("open the file");
        let child = scene.cluster.kubectl(&scene.arguments(&arguments)).stdout(out).stderr(Stdio::null()).spawn();
        Watch { child: child.expect("start kubectl"), file }
    }

    /// Waits until the events of a type have told of these pods, in this order.
    fn expect(&self, kind: &str, pods: &[&str]) {
        eventually(&format!("{kind} of {pods:?}"), || {
            let text = std::fs::read_to_string(&self.file).expect("read the events");
            let seen: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix(kind)?.strip_prefix(' ')).collect();
            if seen == pods { Ok(()) } else { Err(format!("{seen:?} of {text}")) }
        });
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Conformance: scaling happens in order and halts while a pod is unhealthy; the scale subresource works.
fn scale_in_order(scene: &Scene) {
    let watch = Watch::start(scene);
    scene.apply(&set(1, "podManagementPolicy: OrderedReady"));
    scene.wait("sts/web", all_ready(1));
    assert_eq!(scene.event("web", "SuccessfulCreate"), "create Pod web-0 in StatefulSet web successful");

    let raw = format!("/apis/apps/v1/namespaces/{}/statefulsets/web/scale", scene.namespace);
    let scale: Value = serde_json::from_str(&scene.run(&["get", "--raw", &raw])).unwrap();
    assert_eq!((&scale["spec"]["replicas"], &scale["status"]["replicas"]), (&1.into(), &1.into()));
    assert_eq!(scale["status"]["selector"], "app=web");

    break_pods(scene, &["web-0"]);
    scene.wait("sts/web", |set| set["status"]["readyReplicas"].is_null());
    scene.run(&["patch", "sts/web", "--subresource=scale", "--type=merge", "-p", r#"{"spec":{"replicas":3}}"#]);
    let waiting = scene.observed("sts/web");
    assert_eq!((&waiting["spec"]["replicas"], &waiting["status"]["replicas"]), (&3.into(), &1.into()));
    assert_eq!(names(&scene.pods("web")), ["web-0"]);
    mend_pods(scene, &["web-0"]);
    scene.wait("sts/web", all_ready(3));
    watch.expect("ADDED", &["web-0", "web-1", "web-2"]);

    // Who they are: labels, host name, and a name that others resolve.
    let pods = scene.pods("web");
    for (index, pod) in pods.iter().enumerate() {
        let labels = &pod["metadata"]["labels"];
        assert_eq!(labels["statefulset.kubernetes.io/pod-name"], name(pod));
        assert_eq!(labels["apps.kubernetes.io/pod-index"], index.to_string());
        assert_eq!((&pod["spec"]["hostname"], &pod["spec"]["subdomain"]), (&name(pod).into(), &"web".into()));
    }
    assert_eq!(scene.run(&["exec", "web-2", "--", "hostname"]), "web-2\n");
    let full = format!("web-1.web.{}.svc.cluster.local", scene.namespace);
    let address = pods[1]["status"]["podIP"].as_str().unwrap();
    eventually(&format!("{full} resolves to {address}"), || {
        let answer = scene.run(&["exec", "web-0", "--", "sh", "-c", &format!("nslookup {full} 2>&1; true")]);
        if answer.lines().any(|line| line.ends_with(address)) { Ok(()) } else { Err(answer) }
    });

    break_pods(scene, &["web-0", "web-1", "web-2"]);
    scene.wait("sts/web", |set| set["status"]["readyReplicas"].is_null());
    scene.run(&["scale", "sts/web", "--replicas=0"]);
    assert_eq!(scene.observed("sts/web")["status"]["replicas"], 3, "unhealthy pods halt scaling down");
    watch.expect("DELETED", &[]);
    // The last one that is unhealthy may go as it is.
    mend_pods(scene, &["web-0", "web-1"]);
    scene.wait("sts/web", |set| set["status"]["replicas"] == 0);
    watch.expect("DELETED", &["web-2", "web-1", "web-0"]);
    assert!(scene.event("web", "SuccessfulDelete").starts_with("delete Pod web-"));
}

/// Conformance: with Parallel, scaling runs to completion even with unhealthy pods. Ordinals start where they should.
fn scale_in_bursts(scene: &Scene) {
    scene.apply(&set(1, "podManagementPolicy: Parallel\n  ordinals: {start: 5}"));
    scene.wait("sts/web", all_ready(1));
    break_pods(scene, &["web-5"]);
    scene.wait("sts/web", |set| set["status"]["readyReplicas"].is_null());
    scene.run(&["scale", "sts/web", "--replicas=3"]);
    let grown = scene.wait("sts/web", |set| set["status"]["readyReplicas"] == 2);
    assert_eq!(grown["status"]["replicas"], 3);
    assert_eq!(names(&scene.pods("web")), ["web-5", "web-6", "web-7"]);
    break_pods(scene, &["web-6", "web-7"]);
    scene.wait("sts/web", |set| set["status"]["readyReplicas"].is_null());
    // A broken old pod is replaced, which OrderedReady would leave to its user.
    scene.patch("sts/web", r#"{"spec":{"template":{"metadata":{"annotations":{"try":"2"}}}}}"#);
    scene.run(&["rollout", "status", "sts/web", "--timeout=150s"]);
    scene.run(&["scale", "sts/web", "--replicas=0"]);
    scene.wait("sts/web", |set| set["status"]["replicas"] == 0);
}

/// Conformance: rolling updates and roll backs of template modifications, from the highest ordinal down.
fn roll_and_roll_back(scene: &Scene) {
    scene.apply(&set(3, "minReadySeconds: 1\n  revisionHistoryLimit: 1"));
    let first = scene.wait("sts/web", all_ready(3));
    let revision = |set: &Value, which: &str| set["status"][which].as_str().unwrap().to_owned();
    let original = revision(&first, "currentRevision");
    assert_eq!(original, revision(&first, "updateRevision"));
    assert!(scene.pods("web").iter().all(|pod| revision_of(pod) == original));

    // A broken pod holds up the update, and is itself left alone until it is well again.
    break_pods(scene, &["web-1"]);
    scene.wait("sts/web", |set| set["status"]["readyReplicas"] == 2);
    let broken = scene.pods("web")[1].clone();
    let watch = Watch::start(scene);
    scene.patch("sts/web", r#"{"spec":{"template":{"metadata":{"annotations":{"version":"2"}}}}}"#);
    let updating = scene.observed("sts/web");
    assert_eq!(revision(&updating, "currentRevision"), original);
    let second = revision(&updating, "updateRevision");
    assert_ne!(second, original);
    watch.expect("DELETED", &[]);
    assert_eq!(uid(&scene.get("pod/web-1")), uid(&broken));
    mend_pods(scene, &["web-1"]);
    scene.wait("sts/web", |set| set["status"]["currentRevision"] == second.as_str());
    scene.run(&["rollout", "status", "sts/web", "--timeout=150s"]);
    watch.expect("DELETED", &["web-2", "web-1", "web-0"]);
    assert!(scene.pods("web").iter().all(|pod| revision_of(pod) == second));

    // Back: the earlier revision is taken up again under a new number.
    assert_eq!(numbers(scene), [1, 2]);
    assert!(scene.run(&["rollout", "history", "sts/web"]).contains('2'));
    scene.run(&["rollout", "undo", "sts/web"]);
    scene.wait("sts/web", |set| set["status"]["currentRevision"] == original.as_str());
    assert_eq!(numbers(scene), [2, 3]);
    assert!(scene.pods("web").iter().all(|pod| revision_of(pod) == original));

    // A revision that cannot start: mending the template is not enough, the broken pod has to be deleted.
    let image = |image: &str| {
        format!(r#"[{{"op":"replace","path":"/spec/template/spec/containers/0/image","value":"{image}"}}]"#)
    };
    scene.run(&["patch", "sts/web", "--type=json", "-p", &image("isopod.invalid/missing:1")]);
    scene.wait("pod/web-2", |pod| !is_ready(pod) && revision_of(pod) != original);
    let stuck =
        scene.wait("sts/web", |set| set["status"]["readyReplicas"] == 2 && set["status"]["updatedReplicas"] == 1);
    assert_eq!(revision(&stuck, "currentRevision"), original);
    scene.run(&["rollout", "undo", "sts/web"]);
    let mended = scene.observed("sts/web");
    assert_eq!(revision(&mended, "updateRevision"), original);
    assert_ne!(revision_of(&scene.get("pod/web-2")), original);
    scene.run(&["delete", "pod", "web-2"]);
    scene.wait("sts/web", |set| all_ready(3)(set) && set["status"]["updatedReplicas"] == 3);
    // Of what is not in use, one is kept.
    eventually("old revisions go", || {
        let numbers = numbers(scene);
        if numbers.len() == 2 { Ok(()) } else { Err(format!("{numbers:?}")) }
    });
}

/// The numbers of the revisions, in order.
fn numbers(scene: &Scene) -> Vec<i64> {
    let list = scene.cluster.get(&["-n", scene.namespace, "controllerrevisions", "-l", "app=web"]);
    let mut numbers: Vec<i64> =
        list["items"].as_array().unwrap().iter().map(|item| item["revision"].as_i64().unwrap()).collect();
    numbers.sort_unstable();
    numbers
}

/// Conformance: canary and phased updates by partition; besides, OnDelete and maxUnavailable.
fn update_in_phases(scene: &Scene) {
    scene.apply(&set(3, "updateStrategy: {type: RollingUpdate, rollingUpdate: {partition: 3}}"));
    let before = scene.wait("sts/web", all_ready(3));
    let original = before["status"]["currentRevision"].as_str().unwrap().to_owned();
    scene.patch("sts/web", r#"{"spec":{"template":{"metadata":{"annotations":{"version":"2"}}}}}"#);
    let set = scene.observed("sts/web");
    let updated = set["status"]["updateRevision"].as_str().unwrap().to_owned();
    assert_ne!(updated, original);
    let are = |expected: [bool; 3]| {
        let (original, updated) = (original.clone(), updated.clone());
        move |pods: &[Value]| {
            let as_expected = |(pod, new): (&Value, bool)| {
                is_ready(pod) && revision_of(pod) == if new { updated.as_str() } else { original.as_str() }
            };
            pods.len() == 3 && pods.iter().zip(expected).all(as_expected)
        }
    };
    assert!(are([false; 3])(&scene.pods("web")), "the partition is above all ordinals");
    let partition = |from: i32| {
        scene.patch(
            "sts/web",
            &format!(r#"{{"spec":{{"updateStrategy":{{"rollingUpdate":{{"partition":{from}}}}}}}}}"#),
        );
    };
    partition(2);
    scene.wait_pods("web", are([false, false, true]));
    let uids: Vec<String> = scene.pods("web").iter().map(|pod| uid(pod).to_owned()).collect();
    scene.run(&["delete", "pod", "web-0", "web-2"]);
    let restored = scene.wait_pods("web", are([false, false, true]));
    assert!(uid(&restored[0]) != uids[0] && uid(&restored[1]) == uids[1] && uid(&restored[2]) != uids[2]);
    partition(1);
    scene.wait_pods("web", are([false, true, true]));
    partition(0);
    scene.wait_pods("web", are([true; 3]));
    scene.wait("sts/web", |set| set["status"]["currentRevision"] == updated.as_str());

    // With OnDelete nothing happens by itself.
    scene.patch("sts/web", r#"{"spec":{"updateStrategy":{"type":"OnDelete","rollingUpdate":null}}}"#);
    scene.patch("sts/web", r#"{"spec":{"template":{"metadata":{"annotations":{"version":"3"}}}}}"#);
    let set = scene.observed("sts/web");
    let third = set["status"]["updateRevision"].as_str().unwrap().to_owned();
    assert!(are([true; 3])(&scene.pods("web")));
    scene.run(&["delete", "pod", "web-1"]);
    scene.wait_pods("web", |pods| {
        let old = |pod: &Value| revision_of(pod) == updated;
        pods.len() == 3 && old(&pods[0]) && old(&pods[2]) && is_ready(&pods[1]) && revision_of(&pods[1]) == third
    });

    // Two may be missing: both old ones go at once.
    scene.patch(
        "sts/web",
        r#"{"spec":{"updateStrategy":{"type":"RollingUpdate","rollingUpdate":{"maxUnavailable":2}}}}"#,
    );
    scene.wait("sts/web", |set| set["status"]["currentRevision"] == third.as_str() && all_ready(3)(set));
}

/// Conformance: pods that a node rejects are recreated.
fn recreate_failed_pods(scene: &Scene) {
    let node = scene.cluster.run(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
    let port = "ports: [{containerPort: 21017, hostPort: 21017}]";
    scene.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: first}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers: [{{name: main, IMAGE, command: [sleep, "100000"], {port}}}]
"#
    ));
    scene.wait("pod/first", is_ready);
    let conflicting = set(1, "").replace("readinessProbe:", &format!("{port}, readinessProbe:"));
    scene.apply(
        &conflicting.replace("      terminationGrace", &format!("      nodeName: {node}\n      terminationGrace")),
    );
    let rejected = scene.wait("pod/web-0", |pod| !uid(pod).is_empty());
    scene.wait("pod/web-0", |pod| uid(pod) != uid(&rejected));
    scene.run(&["delete", "pod", "first"]);
    let running = scene.wait("pod/web-0", is_ready);
    assert_ne!(uid(&running), uid(&rejected));
    scene.wait("sts/web", all_ready(1));
}

/// Conformance: list, patch, delete a collection; the status endpoints. Besides, what an update may not change.
fn operations(scene: &Scene) {
    scene.apply(&set(1, ""));
    scene.wait("sts/web", all_ready(1));
    scene.patch_status(
        "sts/web",
        r#"{"metadata":{"annotations":{"patched":"yes"}},"status":{"conditions":[{"type":"Seen","status":"True","reason":"Test"}]}}"#,
    );
    let seen = scene.wait("sts/web", |set| crate::has_condition(set, "Seen"));
    assert_eq!(seen["metadata"]["annotations"]["patched"], "yes");
    let raw = format!("/apis/apps/v1/namespaces/{}/statefulsets/web/status", scene.namespace);
    assert!(scene.run(&["get", "--raw", &raw]).contains(r#""type":"Seen""#));
    // The controller's own writes keep it.
    scene.patch("sts/web", r#"{"metadata":{"labels":{"test":"patched"}},"spec":{"replicas":2}}"#);
    assert!(crate::has_condition(&scene.wait("sts/web", all_ready(2)), "Seen"));
    let complaint = scene.refuse(&["patch", "sts/web", "--type=merge", "-p", r#"{"spec":{"serviceName":"other"}}"#]);
    assert!(
        complaint.contains("spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"),
        "{complaint}"
    );
    assert!(scene.cluster.run(&["get", "sts", "-A", "-l", "test=patched", "-o", "name"]).contains("web"));
    scene.run(&["delete", "sts", "-l", "test=patched"]);
    scene.wait_pods("web", <[Value]>::is_empty);
}
