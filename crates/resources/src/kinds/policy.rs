//! `policy/v1`: disruption budgets and evictions.

use jiff::Timestamp;
use k8s_openapi::api::policy::v1 as api;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use machinery::field::Path;
use machinery::table::Column;
use serde_json::{Value, json};

use super::apps::int_or_percent;
use crate::facts::{Facts, Subresource};
use crate::print;
use crate::resource::Kind;
use crate::validate::{Errors, selector};

pub struct PodDisruptionBudget;

impl Kind for PodDisruptionBudget {
    type Object = api::PodDisruptionBudget;

    const FACTS: Facts = Facts {
        short_names: &["pdb"],
        subresources: &[Subresource::own("status", "policy", "v1", "PodDisruptionBudget")],
        generation: true,
        ..Facts::namespaced(
            "policy",
            "v1",
            "PodDisruptionBudget",
            "poddisruptionbudgets",
            "poddisruptionbudget",
            "io.k8s.api.policy.v1.PodDisruptionBudget",
        )
    };
    const COLUMNS: &'static [Column] = &[
        print::NAME,
        print::text("Min Available"),
        print::text("Max Unavailable"),
        print::integer("Allowed Disruptions"),
        print::AGE,
    ];

    fn prepare_create(object: &mut Value) {
        object["status"] =
            json!({"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0});
    }

    fn validate(object: &api::PodDisruptionBudget, errors: &mut Errors) {
        let path = Path::new("spec");
        let Some(spec) = &object.spec else { return };
        if spec.min_available.is_some() && spec.max_unavailable.is_some() {
            errors.invalid(&path, spec, "minAvailable and maxUnavailable cannot be both set");
        }
        for (key, value) in [("minAvailable", &spec.min_available), ("maxUnavailable", &spec.max_unavailable)] {
            int_or_percent(value.as_ref(), true, &path.child(key), errors);
        }
        errors.optional_one_of(
            &path.child("unhealthyPodEvictionPolicy"),
            spec.unhealthy_pod_eviction_policy.as_deref(),
            &["AlwaysAllow", "IfHealthyBudget"],
        );
        if let Some(labels) = &spec.selector {
            selector::validate(labels, &path.child("selector"), errors);
        }
    }

    fn validate_status_update(new: &api::PodDisruptionBudget, _old: &api::PodDisruptionBudget, errors: &mut Errors) {
        let (path, Some(status)) = (Path::new("status"), &new.status) else { return };
        let counts = [
            ("disruptionsAllowed", status.disruptions_allowed),
            ("currentHealthy", status.current_healthy),
            ("desiredHealthy", status.desired_healthy),
            ("expectedPods", status.expected_pods),
        ];
        for (key, count) in counts {
            errors.non_negative(&path.child(key), count);
        }
    }

    fn cells(object: &Value, typed: &api::PodDisruptionBudget, now: Timestamp) -> Vec<Value> {
        let shown = |value: Option<&IntOrString>| match value {
            Some(IntOrString::Int(number)) => number.to_string(),
            Some(IntOrString::String(text)) => text.clone(),
            None => "N/A".to_owned(),
        };
        let spec = typed.spec.as_ref();
        vec![
            print::name(object),
            json!(shown(spec.and_then(|spec| spec.min_available.as_ref()))),
            json!(shown(spec.and_then(|spec| spec.max_unavailable.as_ref()))),
            json!(typed.status.as_ref().and_then(|status| status.disruptions_allowed).unwrap_or(0)),
            print::age(object, now),
        ]
    }
}

/// The body of `pods/NAME/eviction`.
pub struct Eviction;

impl Kind for Eviction {
    type Object = api::Eviction;

    const FACTS: Facts =
        Facts::namespaced("policy", "v1", "Eviction", "", "", "io.k8s.api.policy.v1.Eviction").posted();
}
