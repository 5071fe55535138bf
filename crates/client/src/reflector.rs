//! The loop behind an informer: list once, then watch from there for ever. It refuses to know who listens.
//!
//! A list asks for resourceVersion 0 (whatever the server has in memory) so that a restart of every component costs the
//! store nothing; after a 410 it asks for the newest state instead, or it could be handed the same expired one again.

use std::sync::Arc;
use std::time::Duration;

use futures::{AsyncBufReadExt as _, TryStreamExt as _};
use http::HeaderValue;
use http::header::ACCEPT_ENCODING;
use kube::api::{ListParams, WatchParams};
use kube::core::{Request, Status};
use kube::{Api, Error};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use crate::ErrorExt as _;
use crate::informer::{Object, Shared};
use crate::managed_fields;

pub(crate) struct Reflector<K: Object> {
    pub(crate) api: Api<K>,
    pub(crate) params: ListParams,
    pub(crate) transform: fn(&mut K),
    pub(crate) shared: Arc<Shared<K>>,
}

/// A list whose items are decoded one by one, so that one broken item costs only itself.
#[derive(Deserialize)]
struct RawList {
    metadata: RawListMeta,
    #[serde(default)]
    items: Option<Vec<Box<RawValue>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawListMeta {
    #[serde(default)]
    resource_version: String,
}

/// One line of a watch. The object is decoded straight into its type: kube's own event, whose content may precede its
/// type, would build a tree of it first.
#[derive(Deserialize)]
struct RawEvent<'a> {
    r#type: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// What a bookmark says.
#[derive(Deserialize)]
struct Bookmark {
    metadata: RawListMeta,
}

impl<K: Object> Reflector<K> {
    pub(crate) async fn run(self, stop: CancellationToken) {
        stop.run_until_cancelled(self.list_and_watch()).await;
    }

    async fn list_and_watch(&self) {
        let mut backoff = Backoff::default();
        let mut version: Option<String> = None; // where to watch from; None asks for a list
        let mut expired = false;
        loop {
            let outcome = match &mut version {
                None => self.list(expired).await.map(|listed| version = Some(listed)),
                Some(version) => self.watch(version, &mut backoff).await,
            };
            match outcome {
                Ok(()) => expired = false,
                Err(error) => {
                    if matches!(error.code(), Some(410)) || error.reason() == "Expired" {
                        (version, expired) = (None, true);
                    }
                    tracing::debug!(resource = self.api.resource_url(), %error, "list or watch failed, will retry");
                    backoff.wait().await;
                }
            }
        }
    }

    async fn list(&self, expired: bool) -> Result<String, Error> {
        let params = ListParams {
            label_selector: self.params.label_selector.clone(),
            field_selector: self.params.field_selector.clone(),
            resource_version: (!expired).then(|| "0".to_owned()),
            ..Default::default()
        };
        let request = Request::new(self.api.resource_url());
        let request = if K::metadata_api() { request.list_metadata(&params) } else { request.list(&params) };
        let list: RawList = self.api.clone().into_client().request(request.map_err(Error::BuildRequest)?).await?;
        let items = list.items.unwrap_or_default();
        self.shared.replace(items.iter().filter_map(|item| self.decode(item.get())).collect());
        Ok(list.metadata.resource_version)
    }

    /// Follows one watch until it ends, moving `version` along.
    async fn watch(&self, version: &mut String, backoff: &mut Backoff) -> Result<(), Error> {
        let params = WatchParams {
            label_selector: self.params.label_selector.clone(),
            field_selector: self.params.field_selector.clone(),
            timeout: Some(rand::random_range(240..290)), // spread, or every informer reconnects in the same second
            ..Default::default()
        };
        let request = Request::new(self.api.resource_url());
        let request = match K::metadata_api() {
            true => request.watch_metadata(&params, version),
            false => request.watch(&params, version),
        };
        let mut request = request.map_err(Error::BuildRequest)?;
        // Compressed, events would be held up in the compressor's buffers.
        request.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let mut lines = self.api.clone().into_client().request_stream(request).await?.lines();
        let begun = tokio::time::Instant::now();
        while let Some(line) = lines.try_next().await.unwrap_or_else(|error| self.cut_off(&error)) {
            self.apply(&line, version)?;
            backoff.reset();
        }
        if begun.elapsed() < Duration::from_secs(1) {
            backoff.wait().await; // a server that ends watches at once must not be hammered
        }
        Ok(())
    }

    /// A connection that breaks ends the watch as the server may: it is resumed where it was.
    fn cut_off(&self, error: &std::io::Error) -> Option<String> {
        tracing::debug!(resource = self.api.resource_url(), %error, "a watch was cut off");
        None
    }

    fn apply(&self, line: &str, version: &mut String) -> Result<(), Error> {
        let event: RawEvent = match serde_json::from_str(line) {
            Ok(event) => event,
            Err(error) if error.is_eof() => return Ok(()), // cut off
            Err(error) => return Err(Error::SerdeError(error)),
        };
        match event.r#type {
            "ADDED" | "MODIFIED" => self.changed(event.object, version, |object| self.shared.put(object)),
            "DELETED" => self.changed(event.object, version, |object| self.shared.delete(object)),
            "BOOKMARK" => {
                let bookmark: Bookmark = serde_json::from_str(event.object.get()).map_err(Error::SerdeError)?;
                *version = bookmark.metadata.resource_version;
            }
            _ => {
                let status: Status = serde_json::from_str(event.object.get()).map_err(Error::SerdeError)?;
                return Err(Error::Api(Box::new(status)));
            }
        }
        Ok(())
    }

    fn changed(&self, object: &RawValue, version: &mut String, take: impl FnOnce(K)) {
        let Some(object) = self.decode(object.get()) else { return };
        if let Some(newer) = &object.meta().resource_version {
            version.clone_from(newer);
        }
        take(object);
    }

    fn decode(&self, item: &str) -> Option<K> {
        let mut object: K = serde_json::from_str(&managed_fields::cut(item))
            .inspect_err(|error| {
                let resource = self.api.resource_url();
                tracing::warn!(resource, %error, "skipped an object that does not decode");
            })
            .ok()?;
        self.trim(&mut object);
        Some(object)
    }

    fn trim(&self, object: &mut K) {
        object.meta_mut().managed_fields = None;
        (self.transform)(object);
    }
}

/// Decorrelated jitter: each pause is random between the base and three times the last, so that clients of a restarted
/// server spread out by themselves.
pub(crate) struct Backoff {
    last: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { last: Self::BASE }
    }
}

impl Backoff {
    const BASE: Duration = Duration::from_millis(100);
    const MAX: Duration = Duration::from_secs(30);

    fn next(&mut self) -> Duration {
        self.last = rand::random_range(Self::BASE..=self.last * 3).min(Self::MAX);
        self.last
    }

    fn reset(&mut self) {
        self.last = Self::BASE;
    }

    async fn wait(&mut self) {
        tokio::time::sleep(self.next()).await;
    }
}
