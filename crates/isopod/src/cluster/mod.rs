//! A whole cluster in this process: what starts in which order, and how it ends.
//!
//! The store comes first and closes last. The control plane serves before anything else starts, so
//! that every component, in this process or another, is just a client.

mod control_plane;
pub mod node;
mod progress;
mod storage;

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use apiserver::identity::UserInfo;
pub use progress::Progress;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::cli::{NetworkOptions, NodeOptions};
use crate::kubeconfig;

/// The API's port on the node's own address.
pub const IN_CLUSTER_API_PORT: u16 = 6443;

/// Components get this long to end by themselves.
const DRAIN: Duration = Duration::from_secs(10);

/// Everything that is decided outside.
#[derive(Debug)]
pub struct Config {
    pub node_name: String,
    pub node_ip: Ipv4Addr,
    pub place: node::Place,
    pub network: NetworkOptions,
    pub node: NodeOptions,
    /// Where nodes and pods reach the API, on `node_ip`.
    pub api_port: u16,
    /// The admin's kubeconfig is written here ...
    pub kubeconfig: PathBuf,
    /// ... with this server and context name.
    pub kubeconfig_server: String,
    pub context: String,
    /// Further names and addresses of the API's certificate.
    pub certificate_names: Vec<String>,
    pub image_archives: Vec<PathBuf>,
    /// Also be a node, with scheduler, controllers and DNS; without it, the API server alone.
    pub with_node: bool,
}

/// Runs until a signal to end or a component's failure. `listeners` are where the API is served
/// besides the node's address.
pub async fn run(config: Config, listeners: Vec<TcpListener>, progress: &Progress) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let ended = {
        let running = run_until(&config, listeners, progress, shutdown.clone());
        tokio::pin!(running);
        tokio::select! {
            result = &mut running => result,
            _ = terminate.recv() => { shutdown.cancel(); running.await }
            _ = interrupt.recv() => { shutdown.cancel(); running.await }
        }
    };
    tracing::info!("stopped");
    ended
}

async fn run_until(
    config: &Config,
    listeners: Vec<TcpListener>,
    progress: &Progress,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let data_dir = &config.place.data_dir;
    std::fs::create_dir_all(data_dir).with_context(|| format!("create {}", data_dir.display()))?;
    let plane = control_plane::start(config).await?;
    let result = serve(config, &plane, listeners, progress, &shutdown).await;
    // Ends what is still running, also after a failure; the store closes when nobody writes.
    shutdown.cancel();
    plane.stop().await;
    result
}

async fn serve(
    config: &Config,
    plane: &control_plane::ControlPlane,
    listeners: Vec<TcpListener>,
    progress: &Progress,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let mut components = Components { tasks: JoinSet::new(), shutdown: shutdown.clone() };
    let mut listeners = listeners;
    if config.with_node && !listeners.iter().any(|listener| reaches(listener, config)) {
        let address = (IpAddr::V4(config.node_ip), config.api_port);
        let context = || format!("listen on {}:{} for the API", address.0, address.1);
        listeners.push(TcpListener::bind(address).with_context(context)?);
    }
    for listener in listeners {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let server = plane.server.clone();
        let stop = shutdown.clone();
        components.spawn("API server", async move { server.serve(listener, stop).await });
    }
    kubeconfig::write(&config.kubeconfig, &plane.admin_kubeconfig(&config.kubeconfig_server, &config.context)?)?;
    progress.step("the API server is serving");
    if config.with_node {
        plane.start_controllers(config, &mut components)?;
        let client = plane.client(UserInfo::master("system:isopod"), "isopod");
        storage::ensure_default_class(&client).await.context("create the storage class local-path")?;
        node::start(config, plane, &mut components, progress).await?;
        tokio::select! {
            ready = node::ready(config, plane, progress) => ready?,
            failed = components.first_failure() => return failed,
            () = shutdown.cancelled() => return components.drain().await,
        }
    }
    progress.ready();
    tokio::select! {
        failed = components.first_failure() => failed,
        () = shutdown.cancelled() => components.drain().await,
    }
}

/// A listener on the wildcard address serves the node's address too.
fn reaches(listener: &TcpListener, config: &Config) -> bool {
    listener.local_addr().is_ok_and(|address| {
        address.port() == config.api_port && (address.ip().is_unspecified() || address.ip() == config.node_ip)
    })
}

/// The tasks of the running components; none ends before it is told to.
pub struct Components {
    tasks: JoinSet<anyhow::Result<()>>,
    shutdown: CancellationToken,
}

impl Components {
    pub fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) -> AbortHandle {
        self.tasks.spawn(async move { task.await.with_context(|| format!("{name} failed")) })
    }

    pub fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    async fn first_failure(&mut self) -> anyhow::Result<()> {
        while let Some(ended) = self.tasks.join_next().await {
            ended.context("a component panicked")??;
            if self.shutdown.is_cancelled() {
                return self.drain().await;
            }
        }
        Ok(())
    }

    async fn drain(&mut self) -> anyhow::Result<()> {
        let all = async {
            while let Some(ended) = self.tasks.join_next().await {
                if let Err(error) = ended.map_err(anyhow::Error::from).flatten() {
                    tracing::warn!("while stopping: {error:#}");
                }
            }
        };
        if tokio::time::timeout(DRAIN, all).await.is_err() {
            tracing::warn!("{} component(s) did not stop within {DRAIN:?}", self.tasks.len());
            self.tasks.abort_all();
        }
        Ok(())
    }
}
