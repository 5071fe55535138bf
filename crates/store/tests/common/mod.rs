//! Short forms for tests.
#![allow(dead_code, reason = "each test file uses its part")]

use std::time::Duration;

use bytes::Bytes;
use store::{Error, KeyRange, KeyValue, LeaseId, Range, Revision, Store, Txn, TxnResult, WatchStream, Write};

pub fn all() -> Range {
    Range { range: KeyRange::prefix(""), revision: None, limit: 0, count_only: false }
}

pub async fn range_at(store: &dyn Store, revision: Revision) -> Result<Vec<KeyValue>, Error> {
    let range = Range { revision: Some(revision), ..all() };
    store.range(range).await.map(|result| result.kvs)
}

pub async fn get(store: &dyn Store, key: &str) -> Option<KeyValue> {
    let range = Range { range: KeyRange::key(key.to_owned()), ..all() };
    store.range(range).await.unwrap().kvs.pop()
}

pub async fn try_put(store: &dyn Store, key: &str, value: &str) -> Result<Revision, Error> {
    commit(store, vec![write(key, value, 0)]).await
}

pub async fn put(store: &dyn Store, key: &str, value: &str) -> Revision {
    try_put(store, key, value).await.unwrap()
}

pub async fn put_leased(store: &dyn Store, key: &str, lease: LeaseId) -> Revision {
    commit(store, vec![write(key, "", lease)]).await.unwrap()
}

pub async fn delete(store: &dyn Store, key: &str) -> Revision {
    commit(store, vec![Write::Delete { key: Bytes::copy_from_slice(key.as_bytes()) }]).await.unwrap()
}

pub fn write(key: &str, value: &str, lease: LeaseId) -> Write {
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    Write::Put { key: bytes(key), value: bytes(value), lease }
}

pub async fn commit(store: &dyn Store, writes: Vec<Write>) -> Result<Revision, Error> {
    match store.txn(Txn { compares: vec![], writes }).await? {
        TxnResult::Committed { revision } => Ok(revision),
        conflict => panic!("{conflict:?}"),
    }
}

pub async fn watch(store: &dyn Store, from: Revision) -> WatchStream {
    store.watch(KeyRange::prefix(""), from).await.unwrap()
}

/// Waits until the condition holds; panics after half a minute.
pub async fn wait_for(condition: impl AsyncFn() -> bool) {
    for _ in 0..3_000 {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the condition never held");
}
