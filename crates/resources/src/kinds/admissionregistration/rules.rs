//! Which requests are meant: rules, match conditions and selectors, alike for webhooks and policies.

use std::collections::BTreeSet;

use k8s_openapi::api::admissionregistration::v1 as api;
use machinery::field::Path;
use machinery::names;

use crate::validate::{Errors, indexed, named, selector, text};

pub const FAILURE_POLICIES: &[&str] = &["Fail", "Ignore"];
const MATCH_POLICIES: &[&str] = &["Equivalent", "Exact"];
const OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const SCOPES: &[&str] = &["*", "Cluster", "Namespaced"];
const MAX_CONDITIONS: usize = 64;

pub fn match_policy(policy: Option<&str>, path: &Path, errors: &mut Errors) {
    errors.optional_one_of(path, policy, MATCH_POLICIES);
}

/// Operations on resources, each list with its wildcards.
pub fn rule(rule: &api::RuleWithOperations, path: &Path, errors: &mut Errors) {
    let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let (operations, at) = (list(&rule.operations), path.child("operations"));
    if operations.is_empty() {
        errors.required(&at, "");
    }
    named::wildcard_alone(&operations, "operations", &at, errors);
    for (at, operation) in indexed(Some(&operations), &at) {
        errors.one_of(&at, Some(operation), OPERATIONS);
    }
    let (groups, at) = (list(&rule.api_groups), path.child("apiGroups"));
    if groups.is_empty() {
        errors.required(&at, "");
    }
    named::wildcard_alone(&groups, "API groups", &at, errors);
    let (versions, at) = (list(&rule.api_versions), path.child("apiVersions"));
    if versions.is_empty() {
        errors.required(&at, "");
    }
    named::wildcard_alone(&versions, "API versions", &at, errors);
    for (at, version) in indexed(Some(&versions), &at) {
        errors.needed(&at, version);
    }
    resources(&list(&rule.resources), &path.child("resources"), errors);
    errors.optional_one_of(&path.child("scope"), rule.scope.as_deref(), SCOPES);
}

fn resources(resources: &[String], path: &Path, errors: &mut Errors) {
    if resources.is_empty() {
        return errors.required(path, "");
    }
    let whole = |resource: &str| resources.iter().any(|other| other == resource);
    if whole("*/*") && resources.len() > 1 {
        return errors.invalid(path, resources, "if '*/*' is present, must not specify other resources");
    }
    for (index, resource) in resources.iter().enumerate() {
        let at = path.index(index);
        match resource.split_once('/') {
            _ if resource.is_empty() => errors.required(&at, ""),
            None if resource != "*" && whole("*") => {
                let detail = "if '*' is present, must not specify other resources without subresources";
                errors.invalid(path, resources, detail);
            }
            Some((main, sub)) if sub != "*" && whole(&format!("{main}/*")) => {
                errors.invalid(&at, resource, format!("if '{main}/*' is present, must not specify {resource}"));
            }
            Some((main, sub)) if main != "*" && whole(&format!("*/{sub}")) => {
                errors.invalid(&at, resource, format!("if '*/{sub}' is present, must not specify {resource}"));
            }
            _ => {}
        }
    }
}

pub fn conditions(conditions: Option<&Vec<api::MatchCondition>>, path: &Path, errors: &mut Errors) {
    if let Some(conditions) = conditions.filter(|conditions| conditions.len() > MAX_CONDITIONS) {
        errors.too_many(path, conditions.len(), MAX_CONDITIONS);
    }
    let mut seen = BTreeSet::new();
    for (at, condition) in indexed(conditions, path) {
        if condition.expression.trim().is_empty() {
            errors.required(&at.child("expression"), "");
        }
        let (at, name) = (at.child("name"), &condition.name);
        match name.as_str() {
            "" => errors.required(&at, ""),
            name => errors.all_invalid(&at, name, names::is_qualified_name(name)),
        }
        if !name.is_empty() && !seen.insert(name) {
            errors.duplicate(&at, name);
        }
    }
}

/// What a policy or its binding is about.
pub fn matching(resources: &api::MatchResources, path: &Path, errors: &mut Errors) {
    match_policy(resources.match_policy.as_deref(), &path.child("matchPolicy"), errors);
    let selectors =
        [("namespaceSelector", &resources.namespace_selector), ("objectSelector", &resources.object_selector)];
    for (key, labels) in selectors {
        if let Some(labels) = labels {
            selector::validate(labels, &path.child(key), errors);
        }
    }
    let lists =
        [("resourceRules", &resources.resource_rules), ("excludeResourceRules", &resources.exclude_resource_rules)];
    for (key, rules) in lists {
        for (at, named_rule) in indexed(rules.as_ref(), &path.child(key)) {
            let plain = api::RuleWithOperations {
                api_groups: named_rule.api_groups.clone(),
                api_versions: named_rule.api_versions.clone(),
                operations: named_rule.operations.clone(),
                resources: named_rule.resources.clone(),
                scope: named_rule.scope.clone(),
            };
            rule(&plain, &at, errors);
            let at = at.child("resourceNames");
            named::distinct(named_rule.resource_names.as_ref(), &at, errors);
            for (at, name) in indexed(named_rule.resource_names.as_ref(), &at) {
                errors.all_invalid(&at, name, names::is_valid_path_segment(name));
            }
        }
    }
}

pub fn param_kind(kind: &api::ParamKind, path: &Path, errors: &mut Errors) {
    match text(&kind.api_version).rsplit('/').next().unwrap_or_default() {
        "" => errors.required(&path.child("apiVersion"), ""),
        version => errors.all_invalid(&path.child("apiVersion"), version, names::is_dns1035_label(version)),
    }
    match text(&kind.kind) {
        "" => errors.required(&path.child("kind"), ""),
        name => errors.all_invalid(&path.child("kind"), name, names::is_dns1035_label(&name.to_lowercase())),
    }
}
