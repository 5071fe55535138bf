//! Validation of a pod spec, top to bottom; the larger parts have modules of their own.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{HostAlias, PodSpec, PodTemplateSpec, Toleration, TopologySpreadConstraint};
use machinery::field::Path;
use machinery::names;

use super::{affinity, annotations, container, dns, security, volume};
use crate::validate::meta::{self, subdomain};
use crate::validate::quantity;
use crate::validate::{Errors, indexed, selector, text};

const RESTART_POLICIES: &[&str] = &["Always", "OnFailure", "Never"];
const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// A pod template: labels, annotations and spec.
pub fn template(template: &PodTemplateSpec, path: &Path, errors: &mut Errors) {
    if let Some(metadata) = &template.metadata {
        meta::labels(metadata.labels.as_ref(), &path.child("labels"), errors);
        let at = path.child("annotations");
        meta::annotations(metadata.annotations.as_ref(), &at, errors);
        annotations::validate(metadata.annotations.as_ref(), template.spec.as_ref(), &at, errors);
    }
    let spec_path = path.child("spec");
    let Some(spec) = &template.spec else {
        errors.required(&spec_path.child("containers"), "");
        return;
    };
    self::spec(spec, &spec_path, errors);
    if spec.ephemeral_containers.as_ref().is_some_and(|list| !list.is_empty()) {
        errors.forbidden(&spec_path.child("ephemeralContainers"), "ephemeral containers not allowed in pod template");
    }
}

/// The template of a workload that keeps replicas running: its pods always restart and never end.
pub fn replicas_template(template: &PodTemplateSpec, kind: &str, path: &Path, errors: &mut Errors) {
    self::template(template, path, errors);
    let Some(spec) = &template.spec else { return };
    let spec_path = path.child("spec");
    match text(&spec.restart_policy) {
        "Always" | "" => {}
        other => errors.not_supported(&spec_path.child("restartPolicy"), other, &["Always"]),
    }
    if spec.active_deadline_seconds.is_some() {
        let detail = format!("activeDeadlineSeconds in {kind} is not Supported");
        errors.forbidden(&spec_path.child("activeDeadlineSeconds"), detail);
    }
}

pub fn spec(spec: &PodSpec, path: &Path, errors: &mut Errors) {
    let volumes = volume::validate(spec.volumes.as_ref(), &path.child("volumes"), errors);
    resource_claims(spec, &path.child("resourceClaims"), errors);
    container::all(spec, &volumes, path, errors);
    errors.one_of(&path.child("restartPolicy"), spec.restart_policy.as_deref(), RESTART_POLICIES);
    dns::validate(spec, path, errors);
    meta::labels(spec.node_selector.as_ref(), &path.child("nodeSelector"), errors);
    security::pod(spec, path, errors);
    if let Some(affinity) = &spec.affinity {
        affinity::validate(affinity, &path.child("affinity"), errors);
    }
    gates(spec, path, errors);
    topology(spec.topology_spread_constraints.as_ref(), &path.child("topologySpreadConstraints"), errors);
    names_of_others(spec, path, errors);
    if let Some(seconds) = spec.active_deadline_seconds
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        let detail = "must be between 1 and 2147483647, inclusive";
        errors.invalid(&path.child("activeDeadlineSeconds"), seconds, detail);
    }
    for (key, name) in [("hostname", &spec.hostname), ("subdomain", &spec.subdomain)] {
        let name = text(name);
        if !name.is_empty() {
            errors.all_invalid(&path.child(key), name, names::is_dns1123_label(name));
        }
    }
    tolerations(spec.tolerations.as_ref(), &path.child("tolerations"), errors);
    host_aliases(spec.host_aliases.as_ref(), &path.child("hostAliases"), errors);
    errors.optional_one_of(
        &path.child("preemptionPolicy"),
        spec.preemption_policy.as_deref(),
        &["Never", "PreemptLowerPriority"],
    );
    for (name, value) in spec.overhead.iter().flatten() {
        let at = path.child("overhead").key(name);
        quantity::container_resource(name, &at, errors);
        quantity::amount(name, value, &at, errors);
    }
    if let Some(os) = &spec.os {
        errors.one_of(&path.child("os").child("name"), Some(&os.name), &["linux", "windows"]);
    }
    if let Some(resources) = &spec.resources {
        pod_resources(resources, &path.child("resources"), errors);
    }
}

fn pod_resources(resources: &k8s_openapi::api::core::v1::ResourceRequirements, path: &Path, errors: &mut Errors) {
    quantity::requirements(resources, path, errors);
    for (key, list) in [("limits", &resources.limits), ("requests", &resources.requests)] {
        for name in list.iter().flatten().map(|(name, _)| name) {
            if name != "cpu" && name != "memory" && !quantity::is_huge_page(name) {
                errors.not_supported(&path.child(key).key(name), name, &["cpu", "hugepages-", "memory"]);
            }
        }
    }
    if resources.claims.as_ref().is_some_and(|claims| !claims.is_empty()) {
        errors.forbidden(&path.child("claims"), "claims cannot be set for Resources at pod-level");
    }
}

fn names_of_others(spec: &PodSpec, path: &Path, errors: &mut Errors) {
    let others = [
        ("serviceAccountName", &spec.service_account_name),
        ("nodeName", &spec.node_name),
        ("priorityClassName", &spec.priority_class_name),
        ("runtimeClassName", &spec.runtime_class_name),
    ];
    for (key, name) in others {
        let name = text(name);
        if !name.is_empty() {
            errors.all_invalid(&path.child(key), name, subdomain(name, false));
        }
    }
}

