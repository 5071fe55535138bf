//! Deployments.

use serde_json::{Value, json};
use testkit::{condition, name};

use crate::common::BUSYBOX;
use crate::{Lab, MISSING, active, controlled_by, exercise_scale, exercise_status, sleepers, template, workload};

const REVISION: &str = "deployment.kubernetes.io/revision";

/// A template's change that makes another version: another container name, as a user's rename would.
fn next_version(image: &str) -> Value {
    json!({"spec": {"template": {"spec": {"containers": [
        {"$patch": "replace"},
        {"name": "next", "image": image, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "100000"]}]}}}})
}

/// The sets of a deployment, as (name, set), told apart by whether they have its newest revision.
fn sets(lab: &Lab, deployment: &str) -> (Vec<Value>, Vec<Value>) {
    let deployment = lab.get(&format!("deployments/{deployment}"));
    let revision = &deployment["metadata"]["annotations"][REVISION];
    let owned = lab.items("replicasets").into_iter().filter(|set| controlled_by(set, &deployment));
    owned.partition(|set| set["metadata"]["annotations"][REVISION] == *revision)
}

pub fn scale_subresource(lab: &Lab) {
    lab.create("deployments", &sleepers("d", 1, &json!({"name": "d"})));
    lab.running("d", 1);
    exercise_scale(lab, "deployments/d", "name=d");
}

pub fn recreate_never_mixes_versions(lab: &Lab) {
    let mut deployment = sleepers("d", 2, &json!({"name": "d"}));
    deployment["spec"]["strategy"] = json!({"type": "Recreate"});
    lab.create("deployments", &deployment);
    lab.complete("d", "1");
    let watch = lab.api.watch(&lab.at("pods"));
    let deployments = lab.api.watch(&lab.at("deployments"));
    lab.patch("deployments/d", &next_version(BUSYBOX));
    lab.complete("d", "2");

    let mut old = std::collections::BTreeSet::new();
    for event in watch.events() {
        let pod = &event["object"];
        let (is_old, pod_name) = (pod["spec"]["containers"][0]["name"] == "main", name(pod).to_owned());
        match event["type"].as_str() {
            Some("DELETED") => drop(old.remove(&pod_name)),
            Some("ADDED") if is_old => drop(old.insert(pod_name)),
            Some("ADDED") => assert!(old.is_empty(), "{pod_name} came while {old:?} were there"),
            _ => {}
        }
    }
    for event in deployments.events() {
        let status = &event["object"]["status"];
        let (updated, all) =
            (status["updatedReplicas"].as_i64().unwrap_or(0), status["replicas"].as_i64().unwrap_or(0));
        let settled = event["object"]["metadata"]["generation"] == status["observedGeneration"];
        assert!(!settled || updated == 0 || updated == all, "{status}");
    }
}

pub fn rolling_update_goes_on_from_an_adopted_set(lab: &Lab) {
    let labels = json!({"name": "d", "pod": "old"});
    let mut set = sleepers("adopted", 1, &labels);
    set["metadata"]["labels"] = labels;
    set["metadata"]["annotations"] = json!({REVISION: "3546343826724305832"});
    let set = lab.create("replicasets", &set);
    lab.running("d", 1);
    let labels = json!({"name": "d"});
    let mut deployment = workload("d", 1, &labels, template(&labels, BUSYBOX));
    deployment["spec"]["template"]["spec"]["containers"][0]["name"] = json!("next");
    lab.create("deployments", &deployment);
    let deployment = lab.complete("d", "3546343826724305833");

    let (new, old) = sets(lab, "d");
    assert_eq!((new.len(), old.len()), (1, 1));
    assert_eq!(old[0]["metadata"]["uid"], set["metadata"]["uid"]);
    assert!(controlled_by(&old[0], &deployment));
    let available = condition(&deployment, "Available");
    assert_eq!((&available["status"], &available["reason"]), (&json!("True"), &json!("MinimumReplicasAvailable")));
    let done = lab.wait("deployments/d", |d| condition(d, "Progressing")["reason"] == "NewReplicaSetAvailable");
    let text = format!("ReplicaSet \"{}\" has successfully progressed.", name(&new[0]));
    assert_eq!(condition(&done, "Progressing")["message"], text);
}

