//! Printer columns and the cells many kinds share. What `kubectl get` shows is part of the API:
//! names, order and formats are upstream's; descriptions are ours to omit.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use machinery::duration;
use machinery::labels::Selector;
use machinery::table::Column;
use serde_json::{Value, json};

pub const UNKNOWN: &str = "<unknown>";
pub const NONE: &str = "<none>";

pub const NAME: Column = Column { format: "name", ..text("Name") };
pub const AGE: Column = text("Age");
pub const CONTAINERS: Column = wide("Containers");
pub const IMAGES: Column = wide("Images");
pub const SELECTOR: Column = wide("Selector");

pub const fn text(name: &'static str) -> Column {
    Column { name, type_: "string", format: "", description: "", priority: 0 }
}

pub const fn integer(name: &'static str) -> Column {
    Column { type_: "integer", ..text(name) }
}

pub const fn boolean(name: &'static str) -> Column {
    Column { type_: "boolean", ..text(name) }
}

/// Shown with `-o wide` only.
pub const fn wide(name: &'static str) -> Column {
    Column { priority: 1, ..text(name) }
}

pub fn name(object: &Value) -> Value {
    object["metadata"]["name"].clone()
}

pub fn age(object: &Value, now: Timestamp) -> Value {
    json!(duration::age(object["metadata"]["creationTimestamp"].as_str(), now))
}

pub fn ago(time: Timestamp, now: Timestamp) -> String {
    duration::human(now.as_second() - time.as_second())
}

/// The text, or a placeholder when it is empty.
pub fn or<'a>(text: &'a str, placeholder: &'a str) -> &'a str {
    if text.is_empty() { placeholder } else { text }
}

pub fn containers(containers: &[Container]) -> (String, String) {
    let names: Vec<_> = containers.iter().map(|container| container.name.as_str()).collect();
    let images: Vec<_> = containers.iter().map(|container| container.image.as_deref().unwrap_or_default()).collect();
    (names.join(","), images.join(","))
}

/// The wide cells of a workload: containers, images, selector.
pub fn template(template: Option<&PodTemplateSpec>, selector: String) -> [Value; 3] {
    let spec = template.and_then(|template| template.spec.as_ref());
    let (names, images) = containers(spec.map_or(&[], |spec| &spec.containers));
    [json!(names), json!(images), json!(selector)]
}

pub fn selector(selector: &LabelSelector) -> String {
    serde_json::to_value(selector)
        .ok()
        .and_then(|value| Selector::from_label_selector(&value).ok())
        .map(|parsed| parsed.to_string())
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| NONE.to_owned())
}

/// `a=b,c=d`, or a placeholder.
pub fn labels(labels: Option<&BTreeMap<String, String>>) -> String {
    let pairs: Vec<_> = labels.into_iter().flatten().map(|(key, value)| format!("{key}={value}")).collect();
    or(&pairs.join(","), NONE).to_owned()
}

/// The first `max` items, and how many more there are.
pub fn abbreviated(items: &[String], max: usize) -> String {
    match items.len() {
        0 => NONE.to_owned(),
        count if count > max => {
            format!("{} + {} more...", items[..max].join(","), count - max)
        }
        _ => items.join(","),
    }
}

/// The columns of kinds upstream has no printer for.
pub const CREATED: Column = Column { type_: "date", ..text("Created At") };

pub fn created(object: &Value) -> Value {
    object["metadata"]["creationTimestamp"].clone()
}
