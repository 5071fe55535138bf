//! Node affinity and pod (anti-)affinity.

use k8s_openapi::api::core::v1::{
    Affinity, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm,
    WeightedPodAffinityTerm,
};
use machinery::field::Path;
use machinery::names;

use crate::validate::{Errors, indexed, meta, selector};

pub fn validate(affinity: &Affinity, path: &Path, errors: &mut Errors) {
    if let Some(node) = &affinity.node_affinity {
        node_affinity(node, &path.child("nodeAffinity"), errors);
    }
    let pods = affinity.pod_affinity.as_ref().map(|pods| {
        let required = &pods.required_during_scheduling_ignored_during_execution;
        let preferred = &pods.preferred_during_scheduling_ignored_during_execution;
        ("podAffinity", required, preferred)
    });
    let anti = affinity.pod_anti_affinity.as_ref().map(|pods| {
        let required = &pods.required_during_scheduling_ignored_during_execution;
        let preferred = &pods.preferred_during_scheduling_ignored_during_execution;
        ("podAntiAffinity", required, preferred)
    });
    for (key, required, preferred) in pods.into_iter().chain(anti) {
        pod_affinity(required.as_ref(), preferred.as_ref(), &path.child(key), errors);
    }
}

fn node_affinity(affinity: &NodeAffinity, path: &Path, errors: &mut Errors) {
    if let Some(required) = &affinity.required_during_scheduling_ignored_during_execution {
        node_selector(required, &path.child("requiredDuringSchedulingIgnoredDuringExecution"), errors);
    }
    let preferred = path.child("preferredDuringSchedulingIgnoredDuringExecution");
    for (at, term) in indexed(affinity.preferred_during_scheduling_ignored_during_execution.as_ref(), &preferred) {
        weight(term.weight, &at, errors);
        self::term(&term.preference, &at.child("preference"), errors);
    }
}

pub(crate) fn node_selector(selector: &NodeSelector, path: &Path, errors: &mut Errors) {
    let terms = path.child("nodeSelectorTerms");
    if selector.node_selector_terms.is_empty() {
        errors.required(&terms, "must have at least one node selector term");
    }
    for (at, term) in indexed(Some(&selector.node_selector_terms), &terms) {
        self::term(term, &at, errors);
        for (at, requirement) in indexed(term.match_expressions.as_ref(), &at.child("matchExpressions")) {
            for (at, value) in indexed(requirement.values.as_ref(), &at.child("values")) {
                errors.all_invalid(&at, value, names::is_valid_label_value(value));
            }
        }
    }
}

fn term(term: &NodeSelectorTerm, path: &Path, errors: &mut Errors) {
    for (at, requirement) in indexed(term.match_expressions.as_ref(), &path.child("matchExpressions")) {
        expression(requirement, &at, errors);
    }
    for (at, requirement) in indexed(term.match_fields.as_ref(), &path.child("matchFields")) {
        field(requirement, &at, errors);
    }
}

fn expression(requirement: &NodeSelectorRequirement, path: &Path, errors: &mut Errors) {
    let count = requirement.values.as_ref().map_or(0, Vec::len);
    let values = path.child("values");
    match (requirement.operator.as_str(), count) {
        ("In" | "NotIn", 0) => {
            errors.required(&values, "must be specified when `operator` is 'In' or 'NotIn'");
        }
        ("Exists" | "DoesNotExist", 1..) => {
            errors.forbidden(&values, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
        }
        ("Gt" | "Lt", 0 | 2..) => {
            errors.required(&values, "must be specified single value when `operator` is 'Lt' or 'Gt'");
        }
        ("In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt", _) => {}
        (other, _) => errors.invalid(&path.child("operator"), other, "not a valid selector operator"),
    }
    let key = &requirement.key;
    errors.all_invalid(&path.child("key"), key, names::is_qualified_name(key));
}

fn field(requirement: &NodeSelectorRequirement, path: &Path, errors: &mut Errors) {
    let values = requirement.values.as_ref();
    match requirement.operator.as_str() {
        "In" | "NotIn" if values.map_or(0, Vec::len) != 1 => errors.required(
            &path.child("values"),
            "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
        ),
        "In" | "NotIn" => {}
        other => errors.invalid(&path.child("operator"), other, "not a valid selector operator"),
    }
    if requirement.key != "metadata.name" {
        errors.invalid(&path.child("key"), &requirement.key, "not a valid field selector key");
        return;
    }
    for (at, name) in indexed(values, &path.child("values")) {
        errors.all_invalid(&at, name, meta::subdomain(name, false));
    }
}

fn weight(weight: i32, path: &Path, errors: &mut Errors) {
    if !(1..=100).contains(&weight) {
        errors.invalid(&path.child("weight"), weight, "must be in the range 1-100");
    }
}

fn pod_affinity(
    required: Option<&Vec<PodAffinityTerm>>,
    preferred: Option<&Vec<WeightedPodAffinityTerm>>,
    path: &Path,
    errors: &mut Errors,
) {
    for (at, term) in indexed(required, &path.child("requiredDuringSchedulingIgnoredDuringExecution")) {
        pod_term(term, &at, errors);
    }
    for (at, term) in indexed(preferred, &path.child("preferredDuringSchedulingIgnoredDuringExecution")) {
        weight(term.weight, &at, errors);
        pod_term(&term.pod_affinity_term, &at.child("podAffinityTerm"), errors);
    }
}

fn pod_term(term: &PodAffinityTerm, path: &Path, errors: &mut Errors) {
    for (key, labels) in [("labelSelector", &term.label_selector), ("namespaceSelector", &term.namespace_selector)] {
        if let Some(labels) = labels {
            selector::validate(labels, &path.child(key), errors);
        }
    }
    for name in term.namespaces.iter().flatten() {
        errors.all_invalid(&path.child("namespace"), name, meta::label(name, false));
    }
    let key = &term.topology_key;
    if key.is_empty() {
        errors.required(&path.child("topologyKey"), "can not be empty");
    }
    errors.all_invalid(&path.child("topologyKey"), key, names::is_qualified_name(key));
    let keys = [("matchLabelKeys", &term.match_label_keys), ("mismatchLabelKeys", &term.mismatch_label_keys)];
    for (list, keys) in keys {
        for (at, key) in indexed(keys.as_ref(), &path.child(list)) {
            errors.all_invalid(&at, key, names::is_qualified_name(key));
        }
        if term.label_selector.is_none() && keys.as_ref().is_some_and(|keys| !keys.is_empty()) {
            errors.forbidden(&path.child(list), "must not be specified when labelSelector is not set");
        }
    }
}
