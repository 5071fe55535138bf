//! Decides how far history may be dropped. Pure: it is told the time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::Revision;

/// Samples per retention period: the precision of "five minutes".
const SAMPLES: u32 = 10;

pub struct Retention {
    keep: Option<Duration>,
    max_revisions: Revision,
    /// At that instant the store was at that revision.
    samples: VecDeque<(Instant, Revision)>,
}

impl Retention {
    pub fn new(keep: Option<Duration>, max_revisions: Revision) -> Self {
        Retention { keep, max_revisions, samples: VecDeque::new() }
    }

    /// Notes that the store is at `current`; the revision to compact to, if any.
    pub fn advance(&mut self, now: Instant, current: Revision, oldest: Revision) -> Option<Revision> {
        // Dropping a little every time costs more than dropping much now and then.
        let excess = current - oldest.max(1) > self.max_revisions + self.max_revisions / 8;
        let mut target = if excess { current - self.max_revisions } else { 0 };
        if let Some(keep) = self.keep {
            let due = self.samples.partition_point(|(time, _)| now.duration_since(*time) >= keep);
            for (_, revision) in self.samples.drain(..due) {
                target = target.max(revision);
            }
            let last = self.samples.back();
            if last.is_none_or(|&(time, revision)| revision != current && now.duration_since(time) >= keep / SAMPLES) {
                self.samples.push_back((now, current));
            }
        }
        (target > oldest.max(1)).then_some(target)
    }

    /// When to ask again though nothing happens.
    pub fn next(&self) -> Option<Instant> {
        let (time, _) = self.samples.front()?;
        Some(*time + self.keep?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_older_than_the_period_goes() {
        let minute = Duration::from_secs(60);
        let start = Instant::now();
        let mut retention = Retention::new(Some(10 * minute), 1_000_000);
        for n in 0..10 {
            assert_eq!(retention.advance(start + n * minute, 100 + i64::from(n), 0), None);
        }
        assert_eq!(retention.next(), Some(start + 10 * minute));
        assert_eq!(retention.advance(start + 12 * minute, 200, 0), Some(102));
        assert_eq!(retention.advance(start + 12 * minute, 200, 102), None);
        // Idle since: everything but the present goes, once.
        assert_eq!(retention.advance(start + 60 * minute, 200, 102), Some(200));
        assert_eq!(retention.advance(start + 90 * minute, 200, 200), None);
    }

    #[test]
    fn history_is_bounded_in_revisions() {
        let now = Instant::now();
        let mut retention = Retention::new(None, 800);
        assert_eq!(retention.advance(now, 900, 0), None);
        assert_eq!(retention.advance(now, 902, 0), Some(102));
        assert_eq!(retention.advance(now, 902, 102), None);
        assert_eq!(retention.next(), None);
    }
}
