//! StatefulSets: pods with names, host names and claims that outlive them. What to do is decided in [`plan`], who a pod
//! is in [`identity`]; here it is carried out.

mod identity;
mod plan;

use std::collections::HashSet;
use std::sync::Arc;

use anyhow::Context as _;
use client::{Client, ErrorExt, Event, EventRecorder, EventType, Store, controller_of, key_of, split_key};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, PodTemplateSpec};
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};

use crate::common::history::{History, Revisions, pod_revision, template_of};
use crate::common::pod_control::{PodControl, candidates};
use crate::common::{claims, is_namespace_terminating, message, selector};
use crate::framework::{Context, Controller, Requeue};
use plan::{Action, View};

pub struct StatefulSetController {
    client: Client,
    events: EventRecorder,
    sets: Store<StatefulSet>,
    pods: Store<Pod>,
    claims: Store<PersistentVolumeClaim>,
    history: History,
}

impl Controller for StatefulSetController {
    const NAME: &'static str = "statefulset-controller";

    fn new(context: &Context) -> Self {
        let sets = context.watch::<StatefulSet>().store();
        let pods = PodControl::new(context).watch(context, &sets, |set| {
            set.spec.as_ref().map_or_else(machinery::labels::Selector::nothing, |spec| selector(&spec.selector))
        });
        // A pod waits for its old claim to go before it gets a new one.
        let known = sets.clone();
        let claims = context.on::<PersistentVolumeClaim>(move |event, queue| {
            let Event::Deleted(claim) = event else { return };
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            let sets = known.list_namespace(claim.metadata.namespace.as_deref().unwrap_or_default());
            sets.iter().filter(|set| may_claim(set, name)).for_each(|set| queue.add(key_of(&set.metadata)));
        });
        Self {
            client: context.client.clone(),
            events: context.events.clone(),
            sets,
            pods: pods.store(),
            claims: claims.store(),
            history: History::new(context, "StatefulSet", "controller.kubernetes.io/hash"),
        }
    }

    async fn reconcile(&self, key: &str) -> anyhow::Result<Requeue> {
        let Some(set) = self.sets.get(key) else { return Ok(Requeue::Never) };
        let Some(spec) = &set.spec else { return Ok(Requeue::Never) };
        let selector = selector(&spec.selector);
        let mut pods = candidates(&self.pods, &set.metadata);
        pods.retain(|pod| identity::ordinal(&set, pod).is_some());
        let pods = claims::claim_all(&self.client, set.as_ref(), &selector, pods).await?;
        let status = set.status.clone().unwrap_or_default();
        // Never none: the status that is written says 0, and the hash must not change with that.
        let collisions = Some(status.collision_count.unwrap_or(0));
        let revisions = self.history.of(set.as_ref(), &selector, &spec.template, collisions).await?;
        let current = revisions.all.iter().find(|revision| revision.metadata.name == status.current_revision);
        let current = current.unwrap_or(&revisions.update).clone();
        let name = |revision: &k8s_openapi::api::apps::v1::ControllerRevision| {
            revision.metadata.name.clone().unwrap_or_default()
        };
        let (current_name, update_name) = (name(&current), name(&revisions.update));
        let view = View {
            set: &set,
            spec,
            current: &current_name,
            update: &update_name,
            collisions: revisions.collisions,
            now: Timestamp::now(),
        };
        let plan = plan::plan(&view, &pods);
        let old_template = template_of(&current).unwrap_or_else(|| spec.template.clone());
        // First: once a condemned pod is gone, nothing tells that its claims should have gone with it.
        self.retain_claims(&view, &pods).await?;
        let outcome = self.execute(&view, &old_template, plan.actions).await;
        self.write_status(&set, plan.status).await?;
        outcome?;
        self.truncate(&view, &revisions, &pods).await?;
        Ok(plan.requeue.into())
    }
}

fn may_claim(set: &StatefulSet, claim: &str) -> bool {
    let templates = set.spec.iter().flat_map(|spec| spec.volume_claim_templates.iter().flatten());
    templates.filter_map(|template| template.metadata.name.as_deref()).any(|template| {
        let rest = claim.strip_prefix(template).and_then(|rest| rest.strip_prefix('-'));
        rest.is_some_and(|rest| rest.starts_with(set.metadata.name.as_deref().unwrap_or_default()))
    })
}

