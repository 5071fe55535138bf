//! What a deployment's status says: counts, and the conditions Available, Progressing and ReplicaFailure. Pure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::plan::View;
use super::scale;

const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const COMPLETE: &str = "NewReplicaSetAvailable";
const PAUSED: &str = "DeploymentPaused";

/// The status for the sets as they are; `rolls_out` when progress is to be judged.
pub(super) fn status(view: &View, rolls_out: bool) -> DeploymentStatus {
    let old = view.deployment.status.clone().unwrap_or_default();
    let all = view.all();
    let sum = |of: fn(&ReplicaSet) -> i32| all.iter().map(|set| of(set)).sum::<i32>();
    let ready = |set: &ReplicaSet| set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
    let terminating =
        |set: &ReplicaSet| set.status.as_ref().and_then(|status| status.terminating_replicas).unwrap_or(0);
    let available = sum(scale::available);
    let mut status = DeploymentStatus {
        observed_generation: view.deployment.metadata.generation,
        replicas: Some(sum(scale::actual)),
        updated_replicas: Some(view.new.as_ref().map_or(0, |new| scale::actual(new))),
        ready_replicas: Some(sum(ready)),
        available_replicas: Some(available),
        unavailable_replicas: Some((sum(scale::size) - available).max(0)),
        terminating_replicas: Some(sum(terminating)),
        collision_count: old.collision_count,
        conditions: old.conditions,
    };
    let minimum = available >= view.replicas - view.limits.unavailable;
    let (value, reason, does) = match minimum {
        true => ("True", "MinimumReplicasAvailable", "has"),
        false => ("False", "MinimumReplicasUnavailable", "does not have"),
    };
    set(&mut status, "Available", value, reason, format!("Deployment {does} minimum availability."), view.now);
    pausing(view, &mut status);
    if rolls_out {
        judge(view, &mut status);
    }
    status
}

fn progressing(status: &DeploymentStatus) -> Option<&DeploymentCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == "Progressing")
}

fn reason(condition: &DeploymentCondition) -> &str {
    condition.reason.as_deref().unwrap_or_default()
}

/// How long a rollout may go without progress, if that is limited.
fn limit(deployment: &Deployment) -> Option<SignedDuration> {
    let seconds = deployment.spec.as_ref()?.progress_deadline_seconds.filter(|seconds| *seconds != i32::MAX)?;
    Some(SignedDuration::from_secs(seconds.into()))
}

fn pausing(view: &View, status: &mut DeploymentStatus) {
    let condition = progressing(status).map(reason);
    if limit(view.deployment).is_none() || condition == Some(TIMED_OUT) {
        return;
    }
    match (view.spec.paused.unwrap_or(false), condition == Some(PAUSED)) {
        (true, false) => set(status, "Progressing", "Unknown", PAUSED, "Deployment is paused".into(), view.now),
        (false, true) => {
            set(status, "Progressing", "Unknown", "DeploymentResumed", "Deployment is resumed".into(), view.now);
        }
        _ => {}
    }
}

fn judge(view: &View, status: &mut DeploymentStatus) {
    let subject = match &view.new {
        Some(new) => format!("ReplicaSet \"{}\"", new.metadata.name.as_deref().unwrap_or_default()),
        None => format!("Deployment \"{}\"", view.deployment.metadata.name.as_deref().unwrap_or_default()),
    };
    let was_complete = status.replicas == status.updated_replicas && progressing(status).map(reason) == Some(COMPLETE);
    if limit(view.deployment).is_none() {
        remove(status, "Progressing");
    } else if !was_complete {
        if is_complete(view, status) {
            set(status, "Progressing", "True", COMPLETE, format!("{subject} has successfully progressed."), view.now);
        } else if has_progressed(view, status) {
            // Each bit of progress starts the deadline anew, even if nothing else changes.
            let transition = progressing(status).filter(|condition| condition.status == "True").cloned();
            remove(status, "Progressing");
            set(status, "Progressing", "True", "ReplicaSetUpdated", format!("{subject} is progressing."), view.now);
            if let (Some(last), Some(condition)) = (transition, status.conditions.iter_mut().flatten().last()) {
                condition.last_transition_time = last.last_transition_time;
            }
        } else if timed_out(view, status) {
            set(status, "Progressing", "False", TIMED_OUT, format!("{subject} has timed out progressing."), view.now);
        }
    }
    failures(view, status);
}

