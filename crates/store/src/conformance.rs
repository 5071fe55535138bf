//! What every [`Store`] must do, as checks that run against any of them.
//!
//! Each check keeps to its own prefix and to relative revisions, so they need no empty store, only
//! one that nobody else compacts or closes and where their prefix is unused.
//! [`conformance_tests!`](crate::conformance_tests) makes a test of each, with a store of its own.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::join_all;
use tokio::time::timeout;

use crate::{
    Compare, Error, Event, KeyRange, KeyValue, LeaseId, Range, RangeResult, Revision, Store, Txn, TxnResult,
    WatchStream, Write,
};

/// Longer than anything here takes; only failures wait so long.
const PATIENCE: Duration = Duration::from_secs(30);

/// A test per check; the argument is an async function that makes a store and what must outlive
/// the test: `async fn() -> (Arc<dyn Store>, impl Sized)`. Needs tokio where it is used.
#[macro_export]
macro_rules! conformance_tests {
    ($make:path) => {
        $crate::conformance_tests! { $make:
            revisions_and_versions, compares, invalid_requests, ranges, reads_of_the_past,
            transactions_are_atomic, watch_order, watch_replay, watch_filter, watch_the_future,
            watch_progress, many_watchers, compaction, compaction_keeps_the_present, leases,
            lease_moves, concurrent_writers, closing
        }
    };
    ($make:path: $($check:ident),*) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $check() {
            let (store, _guard) = $make().await;
            $crate::conformance::$check(store).await;
        }
    )* };
}

pub async fn revisions_and_versions(store: Arc<dyn Store>) {
    let start = store.revision().await.unwrap();
    let a = "/rev/a";
    let first = put(&*store, a, "1").await;
    assert!(first > start);
    let second = put(&*store, a, "2").await;
    assert!(second > first);
    assert!(store.revision().await.unwrap() >= second);
    let kv = get(&*store, a).await.unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (first, second, 2));
    assert_eq!((&kv.key[..], &kv.value[..], kv.lease), (a.as_bytes(), &b"2"[..], 0));

    let deleted = delete(&*store, a).await;
    assert!(deleted > second);
    assert_eq!(get(&*store, a).await, None);
    let again = put(&*store, a, "3").await;
    let kv = get(&*store, a).await.unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (again, again, 1));

    // Deleting nothing is no revision.
    let before = store.revision().await.unwrap();
    assert_eq!(delete(&*store, "/rev/none").await, before);
    assert_eq!(commit(&*store, vec![]).await, before);
}

pub async fn compares(store: Arc<dyn Store>) {
    let (a, b) = ("/cmp/a", "/cmp/b");
    let created = committed(store.txn(guarded(a, 0, "1")).await);
    // Exists already: the answer shows what does.
    let (current, _) = conflict(store.txn(guarded(a, 0, "2")).await);
    assert_eq!(current[0].as_ref().unwrap().value, "1");
    conflict(store.txn(guarded(a, created - 1, "2")).await);
    let updated = committed(store.txn(guarded(a, created, "2")).await);
    conflict(store.txn(guarded(a, created, "3")).await);
    assert_eq!(get(&*store, a).await.unwrap().value, "2");

    // One failing compare spoils all; every compared key is answered, in order.
    let mut txn = guarded(b, 0, "b");
    txn.compares.insert(0, compare(a, created));
    let (current, revision) = conflict(store.txn(txn).await);
    assert_eq!(current[0].as_ref().map(|kv| kv.mod_revision), Some(updated));
    assert_eq!(current[1], None);
    assert!(revision >= updated);
    assert_eq!(get(&*store, b).await, None);

    // A deleted key compares as absent.
    delete(&*store, a).await;
    conflict(store.txn(guarded(a, updated, "4")).await);
    committed(store.txn(guarded(a, 0, "4")).await);
    // Compares alone decide nothing but their own answer.
    let check = |revision| Txn { compares: vec![compare(a, revision)], writes: vec![] };
    conflict(store.txn(check(0)).await);
    let present = get(&*store, a).await.unwrap().mod_revision;
    committed(store.txn(check(present)).await);
}

