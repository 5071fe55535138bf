//! Gives every node a podCIDR of its own, cut from the cluster's (IPv4).

use std::collections::{BTreeMap, HashSet};
use std::net::Ipv4Addr;

use anyhow::Context as _;
use client::{Client, Event, EventRecorder, EventType, Store};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;

use crate::framework::{Context, Controller, Requeue};

pub struct NodeIpam {
    client: Client,
    events: EventRecorder,
    nodes: Store<Node>,
    ranges: Option<Ranges>,
    /// Given out and perhaps not yet in the cache, by node.
    pending: Mutex<BTreeMap<String, u32>>,
}

impl Controller for NodeIpam {
    const NAME: &'static str = "node-ipam-controller";
    const IDENTITY: &'static str = "node-controller";
    const WORKERS: usize = 1;

    fn new(context: &Context) -> Self {
        let nodes = context.on::<Node>(|event, queue| {
            let node = event.object();
            let has_one = node.spec.as_ref().is_some_and(|spec| spec.pod_cidr.is_some());
            if !has_one || matches!(event, Event::Deleted(_)) {
                queue.add(node.metadata.name.clone().unwrap_or_default());
            }
        });
        let config = &context.config;
        Self {
            client: context.client.clone(),
            events: context.events.clone(),
            nodes: nodes.store(),
            ranges: config.cluster_cidr.map(|(base, prefix)| Ranges::new(base, prefix, config.node_cidr_mask)),
            pending: Mutex::default(),
        }
    }

    async fn reconcile(&self, key: &str) -> anyhow::Result<Requeue> {
        let Some(ranges) = &self.ranges else { return Ok(Requeue::Never) };
        let Some(node) = self.nodes.get(key) else {
            self.pending.lock().remove(key);
            return Ok(Requeue::Never);
        };
        if pod_cidr(&node).is_some() {
            return Ok(Requeue::Never);
        }
        let Some(index) = self.choose(ranges, key) else {
            self.events.event(node.as_ref(), EventType::Normal, "CIDRNotAvailable", "Node has no available CIDR");
            anyhow::bail!("the cluster's address range is used up: no podCIDR for node {key}");
        };
        let cidr = ranges.format(index);
        let patch = json!({"spec": {"podCIDR": cidr, "podCIDRs": [cidr]}, "metadata": {"uid": node.metadata.uid}});
        let api: Api<Node> = Api::all(self.client.clone());
        api.patch(key, &PatchParams::default(), &Patch::Strategic(patch)).await.context("set the podCIDR")?;
        Ok(Requeue::Never)
    }
}

impl NodeIpam {
    /// The lowest free range, or the one already chosen for this node.
    fn choose(&self, ranges: &Ranges, node: &str) -> Option<u32> {
        let mut pending = self.pending.lock();
        if let Some(index) = pending.get(node) {
            return Some(*index);
        }
        let nodes = self.nodes.list();
        let used = nodes.iter().filter_map(|node| ranges.index(pod_cidr(node)?));
        let used: HashSet<u32> = used.chain(pending.values().copied()).collect();
        let free = (0..ranges.count()).find(|index| !used.contains(index))?;
        pending.insert(node.to_owned(), free);
        Some(free)
    }
}

fn pod_cidr(node: &Node) -> Option<&str> {
    node.spec.as_ref()?.pod_cidr.as_deref().filter(|cidr| !cidr.is_empty())
}

/// A network cut into equal ranges.
#[derive(Debug)]
struct Ranges {
    base: u32,
    prefix: u8,
    mask: u8,
}

impl Ranges {
    fn new(base: Ipv4Addr, prefix: u8, mask: u8) -> Self {
        let (prefix, mask) = (prefix.min(32), mask.clamp(prefix.min(32), 32));
        let network = if prefix == 0 { 0 } else { u32::MAX << (32 - prefix) };
        Self { base: u32::from(base) & network, prefix, mask }
    }

    fn count(&self) -> u32 {
        1u32.checked_shl(u32::from(self.mask - self.prefix)).unwrap_or(u32::MAX)
    }

    fn size(&self) -> u64 {
        1u64 << (32 - self.mask)
    }

    fn format(&self, index: u32) -> String {
        let address = u64::from(self.base) + u64::from(index) * self.size();
        format!("{}/{}", Ipv4Addr::from(address as u32), self.mask)
    }

    fn index(&self, cidr: &str) -> Option<u32> {
        let address = u32::from(cidr.split_once('/')?.0.parse::<Ipv4Addr>().ok()?);
        let index = u64::from(address.checked_sub(self.base)?) / self.size();
        u32::try_from(index).ok().filter(|index| *index < self.count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_in_order_and_found_again() {
        let ranges = Ranges::new(Ipv4Addr::new(10, 42, 3, 9), 16, 24);
        assert_eq!(
            (ranges.count(), ranges.format(0), ranges.format(255)),
            (256, "10.42.0.0/24".into(), "10.42.255.0/24".into())
        );
        assert_eq!(ranges.index("10.42.7.0/24"), Some(7));
        assert_eq!((ranges.index("10.43.0.0/24"), ranges.index("10.41.0.0/24")), (None, None));
        assert_eq!(Ranges::new(Ipv4Addr::new(10, 0, 0, 0), 24, 16).count(), 1);
    }
}
