//! What was measured, as a Markdown table for docs/benchmarks.md or as JSON. Knows nothing of how it was measured.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use anyhow::Context as _;
use serde::Serialize;
use serde_json::Value;

use crate::{
    connection::{Call, Connection},
    stats::{median, milliseconds, percentile},
    target::Target,
};

#[derive(Debug, Serialize)]
pub struct Report {
    pub server: String,
    /// The server's git version.
    pub version: String,
    pub protocol: &'static str,
    /// CPUs of the client's machine.
    pub cpus: usize,
    pub time: jiff::Timestamp,
    pub rows: Vec<Row>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub measure: String,
    pub load: String,
    pub unit: &'static str,
    /// Over the runs, in `unit`.
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub runs: usize,
    /// Of single requests, events or pods, over all runs.
    pub latency: Option<Latency>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Latency {
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub samples: usize,
}

const LEGEND: &str = "Median, min and max are over the runs; p50 and p99 over the single requests, events or pods of all runs. \
A cold list is the first on a new connection right after a write, connecting included; a warm one repeats it.\n";

impl Report {
    /// An empty report that says what is measured.
    pub async fn about(target: &Arc<Target>) -> anyhow::Result<Report> {
        let body = Connection::open(target).await?.call(&Call::get("/version")).await?;
        let version: Value = serde_json::from_slice(&body).context("read /version")?;
        Ok(Report {
            server: target.url.clone(),
            version: version["gitVersion"].as_str().unwrap_or("unknown").to_owned(),
            protocol: target.protocol(),
            cpus: std::thread::available_parallelism().map_or(1, |cpus| cpus.get()),
            time: jiff::Timestamp::now(),
            rows: Vec::new(),
        })
    }

    /// Adds a row, and shows it at once: a run takes minutes.
    pub fn add(&mut self, row: Row) {
        eprintln!("{}: {}", row.load, row.summary());
        self.rows.push(row);
    }

    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).map_or_else(|error| error.to_string(), |text| text + "\n")
    }

    pub fn table(&self) -> String {
        let Report { server, version, protocol, cpus, time, rows } = self;
        let date = time.strftime("%Y-%m-%d");
        let mut text = format!("{version} at {server}, {protocol}, client with {cpus} CPUs, {date}.\n\n");
        text += &markdown(&HEADER, &rows.iter().map(Row::cells).collect::<Vec<_>>());
        text + "\n" + LEGEND
    }
}

impl Row {
    /// `values` are one per run; `latencies` are of whatever each run is made of, in any order.
    pub fn new(
        measure: impl Into<String>,
        load: impl Into<String>,
        unit: &'static str,
        values: &[f64],
        latencies: Vec<Duration>,
    ) -> Row {
        Row {
            measure: measure.into(),
            load: load.into(),
            unit,
            median: median(values),
            min: values.iter().copied().fold(f64::NAN, f64::min),
            max: values.iter().copied().fold(f64::NAN, f64::max),
            runs: values.len(),
            latency: Latency::of(latencies),
        }
    }

    fn summary(&self) -> String {
        format!("{} {} {}", self.measure, number(self.median), self.unit)
    }

    fn cells(&self) -> [String; 7] {
        let Row { measure, load, unit, median, min, max, latency, .. } = self;
        let range = |value: f64| number(value);
        let tail =
            |of: fn(&Latency) -> f64| latency.as_ref().map_or("–".into(), |latency| number(of(latency)) + " ms");
        [
            measure.clone(),
            load.clone(),
            format!("{} {unit}", number(*median)),
            range(*min),
            range(*max),
            tail(|latency| latency.p50_ms),
            tail(|latency| latency.p99_ms),
        ]
    }
}

impl Latency {
    fn of(mut samples: Vec<Duration>) -> Option<Latency> {
        samples.sort();
        let at = |percent| percentile(&samples, percent).map(milliseconds);
        Some(Latency { p50_ms: at(50)?, p99_ms: at(99)?, samples: samples.len() })
    }
}

const HEADER: [&str; 7] = ["measure", "load", "median", "min", "max", "p50", "p99"];

/// A Markdown table that is aligned as plain text too; all but the first two columns are flush right.
fn markdown<const N: usize>(header: &[&str; N], rows: &[[String; N]]) -> String {
    let left = |column: usize| column < 2;
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([header[column].len(), 3]).max().unwrap_or(0)
    };
    let line = |cells: [&str; N]| {
        let mut text = String::new();
        for (column, cell) in cells.into_iter().enumerate() {
            let width = width(column);
            let _ = if left(column) { write!(text, "| {cell:<width$} ") } else { write!(text, "| {cell:>width$} ") };
        }
        text + "|\n"
    };
    let mut text = line(*header);
    for column in 0..N {
        let dashes = "-".repeat(width(column));
        text += &if left(column) { format!("| {dashes} ") } else { format!("| {}: ", &dashes[1..]) };
    }
    text += "|\n";
    rows.iter().fold(text, |text, row| text + &line(row.each_ref().map(String::as_str)))
}

/// Three significant digits; thousands apart.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        large if large >= 99.95 => 0,
        middle if middle >= 9.995 => 1,
        _ => 2,
    };
    let text = format!("{value:.decimals$}");
    if decimals > 0 || !value.is_finite() {
        return text;
    }
    let mut grouped = String::new();
    for (index, digit) in text.chars().enumerate() {
        if index > 0 && (text.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let cases =
            [(0.0, "0.00"), (0.4567, "0.46"), (9.999, "10.0"), (12.34, "12.3"), (99.96, "100"), (999.6, "1,000")];
        for (value, expected) in cases.into_iter().chain([(18_234.0, "18,234"), (1_234_567.0, "1,234,567")]) {
            assert_eq!(number(value), expected);
        }
    }

    #[test]
    fn rows_sum_up_runs() {
        let latencies = (1..=100).rev().map(Duration::from_millis).collect();
        let row = Row::new("create", "1 connection", "/s", &[30.0, 10.0, 20.0], latencies);
        assert_eq!((row.median, row.min, row.max, row.runs), (20.0, 10.0, 30.0, 3));
        assert_eq!(row.latency, Some(Latency { p50_ms: 50.0, p99_ms: 99.0, samples: 100 }));
        assert_eq!(Row::new("list", "", "ms", &[1.0], vec![]).latency, None);
    }

    #[test]
    fn tables_are_aligned() {
        let report = Report {
            server: "https://127.0.0.1:6443".into(),
            version: "v1.36.0".into(),
            protocol: "HTTP/1.1 over TLS",
            cpus: 2,
            time: jiff::Timestamp::UNIX_EPOCH,
            rows: vec![
                Row::new("create", "32 connections", "/s", &[18_000.0], vec![Duration::from_millis(2)]),
                Row::new("list", "1 connection", "ms", &[25.0, 26.0], vec![]),
            ],
        };
        let expected = "\
v1.36.0 at https://127.0.0.1:6443, HTTP/1.1 over TLS, client with 2 CPUs, 1970-01-01.

| measure | load           |    median |    min |    max |     p50 |     p99 |
| ------- | -------------- | --------: | -----: | -----: | ------: | ------: |
| create  | 32 connections | 18,000 /s | 18,000 | 18,000 | 2.00 ms | 2.00 ms |
| list    | 1 connection   |   25.5 ms |   25.0 |   26.0 |       – |       – |

";
        assert_eq!(report.table(), format!("{expected}{LEGEND}"));
        let json: Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!((&json["rows"][0]["latency"]["p99_ms"], &json["rows"][1]["latency"]), (&2.0.into(), &Value::Null));
    }
}
