//! One family's table as it was last written: whose entry of a shared map is in force, which numbers
//! ports have, which chains wait to be deleted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nft::{Batch, Chain, Element, Set, Socket, Verdict};

use super::frame::{Frame, list_number, reject_chain};
use super::render::{Action, Rendered, Role, Slot, render};
use crate::Config;
use crate::rules::{Change, Changes, Endpoint, Family, PortName, Protocol};

/// Before Linux 6.2 a chain counts as used for a moment after the last map entry that led to it.
const CHAIN_REST: Duration = Duration::from_secs(1);

pub(super) struct FamilyTable {
    frame: Frame,
    ports: HashMap<PortName, Port>,
    next_list: u32,
    /// In the order in which they came; the first is in force. Two Services may ask for one external
    /// IP and port, and neither may break the other's batch.
    claims: HashMap<Slot, Vec<Claim>>,
    /// Emptied chains, and since when.
    retired: HashMap<String, Instant>,
}

#[derive(Clone)]
struct Port {
    /// What its chains' names end in.
    base: Arc<str>,
    /// Of two lists of endpoints.
    first_list: u32,
}

#[derive(Clone)]
struct Claim {
    base: Arc<str>,
    action: Action,
}

impl PartialEq for Claim {
    /// Whether they make the same entry.
    fn eq(&self, other: &Claim) -> bool {
        self.action == other.action && (!matches!(self.action, Action::Goto(_)) || self.base == other.base)
    }
}

/// What a batch is to do, in the order in which it must.
#[derive(Default)]
struct Edits<'a> {
    /// Entries touched, with the claim that was in force before.
    slots: BTreeMap<Slot, Option<Claim>>,
    deleted: Vec<(&'a Set, Element)>,
    added: Vec<(&'a Set, Element)>,
    flushed: Vec<String>,
    chains: Batch,
    rules: Batch,
}

impl FamilyTable {
    pub(super) fn new(family: Family, config: &Config) -> FamilyTable {
        FamilyTable {
            frame: Frame::new(family, config),
            ports: HashMap::new(),
            next_list: 0,
            claims: HashMap::new(),
            retired: HashMap::new(),
        }
    }

    /// Begins anew with an empty table.
    pub(super) fn reset(&mut self, batch: &mut Batch) {
        self.ports.clear();
        self.claims.clear();
        self.retired.clear();
        self.next_list = 0;
        self.frame.write(batch);
    }

    /// Deletes chains that have rested. What fails is tried again with the next change.
    pub(super) fn sweep(&mut self, socket: &mut Socket) {
        let rested = self.retired.iter().filter(|(_, since)| since.elapsed() > CHAIN_REST);
        let rested: BTreeSet<String> = rested.map(|(name, _)| name.clone()).collect();
        let mut batch = Batch::new();
        rested.iter().for_each(|name| batch.delete_chain(&self.frame.table, name));
        match socket.commit(&batch) {
            Ok(()) => self.retired.retain(|name, _| !rested.contains(name)),
            Err(error) => tracing::debug!("chains of former Services stay for now: {error}"),
        }
    }

    /// Adds to the batch what leads from the last state to the next.
    pub(super) fn change(&mut self, batch: &mut Batch, changes: &Changes) {
        let FamilyTable { frame, ports, next_list, claims, retired } = self;
        let mut edits = Edits::default();
        for change in changes.ports.iter().filter(|change| change.name.family == frame.family) {
            let port = ports.entry(change.name.clone()).or_insert_with(|| {
                *next_list = next_list.wrapping_add(2);
                Port { base: base(&change.name), first_list: *next_list }
            });
            edits.port(frame, claims, retired, port, change);
            if change.new.is_none() {
                ports.remove(&change.name);
            }
        }
        edits.settle(frame, claims);
        edits.write(batch, frame);
        if let Some(ranges) = &changes.service_cidrs {
            frame.write_service_cidrs(batch, ranges);
        }
    }
}

impl<'a> Edits<'a> {
    fn port(
        &mut self,
        frame: &'a Frame,
        claims: &mut HashMap<Slot, Vec<Claim>>,
        retired: &mut HashMap<String, Instant>,
        port: &Port,
        change: &Change,
    ) {
        let protocol = change.name.protocol;
        let old = change.old.as_deref().map(|rules| render(protocol, rules)).unwrap_or_default();
        let new = change.new.as_deref().map(|rules| render(protocol, rules)).unwrap_or_default();
        for (slot, action) in &old.slots {
            if new.slots.get(slot) != Some(action) {
                self.touch(claims, *slot).retain(|claim| claim.base != port.base);
            }
        }
        for (slot, action) in &new.slots {
            if old.slots.get(slot) != Some(action) {
                self.touch(claims, *slot).push(Claim { base: port.base.clone(), action: *action });
            }
        }
        for role in [Role::Cluster, Role::Local] {
            self.list(frame, list_number(port.first_list, role), role, &old, &new);
        }
        for role in old.chains.keys().filter(|role| !new.chains.contains_key(*role)) {
            let name = role.chain(&port.base);
            retired.insert(name.clone(), Instant::now());
            self.flushed.push(name);
        }
        for (role, body) in &new.chains {
            let before = old.chains.get(role);
            if before == Some(body) {
                continue;
            }
            let name = role.chain(&port.base);
            match before {
                Some(_) => self.flushed.push(name),
                None => {
                    retired.remove(&name);
                    self.chains.add_chain(&Chain::regular(&frame.table, &name));
                }
            }
            frame.write_chain(&mut self.rules, &port.base, *role, *body, port.first_list);
        }
    }

    fn touch<'c>(&mut self, claims: &'c mut HashMap<Slot, Vec<Claim>>, slot: Slot) -> &'c mut Vec<Claim> {
        let claimants = claims.entry(slot).or_default();
        self.slots.entry(slot).or_insert_with(|| claimants.first().cloned());
        claimants
    }

    /// The difference between two lists of endpoints.
    fn list(&mut self, frame: &'a Frame, number: u32, role: Role, old: &Rendered, new: &Rendered) {
        let (before, after) = (old.list(role), new.list(role));
        for index in 0..before.len().max(after.len()) {
            let (before, after) = (before.get(index), after.get(index));
            if before.map(|e| e.address) != after.map(|e| e.address) {
                let element = |endpoint: &Endpoint| numbered(number, index as u32, endpoint.address);
                self.deleted.extend(before.map(|endpoint| (frame.endpoints(number), element(endpoint))));
                self.added.extend(after.map(|endpoint| (frame.endpoints(number), element(endpoint))));
            }
        }
        let sticky = |rendered: &Rendered| -> BTreeSet<SocketAddr> {
            let list = if rendered.affinity { rendered.list(role) } else { &[] };
            list.iter().map(|endpoint| endpoint.address).collect()
        };
        let (before, after) = (sticky(old), sticky(new));
        let element = |address: &SocketAddr| (&frame.sticky_endpoints, member(number, *address));
        self.deleted.extend(before.difference(&after).map(element));
        self.added.extend(after.difference(&before).map(element));
    }

    /// From claims to entries.
    fn settle(&mut self, frame: &'a Frame, claims: &mut HashMap<Slot, Vec<Claim>>) {
        for (slot, before) in std::mem::take(&mut self.slots) {
            let claimants = claims.get(&slot).map_or(&[][..], Vec::as_slice);
            let after = claimants.first();
            if before.as_ref() != after {
                self.deleted.extend(before.as_ref().map(|claim| element(frame, slot, claim)));
                self.added.extend(after.map(|claim| element(frame, slot, claim)));
            }
            if claimants.is_empty() {
                claims.remove(&slot);
            } else if let [first, .., last] = claimants
                && first != last
            {
                tracing::warn!(?slot, used = %first.base, unused = %last.base, "two Services want one address and port");
            }
        }
    }

    fn write(self, batch: &mut Batch, frame: &Frame) {
        each_set(&self.deleted, |set, elements| batch.delete_elements(set, elements));
        self.flushed.iter().for_each(|chain| batch.flush_chain(&frame.table, chain));
        batch.append(self.chains);
        batch.append(self.rules);
        each_set(&self.added, |set, elements| batch.add_elements(set, elements));
    }
}

