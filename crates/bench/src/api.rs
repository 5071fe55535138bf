//! The API scenario: ConfigMaps created, read, deleted, listed and watched. ConfigMaps because no controller acts on
//! them and every server stores them the same way.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{
    Context,
    connection::{Call, Connection},
    load::{Load, Pool},
    report::{Report, Row},
    stats::{median, milliseconds},
    watch,
};

/// Connections that fill the list; not measured.
const SEEDERS: usize = 32;
/// Lists each connection asks for in one run.
const LISTS: usize = 3;

pub async fn run(context: &Context<'_>, report: &mut Report) -> anyhow::Result<()> {
    for &connections in &context.options.connections {
        requests(context, connections, report).await?;
    }
    lists(context, report).await?;
    for &watchers in &context.options.watchers {
        watch::fan_out(context, watchers, report).await?;
    }
    Ok(())
}

/// Creates, gets and deletes; each run leaves nothing behind for the next.
async fn requests(context: &Context<'_>, connections: usize, report: &mut Report) -> anyhow::Result<()> {
    let (options, collection) = (context.options, context.namespace.collection("configmaps"));
    let (count, longest, size) = (options.count, options.seconds, options.size);
    let mut pool = Pool::open(context.target, connections).await?;
    let (mut creates, mut gets, mut deletes) = (vec![], vec![], vec![]);
    for run in 0..options.runs {
        let path = {
            let collection = collection.clone();
            move |index: usize| format!("{collection}/{}", name(connections, run, index))
        };
        let create = {
            let collection = collection.clone();
            move |index| Call::post(&collection, config_map(&name(connections, run, index), size))
        };
        let created = pool.drive(count, longest, create).await?;
        let there = created.samples.len();
        let get = path.clone();
        gets.push(pool.drive(count, longest, move |index| Call::get(get(index % there))).await?);
        deletes.push(pool.drive(there, Duration::MAX, move |index| Call::delete(path(index))).await?);
        creates.push(created);
    }
    let load = counted(connections, "connection");
    for (verb, loads) in [("create", creates), ("get", gets), ("delete", deletes)] {
        let rates: Vec<f64> = loads.iter().map(Load::rate).collect();
        let latencies = loads.iter().flat_map(Load::latencies).collect();
        report.add(Row::new(format!("{verb} ConfigMap of {size} bytes"), &load, "/s", &rates, latencies));
    }
    Ok(())
}

fn name(connections: usize, run: usize, index: usize) -> String {
    format!("load-{connections}-{run}-{index}")
}

/// One large list: after a write and over a new connection, again over the same, and by several connections at once.
async fn lists(context: &Context<'_>, report: &mut Report) -> anyhow::Result<()> {
    let (options, collection) = (context.options, context.namespace.collection("configmaps"));
    let filled = fill(context).await?;
    let call = Call::get(&collection);
    let (mut cold, mut warm, mut warm_latencies, mut bytes) = (vec![], vec![], vec![], 0);
    for run in 0..options.runs {
        let mut writer = Connection::open(context.target).await?;
        writer.drain(&Call::post(&collection, config_map(&format!("cold-{run}"), options.size))).await?;
        let start = Instant::now();
        let mut connection = Connection::open(context.target).await?;
        bytes = connection.drain(&call).await?;
        cold.push(milliseconds(start.elapsed()));
        anyhow::ensure!(bytes >= filled, "the list has {bytes} bytes, less than the {filled} that were stored");
        let mut times = vec![];
        for _ in 0..LISTS {
            let start = Instant::now();
            connection.drain(&call).await?;
            times.push(start.elapsed());
        }
        warm.push(median(&times.iter().copied().map(milliseconds).collect::<Vec<_>>()));
        warm_latencies.extend(times);
    }
    let measure = format!("list {} ConfigMaps, {:.1} MB", options.list_items, bytes as f64 / 1e6);
    report.add(Row::new(format!("{measure}, cold"), "1 connection", "ms", &cold, vec![]));
    report.add(Row::new(format!("{measure}, warm"), "1 connection", "ms", &warm, warm_latencies));
    for &connections in options.connections.iter().filter(|connections| **connections > 1) {
        let mut pool = Pool::open(context.target, connections).await?;
        let (mut rates, mut latencies) = (vec![], vec![]);
        for _ in 0..options.runs {
            let call = call.clone();
            let load = pool.drive(connections * LISTS, options.seconds, move |_| call.clone()).await?;
            rates.push(load.rate());
            latencies.extend(load.latencies());
        }
        let load = counted(connections, "connection");
        report.add(Row::new(format!("{measure}, warm"), load, "/s", &rates, latencies));
    }
    Ok(())
}

/// Stores what is listed; returns the bytes of JSON that were sent.
async fn fill(context: &Context<'_>) -> anyhow::Result<usize> {
    let (options, collection) = (context.options, context.namespace.collection("configmaps"));
    eprintln!("storing {} ConfigMaps", options.list_items);
    // What the server adds to an object (times, uid, managedFields) is part of the list's size too.
    let probe = config_map("item-probe", 0);
    let mut connection = Connection::open(context.target).await?;
    let overhead = connection.drain(&Call::post(&collection, probe.clone())).await?.saturating_sub(probe.len());
    connection.drain(&Call::delete(format!("{collection}/item-probe"))).await?;
    let size = (options.list_bytes / options.list_items).saturating_sub(overhead);
    let mut pool = Pool::open(context.target, SEEDERS.min(options.list_items)).await?;
    let create = move |index| Call::post(&collection, config_map(&format!("item-{index}"), size));
    pool.drive(options.list_items, Duration::MAX, create).await?;
    Ok(size * options.list_items)
}

/// A collection's current resourceVersion.
pub async fn resource_version(connection: &mut Connection, collection: &str) -> anyhow::Result<String> {
    let body = connection.call(&Call::get(format!("{collection}?limit=1"))).await?;
    let list: Value = serde_json::from_slice(&body)?;
    Ok(list["metadata"]["resourceVersion"].as_str().unwrap_or("0").to_owned())
}

/// The JSON of a ConfigMap, `size` bytes long unless the name alone takes more.
pub fn config_map(name: &str, size: usize) -> String {
    let head = format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}},"data":{{"filler":""#);
    let tail = r#""}}"#;
    let length = size.saturating_sub(head.len() + tail.len());
    head + &filler(name, length) + tail
}

/// Text that differs by name and does not compress to nothing, so that no store looks better than it is.
fn filler(name: &str, length: usize) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut state = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(ALPHABET[(state >> 59) as usize])
    };
    (0..length).map(|_| next()).collect()
}

pub fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_maps_have_the_size_asked_for() {
        let text = config_map("a", 1024);
        assert_eq!(text.len(), 1024);
        let object: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&object["kind"], &object["metadata"]["name"]), (&"ConfigMap".into(), &"a".into()));
        assert_ne!(text.split_once("filler"), config_map("b", 1024).split_once("filler"));
        assert!(serde_json::from_str::<Value>(&config_map("a", 0)).is_ok());
    }

    #[test]
    fn loads_are_counted() {
        assert_eq!([counted(1, "pod"), counted(2, "pod")], ["1 pod", "2 pods"]);
    }
}
