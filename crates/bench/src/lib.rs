//! Benchmarks of a Kubernetes cluster, through its API alone.
//!
//! Works against anything a kubeconfig names and refuses to know whose cluster that is: the same requests go to Isopod
//! and to a stock kube-apiserver, so that the numbers compare. The load comes over raw hyper connections, each with a
//! TCP and TLS connection of its own, because a client library's pool and codecs would be measured with the server.

mod api;
mod cli;
mod connection;
mod fleet;
mod load;
mod memory;
mod namespace;
mod pods;
mod report;
mod scale;
mod stats;
mod target;
mod watch;

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

pub use cli::{Options, Scenario};
pub use connection::{Call, Connection};
pub use report::{Latency, Report, Row};
pub use target::Target;

use namespace::Namespace;

/// The user pressed Ctrl-C, or the process was asked to end.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// What every scenario works with.
struct Context<'a> {
    options: &'a Options,
    target: &'a Arc<Target>,
    namespace: &'a Namespace,
}

/// Measures what `options` ask for. The report holds what was measured, however it ended; it is missing if the server
/// never answered.
pub async fn run(options: &Options) -> (Option<Report>, anyhow::Result<()>) {
    let (target, mut report) = match begin(options).await {
        Ok(begun) => begun,
        Err(error) => return (None, Err(error)),
    };
    let namespace = Namespace::new(&target);
    let context = Context { options, target: &target, namespace: &namespace };
    let ended = tokio::select! {
        ended = scenarios(&context, &mut report) => ended,
        ended = cut_short(options.timeout) => ended,
    };
    eprintln!("cleaning up namespace {}", namespace.name());
    let cleaned = tokio::select! {
        cleaned = clean_up(options, &target, &namespace) => cleaned,
        interrupted = interrupted() => interrupted,
    };
    let cleaned = cleaned.with_context(|| format!("namespace {} may be left behind", namespace.name()));
    match (ended, cleaned) {
        (Err(error), Err(left)) => {
            eprintln!("bench: {left:#}");
            (Some(report), Err(error))
        }
        (ended, cleaned) => (Some(report), ended.and(cleaned)),
    }
}

/// The nodes go first: what is left of pods on them would wait for their kubelets.
async fn clean_up(options: &Options, target: &Arc<Target>, namespace: &Namespace) -> anyhow::Result<()> {
    if options.scenarios().contains(&Scenario::Scale) {
        fleet::remove(target, namespace.name()).await.context("remove the nodes")?;
    }
    namespace.delete().await
}

async fn begin(options: &Options) -> anyhow::Result<(Arc<Target>, Report)> {
    let target = Arc::new(Target::load(options).await?);
    let report = Report::about(&target).await?;
    Ok((target, report))
}

async fn scenarios(context: &Context<'_>, report: &mut Report) -> anyhow::Result<()> {
    let pids = &context.options.pids;
    memory::measure(pids, "before", report)?;
    context.namespace.create().await?;
    for scenario in context.options.scenarios() {
        match scenario {
            Scenario::Api => api::run(context, report).await?,
            Scenario::Pods => pods::run(context, report).await?,
            Scenario::Scale => scale::run(context, report).await?,
        }
        memory::measure(pids, &format!("after {scenario}"), report)?;
    }
    Ok(())
}

/// Returns when the run must end though it is not done.
async fn cut_short(limit: Duration) -> anyhow::Result<()> {
    tokio::select! {
        interrupted = interrupted() => interrupted,
        () = tokio::time::sleep(limit) => anyhow::bail!("not done after {limit:?}; raise --timeout, or measure less"),
    }
}

/// Returns on SIGINT and SIGTERM.
async fn interrupted() -> anyhow::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Err(Interrupted.into())
}