pub async fn invalid_requests(store: Arc<dyn Store>) {
    let twice = vec![write("/bad/a", "1"), write("/bad/a", "2")];
    let error = store.txn(Txn { compares: vec![], writes: twice }).await.unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error:?}");
    let empty = Txn { compares: vec![], writes: vec![write("", "1")] };
    assert!(matches!(store.txn(empty).await, Err(Error::Invalid(_))));
    let current = store.revision().await.unwrap();
    let future = store.range(at(all("/bad/"), current + 1_000_000)).await.unwrap_err();
    assert!(matches!(future, Error::Future { .. }), "{future:?}");
    assert!(matches!(store.compact(current + 1_000_000).await, Err(Error::Future { .. })));
    let lease = Write::Put { key: "/bad/l".into(), value: "".into(), lease: 1 };
    let error = store.txn(Txn { compares: vec![], writes: vec![lease] }).await.unwrap_err();
    assert!(matches!(error, Error::LeaseNotFound(1)), "{error:?}");
    assert!(matches!(store.keep_alive(1).await, Err(Error::LeaseNotFound(1))));
    assert!(matches!(store.revoke_lease(1).await, Err(Error::LeaseNotFound(1))));
    assert_eq!(range(&*store, all("/bad/")).await.count, 0);
}

pub async fn ranges(store: Arc<dyn Store>) {
    for key in ["/r/a", "/r/b/1", "/r/b/2", "/r/b/3", "/r/c", "/r0"] {
        put(&*store, key, key).await;
    }
    let keys = |result: &RangeResult| {
        result.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect::<Vec<_>>()
    };
    let result = range(&*store, all("/r/b/")).await;
    assert_eq!(keys(&result), ["/r/b/1", "/r/b/2", "/r/b/3"]);
    assert_eq!((result.count, result.more), (3, false));
    assert!(result.kvs.iter().all(|kv| kv.key == kv.value));

    let limited = |limit| store.range(Range { limit, ..all("/r/") });
    let result = limited(2).await.unwrap();
    assert_eq!(keys(&result), ["/r/a", "/r/b/1"]);
    assert_eq!((result.count, result.more), (5, true));
    let result = limited(5).await.unwrap();
    assert_eq!((result.kvs.len(), result.count, result.more), (5, 5, false));

    let counted = store.range(Range { count_only: true, ..all("/r/") }).await.unwrap();
    assert_eq!((counted.kvs.len(), counted.count, counted.more), (0, 5, false));
    let one = range(&*store, one("/r/b/2")).await;
    assert_eq!(keys(&one), ["/r/b/2"]);
    let half_open = KeyRange { start: "/r/b/2".into(), end: "/r/c".into() };
    let result = range(&*store, Range { range: half_open, ..all("") }).await;
    assert_eq!(keys(&result), ["/r/b/2", "/r/b/3"]);
    let backward = KeyRange { start: "/r/c".into(), end: "/r/a".into() };
    assert_eq!(range(&*store, Range { range: backward, ..all("") }).await.count, 0);
}

pub async fn reads_of_the_past(store: Arc<dyn Store>) {
    let (a, b) = ("/past/a", "/past/b");
    let mut moments = vec![];
    moments.push((put(&*store, a, "1").await, vec!["1"]));
    moments.push((put(&*store, b, "x").await, vec!["1", "x"]));
    moments.push((put(&*store, a, "2").await, vec!["2", "x"]));
    moments.push((delete(&*store, b).await, vec!["2"]));
    moments.push((put(&*store, b, "y").await, vec!["2", "y"]));
    moments.push((put(&*store, b, "z").await, vec!["2", "z"]));
    moments.push((delete(&*store, a).await, vec!["z"]));
    for (revision, expected) in &moments {
        let result = store.range(at(all("/past/"), *revision)).await.unwrap();
        let values: Vec<_> = result.kvs.iter().map(|kv| kv.value.as_ref()).collect();
        assert_eq!(values, expected.iter().map(|value| value.as_bytes()).collect::<Vec<_>>(), "at {revision}");
        assert_eq!(result.count, expected.len());
        assert!(result.kvs.iter().all(|kv| kv.mod_revision <= *revision));
        assert!(result.revision >= moments.last().unwrap().0, "the present, not the past");
    }
    // Pages of one list show one revision, whatever is written meanwhile.
    let pinned = moments[4].0;
    let page = Range { limit: 1, ..at(all("/past/"), pinned) };
    let first = store.range(page.clone()).await.unwrap();
    assert!(first.more && first.count == 2);
    put(&*store, b, "later").await;
    let start = [&first.kvs[0].key[..], b"\0"].concat();
    let rest = KeyRange { start: start.into(), end: page.range.end.clone() };
    let second = store.range(Range { range: rest, ..page }).await.unwrap();
    assert_eq!((&second.kvs[0].value[..], second.more), (&b"y"[..], false));
}

