//! `autoscaling/v1 Scale`: the replica count of whatever has one, under one form.

use bytes::Bytes;
use http::StatusCode;
use machinery::{
    field::FieldError,
    labels::Selector,
    meta,
    status::{ApiError, Result},
};
use resources::{Resource, registry};
use serde_json::{Value, json};

use crate::{
    api::Context,
    cache::entry,
    edit, negotiate,
    objects::load,
    respond::{self, Answered},
    strategy,
    write::Written,
};

pub async fn serve(context: &Context, resource: &'static dyn Resource, body: Bytes) -> Result<Answered> {
    let facts = resource.facts();
    if context.info.verb == "get" {
        let found = context.api.writer.objects.get(resource, &context.info.namespace, &context.info.name).await?;
        let found = found.ok_or_else(|| ApiError::not_found(facts.group, facts.plural, &context.info.name))?;
        let scale = scale_of(&load(resource, &found));
        return Ok(respond::whole(&context.answer, StatusCode::OK, entry::encode(&scale).into()));
    }
    let kind = registry().by_gvk("autoscaling", "v1", "Scale").ok_or_else(ApiError::no_such_resource)?;
    if context.info.verb == "patch" && negotiate::applies(&context.headers) {
        return apply(context, resource, kind, &body).await;
    }
    let change = match context.info.verb.as_str() {
        "patch" => Change::Patch(edit::Patch::parse(context, &body)?),
        _ => Change::Put(context.decode(kind, &body)?),
    };
    let write = context.write(resource, "scale", "UpdateOptions")?;
    let source = |old: Option<&Value>| {
        let old = old.ok_or_else(|| ApiError::not_found(facts.group, facts.plural, &context.info.name))?;
        let current = scale_of(old);
        let mut scale = change.apply(context, kind, &current)?;
        strategy::match_request(facts, &mut scale, &context.info.namespace, Some(&context.info.name))?;
        strategy::match_current(facts, &scale, &current)?;
        let replicas = replicas_of(context, &scale)?;
        let mut new = old.clone();
        new["spec"]["replicas"] = replicas.into();
        Ok(new)
    };
    let written = context.api.writer.update(&write, &source).await?;
    answer(context, &written)
}

/// Server-side apply of a Scale: its manager owns the count in the object itself.
async fn apply(
    context: &Context,
    resource: &'static dyn Resource,
    kind: &dyn Resource,
    body: &Bytes,
) -> Result<Answered> {
    let write = context.write(resource, "scale", "PatchOptions")?;
    let scale = edit::configuration(context, kind, body)?;
    let facts = resource.facts();
    let mut config = json!({"kind": facts.kind, "apiVersion": facts.api_version(), "metadata": scale["metadata"]});
    if !scale["spec"]["replicas"].is_null() {
        config["spec"]["replicas"] = replicas_of(context, &scale)?.into();
    }
    answer(context, &edit::apply(context, write, config).await?)
}

fn replicas_of(context: &Context, scale: &Value) -> Result<i64> {
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    if replicas < 0 {
        let error = FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
        return Err(ApiError::invalid("autoscaling", "Scale", &context.info.name, vec![error]));
    }
    Ok(replicas)
}

fn answer(context: &Context, written: &Written) -> Result<Answered> {
    let object: Value = serde_json::from_slice(&written.json).map_err(ApiError::internal)?;
    Ok(respond::value(&context.answer, StatusCode::OK, &scale_of(&object)))
}

enum Change {
    Put(Value),
    Patch(edit::Patch),
}

impl Change {
    fn apply(&self, context: &Context, kind: &dyn Resource, current: &Value) -> Result<Value> {
        let patch = match self {
            Change::Put(scale) => return Ok(scale.clone()),
            Change::Patch(patch) => patch,
        };
        patch.apply(context, kind, current)
    }
}

fn scale_of(object: &Value) -> Value {
    let mut scale = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {},
        "spec": {}, "status": {"replicas": object["status"]["replicas"].as_i64().unwrap_or(0)},
    });
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = meta::get(object, key) {
            scale["metadata"][key] = value.clone();
        }
    }
    match object["spec"]["replicas"].as_i64().unwrap_or(0) {
        0 => {}
        replicas => scale["spec"]["replicas"] = replicas.into(),
    }
    let selector = &object["spec"]["selector"];
    // Replication controllers select by a plain map, everything newer by a label selector.
    let labeled = ["matchLabels", "matchExpressions"].iter().any(|key| selector.get(key).is_some());
    let text = match labeled {
        true => Selector::from_label_selector(selector).map(|selector| selector.to_string()).unwrap_or_default(),
        false => {
            let pairs = selector.as_object().into_iter().flatten();
            pairs
                .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
                .collect::<Vec<_>>()
                .join(",")
        }
    };
    if !text.is_empty() {
        scale["status"]["selector"] = text.into();
    }
    scale
}
