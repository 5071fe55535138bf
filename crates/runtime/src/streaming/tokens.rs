//! One-time tokens: whoever holds the URL may open the stream, once and soon.
//!
//! Generic over what a token stands for. The number of open tokens is bounded; the oldest gives way,
//! since its client has most likely gone.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use uuid::Uuid;

/// As many requests as upstream keeps open.
const OPEN: usize = 1000;

pub(super) struct Tokens<R> {
    life: Duration,
    open: Mutex<HashMap<String, (Instant, R)>>,
}

impl<R> Tokens<R> {
    pub(super) fn new(life: Duration) -> Tokens<R> {
        Tokens { life, open: Mutex::default() }
    }

    pub(super) fn issue(&self, request: R, now: Instant) -> String {
        let token = Uuid::new_v4().simple().to_string();
        let mut open = self.open.lock();
        if open.len() >= OPEN {
            open.retain(|_, (until, _)| now < *until);
        }
        if open.len() >= OPEN
            && let Some(oldest) = open.iter().min_by_key(|(_, (until, _))| *until).map(|(token, _)| token.clone())
        {
            open.remove(&oldest);
        }
        open.insert(token.clone(), (now + self.life, request));
        token
    }

    pub(super) fn redeem(&self, token: &str, now: Instant) -> Option<R> {
        let (until, request) = self.open.lock().remove(token)?;
        (now < until).then_some(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(60);

    #[test]
    fn a_token_is_good_once_and_for_its_life() {
        let (tokens, now) = (Tokens::new(LIFE), Instant::now());
        let (first, late) = (tokens.issue(1, now), tokens.issue(2, now));
        assert_ne!(first, late);
        assert_eq!(tokens.redeem(&first, now + LIFE / 2), Some(1));
        assert_eq!(tokens.redeem(&first, now + LIFE / 2), None);
        assert_eq!(tokens.redeem(&late, now + LIFE), None);
    }

    #[test]
    fn the_oldest_gives_way() {
        let (tokens, now) = (Tokens::new(LIFE), Instant::now());
        let oldest = tokens.issue(0, now);
        let rest: Vec<_> = (1..=OPEN).map(|number| tokens.issue(number, now + LIFE / 2)).collect();
        assert_eq!(tokens.redeem(&oldest, now), None);
        assert_eq!(tokens.redeem(&rest[0], now), Some(1));
    }
}
