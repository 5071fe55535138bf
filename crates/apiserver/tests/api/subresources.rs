//! Status, scale, binding, eviction and the other subresources.

use super::*;

#[tokio::test]
async fn scale_is_a_view() {
    let cluster = Cluster::start().await;
    let uri = "/apis/apps/v1/namespaces/default/deployments";
    let template =
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "busybox"}]}});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}, "template": template}});
    cluster.create(uri, deployment).await;
    let uri = format!("{uri}/d/scale");
    let scale = cluster.get(&uri).await.expect(200);
    assert_eq!(
        (&scale["kind"], &scale["spec"]["replicas"], &scale["status"]["selector"]),
        (&json!("Scale"), &json!(2), &json!("a=b"))
    );
    let scaled = cluster.call("PATCH", &uri, &json!({"spec": {"replicas": 4}})).await.expect(200);
    assert_eq!(scaled["spec"]["replicas"], 4);
    let mut stale = scale.clone();
    stale["spec"]["replicas"] = 1.into();
    cluster.call("PUT", &uri, &stale).await.expect(409);
    stale["metadata"]["resourceVersion"] = scaled["metadata"]["resourceVersion"].clone();
    cluster.call("PUT", &uri, &stale).await.expect(200);
    let object = cluster.get(uri.trim_end_matches("/scale")).await.expect(200);
    assert_eq!((&object["spec"]["replicas"], &object["metadata"]["generation"]), (&json!(1), &json!(3)));
}

#[tokio::test]
async fn a_pod_is_bound_once() {
    let cluster = Cluster::start().await;
    cluster.create(PODS, pod("p")).await;
    let binding = |node: &str| json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": node}});
    let uri = format!("{PODS}/p/binding");
    cluster.call("POST", &uri, &binding("")).await.expect(422);
    assert_eq!(cluster.create(&uri, binding("n1")).await["status"], "Success");
    let message = "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n1\"";
    cluster.call("POST", &uri, &binding("n2")).await.fails(409, "Conflict", message);
    let bound = cluster.get(&format!("{PODS}/p")).await.expect(200);
    assert_eq!(
        (&bound["spec"]["nodeName"], &bound["status"]["conditions"][0]["type"]),
        (&json!("n1"), &json!("PodScheduled"))
    );
    cluster.create(PODS, pod("q")).await;
    let mut old_way = binding("n1");
    old_way["metadata"]["name"] = "q".into();
    cluster.create("/api/v1/namespaces/default/bindings", old_way).await;
    assert_eq!(cluster.get(&format!("{PODS}/q")).await.expect(200)["spec"]["nodeName"], "n1");
}

#[tokio::test]
async fn an_eviction_deletes() {
    let cluster = Cluster::start().await;
    cluster.create(PODS, pod("p")).await;
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    assert_eq!(cluster.create(&format!("{PODS}/p/eviction"), eviction.clone()).await["status"], "Success");
    cluster.get(&format!("{PODS}/p")).await.expect(404);
    cluster.call("POST", &format!("{PODS}/p/eviction"), &eviction).await.expect(404);
}

#[tokio::test]
async fn tokens_are_issued() {
    let cluster = Cluster::start().await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "s"}});
    cluster.create("/api/v1/namespaces/default/serviceaccounts", account).await;
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let issued = cluster.create("/api/v1/namespaces/default/serviceaccounts/s/token", request).await;
    let token = text(&issued["status"]["token"]);
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let reviewed = cluster.create("/apis/authentication.k8s.io/v1/tokenreviews", review).await;
    assert_eq!(reviewed["status"]["user"]["username"], "system:serviceaccount:default:s");
}

#[tokio::test]
async fn the_kubernetes_service_leads_here() {
    let cluster = Cluster::advertising("192.0.2.7:6443").await;
    let mut slices = cluster
        .watch("/apis/discovery.k8s.io/v1/endpointslices?watch=1&labelSelector=kubernetes.io/service-name%3Dkubernetes")
        .await;
    let slice = slices.next().await.unwrap();
    assert_eq!(
        (&slice["object"]["endpoints"][0]["addresses"], &slice["object"]["ports"][0]["port"]),
        (&json!(["192.0.2.7"]), &json!(6443))
    );
    let mut endpoints = cluster.watch("/api/v1/namespaces/default/endpoints?watch=1").await;
    assert_eq!(endpoints.next().await.unwrap()["object"]["subsets"][0]["addresses"][0]["ip"], "192.0.2.7");
    let service = cluster.get("/api/v1/namespaces/default/services/kubernetes").await.expect(200);
    assert_eq!(service["spec"]["ports"][0]["targetPort"], 6443);
    // A server that stops takes itself out.
    cluster.server.shutdown().await;
    let cluster = cluster.restart().await;
    let left = cluster.get("/api/v1/namespaces/default/endpoints/kubernetes").await.expect(200);
    assert!(left["subsets"].is_null(), "{left}");
}
