//! Evaluates the transactions that will be committed together.
//!
//! Each sees what the ones before it wrote, though nothing of it is on disk yet. The result is a
//! batch for the disk and the events for watchers; nothing is published here. An [`Error::Io`]
//! spoils the whole group, any other error only the request that met it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fjall::OwnedWriteBatch;

use super::layout::{self, At, Head, LeaseRecord, Record};
use super::lease::Leases;
use super::view::{View, malformed};
use super::writer::{Answer, Operation};
use crate::{Compare, Error, Event, KeyValue, LeaseId, Revision, Txn, TxnResult, Write};

/// fjall stores key lengths in 16 bits; leases and keyspaces add their own prefix.
const MAX_KEY: usize = 32 << 10;
/// Of one transaction, keys and values together.
const MAX_TXN: usize = 16 << 20;

pub struct Group<'a> {
    view: &'a View,
    leases: &'a mut Leases,
    batch: OwnedWriteBatch,
    /// Newest versions written in this group, with their values.
    heads: HashMap<Bytes, (Head, Bytes)>,
    /// What `meta` will hold; `None` removes.
    meta: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    events: Vec<Event>,
    revision: Revision,
    oldest: Revision,
}

/// What a group leads to.
pub struct Outcome {
    pub batch: OwnedWriteBatch,
    pub events: Vec<Event>,
    pub revision: Revision,
    pub oldest: Revision,
}

impl<'a> Group<'a> {
    pub fn new(view: &'a View, leases: &'a mut Leases) -> Self {
        Group {
            batch: view.disk.batch(),
            heads: HashMap::new(),
            meta: BTreeMap::new(),
            events: Vec::new(),
            revision: view.revision,
            oldest: view.oldest,
            view,
            leases,
        }
    }

    pub fn perform(&mut self, operation: Operation, now: Instant) -> Result<Answer, Error> {
        match operation {
            Operation::Txn(txn) => self.txn(txn).map(Answer::Txn),
            Operation::Compact(revision) => self.compact(revision).map(|()| Answer::Done),
            Operation::Grant(ttl) => Ok(Answer::Lease(self.grant(ttl, now))),
            Operation::KeepAlive(lease) => self.keep_alive(lease, now).map(|()| Answer::Done),
            Operation::Revoke(lease) => self.revoke(lease).map(|()| Answer::Done),
            // The writer closes when the group is done.
            Operation::Close => Ok(Answer::Done),
        }
    }

    /// Revokes the leases that have ended.
    pub fn expire(&mut self, now: Instant) -> Result<(), Error> {
        self.leases.ended(now).into_iter().try_for_each(|lease| self.revoke(lease))
    }

    pub fn revision(&self) -> Revision {
        self.revision
    }

    fn txn(&mut self, txn: Txn) -> Result<TxnResult, Error> {
        check(&txn)?;
        self.check_leases(&txn)?;
        for Compare::ModRevision { key, revision } in &txn.compares {
            let live = self.head(key)?.filter(Head::is_live);
            if live.map_or(0, |head| head.at.revision) != *revision {
                return self.conflict(&txn.compares);
            }
        }
        let mut at = At::first(self.revision + 1);
        for write in txn.writes {
            let wrote = match write {
                Write::Put { key, value, lease } => self.put(at, key, value, lease)?,
                Write::Delete { key } => self.delete(at, key)?,
            };
            at.sequence += u32::from(wrote);
        }
        self.advance(at);
        Ok(TxnResult::Committed { revision: self.revision })
    }

    pub fn compact(&mut self, revision: Revision) -> Result<(), Error> {
        if revision > self.revision {
            return Err(Error::Future { requested: revision, current: self.revision });
        }
        if revision < self.oldest {
            return Err(Error::Compacted { requested: revision, oldest: self.oldest });
        }
        self.oldest = revision;
        self.set(layout::OLDEST.to_vec(), Some(revision.to_be_bytes().to_vec()));
        Ok(())
    }

