//! HorizontalPodAutoscaler, `autoscaling/v2`: the stored version.

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2 as api;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use machinery::field::Path;
use machinery::quantity::Quantity;
use machinery::table::Column;
use serde_json::{Value, json};

use crate::facts::{Facts, Subresource};
use crate::print;
use crate::resource::Kind;
use crate::validate::quantity::{self, parse};
use crate::validate::{Errors, indexed, named, selector};
use crate::value::Defaulting;

pub struct HorizontalPodAutoscaler;

const DEFAULT_UTILIZATION: i32 = 80;
const MAX_WINDOW_SECONDS: i32 = 3600;
const MAX_PERIOD_SECONDS: i32 = 1800;
const SHOWN_METRICS: usize = 2;

impl Kind for HorizontalPodAutoscaler {
    type Object = api::HorizontalPodAutoscaler;

    const FACTS: Facts = facts("v2", "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler");
    const COLUMNS: &'static [Column] = &[
        print::NAME,
        print::text("Reference"),
        print::text("Targets"),
        print::text("MinPods"),
        print::text("MaxPods"),
        print::text("Replicas"),
        print::AGE,
    ];

    fn defaults(object: &mut Value) {
        let spec = object.make("spec");
        spec.or("minReplicas", 1);
        if spec["metrics"].as_array().is_none_or(Vec::is_empty) {
            spec["metrics"] = json!([{"type": "Resource", "resource": {
                "name": "cpu", "target": {"type": "Utilization", "averageUtilization": DEFAULT_UTILIZATION}}}]);
        }
        if let Some(behavior) = spec.at("behavior") {
            let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
            let pods = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
            let up = behavior.make("scaleUp");
            up.or("stabilizationWindowSeconds", 0).or("selectPolicy", "Max").or("policies", json!([percent, pods]));
            behavior.make("scaleDown").or("selectPolicy", "Max").or("policies", json!([percent]));
        }
    }

    fn prepare_create(object: &mut Value) {
        object["status"] = json!({"currentReplicas": 0, "desiredReplicas": 0, "currentMetrics": null});
    }

    fn validate(object: &api::HorizontalPodAutoscaler, errors: &mut Errors) {
        let (spec, path) = (&object.spec, Path::new("spec"));
        reference(&spec.scale_target_ref, &path.child("scaleTargetRef"), errors);
        let least = spec.min_replicas.unwrap_or(1);
        if least < 1 {
            errors.invalid(&path.child("minReplicas"), least, "must be greater than or equal to 1");
        }
        let at = path.child("maxReplicas");
        if spec.max_replicas < 1 {
            errors.invalid(&at, spec.max_replicas, "must be greater than 0");
        }
        if spec.max_replicas < least {
            errors.invalid(&at, spec.max_replicas, "must be greater than or equal to `minReplicas`");
        }
        for (at, metric) in indexed(spec.metrics.as_ref(), &path.child("metrics")) {
            self::metric(metric, &at, errors);
        }
        let path = path.child("behavior");
        let rules = spec
            .behavior
            .as_ref()
            .map(|behavior| [("scaleUp", &behavior.scale_up), ("scaleDown", &behavior.scale_down)]);
        for (key, rules) in rules.into_iter().flatten() {
            if let Some(rules) = rules {
                scaling(rules, &path.child(key), errors);
            }
        }
    }

    fn validate_status_update(
        new: &api::HorizontalPodAutoscaler,
        _old: &api::HorizontalPodAutoscaler,
        errors: &mut Errors,
    ) {
        let (path, Some(status)) = (Path::new("status"), &new.status) else { return };
        errors.non_negative(&path.child("currentReplicas"), status.current_replicas);
        errors.non_negative(&path.child("desiredReplicas"), Some(status.desired_replicas));
    }

    fn cells(object: &Value, typed: &api::HorizontalPodAutoscaler, now: Timestamp) -> Vec<Value> {
        let (spec, target) = (&typed.spec, &typed.spec.scale_target_ref);
        let status = typed.status.as_ref();
        let least = spec.min_replicas.map_or_else(|| "<unset>".to_owned(), |least| least.to_string());
        vec![
            print::name(object),
            json!(format!("{}/{}", target.kind, target.name)),
            json!(targets(typed)),
            json!(least),
            json!(spec.max_replicas),
            json!(status.and_then(|status| status.current_replicas).unwrap_or(0)),
            print::age(object, now),
        ]
    }
}

