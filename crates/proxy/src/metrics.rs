//! What the proxy measures of itself, under upstream's names, in Prometheus' text format.

use std::fmt::Write;
use std::time::Duration;

use parking_lot::Mutex;

/// Seconds; 1 ms to 16 s.
const SYNC_BOUNDS: &[f64] =
    &[0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384];
const PROGRAMMING_BOUNDS: &[f64] =
    &[0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0];

#[derive(Default)]
pub(crate) struct Metrics(Mutex<Values>);

struct Values {
    sync: Histogram,
    programming: Histogram,
    last_sync: f64,
    failures: u64,
    port_changes: u64,
}

impl Default for Values {
    fn default() -> Self {
        let (sync, programming) = (Histogram::new(SYNC_BOUNDS), Histogram::new(PROGRAMMING_BOUNDS));
        Values { sync, programming, last_sync: 0.0, failures: 0, port_changes: 0 }
    }
}

struct Histogram {
    bounds: &'static [f64],
    counts: Vec<u64>,
    sum: f64,
    count: u64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Histogram {
        Histogram { bounds, counts: vec![0; bounds.len()], sum: 0.0, count: 0 }
    }

    fn observe(&mut self, value: f64) {
        if let Some(bucket) = self.bounds.iter().position(|bound| value <= *bound) {
            self.counts[bucket] += 1;
        }
        self.sum += value;
        self.count += 1;
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        header(out, name, "histogram", help);
        let mut below = 0;
        for (bound, count) in self.bounds.iter().zip(&self.counts) {
            below += count;
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {below}");
        }
        let Histogram { sum, count, .. } = self;
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {sum}\n{name}_count {count}");
    }
}

impl Metrics {
    /// A synchronisation that took so long, at this time in seconds of the epoch.
    pub(crate) fn synced(&self, took: Duration, now: f64, port_changes: usize, failed: bool) {
        let mut values = self.0.lock();
        values.sync.observe(took.as_secs_f64());
        values.port_changes += port_changes as u64;
        if failed {
            values.failures += 1;
        } else {
            values.last_sync = now;
        }
    }

    /// So long after what caused a change of endpoints, packets obey it.
    pub(crate) fn programmed(&self, after: Duration) {
        self.0.lock().programming.observe(after.as_secs_f64());
    }

    pub(crate) fn render(&self) -> String {
        let values = self.0.lock();
        let mut out = String::new();
        values.sync.write(
            &mut out,
            "kubeproxy_sync_proxy_rules_duration_seconds",
            "Time from planning to applied rules, in seconds",
        );
        values.programming.write(
            &mut out,
            "kubeproxy_network_programming_duration_seconds",
            "Time from the change of a pod or Service to applied rules, in seconds",
        );
        for (name, kind, help, value) in [
            (
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                "gauge",
                "When rules were last applied",
                values.last_sync,
            ),
            (
                "kubeproxy_sync_proxy_rules_failures_total",
                "counter",
                "Applications of rules that failed",
                values.failures as f64,
            ),
            (
                "kubeproxy_sync_proxy_rules_port_changes_total",
                "counter",
                "Ports of Services whose rules changed",
                values.port_changes as f64,
            ),
        ] {
            header(&mut out, name, kind, help);
            let _ = writeln!(out, "{name} {value}");
        }
        out
    }
}

fn header(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative() {
        let metrics = Metrics::default();
        for millis in [1, 3, 3, 20_000] {
            metrics.synced(Duration::from_millis(millis), 7.0, 2, millis == 3);
        }
        let text = metrics.render();
        for line in [
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.001\"} 1",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.004\"} 3",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"16.384\"} 3",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"+Inf\"} 4",
            "kubeproxy_sync_proxy_rules_failures_total 2",
            "kubeproxy_sync_proxy_rules_port_changes_total 8",
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds 7",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
