//! What load balancers and operators ask over HTTP: is this proxy well, is a Service served here,
//! what was measured.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::Config;
use crate::metrics::Metrics;
use crate::rules::HealthCheck;

/// A change that waits longer than this to be applied makes the proxy unhealthy; upstream's two
/// periods of 30 seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between attempts to listen on a port that something else holds.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);

/// How the proxy is, as its loop reports it.
#[derive(Default)]
pub(crate) struct Health {
    pub(crate) metrics: Metrics,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// When the oldest change came that is not applied yet.
    waiting: Option<Instant>,
    updated: Option<Timestamp>,
    /// The node is about to be taken away: load balancers shall send it nothing new.
    leaving: bool,
}

impl Health {
    pub(crate) fn queued(&self) {
        self.state.lock().waiting.get_or_insert_with(Instant::now);
    }

    pub(crate) fn updated(&self) {
        let mut state = self.state.lock();
        (state.waiting, state.updated) = (None, Some(Timestamp::now()));
    }

    pub(crate) fn set_leaving(&self, leaving: bool) {
        self.state.lock().leaving = leaving;
    }

    fn is_healthy(&self) -> bool {
        self.state.lock().waiting.is_none_or(|since| since.elapsed() < PATIENCE)
    }

    /// `eligible` also asks whether the node stays.
    fn answer(&self, eligible: bool) -> Response {
        let healthy = self.is_healthy();
        let state = self.state.lock();
        let body =
            json!({ "lastUpdated": state.updated, "currentTime": Timestamp::now(), "nodeEligible": !state.leaving });
        respond(healthy && !(eligible && state.leaving), body)
    }
}

/// The servers for operators; ends never.
pub(crate) fn serve(config: &Config, health: &Arc<Health>) -> impl Future<Output = ()> + use<> {
    let health_route = |eligible: bool| {
        let health = health.clone();
        get(move || async move { health.answer(eligible) })
    };
    let checks = Router::new().route("/healthz", health_route(true)).route("/livez", health_route(false));
    let (measured, mode) = (health.clone(), config.mode.clone());
    let metrics = checks
        .clone()
        .route("/metrics", get(move || async move { measured.metrics.render() }))
        .route("/proxyMode", get(move || async move { mode }));
    let (healthz, metrics) = ((config.healthz, checks), (config.metrics, metrics));
    async move {
        tokio::join!(serve_at(healthz.0, healthz.1), serve_at(metrics.0, metrics.1));
    }
}

async fn serve_at(address: Option<SocketAddr>, router: Router) {
    let Some(address) = address else { return std::future::pending().await };
    loop {
        let served = match TcpListener::bind(address).await {
            Ok(listener) => axum::serve(listener, router.clone()).await,
            Err(error) => Err(error),
        };
        if let Err(error) = served {
            tracing::warn!("cannot serve the proxy's health on {address}: {error}");
        }
        tokio::time::sleep(LISTEN_AGAIN).await;
    }
}

/// The ports at which load balancers ask whether a Service has endpoints on this node.
#[derive(Default)]
pub(crate) struct HealthChecks(BTreeMap<Arc<str>, Served>);

struct Served {
    port: u16,
    local_endpoints: Arc<AtomicUsize>,
    _stop: DropGuard,
}

impl HealthChecks {
    /// Opens, updates or closes a Service's port.
    pub(crate) async fn set(
        &mut self,
        service: &Arc<str>,
        wanted: Option<HealthCheck>,
        health: &Arc<Health>,
    ) -> std::io::Result<()> {
        let Some(HealthCheck { port, local_endpoints }) = wanted else {
            self.0.remove(service);
            return Ok(());
        };
        if let Some(served) = self.0.get(service).filter(|served| served.port == port) {
            served.local_endpoints.store(local_endpoints, Ordering::Relaxed);
            return Ok(());
        }
        self.0.remove(service);
        let listener = match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
            Ok(listener) => listener,
            Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?,
        };
        let (count, stop) = (Arc::new(AtomicUsize::new(local_endpoints)), CancellationToken::new());
        let (service_name, shared, health) = (service.clone(), count.clone(), health.clone());
        let answer =
            get(move || async move { answer(&service_name, shared.load(Ordering::Relaxed), health.is_healthy()) });
        let router = Router::new().fallback_service(answer);
        let server = axum::serve(listener, router).into_future();
        let stopped = stop.clone();
        tokio::spawn(async move { stopped.run_until_cancelled(server).await });
        self.0.insert(service.clone(), Served { port, local_endpoints: count, _stop: stop.drop_guard() });
        Ok(())
    }
}

fn answer(service: &str, local_endpoints: usize, healthy: bool) -> Response {
    let (namespace, name) = client::split_key(service);
    let body = json!({
        "service": { "namespace": namespace, "name": name },
        "localEndpoints": local_endpoints,
        "serviceProxyHealthy": healthy,
    });
    let mut response = respond(healthy && local_endpoints > 0, body);
    response.headers_mut().insert("X-Load-Balancing-Endpoint-Weight", local_endpoints.into());
    response
}

fn respond(well: bool, body: Value) -> Response {
    let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, [("X-Content-Type-Options", "nosniff")], Json(body)).into_response()
}