pub(super) const fn facts(version: &'static str, schema: &'static str) -> Facts {
    const V1: &[Subresource] = &[Subresource::own("status", "autoscaling", "v1", "HorizontalPodAutoscaler")];
    const V2: &[Subresource] = &[Subresource::own("status", "autoscaling", "v2", "HorizontalPodAutoscaler")];
    Facts {
        short_names: &["hpa"],
        categories: &["all"],
        subresources: if matches!(version.as_bytes(), b"v1") { V1 } else { V2 },
        ..Facts::namespaced(
            "autoscaling",
            version,
            "HorizontalPodAutoscaler",
            "horizontalpodautoscalers",
            "horizontalpodautoscaler",
            schema,
        )
    }
}

fn reference(reference: &api::CrossVersionObjectReference, path: &Path, errors: &mut Errors) {
    named::segment(&reference.kind, &path.child("kind"), errors);
    named::segment(&reference.name, &path.child("name"), errors);
}

fn metric(metric: &api::MetricSpec, path: &Path, errors: &mut Errors) {
    let sources = [
        ("ContainerResource", "containerResource", metric.container_resource.is_some()),
        ("External", "external", metric.external.is_some()),
        ("Object", "object", metric.object.is_some()),
        ("Pods", "pods", metric.pods.is_some()),
        ("Resource", "resource", metric.resource.is_some()),
    ];
    if metric.type_.is_empty() {
        return errors.required(&path.child("type"), "must specify a metric source type");
    }
    errors.one_of(&path.child("type"), Some(&metric.type_), &sources.map(|(type_, ..)| type_));
    for (type_, key, given) in sources {
        match (type_ == metric.type_, given) {
            (true, false) => {
                errors.required(&path.child(key), "must populate information for the given metric source");
            }
            (false, true) => errors.forbidden(&path.child(key), "must populate the given metric source only"),
            _ => {}
        }
    }
    if let Some(source) = &metric.object {
        let at = path.child("object");
        reference(&source.described_object, &at.child("describedObject"), errors);
        identifier(&source.metric, &at.child("metric"), errors);
        target(&source.target, &at.child("target"), errors);
        either(&source.target, &at, errors);
    }
    if let Some(source) = &metric.external {
        let at = path.child("external");
        identifier(&source.metric, &at.child("metric"), errors);
        target(&source.target, &at.child("target"), errors);
        either(&source.target, &at, errors);
        let (value, average) = (&source.target.value, &source.target.average_value);
        if value.is_some() && average.is_some() {
            let detail = "may not set both a target value for metric and a per-pod target";
            errors.forbidden(&at.child("target").child("value"), detail);
        }
    }
    if let Some(source) = &metric.pods {
        let at = path.child("pods");
        identifier(&source.metric, &at.child("metric"), errors);
        target(&source.target, &at.child("target"), errors);
        if source.target.average_value.is_none() {
            errors.required(&at.child("target").child("averageValue"), "must specify a positive target averageValue");
        }
    }
    if let Some(source) = &metric.resource {
        resource(&source.name, &source.target, &path.child("resource"), errors);
    }
    if let Some(source) = &metric.container_resource {
        let at = path.child("containerResource");
        errors.needed(&at.child("container"), &source.container);
        resource(&source.name, &source.target, &at, errors);
    }
}

fn identifier(metric: &api::MetricIdentifier, path: &Path, errors: &mut Errors) {
    named::segment(&metric.name, &path.child("name"), errors);
    if let Some(labels) = &metric.selector {
        selector::validate(labels, &path.child("selector"), errors);
    }
}

fn target(target: &api::MetricTarget, path: &Path, errors: &mut Errors) {
    errors.one_of(&path.child("type"), Some(&target.type_), &["AverageValue", "Utilization", "Value"]);
    for (key, value) in [("value", &target.value), ("averageValue", &target.average_value)] {
        if let Some(value) = value.as_ref().filter(|value| parse(value) <= Quantity::ZERO) {
            errors.invalid(&path.child(key), &value.0, "must be positive");
        }
    }
    if target.average_utilization.is_some_and(|percent| percent < 1) {
        let detail = "must be greater than 0";
        errors.invalid(&path.child("averageUtilization"), target.average_utilization, detail);
    }
}

/// A metric is compared as it is or per pod.
fn either(target: &api::MetricTarget, path: &Path, errors: &mut Errors) {
    if target.value.is_none() && target.average_value.is_none() {
        let detail = "must set either a target value for metric or a per-pod target";
        errors.required(&path.child("target").child("value"), detail);
    }
}

fn resource(name: &str, target: &api::MetricTarget, path: &Path, errors: &mut Errors) {
    errors.needed(&path.child("name"), name);
    self::target(target, &path.child("target"), errors);
    let at = path.child("target");
    match (target.average_utilization, &target.average_value) {
        (None, None) => errors
            .required(&at.child("averageUtilization"), "must set either a target raw value or a target utilization"),
        (Some(_), Some(_)) => {
            errors.forbidden(&at.child("averageValue"), "may not set both a target raw value and a target utilization")
        }
        _ => {}
    }
}

