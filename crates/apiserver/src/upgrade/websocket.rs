//! An answer as WebSocket messages, for clients that cannot read a stream as it comes: logs and watches of browsers.
//!
//! Each piece of a log and each event of a watch is one message; what the client sends means nothing. A refusal never
//! gets here: it stays an HTTP answer, which tells more than a closed socket.

use std::time::Duration;

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use machinery::status::{ApiError, Result};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::{self, Message, protocol::Role};

use crate::authn::WEBSOCKET_TOKEN;
use crate::negotiate::Format;

/// What a piece of the body is to the client.
type Encode = fn(Bytes) -> Vec<Message>;

/// How logs are written, by protocol; clients that name none get the first.
const PROTOCOLS: [(&str, Encode); 3] = [
    ("", |data| vec![Message::Binary(data)]),
    ("binary.k8s.io", |data| vec![Message::Binary(data)]),
    ("base64.binary.k8s.io", |data| vec![Message::text(STANDARD.encode(data))]),
];
/// Of a watch frame in protobuf: the length of what follows.
const PREFIX: usize = 4;
/// The client may take this long to say goodbye.
const LINGER: Duration = Duration::from_secs(5);

/// A client that waits for messages.
pub struct Reader {
    client: OnUpgrade,
    answer: HeaderMap,
    encode: Encode,
}

/// Takes the upgrade out of a request for a log; what is left asks for a plain answer.
pub fn reader(request: &mut Request<Body>) -> Result<Option<Reader>> {
    take(request, |wanted| {
        let names = if wanted.is_empty() { &[""] } else { wanted };
        let spoken = |name: &&str| PROTOCOLS.into_iter().find(|(protocol, _)| protocol == name);
        let (protocol, encode) = names.iter().find_map(spoken).ok_or_else(|| {
            let text = format!(
                "requested protocol(s) are not supported: [{}]; supports [binary.k8s.io base64.binary.k8s.io]",
                names.join(" ")
            );
            ApiError::new(403, "Forbidden", text)
        })?;
        Ok((protocol.to_owned(), encode))
    })
}

/// Takes the upgrade out of a request for a watch. Its messages are what `Accept` asks for, whatever protocol the client
/// names, as upstream.
pub fn watcher(request: &mut Request<Body>, format: Format) -> Result<Option<Reader>> {
    let encode: Encode = if format == Format::Protobuf { frames } else { lines };
    take(request, |wanted| match wanted {
        [] => Ok((String::new(), encode)),
        [protocol] => Ok(((*protocol).to_owned(), encode)),
        _ => Err(ApiError::bad_request("a watch takes one WebSocket protocol")),
    })
}

/// JSON events end with a newline and have no other.
fn lines(data: Bytes) -> Vec<Message> {
    let text = String::from_utf8_lossy(&data);
    text.split_inclusive('\n').map(Message::text).collect()
}

fn frames(mut data: Bytes) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Some(length) = data.first_chunk::<PREFIX>().map(|prefix| u32::from_be_bytes(*prefix) as usize) {
        let frame = data.split_to((PREFIX + length).min(data.len()));
        messages.push(Message::Binary(frame.slice(PREFIX..)));
    }
    messages
}

fn take(
    request: &mut Request<Body>,
    negotiate: impl FnOnce(&[&str]) -> Result<(String, Encode)>,
) -> Result<Option<Reader>> {
    if !super::is_upgrade(request) || !super::tunnel::is_websocket(request.headers()) {
        return Ok(None);
    }
    let client = hyper::upgrade::on(&mut *request);
    let headers = request.headers_mut();
    let key = headers.remove(SEC_WEBSOCKET_KEY).ok_or_else(|| ApiError::bad_request("missing Sec-WebSocket-Key"))?;
    let (protocol, encode) = negotiate(&wanted(headers))?;
    for name in [CONNECTION, UPGRADE, SEC_WEBSOCKET_PROTOCOL] {
        headers.remove(name);
    }
    let mut answer = HeaderMap::new();
    answer.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = derive_accept_key(key.as_bytes()).parse() {
        answer.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    if let Some(protocol) = protocol.parse().ok().filter(|_| !protocol.is_empty()) {
        answer.insert(SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    Ok(Some(Reader { client, answer, encode }))
}

/// The protocols that the client names, but for the one that carries its token.
fn wanted(headers: &HeaderMap) -> Vec<&str> {
    let values = headers.get_all(SEC_WEBSOCKET_PROTOCOL).into_iter().filter_map(|value| value.to_str().ok());
    let words = values.flat_map(|value| value.split(',')).map(str::trim);
    words.filter(|word| !word.is_empty() && !word.starts_with(WEBSOCKET_TOKEN)).collect()
}

impl Reader {
    /// Sends the body to the client once the answer has gone out.
    pub fn serve(self, body: Body) -> Response<Body> {
        tokio::spawn(async move {
            match self.client.await {
                Ok(client) => relay(TokioIo::new(client), body, self.encode).await,
                Err(error) => tracing::debug!(%error, "an upgrade was not completed"),
            }
        });
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *answer.headers_mut() = self.answer;
        answer
    }
}

async fn relay<S>(client: S, body: Body, encode: Encode)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let (mut sink, mut stream) = WebSocketStream::from_raw_socket(client, Role::Server, None).await.split();
    // Reading answers pings, and ends when the client has gone.
    let mut reading = std::pin::pin!(async { while let Some(Ok(_)) = stream.next().await {} });
    let writing = async {
        let mut pieces = body.into_data_stream();
        while let Some(Ok(piece)) = pieces.next().await {
            for message in encode(piece) {
                sink.send(message).await?;
            }
        }
        sink.send(Message::Close(None)).await
    };
    let sent: tungstenite::Result<()> = tokio::select! {
        () = &mut reading => return,
        sent = writing => sent,
    };
    if sent.is_ok() {
        let _ = tokio::time::timeout(LINGER, reading).await;
    }
}