fn each_set(edits: &[(&Set, Element)], mut write: impl FnMut(&Set, Vec<&Element>)) {
    let mut by_set: BTreeMap<&str, (&Set, Vec<&Element>)> = BTreeMap::new();
    for (set, element) in edits {
        by_set.entry(&set.name).or_insert_with(|| (set, Vec::new())).1.push(element);
    }
    by_set.into_values().for_each(|(set, elements)| write(set, elements));
}

fn base(name: &PortName) -> Arc<str> {
    format!("{}/{}/{}", name.service, name.protocol.name(), name.port).trim_end_matches('/').into()
}

fn element<'a>(frame: &'a Frame, slot: Slot, claim: &Claim) -> (&'a Set, Element) {
    let at = |ip: IpAddr, protocol: Protocol, port: u16| {
        Element::key(&[&octets(ip), &[protocol.number()], &port.to_be_bytes()])
    };
    let on = |protocol: Protocol, port: u16| Element::key(&[&[protocol.number()], &port.to_be_bytes()]);
    let (set, element) = match slot {
        Slot::Service(ip, protocol, port) => (&frame.services, at(ip, protocol, port)),
        Slot::NodePort(protocol, port) => (&frame.node_ports, on(protocol, port)),
        Slot::NoEndpoints(ip, protocol, port) => (&frame.no_endpoints, at(ip, protocol, port)),
        Slot::NoEndpointsNodePort(protocol, port) => (&frame.no_endpoints_node_ports, on(protocol, port)),
        Slot::Firewall(ip, protocol, port) => (&frame.firewall, at(ip, protocol, port)),
        Slot::ClusterIp(ip) => (&frame.cluster_ips, Element::key(&[&octets(ip)])),
        Slot::Hairpin(ip) => (&frame.hairpin, Element::key(&[&octets(ip), &octets(ip)])),
    };
    let element = match claim.action {
        Action::Present => element,
        Action::Goto(role) => element.verdict(Verdict::Goto(role.chain(&claim.base))),
        Action::Drop => element.verdict(Verdict::Drop),
        Action::Reject => element.verdict(reject_chain()),
    };
    (set, element)
}

/// An entry of the endpoints' map.
fn numbered(list: u32, index: u32, address: SocketAddr) -> Element {
    let key = Element::key(&[&list.to_ne_bytes(), &index.to_ne_bytes()]);
    key.value(&[&octets(address.ip()), &address.port().to_be_bytes()])
}

/// An entry of the set of endpoints that clients may keep.
fn member(list: u32, address: SocketAddr) -> Element {
    Element::key(&[&list.to_ne_bytes(), &octets(address.ip()), &address.port().to_be_bytes()])
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
