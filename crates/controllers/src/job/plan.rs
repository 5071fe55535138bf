//! What to do about a Job: end it, or bring its pods to the number wanted. Pure.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use super::backoff::{self, Backoff};
use super::indexes::Indexes;
use super::policy::{self, Action};
use super::view::{FAILURES, FINALIZER, IGNORED_FAILURES, INDEX, Tally, View, all_failures, annotation, condition};
use crate::common::{pod_control::BURST, pods, template};

/// How a job ends, before its last pods are gone and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Otherwise it succeeds.
    pub fails: bool,
    pub reason: String,
    pub message: String,
}

impl Ending {
    fn new(fails: bool, reason: &str, message: impl Into<String>) -> Self {
        Self { fails, reason: reason.into(), message: message.into() }
    }

    fn failure(reason: &str, message: impl Into<String>) -> Option<Self> {
        Some(Self::new(true, reason, message))
    }

    pub fn completions_reached() -> Self {
        Self::new(false, "CompletionsReached", "Reached expected number of succeeded pods")
    }

    /// The condition that announces it, and the one that says that all is over.
    pub fn conditions(&self) -> (&'static str, &'static str) {
        if self.fails { ("FailureTarget", "Failed") } else { ("SuccessCriteriaMet", "Complete") }
    }
}

#[derive(Debug, Default)]
pub struct Plan {
    pub ending: Option<Ending>,
    pub delete: Vec<Arc<Pod>>,
    pub create: Vec<Pod>,
    pub requeue: Option<Duration>,
    /// Whether the number of pods was brought about: only then does it mean something.
    pub managed: bool,
}

/// `settled`: everything asked for earlier has been seen.
pub fn plan(view: &View, tally: &Tally, backoff: Backoff, settled: bool) -> Plan {
    if let Some(ending) = ending(view, tally) {
        return Plan { ending: Some(ending), delete: view.active(), ..Plan::default() };
    }
    let mut plan = Plan { requeue: deadline_in(view), ..Plan::default() };
    if settled && !view.is_deleted() {
        plan.managed = true;
        manage(view, tally, backoff, &mut plan);
    }
    plan
}

fn ending(view: &View, tally: &Tally) -> Option<Ending> {
    for (announced, fails) in [("SuccessCriteriaMet", false), ("FailureTarget", true)] {
        if let Some(condition) = condition(view.job, announced) {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            return Some(Ending::new(fails, &text(&condition.reason), text(&condition.message)));
        }
    }
    let failed = view.pods.iter().filter(|pod| view.is_tracked(pod) && view.has_failed(pod));
    let by_policy = failed.filter_map(|pod| match view.action(pod) {
        Action::FailJob(message) => Some(message),
        _ => None,
    });
    if let Some(message) = by_policy.into_iter().next() {
        return Ending::failure("PodFailurePolicy", message);
    }
    if tally.failed > view.spec.backoff_limit.unwrap_or(6) || restarts_exceed_limit(view) {
        return Ending::failure("BackoffLimitExceeded", "Job has reached the specified backoff limit");
    }
    if deadline_in(view).is_some_and(|left| left.is_zero()) {
        return Ending::failure("DeadlineExceeded", "Job was active longer than specified deadline");
    }
    if let Some(failed) = &tally.failed_indexes {
        if view.spec.max_failed_indexes.is_some_and(|most| failed.len() as i32 > most) {
            let message = "Job has exceeded the specified maximal number of failed indexes";
            return Ending::failure("MaxFailedIndexesExceeded", message);
        }
        if !failed.is_empty() && (failed.len() + tally.succeeded_indexes.len()) as i32 >= view.completions() {
            return Ending::failure("FailedIndexes", "Job has failed indexes");
        }
    }
    let policy = view.spec.success_policy.as_ref().filter(|_| view.is_indexed());
    let met = policy::on_success(policy, view.completions(), &tally.succeeded_indexes)?;
    Some(Ending::new(false, "SuccessPolicy", met))
}

/// Pods that restart their containers do not fail; their restarts count instead.
fn restarts_exceed_limit(view: &View) -> bool {
    let policy = view.spec.template.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
    if policy != Some("OnFailure") {
        return false;
    }
    let running = view.pods.iter().filter(|pod| ["Running", "Pending"].contains(&pods::phase(pod)));
    let statuses = running.filter_map(|pod| pod.status.as_ref()).flat_map(|status| {
        status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten())
    });
    let restarts: i32 = statuses.map(|status| status.restart_count).sum();
    match view.spec.backoff_limit.unwrap_or(6) {
        0 => restarts > 0,
        limit => restarts >= limit,
    }
}

/// How long the job may still be active, if it has a deadline and runs.
fn deadline_in(view: &View) -> Option<Duration> {
    let seconds = view.spec.active_deadline_seconds.filter(|_| !view.is_suspended())?;
    let start = view.job.status.as_ref()?.start_time.as_ref()?.0;
    let left = SignedDuration::from_secs(seconds) - view.now.duration_since(start);
    Some(Duration::try_from(left).unwrap_or_default())
}

