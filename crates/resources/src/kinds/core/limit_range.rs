//! LimitRange: bounds and defaults for what a namespace's pods and claims ask for.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as api;
use machinery::field::Path;
use machinery::names;
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
            errors.all_invalid(&at.child("type"), &item.type_, names::is_qualified_name(&item.type_));
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

fn item(item: &api::LimitRangeItem, path: &Path, errors: &mut Errors) {
    let lists: [(&'static str, &Option<ResourceList>); 5] = [
        ("min", &item.min),
        ("defaultRequest", &item.default_request),
        ("default", &item.default),
        ("max", &item.max),
        ("maxLimitRequestRatio", &item.max_limit_request_ratio),
    ];
    let mut resources = BTreeSet::new();
    for (key, list) in lists {
        for (name, value) in list.iter().flatten() {
            errors.all_invalid(&path.child(key).key(name), name, names::is_qualified_name(name));
            quantity::non_negative(value, &path.child(key).key(name), errors);
            resources.insert(name.as_str());
        }
        let pod = item.type_ == "Pod" && key.starts_with("default");
        if pod && list.as_ref().is_some_and(|list| !list.is_empty()) {
            errors.forbidden(&path.child(key), "may not be specified when `type` is 'Pod'");
        }
    }
    if item.type_ == "PersistentVolumeClaim" && !resources.contains("storage") {
        let detail = "either minimum or maximum storage value is required, but neither was provided";
        errors.required(&path.child("limits"), detail);
    }
    // Each of these is at most each later one.
    let order = [("min", "min"), ("defaultRequest", "default request"), ("default", "default"), ("max", "max")];
    let lists = BTreeMap::from(lists);
    for name in resources {
        for (index, (low, low_text)) in order.iter().enumerate() {
            for (high, high_text) in &order[index + 1..] {
                let pair = (get(lists[low].as_ref(), name), get(lists[high].as_ref(), name));
                if let (Some(low_value), Some(high_value)) = pair
                    && low_value > high_value
                {
                    let detail = format!("{low_text} value {low_value} is greater than {high_text} value {high_value}");
                    errors.invalid(&path.child(*low).key(name), low_value.to_string(), detail);
                }
            }
        }
    }
}
