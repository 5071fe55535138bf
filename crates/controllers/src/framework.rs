//! What every controller is made of: informers that turn events into keys, a work queue, workers that reconcile one key
//! at a time. It refuses to know any kind.
//!
//! Workers begin when the informers of their controller have synced, so that no reconciler mistakes an empty cache for an
//! empty cluster. Nothing here polls: a reconciler that has to look again later says when.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use client::informer::Object;
use client::{Client, ErrorExt, Event, EventRecorder, Informer, Informers, WorkQueue, controller_of, key_of};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ListParams;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::common::describe;

/// Gives the client with the identity of a controller, such as `deployment-controller`: in one process that of
/// `system:serviceaccount:kube-system:deployment-controller`, with a plain kubeconfig always the same.
pub type Clients = Arc<dyn Fn(&str) -> Client + Send + Sync>;

pub struct Config {
    pub clients: Clients,
    /// The identity to elect a leader with; None to lead without asking.
    pub election: Option<String>,
    /// PEM of the CA that `kube-root-ca.crt` publishes; none, nothing is published.
    pub root_ca: Option<String>,
    /// Signs certificates of clients; none, they wait for somebody else.
    pub signer: Option<crate::certificate_signing::Signer>,
    /// Where node podCIDRs are cut from (IPv4), and their prefix length; none, nodes get none from here.
    pub cluster_cidr: Option<(std::net::Ipv4Addr, u8)>,
    pub node_cidr_mask: u8,
    /// Names of controllers not to run.
    pub disabled: Vec<String>,
    /// Finished pods kept before the oldest are collected; 0 keeps all.
    pub terminated_pod_threshold: usize,
    /// How long a node may be silent before it counts as Unknown.
    pub node_monitor_grace: Duration,
    /// How long a pod may be bound to a node that does not exist.
    pub missing_node_quarantine: Duration,
    /// The time that the schedules of CronJobs go by.
    pub clock: fn() -> Timestamp,
}

impl Config {
    /// Upstream's defaults, with every controller under one identity.
    pub fn new(client: Client) -> Self {
        Self {
            clients: Arc::new(move |_| client.clone()),
            election: None,
            root_ca: None,
            signer: None,
            cluster_cidr: Some((std::net::Ipv4Addr::new(10, 42, 0, 0), 16)),
            node_cidr_mask: 24,
            disabled: Vec::new(),
            terminated_pod_threshold: 12500,
            node_monitor_grace: Duration::from_secs(40),
            missing_node_quarantine: Duration::from_secs(40),
            clock: Timestamp::now,
        }
    }

    pub fn enables(&self, name: &str) -> bool {
        !self.disabled.iter().any(|disabled| disabled == name)
    }
}

/// When to look at a key again without an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requeue {
    Never,
    After(Duration),
}

impl From<Option<Duration>> for Requeue {
    fn from(delay: Option<Duration>) -> Self {
        delay.map_or(Self::Never, Self::After)
    }
}

pub trait Controller: Send + Sync + Sized + 'static {
    /// Its name in events, log lines and the list of disabled ones.
    const NAME: &'static str;
    /// Its service account, as upstream's bootstrap policy grants it what it needs.
    const IDENTITY: &'static str = Self::NAME;
    const WORKERS: usize = 5;

    /// Declares what to watch and which keys its events mean.
    fn new(context: &Context) -> Self;

    /// Brings what the key names closer to what it should be. Errors are retried with back-off.
    fn reconcile(&self, key: &str) -> impl Future<Output = anyhow::Result<Requeue>> + Send;
}

/// What a controller may use.
pub struct Context {
    pub config: Arc<Config>,
    pub client: Client,
    pub events: EventRecorder,
    pub queue: WorkQueue<String>,
    informers: Informers,
    shutdown: CancellationToken,
    synced: Mutex<Vec<BoxFuture<'static, ()>>>,
    handlers: Mutex<Vec<BoxFuture<'static, ()>>>,
}

impl Context {
    /// The shared informer of a kind; workers wait for it.
    pub fn informer<K: Object<DynamicType = ()>>(&self) -> Informer<K> {
        self.informer_with(&ListParams::default())
    }

    fn informer_with<K: Object<DynamicType = ()>>(&self, params: &ListParams) -> Informer<K> {
        let informer = self.informers.get_with::<K>(params);
        let waiting = informer.clone();
        self.synced.lock().push(async move { waiting.synced().await }.boxed());
        informer
    }

