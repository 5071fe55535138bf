//! What may change in a pod after its creation, by the path of the write.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    Affinity, Container, NodeSelectorTerm, Pod, PodSpec, PodStatus, ResourceRequirements, Toleration,
};
use machinery::field::Path;
use machinery::names;
use serde_json::Value;

use super::{qos_class, spec};
use crate::validate::{Errors, IMMUTABLE, indexed, text};

const OTHERWISE_FIXED: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub fn pod(new: &Pod, old: &Pod, errors: &mut Errors) {
    let path = Path::new("spec");
    let (Some(new_spec), Some(old_spec)) = (&new.spec, &old.spec) else { return };
    let mut fixed = new_spec.clone();
    if same_count(new_spec, old_spec, &path, errors) {
        images(&mut fixed, old_spec, &path, errors);
    } else {
        return;
    }
    deadline(new_spec, old_spec, &path, errors);
    fixed.active_deadline_seconds = old_spec.active_deadline_seconds;
    if new_spec.tolerations != old_spec.tolerations {
        only_more_tolerations(new_spec, old_spec, &path.child("tolerations"), errors);
        fixed.tolerations = old_spec.tolerations.clone();
    }
    let negative = old_spec.termination_grace_period_seconds.is_some_and(|seconds| seconds < 0);
    if negative && new_spec.termination_grace_period_seconds == Some(1) {
        fixed.termination_grace_period_seconds = old_spec.termination_grace_period_seconds;
    }
    scheduling(new_spec, old_spec, &mut fixed, &path, errors);
    changed_otherwise(&fixed, old_spec, &path, errors);
}

fn same_count(new: &PodSpec, old: &PodSpec, path: &Path, errors: &mut Errors) -> bool {
    let count = |list: &Option<Vec<Container>>| list.as_ref().map_or(0, Vec::len);
    let before = errors.len();
    if new.containers.len() != old.containers.len() {
        errors.forbidden(&path.child("containers"), "pod updates may not add or remove containers");
    }
    if count(&new.init_containers) != count(&old.init_containers) {
        errors.forbidden(&path.child("initContainers"), "pod updates may not add or remove containers");
    }
    errors.len() == before
}

/// Images may change, but not vanish.
fn images(fixed: &mut PodSpec, old: &PodSpec, path: &Path, errors: &mut Errors) {
    let regular = fixed.containers.iter_mut().zip(&old.containers).map(|pair| ("containers", pair));
    let init = fixed.init_containers.iter_mut().flatten().zip(old.init_containers.iter().flatten());
    let mut index = (0, 0);
    for (list, (new, old)) in regular.chain(init.map(|pair| ("initContainers", pair))) {
        let position = if list == "containers" { &mut index.0 } else { &mut index.1 };
        let at = path.child(list).index(*position).child("image");
        *position += 1;
        let image = text(&new.image);
        if image.is_empty() {
            errors.required(&at, "");
        } else if image != image.trim() {
            errors.invalid(&at, image, "must not have leading or trailing whitespace");
        }
        new.image = old.image.clone();
    }
}

fn deadline(new: &PodSpec, old: &PodSpec, path: &Path, errors: &mut Errors) {
    let at = path.child("activeDeadlineSeconds");
    match (new.active_deadline_seconds, old.active_deadline_seconds) {
        (Some(new), _) if !(0..=i64::from(i32::MAX)).contains(&new) => {
            errors.invalid(&at, new, "must be between 0 and 2147483647, inclusive");
        }
        (Some(new), Some(old)) if new > old => {
            errors.invalid(&at, new, "must be less than or equal to previous value");
        }
        (None, Some(_)) => {
            errors.invalid(&at, Value::Null, "must not update from a positive integer to nil value");
        }
        _ => {}
    }
}

fn only_more_tolerations(new: &PodSpec, old: &PodSpec, path: &Path, errors: &mut Errors) {
    let without_seconds = |toleration: &Toleration| Toleration { toleration_seconds: None, ..toleration.clone() };
    let kept: Vec<_> = new.tolerations.iter().flatten().map(without_seconds).collect();
    if old.tolerations.iter().flatten().any(|toleration| !kept.contains(&without_seconds(toleration))) {
        errors.forbidden(path, "existing toleration can not be modified except its tolerationSeconds");
    }
    spec::tolerations(new.tolerations.as_ref(), path, errors);
}

