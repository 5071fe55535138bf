//! Services to packets: a pure planner, and appliers that put its rules into the kernel.
//!
//! It knows Services, EndpointSlices and its own Node, and nothing of pods or of who wrote them. Each
//! Service is planned by itself and compared with what was applied for it, so that an endpoint that
//! comes or goes costs what it touches, and a full replacement happens only at start and after an
//! error. The way in is [`run`]; the way from objects to packets is [`plan`], [`rules`], [`applier`].

pub mod applier;
mod cidr;
mod endpoints;
mod engine;
mod feed;
mod flows;
mod health;
mod metrics;
pub mod nftables;
pub mod plan;
pub mod rules;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use client::Client;
use tokio_util::sync::CancellationToken;

use crate::applier::MODES;
pub use crate::cidr::Cidr;
use crate::rules::Family;

/// Where upstream's proxy tells its health, and its measurements.
pub const HEALTHZ_PORT: u16 = 10256;
pub const METRICS_PORT: u16 = 10249;

#[derive(Clone, Debug)]
pub struct Config {
    /// This node, for policies that keep traffic local.
    pub node_name: String,
    /// Its addresses; those that its Node object names are added.
    pub node_ips: Vec<IpAddr>,
    /// Addresses of pods, whose connections to Services keep their source address.
    pub cluster_cidrs: Vec<Cidr>,
    /// Addresses of Services, besides those that ServiceCIDR objects name; those of no Service are
    /// dropped.
    pub service_cidrs: Vec<Cidr>,
    /// The name of one of [`applier::MODES`].
    pub mode: String,
    /// Node ports are served on the node's addresses in these ranges; on all of them if there is none.
    pub node_port_addresses: Vec<Cidr>,
    /// Also on 127.0.0.1.
    pub localhost_node_ports: bool,
    /// Rewrites the source of all connections to cluster IPs, not only of those from outside.
    pub masquerade_all: bool,
    /// `None` serves none.
    pub healthz: Option<SocketAddr>,
    pub metrics: Option<SocketAddr>,
}

impl Config {
    /// With upstream's defaults.
    pub fn new(node_name: &str, cluster_cidrs: Vec<Cidr>, service_cidrs: Vec<Cidr>) -> Config {
        Config {
            node_name: node_name.to_owned(),
            node_ips: Vec::new(),
            cluster_cidrs,
            service_cidrs,
            mode: MODES[0].name.to_owned(),
            node_port_addresses: Vec::new(),
            localhost_node_ports: true,
            masquerade_all: false,
            healthz: Some((Ipv4Addr::UNSPECIFIED, HEALTHZ_PORT).into()),
            metrics: Some((Ipv4Addr::LOCALHOST, METRICS_PORT).into()),
        }
    }

    /// The families that the cluster uses.
    pub fn families(&self) -> Vec<Family> {
        let ranges = || self.cluster_cidrs.iter().chain(&self.service_cidrs);
        let used = [Family::Ipv4, Family::Ipv6].into_iter();
        used.filter(|family| ranges().any(|range| range.family() == *family)).collect()
    }
}

/// Keeps the rules of the calling thread's network namespace until shut down; they stay afterwards,
/// so that a restart interrupts nothing.
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) -> anyhow::Result<()> {
    let health = Arc::new(health::Health::default());
    let servers = health::serve(&config, &health);
    let work = async {
        tokio::select! {
            result = feed::keep(&config, client, &health) => result,
            () = servers => Ok(()),
        }
    };
    shutdown.run_until_cancelled(work).await.unwrap_or(Ok(()))
}

/// Removes what any mode has left in the network namespace of the calling thread. Idempotent.
pub fn cleanup() -> anyhow::Result<()> {
    MODES.iter().try_for_each(|mode| (mode.clean_up)())
}
