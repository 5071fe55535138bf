//! How fast nodes may be given up: one by one in each zone, more slowly where most of a zone is ill, and none at all while
//! no node anywhere is well, since it is then more likely that we are cut off than that all of them died. Pure: nodes
//! and moments go in, permissions come out.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tokio::time::Instant;

/// Nodes per second to give up in a zone.
const RATE: f64 = 0.1;
/// The same in a large zone of which most is ill; of a small one no node is given up then.
const SECONDARY_RATE: f64 = 0.01;
const LARGE: usize = 50;
/// Which part of a zone makes it ill.
const UNHEALTHY: f64 = 0.55;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Normal,
    PartialDisruption,
    FullDisruption,
}

fn state(ready: usize, not_ready: usize) -> State {
    match not_ready as f64 / (ready + not_ready) as f64 {
        _ if ready == 0 && not_ready > 0 => State::FullDisruption,
        part if not_ready > 2 && part >= UNHEALTHY => State::PartialDisruption,
        _ => State::Normal,
    }
}

/// Of a zone, in nodes per second. A zone that is wholly gone is one that really is, as long as another is well.
fn rate(state: State, size: usize) -> f64 {
    match state {
        State::PartialDisruption if size > LARGE => SECONDARY_RATE,
        State::PartialDisruption => 0.0,
        State::Normal | State::FullDisruption => RATE,
    }
}

#[derive(Default)]
pub struct Zones {
    nodes: HashMap<String, Member>,
    zones: BTreeMap<String, Zone>,
}

#[derive(Clone, PartialEq, Eq)]
struct Member {
    zone: String,
    ready: bool,
}

#[derive(Default)]
struct Zone {
    ready: usize,
    not_ready: usize,
    /// When the last node was given up.
    last: Option<Instant>,
}

impl Zone {
    fn state(&self) -> State {
        state(self.ready, self.not_ready)
    }

    fn count(&mut self, ready: bool) -> &mut usize {
        if ready { &mut self.ready } else { &mut self.not_ready }
    }
}

impl Zones {
    /// A node as it is now. Whether nodes may be given up faster or more slowly than before.
    pub fn put(&mut self, node: &str, zone: &str, ready: bool) -> bool {
        self.replace(node, Some(Member { zone: zone.to_owned(), ready }))
    }

    pub fn remove(&mut self, node: &str) -> bool {
        self.replace(node, None)
    }

    fn replace(&mut self, node: &str, member: Option<Member>) -> bool {
        if self.nodes.get(node) == member.as_ref() {
            return false;
        }
        let before = self.rates();
        if let Some(Member { zone, ready }) = self.nodes.remove(node) {
            *self.zones.entry(zone).or_default().count(ready) -= 1;
        }
        if let Some(member) = member {
            *self.zones.entry(member.zone.clone()).or_default().count(member.ready) += 1;
            self.nodes.insert(node.to_owned(), member);
        }
        self.zones.retain(|_, zone| zone.ready + zone.not_ready > 0);
        self.rates() != before
    }

    fn rates(&self) -> Vec<f64> {
        let cut_off = self.is_cut_off();
        let rate = |zone: &Zone| if cut_off { 0.0 } else { rate(zone.state(), zone.ready + zone.not_ready) };
        self.zones.values().map(rate).collect()
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Whether no node of any zone is well.
    pub fn is_cut_off(&self) -> bool {
        self.zones.values().all(|zone| zone.state() == State::FullDisruption)
    }

    /// Asks to give up a node. If not now, how long until the next may be, if ever.
    pub fn give_up(&mut self, node: &str, now: Instant) -> Result<(), Option<Duration>> {
        let cut_off = self.is_cut_off();
        let zone = self.nodes.get(node).and_then(|member| self.zones.get_mut(&member.zone)).ok_or(None)?;
        let rate = rate(zone.state(), zone.ready + zone.not_ready);
        if cut_off || rate == 0.0 {
            return Err(None);
        }
        let pause = Duration::from_secs_f64(1.0 / rate);
        match zone.last.map(|last| pause.saturating_sub(now.saturating_duration_since(last))) {
            Some(left) if !left.is_zero() => Err(Some(left)),
            _ => {
                zone.last = Some(now);
                Ok(())
            }
        }
    }

    pub fn well(&self) -> impl Iterator<Item = &String> {
        self.nodes.iter().filter(|(_, member)| member.ready).map(|(node, _)| node)
    }

    /// Nodes that are not well.
    pub fn ill(&self) -> impl Iterator<Item = &String> {
        self.nodes.iter().filter(|(_, member)| !member.ready).map(|(node, _)| node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use State::{FullDisruption, Normal, PartialDisruption};

    #[test]
    fn states_and_rates() {
        for (ready, not_ready, expected, pace) in [
            (3, 0, Normal, 0.1),
            (1, 1, Normal, 0.1),
            (1, 2, Normal, 0.1), // too few to tell
            (0, 1, FullDisruption, 0.1),
            (2, 3, PartialDisruption, 0.0),
            (9, 11, PartialDisruption, 0.0),
            (10, 10, Normal, 0.1),
            (22, 28, PartialDisruption, 0.0),
            (22, 29, PartialDisruption, 0.01),
            (0, 60, FullDisruption, 0.1),
        ] {
            assert_eq!(state(ready, not_ready), expected, "{ready} ready, {not_ready} not");
            assert_eq!(rate(expected, ready + not_ready), pace, "{ready} ready, {not_ready} not");
        }
    }

    #[test]
    fn zones_give_up_nodes_one_by_one_and_none_when_all_is_dark() {
        let (mut zones, start) = (Zones::default(), Instant::now());
        let at = |second| start + Duration::from_secs(second);
        let seconds = |outcome: Result<(), Option<Duration>>| outcome.map_err(|wait| wait.map(|wait| wait.as_secs()));
        assert!(zones.put("a1", "a", false) && zones.is_cut_off());
        assert_eq!(zones.give_up("a1", at(0)), Err(None));
        assert!(zones.put("b1", "b", true) && !zones.put("b1", "b", true) && !zones.is_cut_off());
        zones.put("a2", "a", false);
        assert_eq!(zones.give_up("a1", at(0)), Ok(()));
        assert_eq!(seconds(zones.give_up("a2", at(4))), Err(Some(6)));
        assert_eq!(zones.give_up("a2", at(10)), Ok(()));
        zones.put("b2", "b", false);
        assert_eq!(zones.give_up("b2", at(10)), Ok(()), "each zone at its own pace");
        assert!(!zones.put("a1", "a", true), "a zone that was wholly gone goes at the same pace");
        assert!(!zones.remove("b1") && !zones.is_cut_off());
        let mut ill: Vec<_> = zones.ill().cloned().collect();
        ill.sort();
        assert_eq!(ill, ["a2", "b2"]);
        zones.put("a1", "a", false);
        assert!(zones.is_cut_off());
    }

    #[test]
    fn a_large_zone_that_is_mostly_ill_is_given_up_slowly() {
        let (mut zones, now) = (Zones::default(), Instant::now());
        for number in 0..60 {
            zones.put(&number.to_string(), "z", number < 20);
        }
        assert_eq!(zones.give_up("30", now), Ok(()));
        assert_eq!(zones.give_up("31", now), Err(Some(Duration::from_secs(100))));
        for number in 40..60 {
            zones.remove(&number.to_string());
        }
        assert_eq!(zones.give_up("31", now), Err(Some(Duration::from_secs(10))), "half of forty is well");
    }
}