/// Gates may be taken off, never added; while one is on, scheduling may be narrowed further.
fn scheduling(new: &PodSpec, old: &PodSpec, fixed: &mut PodSpec, path: &Path, errors: &mut Errors) {
    let gates: BTreeSet<&str> = old.scheduling_gates.iter().flatten().map(|gate| gate.name.as_str()).collect();
    for gate in new.scheduling_gates.iter().flatten() {
        if !gates.contains(gate.name.as_str()) {
            let detail = format!("only deletion is allowed, but found new scheduling gate '{}'", gate.name);
            errors.forbidden(&path.child("schedulingGates").key(gate.name.clone()), detail);
        }
    }
    fixed.scheduling_gates = old.scheduling_gates.clone();
    if gates.is_empty() {
        return;
    }
    let changed = old
        .node_selector
        .iter()
        .flatten()
        .any(|(key, value)| new.node_selector.as_ref().and_then(|map| map.get(key)) != Some(value));
    if changed {
        let detail = "only additions are allowed while pod is scheduling gated";
        errors.invalid(&path.child("nodeSelector"), &new.node_selector, detail);
    }
    fixed.node_selector = old.node_selector.clone();
    if narrowed(new.affinity.as_ref(), old.affinity.as_ref()) {
        let affinity = fixed.affinity.get_or_insert_default();
        affinity.node_affinity = old.affinity.as_ref().and_then(|affinity| affinity.node_affinity.clone());
        if *affinity == Affinity::default() && old.affinity.is_none() {
            fixed.affinity = None;
        }
    } else {
        let at = path.child("affinity").child("nodeAffinity");
        let node = new.affinity.as_ref().and_then(|affinity| affinity.node_affinity.clone());
        errors.invalid(&at, node, "must only narrow the nodes while the pod is scheduling gated");
        fixed.affinity = old.affinity.clone();
    }
}

/// Every old term is still there and at least as strict; a new requirement where there was none is too.
fn narrowed(new: Option<&Affinity>, old: Option<&Affinity>) -> bool {
    let terms = |affinity: Option<&Affinity>| -> Vec<NodeSelectorTerm> {
        affinity
            .and_then(|affinity| affinity.node_affinity.as_ref())
            .and_then(|node| node.required_during_scheduling_ignored_during_execution.as_ref())
            .map(|selector| selector.node_selector_terms.clone())
            .unwrap_or_default()
    };
    let (new, old) = (terms(new), terms(old));
    let stricter = |new: &NodeSelectorTerm, old: &NodeSelectorTerm| {
        let within = |old: &Option<Vec<_>>, new: &Option<Vec<_>>| {
            old.iter().flatten().all(|item| new.iter().flatten().any(|other| other == item))
        };
        within(&old.match_expressions, &new.match_expressions) && within(&old.match_fields, &new.match_fields)
    };
    old.is_empty() || (old.len() == new.len() && new.iter().zip(&old).all(|(new, old)| stricter(new, old)))
}

fn changed_otherwise(fixed: &PodSpec, old: &PodSpec, path: &Path, errors: &mut Errors) {
    let (Ok(new), Ok(old)) = (serde_json::to_value(fixed), serde_json::to_value(old)) else { return };
    if machinery::schema::semantic_equal(&new, &old) {
        return;
    }
    let mut lines = Vec::new();
    difference(&path.to_string(), &new, &old, &mut lines);
    errors.forbidden(path, format!("{OTHERWISE_FIXED}\n{}", lines.join("\n")));
}

/// One line per changed value, so that the user sees what the server thinks was changed.
fn difference(path: &str, new: &Value, old: &Value, lines: &mut Vec<String>) {
    match (new, old) {
        (Value::Object(new), Value::Object(old)) => {
            let keys: BTreeSet<&String> = new.keys().chain(old.keys()).collect();
            for key in keys {
                let value = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or_default();
                difference(&format!("{path}.{key}"), &value(new), &value(old), lines);
            }
        }
        (Value::Array(new), Value::Array(old)) if new.len() == old.len() => {
            for (index, (new, old)) in new.iter().zip(old).enumerate() {
                difference(&format!("{path}[{index}]"), new, old, lines);
            }
        }
        _ if new == old => {}
        _ => lines.push(format!("  {path}: {old} -> {new}")),
    }
}

/// `pods/NAME/ephemeralcontainers`: containers may be added, none changed or removed.
pub fn ephemeral_containers(new: &Pod, old: &Pod, errors: &mut Errors) {
    let path = Path::new("spec").child("ephemeralContainers");
    let (Some(new_spec), Some(old_spec)) = (&new.spec, &old.spec) else { return };
    spec::spec(new_spec, &Path::new("spec"), errors);
    let new = new_spec.ephemeral_containers.as_deref().unwrap_or_default();
    for container in old_spec.ephemeral_containers.iter().flatten() {
        match new.iter().find(|other| other.name == container.name) {
            None => {
                let detail = format!("existing ephemeral containers {:?} may not be removed\n", container.name);
                errors.forbidden(&path, detail);
            }
            Some(other) if other != container => {
                let detail = format!("existing ephemeral containers {:?} may not be changed\n", container.name);
                errors.forbidden(&path, detail);
            }
            Some(_) => {}
        }
    }
}

