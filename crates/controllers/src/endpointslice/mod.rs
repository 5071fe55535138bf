//! EndpointSlices of services with a selector: which pods serve, at most 100 to a slice, changed as little as possible,
//! since every node watches every slice. [`desired`] says what should be there, [`reconcile`] which slices to write.

pub mod desired;
pub mod mirroring;
pub mod reconcile;

use std::sync::Arc;

use anyhow::Context as _;
use client::{Client, ErrorExt as _, Event, EventRecorder, EventType, Store, split_key};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{DeleteParams, PostParams};

use crate::common::expectations::Expectations;
use crate::common::services::{observe_pod, service_selector};
use crate::common::trigger_time::{TriggerTimes, annotate};
use crate::common::written::Written;
use crate::common::{describe, is_namespace_terminating, selects};
use crate::framework::{Context, Controller, Requeue};
use reconcile::Changes;

pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";

pub struct EndpointSliceController {
    events: EventRecorder,
    services: Store<Service>,
    pods: Store<Pod>,
    nodes: Store<Node>,
    slices: Slices,
    triggers: TriggerTimes,
}

impl Controller for EndpointSliceController {
    const NAME: &'static str = "endpointslice-controller";

    fn new(context: &Context) -> Self {
        let services = context.watch::<Service>().store();
        let known = services.clone();
        let pods = context.on::<Pod>(move |event, queue| observe_pod(&known, event, queue));
        Self {
            events: context.events.clone(),
            services,
            pods: pods.store(),
            nodes: context.informer::<Node>().store(),
            slices: Slices::watch(context, MANAGER),
            triggers: TriggerTimes::default(),
        }
    }

    async fn reconcile(&self, key: &str) -> anyhow::Result<Requeue> {
        if !self.slices.up_to_date(key) {
            return Ok(Requeue::Never); // the slices that are under way will queue the key again
        }
        let service = self.services.get(key).filter(|service| service.metadata.deletion_timestamp.is_none());
        let Some(service) = service else {
            self.slices.expectations.forget(key);
            self.triggers.forget(key);
            return Ok(Requeue::Never); // slices go with their service by garbage collection
        };
        let Some(selector) = service_selector(&service) else { return Ok(Requeue::Never) };
        let mut pods = self.pods.list_namespace(split_key(key).0);
        pods.retain(|pod| selects(&selector, &pod.metadata));
        let groups = desired::groups(&service, &pods, |node| self.nodes.get(node));
        let metadata = desired::metadata(&service, MANAGER);
        let triggered = self.triggers.observe(key, &service, &pods);
        let mut changes =
            reconcile::reconcile(&metadata, &desired::address_types(&service), groups, &self.slices.of(key));
        let written = changes.create.iter_mut().chain(&mut changes.update);
        written.for_each(|slice| annotate(&mut slice.metadata, triggered));
        let outcome = self.slices.write(key, changes).await;
        if let Err(error) = &outcome {
            let text = format!("Error updating Endpoint Slices for Service {key}: {}", describe(error));
            self.events.event(service.as_ref(), EventType::Warning, "FailedToUpdateEndpointSlices", text);
        }
        outcome.map(|()| Requeue::Never)
    }
}

/// The slices of one manager: a cache of them, and how to change them.
pub(crate) struct Slices {
    client: Client,
    store: Store<EndpointSlice>,
    manager: &'static str,
    expectations: Arc<Expectations>,
    /// By uid. A plan from a cache that has not come so far would be refused.
    written: Arc<Written>,
}

impl Slices {
    pub(crate) fn watch(context: &Context, manager: &'static str) -> Self {
        let expectations = Arc::<Expectations>::default();
        let written = Arc::<Written>::default();
        let (observed, forgotten) = (expectations.clone(), written.clone());
        let slices = context.on::<EndpointSlice>(move |event, queue| {
            let slice = event.object();
            let Some(key) = service_key(slice).filter(|_| manager_of(slice) == Some(manager)) else { return };
            match event {
                Event::Added(_) => observed.created(&key),
                Event::Deleted(slice) => {
                    let uid = slice.metadata.uid.as_deref().unwrap_or_default();
                    observed.deleted(&key, uid);
                    forgotten.forget(uid);
                }
                Event::Modified { .. } => {}
            }
            queue.add(key);
        });
        slices.add_index("service", |slice| service_key(slice).into_iter().collect());
        Self { client: context.client.clone(), store: slices.store(), manager, expectations, written }
    }

    pub(crate) fn up_to_date(&self, key: &str) -> bool {
        let current = |slice: &Arc<EndpointSlice>| {
            !self.written.is_ahead_of(slice.metadata.uid.as_deref().unwrap_or_default(), &slice.metadata)
        };
        self.expectations.satisfied(key) && self.of(key).iter().all(current)
    }

    pub(crate) fn of(&self, key: &str) -> Vec<Arc<EndpointSlice>> {
        let mut slices = self.store.by_index("service", key);
        slices.retain(|slice| manager_of(slice) == Some(self.manager) && slice.metadata.deletion_timestamp.is_none());
        slices
    }

    pub(crate) async fn write(&self, key: &str, changes: Changes) -> anyhow::Result<()> {
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), split_key(key).0);
        if !changes.create.is_empty() {
            self.expectations.expect_creations(key, changes.create.len());
        }
        let mut failure = None;
        for slice in &changes.create {
            if let Err(error) = api.create(&PostParams::default(), slice).await {
                self.expectations.created(key);
                if !is_namespace_terminating(&error) {
                    failure = Some(anyhow::Error::from(error).context("create a slice"));
                }
            }
        }
        for slice in &changes.update {
            let name = slice.metadata.name.as_deref().unwrap_or_default();
            let updated = api.replace(name, &PostParams::default(), slice).await;
            let updated = updated.with_context(|| format!("update slice {name}"))?;
            self.written.wrote(updated.metadata.uid.as_deref().unwrap_or_default(), &updated.metadata);
        }
        for slice in &changes.delete {
            let name = slice.metadata.name.as_deref().unwrap_or_default();
            match api.delete(name, &DeleteParams::default()).await {
                Err(error) if !error.is_not_found() => {
                    return Err(error).with_context(|| format!("delete slice {name}"));
                }
                _ => {}
            }
        }
        failure.map_or(Ok(()), Err)
    }
}

fn manager_of(slice: &EndpointSlice) -> Option<&str> {
    slice.metadata.labels.as_ref()?.get(MANAGED_BY).map(String::as_str)
}

fn service_key(slice: &EndpointSlice) -> Option<String> {
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(format!("{}/{service}", slice.metadata.namespace.as_deref().unwrap_or_default()))
}
