//! LimitRanger: fills in a namespace's default requests and limits, and enforces its bounds.

use std::sync::Arc;

use async_trait::async_trait;
use machinery::field::aggregate;
use machinery::quantity::Quantity;
use machinery::status::Result;
use serde::Deserialize;
use serde_json::{Value, json};

use super::pod::{Amounts, each_container_mut, items, map_mut, pod_total, text};
use super::{Admission, AdmissionRequest, Operation};
use crate::authn::lookup::{LIMIT_RANGES, Lookup};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

pub struct LimitRanger {
    lookup: Arc<dyn Lookup>,
}

#[derive(Deserialize)]
struct LimitRange {
    spec: Spec,
}

#[derive(Deserialize)]
struct Spec {
    #[serde(default)]
    limits: Vec<Limit>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Limit {
    #[serde(rename = "type")]
    kind: String,
    min: Amounts,
    max: Amounts,
    default: Amounts,
    default_request: Amounts,
    max_limit_request_ratio: Amounts,
}

impl LimitRanger {
    pub fn new(lookup: Arc<dyn Lookup>) -> Self {
        LimitRanger { lookup }
    }

    async fn limits(&self, request: &AdmissionRequest<'_>) -> Result<Vec<Limit>> {
        if !concerns(request) {
            return Ok(Vec::new());
        }
        let ranges: Vec<LimitRange> = self.lookup.as_ref().list_as(LIMIT_RANGES, request.namespace).await?;
        Ok(ranges.into_iter().flat_map(|range| range.spec.limits).collect())
    }
}

/// Containers cannot change after creation except by resize; claims can grow.
fn concerns(request: &AdmissionRequest<'_>) -> bool {
    let claim = request.is("", "persistentvolumeclaims", "");
    request.object.is_some()
        && match request.operation {
            Operation::Create => request.is_pod() || claim,
            Operation::Update => request.is("", "pods", "resize") || claim,
            _ => false,
        }
}

fn apply_defaults(pod: &mut Value, limits: &[Limit]) {
    let mut set = Vec::new();
    for limit in limits.iter().filter(|limit| limit.kind == "Container") {
        each_container_mut(pod, &["containers", "initContainers"], |list, container| {
            let name = text(container, "name").to_owned();
            let what = if list == "containers" { "container" } else { "init container" };
            for (field, word, defaults) in
                [("requests", "request", &limit.default_request), ("limits", "limit", &limit.default)]
            {
                let present = map_mut(&mut container["resources"], field);
                let absent: Vec<_> = defaults.iter().filter(|(key, _)| !present.contains_key(*key)).collect();
                for (key, amount) in &absent {
                    present.insert((*key).clone(), json!(amount));
                }
                if !absent.is_empty() {
                    let keys: Vec<_> = absent.iter().map(|(key, _)| key.as_str()).collect();
                    set.push(format!("{} {word} for {what} {name}", keys.join(", ")));
                }
            }
        });
    }
    if !set.is_empty() {
        let text = format!("LimitRanger plugin set: {}", set.join("; "));
        map_mut(&mut pod["metadata"], "annotations").insert(ANNOTATION.to_owned(), json!(text));
    }
}

/// Requests and limits of a container, or of a pod.
struct Resources {
    requests: Amounts,
    limits: Amounts,
}

impl Resources {
    fn of(container: &Value) -> Self {
        let amounts = |value: &Value| Amounts::deserialize(value).unwrap_or_default();
        let resources = &container["resources"];
        Resources { requests: amounts(&resources["requests"]), limits: amounts(&resources["limits"]) }
    }

    fn check(&self, kind: &str, limit: &Limit, errors: &mut Vec<String>) {
        let per = |resource: &String, bound: &str, amount: &Quantity| {
            format!("{bound} {resource} usage per {kind} is {amount}")
        };
        for (resource, min) in &limit.min {
            let said = per(resource, "minimum", min);
            match (self.requests.get(resource), self.limits.get(resource)) {
                (None, _) => errors.push(format!("{said}.  No request is specified")),
                (Some(request), _) if request < min => errors.push(format!("{said}, but request is {request}")),
                (_, Some(limit)) if limit < min => errors.push(format!("{said}, but limit is {limit}")),
                _ => {}
            }
        }
        for (resource, max) in &limit.max {
            let said = per(resource, "maximum", max);
            match (self.requests.get(resource), self.limits.get(resource)) {
                (_, None) => errors.push(format!("{said}.  No limit is specified")),
                (_, Some(limit)) if limit > max => errors.push(format!("{said}, but limit is {limit}")),
                (Some(request), _) if request > max => errors.push(format!("{said}, but request is {request}")),
                _ => {}
            }
        }
        for (resource, ratio) in &limit.max_limit_request_ratio {
            let said = format!("{resource} max limit to request ratio per {kind} is {ratio}");
            let positive = |amounts: &Amounts| amounts.get(resource).filter(|amount| !amount.is_zero()).copied();
            match (positive(&self.requests), positive(&self.limits)) {
                (None, _) => errors.push(format!("{said}, but no request is specified or request is 0")),
                (_, None) => errors.push(format!("{said}, but no limit is specified or limit is 0")),
                (Some(request), Some(limit)) => {
                    let provided = limit.as_f64() / request.as_f64();
                    if provided > ratio.as_f64() {
                        errors.push(format!("{said}, but provided ratio is {provided:.6}"));
                    }
                }
            }
        }
    }
}

fn pod_resources(pod: &Value) -> Resources {
    Resources { requests: pod_total(pod, "requests"), limits: pod_total(pod, "limits") }
}

fn check_pod(pod: &Value, limits: &[Limit]) -> Vec<String> {
    let mut errors = Vec::new();
    for limit in limits {
        match limit.kind.as_str() {
            "Container" => ["containers", "initContainers"].iter().for_each(|list| {
                for container in items(&pod["spec"][*list]) {
                    Resources::of(container).check("Container", limit, &mut errors);
                }
            }),
            "Pod" => pod_resources(pod).check("Pod", limit, &mut errors),
            _ => {}
        }
    }
    errors
}

fn check_claim(claim: &Value, limits: &[Limit]) -> Vec<String> {
    let requests = Resources::of(&claim["spec"]).requests;
    let mut errors = Vec::new();
    let Some(storage) = requests.get("storage") else { return errors };
    for limit in limits.iter().filter(|limit| limit.kind == "PersistentVolumeClaim") {
        if let Some(min) = limit.min.get("storage").filter(|min| storage < *min) {
            errors.push(format!("minimum storage usage per PersistentVolumeClaim is {min}, but request is {storage}"));
        }
        if let Some(max) = limit.max.get("storage").filter(|max| storage > *max) {
            errors.push(format!("maximum storage usage per PersistentVolumeClaim is {max}, but request is {storage}"));
        }
    }
    errors
}

#[async_trait]
impl Admission for LimitRanger {
    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> Result<()> {
        if !request.is_pod() {
            return Ok(());
        }
        let limits = self.limits(request).await?;
        if let Some(pod) = request.object.as_mut().filter(|_| !limits.is_empty()) {
            apply_defaults(pod, &limits);
        }
        Ok(())
    }

    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<()> {
        let limits = self.limits(request).await?;
        let Some(object) = request.object.as_ref().filter(|_| !limits.is_empty()) else { return Ok(()) };
        let errors = match request.resource.plural {
            "pods" => check_pod(object, &limits),
            _ => check_claim(object, &limits),
        };
        if errors.is_empty() { Ok(()) } else { Err(request.forbidden(aggregate(errors))) }
    }
}
