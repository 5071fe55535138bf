//! A Job and its pods as the decisions look at them: which pods still count, what has succeeded and failed. Pure.
//!
//! A pod is counted while it carries the tracking finalizer: its end is noted in the status before the finalizer goes,
//! and so counts once, whenever the controller dies.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;

use super::indexes::{self, Indexes};
use super::policy::{self, Action};
use crate::common::pods;

pub const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
pub const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
pub const IGNORED_FAILURES: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

pub struct View<'a> {
    pub job: &'a Job,
    pub spec: &'a JobSpec,
    pub pods: &'a [Arc<Pod>],
    /// Uids of pods whose finalizer is gone, whatever the cache shows.
    pub released: &'a HashSet<String>,
    pub now: Timestamp,
}

pub fn has_finalizer(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
}

pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

pub fn annotation(pod: &Pod, key: &str) -> i32 {
    let value = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(key));
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

pub fn condition<'a>(job: &'a Job, kind: &str) -> Option<&'a JobCondition> {
    let conditions = job.status.as_ref()?.conditions.iter().flatten();
    conditions.into_iter().find(|condition| condition.type_ == kind && condition.status == "True")
}

pub fn is_finished(job: &Job) -> bool {
    condition(job, "Complete").or_else(|| condition(job, "Failed")).is_some()
}

impl View<'_> {
    pub fn is_indexed(&self) -> bool {
        self.spec.completion_mode.as_deref() == Some("Indexed")
    }

    pub fn completions(&self) -> i32 {
        self.spec.completions.unwrap_or(0)
    }

    pub fn is_suspended(&self) -> bool {
        self.spec.suspend == Some(true)
    }

    pub fn is_deleted(&self) -> bool {
        self.job.metadata.deletion_timestamp.is_some()
    }

    /// Whether a terminating pod is replaced only once it has ended.
    pub fn only_replaces_failed(&self) -> bool {
        self.spec.pod_failure_policy.is_some() || self.spec.pod_replacement_policy.as_deref() == Some("Failed")
    }

    /// Whether the pod's end is still to be counted.
    pub fn is_tracked(&self, pod: &Pod) -> bool {
        has_finalizer(pod) && !self.released.contains(uid(pod))
    }

    /// The pod's completion index, if it has one that counts.
    pub fn index(&self, pod: &Pod) -> Option<i32> {
        let index = pod.metadata.annotations.as_ref()?.get(INDEX)?.parse().ok()?;
        (0..self.completions()).contains(&index).then_some(index)
    }

    /// A pod that is deleted without having ended counts as failed, unless the job waits for how it ends.
    pub fn has_failed(&self, pod: &Pod) -> bool {
        match pods::phase(pod) {
            "Failed" => true,
            "Succeeded" => false,
            _ => pods::is_terminating(pod) && !self.only_replaces_failed(),
        }
    }

    pub fn action(&self, pod: &Pod) -> Action {
        policy::on_failure(self.spec.pod_failure_policy.as_ref(), pod)
    }

    pub fn active(&self) -> Vec<Arc<Pod>> {
        self.pods.iter().filter(|pod| pods::is_active(pod)).cloned().collect()
    }

    pub fn terminating(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.iter().filter(|pod| pods::is_terminating(pod) && !pods::is_finished(pod))
    }

    pub fn uncounted(&self) -> UncountedTerminatedPods {
        let status = self.job.status.as_ref();
        status.and_then(|status| status.uncounted_terminated_pods.clone()).unwrap_or_default()
    }

    fn indexes_in_status(&self, of: impl Fn(&k8s_openapi::api::batch::v1::JobStatus) -> Option<&String>) -> Indexes {
        let text = self.job.status.as_ref().and_then(of);
        indexes::parse(text.map(String::as_str).unwrap_or_default(), self.completions())
    }

    fn index_has_failed(&self, pod: &Pod, limit: i32) -> bool {
        match self.action(pod) {
            _ if !self.has_failed(pod) => false,
            Action::FailIndex => true,
            Action::Ignore => false,
            _ => annotation(pod, FAILURES) >= limit,
        }
    }
}

