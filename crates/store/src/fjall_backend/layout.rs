//! How keys, versions and leases lie on disk: three keyspaces, fixed-width big-endian fields.
//!
//! - `current`: key -> [`Head`] of its newest version, a deletion included until it is compacted.
//! - `history`: [`At`] -> [`Record`], every version still reachable, chained to the one before it.
//!   A value is written once, here; in revision order, so the tree mostly moves files instead of
//!   merging them.
//! - `meta`: the format, compaction marks, leases and the keys attached to them.
//!
//! It knows bytes, not files.

use bytes::Bytes;

use crate::{KeyValue, LeaseId, Revision};

/// Names of the keyspaces.
pub const CURRENT: &str = "current";
pub const HISTORY: &str = "history";
pub const META: &str = "meta";

/// Keys in `meta`.
pub const FORMAT: &[u8] = b"format";
pub const OLDEST: &[u8] = b"oldest";
pub const SCRUBBED: &[u8] = b"scrubbed";
/// The value under [`FORMAT`].
pub const FORMAT_VERSION: i64 = 1;

/// The disk holds what we never write.
#[derive(Debug, thiserror::Error)]
#[error("malformed {0}")]
pub struct Malformed(pub &'static str);

/// A version's place in history: its revision, and its number within the transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    pub revision: Revision,
    pub sequence: u32,
}

impl At {
    /// The first place of a revision.
    pub fn first(revision: Revision) -> Self {
        At { revision, sequence: 0 }
    }

    pub fn key(self) -> [u8; 12] {
        let mut key = [0; 12];
        key[..8].copy_from_slice(&self.revision.to_be_bytes());
        key[8..].copy_from_slice(&self.sequence.to_be_bytes());
        key
    }

    pub fn parse(key: &[u8]) -> Result<Self, Malformed> {
        Reader(key).at().ok_or(Malformed("history key"))
    }
}

/// What is known of a version besides its key and value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub at: At,
    pub create: Revision,
    /// 0 marks a deletion.
    pub version: i64,
    pub lease: LeaseId,
}

impl Head {
    pub fn is_live(&self) -> bool {
        self.version > 0
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(36);
        bytes.extend(self.at.key());
        self.encode_life(&mut bytes);
        bytes
    }

    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(bytes);
        let head = reader.at().and_then(|at| reader.life(at));
        head.ok_or(Malformed("current entry"))
    }

    pub fn key_value(&self, key: Bytes, value: Bytes) -> KeyValue {
        KeyValue {
            key,
            value,
            create_revision: self.create,
            mod_revision: self.at.revision,
            version: self.version,
            lease: self.lease,
        }
    }

    fn encode_life(&self, bytes: &mut Vec<u8>) {
        for field in [self.create, self.version, self.lease] {
            bytes.extend(field.to_be_bytes());
        }
    }
}

/// One version in `history`.
#[derive(Debug, PartialEq, Eq)]
pub struct Record<'a> {
    pub head: Head,
    /// The key's version before this one, a deletion included; it may be compacted already.
    pub previous: Option<At>,
    pub key: &'a [u8],
    pub value: &'a [u8],
}

impl<'a> Record<'a> {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(40 + self.key.len() + self.value.len());
        self.head.encode_life(&mut bytes);
        bytes.extend(self.previous.unwrap_or(At::first(0)).key());
        bytes.extend((self.key.len() as u32).to_be_bytes());
        bytes.extend(self.key);
        bytes.extend(self.value);
        bytes
    }

    pub fn parse(at: At, bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(bytes);
        let mut parse = || {
            let head = reader.life(at)?;
            let previous = reader.at()?;
            let length = u32::from_be_bytes(reader.take()?);
            let (key, value) = reader.0.split_at_checked(length as usize)?;
            let previous = (previous.revision > 0).then_some(previous);
            Some(Record { head, previous, key, value })
        };
        parse().ok_or(Malformed("history record"))
    }

    pub fn key_value(&self) -> KeyValue {
        self.head.key_value(Bytes::copy_from_slice(self.key), Bytes::copy_from_slice(self.value))
    }
}

/// A revision or version number in `meta`.
pub fn parse_number(bytes: &[u8]) -> Result<i64, Malformed> {
    Reader(bytes).number().ok_or(Malformed("number"))
}

/// `meta` key of a lease; under it lies [`LeaseRecord`].
pub fn lease_key(lease: LeaseId) -> Vec<u8> {
    [LEASES, &lease.to_be_bytes()].concat()
}

/// `meta` key that attaches `key` to a lease.
pub fn attachment_key(lease: LeaseId, key: &[u8]) -> Vec<u8> {
    [ATTACHED, &lease.to_be_bytes(), key].concat()
}

pub const LEASES: &[u8] = b"lease/";
const ATTACHED: &[u8] = b"attached/";

/// The user's key in an [`attachment_key`].
pub fn attached_key(meta_key: &[u8]) -> &[u8] {
    &meta_key[(ATTACHED.len() + 8).min(meta_key.len())..]
}

/// A lease on disk, times in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseRecord {
    pub id: LeaseId,
    pub ttl: i64,
    /// Since the Unix epoch.
    pub deadline: i64,
}

impl LeaseRecord {
    pub fn encode(&self) -> Vec<u8> {
        [self.ttl.to_be_bytes(), self.deadline.to_be_bytes()].concat()
    }

    pub fn parse(key: &[u8], value: &[u8]) -> Result<Self, Malformed> {
        let mut value = Reader(value);
        let mut parse = || {
            let id = Reader(key.strip_prefix(LEASES)?).number()?;
            Some(LeaseRecord { id, ttl: value.number()?, deadline: value.number()? })
        };
        parse().ok_or(Malformed("lease"))
    }
}

/// Takes fields off the front.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    fn number(&mut self) -> Option<i64> {
        self.take().map(i64::from_be_bytes)
    }

    fn at(&mut self) -> Option<At> {
        Some(At { revision: self.number()?, sequence: u32::from_be_bytes(self.take()?) })
    }

    fn life(&mut self, at: At) -> Option<Head> {
        Some(Head { at, create: self.number()?, version: self.number()?, lease: self.number()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: Head = Head { at: At { revision: 7, sequence: 2 }, create: 5, version: 3, lease: -9 };

    #[test]
    fn what_is_encoded_parses_back() {
        assert_eq!(Head::parse(&HEAD.encode()).unwrap(), HEAD);
        let lease = LeaseRecord { id: 4, ttl: 1_000, deadline: 99 };
        assert_eq!(LeaseRecord::parse(&lease_key(4), &lease.encode()).unwrap(), lease);
        assert_eq!(attached_key(&attachment_key(4, b"/a")), b"/a");
        for previous in [None, Some(At { revision: 6, sequence: 1 })] {
            let record = Record { head: HEAD, previous, key: b"/a", value: b"" };
            assert_eq!(Record::parse(HEAD.at, &record.encode()).unwrap(), record);
        }
    }

    #[test]
    fn every_truncation_is_malformed() {
        let record = Record { head: HEAD, previous: None, key: b"/key", value: b"" }.encode();
        for length in 0..record.len() {
            assert!(Record::parse(HEAD.at, &record[..length]).is_err(), "{length}");
        }
        assert!(Head::parse(&HEAD.encode()[..35]).is_err());
        assert!(At::parse(&[0; 11]).is_err());
    }

    #[test]
    fn places_sort_as_their_keys() {
        let places = [(1, 0), (1, 1), (2, 0), (256, 0)].map(|(revision, sequence)| At { revision, sequence }.key());
        assert!(places.is_sorted());
    }
}
