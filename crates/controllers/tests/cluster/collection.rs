//! Garbage collection on config maps, since anything can own anything.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::DeleteParams;
use serde_json::{Value, json};

use crate::{Cluster, Handy as _, until_get, until_gone};

fn owned_by(name: &str, owners: &[&ConfigMap]) -> Value {
    let reference = |owner: &&ConfigMap| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "name": owner.metadata.name, "uid": owner.metadata.uid,
            "blockOwnerDeletion": true})
    };
    json!({"metadata": {"name": name, "ownerReferences": owners.iter().map(reference).collect::<Vec<_>>()}})
}

async fn owners(api: &Api<ConfigMap>, name: &str) -> Vec<String> {
    let found = api.get(name).await.unwrap().metadata.owner_references.unwrap_or_default();
    found.into_iter().map(|owner| owner.name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn dependents_follow_their_last_owner() {
    let cluster = Cluster::start().await;
    let maps = cluster.api::<ConfigMap>();
    let (a, b) = (maps.make(owned_by("a", &[])).await, maps.make(owned_by("b", &[])).await);
    maps.make(owned_by("of-a", &[&a])).await;
    let child = maps.make(owned_by("of-both", &[&a, &b])).await;
    maps.make(owned_by("grandchild", &[&child])).await;
    maps.remove("a", DeleteParams::background()).await;
    until_gone("of-a", &maps, "of-a").await;
    until_get("of-both keeps b", &maps, "of-both", |map| {
        map.metadata.owner_references.as_ref().is_some_and(|o| o.len() == 1)
    })
    .await;
    assert_eq!(owners(&maps, "of-both").await, ["b"]);
    assert!(maps.get_opt("grandchild").await.unwrap().is_some());
    maps.remove("b", DeleteParams::background()).await;
    until_gone("grandchild", &maps, "grandchild").await;

    let mut stray = owned_by("stray", &[&a]);
    stray["metadata"]["ownerReferences"][0]["uid"] = json!("00000000-0000-0000-0000-000000000000");
    maps.make(stray).await;
    until_gone("an owner that never was", &maps, "stray").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn foreground_waits_and_orphaning_frees() {
    let cluster = Cluster::start().await;
    let maps = cluster.api::<ConfigMap>();
    let owner = maps.make(owned_by("owner", &[])).await;
    let mut held = owned_by("held", &[&owner]);
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    maps.make(held).await;
    maps.make(owned_by("free", &[&owner])).await;
    maps.remove("owner", DeleteParams::foreground()).await;
    until_gone("free", &maps, "free").await;
    until_get("held is being deleted", &maps, "held", |map| map.metadata.deletion_timestamp.is_some()).await;
    let waiting = maps.get("owner").await.unwrap().metadata;
    assert_eq!(waiting.finalizers.unwrap(), ["foregroundDeletion"], "the owner waits for what blocks it");
    maps.merge("held", json!({"metadata": {"finalizers": null}})).await;
    until_gone("owner", &maps, "owner").await;

    let owner = maps.make(owned_by("owner", &[])).await;
    maps.make(owned_by("orphan", &[&owner])).await;
    maps.remove("owner", DeleteParams::orphan()).await;
    until_gone("owner", &maps, "owner").await;
    assert!(owners(&maps, "orphan").await.is_empty());
    cluster.stop().await;
}
