//! Counting the pods of a Job, exactly once each: an ended pod is first noted in the status as uncounted (an indexed
//! success by its index), then loses its finalizer, then moves to the counter. Pure; dying between two of these steps
//! leaves a state from which the next pass goes on.

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::batch::v1::{JobCondition, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::indexes::{self, Indexes};
use super::plan::Ending;
use super::policy::Action;
use super::view::{Tally, View, uid};
use crate::common::pods;

/// Pods noted in one pass: the status must not grow without bound.
const MAX_UNCOUNTED: usize = 500;

#[derive(Debug)]
pub struct Track {
    pub status: JobStatus,
    /// Pods to take the finalizer from, once the status is written.
    pub release: Vec<Arc<Pod>>,
    /// Whether more pods wait for the next pass.
    pub partial: bool,
}

/// `status` has the present numbers of active, ready and terminating pods.
pub fn track(view: &View, tally: &Tally, ending: Option<&Ending>, mut status: JobStatus) -> Track {
    let tracked: Vec<_> = view.pods.iter().filter(|pod| view.is_tracked(pod)).collect();
    settle(&mut status, &tracked.iter().map(|pod| uid(pod)).collect(), view.is_indexed());
    let mut uncounted = status.uncounted_terminated_pods.take().unwrap_or_default();
    let [mut succeeded, mut failed] =
        [uncounted.succeeded.take(), uncounted.failed.take()].map(Option::unwrap_or_default);
    let (mut release, mut new_indexes, mut partial) = (Vec::new(), Indexes::new(), false);
    for pod in tracked {
        let has_failed = view.has_failed(pod);
        let delayed = || tally.delayed.values().any(|kept| uid(kept) == uid(pod));
        let over = view.is_deleted() || ending.is_some();
        if !(over || pods::phase(pod) == "Succeeded" || has_failed && !delayed()) {
            continue;
        }
        if succeeded.len() + failed.len() + new_indexes.len() >= MAX_UNCOUNTED {
            partial = true;
            break;
        }
        release.push(pod.clone());
        let (uid, index) = (uid(pod).to_owned(), view.index(pod));
        if pods::phase(pod) == "Succeeded" && !failed.contains(&uid) {
            match view.is_indexed() {
                true => new_indexes.extend(index),
                false if !succeeded.contains(&uid) => succeeded.push(uid),
                false => {}
            }
        } else if (has_failed || ending.is_some_and(|ending| ending.fails))
            && !failed.contains(&uid)
            && (!view.is_indexed() || index.is_some())
            && view.action(pod) != Action::Ignore
        {
            failed.push(uid);
        }
    }
    if view.is_indexed() {
        new_indexes.extend(&tally.noted_indexes);
        status.succeeded = count(new_indexes.len());
        status.completed_indexes = Some(indexes::format(&new_indexes)).filter(|text| !text.is_empty());
        status.failed_indexes = tally.failed_indexes.as_ref().map(indexes::format);
    }
    let some = |uids: Vec<String>| (!uids.is_empty()).then_some(uids);
    (uncounted.succeeded, uncounted.failed) = (some(succeeded), some(failed));
    status.uncounted_terminated_pods = Some(uncounted);
    if let Some(ending) = ending {
        let announced = ending.conditions().0;
        if !status.conditions.iter().flatten().any(|condition| condition.type_ == announced) {
            set_condition(&mut status, announced, "True", &ending.reason, &ending.message, &now(view));
        }
    }
    Track { status, release, partial }
}

/// Counts the noted pods that no longer have the finalizer.
pub fn settle(status: &mut JobStatus, with_finalizer: &HashSet<&str>, indexed: bool) {
    let Some(uncounted) = &mut status.uncounted_terminated_pods else { return };
    let gone = |uids: &mut Option<Vec<String>>| {
        let list = uids.get_or_insert_default();
        let before = list.len();
        list.retain(|uid| with_finalizer.contains(uid.as_str()));
        let gone = before - list.len();
        if list.is_empty() {
            *uids = None;
        }
        gone
    };
    let (succeeded, failed) = (gone(&mut uncounted.succeeded), gone(&mut uncounted.failed));
    if !indexed {
        status.succeeded = count(status.succeeded.unwrap_or(0) as usize + succeeded);
    }
    status.failed = count(status.failed.unwrap_or(0) as usize + failed);
}

/// Declares the end, once every pod has ended and is counted.
pub fn finish(view: &View, ending: &Ending, status: &mut JobStatus) -> bool {
    let uncounted =
        status.uncounted_terminated_pods.iter().flat_map(|uncounted| [&uncounted.succeeded, &uncounted.failed]);
    let waits = uncounted.flatten().any(|uids| !uids.is_empty());
    if waits || status.active.unwrap_or(0) > 0 || status.terminating.unwrap_or(0) > 0 {
        return false;
    }
    let now = now(view);
    set_condition(status, ending.conditions().1, "True", &ending.reason, &ending.message, &now);
    if !ending.fails {
        status.completion_time = Some(now);
    }
    true
}

/// Sets a condition; one that is absent need not be set to False. Tells whether that changed anything.
pub fn set_condition(status: &mut JobStatus, kind: &str, value: &str, reason: &str, message: &str, now: &Time) -> bool {
    let conditions = status.conditions.get_or_insert_default();
    let known = conditions.iter().position(|condition| condition.type_ == kind);
    let wanted = JobCondition {
        type_: kind.into(),
        status: value.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_probe_time: Some(now.clone()),
        last_transition_time: Some(now.clone()),
    };
    match known {
        Some(at) if conditions[at].status == value => return false,
        Some(at) => conditions[at] = wanted,
        None if value == "True" => conditions.push(wanted),
        None => {
            status.conditions.take_if(|conditions| conditions.is_empty());
            return false;
        }
    }
    true
}

/// Zero is left out, as upstream does.
pub fn count(number: usize) -> Option<i32> {
    (number > 0).then_some(number as i32)
}

pub fn now(view: &View) -> Time {
    Time(jiff::Timestamp::from_second(view.now.as_second()).unwrap_or(view.now))
}
