//! The three patch types, their preconditions and their refusals.

use super::*;

async fn patch(cluster: &Cluster, uri: &str, kind: &str, body: Value) -> Answer {
    let content_type = format!("application/{kind}");
    Answer::of(cluster.send("PATCH", uri, &[("content-type", &content_type)], body.to_string()).await).await
}

#[tokio::test]
async fn all_kinds_of_patches_apply() {
    let cluster = Cluster::start().await;
    cluster.create(PODS, pod("p")).await;
    let uri = format!("{PODS}/p");
    let merged = patch(
        &cluster,
        &uri,
        "strategic-merge-patch+json",
        json!({"spec": {"containers": [{"name": "c", "image": "nginx"}]}}),
    )
    .await;
    let merged = merged.expect(200);
    let containers = merged["spec"]["containers"].as_array().unwrap();
    assert_eq!((containers.len(), &containers[0]["image"], &containers[0]["name"]), (1, &json!("nginx"), &json!("c")));
    let operations = json!([{"op": "add", "path": "/metadata/labels", "value": {"x": "y"}}]);
    assert_eq!(patch(&cluster, &uri, "json-patch+json", operations).await.expect(200)["metadata"]["labels"]["x"], "y");
    let merged = patch(&cluster, &uri, "merge-patch+json", json!({"metadata": {"labels": {"x": null, "z": "1"}}}))
        .await
        .expect(200);
    assert_eq!(merged["metadata"]["labels"], json!({"z": "1"}));
}

#[tokio::test]
async fn patches_are_checked() {
    let cluster = Cluster::start().await;
    let created = cluster.create(MAPS, config_map("a")).await;
    let uri = format!("{MAPS}/a");
    patch(&cluster, &uri, "json-patch+json", json!({"not": "a list"})).await.expect(400);
    patch(&cluster, &uri, "xml", json!({})).await.expect(415);
    let stale = json!({"metadata": {"resourceVersion": "1"}, "data": {"x": "y"}});
    patch(&cluster, &uri, "merge-patch+json", stale).await.expect(409);
    patch(&cluster, &uri, "merge-patch+json", json!({"data": {"x": 1}})).await.expect(422);
    patch(&cluster, &uri, "merge-patch+json", json!({"metadata": {"name": "b"}})).await.expect(400);
    patch(&cluster, &format!("{MAPS}/none"), "merge-patch+json", json!({})).await.fails(
        404,
        "NotFound",
        r#"configmaps "none" not found"#,
    );
    let same = patch(&cluster, &uri, "merge-patch+json", json!({"data": {"a": "b"}})).await.expect(200);
    assert_eq!(version(&same), version(&created));
}
