//! DaemonSets. The cluster has one node that runs pods; further nodes are names only, to which a daemon pod is made and
//! stays pending.

use serde_json::Value;
use testkit::{eventually, name, uid};

use crate::{Scene, has_condition, is_ready, play};

#[test]
fn daemon_sets() {
    play(&[
        ("simple", run_and_revive),
        ("selected", follow_labels_and_taints),
        ("rolled", roll_and_roll_back),
        ("surging", surge_and_delete),
        ("dapi", operations),
    ]);
}

/// A set on the nodes that `place` (a piece of the pod's spec) chooses.
fn set(place: &str, more: &str) -> String {
    r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent, labels: {app: agent}}
spec:
  selector: {matchLabels: {app: agent}}
  MORE
  template:
    metadata: {labels: {app: agent}}
    spec:
      PLACE
      terminationGracePeriodSeconds: 0
      containers: [{name: main, IMAGE, command: [sleep, "100000"]}]
"#
    .replace("PLACE", place)
    .replace("MORE", more)
}

/// A node that is a name only is never ready.
const TOLERANT: &str = "tolerations: [{key: node.kubernetes.io/not-ready, operator: Exists}, {key: node.kubernetes.io/unreachable, operator: Exists}]";
/// The real node: others do not say what they run.
const REAL: &str = "nodeSelector: {kubernetes.io/os: linux}";

fn real_node(scene: &Scene) -> String {
    scene.cluster.run(&["get", "nodes", "-l", "kubernetes.io/os=linux", "-o", "jsonpath={.items[0].metadata.name}"])
}

/// Adds a node that is a name only.
fn ghost(scene: &Scene, label: &str) -> String {
    let node = format!("ghost-{}", scene.namespace);
    scene.apply(&format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {node}, labels: {{{label}}}}}\n"));
    node
}

/// Scheduled nodes that have a pod, of those that should, and those that have an available one.
fn runs_on(desired: i64, available: i64) -> impl Fn(&Value) -> bool {
    move |set| {
        let status = &set["status"];
        status["observedGeneration"] == set["metadata"]["generation"]
            && status["desiredNumberScheduled"] == desired
            && status["currentNumberScheduled"] == desired
            && status["numberAvailable"].as_i64().unwrap_or(0) == available
    }
}

fn hash_of(pod: &Value) -> &str {
    pod["metadata"]["labels"]["controller-revision-hash"].as_str().expect("a revision")
}

/// Number and hash of the revisions, in order.
fn revisions(scene: &Scene) -> Vec<(i64, String)> {
    let list = scene.cluster.get(&["-n", scene.namespace, "controllerrevisions", "-l", "app=agent"]);
    let revision = |item: &Value| {
        let hash = item["metadata"]["labels"]["controller-revision-hash"].as_str().unwrap();
        (item["revision"].as_i64().unwrap(), hash.to_owned())
    };
    let mut revisions: Vec<_> = list["items"].as_array().unwrap().iter().map(revision).collect();
    revisions.sort();
    revisions
}

