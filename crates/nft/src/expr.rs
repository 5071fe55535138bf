//! Rule expressions: the kernel's small register machine.
//!
//! Registers are the sixteen 4-byte ones (NFT_REG32_00...), numbered from 0 here; a value longer
//! than 4 bytes takes several consecutive ones, which is also how concatenated keys are built.

use std::net::IpAddr;
use std::time::Duration;

use crate::attribute::Attributes;
use crate::set::Set;

/// One encoded expression.
#[derive(Clone, Debug)]
pub struct Expr {
    name: &'static str,
    data: Attributes,
}

/// What happens to a packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

/// A 4-byte register, 0 to 15.
pub type Register = u32;

const REG32_BASE: u32 = 8;
const REG_VERDICT: u32 = 0;

#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub enum Meta {
    Mark = 3,
    IifName = 6,
    OifName = 7,
    NfProto = 15,
    L4Proto = 16,
}

#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub enum Ct {
    /// Bits of [`ct_state`].
    State = 0,
    Direction = 1,
    /// Bits of IPS_*; [`CT_STATUS_DNAT`] is the useful one.
    Status = 2,
    Mark = 3,
}

pub mod ct_state {
    //! Bits of a connection's state as the `ct state` register holds them (host byte order).
    pub const INVALID: u32 = 1;
    pub const ESTABLISHED: u32 = 2;
    pub const RELATED: u32 = 4;
    pub const NEW: u32 = 8;
}

/// The connection's destination was rewritten.
pub const CT_STATUS_DNAT: u32 = 1 << 5;

#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub enum Cmp {
    Eq = 0,
    Neq = 1,
}

/// How packets are turned away.
#[derive(Clone, Copy, Debug)]
pub enum Reject {
    TcpReset,
    /// Port unreachable, in the packet's own family.
    PortUnreachable,
}

/// How [`numgen`] counts.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub enum Numgen {
    Incremental = 0,
    Random = 1,
}

impl Expr {
    fn new(name: &'static str, data: Attributes) -> Self {
        Expr { name, data }
    }

    fn with<T>(self, value: Option<T>, add: impl FnOnce(Attributes, T) -> Attributes) -> Self {
        Expr { data: self.data.optional(value, add), ..self }
    }

    pub(crate) fn encode(&self) -> Attributes {
        Attributes::default().string(1, self.name).nest(2, self.data.clone())
    }
}

fn attributes() -> Attributes {
    Attributes::default()
}

fn register(number: Register) -> u32 {
    REG32_BASE + number
}

fn value(bytes: &[u8]) -> Attributes {
    attributes().bytes(1, bytes)
}

impl Verdict {
    pub(crate) fn encode(&self) -> Attributes {
        let (code, chain) = match self {
            Verdict::Drop => (0, None),
            Verdict::Accept => (1, None),
            Verdict::Jump(chain) => (-3, Some(chain)),
            Verdict::Goto(chain) => (-4, Some(chain)),
            Verdict::Return => (-5i32, None),
        };
        let verdict = attributes().u32(1, code as u32).optional(chain, |a, chain| a.string(2, chain));
        attributes().nest(2, verdict)
    }
}

/// Loads packet metadata.
pub fn meta(key: Meta, to: Register) -> Expr {
    Expr::new("meta", attributes().u32(1, register(to)).u32(2, key as u32))
}

/// Stores a register into packet metadata (only the mark is writable).
pub fn set_meta(key: Meta, from: Register) -> Expr {
    Expr::new("meta", attributes().u32(2, key as u32).u32(3, register(from)))
}

/// Loads `length` bytes of the network header.
pub fn network_header(offset: u32, length: u32, to: Register) -> Expr {
    payload(1, offset, length, to)
}

/// Loads `length` bytes of the transport header.
pub fn transport_header(offset: u32, length: u32, to: Register) -> Expr {
    payload(2, offset, length, to)
}

fn payload(base: u32, offset: u32, length: u32, to: Register) -> Expr {
    Expr::new("payload", attributes().u32(1, register(to)).u32(2, base).u32(3, offset).u32(4, length))
}

/// Source address of a family's packets: one register for IPv4, four for IPv6.
pub fn source(family: crate::Family, to: Register) -> Expr {
    if family == crate::Family::Ipv6 { network_header(8, 16, to) } else { ip_saddr(to) }
}

/// Destination address of a family's packets: one register for IPv4, four for IPv6.
pub fn destination(family: crate::Family, to: Register) -> Expr {
    if family == crate::Family::Ipv6 { network_header(24, 16, to) } else { ip_daddr(to) }
}

/// IPv4 source address.
pub fn ip_saddr(to: Register) -> Expr {
    network_header(12, 4, to)
}

/// IPv4 destination address.
pub fn ip_daddr(to: Register) -> Expr {
    network_header(16, 4, to)
}

/// Destination port of TCP, UDP and SCTP.
pub fn th_dport(to: Register) -> Expr {
    transport_header(2, 2, to)
}

/// Goes on with the rule only if the register compares so with `bytes`.
pub fn cmp(operator: Cmp, from: Register, bytes: &[u8]) -> Expr {
    Expr::new("cmp", attributes().u32(1, register(from)).u32(2, operator as u32).nest(3, value(bytes)))
}

/// `to = (from & mask) ^ xor`, over as many bytes as `mask` has.
pub fn bitwise(from: Register, to: Register, mask: &[u8], xor: &[u8]) -> Expr {
    let data = attributes().u32(1, register(from)).u32(2, register(to)).u32(3, mask.len() as u32);
    Expr::new("bitwise", data.nest(4, value(mask)).nest(5, value(xor)))
}

