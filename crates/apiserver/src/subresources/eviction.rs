//! Eviction: a delete that a disruption budget may refuse.
//!
//! The budget's status, which the disruption controller keeps, says how many pods may go; each eviction takes one of
//! them under compare-and-swap, so that no two evictions take the same.

use bytes::Bytes;
use http::StatusCode;
use machinery::{
    labels::Selector,
    meta,
    status::{ApiError, Result},
};
use resources::{Resource, registry};
use serde_json::{Value, json};

use super::binding::success;
use crate::{
    admission::Operation,
    api::Context,
    objects::load,
    respond::{self, Answered},
    strategy::DeleteOptions,
};

const REFUSED: &str = "Cannot evict pod as it would violate the pod's disruption budget.";
/// Evictions that the controller has not confirmed; more would make the budget too big.
const MAX_DISRUPTED: usize = 2000;
/// Seconds until the controller should have looked at a new budget.
const RETRY: u32 = 10;

pub async fn create(context: &Context, pods: &'static dyn Resource, body: Bytes) -> Result<Answered> {
    let kind = registry().by_gvk("policy", "v1", "Eviction").ok_or_else(ApiError::no_such_resource)?;
    let mut eviction = context.decode(kind, &body)?;
    crate::strategy::match_namespace(pods.facts(), &mut eviction, &context.info.namespace)?;
    if meta::name(&eviction) != context.info.name {
        return Err(ApiError::bad_request("name in URL does not match name in Eviction object"));
    }
    let options = match eviction.get_mut("deleteOptions").map(serde_json::Value::take) {
        Some(options) => serde_json::from_value(options).map_err(|error| ApiError::bad_request(error.to_string()))?,
        None => DeleteOptions::default(),
    };
    let mut write = context.write(pods, "eviction", "CreateOptions")?;
    write.dry_run |= !options.dry_run.is_empty();
    let found = context.api.writer.objects.get(pods, write.namespace, write.name).await?;
    let found = found.ok_or_else(|| ApiError::not_found("", "pods", &context.info.name))?;
    let pod = load(pods, &found);
    if !is_over(&pod) {
        charge(context, &pod, write.dry_run).await?;
        let announce = |pod: &mut Value| {
            announce(pod);
            Ok(())
        };
        context.api.writer.amend(&write, Operation::Create, &eviction, &announce).await?;
    }
    context.api.writer.delete(&write, &options).await?;
    Ok(respond::value(&context.answer, StatusCode::CREATED, &success()))
}

/// A pod that does not serve needs no budget.
fn is_over(pod: &Value) -> bool {
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    ["Pending", "Succeeded", "Failed"].contains(&phase) || meta::deletion_timestamp(pod).is_some()
}

/// Takes the eviction from the pod's budget, if it has one.
async fn charge(context: &Context, pod: &Value, dry_run: bool) -> Result<()> {
    let budgets = registry().by_gvr("policy", "v1", "poddisruptionbudgets").ok_or_else(ApiError::no_such_resource)?;
    let all = context.api.writer.objects.list(budgets, &context.info.namespace).await?;
    let mut matching = all.iter().map(|entry| load(budgets, entry)).filter(|budget| protects(budget, pod));
    let Some(budget) = matching.next() else { return Ok(()) };
    if matching.next().is_some() {
        return Err(ApiError::internal(
            "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
        ));
    }
    if may_go_unhealthy(&budget, pod) {
        return Ok(());
    }
    let mut write = context.write(budgets, "status", "UpdateOptions")?;
    write.name = meta::name(&budget);
    write.dry_run |= dry_run;
    let now = machinery::time::now_rfc3339();
    let source = |current: Option<&Value>| {
        let current =
            current.ok_or_else(|| ApiError::not_found("policy", "poddisruptionbudgets", meta::name(&budget)))?;
        decrement(current, meta::name(pod), &now)
    };
    context.api.writer.update(&write, &source).await.map(drop)
}

fn protects(budget: &Value, pod: &Value) -> bool {
    let selector = &budget["spec"]["selector"];
    selector.is_object() && Selector::from_label_selector(selector).is_ok_and(|selector| selector.matches_object(pod))
}

/// A pod that is not ready may go if the policy says so, or by default if enough others are healthy.
fn may_go_unhealthy(budget: &Value, pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    if conditions.into_iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True") {
        return false;
    }
    let status = |key: &str| budget["status"][key].as_i64().unwrap_or(0);
    budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
        || status("desiredHealthy") > 0 && status("currentHealthy") >= status("desiredHealthy")
}

