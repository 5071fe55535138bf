//! What a Job's status may become. Whoever manages the Job, clients must be able to rely on it: an end is final, counts do
//! not go back, and the conditions agree with each other.
//!
//! A rule about a field applies only when that field changes, so that a status that breaks one (after a change of the
//! spec, say) does not block every other write.

use std::collections::BTreeSet;

use k8s_openapi::api::batch::v1 as api;
use machinery::field::Path;

use super::policies::{index_interval, indexes};
use crate::validate::{Errors, text};

/// Two conditions that may not both hold, as upstream's message names them.
const EXCLUSIVE: [([&str; 2], &str); 4] = [
    (["Complete", "Failed"], "cannot set Complete=True and Failed=true conditions"),
    (["Complete", "FailureTarget"], "cannot set Complete=True and FailureTarget=true conditions"),
    (["SuccessCriteriaMet", "Failed"], "cannot set SuccessCriteriaMet=True and Failed=true conditions"),
    (["SuccessCriteriaMet", "FailureTarget"], "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions"),
];

pub fn validate_update(new: &api::Job, old: &api::Job, errors: &mut Errors) {
    let default = (api::JobSpec::default(), api::JobStatus::default());
    let change = Change {
        spec: new.spec.as_ref().unwrap_or(&default.0),
        new: new.status.as_ref().unwrap_or(&default.1),
        old: old.status.as_ref().unwrap_or(&default.1),
    };
    let path = Path::new("status");
    change.counts(&path, errors);
    change.uncounted(&path.child("uncountedTerminatedPods"), errors);
    change.conditions(&path.child("conditions"), errors);
    change.times(&path, errors);
    change.finished(&path, errors);
    change.indexes(&path, errors);
}

pub fn is(status: &api::JobStatus, condition: &str) -> bool {
    says(status, condition, "True")
}

fn says(status: &api::JobStatus, condition: &str, value: &str) -> bool {
    status.conditions.iter().flatten().any(|found| found.type_ == condition && found.status == value)
}

fn is_finished(status: &api::JobStatus) -> bool {
    is(status, "Complete") || is(status, "Failed")
}

struct Change<'a> {
    spec: &'a api::JobSpec,
    new: &'a api::JobStatus,
    old: &'a api::JobStatus,
}

