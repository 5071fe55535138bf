//! The scheduler: finds a node for every pod that has none. It knows only the Kubernetes API.
//!
//! `decide` is a pure function of a snapshot and a pod; one task owns the snapshot and the queue, feeds them from
//! informers and decides pod after pod, while bindings and other writes run beside it. Plugins are in `plugins`, their
//! extension points in `framework`.

pub mod affinity;
pub mod decide;
pub mod framework;
pub mod groups;
pub mod plugins;
pub mod pod;
pub mod queue;
pub mod requests;
mod scheduler;
pub mod snapshot;
pub mod storage;
mod writes;

use client::Client;
use client::election::LeaderElector;
use tokio_util::sync::CancellationToken;

pub use decide::decide;

#[derive(Clone, Debug)]
pub struct Config {
    /// Schedules the pods that name it in spec.schedulerName.
    pub scheduler_name: String,
    /// The identity to elect a leader with; None to lead without asking.
    pub election: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self { scheduler_name: "default-scheduler".into(), election: None }
    }
}

/// Schedules until shut down, or until the election is lost.
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) -> anyhow::Result<()> {
    let lead = |leading| scheduler::run(config.scheduler_name, client.clone(), leading);
    match &config.election {
        None => lead(shutdown).await,
        Some(identity) => {
            let elector = LeaderElector::new(client.clone(), "kube-system", "kube-scheduler", identity);
            elector.run(shutdown, lead).await?;
        }
    }
    Ok(())
}
