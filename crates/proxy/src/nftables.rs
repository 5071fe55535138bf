//! The nftables applier: verdict maps from addresses to one chain a backend, changed in place.
//!
//! A packet costs two map lookups however many Services there are, and a change costs the chains and
//! elements it touches, in one atomic batch.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use nft::expr::{self, Cmp, Ct, Meta, Numgen, Reject, Verdict};
use nft::{Batch, Chain, ChainType, Element, Error, Expr, Family, KeyType, Point, Set, Socket, Table};

use crate::plan::{Action, Backend, Endpoint, Masquerade, Protocol, ServiceRules};

/// Marks connections whose source is to be rewritten; upstream's bit.
const MASQUERADE_MARK: u32 = 0x4000;
const REJECT_CHAIN: &str = "reject-it";
const SERVICES_CHAIN: &str = "services";

/// A range as address and prefix length.
pub type Range = (Ipv4Addr, u8);

/// Applies rules to the network namespace it was made in.
pub struct Nftables {
    socket: Socket,
    objects: Objects,
    cluster_cidr: Range,
    service_cidr: Range,
    /// Who has which address: the first Service to claim one keeps it.
    claims: BTreeMap<Key, String>,
    /// How many backends each endpoint address is in.
    endpoints: BTreeMap<Ipv4Addr, usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Address(Ipv4Addr, Protocol, u16),
    NodePort(Protocol, u16),
}

/// One Service's rules before and after.
pub struct Change<'a> {
    pub service: &'a str,
    pub old: Option<&'a ServiceRules>,
    pub new: Option<&'a ServiceRules>,
}

/// The table and the maps in it.
struct Objects {
    table: Table,
    addresses: Set,
    node_ports: Set,
    refused_addresses: Set,
    refused_node_ports: Set,
    hairpin: Set,
}

impl Objects {
    fn new() -> Objects {
        let table = Table::new(Family::Ipv4, "isopod-proxy");
        let address = [KeyType::Ipv4, KeyType::Protocol, KeyType::Port];
        let port = [KeyType::Protocol, KeyType::Port];
        Objects {
            addresses: Set::verdict_map(&table, "addresses", &address),
            node_ports: Set::verdict_map(&table, "node-ports", &port),
            refused_addresses: Set::verdict_map(&table, "refused-addresses", &address),
            refused_node_ports: Set::verdict_map(&table, "refused-node-ports", &port),
            hairpin: Set::new(&table, "hairpin", &[KeyType::Ipv4, KeyType::Ipv4]),
            table,
        }
    }

    /// The map that an action at a key belongs in, and the element.
    fn element(&self, key: Key, action: &Action) -> (&Set, Element) {
        let verdict = match action {
            Action::Balance(backend) => Verdict::Goto(backend.clone()),
            Action::Reject => Verdict::Goto(REJECT_CHAIN.into()),
            Action::Drop => Verdict::Drop,
        };
        let refused = !matches!(action, Action::Balance(_));
        match key {
            Key::Address(ip, protocol, port) => {
                let map = if refused { &self.refused_addresses } else { &self.addresses };
                (map, Element::key(&[&ip.octets(), &[protocol.number()], &port.to_be_bytes()]).verdict(verdict))
            }
            Key::NodePort(protocol, port) => {
                let map = if refused { &self.refused_node_ports } else { &self.node_ports };
                (map, Element::key(&[&[protocol.number()], &port.to_be_bytes()]).verdict(verdict))
            }
        }
    }
}

impl Nftables {
    pub fn new(cluster_cidr: Range, service_cidr: Range) -> Result<Nftables, Error> {
        Ok(Nftables {
            socket: Socket::open()?,
            objects: Objects::new(),
            cluster_cidr,
            service_cidr,
            claims: BTreeMap::new(),
            endpoints: BTreeMap::new(),
        })
    }

