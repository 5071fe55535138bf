//! DefaultBinder: binds by POSTing a Binding.

use anyhow::Context as _;
use async_trait::async_trait;
use client::Client;
use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;
use kube::core::response::Status;

use crate::framework::Plugin;
use crate::pod::PodInfo;
use crate::writes::in_time;

pub struct DefaultBinder;

#[async_trait]
impl Plugin for DefaultBinder {
    fn name(&self) -> &'static str {
        "DefaultBinder"
    }

    async fn bind(&self, client: &Client, pod: &PodInfo, node: &str) -> anyhow::Result<bool> {
        let some = |text: &str| Some(text.to_owned());
        let metadata = ObjectMeta {
            name: some(pod.name()),
            namespace: some(pod.namespace()),
            uid: some(&pod.uid),
            ..Default::default()
        };
        let target = ObjectReference { kind: some("Node"), name: some(node), ..Default::default() };
        let binding = Binding { metadata, target };
        let api: Api<Pod> = Api::namespaced(client.clone(), pod.namespace());
        let params = PostParams::default();
        let posted = api.create_subresource::<_, Status>("binding", pod.name(), &params, &binding);
        let bound = in_time(posted).await.map(|_| true);
        bound.with_context(|| format!("bind {}/{} to {node}", pod.namespace(), pod.name()))
    }
}
