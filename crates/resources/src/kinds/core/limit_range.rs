//! LimitRange: bounds and defaults for what a namespace's pods and claims ask for.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as api;
use machinery::field::Path;
use machinery::names;
use machinery::quantity::Quantity;
use machinery::table::Column;
use serde_json::Value;

use crate::facts::Facts;
use crate::print;
use crate::resource::Kind;
use crate::validate::quantity::{self, ResourceList, get};
use crate::validate::{Errors, indexed};
use crate::value::Defaulting;

pub struct LimitRange;

impl Kind for LimitRange {
    type Object = api::LimitRange;

    const FACTS: Facts = Facts {
        short_names: &["limits"],
        ..Facts::namespaced("", "v1", "LimitRange", "limitranges", "limitrange", "io.k8s.api.core.v1.LimitRange")
    };
    const COLUMNS: &'static [Column] = &[print::NAME, print::CREATED];

    fn defaults(object: &mut Value) {
        let Some(spec) = object.at("spec") else { return };
        spec.each("limits", |item| {
            if item.text("type") == "Container" {
                fill(item, "default", "max");
                fill(item, "defaultRequest", "default");
                fill(item, "defaultRequest", "min");
            }
        });
    }

    fn validate(object: &api::LimitRange, errors: &mut Errors) {
        let limits = object.spec.as_ref().map(|spec| &spec.limits);
        let mut seen = BTreeSet::new();
        for (at, item) in indexed(limits, &Path::new("spec").child("limits")) {
            let wrong = names::is_qualified_name(&item.type_);
            if wrong.is_empty() && !item.type_.contains('/') && !TYPES.contains(&item.type_.as_str()) {
                errors.invalid(&at.child("type"), &item.type_, "must be a standard limit type or fully qualified");
            }
            errors.all_invalid(&at.child("type"), &item.type_, wrong);
            if !seen.insert(&item.type_) {
                errors.duplicate(&at.child("type"), &item.type_);
            }
            self::item(item, &at, errors);
        }
    }

    fn cells(object: &Value, _typed: &api::LimitRange, _now: Timestamp) -> Vec<Value> {
        vec![print::name(object), print::created(object)]
    }
}

/// Copies what `to` lacks from `from`.
fn fill(item: &mut Value, to: &str, from: &str) {
    let Some(source) = item[from].as_object().cloned() else { return };
    let target = item.make(to);
    for (name, value) in source {
        target.or(&name, value);
    }
}

const TYPES: &[&str] = &["Pod", "Container", "PersistentVolumeClaim"];

/// What may not exceed what; the error is about the value at the first of these.
const ORDER: &[(&str, &str, &str, &str, &str)] = &[
    ("min", "min", "max", "min value", "max value"),
    ("defaultRequest", "min", "defaultRequest", "min value", "default request value"),
    ("defaultRequest", "defaultRequest", "max", "default request value", "max value"),
    ("defaultRequest", "defaultRequest", "default", "default request value", "default limit value"),
    ("default", "min", "default", "min value", "default value"),
    ("default", "default", "max", "default value", "max value"),
];

fn item(item: &api::LimitRangeItem, path: &Path, errors: &mut Errors) {
    let lists: [(&'static str, &Option<ResourceList>); 5] = [
        ("max", &item.max),
        ("min", &item.min),
        ("default", &item.default),
        ("defaultRequest", &item.default_request),
        ("maxLimitRequestRatio", &item.max_limit_request_ratio),
    ];
    let mut resources = BTreeSet::new();
    for (key, list) in lists {
        let filled = list.as_ref().is_some_and(|list| !list.is_empty());
        if item.type_ == "Pod" && key.starts_with("default") {
            if filled {
                errors.forbidden(&path.child(key), "may not be specified when `type` is 'Pod'");
            }
            continue;
        }
        for name in list.iter().flatten().map(|(name, _)| name) {
            let at = path.child(key).key(name);
            match item.type_.as_str() {
                "Pod" | "Container" => quantity::container_resource(name, &at, errors),
                _ => quantity::resource_name(name, &at, errors),
            }
            resources.insert(name.as_str());
        }
    }
    let bounds_storage = |list: &Option<ResourceList>| list.as_ref().is_some_and(|list| list.contains_key("storage"));
    if item.type_ == "PersistentVolumeClaim" && !bounds_storage(&item.min) && !bounds_storage(&item.max) {
        let detail = "either minimum or maximum storage value is required, but neither was provided";
        errors.required(&path.child("limits"), detail);
    }
    let lists = BTreeMap::from(lists);
    for name in resources {
        amounts(&|key| get(lists[key].as_ref(), name), name, path, errors);
    }
}

/// The amounts of one resource, by the list's key.
fn amounts(of: &dyn Fn(&'static str) -> Option<Quantity>, name: &str, path: &Path, errors: &mut Errors) {
    for (at, low, high, low_text, high_text) in ORDER {
        if let (Some(low_value), Some(high_value)) = (of(low), of(high))
            && low_value > high_value
        {
            let shown = match (*at, *low, *high) {
                ("default", "min", _) => low_value,
                ("default", _, "max") => high_value,
                _ => of(at).unwrap_or_default(),
            };
            let detail = format!("{low_text} {low_value} is greater than {high_text} {high_value}");
            errors.invalid_amount(&path.child(*at).key(name), shown, detail);
        }
    }
    if let Some(ratio) = of("maxLimitRequestRatio") {
        let at = path.child("maxLimitRequestRatio").key(name);
        if ratio < Quantity::new(1) {
            errors.invalid_amount(&at, ratio, format!("ratio {ratio} is less than 1"));
        }
        if let (Some(min), Some(max)) = (of("min"), of("max")) {
            let possible = max.milli_value() as f64 / min.milli_value() as f64;
            if ratio.milli_value() as f64 / 1000.0 > possible {
                errors.invalid_amount(&at, ratio, format!("ratio {ratio} is greater than max/min = {possible:.6}"));
            }
        }
    }
    if let (false, Some(default), Some(request)) =
        (quantity::is_overcommitted(name), of("default"), of("defaultRequest"))
        && default != request
    {
        let detail = format!("default value {default} must equal to defaultRequest value {request} in {name}");
        errors.invalid_amount(&path.child("defaultRequest").key(name), request, detail);
    }
}
