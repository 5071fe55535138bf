//! Keeps Services and IPAddresses in agreement, where users come in between: an IPAddress that was deleted under its
//! Service comes back, one that the allocator is said to manage and no Service has goes, one that refers to the wrong
//! object is made anew. What the allocator does itself needs no repair.
//!
//! It follows the caches. Since they hear of the parts of one transaction one after the other, what looks wrong is
//! looked at again once all of them have caught up, before anything is done about it. It also puts the default
//! ServiceCIDR back.

mod plan;

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream};
use jiff::Timestamp;
use machinery::status::Result;
use resources::{
    Cidr,
    service_cidrs::{self, ServiceRange},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::address::{self, Address, Metadata};
use crate::{
    api::Api,
    authn::lookup::{Change, IP_ADDRESSES, Kind, Lookup, SERVICE_CIDRS, SERVICES},
    bootstrap,
    identity::UserInfo,
    lookup::{self, CacheLookup},
    report,
    request::key,
    strategy::{DeleteOptions, Preconditions},
    write::{Warnings, Write},
};
use plan::{Step, View, plan};

const CONTROLLER: &str = "ipallocator-repair-controller";
const FOLLOWED: [Kind; 3] = [SERVICES, IP_ADDRESSES, SERVICE_CIDRS];
/// Changes looked at together.
const GROUP: usize = 256;
/// After a step that failed.
const RETRY: Duration = Duration::from_secs(1);

/// Repairs until shutdown. `services` is the default ServiceCIDR's range.
pub async fn keep(api: Arc<Api>, services: Cidr) {
    let shutdown = api.shutdown.clone();
    let lookup = Arc::new(CacheLookup(api.writer.objects.clone()));
    let repair = Repair {
        api,
        lookup,
        services,
        unsynced: FOLLOWED.to_vec(),
        holders: HashMap::new(),
        ranges: Vec::new(),
        later: JoinSet::new(),
    };
    shutdown.run_until_cancelled(repair.run()).await;
}

struct Repair {
    api: Arc<Api>,
    lookup: Arc<dyn Lookup>,
    services: Cidr,
    /// Kinds of which not everything is known yet: to act now would be to act on half of the truth.
    unsynced: Vec<Kind>,
    /// Keys of the Services that have said that they have an address. Those that no longer do go when it is looked at.
    holders: HashMap<IpAddr, BTreeSet<String>>,
    ranges: Vec<ServiceRange>,
    /// Addresses to look at in a while.
    later: JoinSet<IpAddr>,
}

/// The part of a Service that matters.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Service {
    metadata: Metadata,
    spec: ServiceSpec,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ServiceSpec {
    r#type: String,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Vec<String>,
}

impl Service {
    /// The addresses that it says it has.
    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let has_some = self.spec.r#type != "ExternalName";
        self.spec.cluster_ips.iter().filter(move |_| has_some).filter_map(|text| text.parse().ok())
    }
}

