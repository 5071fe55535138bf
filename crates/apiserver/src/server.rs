//! Composition and connections: builds the API from its parts, and serves it over TLS or in memory.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::{Arc, atomic::Ordering},
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use anyhow::Context as _;
use axum::body::Body;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use resources::Cidr;
use store::Store;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admission::Chain,
    allocate::{self, Allocators},
    api::{Api, Components},
    authn::{Authentication, ClientTrust, Lookup},
    authz::Union,
    bootstrap,
    cache::Hub,
    discovery::Groups,
    endpoints,
    lookup::CacheLookup,
    nonresource::Documents,
    objects::Objects,
    openapi::OpenApi,
    pki::Pki,
    reviews::Reviews,
    upgrade::{Dialer, Proxy},
    write::Writer,
};

/// Connections at once, over all listeners.
const MAX_CONNECTIONS: usize = 10_000;
/// A connection that has not said who it is by then is closed.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests at once on one HTTP/2 connection, as upstream.
const MAX_STREAMS: u32 = 250;
/// How long running requests may take to end at shutdown.
const DRAIN: Duration = Duration::from_secs(5);

pub struct Config {
    pub store: Arc<dyn Store>,
    pub pki: Arc<Pki>,
    /// Where nodes and pods reach this server. A loopback address is not advertised.
    pub advertise: SocketAddr,
    pub service_cidr: Cidr,
    pub node_ports: RangeInclusive<u16>,
    /// How kubelets, pods and services are reached.
    pub dialer: Arc<dyn Dialer>,
}

#[derive(Clone)]
pub struct Server {
    api: Arc<Api>,
    pki: Arc<Pki>,
    trust: Arc<ClientTrust>,
    connections: Arc<Semaphore>,
    background: TaskTracker,
    /// Ends the caches' feed, after everything that reads them.
    feed: CancellationToken,
}

impl Server {
    /// Builds the server and creates what every cluster has; when this returns, it is ready.
    pub async fn new(config: Config) -> anyhow::Result<Server> {
        let shutdown = CancellationToken::new();
        let feed = CancellationToken::new();
        let hub = Hub::start(config.store.clone(), feed.clone()).await.context("follow the store")?;
        let objects = Arc::new(Objects::new(config.store.clone(), hub));
        let lookup: Arc<dyn Lookup> = Arc::new(CacheLookup(objects.clone()));
        let tokens = Arc::new(config.pki.tokens()?);
        let authorizer = Union::start(lookup.clone());
        let admission = Chain::standard(&lookup, &authorizer);
        allocate::upgrade::run(&*config.store).await.context("convert the addresses of Services")?;
        let allocators = Allocators::new(config.store.clone(), objects.clone(), config.node_ports);
        let kubelet = config.pki.kubelet_client_config()?;
        let api = Arc::new(Api::new(Components {
            writer: Writer::new(objects, allocators, admission),
            authenticator: Arc::new(Authentication::new(tokens.clone(), lookup.clone())),
            authorizer: authorizer.clone(),
            nonresource: Documents {
                groups: Groups::new(resources::registry()),
                openapi: OpenApi::default(),
                tokens: tokens.clone(),
                address: config.advertise.to_string(),
            },
            reviews: Reviews::new(tokens, authorizer.clone(), lookup.clone()),
            upgrade: Proxy::new(lookup, config.dialer, kubelet),
            shutdown,
        }));
        let trust = Arc::new(config.pki.client_trust()?);
        let server = Server {
            api,
            pki: config.pki,
            trust,
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            background: TaskTracker::new(),
            feed,
        };
        let writer = &server.api.writer;
        bootstrap::run(writer, config.service_cidr, config.advertise.port())
            .await
            .context("create the bootstrap objects")?;
        authorizer.synced().await;
        server.api.health.bootstrapped.store(true, Ordering::Release);
        server.follow_up(config.store, config.advertise, config.service_cidr);
        Ok(server)
    }

    fn follow_up(&self, store: Arc<dyn Store>, advertise: SocketAddr, services: Cidr) {
        let (api, pki) = (self.api.clone(), self.pki.clone());
        self.background.spawn(allocate::repair::keep(api.clone(), services));
        if advertisable(advertise.ip()) {
            self.background.spawn(endpoints::keep(api.clone(), store, advertise));
        } else {
            tracing::info!(%advertise, "not advertising a loopback address to the cluster");
        }
        self.background.spawn(async move { pki.keep_renewed(api.shutdown.clone()).await });
    }

    /// The API in memory. Callers put their `UserInfo` into each request's extensions.
    pub fn service(&self) -> Service {
        Service(self.api.clone())
    }

    /// Tells of a component in the same process, for `kubectl get componentstatuses`.
    pub fn beside(&self, component: &'static str, alive: impl Fn() -> bool + Send + Sync + 'static) {
        self.api.components.tell(component, alive);
    }

    pub fn ready(&self) -> bool {
        self.api.ready()
    }

    /// Ends watches, background tasks and every [`Server::serve`].
    pub async fn shutdown(&self) {
        self.api.shutdown.cancel();
        self.background.close();
        let _ = tokio::time::timeout(DRAIN, self.background.wait()).await;
        self.feed.cancel();
    }

    /// Serves HTTP/1.1 and HTTP/2 over TLS until either is shut down.
    pub async fn serve(&self, listener: TcpListener, shutdown: CancellationToken) -> anyhow::Result<()> {
        let acceptor = TlsAcceptor::from(Arc::new(self.pki.server_config(&self.trust)?));
        let tasks = TaskTracker::new();
        let stop = self.api.shutdown.child_token();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.cancelled() => break,
                () = stop.cancelled() => break,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, most likely: others must end first.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Ok(permit) = self.connections.clone().try_acquire_owned() else {
                tracing::warn!("too many connections; closing one");
                continue;
            };
            let (server, acceptor, stop) = (self.clone(), acceptor.clone(), stop.clone());
            tasks.spawn(async move {
                server.connection(stream, acceptor, stop).await;
                drop(permit);
            });
        }
        stop.cancel();
        tasks.close();
        let _ = tokio::time::timeout(DRAIN, tasks.wait()).await;
        Ok(())
    }

    async fn connection(&self, stream: TcpStream, acceptor: TlsAcceptor, stop: CancellationToken) {
        let _ = stream.set_nodelay(true);
        let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
            Err(_) => return,
        };
        let peer = stream.get_ref().1.peer_certificates().map(|chain| self.trust.judge(chain));
        let api = self.api.clone();
        let service = hyper::service::service_fn(move |mut request: Request<hyper::body::Incoming>| {
            if let Some(peer) = &peer {
                request.extensions_mut().insert(peer.clone());
            }
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.handle(request.map(Body::new)).await) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(32));
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(15))
            .adaptive_window(true);
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(error, "a connection ended badly");
        }
    }
}

/// Endpoints may not be loopback addresses: they would mean something else on each node.
fn advertisable(address: IpAddr) -> bool {
    !address.is_loopback() && !address.is_unspecified()
}

/// The API as a tower service.
#[derive(Clone)]
pub struct Service(Arc<Api>);

impl<B> tower::Service<Request<B>> for Service
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let api = self.0.clone();
        Box::pin(async move { Ok(api.handle(request.map(Body::new)).await) })
    }
}
