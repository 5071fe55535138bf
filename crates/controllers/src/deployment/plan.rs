//! One step of a deployment, as a pure function of the deployment, its replica sets and whether old pods still run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use super::progress;
use super::scale::{self, Limits};
use crate::common::template;

pub const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
pub const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of a deployment that its replica sets do not inherit.
const NOT_INHERITED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    "deprecated.deployment.rollback.to",
];
/// Upstream's bound on the revision history annotation, in bytes.
const HISTORY_LENGTH: usize = 2000;

#[derive(Debug, Default)]
pub struct Plan {
    pub create: Option<ReplicaSet>,
    /// Whole replica sets, under their resourceVersion.
    pub update: Vec<ReplicaSet>,
    pub delete: Vec<Arc<ReplicaSet>>,
    /// Messages of reason ScalingReplicaSet.
    pub events: Vec<String>,
    pub status: DeploymentStatus,
    /// What the deployment's revision annotation should be.
    pub revision: Option<String>,
    pub requeue: Option<Duration>,
}

/// A deployment and its sets, as the steps look at them.
pub(super) struct View<'a> {
    pub deployment: &'a Deployment,
    pub spec: &'a DeploymentSpec,
    pub replicas: i32,
    pub limits: Limits,
    pub new: Option<Arc<ReplicaSet>>,
    /// Oldest first.
    pub old: Vec<Arc<ReplicaSet>>,
    pub now: Timestamp,
}

impl View<'_> {
    pub(super) fn all(&self) -> Vec<Arc<ReplicaSet>> {
        self.old.iter().chain(&self.new).cloned().collect()
    }

    fn name(&self) -> &str {
        self.deployment.metadata.name.as_deref().unwrap_or_default()
    }

    pub(super) fn recreates(&self) -> bool {
        self.spec.strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
    }
}

/// `runs_pods` tells whether a set has pods that have not ended, whatever its status says.
pub fn plan(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
    runs_pods: impl Fn(&ReplicaSet) -> bool,
    now: Timestamp,
) -> Plan {
    let spec = deployment.spec.as_ref().expect("the caller has a spec");
    let (new, old) = split(spec, sets);
    let replicas = spec.replicas.unwrap_or(1);
    let view = View { deployment, spec, replicas, limits: Limits::of(spec), new, old, now };
    let mut plan = Plan::default();
    if deployment.metadata.deletion_timestamp.is_some() {
        plan.status = progress::status(&view, false);
        return plan;
    }
    let mut edits = Edits::default();
    if let Some(new) = &view.new {
        let new = edits.of(new);
        refresh(&view, new);
        plan.revision = new.metadata.annotations.as_ref().and_then(|annotations| annotations.get(REVISION)).cloned();
    }
    let paused = spec.paused.unwrap_or(false);
    let rolls_out = !paused && !is_scaling(&view);
    match rolls_out {
        true => roll_out(&view, &mut plan, &mut edits, runs_pods),
        false => {
            let sizes = scale::proportionally(&view);
            sizes.into_iter().for_each(|(set, size)| resize(&view, &mut plan, edits.of(&set), size));
        }
    }
    plan.update = edits.changed();
    plan.status = progress::status(&view, rolls_out);
    progress::note_new_set(&view, plan.create.as_ref(), &mut plan.status);
    if paused || rolls_out && progress::is_complete(&view, &plan.status) {
        plan.delete = expired(&view);
    }
    plan.requeue = progress::deadline(&view, &plan.status);
    plan
}

/// Sets as they will be, beside the sets as they are.
#[derive(Default)]
struct Edits(Vec<(Arc<ReplicaSet>, ReplicaSet)>);

impl Edits {
    fn of(&mut self, set: &Arc<ReplicaSet>) -> &mut ReplicaSet {
        let known = self.0.iter().position(|(before, _)| Arc::ptr_eq(before, set));
        let index = known.unwrap_or_else(|| {
            self.0.push((set.clone(), set.as_ref().clone()));
            self.0.len() - 1
        });
        &mut self.0[index].1
    }

    fn changed(self) -> Vec<ReplicaSet> {
        self.0.into_iter().filter(|(before, after)| **before != *after).map(|(_, after)| after).collect()
    }
}

/// The set with the deployment's template (the oldest, if there are several), and the others.
fn split(spec: &DeploymentSpec, sets: &[Arc<ReplicaSet>]) -> (Option<Arc<ReplicaSet>>, Vec<Arc<ReplicaSet>>) {
    let mut old = sets.to_vec();
    old.sort_by(|a, b| age(a).cmp(&age(b)));
    let template = |set: &ReplicaSet| set.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
    let new = old.iter().position(|set| template::same(&template(set), &spec.template)).map(|index| old.remove(index));
    (new, old)
}

fn age(set: &ReplicaSet) -> (Option<Timestamp>, Option<&str>) {
    (set.metadata.creation_timestamp.as_ref().map(|time| time.0), set.metadata.name.as_deref())
}

/// Whether the deployment was scaled since its sets were last told.
fn is_scaling(view: &View) -> bool {
    let mut active = view.all().into_iter().filter(|set| scale::size(set) > 0);
    active.any(|set| annotation(&set, DESIRED_REPLICAS).is_some_and(|desired| desired != view.replicas))
}

pub(super) fn annotation(set: &ReplicaSet, key: &str) -> Option<i32> {
    set.metadata.annotations.as_ref()?.get(key)?.parse().ok()
}

