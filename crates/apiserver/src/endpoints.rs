//! The endpoints of the `kubernetes` Service: the addresses of the API servers that are alive.
//!
//! Each server keeps a key under a lease in the store; when one dies, its key goes, and the others
//! take its address out of the endpoints.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures::future::join;
use machinery::{
    meta,
    status::{ApiError, Result},
};
use resources::registry;
use serde_json::{Value, json};
use store::{KeyRange, LeaseId, Range, Store, Txn, Write as StoreWrite};

use crate::{
    api::Api,
    cache::storage_error,
    identity::UserInfo,
    write::{Warnings, Write},
};

const SERVERS: &str = "/registry/masterleases/";
const INTERVAL: Duration = Duration::from_secs(10);
/// A server that has not been heard of for this long is dead.
const TTL: Duration = Duration::from_secs(15);

/// Keeps this server among the endpoints until shutdown, then takes it out.
pub async fn keep(api: Arc<Api>, store: Arc<dyn Store>, address: SocketAddr) {
    let mut lease = None;
    loop {
        let kept = async {
            lease = Some(announce(&*store, address, lease).await?);
            reconcile(&api, &*store, address.port()).await
        };
        if let Err(error) = kept.await {
            tracing::warn!(%error, "cannot keep the endpoints of the kubernetes Service; trying again");
            lease = None;
        }
        if api.shutdown.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_none() {
            break;
        }
    }
    if let Some(lease) = lease
        && store.revoke_lease(lease).await.is_ok()
    {
        let _ = reconcile(&api, &*store, address.port()).await;
    }
}

async fn announce(store: &dyn Store, address: SocketAddr, lease: Option<LeaseId>) -> Result<LeaseId> {
    if let Some(lease) = lease
        && store.keep_alive(lease).await.is_ok()
    {
        return Ok(lease);
    }
    let lease = store.grant_lease(TTL).await.map_err(storage_error)?;
    let put =
        StoreWrite::Put { key: format!("{SERVERS}{}", address.ip()).into(), value: address.to_string().into(), lease };
    store.txn(Txn { compares: Vec::new(), writes: vec![put] }).await.map_err(storage_error)?;
    Ok(lease)
}

async fn reconcile(api: &Api, store: &dyn Store, port: u16) -> Result<()> {
    let range = Range { range: KeyRange::prefix(SERVERS), revision: None, limit: 0, count_only: false };
    let listed = store.range(range).await.map_err(storage_error)?;
    let addresses: Vec<String> = listed
        .kvs
        .iter()
        .filter_map(|kv| Some(std::str::from_utf8(&kv.key).ok()?.strip_prefix(SERVERS)?.to_owned()))
        .collect();
    let (a, b) = join(put(api, endpoints(&addresses, port)), put(api, slice(&addresses, port))).await;
    a.and(b)
}

fn endpoints(addresses: &[String], port: u16) -> Value {
    let mut object = json!({
        "kind": "Endpoints", "apiVersion": "v1",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
    });
    if !addresses.is_empty() {
        let addresses: Vec<_> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
        object["subsets"] =
            json!([{"addresses": addresses, "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}]);
    }
    object
}

fn slice(addresses: &[String], port: u16) -> Value {
    let kind = if addresses.first().is_some_and(|address| address.contains(':')) { "IPv6" } else { "IPv4" };
    let endpoints: Vec<_> =
        addresses.iter().map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}})).collect();
    json!({
        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": kind,
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "endpoints": endpoints, "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    })
}

/// Creates the object or makes it say what `wanted` says; an unchanged one is not written.
async fn put(api: &Api, wanted: Value) -> Result<()> {
    let group = if wanted["kind"] == "Endpoints" { "" } else { "discovery.k8s.io" };
    let kind = wanted["kind"].as_str().unwrap_or_default();
    let resource =
        registry().by_gvk(group, "v1", kind).ok_or_else(|| ApiError::internal(format!("{kind} is not served")))?;
    let (user, warnings) = (UserInfo::master("system:apiserver"), Warnings::default());
    let (namespace, name) = (meta::namespace(&wanted).to_owned(), meta::name(&wanted).to_owned());
    let write = |name| Write::by_server(resource, "", (&namespace, name), &user, &warnings);
    if api.writer.objects.get(resource, &namespace, &name).await?.is_none() {
        match api.writer.create(&write(""), wanted.clone()).await {
            Err(error) if error.is_already_exists() => {}
            other => return other.map(drop),
        }
    }
    let replace = |old: Option<&Value>| {
        let mut new = old.cloned().unwrap_or_default();
        for key in ["subsets", "endpoints", "ports"] {
            match wanted.get(key) {
                Some(value) => new[key] = value.clone(),
                None => drop(new.as_object_mut().map(|new| new.remove(key))),
            }
        }
        Ok(new)
    };
    api.writer.update(&write(&name), &replace).await.map(drop)
}
