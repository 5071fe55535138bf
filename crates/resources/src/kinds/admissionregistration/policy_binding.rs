//! ValidatingAdmissionPolicyBinding: puts a policy into force, with its parameters.

use jiff::Timestamp;
use k8s_openapi::api::admissionregistration::v1 as api;
use machinery::field::Path;
use machinery::names;
use machinery::table::Column;
use serde_json::{Value, json};

use super::policy::default_matching;
use super::{cluster, rules};
use crate::facts::Facts;
use crate::print;
use crate::resource::Kind;
use crate::validate::{Errors, indexed, named, selector, text};
use crate::value::Defaulting;

pub struct ValidatingAdmissionPolicyBinding;

impl Kind for ValidatingAdmissionPolicyBinding {
    type Object = api::ValidatingAdmissionPolicyBinding;

    const FACTS: Facts = cluster(
        "ValidatingAdmissionPolicyBinding",
        "validatingadmissionpolicybindings",
        "validatingadmissionpolicybinding",
        "io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicyBinding",
    );
    const COLUMNS: &'static [Column] = &[print::NAME, print::text("PolicyName"), print::text("ParamRef"), print::AGE];

    fn defaults(object: &mut Value) {
        if let Some(matching) = object.make("spec").at("matchResources") {
            default_matching(matching);
        }
    }

    fn validate(object: &api::ValidatingAdmissionPolicyBinding, errors: &mut Errors) {
        let (spec, path) = (&object.spec, Path::new("spec"));
        errors.needed(&path.child("policyName"), &spec.policy_name);
        named::optional_subdomain(&spec.policy_name, &path.child("policyName"), errors);
        if let Some(reference) = &spec.param_ref {
            self::reference(reference, &path.child("paramRef"), errors);
        }
        if let Some(matching) = &spec.match_resources {
            rules::matching(matching, &path.child("matchResources"), errors);
        }
        actions(&spec.validation_actions, &path.child("validationActions"), errors);
    }

    fn cells(object: &Value, typed: &api::ValidatingAdmissionPolicyBinding, now: Timestamp) -> Vec<Value> {
        // Nothing here says whether a parameter without a namespace is of the cluster.
        let parameters = typed.spec.param_ref.as_ref().map(|reference| match text(&reference.name) {
            "" => reference.selector.as_ref().map(print::selector).unwrap_or_default(),
            name => format!("{}/{name}", print::or(text(&reference.namespace), "*")),
        });
        vec![
            print::name(object),
            json!(typed.spec.policy_name),
            json!(parameters.as_deref().unwrap_or("<unset>")),
            print::age(object, now),
        ]
    }
}

fn reference(reference: &api::ParamRef, path: &Path, errors: &mut Errors) {
    let name = text(&reference.name);
    if !name.is_empty() {
        errors.all_invalid(&path.child("name"), name, names::is_valid_path_segment(name));
    }
    match (&reference.selector, name) {
        (Some(_), name) if !name.is_empty() => {
            errors.forbidden(&path.child("name"), "name and selector are mutually exclusive");
        }
        (Some(labels), _) => selector::validate(labels, &path.child("selector"), errors),
        (None, "") => errors.required(path, "one of name or selector must be specified"),
        (None, _) => {}
    }
    let action = reference.parameter_not_found_action.as_deref();
    errors.one_of(&path.child("parameterNotFoundAction"), action, &["Allow", "Deny"]);
}

fn actions(actions: &Vec<String>, path: &Path, errors: &mut Errors) {
    if actions.is_empty() {
        errors.required(path, "at least one validation action is required");
    }
    named::distinct(Some(actions), path, errors);
    for (at, action) in indexed(Some(actions), path) {
        errors.one_of(&at, Some(action), &["Audit", "Deny", "Warn"]);
    }
    let has = |wanted: &str| actions.iter().any(|action| action == wanted);
    if has("Deny") && has("Warn") {
        let detail = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        errors.invalid(path, actions, detail);
    }
}
