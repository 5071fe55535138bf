//! The endpoint the API server and metrics collectors call: logs, exec, attach, port-forward, pods,
//! metrics, and the node's own log files. TLS only; who may ask is decided in `auth`.
//!
//! Streams are handed through to the runtime as bytes: WebSocket and SPDY alike are its business.

mod auth;
mod metrics;
mod node_logs;
mod streaming;

use crate::config;
use crate::logs;
use crate::pod;
use crate::pods::Pods;
use crate::state::RunState;
use crate::worker::Snapshot;
use anyhow::Context as _;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{any, delete, get};
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, PodStatus};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

/// A bound port with its TLS configuration.
pub struct Listener {
    listener: TcpListener,
    tls: TlsAcceptor,
}

impl Listener {
    pub fn port(&self) -> u16 {
        self.listener.local_addr().map_or(0, |address| address.port())
    }
}

/// A handshake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(10);

pub async fn bind(server: &config::Server) -> anyhow::Result<Listener> {
    let listener = TcpListener::bind(server.listen).await.with_context(|| format!("listen on {}", server.listen))?;
    Ok(Listener { listener, tls: TlsAcceptor::from(Arc::new(tls(server)?)) })
}

fn tls(server: &config::Server) -> anyhow::Result<rustls::ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&server.client_ca) {
        roots.add(certificate.context("read the client CA")?).context("use the client CA")?;
    }
    // A client without a certificate may still bring a token.
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .context("verify clients")?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&server.certificate)
        .collect::<Result<_, _>>()
        .context("read the kubelet's serving certificate")?;
    let key = PrivateKeyDer::from_pem_slice(&server.key).context("read the kubelet's serving key")?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)
        .context("use the kubelet's serving certificate")?;
    // Upgrades need HTTP/1.1; HTTP/2 is for everything else.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

pub async fn serve(listener: Listener, pods: Arc<Pods>) {
    let gate = Arc::new(auth::Gate::new(pods.shared().client.clone(), &pods.shared().config.node_name));
    let router = router(pods);
    loop {
        let stream = match listener.listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (tls, router, gate) = (listener.tls.clone(), router.clone(), gate.clone());
        tokio::spawn(async move {
            let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await else { return };
            let peer = stream.get_ref().1.peer_certificates().and_then(|chain| auth::identity(chain.first()?));
            let service = tower::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let (router, gate, peer) = (router.clone(), gate.clone(), peer.clone());
                async move {
                    match gate.admit(&request, peer.as_ref()).await {
                        Ok(()) => router.oneshot(request.map(Body::new)).await,
                        Err((status, text)) => Ok((status, text).into_response()),
                    }
                }
            });
            let service = hyper_util::service::TowerToHyperService::new(service);
            let io = hyper_util::rt::TokioIo::new(stream);
            let builder = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
            if let Err(error) = builder.serve_connection_with_upgrades(io, service).await {
                tracing::debug!(error, "connection ended");
            }
        });
    }
}

fn router(pods: Arc<Pods>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/healthz/{check}", get(|| async { "ok" }))
        .route("/pods", get(list_pods))
        .route("/pods/", get(list_pods))
        .route("/runningpods/", get(list_running_pods))
        .route("/configz", get(configz))
        .route("/metrics", get(metrics::kubelet))
        .route("/metrics/resource", get(metrics::resource))
        .route("/metrics/cadvisor", get(metrics::cadvisor))
        .route("/metrics/probes", get(|| async { "" }))
        .route("/stats/summary", get(metrics::summary))
        .route("/logs/", get(node_logs::root))
        .route("/logs/{*path}", get(node_logs::below))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(container_logs))
        .route("/exec/{namespace}/{pod}/{container}", any(streaming::exec))
        .route("/exec/{namespace}/{pod}/{uid}/{container}", any(streaming::exec))
        .route("/attach/{namespace}/{pod}/{container}", any(streaming::attach))
        .route("/attach/{namespace}/{pod}/{uid}/{container}", any(streaming::attach))
        .route("/portForward/{namespace}/{pod}", any(streaming::port_forward))
        .route("/portForward/{namespace}/{pod}/{uid}", any(streaming::port_forward))
        .route("/run/{namespace}/{pod}/{container}", any(streaming::run))
        .route("/localVolumes/{name}", delete(delete_local_volume))
        .with_state(pods)
}

type Failure = (StatusCode, String);

/// The place of a request's pod and container, from its path.
#[derive(serde::Deserialize)]
struct Place {
    namespace: String,
    pod: String,
    uid: Option<String>,
    container: Option<String>,
}

impl Place {
    async fn find(&self, pods: &Pods) -> Result<watch::Receiver<Snapshot>, Failure> {
        let find = || pods.find(&self.namespace, &self.pod, self.uid.as_deref());
        let mut found = find();
        if found.is_none() {
            pods.caught_up().await;
            found = find();
        }
        found.ok_or_else(|| (StatusCode::NOT_FOUND, format!("pod \"{}\" does not exist", self.pod)))
    }

    fn container(&self) -> &str {
        self.container.as_deref().unwrap_or_default()
    }

