//! The whole proxy against the real API server in memory, as the identity it has in a cluster.

use std::fmt::Debug;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use apiserver::identity::UserInfo;
use apiserver::pki::{Pki, PkiOptions};
use apiserver::upgrade::TcpDialer;
use client::Client;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use proxy::Config;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::conformance::config;
use crate::lab::{Machine, ask, exchange, knock, nft, on_a_node, udp_client};

const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 43, 0, 5);
const PATIENCE: Duration = Duration::from_secs(60);

/// Clients of a new API server: an administrator's and the proxy's.
async fn api_server(directory: &std::path::Path) -> (apiserver::Server, Client, Client) {
    let options = PkiOptions { server_names: vec![], server_ips: vec![], cluster_domain: "cluster.local".into() };
    let config = apiserver::Config {
        pki: Arc::new(Pki::load_or_create(&directory.join("pki"), options).unwrap()),
        store: Arc::new(store::FjallStore::open(directory.join("store"), store::Options::default()).unwrap()),
        advertise: "127.0.0.1:6443".parse().unwrap(),
        service_cidr: "10.43.0.0/16".parse().unwrap(),
        node_ports: 30000..=32767,
        dialer: Arc::new(TcpDialer),
    };
    let server = apiserver::Server::new(config).await.unwrap();
    let identity = |user: UserInfo| {
        let service = server.service().map_request(move |mut request: http::Request<kube::client::Body>| {
            request.extensions_mut().insert(user.clone());
            request
        });
        client::in_process(service, "test")
    };
    let (admin, own) = (identity(UserInfo::master("admin")), identity(UserInfo::component("system:kube-proxy")));
    (server, admin, own)
}

async fn make<K: Clone + DeserializeOwned + Serialize + Debug>(api: &Api<K>, object: Value) {
    api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
}

/// Waits until it holds, without holding up the executor that serves it.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !tokio::task::block_in_place(&mut holds) {
        assert!(tokio::time::Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// An HTTP answer of the node's loopback interface.
fn get(port: u16, path: &str) -> Result<String, ErrorKind> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map_err(|error| error.kind())?;
    // A server that closes its port resets whoever has just connected.
    let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(|error| error.kind())?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|error| error.kind())?;
    Ok(text)
}

fn slice(endpoints: &[u8]) -> Value {
    let endpoint = |number: &u8| json!({ "addresses": [format!("10.42.0.{number}")], "nodeName": "here", "conditions": { "ready": true } });
    json!({ "metadata": { "name": "web-1", "labels": { "kubernetes.io/service-name": "web" } }, "addressType": "IPv4",
        "ports": [{ "name": "tcp", "port": 8080 }, { "name": "udp", "port": 8080, "protocol": "UDP" }],
        "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>() })
}

#[test]
fn from_the_api_to_packets() {
    on_a_node(|| {
        // All threads of this executor are born in the node's namespace.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async { tokio::spawn(scenario()).await.unwrap() });
    });
}

async fn scenario() {
    let directory = tempfile::tempdir().unwrap();
    let (server, admin, own) = api_server(directory.path()).await;
    let (_a, _b, client) = tokio::task::block_in_place(|| (Machine::pod(2), Machine::pod(3), Machine::pod(9)));
    let (services, slices): (Api<Service>, Api<EndpointSlice>) =
        (Api::namespaced(admin.clone(), "default"), Api::namespaced(admin.clone(), "default"));
    make(&Api::<Node>::all(admin.clone()), json!({ "metadata": { "name": "here" } })).await;

    let shutdown = CancellationToken::new();
    let proxy = tokio::spawn(proxy::run(Config { node_name: "here".into(), ..config() }, own, shutdown.clone()));
    make(&services, json!({ "metadata": { "name": "web" }, "spec": { "type": "LoadBalancer", "clusterIP": SERVICE,
        "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000, "ports": [
            { "name": "tcp", "port": 80, "nodePort": 30080 }, { "name": "udp", "port": 80, "nodePort": 30081, "protocol": "UDP" }] } }))
    .await;
    eventually("a Service without endpoints is refused", || {
        client.inside(|| ask(SERVICE, 80)) == Err(ErrorKind::ConnectionRefused)
    })
    .await;
    eventually("the load balancer is told", || get(31000, "/").is_ok_and(|answer| answer.starts_with("HTTP/1.1 503")))
        .await;

    make(&slices, slice(&[2])).await;
    eventually("its endpoint answers", || client.inside(|| ask(SERVICE, 80)).as_deref() == Ok("2 sees 10.42.0.9"))
        .await;
    eventually("the load balancer is told", || get(31000, "/").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")))
        .await;
    assert!(get(31000, "/").unwrap().contains("\"localEndpoints\":1"));

    // A UDP client that talks without a pause is not left with an endpoint that has gone.
    let talker = client.inside(|| udp_client(SERVICE, 80));
    eventually("UDP is answered", || exchange(&talker).is_ok_and(|answer| answer.starts_with('2'))).await;
    slices.patch("web-1", &PatchParams::default(), &Patch::Merge(slice(&[3]))).await.unwrap();
    eventually("the flow has moved", || exchange(&talker).is_ok_and(|answer| answer.starts_with('3'))).await;

    assert!(get(proxy::HEALTHZ_PORT, "/healthz").unwrap().starts_with("HTTP/1.1 200"));
    let taint = json!({ "spec": { "taints": [{ "key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule" }] } });
    Api::<Node>::all(admin).patch("here", &PatchParams::default(), &Patch::Merge(taint)).await.unwrap();
    eventually("a leaving node says so", || get(proxy::HEALTHZ_PORT, "/healthz").unwrap().starts_with("HTTP/1.1 503"))
        .await;
    assert!(get(proxy::HEALTHZ_PORT, "/livez").unwrap().starts_with("HTTP/1.1 200"));
    let metrics = get(proxy::METRICS_PORT, "/metrics").unwrap();
    assert!(metrics.contains("kubeproxy_sync_proxy_rules_failures_total 0"), "{metrics}");
    assert!(get(proxy::METRICS_PORT, "/proxyMode").unwrap().ends_with("nftables"));

    // Whoever meddles with the rules: the next change finds out, and all are written anew.
    tokio::task::block_in_place(|| nft(&["flush", "ruleset"]));
    slices.patch("web-1", &PatchParams::default(), &Patch::Merge(slice(&[2]))).await.unwrap();
    eventually("the rules are back", || client.inside(|| knock(SERVICE, 80)).as_deref() == Ok("2 sees 10.42.0.9"))
        .await;

    services.delete("web", &Default::default()).await.unwrap();
    eventually("the load balancer's port is closed", || get(31000, "/") == Err(ErrorKind::ConnectionRefused)).await;
    eventually("the address is nobody's", || client.inside(|| knock(SERVICE, 80)) == Err(ErrorKind::TimedOut)).await;
    shutdown.cancel();
    proxy.await.unwrap().unwrap();
    server.shutdown().await;
}
