//! Publishes the cluster's CA as ConfigMap `kube-root-ca.crt` in every namespace, for pods to verify the API server with.

use std::collections::BTreeMap;

use anyhow::Context as _;
use client::{Client, ErrorExt as _, Store};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{ListParams, PostParams};

use crate::common::is_namespace_terminating;
use crate::framework::{Context, Controller, Requeue};

const NAME: &str = "kube-root-ca.crt";
const KEY: &str = "ca.crt";
const DESCRIPTION: (&str, &str) = (
    "kubernetes.io/description",
    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the \
     internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes \
     clusters.",
);

pub struct RootCaPublisher {
    client: Client,
    root_ca: Option<String>,
    namespaces: Store<Namespace>,
    published: Store<ConfigMap>,
}

impl Controller for RootCaPublisher {
    const NAME: &'static str = "root-ca-cert-publisher";
    const WORKERS: usize = 1;

    fn new(context: &Context) -> Self {
        let only_ours = ListParams::default().fields(&format!("metadata.name={NAME}"));
        let published = context.on_with::<ConfigMap>(&only_ours, |event, queue| {
            queue.add(event.object().metadata.namespace.clone().unwrap_or_default());
        });
        Self {
            client: context.client.clone(),
            root_ca: context.config.root_ca.clone(),
            namespaces: context.watch::<Namespace>().store(),
            published: published.store(),
        }
    }

    async fn reconcile(&self, key: &str) -> anyhow::Result<Requeue> {
        let live = self.namespaces.get(key).is_some_and(|found| found.metadata.deletion_timestamp.is_none());
        let Some(root_ca) = self.root_ca.as_ref().filter(|_| live) else { return Ok(Requeue::Never) };
        let data = BTreeMap::from([(KEY.to_owned(), root_ca.clone())]);
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), key);
        let outcome = match self.published.get(&format!("{key}/{NAME}")) {
            Some(found) if found.data.as_ref() == Some(&data) => return Ok(Requeue::Never),
            Some(found) => {
                let restored = ConfigMap { data: Some(data), binary_data: None, ..found.as_ref().clone() };
                api.replace(NAME, &PostParams::default(), &restored).await
            }
            None => {
                let metadata = ObjectMeta {
                    name: Some(NAME.into()),
                    namespace: Some(key.into()),
                    annotations: Some([(DESCRIPTION.0.to_owned(), DESCRIPTION.1.to_owned())].into()),
                    ..Default::default()
                };
                api.create(&PostParams::default(), &ConfigMap { metadata, data: Some(data), ..Default::default() })
                    .await
            }
        };
        match outcome {
            Err(error) if !error.is_already_exists() && !is_namespace_terminating(&error) => {
                Err(error).context("publish the root CA")
            }
            _ => Ok(Requeue::Never),
        }
    }
}