fn scaling(rules: &api::HPAScalingRules, path: &Path, errors: &mut Errors) {
    let at = path.child("stabilizationWindowSeconds");
    errors.non_negative(&at, rules.stabilization_window_seconds);
    if rules.stabilization_window_seconds.is_some_and(|seconds| seconds > MAX_WINDOW_SECONDS) {
        let detail = format!("must be less than or equal to {MAX_WINDOW_SECONDS}");
        errors.invalid(&at, rules.stabilization_window_seconds, detail);
    }
    let policy = rules.select_policy.as_deref();
    errors.optional_one_of(&path.child("selectPolicy"), policy, &["Disabled", "Max", "Min"]);
    if let Some(tolerance) = &rules.tolerance {
        quantity::non_negative(tolerance, &path.child("tolerance"), errors);
    }
    let at = path.child("policies");
    if rules.policies.as_ref().is_none_or(Vec::is_empty) {
        errors.required(&at, "must specify at least one Policy");
    }
    for (at, policy) in indexed(rules.policies.as_ref(), &at) {
        errors.one_of(&at.child("type"), Some(&policy.type_), &["Percent", "Pods"]);
        if policy.value <= 0 {
            errors.invalid(&at.child("value"), policy.value, "must be greater than zero");
        }
        let at = at.child("periodSeconds");
        if policy.period_seconds <= 0 {
            errors.invalid(&at, policy.period_seconds, "must be greater than zero");
        }
        if policy.period_seconds > MAX_PERIOD_SECONDS {
            let detail = format!("must be less than or equal to {MAX_PERIOD_SECONDS}");
            errors.invalid(&at, policy.period_seconds, detail);
        }
    }
}

/// `cpu: 3%/80%, 100m/1 + 1 more...`
fn targets(autoscaler: &api::HorizontalPodAutoscaler) -> String {
    let metrics = autoscaler.spec.metrics.as_deref().unwrap_or_default();
    let current = autoscaler.status.as_ref().and_then(|status| status.current_metrics.as_deref()).unwrap_or_default();
    let shown: Vec<String> =
        metrics.iter().enumerate().map(|(index, metric)| shown(metric, current.get(index))).collect();
    match shown.len() {
        0 => print::NONE.to_owned(),
        count if count > SHOWN_METRICS => {
            format!("{} + {} more...", shown[..SHOWN_METRICS].join(", "), count - SHOWN_METRICS)
        }
        _ => shown.join(", "),
    }
}

fn shown(metric: &api::MetricSpec, status: Option<&api::MetricStatus>) -> String {
    let amount = |value: Option<&Text>| value.map_or(print::UNKNOWN, |value| value.0.as_str()).to_owned();
    let averaged = |target: &api::MetricTarget, current: Option<&api::MetricValueStatus>| match &target.average_value {
        Some(wanted) => {
            let current = amount(current.and_then(|current| current.average_value.as_ref()));
            format!("{current}/{} (avg)", wanted.0)
        }
        None => {
            let current = amount(current.and_then(|current| current.value.as_ref()));
            format!("{current}/{}", target.value.as_ref().map_or("", |value| value.0.as_str()))
        }
    };
    let used = |name: &str, target: &api::MetricTarget, current: Option<&api::MetricValueStatus>| {
        if let Some(wanted) = &target.average_value {
            return format!("{name}: {}/{}", amount(current.and_then(|now| now.average_value.as_ref())), wanted.0);
        }
        let percent = |value: Option<i32>, none: &str| value.map_or(none.to_owned(), |value| format!("{value}%"));
        let now = percent(current.and_then(|now| now.average_utilization), print::UNKNOWN);
        format!("{name}: {now}/{}", percent(target.average_utilization, "<auto>"))
    };
    if let Some(source) = &metric.external {
        averaged(&source.target, status.and_then(|status| Some(&status.external.as_ref()?.current)))
    } else if let Some(source) = &metric.object {
        averaged(&source.target, status.and_then(|status| Some(&status.object.as_ref()?.current)))
    } else if let Some(source) = &metric.pods {
        let now = status.and_then(|status| status.pods.as_ref()?.current.average_value.as_ref());
        format!("{}/{}", amount(now), source.target.average_value.as_ref().map_or("", |value| value.0.as_str()))
    } else if let Some(source) = &metric.resource {
        used(&source.name, &source.target, status.and_then(|status| Some(&status.resource.as_ref()?.current)))
    } else if let Some(source) = &metric.container_resource {
        let now = status.and_then(|status| Some(&status.container_resource.as_ref()?.current));
        used(&source.name, &source.target, now)
    } else {
        "<unknown type>".to_owned()
    }
}
