//! An API server on its own: `cargo run -p apiserver --example standalone DIR [PORT]`, then
//! `kubectl --kubeconfig DIR/admin.conf`. For trying clients by hand; it ends with its standard input.

use std::{path::PathBuf, sync::Arc};

use apiserver::{
    Config, Server,
    pki::{Pki, PkiOptions, kubeconfig},
    upgrade::TcpDialer,
};
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let mut args = std::env::args().skip(1);
    let dir: PathBuf = args.next().ok_or_else(|| anyhow::anyhow!("name a directory"))?.into();
    let port = args.next().map_or(Ok(6443), |port| port.parse())?;
    std::fs::create_dir_all(&dir)?;
    let started = std::time::Instant::now();
    let options = PkiOptions { server_names: vec![], server_ips: vec![], cluster_domain: "cluster.local".into() };
    let pki = Arc::new(Pki::load_or_create(&dir.join("pki"), options)?);
    let store = Arc::new(store::FjallStore::open(dir.join("store"), store::Options::default())?);
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    let address = listener.local_addr()?;
    let config = Config {
        store,
        pki: pki.clone(),
        advertise: address,
        service_cidr: "10.43.0.0/16".parse().map_err(anyhow::Error::msg)?,
        node_ports: 30000..=32767,
        dialer: Arc::new(TcpDialer),
    };
    let server = Server::new(config).await?;
    let admin = pki.client("kubernetes-admin", &["system:masters"])?;
    let text = kubeconfig(&format!("https://{address}"), pki.ca(), &admin.cert, &admin.key, "isopod");
    std::fs::write(dir.join("admin.conf"), text)?;
    eprintln!("ready on {address} after {:?}", started.elapsed());
    let shutdown = CancellationToken::new();
    let serving = server.serve(listener, shutdown.clone());
    let mut end = [0];
    tokio::select! {
        served = serving => served?,
        _ = async { while tokio::io::stdin().read(&mut end).await.is_ok_and(|read| read > 0) {} } => server.shutdown().await,
    }
    Ok(())
}