/// The budget after one more eviction, or why there may be none.
fn decrement(budget: &Value, pod: &str, now: &str) -> Result<Value> {
    let name = meta::name(budget);
    let status = |key: &str| budget["status"][key].as_i64().unwrap_or(0);
    let refuse = |retry: u32, cause: String| {
        Err(ApiError::too_many_requests(REFUSED, retry).with_cause("DisruptionBudget", cause, ""))
    };
    if status("observedGeneration") < budget["metadata"]["generation"].as_i64().unwrap_or(0) {
        return refuse(RETRY, format!("The disruption budget {name} is still being processed by the server."));
    }
    let forbid = |why: &str| Err(ApiError::forbidden("policy", "poddisruptionbudgets", name, why));
    let allowed = status("disruptionsAllowed");
    if allowed < 0 {
        return forbid("pdb disruptions allowed is negative");
    }
    if budget["status"]["disruptedPods"].as_object().is_some_and(|pods| pods.len() > MAX_DISRUPTED) {
        return forbid("DisruptedPods map too big - too many evictions not confirmed by PDB controller");
    }
    if allowed == 0 {
        let mut conditions = budget["status"]["conditions"].as_array().into_iter().flatten();
        let failed = conditions.find(|condition| condition["reason"] == "SyncFailed");
        return refuse(
            0,
            match failed {
                Some(failed) => format!(
                    "The disruption budget {name} does not allow evicting pods currently because it failed sync: {}",
                    failed["message"].as_str().unwrap_or_default()
                ),
                None => format!(
                    "The disruption budget {name} needs {} healthy pods and has {} currently",
                    status("desiredHealthy"),
                    status("currentHealthy")
                ),
            },
        );
    }
    let mut budget = budget.clone();
    budget["status"]["disruptionsAllowed"] = json!(allowed - 1);
    budget["status"]["disruptedPods"][pod] = json!(now);
    if allowed == 1 {
        let generation = budget["metadata"]["generation"].clone();
        set_condition(
            &mut budget["status"],
            json!({"type": "DisruptionAllowed", "status": "False",
            "reason": "InsufficientPods", "message": "", "lastTransitionTime": now, "observedGeneration": generation}),
        );
    }
    Ok(budget)
}

/// Says on the pod why it ends.
fn announce(pod: &mut Value) {
    let generation = pod["metadata"]["generation"].clone();
    let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting", "lastTransitionTime": machinery::time::now_rfc3339(),
        "observedGeneration": generation});
    set_condition(&mut pod["status"], condition);
}

fn set_condition(status: &mut Value, condition: Value) {
    let mut conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    conditions.retain(|known| known["type"] != condition["type"]);
    conditions.push(condition);
    status["conditions"] = conditions.into();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_used_up() {
        let budget = |status: Value| json!({"metadata": {"name": "b", "generation": 2}, "status": status});
        let one =
            budget(json!({"observedGeneration": 2, "disruptionsAllowed": 1, "desiredHealthy": 2, "currentHealthy": 3}));
        let used = decrement(&one, "p", "2024-01-01T00:00:00Z").unwrap();
        assert_eq!(used["status"]["disruptionsAllowed"], 0);
        assert_eq!(used["status"]["disruptedPods"]["p"], "2024-01-01T00:00:00Z");
        assert_eq!(used["status"]["conditions"][0]["reason"], "InsufficientPods");
        let cause = |budget: &Value| {
            let status = decrement(budget, "p", "").unwrap_err().status;
            assert_eq!((status.code, status.message.as_str()), (429, REFUSED));
            status.details.unwrap().causes.remove(0).message
        };
        assert_eq!(cause(&used), "The disruption budget b needs 2 healthy pods and has 3 currently");
        let late = budget(json!({"observedGeneration": 1, "disruptionsAllowed": 1}));
        assert_eq!(cause(&late), "The disruption budget b is still being processed by the server.");
    }

    #[test]
    fn unhealthy_pods_may_go_by_policy() {
        let pod = |ready: &str| json!({"status": {"conditions": [{"type": "Ready", "status": ready}]}});
        let budget = |policy: Value, healthy: i64| {
            json!({"spec": {"unhealthyPodEvictionPolicy": policy},
            "status": {"desiredHealthy": 1, "currentHealthy": healthy}})
        };
        for (policy, healthy, ready, expected) in [
            (json!(null), 1, "False", true),
            (json!(null), 0, "False", false),
            (json!("AlwaysAllow"), 0, "False", true),
            (json!("AlwaysAllow"), 0, "True", false),
        ] {
            assert_eq!(may_go_unhealthy(&budget(policy.clone(), healthy), &pod(ready)), expected, "{policy} {healthy}");
        }
    }
}
