//! Get, list and watch: from cache to client without parsing.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use http::StatusCode;
use machinery::{
    fields::FieldSelector,
    labels::Selector,
    status::{ApiError, Result},
};
use resources::{Resource, registry};
use serde_json::json;
use tokio::time::Instant;

use crate::{
    api::Context,
    cache::{Cache, CacheRef, Change, Entry, EventType, Filter, Snapshot, Watcher, change::bookmark},
    list::{At, ListRequest, PAGE_EXPIRED, WatchRequest, token},
    negotiate::{self, Format},
    objects::{bytes, range},
    request::key,
    respond::{self, Answered, Renderer},
};

pub async fn get(context: &Context, resource: &'static dyn Resource) -> Result<Answered> {
    let (facts, info) = (resource.facts(), &context.info);
    let objects = &context.api.writer.objects;
    let entry = match context.query.revision("resourceVersion")? {
        None => objects.get(resource, &info.namespace, &info.name).await?,
        Some(revision) => {
            let cache = objects.cache(resource).await?;
            objects.hub.reach(revision).await?;
            cache.get(&key(&info.namespace, &info.name))
        }
    };
    let entry = entry.ok_or_else(|| ApiError::not_found(facts.group, facts.plural, &info.name))?;
    let renderer = Renderer::new(resource, context.answer, &context.query)?;
    Ok(renderer.one(StatusCode::OK, bytes(resource, &entry)))
}