/// What has come of the pods so far, the ones that the status does not know yet included.
#[derive(Debug, Default)]
pub struct Tally {
    pub succeeded: i32,
    pub failed: i32,
    /// Pods that ended since the last look, for back-off.
    pub new_succeeded: Vec<Arc<Pod>>,
    pub new_failed: Vec<Arc<Pod>>,
    /// Indexes the status knows to have succeeded.
    pub noted_indexes: Indexes,
    pub succeeded_indexes: Indexes,
    /// Only with a back-off limit per index.
    pub failed_indexes: Option<Indexes>,
    /// By index, the failed pod that stays until it is replaced: it carries the count of failures.
    pub delayed: BTreeMap<i32, Arc<Pod>>,
}

impl Tally {
    pub fn of(view: &View) -> Self {
        let uncounted = view.uncounted();
        let [succeeded, failed] = [&uncounted.succeeded, &uncounted.failed].map(|uids| uids.as_deref().unwrap_or(&[]));
        let fresh = |known: &[String], ended: &dyn Fn(&Pod) -> bool| -> Vec<Arc<Pod>> {
            let valid = |pod: &Pod| !view.is_indexed() || view.index(pod).is_some();
            let fresh = |pod: &&Arc<Pod>| {
                view.is_tracked(pod) && !known.iter().any(|known| known == uid(pod)) && valid(pod) && ended(pod)
            };
            view.pods.iter().filter(fresh).cloned().collect()
        };
        let new_succeeded = fresh(succeeded, &|pod| pods::phase(pod) == "Succeeded");
        let new_failed = fresh(failed, &|pod| view.has_failed(pod));
        let counting = new_failed.iter().filter(|pod| view.action(pod) != Action::Ignore).count();
        let status = view.job.status.as_ref();
        let mut tally = Self {
            succeeded: status.and_then(|status| status.succeeded).unwrap_or(0)
                + (new_succeeded.len() + succeeded.len()) as i32,
            failed: status.and_then(|status| status.failed).unwrap_or(0) + (counting + failed.len()) as i32,
            new_succeeded,
            new_failed,
            ..Self::default()
        };
        if view.is_indexed() {
            tally.count_indexes(view);
        }
        tally
    }

    fn count_indexes(&mut self, view: &View) {
        let tracked = || view.pods.iter().filter(|pod| view.is_tracked(pod));
        self.noted_indexes = view.indexes_in_status(|status| status.completed_indexes.as_ref());
        let succeeded = tracked().filter(|pod| pods::phase(pod) == "Succeeded").filter_map(|pod| view.index(pod));
        self.succeeded_indexes = self.noted_indexes.iter().copied().chain(succeeded).collect();
        self.succeeded = self.succeeded_indexes.len() as i32;
        let Some(limit) = view.spec.backoff_limit_per_index else { return };
        let failed = tracked().filter(|pod| view.index_has_failed(pod, limit)).filter_map(|pod| view.index(pod));
        let mut indexes = view.indexes_in_status(|status| status.failed_indexes.as_ref());
        indexes.extend(failed);
        let active: Indexes = view.active().iter().filter_map(|pod| view.index(pod)).collect();
        for pod in tracked().filter(|pod| view.has_failed(pod)) {
            let Some(index) = view.index(pod) else { continue };
            if [&self.succeeded_indexes, &indexes, &active].iter().any(|done| done.contains(&index)) {
                continue;
            }
            let known = self.delayed.get(&index).map(|known| all_failures(known));
            if known.is_none_or(|known| known <= all_failures(pod)) {
                self.delayed.insert(index, pod.clone());
            }
        }
        self.failed_indexes = Some(indexes);
    }
}

/// Failures of the pod's index before it, ignored ones included.
pub fn all_failures(pod: &Pod) -> i32 {
    annotation(pod, FAILURES) + annotation(pod, IGNORED_FAILURES)
}
