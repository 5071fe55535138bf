//! nf_tables over netlink: tables, chains, rules, sets and maps, in atomic batches; and the
//! connections that the kernel tracks.
//!
//! It encodes what it is given and knows nothing of what rules are for. It exists because a fresh
//! machine has no `nft` program, and because spawning one costs more than the change it makes
//! (docs/adr/003-nft-over-netlink.md). Message and attribute numbers are those of the kernel's
//! `linux/netfilter/nf_tables.h`.
//!
//! A [`Batch`] is applied whole or not at all, in the network namespace of the thread that opened
//! the [`Socket`].

mod attribute;
mod batch;
pub mod conntrack;
pub mod expr;
mod set;
mod socket;

pub use batch::{Batch, Chain, ChainType, Hook, Point, Policy};
pub use expr::{Expr, Verdict};
pub use set::{Element, KeyType, MapData, Set};
pub use socket::{Error, Socket};

/// Which packets a table sees (NFPROTO_*).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet = 1,
    Ipv4 = 2,
    Ipv6 = 10,
}

/// A table's identity; every object lives in one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Table {
    pub family: Family,
    pub name: String,
}

impl Table {
    pub fn new(family: Family, name: &str) -> Self {
        Table { family, name: name.to_owned() }
    }
}
