//! Which leases exist and when each ends; the disk is brought up to date by the caller.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::layout::LeaseRecord;
use crate::LeaseId;

/// After a restart, clients get this long to come back before their lease ends.
const GRACE: Duration = Duration::from_secs(10);

#[derive(Default)]
pub struct Leases {
    leases: HashMap<LeaseId, (Duration, Instant)>,
    ends: BTreeSet<(Instant, LeaseId)>,
    last: LeaseId,
}

impl Leases {
    pub fn load(records: &[LeaseRecord], now: Instant) -> Self {
        let mut leases = Leases::default();
        for record in records {
            let millis = |n: i64| Duration::from_millis(n.max(0) as u64);
            let ttl = millis(record.ttl);
            let left = millis(record.deadline - unix_millis()).clamp(ttl.min(GRACE), ttl);
            leases.set(record.id, ttl, now + left);
        }
        leases
    }

    /// A new lease, with an id that was never used.
    pub fn grant(&mut self, ttl: Duration, now: Instant) -> LeaseRecord {
        let id = (self.last + 1).max(unix_millis() << 12);
        self.set(id, ttl, now + ttl);
        record(id, ttl)
    }

    /// Starts the lease's time anew.
    pub fn keep_alive(&mut self, id: LeaseId, now: Instant) -> Option<LeaseRecord> {
        let (ttl, _) = *self.leases.get(&id)?;
        self.set(id, ttl, now + ttl);
        Some(record(id, ttl))
    }

    pub fn remove(&mut self, id: LeaseId) -> bool {
        let removed = self.leases.remove(&id);
        if let Some((_, end)) = removed {
            self.ends.remove(&(end, id));
        }
        removed.is_some()
    }

    pub fn contains(&self, id: LeaseId) -> bool {
        self.leases.contains_key(&id)
    }

    /// Leases that have ended by `now`.
    pub fn ended(&self, now: Instant) -> Vec<LeaseId> {
        self.ends.iter().take_while(|(end, _)| *end <= now).map(|(_, id)| *id).collect()
    }

    pub fn next_end(&self) -> Option<Instant> {
        self.ends.first().map(|(end, _)| *end)
    }

    fn set(&mut self, id: LeaseId, ttl: Duration, end: Instant) {
        self.remove(id);
        self.leases.insert(id, (ttl, end));
        self.ends.insert((end, id));
        self.last = self.last.max(id);
    }
}

fn record(id: LeaseId, ttl: Duration) -> LeaseRecord {
    let ttl = ttl.as_millis() as i64;
    LeaseRecord { id, ttl, deadline: unix_millis() + ttl }
}

fn unix_millis() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_lease_ends_after_its_last_keep_alive() {
        let start = Instant::now();
        let mut leases = Leases::default();
        let short = leases.grant(2 * SECOND, start).id;
        let long = leases.grant(5 * SECOND, start).id;
        assert_ne!(short, long);
        assert_eq!(leases.next_end(), Some(start + 2 * SECOND));
        assert!(leases.keep_alive(short, start + SECOND).is_some());
        assert!(leases.ended(start + 2 * SECOND).is_empty());
        assert_eq!(leases.ended(start + 3 * SECOND), [short]);
        assert_eq!(leases.ended(start + 9 * SECOND), [short, long]);
        assert!(leases.remove(short) && !leases.remove(short));
        assert!(leases.keep_alive(short, start).is_none());
        assert_eq!(leases.next_end(), Some(start + 5 * SECOND));
    }

    #[test]
    fn a_restart_keeps_what_is_left_within_grace_and_ttl() {
        let now = Instant::now();
        let ends_in = |ttl: i64, left: i64| {
            let deadline = unix_millis() + left;
            let leases = Leases::load(&[LeaseRecord { id: 1, ttl, deadline }], now);
            leases.next_end().unwrap() - now
        };
        assert_eq!(ends_in(60_000, -5), GRACE);
        assert_eq!(ends_in(2_000, -5), 2 * SECOND);
        // A clock that was set back grants no more than a fresh lease.
        assert_eq!(ends_in(60_000, 1 << 40), 60 * SECOND);
        let left = ends_in(60_000, 30_000);
        assert!(left > 25 * SECOND && left <= 30 * SECOND, "{left:?}");
    }
}
