//! What users know of Deployments, ReplicaSets, ReplicationControllers and PodDisruptionBudgets: each behaviour that
//! conformance lists for them, with real pods. One cluster per theme, one namespace per behaviour, all at once.

#[path = "../common/mod.rs"]
mod common;
mod deployment;
mod disruption;
mod replica_set;
mod replication_controller;

use common::BUSYBOX;
use serde_json::{Value, json};
use testkit::{Api, Cluster, condition, eventually};

/// An image that no node has or gets.
pub const MISSING: &str = "isopod.invalid/missing:1";
/// A web server that tells the pod's name.
pub const HELLO: &str = "isopod.local/hello:latest";

/// A namespace for one behaviour.
pub struct Lab<'a> {
    pub cluster: &'a Cluster,
    pub api: &'a Api,
    pub namespace: String,
}

type Behaviour = fn(&Lab);

/// Runs the behaviours beside each other on one cluster; a failing one fails the test after all have ended.
fn observe(behaviours: &[(&str, Behaviour)]) {
    let (cluster, _) = common::cluster();
    let api = cluster.api();
    testkit::beside(&cluster, behaviours, |namespace, behaviour| {
        behaviour(&Lab { cluster: &cluster, api: &api, namespace: namespace.to_owned() });
    });
}

macro_rules! behaviours {
    ($($module:ident :: $name:ident),* $(,)?) => { &[$((stringify!($name), $module::$name)),*] };
}

#[test]
fn deployments_behave() {
    observe(behaviours![
        deployment::scale_subresource,
        deployment::recreate_never_mixes_versions,
        deployment::rolling_update_goes_on_from_an_adopted_set,
        deployment::old_sets_are_deleted_beyond_the_limit,
        deployment::scaling_amid_a_rollout_is_proportional,
        deployment::rollover,
        deployment::lifecycle,
        deployment::status_subresource,
        deployment::orphaned_sets_are_adopted,
        deployment::name_collisions_are_counted,
        deployment::quota_shows_as_replica_failure,
    ]);
}

#[test]
fn replica_sets_and_replication_controllers_behave() {
    observe(behaviours![
        replica_set::serves_on_each_replica,
        replica_set::adopts_and_releases,
        replica_set::set_scale_subresource,
        replica_set::replace_and_patch,
        replica_set::list_and_delete_collection,
        replica_set::set_status_subresource,
        replica_set::set_quota_failure,
        replication_controller::controller_serves,
        replication_controller::controller_adopts,
        replication_controller::controller_releases,
        replication_controller::controller_scale,
        replication_controller::controller_quota_failure,
        replication_controller::controller_lifecycle,
    ]);
}

#[test]
fn disruption_budgets_behave() {
    observe(behaviours![
        disruption::create_update_patch_delete,
        disruption::status_follows_the_pods,
        disruption::status_is_a_subresource,
        disruption::evictions_wait_for_the_budget,
        disruption::list_and_delete_collections,
        disruption::percentages_count_what_controllers_want,
        disruption::unhealthy_pods_by_policy,
    ]);
}

