//! Deleting objects, one or many.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use machinery::status::Result;
use serde_json::Value;

use super::{ATTEMPTS, Write, Writer};
use crate::{
    admission::Operation,
    allocate::Claims,
    cache::{Entry, Filter, entry},
    objects::{Commit, Committed, bytes, load, range},
    request::key,
    strategy::{self, DeleteOptions, Deletion, RETURN_DELETED},
};

/// Deletes of one collection that run at once.
const PARALLEL: usize = 32;

/// What answers a delete.
#[derive(Debug)]
pub struct Deleted {
    pub json: bytes::Bytes,
    /// False while finalizers or a grace period hold the object.
    pub gone: bool,
}

impl Writer {
    pub async fn delete(&self, write: &Write<'_>, options: &DeleteOptions) -> Result<Deleted> {
        options.validate()?;
        for _ in 0..ATTEMPTS {
            let current = self.objects.get(write.resource, write.namespace, write.name).await?;
            let current = current.ok_or_else(|| write.not_found())?;
            if let Some(deleted) = self.try_delete(write, options, &current).await? {
                return Ok(deleted);
            }
        }
        Err(write.modified())
    }

    /// One attempt; `None` when somebody else wrote meanwhile.
    async fn try_delete(&self, write: &Write<'_>, options: &DeleteOptions, current: &Entry) -> Result<Option<Deleted>> {
        let resource = write.resource;
        let old = load(resource, current);
        options.check(write.facts(), &old)?;
        let mut request = write.admission(Operation::Delete, None, Some(old));
        self.admission.admit(&mut request).await?;
        self.admission.validate(&request).await?;
        write.warn(std::mem::take(&mut request.warnings));
        let old = request.old_object.take().unwrap_or_default();

        let plan = strategy::plan_delete(write.facts(), &old, options, jiff::Timestamp::now());
        let key = key(write.namespace, write.name);
        let (object, claims) = match &plan {
            Deletion::Mark(new) if *new == old => return Ok(Some(kept(bytes(resource, current).clone()))),
            Deletion::Mark(new) => (Some(new), Claims::default()),
            Deletion::Remove => (None, self.allocators.release(write.facts(), &old).await?),
        };
        if write.dry_run {
            return Ok(Some(match object {
                Some(new) => kept(entry::encode(new).into()),
                None => gone(write, &old),
            }));
        }
        let commit = Commit { resource, key: &key, expected: current.revision, object, claims };
        Ok(match self.objects.commit(commit).await? {
            Committed::Done(_) if object.is_none() => Some(gone(write, &old)),
            Committed::Done(json) => Some(kept(json)),
            Committed::Conflict | Committed::Taken(_) => None,
        })
    }

    /// Deletes what the filter selects; answers with the objects as they were.
    pub async fn delete_collection(
        &self,
        write: &Write<'_>,
        options: &DeleteOptions,
        filter: &Filter,
    ) -> Result<Vec<Arc<Entry>>> {
        options.validate()?;
        let cache = self.objects.cache(write.resource).await?;
        self.objects.hub.consistent().await?;
        let snapshot = cache.snapshot(|| self.objects.hub.applied());
        let entries: Vec<_> = range(&snapshot.objects, write.namespace, "")
            .map(|(_, entry)| entry.clone())
            .filter(|entry| filter.matches(entry))
            .collect();
        let deletes: Vec<_> = entries.iter().map(|entry| self.delete_one(write, options, entry)).collect();
        stream::iter(deletes).buffer_unordered(PARALLEL).try_collect::<Vec<()>>().await?;
        Ok(entries)
    }

    async fn delete_one(&self, write: &Write<'_>, options: &DeleteOptions, entry: &Entry) -> Result<()> {
        let one = Write { namespace: entry.namespace(), name: entry.name(), options: write.options.clone(), ..*write };
        match self.delete(&one, options).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

fn kept(json: bytes::Bytes) -> Deleted {
    Deleted { json, gone: false }
}

fn gone(write: &Write<'_>, old: &Value) -> Deleted {
    let facts = write.facts();
    let json = match RETURN_DELETED.contains(&(facts.group, facts.plural)) {
        true => entry::encode(old).into(),
        false => strategy::deleted_status(facts, old).to_string().into(),
    };
    Deleted { json, gone: true }
}
