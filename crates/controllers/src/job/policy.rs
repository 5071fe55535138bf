//! What a Job's policies say about a failed pod, and about the indexes that have succeeded. Pure.

use k8s_openapi::api::batch::v1::{
    PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule, SuccessPolicy,
};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::indexes::{self, Indexes};
use crate::common::pods;

#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    Count,
    Ignore,
    FailIndex,
    /// With why.
    FailJob(String),
}

/// The first rule that matches decides; a failure that none matches counts.
pub fn on_failure(policy: Option<&PodFailurePolicy>, pod: &Pod) -> Action {
    for (number, rule) in policy.iter().flat_map(|policy| &policy.rules).enumerate() {
        let Some(what) = matches(rule, pod) else { continue };
        return match rule.action.as_str() {
            "Ignore" => Action::Ignore,
            "FailIndex" => Action::FailIndex,
            "FailJob" => Action::FailJob(format!("{what} matching FailJob rule at index {number}")),
            _ => Action::Count,
        };
    }
    Action::Count
}

/// What of the pod the rule matches.
fn matches(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let key = client::key_of(&pod.metadata);
    if let Some(codes) = &rule.on_exit_codes {
        let (container, code) = matching_container(codes, pod)?;
        return Some(format!("Container {container} for pod {key} failed with exit code {code}"));
    }
    let mut patterns = rule.on_pod_conditions.iter().flatten();
    let found = patterns.find(|pattern| {
        let wanted = pattern.status.as_deref().unwrap_or("True");
        pods::condition(pod, &pattern.type_).is_some_and(|condition| condition.status == wanted)
    })?;
    Some(format!("Pod {key} has condition {}", found.type_))
}

fn matching_container<'a>(codes: &PodFailurePolicyOnExitCodesRequirement, pod: &'a Pod) -> Option<(&'a str, i32)> {
    let status = pod.status.as_ref()?;
    let init = status.init_container_statuses.iter().flatten();
    let named = |container: &&ContainerStatus| codes.container_name.as_ref().is_none_or(|name| *name == container.name);
    let mut failed = init.chain(status.container_statuses.iter().flatten()).filter(named).filter_map(|container| {
        let code = container.state.as_ref()?.terminated.as_ref()?.exit_code;
        (code != 0).then_some((container.name.as_str(), code))
    });
    failed.find(|(_, code)| codes.values.contains(code) == (codes.operator == "In"))
}

/// The message of the first rule that the succeeded indexes meet.
pub fn on_success(policy: Option<&SuccessPolicy>, completions: i32, succeeded: &Indexes) -> Option<String> {
    let meets = |(number, rule): (usize, &k8s_openapi::api::batch::v1::SuccessPolicyRule)| {
        let wanted = rule.succeeded_indexes.as_deref().map(|text| indexes::parse(text, completions));
        let met = match &wanted {
            Some(wanted) => wanted.intersection(succeeded).count(),
            None => succeeded.len(),
        };
        let enough = match (rule.succeeded_count, &wanted) {
            (Some(count), _) => met >= usize::try_from(count).unwrap_or(0),
            (None, Some(wanted)) => met == wanted.len(),
            (None, None) => false,
        };
        enough.then(|| format!("Matched rules at index {number}"))
    };
    policy?.rules.iter().enumerate().find_map(meets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn failures() {
        let policy: PodFailurePolicy = serde_json::from_value(json!({"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": {"containerName": "main", "operator": "In", "values": [42]}},
            {"action": "FailIndex", "onExitCodes": {"operator": "NotIn", "values": [1, 2]}},
        ]}))
        .unwrap();
        let exits = |name: &str, code: i32| json!({"containerStatuses": [{"name": name, "state": {"terminated": {"exitCode": code}}}]});
        for (status, expected) in [
            (json!({"conditions": [{"type": "DisruptionTarget", "status": "True"}]}), Action::Ignore),
            (json!({"conditions": [{"type": "DisruptionTarget", "status": "False"}]}), Action::Count),
            (
                exits("main", 42),
                Action::FailJob(
                    "Container main for pod ns/p failed with exit code 42 matching FailJob rule at index 1".into(),
                ),
            ),
            (exits("side", 42), Action::FailIndex),
            (exits("main", 1), Action::Count),
            (exits("main", 0), Action::Count),
        ] {
            let pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}, "status": status}));
            assert_eq!(on_failure(Some(&policy), &pod.unwrap()), expected, "{status}");
        }
    }

    #[test]
    fn successes() {
        let policy: SuccessPolicy = serde_json::from_value(json!({"rules": [
            {"succeededIndexes": "0-2", "succeededCount": 2}, {"succeededIndexes": "5"}, {"succeededCount": 4}]}))
        .unwrap();
        for (succeeded, expected) in
            [("0", None), ("0,2", Some(0)), ("3,5", Some(1)), ("3,4,6", None), ("3,4,6,7", Some(2))]
        {
            let message = on_success(Some(&policy), 10, &indexes::parse(succeeded, 10));
            assert_eq!(message, expected.map(|rule| format!("Matched rules at index {rule}")), "{succeeded}");
        }
    }
}
