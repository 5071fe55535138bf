//! Prometheus metrics: requests, durations, watches, caches, memory.
//!
//! Labels come from the registry, verbs and codes, so their number is bounded; a path that nobody
//! serves is counted without its name.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use resources::{Facts, registry};

use crate::{cache::Hub, request::RequestInfo};

/// Upper bounds of the duration histogram, in seconds.
const BUCKETS: [f64; 12] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0];

#[derive(Default)]
pub struct Metrics {
    requests: Mutex<BTreeMap<Labels, Count>>,
    watches: Mutex<BTreeMap<&'static str, Arc<AtomicI64>>>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Labels {
    verb: &'static str,
    group: &'static str,
    version: &'static str,
    resource: &'static str,
    subresource: &'static str,
    code: u16,
}

#[derive(Default)]
struct Count {
    total: u64,
    seconds: f64,
    buckets: [u64; BUCKETS.len()],
}

const VERBS: [&str; 10] =
    ["create", "delete", "deletecollection", "get", "list", "patch", "post", "put", "update", "watch"];

impl Metrics {
    pub fn request(&self, info: &RequestInfo, code: u16, took: Duration) {
        let verb = VERBS.iter().find(|verb| **verb == info.verb).copied().unwrap_or("other");
        let facts = registry().by_gvr(&info.group, &info.version, &info.resource).map(|resource| resource.facts());
        let subresource = facts.and_then(|facts| facts.subresource(&info.subresource)).map_or("", |sub| sub.name);
        let name = |of: fn(&Facts) -> &'static str| facts.map_or("", of);
        let labels = Labels {
            verb,
            group: name(|facts| facts.group),
            version: name(|facts| facts.version),
            resource: name(|facts| facts.plural),
            subresource,
            code,
        };
        let mut requests = self.requests.lock();
        let count = requests.entry(labels).or_default();
        count.total += 1;
        count.seconds += took.as_secs_f64();
        for (bucket, bound) in count.buckets.iter_mut().zip(BUCKETS) {
            *bucket += u64::from(took.as_secs_f64() <= bound);
        }
    }

    /// Counts a watch as open until the answer is dropped.
    pub fn watching(&self, facts: &'static Facts) -> Open {
        let open = self.watches.lock().entry(facts.plural).or_default().clone();
        open.fetch_add(1, Ordering::Relaxed);
        Open(open)
    }

    pub fn render(&self, hub: &Hub) -> String {
        let mut out = String::new();
        self.render_requests(&mut out);
        head(&mut out, "apiserver_longrunning_requests", "gauge");
        for (resource, open) in self.watches.lock().iter() {
            line(
                &mut out,
                "apiserver_longrunning_requests",
                &format!("verb=\"WATCH\",resource=\"{resource}\""),
                open.load(Ordering::Relaxed),
            );
        }
        head(&mut out, "apiserver_storage_objects", "gauge");
        for (prefix, objects, _) in hub.statistics() {
            line(&mut out, "apiserver_storage_objects", &format!("resource=\"{prefix}\""), objects);
        }
        if let Some(bytes) = resident_bytes() {
            head(&mut out, "process_resident_memory_bytes", "gauge");
            line(&mut out, "process_resident_memory_bytes", "", bytes);
        }
        out
    }

    fn render_requests(&self, out: &mut String) {
        let requests = self.requests.lock();
        head(out, "apiserver_request_total", "counter");
        for (labels, count) in requests.iter() {
            let code = labels.code;
            line(out, "apiserver_request_total", &format!("{},code=\"{code}\"", labels.render()), count.total);
        }
        head(out, "apiserver_request_duration_seconds", "histogram");
        let mut by_labels: BTreeMap<Labels, Count> = BTreeMap::new();
        for (labels, count) in requests.iter().filter(|(labels, _)| labels.verb != "watch") {
            let all = by_labels.entry(Labels { code: 0, ..labels.clone() }).or_default();
            all.total += count.total;
            all.seconds += count.seconds;
            all.buckets.iter_mut().zip(count.buckets).for_each(|(sum, bucket)| *sum += bucket);
        }
        for (labels, count) in &by_labels {
            let labels = labels.render();
            for (bound, bucket) in BUCKETS.iter().zip(count.buckets) {
                line(out, "apiserver_request_duration_seconds_bucket", &format!("{labels},le=\"{bound}\""), bucket);
            }
            line(out, "apiserver_request_duration_seconds_bucket", &format!("{labels},le=\"+Inf\""), count.total);
            line(out, "apiserver_request_duration_seconds_sum", &labels, count.seconds);
            line(out, "apiserver_request_duration_seconds_count", &labels, count.total);
        }
    }
}

impl Labels {
    fn render(&self) -> String {
        let Labels { verb, group, version, resource, subresource, .. } = self;
        // Upstream counts requests by method, where that tells less than the verb.
        let verb = match *verb {
            "create" => "POST".to_owned(),
            "update" => "PUT".to_owned(),
            verb => verb.to_uppercase(),
        };
        format!(
            r#"verb="{verb}",group="{group}",version="{version}",resource="{resource}",subresource="{subresource}""#
        )
    }
}

/// An open watch.
pub struct Open(Arc<AtomicI64>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn head(out: &mut String, name: &str, kind: &str) {
    let _ = writeln!(out, "# TYPE {name} {kind}");
}

fn line(out: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    let _ = match labels {
        "" => writeln!(out, "{name} {value}"),
        labels => writeln!(out, "{name}{{{labels}}} {value}"),
    };
}

/// Memory of this process, from the kernel.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
