//! Discovery in both forms, OpenAPI, version and health.

use super::*;

#[tokio::test]
async fn what_is_served_can_be_discovered() {
    let cluster = Cluster::start().await;
    let core = cluster.get("/api/v1").await.expect(200);
    let find = |name: &str| {
        core["resources"].as_array().unwrap().iter().find(|resource| resource["name"] == name).unwrap().clone()
    };
    assert_eq!(
        (&find("pods")["shortNames"], &find("pods")["namespaced"], &find("pods/status")["kind"]),
        (&json!(["po"]), &json!(true), &json!("Pod"))
    );
    let groups = cluster.get("/apis").await.expect(200);
    assert_eq!(groups["groups"][0]["preferredVersion"]["groupVersion"], "apps/v1");
    assert_eq!(cluster.get("/apis/apps").await.expect(200)["kind"], "APIGroup");
    assert_eq!(cluster.get("/version").await.expect(200)["minor"], "36");
    cluster.get("/apis/none").await.expect(404);
}

#[tokio::test]
async fn aggregated_discovery_is_cached_by_its_hash() {
    let cluster = Cluster::start().await;
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let response = cluster.send("GET", "/apis", &[("accept", accept)], Body::empty()).await;
    let etag = response.headers()["etag"].to_str().unwrap().to_owned();
    assert_eq!(
        response.headers()["content-type"],
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    );
    let document = Answer::of(response).await.body;
    assert_eq!(
        (&document["items"][0]["metadata"]["name"], &document["apiVersion"]),
        (&json!("apps"), &json!("apidiscovery.k8s.io/v2"))
    );
    let again = cluster.send("GET", "/apis", &[("accept", accept), ("if-none-match", &etag)], Body::empty()).await;
    assert_eq!(again.status(), 304);
}

#[tokio::test]
async fn openapi_describes_the_kinds() {
    let cluster = Cluster::start().await;
    let index = cluster.get("/openapi/v3").await.expect(200);
    let url = text(&index["paths"]["apis/apps/v1"]["serverRelativeURL"]);
    let document = cluster.get(&url).await.expect(200);
    let schemas = &document["components"]["schemas"];
    let deployment = &schemas["io.k8s.api.apps.v1.Deployment"];
    assert_eq!(deployment["x-kubernetes-group-version-kind"][0]["kind"], "Deployment");
    assert!(text(&deployment["description"]).starts_with("Deployment enables"), "{deployment}");
    for (field, prose) in
        [("apiVersion", "APIVersion defines the versioned schema"), ("kind", "Kind is a string value")]
    {
        assert!(text(&deployment["properties"][field]["description"]).starts_with(prose), "{deployment}");
    }
    let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(
        (&containers["x-kubernetes-patch-merge-key"], &containers["x-kubernetes-list-map-keys"]),
        (&json!("name"), &json!(["name"]))
    );
    let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert!(
        patch["parameters"].as_array().unwrap().iter().any(|parameter| parameter["name"] == "fieldValidation"),
        "{patch}"
    );
    // Every reference leads somewhere.
    let text = document.to_string();
    for name in text.split("#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(schemas[name].is_object(), "{name}");
    }
    let v2 = cluster.get("/openapi/v2").await.expect(200);
    assert_eq!(v2["definitions"]["io.k8s.api.core.v1.Pod"]["type"], "object");
}

#[tokio::test]
async fn openapi_v2_is_served_as_protobuf_by_either_name() {
    let cluster = Cluster::start().await;
    let valid = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    for accept in [valid, "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"] {
        let response = cluster.send("GET", "/openapi/v2", &[("accept", accept)], Body::empty()).await;
        assert_eq!((response.status().as_u16(), &response.headers()["content-type"]), (200, &valid.parse().unwrap()));
        let message = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        // Keys are written in order: from the definitions, field 9, to the version, field 1.
        assert!(message.ends_with(b"\x0a\x032.0") && message[0] == 0x4a, "{:?}", &message[..20]);
    }
    let refused = cluster.send("GET", "/openapi/v2", &[("accept", "text/html")], Body::empty()).await;
    assert_eq!(refused.status(), 406);
    // Health is text, whatever a load balancer says it accepts.
    let health = cluster.send("GET", "/healthz", &[("accept", "text/html")], Body::empty()).await;
    assert_eq!(health.status(), 200);
}

#[tokio::test]
async fn health_is_told() {
    let cluster = Cluster::start().await;
    for path in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(cluster.get(path).await.text, "ok");
    }
    let verbose = cluster.get("/readyz?verbose").await.text;
    assert!(verbose.contains("[+]store ok") && verbose.ends_with("readyz check passed\n"), "{verbose}");
    cluster.get("/readyz/none").await.expect(404);
    cluster.create(MAPS, config_map("a")).await;
    let metrics = cluster.get("/metrics").await.text;
    let count = r#"apiserver_request_total{verb="POST",group="",version="v1",resource="configmaps",subresource="",code="201"} 1"#;
    assert!(metrics.contains(count), "{metrics}");
    assert!(metrics.contains("process_resident_memory_bytes"));
}
