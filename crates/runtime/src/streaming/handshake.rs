//! Which protocol a client and this server share, and the answer that seals it.
//!
//! Looks at headers only. The dialects are two tables; a client's first choice that is in them wins, as
//! upstream. Naming none is the oldest dialect.

use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
};
use http::header::{HeaderMap, HeaderName, HeaderValue, UPGRADE};
use http::{Response, StatusCode};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_PROTOCOL: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-version");
const SPDY: &str = "SPDY/3.1";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Spdy,
    /// A WebSocket whose messages carry the bytes of a SPDY connection.
    Tunnel,
    /// A WebSocket whose messages begin with a channel. `closes`: the client can end a channel.
    Channels {
        base64: bool,
        closes: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dialect {
    name: &'static str,
    pub(super) transport: Transport,
    /// The error channel carries a `Status`; otherwise only the text of a failure.
    pub(super) json_status: bool,
    /// A SPDY client with a terminal opens a stream for its sizes.
    pub(super) resizes: bool,
}

const fn dialect(name: &'static str, transport: Transport, json_status: bool) -> Dialect {
    Dialect { name, transport, json_status, resizes: json_status }
}

const BINARY: Transport = Transport::Channels { base64: false, closes: false };
const BASE64: Transport = Transport::Channels { base64: true, closes: false };

/// What exec and attach are spoken in.
pub(super) const COMMAND: &[Dialect] = &[
    dialect("v5.channel.k8s.io", Transport::Channels { base64: false, closes: true }, true),
    dialect("v4.channel.k8s.io", BINARY, true),
    dialect("v4.base64.channel.k8s.io", BASE64, true),
    dialect("channel.k8s.io", BINARY, false),
    dialect("base64.channel.k8s.io", BASE64, false),
    dialect("", BINARY, false),
    dialect("v5.channel.k8s.io", Transport::Spdy, true),
    dialect("v4.channel.k8s.io", Transport::Spdy, true),
    Dialect { name: "v3.channel.k8s.io", transport: Transport::Spdy, json_status: false, resizes: true },
    dialect("v2.channel.k8s.io", Transport::Spdy, false),
    dialect("channel.k8s.io", Transport::Spdy, false),
    dialect("", Transport::Spdy, false),
];

/// What port-forward is spoken in.
pub(super) const PORT_FORWARD: &[Dialect] = &[
    dialect("SPDY/3.1+portforward.k8s.io", Transport::Tunnel, false),
    dialect("v4.channel.k8s.io", BINARY, false),
    dialect("v4.base64.channel.k8s.io", BASE64, false),
    dialect("", BINARY, false),
    dialect("portforward.k8s.io", Transport::Spdy, false),
    dialect("", Transport::Spdy, false),
];

/// A refusal in words, with the protocols that would have done.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) message: String,
    accepted: Vec<&'static str>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Refusal {
        Refusal { status, message: message.into(), accepted: Vec::new() }
    }

    pub(super) fn response<B: From<String>>(self) -> Response<B> {
        let mut response = Response::new(B::from(format!("{}\n", self.message)));
        *response.status_mut() = self.status;
        for name in self.accepted {
            response.headers_mut().append(ACCEPTED_PROTOCOL, HeaderValue::from_static(name));
        }
        response
    }
}

/// The dialect and the headers of the answer 101.
pub(super) fn negotiate(headers: &HeaderMap, dialects: &[Dialect]) -> Result<(Dialect, HeaderMap), Refusal> {
    let asks_for = |protocol: &str| words(headers, UPGRADE).any(|word| word.eq_ignore_ascii_case(protocol));
    let upgrades = words(headers, CONNECTION).any(|word| word.eq_ignore_ascii_case("upgrade"));
    match upgrades {
        true if asks_for("websocket") => websocket(headers, dialects),
        true if asks_for(SPDY) => spdy(headers, dialects),
        _ => Err(Refusal::new(StatusCode::BAD_REQUEST, "unable to upgrade: missing upgrade headers in request")),
    }
}

fn websocket(headers: &HeaderMap, dialects: &[Dialect]) -> Result<(Dialect, HeaderMap), Refusal> {
    let bad = |message: &str| Refusal::new(StatusCode::BAD_REQUEST, message);
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or_else(|| bad("missing Sec-WebSocket-Key"))?;
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(bad("unsupported Sec-WebSocket-Version"));
    }
    let dialect = choose(headers, SEC_WEBSOCKET_PROTOCOL, dialects, |transport| transport != Transport::Spdy)?;
    let mut answer = answer("websocket", SEC_WEBSOCKET_PROTOCOL, dialect);
    let accept = derive_accept_key(key.as_bytes());
    answer.insert(SEC_WEBSOCKET_ACCEPT, accept.parse().expect("base64 is a header value"));
    Ok((dialect, answer))
}

