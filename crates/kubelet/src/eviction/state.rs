//! Which thresholds are to be acted on, and which conditions the node has, over time.
//!
//! Pure. A soft threshold waits for its grace period, one that was met stays so until its minimum
//! reclaim is there too, and a condition outlives its cause by the transition period: otherwise a
//! node at the edge would take and evict pods in turns.

use super::signals::Levels;
use super::threshold::{Eviction, Signal, Threshold};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use std::time::Duration;

/// A node condition, in the order in which they are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    Memory,
    Disk,
    Pid,
}

impl Pressure {
    pub fn of(signal: Signal) -> Pressure {
        match signal {
            Signal::MemoryAvailable => Pressure::Memory,
            Signal::PidAvailable => Pressure::Pid,
            _ => Pressure::Disk,
        }
    }

    pub fn condition(self) -> &'static str {
        match self {
            Pressure::Memory => "MemoryPressure",
            Pressure::Disk => "DiskPressure",
            Pressure::Pid => "PIDPressure",
        }
    }
}

#[derive(Debug, Default)]
pub struct State {
    /// Met thresholds, by their place in the settings, and since when.
    met: BTreeMap<usize, Timestamp>,
    /// When each condition was last seen.
    seen: BTreeMap<Pressure, Timestamp>,
}

impl State {
    /// Takes a measurement in and returns the thresholds whose grace is over, memory first.
    pub fn observe<'a>(&mut self, eviction: &'a Eviction, levels: &Levels, now: Timestamp) -> Vec<&'a Threshold> {
        let thresholds = eviction.thresholds.iter().enumerate();
        let met = thresholds.filter(|(place, threshold)| threshold.is_met(levels, self.met.contains_key(place)));
        self.met = met.map(|(place, _)| (place, self.met.get(&place).copied().unwrap_or(now))).collect();
        for place in self.met.keys() {
            self.seen.insert(Pressure::of(eviction.thresholds[*place].signal), now);
        }
        self.seen.retain(|_, seen| now.duration_since(*seen) <= signed(eviction.transition));
        let ripe = self.met.iter().map(|(place, since)| (&eviction.thresholds[*place], since));
        let ripe = ripe.filter(|(threshold, since)| now.duration_since(**since) >= signed(threshold.grace));
        let mut ripe: Vec<&Threshold> = ripe.map(|(threshold, _)| threshold).collect();
        ripe.sort_by_key(|threshold| threshold.signal != Signal::MemoryAvailable);
        ripe
    }

    pub fn pressures(&self) -> Vec<Pressure> {
        self.seen.keys().copied().collect()
    }
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eviction::signals::Level;
    use crate::eviction::threshold::Flags;

    #[test]
    fn thresholds_ripen_and_conditions_linger() {
        let eviction = Eviction::parse(&Flags {
            hard: "nodefs.available<100,memory.available<10",
            soft: "memory.available<50",
            soft_grace_period: "memory.available=30s",
            minimum_reclaim: "nodefs.available=20",
            pressure_transition_period: "60s",
            max_pod_grace_period: 7,
        })
        .unwrap();
        let mut state = State::default();
        let mut at = |second: i64, disk: u64, memory: u64| {
            let level = |available| Level { available, capacity: 1000 };
            let levels =
                Levels::from([(Signal::NodefsAvailable, level(disk)), (Signal::MemoryAvailable, level(memory))]);
            let ripe = state.observe(&eviction, &levels, Timestamp::from_second(second).unwrap());
            let ripe: Vec<String> = ripe.iter().map(|t| format!("{} {}", t.signal, t.is_hard())).collect();
            (ripe.join(", "), state.pressures())
        };
        use Pressure::{Disk, Memory};
        let told = |ripe: &str, pressures: &[Pressure]| (ripe.to_owned(), pressures.to_vec());
        assert_eq!(at(0, 500, 500), told("", &[]));
        assert_eq!(at(10, 99, 500), told("nodefs.available true", &[Disk]));
        assert_eq!(at(20, 110, 500), told("nodefs.available true", &[Disk]), "20 more must be reclaimed");
        assert_eq!(at(30, 120, 500), told("", &[Disk]), "the condition lingers");
        assert_eq!(at(81, 120, 49), told("", &[Memory]), "the soft threshold is not ripe");
        assert_eq!(at(111, 120, 49), told("memory.available false", &[Memory]));
        assert_eq!(
            at(112, 90, 9),
            told("memory.available true, memory.available false, nodefs.available true", &[Memory, Disk])
        );
    }
}