pub fn old_sets_are_deleted_beyond_the_limit(lab: &Lab) {
    let labels = json!({"name": "d", "pod": "old"});
    let mut set = sleepers("cleanup", 1, &labels);
    set["metadata"]["labels"] = labels;
    lab.create("replicasets", &set);
    lab.running("d", 1);
    let watch = lab.api.watch(&lab.at("pods"));
    let mut deployment = sleepers("d", 1, &json!({"name": "d"}));
    deployment["spec"]["revisionHistoryLimit"] = json!(0);
    deployment["spec"]["template"]["spec"]["containers"][0]["name"] = json!("next");
    lab.create("deployments", &deployment);
    lab.api.gone(&lab.at("replicasets/cleanup"));
    assert_eq!(lab.items("replicasets").len(), 1);
    let events = watch.events();
    let added: Vec<_> = events.iter().filter(|event| event["type"] == "ADDED").map(|event| &event["object"]).collect();
    assert_eq!(added.len(), 2, "the old pod and the new one: {added:#?}");
    assert_eq!(added[1]["spec"]["containers"][0]["name"], "next");
}

pub fn scaling_amid_a_rollout_is_proportional(lab: &Lab) {
    let mut deployment = sleepers("d", 10, &json!({"name": "d"}));
    deployment["spec"]["strategy"] = json!({"rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}});
    lab.create("deployments", &deployment);
    lab.complete("d", "1");
    let first = format!("replicasets/{}", name(&sets(lab, "d").0[0]));
    lab.patch("deployments/d", &next_version(MISSING));
    let size =
        |wanted: i32| move |set: &Value| set["spec"]["replicas"] == wanted && set["status"]["replicas"] == wanted;
    let blocked = lab.wait(&first, |set| size(8)(set) && set["status"]["availableReplicas"] == 8);
    assert_eq!(blocked["metadata"]["annotations"]["deployment.kubernetes.io/desired-replicas"], "10");
    lab.wait("deployments/d", |d| d["metadata"]["annotations"][REVISION] == "2");
    let second = format!("replicasets/{}", name(&sets(lab, "d").0[0]));
    let second_set = lab.wait(&second, size(5));
    assert!(second_set["status"]["availableReplicas"].is_null() || second_set["status"]["availableReplicas"] == 0);
    assert!(lab.get("deployments/d")["status"]["availableReplicas"].as_i64() >= Some(8));

    lab.patch("deployments/d", &json!({"spec": {"replicas": 30}}));
    let first = lab.wait(&first, |set| set["spec"]["replicas"] == 20);
    let second = lab.wait(&second, |set| set["spec"]["replicas"] == 13);
    for set in [first, second] {
        let annotations = &set["metadata"]["annotations"];
        assert_eq!(annotations["deployment.kubernetes.io/desired-replicas"], "30");
        assert_eq!(annotations["deployment.kubernetes.io/max-replicas"], "33");
    }
}

pub fn rollover(lab: &Lab) {
    let labels = json!({"name": "d", "pod": "old"});
    let mut set = sleepers("first", 1, &labels);
    set["metadata"]["labels"] = labels;
    set["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(1); // so that it is seen to end
    lab.create("replicasets", &set);
    lab.wait("replicasets/first", |set| set["status"]["readyReplicas"] == 1);
    let labels = json!({"name": "d"});
    let mut deployment = workload("d", 1, &labels, template(&labels, MISSING));
    deployment["spec"]["strategy"] = json!({"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}});
    deployment["spec"]["minReadySeconds"] = json!(3);
    lab.create("deployments", &deployment);
    lab.wait("deployments/d", |d| d["status"]["updatedReplicas"] == 1 && d["metadata"]["annotations"][REVISION] == "1");
    let one = |set: &Value| set["spec"]["replicas"] == 1 && set["status"]["replicas"] == 1;
    lab.wait("replicasets/first", one);
    let stuck = format!("replicasets/{}", name(&sets(lab, "d").0[0]));
    lab.wait(&stuck, one);

    // Changed again before it is done: both sets give way to a third.
    let watch = lab.api.watch(&lab.at("replicasets"));
    let pods = lab.api.watch(&lab.at("pods"));
    lab.patch("deployments/d", &next_version(BUSYBOX));
    lab.complete("d", "2");
    let none = |set: &Value| set["spec"]["replicas"] == 0 && set["status"]["replicas"] == 0;
    lab.wait("replicasets/first", none);
    lab.wait(&stuck, none);
    let mut sizes = std::collections::BTreeMap::new();
    for event in watch.events() {
        let set = &event["object"];
        sizes.insert(name(set).to_owned(), set["spec"]["replicas"].as_i64().unwrap_or(0));
        assert!(sizes.values().sum::<i64>() <= 2, "more than one surplus: {sizes:?}");
    }
    // Nothing was taken away before the new pod had been ready for minReadySeconds.
    let time = |text: &Value| text.as_str().expect("a time").to_owned();
    let events = pods.events();
    let at = |condition: &dyn Fn(&Value) -> bool| events.iter().position(|event| condition(&event["object"]));
    let old_ends = at(&|pod| pod["metadata"]["labels"]["pod"] == "old" && !active(pod));
    let new_ready =
        at(&|pod| pod["spec"]["containers"][0]["name"] == "next" && condition(pod, "Ready")["status"] == "True");
    assert!(new_ready.is_some() && new_ready < old_ends, "{new_ready:?} {old_ends:?}");
    let ready = &events[new_ready.expect("it was ready")]["object"];
    let (since, until) = (
        time(&condition(ready, "Ready")["lastTransitionTime"]),
        time(&events[old_ends.expect("it ended")]["object"]["metadata"]["deletionTimestamp"]),
    );
    // The deletion time is that of the request and the second of grace.
    assert!(seconds(&until) - seconds(&since) > 3, "ready since {since}, the old one ended {until}");
}

/// Seconds of the day of an RFC 3339 time, good for differences within a test.
fn seconds(time: &str) -> i64 {
    let clock = &time[11..19];
    clock.split(':').map(|part| part.parse::<i64>().expect("a number")).fold(0, |total, part| total * 60 + part)
}

pub fn lifecycle(lab: &Lab) {
    let mut deployment = sleepers("d", 2, &json!({"static": "true"}));
    deployment["metadata"]["labels"] = json!({"static": "true"});
    let mut watch = lab.api.watch(&lab.at("deployments?labelSelector=static%3Dtrue"));
    lab.create("deployments", &deployment);
    assert_eq!(watch.until(|_| true)["type"], "ADDED");
    watch.until(|event| event["object"]["status"]["readyReplicas"] == 2);

    lab.patch(
        "deployments/d",
        &json!({"metadata": {"labels": {"step": "patched"}}, "spec": {"replicas": 1, "template": {"spec": {
            "terminationGracePeriodSeconds": 2, "containers": [{"name": "main", "command": ["sleep", "100001"]}]}}}}),
    );
    let patched = watch.until(|event| {
        let (deployment, status) = (&event["object"], &event["object"]["status"]);
        status["observedGeneration"] == deployment["metadata"]["generation"]
            && status["readyReplicas"] == 1
            && status["updatedReplicas"] == 1
            && status["unavailableReplicas"].as_i64().unwrap_or(0) == 0
            && deployment["metadata"]["labels"]["step"] == "patched"
    });
    assert_eq!(patched["type"], "MODIFIED");
    assert_eq!(patched["object"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"], 2);
    let everywhere = lab.api.get("/apis/apps/v1/deployments?labelSelector=static%3Dtrue,step%3Dpatched");
    assert_eq!(everywhere["items"].as_array().map(Vec::len), Some(1));

    // An update without resourceVersion is unconditional.
    let mut updated = deployment.clone();
    updated["metadata"]["labels"]["step"] = json!("updated");
    updated["spec"]["template"]["spec"]["containers"][0]["command"] = json!(["sleep", "100002"]);
    lab.api.put(&lab.at("deployments/d"), &updated);
    let read = lab.get("deployments/d/status");
    assert_eq!(read["metadata"]["labels"]["step"], "updated");
    assert_eq!(read["spec"]["template"]["spec"]["containers"][0]["command"], json!(["sleep", "100002"]));
    lab.complete("d", "3");

    // A status patched to nonsense is put right.
    let nonsense = json!({"metadata": {"labels": {"step": "patched-status"}},
        "status": {"readyReplicas": 0, "availableReplicas": 0}});
    let patched = lab.patch("deployments/d/status", &nonsense);
    assert_eq!(patched["status"]["readyReplicas"].as_i64().unwrap_or(0), 0);
    assert_eq!(patched["metadata"]["labels"]["step"], "updated", "a status write leaves labels alone");
    lab.wait("deployments/d", |d| d["status"]["readyReplicas"] == 2 && d["status"]["availableReplicas"] == 2);

    lab.api.delete(&lab.at("deployments?labelSelector=static%3Dtrue"));
    watch.until(|event| event["type"] == "DELETED" && name(&event["object"]) == "d");
    lab.wait("pods", |list| list["items"] == json!([]));
    assert_eq!(lab.items("replicasets"), Vec::<Value>::new());
}

pub fn status_subresource(lab: &Lab) {
    let mut deployment = sleepers("d", 1, &json!({"name": "d"}));
    deployment["metadata"]["labels"] = json!({"e2e": "testing"});
    lab.create("deployments", &deployment);
    lab.complete("d", "1");
    exercise_status(lab, "deployments", "d");
}

pub fn orphaned_sets_are_adopted(lab: &Lab) {
    lab.create("deployments", &sleepers("first", 1, &json!({"name": "d"})));
    lab.complete("first", "1");
    let set = sets(lab, "first").0.remove(0);
    let pod = lab.running("d", 1).remove(0);
    lab.cluster.run(&["delete", "deployment", "first", "--cascade=orphan", "-n", &lab.namespace]);
    let path = format!("replicasets/{}", name(&set));
    lab.wait(&path, |set| set["metadata"]["ownerReferences"].is_null());
    lab.create("deployments", &sleepers("second", 1, &json!({"name": "d"})));
    let second = lab.complete("second", "1");
    let sets = lab.items("replicasets");
    assert_eq!(sets.len(), 1, "no set but the adopted one");
    assert!(sets[0]["metadata"]["uid"] == set["metadata"]["uid"] && controlled_by(&sets[0], &second));
    assert_eq!(lab.running("d", 1)[0]["metadata"]["uid"], pod["metadata"]["uid"], "its pod runs on");
}

pub fn name_collisions_are_counted(lab: &Lab) {
    let deployment = sleepers("d", 1, &json!({"name": "d"}));
    lab.create("deployments", &deployment);
    lab.complete("d", "1");
    let taken = name(&sets(lab, "d").0[0]).to_owned();
    lab.cluster.run(&["delete", "deployment", "d", "--cascade=foreground", "-n", &lab.namespace]);
    lab.create("replicasets", &sleepers(&taken, 0, &json!({"name": "foreign"})));
    lab.create("deployments", &deployment);
    let done = lab.complete("d", "1");
    assert_eq!(done["status"]["collisionCount"], 1);
    let set = name(&sets(lab, "d").0[0]).to_owned();
    assert!(set != taken && set.starts_with("d-"), "{set}");
    assert!(lab.get(&format!("replicasets/{taken}"))["metadata"]["ownerReferences"].is_null());
}

pub fn quota_shows_as_replica_failure(lab: &Lab) {
    lab.create("resourcequotas", &json!({"metadata": {"name": "one"}, "spec": {"hard": {"pods": "1"}}}));
    lab.wait("resourcequotas/one", |quota| quota["status"]["hard"]["pods"] == "1");
    lab.create("deployments", &sleepers("d", 2, &json!({"name": "d"})));
    let failed = lab.wait("deployments/d", |d| condition(d, "ReplicaFailure")["status"] == "True");
    assert_eq!(condition(&failed, "ReplicaFailure")["reason"], "FailedCreate");
    lab.update("resourcequotas/one", |quota| quota["spec"]["hard"]["pods"] = json!("5"));
    let done = lab.complete("d", "1");
    assert!(condition(&done, "ReplicaFailure").is_null());
}
