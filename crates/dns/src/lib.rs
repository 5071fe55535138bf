//! Cluster DNS: names of Services and pods, as the Kubernetes DNS specification 1.1.0 has them;
//! everything else is forwarded.
//!
//! Answers come from a table in memory that informers keep, so a query costs no request. It knows
//! Services and EndpointSlices, and nothing of how packets reach it: like any other workload it is
//! the endpoint of a Service, `kube-system/kube-dns`.

mod feed;
mod forward;
mod registration;
mod server;
mod zone;

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;

use client::{Client, Informers};
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

use crate::forward::Forwarder;
pub use crate::registration::{NAMESPACE, SLICE};
use crate::zone::Zone;

pub struct Config {
    /// Bound sockets, one of each protocol, on the address that the Service's endpoint names.
    pub udp: UdpSocket,
    pub tcp: TcpListener,
    /// Where nodes reach the sockets.
    pub advertise: SocketAddr,
    /// The Service's address.
    pub cluster_ip: Ipv4Addr,
    pub cluster_domain: String,
    /// Its nameservers answer for the rest of the world.
    pub resolv_conf: PathBuf,
}

/// Serves until shut down.
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) -> anyhow::Result<()> {
    let informers = Informers::new(client.clone());
    let zone = Arc::new(RwLock::new(Zone::new(&config.cluster_domain)?));
    let forwarder = Forwarder::from_resolv_conf(&config.resolv_conf, config.cluster_ip);
    let server = Arc::new(server::Server { zone: zone.clone(), forwarder });
    let (udp, tcp) = server::sockets(config.udp, config.tcp)?;
    let work = async {
        feed::synced(&informers).await;
        tokio::try_join!(
            feed::keep(&informers, &zone),
            server.serve_udp(udp),
            server.clone().serve_tcp(tcp),
            registration::keep(client, config.cluster_ip, config.advertise),
        )
    };
    match shutdown.run_until_cancelled(work).await {
        Some(Err(error)) => Err(error),
        _ => Ok(()),
    }
}
