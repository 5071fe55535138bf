//! Binding a pod to a node: the scheduler's only write to a pod's spec.

use bytes::Bytes;
use http::StatusCode;
use machinery::{
    field::FieldError,
    meta,
    status::{ApiError, Result},
};
use resources::{Resource, registry};
use serde_json::{Value, json};

use crate::{
    admission::Operation,
    api::Context,
    respond::{self, Answered},
};

pub async fn create(context: &Context, pods: &'static dyn Resource, body: Bytes) -> Result<Answered> {
    let kind = registry().by_gvk("", "v1", "Binding").ok_or_else(ApiError::no_such_resource)?;
    let mut binding = context.decode(kind, &body)?;
    let name = match context.info.name.as_str() {
        "" => meta::name(&binding).to_owned(),
        name => name.to_owned(),
    };
    crate::strategy::match_namespace(pods.facts(), &mut binding, &context.info.namespace)?;
    if meta::name(&binding) != name {
        return Err(ApiError::bad_request("name in URL does not match name in Binding object"));
    }
    check(&binding, &name)?;
    let mut write = context.write(pods, "binding", "CreateOptions")?;
    write.name = &name;
    let bind = |pod: &mut Value| bind(pod, &binding);
    context.api.writer.amend(&write, Operation::Create, &binding, &bind).await?;
    Ok(respond::value(&context.answer, StatusCode::CREATED, &success()))
}

pub fn success() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}

fn check(binding: &Value, name: &str) -> Result<()> {
    let target = &binding["target"];
    let mut errors = Vec::new();
    let kind = target["kind"].as_str().unwrap_or_default();
    if !["", "Node"].contains(&kind) {
        errors.push(FieldError::not_supported("target.kind", kind, &["Node", "<empty>"]));
    }
    if target["name"].as_str().unwrap_or_default().is_empty() {
        errors.push(FieldError::required("target.name", ""));
    }
    if errors.is_empty() { Ok(()) } else { Err(ApiError::invalid("", "Binding", name, errors)) }
}

/// The pod on its node, or why that cannot be.
fn bind(pod: &mut Value, binding: &Value) -> Result<()> {
    let name = meta::name(pod).to_owned();
    let refuse = |why: String| ApiError::conflict("", "pods/binding", &name, why);
    let uid = meta::uid(binding);
    if !uid.is_empty() && uid != meta::uid(pod) {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", meta::uid(pod));
        return Err(refuse(why));
    }
    if meta::deletion_timestamp(pod).is_some() {
        return Err(refuse(format!("pod {name} is being deleted, cannot be assigned to a host")));
    }
    if let Some(node) = pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty()) {
        return Err(refuse(format!("pod {name} is already assigned to node {node:?}")));
    }
    if pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
        return Err(refuse(format!("pod {name} has non-empty .spec.schedulingGates")));
    }
    pod["spec"]["nodeName"] = binding["target"]["name"].clone();
    for (key, value) in meta::annotations(binding) {
        meta::set_annotation(pod, key, value);
    }
    for (key, value) in meta::labels(binding) {
        meta::set_label(pod, key, value);
    }
    set_scheduled(&mut pod["status"]);
    Ok(())
}

fn set_scheduled(status: &mut Value) {
    let scheduled = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": machinery::time::now_rfc3339()});
    if !status.is_object() {
        *status = json!({});
    }
    let mut conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    conditions.retain(|condition| condition["type"] != "PodScheduled");
    conditions.push(scheduled);
    status["conditions"] = conditions.into();
}
