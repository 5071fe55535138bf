//! The table without any Service: sets, chains where packets enter, the rules that all share; and
//! the rules of the chains that Services have.
//!
//! A packet to a Service meets, in this order: the load balancers' source ranges (before its
//! destination is rewritten), the rewriting, the refusal of what was not rewritten (right after it,
//! so that no route is needed and nothing can slip by), the masquerading.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nft::expr::{self, Cmp, Ct, Meta, Numgen, Register, Reject, Verdict};
use nft::{Batch, Chain, ChainType, Expr, KeyType, Point, Set, Table};

use super::TABLE;
use super::render::{Body, Role};
use crate::Config;
use crate::cidr::Cidr;
use crate::rules::Family;

/// Marks connections whose source is to be rewritten; upstream's bit.
const MASQUERADE_MARK: u32 = 0x4000;
const SERVICES: &str = "services";
const CHECK: &str = "check";
const REJECT: &str = "reject";
const SERVICE_CIDRS: &str = "service-cidrs";
/// Of rules that the kernel's own rewriting of destinations must come after or before.
const DESTINATION_NAT: i32 = -100;
const SOURCE_NAT: i32 = 100;
/// The kernel checks an element of a map against each rule that looks it up, and finds a set by
/// walking a list: with one map for all Services, or one for each, a full sync would be quadratic.
const PORTS_OF_A_MAP: u32 = 256;
/// A plain number in a key of several fields: `nft list` aborts where such a field is an integer.
const NUMBER: KeyType = KeyType::Mark;
/// Remembered clients vanish after the time that the rule that remembers them says; this is of none.
const AFFINITY_DEFAULT: Duration = Duration::from_secs(10_800);

/// The objects of one family's table.
pub(super) struct Frame {
    pub(super) family: Family,
    pub(super) table: Table,
    /// Address, protocol and port to a chain.
    pub(super) services: Set,
    pub(super) node_ports: Set,
    /// To a refusal.
    pub(super) no_endpoints: Set,
    pub(super) no_endpoints_node_ports: Set,
    /// To a chain that knows who may come.
    pub(super) firewall: Set,
    pub(super) cluster_ips: Set,
    /// Pairs of equal addresses: an endpoint that is sent to itself.
    pub(super) hairpin: Set,
    /// For some ports each, maps from list and number to an endpoint. They are made as ports come.
    lists: Vec<Lists>,
    /// Endpoint (by its number) and client, of those that the client is to keep.
    clients: Set,
    cluster_cidrs: Vec<Cidr>,
    node_port_addresses: Vec<Cidr>,
    masquerade_all: bool,
    localhost: bool,
}

/// The maps that lists of endpoints are in.
struct Lists {
    /// To address and port.
    endpoints: Set,
    /// To the endpoint's chain, of ports with affinity.
    sticky: Set,
}

/// What the rules of a port's chains refer to it by.
#[derive(Clone)]
pub(super) struct Port {
    /// What its chains' names end in.
    pub(super) base: Arc<str>,
    /// Of two lists of endpoints.
    pub(super) first_list: u32,
    /// Numbers of the endpoints that clients are to keep.
    pub(super) sticky: BTreeMap<SocketAddr, u32>,
}

impl Port {
    /// The number of a balancing role's list.
    pub(super) fn list(&self, role: Role) -> u32 {
        self.first_list + u32::from(role == Role::Local)
    }
}

impl Frame {
    pub(super) fn new(family: Family, config: &Config) -> Frame {
        let table = Table::new(family.into(), TABLE);
        let address = if family == Family::Ipv4 { KeyType::Ipv4 } else { KeyType::Ipv6 };
        let place = [address, KeyType::Protocol, KeyType::Port];
        let own = |ranges: &[Cidr]| ranges.iter().copied().filter(|range| range.family() == family).collect();
        Frame {
            services: Set::verdict_map(&table, "services", &place),
            node_ports: Set::verdict_map(&table, "node-ports", &place[1..]),
            no_endpoints: Set::verdict_map(&table, "no-endpoints", &place),
            no_endpoints_node_ports: Set::verdict_map(&table, "no-endpoints-node-ports", &place[1..]),
            firewall: Set::verdict_map(&table, "firewall", &place),
            cluster_ips: Set::new(&table, "cluster-ips", &[address]),
            hairpin: Set::new(&table, "hairpin", &[address, address]),
            lists: Vec::new(),
            clients: Set::new(&table, "clients", &[NUMBER, address]).timeout(AFFINITY_DEFAULT),
            cluster_cidrs: own(&config.cluster_cidrs),
            node_port_addresses: own(&config.node_port_addresses),
            masquerade_all: config.masquerade_all,
            localhost: config.localhost_node_ports && family == Family::Ipv4,
            family,
            table,
        }
    }

