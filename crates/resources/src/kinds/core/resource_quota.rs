//! ResourceQuota: how much a namespace may use in all.

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as api;
use machinery::field::Path;
use machinery::table::Column;
use serde_json::{Value, json};

use crate::facts::{Facts, Subresource};
use crate::print;
use crate::resource::Kind;
use crate::validate::Errors;
use crate::validate::quantity::{self, ResourceList};

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
        amounts(spec.hard.as_ref(), &path.child("hard"), errors);
        scopes(spec, &path.child("scopes"), errors);
        scope_selector(spec, &path.child("scopeSelector").child("matchExpressions"), errors);
    }

    fn validate_status_update(new: &api::ResourceQuota, _old: &api::ResourceQuota, errors: &mut Errors) {
        let (path, Some(status)) = (Path::new("status"), &new.status) else { return };
        amounts(status.hard.as_ref(), &path.child("hard"), errors);
        amounts(status.used.as_ref(), &path.child("used"), errors);
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

fn amounts(list: Option<&ResourceList>, path: &Path, errors: &mut Errors) {
    for (name, value) in list.into_iter().flatten() {
        let at = path.key(name);
        quantity::quota_resource(name, &at, errors);
        quantity::amount(name, value, &at, errors);
    }
}

/// Whether the objects of a scope use a resource.
fn applies(scope: &str, resource: &str) -> bool {
    let compute = ["cpu", "memory", "limits.cpu", "limits.memory", "requests.cpu", "requests.memory"];
    match scope {
        "BestEffort" => resource == "pods",
        "Terminating" | "NotTerminating" | "NotBestEffort" | "PriorityClass" | "CrossNamespacePodAffinity" => {
            resource == "pods" || compute.contains(&resource)
        }
        "VolumeAttributesClass" => ["persistentvolumeclaims", "requests.storage"].contains(&resource),
        _ => true,
    }
}

fn misapplied(spec: &api::ResourceQuotaSpec, scope: &str) -> usize {
    let names = spec.hard.iter().flatten().map(|(name, _)| name.as_str());
    names.filter(|name| quantity::is_standard_in_quota(name) && !applies(scope, name)).count()
}

/// No object is in both of these.
fn conflicting<'a>(scopes: impl Iterator<Item = &'a str> + Clone) -> usize {
    let pairs = [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]];
    pairs.iter().filter(|pair| pair.iter().all(|scope| scopes.clone().any(|other| other == *scope))).count()
}

fn scopes(spec: &api::ResourceQuotaSpec, path: &Path, errors: &mut Errors) {
    let scopes = spec.scopes.iter().flatten().map(String::as_str);
    for scope in scopes.clone() {
        if !SCOPES.contains(&scope) {
            errors.invalid(path, &spec.scopes, "unsupported scope");
        }
        for _ in 0..misapplied(spec, scope) {
            errors.invalid(path, &spec.scopes, "unsupported scope applied to resource");
        }
    }
    for _ in 0..conflicting(scopes) {
        errors.invalid(path, &spec.scopes, "conflicting scopes");
    }
}

const EXISTS_ONLY: &str = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";

/// The paths lack the index, as upstream's.
fn scope_selector(spec: &api::ResourceQuotaSpec, path: &Path, errors: &mut Errors) {
    let expressions = spec.scope_selector.as_ref().and_then(|selector| selector.match_expressions.as_deref());
    let expressions = expressions.unwrap_or_default();
    for requirement in expressions {
        let (scope, operator) = (requirement.scope_name.as_str(), requirement.operator.as_str());
        if !SCOPES.contains(&scope) {
            errors.invalid(&path.child("scopeName"), scope, "unsupported scope");
        }
        for _ in 0..misapplied(spec, scope) {
            errors.invalid(path, &spec.scope_selector, "unsupported scope applied to resource");
        }
        if !["PriorityClass", "VolumeAttributesClass"].contains(&scope)
            && SCOPES.contains(&scope)
            && operator != "Exists"
        {
            errors.invalid(&path.child("operator"), operator, EXISTS_ONLY);
        }
        let (values, count) = (path.child("values"), requirement.values.as_ref().map_or(0, Vec::len));
        match (operator, count) {
            ("In" | "NotIn", 0) => errors
                .required(&values, "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector"),
            ("Exists" | "DoesNotExist", 1..) => errors.invalid(
                &values,
                &requirement.values,
                "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
            ),
            ("In" | "NotIn" | "Exists" | "DoesNotExist", _) => {}
            (other, _) => errors.invalid(&path.child("operator"), other, "not a valid selector operator"),
        }
    }
    for _ in 0..conflicting(expressions.iter().map(|requirement| requirement.scope_name.as_str())) {
        errors.invalid(path, &spec.scopes, "conflicting scopes");
    }
}
