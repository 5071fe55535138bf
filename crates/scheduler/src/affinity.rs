//! Node selectors and pod affinity terms, compiled once per pod. It refuses to know which plugin asks.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{self as core, Node};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use machinery::labels::{Operator, Requirement, Selector};

pub type Labels = BTreeMap<String, String>;

fn operator(name: &str) -> Option<Operator> {
    Some(match name {
        "In" => Operator::In,
        "NotIn" => Operator::NotIn,
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        "Gt" => Operator::GreaterThan,
        "Lt" => Operator::LessThan,
        _ => return None,
    })
}

fn requirement(key: &str, name: &str, values: &[String]) -> Option<Requirement> {
    Some(Requirement { key: key.to_owned(), operator: operator(name)?, values: values.to_vec() })
}

/// Absent selects nothing, empty selects everything; an unknown operator (the API admits none) selects nothing.
pub fn selector(selector: Option<&LabelSelector>) -> Selector {
    let Some(selector) = selector else { return Selector::nothing() };
    let equals = selector.match_labels.iter().flatten();
    let equals = equals.map(|(key, value)| requirement(key, "In", std::slice::from_ref(value)));
    let expressions = selector.match_expressions.iter().flatten();
    let expressions =
        expressions.map(|found| requirement(&found.key, &found.operator, found.values.as_deref().unwrap_or_default()));
    equals.chain(expressions).collect::<Option<Vec<_>>>().map_or_else(Selector::nothing, Selector::new)
}

/// Narrows a selector to the pod's own values of some labels, or to other values.
fn with_keys(selector: Selector, labels: &Labels, keys: &Option<Vec<String>>, name: &str) -> Selector {
    if selector.is_nothing() {
        return selector;
    }
    let own = keys.iter().flatten().filter_map(|key| Some((key, labels.get(key)?)));
    let own = own.filter_map(|(key, value)| requirement(key, name, std::slice::from_ref(value)));
    Selector::new(selector.requirements().to_vec().into_iter().chain(own))
}

/// Terms of which any may hold; none of them holds for no node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSelector(Vec<NodeTerm>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeTerm {
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

impl NodeTerm {
    /// None for a term with an unknown operator, which matches nothing.
    fn new(term: &core::NodeSelectorTerm) -> Option<Self> {
        let compile = |requirements: &Option<Vec<core::NodeSelectorRequirement>>| {
            let requirements = requirements.iter().flatten();
            requirements
                .map(|found| requirement(&found.key, &found.operator, found.values.as_deref().unwrap_or_default()))
                .collect::<Option<Vec<_>>>()
        };
        Some(Self { labels: compile(&term.match_expressions)?, fields: compile(&term.match_fields)? })
    }

    fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub fn matches(&self, node: &Node) -> bool {
        let labels = node.metadata.labels.as_ref();
        let label = |key: &str| labels.and_then(|labels| labels.get(key)).map(String::as_str);
        let field = |key: &str| (key == "metadata.name").then_some(node.metadata.name.as_deref()).flatten();
        !self.is_empty()
            && self.labels.iter().all(|requirement| requirement.matches(label(&requirement.key)))
            && self.fields.iter().all(|requirement| requirement.matches(field(&requirement.key)))
    }

    /// The nodes that `metadata.name in (..)` leaves.
    fn names(&self) -> Option<BTreeSet<&str>> {
        let named = |found: &&Requirement| found.key == "metadata.name" && found.operator == Operator::In;
        let names = self.fields.iter().filter(named).map(|found| found.values.iter().map(String::as_str).collect());
        names.reduce(|left: BTreeSet<&str>, right| left.intersection(&right).copied().collect())
    }
}

impl NodeSelector {
    pub fn new(selector: &core::NodeSelector) -> Self {
        Self(selector.node_selector_terms.iter().filter_map(NodeTerm::new).collect())
    }

    pub fn matches(&self, node: &Node) -> bool {
        self.0.iter().any(|term| term.matches(node))
    }

    /// The only nodes that can match, if every term names some.
    pub fn names(&self) -> Option<BTreeSet<&str>> {
        let terms = self.0.iter().filter(|term| !term.is_empty());
        let names = terms.map(NodeTerm::names).collect::<Option<Vec<_>>>()?;
        (!names.is_empty()).then(|| names.into_iter().flatten().collect())
    }
}

/// What a pod demands and prefers of nodes.
#[derive(Clone, Debug, Default)]
pub struct NodeDemands {
    pub labels: Labels,
    pub required: Option<NodeSelector>,
    pub preferred: Vec<(i64, NodeTerm)>,
}

impl NodeDemands {
    pub fn new(spec: &core::PodSpec) -> Self {
        let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
        let required = affinity.and_then(|found| found.required_during_scheduling_ignored_during_execution.as_ref());
        let preferred = affinity.and_then(|found| found.preferred_during_scheduling_ignored_during_execution.as_ref());
        let preferred = preferred.into_iter().flatten();
        Self {
            labels: spec.node_selector.clone().unwrap_or_default(),
            required: required.map(NodeSelector::new),
            preferred: preferred
                .filter_map(|term| Some((term.weight.into(), NodeTerm::new(&term.preference)?)))
                .collect(),
        }
    }

