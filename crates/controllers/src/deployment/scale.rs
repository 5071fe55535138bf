//! How large each replica set of a deployment should be. Pure arithmetic, upstream's rounding.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{DeploymentSpec, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::plan::{DESIRED_REPLICAS, MAX_REPLICAS, View, annotation};

/// How far a rolling update may go above and below the wanted size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub surge: i32,
    pub unavailable: i32,
}

impl Limits {
    /// Percentages of the size: surge rounds up, unavailability down, and one of them is at least one.
    pub fn of(spec: &DeploymentSpec) -> Self {
        let replicas = spec.replicas.unwrap_or(1);
        let strategy = spec.strategy.clone().unwrap_or_default();
        if strategy.type_.as_deref() == Some("Recreate") {
            return Self::default();
        }
        let rolling = strategy.rolling_update.unwrap_or_default();
        let quarter = || IntOrString::String("25%".into());
        let surge = resolve(&rolling.max_surge.unwrap_or_else(quarter), replicas, f64::ceil);
        let unavailable = resolve(&rolling.max_unavailable.unwrap_or_else(quarter), replicas, f64::floor);
        let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
        Self { surge, unavailable: unavailable.min(replicas) }
    }
}

fn resolve(value: &IntOrString, total: i32, round: fn(f64) -> f64) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(percent) => {
            let percent: f64 = percent.trim_end_matches('%').parse().unwrap_or(0.0);
            round(percent * f64::from(total) / 100.0) as i32
        }
    }
}

pub fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().map_or(0, |spec| spec.replicas.unwrap_or(1))
}

/// Pods there are, by the set's own count.
pub fn actual(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |status| status.replicas)
}

pub fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

/// Available pods that stay: a set that has been shrunk may not have said yet that it has fewer.
fn staying(set: &ReplicaSet) -> i32 {
    available(set).min(size(set))
}

/// Pods that there are or may be. A set that has not seen its size yet may be making pods of the one before.
fn occupied(set: &ReplicaSet) -> Option<i32> {
    let observed = set.status.as_ref().and_then(|status| status.observed_generation);
    (observed.unwrap_or(0) >= set.metadata.generation.unwrap_or(0)).then(|| size(set).max(actual(set)))
}

fn total(sets: &[Arc<ReplicaSet>], of: fn(&ReplicaSet) -> i32) -> i32 {
    sets.iter().map(|set| of(set)).sum()
}

/// How large the new set may be now, given its present size.
pub(super) fn new_size(view: &View, present: i32, recreates: bool) -> i32 {
    if recreates || present >= view.replicas {
        return view.replicas;
    }
    // Stricter than upstream, which counts sizes alone and so exceeds the surge while a set's pods are still going.
    let occupied: Option<i32> = view.old.iter().map(|set| occupied(set)).sum();
    let room = occupied.map_or(0, |occupied| view.replicas + view.limits.surge - occupied - present);
    present + room.clamp(0, view.replicas - present)
}

/// Which old sets to shrink, and to what, without dropping below the available pods that must remain: first pods that are
/// not available anyway, then available ones as the new set replaces them.
pub(super) fn shrink_old(view: &View) -> Vec<(Arc<ReplicaSet>, i32)> {
    let all = view.all();
    let minimum = view.replicas - view.limits.unavailable;
    let new_unavailable = view.new.as_ref().map_or(0, |new| size(new) - available(new));
    let budget = total(&all, size) - minimum - new_unavailable;
    if total(&view.old, size) == 0 || budget <= 0 {
        return Vec::new();
    }
    let mut sizes: Vec<i32> = view.old.iter().map(|set| size(set)).collect();
    let mut unhealthy = budget;
    for (set, size) in view.old.iter().zip(&mut sizes) {
        let cut = (*size - available(set)).clamp(0, unhealthy);
        (*size, unhealthy) = (*size - cut, unhealthy - cut);
    }
    let mut healthy = (total(&all, staying) - minimum).max(0);
    for size in &mut sizes {
        let cut = (*size).min(healthy);
        (*size, healthy) = (*size - cut, healthy - cut);
    }
    let changed = view.old.iter().cloned().zip(sizes);
    changed.filter(|(set, new)| size(set) != *new).collect()
}

/// The sizes of the sets of a paused or just scaled deployment: changes are spread in proportion to what each set has.
pub(super) fn proportionally(view: &View) -> Vec<(Arc<ReplicaSet>, i32)> {
    if let Some(only) = active_or_latest(view) {
        return vec![(only, view.replicas)];
    }
    let saturated = view.new.as_ref().is_some_and(|new| {
        annotation(new, DESIRED_REPLICAS) == Some(view.replicas)
            && size(new) == view.replicas
            && available(new) == view.replicas
    });
    let mut active: Vec<_> = view.all().into_iter().filter(|set| size(set) > 0).collect();
    if saturated {
        active.retain(|set| view.new.as_ref().is_none_or(|new| new.metadata.uid != set.metadata.uid));
        return active.into_iter().map(|set| (set, 0)).collect();
    }
    if view.recreates() {
        return Vec::new(); // Recreate has no proportions
    }
    let allowed = if view.replicas > 0 { view.replicas + view.limits.surge } else { 0 };
    spread(view, active, allowed)
}

fn spread(view: &View, mut active: Vec<Arc<ReplicaSet>>, allowed: i32) -> Vec<(Arc<ReplicaSet>, i32)> {
    let add = allowed - total(&active, size);
    let created = |set: &ReplicaSet| set.metadata.creation_timestamp.as_ref().map(|time| time.0);
    // The largest first; of equals the newer grows and the older shrinks first.
    active.sort_by(|a, b| {
        let age = if add > 0 { created(b).cmp(&created(a)) } else { created(a).cmp(&created(b)) };
        size(b).cmp(&size(a)).then(age)
    });
    let mut added = 0;
    let mut sizes: Vec<i32> = active
        .iter()
        .map(|set| {
            let fraction = if add == added { 0 } else { fraction(view, set) };
            let share = if add > 0 { fraction.min(add - added) } else { fraction.max(add - added) };
            added += share;
            size(set) + share
        })
        .collect();
    if let Some(first) = sizes.first_mut() {
        *first = (*first + add - added).max(0);
    }
    active.into_iter().zip(sizes).collect()
}

/// The change of one set if all change alike.
fn fraction(view: &View, set: &ReplicaSet) -> i32 {
    if view.replicas == 0 {
        return -size(set);
    }
    let status = view.deployment.status.as_ref().and_then(|status| status.replicas);
    let before = annotation(set, MAX_REPLICAS).filter(|max| *max > 0).or(status).unwrap_or(0);
    if before == 0 {
        return 0;
    }
    let grown = f64::from(size(set)) * f64::from(view.replicas + view.limits.surge) / f64::from(before);
    grown.round() as i32 - size(set)
}

/// The one set that counts: the only one with a size, or without any, the newest.
fn active_or_latest(view: &View) -> Option<Arc<ReplicaSet>> {
    let mut active = view.all().into_iter().filter(|set| size(set) > 0);
    match (active.next(), active.next()) {
        (None, _) => view.new.clone().or_else(|| view.old.last().cloned()),
        (only, None) => only,
        _ => None,
    }
}
