//! Service addresses and node ports: each is a key of its own beside the Service, taken and released
//! in the transaction that writes the Service.
//!
//! So nothing is kept in memory, nothing leaks when the process dies, and two servers on one store
//! cannot give away the same address. An address' key is that of its IPAddress, so that watchers see it
//! come and go, and one that a user made blocks its address; what users may do to it is why there is
//! [`repair`]. A free address is found in the watch cache of IPAddresses; a free port by drawing one and
//! trying to take it, and only when several draws were taken is the list of taken ones read.

mod address;
mod plan;
pub mod repair;
#[cfg(test)]
mod tests;
pub mod upgrade;

use std::{collections::HashSet, ops::RangeInclusive, sync::Arc};

use bytes::Bytes;
use machinery::{
    field::FieldError,
    meta,
    status::{ApiError, Result},
};
use rand::seq::SliceRandom as _;
use resources::{Cidr, Facts, service_cidrs::ServiceRange};
use serde_json::Value;
use store::{KeyRange, Range, Store};

use crate::{
    authn::lookup::{Lookup, SERVICE_CIDRS},
    cache::storage_error,
    lookup::CacheLookup,
    objects::Objects,
    request,
};
use address::Address;
use plan::{Plan, held};

const ADDRESSES: &str = "/registry/ipaddresses/";
const PORTS: &str = "/registry/ranges/servicenodeports/";
/// Draws without knowing what is taken.
const BLIND_DRAWS: usize = 3;
/// Draws altogether; other writers may be faster each time.
pub const DRAWS: usize = 16;

/// What a write takes and gives back.
#[derive(Debug, Default)]
pub struct Claims {
    pub take: Vec<Claim>,
    /// Keys.
    pub release: Vec<Bytes>,
}

#[derive(Debug)]
pub struct Claim {
    pub key: Bytes,
    pub value: Bytes,
    /// What to tell the client when it is taken; `None` when it was drawn and another will do.
    pub error: Option<FieldError>,
}

pub struct Allocators {
    store: Arc<dyn Store>,
    objects: Arc<Objects>,
    lookup: Arc<dyn Lookup>,
    ports: RangeInclusive<u16>,
}

impl Allocators {
    pub fn new(store: Arc<dyn Store>, objects: Arc<Objects>, ports: RangeInclusive<u16>) -> Allocators {
        Allocators { store, lookup: Arc::new(CacheLookup(objects.clone())), objects, ports }
    }

    /// Completes `new` with addresses and ports and says what must be taken and released for it.
    /// `draw` counts the times that what was drawn had been taken.
    pub async fn plan(&self, facts: &Facts, new: &mut Value, old: Option<&Value>, draw: usize) -> Result<Claims> {
        if !allocates(facts) {
            return Ok(Claims::default());
        }
        if draw > 0 {
            // The cache may not have heard of whoever took it.
            self.objects.hub.consistent().await?;
        }
        let known = draw >= BLIND_DRAWS;
        let addresses = self.objects.cache(address::resource()).await?.snapshot(|| self.objects.hub.applied()).objects;
        let mut plan = Plan {
            ranges: self.ranges().await?,
            has_address: &|address| addresses.contains_key(address),
            ports: self.ports.clone(),
            taken_ports: if known { self.taken_ports().await? } else { HashSet::new() },
            spread: !known,
            holder: request::key(meta::namespace(new), meta::name(new)).into(),
            old: old.map(held).unwrap_or_default(),
            take: Vec::new(),
            errors: Vec::new(),
            failure: None,
        };
        plan.complete(new, old);
        if !plan.errors.is_empty() {
            return Err(ApiError::invalid(facts.group, facts.kind, meta::name(new), plan.errors));
        }
        if let Some(failure) = plan.failure {
            return Err(failure);
        }
        let keeps = held(new);
        let release = self.own(new, plan.old.difference(&keeps)).await?;
        Ok(Claims { take: plan.take, release })
    }

    /// What is given back when the object goes.
    pub async fn release(&self, facts: &Facts, object: &Value) -> Result<Claims> {
        if !allocates(facts) {
            return Ok(Claims::default());
        }
        Ok(Claims { take: Vec::new(), release: self.own(object, &held(object)).await? })
    }

    /// Those of the keys that are the Service's to give back: an address that has become another's stays, and so does
    /// one that a finalizer holds until [`repair`] finds it.
    async fn own(&self, service: &Value, keys: impl IntoIterator<Item = &String>) -> Result<Vec<Bytes>> {
        let addresses = self.objects.cache(address::resource()).await?;
        let (namespace, name) = (meta::namespace(service), meta::name(service));
        let own = |key: &&String| {
            let entry = key.strip_prefix(ADDRESSES).and_then(|address| addresses.get(address));
            let address = entry.and_then(|entry| Address::of(&entry));
            address.is_none_or(|address| address.parent().is(namespace, name) && !address.is_held())
        };
        Ok(keys.into_iter().filter(own).map(|key| key.clone().into()).collect())
    }

    /// The ranges that addresses may come from, in the order to try them: upstream's is random too.
    async fn ranges(&self) -> Result<Vec<Cidr>> {
        let ranges: Vec<ServiceRange> = self.lookup.as_ref().list_as(SERVICE_CIDRS, "").await?;
        let open = ranges.into_iter().filter(ServiceRange::is_open).flat_map(|range| range.cidrs);
        // The cluster is configured for IPv4 alone, whatever ranges it is told of.
        let mut open: Vec<Cidr> = open.filter(Cidr::is_ipv4).collect();
        open.shuffle(&mut rand::rng());
        Ok(open)
    }

    async fn taken_ports(&self) -> Result<HashSet<String>> {
        let range = Range { range: KeyRange::prefix(PORTS), revision: None, limit: 0, count_only: false };
        let listed = self.store.range(range).await.map_err(storage_error)?;
        Ok(listed.kvs.into_iter().filter_map(|kv| String::from_utf8(kv.key.to_vec()).ok()).collect())
    }
}

fn allocates(facts: &Facts) -> bool {
    facts.group.is_empty() && facts.plural == "services"
}
