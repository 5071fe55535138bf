//! Deployment: rolls a template out through ReplicaSets.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1 as api;
use machinery::field::Path;
use machinery::table::Column;
use serde_json::{Value, json};

use super::{count, int_or_percent, is_zero, validate_workload, wide_cells};
use crate::facts::{Facts, Subresource};
use crate::print;
use crate::resource::{Kind, keep};
use crate::validate::{Errors, text};
use crate::value::Defaulting;

pub struct Deployment;

impl Kind for Deployment {
    type Object = api::Deployment;

    const FACTS: Facts = Facts {
        short_names: &["deploy"],
        categories: &["all"],
        subresources: &[Subresource::scale(), Subresource::own("status", "apps", "v1", "Deployment")],
        generation: true,
        ..Facts::namespaced("apps", "v1", "Deployment", "deployments", "deployment", "io.k8s.api.apps.v1.Deployment")
    };
    const TEMPLATE: &'static [&'static str] = &["spec", "template"];
    const IMMUTABLE: &'static [&'static str] = &["spec.selector"];
    const NAMES_HOSTS: bool = true;
    const COLUMNS: &'static [Column] = &[
        print::NAME,
        print::text("Ready"),
        print::integer("Up-to-date"),
        print::integer("Available"),
        print::AGE,
        print::CONTAINERS,
        print::IMAGES,
        print::SELECTOR,
    ];

    fn defaults(object: &mut Value) {
        let spec = object.make("spec");
        spec.or("replicas", 1).or("revisionHistoryLimit", 10).or("progressDeadlineSeconds", 600);
        let strategy = spec.make("strategy");
        strategy.or("type", "RollingUpdate");
        if strategy.text("type") == "RollingUpdate" {
            strategy.make("rollingUpdate").or("maxUnavailable", "25%").or("maxSurge", "25%");
        }
    }

    fn prepare_status_update(new: &mut Value, old: &Value) {
        keep(&mut new["metadata"], &old["metadata"], "labels");
    }

    fn validate(object: &api::Deployment, errors: &mut Errors) {
        let path = Path::new("spec");
        let default = api::DeploymentSpec::default();
        let spec = object.spec.as_ref().unwrap_or(&default);
        errors.non_negative(&path.child("replicas"), spec.replicas);
        validate_workload(&spec.selector, &spec.template, "deployment", &path, errors);
        strategy(spec.strategy.as_ref(), &path.child("strategy"), errors);
        errors.non_negative(&path.child("minReadySeconds"), spec.min_ready_seconds);
        errors.non_negative(&path.child("revisionHistoryLimit"), spec.revision_history_limit);
        if let Some(deadline) = spec.progress_deadline_seconds {
            let at = path.child("progressDeadlineSeconds");
            errors.non_negative(&at, Some(deadline));
            if deadline <= spec.min_ready_seconds.unwrap_or(0) {
                errors.invalid(&at, deadline, "must be greater than minReadySeconds");
            }
        }
    }

    fn cells(object: &Value, typed: &api::Deployment, now: Timestamp) -> Vec<Value> {
        let (default_spec, default_status) = (api::DeploymentSpec::default(), api::DeploymentStatus::default());
        let spec = typed.spec.as_ref().unwrap_or(&default_spec);
        let status = typed.status.as_ref().unwrap_or(&default_status);
        let [containers, images, selector] = wide_cells(&spec.template, &spec.selector);
        let ready = format!("{}/{}", status.ready_replicas.unwrap_or(0), spec.replicas.unwrap_or(0));
        vec![
            print::name(object),
            json!(ready),
            count(status.updated_replicas),
            count(status.available_replicas),
            print::age(object, now),
            containers,
            images,
            selector,
        ]
    }

    /// Annotations of a deployment are copied to its ReplicaSets, so they count as desired state.
    fn generation_changes(new: &Value, old: &Value) -> bool {
        !machinery::schema::semantic_equal(&new["spec"], &old["spec"])
            || !machinery::schema::semantic_equal(&new["metadata"]["annotations"], &old["metadata"]["annotations"])
    }
}

fn strategy(strategy: Option<&api::DeploymentStrategy>, path: &Path, errors: &mut Errors) {
    let Some(strategy) = strategy else { return };
    let type_ = text(&strategy.type_);
    errors.one_of(&path.child("type"), Some(type_), &["Recreate", "RollingUpdate"]);
    let at = path.child("rollingUpdate");
    match (type_, &strategy.rolling_update) {
        ("Recreate", Some(_)) => {
            errors.forbidden(&at, "may not be specified when strategy `type` is 'Recreate'");
        }
        ("RollingUpdate", None) => {
            errors.required(&at, "this should be defaulted and never be nil");
        }
        ("RollingUpdate", Some(rolling)) => {
            let (unavailable, surge) = (rolling.max_unavailable.as_ref(), rolling.max_surge.as_ref());
            int_or_percent(unavailable, true, &at.child("maxUnavailable"), errors);
            int_or_percent(surge, false, &at.child("maxSurge"), errors);
            if is_zero(unavailable) && is_zero(surge) {
                errors.invalid(&at.child("maxUnavailable"), unavailable, "may not be 0 when `maxSurge` is 0");
            }
        }
        _ => {}
    }
}
