//! Ownership, merging and conflicts, on the test types.

use serde_json::{Value, json};

use super::*;
use crate::schema::testing::TYPES;

const THEN: &str = "2030-01-01T00:00:00Z";
const LATER: &str = "2030-01-02T00:00:00Z";

fn write<'a>(manager: &'a str, now: &'a str) -> Write<'a> {
    let schema = TYPES.get("io.k8s.api.apps.v1.Deployment").unwrap();
    Write { types: &TYPES, schema, manager, api_version: "apps/v1".into(), subresource: "", status: true, now }
}

fn deployment(rest: Value) -> Value {
    let mut object =
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "namespace": "n"}});
    for (key, value) in rest.as_object().unwrap() {
        object[key] = value.clone();
    }
    object
}

fn pods(containers: Value) -> Value {
    deployment(json!({"spec": {"template": {"spec": {"containers": containers}}}}))
}

fn containers(object: &Value) -> &Value {
    &object["spec"]["template"]["spec"]["containers"]
}

/// What a manager owns, as paths.
fn owned(object: &Value, manager: &str) -> Vec<String> {
    let entry = meta::managed_fields(object).iter().find(|entry| entry["manager"] == manager);
    let set = FieldSet::from_value(entry.map_or(&Value::Null, |entry| &entry["fieldsV1"]));
    set.paths().iter().map(|path| set::display(path)).collect()
}

/// Applies as one manager after the other.
fn applied(configs: &[(&str, Value)]) -> Value {
    configs.iter().fold(json!({}), |live, (manager, config)| write(manager, THEN).apply(&live, config, true).unwrap())
}

#[test]
fn sets_read_as_they_are_written() {
    let text = json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}, "f:finalizers": {"v:\"x\"": {}}},
        "f:spec": {"f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:name": {}}}}});
    let set = FieldSet::from_value(&text);
    assert_eq!(set.to_value(), text);
    let loose = json!({"f:spec": {"f:ports": {"k:{\"protocol\": \"TCP\", \"containerPort\": 80}": {}}}});
    let paths: Vec<_> =
        set.intersection(&FieldSet::from_value(&loose)).paths().iter().map(|path| set::display(path)).collect();
    assert_eq!(paths, [".spec.ports[containerPort=80,protocol=\"TCP\"]"]);
    let rest = set.clone().difference(&FieldSet::from_value(&json!({"f:metadata": {"f:labels": {}}})));
    assert_eq!(rest.to_value()["f:metadata"]["f:labels"], json!({"f:a": {}}), "what lies below stays");
    assert_eq!(rest.union(&set), set);
}