fn spdy(headers: &HeaderMap, dialects: &[Dialect]) -> Result<(Dialect, HeaderMap), Refusal> {
    let dialect = choose(headers, STREAM_PROTOCOL, dialects, |transport| transport == Transport::Spdy)?;
    Ok((dialect, answer(SPDY, STREAM_PROTOCOL, dialect)))
}

fn answer(upgrade: &'static str, protocol: HeaderName, dialect: Dialect) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(upgrade));
    if !dialect.name.is_empty() {
        headers.insert(protocol, HeaderValue::from_static(dialect.name));
    }
    headers
}

fn choose(
    headers: &HeaderMap,
    header: HeaderName,
    dialects: &[Dialect],
    fits: fn(Transport) -> bool,
) -> Result<Dialect, Refusal> {
    let spoken = || dialects.iter().filter(|dialect| fits(dialect.transport));
    let mut wanted: Vec<&str> = words(headers, header).collect();
    if wanted.is_empty() {
        wanted.push("");
    }
    let common = wanted.iter().find_map(|name| spoken().find(|dialect| dialect.name == *name));
    common.copied().ok_or_else(|| {
        let accepted: Vec<_> = spoken().map(|dialect| dialect.name).filter(|name| !name.is_empty()).collect();
        let message = format!(
            "unable to upgrade: unable to negotiate protocol: client supports [{}], server accepts [{}]",
            wanted.join(" "),
            accepted.join(" ")
        );
        Refusal { status: StatusCode::FORBIDDEN, message, accepted }
    })
}

/// The comma-separated words of all headers of a name.
fn words(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let parse = |&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
        let mut headers = HeaderMap::new();
        pairs.iter().map(parse).for_each(|(name, value)| {
            headers.append(name, value);
        });
        headers
    }

    fn over_websocket(protocols: &'static str) -> HeaderMap {
        let mut headers = headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-version", "13"),
        ]);
        if !protocols.is_empty() {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocols));
        }
        headers
    }

    #[test]
    fn the_clients_first_known_protocol_wins() {
        for (protocols, dialects, expected) in [
            ("v5.channel.k8s.io", COMMAND, "v5.channel.k8s.io"),
            ("v9.channel.k8s.io, base64.channel.k8s.io,v4.channel.k8s.io", COMMAND, "base64.channel.k8s.io"),
            ("", COMMAND, ""),
            ("SPDY/3.1+portforward.k8s.io", PORT_FORWARD, "SPDY/3.1+portforward.k8s.io"),
        ] {
            let (dialect, answer) = negotiate(&over_websocket(protocols), dialects).unwrap();
            assert_eq!(dialect.name, expected);
            assert_ne!(dialect.transport, Transport::Spdy);
            assert_eq!(answer[SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "the example of RFC 6455");
            assert_eq!(answer.get(SEC_WEBSOCKET_PROTOCOL).map_or("", |name| name.to_str().unwrap()), expected);
        }
    }

    #[test]
    fn spdy_names_protocols_in_one_header_or_many() {
        let upgrade = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];
        let version = "x-stream-protocol-version";
        for (more, expected, json, resizes) in [
            (&[(version, "v4.channel.k8s.io"), (version, "v3.channel.k8s.io")][..], "v4.channel.k8s.io", true, true),
            (&[(version, "v9, v3.channel.k8s.io")], "v3.channel.k8s.io", false, true),
            (&[(version, "v2.channel.k8s.io")], "v2.channel.k8s.io", false, false),
            (&[], "", false, false),
        ] {
            let (dialect, answer) = negotiate(&headers(&[&upgrade[..], more].concat()), COMMAND).unwrap();
            assert_eq!((dialect.name, dialect.json_status, dialect.resizes), (expected, json, resizes));
            assert_eq!((dialect.transport, &answer[UPGRADE]), (Transport::Spdy, &HeaderValue::from_static(SPDY)));
        }
    }

    #[test]
    fn refusals_say_what_would_do() {
        let unknown = negotiate(&over_websocket("v9.channel.k8s.io"), PORT_FORWARD).unwrap_err();
        assert_eq!(unknown.status, StatusCode::FORBIDDEN);
        assert!(unknown.message.contains("client supports [v9.channel.k8s.io]"), "{}", unknown.message);
        let response: Response<String> = unknown.response();
        assert_eq!(response.headers().get_all(ACCEPTED_PROTOCOL).iter().count(), 3);
        for incomplete in [
            headers(&[("upgrade", "websocket")]),
            headers(&[("connection", "upgrade"), ("upgrade", "h2c")]),
            headers(&[("connection", "upgrade"), ("upgrade", "websocket")]),
        ] {
            assert_eq!(negotiate(&incomplete, COMMAND).unwrap_err().status, StatusCode::BAD_REQUEST);
        }
    }
}
