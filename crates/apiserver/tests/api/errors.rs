//! Bad input gets the status, reason, message and causes that clients match on.

use super::*;

#[tokio::test]
async fn failures_are_statuses() {
    let cluster = Cluster::start().await;
    let missing = "the server could not find the requested resource";
    cluster.get("/api/v1/namespaces/default/nothings").await.fails(404, "NotFound", missing);
    cluster.get("/apis/apps/v9/things").await.fails(404, "NotFound", missing);
    // Of a group that nobody serves, nothing is a resource.
    let nobody = cluster.get("/apis/none/v1/things").await;
    assert_eq!((nobody.code, nobody.text.as_str()), (404, "404 page not found\n"));
    cluster.get("/api/v1/pods/p").await.fails(404, "NotFound", missing);
    cluster.get("/api/v1/namespaces/default/nodes").await.fails(404, "NotFound", missing);
    cluster.get(&format!("{MAPS}/a/status")).await.fails(404, "NotFound", missing);
    let method = "the server does not allow this method on the requested resource";
    cluster.call("POST", "/api/v1/configmaps", &config_map("a")).await.fails(405, "MethodNotAllowed", method);
    cluster.call("PUT", MAPS, &config_map("a")).await.fails(405, "MethodNotAllowed", method);
    let none = r#"pods "none" not found"#;
    cluster.call("OPTIONS", &format!("{PODS}/none/proxy/"), &Value::Null).await.fails(404, "NotFound", none);
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": "list", "resource": "pods"}}});
    let table = [("content-type", "application/json"), ("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let uri = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    Answer::of(cluster.send("POST", uri, &table, review.to_string()).await).await.expect(406);
    let big =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"a": "x".repeat(4 << 20)}});
    cluster.call("POST", MAPS, &big).await.fails(
        413,
        "RequestEntityTooLarge",
        "Request entity too large: limit is 3145728",
    );
    let answer = Answer::of(cluster.send("POST", MAPS, &[("content-type", "text/plain")], "x").await).await;
    answer.expect(415);
    let answer = Answer::of(cluster.send("POST", MAPS, &[], "{").await).await;
    assert_eq!(answer.expect(400)["reason"], "BadRequest");
    let invalid = cluster
        .call(
            "POST",
            PODS,
            &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "P"}, "spec": {"containers": []}}),
        )
        .await;
    let status = invalid.expect(422);
    assert_eq!(
        (&status["reason"], &status["details"]["kind"], &status["details"]["name"]),
        (&json!("Invalid"), &json!("Pod"), &json!("P"))
    );
    assert!(status["details"]["causes"].as_array().unwrap().len() >= 2, "{status}");
    cluster.call("POST", MAPS, &pod("p")).await.expect(400);
}

#[tokio::test]
async fn permission_is_needed() {
    let mut cluster = Cluster::start().await;
    cluster.create(MAPS, config_map("a")).await;
    cluster.user = UserInfo::component("bob");
    let message = r#"configmaps is forbidden: User "bob" cannot list resource "configmaps" in API group "" in the namespace "default""#;
    cluster.get(MAPS).await.fails(403, "Forbidden", message);
    cluster.get("/metrics").await.fails(403, "Forbidden", r#"forbidden: User "bob" cannot get path "/metrics""#);
    cluster.get("/version").await.expect(200);
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": "list", "resource": "configmaps", "namespace": "default"}}});
    let answer = cluster.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review).await;
    assert_eq!(answer["status"]["allowed"], false);
}
