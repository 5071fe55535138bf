//! Reads, at one moment: a snapshot of the disk together with the revision it shows.
//!
//! A view is published after its transactions are durable, so no reader ever sees one that is not
//! acknowledged, and reads need no lock. Older revisions are found by following each key's chain
//! of versions back from the newest: cheap for the recent past, which is what paged lists pin.

use std::sync::Arc;

use bytes::Bytes;
use fjall::{Readable, Slice, Snapshot};

use super::disk::{Disk, failed};
use super::layout::{self, At, Head, LeaseRecord, Malformed, Record};
use crate::{Error, Event, KeyRange, KeyValue, LeaseId, Range, RangeResult, Revision};

pub struct View {
    pub disk: Arc<Disk>,
    pub revision: Revision,
    /// History before this is gone; 0 when nothing was compacted.
    pub oldest: Revision,
    snapshot: Snapshot,
}

/// Events replayed from history.
pub struct Replay {
    pub events: Vec<Event>,
    /// They are complete up to here.
    pub through: Revision,
}

impl View {
    /// The present of a freshly opened disk.
    pub fn load(disk: Arc<Disk>) -> Result<Self, Error> {
        let snapshot = disk.database.snapshot();
        let newest = snapshot.last_key_value(&disk.history);
        let newest = newest.map(|entry| entry.key()).transpose().map_err(failed(READ))?;
        let revision = match newest {
            Some(key) => At::parse(&key).map_err(malformed)?.revision,
            None => 1,
        };
        let oldest = disk.number(layout::OLDEST).map_err(failed(READ))?.unwrap_or(0);
        Ok(View { disk, revision, oldest, snapshot })
    }

    /// What is on disk now, known to be at `revision`.
    pub fn after(disk: Arc<Disk>, revision: Revision, oldest: Revision) -> Self {
        let snapshot = disk.database.snapshot();
        View { disk, revision, oldest, snapshot }
    }

    pub fn range(&self, request: &Range) -> Result<RangeResult, Error> {
        let revision = self.check(request.revision)?;
        let mut result = RangeResult { kvs: Vec::new(), count: 0, more: false, revision: self.revision };
        let KeyRange { start, end } = &request.range;
        if start >= end {
            return Ok(result);
        }
        let mut found = Vec::new();
        for entry in self.snapshot.range(&self.disk.current, &start[..]..&end[..]) {
            let (key, head) = entry.into_inner().map_err(failed(READ))?;
            let newest = Head::parse(&head).map_err(malformed)?;
            let Some(head) = self.as_of(newest, revision)? else { continue };
            result.count += 1;
            let full = request.limit > 0 && found.len() == request.limit;
            if !request.count_only && !full {
                found.push((key, head));
            }
        }
        result.kvs = self.key_values(found)?;
        result.more = !request.count_only && result.count > result.kvs.len();
        Ok(result)
    }

    /// The key's newest version, a deletion included.
    pub fn head(&self, key: &[u8]) -> Result<Option<Head>, Error> {
        let head = self.snapshot.get(&self.disk.current, key).map_err(failed(READ))?;
        head.map(|head| Head::parse(&head).map_err(malformed)).transpose()
    }

    /// The version that `head` describes.
    pub fn key_value(&self, key: &[u8], head: Head) -> Result<KeyValue, Error> {
        let bytes = self.record(head.at)?.ok_or_else(|| malformed(Malformed("version chain")))?;
        let record = Record::parse(head.at, &bytes).map_err(malformed)?;
        let value = Bytes::copy_from_slice(record.value);
        Ok(head.key_value(Bytes::copy_from_slice(key), value))
    }

    /// As [`View::key_value`], in the given order, but read in the order of the disk: a list of many
    /// keys touches each block once.
    fn key_values(&self, found: Vec<(Slice, Head)>) -> Result<Vec<KeyValue>, Error> {
        let mut order: Vec<_> = (0..found.len()).collect();
        order.sort_unstable_by_key(|&n| found[n].1.at);
        let mut kvs = vec![None; found.len()];
        for n in order {
            let (key, head) = &found[n];
            kvs[n] = Some(self.key_value(key, *head)?);
        }
        Ok(kvs.into_iter().flatten().collect())
    }

