//! The API server on a real store, called as its clients call it: in memory, and once over TLS.
//! Each test has a server of its own.

mod allocation;
mod applies;
mod deletes;
mod discovery;
mod errors;
mod kinds;
mod lifecycle;
mod lists;
mod patches;
mod service_ranges;
mod subresources;
mod tls;
mod watches;
mod wording;
mod writes;

use std::{sync::Arc, time::Duration};

use apiserver::{
    Config, Server, Service,
    identity::UserInfo,
    pki::{Pki, PkiOptions},
    upgrade::TcpDialer,
};
use axum::body::Body;
use http::{HeaderMap, Method, Request, Response, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use store::Store;
use tower::ServiceExt;

/// How long anything that should happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Is not advertised to the cluster.
const LOOPBACK: &str = "127.0.0.1:6443";

/// A server and its directory, which goes with it.
struct Cluster {
    server: Server,
    store: Arc<store::FjallStore>,
    pki: Arc<Pki>,
    user: UserInfo,
    dir: tempfile::TempDir,
}

impl Cluster {
    async fn start() -> Cluster {
        Cluster::with_services("10.43.0.0/16").await
    }

    async fn with_services(cidr: &str) -> Cluster {
        Cluster::on(tempfile::tempdir().unwrap(), cidr, LOOPBACK).await
    }

    /// With an address that is put into the endpoints of the `kubernetes` Service; nobody listens there.
    async fn advertising(address: &str) -> Cluster {
        Cluster::on(tempfile::tempdir().unwrap(), "10.43.0.0/16", address).await
    }

    async fn on(dir: tempfile::TempDir, cidr: &str, advertise: &str) -> Cluster {
        let options = PkiOptions { server_names: vec![], server_ips: vec![], cluster_domain: "cluster.local".into() };
        let pki = Arc::new(Pki::load_or_create(&dir.path().join("pki"), options).unwrap());
        let store = Arc::new(store::FjallStore::open(dir.path().join("store"), store::Options::default()).unwrap());
        let config = Config {
            store: store.clone(),
            pki: pki.clone(),
            advertise: advertise.parse().unwrap(),
            service_cidr: cidr.parse().unwrap(),
            node_ports: 30000..=32767,
            dialer: Arc::new(TcpDialer),
        };
        let server = Server::new(config).await.unwrap();
        let cluster = Cluster { server, store, pki, user: UserInfo::master("test"), dir };
        // A controller's work elsewhere; pods need it.
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
        let made = cluster.call("POST", "/api/v1/namespaces/default/serviceaccounts", &account).await;
        assert!([201, 409].contains(&made.code), "{}", made.text);
        cluster
    }

    /// The same cluster after a restart.
    async fn restart(self) -> Cluster {
        let Cluster { server, store, pki, dir, .. } = self;
        server.shutdown().await;
        store.close().await.unwrap();
        drop((server, store, pki));
        Cluster::on(dir, "10.43.0.0/16", LOOPBACK).await
    }

    /// Drops the store's history before a revision.
    async fn compact(&self, revision: i64) {
        self.store.compact(revision).await.unwrap();
    }

    fn service(&self) -> Service {
        self.server.service()
    }

    async fn send(&self, method: &str, uri: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Response<Body> {
        let mut request = Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap()).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(body.into()).unwrap();
        request.extensions_mut().insert(self.user.clone());
        tokio::time::timeout(PATIENCE, self.service().oneshot(request)).await.expect("an answer").unwrap()
    }

    async fn call(&self, method: &str, uri: &str, body: &Value) -> Answer {
        let content_type = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        Answer::of(self.send(method, uri, &[("content-type", content_type)], body).await).await
    }

    async fn get(&self, uri: &str) -> Answer {
        self.call("GET", uri, &Value::Null).await
    }

    /// Creates and expects success.
    async fn create(&self, uri: &str, object: Value) -> Value {
        self.call("POST", uri, &object).await.expect(201)
    }

    async fn watch(&self, uri: &str) -> Watch {
        let response = self.send("GET", uri, &[], Body::empty()).await;
        assert_eq!(response.status(), 200);
        Watch { body: response.into_body(), buffer: Vec::new() }
    }
}

struct Answer {
    code: u16,
    headers: HeaderMap,
    text: String,
    body: Value,
}

impl Answer {
    async fn of(response: Response<Body>) -> Answer {
        let (parts, body) = response.into_parts();
        let bytes = tokio::time::timeout(PATIENCE, body.collect()).await.expect("a whole body").unwrap().to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let body = serde_json::from_str(&text).unwrap_or_default();
        Answer { code: parts.status.as_u16(), headers: parts.headers, text, body }
    }

    #[track_caller]
    fn expect(self, code: u16) -> Value {
        assert_eq!(self.code, code, "{}", self.text);
        self.body
    }

    /// Expects a Status with this code, reason and message.
    #[track_caller]
    fn fails(self, code: u16, reason: &str, message: &str) -> Value {
        let got = (
            self.code,
            self.body["reason"].as_str().unwrap_or_default(),
            self.body["message"].as_str().unwrap_or_default(),
        );
        assert_eq!(got, (code, reason, message));
        self.body
    }

    fn warnings(&self) -> Vec<&str> {
        self.headers.get_all(header::WARNING).iter().map(|value| value.to_str().unwrap()).collect()
    }
}

/// An open watch.
struct Watch {
    body: Body,
    buffer: Vec<u8>,
}

impl Watch {
    /// The next event; `None` when the stream has ended.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await.expect("an event")?;
            self.buffer.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
    }

    /// The next event as `(type, name, resourceVersion)`.
    async fn event(&mut self) -> (String, String, i64) {
        let event = self.next().await.expect("the watch goes on");
        let metadata = &event["object"]["metadata"];
        (text(&event["type"]), text(&metadata["name"]), text(&metadata["resourceVersion"]).parse().unwrap())
    }

    /// The next event as `TYPE name`.
    async fn told(&mut self) -> String {
        let (kind, name, _) = self.event().await;
        format!("{kind} {name}").trim().to_owned()
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn version(object: &Value) -> i64 {
    text(&object["metadata"]["resourceVersion"]).parse().unwrap()
}

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "b"}})
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "busybox"}], "automountServiceAccountToken": false}})
}

fn names(list: &Value) -> Vec<String> {
    list["items"].as_array().expect("a list").iter().map(|item| text(&item["metadata"]["name"])).collect()
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
