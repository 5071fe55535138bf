//! PodTopologySpread: keeps the numbers of a group's pods in the domains of a topology within a skew of each other.
//!
//! Pods are counted by class and node, so a decision costs the nodes and the templates of a namespace, not its pods.

use std::collections::HashMap;

use crate::affinity::Spread;
use crate::framework::{ClusterEvent, Filter, Filtered, MAX_SCORE, Plugin, PreFilter, Refusal, Score};
use crate::pod::PodInfo;
use crate::snapshot::{NodeId, Snapshot};

const MISSING: &str = "node(s) didn't match pod topology spread constraints (missing required label)";
const UNMATCHED: &str = "node(s) didn't match pod topology spread constraints";
const HOSTNAME: &str = "kubernetes.io/hostname";

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
        let preferred: Vec<&Spread> = pod.spread.iter().filter(|constraint| !constraint.required).collect();
        if preferred.is_empty() {
            return None;
        }
        let weigh = |constraint: &&'a Spread| Weighed::new(snapshot, pod, constraint, &preferred, nodes);
        let weighed = preferred.iter().map(weigh).collect();
        let ignored = nodes.iter().map(|node| !has_all_keys(snapshot, &preferred, *node)).collect();
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
            ClusterEvent::Other => false,
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
                && (present || !other.class.terminating) // terminating pods were not counted
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
    constraint: &'a Spread,
    counts: HashMap<&'a str, i64>,
    by_node: HashMap<NodeId, i64>,
    /// Compensates for topologies with few domains, which have more pods in each.
    weight: f64,
}

impl<'a> Weighed<'a> {
    fn new(snapshot: &'a Snapshot, pod: &PodInfo, constraint: &'a Spread, all: &[&Spread], nodes: &[NodeId]) -> Self {
        let complete = |node: &NodeId| has_all_keys(snapshot, all, *node);
        let is_host = constraint.topology_key == HOSTNAME;
        let domains = if is_host {
            Domains::default()
        } else {
            count_domains(snapshot, pod, constraint, snapshot.nodes().iter().copied().filter(complete))
        };
        let scored = nodes.iter().copied().filter(complete);
        let values = scored.filter_map(|node| snapshot.node(node).label(&constraint.topology_key));
        let size = match is_host {
            true => values.count(),
            false => values.collect::<std::collections::HashSet<_>>().len(),
        };
        let by_node = if is_host { counts_by_node(snapshot, pod, constraint) } else { HashMap::new() };
        Self { constraint, counts: domains.counts, by_node, weight: (size as f64 + 2.0).ln() }
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
