//! The decision: a pure function from the state of the cluster and a pod to a node, or to the reasons why there is none.

use std::collections::{BTreeMap, BTreeSet};

use crate::framework::{Filter, Framework, MAX_SCORE, Nomination, PreFilter, Refusal};
use crate::pod::PodInfo;
use crate::snapshot::{NodeId, Snapshot};

/// What makes decisions differ that are otherwise equal.
#[derive(Clone, Copy, Debug, Default)]
pub struct Turn {
    /// Where among the nodes to begin, so that a large cluster is sampled all around.
    pub start: usize,
    /// Chooses among the best nodes.
    pub lot: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Placement {
    pub node: NodeId,
    /// Where the next decision is to begin.
    pub next_start: usize,
}

#[derive(Debug)]
pub struct Unschedulable {
    /// As users read it in the event and the condition.
    pub message: String,
    /// The plugins that refused; empty if there was no node to refuse.
    pub refused_by: Vec<&'static str>,
    pub nomination: Nomination,
}

/// The filters of one pod, in the order of their plugins.
pub struct Filters<'a>(Vec<(&'static str, Box<dyn Filter<'a> + 'a>)>);

pub type Refused = (&'static str, Refusal);

impl<'a> Filters<'a> {
    fn new(framework: &Framework, snapshot: &'a Snapshot, pod: &'a PodInfo) -> Result<Self, Refused> {
        let mut filters = Vec::with_capacity(framework.plugins.len());
        for plugin in &framework.plugins {
            match plugin.pre_filter(snapshot, pod) {
                PreFilter::Skip => {}
                PreFilter::Use(filter) => filters.push((plugin.name(), filter)),
                PreFilter::Refuse(refusal) => return Err((plugin.name(), refusal)),
            }
        }
        Ok(Self(filters))
    }

    /// The first plugin that refuses the node.
    pub fn run(&self, node: NodeId) -> Result<(), Refused> {
        self.0.iter().try_for_each(|(name, filter)| filter.filter(node).map_err(|refusal| (*name, refusal)))
    }

    pub fn assume(&mut self, node: NodeId, pod: &'a PodInfo, present: bool) {
        self.0.iter_mut().for_each(|(_, filter)| filter.assume(node, pod, present));
    }

    /// Both with the pods nominated to the node and without them: they may come, and they may not.
    pub fn run_with_nominated(&mut self, snapshot: &'a Snapshot, pod: &PodInfo, node: NodeId) -> Result<(), Refused> {
        if !snapshot.has_nominations() {
            return self.run(node);
        }
        let before_us = |other: &&PodInfo| other.priority >= pod.priority && other.uid != pod.uid;
        let nominated = snapshot.nominated_to(&snapshot.node(node).name);
        let nominated: Vec<&PodInfo> = nominated.iter().map(|pod| &**pod).filter(before_us).collect();
        if !nominated.is_empty() {
            nominated.iter().for_each(|pod| self.assume(node, pod, true));
            let outcome = self.run(node);
            nominated.iter().for_each(|pod| self.assume(node, pod, false));
            outcome?;
        }
        self.run(node)
    }

    /// The nodes that all filters leave when they know beforehand, and the plugins that said so.
    fn only(&self) -> (Option<Vec<NodeId>>, Vec<&'static str>) {
        let mut left: Option<Vec<NodeId>> = None;
        let mut plugins = Vec::new();
        for (name, filter) in &self.0 {
            let Some(only) = filter.only() else { continue };
            plugins.push(*name);
            left = Some(match left {
                Some(left) => left.into_iter().filter(|node| only.contains(node)).collect(),
                None => only,
            });
        }
        (left, plugins)
    }
}

/// What PostFilter plugins get to see.
pub struct Diagnosis<'a> {
    pub snapshot: &'a Snapshot,
    pub pod: &'a PodInfo,
    /// None if PreFilter refused.
    pub filters: Option<Filters<'a>>,
    pub refusals: BTreeMap<NodeId, Refused>,
    pub turn: Turn,
}

/// Where to put a pod.
pub fn decide(
    framework: &Framework,
    snapshot: &Snapshot,
    pod: &PodInfo,
    turn: Turn,
) -> Result<Placement, Unschedulable> {
    if snapshot.nodes().is_empty() {
        let message = "no nodes available to schedule pods".to_owned();
        return Err(Unschedulable { message, refused_by: Vec::new(), nomination: Nomination::Clear });
    }
    let mut filters = match Filters::new(framework, snapshot, pod) {
        Ok(filters) => filters,
        Err((plugin, refusal)) => return Err(refused_by_all(framework, snapshot, pod, turn, plugin, refusal)),
    };
    let (feasible, refusals, next_start) = feasible(snapshot, pod, &mut filters, turn);
    if feasible.is_empty() {
        let diagnosis = Diagnosis { snapshot, pod, filters: Some(filters), refusals, turn };
        return Err(diagnose(framework, diagnosis, None));
    }
    let node = if feasible.len() == 1 { feasible[0] } else { best(framework, snapshot, pod, &feasible, turn) };
    Ok(Placement { node, next_start })
}