pub(super) fn is_complete(view: &View, status: &DeploymentStatus) -> bool {
    let wanted = Some(view.replicas);
    status.updated_replicas == wanted && status.replicas == wanted && status.available_replicas == wanted
}

fn has_progressed(view: &View, status: &DeploymentStatus) -> bool {
    let before = view.deployment.status.clone().unwrap_or_default();
    let number = |number: Option<i32>| number.unwrap_or(0);
    let old = |status: &DeploymentStatus| number(status.replicas) - number(status.updated_replicas);
    number(status.updated_replicas) > number(before.updated_replicas)
        || old(status) < old(&before)
        || number(status.ready_replicas) > number(before.ready_replicas)
        || number(status.available_replicas) > number(before.available_replicas)
}

fn timed_out(view: &View, status: &DeploymentStatus) -> bool {
    let (Some(limit), Some(condition)) = (limit(view.deployment), progressing(status)) else { return false };
    match reason(condition) {
        COMPLETE => false,
        TIMED_OUT => true,
        _ => condition.last_update_time.as_ref().is_some_and(|time| time.0 + limit < view.now),
    }
}

fn failures(view: &View, status: &mut DeploymentStatus) {
    let failure = |set: &ReplicaSet| {
        let conditions = set.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        conditions.into_iter().find(|condition| condition.type_ == "ReplicaFailure")
    };
    let found = view.new.as_deref().and_then(failure).or_else(|| view.old.iter().find_map(|old| failure(old)));
    match found {
        Some(found) => {
            let (reason, message) = (found.reason.unwrap_or_default(), found.message.unwrap_or_default());
            set(status, "ReplicaFailure", &found.status, &reason, message, view.now);
        }
        None => remove(status, "ReplicaFailure"),
    }
}

/// Notes that a set was created or found, where there was no news of progress yet.
pub(super) fn note_new_set(view: &View, created: Option<&ReplicaSet>, status: &mut DeploymentStatus) {
    let (reason, text, subject) = match (created, &view.new) {
        _ if limit(view.deployment).is_none() => return,
        (Some(created), _) => ("NewReplicaSetCreated", "Created new", created),
        (None, Some(found)) if progressing(status).is_none() => ("FoundNewReplicaSet", "Found new", found.as_ref()),
        _ => return,
    };
    let name = subject.metadata.name.as_deref().unwrap_or_default();
    set(status, "Progressing", "True", reason, format!("{text} replica set \"{name}\""), view.now);
}

/// Notes that the new set could not be created.
pub(super) fn creation_failed(deployment: &Deployment, status: &mut DeploymentStatus, message: &str, now: Timestamp) {
    if limit(deployment).is_some() {
        set(status, "Progressing", "False", "ReplicaSetCreateError", message.into(), now);
    }
}

/// When to look whether the deadline has passed, if a rollout is under way.
pub(super) fn deadline(view: &View, status: &DeploymentStatus) -> Option<Duration> {
    let (limit, condition) = (limit(view.deployment)?, progressing(status)?);
    if is_complete(view, status) || matches!(reason(condition), TIMED_OUT | PAUSED | COMPLETE) {
        return None;
    }
    let left = (condition.last_update_time.as_ref()?.0 + limit).duration_since(view.now);
    Some(Duration::try_from(left).unwrap_or_default() + Duration::from_secs(1))
}

fn remove(status: &mut DeploymentStatus, kind: &str) {
    status.conditions.iter_mut().for_each(|conditions| conditions.retain(|condition| condition.type_ != kind));
}

/// Sets a condition; one of the same value and reason stays as it is.
fn set(status: &mut DeploymentStatus, kind: &str, value: &str, reason: &str, message: String, now: Timestamp) {
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    let conditions = status.conditions.get_or_insert_default();
    let current = conditions.iter().find(|condition| condition.type_ == kind).cloned();
    if current.as_ref().is_some_and(|found| found.status == value && self::reason(found) == reason) {
        return;
    }
    let same_value = current.filter(|found| found.status == value);
    let transition = same_value.and_then(|found| found.last_transition_time).unwrap_or_else(|| now.clone());
    conditions.retain(|condition| condition.type_ != kind);
    conditions.push(DeploymentCondition {
        type_: kind.into(),
        status: value.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(now),
        last_transition_time: Some(transition),
    });
}
