//! PodTopologySpread: keeps the numbers of a group's pods in the domains of a topology within a skew of each other.
//!
//! Pods are counted by class and node, so a decision costs the nodes and the templates of a namespace, not its pods.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use crate::affinity::Spread;
use crate::framework::{ClusterEvent, Filter, Filtered, MAX_SCORE, Plugin, PreFilter, Refusal, Score};
use crate::pod::PodInfo;
use crate::snapshot::{NodeId, Snapshot};

const MISSING: &str = "node(s) didn't match pod topology spread constraints (missing required label)";
const UNMATCHED: &str = "node(s) didn't match pod topology spread constraints";
const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

pub struct PodTopologySpread;

/// How many pods of the group each domain has.
#[derive(Default)]
struct Domains<'a> {
    counts: HashMap<&'a str, i64>,
    /// Zero if there are fewer domains than the constraint wants.
    least: i64,
}

impl Domains<'_> {
    fn settle(&mut self, constraint: &Spread) {
        let too_few = self.counts.len() < constraint.min_domains;
        self.least = if too_few { 0 } else { self.counts.values().min().copied().unwrap_or_default() };
    }
}

struct State<'a> {
    snapshot: &'a Snapshot,
    pod: &'a PodInfo,
    constraints: Vec<(&'a Spread, Domains<'a>)>,
}

/// Whether a node counts for a constraint of the pod at all.
fn is_included(snapshot: &Snapshot, pod: &PodInfo, constraint: &Spread, node: NodeId) -> bool {
    let node = snapshot.node(node);
    (!constraint.honor_affinity || pod.node_demands.are_met_by(node.object()))
        && (!constraint.honor_taints || !pod.is_kept_out_by(node.taints()))
}

/// The group's pods on each node that has some.
fn counts_by_node(snapshot: &Snapshot, pod: &PodInfo, constraint: &Spread) -> HashMap<NodeId, i64> {
    let mut sums = HashMap::new();
    let alike = |class: &crate::pod::Class| !class.terminating && constraint.selector.matches_map(&class.labels);
    for (_, counts) in snapshot.classes_in(pod.namespace()).filter(|(class, _)| alike(class)) {
        for (node, count) in counts {
            *sums.entry(*node).or_default() += count;
        }
    }
    sums
}

fn count_domains<'a>(
    snapshot: &'a Snapshot,
    pod: &PodInfo,
    constraint: &Spread,
    nodes: impl Iterator<Item = NodeId>,
) -> Domains<'a> {
    let by_node = counts_by_node(snapshot, pod, constraint);
    let mut domains = Domains::default();
    for node in nodes.filter(|node| is_included(snapshot, pod, constraint, *node)) {
        if let Some(value) = snapshot.node(node).label(&constraint.topology_key) {
            *domains.counts.entry(value).or_default() += by_node.get(&node).copied().unwrap_or_default();
        }
    }
    domains.settle(constraint);
    domains
}

fn has_all_keys(snapshot: &Snapshot, constraints: &[&Spread], node: NodeId) -> bool {
    constraints.iter().all(|constraint| snapshot.node(node).label(&constraint.topology_key).is_some())
}

/// Upstream's wishes for pods that belong to a group and say nothing themselves.
fn by_default(snapshot: &Snapshot, pod: &PodInfo) -> Option<[Spread; 2]> {
    let siblings = snapshot.siblings(pod)?;
    Some([Spread::wish(3, HOSTNAME, siblings.clone()), Spread::wish(5, ZONE, siblings)])
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn weight(&self) -> i64 {
        2
    }

    fn pre_filter<'a>(&self, snapshot: &'a Snapshot, pod: &'a PodInfo) -> PreFilter<'a> {
        let required: Vec<&Spread> = pod.spread.iter().filter(|constraint| constraint.required).collect();
        if required.is_empty() {
            return PreFilter::Skip;
        }
        let count = |constraint: &&'a Spread| {
            let nodes = snapshot.nodes().iter().copied();
            let nodes = nodes.filter(|node| has_all_keys(snapshot, &required, *node));
            (*constraint, count_domains(snapshot, pod, constraint, nodes))
        };
        PreFilter::Use(Box::new(State { snapshot, pod, constraints: required.iter().map(count).collect() }))
    }

    fn pre_score<'a>(&self, snapshot: &'a Snapshot, pod: &'a PodInfo, nodes: &[NodeId]) -> Option<Box<dyn Score + 'a>> {
        let complete_only = !pod.spread.is_empty();
        let preferred: Vec<Cow<'a, Spread>> = match complete_only {
            true => pod.spread.iter().filter(|constraint| !constraint.required).map(Cow::Borrowed).collect(),
            false => by_default(snapshot, pod).into_iter().flatten().map(Cow::Owned).collect(),
        };
        if preferred.is_empty() {
            return None;
        }
        let keys: Vec<&Spread> = preferred.iter().filter(|_| complete_only).map(|constraint| &**constraint).collect();
        let complete = |node: NodeId| has_all_keys(snapshot, &keys, node);
        let ignored = nodes.iter().map(|node| !complete(*node)).collect();
        let weigh = |constraint: &Cow<'a, Spread>| Weighed::new(snapshot, pod, constraint.clone(), complete, nodes);
        let weighed = preferred.iter().map(weigh).collect();
        Some(Box::new(Preference { snapshot, weighed, ignored }))
    }

    fn hint(&self, event: ClusterEvent<'_>, pod: &PodInfo) -> bool {
        let alike = |other: &PodInfo| {
            let selects = |constraint: &Spread| constraint.selector.matches_map(&other.class.labels);
            other.namespace() == pod.namespace() && pod.spread.iter().any(selects)
        };
        match event {
            ClusterEvent::Node { old, new } => old
                .is_none_or(|old| old.metadata.labels != new.metadata.labels || old.spec.as_ref() != new.spec.as_ref()),
            ClusterEvent::PodPlaced { new: other, .. } | ClusterEvent::PodGone(other) => alike(other),
            _ => false,
        }
    }
}