    pub fn are_met_by(&self, node: &Node) -> bool {
        let labels = node.metadata.labels.as_ref();
        let has = |(key, value)| labels.is_some_and(|labels| labels.get(key) == Some(value));
        self.labels.iter().all(has) && self.required.as_ref().is_none_or(|required| required.matches(node))
    }

    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.required.is_none()
    }
}

/// Pods that a term speaks of, and the topology in which it wants them near or far.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodTerm {
    pub selector: Selector,
    namespaces: BTreeSet<String>,
    namespace_selector: Selector,
    pub topology_key: String,
    /// Zero for required terms.
    pub weight: i64,
}

impl PodTerm {
    fn new(term: &core::PodAffinityTerm, namespace: &str, labels: &Labels, weight: i32) -> Self {
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(namespace.to_owned());
        }
        let chosen = with_keys(selector(term.label_selector.as_ref()), labels, &term.match_label_keys, "In");
        Self {
            selector: with_keys(chosen, labels, &term.mismatch_label_keys, "NotIn"),
            namespaces,
            namespace_selector: selector(term.namespace_selector.as_ref()),
            topology_key: term.topology_key.clone(),
            weight: weight.into(),
        }
    }

    /// Whether the term speaks of pods with these labels in this namespace, which has these labels itself.
    pub fn matches(&self, namespace: &str, namespace_labels: &Labels, labels: &Labels) -> bool {
        let namespace_matches =
            || self.namespaces.contains(namespace) || self.namespace_selector.matches_map(namespace_labels);
        namespace_matches() && self.selector.matches_map(labels)
    }
}

/// The affinity of a pod to others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PodDemands {
    pub near: Vec<PodTerm>,
    pub far: Vec<PodTerm>,
    pub prefer_near: Vec<PodTerm>,
    pub prefer_far: Vec<PodTerm>,
}

impl PodDemands {
    pub fn new(spec: &core::PodSpec, namespace: &str, labels: &Labels) -> Self {
        let Some(affinity) = &spec.affinity else { return Self::default() };
        let required = |terms: Option<&Vec<core::PodAffinityTerm>>| {
            terms.into_iter().flatten().map(|term| PodTerm::new(term, namespace, labels, 0)).collect()
        };
        let preferred = |terms: Option<&Vec<core::WeightedPodAffinityTerm>>| {
            let terms = terms.into_iter().flatten();
            terms.map(|term| PodTerm::new(&term.pod_affinity_term, namespace, labels, term.weight)).collect()
        };
        let (near, far) = (affinity.pod_affinity.as_ref(), affinity.pod_anti_affinity.as_ref());
        Self {
            near: required(near.and_then(|near| near.required_during_scheduling_ignored_during_execution.as_ref())),
            far: required(far.and_then(|far| far.required_during_scheduling_ignored_during_execution.as_ref())),
            prefer_near: preferred(
                near.and_then(|near| near.preferred_during_scheduling_ignored_during_execution.as_ref()),
            ),
            prefer_far: preferred(
                far.and_then(|far| far.preferred_during_scheduling_ignored_during_execution.as_ref()),
            ),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.near.is_empty() && self.far.is_empty() && self.prefer_near.is_empty() && self.prefer_far.is_empty()
    }
}

/// One topology spread constraint.
#[derive(Clone, Debug)]
pub struct Spread {
    pub max_skew: i64,
    pub topology_key: String,
    pub required: bool,
    pub selector: Selector,
    pub min_domains: usize,
    pub honor_affinity: bool,
    pub honor_taints: bool,
}

impl Spread {
    pub fn new(constraint: &core::TopologySpreadConstraint, labels: &Labels) -> Self {
        let chosen = selector(constraint.label_selector.as_ref());
        Self {
            max_skew: constraint.max_skew.into(),
            topology_key: constraint.topology_key.clone(),
            required: constraint.when_unsatisfiable == "DoNotSchedule",
            selector: with_keys(chosen, labels, &constraint.match_label_keys, "In"),
            min_domains: constraint.min_domains.and_then(|domains| domains.try_into().ok()).unwrap_or(1),
            honor_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
        }
    }

    /// A wish for pods that have none of their own.
    pub fn wish(max_skew: i64, topology_key: &str, selector: Selector) -> Self {
        let (required, honor_affinity, honor_taints) = (false, true, false);
        let topology_key = topology_key.to_owned();
        Self { max_skew, topology_key, required, selector, min_domains: 1, honor_affinity, honor_taints }
    }
}

/// Whether a toleration covers a taint.
pub fn tolerates(toleration: &core::Toleration, taint: &core::Taint) -> bool {
    let [effect, key, value] =
        [&toleration.effect, &toleration.key, &toleration.value].map(|text| text.as_deref().unwrap_or_default());
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    let compare = |holds: fn(&i64, &i64) -> bool| {
        let taint = taint.value.as_deref().unwrap_or_default().parse();
        matches!((taint, value.parse()), (Ok(taint), Ok(bound)) if holds(&taint, &bound))
    };
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => value == taint.value.as_deref().unwrap_or_default(),
        "Exists" => true,
        "Gt" => compare(i64::gt),
        "Lt" => compare(i64::lt),
        _ => false,
    }
}
