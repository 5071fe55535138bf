//! Create and update: defaults, validation, generation, conflicts, no-ops.

use super::*;

#[tokio::test]
async fn objects_live_and_die() {
    let cluster = Cluster::start().await;
    let created = cluster.create(MAPS, config_map("a")).await;
    let metadata = &created["metadata"];
    assert_eq!((&metadata["namespace"], &created["kind"]), (&json!("default"), &json!("ConfigMap")));
    assert!(metadata["uid"].is_string() && metadata["creationTimestamp"].is_string());
    assert_eq!(cluster.get(&format!("{MAPS}/a")).await.expect(200), created);

    let mut changed = created.clone();
    changed["data"]["a"] = "c".into();
    let updated = cluster.call("PUT", &format!("{MAPS}/a"), &changed).await.expect(200);
    assert!(version(&updated) > version(&created));
    assert_eq!(updated["data"]["a"], "c");
    // An update that changes nothing is no update, also when it states no version.
    let same = cluster.call("PUT", &format!("{MAPS}/a"), &updated).await.expect(200);
    assert_eq!(version(&same), version(&updated));

    let status = cluster.call("DELETE", &format!("{MAPS}/a"), &Value::Null).await.expect(200);
    assert_eq!((&status["kind"], &status["status"]), (&json!("Status"), &json!("Success")));
    assert_eq!(status["details"], json!({"name": "a", "kind": "configmaps", "uid": metadata["uid"]}));
    cluster.get(&format!("{MAPS}/a")).await.fails(404, "NotFound", r#"configmaps "a" not found"#);
}

#[tokio::test]
async fn updates_are_guarded() {
    let cluster = Cluster::start().await;
    let uri = format!("{MAPS}/a");
    let first = cluster.create(MAPS, config_map("a")).await;
    cluster.call("POST", MAPS, &config_map("a")).await.fails(409, "AlreadyExists", r#"configmaps "a" already exists"#);
    let mut second = first.clone();
    second["data"]["x"] = "y".into();
    cluster.call("PUT", &uri, &second).await.expect(200);
    let modified = "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; \
        please apply your changes to the latest version and try again";
    cluster.call("PUT", &uri, &first).await.fails(409, "Conflict", modified);
    // Without a version the last one wins.
    cluster.call("PUT", &uri, &config_map("a")).await.expect(200);

    let mut other = config_map("a");
    other["metadata"]["uid"] = "b".into();
    let uid = text(&first["metadata"]["uid"]);
    let message = format!(
        "Operation cannot be fulfilled on configmaps \"a\": StorageError: invalid object, Code: 4, Key: /registry/configmaps/default/a, \
         ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: b, UID in object meta: {uid}"
    );
    cluster.call("PUT", &uri, &other).await.fails(409, "Conflict", &message);
    let message = "the name of the object (b) does not match the name on the URL (a)";
    cluster.call("PUT", &uri, &config_map("b")).await.fails(400, "BadRequest", message);
    let mut elsewhere = config_map("c");
    elsewhere["metadata"]["namespace"] = "kube-system".into();
    let message = "the namespace of the provided object does not match the namespace sent on the request";
    cluster.call("POST", MAPS, &elsewhere).await.fails(400, "BadRequest", message);
    cluster.call("PUT", &format!("{MAPS}/none"), &config_map("none")).await.fails(
        404,
        "NotFound",
        r#"configmaps "none" not found"#,
    );
    let endpoints = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "e"}});
    cluster.call("PUT", "/api/v1/namespaces/default/endpoints/e", &endpoints).await.expect(201);
}

#[tokio::test]
async fn concurrent_patches_all_count() {
    let cluster = Arc::new(Cluster::start().await);
    cluster.create(MAPS, config_map("a")).await;
    let writers = (0..20).map(|n| {
        let cluster = cluster.clone();
        tokio::spawn(async move {
            let patch = json!({"data": {format!("k{n}"): "v"}});
            cluster.call("PATCH", &format!("{MAPS}/a"), &patch).await.expect(200);
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let object = cluster.get(&format!("{MAPS}/a")).await.expect(200);
    assert_eq!(object["data"].as_object().unwrap().len(), 21);
}

#[tokio::test]
async fn one_of_many_creates_wins() {
    let cluster = Arc::new(Cluster::start().await);
    let creators: Vec<_> = (0..10)
        .map(|_| {
            let cluster = cluster.clone();
            tokio::spawn(async move { cluster.call("POST", MAPS, &config_map("a")).await.code })
        })
        .collect();
    let mut codes = Vec::new();
    for creator in creators {
        codes.push(creator.await.unwrap());
    }
    assert_eq!(
        (codes.iter().filter(|code| **code == 201).count(), codes.iter().filter(|code| **code == 409).count()),
        (1, 9)
    );
}

#[tokio::test]
async fn names_are_generated() {
    let cluster = Cluster::start().await;
    let mut object = config_map("");
    object["metadata"] = json!({"generateName": "web-"});
    let (a, b) = (cluster.create(MAPS, object.clone()).await, cluster.create(MAPS, object).await);
    let (a, b) = (text(&a["metadata"]["name"]), text(&b["metadata"]["name"]));
    assert!(a.starts_with("web-") && a.len() == 9 && a != b, "{a} {b}");
}

#[tokio::test]
async fn generations_and_status_are_separate() {
    let cluster = Cluster::start().await;
    let uri = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "status": {"replicas": 9},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "busybox"}]}}}});
    let created = cluster.create(uri, deployment).await;
    assert_eq!((&created["metadata"]["generation"], &created["spec"]["replicas"]), (&json!(1), &json!(1)));
    assert!(created["status"]["replicas"].is_null());
    let uri = format!("{uri}/d");
    let patched =
        cluster.call("PATCH", &uri, &json!({"spec": {"replicas": 3}, "status": {"replicas": 9}})).await.expect(200);
    assert_eq!((&patched["metadata"]["generation"], &patched["status"]["replicas"]), (&json!(2), &Value::Null));
    let status = json!({"status": {"replicas": 3}, "spec": {"replicas": 7}});
    let patched = cluster.call("PATCH", &format!("{uri}/status"), &status).await.expect(200);
    assert_eq!(
        (&patched["metadata"]["generation"], &patched["spec"]["replicas"], &patched["status"]["replicas"]),
        (&json!(2), &json!(3), &json!(3))
    );
    let patched = cluster.call("PATCH", &uri, &json!({"metadata": {"labels": {"x": "y"}}})).await.expect(200);
    assert_eq!((&patched["metadata"]["generation"], &patched["status"]["replicas"]), (&json!(2), &json!(3)));
}

