//! Watch fan-out: one write, many watchers. Writes go one at a time, the next when every watcher has seen the last, so
//! a latency is of the event alone and never of a queue before it.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Deserialize;
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    Context,
    api::{config_map, counted, resource_version},
    connection::{Call, Connection, Watch},
    load,
    report::{Report, Row},
    stats::{median, milliseconds},
};

/// An event that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(20);
/// Events read but not yet counted.
const QUEUE: usize = 1024;

/// Measures from the write's first byte to the event's last, at every watcher; durability is part of it.
pub async fn fan_out(context: &Context<'_>, watchers: usize, report: &mut Report) -> anyhow::Result<()> {
    let (mut writes, mut deliveries, mut medians, mut write_medians) = (vec![], vec![], vec![], vec![]);
    for run in 0..context.options.runs {
        let measured = measure(context, watchers, &format!("event-{watchers}-{run}-")).await?;
        medians.push(median_ms(&measured.deliveries));
        write_medians.push(median_ms(&measured.writes));
        deliveries.extend(measured.deliveries);
        writes.extend(measured.writes);
    }
    let load = counted(watchers, "watcher");
    report.add(Row::new("watch: create sent to answer", &load, "ms", &write_medians, writes));
    report.add(Row::new("watch: create sent to event, each watcher", &load, "ms", &medians, deliveries));
    Ok(())
}

fn median_ms(times: &[Duration]) -> f64 {
    median(&times.iter().copied().map(milliseconds).collect::<Vec<_>>())
}

#[derive(Default)]
struct Measured {
    writes: Vec<Duration>,
    deliveries: Vec<Duration>,
}

async fn measure(context: &Context<'_>, watchers: usize, prefix: &str) -> anyhow::Result<Measured> {
    let (options, collection) = (context.options, context.namespace.collection("configmaps"));
    let mut writer = Connection::open(context.target).await?;
    let version = resource_version(&mut writer, &collection).await?;
    let (seen, mut events) = mpsc::channel(QUEUE);
    let mut tasks = JoinSet::new();
    for connection in load::open(context.target, watchers).await? {
        let watch = connection.watch(format!("{collection}?watch=1&resourceVersion={version}")).await?;
        tasks.spawn(follow(watch, prefix.to_owned(), seen.clone()));
    }
    drop(seen);
    let (mut measured, begun) = (Measured::default(), Instant::now());
    for index in 0..options.events {
        if begun.elapsed() > options.seconds && index > 0 {
            break;
        }
        let call = Call::post(&collection, config_map(&format!("{prefix}{index}"), options.size));
        let start = Instant::now();
        writer.drain(&call).await?;
        measured.writes.push(start.elapsed());
        for _ in 0..watchers {
            let event = tokio::time::timeout(PATIENCE, events.recv()).await;
            let event =
                event.with_context(|| format!("no event {prefix}{index} within {PATIENCE:?} at some watcher"))?;
            let (seen, at) = event.context("all watches ended")??;
            anyhow::ensure!(seen == index, "a watcher was sent event {seen}, not {index}");
            measured.deliveries.push(at.duration_since(start));
        }
    }
    Ok(measured)
}

type Seen = anyhow::Result<(usize, Instant)>;

/// Tells of each event whose object's name is `prefix` and a number, until nobody listens.
async fn follow(mut watch: Watch, prefix: String, seen: mpsc::Sender<Seen>) {
    loop {
        let next = next(&mut watch, &prefix).await;
        let failed = next.is_err();
        if seen.send(next).await.is_err() || failed {
            return;
        }
    }
}

async fn next(watch: &mut Watch, prefix: &str) -> Seen {
    #[derive(Deserialize)]
    struct Named {
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    struct Metadata {
        name: String,
    }
    loop {
        let event = watch.next().await?;
        let named: Named = serde_json::from_str(event.object.get()).context("read an event's object")?;
        if let Some(index) = named.metadata.name.strip_prefix(prefix).and_then(|index| index.parse().ok()) {
            return Ok((index, event.at));
        }
    }
}
