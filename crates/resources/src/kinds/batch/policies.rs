//! The policies of a Job: which failures count, and which successes suffice.

use std::collections::BTreeSet;

use k8s_openapi::api::batch::v1 as api;
use machinery::field::Path;
use machinery::names;

use crate::validate::{Errors, indexed, text};

const MAX_RULES: usize = 20;
const MAX_CONDITIONS: usize = 20;
const MAX_EXIT_CODES: usize = 255;
const MAX_INDEXES_BYTES: usize = 64 * 1024;

pub fn failure(policy: &api::PodFailurePolicy, spec: &api::JobSpec, path: &Path, errors: &mut Errors) {
    let rules = path.child("rules");
    if policy.rules.len() > MAX_RULES {
        errors.too_many(&rules, policy.rules.len(), MAX_RULES);
    }
    let pod = spec.template.spec.as_ref();
    let containers: BTreeSet<&str> = pod
        .iter()
        .flat_map(|pod| pod.containers.iter().chain(pod.init_containers.iter().flatten()))
        .map(|container| container.name.as_str())
        .collect();
    for (at, rule) in indexed(Some(&policy.rules), &rules) {
        action(rule, spec, &at.child("action"), errors);
        let conditions = rule.on_pod_conditions.as_ref().filter(|list| !list.is_empty());
        match (&rule.on_exit_codes, conditions) {
            (Some(_), Some(_)) => {
                errors.invalid_whole(&at, "specifying both OnExitCodes and OnPodConditions is not supported");
            }
            (None, None) => {
                errors.invalid_whole(&at, "specifying one of OnExitCodes and OnPodConditions is required");
            }
            _ => {}
        }
        if let Some(codes) = &rule.on_exit_codes {
            exit_codes(codes, &containers, &at.child("onExitCodes"), errors);
        }
        let at = at.child("onPodConditions");
        if let Some(list) = conditions.filter(|list| list.len() > MAX_CONDITIONS) {
            errors.too_many(&at, list.len(), MAX_CONDITIONS);
        }
        for (at, pattern) in indexed(conditions, &at) {
            errors.all_invalid(&at.child("type"), &pattern.type_, names::is_qualified_name(&pattern.type_));
            choice(text(&pattern.status), &["False", "True", "Unknown"], &at.child("status"), errors);
        }
    }
}

fn action(rule: &api::PodFailurePolicyRule, spec: &api::JobSpec, path: &Path, errors: &mut Errors) {
    if rule.action == "FailIndex" && spec.backoff_limit_per_index.is_none() {
        errors.invalid(path, &rule.action, "requires the backoffLimitPerIndex to be set");
    }
    choice(&rule.action, &["Count", "FailIndex", "FailJob", "Ignore"], path, errors);
}

/// One of a few words; a missing one is told which there are.
fn choice(value: &str, valid: &[&str], path: &Path, errors: &mut Errors) {
    match value {
        "" => {
            let quoted: Vec<String> = valid.iter().map(|word| format!("{word:?}")).collect();
            errors.required(path, format!("valid values: [{}]", quoted.join(" ")));
        }
        value if valid.contains(&value) => {}
        value => errors.not_supported(path, value, valid),
    }
}

fn exit_codes(
    codes: &api::PodFailurePolicyOnExitCodesRequirement,
    containers: &BTreeSet<&str>,
    path: &Path,
    errors: &mut Errors,
) {
    choice(&codes.operator, &["In", "NotIn"], &path.child("operator"), errors);
    if let Some(name) = codes.container_name.as_deref().filter(|name| !containers.contains(name)) {
        let detail = "must be one of the container or initContainer names in the pod template";
        errors.invalid(&path.child("containerName"), name, detail);
    }
    let at = path.child("values");
    match codes.values.len() {
        0 => errors.invalid(&at, &codes.values, "at least one value is required"),
        count if count > MAX_EXIT_CODES => errors.too_many(&at, count, MAX_EXIT_CODES),
        _ => {}
    }
    let mut seen = BTreeSet::new();
    for (at, code) in indexed(Some(&codes.values), &at) {
        if codes.operator == "In" && *code == 0 {
            errors.invalid(&at, code, "must not be 0 for the In operator");
        }
        if !seen.insert(code) {
            errors.duplicate(&at, code);
        }
    }
    if !codes.values.is_sorted() {
        errors.invalid(&at, &codes.values, "must be ordered");
    }
}

