//! A client, the proxy and a kubelet, each a real HTTP/1.1 peer on loopback.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use axum::response::IntoResponse;
use http::HeaderValue;
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::authn::lookup::memory::Memory;
use crate::authn::lookup::{ENDPOINT_SLICES, SERVICES};
use crate::pki::{Pki, PkiOptions};

/// Sends every address to one of ours: ports below 10000 to the plain server, others to the kubelet.
struct Loopback {
    kubelet: SocketAddr,
    plain: SocketAddr,
}

#[async_trait]
impl Dialer for Loopback {
    async fn dial(&self, _: &str, port: u16) -> io::Result<Box<dyn Connection>> {
        let address = if port < 10000 { self.plain } else { self.kubelet };
        Ok(Box::new(TcpStream::connect(address).await?))
    }
}

type Answer = Response<Body>;

/// Echoes the request; `/exec` upgrades and echoes bytes; followed logs stream a line and stay open.
async fn backend(mut request: Request<Incoming>, who: String) -> Result<Answer, Infallible> {
    if request.headers().contains_key(header::UPGRADE) {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgrade.await.unwrap());
            let mut buffer = [0; 64];
            while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                stream.write_all(&buffer[..read].to_ascii_uppercase()).await.unwrap();
            }
        });
        let protocol = request.headers()[header::UPGRADE].clone();
        let headers = [(header::CONNECTION, HeaderValue::from_static("Upgrade")), (header::UPGRADE, protocol)];
        return Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response());
    }
    let (parts, body) = request.into_parts();
    let uri = parts.uri.to_string();
    if uri.contains("follow=true") {
        let first = futures::stream::iter([Ok::<_, Infallible>(Frame::data("first\n".into()))]);
        let body = http_body_util::StreamBody::new(futures::StreamExt::chain(first, futures::stream::pending()));
        return Ok(Response::new(Body::new(body)));
    }
    if uri.contains("waiting") {
        return Ok((StatusCode::BAD_REQUEST, "container \"c\" is waiting to start\n").into_response());
    }
    if uri.contains("/redirect") {
        return Ok((StatusCode::FOUND, [(header::LOCATION, "/there?x=1")]).into_response());
    }
    if uri.contains("/page") {
        let html = HeaderValue::from_static("text/html; charset=utf-8");
        let allow = (header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        let page = r#"<a href="/x">1</a><a href="http://10.42.0.9:8080/y">2</a><a href="//elsewhere/z">3</a>"#;
        if !uri.contains("gzip") {
            return Ok(([(header::CONTENT_TYPE, html), allow], page).into_response());
        }
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, page.as_bytes()).unwrap();
        let headers = [(header::CONTENT_TYPE, html), (header::CONTENT_ENCODING, HeaderValue::from_static("gzip"))];
        return Ok((headers, encoder.finish().unwrap()).into_response());
    }
    let body = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    let headers: Vec<_> = parts.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    let echo = json!({
        "who": who, "method": parts.method.as_str(), "uri": uri, "body": body,
        "headers": headers.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
    });
    Ok(Response::new(Body::from(echo.to_string())))
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn serve(stream: impl Connection + 'static, who: String) {
    let service = service_fn(move |request| backend(request, who.clone()));
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
}

