//! The same API over real TLS connections, HTTP/1.1 and HTTP/2.

use super::*;

use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
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
