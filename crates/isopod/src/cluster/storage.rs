//! The storage class that a new cluster comes with. Created once in its life: whoever changes or deletes it has the last
//! word.

use client::{Client, ErrorExt as _};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;

/// On kube-system, once the class was created.
const DONE: &str = "isopod.io/default-storage-class";
const NAME: &str = "local-path";

pub async fn ensure_default_class(client: &Client) -> kube::Result<()> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let system = namespaces.get("kube-system").await?;
    if system.metadata.annotations.is_some_and(|annotations| annotations.contains_key(DONE)) {
        return Ok(());
    }
    match Api::<StorageClass>::all(client.clone()).create(&PostParams::default(), &class()).await {
        Err(error) if !error.is_already_exists() => return Err(error),
        _ => {}
    }
    let done = Patch::Merge(json!({"metadata": {"annotations": {DONE: NAME}}}));
    namespaces.patch("kube-system", &PatchParams::default(), &done).await.map(drop)
}

fn class() -> StorageClass {
    StorageClass {
        metadata: kube::core::ObjectMeta {
            name: Some(NAME.into()),
            annotations: Some([("storageclass.kubernetes.io/is-default-class".into(), "true".into())].into()),
            ..Default::default()
        },
        provisioner: controllers::local_path::PROVISIONER.into(),
        reclaim_policy: Some("Delete".into()),
        volume_binding_mode: Some("WaitForFirstConsumer".into()),
        // A directory is as large as its disk.
        allow_volume_expansion: Some(true),
        ..Default::default()
    }
}