fn objects(kubelet: SocketAddr) -> Vec<(crate::authn::Kind, Value)> {
    let pod = |name: &str, spec: Value, ip: &str| {
        (PODS, json!({"metadata": {"namespace": "ns", "name": name}, "spec": spec, "status": {"podIP": ip}}))
    };
    let one = json!([{"name": "c", "ports": [{"containerPort": 8080}]}]);
    let two = json!([{"name": "a"}, {"name": "b"}]);
    let slice = json!({
        "metadata": {"namespace": "ns", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [
            {"addresses": ["10.42.0.9"], "conditions": {"ready": true}},
            {"addresses": ["127.0.0.1"]},
        ],
    });
    let service = |name: &str| json!({"metadata": {"namespace": "ns", "name": name}, "spec": {"ports": [{"name": "http", "port": 80}]}});
    vec![
        pod("one", json!({"nodeName": "n", "containers": one}), "10.42.0.9"),
        pod("two", json!({"nodeName": "n", "containers": two, "initContainers": [{"name": "i"}]}), "10.42.0.8"),
        pod("waiting", json!({"nodeName": "n", "containers": one}), ""),
        pod("unbound", json!({"containers": one}), ""),
        pod("evil", json!({"nodeName": "n", "containers": one}), "127.0.0.1"),
        (
            NODES,
            json!({"metadata": {"name": "n"}, "status": {
                "addresses": [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "127.0.0.1"}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": kubelet.port()}},
            }}),
        ),
        (SERVICES, service("web")),
        (SERVICES, service("empty")),
        (ENDPOINT_SLICES, slice),
    ]
}

/// The proxy in front of a kubelet whose serving certificate `signer` issued.
async fn stack(foreign: bool) -> (tempfile::TempDir, Arc<Proxy>, SocketAddr) {
    let dir = tempfile::tempdir().unwrap();
    let options = |domain: &str| PkiOptions { server_names: vec![], server_ips: vec![], cluster_domain: domain.into() };
    let pki = Pki::load_or_create(&dir.path().join("own"), options("a")).unwrap();
    let other = Pki::load_or_create(&dir.path().join("other"), options("b")).unwrap();
    let signer = if foreign { &other } else { &pki };
    let serving = signer.node_serving("n", &[], &["127.0.0.1".parse().unwrap()]).unwrap();
    let trust = pki.client_trust().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(crate::pki::tests::server_config(&serving, &trust)));
    let (kubelet_listener, kubelet) = listen().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = kubelet_listener.accept().await {
            let (acceptor, trust) = (acceptor.clone(), trust.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let chain = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
                let user = trust.judge(&chain).user().ok().flatten().map(|user| user.name);
                serve(stream, user.unwrap_or_default()).await;
            });
        }
    });
    let (plain_listener, plain) = listen().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = plain_listener.accept().await {
            tokio::spawn(serve(stream, "plain".into()));
        }
    });
    let lookup = Memory::new(objects(kubelet));
    let proxy = Proxy::new(lookup, Arc::new(Loopback { kubelet, plain }), pki.kubelet_client_config().unwrap());
    (dir, Arc::new(proxy), kubelet)
}

fn get(path: &str) -> Request<Body> {
    Request::get(path).header(header::HOST, "api.example:6443").body(Body::empty()).unwrap()
}

async fn text(response: Answer) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

async fn echo(response: Answer) -> Value {
    serde_json::from_str(&text(response).await).unwrap()
}

#[tokio::test]
async fn logs_come_from_the_kubelet() {
    let (_dir, proxy, _) = stack(false).await;
    let mut request = get("/x?tailLines=5&timestamps=true&follow=false&container=");
    request.headers_mut().insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer secret"));
    request.headers_mut().insert("impersonate-user", HeaderValue::from_static("jane"));
    let answer = echo(proxy.pod("log", "ns", "one", request).await.unwrap()).await;
    assert_eq!(answer["who"], "kube-apiserver-kubelet-client");
    assert_eq!(answer["uri"], "/containerLogs/ns/one/c?timestamps=true&tailLines=5");
    assert!(answer["headers"]["authorization"].is_null() && answer["headers"]["impersonate-user"].is_null());
}

#[tokio::test]
async fn followed_logs_arrive_line_by_line() {
    let (_dir, proxy, _) = stack(false).await;
    let response = proxy.pod("log", "ns", "one", get("/x?follow=true")).await.unwrap();
    let frame = response.into_body().frame().await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "first\n");
}

#[tokio::test]
async fn an_unverified_kubelet_is_not_trusted() {
    let (_dir, proxy, kubelet) = stack(true).await;
    let error = proxy.pod("log", "ns", "one", get("/x")).await.unwrap_err();
    assert_eq!(error.status.code, 500);
    assert!(error.to_string().contains(&format!("tls to 127.0.0.1:{}", kubelet.port())), "{error}");
    let insecure = proxy.pod("log", "ns", "one", get("/x?insecureSkipTLSVerifyBackend=true")).await.unwrap();
    assert_eq!(echo(insecure).await["who"], "kube-apiserver-kubelet-client");
}

