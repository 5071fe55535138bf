//! PodDisruptionBudgets and evictions.

use serde_json::{Value, json};
use testkit::{Answer, condition, eventually, name};

use crate::common::BUSYBOX;
use crate::{Lab, active, sleepers, template};

fn budget(name: &str, spec: &Value) -> Value {
    let mut budget = json!({"metadata": {"name": name}, "spec": {"selector": {"matchLabels": {"name": "foo"}}}});
    budget["spec"].as_object_mut().expect("an object").extend(spec.as_object().expect("an object").clone());
    budget
}

fn pods(lab: &Lab, count: usize) {
    for number in 0..count {
        let mut pod = template(&json!({"name": "foo"}), BUSYBOX);
        pod["metadata"]["name"] = json!(format!("pod-{number}"));
        lab.create("pods", &pod);
    }
}

fn evict(lab: &Lab, pod: &str) -> Answer {
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction",
        "metadata": {"name": pod, "namespace": lab.namespace}});
    lab.api.send("POST", &lab.at(&format!("pods/{pod}/eviction")), "application/json", &eviction)
}

/// The budget once the controller has seen its present form.
fn processed(lab: &Lab, condition: impl Fn(&Value) -> bool) -> Value {
    lab.wait("poddisruptionbudgets/foo", |budget| {
        budget["status"]["observedGeneration"] == budget["metadata"]["generation"] && condition(&budget["status"])
    })
}

fn refused(answer: &Answer, cause: &str) {
    assert_eq!(answer.status, 429, "{answer:#?}");
    let body = &answer.body;
    assert_eq!(body["reason"], "TooManyRequests");
    assert_eq!(body["message"], "Cannot evict pod as it would violate the pod's disruption budget.");
    assert_eq!(body["details"]["causes"][0]["reason"], "DisruptionBudget");
    assert_eq!(body["details"]["causes"][0]["message"], cause);
}

pub fn create_update_patch_delete(lab: &Lab) {
    lab.create("poddisruptionbudgets", &budget("foo", &json!({"minAvailable": "1%"})));
    processed(lab, |_| true);
    let updated = lab.update("poddisruptionbudgets/foo", |budget| budget["spec"]["minAvailable"] = json!("2%"));
    assert_eq!((&updated["spec"]["minAvailable"], &updated["metadata"]["generation"]), (&json!("2%"), &json!(2)));
    processed(lab, |_| true);
    let patched = lab.patch("poddisruptionbudgets/foo", &json!({"spec": {"minAvailable": "3%"}}));
    assert_eq!(patched["spec"]["minAvailable"], "3%");
    processed(lab, |_| true);
    let both = json!({"spec": {"maxUnavailable": 1}});
    let answer = lab.api.send("PATCH", &lab.at("poddisruptionbudgets/foo"), testkit::MERGE, &both);
    let message = answer.body["message"].as_str().expect("a message");
    assert!(
        answer.status == 422 && message.contains("minAvailable and maxUnavailable cannot be both set"),
        "{message}"
    );
    lab.api.delete(&lab.at("poddisruptionbudgets/foo"));
    lab.api.gone(&lab.at("poddisruptionbudgets/foo"));
}

pub fn status_follows_the_pods(lab: &Lab) {
    lab.create("poddisruptionbudgets", &budget("foo", &json!({"minAvailable": 2})));
    let empty = processed(lab, |status| status["expectedPods"] == 0);
    let allowed = condition(&empty, "DisruptionAllowed");
    assert_eq!((&allowed["status"], &allowed["reason"]), (&json!("False"), &json!("InsufficientPods")));
    pods(lab, 3);
    let full = processed(lab, |status| status["disruptionsAllowed"] == 1);
    let status = &full["status"];
    let numbers = ["currentHealthy", "desiredHealthy", "expectedPods"].map(|key| status[key].as_i64());
    assert_eq!(numbers, [Some(3), Some(2), Some(3)]);
    let allowed = condition(&full, "DisruptionAllowed");
    assert_eq!((&allowed["status"], &allowed["reason"]), (&json!("True"), &json!("SufficientPods")));
    assert_eq!(allowed["observedGeneration"], 1);
    lab.api.delete(&lab.at("pods/pod-0"));
    let fewer = processed(lab, |status| status["disruptionsAllowed"] == 0);
    assert_eq!(fewer["status"]["currentHealthy"], 2);
}

