//! One TCP connection to the server, with TLS and HTTP on it. Never pools, retries or reconnects: that would hide what
//! is measured.

use std::{sync::Arc, time::Instant};

use anyhow::Context as _;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::{Body as _, Bytes, Incoming},
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use crate::target::Target;

/// client-go's receive windows; hyper's own would make HTTP/2 lists wait for updates.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 1 << 30;

/// A longer event is no event.
const MAX_EVENT: usize = 8 << 20;

/// One request.
#[derive(Clone, Debug)]
pub struct Call {
    pub method: Method,
    /// With the query.
    pub path: String,
    pub body: Bytes,
}

impl Call {
    pub fn get(path: impl Into<String>) -> Call {
        Call { method: Method::GET, path: path.into(), body: Bytes::new() }
    }
    pub fn post(path: impl Into<String>, body: impl Into<Bytes>) -> Call {
        Call { method: Method::POST, path: path.into(), body: body.into() }
    }
    pub fn put(path: impl Into<String>, body: impl Into<Bytes>) -> Call {
        Call { method: Method::PUT, path: path.into(), body: body.into() }
    }
    pub fn delete(path: impl Into<String>) -> Call {
        Call { method: Method::DELETE, path: path.into(), body: Bytes::new() }
    }
}

pub struct Connection {
    sender: Sender,
    target: Arc<Target>,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Connection {
    pub async fn open(target: &Arc<Target>) -> anyhow::Result<Connection> {
        let stream = connect(target).await.with_context(|| format!("connect to {}", target.url))?;
        let sender = handshake(stream, target.http2).await.with_context(|| format!("speak HTTP to {}", target.url))?;
        Ok(Connection { sender, target: target.clone() })
    }

    /// The whole body of a successful answer.
    pub async fn call(&mut self, call: &Call) -> anyhow::Result<Bytes> {
        let body = self.succeed(call).await?.collect().await.with_context(|| described(call))?;
        Ok(body.to_bytes())
    }

    /// The length of a successful answer's body, which is read to its end and thrown away.
    pub async fn drain(&mut self, call: &Call) -> anyhow::Result<usize> {
        let mut body = self.succeed(call).await?;
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            length += frame.with_context(|| described(call))?.data_ref().map_or(0, Bytes::len);
        }
        Ok(length)
    }

    /// Whatever the server answers.
    pub async fn answer(&mut self, call: &Call) -> anyhow::Result<(StatusCode, Bytes)> {
        let response = self.send(call).await?;
        let status = response.status();
        let body = response.collect().await.with_context(|| described(call))?;
        Ok((status, body.to_bytes()))
    }

    /// The events of a watch; returns once the server has accepted it.
    pub async fn watch(mut self, path: String) -> anyhow::Result<Watch> {
        let body = self.succeed(&Call::get(path)).await?;
        Ok(Watch { body, pending: Vec::new(), read_at: Instant::now(), _connection: self })
    }

    async fn succeed(&mut self, call: &Call) -> anyhow::Result<Incoming> {
        let response = self.send(call).await?;
        let code = response.status();
        if code.is_success() {
            return Ok(response.into_body());
        }
        let body = response.collect().await?.to_bytes();
        anyhow::bail!("{}: {code}: {}", described(call), message(&body))
    }

    async fn send(&mut self, call: &Call) -> anyhow::Result<Response<Incoming>> {
        let Target { prefix, authority, headers, .. } = &*self.target;
        let request = Request::builder().method(call.method.clone());
        let mut request = match &self.sender {
            Sender::Http1(_) => request.uri(format!("{prefix}{}", call.path)).header(header::HOST, authority),
            Sender::Http2(_) => request.uri(format!("{}://{authority}{prefix}{}", self.target.scheme(), call.path)),
        }
        .body(Full::new(call.body.clone()))?;
        request.headers_mut().extend(headers.clone());
        if !request.body().is_end_stream() {
            request.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        }
        let response = match &mut self.sender {
            Sender::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Sender::Http2(sender) => sender.send_request(request).await,
        };
        response.with_context(|| described(call))
    }
}

async fn connect(target: &Target) -> anyhow::Result<Box<dyn Stream>> {
    let tcp = TcpStream::connect((target.host.as_str(), target.port)).await?;
    tcp.set_nodelay(true)?;
    Ok(match &target.tls {
        Some((connector, name)) => Box::new(connector.connect(name.clone(), tcp).await?),
        None => Box::new(tcp),
    })
}

/// The connection's own task ends with the connection, which it closes once the sender and all bodies are dropped.
async fn handshake(stream: Box<dyn Stream>, http2: bool) -> hyper::Result<Sender> {
    let io = TokioIo::new(stream);
    if http2 {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(io)
            .await?;
        tokio::spawn(connection);
        Ok(Sender::Http2(sender))
    } else {
        let (sender, connection) = http1::handshake(io).await?;
        tokio::spawn(connection);
        Ok(Sender::Http1(sender))
    }
}

fn described(call: &Call) -> String {
    format!("{} {}", call.method, call.path)
}

/// The message of a metav1.Status, or the text there is.
pub(crate) fn message(body: &[u8]) -> String {
    let status: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let message = status.as_ref().and_then(|status| status["message"].as_str());
    message.map_or_else(|| String::from_utf8_lossy(body).chars().take(200).collect(), str::to_owned)
}

/// An event stream, read as it arrives.
pub struct Watch {
    body: Incoming,
    pending: Vec<u8>,
    read_at: Instant,
    _connection: Connection,
}

/// One event, not decoded any further.
pub struct Event {
    /// When its last byte was read.
    pub at: Instant,
    /// ADDED, MODIFIED or DELETED.
    pub kind: String,
    pub object: Box<RawValue>,
}

impl Watch {
    /// The next event. An ERROR event and the stream's end are errors: a measured watch outlives its measurement.
    pub async fn next(&mut self) -> anyhow::Result<Event> {
        #[derive(Deserialize)]
        struct Line {
            r#type: String,
            object: Box<RawValue>,
        }
        let line = self.line().await?;
        let Line { r#type: kind, object } = serde_json::from_slice(&line).context("read a watch event")?;
        anyhow::ensure!(kind != "ERROR", "watch failed: {}", message(object.get().as_bytes()));
        Ok(Event { at: self.read_at, kind, object })
    }

    async fn line(&mut self) -> anyhow::Result<Vec<u8>> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.pending[searched..].iter().position(|byte| *byte == b'\n') {
                let rest = self.pending.split_off(searched + end + 1);
                return Ok(std::mem::replace(&mut self.pending, rest));
            }
            searched = self.pending.len();
            anyhow::ensure!(searched <= MAX_EVENT, "a watch event of more than {MAX_EVENT} bytes");
            let frame = self.body.frame().await.context("the server ended a watch")?.context("read a watch")?;
            self.read_at = Instant::now();
            self.pending.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
        }
    }
}
