//! What was acknowledged survives: kill -9 at any moment, and a power loss that tore the last batch.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use common::{all, commit, get, put, watch, write};
use futures::StreamExt;
use store::{Event, FjallStore, OpenError, Options, Revision, Store};
use tempfile::TempDir;

const DIR: &str = "ISOPOD_CRASH_TEST_DIR";
const ROUNDS: usize = 10;
const WRITERS: usize = 8;

/// Small enough that trees are flushed and compacted while being killed.
fn options() -> Options {
    Options { retention: None, memtable_bytes: 256 << 10, ..Options::default() }
}

/// Writes until killed and prints what was acknowledged. Run by the test below.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the victim of the crash test"]
async fn victim() {
    let dir = std::env::var_os(DIR).expect("started by the crash test");
    let store = Arc::new(FjallStore::open(dir, options()).unwrap());
    let start = store.revision().await.unwrap();
    let writers = (0..WRITERS).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0.. {
                let value = format!("{start}-{writer}-{n}-{}", "x".repeat(1_500));
                // Both or neither.
                let keys = [format!("/{writer}/{}/a", n % 20), format!("/{writer}/{}/b", n % 20)];
                let writes = keys.iter().map(|key| write(key, &value, 0)).collect();
                let revision = commit(&*store, writes).await.unwrap();
                println!("\nack {revision} {} {start}-{writer}-{n}-", keys[0]);
                std::io::stdout().flush().unwrap();
            }
        })
    });
    futures::future::join_all(writers).await;
}

#[tokio::test]
async fn killed_at_any_moment_nothing_acknowledged_is_lost() {
    let dir = TempDir::new().unwrap();
    let mut acknowledged = BTreeMap::new();
    for round in 0..ROUNDS {
        let before = acknowledged.last_key_value().map_or(1, |(revision, _)| *revision);
        for (revision, write) in write_and_kill(dir.path()) {
            assert!(revision > before, "revision {revision} was used before");
            assert_eq!(acknowledged.insert(revision, write), None, "revision {revision} was used twice");
        }
        check(dir.path(), &acknowledged).await;
        println!("round {round}: {} acknowledged writes found", acknowledged.len());
    }
}

type Acknowledged = BTreeMap<Revision, (String, String)>;

/// Starts the victim and kills it after a random number of acknowledged writes.
fn write_and_kill(dir: &Path) -> Acknowledged {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["victim", "--exact", "--ignored", "--nocapture"])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lives = RandomState::new().build_hasher().finish() % 300;
    let mut acknowledged = Acknowledged::new();
    // What the victim managed to say before it died counts too.
    for line in BufReader::new(victim.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let Some((revision, write)) = line.strip_prefix("ack ").and_then(|line| line.split_once(' ')) else { continue };
        // The last line may be cut.
        let Some((key, value)) = write.split_once(' ').filter(|(_, value)| value.ends_with('-')) else { continue };
        acknowledged.insert(revision.parse().unwrap(), (key.to_owned(), value.to_owned()));
        if acknowledged.len() as u64 == lives + 1 {
            let error = FjallStore::open(dir, options()).err().unwrap();
            assert!(error.to_string().ends_with(&format!("in use by process {}", victim.id())), "{error}");
            victim.kill().unwrap();
        }
    }
    assert!(!victim.wait().unwrap().success());
    assert!(acknowledged.len() as u64 > lives, "the victim died by itself");
    acknowledged
}

async fn check(dir: &Path, acknowledged: &Acknowledged) {
    let store = FjallStore::open(dir, options()).unwrap();
    let revision = store.revision().await.unwrap();
    assert!(revision >= *acknowledged.last_key_value().unwrap().0);
    // All of history is there, in order, and says what was acknowledged.
    let mut feed = watch(&store, 1).await;
    let mut events: BTreeMap<Revision, Vec<(String, String)>> = BTreeMap::new();
    let mut seen = 0;
    while seen < revision {
        let batch = feed.next().await.unwrap().unwrap();
        seen = batch.revision;
        for event in batch.events {
            let Event::Put { kv, .. } = event else { panic!("{event:?}") };
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let value = text(&kv.value).trim_end_matches('x').to_owned();
            events.entry(kv.mod_revision).or_default().push((text(&kv.key), value));
        }
    }
    assert_eq!(events.len() as Revision, revision - 1, "every revision is there once");
    for (revision, events) in &events {
        let [(a, first), (b, second)] = &events[..] else { panic!("{revision}: {events:?}") };
        assert_eq!((a.strip_suffix('a'), first), (b.strip_suffix('b'), second), "{revision} is torn");
    }
    for (revision, write) in acknowledged {
        assert_eq!(&events[revision][0], write, "revision {revision}");
    }
    // The present is the end of that history.
    let mut newest = BTreeMap::new();
    for (revision, events) in &events {
        newest.extend(events.iter().map(|(key, _)| (key.clone(), *revision)));
    }
    let present = store.range(all()).await.unwrap().kvs;
    let present: BTreeMap<_, _> =
        present.iter().map(|kv| (String::from_utf8_lossy(&kv.key).into_owned(), kv.mod_revision)).collect();
    assert_eq!(present, newest);
    store.close().await.unwrap();
}

/// A power loss may leave any of the last batch's pages unwritten.
#[tokio::test]
async fn a_torn_last_batch_is_cut_and_earlier_damage_is_refused() {
    let dir = TempDir::new().unwrap();
    let store = FjallStore::open(dir.path(), options()).unwrap();
    let values: Vec<_> = (0..9).map(|n| format!("value-{n}-{}", "x".repeat(3_000))).collect();
    for (n, value) in values.iter().enumerate() {
        put(&store, &format!("/{n}"), value).await;
    }
    store.close().await.unwrap();
    let journal = dir.path().join("db/0.jnl");
    let whole = fs::read(&journal).unwrap();
    let place = |value: &str| whole.windows(9).position(|at| at == &value.as_bytes()[..9]).unwrap();
    let last = place(&values[8]);
    let tears = [
        ("a page of a value is missing", last + 500..last + 1_500),
        ("the end is missing", last + 500..whole.len()),
        ("the beginning is missing", last - 60..last),
    ];
    for (tear, missing) in tears {
        let mut torn = whole.clone();
        torn[missing].fill(0);
        fs::write(&journal, torn).unwrap();
        let store = FjallStore::open(dir.path(), options()).unwrap_or_else(|error| panic!("{tear}: {error}"));
        assert_eq!(store.revision().await.unwrap(), 9, "{tear}");
        assert_eq!(store.range(all()).await.unwrap().count, 8, "{tear}");
        assert_eq!(put(&store, "/again", "").await, 10, "{tear}");
        store.close().await.unwrap();
        let store = FjallStore::open(dir.path(), options()).unwrap();
        assert!(get(&store, "/again").await.is_some(), "{tear}");
        store.close().await.unwrap();
    }
    let mut damaged = whole.clone();
    let middle = place(&values[4]);
    damaged[middle + 500..middle + 1_500].fill(0);
    fs::write(&journal, &damaged).unwrap();
    let error = FjallStore::open(dir.path(), options()).err();
    assert!(matches!(error, Some(OpenError::Damaged { .. })), "{error:?}");
    assert!(fs::read(&journal).unwrap() == damaged, "what is damaged is left as it was found");
}