/// Conformance: a pod on every node; a deleted one and a failed one are replaced.
fn run_and_revive(scene: &Scene) {
    scene.apply(&set(REAL, ""));
    scene.wait("ds/agent", runs_on(1, 1));
    let first = scene.pods("agent").remove(0);
    assert_eq!(first["spec"]["nodeName"], real_node(scene).as_str());
    assert_eq!(first["metadata"]["ownerReferences"][0]["kind"], "DaemonSet");
    let tolerated: Vec<&str> =
        first["spec"]["tolerations"].as_array().unwrap().iter().filter_map(|one| one["key"].as_str()).collect();
    for condition in ["not-ready", "unreachable", "disk-pressure", "memory-pressure", "pid-pressure", "unschedulable"] {
        assert!(tolerated.contains(&format!("node.kubernetes.io/{condition}").as_str()), "{condition}: {tolerated:?}");
    }
    assert!(scene.event("agent", "SuccessfulCreate").starts_with("Created pod: agent-"));

    scene.run(&["delete", "pod", name(&first)]);
    let second = scene.wait_pods("agent", |pods| pods.len() == 1 && uid(&pods[0]) != uid(&first) && is_ready(&pods[0]));
    scene.patch_status(&format!("pod/{}", name(&second[0])), r#"{"status":{"phase":"Failed"}}"#);
    scene.wait_pods("agent", |pods| pods.len() == 1 && uid(&pods[0]) != uid(&second[0]) && is_ready(&pods[0]));
    let told = scene.event("agent", "FailedDaemonPod");
    let expected = format!("Found failed daemon pod {}/{} on node", scene.namespace, name(&second[0]));
    assert!(told.starts_with(&expected) && told.ends_with("will try to kill it"), "{told}");
    // A cordoned node gets daemons all the same.
    let (node, third) = (real_node(scene), scene.pods("agent").remove(0));
    scene.cluster.run(&["cordon", &node]);
    scene.run(&["delete", "pod", name(&third)]);
    scene.wait_pods("agent", |pods| pods.len() == 1 && uid(&pods[0]) != uid(&third) && is_ready(&pods[0]));
    scene.cluster.run(&["uncordon", &node]);
    scene.wait("ds/agent", |set| runs_on(1, 1)(set) && set["status"]["numberMisscheduled"] == 0);
}

/// Conformance: daemons follow the labels of nodes; besides, affinity, taints, and nodes that come and go.
fn follow_labels_and_taints(scene: &Scene) {
    let node = real_node(scene);
    let paint = |colour: &str| scene.cluster.run(&["label", "node", &node, "--overwrite", &format!("colour{colour}")]);
    scene.apply(&set(&format!("nodeSelector: {{colour: blue}}\n      {TOLERANT}"), ""));
    scene.wait("ds/agent", runs_on(0, 0));
    assert!(scene.pods("agent").is_empty());
    paint("=blue");
    scene.wait("ds/agent", runs_on(1, 1));
    paint("=green");
    scene.wait_pods("agent", <[Value]>::is_empty);
    scene.wait("ds/agent", runs_on(0, 0));
    scene.patch("ds/agent", r#"{"spec":{"template":{"spec":{"nodeSelector":{"colour":"green"}}},"updateStrategy":{"type":"RollingUpdate"}}}"#);
    scene.wait("ds/agent", runs_on(1, 1));
    // The same by affinity.
    let affinity = r#"{"spec":{"template":{"spec":{"nodeSelector":null,"affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":
        {"nodeSelectorTerms":[{"matchExpressions":[{"key":"colour","operator":"In","values":["red"]}]}]}}}}}}}"#;
    scene.patch("ds/agent", affinity);
    scene.wait_pods("agent", <[Value]>::is_empty);
    paint("=red");
    scene.wait("ds/agent", runs_on(1, 1));
    let required =
        &scene.pods("agent")[0]["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    assert_eq!(
        required["nodeSelectorTerms"],
        serde_json::json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}])
    );

    // Another node comes, is tainted, and goes.
    let other = ghost(scene, "colour: red");
    scene.wait("ds/agent", runs_on(2, 1));
    scene.cluster.run(&["taint", "node", &other, "test=yes:NoSchedule"]);
    let tainted = scene.wait("ds/agent", runs_on(1, 1));
    assert_eq!(tainted["status"]["numberMisscheduled"], 1, "what is there may stay");
    assert_eq!(scene.pods("agent").len(), 2);
    scene.cluster.run(&["taint", "node", &other, "test=yes:NoExecute"]);
    scene.wait_pods("agent", |pods| pods.len() == 1 && is_ready(&pods[0]));
    scene.cluster.run(&["taint", "node", &other, "test-"]);
    scene.wait("ds/agent", runs_on(2, 1));
    scene.cluster.run(&["delete", "node", &other]);
    scene.wait("ds/agent", runs_on(1, 1));
    scene.wait_pods("agent", |pods| pods.len() == 1 && is_ready(&pods[0]));
    paint("-");
    scene.wait_pods("agent", <[Value]>::is_empty);
}

/// Conformance: pods are updated, and a rollback restarts none that needs not.
fn roll_and_roll_back(scene: &Scene) {
    scene.apply(&set(&format!("{REAL}\n      {TOLERANT}"), ""));
    scene.wait("ds/agent", runs_on(1, 1));
    let first = revisions(scene);
    assert_eq!((first.len(), first[0].0), (1, 1));
    assert_eq!(hash_of(&scene.pods("agent")[0]), first[0].1);
    scene.patch("ds/agent", r#"{"spec":{"template":{"metadata":{"annotations":{"version":"2"}}}}}"#);
    scene.run(&["rollout", "status", "ds/agent", "--timeout=150s"]);
    scene.wait("ds/agent", |set| runs_on(1, 1)(set) && set["status"]["updatedNumberScheduled"] == 1);
    let second = revisions(scene);
    assert_eq!((second.len(), second[1].0), (2, 2));
    assert_eq!(hash_of(&scene.wait_pods("agent", |pods| pods.len() == 1)[0]), second[1].1);

    // An update that gets stuck on one node leaves the other alone, and so does going back.
    let either = r#"{"spec":{"template":{"spec":{"nodeSelector":null,"affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":
        {"nodeSelectorTerms":[{"matchExpressions":[{"key":"kubernetes.io/os","operator":"Exists"}]},
        {"matchExpressions":[{"key":"part","operator":"In","values":["other"]}]}]}}}}}}}"#;
    scene.patch("ds/agent", either);
    scene.run(&["rollout", "status", "ds/agent", "--timeout=150s"]);
    let other = ghost(scene, "part: other");
    scene.wait("ds/agent", |set| runs_on(2, 1)(set) && set["status"]["updatedNumberScheduled"] == 2);
    let working = scene.pods("agent");
    let kept = working.iter().find(|pod| is_ready(pod)).unwrap();
    let before = revisions(scene).last().unwrap().1.clone();
    scene.run(&["set", "image", "ds/agent", "main=isopod.invalid/missing:1"]);
    scene.wait("ds/agent", |set| runs_on(2, 1)(set) && set["status"]["updatedNumberScheduled"] == 1);
    let stuck = scene.get("ds/agent");
    assert_eq!(stuck["status"]["numberUnavailable"], 1);
    assert_eq!(uid(&scene.get(&format!("pod/{}", name(kept)))), uid(kept));
    scene.run(&["rollout", "undo", "ds/agent"]);
    scene.wait("ds/agent", |set| runs_on(2, 1)(set) && set["status"]["updatedNumberScheduled"] == 2);
    assert_eq!(uid(&scene.get(&format!("pod/{}", name(kept)))), uid(kept), "it was not restarted");
    assert_eq!(revisions(scene).last().unwrap().1, before);
    scene.cluster.run(&["delete", "node", &other]);
}