/// Puts a constant into a register.
pub fn load(to: Register, bytes: &[u8]) -> Expr {
    Expr::new("immediate", attributes().u32(1, register(to)).nest(2, value(bytes)))
}

/// Puts an address into registers (one for IPv4, four for IPv6).
pub fn load_address(to: Register, address: IpAddr) -> Expr {
    match address {
        IpAddr::V4(v4) => load(to, &v4.octets()),
        IpAddr::V6(v6) => load(to, &v6.octets()),
    }
}

/// Ends the rule with a verdict.
pub fn verdict(verdict: &Verdict) -> Expr {
    Expr::new("immediate", attributes().u32(1, REG_VERDICT).nest(2, verdict.encode()))
}

/// Goes on only if the key is in the set (or, inverted, if it is not).
pub fn lookup(set: &Set, key: Register, inverted: bool) -> Expr {
    let data = lookup_attributes(set, key).optional(inverted.then_some(1), |a, flag| a.u32(5, flag));
    Expr::new("lookup", data)
}

/// Loads the value mapped to the key, or goes no further.
pub fn lookup_map(map: &Set, key: Register, to: Register) -> Expr {
    Expr::new("lookup", lookup_attributes(map, key).u32(3, register(to)))
}

/// Does what the verdict map says for the key, or goes on with the rule if it says nothing.
pub fn lookup_verdict(map: &Set, key: Register) -> Expr {
    Expr::new("lookup", lookup_attributes(map, key).u32(3, REG_VERDICT))
}

fn lookup_attributes(set: &Set, key: Register) -> Attributes {
    attributes().string(1, &set.name).u32(2, register(key)).optional(set.id, |a, id| a.u32(4, id))
}

/// Loads connection tracking data.
pub fn ct(key: Ct, to: Register) -> Expr {
    Expr::new("ct", attributes().u32(1, register(to)).u32(2, key as u32))
}

/// Loads a number below `modulus`.
pub fn numgen(how: Numgen, modulus: u32, to: Register) -> Expr {
    Expr::new("numgen", attributes().u32(1, register(to)).u32(2, modulus).u32(3, how as u32).u32(4, 0))
}

/// Loads the kind of the packet's destination address: [`ADDRESS_LOCAL`] and others (RTN_*).
pub fn fib_daddr_type(to: Register) -> Expr {
    Expr::new("fib", attributes().u32(1, register(to)).u32(2, 3).u32(3, 2))
}

/// Loads the kind of the packet's source address.
pub fn fib_saddr_type(to: Register) -> Expr {
    Expr::new("fib", attributes().u32(1, register(to)).u32(2, 3).u32(3, 1))
}

/// RTN_LOCAL, as [`fib_daddr_type`] loads it.
pub const ADDRESS_LOCAL: [u8; 4] = 2u32.to_ne_bytes();

/// Rewrites the destination to the address and, if given, the port in registers.
pub fn dnat(family: crate::Family, address: Register, port: Option<Register>) -> Expr {
    nat(1, family, address, port)
}

/// Rewrites the source.
pub fn snat(family: crate::Family, address: Register, port: Option<Register>) -> Expr {
    nat(0, family, address, port)
}

fn nat(kind: u32, family: crate::Family, address: Register, port: Option<Register>) -> Expr {
    let data = attributes().u32(1, kind).u32(2, family as u32).u32(3, register(address));
    Expr::new("nat", data.optional(port, |a, port| a.u32(5, register(port))))
}

/// Rewrites the source to the outgoing interface's address, with random ports.
pub fn masquerade() -> Expr {
    const RANDOM_FULLY: u32 = 1 << 4;
    Expr::new("masq", attributes().u32(1, RANDOM_FULLY))
}

/// Counts packets and bytes.
pub fn counter() -> Expr {
    Expr::new("counter", attributes().u64(1, 0).u64(2, 0))
}

/// Turns the packet away with an answer, in a table of that family.
pub fn reject(family: crate::Family, how: Reject) -> Expr {
    let (kind, code) = match (how, family) {
        (Reject::TcpReset, _) => (1, 0u8),
        (Reject::PortUnreachable, crate::Family::Ipv4) => (0, 3),
        (Reject::PortUnreachable, crate::Family::Ipv6) => (0, 4),
        (Reject::PortUnreachable, crate::Family::Inet) => (2, 1),
    };
    Expr::new("reject", attributes().u32(1, kind).bytes(2, &[code]))
}

/// Adds the key (and for maps the data) in registers to a dynamic set, or renews its timeout; what
/// data there was stays. Goes no further if the set is full.
pub fn update_set(set: &Set, key: Register, data: Option<Register>) -> Expr {
    const UPDATE: u32 = 1;
    let set = attributes().string(1, &set.name).optional(set.id, |a, id| a.u32(2, id));
    let attributes = set.u32(3, UPDATE).u32(4, register(key));
    Expr::new("dynset", attributes.optional(data, |a, data| a.u32(5, register(data))))
}

/// Like [`update_set`], with a timeout of the element's own.
pub fn update_set_for(set: &Set, key: Register, data: Option<Register>, timeout: Duration) -> Expr {
    update_set(set, key, data).with(Some(timeout), |a, timeout| a.u64(6, timeout.as_millis() as u64))
}

/// An interface name as the metadata registers hold it: 16 bytes, NUL-padded.
pub fn interface_name(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    let length = name.len().min(15);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    bytes
}
