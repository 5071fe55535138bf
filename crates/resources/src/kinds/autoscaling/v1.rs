//! HorizontalPodAutoscaler, `autoscaling/v1`: knows of one metric, the processor's, and hides all else
//! in annotations, so that a client of this version does not lose what it cannot see.

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::{v1 as api, v2};
use machinery::field::{FieldError, Path};
use machinery::table::Column;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::horizontal_pod_autoscaler::{HorizontalPodAutoscaler as Stored, facts};
use crate::facts::{Conversion, Facts};
use crate::resource::Kind;
use crate::validate::Errors;
use crate::value::Defaulting;

pub struct HorizontalPodAutoscaler;

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const SOURCES: [&str; 5] = ["object", "pods", "resource", "containerResource", "external"];

impl Kind for HorizontalPodAutoscaler {
    type Object = api::HorizontalPodAutoscaler;

    const FACTS: Facts = facts("v1", "io.k8s.api.autoscaling.v1.HorizontalPodAutoscaler");
    const COLUMNS: &'static [Column] = Stored::COLUMNS;
    const CONVERSION: Option<Conversion> = Some(Conversion {
        group: "autoscaling",
        version: "v2",
        kind: "HorizontalPodAutoscaler",
        to_storage,
        from_storage,
    });

    fn defaults(object: &mut Value) {
        object.make("spec").or("minReplicas", 1);
    }

    fn prepare_create(object: &mut Value) {
        object["status"] = json!({"currentReplicas": 0, "desiredReplicas": 0});
    }

    /// What is stored is what must be valid.
    fn validate(object: &api::HorizontalPodAutoscaler, errors: &mut Errors) {
        let Ok(mut value) = serde_json::to_value(object) else { return };
        to_storage(&mut value);
        match v2::HorizontalPodAutoscaler::deserialize(&value) {
            Ok(stored) => Stored::validate(&stored, errors),
            Err(error) => errors.push(FieldError::internal(Path::new("metadata").child("annotations"), error)),
        }
    }

    fn validate_status_update(
        new: &api::HorizontalPodAutoscaler,
        _old: &api::HorizontalPodAutoscaler,
        errors: &mut Errors,
    ) {
        let (path, Some(status)) = (Path::new("status"), &new.status) else { return };
        errors.non_negative(&path.child("currentReplicas"), Some(status.current_replicas));
        errors.non_negative(&path.child("desiredReplicas"), Some(status.desired_replicas));
    }

    fn cells(object: &Value, _typed: &api::HorizontalPodAutoscaler, now: Timestamp) -> Vec<Value> {
        let mut stored = object.clone();
        to_storage(&mut stored);
        let typed = v2::HorizontalPodAutoscaler::deserialize(&stored).unwrap_or_default();
        Stored::cells(object, &typed, now)
    }
}

