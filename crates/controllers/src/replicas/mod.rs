//! ReplicaSets and ReplicationControllers: as many pods as the spec says. One generic controller serves both kinds; the
//! kinds differ in where their fields are (`kinds`), what to do is decided by pure functions (`plan`).

mod kinds;
mod plan;

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Context as _;
use client::{Client, ErrorExt as _, Store, controller_of, key_of, owner_reference, split_key};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use kube::Api;
use kube::api::PostParams;

use crate::common::pod_control::{BURST, Outcome, PodControl, candidates};
use crate::common::{claims, message, pods, template};
use crate::framework::{Context, Controller, Requeue};
use kinds::Replicator;
use plan::{Failure, Plan};

pub type ReplicaSetController = Replicas<ReplicaSet>;
pub type ReplicationManager = Replicas<ReplicationController>;

pub struct Replicas<R: Replicator> {
    client: Client,
    control: PodControl,
    owners: Store<R>,
    pods: Store<Pod>,
}

impl<R: Replicator> Controller for Replicas<R> {
    const NAME: &'static str = R::CONTROLLER;

    fn new(context: &Context) -> Self {
        let owners = context.watch::<R>();
        // Siblings: sets of one deployment, whose pods count together when choosing nodes to take pods from.
        owners.add_index("controller", |owner| {
            controller_of(owner.meta()).map(|controller| controller.uid.clone()).into_iter().collect()
        });
        let control = PodControl::new(context);
        let pods = control.watch(context, &owners.store(), R::selector).store();
        Self { client: context.client.clone(), control, owners: owners.store(), pods }
    }

    async fn reconcile(&self, key: &str) -> anyhow::Result<Requeue> {
        let Some(owner) = self.owners.get(key) else {
            self.control.expectations.forget(key);
            return Ok(Requeue::Never);
        };
        let up_to_date = self.control.expectations.satisfied(key);
        let owned = self.claim(&owner).await?;
        let plan = plan::plan(owner.as_ref(), &owned, || self.crowds(&owner), Timestamp::now());
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

impl<R: Replicator> Replicas<R> {
    /// The unfinished pods of an owner, after adopting and releasing.
    async fn claim(&self, owner: &R) -> anyhow::Result<Vec<Arc<Pod>>> {
        let mut candidates = candidates(&self.pods, owner.meta());
        candidates.retain(|pod| !pods::is_finished(pod));
        claims::claim_all(&self.client, owner, &owner.selector(), candidates).await
    }

    /// How many active pods of this owner and its siblings run on each node.
    fn crowds(&self, owner: &R) -> HashMap<String, usize> {
        let siblings = match controller_of(owner.meta()) {
            Some(controller) => self.owners.by_index("controller", &controller.uid),
            None => self.owners.get(&key_of(owner.meta())).into_iter().collect(),
        };
        let uids = siblings.iter().filter_map(|sibling| sibling.meta().uid.clone());
        let mut crowds = HashMap::new();
        for pod in uids.flat_map(|uid| self.pods.by_index("controller", &uid)).filter(|pod| pods::is_active(pod)) {
            *crowds.entry(pods::node_name(&pod).to_owned()).or_default() += 1;
        }
        crowds
    }

    async fn execute(&self, owner: &R, key: &str, plan: &Plan) -> Option<(Failure, anyhow::Error)> {
        let namespace = owner.meta().namespace.as_deref().unwrap_or_default();
        let (reason, verb, Outcome { error, .. }) = if plan.create > 0 {
            let pod = template::pod(&owner.template(), owner_reference(owner), namespace);
            let outcome = self.control.create(owner, key, vec![pod; plan.create.min(BURST)]).await;
            ("FailedCreate", "create a pod", outcome)
        } else if !plan.delete.is_empty() {
            let doomed = &plan.delete[..plan.delete.len().min(BURST)];
            ("FailedDelete", "delete a pod", self.control.delete(owner, key, doomed).await)
        } else {
            return None;
        };
        error.map(|error| (Failure { reason, message: message(&error) }, anyhow::Error::from(error).context(verb)))
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