    /// Everything, replacing whatever is there.
    pub(super) fn write(&mut self, batch: &mut Batch) {
        self.lists.clear();
        batch.delete_table(&self.table);
        batch.add_table(&self.table);
        let sets = [
            &self.services,
            &self.node_ports,
            &self.no_endpoints,
            &self.no_endpoints_node_ports,
            &self.firewall,
            &self.cluster_ips,
            &self.hairpin,
            &self.clients,
        ];
        sets.into_iter().for_each(|set| batch.add_set(set));
        for chain in [SERVICES, CHECK, REJECT, SERVICE_CIDRS] {
            batch.add_chain(&Chain::regular(&self.table, chain));
        }
        let base = |batch: &mut Batch, name: &str, kind, point, priority, rules: &[Vec<Expr>]| {
            batch.add_chain(&Chain::base(&self.table, name, kind, point, priority));
            rules.iter().for_each(|rule| batch.add_rule(&self.table, name, rule));
        };
        use ChainType::{Filter, Nat};
        let (fresh, jump) = (is_new(), |chain: &str| vec![expr::verdict(&Verdict::Jump(chain.into()))]);
        let firewall = [rule([&fresh[..], &self.place(), &[expr::lookup_verdict(&self.firewall, 0)]])];
        let check = [rule([&fresh[..], &is_rewritten(Cmp::Eq), &jump(CHECK)])];
        let services = [jump(SERVICES)];
        for (hook, point) in [("prerouting", Point::Prerouting), ("output", Point::Output)] {
            base(batch, &format!("firewall-{hook}"), Filter, point, DESTINATION_NAT - 10, &firewall);
            base(batch, &format!("nat-{hook}"), Nat, point, DESTINATION_NAT, &services);
            base(batch, &format!("check-{hook}"), Filter, point, DESTINATION_NAT + 10, &check);
        }
        base(batch, "nat-postrouting", Nat, Point::Postrouting, SOURCE_NAT, &self.masquerading());
        if self.localhost {
            base(batch, "guard-localhost", Filter, Point::Input, 0, &[guard_localhost()]);
        }
        self.dispatch(batch);
        self.refusals(batch);
    }

    fn dispatch(&self, batch: &mut Batch) {
        if self.masquerade_all || !self.cluster_cidrs.is_empty() {
            // So that a route for the Services' range to any node works.
            let outside: Vec<Expr> = match self.masquerade_all {
                true => Vec::new(),
                false => self.cluster_cidrs.iter().flat_map(|range| self.source_in(*range, Cmp::Neq)).collect(),
            };
            let to_service = [self.destination(0), expr::lookup(&self.cluster_ips, 0, false)];
            batch.add_rule(&self.table, SERVICES, &rule([&outside[..], &to_service, &mark()]));
        }
        let lookup = [expr::lookup_verdict(&self.services, 0)];
        batch.add_rule(&self.table, SERVICES, &rule([&self.place()[..], &lookup]));
        for condition in self.node_port_conditions() {
            let lookup = [expr::lookup_verdict(&self.node_ports, 0)];
            batch.add_rule(&self.table, SERVICES, &rule([&condition[..], &port(), &lookup]));
        }
    }

    /// What was not rewritten goes to a port without endpoints, to a port that a Service has not, or
    /// to an address of no Service. (The last is dropped: the Service may just not be known yet.)
    fn refusals(&self, batch: &mut Batch) {
        let lookup = [expr::lookup_verdict(&self.no_endpoints, 0)];
        batch.add_rule(&self.table, CHECK, &rule([&self.place()[..], &lookup]));
        for condition in self.node_port_conditions() {
            let lookup = [expr::lookup_verdict(&self.no_endpoints_node_ports, 0)];
            batch.add_rule(&self.table, CHECK, &rule([&condition[..], &port(), &lookup]));
        }
        let to_service = [self.destination(0), expr::lookup(&self.cluster_ips, 0, false), reject()];
        batch.add_rule(&self.table, CHECK, &to_service);
        batch.add_rule(&self.table, CHECK, &[expr::verdict(&Verdict::Goto(SERVICE_CIDRS.into()))]);
        let answer = expr::reject(self.family.into(), Reject::PortUnreachable);
        batch.add_rule(&self.table, REJECT, &[answer]);
    }

    /// Addresses of these ranges that are no Service's are dropped.
    pub(super) fn write_service_cidrs(&self, batch: &mut Batch, ranges: &[Cidr]) {
        batch.flush_chain(&self.table, SERVICE_CIDRS);
        for range in ranges.iter().filter(|range| range.family() == self.family) {
            let drop = [expr::verdict(&Verdict::Drop)];
            batch.add_rule(&self.table, SERVICE_CIDRS, &rule([&self.destination_in(*range, Cmp::Eq)[..], &drop]));
        }
    }

