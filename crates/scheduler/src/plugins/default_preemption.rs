//! DefaultPreemption: which pods of lower priority would have to go, and from which node, for a pod to fit. It only says
//! so; the scheduler deletes them and remembers the nomination.

use std::cmp::Reverse;
use std::sync::Arc;

use jiff::Timestamp;

use crate::affinity::selector;
use crate::decide::{Diagnosis, histogram};
use crate::framework::{Nomination, Plugin, PostFilter, Refusal};
use crate::pod::PodInfo;
use crate::snapshot::{NodeId, Snapshot};

pub struct DefaultPreemption;

/// Candidates looked for: a tenth of the nodes, but at least this many.
const CANDIDATES: usize = 100;

impl Plugin for DefaultPreemption {
    fn name(&self) -> &'static str {
        "DefaultPreemption"
    }

    fn post_filter(&self, diagnosis: &mut Diagnosis<'_>) -> Option<PostFilter> {
        if let Some(reason) = ineligible(diagnosis) {
            return Some(PostFilter { message: format!("preemption: {reason}"), nomination: Nomination::Keep });
        }
        let (candidates, refusals) = candidates(diagnosis);
        let Some(best) = candidates.into_iter().min_by_key(Candidate::cost) else {
            let (total, reasons) = (diagnosis.snapshot.nodes().len(), histogram(refusals.iter()));
            let message = format!("preemption: 0/{total} nodes are available: {reasons}.");
            return Some(PostFilter { message, nomination: Nomination::Clear });
        };
        let nomination = Nomination::Set { node: best.node, victims: best.victims.into_iter().cloned().collect() };
        Some(PostFilter { message: String::new(), nomination })
    }
}

fn ineligible(diagnosis: &Diagnosis<'_>) -> Option<&'static str> {
    let Diagnosis { snapshot, pod, refusals, .. } = diagnosis;
    if pod.spec().preemption_policy.as_deref() == Some("Never") {
        return Some("not eligible due to preemptionPolicy=Never.");
    }
    let nominated = pod.nominated_node().and_then(|name| snapshot.id(name))?;
    let hopeless = refusals.get(&nominated).is_some_and(|(_, refusal)| refusal.unresolvable);
    let makes_way = |other: &Arc<PodInfo>| other.priority < pod.priority && is_preempted(other);
    let waiting = !hopeless && snapshot.node(nominated).pods.iter().any(makes_way);
    waiting.then_some("not eligible due to a terminating pod on the nominated node.")
}

/// Whether a pod is being deleted because of preemption.
fn is_preempted(pod: &PodInfo) -> bool {
    let conditions = pod.object.status.as_ref().and_then(|status| status.conditions.as_deref());
    let target = conditions.unwrap_or_default().iter().find(|condition| condition.type_ == "DisruptionTarget");
    pod.class.terminating && target.is_some_and(|found| found.reason.as_deref() == Some("PreemptionByScheduler"))
}

struct Candidate<'a> {
    node: NodeId,
    victims: Vec<&'a Arc<PodInfo>>,
    /// How many victims a disruption budget would protect.
    violations: usize,
}

type Cost = (usize, i64, i64, usize, Reverse<Timestamp>);

impl Candidate<'_> {
    /// Fewest violations, then the least important victims, then the fewest, then the youngest.
    fn cost(&self) -> Cost {
        let highest = self.victims.iter().map(|pod| i64::from(pod.priority)).max().unwrap_or(i64::MIN);
        let sum = self.victims.iter().map(|pod| i64::from(pod.priority) - i64::from(i32::MIN)).sum();
        let most_important = self.victims.iter().filter(|pod| i64::from(pod.priority) == highest);
        let earliest = most_important.map(|pod| started(pod)).min().unwrap_or(Timestamp::MAX);
        (self.violations, highest, sum, self.victims.len(), Reverse(earliest))
    }
}

/// Of a pod that has not started: the end of time.
fn started(pod: &PodInfo) -> Timestamp {
    let status = pod.object.status.as_ref();
    status.and_then(|status| status.start_time.as_ref()).map_or(Timestamp::MAX, |time| time.0)
}

