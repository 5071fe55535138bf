//! DaemonSets: a pod on each node that fits. Where pods belong is decided in [`placement`], what to do about them in
//! [`plan`]; here it is carried out. A change of any node is a reason to look at every set.

mod placement;
mod plan;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use client::{Client, ErrorExt as _, Event, EventRecorder, EventType, Store, key_of, split_key};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::PostParams;
use machinery::labels::Selector;
use parking_lot::Mutex;

use crate::common::history::{History, pod_revision};
use crate::common::pod_control::{BURST, PodControl, candidates};
use crate::common::{claims, pods, selector};
use crate::framework::{Context, Controller, Requeue};
use plan::{Plan, View};

/// Between deletions of failed pods of one node.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15 * 60));

pub struct DaemonSetController {
    client: Client,
    events: EventRecorder,
    control: PodControl,
    sets: Store<DaemonSet>,
    nodes: Store<Node>,
    pods: Store<Pod>,
    history: History,
    /// By set and node: when the last failed pod was deleted, and how long to wait from then.
    failures: Mutex<HashMap<(String, String), (Instant, Duration)>>,
}

impl Controller for DaemonSetController {
    const NAME: &'static str = "daemonset-controller";
    const IDENTITY: &'static str = "daemon-set-controller";

    fn new(context: &Context) -> Self {
        let sets = context.watch::<DaemonSet>().store();
        let control = PodControl::new(context);
        let pods = control.watch(context, &sets, set_selector).store();
        let known = sets.clone();
        let nodes = context.on::<Node>(move |event, queue| {
            let changed = match event {
                Event::Modified { old, new } => {
                    let taints = |node: &Node| node.spec.as_ref().and_then(|spec| spec.taints.clone());
                    old.metadata.labels != new.metadata.labels || taints(old) != taints(new)
                }
                _ => true,
            };
            if changed {
                known.list().iter().for_each(|set| queue.add(key_of(&set.metadata)));
            }
        });
        Self {
            client: context.client.clone(),
            events: context.events.clone(),
            control,
            sets,
            nodes: nodes.store(),
            pods,
            history: History::new(context, "DaemonSet", crate::common::history::POD_REVISION),
            failures: Mutex::default(),
        }
    }

    async fn reconcile(&self, key: &str) -> anyhow::Result<Requeue> {
        let Some(set) = self.sets.get(key) else {
            self.control.expectations.forget(key);
            self.failures.lock().retain(|(set, _), _| set != key);
            return Ok(Requeue::Never);
        };
        let Some(spec) = &set.spec else { return Ok(Requeue::Never) };
        let selector = selector(&spec.selector);
        if selector.is_everything() {
            let text = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.events.event(set.as_ref(), EventType::Warning, "SelectingAll", text);
            return Ok(Requeue::Never);
        }
        let settled = self.control.expectations.satisfied(key);
        let owned =
            claims::claim_all(&self.client, set.as_ref(), &selector, candidates(&self.pods, &set.metadata)).await?;
        let collisions = set.status.as_ref().and_then(|status| status.collision_count);
        let revisions = self.history.of(set.as_ref(), &selector, &spec.template, collisions).await?;
        let hash = self.history.hash(&revisions.update).to_owned();
        let view = View { set: &set, spec, hash: &hash, now: Timestamp::now() };
        let mut plan = plan::plan(&view, &self.nodes.list(), &owned);
        plan.status.collision_count = revisions.collisions;
        let mut outcome = Ok(());
        if settled {
            outcome = self.execute(key, &view, &mut plan).await;
        }
        self.write_status(&set, plan.status).await?;
        outcome?;
        let live: HashSet<&str> = owned.iter().map(|pod| pod_revision(&pod.metadata)).collect();
        self.history.truncate(&revisions, &live, spec.revision_history_limit.unwrap_or(10)).await?;
        Ok(plan.requeue.into())
    }
}

fn set_selector(set: &DaemonSet) -> Selector {
    set.spec.as_ref().map_or_else(Selector::nothing, |spec| selector(&spec.selector))
}

impl DaemonSetController {
    async fn execute(&self, key: &str, view: &View<'_>, plan: &mut Plan) -> anyhow::Result<()> {
        for pod in std::mem::take(&mut plan.ended) {
            let wait = self.ended(key, view.set, &pod);
            match wait.is_zero() {
                true => plan.delete.push(pod),
                false => plan.requeue = Some(plan.requeue.map_or(wait, |known| known.min(wait))),
            }
        }
        plan.delete.truncate(BURST);
        plan.create.truncate(BURST);
        // Creations are expected after deletions: what is expected last is what is waited for, and a creation is what
        // must not be repeated.
        let deleted = match plan.delete.is_empty() {
            true => Default::default(),
            false => self.control.delete(view.set, key, &plan.delete).await,
        };
        let created = match plan.create.is_empty() {
            true => Default::default(),
            false => {
                let pod = |node: &String| placement::pod(view.set, &view.spec.template, node, view.hash);
                self.control.create(view.set, key, plan.create.iter().map(pod).collect()).await
            }
        };
        match created.error.or(deleted.error) {
            Some(error) => Err(anyhow::Error::from(error).context("manage the pods")),
            None => Ok(()),
        }
    }

    /// How long to leave a pod that ended; zero to delete it now.
    fn ended(&self, key: &str, set: &DaemonSet, pod: &Pod) -> Duration {
        let (node, pod_key) = (pods::node_name(pod), key_of(&pod.metadata));
        if pods::phase(pod) == "Succeeded" {
            let text = format!("Found succeeded daemon pod {pod_key} on node {node}, will try to delete it");
            self.events.event(set, EventType::Normal, "SucceededDaemonPod", text);
            return Duration::ZERO;
        }
        let mut failures = self.failures.lock();
        let place = (key.to_owned(), node.to_owned());
        let (last, wait) = failures.get(&place).copied().unwrap_or((Instant::now(), Duration::ZERO));
        // A node that was well for long enough starts anew.
        let wait = if last.elapsed() > 2 * BACKOFF.1 { Duration::ZERO } else { wait };
        let left = wait.saturating_sub(last.elapsed());
        if left.is_zero() {
            failures.insert(place, (Instant::now(), (wait * 2).clamp(BACKOFF.0, BACKOFF.1)));
            let text = format!("Found failed daemon pod {pod_key} on node {node}, will try to kill it");
            self.events.event(set, EventType::Warning, "FailedDaemonPod", text);
        }
        left
    }

    async fn write_status(&self, set: &Arc<DaemonSet>, status: DaemonSetStatus) -> anyhow::Result<()> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let key = key_of(&set.metadata);
        let (namespace, name) = split_key(&key);
        let api: Api<DaemonSet> = Api::namespaced(self.client.clone(), namespace);
        let updated = DaemonSet { status: Some(status), ..set.as_ref().clone() };
        match api.replace_status(name, &PostParams::default(), &updated).await {
            Err(error) if !error.is_not_found() => Err(error).context("write the status"),
            _ => Ok(()),
        }
    }
}
