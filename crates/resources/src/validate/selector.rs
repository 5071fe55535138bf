//! Label selectors in specs, and whether a workload's selector selects its own template.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use machinery::field::Path;
use machinery::labels::Selector;
use machinery::names;

use super::{Errors, indexed, meta};

pub fn validate(selector: &LabelSelector, path: &Path, errors: &mut Errors) {
    meta::labels(selector.match_labels.as_ref(), &path.child("matchLabels"), errors);
    let expressions = path.child("matchExpressions");
    for (at, requirement) in indexed(selector.match_expressions.as_ref(), &expressions) {
        let values = requirement.values.as_deref().unwrap_or_default();
        match requirement.operator.as_str() {
            "In" | "NotIn" if values.is_empty() => {
                errors.required(&at.child("values"), "must be specified when `operator` is 'In' or 'NotIn'")
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => errors
                .forbidden(&at.child("values"), "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.invalid(&at.child("operator"), other, "not a valid selector operator"),
        }
        let key = &requirement.key;
        errors.all_invalid(&at.child("key"), key, names::is_qualified_name(key));
        for (at, value) in indexed(requirement.values.as_ref(), &at.child("values")) {
            errors.all_invalid(&at, value, names::is_valid_label_value(value));
        }
    }
}

pub fn is_empty(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
        && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
}

/// The selector of a Deployment, ReplicaSet, StatefulSet or DaemonSet: valid, not empty, and
/// matching the template's labels.
pub fn of_workload(selector: &LabelSelector, template: &PodTemplateSpec, kind: &str, spec: &Path, errors: &mut Errors) {
    let path = spec.child("selector");
    validate(selector, &path, errors);
    if is_empty(selector) {
        errors.invalid(&path, selector, format!("empty selector is invalid for {kind}"));
        return;
    }
    let Ok(value) = serde_json::to_value(selector) else { return };
    let Ok(parsed) = Selector::from_label_selector(&value) else { return };
    let labels = template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
    if !parsed.matches_map(&labels) {
        errors.invalid(
            &spec.child("template").child("metadata").child("labels"),
            labels,
            "`selector` does not match template `labels`",
        );
    }
}
