//! Every live namespace has a service account named `default`, since pods that name none run as it.

use anyhow::Context as _;
use client::{Client, ErrorExt as _, Event, Store};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;

use crate::common::is_namespace_terminating;
use crate::framework::{Context, Controller, Requeue};

const DEFAULT: &str = "default";

pub struct ServiceAccountController {
    client: Client,
    namespaces: Store<Namespace>,
    accounts: Store<ServiceAccount>,
}

impl Controller for ServiceAccountController {
    const NAME: &'static str = "service-account-controller";
    const WORKERS: usize = 1;

    fn new(context: &Context) -> Self {
        let accounts = context.on::<ServiceAccount>(|event, queue| {
            if let Event::Deleted(account) = event {
                queue.add(account.metadata.namespace.clone().unwrap_or_default());
            }
        });
        Self {
            client: context.client.clone(),
            namespaces: context.watch::<Namespace>().store(),
            accounts: accounts.store(),
        }
    }

    async fn reconcile(&self, key: &str) -> anyhow::Result<Requeue> {
        let live = self.namespaces.get(key).is_some_and(|found| found.metadata.deletion_timestamp.is_none());
        if !live || self.accounts.get(&format!("{key}/{DEFAULT}")).is_some() {
            return Ok(Requeue::Never);
        }
        let metadata = ObjectMeta { name: Some(DEFAULT.into()), namespace: Some(key.into()), ..Default::default() };
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), key);
        match api.create(&PostParams::default(), &ServiceAccount { metadata, ..Default::default() }).await {
            Err(error) if !error.is_already_exists() && !is_namespace_terminating(&error) => {
                Err(error).context("create the default service account")
            }
            _ => Ok(Requeue::Never),
        }
    }
}
