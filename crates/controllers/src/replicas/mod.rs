//! ReplicaSets and ReplicationControllers: as many pods as the spec says. One generic controller serves both kinds; the
//! kinds differ in where their fields are (`kinds`), what to do is decided by pure functions (`plan`).

mod kinds;
mod plan;

use std::sync::Arc;

use anyhow::Context as _;
use client::{
    Client, ErrorExt as _, Event, EventRecorder, EventType, Store, WorkQueue, controller_of, key_of, owner_reference,
    split_key,
};
use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};

use crate::common::{claims, expectations::Expectations, is_namespace_terminating, message, pods, selects, template};
use crate::framework::{Context, Controller, Requeue, owner_key};
use kinds::Replicator;
use plan::{Failure, Plan};

pub type ReplicaSetController = Replicas<ReplicaSet>;
pub type ReplicationManager = Replicas<ReplicationController>;

/// Pods created or deleted for one owner in one go.
const BURST: usize = 500;

pub struct Replicas<R: Replicator> {
    client: Client,
    events: EventRecorder,
    owners: Store<R>,
    pods: Store<Pod>,
    expectations: Arc<Expectations>,
}

impl<R: Replicator> Controller for Replicas<R> {
    const NAME: &'static str = R::CONTROLLER;

    fn new(context: &Context) -> Self {
        let owners = context.watch::<R>();
        // Siblings: sets of one deployment, whose pods count together when choosing nodes to take pods from.
        owners.add_index("controller", |owner| {
            controller_of(owner.meta()).map(|controller| controller.uid.clone()).into_iter().collect()
        });
        let expectations = Arc::<Expectations>::default();
        let observer = PodObserver { owners: owners.store(), expectations: expectations.clone() };
        let pods = context.on::<Pod>(move |event, queue| observer.observe(event, queue));
        pods.add_index("controller", |pod| vec![claimant(pod)]);
        Self {
            client: context.client.clone(),
            events: context.events.clone(),
            owners: owners.store(),
            pods: pods.store(),
            expectations,
        }
    }

    async fn reconcile(&self, key: &str) -> anyhow::Result<Requeue> {
        let Some(owner) = self.owners.get(key) else {
            self.expectations.forget(key);
            return Ok(Requeue::Never);
        };
        let up_to_date = self.expectations.satisfied(key);
        let owned = self.claim(&owner).await?;
        let plan = plan::plan(owner.as_ref(), &owned, |pod| self.rank(&owner, pod), Timestamp::now());
        let mut failure = None;
        if up_to_date && owner.meta().deletion_timestamp.is_none() {
            failure = self.execute(&owner, key, &plan).await;
        }
        let status =
            plan::status(owner.as_ref(), &owned, failure.as_ref().map(|(failure, _)| failure), Timestamp::now());
        self.write_status(&owner, status).await?;
        match failure {
            Some((_, error)) => Err(error),
            None => Ok(plan.available_in.into()),
        }
    }
}

/// What the pod index is keyed by: the controller's uid, or for an orphan its namespace.
fn claimant(pod: &Pod) -> String {
    match controller_of(&pod.metadata) {
        Some(controller) => controller.uid.clone(),
        None => format!("orphan/{}", pod.metadata.namespace.as_deref().unwrap_or_default()),
    }
}

impl<R: Replicator> Replicas<R> {
    /// The unfinished pods of an owner, after adopting and releasing.
    async fn claim(&self, owner: &R) -> anyhow::Result<Vec<Arc<Pod>>> {
        let meta = owner.meta();
        let mut candidates = self.pods.by_index("controller", meta.uid.as_deref().unwrap_or_default());
        let orphans = format!("orphan/{}", meta.namespace.as_deref().unwrap_or_default());
        candidates.extend(self.pods.by_index("controller", &orphans));
        candidates.retain(|pod| !pods::is_finished(pod));
        claims::claim_all(&self.client, owner, &owner.selector(), candidates).await
    }

    /// How many active pods of this owner and its siblings run on the pod's node.
    fn rank(&self, owner: &R, pod: &Pod) -> usize {
        let siblings = match controller_of(owner.meta()) {
            Some(controller) => self.owners.by_index("controller", &controller.uid),
            None => self.owners.get(&key_of(owner.meta())).into_iter().collect(),
        };
        let uids = siblings.iter().filter_map(|sibling| sibling.meta().uid.clone());
        let pods = uids.flat_map(|uid| self.pods.by_index("controller", &uid));
        pods.filter(|other| pods::is_active(other) && pods::node_name(other) == pods::node_name(pod)).count()
    }