fn refused_by_all(
    framework: &Framework,
    snapshot: &Snapshot,
    pod: &PodInfo,
    turn: Turn,
    plugin: &'static str,
    refusal: Refusal,
) -> Unschedulable {
    let refusals = snapshot.nodes().iter().map(|node| (*node, (plugin, refusal.clone()))).collect();
    let message = refusal.reasons.join(", ");
    diagnose(framework, Diagnosis { snapshot, pod, filters: None, refusals, turn }, Some(message))
}

/// How many feasible nodes are enough: all of up to 100, then a share that sinks from a half to a twentieth.
pub fn enough(nodes: usize) -> usize {
    let percent = 50usize.saturating_sub(nodes / 125).max(5);
    if nodes < 100 { nodes } else { (nodes * percent / 100).max(100) }
}

fn feasible<'a>(
    snapshot: &'a Snapshot,
    pod: &PodInfo,
    filters: &mut Filters<'a>,
    turn: Turn,
) -> (Vec<NodeId>, BTreeMap<NodeId, Refused>, usize) {
    let all = snapshot.nodes();
    let mut refusals = BTreeMap::new();
    // The nominated node is tried first and alone: its victims have made way for this very pod.
    if let Some(node) = pod.nominated_node().and_then(|name| snapshot.id(name))
        && filters.run_with_nominated(snapshot, pod, node).is_ok()
    {
        return (vec![node], refusals, turn.start);
    }
    let (only, plugins) = filters.only();
    let candidates = only.as_deref().unwrap_or(all);
    let (wanted, mut found, mut tried) = (enough(candidates.len()), Vec::new(), 0);
    for offset in 0..candidates.len() {
        let node = candidates[(turn.start + offset) % candidates.len()];
        tried += 1;
        match filters.run_with_nominated(snapshot, pod, node) {
            Ok(()) => found.push(node),
            Err(refused) => drop(refusals.insert(node, refused)),
        }
        if found.len() >= wanted {
            break;
        }
    }
    if let (true, Some(only)) = (found.is_empty(), &only) {
        let reason = format!("node(s) didn't satisfy plugin(s) [{}]", plugins.join(" "));
        for node in all.iter().filter(|node| !only.contains(node)) {
            refusals.insert(*node, (plugins[0], Refusal::unresolvable(reason.clone())));
        }
    }
    (found, refusals, (turn.start + tried) % all.len())
}

fn best(framework: &Framework, snapshot: &Snapshot, pod: &PodInfo, nodes: &[NodeId], turn: Turn) -> NodeId {
    let mut totals = vec![0; nodes.len()];
    for plugin in &framework.plugins {
        let Some(score) = plugin.pre_score(snapshot, pod, nodes) else { continue };
        let mut scores: Vec<i64> = nodes.iter().map(|node| score.score(*node)).collect();
        score.normalize(&mut scores);
        for (total, score) in totals.iter_mut().zip(scores) {
            *total += score.clamp(0, MAX_SCORE) * plugin.weight();
        }
    }
    let highest = totals.iter().max().copied().unwrap_or_default();
    let best: Vec<NodeId> =
        nodes.iter().zip(&totals).filter(|(_, total)| **total == highest).map(|(node, _)| *node).collect();
    best[turn.lot % best.len()]
}

fn diagnose(framework: &Framework, mut diagnosis: Diagnosis<'_>, for_all: Option<String>) -> Unschedulable {
    let plugins: BTreeSet<&'static str> = diagnosis.refusals.values().map(|(plugin, _)| *plugin).collect();
    let total = diagnosis.snapshot.nodes().len();
    let reasons = for_all.unwrap_or_else(|| histogram(diagnosis.refusals.values().map(|(_, refusal)| refusal)));
    let mut message = format!("0/{total} nodes are available: {reasons}.");
    let found = framework.plugins.iter().find_map(|plugin| plugin.post_filter(&mut diagnosis)).unwrap_or_default();
    if !found.message.is_empty() {
        message = format!("{message} {}", found.message);
    }
    Unschedulable { message, refused_by: plugins.into_iter().collect(), nomination: found.nomination }
}

/// `1 Insufficient cpu, 2 Too many pods`: how many nodes have each reason, sorted as text.
pub fn histogram<'r>(refusals: impl Iterator<Item = &'r Refusal>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in refusals.flat_map(|refusal| &refusal.reasons) {
        *counts.entry(reason).or_default() += 1;
    }
    let mut lines: Vec<String> = counts.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    lines.sort();
    lines.join(", ")
}