    /// Replaces whatever is there, in one batch: no packet sees less than the old or the new rules.
    pub fn replace<'a>(&mut self, all: impl Iterator<Item = (&'a str, &'a ServiceRules)>) -> Result<(), Error> {
        self.claims.clear();
        self.endpoints.clear();
        let mut batch = Batch::new();
        self.frame(&mut batch);
        for (service, rules) in all {
            self.change(&mut batch, &Change { service, old: None, new: Some(rules) });
        }
        self.socket.commit(&batch)
    }

    /// Applies what differs. After an error nothing has changed, and only [`Nftables::replace`] may follow.
    pub fn update(&mut self, changes: &[Change]) -> Result<(), Error> {
        let mut batch = Batch::new();
        for change in changes {
            self.change(&mut batch, change);
        }
        self.socket.commit(&batch)
    }

    /// Removes all of it from the namespace.
    pub fn clean_up() -> Result<(), Error> {
        let mut batch = Batch::new();
        batch.delete_table(&Objects::new().table);
        Socket::open()?.commit(&batch)
    }

    /// Backends come before the elements that lead to them and go after those.
    fn change(&mut self, batch: &mut Batch, change: &Change) {
        let none = ServiceRules::default();
        let (old, new) = (change.old.unwrap_or(&none), change.new.unwrap_or(&none));
        for (name, backend) in &new.backends {
            let before = old.backends.get(name);
            if before != Some(backend) {
                self.put_backend(batch, name, before, backend);
            }
        }
        let (old_actions, new_actions) = (actions(old), actions(new));
        for (key, action) in &old_actions {
            if new_actions.get(key) != Some(action) && self.claims.get(key).is_some_and(|owner| owner == change.service)
            {
                let (map, element) = self.objects.element(*key, action);
                batch.delete_elements(map, [&element]);
                self.claims.remove(key);
            }
        }
        for (key, action) in &new_actions {
            if old_actions.get(key) == Some(action) {
                continue;
            }
            if let Some(owner) = self.claims.get(key) {
                tracing::warn!(service = change.service, owner, ?key, "another Service has this address and port");
                continue;
            }
            let (map, element) = self.objects.element(*key, action);
            batch.add_elements(map, [&element]);
            self.claims.insert(*key, change.service.to_owned());
        }
        for (name, backend) in &old.backends {
            if !new.backends.contains_key(name) {
                self.remove_backend(batch, name, backend);
            }
        }
    }

    fn put_backend(&mut self, batch: &mut Batch, name: &str, before: Option<&Backend>, backend: &Backend) {
        let table = self.objects.table.clone();
        batch.add_chain(&Chain::regular(&table, name));
        batch.flush_chain(&table, name);
        if let Some(before) = before {
            self.forget_hairpins(batch, before);
        }
        self.learn_hairpins(batch, backend);
        let entry = if backend.allowed_sources.is_empty() {
            name.to_owned()
        } else {
            let allowed = allowed_chain(name);
            batch.add_chain(&Chain::regular(&table, &allowed));
            batch.flush_chain(&table, &allowed);
            for range in &backend.allowed_sources {
                let jump = expr::verdict(&Verdict::Goto(allowed.clone()));
                batch.add_rule(&table, name, &[&within(expr::ip_saddr(0), *range, Cmp::Eq)[..], &[jump]].concat());
            }
            batch.add_rule(&table, name, &[expr::verdict(&Verdict::Drop)]);
            allowed
        };
        self.mark(batch, &entry, backend.masquerade);
        match backend.affinity {
            None => self.balance(batch, &entry, backend),
            Some(timeout) => self.balance_sticky(batch, name, &entry, backend, timeout),
        }
        if let Some(before) = before {
            let kept: BTreeSet<Endpoint> = match backend.affinity {
                Some(_) => backend.endpoints.iter().copied().collect(),
                None => BTreeSet::new(),
            };
            self.remove_sticky(batch, name, before, |endpoint| !kept.contains(endpoint));
            if !before.allowed_sources.is_empty() && backend.allowed_sources.is_empty() {
                self.remove_chain(batch, &allowed_chain(name));
            }
        }
    }

    fn mark(&self, batch: &mut Batch, chain: &str, masquerade: Masquerade) {
        let condition = match masquerade {
            Masquerade::Never => return,
            Masquerade::Always => Vec::new(),
            Masquerade::OffCluster => within(expr::ip_saddr(0), self.cluster_cidr, Cmp::Neq).to_vec(),
        };
        let set = [
            expr::meta(Meta::Mark, 0),
            expr::bitwise(0, 0, &(!MASQUERADE_MARK).to_ne_bytes(), &MASQUERADE_MARK.to_ne_bytes()),
            expr::set_meta(Meta::Mark, 0),
        ];
        batch.add_rule(&self.objects.table, chain, &[&condition[..], &set].concat());
    }

    /// One rule: a random number, mapped to an endpoint, becomes the destination.
    fn balance(&self, batch: &mut Batch, chain: &str, backend: &Backend) {
        let table = &self.objects.table;
        let map = Set::anonymous_map(batch, table, &[KeyType::Integer], &[KeyType::Ipv4, KeyType::Port]);
        batch.add_set(&map);
        let elements: Vec<Element> = (0u32..)
            .zip(&backend.endpoints)
            .map(|(n, (ip, port))| Element::key(&[&n.to_ne_bytes()]).value(&[&ip.octets(), &port.to_be_bytes()]))
            .collect();
        batch.add_elements(&map, &elements);
        let rule = [
            &l4(backend.protocol)[..],
            &[
                expr::numgen(Numgen::Random, backend.endpoints.len() as u32, 0),
                expr::lookup_map(&map, 0, 4),
                expr::dnat(Family::Ipv4, 4, Some(5)),
            ],
        ];
        batch.add_rule(table, chain, &rule.concat());
    }

    /// A chain and a set of recent clients for each endpoint; a known client goes back to its own.
    fn balance_sticky(
        &self,
        batch: &mut Batch,
        name: &str,
        entry: &str,
        backend: &Backend,
        timeout: std::time::Duration,
    ) {
        let table = &self.objects.table;
        for (ip, port) in &backend.endpoints {
            let (chain, clients) = sticky(table, name, (*ip, *port));
            let clients = clients.timeout(timeout);
            batch.add_set(&clients);
            batch.add_chain(&Chain::regular(table, &chain));
            batch.flush_chain(table, &chain);
            let pick = [
                &[expr::ip_saddr(0), expr::update_set(&clients, 0, None)][..],
                &l4(backend.protocol),
                &[
                    expr::load(4, &ip.octets()),
                    expr::load(5, &port.to_be_bytes()),
                    expr::dnat(Family::Ipv4, 4, Some(5)),
                ],
            ];
            batch.add_rule(table, &chain, &pick.concat());
            let back = [expr::ip_saddr(0), expr::lookup(&clients, 0, false), expr::verdict(&Verdict::Goto(chain))];
            batch.add_rule(table, entry, &back);
        }
        let map = Set::anonymous_verdict_map(batch, table, &[KeyType::Integer]);
        batch.add_set(&map);
        let elements: Vec<Element> = (0u32..)
            .zip(&backend.endpoints)
            .map(|(n, endpoint)| {
                Element::key(&[&n.to_ne_bytes()]).verdict(Verdict::Goto(sticky(table, name, *endpoint).0))
            })
            .collect();
        batch.add_elements(&map, &elements);
        let any = [expr::numgen(Numgen::Random, backend.endpoints.len() as u32, 0), expr::lookup_verdict(&map, 0)];
        batch.add_rule(table, entry, &any);
    }

    fn remove_backend(&mut self, batch: &mut Batch, name: &str, backend: &Backend) {
        self.forget_hairpins(batch, backend);
        self.remove_chain(batch, name);
        if !backend.allowed_sources.is_empty() {
            self.remove_chain(batch, &allowed_chain(name));
        }
        self.remove_sticky(batch, name, backend, |_| true);
    }

    /// After the rules that use them.
    fn remove_sticky(&self, batch: &mut Batch, name: &str, backend: &Backend, gone: impl Fn(&Endpoint) -> bool) {
        let Some(timeout) = backend.affinity else { return };
        for endpoint in backend.endpoints.iter().filter(|endpoint| gone(endpoint)) {
            let (chain, clients) = sticky(&self.objects.table, name, *endpoint);
            self.remove_chain(batch, &chain);
            batch.delete_set(&clients.timeout(timeout));
        }
    }

    fn remove_chain(&self, batch: &mut Batch, name: &str) {
        batch.flush_chain(&self.objects.table, name);
        batch.delete_chain(&self.objects.table, name);
    }

    fn learn_hairpins(&mut self, batch: &mut Batch, backend: &Backend) {
        for (ip, _) in &backend.endpoints {
            let count = self.endpoints.entry(*ip).or_default();
            *count += 1;
            if *count == 1 {
                batch.add_elements(&self.objects.hairpin, [&Element::key(&[&ip.octets(), &ip.octets()])]);
            }
        }
    }

    fn forget_hairpins(&mut self, batch: &mut Batch, backend: &Backend) {
        for (ip, _) in &backend.endpoints {
            let Some(count) = self.endpoints.get_mut(ip) else { continue };
            *count -= 1;
            if *count == 0 {
                self.endpoints.remove(ip);
                batch.delete_elements(&self.objects.hairpin, [&Element::key(&[&ip.octets(), &ip.octets()])]);
            }
        }
    }

    /// The table without any Service.
    fn frame(&self, batch: &mut Batch) {
        let Objects { table, addresses, node_ports, refused_addresses, refused_node_ports, hairpin } = &self.objects;
        batch.delete_table(table);
        batch.add_table(table);
        batch.add_chain(&Chain::regular(table, SERVICES_CHAIN));
        batch.add_chain(&Chain::regular(table, REJECT_CHAIN));
        for set in [addresses, node_ports, refused_addresses, refused_node_ports, hairpin] {
            batch.add_set(set);
        }
        for (name, kind, point, priority) in [
            ("prerouting", ChainType::Nat, Point::Prerouting, -100),
            ("output", ChainType::Nat, Point::Output, -100),
            ("postrouting", ChainType::Nat, Point::Postrouting, 100),
            ("filter-input", ChainType::Filter, Point::Input, 0),
            ("filter-forward", ChainType::Filter, Point::Forward, 0),
            ("filter-output", ChainType::Filter, Point::Output, 0),
        ] {
            batch.add_chain(&Chain::base(table, name, kind, point, priority));
        }
        let address = [expr::ip_daddr(0), expr::meta(Meta::L4Proto, 1), expr::th_dport(2)];
        let local = [expr::fib_daddr_type(0), expr::cmp(Cmp::Eq, 0, &expr::ADDRESS_LOCAL)];
        let port = [expr::meta(Meta::L4Proto, 0), expr::th_dport(1)];
        let jump = [expr::verdict(&Verdict::Jump(SERVICES_CHAIN.into()))];
        batch.add_rule(table, "prerouting", &jump);
        batch.add_rule(table, "output", &jump);
        batch.add_rule(table, SERVICES_CHAIN, &[&address[..], &[expr::lookup_verdict(addresses, 0)]].concat());
        batch.add_rule(table, SERVICES_CHAIN, &[&local[..], &port, &[expr::lookup_verdict(node_ports, 0)]].concat());

        let marked = [
            expr::meta(Meta::Mark, 0),
            expr::bitwise(0, 0, &MASQUERADE_MARK.to_ne_bytes(), &[0; 4]),
            expr::cmp(Cmp::Neq, 0, &[0; 4]),
            expr::masquerade(),
        ];
        let rewritten = [
            expr::ct(Ct::Status, 0),
            expr::bitwise(0, 0, &expr::CT_STATUS_DNAT.to_ne_bytes(), &[0; 4]),
            expr::cmp(Cmp::Neq, 0, &[0; 4]),
        ];
        let to_itself = [expr::ip_saddr(0), expr::ip_daddr(1), expr::lookup(hairpin, 0, false), expr::masquerade()];
        batch.add_rule(table, "postrouting", &marked);
        batch.add_rule(table, "postrouting", &[&rewritten[..], &to_itself].concat());

        for chain in ["filter-input", "filter-forward", "filter-output"] {
            batch.add_rule(table, chain, &[&address[..], &[expr::lookup_verdict(refused_addresses, 0)]].concat());
            batch.add_rule(table, chain, &[&local[..], &port, &[expr::lookup_verdict(refused_node_ports, 0)]].concat());
        }
        // What was not rewritten goes to an address of no Service, or to no port of one.
        let nobody = [
            &within(expr::ip_daddr(0), self.service_cidr, Cmp::Eq)[..],
            &[expr::verdict(&Verdict::Goto(REJECT_CHAIN.into()))],
        ];
        for chain in ["filter-forward", "filter-output"] {
            batch.add_rule(table, chain, &nobody.concat());
        }
        batch.add_rule(table, REJECT_CHAIN, &[expr::reject(Family::Ipv4, Reject::PortUnreachable)]);
    }
}