#[test]
fn a_create_is_owned_as_by_a_go_server() {
    let mut new = deployment(json!({
        "metadata": {"name": "d", "uid": "1", "labels": {"app": "a"}},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "a"}}, "strategy": {"type": "x", "rollingUpdate": {"maxSurge": 1}},
            "template": {"metadata": {}, "spec": {"containers": [
                {"name": "c", "image": "i", "resources": {}, "ports": [{"containerPort": 80}], "args": ["a"]}]}}},
        "status": {"replicas": 3},
    }));
    write("kubectl", THEN).track(None, &mut new);
    let expected = json!([{"manager": "kubectl", "operation": "Update", "apiVersion": "apps/v1", "time": THEN,
        "fieldsType": "FieldsV1", "fieldsV1": {
            "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
            "f:spec": {"f:replicas": {}, "f:selector": {},
                "f:strategy": {"f:rollingUpdate": {".": {}, "f:maxSurge": {}}, "f:type": {}},
                "f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {
                    ".": {}, "f:name": {}, "f:image": {}, "f:resources": {}, "f:args": {},
                    "f:ports": {".": {}, "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}}}}}}}}]);
    assert_eq!(new["metadata"]["managedFields"], expected);
}

#[test]
fn updates_move_ownership() {
    let live = applied(&[("a", deployment(json!({"spec": {"replicas": 1, "strategy": {"type": "x"}}})))]);
    let mut new = deployment(json!({"spec": {"replicas": 2}}));
    write("scaler", LATER).track(Some(&live), &mut new);
    assert_eq!(owned(&new, "scaler"), [".spec.replicas"]);
    assert_eq!(owned(&new, "a"), Vec::<String>::new(), "it lost one to another and one with its value");

    let mut same = deployment(json!({"spec": {"replicas": 2}}));
    write("b", LATER).track(Some(&new), &mut same);
    assert_eq!(same["metadata"]["managedFields"], new["metadata"]["managedFields"], "nothing changed, nothing is sent");

    let mut reset = new.clone();
    reset["metadata"]["managedFields"] = json!([{}]);
    write("b", LATER).track(Some(&new), &mut reset);
    assert_eq!(reset["metadata"].get("managedFields"), None);
    let mut untracked = deployment(json!({"spec": {"replicas": 3}}));
    write("b", LATER).track(Some(&reset), &mut untracked);
    assert_eq!(untracked["metadata"].get("managedFields"), None, "nobody was tracked before");

    let mut status = new.clone();
    status["status"] = json!({"replicas": 2});
    status["spec"]["replicas"] = json!(7);
    Write { subresource: "status", ..write("controller", LATER) }.track(Some(&new), &mut status);
    assert_eq!(owned(&status, "controller"), [".status", ".status.replicas"]);
    assert_eq!(owned(&status, "scaler"), [".spec.replicas"]);
}

#[test]
fn many_updaters_become_ancient() {
    let mut live = deployment(json!({"spec": {"replicas": 1}}));
    write("creator", THEN).track(None, &mut live);
    for n in 0..14 {
        let mut new = live.clone();
        new["metadata"]["labels"][format!("l{n}")] = "x".into();
        write(&format!("m{n:02}"), &format!("2030-01-01T00:00:{n:02}Z")).track(Some(&live), &mut new);
        live = new;
    }
    assert_eq!(meta::managed_fields(&live).len(), 10);
    assert!(owned(&live, "ancient-changes").contains(&".metadata.labels.l4".to_owned()));
    assert_eq!(owned(&live, "m13"), [".metadata.labels.l13"]);
}

#[test]
fn appliers_merge_and_let_go() {
    let c = |name: &str, more: Value| {
        let mut container = json!({"name": name});
        container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        container
    };
    // (what was applied, in order; the containers at the end)
    let cases = [
        (
            "others' items and fields stay",
            vec![
                ("a", pods(json!([c("x", json!({"image": "1"}))]))),
                ("b", pods(json!([c("y", json!({})), c("x", json!({"args": ["a"]}))]))),
            ],
            json!([{"name": "y"}, {"name": "x", "image": "1", "args": ["a"]}]),
        ),
        (
            "what is not applied again goes",
            vec![
                ("a", pods(json!([c("x", json!({"image": "1"})), c("y", json!({}))]))),
                ("a", pods(json!([c("y", json!({"image": "2"}))]))),
            ],
            json!([{"name": "y", "image": "2"}]),
        ),
        (
            "unless another applied it too",
            vec![
                ("a", pods(json!([c("x", json!({"image": "1", "args": ["a"]}))]))),
                ("b", pods(json!([c("x", json!({"image": "1"}))]))),
                ("a", pods(json!([c("z", json!({}))]))),
            ],
            json!([{"name": "x", "image": "1"}, {"name": "z"}]),
        ),
        (
            "keyed by defaults",
            vec![
                (
                    "a",
                    pods(json!([c("x", json!({"ports": [{"containerPort": 80, "protocol": "TCP", "hostPort": 1}]}))])),
                ),
                (
                    "b",
                    pods(json!([c(
                        "x",
                        json!({"ports": [{"containerPort": 80, "protocol": "UDP"}, {"containerPort": 80, "hostPort": 2}]})
                    )])),
                ),
            ],
            json!([{"name": "x", "ports": [{"containerPort": 80, "protocol": "UDP"}, {"containerPort": 80, "protocol": "TCP", "hostPort": 2}]}]),
        ),
        (
            "what only the live object has keeps its place",
            vec![
                ("a", pods(json!([c("1", json!({})), c("2", json!({})), c("3", json!({}))]))),
                ("b", pods(json!([c("3", json!({})), c("n", json!({})), c("1", json!({}))]))),
            ],
            json!([{"name": "2"}, {"name": "3"}, {"name": "n"}, {"name": "1"}]),
        ),
    ];
    for (what, configs, expected) in cases {
        assert_eq!(containers(&applied(&configs)), &expected, "{what}");
    }
}

#[test]
fn atomic_values_are_replaced_and_sets_joined() {
    let meta = |finalizers: Value| deployment(json!({"metadata": {"name": "d", "finalizers": finalizers}}));
    let joined =
        applied(&[("a", meta(json!(["a/x", "a/y"]))), ("b", meta(json!(["b/x"]))), ("a", meta(json!(["a/y"])))]);
    assert_eq!(joined["metadata"]["finalizers"], json!(["a/y", "b/x"]));
    let select = |labels: Value| deployment(json!({"spec": {"selector": {"matchLabels": labels}}}));
    let replaced = applied(&[("a", select(json!({"a": "1"}))), ("b", select(json!({"b": "1"})))]);
    assert_eq!(replaced["spec"]["selector"], json!({"matchLabels": {"b": "1"}}));
}

#[test]
fn conflicts_are_named_and_can_be_forced() {
    let mut live = applied(&[("helm", deployment(json!({"spec": {"replicas": 1}})))]);
    let updated = {
        let mut new = live.clone();
        new["spec"]["strategy"] = json!({"type": "x"});
        write("kubectl", THEN).track(Some(&live), &mut new);
        new
    };
    live = updated;
    let config = deployment(json!({"spec": {"replicas": 2}}));
    let error = write("me", LATER).apply(&live, &config, false).unwrap_err();
    assert_eq!(
        (error.code(), error.reason(), &*error.status.message),
        (409, "Conflict", "Apply failed with 1 conflict: conflict with \"helm\": .spec.replicas")
    );
    let cause = &error.status.details.as_ref().unwrap().causes[0];
    assert_eq!(
        (&*cause.reason, &*cause.message, &*cause.field),
        ("FieldManagerConflict", "conflict with \"helm\"", ".spec.replicas")
    );

    let both = deployment(json!({"spec": {"replicas": 2, "strategy": {"type": "y"}}}));
    let error = write("me", LATER).apply(&live, &both, false).unwrap_err();
    assert_eq!(
        error.status.message,
        "Apply failed with 2 conflicts: conflicts with \"helm\":\n- .spec.replicas\nconflicts with \"kubectl\" using apps/v1:\n- .spec.strategy.type"
    );

    let agreed = write("me", LATER).apply(&live, &deployment(json!({"spec": {"replicas": 1}})), false).unwrap();
    assert_eq!(
        (owned(&agreed, "me"), owned(&agreed, "helm")),
        (vec![".spec.replicas".to_owned()], vec![".spec.replicas".to_owned()])
    );
    let forced = write("me", LATER).apply(&live, &config, true).unwrap();
    assert_eq!((&forced["spec"]["replicas"], owned(&forced, "helm").len()), (&json!(2), 0));
}

#[test]
fn client_side_apply_is_taken_over() {
    let last = deployment(json!({"spec": {"replicas": 1}})).to_string();
    let mut live = deployment(
        json!({"metadata": {"name": "d", "uid": "1", "annotations": {LAST_APPLIED: last}}, "spec": {"replicas": 1}}),
    );
    write("kubectl-client-side-apply", THEN).track(None, &mut live);
    let config = deployment(json!({"spec": {"replicas": 2}}));
    assert_eq!(write("other", LATER).apply(&live, &config, false).unwrap_err().code(), 409);
    assert_eq!(write("kubectl", LATER).apply(&live, &config, false).unwrap()["spec"]["replicas"], 2);
    live["spec"]["replicas"] = json!(5);
    assert_eq!(write("kubectl", LATER).apply(&live, &config, false).unwrap_err().code(), 409, "it changed since");

    meta::metadata_mut(&mut live).remove("managedFields");
    let error = write("other", LATER).apply(&live, &config, false).unwrap_err();
    assert!(error.status.message.contains("\"before-first-apply\" using apps/v1: .spec.replicas"), "{error}");
}

#[test]
fn configurations_are_checked() {
    let refused =
        |config: Value| write("a", THEN).apply(&json!({}), &config, false).unwrap_err().status.message.clone();
    assert_eq!(refused(deployment(json!({"metadata": {"managedFields": [{}]}}))), "metadata.managedFields must be nil");
    assert!(refused(pods(json!([{"name": "a"}, {"name": "a"}]))).ends_with("duplicate entries for key [name=\"a\"]"));
    assert!(refused(pods(json!([{"image": "a"}]))).contains("omits key field \"name\""));
    let error = write("a", THEN).check(&mut deployment(json!({"spec": {"foo": 1}}))).unwrap_err();
    assert_eq!(
        (error.code(), &*error.status.message),
        (
            500,
            "failed to create typed patch object (n/d; apps/v1, Kind=Deployment): .spec.foo: field not declared in schema"
        )
    );
}

#[test]
fn times_alone_are_no_change() {
    let config = deployment(json!({"spec": {"replicas": 1}}));
    let live = write("a", THEN).apply(&json!({}), &config, false).unwrap();
    let mut again = write("a", LATER).apply(&live, &config, false).unwrap();
    assert_ne!(again, live);
    keep_times(&live, &mut again);
    assert_eq!(again, live);
    let mut other = write("a", LATER).apply(&live, &deployment(json!({"spec": {"replicas": 2}})), false).unwrap();
    keep_times(&live, &mut other);
    assert_eq!(other["metadata"]["managedFields"][0]["time"], LATER);
}
