//! Port-forward: many connections into a pod over one from the client.
//!
//! Over SPDY a connection is a pair of streams, one for data and one for the reason of a failure, tied
//! by a request id. Over plain WebSockets it is a pair of channels for each port named beforehand.

use std::collections::HashMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt, join};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::spdy::{self, Frame, Headers, Stream};
use super::websocket::Channels;
use super::{Duplex, Streams, outlet::Outlet};

/// Two channels for each port, of the 200 that a digit-based channel number can name.
pub(super) const WEBSOCKET_PORTS: usize = 100;

/// Streams of a SPDY client must say their type and port.
pub(super) fn check(headers: &Headers) -> Result<(), String> {
    port(headers.get("port").ok_or("\"port\" header is required")?)?;
    match headers.get("streamtype").map(String::as_str) {
        Some("error" | "data") => Ok(()),
        other => Err(format!("invalid stream type {:?}", other.unwrap_or_default())),
    }
}

pub(super) fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(0) => Err(format!("port {text:?} must be > 0")),
        Ok(port) => Ok(port),
        Err(error) => Err(format!("unable to parse {text:?} as a port: {error}")),
    }
}

/// The streams of one connection, as far as they have come.
struct Pair {
    data: Option<Stream>,
    error: Option<Outlet<Frame>>,
    until: Instant,
}

/// What a new stream led to.
enum Next {
    Wait,
    Forward(Stream, Outlet<Frame>),
    Complain(Option<Outlet<Frame>>, String),
}

/// Pairs that wait for their second stream.
struct Pairs {
    waiting: HashMap<String, Pair>,
    creation: Duration,
}

impl Pairs {
    fn add(&mut self, stream: Stream) -> Next {
        let id = request_id(&stream);
        let fresh = || Pair { data: None, error: None, until: Instant::now() + self.creation };
        let pair = self.waiting.entry(id.clone()).or_insert_with(fresh);
        let (kind, twice) = match stream.headers["streamtype"].as_str() {
            "error" => ("error", pair.error.replace(stream.writer).is_some()),
            _ => ("data", pair.data.replace(stream).is_some()),
        };
        let complete = pair.data.is_some() && pair.error.is_some();
        if !twice && !complete {
            return Next::Wait;
        }
        match self.waiting.remove(&id) {
            Some(Pair { data: Some(data), error: Some(error), .. }) if !twice => Next::Forward(data, error),
            pair => {
                let text = format!("error processing stream for request {id}: {kind} stream already assigned");
                Next::Complain(pair.and_then(|pair| pair.error), text)
            }
        }
    }

    /// Ends when a pair has waited too long; then it is here no more.
    async fn expired(&mut self) -> (String, Option<Outlet<Frame>>) {
        let Some((id, until)) = self.waiting.iter().map(|(id, pair)| (id, pair.until)).min_by_key(|(_, until)| *until)
        else {
            return pending().await;
        };
        let id = id.clone();
        sleep_until(until).await;
        let error = self.waiting.remove(&id).and_then(|pair| pair.error);
        (id, error)
    }
}

/// Old clients send none: their streams come in pairs, error first, so that ids follow each other.
fn request_id(stream: &Stream) -> String {
    match (stream.headers.get("requestid"), stream.headers["streamtype"].as_str()) {
        (Some(id), _) if !id.is_empty() => id.clone(),
        (_, "error") => stream.id.to_string(),
        _ => stream.id.wrapping_sub(2).to_string(),
    }
}

pub(super) async fn over_spdy(
    streams: Arc<dyn Streams>,
    sandbox_id: String,
    mut connection: spdy::Connection,
    creation: Duration,
) {
    let mut pairs = Pairs { waiting: HashMap::new(), creation };
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            stream = connection.accept() => match stream.map(|stream| pairs.add(stream)) {
                None => break,
                Some(Next::Wait) => {}
                Some(Next::Complain(error, text)) => drop(tasks.spawn(complain(error, text))),
                Some(Next::Forward(data, error)) => {
                    let port = port(&data.headers["port"]).expect("checked before");
                    let data = Box::new(join(data.reader, data.writer));
                    tasks.spawn(forward(streams.clone(), sandbox_id.clone(), port, data, error));
                }
            },
            (id, error) = pairs.expired() => {
                tasks.spawn(complain(error, format!("(request={id}) timed out waiting for streams")));
            }
            Some(_) = tasks.join_next() => {}
        }
    }
    tasks.join_all().await;
}

/// The channels that a WebSocket client may send on.
pub(super) fn inputs(ports: &[u16]) -> impl Iterator<Item = u8> + use<> {
    (0..ports.len() as u8).map(|index| index * 2)
}

pub(super) async fn over_websocket(
    streams: Arc<dyn Streams>,
    sandbox_id: String,
    ports: Vec<u16>,
    mut channels: Channels,
) {
    let mut tasks = JoinSet::new();
    for (channel, port) in inputs(&ports).zip(ports) {
        let (mut data, mut error) = (channels.writer(channel), channels.writer(channel + 1));
        let _ = data.write_all(&port.to_le_bytes()).await;
        let _ = error.write_all(&port.to_le_bytes()).await;
        if let Some(reader) = channels.reader(channel) {
            tasks.spawn(forward(streams.clone(), sandbox_id.clone(), port, Box::new(join(reader, data)), error));
        }
    }
    tasks.join_all().await;
    channels.close();
}

/// Whatever is written to the error stream is a failure to the client: success writes nothing.
async fn forward(
    streams: Arc<dyn Streams>,
    sandbox_id: String,
    port: u16,
    data: Box<dyn Duplex>,
    error: impl AsyncWrite + Unpin,
) {
    if let Err(failure) = streams.port_forward(&sandbox_id, port, data).await {
        tracing::debug!("forwarding port {port} to {sandbox_id}: {failure}");
        let text = format!("error forwarding port {port} to pod {sandbox_id}, uid : {failure}");
        complain(Some(error), text).await;
    }
}

async fn complain(error: Option<impl AsyncWrite + Unpin>, text: String) {
    if let Some(mut error) = error {
        let _ = error.write_all(text.as_bytes()).await;
    }
}
