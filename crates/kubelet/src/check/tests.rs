//! Checks against real servers on loopback: HTTP, HTTPS and gRPC.

use super::*;
use axum::response::IntoResponse as _;
use http_body_util::StreamBody;
use hyper::body::Frame;
use serde_json::{Value, json};
use std::convert::Infallible;
use tokio::net::TcpListener;

/// A server that answers by path, with or without TLS; says its port.
async fn server(secure: bool) -> u16 {
    let app = axum::Router::new()
        .route(
            "/ok",
            axum::routing::get(|headers: http::HeaderMap| async move {
                let text = |name: &str| headers.get(name).map_or("-", |value| value.to_str().unwrap()).to_owned();
                format!("{} {} {}", text("user-agent"), text("x-own"), text("host"))
            }),
        )
        .route("/bad", axum::routing::get(|| async { (http::StatusCode::NOT_FOUND, "no") }))
        .route("/unmodified", axum::routing::get(|| async { (http::StatusCode::NOT_MODIFIED, "") }))
        .route("/here", axum::routing::get(|| async { (http::StatusCode::FOUND, [("location", "/bad")]) }))
        .route("/loop", axum::routing::get(|| async { (http::StatusCode::FOUND, [("location", "/loop")]) }))
        .route(
            "/away",
            axum::routing::get(|| async {
                (http::StatusCode::FOUND, [("location", "http://0.0.0.0/")], "Found").into_response()
            }),
        );
    let certificate = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(certificate.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = hyper_util::service::TowerToHyperService::new(app.clone());
            let (http, acceptor) = (hyper::server::conn::http1::Builder::new(), acceptor.clone());
            tokio::spawn(async move {
                match secure {
                    true => {
                        drop(http.serve_connection(TokioIo::new(acceptor.accept(stream).await.unwrap()), service).await)
                    }
                    false => drop(http.serve_connection(TokioIo::new(stream), service).await),
                }
            });
        }
    });
    port
}

/// A `grpc.health.v1` server that knows one healthy service and one that is not.
async fn health() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = |request: http::Request<hyper::body::Incoming>| async {
        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
        assert_eq!(request.headers()["te"], "trailers", "servers in Go insist on it");
        let asked = request.into_body().collect().await.unwrap().to_bytes();
        let status = match &asked[5..] {
            b"" | b"\n\x04good" => Some(b"\0\0\0\0\x02\x08\x01"),
            b"\n\x03bad" => Some(b"\0\0\0\0\x02\x08\x02"),
            _ => None,
        };
        let trailers = [("grpc-status", if status.is_some() { "0" } else { "5" }), ("grpc-message", "unknown service")];
        let trailers = trailers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        let data = status.map(|status| Frame::data(Bytes::from_static(status)));
        let frames =
            data.into_iter().chain([Frame::trailers(http::HeaderMap::from_iter(trailers))]).map(Ok::<_, Infallible>);
        let body = StreamBody::new(futures::stream::iter(frames.collect::<Vec<_>>()));
        Ok::<_, Infallible>(http::Response::builder().header("content-type", "application/grpc").body(body).unwrap())
    };
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let executor = hyper_util::rt::TokioExecutor::new();
            let http = hyper::server::conn::http2::Builder::new(executor);
            tokio::spawn(http.serve_connection(TokioIo::new(stream), hyper::service::service_fn(answer)));
        }
    });
    port
}

fn target() -> Target {
    Target {
        cri: Cri::connect("/nowhere"),
        container_id: String::new(),
        container: Arc::default(),
        pod_ip: "127.0.0.1".into(),
    }
}

async fn outcome(probe: Value) -> Outcome {
    target().check(&serde_json::from_value(probe).unwrap(), Duration::from_secs(5)).await
}

#[tokio::test]
async fn servers_are_healthy_by_what_they_answer() {
    for secure in [false, true] {
        let port = server(secure).await;
        let scheme = if secure { "HTTPS" } else { "HTTP" };
        let unhealthy = |text: &str| Outcome::Unhealthy(text.to_owned());
        let warning = |text: &str| Outcome::Warning(format!("Probe terminated redirects, Response body: {text}"));
        let endless = format!("Get \"{}://127.0.0.1:{port}/loop\": stopped after 10 redirects", scheme.to_lowercase());
        for (path, expected) in [
            ("/ok", Outcome::Healthy),
            ("/bad", unhealthy("HTTP probe failed with statuscode: 404")),
            ("/here", unhealthy("HTTP probe failed with statuscode: 404")),
            ("/loop", unhealthy(&endless)),
            ("/away", warning("Found")),
            ("/unmodified", warning("")),
        ] {
            assert_eq!(
                outcome(json!({"httpGet": {"port": port, "path": path, "scheme": scheme}})).await,
                expected,
                "{path}"
            );
        }
    }
    let plain = server(false).await;
    let expected = format!("Get \"https://127.0.0.1:{plain}/ok\": {PLAIN_SERVER}");
    let found = outcome(json!({"httpGet": {"port": plain, "path": "/ok", "scheme": "HTTPS"}})).await;
    assert_eq!(found, Outcome::Unhealthy(expected));
}

#[tokio::test]
async fn hooks_are_heard_whatever_the_answer() {
    let (plain, secure) = (server(false).await, server(true).await);
    let action = |port: u16, scheme: &str, path: &str| -> HTTPGetAction {
        let headers = json!([{"name": "X-Own", "value": "mine"}, {"name": "Host", "value": "other"}]);
        serde_json::from_value(json!({"port": port, "scheme": scheme, "path": path, "httpHeaders": headers})).unwrap()
    };
    for (port, scheme, path, expected) in [
        (plain, "HTTP", "/bad", None),
        (secure, "HTTPS", "/ok", None),
        (plain, "HTTPS", "/ok", Some(format!("127.0.0.1:{plain}"))),
    ] {
        assert_eq!(target().tell(&action(port, scheme, path)).await, Ok(expected), "{scheme} {path}");
    }
    let (_, body) =
        follow(&format!("http://127.0.0.1:{plain}/ok"), &action(plain, "HTTP", "/ok"), "lifecycle").await.unwrap();
    assert_eq!(body, "kube-lifecycle/1.36 mine other");
    assert!(target().tell(&action(1, "HTTP", "/")).await.unwrap_err().ends_with("connection refused"));
}

#[tokio::test]
async fn grpc_services_are_healthy_when_they_serve() {
    let port = health().await;
    let unhealthy = |text: &str| Outcome::Unhealthy(text.to_owned());
    for (service, expected) in [
        ("", Outcome::Healthy),
        ("good", Outcome::Healthy),
        ("bad", unhealthy("service unhealthy (responded with \"NOT_SERVING\")")),
        ("none", unhealthy("error: health rpc probe failed: rpc error: code = NotFound desc = unknown service")),
    ] {
        assert_eq!(outcome(json!({"grpc": {"port": port, "service": service}})).await, expected, "{service}");
    }
}