    fn masquerading(&self) -> [Vec<Expr>; 2] {
        let mark = MASQUERADE_MARK.to_ne_bytes();
        let marked = vec![
            expr::meta(Meta::Mark, 0),
            expr::bitwise(0, 1, &mark, &[0; 4]),
            expr::cmp(Cmp::Neq, 1, &[0; 4]),
            expr::bitwise(0, 0, &[0xff; 4], &mark),
            expr::set_meta(Meta::Mark, 0),
            expr::masquerade(),
        ];
        let to_itself = [
            expr::source(self.family.into(), 0),
            self.destination(self.words()),
            expr::lookup(&self.hairpin, 0, false),
            expr::masquerade(),
        ];
        [marked, rule([&is_rewritten(Cmp::Neq)[..], &to_itself])]
    }

    /// Packets to addresses of the node where node ports are served, one condition for each range.
    fn node_port_conditions(&self) -> Vec<Vec<Expr>> {
        let local = [expr::fib_daddr_type(0), expr::cmp(Cmp::Eq, 0, &expr::ADDRESS_LOCAL)];
        let loopback = if self.family == Family::Ipv4 { "127.0.0.0/8" } else { "::1/128" };
        let loopback: Cidr = loopback.parse().expect("a valid range");
        let elsewhere = if self.localhost { Vec::new() } else { self.destination_in(loopback, Cmp::Neq).to_vec() };
        let ranges = self.node_port_addresses.iter().map(|range| self.destination_in(*range, Cmp::Eq).to_vec());
        let ranges: Vec<Vec<Expr>> = ranges.collect();
        let ranges = if ranges.is_empty() { vec![Vec::new()] } else { ranges };
        ranges.into_iter().map(|range| rule([&local[..], &elsewhere, &range])).collect()
    }

    /// Makes the maps that a port's lists are in, unless they are there.
    pub(super) fn make_lists(&mut self, batch: &mut Batch, port: &Port) {
        let address = if self.family == Family::Ipv4 { KeyType::Ipv4 } else { KeyType::Ipv6 };
        while self.lists.len() <= map_of(port.first_list) {
            let name = |kind: &str| format!("{kind}-{}", self.lists.len());
            let (key, place) = ([NUMBER; 2], [address, KeyType::Port]);
            let lists = Lists {
                endpoints: Set::map(&self.table, &name("endpoints"), &key, &place),
                sticky: Set::verdict_map(&self.table, &name("sticky"), &key),
            };
            batch.add_set(&lists.endpoints);
            batch.add_set(&lists.sticky);
            self.lists.push(lists);
        }
    }

    /// The map that a list is in.
    pub(super) fn list(&self, number: u32, sticky: bool) -> &Set {
        let lists = &self.lists[map_of(number)];
        if sticky { &lists.sticky } else { &lists.endpoints }
    }

    /// The rules of a chain of a port.
    pub(super) fn write_chain(&self, batch: &mut Batch, port: &Port, role: Role, body: Body) {
        let chain = role.chain(&port.base);
        let goto = |role: Role| expr::verdict(&Verdict::Goto(role.chain(&port.base)));
        let from_node = [expr::fib_saddr_type(0), expr::cmp(Cmp::Eq, 0, &expr::ADDRESS_LOCAL)];
        let rules: Vec<Vec<Expr>> = match body {
            Body::Balance(endpoints) => {
                let list = self.list(port.list(role), false);
                let send = [expr::lookup_map(list, 0, 2), expr::dnat(self.family.into(), 2, Some(2 + self.words()))];
                vec![rule([&choose(port.list(role), endpoints), &send])]
            }
            Body::BalanceSticky(endpoints) => {
                let keep = endpoints
                    .iter()
                    .filter_map(|endpoint| Some((endpoint.address, *port.sticky.get(&endpoint.address)?)));
                let keep = keep.map(|(address, number)| {
                    let known = [expr::lookup(&self.clients, 0, false), goto(Role::Endpoint(address))];
                    rule([&self.client_of(number), &known])
                });
                let any = [expr::lookup_verdict(self.list(port.list(role), true), 0)];
                keep.chain([rule([&choose(port.list(role), endpoints.len()), &any])]).collect()
            }
            Body::Remember(timeout) => {
                let Role::Endpoint(address) = role else { return };
                // No more than so many are remembered; others are served all the same.
                let number = port.sticky.get(&address);
                let remember = number.map(|number| {
                    rule([&self.client_of(*number), &[expr::update_set_for(&self.clients, 0, None, timeout)]])
                });
                let place =
                    [expr::load_address(0, address.ip()), expr::load(self.words(), &address.port().to_be_bytes())];
                let send = rule([&place, &[expr::dnat(self.family.into(), 0, Some(self.words()))]]);
                remember.into_iter().chain([send]).collect()
            }
            // The endpoint may be on another node, whose reply must come back this way.
            Body::ThroughNode => vec![rule([&mark()[..], &[goto(Role::Cluster)]])],
            Body::KeepSource { served } => {
                let pods = self.cluster_cidrs.iter();
                let pods = pods.map(|range| rule([&self.source_in(*range, Cmp::Eq)[..], &[goto(Role::Cluster)]]));
                let node = rule([&from_node[..], &mark(), &[goto(Role::Cluster)]]);
                let others = served.then(|| vec![goto(Role::Local)]);
                pods.chain([node]).chain(others).collect()
            }
            Body::Firewall(sources) => {
                let allow = [expr::verdict(&Verdict::Return)];
                let allowed = sources.iter().map(|range| rule([&self.source_in(*range, Cmp::Eq)[..], &allow]));
                allowed.chain([vec![expr::verdict(&Verdict::Drop)]]).collect()
            }
        };
        rules.iter().for_each(|rule| batch.add_rule(&self.table, &chain, rule));
    }

