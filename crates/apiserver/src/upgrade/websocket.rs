//! An answer as WebSocket messages, for clients that cannot read a stream as it comes: browsers, and logs.
//!
//! Each piece of the body is one message; what the client sends means nothing. A refusal never gets here:
//! it stays an HTTP answer, which tells more than a closed socket.

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

type Encode = fn(Bytes) -> Message;

/// How messages are written, by protocol; clients that name none get the first.
const PROTOCOLS: [(&str, Encode); 3] = [
    ("", Message::Binary),
    ("binary.k8s.io", Message::Binary),
    ("base64.binary.k8s.io", |data| Message::text(STANDARD.encode(data))),
];
/// The client may take this long to say goodbye.
const LINGER: Duration = Duration::from_secs(5);

/// A client that waits for messages.
pub struct Reader {
    client: OnUpgrade,
    answer: HeaderMap,
    encode: Encode,
}

/// Takes the upgrade out of a request that asks for one; what is left asks for a plain answer.
pub fn reader(request: &mut Request<Body>) -> Result<Option<Reader>> {
    let is_websocket = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"websocket");
    if !super::is_upgrade(request) || !request.headers().get(UPGRADE).is_some_and(is_websocket) {
        return Ok(None);
    }
    let client = hyper::upgrade::on(&mut *request);
    let headers = request.headers_mut();
    let key = headers.remove(SEC_WEBSOCKET_KEY).ok_or_else(|| ApiError::bad_request("missing Sec-WebSocket-Key"))?;
    let (protocol, encode) = negotiate(headers)?;
    for name in [CONNECTION, UPGRADE, SEC_WEBSOCKET_PROTOCOL] {
        headers.remove(name);
    }
    let mut answer = HeaderMap::new();
    answer.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = derive_accept_key(key.as_bytes()).parse() {
        answer.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    if !protocol.is_empty() {
        answer.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    Ok(Some(Reader { client, answer, encode }))
}

/// The client's first protocol that we speak.
fn negotiate(headers: &HeaderMap) -> Result<(&'static str, Encode)> {
    let values = headers.get_all(SEC_WEBSOCKET_PROTOCOL).into_iter().filter_map(|value| value.to_str().ok());
    let words = values.flat_map(|value| value.split(',')).map(str::trim);
    let mut wanted: Vec<&str> = words.filter(|word| !word.starts_with(WEBSOCKET_TOKEN)).collect();
    if wanted.is_empty() {
        wanted.push("");
    }
    let spoken = |name: &&str| PROTOCOLS.into_iter().find(|(protocol, _)| protocol == name);
    wanted.iter().find_map(spoken).ok_or_else(|| {
        let text = format!(
            "requested protocol(s) are not supported: [{}]; supports [binary.k8s.io base64.binary.k8s.io]",
            wanted.join(" ")
        );
        ApiError::new(403, "Forbidden", text)
    })
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
            sink.send(encode(piece)).await?;
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
