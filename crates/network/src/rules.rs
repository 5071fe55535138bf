//! The firewall rules of pod networking: masquerading of what leaves the cluster, and host ports.
//!
//! They are a pure function of the allocations, applied whole when the process starts and by
//! elements after that.

use std::net::{IpAddr, Ipv4Addr};

use nft::expr::{self, Cmp, Ct, Meta, Verdict};
use nft::{Batch, Chain, ChainType, Element, Expr, Family, KeyType, Point, Set, Table};

use crate::addresses::{Allocation, Range};
use crate::{PortMapping, Protocol};

/// The table and its maps.
pub struct Rules {
    pub table: Table,
    /// Host port on any address of the node to pod address and port.
    any: Set,
    /// Host port on one address.
    single: Set,
    /// Pairs of equal addresses: a pod that reaches itself through its host port.
    hairpin: Set,
}

const SOURCE_NAT: i32 = 100;
const DESTINATION_NAT: i32 = -100;

impl Rules {
    pub fn new() -> Rules {
        let table = Table::new(Family::Ipv4, "isopod-network");
        let target = [KeyType::Ipv4, KeyType::Port];
        Rules {
            any: Set::map(&table, "hostports", &[KeyType::Protocol, KeyType::Port], &target),
            single: Set::map(
                &table,
                "hostports-on-address",
                &[KeyType::Ipv4, KeyType::Protocol, KeyType::Port],
                &target,
            ),
            hairpin: Set::new(&table, "hairpin", &[KeyType::Ipv4, KeyType::Ipv4]),
            table,
        }
    }

    /// Everything, replacing whatever was there.
    pub fn all<'a>(&self, cluster: Range, bridge: &str, allocations: impl Iterator<Item = &'a Allocation>) -> Batch {
        let mut batch = Batch::new();
        batch.delete_table(&self.table);
        batch.add_table(&self.table);
        for set in [&self.any, &self.single, &self.hairpin] {
            batch.add_set(set);
        }
        for (name, point) in [("prerouting", Point::Prerouting), ("output", Point::Output)] {
            batch.add_chain(&Chain::base(&self.table, name, ChainType::Nat, point, DESTINATION_NAT));
            self.host_port_rules(&mut batch, name);
        }
        batch.add_chain(&Chain::base(&self.table, "postrouting", ChainType::Nat, Point::Postrouting, SOURCE_NAT));
        for rule in self.masquerade_rules(cluster, bridge) {
            batch.add_rule(&self.table, "postrouting", &rule);
        }
        for allocation in allocations {
            self.add(&mut batch, allocation);
        }
        batch
    }

    /// The pod's host ports begin to work. Fails as a whole if another pod has one of them.
    pub fn add(&self, batch: &mut Batch, allocation: &Allocation) {
        for mapping in &allocation.ports {
            let (map, element) = self.element(allocation.address, mapping);
            batch.add_elements(map, [&element]);
        }
        if !allocation.ports.is_empty() {
            batch.add_elements(&self.hairpin, [&hairpin(allocation.address)]);
        }
    }

    /// The pod's host ports end. Adds them first, so that missing ones are no error.
    pub fn remove(&self, batch: &mut Batch, allocation: &Allocation) {
        self.add(batch, allocation);
        for mapping in &allocation.ports {
            let (map, element) = self.element(allocation.address, mapping);
            batch.delete_elements(map, [&element]);
        }
        if !allocation.ports.is_empty() {
            batch.delete_elements(&self.hairpin, [&hairpin(allocation.address)]);
        }
    }

    fn element(&self, pod: Ipv4Addr, mapping: &PortMapping) -> (&Set, Element) {
        let (protocol, port) = ([protocol_number(mapping.protocol)], mapping.host_port.to_be_bytes());
        let (map, key) = match mapping.host_ip {
            Some(IpAddr::V4(ip)) if !ip.is_unspecified() => {
                (&self.single, Element::key(&[&ip.octets(), &protocol, &port]))
            }
            _ => (&self.any, Element::key(&[&protocol, &port])),
        };
        (map, key.value(&[&pod.octets(), &mapping.container_port.to_be_bytes()]))
    }

    fn host_port_rules(&self, batch: &mut Batch, chain: &str) {
        let to_pod = [expr::dnat(Family::Ipv4, 8, Some(9))];
        let on_address =
            [expr::ip_daddr(0), expr::meta(Meta::L4Proto, 1), expr::th_dport(2), expr::lookup_map(&self.single, 0, 8)];
        let on_any = [
            expr::fib_daddr_type(0),
            expr::cmp(Cmp::Eq, 0, &expr::ADDRESS_LOCAL),
            expr::meta(Meta::L4Proto, 0),
            expr::th_dport(1),
            expr::lookup_map(&self.any, 0, 8),
        ];
        batch.add_rule(&self.table, chain, &[&on_address[..], &to_pod].concat());
        batch.add_rule(&self.table, chain, &[&on_any[..], &to_pod].concat());
    }

    fn masquerade_rules(&self, cluster: Range, bridge: &str) -> Vec<Vec<Expr>> {
        let mask = cluster.mask().to_be_bytes();
        let inside = |operator, load: Expr| {
            [load, expr::bitwise(0, 0, &mask, &[0; 4]), expr::cmp(operator, 0, &cluster.base.octets())]
        };
        let to_pods = [expr::meta(Meta::OifName, 0), expr::cmp(Cmp::Eq, 0, &expr::interface_name(bridge))];
        let rewritten = [
            expr::ct(Ct::Status, 0),
            expr::bitwise(0, 0, &expr::CT_STATUS_DNAT.to_ne_bytes(), &[0; 4]),
            expr::cmp(Cmp::Neq, 0, &[0; 4]),
        ];
        let loopback =
            [expr::ip_saddr(0), expr::bitwise(0, 0, &[255, 0, 0, 0], &[0; 4]), expr::cmp(Cmp::Eq, 0, &[127, 0, 0, 0])];
        let multicast = [
            expr::ip_daddr(0),
            expr::bitwise(0, 0, &[240, 0, 0, 0], &[0; 4]),
            expr::cmp(Cmp::Eq, 0, &[224, 0, 0, 0]),
            expr::verdict(&Verdict::Return),
        ];
        let masquerade = [expr::masquerade()];
        vec![
            multicast.to_vec(),
            [&inside(Cmp::Eq, expr::ip_saddr(0))[..], &inside(Cmp::Neq, expr::ip_daddr(0)), &masquerade].concat(),
            // The node itself through 127.0.0.1, whose address must not leave it.
            [&to_pods[..], &rewritten, &loopback, &masquerade].concat(),
            [&[expr::ip_saddr(0), expr::ip_daddr(1), expr::lookup(&self.hairpin, 0, false)][..], &masquerade].concat(),
        ]
    }
}

fn hairpin(address: Ipv4Addr) -> Element {
    Element::key(&[&address.octets(), &address.octets()])
}

fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}
