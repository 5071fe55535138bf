//! One family's table as it was last written: whose entry of a shared map is in force, which numbers
//! ports have, which chains wait to be deleted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nft::{Batch, Chain, Element, Set, Socket, Verdict};

use super::frame::{Frame, Port, reject_chain};
use super::render::{Action, Rendered, Role, Slot, render};
use crate::Config;
use crate::rules::{Change, Changes, Family, PortName, Protocol};

/// Before Linux 6.2 a chain counts as used for a moment after the last map entry that led to it.
const CHAIN_REST: Duration = Duration::from_secs(1);

pub(super) struct FamilyTable {
    frame: Frame,
    ports: HashMap<PortName, Port>,
    numbers: Numbers,
    /// In the order in which they came; the first is in force. Two Services may ask for one external
    /// IP and port, and neither may break the other's batch.
    claims: HashMap<Slot, Vec<Claim>>,
    /// Emptied chains, and since when.
    retired: HashMap<String, Instant>,
}

/// Of lists, which come in pairs and are given again, and of endpoints that clients keep, which are
/// not, so that none inherits another's clients.
#[derive(Default)]
struct Numbers {
    next_list: u32,
    free_lists: Vec<u32>,
    next_sticky: u32,
}

impl Numbers {
    fn list(&mut self) -> u32 {
        self.free_lists.pop().unwrap_or_else(|| {
            self.next_list += 2;
            self.next_list - 2
        })
    }

    fn sticky(&mut self) -> u32 {
        self.next_sticky = self.next_sticky.wrapping_add(1);
        self.next_sticky
    }
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
            numbers: Numbers::default(),
            claims: HashMap::new(),
            retired: HashMap::new(),
        }
    }

    /// Begins anew with an empty table.
    pub(super) fn reset(&mut self, batch: &mut Batch) {
        self.ports.clear();
        self.claims.clear();
        self.retired.clear();
        self.numbers = Numbers::default();
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
        let FamilyTable { frame, ports, numbers, claims, retired } = self;
        let family = frame.family;
        let own = || changes.ports.iter().filter(move |change| change.name.family == family);
        for change in own() {
            let port = ports.entry(change.name.clone()).or_insert_with(|| Port {
                base: base(&change.name),
                first_list: numbers.list(),
                sticky: BTreeMap::new(),
            });
            frame.make_lists(batch, port);
        }
        let mut edits = Edits::default();
        for change in own() {
            let Some(port) = ports.get_mut(&change.name) else { continue };
            edits.port(frame, claims, retired, numbers, port, change);
        }
        for change in own().filter(|change| change.new.is_none()) {
            numbers.free_lists.extend(ports.remove(&change.name).map(|port| port.first_list));
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
        numbers: &mut Numbers,
        port: &mut Port,
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
            self.list(frame, port, role, &old, &new);
        }
        port.sticky.retain(|address, _| new.chains.contains_key(&Role::Endpoint(*address)));
        for role in new.chains.keys() {
            if let Role::Endpoint(address) = role {
                port.sticky.entry(*address).or_insert_with(|| numbers.sticky());
            }
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
            frame.write_chain(&mut self.rules, port, *role, *body);
        }
    }

    fn touch<'c>(&mut self, claims: &'c mut HashMap<Slot, Vec<Claim>>, slot: Slot) -> &'c mut Vec<Claim> {
        let claimants = claims.entry(slot).or_default();
        self.slots.entry(slot).or_insert_with(|| claimants.first().cloned());
        claimants
    }

    /// The difference between two lists of endpoints.
    fn list(&mut self, frame: &'a Frame, port: &Port, role: Role, old: &Rendered, new: &Rendered) {
        let number = port.list(role);
        let entry = |rendered: &Rendered, index: usize| {
            let address = rendered.list(role).get(index)?.address;
            Some((rendered.affinity, address))
        };
        let element = |index: usize, (sticky, address)| {
            let key = Element::key(&[&number.to_ne_bytes(), &(index as u32).to_ne_bytes()]);
            let element = match sticky {
                true => key.verdict(Verdict::Goto(Role::Endpoint(address).chain(&port.base))),
                false => key.value(&[&octets(address.ip()), &address.port().to_be_bytes()]),
            };
            (frame.list(number, sticky), element)
        };
        for index in 0..old.list(role).len().max(new.list(role).len()) {
            let (before, after) = (entry(old, index), entry(new, index));
            if before != after {
                self.deleted.extend(before.map(|entry| element(index, entry)));
                self.added.extend(after.map(|entry| element(index, entry)));
            }
        }
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

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
