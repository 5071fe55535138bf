//! ReplicationControllers: ReplicaSets' elders, with a plain map as selector and dependents that outlive them.

use serde_json::{Value, json};
use testkit::name;

use crate::common::BUSYBOX;
use crate::replica_set::{exercise_adoption, exercise_release};
use crate::{Lab, exercise_quota, exercise_scale, exercise_serving, server, template};

const RESOURCE: &str = "replicationcontrollers";

fn controller(name: &str, replicas: i32) -> Value {
    let labels = json!({"name": name});
    json!({"metadata": {"name": name}, "spec": {
        "replicas": replicas, "selector": labels, "template": template(&labels, BUSYBOX)}})
}

pub fn controller_serves(lab: &Lab) {
    // Without a selector the template's labels are it.
    let object =
        json!({"metadata": {"name": "rc"}, "spec": {"replicas": 2, "template": server(&json!({"name": "rc"}))}});
    let created = lab.create(RESOURCE, &object);
    assert_eq!(created["spec"]["selector"], json!({"name": "rc"}));
    exercise_serving(lab, "rc", 2);
}

pub fn controller_adopts(lab: &Lab) {
    exercise_adoption(lab, RESOURCE, |name| controller(name, 1));
}

pub fn controller_releases(lab: &Lab) {
    exercise_release(lab, RESOURCE, |name| controller(name, 1));
}

pub fn controller_scale(lab: &Lab) {
    lab.create(RESOURCE, &controller("rc", 1));
    lab.running("rc", 1);
    exercise_scale(lab, "replicationcontrollers/rc", "name=rc");
}

pub fn controller_quota_failure(lab: &Lab) {
    exercise_quota(lab, RESOURCE, "rc", &controller("rc", 3));
}

pub fn controller_lifecycle(lab: &Lab) {
    let mut watch = lab.api.watch(&lab.at("replicationcontrollers?labelSelector=static%3Dtrue"));
    let mut object = controller("rc", 1);
    object["metadata"]["labels"] = json!({"static": "true"});
    lab.create(RESOURCE, &object);
    assert_eq!(watch.until(|_| true)["type"], "ADDED");
    watch.until(|event| {
        let status = &event["object"]["status"];
        status["replicas"] == 1 && status["readyReplicas"] == 1 && status["availableReplicas"] == 1
    });

    let path = "replicationcontrollers/rc";
    let patched = lab.patch(path, &json!({"metadata": {"labels": {"step": "patched"}}}));
    assert_eq!(patched["metadata"]["labels"]["step"], "patched");
    watch.until(|event| event["object"]["metadata"]["labels"]["step"] == "patched");
    let nonsense = json!({"status": {"readyReplicas": 0, "availableReplicas": 0}});
    let patched = lab.patch(&format!("{path}/status"), &nonsense);
    assert_eq!(patched["status"]["readyReplicas"].as_i64().unwrap_or(0), 0);
    watch.until(|event| event["object"]["metadata"]["resourceVersion"] == patched["metadata"]["resourceVersion"]);
    lab.wait(path, |rc| rc["status"]["readyReplicas"] == 1);

    lab.patch(&format!("{path}/scale"), &json!({"spec": {"replicas": 2}}));
    watch.until(|event| event["object"]["status"]["readyReplicas"] == 2);
    let updated = lab.update_at(path, &format!("{path}/status"), |rc| rc["status"]["availableReplicas"] = json!(1));
    assert_eq!(updated["status"]["availableReplicas"], 1);
    let everywhere = lab.api.get("/api/v1/replicationcontrollers?labelSelector=static%3Dtrue");
    assert_eq!(everywhere["items"][0]["metadata"]["labels"]["step"], "patched");

    lab.api.delete(&lab.at("replicationcontrollers?labelSelector=static%3Dtrue"));
    watch.until(|event| event["type"] == "DELETED" && name(&event["object"]) == "rc");
    let events = watch.events();
    let middle = &events[1..events.len() - 1];
    assert!(middle.iter().all(|event| event["type"] == "MODIFIED"), "{events:#?}");
    // By default its pods stay.
    let pods = lab.running("rc", 2);
    assert!(pods.iter().all(|pod| pod["metadata"]["ownerReferences"].is_null()), "{pods:#?}");
}
