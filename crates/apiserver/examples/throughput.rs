//! Durable creates per second and the time of one big list, through the service in memory:
//! `cargo run -p apiserver --example throughput -- OBJECTS CALLERS BYTES`.

use std::{sync::Arc, time::Instant};

use apiserver::{
    Config, Server,
    identity::UserInfo,
    pki::{Pki, PkiOptions},
    upgrade::TcpDialer,
};
use axum::body::Body;
use http::Request;
use http_body_util::BodyExt;
use tower::ServiceExt;

const URI: &str = "/api/v1/namespaces/default/configmaps";

async fn call(server: &Server, method: &str, body: Body) -> usize {
    let mut request = Request::builder().method(method).uri(URI).body(body).expect("a request");
    request.extensions_mut().insert(UserInfo::master("throughput"));
    let response = server.service().oneshot(request).await.expect("it is infallible");
    assert!(response.status().is_success(), "{}", response.status());
    response.into_body().collect().await.map_or(0, |body| body.to_bytes().len())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let numbers: Vec<usize> = std::env::args().skip(1).map(|arg| arg.parse()).collect::<Result<_, _>>()?;
    let [objects, callers, bytes] = numbers[..] else { anyhow::bail!("usage: throughput OBJECTS CALLERS BYTES") };
    let dir = tempfile::tempdir()?;
    let options = PkiOptions { server_names: vec![], server_ips: vec![], cluster_domain: "cluster.local".into() };
    let config = Config {
        store: Arc::new(store::FjallStore::open(dir.path().join("store"), store::Options::default())?),
        pki: Arc::new(Pki::load_or_create(&dir.path().join("pki"), options)?),
        advertise: "127.0.0.1:6443".parse()?,
        service_cidr: "10.43.0.0/16".parse().map_err(anyhow::Error::msg)?,
        node_ports: 30000..=32767,
        dialer: Arc::new(TcpDialer),
    };
    let started = Instant::now();
    let server = Server::new(config).await?;
    println!("ready after {:?}", started.elapsed());
    let started = Instant::now();
    let tasks = (0..callers).map(|caller| {
        let server = server.clone();
        tokio::spawn(async move {
            for n in (caller..objects).step_by(callers) {
                let text = "x".repeat(bytes);
                let body = format!(
                    r#"{{"kind":"ConfigMap","apiVersion":"v1","metadata":{{"name":"m{n}"}},"data":{{"a":"{text}"}}}}"#
                );
                call(&server, "POST", body.into()).await;
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await?;
    }
    println!("{:.0} creates/s", objects as f64 / started.elapsed().as_secs_f64());
    let started = Instant::now();
    let size = call(&server, "GET", Body::empty()).await;
    println!("list of {size} bytes in {:?}", started.elapsed());
    server.shutdown().await;
    Ok(())
}