#[tokio::test]
async fn refusals_read_as_upstream() {
    let (_dir, proxy, _) = stack(false).await;
    let cases = [
        (
            "log",
            "two",
            "/x",
            400,
            "a container name must be specified for pod two, choose one of: [a b] or one of the init containers: [i]",
        ),
        ("log", "two", "/x?container=z", 400, "container z is not valid for pod two"),
        ("log", "gone", "/x", 404, r#"pods "gone" not found"#),
        ("log", "one", "/x?tailLines=-1", 422, "tailLines: Invalid value: -1: must be greater than or equal to 0"),
        (
            "log",
            "one",
            "/x?sinceSeconds=1&sinceTime=2024-01-01T00:00:00Z",
            422,
            "at most one of `sinceTime` or `sinceSeconds` may be specified",
        ),
        ("log", "waiting", "/x", 400, "container \"c\" is waiting to start"),
        ("exec", "one", "/x?command=a", 400, "Upgrade request required"),
    ];
    for (subresource, pod, uri, code, why) in cases {
        let error = proxy.pod(subresource, "ns", pod, get(uri)).await.unwrap_err();
        assert_eq!(error.status.code, code, "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
    assert_eq!(text(proxy.pod("log", "ns", "unbound", get("/x")).await.unwrap()).await, "");
}

#[tokio::test]
async fn upgrades_are_tunnelled() {
    let (_dir, proxy, _) = stack(false).await;
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let service = service_fn(move |request: Request<Incoming>| {
            let proxy = proxy.clone();
            async move {
                let answer = proxy.pod("exec", "ns", "one", request.map(Body::new)).await;
                Ok::<_, Infallible>(answer.unwrap_or_else(|error| error.to_string().into_response()))
            }
        });
        let server = hyper::server::conn::http1::Builder::new();
        let _ = server.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
    });
    let mut client = TcpStream::connect(address).await.unwrap();
    let request = "GET /api?command=sh&stdin=true&stdout=true HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n";
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(client.read_u8().await.unwrap());
    }
    let answer = String::from_utf8(answer).unwrap().to_lowercase();
    assert!(answer.starts_with("http/1.1 101"), "{answer}");
    assert!(answer.contains("upgrade: spdy/3.1"), "{answer}");
    for word in ["hello", "again"] {
        client.write_all(word.as_bytes()).await.unwrap();
        let mut echo = vec![0; word.len()];
        client.read_exact(&mut echo).await.unwrap();
        assert_eq!(echo, word.to_uppercase().into_bytes());
    }
    client.shutdown().await.unwrap();
    let end = tokio::time::timeout(Duration::from_secs(10), client.read(&mut [0; 1])).await;
    assert_eq!(end.expect("the tunnel must close with the client").unwrap(), 0);
}

