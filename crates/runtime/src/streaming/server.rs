//! The HTTP server of streams: hands out URLs, upgrades the connections that come for them, runs each
//! as a session.
//!
//! Authenticates by the URL alone, which is why it belongs on the loopback interface and why a token is
//! good once, for a minute.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::Query;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::command::Command;
use super::handshake::{COMMAND, Dialect, PORT_FORWARD, Refusal, Transport, negotiate};
use super::session::{Activity, Watched};
use super::tokens::Tokens;
use super::websocket::Codec;
use super::{AttachRequest, ExecRequest, PortForwardRequest, Streams, command, portforward, session, spdy, websocket};

/// Connections at once; more wait to be accepted.
const CONNECTIONS: usize = 1024;
/// After a failed accept, such as for want of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// How long the server waits for clients.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the URL's issue to its use.
    pub token: Duration,
    /// For a SPDY client to open the streams it needs.
    pub creation: Duration,
    /// With no byte in either direction.
    pub idle: Duration,
    /// For what runs to take in what the client sent before it left.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        let [token, creation, idle, grace] = [60, 30, 4 * 60 * 60, 10].map(Duration::from_secs);
        Limits { token, creation, idle, grace }
    }
}

/// Serves until it is dropped; that ends all sessions.
pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    _stop: DropGuard,
}

impl Server {
    pub async fn bind(address: SocketAddr, streams: Arc<dyn Streams>) -> io::Result<Server> {
        Server::bind_with(address, streams, Limits::default()).await
    }

    pub async fn bind_with(address: SocketAddr, streams: Arc<dyn Streams>, limits: Limits) -> io::Result<Server> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let tokens = Tokens::new(limits.token);
        let shared = Arc::new(Shared { tokens, streams, limits, stop: stop.clone() });
        let serving = shared.clone();
        tokio::spawn(async move { serving.stop.clone().run_until_cancelled_owned(serving.accept(listener)).await });
        Ok(Server { address, shared, _stop: stop.drop_guard() })
    }

    pub fn exec_url(&self, request: ExecRequest) -> String {
        self.url("exec", Opened::Command("exec", request.into()))
    }

    pub fn attach_url(&self, request: AttachRequest) -> String {
        self.url("attach", Opened::Command("attach", request.into()))
    }

    pub fn port_forward_url(&self, request: PortForwardRequest) -> String {
        self.url("portforward", Opened::PortForward(request))
    }

    fn url(&self, kind: &str, request: Opened) -> String {
        format!("http://{}/{kind}/{}", self.address, self.shared.tokens.issue(request, Instant::now()))
    }
}

/// What a token was issued for.
enum Opened {
    Command(&'static str, Command),
    PortForward(PortForwardRequest),
}

impl Opened {
    fn kind(&self) -> &'static str {
        match self {
            Opened::Command(kind, _) => kind,
            Opened::PortForward(_) => "portforward",
        }
    }
}

struct Shared {
    tokens: Tokens<Opened>,
    streams: Arc<dyn Streams>,
    limits: Limits,
    stop: CancellationToken,
}

type Answer = Response<Full<Bytes>>;

impl Shared {
    async fn accept(self: Arc<Self>, listener: TcpListener) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let slot = slots.clone().acquire_owned().await.expect("never closed");
            match listener.accept().await {
                Ok((socket, _)) => {
                    let connection = self.clone().connection(socket, Arc::new(slot));
                    tokio::spawn(self.stop.clone().run_until_cancelled_owned(connection));
                }
                Err(error) => {
                    tracing::warn!("accept a streaming connection: {error}");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, socket: TcpStream, slot: Arc<OwnedSemaphorePermit>) {
        let _ = socket.set_nodelay(true);
        let service = service_fn(move |request| {
            let answer = self.clone().answer(request, slot.clone());
            async move { Ok::<_, Infallible>(answer.unwrap_or_else(Refusal::response)) }
        });
        let http = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(socket), service);
        if let Err(error) = http.with_upgrades().await {
            tracing::debug!("streaming connection: {error}");
        }
    }

