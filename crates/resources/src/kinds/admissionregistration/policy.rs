//! ValidatingAdmissionPolicy: rules about writes, as expressions.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::admissionregistration::v1 as api;
use machinery::field::Path;
use machinery::names;
use machinery::table::Column;
use serde_json::{Value, json};

use super::{GROUP, cluster, rules};
use crate::facts::{Facts, Subresource};
use crate::print;
use crate::resource::Kind;
use crate::validate::{Errors, indexed, text};
use crate::value::Defaulting;

pub struct ValidatingAdmissionPolicy;

const REASONS: &[&str] = &["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"];
const MAX_AUDIT_ANNOTATIONS: usize = 20;

impl Kind for ValidatingAdmissionPolicy {
    type Object = api::ValidatingAdmissionPolicy;

    const FACTS: Facts = Facts {
        subresources: &[Subresource::own("status", GROUP, "v1", "ValidatingAdmissionPolicy")],
        ..cluster(
            "ValidatingAdmissionPolicy",
            "validatingadmissionpolicies",
            "validatingadmissionpolicy",
            "io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicy",
        )
    };
    const COLUMNS: &'static [Column] =
        &[print::NAME, print::integer("Validations"), print::text("ParamKind"), print::AGE];

    fn defaults(object: &mut Value) {
        let spec = object.make("spec");
        spec.or("failurePolicy", "Fail");
        if let Some(constraints) = spec.at("matchConstraints") {
            default_matching(constraints);
        }
    }

    fn validate(object: &api::ValidatingAdmissionPolicy, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.spec.clone().unwrap_or_default();
        errors.optional_one_of(&path.child("failurePolicy"), spec.failure_policy.as_deref(), rules::FAILURE_POLICIES);
        if let Some(kind) = &spec.param_kind {
            rules::param_kind(kind, &path.child("paramKind"), errors);
        }
        let at = path.child("matchConstraints");
        match &spec.match_constraints {
            None => errors.required(&at, ""),
            Some(constraints) => {
                if constraints.resource_rules.as_ref().is_none_or(Vec::is_empty) {
                    errors.required(&at.child("resourceRules"), "");
                }
                rules::matching(constraints, &at, errors);
            }
        }
        rules::conditions(spec.match_conditions.as_ref(), &path.child("matchConditions"), errors);
        let audits = spec.audit_annotations.as_ref();
        if spec.validations.as_ref().is_none_or(Vec::is_empty) && audits.is_none_or(Vec::is_empty) {
            let detail = "validations or auditAnnotations must contain at least one item";
            errors.required(&path.child("validations"), detail);
        }
        variables(spec.variables.as_ref(), &path.child("variables"), errors);
        for (at, validation) in indexed(spec.validations.as_ref(), &path.child("validations")) {
            self::validation(validation, &at, errors);
        }
        self::audits(audits, &path.child("auditAnnotations"), errors);
    }

    fn cells(object: &Value, typed: &api::ValidatingAdmissionPolicy, now: Timestamp) -> Vec<Value> {
        let spec = typed.spec.as_ref();
        let kind = spec
            .and_then(|spec| spec.param_kind.as_ref())
            .map(|kind| format!("{}/{}", text(&kind.api_version), text(&kind.kind)));
        vec![
            print::name(object),
            json!(spec.and_then(|spec| spec.validations.as_ref()).map_or(0, Vec::len)),
            json!(kind.as_deref().unwrap_or("<unset>")),
            print::age(object, now),
        ]
    }
}

/// Of policies and their bindings.
pub(super) fn default_matching(matching: &mut Value) {
    matching.or("matchPolicy", "Equivalent").or("namespaceSelector", json!({})).or("objectSelector", json!({}));
    for rules in ["resourceRules", "excludeResourceRules"] {
        matching.each(rules, |rule| {
            rule.or("scope", "*");
        });
    }
}

fn variables(variables: Option<&Vec<api::Variable>>, path: &Path, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (at, variable) in indexed(variables, path) {
        let (name, at_name) = (&variable.name, at.child("name"));
        match name.as_str() {
            "" => errors.required(&at_name, "name is not specified"),
            name if !names::is_c_identifier(name).is_empty() => {
                errors.invalid(&at_name, name, "name is not a valid CEL identifier");
            }
            name => {
                if !seen.insert(name) {
                    errors.duplicate(&at_name, name);
                }
            }
        }
        if variable.expression.trim().is_empty() {
            errors.required(&at.child("expression"), "expression is not specified");
        }
    }
}

fn validation(validation: &api::Validation, path: &Path, errors: &mut Errors) {
    let expression = validation.expression.trim();
    if expression.is_empty() {
        errors.required(&path.child("expression"), "expression is not specified");
    }
    let (message, at) = (validation.message.as_deref(), path.child("message"));
    match message {
        Some(message) if !message.is_empty() && message.trim().is_empty() => {
            errors.invalid(&at, message, "message must be non-empty if specified");
        }
        Some(message) if message.trim().contains(['\n', '\r']) => {
            errors.invalid(&at, message, "message must not contain line breaks");
        }
        None | Some("") if expression.contains(['\n', '\r']) => {
            errors.required(&at, "message must be specified if expression contains line breaks");
        }
        _ => {}
    }
    errors.optional_one_of(&path.child("reason"), validation.reason.as_deref(), REASONS);
}

fn audits(audits: Option<&Vec<api::AuditAnnotation>>, path: &Path, errors: &mut Errors) {
    if let Some(audits) = audits.filter(|audits| audits.len() > MAX_AUDIT_ANNOTATIONS) {
        errors.too_many(path, audits.len(), MAX_AUDIT_ANNOTATIONS);
    }
    let mut seen = BTreeSet::new();
    for (at, audit) in indexed(audits, path) {
        errors.all_invalid(&at.child("key"), &audit.key, names::is_qualified_name(&audit.key));
        if !seen.insert(&audit.key) {
            errors.duplicate(&at.child("key"), &audit.key);
        }
        if audit.value_expression.trim().is_empty() {
            errors.required(&at.child("valueExpression"), "valueExpression is not specified");
        }
    }
}