pub fn success(policy: &api::SuccessPolicy, completions: i32, path: &Path, errors: &mut Errors) {
    let rules = path.child("rules");
    match policy.rules.len() {
        0 => errors.required(&rules, "at least one rules must be specified when the successPolicy is specified"),
        count if count > MAX_RULES => errors.too_many(&rules, count, MAX_RULES),
        _ => {}
    }
    for (at, rule) in indexed(Some(&policy.rules), &rules) {
        if rule.succeeded_count.is_none() && rule.succeeded_indexes.is_none() {
            errors.required(&at, "at least one of succeededCount or succeededIndexes must be specified");
        }
        let total = rule.succeeded_indexes.as_deref().and_then(|indexes| {
            let at = at.child("succeededIndexes");
            if indexes.len() > MAX_INDEXES_BYTES {
                errors.too_long(&at, MAX_INDEXES_BYTES);
            }
            self::indexes(indexes, completions)
                .map_err(|why| errors.invalid(&at, indexes, format!("error parsing succeededIndexes: {why}")))
                .ok()
        });
        let Some(count) = rule.succeeded_count else { continue };
        let at = at.child("succeededCount");
        errors.non_negative(&at, Some(count));
        if count > completions {
            let detail = format!("must be less than or equal to {completions} (the number of specified completions)");
            errors.invalid(&at, count, detail);
        }
        if let Some(total) = total.filter(|total| count > *total) {
            let detail = format!(
                "must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"
            );
            errors.invalid(&at, count, detail);
        }
    }
}

/// How many indexes `1,3-5` names: ascending, below `completions`.
pub fn indexes(text: &str, completions: i32) -> Result<i32, String> {
    let (mut total, mut previous) = (0, None);
    for interval in text.split(',').filter(|_| !text.is_empty()) {
        let (first, last) = index_interval(interval, completions)?;
        if let Some(previous) = previous.filter(|previous| *previous >= first) {
            return Err(not_ascending(previous, first));
        }
        total += last - first + 1;
        previous = Some(last);
    }
    Ok(total)
}

/// The ends of `3-5`, or of `3`.
pub fn index_interval(interval: &str, completions: i32) -> Result<(i32, i32), String> {
    let parse = |text: &str| -> Result<i32, String> {
        let value = text.parse().map_err(|_| format!("cannot convert string to integer for index: {text:?}"))?;
        if value < completions { Ok(value) } else { Err(format!("too large index: {text:?}")) }
    };
    match interval.split('-').collect::<Vec<_>>()[..] {
        [one] => Ok((parse(one)?, parse(one)?)),
        [first, last] => {
            let (first, last) = (parse(first)?, parse(last)?);
            if first >= last { Err(not_ascending(first, last)) } else { Ok((first, last)) }
        }
        _ => Err(format!(
            "the fragment {interval:?} violates the requirement that an index interval can have at most two parts separated by '-'"
        )),
    }
}

fn not_ascending(previous: i32, current: i32) -> String {
    format!("non-increasing order, previous: {previous}, current: {current}")
}

#[cfg(test)]
mod tests {
    use super::indexes;

    #[test]
    fn index_texts() {
        for (text, expected) in [
            ("", Ok(0)),
            ("1", Ok(1)),
            ("0,2-4,9", Ok(5)),
            ("10", Err(r#"too large index: "10""#)),
            ("3,2", Err("non-increasing order, previous: 3, current: 2")),
            ("4-4", Err("non-increasing order, previous: 4, current: 4")),
            ("a", Err(r#"cannot convert string to integer for index: "a""#)),
        ] {
            assert_eq!(indexes(text, 10), expected.map_err(str::to_owned), "{text}");
        }
    }
}
