//! Components that run alone, each with only a kubeconfig, also against a stock Kubernetes.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use client::Informers;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::preflight;
use super::server::{default_route_address, node_name};
use crate::cli::{Component, Kubelet, Proxy};
use crate::cluster::node;
use crate::logging;

pub fn scheduler(options: Component, verbose: u8) -> anyhow::Result<()> {
    logging::to_stderr(verbose.max(1));
    until_signal(async move |shutdown| {
        let client = client::remote(&options.kubeconfig, None, "kube-scheduler").await?;
        let election = options.leader_elect.then(identity).transpose()?;
        scheduler::run(scheduler::Config { election, ..Default::default() }, client, shutdown).await
    })
}

pub fn controller_manager(options: Component, verbose: u8) -> anyhow::Result<()> {
    logging::to_stderr(verbose.max(1));
    until_signal(async move |shutdown| {
        let client = client::remote(&options.kubeconfig, None, "kube-controller-manager").await?;
        let mut config = controllers::Config::new(client.clone());
        let accounts = client::ServiceAccounts::new(&options.kubeconfig, client.clone()).await?;
        config.clients = Arc::new(move |name: &str| accounts.client(name));
        // What clients in pods are to trust is what this one trusts.
        let ca = client::remote_config(&options.kubeconfig, None).await?.root_cert;
        config.root_ca = ca.map(|certificates| certificates.iter().map(|der| pem(der)).collect());
        config.election = options.leader_elect.then(identity).transpose()?;
        config.cluster_cidr = Some(options.network.cluster_range()?);
        controllers::run(config, Informers::new(client), shutdown).await
    })
}

pub fn kubelet(options: Kubelet, verbose: u8) -> anyhow::Result<()> {
    preflight::node()?;
    logging::to_stderr(verbose.max(1));
    until_signal(async move |shutdown| {
        let name = node_name(options.node_name.as_deref())?;
        let ip = options.node_ip.map_or_else(default_route_address, Ok)?;
        let client = client::remote(&options.kubeconfig, None, "kubelet").await?;
        let place = node::Place::on_host(&options.place);
        let _lock = place.lock()?;
        let config =
            |endpoint: &str| node::kubelet_config(&place, &name, ip, endpoint, &options.network, &options.node);
        let mut config = match &options.container_runtime_endpoint {
            // Another runtime knows no root but the machine's, so that the pods' paths have to name ours.
            Some(endpoint) => kubelet::Config {
                cgroup_root: place.cgroup_root.clone(),
                runtime_cgroup_root: String::new(),
                ..config(endpoint)?
            },
            None => config(&node::start_runtime(&place, &options.network, shutdown.clone()).await?.endpoint)?,
        };
        config.server = server(&options, ip)?;
        kubelet::run(config, client, shutdown).await
    })
}

pub fn proxy(options: Proxy, verbose: u8) -> anyhow::Result<()> {
    logging::to_stderr(verbose.max(1));
    until_signal(async move |shutdown| {
        let name = node_name(options.node_name.as_deref())?;
        let client = client::remote(&options.kubeconfig, None, "kube-proxy").await?;
        proxy::run(node::proxy_config(&name, &options.network)?, client, shutdown).await
    })
}

/// Runs until the component ends or a signal asks it to.
fn until_signal(work: impl AsyncFnOnce(CancellationToken) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let running = work(shutdown.clone());
        tokio::pin!(running);
        tokio::select! {
            result = &mut running => result,
            _ = terminate.recv() => { shutdown.cancel(); running.await }
            _ = interrupt.recv() => { shutdown.cancel(); running.await }
        }
    })
}

fn pem(certificate: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// Unique among the candidates for a Lease.
fn identity() -> anyhow::Result<String> {
    Ok(format!("{}_{}", node_name(None)?, uuid::Uuid::new_v4()))
}

/// The kubelet's endpoint, served only if someone can be authenticated to it.
fn server(options: &Kubelet, ip: std::net::Ipv4Addr) -> anyhow::Result<Option<kubelet::Server>> {
    let Some(client_ca) = &options.client_ca_file else { return Ok(None) };
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("read {}", path.display()));
    let (certificate, key) = match (&options.tls_cert_file, &options.tls_private_key_file) {
        (Some(certificate), Some(key)) => (read(certificate)?, read(key)?),
        _ => {
            let made = rcgen::generate_simple_self_signed([ip.to_string()]).context("make a serving certificate")?;
            (made.cert.pem().into_bytes(), made.signing_key.serialize_pem().into_bytes())
        }
    };
    let listen = SocketAddr::from((IpAddr::V4(ip), kubelet::PORT));
    Ok(Some(kubelet::Server { listen, certificate, key, client_ca: read(client_ca)? }))
}
