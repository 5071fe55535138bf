//! The node agent: runs pods through CRI.
//!
//! [`run`] follows the pods bound to its node and gives each to a task of its own ([`worker`]), which
//! asks a pure planner ([`plan`]) what to do and reports a status ([`status`]). The runtime's event
//! stream drives everything; nothing on the way from a binding to a running container waits for a
//! period. The crate knows no scheduler, no store and no particular runtime: only the Kubernetes API
//! on one side and CRI on the other.

mod admit;
mod backoff;
mod cgroup;
mod check;
mod config;
mod convert;
mod cri_client;
mod dns;
mod env;
mod eviction;
pub mod fake_cri;
mod fields;
mod housekeeping;
mod images;
mod logs;
mod node;
mod objects;
mod operations;
mod plan;
mod pod;
mod pods;
mod probe;
mod resize;
mod resources;
mod security;
mod server;
mod shared;
mod state;
mod static_pods;
mod status;
mod status_writer;
mod userns;
mod volume;
mod worker;

pub use config::{Config, ImageGc, Server};
pub use eviction::{Eviction, Flags as EvictionFlags};

use crate::cri_client::Cri;
use crate::images::Images;
use crate::objects::Objects;
use crate::pods::Pods;
use crate::shared::Shared;
use crate::static_pods::Mirrors;
use crate::userns::UserNamespaces;
use crate::volume::Tokens;
use anyhow::Context as _;
use client::{Client, Event, EventRecorder, Informers};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::api::ListParams;
use parking_lot::RwLock;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Where the API server expects a kubelet, unless the Node says otherwise.
pub const PORT: u16 = 10250;

/// Runs a node until `shutdown`. Pods keep running afterwards, and are found again by the next run.
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) -> anyhow::Result<()> {
    let informers = Informers::new(client);
    let cancelled = shutdown.clone();
    tokio::select! {
        result = serve(config, informers, shutdown) => result,
        () = cancelled.cancelled() => Ok(()),
    }
}

async fn serve(config: Config, informers: Informers, shutdown: CancellationToken) -> anyhow::Result<()> {
    // Volumes below are open to everybody, and so must not be within everybody's reach.
    let pods_dir = config.root_dir.join("pods");
    std::fs::create_dir_all(&pods_dir)
        .and_then(|()| std::fs::set_permissions(&pods_dir, std::fs::Permissions::from_mode(0o750)))
        .with_context(|| format!("create {}", pods_dir.display()))?;
    let users = UserNamespaces::open(&config).map_err(anyhow::Error::msg).context("create user namespace manager")?;
    let cri = Cri::connect(&config.cri_endpoint);
    let runtime = first_answer(&cri).await;
    tracing::info!(runtime = runtime.runtime_name, version = runtime.runtime_version, "runtime connected");
    let listener = match &config.server {
        Some(server) => Some(server::bind(server).await?),
        None => None,
    };
    let port = listener.as_ref().map_or(0, server::Listener::port);
    let shared = shared(config, &informers, (cri, users), runtime.runtime_name.clone(), shutdown);
    let left = loop {
        match pods::list_runtime(&shared.cri).await {
            Ok(left) => break left,
            Err(error) => tracing::warn!(%error, "cannot list the runtime's pods, will retry"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    let pods = Pods::new(shared.clone(), left);
    let mirrors = Mirrors::new(pods.clone());
    let manager = eviction::Manager::start(pods.clone()).await;
    let (node_sender, node) = watch::channel(None);
    // Dropped with this function: none of these outlives the kubelet.
    let mut tasks = JoinSet::new();
    tasks.spawn(housekeeping::events(pods.clone()));
    tasks.spawn(housekeeping::relist(pods.clone()));
    tasks.spawn(housekeeping::resizes(pods.clone()));
    tasks.spawn(housekeeping::weigh_classes(pods.clone()));
    tasks.spawn(housekeeping::rotate_logs(pods.clone()));
    tasks.spawn(housekeeping::collect_images(pods.clone()));
    tasks.spawn(manager.run());
    tasks.spawn(node::run(pods.clone(), runtime, port, node_sender));
    tasks.spawn(node::keep_lease(pods.clone(), node.clone()));
    if let Some(listener) = listener {
        tasks.spawn(server::serve(listener, pods.clone()));
    }
    if shared.config.manifest_dir.is_some() {
        // Before the API's pods: what static pods left running is theirs, and their mirrors are known.
        mirrors.scan().await;
        tasks.spawn(static_pods::run(mirrors.clone(), node.clone()));
    }
    let follow = follow_pods(&informers, &pods, &mirrors, node);
    tokio::select! {
        () = follow => Ok(()),
        Some(ended) = tasks.join_next() => {
            ended.context("a part of the kubelet failed")?;
            anyhow::bail!("a part of the kubelet ended unexpectedly")
        }
    }
}

fn shared(
    config: Config,
    informers: &Informers,
    (cri, users): (Cri, UserNamespaces),
    runtime_name: String,
    shutdown: CancellationToken,
) -> Arc<Shared> {
    let client = informers.client().clone();
    let capacity = node::capacity(&config);
    let allocatable = node::allocatable(&capacity, &config.reserved);
    Arc::new(Shared {
        images: Images::new(cri.clone(), config.parallel_pulls),
        objects: Objects::new(client.clone()),
        tokens: Tokens::new(client.clone()),
        recorder: EventRecorder::new(client.clone(), "kubelet", &config.node_name),
        services: informers.get::<Service>(),
        allocatable: RwLock::new(Arc::new(allocatable)),
        pressures: RwLock::default(),
        runtime_status: RwLock::default(),
        users,
        capacity,
        runtime_name,
        client,
        cri,
        config,
        shutdown,
    })
}

/// Waits for the runtime: it may start after us.
async fn first_answer(cri: &Cri) -> cri::v1::VersionResponse {
    let mut delay = Duration::from_millis(20);
    loop {
        match cri.version(cri::v1::VersionRequest { version: "v1".to_owned() }).await {
            Ok(version) => return version,
            Err(error) if delay > Duration::from_secs(1) => tracing::warn!(%error, "the runtime does not answer"),
            Err(_) => {}
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(Duration::from_secs(5));
    }
}

/// Gives every pod bound to this node to its task.
async fn follow_pods(
    informers: &Informers,
    pods: &Arc<Pods>,
    mirrors: &Arc<Mirrors>,
    mut node: watch::Receiver<Option<Arc<Node>>>,
) {
    let selector = format!("spec.nodeName={}", pods.shared().config.node_name);
    let informer = informers.get_with::<Pod>(&ListParams::default().fields(&selector));
    informer.synced().await;
    // Admission compares pods with the node as the API has it.
    let _ = node.wait_for(Option::is_some).await;
    let mut events = informer.subscribe();
    while let Some(event) = events.try_recv() {
        dispatch(event, pods, mirrors, &node).await;
    }
    pods.catch_up();
    let orphans = pods.clone();
    tokio::spawn(async move { orphans.clean_orphans().await });
    while let Some(event) = events.recv().await {
        dispatch(event, pods, mirrors, &node).await;
    }
}

async fn dispatch(event: Event<Pod>, pods: &Arc<Pods>, mirrors: &Mirrors, node: &watch::Receiver<Option<Arc<Node>>>) {
    let deleted = matches!(event, Event::Deleted(_));
    let pod = event.object().clone();
    if pod::is_mirror(&pod) {
        return mirrors.seen(&pod, deleted).await;
    }
    match deleted {
        true => pods.remove(&pod).await,
        false => {
            let node = node.borrow().clone();
            pods.put(pod, node.as_deref()).await;
        }
    }
}