pub async fn transactions_are_atomic(store: Arc<dyn Store>) {
    let from = store.revision().await.unwrap() + 1;
    let mut watch = watch(&*store, "/atom/", from).await;
    put(&*store, "/atom/gone", "x").await;
    let writes = vec![write("/atom/b", "1"), write("/atom/a", "2"), remove("/atom/gone")];
    let revision = commit(&*store, writes).await;
    let result = range(&*store, all("/atom/")).await;
    assert_eq!(result.count, 2);
    assert!(result.kvs.iter().all(|kv| kv.mod_revision == revision && kv.version == 1));
    let events = watch.take(4).await;
    let keys: Vec<_> = events[1..].iter().map(|event| &event.key()[..]).collect();
    assert_eq!(keys, [&b"/atom/b"[..], b"/atom/a", b"/atom/gone"], "in the order written");
    assert!(events[1..].iter().all(|event| event.revision() == revision));
}

pub async fn watch_order(store: Arc<dyn Store>) {
    let from = store.revision().await.unwrap() + 1;
    let mut live = watch(&*store, "/order/", from).await;
    let first = put(&*store, "/order/a", "1").await;
    let second = put(&*store, "/order/a", "2").await;
    let third = delete(&*store, "/order/a").await;
    let fourth = put(&*store, "/order/a", "3").await;
    let mut late = watch(&*store, "/order/", from).await;
    for watch in [&mut live, &mut late] {
        let events = watch.take(4).await;
        let kv = |value: &'static str, create, modified, version| KeyValue {
            key: "/order/a".into(),
            value: value.into(),
            create_revision: create,
            mod_revision: modified,
            version,
            lease: 0,
        };
        let expected = [
            Event::Put { kv: kv("1", first, first, 1), previous: None },
            Event::Put { kv: kv("2", first, second, 2), previous: Some(kv("1", first, first, 1)) },
            Event::Delete { key: "/order/a".into(), revision: third, previous: Some(kv("2", first, second, 2)) },
            Event::Put { kv: kv("3", fourth, fourth, 1), previous: None },
        ];
        assert_eq!(events, expected);
    }
}

pub async fn watch_replay(store: Arc<dyn Store>) {
    let mut revisions = vec![];
    for n in 0..50 {
        revisions.push(put(&*store, &format!("/replay/{}", n % 7), &n.to_string()).await);
    }
    // Writes go on while watches join: no gap and no duplicate at the seam.
    let writer = tokio::spawn({
        let store = store.clone();
        async move {
            let mut revisions = vec![];
            for n in 50..300 {
                revisions.push(put(&*store, &format!("/replay/{}", n % 7), &n.to_string()).await);
            }
            revisions
        }
    });
    let mut watches = vec![];
    for skip in 0..10 {
        watches.push((skip * 5, watch(&*store, "/replay/", revisions[skip * 5]).await));
    }
    revisions.extend(writer.await.unwrap());
    for (skipped, mut watch) in watches {
        let expected = &revisions[skipped..];
        let events = watch.take(expected.len()).await;
        let seen: Vec<_> = events.iter().map(Event::revision).collect();
        assert_eq!(seen, expected);
    }
}

pub async fn watch_filter(store: Arc<dyn Store>) {
    let from = store.revision().await.unwrap() + 1;
    let mut prefix = watch(&*store, "/filter/a/", from).await;
    let mut key = Feed::new(store.watch(KeyRange::key("/filter/a/1"), from).await.unwrap());
    for name in ["/filter/a", "/filter/a/1", "/filter/a/10", "/filter/b", "/filter/a0"] {
        put(&*store, name, "").await;
    }
    delete(&*store, "/filter/b").await;
    delete(&*store, "/filter/a/1").await;
    let keys = |events: Vec<Event>| events.iter().map(|e| e.key().clone()).collect::<Vec<_>>();
    assert_eq!(keys(prefix.take(3).await), ["/filter/a/1", "/filter/a/10", "/filter/a/1"]);
    let end = store.revision().await.unwrap();
    assert_eq!(keys(key.until(end).await), ["/filter/a/1", "/filter/a/1"]);
}

/// A client may resume from a revision that is yet to come.
pub async fn watch_the_future(store: Arc<dyn Store>) {
    let base = put(&*store, "/future/a", "0").await;
    let mut watch = watch(&*store, "/future/", base + 3).await;
    let mut revision = base;
    while revision < base + 4 {
        revision = put(&*store, "/future/a", "1").await;
    }
    let first = watch.take(1).await[0].revision();
    assert_eq!(first, base + 3);
}

