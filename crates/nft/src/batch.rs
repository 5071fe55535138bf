//! A list of changes that the kernel applies whole or not at all.

use crate::attribute::Attributes;
use crate::expr::Expr;
use crate::set::{Element, Set};
use crate::{Family, Table};

/// Changes in order; a later one may refer to what an earlier one made.
#[derive(Debug, Default)]
pub struct Batch {
    pub(crate) messages: Vec<Message>,
    sets: u32,
}

#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) family: Family,
    pub(crate) body: Attributes,
    /// For errors: what was to be done to which object.
    pub(crate) what: What,
}

/// Kept as parts, so that naming costs nothing unless there is an error.
#[derive(Debug)]
pub(crate) struct What {
    pub(crate) action: &'static str,
    pub(crate) table: String,
    pub(crate) name: String,
}

/// A chain; with a hook it is where packets enter.
#[derive(Clone, Debug)]
pub struct Chain {
    pub table: Table,
    pub name: String,
    pub hook: Option<Hook>,
}

#[derive(Clone, Debug)]
pub struct Hook {
    pub chain_type: ChainType,
    pub point: Point,
    /// Lower runs first; NAT of destinations is -100, of sources 100, filtering 0.
    pub priority: i32,
    pub policy: Policy,
}

/// Where in a packet's path (NF_INET_*).
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub enum Point {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

#[derive(Clone, Copy, Debug)]
pub enum ChainType {
    Filter,
    Nat,
}

#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub enum Policy {
    Drop = 0,
    Accept = 1,
}

const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

mod kind {
    pub const NEW_TABLE: u16 = 0;
    pub const DELETE_TABLE: u16 = 2;
    pub const NEW_CHAIN: u16 = 3;
    pub const DELETE_CHAIN: u16 = 5;
    pub const NEW_RULE: u16 = 6;
    pub const DELETE_RULE: u16 = 8;
    pub const NEW_SET: u16 = 9;
    pub const DELETE_SET: u16 = 11;
    pub const NEW_ELEMENTS: u16 = 12;
    pub const DELETE_ELEMENTS: u16 = 14;
}

/// An attribute holds at most 64 KiB; this leaves room for headers.
const MAX_LIST_BYTES: usize = 60_000;

impl Chain {
    /// A chain that is jumped to.
    pub fn regular(table: &Table, name: &str) -> Self {
        Chain { table: table.clone(), name: name.into(), hook: None }
    }

    /// A chain that packets enter; accepts what no rule decides.
    pub fn base(table: &Table, name: &str, chain_type: ChainType, point: Point, priority: i32) -> Self {
        let hook = Hook { chain_type, point, priority, policy: Policy::Accept };
        Chain { table: table.clone(), name: name.into(), hook: Some(hook) }
    }
}

impl Batch {
    pub fn new() -> Self {
        Batch::default()
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Puts another batch's changes after this one's. Neither may have anonymous sets, which are
    /// numbered within their batch.
    pub fn append(&mut self, other: Batch) {
        self.messages.extend(other.messages);
    }

    /// No error if it exists.
    pub fn add_table(&mut self, table: &Table) {
        self.push(
            kind::NEW_TABLE,
            CREATE,
            table,
            "",
            "add table",
            Attributes::default().string(1, &table.name).u32(2, 0),
        );
    }

    /// Deletes the table and all in it; no error if there is none.
    pub fn delete_table(&mut self, table: &Table) {
        self.add_table(table);
        self.push(kind::DELETE_TABLE, 0, table, "", "delete table", Attributes::default().string(1, &table.name));
    }

    /// No error if the same chain exists.
    pub fn add_chain(&mut self, chain: &Chain) {
        let mut body = in_table(&chain.table).string(3, &chain.name);
        if let Some(hook) = &chain.hook {
            let kind = match hook.chain_type {
                ChainType::Filter => "filter",
                ChainType::Nat => "nat",
            };
            let place = Attributes::default().u32(1, hook.point as u32).u32(2, hook.priority as u32);
            body = body.nest(4, place).u32(5, hook.policy as u32).string(7, kind);
        }
        self.push(kind::NEW_CHAIN, CREATE, &chain.table, &chain.name, "add chain", body);
    }

    /// The chain must be empty and nothing may refer to it when the batch ends.
    pub fn delete_chain(&mut self, table: &Table, name: &str) {
        self.push(kind::DELETE_CHAIN, 0, table, name, "delete chain", in_table(table).string(3, name));
    }

    /// Removes the chain's rules.
    pub fn flush_chain(&mut self, table: &Table, name: &str) {
        self.push(kind::DELETE_RULE, 0, table, name, "flush chain", in_table(table).string(2, name));
    }

    /// Appends a rule.
    pub fn add_rule(&mut self, table: &Table, chain: &str, expressions: &[Expr]) {
        let list = expressions.iter().fold(Attributes::default(), |list, expr| list.nest(1, expr.encode()));
        let body = in_table(table).string(2, chain).nest(4, list);
        self.push(kind::NEW_RULE, CREATE | APPEND, table, chain, "add rule to chain", body);
    }

    /// No error if the same set exists.
    pub fn add_set(&mut self, set: &Set) {
        let id = set.id.unwrap_or_else(|| self.next_set_id());
        self.push(kind::NEW_SET, CREATE, &set.table, &set.name, "add set", set.encode(id));
    }

    pub fn delete_set(&mut self, set: &Set) {
        self.push(kind::DELETE_SET, 0, &set.table, &set.name, "delete set", in_table(&set.table).string(2, &set.name));
    }

    /// Elements that are there already, with the same data, are no error.
    pub fn add_elements<'a>(&mut self, set: &Set, elements: impl IntoIterator<Item = &'a Element>) {
        self.elements(kind::NEW_ELEMENTS, CREATE, set, "add elements to set", elements);
    }

    /// Elements must be there.
    pub fn delete_elements<'a>(&mut self, set: &Set, elements: impl IntoIterator<Item = &'a Element>) {
        self.elements(kind::DELETE_ELEMENTS, 0, set, "delete elements of set", elements);
    }

    /// Removes all elements.
    pub fn flush_set(&mut self, set: &Set) {
        self.push(
            kind::DELETE_ELEMENTS,
            0,
            &set.table,
            &set.name,
            "flush set",
            in_table(&set.table).string(2, &set.name),
        );
    }

    fn elements<'a>(
        &mut self,
        kind: u16,
        flags: u16,
        set: &Set,
        action: &'static str,
        elements: impl IntoIterator<Item = &'a Element>,
    ) {
        let mut list = Attributes::default();
        let mut elements = elements.into_iter().peekable();
        while let Some(element) = elements.next() {
            list = list.nest(1, element.encode());
            if list.0.len() > MAX_LIST_BYTES || elements.peek().is_none() {
                let body = in_table(&set.table).string(2, &set.name).optional(set.id, |a, id| a.u32(4, id));
                self.push(kind, flags, &set.table, &set.name, action, body.nest(3, std::mem::take(&mut list)));
            }
        }
    }

    pub(crate) fn next_set_id(&mut self) -> u32 {
        self.sets += 1;
        self.sets
    }

    fn push(&mut self, kind: u16, flags: u16, table: &Table, name: &str, action: &'static str, body: Attributes) {
        let what = What { action, table: table.name.clone(), name: name.to_owned() };
        self.messages.push(Message { kind, flags, family: table.family, body, what });
    }
}

fn in_table(table: &Table) -> Attributes {
    Attributes::default().string(1, &table.name)
}
