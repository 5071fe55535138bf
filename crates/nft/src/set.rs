//! Sets, maps and verdict maps, with keys of one or several fields.

use std::time::Duration;

use crate::attribute::Attributes;
use crate::expr::Verdict;
use crate::{Batch, Table};

/// A field of a key, or a map's data. The numbers only tell `nft list` how to print it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyType {
    Ipv4,
    Ipv6,
    /// An IP protocol number.
    Protocol,
    /// A port in network byte order.
    Port,
    /// A mark, in host byte order.
    Mark,
    /// A plain number in host byte order, such as [`crate::expr::numgen`] makes. In keys of several
    /// fields use [`KeyType::Mark`]: `nft list` aborts at an integer there.
    Integer,
}

impl KeyType {
    /// Bytes of a value.
    pub fn length(self) -> u32 {
        match self {
            KeyType::Ipv4 | KeyType::Mark | KeyType::Integer => 4,
            KeyType::Ipv6 => 16,
            KeyType::Protocol => 1,
            KeyType::Port => 2,
        }
    }

    /// Bytes in registers and concatenated keys: whole 4-byte registers.
    fn padded(self) -> u32 {
        self.length().next_multiple_of(4)
    }

    fn number(self) -> u32 {
        match self {
            KeyType::Integer => 4,
            KeyType::Ipv4 => 7,
            KeyType::Ipv6 => 8,
            KeyType::Protocol => 12,
            KeyType::Port => 13,
            KeyType::Mark => 19,
        }
    }
}

/// What a map's elements lead to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum MapData {
    Verdict,
    Value(Vec<KeyType>),
}

/// A set or map.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Set {
    pub table: Table,
    pub name: String,
    pub key: Vec<KeyType>,
    /// `None` for a plain set.
    pub data: Option<MapData>,
    /// Elements are ranges (not for keys of several fields).
    pub interval: bool,
    /// Elements vanish this long after they were added or renewed; rules may add elements.
    pub timeout: Option<Duration>,
    /// Identifies an anonymous set within its batch.
    pub(crate) id: Option<u32>,
}

/// One element. Several fields are each padded to 4 bytes; [`Element::key`] does that.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Element {
    key: Vec<u8>,
    data: Option<Data>,
    interval_end: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Data {
    Verdict(Verdict),
    Value(Vec<u8>),
}

impl Set {
    pub fn new(table: &Table, name: &str, key: &[KeyType]) -> Self {
        Set {
            table: table.clone(),
            name: name.into(),
            key: key.into(),
            data: None,
            interval: false,
            timeout: None,
            id: None,
        }
    }

    pub fn verdict_map(table: &Table, name: &str, key: &[KeyType]) -> Self {
        Set { data: Some(MapData::Verdict), ..Set::new(table, name, key) }
    }

    pub fn map(table: &Table, name: &str, key: &[KeyType], data: &[KeyType]) -> Self {
        Set { data: Some(MapData::Value(data.into())), ..Set::new(table, name, key) }
    }

    pub fn interval(self) -> Self {
        Set { interval: true, ..self }
    }

    pub fn timeout(self, timeout: Duration) -> Self {
        Set { timeout: Some(timeout), ..self }
    }

    /// A constant verdict map that belongs to one rule of the same batch and dies with it.
    pub fn anonymous_verdict_map(batch: &mut Batch, table: &Table, key: &[KeyType]) -> Self {
        Set { id: Some(batch.next_set_id()), ..Set::verdict_map(table, "__map%d", key) }
    }

    /// A constant map that belongs to one rule of the same batch and dies with it.
    pub fn anonymous_map(batch: &mut Batch, table: &Table, key: &[KeyType], data: &[KeyType]) -> Self {
        Set { id: Some(batch.next_set_id()), ..Set::map(table, "__map%d", key, data) }
    }

    pub(crate) fn encode(&self, id: u32) -> Attributes {
        const ANONYMOUS: u32 = 1;
        const CONSTANT: u32 = 2;
        const INTERVAL: u32 = 4;
        const MAP: u32 = 8;
        const TIMEOUT: u32 = 0x10;
        const EVAL: u32 = 0x20;
        let flags = [
            (self.id.is_some(), ANONYMOUS | CONSTANT),
            (self.interval, INTERVAL),
            (self.data.is_some(), MAP),
            (self.timeout.is_some(), TIMEOUT | EVAL),
        ];
        let flags = flags.iter().filter(|(on, _)| *on).map(|(_, flag)| flag).sum();
        let attributes = Attributes::default()
            .string(1, &self.table.name)
            .string(2, &self.name)
            .u32(3, flags)
            .u32(4, type_number(&self.key))
            .u32(5, length(&self.key))
            .u32(10, id);
        let attributes = match &self.data {
            None => attributes,
            Some(MapData::Verdict) => attributes.u32(6, 0xffff_ff00).u32(7, 0),
            Some(MapData::Value(fields)) => attributes.u32(6, type_number(fields)).u32(7, length(fields)),
        };
        let attributes = attributes.optional(self.timeout, |a, timeout| {
            let size = Attributes::default().u32(1, MAX_DYNAMIC_ELEMENTS);
            a.u64(11, timeout.as_millis() as u64).nest(9, size)
        });
        // Tells `nft list` that the key is in host byte order: TLV of type 0, length 4.
        let host_order = self.key == [KeyType::Integer];
        attributes.optional(host_order.then_some([0, 4, 1, 0, 0, 0]), |a, hint| a.bytes(13, &hint))
    }
}

/// Rules add no more elements than this to a set with a timeout.
const MAX_DYNAMIC_ELEMENTS: u32 = 65_535;

/// nft's numbering of concatenations: six bits for each field.
fn type_number(fields: &[KeyType]) -> u32 {
    fields.iter().fold(0, |number, field| number << 6 | field.number())
}

fn length(fields: &[KeyType]) -> u32 {
    match fields {
        [single] => single.length(),
        several => several.iter().map(|field| field.padded()).sum(),
    }
}

impl Element {
    /// A key of one or more fields, each in the byte order of its [`KeyType`].
    pub fn key(fields: &[&[u8]]) -> Self {
        Element { key: joined(fields), data: None, interval_end: false }
    }

    pub fn verdict(self, verdict: Verdict) -> Self {
        Element { data: Some(Data::Verdict(verdict)), ..self }
    }

    pub fn value(self, fields: &[&[u8]]) -> Self {
        Element { data: Some(Data::Value(joined(fields))), ..self }
    }

    /// Marks the key as the first one after an interval.
    pub fn interval_end(self) -> Self {
        Element { interval_end: true, ..self }
    }

    pub(crate) fn encode(&self) -> Attributes {
        let value = |bytes: &[u8]| Attributes::default().bytes(1, bytes);
        let attributes = Attributes::default().nest(1, value(&self.key));
        let attributes = match &self.data {
            None => attributes,
            Some(Data::Verdict(verdict)) => attributes.nest(2, verdict.encode()),
            Some(Data::Value(bytes)) => attributes.nest(2, value(bytes)),
        };
        attributes.optional(self.interval_end.then_some(1), |a, flag| a.u32(3, flag))
    }
}

fn joined(fields: &[&[u8]]) -> Vec<u8> {
    match fields {
        [single] => single.to_vec(),
        several => several
            .iter()
            .flat_map(|field| {
                let mut padded = field.to_vec();
                padded.resize(field.len().next_multiple_of(4), 0);
                padded
            })
            .collect(),
    }
}
