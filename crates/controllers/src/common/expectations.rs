//! What a controller has asked for and not yet seen: creations by count, deletions by uid. While something is expected
//! the cache is behind, and acting on it would create or delete twice. Expectations lapse after five minutes, in case an
//! event never comes.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

const LAPSE: Duration = Duration::from_secs(5 * 60);

#[derive(Default)]
pub struct Expectations {
    by_key: Mutex<HashMap<String, Expected>>,
}

struct Expected {
    creations: usize,
    deletions: HashSet<String>,
    since: Instant,
}

impl Expectations {
    /// Whether everything expected of this key has been seen (or nothing was).
    pub fn satisfied(&self, key: &str) -> bool {
        let by_key = self.by_key.lock();
        by_key.get(key).is_none_or(|expected| {
            (expected.creations == 0 && expected.deletions.is_empty()) || expected.since.elapsed() > LAPSE
        })
    }

    pub fn expect_creations(&self, key: &str, creations: usize) {
        let expected = Expected { creations, deletions: HashSet::new(), since: Instant::now() };
        self.by_key.lock().insert(key.to_owned(), expected);
    }

    pub fn expect_deletions(&self, key: &str, uids: impl IntoIterator<Item = String>) {
        let expected = Expected { creations: 0, deletions: uids.into_iter().collect(), since: Instant::now() };
        self.by_key.lock().insert(key.to_owned(), expected);
    }

    /// One creation was seen, or will never be.
    pub fn created(&self, key: &str) {
        if let Some(expected) = self.by_key.lock().get_mut(key) {
            expected.creations = expected.creations.saturating_sub(1);
        }
    }

    /// A deletion was seen, or will never be.
    pub fn deleted(&self, key: &str, uid: &str) {
        if let Some(expected) = self.by_key.lock().get_mut(key) {
            expected.deletions.remove(uid);
        }
    }

    pub fn forget(&self, key: &str) {
        self.by_key.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_expected_must_be_seen() {
        let expectations = Expectations::default();
        assert!(expectations.satisfied("a"));
        expectations.expect_creations("a", 2);
        expectations.created("a");
        assert!(!expectations.satisfied("a") && expectations.satisfied("b"));
        expectations.created("a");
        assert!(expectations.satisfied("a"));
        expectations.expect_deletions("a", ["x".into(), "y".into()]);
        expectations.deleted("a", "x");
        expectations.deleted("a", "x");
        assert!(!expectations.satisfied("a"), "the same deletion seen twice counts once");
        expectations.deleted("a", "y");
        assert!(expectations.satisfied("a"));
    }
}