pub fn status_is_a_subresource(lab: &Lab) {
    pods(lab, 1);
    lab.running("foo", 1);
    lab.create("poddisruptionbudgets", &budget("foo", &json!({"minAvailable": 1})));
    processed(lab, |status| status["currentHealthy"] == 1);
    let path = "poddisruptionbudgets/foo/status";
    // Whoever notes an eviction is believed for a while: the pod counts as gone.
    let now = lab.get("pods/pod-0")["metadata"]["creationTimestamp"].clone();
    let updated = lab.update_at("poddisruptionbudgets/foo", path, |budget| {
        budget["status"]["disruptedPods"] = json!({"pod-0": now});
        budget["spec"]["minAvailable"] = json!(5);
    });
    assert_eq!(updated["status"]["disruptedPods"], json!({"pod-0": now}));
    assert_eq!(updated["spec"]["minAvailable"], 1);
    processed(lab, |status| status["currentHealthy"] == 0 && status["disruptedPods"] == json!({"pod-0": now}));
    // Pods that are not there are forgotten.
    let patched = lab.api.merge(&lab.at(path), &json!({"status": {"disruptedPods": {"pod-0": null, "absent": now}}}));
    assert_eq!(patched["status"]["disruptedPods"], json!({"absent": now}));
    processed(lab, |status| status["disruptedPods"].is_null() && status["currentHealthy"] == 1);
}

pub fn evictions_wait_for_the_budget(lab: &Lab) {
    lab.create("replicasets", &sleepers("foo", 3, &json!({"name": "foo"})));
    lab.create("poddisruptionbudgets", &budget("foo", &json!({"minAvailable": 3})));
    lab.running("foo", 3);
    processed(lab, |status| status["currentHealthy"] == 3);
    let victim = || name(&lab.running("foo", 3)[0]).to_owned();
    let pod = victim();
    refused(&evict(lab, &pod), "The disruption budget foo needs 3 healthy pods and has 3 currently");
    assert!(active(&lab.get(&format!("pods/{pod}"))));
    let told = lab.cluster.kubectl(&["get", "poddisruptionbudgets", "-n", &lab.namespace]).output().expect("kubectl");
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    let fields: Vec<_> = told.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    assert_eq!(fields[..4], ["foo", "3", "N/A", "0"], "{told}");

    lab.update("poddisruptionbudgets/foo", |budget| budget["spec"]["minAvailable"] = json!(2));
    processed(lab, |status| status["disruptionsAllowed"] == 1);
    let watch = lab.api.watch(&lab.at("pods"));
    assert_eq!(evict(lab, &pod).status, 201);
    lab.api.gone(&lab.at(&format!("pods/{pod}")));
    let disrupted = watch.events().into_iter().find(|event| !condition(&event["object"], "DisruptionTarget").is_null());
    let disrupted = disrupted.expect("the pod told why it ended");
    assert_eq!(condition(&disrupted["object"], "DisruptionTarget")["reason"], "EvictionByEvictionAPI");
    processed(lab, |status| status["disruptionsAllowed"] == 1 && status["currentHealthy"] == 3);

    lab.patch("poddisruptionbudgets/foo", &json!({"spec": {"minAvailable": null, "maxUnavailable": 0}}));
    processed(lab, |status| status["disruptionsAllowed"] == 0 && status["desiredHealthy"] == 3);
    let pod = victim();
    refused(&evict(lab, &pod), "The disruption budget foo needs 3 healthy pods and has 3 currently");
    lab.api.delete(&lab.at("poddisruptionbudgets/foo"));
    assert_eq!(evict(lab, &pod).status, 201);
    assert_eq!(evict(lab, "absent").status, 404);
}

