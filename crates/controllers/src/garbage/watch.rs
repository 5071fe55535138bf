//! Keeps a metadata watch on every resource that can be collected, and the set of resources current: a definition that
//! comes or goes makes it ask discovery again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use client::{Event, Informer};
use futures::future::join_all;
use kube::Api;
use kube::api::ListParams;
use tokio::sync::{mpsc, watch as signal};
use tokio_util::task::AbortOnDropHandle;

use super::Shared;
use crate::common::discovery::{Discovered, Meta, discover};

/// After a definition changed: when its resource should be served, and when it will be if the server is slow.
const REDISCOVER: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(10)];

struct Watched {
    informer: Informer<Meta>,
    _follow: AbortOnDropHandle<()>,
}

pub(super) async fn run(shared: Shared, synced: signal::Sender<bool>) {
    let (redefined, mut redefinitions) = mpsc::channel(1);
    let mut watched: HashMap<String, Watched> = HashMap::new();
    loop {
        while let Err(error) = refresh(&shared, &mut watched, &redefined).await {
            tracing::debug!(%error, "discovery failed, will retry");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        join_all(watched.values().map(|watched| watched.informer.synced())).await;
        synced.send_replace(true);
        if redefinitions.recv().await.is_none() {
            return;
        }
        for delay in REDISCOVER {
            tokio::time::sleep(delay).await;
            let _ = redefinitions.try_recv();
            if let Err(error) = refresh(&shared, &mut watched, &redefined).await {
                tracing::debug!(%error, "discovery failed");
            }
        }
    }
}

/// Begins to watch what is new, and stops to watch what is no longer served.
async fn refresh(
    shared: &Shared,
    watched: &mut HashMap<String, Watched>,
    redefined: &mpsc::Sender<()>,
) -> kube::Result<()> {
    let discovery = discover(&shared.client).await?;
    let mut served: HashMap<String, Discovered> = HashMap::new();
    for found in discovery.resources.into_iter().filter(is_collectable) {
        served.insert(format!("{}/{}", found.resource.api_version, found.resource.plural), found);
    }
    if discovery.failures.is_empty() {
        watched.retain(|key, _| served.contains_key(key));
    }
    for (key, found) in served {
        watched.entry(key).or_insert_with(|| follow(shared.clone(), found, redefined.clone()));
    }
    Ok(())
}

/// Events own nothing, are owned by nothing, and there are many of them.
fn is_collectable(found: &Discovered) -> bool {
    ["list", "watch", "delete"].iter().all(|verb| found.can(verb)) && found.resource.plural != "events"
}

fn follow(shared: Shared, found: Discovered, redefined: mpsc::Sender<()>) -> Watched {
    let api: Api<Meta> = Api::all_with(shared.client.clone(), &found.resource);
    let informer = Informer::start(api, ListParams::default(), |object: &mut Meta| {
        object.types = None;
        object.metadata.annotations = None;
        object.metadata.labels = None;
    });
    let defines = matches!(found.resource.plural.as_str(), "customresourcedefinitions" | "apiservices");
    let (mut events, resource, ready) = (informer.subscribe(), Arc::new(found), informer.clone());
    let task = tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            let meta = &event.object().metadata;
            let keys = match &event {
                Event::Deleted(_) => shared.graph.lock().forget(meta.uid.as_deref().unwrap_or_default()),
                _ => shared.graph.lock().observe(&resource, meta),
            };
            keys.into_iter().for_each(|key| shared.queue.add(key));
            if defines && ready.has_synced() {
                let _ = redefined.try_send(()); // one waiting is enough
            }
        }
    });
    Watched { informer, _follow: AbortOnDropHandle::new(task) }
}
