//! Addresses of clusters from before IPAddresses: each was marked by a key that holds the Service's. They become
//! IPAddresses before the server answers anybody, so that none is given away twice.

use std::net::IpAddr;

use futures::{StreamExt, TryStreamExt, stream};
use machinery::status::Result;
use store::{Compare, KeyRange, KeyValue, Range, Store, Txn, TxnResult, Write};

use super::{ADDRESSES, address};
use crate::cache::storage_error;

const MARKS: &str = "/registry/ranges/serviceips/";
/// Marks changed at once: enough to share the store's commits.
const PARALLEL: usize = 64;

pub async fn run(store: &dyn Store) -> Result<()> {
    let range = Range { range: KeyRange::prefix(MARKS), revision: None, limit: 0, count_only: false };
    let marks = store.range(range).await.map_err(storage_error)?.kvs;
    stream::iter(marks).map(|mark| convert(store, mark)).buffer_unordered(PARALLEL).try_collect().await
}

async fn convert(store: &dyn Store, mark: KeyValue) -> Result<()> {
    let remove = Write::Delete { key: mark.key.clone() };
    if let Some(put) = ip_address(&mark) {
        let Write::Put { key, .. } = &put else { return Ok(()) };
        let compares = vec![Compare::ModRevision { key: key.clone(), revision: 0 }];
        let txn = Txn { compares, writes: vec![put, remove.clone()] };
        if let TxnResult::Committed { .. } = store.txn(txn).await.map_err(storage_error)? {
            return Ok(());
        }
    }
    store.txn(Txn { compares: Vec::new(), writes: vec![remove] }).await.map(drop).map_err(storage_error)
}

fn ip_address(mark: &KeyValue) -> Option<Write> {
    let address: IpAddr = std::str::from_utf8(&mark.key).ok()?.strip_prefix(MARKS)?.parse().ok()?;
    let (namespace, name) = std::str::from_utf8(&mark.value).ok()?.split_once('/')?;
    let (key, value) = (format!("{ADDRESSES}{address}").into(), address::stored(address, namespace, name));
    Some(Write::Put { key, value, lease: 0 })
}