pub fn list_and_delete_collections(lab: &Lab) {
    let elsewhere = Lab { cluster: lab.cluster, api: lab.api, namespace: format!("{}-too", lab.namespace) };
    lab.cluster.run(&["create", "namespace", &elsewhere.namespace]);
    for (lab, name, special) in [(lab, "one", "yes"), (lab, "two", "no"), (&elsewhere, "three", "yes")] {
        let mut budget = budget(name, &json!({"minAvailable": 1}));
        budget["metadata"]["labels"] = json!({"special": special, "test": "lists"});
        lab.create("poddisruptionbudgets", &budget);
    }
    let names = |list: Value| -> Vec<String> {
        let mut names: Vec<_> = list["items"].as_array().expect("items").iter().map(|i| name(i).to_owned()).collect();
        names.sort();
        names
    };
    let all = "/apis/policy/v1/poddisruptionbudgets?labelSelector=test%3Dlists";
    assert_eq!(names(lab.api.get(all)), ["one", "three", "two"]);
    assert_eq!(names(lab.get("poddisruptionbudgets")), ["one", "two"]);
    lab.api.delete(&lab.at("poddisruptionbudgets?labelSelector=special%3Dyes"));
    assert_eq!(names(lab.api.get(all)), ["three", "two"]);
    lab.api.delete(&lab.at("poddisruptionbudgets"));
    assert_eq!(names(lab.api.get(all)), ["three"]);
}

pub fn percentages_count_what_controllers_want(lab: &Lab) {
    lab.create("replicasets", &sleepers("foo", 5, &json!({"name": "foo"})));
    lab.running("foo", 5);
    let evictable = |allowed: i64| {
        let budget = processed(lab, |status| status["disruptionsAllowed"] == allowed && status["currentHealthy"] == 5);
        assert_eq!(budget["status"]["expectedPods"], 5);
    };
    lab.create("poddisruptionbudgets", &budget("foo", &json!({"minAvailable": "90%"})));
    evictable(0);
    lab.patch("poddisruptionbudgets/foo", &json!({"spec": {"minAvailable": "80%"}}));
    evictable(1);
    lab.patch("poddisruptionbudgets/foo", &json!({"spec": {"minAvailable": null, "maxUnavailable": "30%"}}));
    evictable(2);
    // Two may go, then none until their replacements are ready.
    let pods = lab.running("foo", 5);
    let codes: Vec<u16> = pods[..2].iter().map(|pod| evict(lab, name(pod)).status).collect();
    assert_eq!(codes, [201, 201]);
    evictable(2);

    // A pod of no controller makes percentages undecidable.
    let mut stray = template(&json!({"name": "stray"}), BUSYBOX);
    stray["metadata"]["name"] = json!("stray");
    lab.create("pods", &stray);
    let mut lone = budget("lone", &json!({"maxUnavailable": 1}));
    lone["spec"]["selector"] = json!({"matchLabels": {"name": "stray"}});
    lab.create("poddisruptionbudgets", &lone);
    lab.wait("poddisruptionbudgets/lone", |budget| budget["status"]["observedGeneration"] == 1);
    eventually("a warning about the stray pod", || {
        let events = lab.items("events?fieldSelector=reason%3DUnmanagedPods");
        if events.is_empty() { Err("no event".into()) } else { Ok(()) }
    });
}

pub fn unhealthy_pods_by_policy(lab: &Lab) {
    let labels = json!({"name": "foo"});
    let mut broken = template(&labels, BUSYBOX);
    broken["spec"]["containers"][0]["readinessProbe"] = json!({"exec": {"command": ["false"]}, "periodSeconds": 1});
    lab.create("replicasets", &crate::workload("broken", 1, &labels, broken));
    let pod = name(&lab.running("foo", 1)[0]).to_owned();
    lab.create("poddisruptionbudgets", &budget("foo", &json!({"minAvailable": 1})));
    processed(lab, |status| status["currentHealthy"] == 0);
    refused(&evict(lab, &pod), "The disruption budget foo needs 1 healthy pods and has 0 currently");
    lab.patch("poddisruptionbudgets/foo", &json!({"spec": {"unhealthyPodEvictionPolicy": "AlwaysAllow"}}));
    assert_eq!(evict(lab, &pod).status, 201);
}
