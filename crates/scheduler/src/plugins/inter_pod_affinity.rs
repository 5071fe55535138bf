//! InterPodAffinity: pods near or far from other pods, as both the pod and the pods already there demand.
//!
//! Everything is counted per topology pair (a label key and its value), from classes of pods instead of pods.

use std::collections::HashMap;

use crate::affinity::PodTerm;
use crate::framework::{ClusterEvent, Filter, Filtered, MAX_SCORE, Plugin, PreFilter, Refusal, Score};
use crate::pod::{Class, PodInfo};
use crate::snapshot::{NodeId, Snapshot};

/// How much a required affinity of a pod already there attracts the pods it names.
const HARD_AFFINITY_WEIGHT: i64 = 1;

pub struct InterPodAffinity;

/// Numbers by topology key and, within it, by value.
type Pairs<'a> = HashMap<&'a str, HashMap<&'a str, i64>>;

fn add<'a>(pairs: &mut Pairs<'a>, snapshot: &'a Snapshot, node: NodeId, key: &'a str, number: i64) {
    if let Some(value) = snapshot.node(node).label(key) {
        *pairs.entry(key).or_default().entry(value).or_default() += number;
    }
}

fn of_node(pairs: &Pairs<'_>, snapshot: &Snapshot, node: NodeId, key: &str) -> i64 {
    let values = pairs.get(key).zip(snapshot.node(node).label(key));
    values.and_then(|(values, value)| values.get(value)).copied().unwrap_or_default()
}

fn names(term: &PodTerm, snapshot: &Snapshot, class: &Class) -> bool {
    term.matches(&class.namespace, snapshot.namespace_labels(&class.namespace), &class.labels)
}

struct State<'a> {
    snapshot: &'a Snapshot,
    pod: &'a PodInfo,
    /// Pods that all our affinity terms name.
    near: Pairs<'a>,
    /// Pods that one of our anti-affinity terms names.
    far: Pairs<'a>,
    /// Pods whose anti-affinity names us.
    hostile: Pairs<'a>,
}

impl<'a> State<'a> {
    fn new(snapshot: &'a Snapshot, pod: &'a PodInfo) -> Self {
        let (near, far, hostile) = Default::default();
        let mut state = Self { snapshot, pod, near, far, hostile };
        let demands = &pod.class.demands;
        if !demands.near.is_empty() || !demands.far.is_empty() {
            for (class, counts) in snapshot.classes() {
                state.count_named(class, counts.iter().map(|(node, count)| (*node, *count)));
            }
        }
        for (class, counts) in snapshot.demanding() {
            state.count_hostile(class, counts.iter().map(|(node, count)| (*node, *count)));
        }
        state
    }

    fn count_named(&mut self, class: &Class, counts: impl Iterator<Item = (NodeId, i64)> + Clone) {
        let (snapshot, demands) = (self.snapshot, &self.pod.class.demands);
        if !demands.near.is_empty() && demands.near.iter().all(|term| names(term, snapshot, class)) {
            for term in &demands.near {
                counts.clone().for_each(|(node, count)| add(&mut self.near, snapshot, node, &term.topology_key, count));
            }
        }
        for term in demands.far.iter().filter(|term| names(term, snapshot, class)) {
            counts.clone().for_each(|(node, count)| add(&mut self.far, snapshot, node, &term.topology_key, count));
        }
    }

    fn count_hostile(&mut self, class: &'a Class, counts: impl Iterator<Item = (NodeId, i64)> + Clone) {
        let snapshot = self.snapshot;
        for term in class.demands.far.iter().filter(|term| names(term, snapshot, &self.pod.class)) {
            counts.clone().for_each(|(node, count)| add(&mut self.hostile, snapshot, node, &term.topology_key, count));
        }
    }

    /// Whether the pod would be the first of a group that wants to be near itself.
    fn is_first_of_its_kind(&self) -> bool {
        let terms = &self.pod.class.demands.near;
        let nobody = self.near.values().flat_map(HashMap::values).all(|count| *count == 0);
        nobody && terms.iter().all(|term| names(term, self.snapshot, &self.pod.class))
    }
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn weight(&self) -> i64 {
        2
    }

