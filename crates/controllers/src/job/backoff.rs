//! How long a Job waits before it replaces failed pods: ten seconds, doubled with each failure since the last success,
//! ten minutes at most. Pure.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

const BASE: Duration = Duration::from_secs(10);
const MAX: Duration = Duration::from_secs(600);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
    last_failure: Option<Timestamp>,
}

impl Backoff {
    /// With pods that have ended since.
    pub fn after(mut self, succeeded: &[Arc<Pod>], failed: &[Arc<Pod>], now: Timestamp) -> Self {
        let success = succeeded.iter().map(|pod| ended(pod, now)).max();
        if success.is_some_and(|success| self.last_failure.is_none_or(|failure| failure <= success)) {
            self.failures = 0;
        }
        let failures = failed.iter().map(|pod| ended(pod, now));
        let later: Vec<_> = failures.filter(|failure| success.is_none_or(|success| *failure > success)).collect();
        self.failures += later.len() as u32;
        self.last_failure = later.into_iter().chain(self.last_failure).max();
        self
    }

    pub fn remaining(self, now: Timestamp) -> Duration {
        self.last_failure.map_or(Duration::ZERO, |since| remaining(self.failures, since, now))
    }
}

/// What is left of the wait after so many failures, the last of them at `since`.
fn remaining(failures: u32, since: Timestamp, now: Timestamp) -> Duration {
    if failures == 0 {
        return Duration::ZERO;
    }
    let wait = BASE.saturating_mul(1_u32.checked_shl(failures - 1).unwrap_or(u32::MAX)).min(MAX);
    wait.saturating_sub(Duration::try_from(now.duration_since(since)).unwrap_or_default())
}

/// What is left of the wait before a failed pod's index gets another.
pub fn of_index(pod: &Pod, failures: i32, now: Timestamp) -> Duration {
    remaining(failures.unsigned_abs(), ended(pod, now), now)
}

/// When the last container ended, or the pod was deleted, or else stopped being ready.
fn ended(pod: &Pod, now: Timestamp) -> Timestamp {
    let containers = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let finished =
        containers.filter_map(|container| container.state.as_ref()?.terminated.as_ref()?.finished_at.clone());
    let ready = || {
        let ready = crate::common::pods::condition(pod, "Ready").filter(|ready| ready.status == "False")?;
        ready.last_transition_time.clone()
    };
    let time = finished.max().or_else(|| pod.metadata.deletion_timestamp.clone()).or_else(ready);
    time.map_or(now, |time| time.0).min(now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn waits_double_until_a_success() {
        let at = |second: i64| Timestamp::from_second(1_700_000_000 + second).unwrap();
        let ended = |second: i64| -> Arc<Pod> {
            let state = json!({"terminated": {"exitCode": 1, "finishedAt": at(second).to_string()}});
            Arc::new(
                serde_json::from_value(json!({"metadata": {}, "status": {"containerStatuses": [
                {"name": "c", "state": state}]}}))
                .unwrap(),
            )
        };
        let fresh = Backoff::default();
        assert_eq!(fresh.remaining(at(0)), Duration::ZERO);
        let once = fresh.after(&[], &[ended(0)], at(0));
        assert_eq!((once.remaining(at(3)), once.remaining(at(10))), (Duration::from_secs(7), Duration::ZERO));
        let thrice = once.after(&[], &[ended(20), ended(21)], at(21));
        assert_eq!(thrice.remaining(at(21)), Duration::from_secs(40));
        assert_eq!(thrice.after(&[ended(30)], &[], at(30)).remaining(at(30)), Duration::ZERO);
        assert_eq!(thrice.after(&[ended(30)], &[ended(31)], at(31)).remaining(at(31)), BASE);
        assert_eq!(fresh.after(&[], &vec![ended(0); 40], at(0)).remaining(at(0)), MAX);
    }
}