    fn grant(&mut self, ttl: Duration, now: Instant) -> LeaseId {
        let record = self.leases.grant(ttl, now);
        self.store_lease(record);
        record.id
    }

    fn keep_alive(&mut self, lease: LeaseId, now: Instant) -> Result<(), Error> {
        let record = self.leases.keep_alive(lease, now).ok_or(Error::LeaseNotFound(lease))?;
        self.store_lease(record);
        Ok(())
    }

    /// Ends a lease and deletes its keys, all at one revision.
    fn revoke(&mut self, lease: LeaseId) -> Result<(), Error> {
        if !self.leases.remove(lease) {
            return Err(Error::LeaseNotFound(lease));
        }
        let mut at = At::first(self.revision + 1);
        for key in self.attached(lease)? {
            at.sequence += u32::from(self.delete(at, key)?);
        }
        self.advance(at);
        self.set(layout::lease_key(lease), None);
        Ok(())
    }

    /// Removes at most about `limit` versions that compaction made unreachable, from revision
    /// `from` on; the revision to go on from.
    ///
    /// A version is unreachable once the one that replaced it is older than the oldest kept, and a
    /// deletion once it is so itself. The replaced version is named by the one that replaced it,
    /// so nothing is searched for.
    pub fn scrub(&mut self, from: Revision, limit: usize) -> Result<Revision, Error> {
        if from >= self.view.oldest {
            return Ok(from);
        }
        let history = &self.view.disk.history;
        let mut next = self.view.oldest;
        let mut gone = Vec::new();
        for (count, entry) in self.view.versions(from, self.view.oldest).enumerate() {
            let (at, bytes) = entry?;
            if count >= limit && at.sequence == 0 {
                next = at.revision;
                break;
            }
            let record = Record::parse(at, &bytes).map_err(malformed)?;
            if let Some(previous) = record.previous.filter(|_| record.head.version != 1) {
                self.batch.remove(history, previous.key());
            }
            if !record.head.is_live() {
                self.batch.remove(history, at.key());
                gone.push((Bytes::copy_from_slice(record.key), at));
            }
        }
        for (key, at) in gone {
            let newest = self.head(&key)?;
            if newest.is_some_and(|head| head.at == at) {
                self.batch.remove(&self.view.disk.current, key.to_vec());
            }
        }
        self.set(layout::SCRUBBED.to_vec(), Some(next.to_be_bytes().to_vec()));
        Ok(next)
    }

    pub fn finish(self) -> Outcome {
        let Group { view, mut batch, heads, meta, events, revision, oldest, .. } = self;
        for (key, (head, _)) in heads {
            batch.insert(&view.disk.current, &key[..], head.encode());
        }
        for (key, value) in meta {
            match value {
                Some(value) => batch.insert(&view.disk.meta, key, value),
                None => batch.remove(&view.disk.meta, key),
            }
        }
        Outcome { batch, events, revision, oldest }
    }

    /// A revision exists only if something was written at it.
    fn advance(&mut self, at: At) {
        if at.sequence > 0 {
            self.revision = at.revision;
        }
    }

    fn put(&mut self, at: At, key: Bytes, value: Bytes, lease: LeaseId) -> Result<bool, Error> {
        let newest = self.head(&key)?;
        let live = newest.filter(Head::is_live);
        let head = Head {
            at,
            create: live.map_or(at.revision, |head| head.create),
            version: live.map_or(0, |head| head.version) + 1,
            lease,
        };
        let previous = live.map(|live| self.key_value(&key, live)).transpose()?;
        self.attach(&key, live.map_or(0, |head| head.lease), lease);
        self.write(head, newest, &key, &value);
        let kv = head.key_value(key.clone(), value.clone());
        self.events.push(Event::Put { kv, previous });
        self.heads.insert(key, (head, value));
        Ok(true)
    }