#[tokio::test]
async fn unknown_fields_are_told() {
    let cluster = Cluster::start().await;
    let mut object = config_map("a");
    object["spec"] = json!({"x": 1});
    let answer = cluster.call("POST", MAPS, &object).await;
    assert_eq!(answer.warnings(), [r#"299 - "unknown field \"spec\"""#]);
    assert!(answer.expect(201)["spec"].is_null());
    let strict = format!("{MAPS}?fieldValidation=Strict");
    let message =
        r#"ConfigMap in version "v1" cannot be handled as a ConfigMap: strict decoding error: unknown field "spec""#;
    cluster.call("POST", &strict, &object).await.fails(400, "BadRequest", message);
    let both = r#"{"kind":"ConfigMap","apiVersion":"v1","unknown":1,"data":{"a":"1","a":"2"},"metadata":{"name":"b"}}"#;
    let answer = Answer::of(cluster.send("POST", &strict, &[], both).await).await;
    let message = r#"ConfigMap in version "v1" cannot be handled as a ConfigMap: strict decoding error: unknown field "unknown", duplicate field "data.a""#;
    answer.fails(400, "BadRequest", message);
    let ignored = cluster.call("PUT", &format!("{MAPS}/a?fieldValidation=Ignore"), &object).await;
    assert!(ignored.warnings().is_empty());
    ignored.expect(200);
    let twice = r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"b"},"data":{"a":"1","a":"2"}}"#;
    let answer = Answer::of(cluster.send("POST", MAPS, &[], twice).await).await;
    assert_eq!(answer.warnings(), [r#"299 - "duplicate field \"data.a\"""#]);
}

#[tokio::test]
async fn dry_runs_leave_nothing() {
    let cluster = Cluster::start().await;
    cluster.call("POST", &format!("{MAPS}?dryRun=All"), &config_map("a")).await.expect(201);
    cluster.get(&format!("{MAPS}/a")).await.expect(404);
    cluster.create(MAPS, config_map("a")).await;
    let patched =
        cluster.call("PATCH", &format!("{MAPS}/a?dryRun=All"), &json!({"data": {"x": "y"}})).await.expect(200);
    assert_eq!(patched["data"]["x"], "y");
    cluster.call("DELETE", &format!("{MAPS}/a?dryRun=All"), &Value::Null).await.expect(200);
    assert!(cluster.get(&format!("{MAPS}/a")).await.expect(200)["data"]["x"].is_null());
    cluster.call("POST", &format!("{MAPS}?dryRun=Some"), &config_map("b")).await.expect(422);
}

#[tokio::test]
async fn yaml_goes_both_ways() {
    let cluster = Cluster::start().await;
    let body = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata:\n  x: \"1\"\n";
    let headers = [("content-type", "application/yaml"), ("accept", "application/yaml")];
    let answer = Answer::of(cluster.send("POST", MAPS, &headers, body).await).await;
    assert_eq!((answer.code, answer.headers["content-type"].to_str().unwrap()), (201, "application/yaml"));
    assert!(answer.text.contains("name: a"), "{}", answer.text);
    assert_eq!(cluster.get(&format!("{MAPS}/a")).await.expect(200)["data"]["x"], "1");
}

#[tokio::test]
async fn acknowledged_objects_survive_a_restart() {
    let cluster = Cluster::start().await;
    let before = version(&cluster.get(MAPS).await.expect(200));
    let created = cluster.create(MAPS, config_map("a")).await;
    let cluster = cluster.restart().await;
    assert_eq!(cluster.get(&format!("{MAPS}/a")).await.expect(200), created);
    // A watch goes on where it was, although the new server has no event of its own.
    let mut watch = cluster.watch(&format!("{MAPS}?watch=1&resourceVersion={before}")).await;
    assert_eq!(watch.told().await, "ADDED a");
}