    /// The id of the running instance of the container.
    async fn running(&self, pods: &Pods) -> Result<String, Failure> {
        let snapshot = self.find(pods).await?;
        let snapshot = snapshot.borrow();
        let instance = snapshot.runtime.latest(self.container()).filter(|i| i.state == RunState::Running);
        let missing = || (StatusCode::NOT_FOUND, format!("container not found (\"{}\")", self.container()));
        instance.map(|instance| instance.id.clone()).ok_or_else(missing)
    }
}

async fn list_pods(State(pods): State<Arc<Pods>>) -> Json<Value> {
    list(&pods, |_| true)
}

/// Those of which a container runs.
async fn list_running_pods(State(pods): State<Arc<Pods>>) -> Json<Value> {
    list(&pods, |status| {
        let containers = [&status.init_container_statuses, &status.container_statuses];
        let mut states = containers.into_iter().flatten().flatten().filter_map(|container| container.state.as_ref());
        states.any(|state| state.running.is_some())
    })
}

fn list(pods: &Pods, chosen: impl Fn(&PodStatus) -> bool) -> Json<Value> {
    let items: Vec<Value> = pods
        .statuses()
        .into_iter()
        .filter(|(_, status)| chosen(status))
        .filter_map(|(pod, status)| {
            let mut pod = serde_json::to_value(&*pod).ok()?;
            pod["status"] = serde_json::to_value(status).ok()?;
            Some(pod)
        })
        .collect();
    Json(json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

async fn configz(State(pods): State<Arc<Pods>>) -> Json<Value> {
    let config = &pods.shared().config;
    Json(json!({"kubeletconfig": {
        "clusterDNS": config.cluster_dns,
        "clusterDomain": config.cluster_domain,
        "containerLogMaxSize": format!("{}Mi", config.log_max_bytes >> 20),
        "containerLogMaxFiles": config.log_max_files,
        "containerRuntimeEndpoint": config.cri_endpoint,
        "imageGCHighThresholdPercent": config.image_gc.high,
        "imageGCLowThresholdPercent": config.image_gc.low,
        "maxPods": config.max_pods,
        "nodeLeaseDurationSeconds": config.lease_seconds,
        "podPidsLimit": config.pod_pids_limit.unwrap_or(-1),
        "resolvConf": config.resolv_conf,
        "staticPodPath": config.manifest_dir,
        "userNamespaces": {"idsPerPod": config.user_namespaces_ids_per_pod},
    }}))
}

/// Deletes the directory of a local volume that is no longer needed, with its data.
async fn delete_local_volume(State(pods): State<Arc<Pods>>, Path(name): Path<String>) -> Result<(), Failure> {
    let none = || (StatusCode::NOT_FOUND, "this node has no local volumes".to_owned());
    let root = pods.shared().config.local_volumes_dir.clone().ok_or_else(none)?;
    let removed = tokio::task::spawn_blocking(move || crate::volume::remove_local(&root, &name)).await;
    let removed = removed.unwrap_or_else(|error| Err(error.to_string()));
    removed.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error))
}

/// `?follow&previous&sinceSeconds&sinceTime&timestamps&tailLines&limitBytes&stream`
fn log_options(query: &HashMap<String, String>) -> Result<(logs::Options, bool), Failure> {
    let flag = |name: &str| query.get(name).is_some_and(|value| !matches!(value.as_str(), "false" | "0"));
    let bad = |name: &str, value: &str| (StatusCode::UNPROCESSABLE_ENTITY, format!("invalid {name}: {value:?}"));
    let number = |name: &str| match query.get(name).filter(|value| !value.is_empty()) {
        None => Ok(None),
        Some(value) => value.parse::<u64>().map(Some).map_err(|_| bad(name, value)),
    };
    let since = match (number("sinceSeconds")?, query.get("sinceTime").filter(|value| !value.is_empty())) {
        (Some(seconds), _) => Some(Timestamp::now() - SignedDuration::from_secs(seconds as i64)),
        (None, Some(time)) => Some(time.parse().map_err(|_| bad("sinceTime", time))?),
        (None, None) => None,
    };
    let stream = match query.get("stream").map(String::as_str) {
        None | Some("" | "All") => None,
        Some("Stdout") => Some("stdout"),
        Some("Stderr") => Some("stderr"),
        Some(other) => return Err(bad("stream", other)),
    };
    let options = logs::Options {
        follow: flag("follow"),
        since,
        timestamps: flag("timestamps"),
        tail: number("tailLines")?.map(|lines| lines as usize),
        limit_bytes: number("limitBytes")?.map(|bytes| bytes as usize),
        stream,
    };
    Ok((options, flag("previous")))
}