    fn delete(&mut self, at: At, key: Bytes) -> Result<bool, Error> {
        let Some(live) = self.head(&key)?.filter(Head::is_live) else { return Ok(false) };
        let head = Head { at, create: 0, version: 0, lease: 0 };
        let previous = Some(self.key_value(&key, live)?);
        self.attach(&key, live.lease, 0);
        self.write(head, Some(live), &key, &[]);
        self.events.push(Event::Delete { key: key.clone(), revision: at.revision, previous });
        self.heads.insert(key, (head, Bytes::new()));
        Ok(true)
    }

    fn write(&mut self, head: Head, newest: Option<Head>, key: &[u8], value: &[u8]) {
        let record = Record { head, previous: newest.map(|head| head.at), key, value };
        self.batch.insert(&self.view.disk.history, head.at.key(), record.encode());
    }

    fn conflict(&self, compares: &[Compare]) -> Result<TxnResult, Error> {
        let current = |Compare::ModRevision { key, .. }: &Compare| {
            let live = self.head(key)?.filter(Head::is_live);
            live.map(|head| self.key_value(key, head)).transpose()
        };
        let current = compares.iter().map(current).collect::<Result<_, Error>>()?;
        Ok(TxnResult::Conflict { current, revision: self.revision })
    }

    fn head(&self, key: &[u8]) -> Result<Option<Head>, Error> {
        match self.heads.get(key) {
            Some((head, _)) => Ok(Some(*head)),
            None => self.view.head(key),
        }
    }

    fn key_value(&self, key: &[u8], head: Head) -> Result<KeyValue, Error> {
        match self.heads.get_key_value(key) {
            Some((key, (_, value))) => Ok(head.key_value(key.clone(), value.clone())),
            None => self.view.key_value(key, head),
        }
    }

    fn check_leases(&self, txn: &Txn) -> Result<(), Error> {
        for write in &txn.writes {
            if let Write::Put { lease, .. } = write
                && *lease != 0
                && !self.leases.contains(*lease)
            {
                return Err(Error::LeaseNotFound(*lease));
            }
        }
        Ok(())
    }

    fn attach(&mut self, key: &[u8], old: LeaseId, new: LeaseId) {
        if old == new {
            return;
        }
        if old != 0 {
            self.set(layout::attachment_key(old, key), None);
        }
        if new != 0 {
            self.set(layout::attachment_key(new, key), Some(Vec::new()));
        }
    }

    fn attached(&self, lease: LeaseId) -> Result<BTreeSet<Bytes>, Error> {
        let mut keys: BTreeSet<_> = self.view.attached(lease)?.into_iter().collect();
        let prefix = layout::attachment_key(lease, b"");
        let pending = self.meta.range(prefix.clone()..);
        for (meta_key, value) in pending.take_while(|(key, _)| key.starts_with(&prefix)) {
            let key = Bytes::copy_from_slice(layout::attached_key(meta_key));
            match value {
                Some(_) => keys.insert(key),
                None => keys.remove(&key),
            };
        }
        Ok(keys)
    }

    fn store_lease(&mut self, record: LeaseRecord) {
        self.set(layout::lease_key(record.id), Some(record.encode()));
    }

    fn set(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.meta.insert(key, value);
    }
}

/// What no backend accepts.
fn check(txn: &Txn) -> Result<(), Error> {
    let mut keys = HashSet::new();
    let mut size = 0;
    for write in &txn.writes {
        let (key, value) = match write {
            Write::Put { key, value, .. } => (key, value.len()),
            Write::Delete { key } => (key, 0),
        };
        size += key.len() + value;
        if key.is_empty() || key.len() > MAX_KEY {
            return Err(Error::Invalid("a key is empty or longer than 32 KiB"));
        }
        if !keys.insert(key) {
            return Err(Error::Invalid("a transaction writes a key twice"));
        }
    }
    if size > MAX_TXN {
        return Err(Error::Invalid("a transaction is larger than 16 MiB"));
    }
    Ok(())
}
