//! `isopod server` and `isopod apiserver`: the same components, on the host itself.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use anyhow::Context;

use super::preflight;
use crate::cli::Server;
use crate::cluster::node::Place;
use crate::{cluster, logging};

pub fn run(options: &Server, with_node: bool, verbose: u8) -> anyhow::Result<()> {
    options.network.check()?;
    if with_node {
        preflight::node()?;
    }
    logging::to_stderr(verbose.max(1));
    let place = Place::on_host(&options.place);
    let _lock = if with_node { Some(place.lock()?) } else { None };
    let address = (options.bind_address, options.secure_port);
    let listener =
        TcpListener::bind(address).with_context(|| format!("listen on {}:{} for the API", address.0, address.1))?;
    let config = cluster::Config {
        node_name: node_name(options.node_name.as_deref())?,
        node_ip: options.node_ip.map_or_else(default_route_address, Ok)?,
        network: options.network.clone(),
        node: options.node.clone(),
        api_port: options.secure_port,
        kubeconfig: options.write_kubeconfig.clone().unwrap_or_else(|| place.data_dir.join("kubeconfig")),
        place,
        kubeconfig_server: format!("https://127.0.0.1:{}", options.secure_port),
        context: "isopod".into(),
        certificate_names: options.tls_san.clone(),
        image_archives: Vec::new(),
        with_node,
    };
    let progress = cluster::Progress::to_log();
    if with_node {
        tracing::info!("pods go on running when this process ends; `isopod down --server` ends them");
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(cluster::run(
        config,
        vec![listener],
        &progress,
    ))
}

/// A node's name is its lower-case host name unless it was told another.
pub fn node_name(given: Option<&str>) -> anyhow::Result<String> {
    match given {
        Some(name) => Ok(name.to_owned()),
        None => Ok(nix::unistd::gethostname()?.to_string_lossy().to_lowercase()),
    }
}

/// The address that packets to other machines would carry. Connecting a UDP socket sends nothing.
pub fn default_route_address() -> anyhow::Result<Ipv4Addr> {
    let advice = "find this machine's address by its default route; say which to use with --node-ip";
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context(advice)?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).context(advice)?;
    match socket.local_addr().context(advice)?.ip() {
        std::net::IpAddr::V4(address) => Ok(address),
        std::net::IpAddr::V6(_) => anyhow::bail!(advice),
    }
}
