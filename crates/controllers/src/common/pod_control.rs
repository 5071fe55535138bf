//! Creating and deleting the pods of an owner, with the events and expectations that go with it, and turning pod events
//! into expectations met and owners to look at. It refuses to know why a pod is wanted or not.

use std::sync::Arc;

use client::informer::Object;
use client::{
    Client, ErrorExt as _, Event, EventRecorder, EventType, Informer, Store, WorkQueue, controller_of, key_of,
};
use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::core::{NamespaceResourceScope, ObjectMeta};
use kube::{Api, Resource};
use machinery::labels::Selector;

use super::{expectations::Expectations, is_namespace_terminating, message, pods, selects};
use crate::framework::{Context, owner_key};

/// Pods created or deleted for one owner in one go.
pub const BURST: usize = 500;

#[derive(Clone)]
pub struct PodControl {
    client: Client,
    events: EventRecorder,
    pub expectations: Arc<Expectations>,
}

/// How many pods were created or deleted, and why not all.
#[derive(Debug, Default)]
pub struct Outcome {
    pub done: usize,
    pub error: Option<kube::Error>,
}

impl PodControl {
    pub fn new(context: &Context) -> Self {
        let expectations = Arc::default();
        Self { client: context.client.clone(), events: context.events.clone(), expectations }
    }

    /// Creates in batches of 1, 2, 4, ...: when creation fails for a reason that all pods share, it fails for few of them.
    /// That the namespace is being deleted is no error: nothing is left to do.
    pub async fn create<O>(&self, owner: &O, key: &str, wanted: Vec<Pod>) -> Outcome
    where
        O: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), owner.meta().namespace.as_deref().unwrap_or_default());
        self.expectations.expect_creations(key, wanted.len());
        let (mut tried, mut batch) = (0, 1);
        while tried < wanted.len() {
            let size = batch.min(wanted.len() - tried);
            let outcomes =
                join_all(wanted[tried..tried + size].iter().map(|pod| self.create_one(&api, owner, pod))).await;
            tried += size;
            let errors: Vec<kube::Error> = outcomes.into_iter().filter_map(Result::err).collect();
            if !errors.is_empty() {
                let missing = errors.len() + wanted.len() - tried;
                (0..missing).for_each(|_| self.expectations.created(key));
                let hopeless = errors.iter().all(is_namespace_terminating);
                let error = errors.into_iter().next().filter(|_| !hopeless);
                return Outcome { done: wanted.len() - missing, error };
            }
            batch *= 2;
        }
        Outcome { done: tried, error: None }
    }

    async fn create_one<O>(&self, api: &Api<Pod>, owner: &O, pod: &Pod) -> kube::Result<()>
    where
        O: Resource<DynamicType = ()>,
    {
        match api.create(&PostParams::default(), pod).await {
            Ok(created) => {
                let name = created.metadata.name.unwrap_or_default();
                self.events.event(owner, EventType::Normal, "SuccessfulCreate", format!("Created pod: {name}"));
                Ok(())
            }
            Err(error) => {
                if !is_namespace_terminating(&error) {
                    let text = format!("Error creating: {}", message(&error));
                    self.events.event(owner, EventType::Warning, "FailedCreate", text);
                }
                Err(error)
            }
        }
    }

    pub async fn delete<O>(&self, owner: &O, key: &str, doomed: &[Arc<Pod>]) -> Outcome
    where
        O: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), owner.meta().namespace.as_deref().unwrap_or_default());
        self.expectations.expect_deletions(key, doomed.iter().filter_map(|pod| pod.metadata.uid.clone()));
        let outcomes = join_all(doomed.iter().map(|pod| self.delete_one(&api, owner, key, pod))).await;
        let done = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        Outcome { done, error: outcomes.into_iter().find_map(Result::err) }
    }

    async fn delete_one<O>(&self, api: &Api<Pod>, owner: &O, key: &str, pod: &Pod) -> kube::Result<()>
    where
        O: Resource<DynamicType = ()>,
    {
        let (name, uid) = (pod.metadata.name.clone().unwrap_or_default(), pod.metadata.uid.clone());
        let this_pod = Preconditions { uid: uid.clone(), resource_version: None };
        match api.delete(&name, &DeleteParams::default().preconditions(this_pod)).await {
            Ok(_) => {
                self.events.event(owner, EventType::Normal, "SuccessfulDelete", format!("Deleted pod: {name}"));
                Ok(())
            }
            Err(error) => {
                self.expectations.deleted(key, uid.as_deref().unwrap_or_default());
                if error.is_not_found() {
                    return Ok(());
                }
                let text = format!("Error deleting: {}", message(&error));
                self.events.event(owner, EventType::Warning, "FailedDelete", text);
                Err(error)
            }
        }
    }

    /// Watches pods for the owners of a kind: their events meet expectations, and queue the owner, or for an orphan every
    /// owner whose selector chooses it.
    pub fn watch<O: Object<DynamicType = ()>>(
        &self,
        context: &Context,
        owners: &Store<O>,
        selector: fn(&O) -> Selector,
    ) -> Informer<Pod> {
        let observer = Observer { owners: owners.clone(), expectations: self.expectations.clone(), selector };
        let pods = context.on::<Pod>(move |event, queue| observer.observe(event, queue));
        pods.add_index("controller", |pod| vec![claimant(pod)]);
        pods
    }
}