impl Lab<'_> {
    /// The path of a resource, or of what lies below one.
    pub fn at(&self, path: &str) -> String {
        let resource = path.split(['/', '?']).next().unwrap_or_default();
        let group = match resource {
            "deployments" | "replicasets" => "apis/apps/v1",
            "poddisruptionbudgets" => "apis/policy/v1",
            _ => "api/v1",
        };
        format!("/{group}/namespaces/{}/{path}", self.namespace)
    }

    pub fn get(&self, path: &str) -> Value {
        self.api.get(&self.at(path))
    }

    pub fn create(&self, resource: &str, object: &Value) -> Value {
        self.api.post(&self.at(resource), object)
    }

    pub fn patch(&self, path: &str, patch: &Value) -> Value {
        self.api.patch(&self.at(path), patch)
    }

    pub fn wait(&self, path: &str, condition: impl Fn(&Value) -> bool) -> Value {
        self.api.wait(&self.at(path), condition)
    }

    /// Reads, edits and writes back, again if somebody was faster.
    pub fn update(&self, path: &str, edit: impl Fn(&mut Value)) -> Value {
        self.update_at(path, path, edit)
    }

    /// The same for what is read at one path and written at another.
    pub fn update_at(&self, from: &str, to: &str, edit: impl Fn(&mut Value)) -> Value {
        eventually(&format!("an update of {to}"), || {
            let mut object = self.get(from);
            edit(&mut object);
            let answer = self.api.send("PUT", &self.at(to), "application/json", &object);
            if answer.status == 409 { Err("a conflict".into()) } else { Ok(answer.success()) }
        })
    }

    pub fn items(&self, path: &str) -> Vec<Value> {
        self.get(path)["items"].as_array().cloned().unwrap_or_default()
    }

    /// Waits for `count` running pods with the label `name`.
    pub fn running(&self, name: &str, count: usize) -> Vec<Value> {
        let list = self.wait(&format!("pods?labelSelector=name%3D{name}"), |list| {
            let pods = list["items"].as_array().expect("a list has items");
            pods.iter().filter(|pod| active(pod) && pod["status"]["phase"] == "Running").count() == count
        });
        list["items"].as_array().expect("a list has items").iter().filter(|pod| active(pod)).cloned().collect()
    }

    /// Waits until a deployment is at `revision` and complete.
    pub fn complete(&self, name: &str, revision: &str) -> Value {
        self.wait(&format!("deployments/{name}"), |deployment| {
            let (status, wanted) = (&deployment["status"], &deployment["spec"]["replicas"]);
            deployment["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == revision
                && status["observedGeneration"] == deployment["metadata"]["generation"]
                && ["replicas", "updatedReplicas", "availableReplicas"].iter().all(|key| status[key] == *wanted)
        })
    }
}

pub fn active(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_null() && pod["status"]["phase"] != "Failed"
}

/// A pod template that sleeps.
pub fn template(labels: &Value, image: &str) -> Value {
    json!({"metadata": {"labels": labels}, "spec": {
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "main", "image": image, "imagePullPolicy": "IfNotPresent",
            "command": ["sleep", "100000"]}]}})
}

/// A pod template that serves its pod's name.
pub fn server(labels: &Value) -> Value {
    json!({"metadata": {"labels": labels}, "spec": {
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "main", "image": HELLO, "imagePullPolicy": "IfNotPresent",
            "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}]}})
}

/// A Deployment, ReplicaSet or ReplicationController whose pods have `labels`.
pub fn workload(name: &str, replicas: i32, labels: &Value, template: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": {
        "replicas": replicas, "selector": {"matchLabels": labels}, "template": template}})
}

pub fn sleepers(name: &str, replicas: i32, labels: &Value) -> Value {
    workload(name, replicas, labels, template(labels, BUSYBOX))
}

/// Whether `object` is owned and controlled by `owner`.
pub fn controlled_by(object: &Value, owner: &Value) -> bool {
    let references = object["metadata"]["ownerReferences"].as_array();
    references.is_some_and(|all| {
        all.iter().any(|reference| reference["controller"] == true && reference["uid"] == owner["metadata"]["uid"])
    })
}

/// Scales at `path` through its scale subresource by PUT and PATCH, and by what must be refused.
pub fn exercise_scale(lab: &Lab, path: &str, selector: &str) {
    let scale_path = lab.at(&format!("{path}/scale"));
    let mut scale = lab.wait(&format!("{path}/scale"), |scale| scale["status"]["replicas"] == 1);
    assert_eq!((&scale["kind"], &scale["apiVersion"]), (&json!("Scale"), &json!("autoscaling/v1")));
    assert_eq!((&scale["spec"]["replicas"], &scale["status"]["selector"]), (&json!(1), &json!(selector)));
    let stale = scale.clone();

    scale["metadata"]["resourceVersion"] = json!("");
    scale["spec"]["replicas"] = json!(2);
    assert_eq!(lab.api.put(&scale_path, &scale)["spec"]["replicas"], 2);
    assert_eq!(lab.get(path)["spec"]["replicas"], 2);
    assert_eq!(lab.api.send("PUT", &scale_path, "application/json", &stale).status, 409);

    assert_eq!(lab.api.patch(&scale_path, &json!({"spec": {"replicas": 4}}))["spec"]["replicas"], 4);
    assert_eq!(lab.get(path)["spec"]["replicas"], 4);
    assert_eq!(lab.wait(path, |owner| owner["status"]["replicas"] == 4)["spec"]["replicas"], 4);
    let refused = lab.api.send("PATCH", &scale_path, testkit::MERGE, &json!({"spec": {"replicas": -1}}));
    assert_eq!((refused.status, &refused.body["reason"]), (422, &json!("Invalid")));
}

