//! The loop behind an informer: list once, then watch from there for ever. It refuses to know who listens.
//!
//! A list asks for resourceVersion 0 (whatever the server has in memory) so that a restart of every component costs the
//! store nothing; after a 410 it asks for the newest state instead, or it could be handed the same expired one again.

use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt as _;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::Request;
use kube::{Api, Error};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use crate::ErrorExt as _;
use crate::informer::{Object, Shared};

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
        let client = self.api.clone().into_client();
        let events = client.request_events::<K>(request.map_err(Error::BuildRequest)?).await?;
        let mut events = std::pin::pin!(events);
        let begun = tokio::time::Instant::now();
        loop {
            match events.try_next().await {
                Ok(Some(event)) => self.apply(event, version)?,
                Ok(None) => break,
                Err(error) if is_undecodable(&error) => {
                    tracing::warn!(resource = self.api.resource_url(), %error, "skipped an object that does not decode");
                }
                Err(error) => return Err(error),
            }
            backoff.reset();
        }
        if begun.elapsed() < Duration::from_secs(1) {
            backoff.wait().await; // a server that ends watches at once must not be hammered
        }
        Ok(())
    }

    fn apply(&self, event: WatchEvent<K>, version: &mut String) -> Result<(), Error> {
        let (mut object, deleted) = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
            WatchEvent::Deleted(object) => (object, true),
            WatchEvent::Bookmark(bookmark) => {
                *version = bookmark.metadata.resource_version;
                return Ok(());
            }
            WatchEvent::Error(status) => return Err(Error::Api(status)),
        };
        self.trim(&mut object);
        if let Some(newer) = &object.meta().resource_version {
            version.clone_from(newer);
        }
        if deleted {
            self.shared.delete(object)
        } else {
            self.shared.put(object)
        }
        Ok(())
    }

    fn decode(&self, item: &str) -> Option<K> {
        let mut object: K = serde_json::from_str(item)
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

/// kube tries to read an event that does not decode as a Status, every field of which may be missing.
fn is_undecodable(error: &Error) -> bool {
    match error {
        Error::SerdeError(_) => true,
        Error::Api(status) => status.code == 0 && status.reason.is_empty() && status.message.is_empty(),
        _ => false,
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
