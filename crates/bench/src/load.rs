//! Drives one kind of request over many connections at once, each on its own task and one request at a time.
//! Refuses to know what the requests are.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::task::JoinSet;

use crate::{
    connection::{Call, Connection},
    target::Target,
};

/// TLS handshakes in flight while connecting: a thousand at once would overrun a listen queue.
const CONNECTING: usize = 32;

/// Opens `count` connections.
pub async fn open(target: &Arc<Target>, count: usize) -> anyhow::Result<Vec<Connection>> {
    stream::iter(0..count).map(|_| Connection::open(target)).buffer_unordered(CONNECTING).try_collect().await
}

pub struct Pool {
    connections: Vec<Connection>,
}

/// What came of the requests.
pub struct Load {
    /// One per answered request, without gaps in their indexes.
    pub samples: Vec<Sample>,
    pub elapsed: Duration,
}

pub struct Sample {
    pub index: usize,
    pub start: Instant,
    pub took: Duration,
}

impl Load {
    /// Requests per second.
    pub fn rate(&self) -> f64 {
        self.samples.len() as f64 / self.elapsed.as_secs_f64()
    }

    pub fn latencies(&self) -> impl Iterator<Item = Duration> {
        self.samples.iter().map(|sample| sample.took)
    }
}

impl Pool {
    pub async fn open(target: &Arc<Target>, connections: usize) -> anyhow::Result<Pool> {
        Ok(Pool { connections: open(target, connections).await? })
    }

    /// Sends `count` requests, made from their index; stops early after `longest`. The first failure ends it all.
    pub async fn drive(
        &mut self,
        count: usize,
        longest: Duration,
        call: impl Fn(usize) -> Call + Send + Sync + 'static,
    ) -> anyhow::Result<Load> {
        let (call, next, start) = (Arc::new(call), Arc::new(AtomicUsize::new(0)), Instant::now());
        let mut tasks = JoinSet::new();
        for mut connection in self.connections.drain(..) {
            let (call, next) = (call.clone(), next.clone());
            tasks.spawn(async move {
                let mut samples = Vec::new();
                while start.elapsed() < longest {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        break;
                    }
                    let call = call(index);
                    let start = Instant::now();
                    connection.drain(&call).await?;
                    samples.push(Sample { index, start, took: start.elapsed() });
                }
                anyhow::Ok((connection, samples))
            });
        }
        let mut samples = Vec::new();
        while let Some(done) = tasks.join_next().await {
            let (connection, some) = done??;
            self.connections.push(connection);
            samples.extend(some);
        }
        Ok(Load { samples, elapsed: start.elapsed() })
    }
}