    async fn execute(&self, owner: &R, key: &str, plan: &Plan) -> Option<(Failure, anyhow::Error)> {
        if plan.create > 0 {
            return self.create(owner, key, plan.create.min(BURST)).await;
        }
        if !plan.delete.is_empty() {
            return self.delete(owner, key, &plan.delete[..plan.delete.len().min(BURST)]).await;
        }
        None
    }

    /// Creates in batches of 1, 2, 4, ...: when creation fails for a reason that all pods share, it fails for few of them.
    async fn create(&self, owner: &R, key: &str, count: usize) -> Option<(Failure, anyhow::Error)> {
        let namespace = owner.meta().namespace.clone().unwrap_or_default();
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let pod = template::pod(&owner.template(), owner_reference(owner), &namespace);
        self.expectations.expect_creations(key, count);
        let (mut done, mut batch) = (0, 1);
        while done < count {
            let size = batch.min(count - done);
            let outcomes = join_all((0..size).map(|_| self.create_one(&api, owner, &pod))).await;
            done += size;
            let errors: Vec<kube::Error> = outcomes.into_iter().filter_map(Result::err).collect();
            if let Some(error) = errors.first() {
                let skipped = count - done;
                (0..errors.len() + skipped).for_each(|_| self.expectations.created(key));
                if errors.iter().all(is_namespace_terminating) {
                    return None;
                }
                let failure = Failure { reason: "FailedCreate", message: message(error) };
                return errors
                    .into_iter()
                    .next()
                    .map(|error| (failure, anyhow::Error::from(error).context("create a pod")));
            }
            batch *= 2;
        }
        None
    }

    async fn create_one(&self, api: &Api<Pod>, owner: &R, pod: &Pod) -> kube::Result<()> {
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

    async fn delete(&self, owner: &R, key: &str, doomed: &[Arc<Pod>]) -> Option<(Failure, anyhow::Error)> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), owner.meta().namespace.as_deref().unwrap_or_default());
        let uids = doomed.iter().filter_map(|pod| pod.metadata.uid.clone());
        self.expectations.expect_deletions(key, uids);
        let outcomes = join_all(doomed.iter().map(|pod| self.delete_one(&api, owner, key, pod))).await;
        let error = outcomes.into_iter().find_map(Result::err)?;
        let failure = Failure { reason: "FailedDelete", message: message(&error) };
        Some((failure, anyhow::Error::from(error).context("delete a pod")))
    }

    async fn delete_one(&self, api: &Api<Pod>, owner: &R, key: &str, pod: &Pod) -> kube::Result<()> {
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

    async fn write_status(&self, owner: &R, status: kinds::Status) -> anyhow::Result<()> {
        if owner.status() == status {
            return Ok(());
        }
        let (key, mut updated) = (key_of(owner.meta()), owner.clone());
        updated.set_status(status);
        let (namespace, name) = split_key(&key);
        let api: Api<R> = Api::namespaced(self.client.clone(), namespace);
        match api.replace_status(name, &PostParams::default(), &updated).await {
            Err(error) if !error.is_not_found() => Err(error).context("write the status"),
            _ => Ok(()),
        }
    }
}

/// Turns pod events into expectations met and keys to look at.
struct PodObserver<R: Replicator> {
    owners: Store<R>,
    expectations: Arc<Expectations>,
}

impl<R: Replicator> PodObserver<R> {
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
        let key = owner_key(&pod.metadata, &R::kind(&()))?;
        let uid = &controller_of(&pod.metadata)?.uid;
        self.owners.get(&key).is_some_and(|owner| owner.meta().uid.as_ref() == Some(uid)).then_some(key)
    }

    fn matching(&self, pod: &Pod) -> impl Iterator<Item = String> + use<R> {
        let owners = self.owners.list_namespace(pod.metadata.namespace.as_deref().unwrap_or_default());
        let matching = owners.into_iter().filter(|owner| selects(&owner.selector(), &pod.metadata));
        matching.map(|owner| key_of(owner.meta())).collect::<Vec<_>>().into_iter()
    }
}

fn relevant_change(old: &Pod, new: &Pod) -> bool {
    old.metadata.labels != new.metadata.labels || old.metadata.owner_references != new.metadata.owner_references
}