/// Reads, updates and patches the status at `path`; what others write there stays, and spec is not written this way.
pub fn exercise_status(lab: &Lab, resource: &str, name: &str) {
    let path = format!("{resource}/{name}");
    let status_path = format!("{path}/status");
    let mut watch = lab.api.watch(&lab.at(resource));
    let read = lab.get(&status_path);
    assert_eq!(read["metadata"]["uid"], lab.get(&path)["metadata"]["uid"]);
    let replicas = read["spec"]["replicas"].clone();

    let updated = lab.update_at(&status_path, &status_path, |object| {
        let update = json!({"type": "StatusUpdate", "status": "True", "reason": "E2E", "message": "Set from a test"});
        object["spec"]["replicas"] = json!(77);
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        object["status"]["conditions"] = conditions.into_iter().chain([update]).collect();
    });
    assert_eq!(condition(&updated, "StatusUpdate")["reason"], "E2E");
    assert_eq!(updated["spec"]["replicas"], replicas, "a status write does not touch spec");
    watch.until(|event| condition(&event["object"], "StatusUpdate")["message"] == "Set from a test");

    let patch = json!({"status": {"conditions": [{"type": "StatusPatched", "status": "True"}]}});
    let patched = lab.api.merge(&lab.at(&status_path), &patch);
    assert_eq!(condition(&patched, "StatusPatched")["status"], "True");
    assert!(condition(&patched, "StatusUpdate").is_null(), "a merge patch replaces a list");
    let event = watch.until(|event| !condition(&event["object"], "StatusPatched").is_null());
    assert_eq!(event["type"], "MODIFIED");
    assert_eq!(condition(&lab.get(&status_path), "StatusPatched")["status"], "True");
}

/// The condition that a quota of two pods brings for a workload of three, and its end when scaled to two.
pub fn exercise_quota(lab: &Lab, resource: &str, name: &str, object: &Value) {
    let quota = json!({"metadata": {"name": "two"}, "spec": {"hard": {"pods": "2"}}});
    lab.create("resourcequotas", &quota);
    lab.wait("resourcequotas/two", |quota| quota["status"]["hard"]["pods"] == "2");
    lab.create(resource, object);
    let path = format!("{resource}/{name}");
    let failed = lab.wait(&path, |object| !condition(object, "ReplicaFailure").is_null());
    let failure = condition(&failed, "ReplicaFailure");
    assert_eq!((&failure["status"], &failure["reason"]), (&json!("True"), &json!("FailedCreate")));
    let message = failure["message"].as_str().expect("a message");
    let expected = "is forbidden: exceeded quota: two, requested: pods=1, used: pods=2, limited: pods=2";
    assert!(message.starts_with(&format!("pods \"{name}-")) && message.ends_with(expected), "{message}");
    lab.update(&path, |object| object["spec"]["replicas"] = json!(2));
    lab.wait(&path, |object| {
        object["status"]["observedGeneration"] == object["metadata"]["generation"]
            && condition(object, "ReplicaFailure").is_null()
    });
}

/// Every pod answers through the API server's proxy with its own name.
pub fn exercise_serving(lab: &Lab, name: &str, replicas: usize) {
    for pod in lab.running(name, replicas) {
        let pod = testkit::name(&pod);
        eventually(&format!("an answer of {pod}"), || {
            let path = lab.at(&format!("pods/{pod}:8080/proxy/"));
            let answer = lab.api.send("GET", &path, "application/json", &Value::Null);
            let text = answer.body.as_str().unwrap_or_default();
            if text.contains(&format!("pod:  {pod}\n")) { Ok(()) } else { Err(format!("{answer:?}")) }
        });
    }
}