fn candidates<'a>(diagnosis: &mut Diagnosis<'a>) -> (Vec<Candidate<'a>>, Vec<Refusal>) {
    let helpless = Refusal::unresolvable("Preemption is not helpful for scheduling");
    let hopeful = diagnosis.refusals.iter().filter(|(_, (_, refusal))| !refusal.unresolvable);
    let hopeful: Vec<NodeId> = hopeful.map(|(node, _)| *node).collect();
    let mut refusals = vec![helpless; diagnosis.refusals.len() - hopeful.len()];
    let wanted = (diagnosis.snapshot.nodes().len() / 10).max(CANDIDATES);
    let mut found = Vec::new();
    for offset in 0..hopeful.len() {
        let node = hopeful[(diagnosis.turn.start + offset) % hopeful.len()];
        match victims(diagnosis, node) {
            Ok(candidate) => found.push(candidate),
            Err(refusal) => refusals.push(refusal),
        }
        if found.len() >= wanted {
            break;
        }
    }
    (found, refusals)
}

/// The fewest pods whose removal lets the pod fit: all less important ones go, then as many as can come back.
fn victims<'a>(diagnosis: &mut Diagnosis<'a>, node: NodeId) -> Result<Candidate<'a>, Refusal> {
    let (snapshot, pod) = (diagnosis.snapshot, diagnosis.pod);
    let lower = snapshot.node(node).pods.iter().filter(|other| other.priority < pod.priority);
    let mut lower: Vec<&'a Arc<PodInfo>> = lower.collect();
    let none = || Refusal::unresolvable("No preemption victims found for incoming pod");
    let filters = diagnosis.filters.as_mut().filter(|_| !lower.is_empty()).ok_or_else(none)?;
    lower.sort_by_key(|pod| (Reverse(pod.priority), started(pod)));
    lower.iter().for_each(|pod| filters.assume(node, pod, false));
    let mut victims = Vec::new();
    let mut violations = 0;
    let outcome = filters.run_with_nominated(snapshot, pod, node);
    if outcome.is_ok() {
        let (protected, free) = split_by_budgets(snapshot, &lower);
        for (is_protected, pods) in [(true, protected), (false, free)] {
            for other in pods {
                filters.assume(node, other, true);
                if filters.run_with_nominated(snapshot, pod, node).is_err() {
                    filters.assume(node, other, false);
                    violations += usize::from(is_protected);
                    victims.push(other);
                }
            }
        }
    }
    let away = if outcome.is_ok() { &victims } else { &lower };
    away.iter().for_each(|other| filters.assume(node, other, true));
    outcome.map_err(|(_, refusal)| refusal)?;
    Ok(Candidate { node, victims, violations })
}

/// The pods whose removal would break a disruption budget, and the others; both in the given order.
fn split_by_budgets<'a>(
    snapshot: &Snapshot,
    pods: &[&'a Arc<PodInfo>],
) -> (Vec<&'a Arc<PodInfo>>, Vec<&'a Arc<PodInfo>>) {
    let budgets = snapshot.budgets.values().map(|budget| {
        let allowed = budget.status.as_ref().and_then(|status| status.disruptions_allowed).unwrap_or_default();
        let chosen = selector(budget.spec.as_ref().and_then(|spec| spec.selector.as_ref()));
        (budget, chosen, allowed)
    });
    let mut budgets: Vec<_> = budgets.filter(|(_, chosen, _)| !chosen.is_everything()).collect();
    pods.iter().partition(|pod| {
        let mut breaks = false;
        for (budget, chosen, allowed) in &mut budgets {
            let disrupted = budget.status.as_ref().and_then(|status| status.disrupted_pods.as_ref());
            let counted = disrupted.is_some_and(|disrupted| disrupted.contains_key(pod.name()));
            let here = budget.metadata.namespace.as_deref() == Some(pod.namespace());
            if here && !counted && chosen.matches_map(&pod.class.labels) {
                *allowed -= 1;
                breaks |= *allowed < 0;
            }
        }
        breaks
    })
}