/// What the pod index is keyed by: the controller's uid, or for an orphan its namespace.
fn claimant(pod: &Pod) -> String {
    match controller_of(&pod.metadata) {
        Some(controller) => controller.uid.clone(),
        None => format!("orphan/{}", pod.metadata.namespace.as_deref().unwrap_or_default()),
    }
}

/// The pods that an owner has or may adopt.
pub fn candidates(pods: &Store<Pod>, owner: &ObjectMeta) -> Vec<Arc<Pod>> {
    let mut candidates = pods.by_index("controller", owner.uid.as_deref().unwrap_or_default());
    let orphans = format!("orphan/{}", owner.namespace.as_deref().unwrap_or_default());
    candidates.extend(pods.by_index("controller", &orphans));
    candidates
}

struct Observer<O> {
    owners: Store<O>,
    expectations: Arc<Expectations>,
    selector: fn(&O) -> Selector,
}

impl<O: Object<DynamicType = ()>> Observer<O> {
    fn observe(&self, event: &Event<Pod>, queue: &WorkQueue<String>) {
        let pod = event.object();
        let gone = matches!(event, Event::Deleted(_)) || pods::is_terminating(pod);
        if let Some(key) = self.owner_of(pod) {
            let uid = pod.metadata.uid.as_deref().unwrap_or_default();
            match event {
                Event::Added(_) if !gone => self.expectations.created(&key),
                _ if gone => self.expectations.deleted(&key, uid),
                _ => {}
            }
            queue.add(key);
        }
        if let Some(previous) = event.old().and_then(|old| self.owner_of(old)) {
            queue.add(previous); // a second add of the same key is free
        }
        if !gone && controller_of(&pod.metadata).is_none() && event.old().is_none_or(|old| relevant_change(old, pod)) {
            self.matching(pod).for_each(|key| queue.add(key));
        }
    }

    fn owner_of(&self, pod: &Pod) -> Option<String> {
        let key = owner_key(&pod.metadata, &O::kind(&()))?;
        let uid = &controller_of(&pod.metadata)?.uid;
        self.owners.get(&key).is_some_and(|owner| owner.meta().uid.as_ref() == Some(uid)).then_some(key)
    }

    fn matching(&self, pod: &Pod) -> impl Iterator<Item = String> + use<O> {
        let owners = self.owners.list_namespace(pod.metadata.namespace.as_deref().unwrap_or_default());
        let matching = owners.into_iter().filter(|owner| selects(&(self.selector)(owner), &pod.metadata));
        matching.map(|owner| key_of(owner.meta())).collect::<Vec<_>>().into_iter()
    }
}

fn relevant_change(old: &Pod, new: &Pod) -> bool {
    old.metadata.labels != new.metadata.labels || old.metadata.owner_references != new.metadata.owner_references
}
