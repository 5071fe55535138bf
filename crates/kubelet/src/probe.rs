//! Probes: thresholds, results, and the task that runs one probe of one container.
//!
//! [`Tracker`] and [`Results`] are pure. How a check reaches the container is `check`'s business;
//! what follows from a result is the planner's.

use crate::check::{self, Outcome};
use k8s_openapi::api::core::v1::{Container, Probe};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeKind {
    Startup,
    Liveness,
    Readiness,
}

impl ProbeKind {
    pub const ALL: [ProbeKind; 3] = [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness];

    pub fn as_str(self) -> &'static str {
        match self {
            ProbeKind::Startup => "Startup",
            ProbeKind::Liveness => "Liveness",
            ProbeKind::Readiness => "Readiness",
        }
    }

    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            ProbeKind::Startup => container.startup_probe.as_ref(),
            ProbeKind::Liveness => container.liveness_probe.as_ref(),
            ProbeKind::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

/// The latest verdict of every probe, by container id.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Results(BTreeMap<(String, ProbeKind), bool>);

impl Results {
    pub fn get(&self, id: &str, kind: ProbeKind) -> Option<bool> {
        self.0.get(&(id.to_owned(), kind)).copied()
    }

    /// True if this changed anything.
    pub fn set(&mut self, id: &str, kind: ProbeKind, healthy: bool) -> bool {
        self.0.insert((id.to_owned(), kind), healthy) != Some(healthy)
    }

    pub fn forget(&mut self, id: &str) {
        self.0.retain(|(known, _), _| known != id);
    }

    /// Whether the startup probe has passed, or there is none.
    pub fn started(&self, container: &Container, id: &str) -> bool {
        container.startup_probe.is_none() || self.get(id, ProbeKind::Startup) == Some(true)
    }

    pub fn ready(&self, container: &Container, id: &str) -> bool {
        let passed = container.readiness_probe.is_none() || self.get(id, ProbeKind::Readiness) == Some(true);
        self.started(container, id) && passed
    }
}

/// Counts outcomes against the thresholds.
#[derive(Debug)]
pub struct Tracker {
    success_threshold: u32,
    failure_threshold: u32,
    last: Option<bool>,
    run: u32,
}

impl Tracker {
    pub fn new(probe: &Probe) -> Tracker {
        let positive = |value: Option<i32>, default| value.filter(|&value| value > 0).map_or(default, |v| v as u32);
        Tracker {
            success_threshold: positive(probe.success_threshold, 1),
            failure_threshold: positive(probe.failure_threshold, 3),
            last: None,
            run: 0,
        }
    }

    /// The verdict after one more outcome; `None` while a threshold is not yet reached.
    pub fn observe(&mut self, healthy: bool) -> Option<bool> {
        self.run = if self.last == Some(healthy) { self.run + 1 } else { 1 };
        self.last = Some(healthy);
        let threshold = if healthy { self.success_threshold } else { self.failure_threshold };
        (self.run >= threshold).then_some(healthy)
    }
}

/// What a probe task tells its pod.
#[derive(Debug)]
pub enum Report {
    Verdict(bool),
    /// A check failed or warned: text for an event.
    Unhealthy {
        warning: bool,
        message: String,
    },
}

/// Probes one container until cancelled. `age` is how long it has been running.
pub async fn run(target: check::Target, probe: Probe, kind: ProbeKind, age: Duration, mut report: impl FnMut(Report)) {
    let seconds = |value: Option<i32>, default: u64| value.filter(|&v| v > 0).map_or(default, |v| v as u64);
    let period = Duration::from_secs(seconds(probe.period_seconds, 10));
    let delay = Duration::from_secs(seconds(probe.initial_delay_seconds, 0));
    let timeout = Duration::from_secs(seconds(probe.timeout_seconds, 1));
    tokio::time::sleep(delay.saturating_sub(age)).await;
    let mut tracker = Tracker::new(&probe);
    let mut next = Instant::now();
    loop {
        let outcome = target.check(&probe, timeout).await;
        match &outcome {
            Outcome::Healthy => {}
            Outcome::Warning(text) => {
                report(Report::Unhealthy {
                    warning: true,
                    message: format!("{} probe warning: {text}", kind.as_str()),
                });
            }
            Outcome::Unhealthy(text) => {
                report(Report::Unhealthy {
                    warning: false,
                    message: format!("{} probe failed: {text}", kind.as_str()),
                });
            }
            Outcome::Error(text) => {
                let message = format!("{} probe errored and resulted in unknown state: {text}", kind.as_str());
                report(Report::Unhealthy { warning: false, message });
            }
        }
        // A check that could not be made says nothing about the container.
        let healthy = match outcome {
            Outcome::Healthy | Outcome::Warning(_) => Some(true),
            Outcome::Unhealthy(_) => Some(false),
            Outcome::Error(_) => None,
        };
        if let Some(verdict) = healthy.and_then(|healthy| tracker.observe(healthy)) {
            report(Report::Verdict(verdict));
            if !verdict && kind != ProbeKind::Readiness {
                // It is being killed: nothing it answers now matters.
                return condemn(period, report).await;
            }
        }
        next = (next + period).max(Instant::now());
        tokio::time::sleep_until(next).await;
    }
}

/// Repeats the verdict, since one that finds the pod's inbox full is lost.
async fn condemn(period: Duration, mut report: impl FnMut(Report)) {
    loop {
        tokio::time::sleep(period).await;
        report(Report::Verdict(false));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_count_consecutive_outcomes() {
        let probe = Probe { success_threshold: Some(2), failure_threshold: Some(3), ..Probe::default() };
        let mut tracker = Tracker::new(&probe);
        let verdicts: Vec<Option<bool>> =
            [true, true, false, false, true, false, false, false, false].map(|healthy| tracker.observe(healthy)).into();
        let expected = [None, Some(true), None, None, None, None, None, Some(false), Some(false)];
        assert_eq!(verdicts, expected);
    }

    #[test]
    fn readiness_needs_startup_first() {
        let container = Container {
            startup_probe: Some(Probe::default()),
            readiness_probe: Some(Probe::default()),
            ..Container::default()
        };
        let mut results = Results::default();
        assert!(results.set("id", ProbeKind::Readiness, true));
        assert!(!results.ready(&container, "id"));
        assert!(results.set("id", ProbeKind::Startup, true) && !results.set("id", ProbeKind::Startup, true));
        assert!(results.ready(&container, "id") && !results.ready(&container, "other"));
        assert!(results.ready(&Container::default(), "other"), "no probe is a pass");
    }
}
