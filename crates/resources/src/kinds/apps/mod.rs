//! `apps/v1`: the workloads.

mod controller_revision;
mod daemon_set;
mod deployment;
mod replica_set;
mod stateful_set;

pub use controller_revision::ControllerRevision;
pub use daemon_set::DaemonSet;
pub use deployment::Deployment;
pub use replica_set::ReplicaSet;
pub use stateful_set::StatefulSet;

use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use machinery::field::Path;
use machinery::names;
use serde_json::{Value, json};

use crate::pod;
use crate::print;
use crate::validate::{Errors, NEGATIVE, selector};

/// What all workloads with a template and a selector must satisfy.
fn validate_workload(labels: &LabelSelector, template: &PodTemplateSpec, kind: &str, path: &Path, errors: &mut Errors) {
    selector::of_workload(labels, template, kind, path, errors);
    let owner = match kind {
        "statefulset" => "StatefulSet",
        "daemonset" => "DaemonSet",
        _ => "ReplicaSet",
    };
    pod::replicas_template(template, owner, &path.child("template"), errors);
}

/// The wide columns of a workload.
fn wide_cells(template: &PodTemplateSpec, labels: &LabelSelector) -> [Value; 3] {
    print::template(Some(template), print::selector(labels))
}

fn count(value: Option<i32>) -> Value {
    json!(value.unwrap_or(0))
}

/// A non-negative number, or a percentage (up to 100 where `bounded`).
pub(crate) fn int_or_percent(value: Option<&IntOrString>, bounded: bool, path: &Path, errors: &mut Errors) {
    match value {
        Some(IntOrString::Int(number)) if *number < 0 => errors.invalid(path, *number, NEGATIVE),
        Some(IntOrString::String(text)) => {
            let wrong = names::is_valid_percent(text);
            let percent = text.trim_end_matches('%').parse::<u32>().unwrap_or(0);
            if wrong.is_empty() && bounded && percent > 100 {
                errors.invalid(path, text, "must not be greater than 100%");
            }
            errors.all_invalid(path, text, wrong);
        }
        _ => {}
    }
}

/// How many revisions met in one hash: never fewer than before.
fn collisions(new: Option<i32>, old: Option<i32>, status: &Path, errors: &mut Errors) {
    let at = status.child("collisionCount");
    errors.non_negative(&at, new);
    if old.is_some_and(|old| new.unwrap_or(0) < old) {
        errors.invalid(&at, new.unwrap_or(0), "cannot be decremented");
    }
}

/// Whether a number or percentage is zero (absent counts as zero).
fn is_zero(value: Option<&IntOrString>) -> bool {
    match value {
        None => true,
        Some(IntOrString::Int(number)) => *number == 0,
        Some(IntOrString::String(text)) => text.trim_end_matches('%').parse() == Ok(0),
    }
}
