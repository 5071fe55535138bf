//! What every namespace has, how one ends, and roles that are made of others.

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::Api;
use kube::api::DeleteParams;
use serde_json::json;

use crate::{Cluster, Handy as _, until_get, until_gone};

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_is_furnished_and_emptied() {
    let cluster = Cluster::start().await;
    let namespaces = cluster.all::<Namespace>();
    namespaces.make(json!({"metadata": {"name": "team"}})).await;
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), "team");
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "team");
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "team");
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), "team");
    until_get("default account", &accounts, "default", |_| true).await;
    let ca = until_get("root CA", &maps, "kube-root-ca.crt", |_| true).await;
    assert_eq!(ca.data.unwrap()["ca.crt"], "the CA");
    maps.merge("kube-root-ca.crt", json!({"data": {"ca.crt": "forged"}})).await;
    until_get("restored", &maps, "kube-root-ca.crt", |map| map.data.as_ref().unwrap()["ca.crt"] == "the CA").await;

    secrets.make(json!({"metadata": {"name": "needed", "finalizers": ["example.com/hold"]}})).await;
    pods.make(json!({"metadata": {"name": "slow", "finalizers": ["example.com/hold"]},
        "spec": {"containers": [{"name": "c", "image": "i"}]}}))
        .await;
    namespaces.remove("team", DeleteParams::default()).await;
    let condition = |namespace: &Namespace, kind: &str| {
        let conditions = namespace.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        conditions
            .into_iter()
            .find(|condition| condition.type_ == kind && condition.status == "True")
            .map(|c| c.message.unwrap())
    };
    let waiting = until_get("waits for the pod", &namespaces, "team", |found| {
        condition(found, "NamespaceContentRemaining").is_some()
    })
    .await;
    assert_eq!(
        condition(&waiting, "NamespaceFinalizersRemaining").unwrap(),
        "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances"
    );
    assert!(secrets.get("needed").await.unwrap().metadata.deletion_timestamp.is_none(), "pods go first");
    pods.merge("slow", json!({"metadata": {"finalizers": null}})).await;
    until_get("then the rest", &secrets, "needed", |secret| secret.metadata.deletion_timestamp.is_some()).await;
    secrets.merge("needed", json!({"metadata": {"finalizers": null}})).await;
    until_gone("the namespace", &namespaces, "team").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_roles_are_aggregated() {
    let cluster = Cluster::start().await;
    let roles = cluster.all::<ClusterRole>();
    let rule = |verb: &str| json!([{"verbs": [verb], "apiGroups": ["example.com"], "resources": ["widgets"]}]);
    let selector = json!({"clusterRoleSelectors": [{"matchLabels": {"to": "all"}}]});
    roles.make(json!({"metadata": {"name": "all"}, "aggregationRule": selector, "rules": []})).await;
    roles.make(json!({"metadata": {"name": "part", "labels": {"to": "all"}}, "rules": rule("get")})).await;
    let verbs =
        |role: &ClusterRole| role.rules.iter().flatten().flat_map(|rule| rule.verbs.clone()).collect::<Vec<_>>();
    until_get("get", &roles, "all", |role| verbs(role) == ["get"]).await;
    roles.merge("part", json!({"rules": rule("list")})).await;
    until_get("list", &roles, "all", |role| verbs(role) == ["list"]).await;
    cluster.stop().await;
}
