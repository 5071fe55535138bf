//! ControllerRevisions: the templates that a StatefulSet or DaemonSet has had, as `kubectl rollout history` and `undo`
//! read them. A template equal to an earlier one takes its revision up again instead of making another.

use std::collections::HashSet;
use std::sync::Arc;

use anyhow::Context as _;
use client::informer::Object;
use client::{Client, ErrorExt as _, Informer, Store, controller_of, owner_reference};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use kube::core::{NamespaceResourceScope, ObjectMeta};
use machinery::labels::Selector;
use serde::Deserialize as _;
use serde_json::json;

use super::{claims, template};
use crate::framework::Context as Controllers;

/// The label of pods that names the revision they were made from.
pub const POD_REVISION: &str = "controller-revision-hash";

pub struct History {
    client: Client,
    revisions: Store<ControllerRevision>,
    /// The label of revisions that has their hash.
    hash_label: &'static str,
}

/// The revisions of an owner.
pub struct Revisions {
    /// Oldest first, the one of the present template included.
    pub all: Vec<Arc<ControllerRevision>>,
    pub update: Arc<ControllerRevision>,
    pub collisions: Option<i32>,
}

impl History {
    pub fn new(context: &Controllers, owner: &'static str, hash_label: &'static str) -> Self {
        let revisions: Informer<ControllerRevision> = context.watch_owned(owner);
        revisions.add_index("controller", |revision| vec![claimant(&revision.metadata)]);
        Self { client: context.client.clone(), revisions: revisions.store(), hash_label }
    }

    /// Notes the present template, if that is new.
    pub async fn of<O>(
        &self,
        owner: &O,
        selector: &Selector,
        template: &PodTemplateSpec,
        collisions: Option<i32>,
    ) -> anyhow::Result<Revisions>
    where
        O: Object<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        let meta = owner.meta();
        let mut candidates = self.revisions.by_index("controller", meta.uid.as_deref().unwrap_or_default());
        candidates.extend(self.revisions.by_index("controller", &orphan(meta)));
        let mut all = claims::claim_all(&self.client, owner, selector, candidates).await?;
        all.sort_by_key(|revision| (revision.revision, revision.metadata.creation_timestamp.clone()));
        let next = all.last().map_or(1, |last| last.revision + 1);
        let api = self.api(meta);
        let known = all
            .iter()
            .rposition(|revision| template_of(revision).is_some_and(|known| template::same(&known, template)));
        let (update, collisions) = match known {
            Some(at) if at + 1 == all.len() => (all[at].clone(), collisions),
            Some(at) => {
                let mut revision = all.remove(at).as_ref().clone();
                revision.revision = next;
                let name = revision.metadata.name.clone().unwrap_or_default();
                let updated = api.replace(&name, &PostParams::default(), &revision).await;
                (Arc::new(updated.context("take up an earlier revision")?), collisions)
            }
            None => self.create(&api, owner, template, next, collisions).await?,
        };
        if all.last().is_none_or(|last| last.metadata.uid != update.metadata.uid) {
            all.push(update.clone());
        }
        Ok(Revisions { all, update, collisions })
    }

    fn api(&self, owner: &ObjectMeta) -> Api<ControllerRevision> {
        Api::namespaced(self.client.clone(), owner.namespace.as_deref().unwrap_or_default())
    }

    async fn create<O>(
        &self,
        api: &Api<ControllerRevision>,
        owner: &O,
        template: &PodTemplateSpec,
        number: i64,
        mut collisions: Option<i32>,
    ) -> anyhow::Result<(Arc<ControllerRevision>, Option<i32>)>
    where
        O: Object<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        loop {
            let revision = self.revision(owner, template, number, collisions);
            let error = match api.create(&PostParams::default(), &revision).await {
                Ok(created) => return Ok((Arc::new(created), collisions)),
                Err(error) if error.is_already_exists() => error,
                Err(error) => return Err(error).context("create a revision"),
            };
            let name = revision.metadata.name.as_deref().unwrap_or_default();
            let found =
                api.get(name).await.with_context(|| format!("look at revision {name}, which exists already"))?;
            let ours = controller_of(&found.metadata).map(|controller| &controller.uid) == owner.meta().uid.as_ref();
            if ours && template_of(&found).is_some_and(|known| template::same(&known, template)) {
                return Ok((Arc::new(found), collisions)); // the cache is behind
            }
            anyhow::ensure!(collisions.unwrap_or(0) < 100, error);
            collisions = Some(collisions.unwrap_or(0) + 1);
        }
    }

    fn revision<O>(
        &self,
        owner: &O,
        template: &PodTemplateSpec,
        number: i64,
        collisions: Option<i32>,
    ) -> ControllerRevision
    where
        O: Object<DynamicType = ()>,
    {
        let hash = template::hash(template, collisions);
        let labels = template.metadata.as_ref().and_then(|meta| meta.labels.clone());
        let mut data = json!({"spec": {"template": template}});
        data["spec"]["template"]["$patch"] = json!("replace");
        ControllerRevision {
            metadata: ObjectMeta {
                name: Some(format!("{}-{hash}", owner.meta().name.as_deref().unwrap_or_default())),
                namespace: owner.meta().namespace.clone(),
                labels: Some(template::with_label(labels, self.hash_label, &hash)),
                annotations: owner.meta().annotations.clone(),
                owner_references: Some(vec![owner_reference(owner)]),
                ..Default::default()
            },
            data: Some(RawExtension(data)),
            revision: number,
        }
    }

    /// Deletes the oldest revisions that nothing uses beyond the limit.
    pub async fn truncate(&self, revisions: &Revisions, live: &HashSet<&str>, limit: i32) -> anyhow::Result<()> {
        let name = |revision: &ControllerRevision| revision.metadata.name.clone().unwrap_or_default();
        let unused = |revision: &&Arc<ControllerRevision>| {
            let hash = revision.metadata.labels.as_ref().and_then(|labels| labels.get(self.hash_label));
            let used = live.contains(name(revision).as_str()) || hash.is_some_and(|hash| live.contains(hash.as_str()));
            !used && revision.metadata.uid != revisions.update.metadata.uid
        };
        let unused: Vec<_> = revisions.all.iter().filter(unused).collect();
        for revision in &unused[..unused.len().saturating_sub(limit.max(0) as usize)] {
            match self.api(&revision.metadata).delete(&name(revision), &DeleteParams::default()).await {
                Err(error) if !error.is_not_found() => return Err(error).context("delete an old revision"),
                _ => {}
            }
        }
        Ok(())
    }

    pub fn hash<'a>(&self, revision: &'a ControllerRevision) -> &'a str {
        let labels = revision.metadata.labels.as_ref();
        labels.and_then(|labels| labels.get(self.hash_label)).map(String::as_str).unwrap_or_default()
    }
}

fn claimant(meta: &ObjectMeta) -> String {
    controller_of(meta).map_or_else(|| orphan(meta), |controller| controller.uid.clone())
}

fn orphan(meta: &ObjectMeta) -> String {
    format!("orphan/{}", meta.namespace.as_deref().unwrap_or_default())
}

/// The template that a revision keeps.
pub fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.pointer("/spec/template")?.clone();
    template.as_object_mut()?.remove("$patch");
    PodTemplateSpec::deserialize(&template).ok()
}

/// The label of a pod that names its revision.
pub fn pod_revision(meta: &ObjectMeta) -> &str {
    let labels = meta.labels.as_ref();
    labels.and_then(|labels| labels.get(POD_REVISION)).map(String::as_str).unwrap_or_default()
}