    /// Calls `handle` for every event of a kind, in order, from now on.
    pub fn on<K>(&self, handle: impl Fn(&Event<K>, &WorkQueue<String>) + Send + 'static) -> Informer<K>
    where
        K: Object<DynamicType = ()>,
    {
        self.on_with(&ListParams::default(), handle)
    }

    /// As `on`, for the objects that the parameters select.
    pub fn on_with<K>(
        &self,
        params: &ListParams,
        handle: impl Fn(&Event<K>, &WorkQueue<String>) + Send + 'static,
    ) -> Informer<K>
    where
        K: Object<DynamicType = ()>,
    {
        let informer = self.informer_with::<K>(params);
        let (mut events, queue) = (informer.subscribe(), self.queue.clone());
        let loop_ = async move {
            while let Some(event) = events.recv().await {
                handle(&event, &queue);
            }
        };
        self.handlers.lock().push(loop_.boxed());
        informer
    }

    /// Queues the key of every object of a kind that changes.
    pub fn watch<K: Object<DynamicType = ()>>(&self) -> Informer<K> {
        self.on::<K>(|event, queue| queue.add(key_of(event.object().meta())))
    }

    /// Queues the key of the controller of kind `owner` of every dependent that changes.
    pub fn watch_owned<K: Object<DynamicType = ()>>(&self, owner: &'static str) -> Informer<K> {
        self.on::<K>(move |event, queue| {
            let owners = event.old().into_iter().chain([event.object()]);
            owners.filter_map(|object| owner_key(object.meta(), owner)).for_each(|key| queue.add(key));
        })
    }

    /// Runs a task of the controller's own until it shuts down.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.handlers.lock().push(task.boxed());
    }

    /// Cancelled when the controllers shut down.
    pub fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }
}

/// The key of the controlling owner, if it is of that kind.
pub fn owner_key(meta: &kube::core::ObjectMeta, kind: &str) -> Option<String> {
    let OwnerReference { name, .. } = controller_of(meta).filter(|owner| owner.kind == kind)?;
    Some(match meta.namespace.as_deref() {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.clone(),
    })
}

type Run = fn(Arc<Config>, Informers, CancellationToken) -> BoxFuture<'static, ()>;

/// One controller of the registry.
pub struct Entry {
    pub name: &'static str,
    pub run: Run,
}

pub fn entry<C: Controller>() -> Entry {
    Entry { name: C::NAME, run: |config, informers, shutdown| run::<C>(config, informers, shutdown).boxed() }
}

async fn run<C: Controller>(config: Arc<Config>, informers: Informers, shutdown: CancellationToken) {
    let client = (config.clients)(C::IDENTITY);
    let context = Context {
        events: EventRecorder::new(client.clone(), C::NAME, ""),
        queue: WorkQueue::new(),
        synced: Mutex::default(),
        handlers: Mutex::default(),
        shutdown: shutdown.clone(),
        config,
        client,
        informers,
    };
    let controller = Arc::new(C::new(&context));
    let mut tasks = JoinSet::new();
    context.handlers.into_inner().into_iter().for_each(|handler| drop(tasks.spawn(handler)));
    let synced = futures::future::join_all(context.synced.into_inner());
    if shutdown.run_until_cancelled(synced).await.is_none() {
        return;
    }
    let mut workers = JoinSet::new();
    for _ in 0..C::WORKERS {
        workers.spawn(work(controller.clone(), context.queue.clone()));
    }
    shutdown.cancelled().await;
    context.queue.shut_down();
    // A reconcile that hangs on a dead server must not hang the shut-down.
    let _ = tokio::time::timeout(Duration::from_secs(5), async { while workers.join_next().await.is_some() {} }).await;
}

async fn work<C: Controller>(controller: Arc<C>, queue: WorkQueue<String>) {
    while let Some(key) = queue.get().await {
        let outcome = AssertUnwindSafe(controller.reconcile(&key)).catch_unwind().await;
        match outcome.unwrap_or_else(|_| Err(anyhow::anyhow!("reconciling panicked"))) {
            Ok(requeue) => {
                queue.forget(&key);
                if let Requeue::After(delay) = requeue {
                    queue.add_after(key.clone(), delay.max(Duration::from_millis(1)));
                }
            }
            Err(error) => {
                match error.downcast_ref::<kube::Error>().is_some_and(ErrorExt::is_conflict) {
                    true => tracing::debug!(controller = C::NAME, key = %*key, "{}", describe(&error)),
                    false => tracing::warn!(controller = C::NAME, key = %*key, "{}", describe(&error)),
                }
                queue.add_rate_limited(key.clone());
            }
        }
    }
}