    /// Agrees on a protocol, and lets the session begin once the answer is sent.
    fn answer(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        slot: Arc<OwnedSemaphorePermit>,
    ) -> Result<Answer, Refusal> {
        if ![Method::GET, Method::POST].contains(request.method()) {
            return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed"));
        }
        let opened = self.redeem(request.uri().path());
        let mut opened = opened.ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, "404 page not found"))?;
        let dialects = if matches!(opened, Opened::Command(..)) { COMMAND } else { PORT_FORWARD };
        let (dialect, headers) = negotiate(request.headers(), dialects)?;
        if let (Opened::PortForward(forward), Transport::Channels { .. }) = (&mut opened, dialect.transport) {
            complete_ports(&mut forward.ports, request.uri())?;
        }
        let session = self.clone().upgraded(hyper::upgrade::on(&mut request), opened, dialect, slot);
        tokio::spawn(self.stop.clone().run_until_cancelled_owned(session));
        let mut answer = Answer::default();
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *answer.headers_mut() = headers;
        Ok(answer)
    }

    fn redeem(&self, path: &str) -> Option<Opened> {
        let (kind, token) = path.strip_prefix('/')?.split_once('/')?;
        self.tokens.redeem(token, Instant::now()).filter(|opened| opened.kind() == kind)
    }

    async fn upgraded(
        self: Arc<Self>,
        upgrade: OnUpgrade,
        opened: Opened,
        dialect: Dialect,
        _slot: Arc<OwnedSemaphorePermit>,
    ) {
        match upgrade.await {
            Ok(upgraded) => {
                let (socket, activity) = Watched::new(TokioIo::new(upgraded));
                match opened {
                    Opened::Command(_, command) => self.command(command, dialect, socket, activity).await,
                    Opened::PortForward(request) => self.port_forward(request, dialect, socket, activity).await,
                }
            }
            Err(error) => tracing::debug!("upgrade of a streaming connection: {error}"),
        }
    }

    async fn command(&self, command: Command, dialect: Dialect, socket: Socket, activity: Activity) {
        let streams = self.streams.as_ref();
        if let Transport::Channels { base64, closes } = dialect.transport {
            let socket = websocket::accept(socket).await;
            let (channels, driver) = websocket::connect(socket, Codec { base64, closes }, command::inputs(&command));
            let work = command::over_websocket(streams, command, channels, dialect.json_status);
            session::run(driver, work, activity, self.limits).await;
        } else {
            let (connection, driver) = spdy::connect(socket, command::check);
            let traits = (dialect.json_status, dialect.resizes);
            let work = command::over_spdy(streams, command, connection, traits, self.limits.creation);
            session::run(driver, work, activity, self.limits).await;
        }
    }

    async fn port_forward(&self, request: PortForwardRequest, dialect: Dialect, socket: Socket, activity: Activity) {
        let PortForwardRequest { sandbox_id, ports } = request;
        let streams = self.streams.clone();
        match dialect.transport {
            Transport::Channels { base64, closes } => {
                let socket = websocket::accept(socket).await;
                let (channels, driver) =
                    websocket::connect(socket, Codec { base64, closes }, portforward::inputs(&ports));
                let work = portforward::over_websocket(streams, sandbox_id, ports, channels);
                session::run(driver, work, activity, self.limits).await;
            }
            Transport::Spdy => {
                let (connection, driver) = spdy::connect(socket, portforward::check);
                let work = portforward::over_spdy(streams, sandbox_id, connection, self.limits.creation);
                session::run(driver, work, activity, self.limits).await;
            }
            Transport::Tunnel => {
                let (inner, tunnel) = websocket::tunnel(websocket::accept(socket).await);
                let (connection, driver) = spdy::connect(inner, portforward::check);
                let work = portforward::over_spdy(streams, sandbox_id, connection, self.limits.creation);
                let driver = async {
                    tokio::join!(driver, tunnel);
                };
                session::run(driver, work, activity, self.limits).await;
            }
        }
    }
}

type Socket = Watched<TokioIo<Upgraded>>;

/// Plain WebSockets need the ports beforehand: from the CRI request, or else from the URL's `port`.
fn complete_ports(ports: &mut Vec<u16>, uri: &Uri) -> Result<(), Refusal> {
    let bad = |message: String| Refusal::new(StatusCode::BAD_REQUEST, message);
    if ports.is_empty() {
        let query = Query::<Vec<(String, String)>>::try_from_uri(uri).map_err(|error| bad(error.to_string()))?;
        let values = query.0.iter().filter(|(key, _)| key == "port" || key == "ports");
        let parsed: Result<_, _> = values.flat_map(|(_, value)| value.split(',')).map(portforward::port).collect();
        *ports = parsed.map_err(bad)?;
    }
    match ports.len() {
        0 => Err(bad("query parameter \"port\" is required".into())),
        1..=portforward::WEBSOCKET_PORTS => Ok(()),
        _ => Err(bad(format!("at most {} ports over one WebSocket", portforward::WEBSOCKET_PORTS))),
    }
}
