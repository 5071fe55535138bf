//! ReplicaSets.

use serde_json::{Value, json};
use testkit::name;

use crate::common::BUSYBOX;
use crate::{
    Lab, active, controlled_by, exercise_quota, exercise_scale, exercise_serving, exercise_status, server, sleepers,
    template, workload,
};

pub fn serves_on_each_replica(lab: &Lab) {
    let labels = json!({"name": "rs"});
    lab.create("replicasets", &workload("rs", 2, &labels, server(&labels)));
    exercise_serving(lab, "rs", 2);
}

pub fn adopts_and_releases(lab: &Lab) {
    exercise_adoption(lab, "replicasets", |name| sleepers(name, 1, &json!({"name": name})));
    exercise_release(lab, "replicasets", |name| sleepers(name, 1, &json!({"name": name})));
}

/// A pod that fits is taken over by an owner made later, which makes none of its own.
pub fn exercise_adoption(lab: &Lab, resource: &str, owner: impl Fn(&str) -> Value) {
    let mut pod = template(&json!({"name": "adoption"}), BUSYBOX);
    pod["metadata"]["name"] = json!("adoption");
    lab.create("pods", &pod);
    lab.running("adoption", 1);
    let owner = lab.create(resource, &owner("adoption"));
    lab.wait("pods/adoption", |pod| controlled_by(pod, &owner));
    let path = format!("{resource}/adoption");
    lab.wait(&path, |owner| owner["status"]["readyReplicas"] == 1);
    let pods = lab.items("pods?labelSelector=name%3Dadoption");
    assert_eq!(pods.len(), 1, "{pods:#?}");
}

/// A pod whose labels no longer fit goes free and is replaced.
pub fn exercise_release(lab: &Lab, resource: &str, owner: impl Fn(&str) -> Value) {
    let owner = lab.create(resource, &owner("release"));
    let pod = lab.running("release", 1).remove(0);
    let path = format!("pods/{}", name(&pod));
    lab.update(&path, |pod| pod["metadata"]["labels"] = json!({"name": "other"}));
    let released = lab.wait(&path, |pod| !controlled_by(pod, &owner));
    assert!(active(&released));
    let replacement = lab.running("release", 1).remove(0);
    assert!(controlled_by(&replacement, &owner));
    // Labelled back, it is taken again, and one of the two goes.
    lab.update(&path, |pod| pod["metadata"]["labels"] = json!({"name": "release"}));
    lab.wait(&format!("{resource}/release"), |owner| owner["status"]["replicas"] == 1);
    lab.running("release", 1);
}

pub fn set_scale_subresource(lab: &Lab) {
    lab.create("replicasets", &sleepers("rs", 1, &json!({"name": "rs", "pod": "web"})));
    lab.running("rs", 1);
    exercise_scale(lab, "replicasets/rs", "name=rs,pod=web");
}

pub fn replace_and_patch(lab: &Lab) {
    let mut watch = lab.api.watch(&lab.at("replicasets?labelSelector=step%3Dpatched"));
    lab.create("replicasets", &sleepers("rs", 1, &json!({"name": "rs"})));
    lab.running("rs", 1);
    lab.update("replicasets/rs", |set| set["spec"]["replicas"] = json!(2));
    lab.wait("replicasets/rs", |set| set["status"]["replicas"] == 2);
    lab.patch(
        "replicasets/rs",
        &json!({"metadata": {"labels": {"step": "patched"}}, "spec": {"replicas": 3, "template": {"spec": {
            "terminationGracePeriodSeconds": 0, "containers": [{"name": "main", "command": ["sleep", "5000"]}]}}}}),
    );
    // The label brings it into the watch: it is new there.
    assert_eq!(watch.until(|_| true)["type"], "ADDED");
    let ready = watch.until(|event| {
        let status = &event["object"]["status"];
        status["readyReplicas"] == 3 && status["availableReplicas"] == 3
    });
    assert_eq!(ready["type"], "MODIFIED");
    assert_eq!(ready["object"]["spec"]["template"]["spec"]["containers"][0]["command"], json!(["sleep", "5000"]));
    lab.patch("replicasets/rs", &json!({"metadata": {"labels": {"step": null}}}));
    watch.until(|event| event["type"] == "DELETED");
    // The selector is for ever.
    let path = lab.at("replicasets/rs");
    let patch = json!({"spec": {"selector": {"matchLabels": {"name": "other"}}}});
    let refused = lab.api.send("PATCH", &path, testkit::MERGE, &patch);
    let message = refused.body["message"].as_str().expect("a message");
    assert!(refused.status == 422 && message.contains("field is immutable"), "{message}");
}

pub fn list_and_delete_collection(lab: &Lab) {
    for set in ["a", "b"] {
        let mut object = sleepers(set, 2, &json!({"name": set}));
        object["metadata"]["labels"] = json!({"e2e": set});
        lab.create("replicasets", &object);
        lab.running(set, 2);
    }
    let everywhere = lab.api.get("/apis/apps/v1/replicasets?labelSelector=e2e%3Da");
    assert_eq!(everywhere["items"].as_array().map(Vec::len), Some(1));
    let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 1});
    let path = lab.at("replicasets?labelSelector=e2e%3Da");
    let deleted = lab.api.send("DELETE", &path, "application/json", &options).success();
    assert_eq!(deleted["items"].as_array().map(Vec::len), Some(1), "{deleted:#?}");
    assert_eq!(lab.items("replicasets?labelSelector=e2e%3Da"), Vec::<Value>::new());
    lab.wait("pods?labelSelector=name%3Da", |list| list["items"] == json!([]));
    assert_eq!((lab.items("replicasets").len(), lab.running("b", 2).len()), (1, 2));
}

pub fn set_status_subresource(lab: &Lab) {
    lab.create("replicasets", &sleepers("rs", 1, &json!({"name": "rs"})));
    lab.running("rs", 1);
    exercise_status(lab, "replicasets", "rs");
}

pub fn set_quota_failure(lab: &Lab) {
    exercise_quota(lab, "replicasets", "rs", &sleepers("rs", 3, &json!({"name": "rs"})));
}
