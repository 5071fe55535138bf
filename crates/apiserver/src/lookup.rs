//! The caches as authentication, authorization and admission see them.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use machinery::{
    fields::FieldSelector,
    labels::Selector,
    meta,
    status::{ApiError, Result},
};
use resources::{Resource, registry};
use serde_json::Value;

use crate::{
    allocate::Claims,
    authn::lookup::{Change, Kind, Lookup},
    cache::{CacheRef, EventType, Filter, Watcher},
    objects::{Commit, Committed, Objects, load, range},
    request::key,
};

pub struct CacheLookup(pub Arc<Objects>);

pub(crate) fn resource(kind: Kind) -> Option<&'static dyn Resource> {
    registry().by_gvr(kind.group, kind.version, kind.plural)
}

#[async_trait]
impl Lookup for CacheLookup {
    async fn get(&self, kind: Kind, namespace: &str, name: &str) -> Result<Option<Bytes>> {
        let Some(resource) = resource(kind) else { return Ok(None) };
        Ok(self.0.recent(resource, namespace, name).await?.map(|entry| entry.json.clone()))
    }

    async fn list(&self, kind: Kind, namespace: &str) -> Result<Vec<Bytes>> {
        let Some(resource) = resource(kind) else { return Ok(Vec::new()) };
        let cache = self.0.cache(resource).await?;
        let snapshot = cache.snapshot(|| self.0.hub.applied());
        Ok(range(&snapshot.objects, namespace, "").map(|(_, entry)| entry.json.clone()).collect())
    }

    fn watch(&self, kind: Kind) -> BoxStream<'static, Change> {
        match resource(kind) {
            None => stream::iter([Change::Synced]).chain(stream::pending()).boxed(),
            Some(resource) => follow(self.0.clone(), resource),
        }
    }

    async fn update_status(&self, kind: Kind, object: Value) -> Result<()> {
        let name = meta::name(&object);
        let absent = || ApiError::not_found(kind.group, kind.plural, name);
        let resource = resource(kind).ok_or_else(absent)?;
        let current = self.0.get(resource, meta::namespace(&object), name).await?.ok_or_else(absent)?;
        let mut new = load(resource, &current);
        let modified = || ApiError::modified(kind.group, kind.plural, name);
        if meta::resource_version(&new) != meta::resource_version(&object) {
            return Err(modified());
        }
        new["status"] = object["status"].clone();
        let key = key(meta::namespace(&object), name);
        let commit =
            Commit { resource, key: &key, expected: current.revision, object: Some(&new), claims: Claims::default() };
        match self.0.commit(commit).await? {
            Committed::Done(_) => Ok(()),
            _ => Err(modified()),
        }
    }
}

/// A watch that starts again when it is dropped, and tells that it did.
struct Follower {
    objects: Arc<Objects>,
    resource: &'static dyn Resource,
    watching: Option<(CacheRef, Arc<Watcher>)>,
    restarted: bool,
}

impl Drop for Follower {
    fn drop(&mut self) {
        if let Some((cache, watcher)) = &self.watching {
            cache.unwatch(watcher);
        }
    }
}

fn follow(objects: Arc<Objects>, resource: &'static dyn Resource) -> BoxStream<'static, Change> {
    let follower = Follower { objects, resource, watching: None, restarted: false };
    stream::unfold(follower, |mut follower| async move {
        let changes = follower.next().await?;
        Some((stream::iter(changes), follower))
    })
    .flatten()
    .boxed()
}

impl Follower {
    async fn next(&mut self) -> Option<Vec<Change>> {
        loop {
            if self.objects.hub.stopped() {
                return None;
            }
            let Some((_, watcher)) = &self.watching else { return Some(self.begin().await) };
            match watcher.drain() {
                None => self.watching = None,
                Some(changes) if changes.is_empty() => watcher.changed().await,
                Some(changes) => {
                    return Some(changes.iter().filter_map(|change| told(change.seen_by(&watcher.filter)?)).collect());
                }
            }
        }
    }

    async fn begin(&mut self) -> Vec<Change> {
        let everything = Filter::new(self.resource, "", Selector::everything(), FieldSelector::everything());
        let mut told = Vec::new();
        if std::mem::replace(&mut self.restarted, true) {
            told.push(Change::Reset);
        }
        let begun = match self.objects.cache(self.resource).await {
            Ok(cache) => self.objects.hub.watch(&cache, everything, None).await.map(|watch| (cache, watch)),
            Err(error) => Err(error),
        };
        match begun {
            Ok((cache, (snapshot, watcher))) => {
                told.extend(snapshot.objects.values().map(|entry| Change::Put(entry.json.clone())));
                told.push(Change::Synced);
                self.watching = Some((cache, watcher));
            }
            Err(error) => {
                tracing::warn!(%error, resource = self.resource.facts().plural, "cannot follow a resource; trying again");
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            }
        }
        told
    }
}

fn told((kind, entry): (EventType, Arc<crate::cache::Entry>)) -> Option<Change> {
    match kind {
        EventType::Added | EventType::Modified => Some(Change::Put(entry.json.clone())),
        EventType::Deleted => Some(Change::Delete { namespace: entry.namespace().into(), name: entry.name().into() }),
        EventType::Bookmark | EventType::Error => None,
    }
}