#[tokio::test]
async fn pods_services_and_nodes_are_proxied() {
    let (_dir, proxy, kubelet) = stack(false).await;
    let pods = |rest: &str| format!("/api/v1/namespaces/ns/pods/{rest}");
    let services = |rest: &str| format!("/api/v1/namespaces/ns/services/{rest}");
    let cases = [
        ("pods", "one", pods("one/proxy/a%2Fb/?q=1"), "plain", "/a%2Fb/?q=1"),
        ("pods", "one:9000", pods("one:9000/proxy/"), "plain", "/"),
        ("services", "web:http", services("web:http/proxy/x"), "plain", "/x"),
        ("services", "web:80", services("web:80/proxy/x"), "plain", "/x"),
        ("nodes", "n", "/api/v1/nodes/n/proxy/metrics".into(), "kube-apiserver-kubelet-client", "/metrics"),
    ];
    for (plural, id, path, who, uri) in cases {
        let mut request = get(&path);
        *request.method_mut() = Method::PUT;
        *request.body_mut() = Body::from("payload");
        let answer = echo(proxy.proxy(plural, "ns", id, request).await.unwrap()).await;
        assert_eq!((&answer["who"], &answer["uri"]), (&json!(who), &json!(uri)), "{path}");
        assert_eq!((&answer["method"], &answer["body"]), (&json!("PUT"), &json!("payload")), "{path}");
        let forwarded = path.split('?').next().unwrap();
        assert_eq!(answer["headers"]["x-forwarded-uri"], forwarded);
        assert_eq!(answer["headers"]["x-forwarded-host"], "api.example:6443");
    }
    // Another port of the node is dialled without our certificate.
    let path = format!("/api/v1/nodes/https:n:{}/proxy/x", kubelet.port() - 1);
    let answer =
        echo(proxy.proxy("nodes", "", &format!("https:n:{}", kubelet.port() - 1), get(&path)).await.unwrap()).await;
    assert_eq!(answer["who"], "");

    let redirected = proxy.proxy("pods", "ns", "one", get(&pods("one/proxy/redirect"))).await.unwrap();
    assert_eq!(redirected.headers()[header::LOCATION], "/api/v1/namespaces/ns/pods/one/proxy/there?x=1");
    // So do the links of a page, in whatever encoding it comes.
    for path in ["one/proxy/page", "one/proxy/page/gzip"] {
        let page = proxy.proxy("pods", "ns", "one", get(&pods(path))).await.unwrap();
        for gone in [header::ACCESS_CONTROL_ALLOW_ORIGIN, header::CONTENT_ENCODING, header::CONTENT_LENGTH] {
            assert!(!page.headers().contains_key(&gone), "{gone}");
        }
        let page = String::from_utf8(page.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
        let root = "/api/v1/namespaces/ns/pods/one/proxy";
        let expected = format!(r#"<a href="{root}/x">1</a><a href="{root}/y">2</a><a href="//elsewhere/z">3</a>"#);
        assert_eq!(page, expected, "{path}");
    }
    let bare = proxy.proxy("pods", "ns", "one", get(&pods("one/proxy"))).await.unwrap();
    assert_eq!(
        (bare.status(), &bare.headers()[header::LOCATION]),
        (StatusCode::MOVED_PERMANENTLY, &HeaderValue::from_static("/api/v1/namespaces/ns/pods/one/proxy/"))
    );
}

#[tokio::test]
async fn unreachable_targets_are_told() {
    let (_dir, proxy, _) = stack(false).await;
    let cases = [
        ("services", "empty:http", 503, r#"no endpoints available for service "empty:http""#),
        ("services", "web:81", 503, r#"no service port 81 found for service "web""#),
        ("pods", "evil", 400, "address not allowed"),
        ("pods", "a:b:c", 400, r#"invalid pod request "a:b:c""#),
    ];
    for (plural, id, code, why) in cases {
        let path = format!("/api/v1/namespaces/ns/{plural}/{id}/proxy/");
        let error = proxy.proxy(plural, "ns", id, get(&path)).await.unwrap_err();
        assert_eq!(error.status.code, code, "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
    let (closed, address) = listen().await;
    drop(closed);
    let pki_dir = tempfile::tempdir().unwrap();
    let options = PkiOptions { server_names: vec![], server_ips: vec![], cluster_domain: "a".into() };
    let tls = Pki::load_or_create(pki_dir.path(), options).unwrap().kubelet_client_config().unwrap();
    let dialer = Loopback { kubelet: address, plain: address };
    let lost = Proxy::new(Memory::new(objects(address)), Arc::new(dialer), tls);
    let error = lost.proxy("pods", "ns", "one", get("/api/v1/namespaces/ns/pods/one/proxy/")).await.unwrap_err();
    let expected = "error trying to reach service: dial tcp 10.42.0.9:8080: connect: connection refused";
    assert_eq!((error.status.code, error.to_string()), (503, expected.to_owned()));
}
