//! Requests at a steady rate, and an honest count of those that failed: what a user of a Service sees while pods come
//! and go.
//!
//! A request starts when its time has come, whatever became of those before it, so that a slow answer hides nothing, and
//! what was missed is made up for; only when very many are under way are some left out, and the counts say so. Each has a
//! connection of its own; the name is resolved once, since the rate is about the Service and not about DNS.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::task::TaskTracker;

/// Requests under way at once.
const LIMIT: usize = 200;
/// A request that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Counts {
    done: AtomicU64,
    failed: AtomicU64,
    left_out: AtomicU64,
}

/// Fetches `rate` times a second for `seconds`, without end if that is 0. Tells the counts each second, and every failure.
pub async fn run(url: &str, rate: u32, seconds: u64) -> anyhow::Result<()> {
    let target = Arc::new(super::Target::resolve(url).await?);
    let (counts, requests, began) = (Arc::new(Counts::default()), TaskTracker::new(), Instant::now());
    let mut ticks = interval(Duration::from_secs(1) / rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut told = 0;
    while seconds == 0 || began.elapsed().as_secs() < seconds {
        ticks.tick().await;
        if requests.len() < LIMIT {
            requests.spawn(request(target.clone(), counts.clone(), began));
        } else {
            counts.left_out.fetch_add(1, Ordering::Relaxed);
        }
        if began.elapsed().as_secs() > told {
            told = began.elapsed().as_secs();
            tell(told, &counts);
        }
    }
    requests.close();
    requests.wait().await;
    tell(began.elapsed().as_secs(), &counts);
    match counts.failed.load(Ordering::Relaxed) {
        0 => Ok(()),
        failed => bail!("{failed} requests failed"),
    }
}

async fn request(target: Arc<super::Target>, counts: Arc<Counts>, began: Instant) {
    let at = began.elapsed();
    let answer = timeout(PATIENCE, target.fetch()).await.context("no answer in time").and_then(|answer| answer);
    if let Err(error) = answer {
        counts.failed.fetch_add(1, Ordering::Relaxed);
        println!(
            "failed: begun at {:.3} s, over at {:.3} s: {error:#}",
            at.as_secs_f64(),
            began.elapsed().as_secs_f64()
        );
    }
    counts.done.fetch_add(1, Ordering::Relaxed);
}

fn tell(second: u64, counts: &Counts) {
    let [done, failed, left_out] =
        [&counts.done, &counts.failed, &counts.left_out].map(|count| count.load(Ordering::Relaxed));
    println!("{second} s: {done} requests, {failed} failed, {left_out} left out");
}
