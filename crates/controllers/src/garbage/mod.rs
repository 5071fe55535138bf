//! Garbage collection: objects whose owners are gone are deleted; owners deleted in the foreground wait for their
//! dependents; owners deleted with orphaning set theirs free first.
//!
//! The [`graph`] of all objects and owners is kept by metadata-only watches on every resource that discovery knows. It is
//! only a hint: before anything is deleted the API server is asked about the object and its owners, because a watch that
//! lags must never look like an owner that is gone.

mod collect;
mod graph;
mod watch;

use std::sync::Arc;

use client::{Client, WorkQueue};
use parking_lot::Mutex;
use tokio::sync::watch as signal;

use crate::framework::{Context, Controller, Requeue};
use collect::Collector;
use graph::Graph;

pub struct GarbageCollector {
    collector: Collector,
    synced: signal::Receiver<bool>,
}

/// What the watches and the workers share.
#[derive(Clone)]
struct Shared {
    client: Client,
    graph: Arc<Mutex<Graph>>,
    queue: WorkQueue<String>,
}

impl Controller for GarbageCollector {
    const NAME: &'static str = "generic-garbage-collector";
    const WORKERS: usize = 20;

    fn new(context: &Context) -> Self {
        let shared = Shared { client: context.client.clone(), graph: Arc::default(), queue: context.queue.clone() };
        let (synced, wait) = signal::channel(false);
        context.spawn(watch::run(shared.clone(), synced));
        Self { collector: Collector::new(shared), synced: wait }
    }

    async fn reconcile(&self, key: &str) -> anyhow::Result<Requeue> {
        if self.synced.clone().wait_for(|synced| *synced).await.is_err() {
            return Ok(Requeue::Never); // shutting down
        }
        match key.strip_prefix(graph::ORPHAN) {
            Some(uid) => self.collector.orphan_dependents(uid).await?,
            None => self.collector.attempt_to_delete(key).await?,
        }
        Ok(Requeue::Never)
    }
}
