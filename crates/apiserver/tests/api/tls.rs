//! The same API over real TLS connections, HTTP/1.1 and HTTP/2.

use super::*;

use futures::StreamExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio_tungstenite::tungstenite::{self, Message, client::IntoClientRequest};
use tokio_util::sync::CancellationToken;

/// A TLS connection with a client certificate, if any, speaking `protocol`.
async fn connect(
    cluster: &Cluster,
    address: std::net::SocketAddr,
    user: Option<(&str, &[&str])>,
    protocol: &str,
) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(apiserver::pki::roots(cluster.pki.ca()).unwrap());
    let mut config = match user {
        None => builder.with_no_client_auth(),
        Some((name, groups)) => {
            let credential = cluster.pki.client(name, groups).unwrap();
            let chain = CertificateDer::pem_slice_iter(credential.cert.as_bytes()).collect::<Result<_, _>>().unwrap();
            builder
                .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(credential.key.as_bytes()).unwrap())
                .unwrap()
        }
    };
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

fn request(uri: &str) -> Request<Body> {
    Request::builder().uri(format!("https://localhost{uri}")).header("host", "localhost").body(Body::empty()).unwrap()
}

#[tokio::test]
async fn certificates_identify_over_both_protocols() {
    let cluster = Cluster::start().await;
    cluster.create(MAPS, config_map("a")).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let serving = tokio::spawn({
        let (server, stop) = (cluster.server.clone(), stop.clone());
        async move { server.serve(listener, stop).await }
    });

    let stream = connect(&cluster, address, Some(("admin", &["system:masters"])), "h2").await;
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let driver = tokio::spawn(connection);
    let answer = client.send_request(request(MAPS)).await.unwrap().map(Body::new);
    assert_eq!(names(&Answer::of(answer).await.expect(200)), ["a"]);
    // A body that is refused on its way does not cost the client the answer.
    let big = request(MAPS).map(|_| Body::from(vec![b'x'; 8 << 20]));
    let (mut parts, big) = big.into_parts();
    parts.method = Method::POST;
    let answer = client.send_request(Request::from_parts(parts, big)).await.unwrap().map(Body::new);
    Answer::of(answer).await.expect(413);
    // A watch's headers come before its first event.
    let answer = client.send_request(request("/api/v1/namespaces/default/secrets?watch=1")).await.unwrap();
    assert_eq!(answer.status(), 200);

    let stream = connect(&cluster, address, None, "http/1.1").await;
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let answer = client.send_request(request(MAPS)).await.unwrap().map(Body::new);
    let message = r#"configmaps is forbidden: User "system:anonymous" cannot list resource "configmaps" in API group "" in the namespace "default""#;
    Answer::of(answer).await.fails(403, "Forbidden", message);
    let answer = client.send_request(request("/livez")).await.unwrap().map(Body::new);
    assert_eq!(Answer::of(answer).await.text, "ok");

    let shutdown = cluster.server.shutdown();
    tokio::time::timeout(PATIENCE, shutdown).await.unwrap();
    tokio::time::timeout(PATIENCE, serving).await.expect("serving ends").unwrap().unwrap();
    driver.abort();
}

/// Asks for a watch over a WebSocket, with an `Accept` header and protocols of its own.
async fn socket(
    cluster: &Cluster,
    address: std::net::SocketAddr,
    user: Option<(&str, &[&str])>,
    [accept, protocols, query]: [&str; 3],
) -> tungstenite::Result<(impl futures::Stream<Item = tungstenite::Result<Message>> + Unpin, String)> {
    let stream = connect(cluster, address, user, "http/1.1").await;
    let mut request = format!("wss://localhost{MAPS}?watch=1&{query}").into_client_request().unwrap();
    request.headers_mut().insert(header::ACCEPT, accept.parse().unwrap());
    if !protocols.is_empty() {
        request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, protocols.parse().unwrap());
    }
    let (socket, answer) = tokio_tungstenite::client_async(request, stream).await?;
    let protocol = answer.headers().get(header::SEC_WEBSOCKET_PROTOCOL);
    Ok((socket, protocol.map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()))
}

#[tokio::test]
async fn browsers_watch_over_websockets() {
    let cluster = Cluster::start().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = cluster.server.clone();
    tokio::spawn(async move { server.serve(listener, CancellationToken::new()).await });
    for name in ["a", "b"] {
        cluster.create(MAPS, config_map(name)).await;
    }
    let admin: Option<(&str, &[&str])> = Some(("admin", &["system:masters"]));
    let next = async |socket: &mut (dyn futures::Stream<Item = tungstenite::Result<Message>> + Unpin)| {
        tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap()
    };
    // Each event is a message, those that were there already and those that come.
    let asked = ["application/json", "base64.binary.k8s.io", "timeoutSeconds=600"];
    let (mut json, protocol) = socket(&cluster, address, admin, asked).await.unwrap();
    assert_eq!(protocol, "base64.binary.k8s.io");
    cluster.call("DELETE", &format!("{MAPS}/a"), &Value::Null).await.expect(200);
    for want in ["ADDED a", "ADDED b", "DELETED a"] {
        let Message::Text(message) = next(&mut json).await else { panic!("JSON is text") };
        let event: Value = serde_json::from_str(&message).unwrap();
        assert_eq!(format!("{} {}", text(&event["type"]), text(&event["object"]["metadata"]["name"])), want);
    }
    // A WatchEvent in protobuf begins with its first field's tag, not with the length that a stream needs.
    let asked = ["application/vnd.kubernetes.protobuf", "", "timeoutSeconds=1"];
    let (mut binary, protocol) = socket(&cluster, address, admin, asked).await.unwrap();
    assert_eq!(protocol, "");
    let Message::Binary(message) = next(&mut binary).await else { panic!("protobuf is binary") };
    assert!(message.starts_with(b"\x0a\x05ADDED"), "{message:?}");
    assert!(matches!(next(&mut binary).await, Message::Close(_)), "the watch's time is over");
    // Refusals stay HTTP.
    let refused = socket(&cluster, address, None, ["*/*", "", ""]).await.map(drop);
    assert!(matches!(&refused, Err(tungstenite::Error::Http(answer)) if answer.status() == 403), "{refused:?}");
    let refused = socket(&cluster, address, admin, ["*/*", "a, b", ""]).await.map(drop);
    assert!(matches!(&refused, Err(tungstenite::Error::Http(answer)) if answer.status() == 400), "{refused:?}");
    cluster.server.shutdown().await;
}