fn revision(set: &ReplicaSet) -> i64 {
    let annotation = set.metadata.annotations.as_ref().and_then(|annotations| annotations.get(REVISION));
    annotation.and_then(|revision| revision.parse().ok()).unwrap_or(0)
}

fn next_revision(view: &View) -> i64 {
    view.old.iter().map(|set| revision(set)).max().unwrap_or(0) + 1
}

fn roll_out(view: &View, plan: &mut Plan, edits: &mut Edits, runs_pods: impl Fn(&ReplicaSet) -> bool) {
    if view.recreates() {
        view.old.iter().for_each(|set| resize(view, plan, edits.of(set), 0));
        let remains = |set: &Arc<ReplicaSet>| scale::size(set) > 0 || scale::actual(set) > 0 || runs_pods(set);
        if view.old.iter().any(remains) {
            return;
        }
    }
    let Some(new) = &view.new else { return create(view, plan) };
    let size = scale::new_size(view, scale::size(new), view.recreates());
    if size != scale::size(new) {
        resize(view, plan, edits.of(new), size);
    } else if !view.recreates() {
        scale::shrink_old(view).into_iter().for_each(|(set, size)| resize(view, plan, edits.of(&set), size));
    }
}

fn create(view: &View, plan: &mut Plan) {
    let (deployment, spec) = (view.deployment, view.spec);
    let hash = template::hash(&spec.template, deployment.status.as_ref().and_then(|status| status.collision_count));
    let mut pods = spec.template.clone();
    let meta = pods.metadata.get_or_insert_default();
    let labels = template::with_label(meta.labels.take(), template::HASH_LABEL, &hash);
    meta.labels = Some(labels.clone());
    let match_labels = template::with_label(spec.selector.match_labels.clone(), template::HASH_LABEL, &hash);
    let size = scale::new_size(view, 0, view.recreates());
    let revision = next_revision(view).to_string();
    let mut annotations = inherited(deployment);
    annotations.extend([
        (REVISION.into(), revision.clone()),
        (DESIRED_REPLICAS.into(), view.replicas.to_string()),
        (MAX_REPLICAS.into(), (view.replicas + view.limits.surge).to_string()),
    ]);
    let name = format!("{}-{hash}", view.name());
    if size > 0 {
        plan.events.push(format!("Scaled up replica set {name} from 0 to {size}"));
    }
    plan.revision = Some(revision);
    plan.create = Some(ReplicaSet {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(vec![client::owner_reference(deployment)]),
            ..Default::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(size),
            min_ready_seconds: spec.min_ready_seconds,
            selector: LabelSelector { match_labels: Some(match_labels), ..spec.selector.clone() },
            template: Some(pods),
        }),
        status: None,
    });
}

fn inherited(deployment: &Deployment) -> BTreeMap<String, String> {
    let annotations = deployment.metadata.annotations.iter().flatten();
    annotations.filter(|(key, _)| !NOT_INHERITED.contains(&key.as_str())).map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// Gives the new set the annotations and minReadySeconds it should have.
fn refresh(view: &View, set: &mut ReplicaSet) {
    let (found, wanted) = (revision(set), next_revision(view));
    let annotations = set.metadata.annotations.get_or_insert_default();
    annotations.extend(inherited(view.deployment));
    if wanted > found {
        let last = annotations.insert(REVISION.into(), wanted.to_string());
        if let Some(last) = last.filter(|last| !last.is_empty()) {
            let history = annotations.entry(REVISION_HISTORY.into()).or_default();
            *history = if history.is_empty() { last } else { format!("{history},{last}") };
            while history.len() > HISTORY_LENGTH {
                *history = history.split_once(',').map(|(_, rest)| rest.to_owned()).unwrap_or_default();
            }
        }
    }
    let spec = set.spec.get_or_insert_default();
    if spec.min_ready_seconds.unwrap_or(0) != view.spec.min_ready_seconds.unwrap_or(0) {
        spec.min_ready_seconds = view.spec.min_ready_seconds;
    }
}

/// Gives a set a size, and tells it for which size of the deployment.
fn resize(view: &View, plan: &mut Plan, set: &mut ReplicaSet, size: i32) {
    let (from, name) = (scale::size(set), set.metadata.name.as_deref().unwrap_or_default());
    if (from, size) == (0, 0) {
        return;
    }
    if from != size {
        let direction = if size > from { "up" } else { "down" };
        plan.events.push(format!("Scaled {direction} replica set {name} from {from} to {size}"));
    }
    let annotations = set.metadata.annotations.get_or_insert_default();
    annotations.insert(DESIRED_REPLICAS.into(), view.replicas.to_string());
    annotations.insert(MAX_REPLICAS.into(), (view.replicas + view.limits.surge).to_string());
    set.spec.get_or_insert_default().replicas = Some(size);
}

/// The old sets beyond the history limit, lowest revision first.
fn expired(view: &View) -> Vec<Arc<ReplicaSet>> {
    let Some(limit) = view.spec.revision_history_limit.filter(|limit| *limit != i32::MAX) else { return Vec::new() };
    let mut old: Vec<_> = view.old.iter().filter(|set| set.metadata.deletion_timestamp.is_none()).cloned().collect();
    let surplus = old.len().saturating_sub(limit.max(0) as usize);
    old.sort_by_key(|set| revision(set));
    old.truncate(surplus);
    old.retain(|set| {
        let observed = set.status.as_ref().and_then(|status| status.observed_generation).unwrap_or(0);
        scale::actual(set) == 0 && scale::size(set) == 0 && set.metadata.generation.unwrap_or(0) <= observed
    });
    old
}