impl StatefulSetController {
    fn api<K>(&self, set: &StatefulSet) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), set.metadata.namespace.as_deref().unwrap_or_default())
    }

    async fn execute(&self, view: &View<'_>, old: &PodTemplateSpec, actions: Vec<Action>) -> anyhow::Result<()> {
        for action in actions {
            match action {
                Action::Create { ordinal, updated } => {
                    let (template, revision) =
                        if updated { (&view.spec.template, view.update) } else { (old, view.current) };
                    let pod = identity::pod(view.set, view.spec, template, ordinal, revision);
                    // A claim that is being deleted is waited for, by its event.
                    if self.provide_claims(view.set, view.spec, ordinal).await? {
                        self.create(view.set, &pod).await?;
                    }
                }
                Action::Claims { ordinal } => drop(self.provide_claims(view.set, view.spec, ordinal).await?),
                Action::Identify { ordinal, pod } => self.identify(view.set, &pod, ordinal).await?,
                Action::Delete(pod) => self.delete(view.set, &pod).await?,
            }
        }
        Ok(())
    }

    fn tell<T>(&self, set: &StatefulSet, verb: &str, what: &str, outcome: kube::Result<T>) -> anyhow::Result<T> {
        let name = set.metadata.name.as_deref().unwrap_or_default();
        let reason = |start: &str| format!("{start}{}{}", verb[..1].to_uppercase(), &verb[1..]);
        match outcome {
            Ok(done) => {
                let text = format!(
                    "{verb} {what} in StatefulSet {name} success{}",
                    if what.starts_with("Claim") { "" } else { "ful" }
                );
                self.events.event(set, EventType::Normal, &reason("Successful"), text);
                Ok(done)
            }
            Err(error) => {
                if !is_namespace_terminating(&error) {
                    let text = format!("{verb} {what} in StatefulSet {name} failed error: {}", message(&error));
                    self.events.event(set, EventType::Warning, &reason("Failed"), text);
                }
                Err(error).with_context(|| format!("{verb} {what}"))
            }
        }
    }

    async fn create(&self, set: &StatefulSet, pod: &Pod) -> anyhow::Result<()> {
        let (api, name) = (self.api::<Pod>(set), pod.metadata.name.as_deref().unwrap_or_default());
        let created = api.create(&PostParams::default(), pod).await;
        if created.as_ref().is_err_and(ErrorExt::is_already_exists) {
            let found = api.get_opt(name).await.with_context(|| format!("look at pod {name}, which exists already"))?;
            let controller = found.as_ref().and_then(|found| controller_of(&found.metadata));
            if controller.map(|controller| &controller.uid) == set.metadata.uid.as_ref() {
                return Ok(()); // the cache is behind
            }
        }
        self.tell(set, "create", &format!("Pod {name}"), created).map(drop)
    }

    async fn delete(&self, set: &StatefulSet, pod: &Pod) -> anyhow::Result<()> {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let this_pod = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        let deleted = self.api::<Pod>(set).delete(name, &DeleteParams::default().preconditions(this_pod)).await;
        match deleted {
            Err(error) if error.is_not_found() => Ok(()),
            deleted => self.tell(set, "delete", &format!("Pod {name}"), deleted).map(drop),
        }
    }

    async fn identify(&self, set: &StatefulSet, pod: &Pod, ordinal: i32) -> anyhow::Result<()> {
        let (name, mut pod) = (pod.metadata.name.clone().unwrap_or_default(), pod.clone());
        identity::identify(&mut pod, ordinal);
        let updated = self.api::<Pod>(set).replace(&name, &PostParams::default(), &pod).await;
        self.tell(set, "update", &format!("Pod {name}"), updated).map(drop)
    }

    /// Creates the claims that are missing. False if one of them is still being deleted.
    async fn provide_claims(&self, set: &StatefulSet, spec: &StatefulSetSpec, ordinal: i32) -> anyhow::Result<bool> {
        for (_, claim) in identity::claims(set, spec, ordinal) {
            match self.claims.get(&key_of(&claim.metadata)) {
                Some(found) if found.metadata.deletion_timestamp.is_some() => return Ok(false),
                Some(_) => continue,
                None => {}
            }
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            let created = self.api::<PersistentVolumeClaim>(set).create(&PostParams::default(), &claim).await;
            if created.as_ref().is_err_and(ErrorExt::is_already_exists) {
                continue;
            }
            let what = format!("Claim {name} Pod {}", identity::pod_name(set, ordinal));
            self.tell(set, "create", &what, created)?;
        }
        Ok(true)
    }

    /// Makes the set or a condemned pod the owner of claims, as the retention policy says.
    async fn retain_claims(&self, view: &View<'_>, pods: &[Arc<Pod>]) -> anyhow::Result<()> {
        for pod in pods {
            let Some(ordinal) = identity::ordinal(view.set, pod) else { continue };
            for (_, claim) in identity::claims(view.set, view.spec, ordinal) {
                let Some(found) = self.claims.get(&key_of(&claim.metadata)) else { continue };
                let owners = found.metadata.owner_references.clone().unwrap_or_default();
                let condemned = view.is_condemned(ordinal);
                let wanted = identity::claim_owners(view.set, view.spec, Some(pod), condemned, &owners);
                if wanted == owners || found.metadata.deletion_timestamp.is_some() {
                    continue;
                }
                let mut updated = found.as_ref().clone();
                updated.metadata.owner_references = Some(wanted);
                let name = updated.metadata.name.clone().unwrap_or_default();
                let api = self.api::<PersistentVolumeClaim>(view.set);
                api.replace(&name, &PostParams::default(), &updated)
                    .await
                    .with_context(|| format!("own claim {name}"))?;
            }
        }
        Ok(())
    }

    async fn write_status(&self, set: &StatefulSet, status: StatefulSetStatus) -> anyhow::Result<()> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let key = key_of(&set.metadata);
        let (namespace, name) = split_key(&key);
        let api: Api<StatefulSet> = Api::namespaced(self.client.clone(), namespace);
        let updated = StatefulSet { status: Some(status), ..set.clone() };
        match api.replace_status(name, &PostParams::default(), &updated).await {
            Err(error) if !error.is_not_found() => Err(error).context("write the status"),
            _ => Ok(()),
        }
    }

    async fn truncate(&self, view: &View<'_>, revisions: &Revisions, pods: &[Arc<Pod>]) -> anyhow::Result<()> {
        let mut live: HashSet<&str> = pods.iter().map(|pod| pod_revision(&pod.metadata)).collect();
        live.extend([view.current, view.update]);
        self.history.truncate(revisions, &live, view.spec.revision_history_limit.unwrap_or(10)).await
    }
}
