//! What the scheduler writes besides bindings: the PodScheduled condition, nominations, and the end of victims.

use std::time::Duration;

use anyhow::Context as _;
use client::{Client, ErrorExt as _};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};

use crate::pod::PodInfo;

/// How long a write may take before it counts as failed: one that hangs would hold its pod forever.
const PATIENCE: Duration = Duration::from_secs(30);

/// Fails when a write takes too long.
pub async fn in_time<T, E: Into<anyhow::Error>>(write: impl Future<Output = Result<T, E>>) -> anyhow::Result<T> {
    let outcome = tokio::time::timeout(PATIENCE, write).await.context("the server does not answer")?;
    outcome.map_err(Into::into)
}

/// The status of a pod that was not placed, or None if it says all that already. `nominated` is None to leave the
/// nomination alone, and an empty name to take it back.
pub fn refusal_patch(pod: &PodInfo, reason: &str, message: &str, nominated: Option<&str>) -> Option<Value> {
    let conditions = pod.object.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let old = conditions.iter().find(|condition| condition.type_ == "PodScheduled");
    let says = |old: &PodCondition| {
        (old.status.as_str(), old.reason.as_deref(), old.message.as_deref()) == ("False", Some(reason), Some(message))
    };
    let renominated = nominated.is_some_and(|name| pod.nominated_node().unwrap_or_default() != name);
    if old.is_some_and(says) && !renominated {
        return None;
    }
    let since = old.filter(|old| old.status == "False").and_then(|old| old.last_transition_time.clone());
    let condition = json!({
        "type": "PodScheduled",
        "status": "False",
        "reason": reason,
        "message": message,
        "observedGeneration": pod.object.metadata.generation,
        "lastProbeTime": null,
        "lastTransitionTime": since.unwrap_or_else(|| Time(Timestamp::now())),
    });
    let mut status = json!({"conditions": [condition]});
    if let Some(name) = nominated.filter(|_| renominated) {
        status["nominatedNodeName"] = if name.is_empty() { Value::Null } else { name.into() };
    }
    Some(status)
}

/// Changes the status of this very pod; that it is gone is no error.
pub async fn patch_status(client: &Client, pod: &PodInfo, status: Value) -> anyhow::Result<()> {
    let api: Api<Pod> = Api::namespaced(client.clone(), pod.namespace());
    let patch = Patch::Strategic(json!({"metadata": {"uid": pod.uid}, "status": status}));
    match api.patch_status(pod.name(), &PatchParams::default(), &patch).await {
        Err(error) if !error.is_not_found() && !error.is_conflict() => {
            Err(error).with_context(|| format!("patch the status of pod {}/{}", pod.namespace(), pod.name()))
        }
        _ => Ok(()),
    }
}

/// Makes a pod give way to a more important one.
pub async fn evict(client: &Client, scheduler: &str, victim: &PodInfo) -> anyhow::Result<()> {
    let condition = json!({
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "PreemptionByScheduler",
        "message": format!("{scheduler}: preempting to accommodate a higher priority pod"),
        "observedGeneration": victim.object.metadata.generation,
        "lastTransitionTime": Time(Timestamp::now()),
    });
    patch_status(client, victim, json!({"conditions": [condition]})).await?;
    let api: Api<Pod> = Api::namespaced(client.clone(), victim.namespace());
    let uid = Preconditions { uid: Some(victim.uid.clone()), resource_version: None };
    let params = DeleteParams { preconditions: Some(uid), ..Default::default() };
    match api.delete(victim.name(), &params).await {
        Err(error) if !error.is_not_found() && !error.is_conflict() => {
            Err(error).with_context(|| format!("preempt pod {}/{}", victim.namespace(), victim.name()))
        }
        _ => Ok(()),
    }
}