/// With a surge the new pod comes before the old one goes; with OnDelete nothing happens by itself.
fn surge_and_delete(scene: &Scene) {
    let strategy =
        "minReadySeconds: 1\n  updateStrategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}";
    scene.apply(&set(REAL, strategy));
    scene.wait("ds/agent", runs_on(1, 1));
    let old = scene.pods("agent").remove(0);
    let waits = r#"[{"op":"add","path":"/spec/template/spec/containers/0/readinessProbe",
        "value":{"exec":{"command":["test","-e","/tmp/go"]},"periodSeconds":1}}]"#;
    scene.run(&["patch", "ds/agent", "--type=json", "-p", waits]);
    let started = |pod: &&Value| uid(pod) != uid(&old) && pod["status"]["phase"] == "Running";
    let both = scene.wait_pods("agent", |pods| pods.len() == 2 && pods.iter().any(|pod| started(&pod)));
    assert!(both.iter().any(|pod| uid(pod) == uid(&old) && is_ready(pod)), "it stays until the new one is available");
    let new = both.iter().find(started).unwrap();
    scene.run(&["exec", name(new), "--", "touch", "/tmp/go"]);
    scene.wait_pods("agent", |pods| pods.len() == 1 && uid(&pods[0]) == uid(new) && is_ready(&pods[0]));
    scene.wait("ds/agent", |set| runs_on(1, 1)(set) && set["status"]["updatedNumberScheduled"] == 1);

    scene.patch("ds/agent", r#"{"spec":{"updateStrategy":{"type":"OnDelete","rollingUpdate":null}}}"#);
    let current = scene.pods("agent").remove(0);
    scene.patch("ds/agent", r#"{"spec":{"template":{"metadata":{"annotations":{"version":"3"}}}}}"#);
    scene.wait("ds/agent", |set| runs_on(1, 1)(set) && set["status"]["updatedNumberScheduled"].is_null());
    assert_eq!(uid(&scene.pods("agent")[0]), uid(&current));
    let newest = revisions(scene).last().unwrap().1.clone();
    scene.run(&["delete", "pod", name(&current)]);
    scene.wait_pods("agent", |pods| pods.iter().any(|pod| hash_of(pod) == newest));
}

/// Conformance: list and delete a collection; the status endpoints. Besides, what the API refuses.
fn operations(scene: &Scene) {
    scene.apply(&set(REAL, ""));
    scene.wait("ds/agent", runs_on(1, 1));
    scene.patch_status(
        "ds/agent",
        r#"{"metadata":{"annotations":{"patched":"yes"}},"status":{"conditions":[{"type":"Seen","status":"True","reason":"Test"}]}}"#,
    );
    let seen = scene.wait("ds/agent", |set| has_condition(set, "Seen"));
    assert_eq!(seen["metadata"]["annotations"]["patched"], "yes");
    let raw = format!("/apis/apps/v1/namespaces/{}/daemonsets/agent/status", scene.namespace);
    assert!(scene.run(&["get", "--raw", &raw]).contains(r#""type":"Seen""#));
    for (patch, expected) in [
        (
            r#"{"spec":{"selector":{"matchLabels":{"app":"other"}}}}"#,
            r#"spec.template.metadata.labels: Invalid value: {"app":"agent"}: `selector` does not match template `labels`"#,
        ),
        (r#"{"spec":{"selector":{"matchLabels":{"app":"other"}}}}"#, "field is immutable"),
        (
            r#"{"spec":{"updateStrategy":{"rollingUpdate":{"maxUnavailable":0}}}}"#,
            "spec.updateStrategy.rollingUpdate.maxUnavailable: Required value: cannot be 0 when maxSurge is 0",
        ),
        (
            r#"{"spec":{"template":{"spec":{"restartPolicy":"Never"}}}}"#,
            r#"spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always""#,
        ),
    ] {
        let complaint = scene.refuse(&["patch", "ds/agent", "--type=merge", "-p", patch]);
        assert!(complaint.contains(expected), "expected {expected:?} in {complaint}");
    }
    let listed = scene.cluster.run(&["get", "ds", "-A", "-l", "app=agent", "-o", "name"]);
    assert!(listed.contains("daemonset.apps/agent"));
    scene.run(&["delete", "ds", "--all"]);
    scene.wait_pods("agent", <[Value]>::is_empty);
    eventually("the revisions go too", || {
        let left = revisions(scene);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
}
