//! The nftables applier: one table a family, changed in place.
//!
//! A packet costs two map lookups however many Services there are, and a change costs the elements
//! and the rules it touches, in one atomic batch. The table has a fixed number of sets, shared by
//! all Services: the kernel finds sets by walking a list, so that a set for each Service (as
//! anonymous maps in rules are) would make a full sync quadratic; chains are hashed.

mod frame;
mod render;
mod table;

use anyhow::Context;
use nft::{Batch, Socket};

use self::table::FamilyTable;
use crate::Config;
use crate::applier::Applier;
use crate::rules::{Changes, Family, RuleSet};

/// The table's name in each family.
pub const TABLE: &str = "isopod-proxy";

pub struct Nftables {
    socket: Socket,
    tables: Vec<FamilyTable>,
}

impl Nftables {
    pub fn build(config: &Config) -> anyhow::Result<Box<dyn Applier>> {
        if config.localhost_node_ports {
            let path = "/proc/sys/net/ipv4/conf/all/route_localnet";
            if let Err(error) = std::fs::write(path, "1") {
                tracing::warn!("node ports may not work on 127.0.0.1: cannot write 1 to {path}: {error}");
            }
        }
        let socket = Socket::open().context("open nf_tables")?;
        let tables = config.families().into_iter().map(|family| FamilyTable::new(family, config)).collect();
        Ok(Box::new(Nftables { socket, tables }))
    }

    fn apply(&mut self, mut batch: Batch, changes: &Changes) -> anyhow::Result<()> {
        for table in &mut self.tables {
            table.change(&mut batch, changes);
        }
        Ok(self.socket.commit(&batch)?)
    }
}

impl Applier for Nftables {
    fn replace(&mut self, rules: &RuleSet) -> anyhow::Result<()> {
        let mut batch = Batch::new();
        self.tables.iter_mut().for_each(|table| table.reset(&mut batch));
        self.apply(batch, &Changes::all(rules))
    }

    fn update(&mut self, changes: &Changes) -> anyhow::Result<()> {
        self.tables.iter_mut().for_each(|table| table.sweep(&mut self.socket));
        self.apply(Batch::new(), changes)
    }
}

/// Removes the tables of all families.
pub fn clean_up() -> anyhow::Result<()> {
    let mut socket = Socket::open().context("open nf_tables")?;
    let mut batch = Batch::new();
    for family in [Family::Ipv4, Family::Ipv6] {
        // A kernel without IPv6 has no tables of it, and refuses to delete any.
        if socket.tables(family.into()).is_ok_and(|tables| tables.iter().any(|name| name == TABLE)) {
            batch.delete_table(&nft::Table::new(family.into(), TABLE));
        }
    }
    socket.commit(&batch).context("remove the Services' rules")
}

impl From<Family> for nft::Family {
    fn from(family: Family) -> nft::Family {
        match family {
            Family::Ipv4 => nft::Family::Ipv4,
            Family::Ipv6 => nft::Family::Ipv6,
        }
    }
}