/// The selectors of a request, checked against what the resource can be selected by.
pub fn filter(context: &Context, resource: &'static dyn Resource) -> Result<Filter> {
    let labels = Selector::parse(context.query.get("labelSelector")).map_err(ApiError::bad_request)?;
    let fields = FieldSelector::parse(context.query.get("fieldSelector")).map_err(ApiError::bad_request)?;
    let storage = registry().storage_of(resource);
    let facts = resource.facts();
    for requirement in fields.requirements() {
        let field = requirement.field.as_str();
        let known = field == "metadata.name"
            || (field == "metadata.namespace" && facts.namespaced_scope())
            || storage.selectable_fields().contains(&field);
        if !known {
            return Err(ApiError::bad_request(match storage.selectable_fields() {
                [] => {
                    format!("{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
                }
                _ => format!("field label not supported: {field}"),
            }));
        }
    }
    Ok(Filter::new(storage, &context.info.namespace, labels, fields))
}

pub async fn list(context: &Context, resource: &'static dyn Resource) -> Result<Answered> {
    let request = ListRequest::parse(&context.query)?;
    let filter = filter(context, resource)?;
    let renderer = Renderer::new(resource, context.answer, &context.query)?;
    let cache = context.api.writer.objects.cache(resource).await?;
    let Some((snapshot, start)) = snapshot(context, &cache, &request.at).await? else {
        return expired(context, &request.at);
    };
    let mut matching = range(&snapshot.objects, &filter.namespace, &start)
        .map(|(_, entry)| entry)
        .filter(|entry| filter.matches(entry));
    let limit = if request.limit == 0 { usize::MAX } else { request.limit };
    let entries: Vec<Arc<Entry>> = matching.by_ref().take(limit).cloned().collect();
    let mut metadata = json!({"resourceVersion": snapshot.revision.to_string()});
    if matching.next().is_some() {
        let last = entries.last().map_or("", |entry| &entry.key);
        metadata["continue"] = token(last, Some(snapshot.revision)).into();
        if filter.is_unfiltered() {
            metadata["remainingItemCount"] = (matching.count() + 1).into();
        }
        cache.pin(snapshot.clone());
    }
    Ok(renderer.list(&metadata, entries))
}

/// What a list shows, and the key to begin at; `None` when the revision it must show is gone.
async fn snapshot(context: &Context, cache: &CacheRef, at: &At) -> Result<Option<(Snapshot, String)>> {
    let hub = &context.api.writer.objects.hub;
    let start = match at {
        At::Page { start, .. } | At::Rest { start } => start.clone(),
        _ => String::new(),
    };
    match at {
        At::Consistent | At::Rest { .. } => drop(hub.consistent().await?),
        At::Any => {}
        At::NotOlder(revision) => hub.reach(*revision).await?,
        At::Exact(revision) | At::Page { revision, .. } => {
            return Ok(hub.at(cache, *revision).await?.map(|snapshot| (snapshot, start)));
        }
    }
    Ok(Some((cache.snapshot(|| hub.applied()), start)))
}

/// 410: a page's client gets a token to go on with, if it can live with an inconsistent list.
fn expired(context: &Context, at: &At) -> Result<Answered> {
    let At::Page { start, .. } = at else {
        return Err(ApiError::expired("The resourceVersion for the provided list is too old."));
    };
    let mut status = ApiError::expired(PAGE_EXPIRED).to_value();
    status["metadata"]["continue"] = token(start.trim_end_matches('\0'), None).into();
    Ok(respond::value(&context.answer, StatusCode::GONE, &status))
}

/// A bookmark goes out about this often, and shortly before the watch ends.
const BOOKMARK: Duration = Duration::from_secs(60);
const BEFORE_END: Duration = Duration::from_secs(2);
/// When the client names no timeout: this, and as much again at random, as upstream.
const WATCH_TIMEOUT: u64 = 1800;
/// Watch events are gathered into pieces of about this size.
const CHUNK: usize = 64 << 10;

pub async fn watch(context: &Context, resource: &'static dyn Resource) -> Result<Answered> {
    if context.answer.format == Format::Yaml {
        return Err(ApiError::not_acceptable(&[negotiate::JSON, negotiate::PROTOBUF]));
    }
    let request = WatchRequest::parse(&context.query)?;
    let filter = filter(context, resource)?;
    let renderer = Renderer::new(resource, context.answer, &context.query)?;
    let objects = &context.api.writer.objects;
    let (cache, hub) = (objects.cache(resource).await?, &objects.hub);
    let from = match (request.initial, request.revision) {
        (true, None) => hub.consistent().await.map(|_| None)?,
        (true, Some(revision)) => hub.reach(revision).await.map(|()| None)?,
        // A watch of the future waits for it: the client has seen a write this cache has not.
        (false, Some(revision)) => hub.reach(revision).await.map(|()| Some(revision))?,
        (false, None) => Some(hub.consistent().await?),
    };
    let registered = hub.watch(&cache, filter, from).await;
    let (snapshot, watcher) = match registered {
        Ok(registered) => registered,
        // A watch that cannot begin has a stream all the same, as upstream: one event that says why.
        Err(error) if error.code() == 410 => return Ok(refused(&renderer, &error)),
        Err(error) => return Err(error),
    };
    let initial: VecDeque<_> = match from {
        None => range(&snapshot.objects, &watcher.filter.namespace, "")
            .map(|(_, entry)| entry.clone())
            .filter(|entry| watcher.filter.matches(entry))
            .collect(),
        Some(_) => VecDeque::new(),
    };
    let timeout = match context.query.int("timeoutSeconds")?.filter(|seconds| *seconds > 0) {
        Some(seconds) => seconds as u64,
        None => WATCH_TIMEOUT + rand::random_range(0..WATCH_TIMEOUT),
    };
    let now = Instant::now();
    let feed = Feed {
        registration: Registration { cache, watcher },
        api: context.api.clone(),
        renderer,
        initial,
        initial_end: request.initial_end.then_some(snapshot.revision),
        bookmarks: request.bookmarks,
        columns: true,
        end: now + Duration::from_secs(timeout),
        next_bookmark: now + BOOKMARK.min(Duration::from_secs(timeout).saturating_sub(BEFORE_END)),
        // Revisions of a watch never go backwards, bookmarks included.
        revision: from.unwrap_or(snapshot.revision),
        ended: false,
        _open: context.api.metrics.watching(resource.facts()),
    };
    let body = Body::from_stream(stream::unfold(feed, |mut feed| async move {
        let chunk = feed.next().await?;
        Some((Ok::<_, std::io::Error>(chunk), feed))
    }));
    Ok(respond::streaming(&context.answer, body))
}

fn refused(renderer: &Renderer, error: &ApiError) -> Answered {
    let mut out = Vec::new();
    renderer.made_up(&mut out, EventType::Error, error.to_value().to_string().as_bytes());
    respond::streaming(&renderer.answer, Body::from(out))
}

/// Takes the watcher off its cache when the client goes.
struct Registration {
    cache: CacheRef,
    watcher: Arc<Watcher>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let cache: &Cache = &self.cache;
        cache.unwatch(&self.watcher);
    }
}

