//! Restart back-off: 10 s doubling to 5 min, forgotten after 10 min of peace.
//!
//! Pure: times are given. One value serves one container, or one image of a pod.

use jiff::{SignedDuration, Timestamp};

pub const INITIAL: SignedDuration = SignedDuration::from_secs(10);
pub const MAXIMUM: SignedDuration = SignedDuration::from_secs(300);

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Backoff {
    entry: Option<(SignedDuration, Timestamp)>,
}

impl Backoff {
    /// When a start may follow a failure at `failed`; `None` when at once.
    pub fn until(&self, failed: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let (delay, updated) = self.entry?;
        let until = failed + delay;
        (!expired(failed, updated) && now < until).then_some(until)
    }

    /// Notes a start that follows a failure at `failed`, and lengthens the next wait.
    pub fn next(&mut self, failed: Timestamp, now: Timestamp) -> SignedDuration {
        let delay = match self.entry {
            Some((delay, updated)) if !expired(failed, updated) => (delay * 2).min(MAXIMUM),
            _ => INITIAL,
        };
        self.entry = Some((delay, now));
        delay
    }

    pub fn delay(&self) -> SignedDuration {
        self.entry.map_or(INITIAL, |(delay, _)| delay)
    }
}

fn expired(failed: Timestamp, updated: Timestamp) -> bool {
    failed.duration_since(updated) > MAXIMUM * 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    #[test]
    fn doubles_to_the_maximum_and_resets() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.until(at(0), at(0)), None, "the first restart is immediate");
        let delays: Vec<i64> = (0..7).map(|_| backoff.next(at(0), at(0)).as_secs()).collect();
        assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(backoff.until(at(0), at(299)), Some(at(300)));
        assert_eq!(backoff.until(at(0), at(300)), None);
        assert_eq!(backoff.until(at(601), at(602)), None, "ten quiet minutes forgive");
        assert_eq!(backoff.next(at(601), at(601)).as_secs(), 10);
    }
}
