//! What a pod's status means to a controller: active, ready, available, and which pods to give up first. Pure.

use std::cmp::Reverse;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};

pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

pub fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Neither finished nor being deleted: it counts as a replica.
pub fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && !is_terminating(pod)
}

pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|ready| ready.status == "True")
}

pub fn node_name(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

/// Since when the pod is ready, if it is.
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready").filter(|ready| ready.status == "True")?;
    ready.last_transition_time.as_ref().map(|time| time.0)
}

/// None if the pod is not ready; else how long until it has been ready for `min_ready_seconds` (zero: it is available).
pub fn available_in(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Option<Duration> {
    if !is_ready(pod) {
        return None;
    }
    if min_ready_seconds <= 0 {
        return Some(Duration::ZERO);
    }
    let ready = ready_since(pod)?.duration_since(now).as_secs_f64() + f64::from(min_ready_seconds);
    Some(Duration::from_secs_f64(ready.max(0.0)))
}

pub fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    available_in(pod, min_ready_seconds, now).is_some_and(|wait| wait.is_zero())
}

/// Restarts of the containers, then of the sidecars.
fn restarts(pod: &Pod) -> (i32, i32) {
    let Some(status) = &pod.status else { return (0, 0) };
    let most = |statuses: &Option<Vec<k8s_openapi::api::core::v1::ContainerStatus>>| {
        statuses.iter().flatten().map(|status| status.restart_count).max().unwrap_or(0)
    };
    (most(&status.container_statuses), most(&status.init_container_statuses))
}

fn deletion_cost(pod: &Pod) -> i32 {
    let annotations = pod.metadata.annotations.as_ref();
    let cost = annotations.and_then(|annotations| annotations.get("controller.kubernetes.io/pod-deletion-cost"));
    cost.and_then(|cost| cost.parse().ok()).unwrap_or(0)
}

/// Sorts pods to delete first (the least) by: further from serving, cheaper, sharing the node with more replicas
/// (`crowd`), ready for a shorter time, restarted more, younger. Times are compared by magnitude only, and pods alike in
/// everything by uid, so that scaling down spreads over the generations.
///
/// A key and not a comparison, which would not have to be transitive: upstream's, where pods of like age but unlike times
/// go by uid before their restarts are looked at, is not.
pub fn deletion_order(pod: &Pod, crowd: usize, now: Timestamp) -> impl Ord + use<> {
    let phase = match phase(pod) {
        "Running" => 2,
        "Unknown" => 1,
        _ => 0,
    };
    let magnitude = |time: Timestamp| {
        let age = now.as_nanosecond() - time.as_nanosecond();
        age.max(1).ilog2() // no time yet is younger than any
    };
    let ready = is_ready(pod);
    let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    (
        (!node_name(pod).is_empty(), phase, ready),
        (deletion_cost(pod), Reverse(crowd)),
        ready.then(|| ready_since(pod).map(magnitude)),
        Reverse(restarts(pod)),
        (created.map(magnitude), pod.metadata.uid.clone()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, patch: serde_json::Value) -> Pod {
        let mut value = json!({"metadata": {"name": name, "uid": name}, "spec": {"containers": [], "nodeName": "n"},
            "status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "2024-01-01T00:00:00Z"}]}});
        machinery::patch::merge_patch(&mut value, &patch).unwrap();
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn pods_further_from_serving_go_first() {
        let now: Timestamp = "2024-01-02T00:00:00Z".parse().unwrap();
        let ready_at = |time: &str| {
            json!({"status": {"conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": time}]}})
        };
        let expected = [
            (pod("unassigned", json!({"spec": {"nodeName": null}})), 0),
            (pod("pending", json!({"status": {"phase": "Pending"}})), 0),
            (pod("unready", json!({"status": {"conditions": []}})), 0),
            (
                pod(
                    "cheap",
                    json!({"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-1"}}}),
                ),
                0,
            ),
            (pod("crowded", json!({})), 2),
            (pod("young", ready_at("2024-01-01T23:00:00Z")), 1),
            (pod("a-old", ready_at("2024-01-01T01:00:00Z")), 1),
            (pod("b-old-as-well", ready_at("2024-01-01T00:00:00Z")), 1),
        ];
        let mut sorted: Vec<_> = expected.iter().rev().collect();
        sorted.sort_by_cached_key(|(pod, crowd)| deletion_order(pod, *crowd, now));
        let names = |pods: Vec<&(Pod, usize)>| -> Vec<String> {
            pods.iter().map(|(pod, _)| pod.metadata.name.clone().unwrap()).collect()
        };
        assert_eq!(names(sorted), names(expected.iter().collect()));
    }

    #[test]
    fn availability_needs_readiness_for_long_enough() {
        let now: Timestamp = "2024-01-01T00:00:07Z".parse().unwrap();
        let ready = pod("a", json!({}));
        assert!(is_available(&ready, 0, now) && is_available(&ready, 7, now) && !is_available(&ready, 8, now));
        assert_eq!(available_in(&ready, 10, now), Some(Duration::from_secs(3)));
        assert_eq!(available_in(&pod("b", json!({"status": {"conditions": []}})), 0, now), None);
    }
}