/// One client's watch.
struct Feed {
    registration: Registration,
    api: Arc<crate::api::Api>,
    renderer: Renderer,
    initial: VecDeque<Arc<Entry>>,
    /// The revision to announce once `initial` has been told.
    initial_end: Option<i64>,
    bookmarks: bool,
    /// The next event of a table must describe the columns.
    columns: bool,
    end: Instant,
    next_bookmark: Instant,
    revision: i64,
    ended: bool,
    _open: crate::metrics::Open,
}

impl Feed {
    /// The next piece of the stream.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let mut out = Vec::new();
            self.tell_initial(&mut out);
            if self.ended {
                return None;
            }
            if out.is_empty() {
                self.tell_changes(&mut out);
            }
            if !out.is_empty() {
                return Some(out.into());
            }
            if self.ended {
                return None;
            }
            tokio::select! {
                () = self.registration.watcher.changed() => {}
                () = tokio::time::sleep_until(self.next_bookmark), if self.bookmarks => {
                    self.next_bookmark = (Instant::now() + BOOKMARK).min(self.end.checked_sub(BEFORE_END).unwrap_or(self.end));
                    if self.next_bookmark <= Instant::now() {
                        self.next_bookmark = self.end + BOOKMARK;
                    }
                    if let Some(bookmark) = self.bookmark() {
                        return Some(bookmark);
                    }
                }
                () = tokio::time::sleep_until(self.end) => return None,
                () = self.api.shutdown.cancelled() => return None,
            }
        }
    }

    fn tell_initial(&mut self, out: &mut Vec<u8>) {
        while out.len() < CHUNK {
            let Some(entry) = self.initial.pop_front() else {
                if let Some(revision) = self.initial_end.take() {
                    let (kind, version) = self.kind();
                    self.renderer.made_up(out, EventType::Bookmark, &bookmark(&kind, &version, revision, true));
                }
                return;
            };
            self.tell(out, EventType::Added, &entry);
        }
    }

    fn tell_changes(&mut self, out: &mut Vec<u8>) {
        let Some(changes) = self.registration.watcher.drain() else {
            // Too slow, or the cache was rebuilt: the client must list again.
            self.ended = true;
            return;
        };
        for change in changes {
            self.tell_change(out, &change);
        }
    }

    fn tell_change(&mut self, out: &mut Vec<u8>, change: &Change) {
        self.revision = self.revision.max(change.revision);
        if let Some((kind, entry)) = change.seen_by(&self.registration.watcher.filter) {
            self.tell(out, kind, &entry);
        }
    }

    fn tell(&mut self, out: &mut Vec<u8>, kind: EventType, entry: &Entry) {
        self.renderer.event(out, kind, entry, std::mem::take(&mut self.columns));
    }

    /// Says up to which revision everything has been told, if that is so.
    fn bookmark(&mut self) -> Option<Bytes> {
        // Read before looking at the queue: what came up to it is in the queue by now.
        let applied = self.api.writer.objects.hub.applied();
        let mut out = Vec::new();
        self.tell_changes(&mut out);
        if self.ended {
            return None;
        }
        self.revision = self.revision.max(applied);
        let (kind, version) = self.kind();
        self.renderer.made_up(&mut out, EventType::Bookmark, &bookmark(&kind, &version, self.revision, false));
        Some(out.into())
    }

    fn kind(&self) -> (String, String) {
        let facts = self.renderer.resource.facts();
        match self.renderer.answer.view {
            crate::negotiate::View::Object => (facts.kind.into(), facts.api_version()),
            crate::negotiate::View::Partial => ("PartialObjectMetadata".into(), "meta.k8s.io/v1".into()),
            crate::negotiate::View::Table => ("Table".into(), "meta.k8s.io/v1".into()),
        }
    }
}