/// An idle watcher learns how far the store is: soon by itself, at once when somebody asks.
pub async fn watch_progress(store: Arc<dyn Store>) {
    let from = store.revision().await.unwrap() + 1;
    let mut idle = watch(&*store, "/idle/", from).await;
    for n in 0..5 {
        let written = put(&*store, "/busy/a", &n.to_string()).await;
        if n % 2 == 0 {
            assert!(store.revision().await.unwrap() >= written);
        }
        idle.until(written).await;
    }
    // Notices never run ahead of events.
    let mut watch = watch(&*store, "/busy/", from).await;
    let revision = put(&*store, "/busy/b", "").await;
    store.revision().await.unwrap();
    assert_eq!(watch.until(revision).await.len(), 6);
}

pub async fn many_watchers(store: Arc<dyn Store>) {
    let from = store.revision().await.unwrap() + 1;
    let mut watches = vec![];
    for n in 0..300 {
        watches.push(watch(&*store, &format!("/many/{}/", n % 30), from).await);
    }
    for n in 0..60 {
        put(&*store, &format!("/many/{}/x", n % 30), &n.to_string()).await;
    }
    for (n, watch) in watches.iter_mut().enumerate() {
        let values: Vec<_> = watch.take(2).await.iter().map(value).collect();
        let n = n % 30;
        assert_eq!(values, [n.to_string(), (n + 30).to_string()]);
    }
}

pub async fn compaction(store: Arc<dyn Store>) {
    let (a, b) = ("/compact/a", "/compact/b");
    let old = put(&*store, a, "1").await;
    put(&*store, b, "1").await;
    delete(&*store, b).await;
    let kept = put(&*store, a, "2").await;
    let newest = put(&*store, a, "3").await;
    store.compact(kept).await.unwrap();
    let past = |revision| store.range(at(one(a), revision));
    assert_eq!(past(kept).await.unwrap().kvs[0].value, "2");
    assert_eq!(past(newest).await.unwrap().kvs[0].value, "3");
    let error = past(old).await.unwrap_err();
    let Error::Compacted { requested, oldest } = error else { panic!("{error:?}") };
    assert_eq!((requested, oldest), (old, kept));
    assert_eq!(first_error(&*store, "/compact/", old).await.to_string(), error.to_string());
    assert!(matches!(store.compact(old).await, Err(Error::Compacted { .. })));

    let mut watch = watch(&*store, "/compact/", kept + 1).await;
    let later = put(&*store, b, "2").await;
    let events = watch.take(2).await;
    assert_eq!([events[0].revision(), events[1].revision()], [newest, later]);
    // Its previous value is from before the compaction, but it was live then.
    let Event::Put { previous: Some(previous), .. } = &events[0] else { panic!("{events:?}") };
    assert_eq!((&previous.value[..], previous.mod_revision), (&b"2"[..], kept));
}

/// Compaction removes only what no read can reach.
pub async fn compaction_keeps_the_present(store: Arc<dyn Store>) {
    let mut expected = vec![];
    for round in 0..4 {
        for n in 0..40 {
            let key = format!("/keep/{n:02}");
            match (n + round) % 5 {
                0 => delete(&*store, &key).await,
                _ => put(&*store, &key, &format!("{round}-{n}")).await,
            };
        }
        let now = store.revision().await.unwrap();
        expected.push((now, range(&*store, all("/keep/")).await.kvs));
        // Compact to the round before.
        if let [.., (oldest, _), _] = &expected[..] {
            store.compact(*oldest).await.unwrap();
        }
        for (revision, kvs) in &expected[expected.len().saturating_sub(2)..] {
            let result = store.range(at(all("/keep/"), *revision)).await.unwrap();
            assert_eq!(&result.kvs, kvs, "round {round} at {revision}");
        }
        assert_eq!(range(&*store, all("/keep/")).await.kvs, expected.last().unwrap().1);
    }
}

