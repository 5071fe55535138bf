//! The virtual network between a throwaway cluster's nodes: a bridge in a namespace of its own,
//! one veth to each node.
//!
//! The bridge's namespace is also where a client "outside the cluster" stands: it reaches NodePorts
//! and nothing else, since nothing forwards beyond it.

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use anyhow::Context;
use futures::TryStreamExt;
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::{NODE_IP, Namespaces, in_network_namespace};

const LAN_IP: Ipv4Addr = Ipv4Addr::new(10, 40, 0, 1);
const PREFIX: u8 = 24;
const BRIDGE: &str = "lan0";
/// The node's end in the LAN namespace.
const PORT: &str = "node1";
/// The node's end in its own namespace.
const NIC: &str = "eth0";

/// Wires the node's namespace to the LAN.
pub fn connect(namespaces: &Namespaces) -> anyhow::Result<()> {
    let node = namespaces.net.as_raw_fd();
    with_netlink(&namespaces.lan, async |netlink| {
        up(&netlink, "lo").await?;
        netlink.link().add(LinkBridge::new(BRIDGE).up().build()).execute().await.context("add bridge")?;
        let bridge = index(&netlink, BRIDGE).await?;
        netlink.address().add(bridge, LAN_IP.into(), PREFIX).execute().await.context("address of the LAN")?;
        netlink.link().add(LinkVeth::new(PORT, NIC).build()).execute().await.context("add veth")?;
        let nic = index(&netlink, NIC).await?;
        let to_node = LinkMessageBuilder::<LinkUnspec>::new().index(nic).setns_by_fd(node).build();
        netlink.link().set(to_node).execute().await.context("move veth to the node")?;
        let port = index(&netlink, PORT).await?;
        let attach = LinkMessageBuilder::<LinkUnspec>::new().index(port).controller(bridge).up().build();
        netlink.link().set(attach).execute().await.context("attach veth to the LAN")
    })?;
    with_netlink(&namespaces.net, async |netlink| {
        up(&netlink, "lo").await?;
        let nic = index(&netlink, NIC).await?;
        netlink.address().add(nic, NODE_IP.into(), PREFIX).execute().await.context("address of the node")?;
        up(&netlink, NIC).await?;
        // Service addresses need some route before the proxy rewrites them.
        let default = RouteMessageBuilder::<Ipv4Addr>::new().gateway(LAN_IP).build();
        netlink.route().add(default).execute().await.context("default route")
    })
}

fn with_netlink<F>(namespace: &std::fs::File, work: F) -> anyhow::Result<()>
where
    F: AsyncFnOnce(Handle) -> anyhow::Result<()> + Send,
{
    in_network_namespace(namespace, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (connection, netlink, _) = rtnetlink::new_connection().context("open netlink")?;
            tokio::spawn(connection);
            work(netlink).await
        })
    })
}

async fn index(netlink: &Handle, name: &str) -> anyhow::Result<u32> {
    let link = netlink.link().get().match_name(name.to_owned()).execute().try_next().await;
    Ok(link.with_context(|| format!("look up {name}"))?.with_context(|| format!("{name} is missing"))?.header.index)
}

async fn up(netlink: &Handle, name: &str) -> anyhow::Result<()> {
    let index = index(netlink, name).await?;
    let message = LinkMessageBuilder::<LinkUnspec>::new().index(index).up().build();
    netlink.link().set(message).execute().await.with_context(|| format!("bring {name} up"))
}
