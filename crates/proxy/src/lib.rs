//! Services to packets: a pure planner, and appliers that put its rules into the kernel.
//!
//! It knows Services and EndpointSlices and nothing of pods or of who wrote them. Each Service is
//! planned by itself and compared with what was applied for it, so that an endpoint that comes or
//! goes costs microseconds, and a full replacement happens only at start and after an error.

mod feed;
pub mod nftables;
pub mod plan;

use std::net::Ipv4Addr;

use client::Client;
use tokio_util::sync::CancellationToken;

#[derive(Clone, Debug)]
pub struct Config {
    /// This node, for policies that keep traffic local.
    pub node_name: String,
    /// Addresses of pods, whose connections keep their source address.
    pub cluster_cidr: (Ipv4Addr, u8),
    /// Addresses of Services; those of no Service are refused.
    pub service_cidr: (Ipv4Addr, u8),
}

/// Keeps the rules of the calling thread's network namespace until shut down; they stay afterwards,
/// so that a restart interrupts nothing.
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) -> anyhow::Result<()> {
    match shutdown.run_until_cancelled(feed::keep(config, client)).await {
        Some(Err(error)) => Err(error),
        _ => Ok(()),
    }
}