    fn pre_filter<'a>(&self, snapshot: &'a Snapshot, pod: &'a PodInfo) -> PreFilter<'a> {
        let demands = &pod.class.demands;
        let state = State::new(snapshot, pod);
        if demands.near.is_empty() && demands.far.is_empty() && state.hostile.is_empty() && !snapshot.has_nominations()
        {
            return PreFilter::Skip;
        }
        PreFilter::Use(Box::new(state))
    }

    fn pre_score<'a>(&self, snapshot: &'a Snapshot, pod: &'a PodInfo, _: &[NodeId]) -> Option<Box<dyn Score + 'a>> {
        let mut pairs = Pairs::new();
        let demands = &pod.class.demands;
        if !demands.prefer_near.is_empty() || !demands.prefer_far.is_empty() {
            for (class, counts) in snapshot.classes() {
                let near = demands.prefer_near.iter().map(|term| (term, term.weight));
                let far = demands.prefer_far.iter().map(|term| (term, -term.weight));
                for (term, weight) in near.chain(far).filter(|(term, _)| names(term, snapshot, class)) {
                    counts
                        .iter()
                        .for_each(|(node, n)| add(&mut pairs, snapshot, *node, &term.topology_key, weight * n));
                }
            }
        }
        for (class, counts) in snapshot.demanding() {
            let theirs = &class.demands;
            let required = theirs.near.iter().map(|term| (term, HARD_AFFINITY_WEIGHT));
            let near = theirs.prefer_near.iter().map(|term| (term, term.weight));
            let far = theirs.prefer_far.iter().map(|term| (term, -term.weight));
            let terms = required.chain(near).chain(far);
            for (term, weight) in terms.filter(|(term, _)| names(term, snapshot, &pod.class)) {
                counts.iter().for_each(|(node, n)| add(&mut pairs, snapshot, *node, &term.topology_key, weight * n));
            }
        }
        (!pairs.is_empty()).then(|| Box::new(Preference { snapshot, pairs }) as Box<dyn Score>)
    }

    fn hint(&self, event: ClusterEvent<'_>, _: &PodInfo) -> bool {
        match event {
            ClusterEvent::Node { old, new } => old.is_none_or(|old| old.metadata.labels != new.metadata.labels),
            ClusterEvent::PodPlaced { .. } | ClusterEvent::PodGone(_) => true,
            _ => false,
        }
    }
}

impl<'a> Filter<'a> for State<'a> {
    fn filter(&self, node: NodeId) -> Filtered {
        let (snapshot, demands) = (self.snapshot, &self.pod.class.demands);
        let lacks_key = |term: &PodTerm| snapshot.node(node).label(&term.topology_key).is_none();
        let alone = |term: &PodTerm| of_node(&self.near, snapshot, node, &term.topology_key) <= 0;
        if demands.near.iter().any(lacks_key) || demands.near.iter().any(alone) && !self.is_first_of_its_kind() {
            return Err(Refusal::unresolvable("node(s) didn't match pod affinity rules"));
        }
        let crowded = |term: &PodTerm| of_node(&self.far, snapshot, node, &term.topology_key) > 0;
        if demands.far.iter().any(crowded) {
            return Err(Refusal::new("node(s) didn't match pod anti-affinity rules"));
        }
        if self.hostile.keys().any(|key| of_node(&self.hostile, snapshot, node, key) > 0) {
            return Err(Refusal::new("node(s) didn't satisfy existing pods anti-affinity rules"));
        }
        Ok(())
    }

    fn assume(&mut self, node: NodeId, pod: &'a PodInfo, present: bool) {
        let count = std::iter::once((node, if present { 1 } else { -1 }));
        self.count_named(&pod.class, count.clone());
        self.count_hostile(&pod.class, count);
    }
}

struct Preference<'a> {
    snapshot: &'a Snapshot,
    pairs: Pairs<'a>,
}

impl Score for Preference<'_> {
    fn score(&self, node: NodeId) -> i64 {
        self.pairs.keys().map(|key| of_node(&self.pairs, self.snapshot, node, key)).sum()
    }

    fn normalize(&self, scores: &mut [i64]) {
        let least = scores.iter().min().copied().unwrap_or_default();
        let range = scores.iter().max().copied().unwrap_or_default() - least;
        for score in scores {
            *score = if range == 0 { 0 } else { MAX_SCORE * (*score - least) / range };
        }
    }
}