    /// Events of `range` from revision `from` on, whole revisions only, stopping early once they
    /// take `budget` bytes.
    pub fn replay(&self, range: &KeyRange, from: Revision, budget: usize) -> Result<Replay, Error> {
        let mut events = Vec::new();
        let (mut bytes, mut revision) = (0, from);
        for entry in self.versions(from, self.revision + 1) {
            let (at, record) = entry?;
            if at.revision != revision && bytes >= budget {
                return Ok(Replay { events, through: at.revision - 1 });
            }
            revision = at.revision;
            let record = Record::parse(at, &record).map_err(malformed)?;
            // Skipped records cost too.
            bytes += 64;
            if range.contains(record.key) {
                let event = self.event(&record)?;
                bytes += event.cost();
                events.push(event);
            }
        }
        Ok(Replay { events, through: self.revision })
    }

    /// Encoded versions with `from <= revision < to`, in order.
    pub fn versions(&self, from: Revision, to: Revision) -> impl Iterator<Item = Result<(At, Slice), Error>> + use<> {
        // An empty range, not a backward one, when there is nothing to see.
        let places = At::first(from).key()..At::first(to.max(from)).key();
        self.snapshot.range(&self.disk.history, places).map(|entry| {
            let (key, record) = entry.into_inner().map_err(failed(READ))?;
            Ok((At::parse(&key).map_err(malformed)?, record))
        })
    }

    pub fn leases(&self) -> Result<Vec<LeaseRecord>, Error> {
        let entries = self.snapshot.prefix(&self.disk.meta, layout::LEASES);
        let parse = |entry: fjall::Guard| {
            let (key, value) = entry.into_inner().map_err(failed(READ))?;
            LeaseRecord::parse(&key, &value).map_err(malformed)
        };
        entries.map(parse).collect()
    }

    /// The keys attached to a lease.
    pub fn attached(&self, lease: LeaseId) -> Result<Vec<Bytes>, Error> {
        let prefix = layout::attachment_key(lease, b"");
        let entries = self.snapshot.prefix(&self.disk.meta, prefix);
        let parse = |entry: fjall::Guard| {
            let key = entry.key().map_err(failed(READ))?;
            Ok(Bytes::copy_from_slice(layout::attached_key(&key)))
        };
        entries.map(parse).collect()
    }

    fn check(&self, requested: Option<Revision>) -> Result<Revision, Error> {
        let requested = requested.unwrap_or(self.revision);
        if requested > self.revision {
            return Err(Error::Future { requested, current: self.revision });
        }
        if requested < self.oldest {
            return Err(Error::Compacted { requested, oldest: self.oldest });
        }
        Ok(requested)
    }

    /// The version live at `revision`, found by walking back from the newest.
    fn as_of(&self, mut head: Head, revision: Revision) -> Result<Option<Head>, Error> {
        while head.at.revision > revision {
            let Some(bytes) = self.record(head.at)? else { return Ok(None) };
            let record = Record::parse(head.at, &bytes).map_err(malformed)?;
            let Some(at) = record.previous else { return Ok(None) };
            let Some(bytes) = self.record(at)? else { return Ok(None) };
            head = Record::parse(at, &bytes).map_err(malformed)?.head;
        }
        Ok(head.is_live().then_some(head))
    }

    fn event(&self, record: &Record<'_>) -> Result<Event, Error> {
        let kv = record.key_value();
        // A first version follows nothing, or a deletion.
        let previous = match record.previous {
            Some(at) if kv.version != 1 => {
                let bytes = self.record(at)?.ok_or_else(|| malformed(Malformed("version chain")))?;
                Some(Record::parse(at, &bytes).map_err(malformed)?.key_value())
            }
            _ => None,
        };
        Ok(match record.head.is_live() {
            true => Event::Put { kv, previous },
            false => Event::Delete { key: kv.key, revision: kv.mod_revision, previous },
        })
    }

    fn record(&self, at: At) -> Result<Option<Slice>, Error> {
        self.snapshot.get(&self.disk.history, at.key()).map_err(failed(READ))
    }
}

impl Event {
    /// Bytes it keeps alive, roughly.
    pub(super) fn cost(&self) -> usize {
        let of = |kv: &KeyValue| kv.key.len() + kv.value.len() + 64;
        match self {
            Event::Put { kv, previous } => of(kv) + previous.as_ref().map_or(0, of),
            Event::Delete { key, previous, .. } => key.len() + 64 + previous.as_ref().map_or(0, of),
        }
    }
}

const READ: &str = "read the store";

pub fn malformed(error: Malformed) -> Error {
    Error::Io { operation: READ, source: error.into() }
}
