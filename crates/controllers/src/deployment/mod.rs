//! Deployments: roll ReplicaSets from one template to the next. Everything is decided in [`plan`] from the deployment, its
//! sets and its pods; here it is only carried out. One pass does one step, and the change of a set brings the next.

mod plan;
mod progress;
mod scale;

use std::sync::Arc;

use anyhow::Context as _;
use client::{
    Client, ErrorExt as _, Event, EventRecorder, EventType, Store, WorkQueue, controller_of, key_of, split_key,
};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};

use crate::common::{claims, is_namespace_terminating, message, pods, selector, selects, template};
use crate::framework::{Context, Controller, Requeue, owner_key};
use plan::Plan;

pub struct DeploymentController {
    client: Client,
    events: EventRecorder,
    deployments: Store<Deployment>,
    sets: Store<ReplicaSet>,
    pods: Store<Pod>,
}

impl Controller for DeploymentController {
    const NAME: &'static str = "deployment-controller";

    fn new(context: &Context) -> Self {
        let deployments = context.watch::<Deployment>().store();
        let (observed, observing) = (deployments.clone(), context.informer::<ReplicaSet>().store());
        let sets = context.on::<ReplicaSet>(move |event, queue| observe_set(&observed, event, queue));
        sets.add_index("controller", |set| {
            vec![controller_of(&set.metadata).map_or_else(|| orphans(&set.metadata), |owner| owner.uid.clone())]
        });
        // Recreate waits for the last old pod to go.
        let pods = context.on::<Pod>(move |event, queue| {
            let gone = matches!(event, Event::Deleted(_)) || pods::is_finished(event.object());
            let set = owner_key(&event.object().metadata, "ReplicaSet").filter(|_| gone);
            let set = set.and_then(|key| observing.get(&key));
            set.and_then(|set| owner_key(&set.metadata, "Deployment")).into_iter().for_each(|key| queue.add(key));
        });
        pods.add_index("set", |pod| controller_of(&pod.metadata).map(|owner| owner.uid.clone()).into_iter().collect());
        Self {
            client: context.client.clone(),
            events: context.events.clone(),
            deployments,
            sets: sets.store(),
            pods: pods.store(),
        }
    }

    async fn reconcile(&self, key: &str) -> anyhow::Result<Requeue> {
        let Some(deployment) = self.deployments.get(key) else { return Ok(Requeue::Never) };
        let Some(spec) = &deployment.spec else { return Ok(Requeue::Never) };
        let selector = selector(&spec.selector);
        if selector.is_everything() {
            let text = "This deployment is selecting all pods. A non-empty selector is required.";
            self.events.event(deployment.as_ref(), EventType::Warning, "SelectingAll", text);
            return Ok(Requeue::Never);
        }
        let mut candidates = self.sets.by_index("controller", deployment.metadata.uid.as_deref().unwrap_or_default());
        candidates.extend(self.sets.by_index("controller", &orphans(&deployment.metadata)));
        let sets = claims::claim_all(&self.client, deployment.as_ref(), &selector, candidates).await?;
        let plan = plan::plan(&deployment, &sets, |set| self.runs_pods(set), Timestamp::now());
        self.execute(&deployment, plan).await
    }
}

fn orphans(meta: &kube::core::ObjectMeta) -> String {
    format!("orphan/{}", meta.namespace.as_deref().unwrap_or_default())
}

fn observe_set(deployments: &Store<Deployment>, event: &Event<ReplicaSet>, queue: &WorkQueue<String>) {
    let set = event.object();
    for set in event.old().into_iter().chain([set]) {
        owner_key(&set.metadata, "Deployment").into_iter().for_each(|key| queue.add(key));
    }
    if controller_of(&set.metadata).is_none() && !matches!(event, Event::Deleted(_)) {
        let deployments = deployments.list_namespace(set.metadata.namespace.as_deref().unwrap_or_default());
        let choosing = |deployment: &Deployment| {
            deployment.spec.as_ref().is_some_and(|spec| selects(&selector(&spec.selector), &set.metadata))
        };
        deployments.iter().filter(|deployment| choosing(deployment)).for_each(|d| queue.add(key_of(&d.metadata)));
    }
}