/// The id of the run whose log is meant, by what the status says.
fn logged<'a>(status: Option<&'a ContainerStatus>, previous: bool, place: &str) -> Result<&'a str, String> {
    let bare = |id: &'a str| id.rsplit('/').next().unwrap_or(id);
    let ended = |state: Option<&'a ContainerState>| state?.terminated.as_ref()?.container_id.as_deref().map(bare);
    let last = ended(status.and_then(|status| status.last_state.as_ref()));
    if previous {
        return last.ok_or_else(|| format!("previous terminated {place} not found"));
    }
    let state = status.and_then(|status| status.state.as_ref());
    let running = state.filter(|state| state.running.is_some()).and_then(|_| status?.container_id.as_deref().map(bare));
    running.or_else(|| ended(state)).or(last).ok_or_else(|| {
        let reason = state.and_then(|state| state.waiting.as_ref()?.reason.as_deref()).unwrap_or("ContainerCreating");
        let reason = match reason {
            "ErrImagePull" => "image can't be pulled",
            "ImagePullBackOff" => "trying and failing to pull image",
            reason => reason,
        };
        match state.is_some_and(|state| state.terminated.is_some()) {
            true => format!("{place} is terminated"),
            false => format!("{place} is waiting to start: {reason}"),
        }
    })
}

async fn container_logs(
    State(pods): State<Arc<Pods>>,
    Path(place): Path<Place>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Response, Failure> {
    let (options, previous) = log_options(&query)?;
    let snapshot = place.find(&pods).await?;
    let (name, pod_name) = (place.container(), &place.pod);
    let (id, path) = {
        let snapshot = snapshot.borrow();
        if pod::member(&snapshot.pod, name).is_none() {
            return Err((StatusCode::NOT_FOUND, format!("container {name:?} not found in pod {pod_name:?}")));
        }
        let bad = |text| (StatusCode::BAD_REQUEST, text);
        let place = format!("container {name:?} in pod {pod_name:?}");
        let id = logged(pod::container_status(&snapshot.status, name), previous, &place).map_err(bad)?;
        let instance =
            snapshot.runtime.by_id(id).ok_or_else(|| bad(format!("unable to retrieve container logs for {id}")))?;
        (instance.id.clone(), instance.log_path.clone())
    };
    let running = move || {
        let alive = snapshot.has_changed().is_ok();
        alive && snapshot.borrow().runtime.by_id(&id).is_some_and(|instance| instance.state != RunState::Exited)
    };
    let (sender, receiver) = mpsc::channel(logs::CHUNKS);
    tokio::spawn(logs::read(path.into(), options, running, sender));
    let body = Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(receiver));
    Ok(([("content-type", "text/plain"), ("x-content-type-options", "nosniff")], body).into_response())
}

/// Values of a repeated query parameter.
fn query_all(request: &Request, name: &str) -> Vec<String> {
    let query = request.uri().query().unwrap_or_default();
    let pairs = query.split('&').filter_map(|pair| pair.split_once('=').or(Some((pair, ""))));
    pairs.filter(|(key, _)| *key == name).map(|(_, value)| decode(value)).collect()
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut output = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        let hex =
            bytes.get(index + 1..index + 3).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match (bytes[index], hex) {
            (b'%', Some(byte)) => {
                output.push(byte);
                index += 2;
            }
            (b'+', _) => output.push(b' '),
            (byte, _) => output.push(byte),
        }
        index += 1;
    }
    String::from_utf8_lossy(&output).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_says_whose_log_is_meant() {
        let ended = |id: &str| json!({"terminated": {"exitCode": 1, "containerID": format!("isopod://{id}")}});
        let waiting = |reason: &str| json!({"waiting": {"reason": reason}});
        let running = json!({"running": {}});
        let cases = [
            (running.clone(), json!({}), false, Ok("now")),
            (running.clone(), ended("before"), true, Ok("before")),
            (running, json!({}), true, Err("previous terminated X not found")),
            (ended("now"), ended("before"), false, Ok("now")),
            (waiting("CrashLoopBackOff"), ended("now"), false, Ok("now")),
            (waiting("CrashLoopBackOff"), ended("now"), true, Ok("now")),
            (
                waiting("ImagePullBackOff"),
                json!({}),
                false,
                Err("X is waiting to start: trying and failing to pull image"),
            ),
            (json!({"terminated": {"exitCode": 137}}), json!({}), false, Err("X is terminated")),
        ];
        for (state, last, previous, expected) in cases {
            let status = json!({"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                "containerID": "isopod://now", "state": state, "lastState": last});
            let status: ContainerStatus = serde_json::from_value(status).unwrap();
            assert_eq!(logged(Some(&status), previous, "X"), expected.map_err(str::to_owned), "{status:?} {previous}");
        }
    }

    #[test]
    fn queries() {
        let request =
            Request::get("/exec/a/b/c?command=sh&command=-c&command=echo%20a%2Bb+c&tty=1").body(Body::empty()).unwrap();
        assert_eq!(query_all(&request, "command"), ["sh", "-c", "echo a+b c"]);
        assert_eq!(query_all(&request, "tty"), ["1"]);
        let query = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let (options, previous) =
            log_options(&query(&[("tailLines", "5"), ("follow", "true"), ("previous", "false")])).unwrap();
        assert_eq!((options.tail, options.follow, previous), (Some(5), true, false));
        assert!(log_options(&query(&[("tailLines", "x")])).is_err());
        assert!(log_options(&query(&[("stream", "x")])).is_err());
    }
}
