//! Server-side apply: ownership, conflicts, force, and what plain writes note of it.

use super::*;

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

async fn apply(cluster: &Cluster, uri: &str, query: &str, config: &Value) -> Answer {
    let uri = format!("{uri}?{query}");
    let headers = [("content-type", "application/apply-patch+yaml")];
    Answer::of(cluster.send("PATCH", &uri, &headers, config.to_string()).await).await
}

fn deployment(name: &str, replicas: u32) -> Value {
    let labels = json!({"app": name});
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {
        "replicas": replicas, "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

/// `manager/operation/subresource` of each entry.
fn managers(object: &Value) -> Vec<String> {
    let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let one = |entry: &Value| ["manager", "operation", "subresource"].map(|key| text(&entry[key])).join("/");
    entries.iter().map(one).collect()
}

#[tokio::test]
async fn applying_creates_merges_and_conflicts() {
    let cluster = Cluster::start().await;
    let uri = format!("{DEPLOYMENTS}/d");
    let dry = apply(&cluster, &uri, "fieldManager=helm&dryRun=All", &deployment("d", 1)).await;
    assert_eq!(managers(&dry.expect(201)), ["helm/Apply/"]);
    cluster.get(&uri).await.expect(404);
    let created = apply(&cluster, &uri, "fieldManager=helm", &deployment("d", 1)).await.expect(201);
    assert_eq!(
        (managers(&created), &created["spec"]["strategy"]["type"]),
        (vec!["helm/Apply/".into()], &json!("RollingUpdate"))
    );
    let again = apply(&cluster, &uri, "fieldManager=helm", &deployment("d", 1)).await.expect(200);
    assert_eq!(again, created, "nothing changed, not even times");

    let scaled = cluster.call("PATCH", &format!("{uri}?fieldManager=kubectl"), &json!({"spec": {"replicas": 3}})).await;
    assert_eq!(managers(&scaled.expect(200)), ["helm/Apply/", "kubectl/Update/"]);
    let refused = apply(&cluster, &uri, "fieldManager=helm", &deployment("d", 1)).await.fails(
        409,
        "Conflict",
        r#"Apply failed with 1 conflict: conflict with "kubectl" using apps/v1: .spec.replicas"#,
    );
    let cause = json!({"reason": "FieldManagerConflict", "message": r#"conflict with "kubectl" using apps/v1"#, "field": ".spec.replicas"});
    assert_eq!(refused["details"]["causes"], json!([cause]));
    let forced = apply(&cluster, &uri, "fieldManager=helm&force=true", &deployment("d", 1)).await.expect(200);
    assert_eq!((managers(&forced), &forced["spec"]["replicas"]), (vec!["helm/Apply/".into()], &json!(1)));

    let mut less = deployment("d", 1);
    less["spec"].as_object_mut().unwrap().remove("replicas");
    less["metadata"]["labels"] = json!({"a": "b"});
    let less = apply(&cluster, &uri, "fieldManager=helm", &less).await.expect(200);
    assert_eq!(
        (&less["spec"]["replicas"], &less["metadata"]["labels"]),
        (&json!(1), &json!({"a": "b"})),
        "the default again"
    );
    assert_eq!(less["metadata"]["generation"], 3);
}

#[tokio::test]
async fn appliers_of_status_and_scale_own_only_those() {
    let cluster = Cluster::start().await;
    let uri = format!("{DEPLOYMENTS}/d");
    apply(&cluster, &uri, "fieldManager=a", &deployment("d", 1)).await.expect(201);
    let mut status = deployment("d", 9);
    status["status"] = json!({"replicas": 4, "conditions": [{"type": "Available", "status": "True"}]});
    let status = apply(&cluster, &format!("{uri}/status"), "fieldManager=s", &status).await.expect(200);
    assert_eq!((&status["status"]["replicas"], &status["spec"]["replicas"]), (&json!(4), &json!(1)));
    let owned = &status["metadata"]["managedFields"];
    let mine = owned.as_array().unwrap().iter().find(|entry| entry["manager"] == "s").unwrap();
    assert_eq!(mine["subresource"], "status");
    assert_eq!(mine["fieldsV1"].as_object().unwrap().keys().collect::<Vec<_>>(), ["f:status"]);

    let scale =
        json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "d"}, "spec": {"replicas": 5}});
    let at = format!("{uri}/scale");
    apply(&cluster, &at, "fieldManager=hpa", &scale).await.expect(409);
    assert_eq!(apply(&cluster, &at, "fieldManager=hpa&force=1", &scale).await.expect(200)["spec"]["replicas"], 5);
    let scaled = cluster.get(&uri).await.expect(200);
    assert!(managers(&scaled).contains(&"hpa/Apply/scale".into()), "{:?}", managers(&scaled));
    apply(&cluster, &format!("{DEPLOYMENTS}/none/status"), "fieldManager=s", &deployment("none", 1)).await.expect(404);
}

#[tokio::test]
async fn every_write_is_tracked() {
    let cluster = Cluster::start().await;
    let agent = [("content-type", "application/json"), ("user-agent", "my-client/v1.2 (linux)")];
    let made = Answer::of(cluster.send("POST", MAPS, &agent, config_map("m").to_string()).await).await.expect(201);
    let entry = &made["metadata"]["managedFields"][0];
    assert_eq!(
        (&entry["manager"], &entry["apiVersion"], &entry["time"]),
        (&json!("my-client"), &json!("v1"), &made["metadata"]["creationTimestamp"])
    );
    assert_eq!(entry["fieldsV1"], json!({"f:data": {".": {}, "f:a": {}}}));

    let uri = format!("{MAPS}/m");
    let mut changed = config_map("m");
    changed["data"]["x"] = "y".into();
    let changed = cluster.call("PUT", &format!("{uri}?fieldManager=other"), &changed).await.expect(200);
    assert_eq!(managers(&changed), ["my-client/Update/", "other/Update/"], "a body without managers keeps them");
    let same = cluster.call("PUT", &format!("{uri}?fieldManager=third"), &changed).await.expect(200);
    assert_eq!(same, changed);
    let reset = cluster.call("PATCH", &uri, &json!({"metadata": {"managedFields": [{}]}})).await.expect(200);
    assert_eq!(managers(&reset), Vec::<String>::new());
}

#[tokio::test]
async fn configurations_and_options_are_checked() {
    let cluster = Cluster::start().await;
    let uri = format!("{DEPLOYMENTS}/d");
    let config = deployment("d", 1);
    apply(&cluster, &uri, "", &config).await.fails(
        422,
        "Invalid",
        r#"PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch"#,
    );
    let long = format!("fieldManager={}", "x".repeat(129));
    apply(&cluster, &uri, &long, &config).await.expect(422);
    cluster.call("PATCH", &format!("{uri}?force=true"), &json!({})).await.fails(
        422,
        "Invalid",
        r#"PatchOptions.meta.k8s.io "" is invalid: force: Forbidden: may not be specified for non-apply patch"#,
    );
    let mut unknown = config.clone();
    unknown["spec"]["foo"] = json!(1);
    let answer = apply(&cluster, &uri, "fieldManager=a", &unknown).await.expect(500);
    assert!(text(&answer["message"]).ends_with(".spec.foo: field not declared in schema"), "{answer}");
    let mut other = config.clone();
    other["apiVersion"] = json!("v1");
    apply(&cluster, &uri, "fieldManager=a", &other).await.expect(400);
    let mut identified = config.clone();
    identified["metadata"]["uid"] = json!("1");
    apply(&cluster, &uri, "fieldManager=a", &identified).await.expect(409);
    let mut bad = config;
    bad["spec"]["replicas"] = json!(-1);
    apply(&cluster, &uri, "fieldManager=a", &bad).await.expect(422);
}