pub async fn leases(store: Arc<dyn Store>) {
    let from = store.revision().await.unwrap() + 1;
    let mut watch = watch(&*store, "/lease/", from).await;
    let short = store.grant_lease(Duration::from_secs(2)).await.unwrap();
    let long = store.grant_lease(Duration::from_secs(3_600)).await.unwrap();
    assert!(short != long && short != 0 && long != 0);
    put_leased(&*store, "/lease/short1", short).await;
    put_leased(&*store, "/lease/short2", short).await;
    put_leased(&*store, "/lease/long", long).await;
    assert_eq!(get(&*store, "/lease/long").await.unwrap().lease, long);
    store.keep_alive(short).await.unwrap();
    // It ends by itself; the keys go at one revision.
    let events = watch.take(5).await;
    assert_eq!(events[3].revision(), events[4].revision());
    let gone = |event: &Event| matches!(event, Event::Delete { previous: Some(kv), .. } if kv.lease == short);
    assert!(events[3..].iter().all(gone), "{events:?}");
    assert!(matches!(store.keep_alive(short).await, Err(Error::LeaseNotFound(_))));
    assert_eq!(range(&*store, all("/lease/")).await.count, 1);
    store.keep_alive(long).await.unwrap();
    store.revoke_lease(long).await.unwrap();
    assert_eq!(range(&*store, all("/lease/")).await.count, 0);
    assert!(matches!(store.revoke_lease(long).await, Err(Error::LeaseNotFound(_))));
}

/// A key belongs to the lease it was last written with.
pub async fn lease_moves(store: Arc<dyn Store>) {
    let grant = || store.grant_lease(Duration::from_secs(3_600));
    let (one, two) = (grant().await.unwrap(), grant().await.unwrap());
    for key in ["/move/stays", "/move/moves", "/move/freed", "/move/recreated"] {
        put_leased(&*store, key, one).await;
    }
    put_leased(&*store, "/move/moves", two).await;
    put(&*store, "/move/freed", "").await;
    delete(&*store, "/move/recreated").await;
    put(&*store, "/move/recreated", "").await;
    store.revoke_lease(one).await.unwrap();
    let left = range(&*store, all("/move/")).await.kvs;
    let left: Vec<_> = left.iter().map(|kv| (&kv.key[..], kv.lease)).collect();
    let expected = [(&b"/move/freed"[..], 0), (b"/move/moves", two), (b"/move/recreated", 0)];
    assert_eq!(left, expected);
}

/// Of all who compare with the same revision, exactly one wins.
pub async fn concurrent_writers(store: Arc<dyn Store>) {
    const WRITERS: usize = 16;
    let mut revision = 0;
    for round in 0..20 {
        let race = (0..WRITERS).map(|n| {
            let store = store.clone();
            let txn = guarded("/race/a", revision, &format!("{round}-{n}"));
            tokio::spawn(async move { store.txn(txn).await.unwrap() })
        });
        let won: Vec<_> = join_all(race)
            .await
            .into_iter()
            .filter_map(|outcome| match outcome.unwrap() {
                TxnResult::Committed { revision } => Some(revision),
                TxnResult::Conflict { .. } => None,
            })
            .collect();
        assert_eq!(won.len(), 1, "round {round}");
        assert!(won[0] > revision);
        revision = won[0];
    }
    assert_eq!(get(&*store, "/race/a").await.unwrap().version, 20);

    // Counting with retries loses nothing.
    let count = async |store: Arc<dyn Store>| {
        for _ in 0..20 {
            loop {
                let current = get(&*store, "/race/count").await;
                let (revision, n) = current
                    .map_or((0, 0), |kv| (kv.mod_revision, std::str::from_utf8(&kv.value).unwrap().parse().unwrap()));
                let txn = guarded("/race/count", revision, &(n + 1).to_string());
                if matches!(store.txn(txn).await.unwrap(), TxnResult::Committed { .. }) {
                    break;
                }
            }
        }
    };
    join_all((0..8).map(|_| count(store.clone()))).await;
    assert_eq!(get(&*store, "/race/count").await.unwrap().value, "160");
}

pub async fn closing(store: Arc<dyn Store>) {
    let from = store.revision().await.unwrap() + 1;
    let mut watch = watch(&*store, "/close/", from).await;
    put(&*store, "/close/a", "").await;
    watch.take(1).await;
    store.close().await.unwrap();
    while let Some(batch) = timeout(PATIENCE, watch.stream.next()).await.unwrap() {
        assert!(batch.unwrap().events.is_empty());
    }
    assert!(matches!(store.range(one("/close/a")).await, Err(Error::Closed)));
    assert!(matches!(store.txn(guarded("/close/a", 0, "")).await, Err(Error::Closed)));
    assert!(matches!(store.watch(KeyRange::prefix("/"), 1).await, Err(Error::Closed)));
    store.close().await.unwrap();
}

