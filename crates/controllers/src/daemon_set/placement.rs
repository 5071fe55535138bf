//! On which nodes a DaemonSet's pods belong, and the pod for one of them. Pure.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{
    Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, PodTemplateSpec, Taint,
    Toleration,
};
use machinery::labels::{Operator, Requirement};

use crate::common::history::POD_REVISION;
use crate::common::{pods, template};

const GENERATION_ANNOTATION: &str = "deprecated.daemonset.template.generation";
const GENERATION_LABEL: &str = "pod-template-generation";

/// What every daemon tolerates: daemons bring nodes into order, or live with their disorder.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
const NETWORK_UNAVAILABLE: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// What a node means to a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fit {
    pub should_run: bool,
    /// A pod that is there may stay.
    pub may_continue: bool,
}

pub fn fit(template: &PodTemplateSpec, node: &Node) -> Fit {
    let spec = template.spec.clone().unwrap_or_default();
    let elsewhere =
        spec.node_name.as_ref().is_some_and(|name| !name.is_empty() && Some(name) != node.metadata.name.as_ref());
    if elsewhere || !chooses(&spec, node) {
        return Fit::default();
    }
    let tolerations = tolerations(&spec);
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let untolerated: Vec<_> =
        taints.filter(|taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint))).collect();
    let none_of = |effects: &[&str]| !untolerated.iter().any(|taint| effects.contains(&taint.effect.as_str()));
    Fit { should_run: none_of(&["NoSchedule", "NoExecute"]), may_continue: none_of(&["NoExecute"]) }
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    (effect.is_empty() || effect == taint.effect)
        && (key.is_empty() || key == taint.key)
        && (toleration.operator.as_deref() == Some("Exists")
            || !key.is_empty() && text(&toleration.value) == text(&taint.value))
}

/// Node selector and required node affinity.
fn chooses(spec: &PodSpec, node: &Node) -> bool {
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let matches = |term: &NodeSelectorTerm| {
        let (expressions, fields) = (term.match_expressions.as_deref(), term.match_fields.as_deref());
        let (expressions, fields) = (expressions.unwrap_or(&[]), fields.unwrap_or(&[]));
        let by_label = |one: &NodeSelectorRequirement| meets(one, labels.get(&one.key).map(String::as_str));
        let by_field = |one: &NodeSelectorRequirement| one.key == "metadata.name" && meets(one, Some(name));
        // A term without requirements matches no node.
        !(expressions.is_empty() && fields.is_empty())
            && expressions.iter().all(by_label)
            && fields.iter().all(by_field)
    };
    selected && required.is_none_or(|required| required.node_selector_terms.iter().any(matches))
}

fn meets(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let operator = match requirement.operator.as_str() {
        "In" => Operator::In,
        "NotIn" => Operator::NotIn,
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        "Gt" => Operator::GreaterThan,
        "Lt" => Operator::LessThan,
        _ => return false,
    };
    let values = requirement.values.clone().unwrap_or_default();
    Requirement { key: requirement.key.clone(), operator, values }.matches(value)
}

fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let mut tolerations = spec.tolerations.clone().unwrap_or_default();
    let network = spec.host_network.unwrap_or(false).then_some(NETWORK_UNAVAILABLE);
    for (key, effect) in TOLERATED.into_iter().chain(network) {
        let toleration = Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Default::default()
        };
        let same = |known: &Toleration| known.key == toleration.key && known.effect == toleration.effect;
        match tolerations.iter_mut().find(|known| same(known)) {
            Some(known) => *known = toleration,
            None => tolerations.push(toleration),
        }
    }
    tolerations
}

/// The scheduler binds it: the pod asks for its node by name.
pub fn pod(set: &DaemonSet, template: &PodTemplateSpec, node: &str, hash: &str) -> Pod {
    let owner = client::owner_reference(set);
    let mut pod = template::pod(template, owner, set.metadata.namespace.as_deref().unwrap_or_default());
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_REVISION.into(), hash.into());
    let annotations = set.metadata.annotations.as_ref();
    if let Some(generation) = annotations.and_then(|annotations| annotations.get(GENERATION_ANNOTATION)) {
        labels.insert(GENERATION_LABEL.into(), generation.clone());
    }
    let spec = pod.spec.get_or_insert_default();
    spec.tolerations = Some(tolerations(spec));
    let by_name = NodeSelectorRequirement {
        key: "metadata.name".into(),
        operator: "In".into(),
        values: Some(vec![node.to_owned()]),
    };
    let term = NodeSelectorTerm { match_fields: Some(vec![by_name]), match_expressions: None };
    let affinity: &mut NodeAffinity = spec.affinity.get_or_insert_default().node_affinity.get_or_insert_default();
    // The set has looked at the terms already: the node meets them.
    affinity.required_during_scheduling_ignored_during_execution =
        Some(NodeSelector { node_selector_terms: vec![term] });
    pod
}

/// The node a pod is on or asks for.
pub fn node_of(pod: &Pod) -> Option<&str> {
    if !pods::node_name(pod).is_empty() {
        return Some(pods::node_name(pod));
    }
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let fields = required.node_selector_terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    let mut named = fields.filter(|field| field.key == "metadata.name" && field.operator == "In");
    named.find_map(|field| field.values.as_ref()?.first()).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn nodes_fit_by_name_labels_and_taints() {
        let node: Node =
            serde_json::from_value(json!({"metadata": {"name": "n", "labels": {"zone": "a", "size": "4"}},
            "spec": {"taints": [{"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}]}}))
            .unwrap();
        let mut tainted = node.clone();
        let taint = |key: &str, effect: &str| Taint { key: key.into(), effect: effect.into(), ..Default::default() };
        tainted.spec.as_mut().unwrap().taints = Some(vec![taint("x", "NoSchedule")]);
        let mut expelled = node.clone();
        expelled.spec.as_mut().unwrap().taints = Some(vec![taint("x", "NoExecute")]);
        let required = |term: Value| {
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [term]}}}})
        };
        let expression = |operator: &str, values: Value| {
            required(json!({"matchExpressions": [{"key": "size", "operator": operator, "values": values}]}))
        };
        for (spec, node, expected) in [
            (json!({}), &node, (true, true)),
            (json!({"nodeSelector": {"zone": "a"}}), &node, (true, true)),
            (json!({"nodeSelector": {"zone": "b"}}), &node, (false, false)),
            (json!({"nodeName": "other"}), &node, (false, false)),
            (expression("Gt", json!(["3"])), &node, (true, true)),
            (expression("NotIn", json!(["4"])), &node, (false, false)),
            (required(json!({})), &node, (false, false)),
            (
                required(json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]})),
                &node,
                (true, true),
            ),
            (json!({}), &tainted, (false, true)),
            (json!({"tolerations": [{"key": "x", "operator": "Exists"}]}), &tainted, (true, true)),
            (json!({}), &expelled, (false, false)),
        ] {
            let mut template = json!({"spec": {"containers": []}});
            machinery::patch::merge_patch(&mut template["spec"], &spec).unwrap();
            let fit = fit(&serde_json::from_value(template).unwrap(), node);
            assert_eq!((fit.should_run, fit.may_continue), expected, "{spec}");
        }
    }
}
