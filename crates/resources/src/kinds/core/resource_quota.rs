//! ResourceQuota: how much a namespace may use in all.

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as api;
use machinery::field::Path;
use machinery::names;
use machinery::table::Column;
use serde_json::{Value, json};

use crate::facts::{Facts, Subresource};
use crate::print;
use crate::resource::Kind;
use crate::validate::quantity;
use crate::validate::{Errors, indexed};

pub struct ResourceQuota;

const SCOPES: &[&str] = &[
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];

impl Kind for ResourceQuota {
    type Object = api::ResourceQuota;

    const FACTS: Facts = Facts {
        short_names: &["quota"],
        subresources: &[Subresource::own("status", "", "v1", "ResourceQuota")],
        ..Facts::namespaced(
            "",
            "v1",
            "ResourceQuota",
            "resourcequotas",
            "resourcequota",
            "io.k8s.api.core.v1.ResourceQuota",
        )
    };
    const COLUMNS: &'static [Column] = &[print::NAME, print::text("Request"), print::text("Limit"), print::AGE];

    fn validate(object: &api::ResourceQuota, errors: &mut Errors) {
        let path = Path::new("spec");
        let Some(spec) = &object.spec else { return };
        for (name, value) in spec.hard.iter().flatten() {
            let at = path.child("hard").key(name);
            errors.all_invalid(&at, name, names::is_qualified_name(name));
            quantity::amount(name, value, &at, errors);
        }
        let scopes = path.child("scopes");
        for scope in spec.scopes.iter().flatten() {
            if !SCOPES.contains(&scope.as_str()) {
                errors.invalid(&scopes, &spec.scopes, "unsupported scope");
            }
        }
        let expressions = spec.scope_selector.as_ref().and_then(|selector| selector.match_expressions.as_ref());
        for (at, requirement) in indexed(expressions, &path.child("scopeSelector").child("matchExpressions")) {
            errors.one_of(&at.child("scopeName"), Some(&requirement.scope_name), SCOPES);
            let count = requirement.values.as_ref().map_or(0, Vec::len);
            match (requirement.operator.as_str(), count) {
                ("In" | "NotIn", 0) => errors.required(
                    &at.child("values"),
                    "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
                ),
                ("Exists" | "DoesNotExist", 1..) => errors.invalid(
                    &at.child("values"),
                    &requirement.values,
                    "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
                ),
                ("In" | "NotIn" | "Exists" | "DoesNotExist", _) => {}
                (other, _) => errors.invalid(&at.child("operator"), other, "not a valid selector operator"),
            }
        }
    }

    fn validate_update(new: &api::ResourceQuota, old: &api::ResourceQuota, errors: &mut Errors) {
        Self::validate(new, errors);
        let scopes = |quota: &api::ResourceQuota| {
            let mut scopes = quota.spec.as_ref().and_then(|spec| spec.scopes.clone()).unwrap_or_default();
            scopes.sort();
            scopes
        };
        errors.immutable(&Path::new("spec").child("scopes"), &scopes(new), &scopes(old));
    }

    fn cells(object: &Value, typed: &api::ResourceQuota, now: Timestamp) -> Vec<Value> {
        let (mut requests, mut limits) = (Vec::new(), Vec::new());
        let status = typed.status.as_ref();
        for (name, hard) in status.iter().flat_map(|status| status.hard.iter().flatten()) {
            let used = status.and_then(|status| status.used.as_ref()).and_then(|used| used.get(name));
            let text = format!("{name}: {}/{}", used.map_or("0", |used| used.0.as_str()), hard.0);
            if name.starts_with("limits.") { limits.push(text) } else { requests.push(text) }
        }
        vec![print::name(object), json!(requests.join(", ")), json!(limits.join(", ")), print::age(object, now)]
    }
}
