//! Disruption budgets with evictions, and quotas.

use k8s_openapi::api::core::v1::{ConfigMap, Pod, ResourceQuota};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::DeleteParams;
use serde_json::{Value, json};

use crate::workloads::kubelet;
use crate::{Cluster, Handy as _, until_get, until_gone};

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"app": "web"}}, "spec": {"terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "100m"}}}]}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_limits_evictions() {
    let cluster = Cluster::start().await;
    let (pods, budgets) = (cluster.api::<Pod>(), cluster.api::<PodDisruptionBudget>());
    let _kubelet = kubelet(pods.clone());
    for name in ["a", "b"] {
        pods.make(pod(name)).await;
    }
    budgets
        .make(json!({"metadata": {"name": "web"}, "spec": {"minAvailable": 1,
            "selector": {"matchLabels": {"app": "web"}}}}))
        .await;
    let allows = |budget: &PodDisruptionBudget, number: i32, healthy: i32| {
        let status = budget.status.clone().unwrap_or_default();
        status.disruptions_allowed == Some(number) && status.current_healthy == Some(healthy)
    };
    until_get("one may go", &budgets, "web", |budget| allows(budget, 1, 2)).await;
    pods.evict("a", &Default::default()).await.unwrap();
    until_gone("the evicted", &pods, "a").await;
    until_get("none may go", &budgets, "web", |budget| allows(budget, 0, 1)).await;
    let refused = pods.evict("b", &Default::default()).await.unwrap_err();
    let kube::Error::Api(status) = refused else { panic!("{refused}") };
    assert_eq!((status.code, status.reason.as_str()), (429, "TooManyRequests"));
    assert_eq!(status.message, "Cannot evict pod as it would violate the pod's disruption budget.");
    let causes = status.details.unwrap().causes;
    assert_eq!(causes[0].message, "The disruption budget web needs 1 healthy pods and has 1 currently");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_gets_back_what_goes() {
    let cluster = Cluster::start().await;
    let (pods, quotas, maps) = (cluster.api::<Pod>(), cluster.api::<ResourceQuota>(), cluster.api::<ConfigMap>());
    pods.make(pod("early")).await;
    let hard = json!({"pods": "2", "requests.cpu": "1", "count/configmaps": "10"});
    quotas.make(json!({"metadata": {"name": "q"}, "spec": {"hard": hard}})).await;
    let uses = |quota: &ResourceQuota, key: &str, amount: &str| {
        let used = quota.status.as_ref().and_then(|status| status.used.as_ref());
        used.and_then(|used| used.get(key)).is_some_and(|used| used.0 == amount)
    };
    until_get("counted", &quotas, "q", |quota| uses(quota, "pods", "1") && uses(quota, "requests.cpu", "100m")).await;
    let quota = quotas.get("q").await.unwrap();
    let before: i64 = quota.status.unwrap().used.unwrap()["count/configmaps"].0.parse().unwrap();
    pods.make(pod("late")).await;
    until_get("charged", &quotas, "q", |quota| uses(quota, "requests.cpu", "200m")).await;
    pods.remove("early", DeleteParams::default()).await;
    until_get("given back", &quotas, "q", |quota| uses(quota, "pods", "1") && uses(quota, "requests.cpu", "100m"))
        .await;
    maps.make(json!({"metadata": {"name": "m"}})).await;
    until_get("one more", &quotas, "q", |quota| uses(quota, "count/configmaps", &(before + 1).to_string())).await;
    maps.remove("m", DeleteParams::default()).await;
    until_get("one less", &quotas, "q", |quota| uses(quota, "count/configmaps", &before.to_string())).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_is_not_exceeded_by_haste() {
    let cluster = Cluster::start().await;
    let (pods, quotas) = (cluster.api::<Pod>(), cluster.api::<ResourceQuota>());
    quotas.make(json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "3"}}})).await;
    let used = |quota: &ResourceQuota| quota.status.as_ref()?.used.as_ref()?.get("pods").map(|used| used.0.clone());
    until_get("counted", &quotas, "q", |quota| used(quota).is_some()).await;
    for round in 0..10 {
        let names: Vec<String> = (0..8).map(|number| format!("p{round}-{number}")).collect();
        let made = names.iter().map(|name| async {
            pods.create(&Default::default(), &serde_json::from_value(pod(name)).unwrap()).await.is_ok()
        });
        let made = futures::future::join_all(made).await;
        assert_eq!(made.iter().filter(|made| **made).count(), 3, "round {round}");
        // While the controller may still be counting what has just been made, there is no room for more.
        assert!(pods.create(&Default::default(), &serde_json::from_value(pod("more")).unwrap()).await.is_err());
        for (name, _) in names.iter().zip(&made).filter(|(_, made)| **made) {
            pods.remove(name, DeleteParams::default()).await;
        }
        until_get("given back", &quotas, "q", |quota| used(quota).as_deref() == Some("0")).await;
    }
    cluster.stop().await;
}