/// A watch that is read with patience.
struct Feed {
    stream: WatchStream,
    /// Complete up to here.
    revision: Revision,
    /// Received, not yet taken.
    events: VecDeque<Event>,
}

impl Feed {
    fn new(stream: WatchStream) -> Self {
        Feed { stream, revision: 0, events: VecDeque::new() }
    }

    /// Every batch lies wholly after the one before it, so no revision is split or repeated.
    async fn batch(&mut self) {
        let batch = timeout(PATIENCE, self.stream.next()).await.expect("the watch stalls");
        let batch = batch.expect("the watch ended").expect("the watch failed");
        let revisions: Vec<_> = batch.events.iter().map(Event::revision).collect();
        assert!(revisions.is_sorted() && batch.revision >= self.revision);
        assert!(revisions.first().is_none_or(|first| *first > self.revision));
        assert!(revisions.last().is_none_or(|last| *last <= batch.revision));
        self.revision = batch.revision;
        self.events.extend(batch.events);
    }

    async fn take(&mut self, count: usize) -> Vec<Event> {
        while self.events.len() < count {
            self.batch().await;
        }
        self.events.drain(..count).collect()
    }

    /// Events until the watch is known to be complete up to `revision`.
    async fn until(&mut self, revision: Revision) -> Vec<Event> {
        while self.revision < revision {
            self.batch().await;
        }
        self.events.drain(..).collect()
    }
}

async fn watch(store: &dyn Store, prefix: &str, from: Revision) -> Feed {
    Feed::new(store.watch(KeyRange::prefix(prefix.to_owned()), from).await.unwrap())
}

/// What a watch that cannot start says, whether at once or as its first item.
async fn first_error(store: &dyn Store, prefix: &str, from: Revision) -> Error {
    match store.watch(KeyRange::prefix(prefix.to_owned()), from).await {
        Err(error) => error,
        Ok(mut stream) => timeout(PATIENCE, stream.next()).await.unwrap().unwrap().unwrap_err(),
    }
}

fn all(prefix: &str) -> Range {
    let range = KeyRange::prefix(prefix.to_owned());
    Range { range, revision: None, limit: 0, count_only: false }
}

fn one(key: &str) -> Range {
    Range { range: KeyRange::key(key.to_owned()), ..all("") }
}

fn at(range: Range, revision: Revision) -> Range {
    Range { revision: Some(revision), ..range }
}

async fn range(store: &dyn Store, request: Range) -> RangeResult {
    store.range(request).await.unwrap()
}

async fn get(store: &dyn Store, key: &str) -> Option<KeyValue> {
    range(store, one(key)).await.kvs.pop()
}

fn value(event: &Event) -> String {
    match event {
        Event::Put { kv, .. } => String::from_utf8_lossy(&kv.value).into_owned(),
        Event::Delete { .. } => String::new(),
    }
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn write(key: &str, value: &str) -> Write {
    Write::Put { key: bytes(key), value: bytes(value), lease: 0 }
}

fn remove(key: &str) -> Write {
    Write::Delete { key: bytes(key) }
}

fn compare(key: &str, revision: Revision) -> Compare {
    Compare::ModRevision { key: bytes(key), revision }
}

fn guarded(key: &str, revision: Revision, value: &str) -> Txn {
    Txn { compares: vec![compare(key, revision)], writes: vec![write(key, value)] }
}

async fn commit(store: &dyn Store, writes: Vec<Write>) -> Revision {
    committed(store.txn(Txn { compares: vec![], writes }).await)
}

async fn put(store: &dyn Store, key: &str, value: &str) -> Revision {
    commit(store, vec![write(key, value)]).await
}

async fn put_leased(store: &dyn Store, key: &str, lease: LeaseId) -> Revision {
    commit(store, vec![Write::Put { key: bytes(key), value: Bytes::new(), lease }]).await
}

async fn delete(store: &dyn Store, key: &str) -> Revision {
    commit(store, vec![remove(key)]).await
}

#[track_caller]
fn committed(result: Result<TxnResult, Error>) -> Revision {
    match result.unwrap() {
        TxnResult::Committed { revision } => revision,
        conflict => panic!("{conflict:?}"),
    }
}

#[track_caller]
fn conflict(result: Result<TxnResult, Error>) -> (Vec<Option<KeyValue>>, Revision) {
    match result.unwrap() {
        TxnResult::Conflict { current, revision } => (current, revision),
        committed => panic!("{committed:?}"),
    }
}