impl Repair {
    async fn run(mut self) {
        // Else a cache might wait to be filled by a stream below, while this waits for the cache.
        for resource in FOLLOWED.into_iter().filter_map(lookup::resource) {
            while let Err(error) = self.api.writer.objects.cache(resource).await {
                tracing::warn!(%error, "cannot read what addresses are allocated; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
        let followed = FOLLOWED.map(|kind| self.lookup.watch(kind).map(move |change| (kind, change)));
        let mut changes = stream::select_all(followed).ready_chunks(GROUP);
        loop {
            let mut addresses = BTreeSet::new();
            tokio::select! {
                Some(group) = changes.next() => {
                    for (kind, change) in group {
                        self.note(kind, change, &mut addresses).await;
                    }
                }
                Some(Ok(address)) = self.later.join_next() => drop(addresses.insert(address)),
                else => return,
            }
            if !self.unsynced.is_empty() {
                continue;
            }
            for address in addresses {
                if let Err(error) = self.check(address).await {
                    tracing::warn!(%error, %address, "cannot repair the allocation of an address; trying again");
                    self.look_later(address, RETRY);
                }
            }
        }
    }

    fn look_later(&mut self, address: IpAddr, wait: Duration) {
        self.later.spawn(async move {
            tokio::time::sleep(wait).await;
            address
        });
    }

    /// Takes a change in, and notes the addresses to look at for it.
    async fn note(&mut self, kind: Kind, change: Change, addresses: &mut BTreeSet<IpAddr>) {
        match change {
            Change::Reset => self.unsynced.push(kind),
            Change::Synced => {
                self.unsynced.retain(|other| *other != kind);
                if self.unsynced.is_empty() {
                    self.read_ranges().await;
                    addresses.extend(self.holders.keys());
                    addresses.extend(self.marked().await);
                }
            }
            Change::Put(bytes) if kind == SERVICES => {
                let Ok(service) = serde_json::from_slice::<Service>(&bytes) else { return };
                let holder = key(&service.metadata.namespace, &service.metadata.name);
                for address in service.addresses() {
                    self.holders.entry(address).or_default().insert(holder.clone());
                    addresses.insert(address);
                }
                self.check_texts(&service).await;
            }
            Change::Put(bytes) if kind == IP_ADDRESSES => {
                let address = serde_json::from_slice::<Address>(&bytes).ok();
                addresses.extend(address.and_then(|address| address.metadata.name.parse::<IpAddr>().ok()));
            }
            Change::Delete { name, .. } if kind == IP_ADDRESSES => addresses.extend(name.parse::<IpAddr>()),
            Change::Put(_) | Change::Delete { .. } if kind == SERVICE_CIDRS => {
                if let Change::Delete { name, .. } = change
                    && name == bootstrap::DEFAULT_RANGE
                {
                    self.restore_default().await;
                }
                if self.read_ranges().await {
                    addresses.extend(self.holders.keys());
                }
            }
            Change::Put(_) | Change::Delete { .. } => {} // a Service's addresses go with it
        }
    }

    async fn restore_default(&self) {
        if let Err(error) = bootstrap::default_range(&self.api.writer, self.services).await {
            tracing::warn!(%error, "cannot restore the default ServiceCIDR");
        }
    }

    /// Addresses of which there is an IPAddress.
    async fn marked(&self) -> Vec<IpAddr> {
        let objects = self.lookup.list(IP_ADDRESSES, "").await.unwrap_or_default();
        let name = |bytes: &bytes::Bytes| serde_json::from_slice::<Address>(bytes).ok()?.metadata.name.parse().ok();
        objects.iter().filter_map(name).collect()
    }

    /// Whether the ranges are others than before.
    async fn read_ranges(&mut self) -> bool {
        let Ok(ranges) = self.lookup.as_ref().list_as(SERVICE_CIDRS, "").await else { return false };
        let before = std::mem::replace(&mut self.ranges, ranges);
        let cidrs = |ranges: &[ServiceRange]| ranges.iter().flat_map(|range| range.cidrs.clone()).collect::<Vec<_>>();
        cidrs(&before) != cidrs(&self.ranges)
    }

    /// Validation lets no other text pass; the store may have come from elsewhere.
    async fn check_texts(&self, service: &Service) {
        let wrong = |text: &&String| !matches!(text.as_str(), "" | "None") && text.parse::<IpAddr>().is_err();
        for text in service.spec.cluster_ips.iter().filter(wrong) {
            let note = format!("Cluster IP {text} is not a valid IP; please recreate Service");
            let regarding = reference("v1", "Service", &service.metadata);
            report::warn(&self.api.writer, CONTROLLER, regarding, "ClusterIPNotValid", "ClusterIPValidation", &note)
                .await;
        }
    }

    /// Looks at an address; when something is wrong, again once the caches have caught up, and acts.
    async fn check(&mut self, address: IpAddr) -> Result<()> {
        let (_, steps) = self.look(address).await?;
        if steps.is_empty() {
            return Ok(());
        }
        self.api.writer.objects.hub.consistent().await?;
        let (found, steps) = self.look(address).await?;
        for step in steps {
            self.act(address, &found, step).await?;
        }
        Ok(())
    }

    async fn look(&mut self, address: IpAddr) -> Result<(Found, Vec<Step>)> {
        let object: Option<Address> = self.cached(IP_ADDRESSES, &address.to_string()).await?;
        let mut holders = Vec::new();
        for holder in self.holders.remove(&address).unwrap_or_default() {
            let service: Option<Service> = self.cached(SERVICES, &holder).await?;
            let Some(service) = service.filter(|service| service.addresses().any(|has| has == address)) else {
                continue;
            };
            holders.push(service.metadata);
            self.holders.entry(address).or_default().insert(holder);
        }
        let parent_exists = match object.as_ref().map(Address::parent).filter(|parent| parent.is_service()) {
            Some(parent) => self.cached::<Service>(SERVICES, &key(&parent.namespace, &parent.name)).await?.is_some(),
            None => false,
        };
        let in_range = self.ranges.iter().any(|range| range.gives(address));
        let view = View {
            address,
            object: object.as_ref(),
            holders: &holders,
            parent_exists,
            in_range,
            now: Timestamp::now(),
        };
        let steps = plan(&view);
        Ok((Found { object, holders }, steps))
    }

    async fn cached<T: DeserializeOwned>(&self, kind: Kind, key: &str) -> Result<Option<T>> {
        let Some(resource) = lookup::resource(kind) else { return Ok(None) };
        let entry = self.api.writer.objects.cache(resource).await?.get(key);
        Ok(entry.and_then(|entry| serde_json::from_slice(&entry.json).ok()))
    }

    async fn act(&mut self, address: IpAddr, found: &Found, step: Step) -> Result<()> {
        let (user, warnings) = (UserInfo::master("system:apiserver"), Warnings::default());
        let (writer, name) = (&self.api.writer, address.to_string());
        let write = |name| Write::by_server(address::resource(), "", ("", name), &user, &warnings);
        match step {
            Step::Warn(about, reason, action, note) => {
                report::warn(writer, CONTROLLER, found.reference(about), reason, action, &note).await;
            }
            Step::Delete => {
                let uid = found.object.as_ref().map(|object| object.metadata.uid.clone());
                let preconditions = Some(Preconditions { uid, resource_version: None });
                let options = DeleteOptions { preconditions, ..DeleteOptions::default() };
                match writer.delete(&write(&name), &options).await {
                    Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error),
                    _ => {} // another's is looked at when its change is heard of
                }
            }
            Step::Create(index) => {
                let Metadata { namespace, name, .. } = &found.holders[index];
                match writer.create(&write(""), service_cidrs::ip_address(address, namespace, name)).await {
                    Err(error) if !error.is_already_exists() => return Err(error),
                    _ => {}
                }
            }
            Step::Wait(wait) => self.look_later(address, wait),
        }
        Ok(())
    }
}

/// What a plan is about.
struct Found {
    object: Option<Address>,
    holders: Vec<Metadata>,
}

impl Found {
    /// The ObjectReference of a holder, or of the IPAddress.
    fn reference(&self, holder: Option<usize>) -> Value {
        match (holder, &self.object) {
            (Some(index), _) => reference("v1", "Service", &self.holders[index]),
            (None, Some(object)) => reference("networking.k8s.io/v1", "IPAddress", &object.metadata),
            (None, None) => Value::Null,
        }
    }
}

fn reference(api_version: &str, kind: &str, metadata: &Metadata) -> Value {
    let Metadata { namespace, name, uid, resource_version, .. } = metadata;
    let mut reference = json!({
        "kind": kind, "apiVersion": api_version, "name": name, "uid": uid, "resourceVersion": resource_version,
    });
    if !namespace.is_empty() {
        reference["namespace"] = json!(namespace);
    }
    reference
}
