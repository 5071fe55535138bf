//! DaemonSet: one pod on every node that fits.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1 as api;
use machinery::field::Path;
use machinery::table::Column;
use serde_json::{Value, json};

use super::{collisions, int_or_percent, is_zero, validate_workload, wide_cells};
use crate::facts::{Facts, Subresource};
use crate::print;
use crate::resource::Kind;
use crate::validate::{Errors, text};
use crate::value::Defaulting;

pub struct DaemonSet;

impl Kind for DaemonSet {
    type Object = api::DaemonSet;

    const FACTS: Facts = Facts {
        short_names: &["ds"],
        categories: &["all"],
        subresources: &[Subresource::own("status", "apps", "v1", "DaemonSet")],
        generation: true,
        ..Facts::namespaced("apps", "v1", "DaemonSet", "daemonsets", "daemonset", "io.k8s.api.apps.v1.DaemonSet")
    };
    const TEMPLATE: &'static [&'static str] = &["spec", "template"];
    const IMMUTABLE: &'static [&'static str] = &["spec.selector"];
    const COLUMNS: &'static [Column] = &[
        print::NAME,
        print::integer("Desired"),
        print::integer("Current"),
        print::integer("Ready"),
        print::integer("Up-to-date"),
        print::integer("Available"),
        print::text("Node Selector"),
        print::AGE,
        print::CONTAINERS,
        print::IMAGES,
        print::SELECTOR,
    ];

    fn defaults(object: &mut Value) {
        let spec = object.make("spec");
        spec.or("revisionHistoryLimit", 10);
        let strategy = spec.make("updateStrategy");
        strategy.or("type", "RollingUpdate");
        if strategy.text("type") == "RollingUpdate" {
            strategy.make("rollingUpdate").or("maxUnavailable", 1).or("maxSurge", 0);
        }
    }

    fn prepare_create(object: &mut Value) {
        object["status"] = json!({
            "currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0,
        });
    }

    fn validate(object: &api::DaemonSet, errors: &mut Errors) {
        let path = Path::new("spec");
        let default = api::DaemonSetSpec::default();
        let spec = object.spec.as_ref().unwrap_or(&default);
        validate_workload(&spec.selector, &spec.template, "daemonset", &path, errors);
        errors.non_negative(&path.child("minReadySeconds"), spec.min_ready_seconds);
        errors.non_negative(&path.child("revisionHistoryLimit"), spec.revision_history_limit);
        let Some(strategy) = &spec.update_strategy else { return };
        let at = path.child("updateStrategy");
        match (text(&strategy.type_), &strategy.rolling_update) {
            ("RollingUpdate", Some(rolling)) => rolling_update(rolling, &at.child("rollingUpdate"), errors),
            ("RollingUpdate", None) => errors.required(&at.child("rollingUpdate"), ""),
            ("OnDelete", _) => {}
            _ => errors.not_supported(&at, strategy, &["RollingUpdate", "OnDelete"]),
        }
    }

    fn validate_status_update(new: &api::DaemonSet, old: &api::DaemonSet, errors: &mut Errors) {
        let (Some(status), path) = (&new.status, Path::new("status")) else { return };
        for (key, count) in [
            ("currentNumberScheduled", Some(status.current_number_scheduled)),
            ("numberMisscheduled", Some(status.number_misscheduled)),
            ("desiredNumberScheduled", Some(status.desired_number_scheduled)),
            ("numberReady", Some(status.number_ready)),
            ("updatedNumberScheduled", status.updated_number_scheduled),
            ("numberAvailable", status.number_available),
            ("numberUnavailable", status.number_unavailable),
        ] {
            errors.non_negative(&path.child(key), count);
        }
        errors.non_negative(&path.child("observedGeneration"), status.observed_generation);
        let before = old.status.as_ref().and_then(|status| status.collision_count);
        collisions(status.collision_count, before, &path, errors);
    }

    fn cells(object: &Value, typed: &api::DaemonSet, now: Timestamp) -> Vec<Value> {
        let (default_spec, default_status) = (api::DaemonSetSpec::default(), api::DaemonSetStatus::default());
        let spec = typed.spec.as_ref().unwrap_or(&default_spec);
        let status = typed.status.as_ref().unwrap_or(&default_status);
        let [containers, images, selector] = wide_cells(&spec.template, &spec.selector);
        let node_selector = spec.template.spec.as_ref().and_then(|spec| spec.node_selector.as_ref());
        vec![
            print::name(object),
            json!(status.desired_number_scheduled),
            json!(status.current_number_scheduled),
            json!(status.number_ready),
            json!(status.updated_number_scheduled.unwrap_or(0)),
            json!(status.number_available.unwrap_or(0)),
            json!(print::labels(node_selector)),
            print::age(object, now),
            containers,
            images,
            selector,
        ]
    }
}

/// On a node there is either one pod too few or one too many during an update, not both.
fn rolling_update(rolling: &api::RollingUpdateDaemonSet, path: &Path, errors: &mut Errors) {
    let (unavailable, surge) = (rolling.max_unavailable.as_ref(), rolling.max_surge.as_ref());
    int_or_percent(unavailable, true, &path.child("maxUnavailable"), errors);
    int_or_percent(surge, true, &path.child("maxSurge"), errors);
    match (is_zero(unavailable), is_zero(surge)) {
        (true, true) => {
            errors.required(&path.child("maxUnavailable"), "cannot be 0 when maxSurge is 0");
        }
        (false, false) => {
            errors.invalid(&path.child("maxSurge"), surge, "may not be set when maxUnavailable is non-zero");
        }
        _ => {}
    }
}