    /// The key of an endpoint's client.
    fn client_of(&self, endpoint: u32) -> [Expr; 2] {
        [expr::load(0, &endpoint.to_ne_bytes()), expr::source(self.family.into(), 1)]
    }

    /// Registers of an address.
    fn words(&self) -> Register {
        if self.family == Family::Ipv4 { 1 } else { 4 }
    }

    fn destination(&self, to: Register) -> Expr {
        expr::destination(self.family.into(), to)
    }

    /// The key of maps by address, protocol and port.
    fn place(&self) -> [Expr; 3] {
        let words = self.words();
        [self.destination(0), expr::meta(Meta::L4Proto, words), expr::th_dport(words + 1)]
    }

    fn source_in(&self, range: Cidr, operator: Cmp) -> [Expr; 3] {
        within(expr::source(self.family.into(), 0), range, operator)
    }

    fn destination_in(&self, range: Cidr, operator: Cmp) -> [Expr; 3] {
        within(self.destination(0), range, operator)
    }
}

/// The key of a random endpoint of a list.
fn choose(list: u32, endpoints: usize) -> [Expr; 2] {
    [expr::load(0, &list.to_ne_bytes()), expr::numgen(Numgen::Random, endpoints as u32, 1)]
}

/// Which of the maps a list is in.
fn map_of(list: u32) -> usize {
    (list / 2 / PORTS_OF_A_MAP) as usize
}

/// Compares the loaded address's network with the range.
fn within(load: Expr, range: Cidr, operator: Cmp) -> [Expr; 3] {
    let (base, mask) = range.octets();
    [load, expr::bitwise(0, 0, &mask, &vec![0; mask.len()]), expr::cmp(operator, 0, &base)]
}

/// The key of maps by protocol and port.
fn port() -> [Expr; 2] {
    [expr::meta(Meta::L4Proto, 0), expr::th_dport(1)]
}

fn is_new() -> [Expr; 3] {
    bits(Ct::State, expr::ct_state::NEW, Cmp::Neq)
}

/// With `Neq` if the destination was rewritten, with `Eq` if not.
fn is_rewritten(operator: Cmp) -> [Expr; 3] {
    bits(Ct::Status, expr::CT_STATUS_DNAT, operator)
}

fn bits(key: Ct, mask: u32, operator: Cmp) -> [Expr; 3] {
    [expr::ct(key, 0), expr::bitwise(0, 0, &mask.to_ne_bytes(), &[0; 4]), expr::cmp(operator, 0, &[0; 4])]
}

fn mark() -> [Expr; 3] {
    let (mask, mark) = ((!MASQUERADE_MARK).to_ne_bytes(), MASQUERADE_MARK.to_ne_bytes());
    [expr::meta(Meta::Mark, 0), expr::bitwise(0, 0, &mask, &mark), expr::set_meta(Meta::Mark, 0)]
}

fn reject() -> Expr {
    expr::verdict(&Verdict::Goto(REJECT.into()))
}

/// Serving node ports on 127.0.0.1 makes the kernel route such addresses; neighbours must not gain
/// from that (CVE-2020-8558).
fn guard_localhost() -> Vec<Expr> {
    let loopback: Cidr = "127.0.0.0/8".parse().expect("a valid range");
    let from_outside = [expr::meta(Meta::IifName, 0), expr::cmp(Cmp::Neq, 0, &expr::interface_name("lo"))];
    let here = within(expr::ip_daddr(0), loopback, Cmp::Eq);
    rule([&from_outside[..], &here, &is_rewritten(Cmp::Eq), &[expr::verdict(&Verdict::Drop)]])
}

fn rule<const N: usize>(parts: [&[Expr]; N]) -> Vec<Expr> {
    parts.concat()
}

/// The name of the chain that refuses with an answer.
pub(super) fn reject_chain() -> Verdict {
    Verdict::Goto(REJECT.into())
}