impl<'a> Filter<'a> for State<'a> {
    fn filter(&self, node: NodeId) -> Filtered {
        let node = self.snapshot.node(node);
        for (constraint, domains) in &self.constraints {
            let Some(value) = node.label(&constraint.topology_key) else { return Err(Refusal::unresolvable(MISSING)) };
            let itself = i64::from(constraint.selector.matches_map(&self.pod.class.labels));
            let count = domains.counts.get(value).copied().unwrap_or_default();
            if count + itself - domains.least > constraint.max_skew {
                return Err(Refusal::new(UNMATCHED));
            }
        }
        Ok(())
    }

    fn assume(&mut self, node: NodeId, other: &'a PodInfo, present: bool) {
        if other.namespace() != self.pod.namespace() {
            return;
        }
        for (constraint, domains) in &mut self.constraints {
            let concerned = constraint.selector.matches_map(&other.class.labels)
                && !other.class.terminating // never counted
                && is_included(self.snapshot, self.pod, constraint, node);
            let value = self.snapshot.node(node).label(&constraint.topology_key);
            if let (true, Some(count)) = (concerned, value.and_then(|value| domains.counts.get_mut(value))) {
                *count += if present { 1 } else { -1 };
                domains.settle(constraint);
            }
        }
    }
}

/// A constraint that is only preferred.
struct Weighed<'a> {
    constraint: Cow<'a, Spread>,
    counts: HashMap<&'a str, i64>,
    by_node: HashMap<NodeId, i64>,
    /// Compensates for topologies with few domains, which have more pods in each.
    weight: f64,
}

impl<'a> Weighed<'a> {
    /// Counts on the nodes that are `complete`.
    fn new(
        snapshot: &'a Snapshot,
        pod: &PodInfo,
        constraint: Cow<'a, Spread>,
        complete: impl Fn(NodeId) -> bool,
        nodes: &[NodeId],
    ) -> Self {
        let label = |node| snapshot.node(node).label(&constraint.topology_key);
        let values = nodes.iter().copied().filter(|node| complete(*node)).filter_map(label);
        let (size, counts, by_node) = if constraint.topology_key == HOSTNAME {
            (values.count(), HashMap::new(), counts_by_node(snapshot, pod, &constraint))
        } else {
            let all = snapshot.nodes().iter().copied().filter(|node| complete(*node));
            let domains = count_domains(snapshot, pod, &constraint, all);
            (values.collect::<HashSet<_>>().len(), domains.counts, HashMap::new())
        };
        Self { constraint, counts, by_node, weight: (size as f64 + 2.0).ln() }
    }

    fn score(&self, snapshot: &Snapshot, node: NodeId) -> f64 {
        let Some(value) = snapshot.node(node).label(&self.constraint.topology_key) else { return 0.0 };
        let count = match self.constraint.topology_key == HOSTNAME {
            true => self.by_node.get(&node),
            false => self.counts.get(value),
        };
        let count = count.copied().unwrap_or_default();
        count as f64 * self.weight + (self.constraint.max_skew - 1) as f64
    }
}

struct Preference<'a> {
    snapshot: &'a Snapshot,
    weighed: Vec<Weighed<'a>>,
    /// Nodes, in the order they are scored in, that lack a topology key.
    ignored: Vec<bool>,
}

impl Score for Preference<'_> {
    fn score(&self, node: NodeId) -> i64 {
        self.weighed.iter().map(|weighed| weighed.score(self.snapshot, node)).sum::<f64>().round() as i64
    }

    /// Fewer pods are better; nodes outside the topology come last.
    fn normalize(&self, scores: &mut [i64]) {
        let counted = || scores.iter().zip(&self.ignored).filter(|(_, ignored)| !**ignored).map(|(score, _)| *score);
        let (least, most) = (counted().min().unwrap_or_default(), counted().max().unwrap_or_default());
        for (score, ignored) in scores.iter_mut().zip(&self.ignored) {
            *score = match (*ignored, most) {
                (true, _) => 0,
                (false, 0) => MAX_SCORE,
                (false, most) => MAX_SCORE * (most + least - *score) / most,
            };
        }
    }
}