fn to_storage(object: &mut Value) {
    let mut metrics = taken(object, METRICS);
    metrics.iter_mut().for_each(|metric| each_source(metric, modern_target));
    if let Some(spec) = object.at("spec")
        && let Some(percent) =
            Defaulting::remove(spec, "targetCPUUtilizationPercentage").filter(|value| !value.is_null())
    {
        metrics.insert(
            0,
            json!({"type": "Resource", "resource": {
            "name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}}),
        );
    }
    if !metrics.is_empty() {
        object.make("spec")["metrics"] = metrics.into();
    }
    if let Some(behavior) = annotation(object, BEHAVIOR).filter(Value::is_object) {
        object.make("spec")["behavior"] = behavior;
    }
    let mut current = taken(object, CURRENT_METRICS);
    current.iter_mut().for_each(|metric| each_source(metric, modern_current));
    let conditions = taken(object, CONDITIONS);
    if let Some(status) = object.at("status") {
        let percent = Defaulting::remove(status, "currentCPUUtilizationPercentage");
        if let Some(percent) = percent.filter(|value| !value.is_null())
            && !current.iter().any(is_cpu)
        {
            current.insert(
                0,
                json!({"type": "Resource", "resource": {
                "name": "cpu", "current": {"averageUtilization": percent}}}),
            );
        }
        if !current.is_empty() {
            status["currentMetrics"] = current.into();
        }
        if !conditions.is_empty() {
            status["conditions"] = conditions.into();
        }
    }
    object["apiVersion"] = "autoscaling/v2".into();
    Stored::defaults(object);
}

fn from_storage(object: &mut Value) {
    let list = |value: Option<Value>| match value {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    };
    let spec = object.make("spec");
    let mut metrics = list(Defaulting::remove(spec, "metrics"));
    let behavior = Defaulting::remove(spec, "behavior");
    let utilization = "/resource/target/averageUtilization";
    let cpu = metrics.iter().position(|metric| is_cpu(metric) && metric.pointer(utilization).is_some());
    if let Some(percent) = cpu.and_then(|index| metrics.remove(index).pointer(utilization).cloned()) {
        spec["targetCPUUtilizationPercentage"] = percent;
    }
    metrics.iter_mut().for_each(|metric| each_source(metric, old_target));
    let (mut current, mut conditions) = (Vec::new(), Vec::new());
    if let Some(status) = object.at("status") {
        current = list(Defaulting::remove(status, "currentMetrics"));
        conditions = list(Defaulting::remove(status, "conditions"));
        let utilization = "/resource/current/averageUtilization";
        let percent = current.iter().find(|metric| is_cpu(metric)).and_then(|metric| metric.pointer(utilization));
        if let Some(percent) = percent {
            status["currentCPUUtilizationPercentage"] = percent.clone();
        }
        status.or("currentReplicas", 0).or("desiredReplicas", 0);
    }
    current.iter_mut().for_each(|metric| each_source(metric, old_current));
    for (key, list) in [(METRICS, metrics), (CURRENT_METRICS, current), (CONDITIONS, conditions)] {
        if !list.is_empty() {
            annotate(object, key, &list.into());
        }
    }
    if let Some(behavior) = behavior.filter(Value::is_object) {
        annotate(object, BEHAVIOR, &behavior);
    }
    object["apiVersion"] = "autoscaling/v1".into();
}

fn is_cpu(metric: &Value) -> bool {
    metric["type"] == "Resource" && metric["resource"]["name"] == "cpu"
}

/// Takes an annotation off and reads it; what is no JSON is no metric.
fn annotation(object: &mut Value, key: &str) -> Option<Value> {
    let annotations = object.at("metadata")?.at("annotations")?;
    let text = Defaulting::remove(annotations, key)?;
    let emptied = annotations.as_object().is_some_and(Map::is_empty);
    if emptied && let Some(metadata) = object.at("metadata") {
        Defaulting::remove(metadata, "annotations");
    }
    serde_json::from_str(text.as_str()?).ok()
}

fn taken(object: &mut Value, key: &str) -> Vec<Value> {
    match annotation(object, key) {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    }
}

fn annotate(object: &mut Value, key: &str, value: &Value) {
    object.make("metadata").make("annotations")[key] = value.to_string().into();
}

fn each_source(metric: &mut Value, convert: fn(source: &str, &mut Value)) {
    for key in SOURCES {
        if let Some(source) = metric.at(key) {
            convert(key, source);
        }
    }
}

/// Moves `source[from]` to `target[to]`, when it is there.
fn moved(source: &mut Value, from: &str, target: &mut Value, to: &str) {
    if let Some(value) = Defaulting::remove(source, from).filter(|value| !value.is_null()) {
        target[to] = value;
    }
}

/// How the fields of a metric are called here, what they measure and where they are in v2.
const MEASURES: [(&str, &str); 3] =
    [("Value", "value"), ("AverageValue", "averageValue"), ("AverageUtilization", "averageUtilization")];

fn modern_target(kind: &str, source: &mut Value) {
    let mut target = json!({});
    for (old, new) in MEASURES {
        moved(source, &format!("target{old}"), &mut target, new);
    }
    if kind == "object" {
        moved(source, "averageValue", &mut target, "averageValue");
    }
    let type_ = match () {
        () if target.has("averageUtilization") => "Utilization",
        () if target.has("averageValue") => "AverageValue",
        () => "Value",
    };
    target["type"] = type_.into();
    identified(kind, source);
    source["target"] = target;
}

fn modern_current(kind: &str, source: &mut Value) {
    let mut current = json!({});
    for (old, new) in MEASURES {
        moved(source, &format!("current{old}"), &mut current, new);
    }
    if kind == "object" {
        moved(source, "averageValue", &mut current, "averageValue");
    }
    identified(kind, source);
    source["current"] = current;
}

/// The metric's name and selector, and the object it describes.
fn identified(kind: &str, source: &mut Value) {
    if kind == "resource" || kind == "containerResource" {
        return;
    }
    let mut metric = json!({});
    moved(source, "metricName", &mut metric, "name");
    moved(source, if kind == "external" { "metricSelector" } else { "selector" }, &mut metric, "selector");
    if let Some(object) = Defaulting::remove(source, "target") {
        source["describedObject"] = object;
    }
    source["metric"] = metric;
}

fn old_target(kind: &str, source: &mut Value) {
    let target = Defaulting::remove(source, "target").unwrap_or_default();
    flattened(kind, source, target, "target");
}

fn old_current(kind: &str, source: &mut Value) {
    let current = Defaulting::remove(source, "current").unwrap_or_default();
    flattened(kind, source, current, "current");
}

fn flattened(kind: &str, source: &mut Value, mut measured: Value, prefix: &str) {
    for (old, new) in MEASURES {
        let name = match (kind, new) {
            ("object", "averageValue") => new.to_owned(),
            _ => format!("{prefix}{old}"),
        };
        moved(&mut measured, new, source, &name);
    }
    if let Some(mut metric) = Defaulting::remove(source, "metric") {
        moved(&mut metric, "name", source, "metricName");
        moved(&mut metric, "selector", source, if kind == "external" { "metricSelector" } else { "selector" });
    }
    if let Some(object) = Defaulting::remove(source, "describedObject") {
        source["target"] = object;
    }
}