fn manage(view: &View, tally: &Tally, backoff: Backoff, plan: &mut Plan) {
    let active = view.active();
    if view.is_suspended() {
        plan.delete = active;
        return;
    }
    let parallelism = view.spec.parallelism.unwrap_or(1).max(0) as usize;
    let wanted = match view.spec.completions {
        // Any success ends a job without completions; what runs is left to finish.
        None if tally.succeeded > 0 => active.len(),
        None => parallelism,
        Some(completions) => parallelism.min((completions - tally.succeeded).max(0) as usize),
    };
    plan.delete = surplus(view, &active, active.len().saturating_sub(wanted));
    plan.delete.truncate(BURST);
    let terminating = if view.only_replaces_failed() { view.terminating().count() } else { 0 };
    let missing = wanted.saturating_sub(terminating + active.len()).min(BURST);
    // Either deletes or creates: what is deleted now may free an index that is wanted later.
    if missing > 0 && plan.delete.is_empty() {
        create(view, tally, backoff, missing, plan);
    }
}

fn create(view: &View, tally: &Tally, backoff: Backoff, missing: usize, plan: &mut Plan) {
    let owner = client::owner_reference(view.job);
    let mut wait = Duration::ZERO;
    if view.spec.backoff_limit_per_index.is_none() {
        wait = backoff.remaining(view.now);
    }
    if wait.is_zero() {
        if !view.is_indexed() {
            plan.create = vec![pod(view, owner, None, None); missing];
            return;
        }
        let pending = pending(view, tally, missing).into_iter().map(|index| (index, tally.delayed.get(&index)));
        let waits = |replaced: Option<&Arc<Pod>>| {
            replaced.map_or(Duration::ZERO, |pod| backoff::of_index(pod, all_failures(pod) + 1, view.now))
        };
        let (ready, waiting): (Vec<_>, Vec<_>) = pending.partition(|(_, replaced)| waits(*replaced).is_zero());
        plan.create = ready.iter().map(|(index, replaced)| pod(view, owner.clone(), Some(*index), *replaced)).collect();
        wait = waiting.iter().map(|(_, replaced)| waits(*replaced)).min().unwrap_or_default();
    }
    if !wait.is_zero() {
        plan.requeue = plan.requeue.map_or(Some(wait), |deadline| Some(deadline.min(wait)));
    }
}

/// The lowest indexes that nobody works on.
fn pending(view: &View, tally: &Tally, count: usize) -> Vec<i32> {
    let terminating = view.terminating().filter(|_| view.only_replaces_failed()).cloned();
    let busy: Indexes = view.active().into_iter().chain(terminating).filter_map(|pod| view.index(&pod)).collect();
    let failed = tally.failed_indexes.as_ref();
    let free = |index: &i32| {
        !busy.contains(index)
            && !tally.succeeded_indexes.contains(index)
            && failed.is_none_or(|failed| !failed.contains(index))
    };
    (0..view.completions()).filter(free).take(count).collect()
}

/// Pods to give up: those of indexes that are double or out of range in any case, then the least useful.
fn surplus(view: &View, active: &[Arc<Pod>], least: usize) -> Vec<Arc<Pod>> {
    let mut sorted = active.to_vec();
    sorted.sort_by_cached_key(|pod| pods::deletion_order(pod, 0, view.now));
    let mut surplus = Vec::new();
    if view.is_indexed() {
        let mut seen = HashSet::new();
        let (kept, wrong): (Vec<_>, Vec<_>) =
            sorted.into_iter().rev().partition(|pod| view.index(pod).is_some_and(|index| seen.insert(index)));
        (surplus, sorted) = (wrong, kept);
        sorted.reverse();
    }
    let more = least.saturating_sub(surplus.len());
    surplus.extend(sorted.into_iter().take(more));
    surplus
}

/// A pod of the job, for an index to replace a failed one of it.
fn pod(view: &View, owner: OwnerReference, index: Option<i32>, replaced: Option<&Arc<Pod>>) -> Pod {
    let job = view.job.metadata.name.clone().unwrap_or_default();
    let mut pod = template::pod(&view.spec.template, owner, view.job.metadata.namespace.as_deref().unwrap_or_default());
    let finalizers = pod.metadata.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
        finalizers.push(FINALIZER.into());
    }
    let Some(index) = index else { return pod };
    let number = index.to_string();
    pod.metadata.generate_name = Some(format!("{job}-{index}-"));
    pod.metadata.labels = Some(template::with_label(pod.metadata.labels.take(), INDEX, &number));
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.into(), number);
    if view.spec.backoff_limit_per_index.is_some() {
        let (failures, ignored) = replaced.map_or((0, 0), |pod| {
            let ignore = i32::from(view.action(pod) == Action::Ignore);
            (annotation(pod, FAILURES) + 1 - ignore, annotation(pod, IGNORED_FAILURES) + ignore)
        });
        annotations.insert(FAILURES.into(), failures.to_string());
        if ignored > 0 {
            annotations.insert(IGNORED_FAILURES.into(), ignored.to_string());
        }
    }
    if let Some(spec) = &mut pod.spec {
        spec.hostname = Some(format!("{job}-{index}"));
        spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()).for_each(tell_index);
    }
    pod
}

fn tell_index(container: &mut Container) {
    const NAME: &str = "JOB_COMPLETION_INDEX";
    let env = container.env.get_or_insert_default();
    if !env.iter().any(|variable| variable.name == NAME) {
        let field = ObjectFieldSelector { field_path: format!("metadata.labels['{INDEX}']"), ..Default::default() };
        let value_from = Some(EnvVarSource { field_ref: Some(field), ..Default::default() });
        env.push(EnvVar { name: NAME.into(), value: None, value_from });
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
