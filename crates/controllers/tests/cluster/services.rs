//! Endpoints and slices follow pods.

use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::DeleteParams;
use serde_json::json;

use crate::{Cluster, Handy as _, name_of, until_get, until_gone, until_list};

/// "address ready" of every endpoint of a service's slices.
fn addresses(slices: &[EndpointSlice], service: &str) -> Vec<String> {
    let of_service = |slice: &&EndpointSlice| {
        slice
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get("kubernetes.io/service-name"))
            .is_some_and(|s| s == service)
    };
    let endpoints = slices.iter().filter(of_service).flat_map(|slice| slice.endpoints.iter().flatten());
    let ready =
        |endpoint: &k8s_openapi::api::discovery::v1::Endpoint| endpoint.conditions.as_ref().unwrap().ready.unwrap();
    let mut addresses: Vec<_> =
        endpoints.map(|endpoint| format!("{} {}", endpoint.addresses[0], ready(endpoint))).collect();
    addresses.sort();
    addresses
}

#[tokio::test(flavor = "multi_thread")]
async fn slices_and_endpoints_follow_pods() {
    let cluster = Cluster::start().await;
    let (services, pods) = (cluster.api::<Service>(), cluster.api::<Pod>());
    let (slices, endpoints) = (cluster.api::<EndpointSlice>(), cluster.api::<Endpoints>());
    services
        .make(json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"},
            "ports": [{"port": 80, "targetPort": "http"}]}}))
        .await;
    until_list("an empty slice", &slices, |slices| slices.iter().any(|slice| name_of(slice).starts_with("web-"))).await;
    for (name, ip) in [("a", "10.42.0.1"), ("b", "10.42.0.2")] {
        let container = json!({"name": "c", "image": "i", "ports": [{"name": "http", "containerPort": 8080}]});
        let spec = json!({"containers": [container], "terminationGracePeriodSeconds": 0, "nodeName": "n"});
        pods.make(json!({"metadata": {"name": name, "labels": {"app": "web"}}, "spec": spec})).await;
        let ready = json!([{"type": "Ready", "status": "True", "lastTransitionTime": "2024-01-01T00:00:00Z"}]);
        let status = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": ready});
        pods.merge_status(name, status).await;
    }
    let both =
        until_list("two endpoints", &slices, |s| addresses(s, "web") == ["10.42.0.1 true", "10.42.0.2 true"]).await;
    let with_ports: Vec<_> =
        both.iter().filter(|slice| slice.endpoints.as_ref().is_some_and(|e| !e.is_empty())).collect();
    let slice = with_ports.iter().find(|slice| name_of(**slice).starts_with("web-")).unwrap();
    assert_eq!(slice.ports.as_ref().unwrap()[0].port, Some(8080));
    until_get("endpoints", &endpoints, "web", |found| {
        found.subsets.as_ref().is_some_and(|subsets| subsets[0].addresses.as_ref().is_some_and(|a| a.len() == 2))
    })
    .await;

    let sick = json!([{"type": "Ready", "status": "False", "lastTransitionTime": "2024-01-01T00:00:01Z"}]);
    pods.merge_status("a", json!({"conditions": sick})).await;
    until_list("one ready", &slices, |s| addresses(s, "web") == ["10.42.0.1 false", "10.42.0.2 true"]).await;
    until_get("one not ready", &endpoints, "web", |found| {
        found.subsets.as_ref().is_some_and(|subsets| subsets[0].not_ready_addresses.is_some())
    })
    .await;
    pods.remove("a", DeleteParams::default().grace_period(0)).await;
    until_list("one left", &slices, |s| addresses(s, "web") == ["10.42.0.2 true"]).await;

    services.remove("web", DeleteParams::background()).await;
    until_list("slices collected", &slices, |slices| addresses(slices, "web").is_empty()).await;
    until_gone("endpoints deleted", &endpoints, "web").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_by_hand_are_mirrored() {
    let cluster = Cluster::start().await;
    let (services, slices) = (cluster.api::<Service>(), cluster.api::<EndpointSlice>());
    let endpoints = cluster.api::<Endpoints>();
    services.make(json!({"metadata": {"name": "db"}, "spec": {"ports": [{"port": 5432}]}})).await;
    let subset = json!({"addresses": [{"ip": "192.0.2.7"}], "ports": [{"port": 5432}]});
    endpoints.make(json!({"metadata": {"name": "db"}, "subsets": [subset]})).await;
    until_list("mirrored", &slices, |slices| addresses(slices, "db") == ["192.0.2.7 true"]).await;
    endpoints.merge("db", json!({"subsets": [{"addresses": [{"ip": "192.0.2.8"}], "ports": [{"port": 5432}]}]})).await;
    until_list("followed", &slices, |slices| addresses(slices, "db") == ["192.0.2.8 true"]).await;
    endpoints.remove("db", DeleteParams::default()).await;
    until_list("removed", &slices, |slices| addresses(slices, "db").is_empty()).await;
    cluster.stop().await;
}