impl DeploymentController {
    /// Whether a set still has pods that run or may run, terminating ones included.
    fn runs_pods(&self, set: &ReplicaSet) -> bool {
        let pods = self.pods.by_index("set", set.metadata.uid.as_deref().unwrap_or_default());
        pods.iter().any(|pod| !pods::is_finished(pod))
    }

    async fn execute(&self, deployment: &Arc<Deployment>, mut plan: Plan) -> anyhow::Result<Requeue> {
        let key = key_of(&deployment.metadata);
        let namespace = split_key(&key).0;
        let sets: Api<ReplicaSet> = Api::namespaced(self.client.clone(), namespace);
        let mut failed = None;
        if let Some(set) = &plan.create {
            failed = self.create(&sets, deployment, set, &mut plan.status, &mut plan.events).await?;
        }
        for set in &plan.update {
            let name = set.metadata.name.as_deref().unwrap_or_default();
            sets.replace(name, &PostParams::default(), set).await.with_context(|| format!("update {name}"))?;
        }
        for event in &plan.events {
            self.events.event(deployment.as_ref(), EventType::Normal, "ScalingReplicaSet", event);
        }
        for set in &plan.delete {
            let (name, uid) = (set.metadata.name.as_deref().unwrap_or_default(), set.metadata.uid.clone());
            let this_set = Preconditions { uid, resource_version: None };
            match sets.delete(name, &DeleteParams::background().preconditions(this_set)).await {
                Err(error) if !error.is_not_found() => return Err(error).with_context(|| format!("delete {name}")),
                _ => {}
            }
        }
        self.write_status(deployment, plan.status, plan.revision).await?;
        failed.map_or(Ok(plan.requeue.into()), Err)
    }

    /// Creates the new set. A set of that name with another template is a collision: the next name is tried next time.
    async fn create(
        &self,
        sets: &Api<ReplicaSet>,
        deployment: &Deployment,
        set: &ReplicaSet,
        status: &mut k8s_openapi::api::apps::v1::DeploymentStatus,
        events: &mut Vec<String>,
    ) -> anyhow::Result<Option<anyhow::Error>> {
        let name = set.metadata.name.as_deref().unwrap_or_default();
        let error = match sets.create(&PostParams::default(), set).await {
            Ok(_) => return Ok(None),
            Err(error) => error,
        };
        if error.is_already_exists() {
            events.clear();
            let found = sets.get(name).await.with_context(|| format!("look at {name}, which exists already"))?;
            let ours = controller_of(&found.metadata).map(|owner| &owner.uid) == deployment.metadata.uid.as_ref();
            let template = |set: &ReplicaSet| set.spec.clone().and_then(|spec| spec.template).unwrap_or_default();
            if !(ours && template::same(&template(&found), &template(set))) {
                status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
                return Ok(Some(anyhow::Error::from(error)));
            }
            return Ok(None); // the cache is behind
        }
        let text = format!("Failed to create new replica set \"{name}\": {}", message(&error));
        if !is_namespace_terminating(&error) {
            progress::creation_failed(deployment, status, &text, Timestamp::now());
            self.events.event(deployment, EventType::Warning, "ReplicaSetCreateError", &text);
        }
        events.clear();
        Ok(Some(anyhow::Error::from(error).context("create the new replica set")))
    }

    async fn write_status(
        &self,
        deployment: &Deployment,
        status: k8s_openapi::api::apps::v1::DeploymentStatus,
        revision: Option<String>,
    ) -> anyhow::Result<()> {
        let annotations = deployment.metadata.annotations.as_ref();
        let new_revision = revision
            .filter(|revision| annotations.and_then(|annotations| annotations.get(plan::REVISION)) != Some(revision));
        if deployment.status.as_ref() == Some(&status) && new_revision.is_none() {
            return Ok(());
        }
        let mut updated = deployment.clone();
        updated.status = Some(status);
        if let Some(revision) = new_revision {
            updated.metadata.annotations.get_or_insert_default().insert(plan::REVISION.into(), revision);
        }
        let (name, namespace) = (updated.metadata.name.clone().unwrap_or_default(), updated.metadata.namespace.clone());
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), &namespace.unwrap_or_default());
        api.replace_status(&name, &PostParams::default(), &updated).await.context("write the status").map(drop)
    }
}

#[cfg(test)]
mod tests;
