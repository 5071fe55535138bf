//! The embedded backend: conformance, and what only it promises.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::{all, delete, get, put, range_at, wait_for, watch};
use futures::StreamExt;
use store::{Error, FjallStore, KeyRange, OpenError, Options, Store};
use tempfile::TempDir;

async fn make() -> (Arc<dyn Store>, TempDir) {
    let dir = TempDir::new().unwrap();
    let store = FjallStore::open(dir.path(), Options::default()).unwrap();
    (Arc::new(store), dir)
}

mod conformance {
    store::conformance_tests!(super::make);
}

fn open(dir: &TempDir, options: Options) -> FjallStore {
    FjallStore::open(dir.path(), options).unwrap()
}

#[tokio::test]
async fn a_restart_changes_nothing() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir, Options::default());
    let first = put(&store, "/a", "1").await;
    put(&store, "/b", "1").await;
    let lease = store.grant_lease(Duration::from_secs(3_600)).await.unwrap();
    let second = put(&store, "/a", "2").await;
    let last = delete(&store, "/b").await;
    let before = store.range(all()).await.unwrap();
    store.close().await.unwrap();

    let store = open(&dir, Options::default());
    assert_eq!(store.revision().await.unwrap(), last);
    assert_eq!(store.range(all()).await.unwrap().kvs, before.kvs);
    assert_eq!(range_at(&store, first).await.unwrap()[0].value, "1");
    // A watch goes on where it was, before new writes and after them.
    let mut resumed = watch(&store, second).await;
    let next = put(&store, "/a", "3").await;
    assert!(next > last);
    let mut revisions = vec![];
    while revisions.last() != Some(&next) {
        let batch = resumed.next().await.unwrap().unwrap();
        revisions.extend(batch.events.iter().map(|event| event.revision()));
    }
    assert_eq!(revisions, [second, last, next]);
    // The lease is alive, its id is not given again.
    store.keep_alive(lease).await.unwrap();
    store.revoke_lease(lease).await.unwrap();
    store.close().await.unwrap();
    let store = open(&dir, Options::default());
    assert_ne!(store.grant_lease(Duration::from_secs(1)).await.unwrap(), lease);
}

#[tokio::test]
async fn a_lease_ends_after_a_restart() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir, Options::default());
    let lease = store.grant_lease(Duration::from_secs(1)).await.unwrap();
    common::put_leased(&store, "/a", lease).await;
    store.close().await.unwrap();
    let store = open(&dir, Options::default());
    wait_for(async || get(&store, "/a").await.is_none()).await;
    assert!(matches!(store.keep_alive(lease).await, Err(Error::LeaseNotFound(_))));
}

#[tokio::test]
async fn a_slow_watcher_is_dropped_and_can_resume() {
    let dir = TempDir::new().unwrap();
    let options = Options { watch_buffer_bytes: 64 << 10, ..Options::default() };
    let store = open(&dir, options);
    let mut slow = watch(&store, 1).await;
    // Live from here on.
    assert!(slow.next().await.unwrap().unwrap().events.is_empty());
    let value = "x".repeat(2 << 10);
    let mut last = 0;
    for n in 0..100 {
        last = put(&store, &format!("/{n}"), &value).await;
    }
    let mut seen = 1;
    let error = loop {
        match slow.next().await.unwrap() {
            Ok(batch) => seen = batch.revision,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::SlowWatcher(at) if at == seen && at < last), "{error:?} after {seen}");
    assert!(slow.next().await.is_none());
    let mut resumed = watch(&store, seen + 1).await;
    let batch = resumed.next().await.unwrap().unwrap();
    assert_eq!(batch.events.len() as i64, last - seen);
}

#[tokio::test]
async fn history_goes_with_time() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir, Options { retention: Some(Duration::from_millis(300)), ..Options::default() });
    let old = put(&store, "/a", "1").await;
    let new = put(&store, "/a", "2").await;
    wait_for(async || matches!(range_at(&store, old).await, Err(Error::Compacted { .. }))).await;
    assert_eq!(range_at(&store, new).await.unwrap()[0].value, "2");
    let stale = store.watch(KeyRange::prefix(""), old).await;
    assert!(matches!(stale, Err(Error::Compacted { oldest, .. }) if oldest > old));
}

#[tokio::test]
async fn history_is_bounded() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir, Options { max_revisions: 100, ..Options::default() });
    let first = put(&store, "/a", "").await;
    for _ in 0..100 {
        put(&store, "/a", "").await;
    }
    assert!(range_at(&store, first).await.is_ok());
    let last = loop {
        let last = put(&store, "/a", "").await;
        if matches!(range_at(&store, first).await, Err(Error::Compacted { .. })) {
            break last;
        }
        assert!(last < first + 200);
    };
    assert!(range_at(&store, last - 99).await.is_ok());
}

#[tokio::test]
async fn a_directory_serves_one_store() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir, Options::default());
    let error = FjallStore::open(dir.path(), Options::default()).err().unwrap();
    let (path, pid) = (dir.path().display(), std::process::id());
    assert_eq!(error.to_string(), format!("the store in {path} is in use by process {pid}"));
    store.close().await.unwrap();
    open(&dir, Options::default());
}

#[tokio::test]
async fn an_interrupted_creation_is_begun_anew() {
    let dir = TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join("db.new")).unwrap();
    std::fs::write(dir.path().join("db.new/0.jnl"), "half").unwrap();
    let store = open(&dir, Options::default());
    put(&store, "/a", "1").await;
}

#[tokio::test]
async fn what_is_missing_is_called_damage() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 4] = [
        ("journal", |db| std::fs::remove_file(db.join("0.jnl")).unwrap()),
        ("version", |db| std::fs::remove_file(db.join("version")).unwrap()),
        ("manifest", |db| std::fs::remove_file(db.join("keyspaces/2/current")).unwrap()),
        ("marker", |db| std::fs::write(db.join("version"), "x").unwrap()),
    ];
    for (what, damage) in damages {
        let dir = TempDir::new().unwrap();
        let store = open(&dir, Options::default());
        put(&store, "/a", "1").await;
        store.close().await.unwrap();
        damage(&dir.path().join("db"));
        let error = FjallStore::open(dir.path(), Options::default()).err();
        assert!(matches!(error, Some(OpenError::Damaged { .. })), "{what}: {error:?}");
        assert!(error.unwrap().to_string().contains(&dir.path().display().to_string()));
    }
}