fn actions(rules: &ServiceRules) -> BTreeMap<Key, &Action> {
    let addresses =
        rules.addresses.iter().map(|((ip, protocol, port), action)| (Key::Address(*ip, *protocol, *port), action));
    let ports = rules.node_ports.iter().map(|((protocol, port), action)| (Key::NodePort(*protocol, *port), action));
    addresses.chain(ports).collect()
}

fn allowed_chain(name: &str) -> String {
    format!("{name}/allowed")
}

/// The chain to one endpoint, and the set of clients that were sent there.
fn sticky(table: &Table, name: &str, (ip, port): Endpoint) -> (String, Set) {
    let chain = format!("{name}/{ip}/{port}");
    let set = Set::new(table, &format!("clients-{chain}"), &[KeyType::Ipv4]);
    (chain, set)
}

fn l4(protocol: Protocol) -> [Expr; 2] {
    [expr::meta(Meta::L4Proto, 0), expr::cmp(Cmp::Eq, 0, &[protocol.number()])]
}

/// Compares the loaded address's network with the range.
fn within(load: Expr, (base, prefix): Range, operator: Cmp) -> [Expr; 3] {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    let network = base.to_bits() & mask;
    [load, expr::bitwise(0, 0, &mask.to_be_bytes(), &[0; 4]), expr::cmp(operator, 0, &network.to_be_bytes())]
}