impl Change<'_> {
    fn changes<T: PartialEq>(&self, of: impl Fn(&api::JobStatus) -> T) -> bool {
        of(self.new) != of(self.old)
    }

    fn is_indexed(&self) -> bool {
        self.spec.completion_mode.as_deref() == Some("Indexed")
    }

    fn counts(&self, path: &Path, errors: &mut Errors) {
        let (new, old) = (self.new, self.old);
        let counts = [
            ("active", new.active),
            ("succeeded", new.succeeded),
            ("failed", new.failed),
            ("ready", new.ready),
            ("terminating", new.terminating),
        ];
        for (key, count) in counts {
            errors.non_negative(&path.child(key), count);
        }
        let changed = self.changes(|status| (status.ready, status.active));
        if let Some(ready) = new.ready.filter(|ready| changed && *ready > new.active.unwrap_or(0)) {
            errors.invalid(&path.child("ready"), ready, "cannot set more ready pods than active");
        }
        // An indexed job that is scaled down forgets successes.
        let elastic = self.is_indexed() && self.spec.completions == self.spec.parallelism;
        for (key, new, old, may) in
            [("failed", new.failed, old.failed, false), ("succeeded", new.succeeded, old.succeeded, elastic)]
        {
            let (new, old) = (new.unwrap_or(0), old.unwrap_or(0));
            if new < old && !may {
                errors.invalid(&path.child(key), new, format!("cannot decrease the {key} counter"));
            }
        }
    }

    fn uncounted(&self, path: &Path, errors: &mut Errors) {
        let Some(uncounted) = &self.new.uncounted_terminated_pods else { return };
        let mut seen = BTreeSet::new();
        for (key, uids) in [("succeeded", &uncounted.succeeded), ("failed", &uncounted.failed)] {
            for (number, uid) in uids.iter().flatten().enumerate() {
                let at = path.child(key).index(number);
                if uid.is_empty() {
                    errors.invalid(&at, uid, "must not be empty");
                } else if !seen.insert(uid) {
                    errors.duplicate(&at, uid);
                }
            }
        }
    }

    fn conditions(&self, path: &Path, errors: &mut Errors) {
        let (now, before) = (|kind: &str| is(self.new, kind), |kind: &str| is(self.old, kind));
        let changes = |kind: &str| now(kind) != before(kind);
        for ([one, other], detail) in EXCLUSIVE {
            if now(one) && now(other) && (changes(one) || changes(other)) {
                errors.invalid_whole(path, detail);
            }
        }
        for (end, announced, detail) in [
            ("Failed", "FailureTarget", "cannot set Failed=True condition without the FailureTarget=true condition"),
            (
                "Complete",
                "SuccessCriteriaMet",
                "cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
            ),
        ] {
            if now(end) && !now(announced) && (changes(end) || changes(announced)) {
                errors.invalid_whole(path, detail);
            }
        }
        if self.spec.success_policy.is_some() && now("Complete") && !now("SuccessCriteriaMet") {
            let detail = "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True";
            errors.invalid_whole(path, detail);
        }
        for terminal in ["Failed", "Complete", "FailureTarget"] {
            if before(terminal) && !now(terminal) {
                errors.invalid_whole(path, format!("cannot disable the terminal {terminal}=True condition"));
            }
        }
        if before("SuccessCriteriaMet") && !now("SuccessCriteriaMet") {
            errors.invalid_whole(path, "cannot disable the SuccessCriteriaMet=True condition");
        }
        if before("Complete") && !before("SuccessCriteriaMet") && now("SuccessCriteriaMet") {
            let detail = "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions";
            errors.invalid_whole(path, detail);
        }
    }

    fn times(&self, path: &Path, errors: &mut Errors) {
        let (new, old) = (self.new, self.old);
        let (start, end) = (path.child("startTime"), path.child("completionTime"));
        let complete = is(new, "Complete");
        if self.changes(|status| (is(status, "Complete"), status.completion_time.clone())) {
            match (&new.completion_time, complete) {
                (Some(time), false) => {
                    let detail = "cannot set completionTime when there is no Complete=True condition";
                    errors.invalid(&end, time, detail);
                }
                (None, true) => errors.required(&end, "completionTime is required for Complete jobs"),
                _ => {}
            }
        }
        let changed = self.changes(|status| (status.start_time.clone(), status.completion_time.clone()));
        if let (Some(started), Some(ended)) = (&new.start_time, &new.completion_time)
            && changed
            && ended.0 < started.0
        {
            errors.invalid(&end, ended, "completionTime cannot be set before startTime");
        }
        if let (Some(time), Some(before)) = (&new.completion_time, &old.completion_time)
            && time != before
        {
            errors.invalid(&end, time, "completionTime cannot be mutated");
        }
        let resumes = is(old, "Suspended") && says(new, "Suspended", "False");
        let suspended = self.spec.suspend == Some(true) || resumes;
        if old.start_time.is_some() && new.start_time != old.start_time && !suspended {
            errors.required(&start, "startTime cannot be removed for unsuspended job");
        }
    }

    /// What a job that is over may not have left.
    fn finished(&self, path: &Path, errors: &mut Errors) {
        let (new, over) = (self.new, self.changes(is_finished));
        if !is_finished(new) {
            return;
        }
        if let Some(active) = new.active.filter(|active| *active > 0 && (over || self.changes(|s| s.active))) {
            errors.invalid(&path.child("active"), active, "active>0 is invalid for finished job");
        }
        let never_runs = self.spec.suspend == Some(true) && self.spec.completions == Some(0);
        if new.start_time.is_none() && !never_runs && (over || self.changes(|status| status.start_time.clone())) {
            errors.required(&path.child("startTime"), "startTime is required for finished job");
        }
        let pods = |status: &api::JobStatus| status.uncounted_terminated_pods.clone();
        let left =
            pods(new).is_some_and(|pods| [pods.succeeded, pods.failed].into_iter().flatten().any(|p| !p.is_empty()));
        if left && (over || self.changes(pods)) {
            let detail = "uncountedTerminatedPods needs to be empty for finished job";
            errors.invalid(&path.child("uncountedTerminatedPods"), pods(new), detail);
        }
        let terminating = new.terminating.filter(|count| *count > 0 && (over || self.changes(|s| s.terminating)));
        if let Some(terminating) = terminating {
            errors.invalid(&path.child("terminating"), terminating, "terminating>0 is invalid for finished job");
        }
    }

    fn indexes(&self, path: &Path, errors: &mut Errors) {
        let (completed, failed) = (text(&self.new.completed_indexes), self.new.failed_indexes.as_deref());
        let completed_changes = self.changes(|status| status.completed_indexes.clone());
        let failed_changes = self.changes(|status| status.failed_indexes.clone());
        let at = path.child("completedIndexes");
        if let Some(completions) = self.spec.completions.filter(|_| completed_changes)
            && let Err(why) = indexes(completed, completions)
        {
            errors.invalid(&at, completed, format!("error parsing completedIndexes: {why}"));
        }
        if completed_changes && !completed.is_empty() && !self.is_indexed() {
            errors.invalid(&at, completed, "cannot set non-empty completedIndexes when non-indexed completion mode");
        }
        let (Some(failed), at) = (failed, path.child("failedIndexes")) else { return };
        if failed_changes && self.spec.backoff_limit_per_index.is_none() {
            errors.invalid(&at, failed, "cannot set non-null failedIndexes when backoffLimitPerIndex is null");
        }
        let Some(completions) = self.spec.completions else { return };
        if let (true, Some(_), Err(why)) =
            (failed_changes, self.spec.backoff_limit_per_index, indexes(failed, completions))
        {
            errors.invalid(&at, failed, format!("error parsing failedIndexes: {why}"));
        }
        if let Some(index) = overlap(completed, failed, completions).filter(|_| failed_changes || completed_changes) {
            errors.invalid(&at, failed, format!("failedIndexes and completedIndexes overlap at index: {index}"));
        }
    }
}

/// The first index of both texts; what does not parse is reported elsewhere.
fn overlap(completed: &str, failed: &str, completions: i32) -> Option<i32> {
    let intervals = |text: &str| -> Vec<(i32, i32)> {
        text.split(',').filter_map(|interval| index_interval(interval, completions).ok()).collect()
    };
    let failed = intervals(failed);
    let meet = |&(first, last): &(i32, i32)| {
        failed.iter().filter(|(from, to)| first <= *to && *from <= last).map(|(from, _)| first.max(*from)).min()
    };
    intervals(completed).iter().filter_map(meet).min()
}