/// `pods/NAME/resize`: cpu and memory of containers and of the pod as a whole (KEP-5419), without a change of the QoS
/// class.
pub fn resize(new: &Pod, old: &Pod, errors: &mut Errors) {
    let path = Path::new("spec");
    let (Some(new_spec), Some(old_spec)) = (&new.spec, &old.spec) else { return };
    if old.metadata.annotations.as_ref().is_some_and(|map| map.contains_key(super::MIRROR_ANNOTATION)) {
        errors.forbidden(&Path::new(""), "static pods cannot be resized");
    }
    spec::spec(new_spec, &path, errors);
    if qos_class(new_spec) != qos_class(old_spec) {
        errors.invalid(&path, qos_class(new_spec), "Pod QOS Class may not change as a result of resizing");
    }
    removals(new_spec.resources.as_ref(), old_spec.resources.as_ref(), &path, errors);
    for (at, container) in indexed(Some(&new_spec.containers), &path.child("containers")) {
        let before = old_spec.containers.iter().find(|before| before.name == container.name);
        removals(container.resources.as_ref(), before.and_then(|before| before.resources.as_ref()), &at, errors);
    }
    let mut fixed = new_spec.clone();
    let pairs = fixed.containers.iter_mut().zip(&old_spec.containers);
    let init = fixed.init_containers.iter_mut().flatten().zip(old_spec.init_containers.iter().flatten());
    let containers = pairs.chain(init).map(|(new, old)| (&mut new.resources, &old.resources));
    for (resources, before) in containers.chain([(&mut fixed.resources, &old_spec.resources)]) {
        let (Some(resources), Some(before)) = (resources, before) else { continue };
        let lists = [(&mut resources.requests, &before.requests), (&mut resources.limits, &before.limits)];
        for (list, before) in lists {
            for name in ["cpu", "memory"] {
                let map = list.get_or_insert_default();
                match before.as_ref().and_then(|before| before.get(name)) {
                    Some(value) => drop(map.insert(name.to_owned(), value.clone())),
                    None => drop(map.remove(name)),
                }
            }
        }
    }
    let (Ok(new), Ok(old)) = (serde_json::to_value(&fixed), serde_json::to_value(old_spec)) else { return };
    if !machinery::schema::semantic_equal(&new, &old) {
        let mut lines = Vec::new();
        difference("spec", &new, &old, &mut lines);
        errors.forbidden(&path, format!("only cpu and memory resources are mutable\n{}", lines.join("\n")));
    }
}

/// What was asked for may change, not go.
fn removals(new: Option<&ResourceRequirements>, old: Option<&ResourceRequirements>, path: &Path, errors: &mut Errors) {
    let Some(old) = old else { return };
    for (key, new, old) in [
        ("limits", new.and_then(|new| new.limits.as_ref()), &old.limits),
        ("requests", new.and_then(|new| new.requests.as_ref()), &old.requests),
    ] {
        if old.iter().flatten().any(|(name, _)| new.is_none_or(|new| !new.contains_key(name))) {
            errors.forbidden(&path.child("resources").child(key), format!("resource {key} cannot be removed"));
        }
    }
}

/// `pods/NAME/status`: a pod stays on its node, and containers that may not restart stay ended.
pub fn status(new: &Pod, old: &Pod, errors: &mut Errors) {
    let node = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    if node(new) != node(old) {
        errors.invalid(&Path::new("status").child("nodeName"), node(new), IMMUTABLE);
    }
    let path = Path::new("status");
    let Some(status) = &new.status else { return };
    let nominated = text(&status.nominated_node_name);
    if !nominated.is_empty() {
        errors.all_invalid(&path.child("nominatedNodeName"), nominated, names::is_dns1123_subdomain(nominated));
    }
    for (at, ip) in indexed(status.pod_ips.as_ref(), &path.child("podIPs")) {
        errors.ip(&at, &ip.ip);
    }
    for (at, condition) in indexed(status.conditions.as_ref(), &path.child("conditions")) {
        errors.all_invalid(&at.child("type"), &condition.type_, names::is_qualified_name(&condition.type_));
    }
    if let (Some(before), Some(spec)) = (&old.status, &new.spec) {
        stay_ended(status, before, spec, &path, errors);
    }
}

fn stay_ended(new: &PodStatus, old: &PodStatus, spec: &PodSpec, path: &Path, errors: &mut Errors) {
    let policy = text(&spec.restart_policy);
    let own_rules = spec.containers.iter().any(|container| container.restart_policy.is_some());
    if policy == "Always" || own_rules {
        return;
    }
    for (at, status) in indexed(new.container_statuses.as_ref(), &path.child("containerStatuses")) {
        let before = old.container_statuses.iter().flatten().find(|before| before.name == status.name);
        let ended = before.and_then(|before| before.state.as_ref()).and_then(|state| state.terminated.as_ref());
        let Some(ended) = ended else { continue };
        let restarts = policy == "OnFailure" && ended.exit_code != 0;
        let still = status.state.as_ref().is_some_and(|state| state.terminated.is_some());
        if !restarts && !still {
            errors.forbidden(&at.child("state"), "may not be transitioned to non-terminated state");
        }
    }
}