fn gates(spec: &PodSpec, path: &Path, errors: &mut Errors) {
    for (at, gate) in indexed(spec.readiness_gates.as_ref(), &path.child("readinessGates")) {
        let condition = &gate.condition_type;
        errors.all_invalid(&at.child("conditionType"), condition, names::is_qualified_name(condition));
    }
    let mut seen = BTreeSet::new();
    for (at, gate) in indexed(spec.scheduling_gates.as_ref(), &path.child("schedulingGates")) {
        errors.all_invalid(&at, &gate.name, names::is_qualified_name(&gate.name));
        if !seen.insert(&gate.name) {
            errors.duplicate(&at, &gate.name);
        }
    }
    if !seen.is_empty() && spec.node_name.is_some() {
        errors.forbidden(&path.child("nodeName"), "cannot be set until all schedulingGates have been cleared");
    }
}

fn resource_claims(spec: &PodSpec, path: &Path, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (at, claim) in indexed(spec.resource_claims.as_ref(), path) {
        let name = at.child("name");
        if claim.name.is_empty() {
            errors.required(&name, "");
        } else {
            errors.all_invalid(&name, &claim.name, names::is_dns1123_label(&claim.name));
        }
        if !seen.insert(&claim.name) {
            errors.duplicate(&name, &claim.name);
        }
        match (&claim.resource_claim_name, &claim.resource_claim_template_name) {
            (None, None) => {
                let detail = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
                errors.required(&at, detail);
            }
            (Some(_), Some(_)) => errors.invalid(
                &at,
                claim,
                "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
            ),
            _ => {}
        }
    }
}

pub(crate) fn tolerations(tolerations: Option<&Vec<Toleration>>, path: &Path, errors: &mut Errors) {
    for (at, toleration) in indexed(tolerations, path) {
        let (key, operator, value) = (text(&toleration.key), text(&toleration.operator), text(&toleration.value));
        if key.is_empty() {
            if operator != "Exists" {
                let detail =
                    "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
                errors.invalid(&at.child("operator"), operator, detail);
            }
        } else {
            errors.all_invalid(&at.child("key"), key, names::is_qualified_name(key));
        }
        if toleration.toleration_seconds.is_some() && text(&toleration.effect) != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.invalid(&at.child("effect"), text(&toleration.effect), detail);
        }
        match operator {
            "Equal" | "" => {
                errors.all_invalid(&at.child("operator"), value, names::is_valid_label_value(value));
            }
            "Exists" if value.is_empty() => {}
            "Exists" => {
                let detail = "value must be empty when `operator` is 'Exists'";
                errors.invalid(&at.child("operator"), toleration, detail);
            }
            other => errors.not_supported(&at.child("operator"), other, &["Equal", "Exists"]),
        }
        errors.optional_one_of(&at.child("effect"), toleration.effect.as_deref(), EFFECTS);
    }
}

fn topology(constraints: Option<&Vec<TopologySpreadConstraint>>, path: &Path, errors: &mut Errors) {
    const ACTIONS: &[&str] = &["DoNotSchedule", "ScheduleAnyway"];
    const POLICIES: &[&str] = &["Honor", "Ignore"];
    let mut seen = BTreeSet::new();
    for (at, constraint) in indexed(constraints, path) {
        if constraint.max_skew <= 0 {
            errors.invalid(&at.child("maxSkew"), constraint.max_skew, "must be greater than zero");
        }
        let key = &constraint.topology_key;
        if key.is_empty() {
            errors.required(&at.child("topologyKey"), "can not be empty");
        } else {
            errors.all_invalid(&at.child("topologyKey"), key, names::is_qualified_name(key));
        }
        let action = constraint.when_unsatisfiable.as_str();
        if !ACTIONS.contains(&action) {
            errors.not_supported(&at.child("whenUnsatisfiable"), action, ACTIONS);
        }
        if !seen.insert((key, action)) {
            errors.duplicate(&at.child("{topologyKey, whenUnsatisfiable}"), format!("{{{key}, {action}}}"));
        }
        if let Some(domains) = constraint.min_domains {
            if domains <= 0 {
                errors.invalid(&at.child("minDomains"), domains, "must be greater than zero");
            }
            if action != "DoNotSchedule" {
                let detail = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
                errors.invalid(&at.child("minDomains"), domains, detail);
            }
        }
        let policies = [
            ("nodeAffinityPolicy", &constraint.node_affinity_policy),
            ("nodeTaintsPolicy", &constraint.node_taints_policy),
        ];
        for (key, policy) in policies {
            errors.optional_one_of(&at.child(key), policy.as_deref(), POLICIES);
        }
        if let Some(labels) = &constraint.label_selector {
            selector::validate(labels, &at.child("labelSelector"), errors);
        }
        for (at, key) in indexed(constraint.match_label_keys.as_ref(), &at.child("matchLabelKeys")) {
            errors.all_invalid(&at, key, names::is_qualified_name(key));
        }
        if constraint.label_selector.is_none() && constraint.match_label_keys.is_some() {
            errors.forbidden(&at.child("matchLabelKeys"), "must not be specified when labelSelector is not set");
        }
    }
}

fn host_aliases(aliases: Option<&Vec<HostAlias>>, path: &Path, errors: &mut Errors) {
    for (at, alias) in indexed(aliases, path) {
        errors.ip(&at.child("ip"), &alias.ip);
        for (at, name) in indexed(alias.hostnames.as_ref(), &at.child("hostnames")) {
            errors.all_invalid(&at, name, names::is_dns1123_subdomain(name));
        }
    }
}
