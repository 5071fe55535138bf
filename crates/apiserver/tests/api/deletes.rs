//! Deletion: finalizers, propagation, preconditions, grace, collections.

use super::*;

#[tokio::test]
async fn finalizers_hold_an_object() {
    let cluster = Cluster::start().await;
    let uri = format!("{MAPS}/a");
    let mut object = config_map("a");
    object["metadata"]["finalizers"] = json!(["example.com/hold"]);
    cluster.create(MAPS, object).await;
    let held = cluster.call("DELETE", &uri, &Value::Null).await.expect(200);
    assert!(held["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(held["metadata"]["deletionGracePeriodSeconds"], 0);
    // Deleting again changes nothing, and nobody can take it back.
    let again = cluster.call("DELETE", &uri, &Value::Null).await.expect(200);
    assert_eq!(version(&again), version(&held));
    let patched = cluster.call("PATCH", &uri, &json!({"metadata": {"deletionTimestamp": null}})).await.expect(200);
    assert_eq!(patched["metadata"]["deletionTimestamp"], held["metadata"]["deletionTimestamp"]);
    let mut watch = cluster.watch(&format!("{MAPS}?watch=1&resourceVersion={}", version(&held))).await;
    cluster.call("PATCH", &uri, &json!({"metadata": {"finalizers": null}})).await.expect(200);
    assert_eq!(watch.told().await, "DELETED a");
    cluster.get(&uri).await.expect(404);
}

#[tokio::test]
async fn policies_add_finalizers() {
    let cluster = Cluster::start().await;
    for (policy, finalizer) in [("Foreground", "foregroundDeletion"), ("Orphan", "orphan")] {
        cluster.create(MAPS, config_map("a")).await;
        let uri = format!("{MAPS}/a");
        let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": policy});
        let held = cluster.call("DELETE", &uri, &options).await.expect(200);
        assert_eq!(held["metadata"]["finalizers"], json!([finalizer]));
        cluster.call("PATCH", &uri, &json!({"metadata": {"finalizers": []}})).await.expect(200);
        cluster.get(&uri).await.expect(404);
    }
    cluster.create(MAPS, config_map("a")).await;
    cluster.call("DELETE", &format!("{MAPS}/a?propagationPolicy=Sideways"), &Value::Null).await.expect(422);
}

#[tokio::test]
async fn preconditions_must_hold() {
    let cluster = Cluster::start().await;
    let created = cluster.create(MAPS, config_map("a")).await;
    let uid = text(&created["metadata"]["uid"]);
    let uri = format!("{MAPS}/a");
    let options = |preconditions: Value| json!({"preconditions": preconditions});
    let message = format!(
        "Operation cannot be fulfilled on ConfigMap \"a\": the UID in the precondition (x) does not match the UID in record ({uid}). \
         The object might have been deleted and then recreated"
    );
    cluster.call("DELETE", &uri, &options(json!({"uid": "x"}))).await.fails(409, "Conflict", &message);
    cluster.call("DELETE", &uri, &options(json!({"resourceVersion": "1"}))).await.expect(409);
    cluster.call("DELETE", &uri, &options(json!({"uid": uid}))).await.expect(200);
}

#[tokio::test]
async fn pods_end_gracefully() {
    let cluster = Cluster::start().await;
    let bind = async |name: &str| {
        let target = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": {"kind": "Node", "name": "n"}});
        cluster.create(&format!("{PODS}/{name}/binding"), target).await;
    };
    cluster.create(PODS, pod("waiting")).await;
    let gone = cluster.call("DELETE", &format!("{PODS}/waiting"), &Value::Null).await.expect(200);
    assert_eq!(gone["kind"], "Pod");
    cluster.get(&format!("{PODS}/waiting")).await.expect(404);

    cluster.create(PODS, pod("running")).await;
    bind("running").await;
    let uri = format!("{PODS}/running");
    let ending = cluster.call("DELETE", &uri, &Value::Null).await.expect(200);
    assert_eq!(ending["metadata"]["deletionGracePeriodSeconds"], 30);
    let sooner = cluster.call("DELETE", &format!("{uri}?gracePeriodSeconds=5"), &Value::Null).await.expect(200);
    assert_eq!(sooner["metadata"]["deletionGracePeriodSeconds"], 5);
    cluster.call("DELETE", &format!("{uri}?gracePeriodSeconds=0"), &Value::Null).await.expect(200);
    cluster.get(&uri).await.expect(404);
}

#[tokio::test]
async fn collections_are_deleted_by_selector() {
    let cluster = Cluster::start().await;
    for (name, label) in [("a", "x"), ("b", "y"), ("c", "x")] {
        let mut object = config_map(name);
        object["metadata"]["labels"] = json!({"l": label});
        cluster.create(MAPS, object).await;
    }
    let deleted = cluster.call("DELETE", &format!("{MAPS}?labelSelector=l%3Dx"), &Value::Null).await.expect(200);
    assert_eq!(names(&deleted), ["a", "c"]);
    assert_eq!(names(&cluster.get(MAPS).await.expect(200)), ["b"]);
    cluster.call("DELETE", MAPS, &Value::Null).await.expect(200);
    assert!(names(&cluster.get(MAPS).await.expect(200)).is_empty());
}

#[tokio::test]
async fn namespaces_terminate() {
    let cluster = Cluster::start().await;
    let created = cluster
        .create("/api/v1/namespaces", json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}))
        .await;
    assert_eq!(
        (&created["spec"]["finalizers"], &created["status"]["phase"]),
        (&json!(["kubernetes"]), &json!("Active"))
    );
    cluster.create("/api/v1/namespaces/n/configmaps", config_map("a")).await;
    let ending = cluster.call("DELETE", "/api/v1/namespaces/n", &Value::Null).await.expect(200);
    assert_eq!(ending["status"]["phase"], "Terminating");
    cluster.call("POST", "/api/v1/namespaces/n/configmaps", &config_map("b")).await.expect(403);
    // The namespace controller empties it, then takes its finalizer off.
    let mut finalized = ending.clone();
    finalized["spec"]["finalizers"] = json!([]);
    cluster.call("PUT", "/api/v1/namespaces/n/finalize", &finalized).await.expect(200);
    cluster.get("/api/v1/namespaces/n").await.expect(404);
}
