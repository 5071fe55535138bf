//! The built-in pod network: a bridge, a veth pair to each pod, host ports.
//!
//! A pod has a /32 address and sends everything to the bridge's address, even what goes to a pod
//! beside it. So every packet passes the node's IP layer in both directions, and a Service's
//! rewriting is undone for replies without the br_netfilter module, which a fresh machine has not
//! loaded.

use std::fs;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use async_trait::async_trait;
use nft::{Batch, Socket};
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use crate::addresses::{Addresses, Allocation, Range};
use crate::netlink::{Netlink, open_namespace};
use crate::rules::Rules;
use crate::{PodAddresses, PodAttachment, PodNetwork};

/// The pod's interface.
const POD_INTERFACE: &str = "eth0";
/// Names of the node's ends begin with this.
const VETH_PREFIX: &str = "veth";
const MTU: u32 = 1500;

#[derive(Clone, Debug)]
pub struct Config {
    /// The bridge's name.
    pub bridge: String,
    /// Where allocations are recorded.
    pub state_dir: PathBuf,
    /// Addresses of all pods of the cluster, which are not masqueraded among each other.
    pub cluster_cidr: Range,
}

/// See the module's documentation. One per network namespace.
pub struct Bridge {
    config: Config,
    rules: Rules,
    state: Mutex<State>,
    /// Serialises batches, which hold no await.
    firewall: Mutex<Socket>,
    node: OnceCell<Node>,
}

struct State {
    range: Option<Range>,
    addresses: Addresses,
}

/// The node's side, set up once the range is known.
struct Node {
    netlink: Netlink,
    bridge: u32,
}

impl Bridge {
    /// Takes up what an earlier process left: allocations, their rules and the pod range.
    pub fn new(config: Config) -> anyhow::Result<Bridge> {
        let addresses = Addresses::open(&config.state_dir.join("pods"))?;
        let range = fs::read_to_string(range_file(&config)).ok().and_then(|text| text.trim().parse().ok());
        let rules = Rules::new();
        let mut firewall = Socket::open()?;
        firewall.commit(&rules.all(config.cluster_cidr, &config.bridge, addresses.iter().map(|(_, a)| a)))?;
        Ok(Bridge {
            state: Mutex::new(State { range, addresses }),
            firewall: Mutex::new(firewall),
            node: OnceCell::new(),
            rules,
            config,
        })
    }

    /// Releases what sandboxes other than `live` hold: leftovers of a crash or a reboot.
    pub async fn retain(&self, live: impl Fn(&str) -> bool) -> anyhow::Result<()> {
        let stale: Vec<String> =
            self.state.lock().addresses.iter().map(|(id, _)| id.clone()).filter(|id| !live(id)).collect();
        for sandbox in stale {
            self.release(&sandbox).await?;
        }
        Ok(())
    }

    async fn node(&self, range: Range) -> anyhow::Result<&Node> {
        self.node.get_or_try_init(|| self.set_up(range)).await.context("set up the pod network")
    }

    async fn set_up(&self, range: Range) -> anyhow::Result<Node> {
        let name = &self.config.bridge;
        let netlink = Netlink::here()?;
        let bridge = netlink.ensure_bridge(name, MTU).await?;
        netlink.add_address(bridge, range.gateway(), range.prefix).await?;
        for (setting, value) in [
            ("ip_forward".to_owned(), "1"),
            // 127.0.0.1 may be rewritten to a pod's address and routed to the bridge.
            (format!("conf/{name}/route_localnet"), "1"),
            // Pods on one bridge are meant to go through the node; do not tell them of a shorter way.
            (format!("conf/{name}/send_redirects"), "0"),
            ("conf/all/send_redirects".to_owned(), "0"),
            ("conf/all/rp_filter".to_owned(), "0"),
            (format!("conf/{name}/rp_filter"), "0"),
        ] {
            let path = Path::new("/proc/sys/net/ipv4").join(setting);
            fs::write(&path, value).with_context(|| format!("write {value} to {}", path.display()))?;
        }
        Ok(Node { netlink, bridge })
    }

    async fn wire(&self, pod: &PodAttachment, allocation: &Allocation, range: Range) -> anyhow::Result<()> {
        let node = self.node(range).await?;
        let namespace = open_namespace(&pod.netns)?;
        let inside = Netlink::inside(&namespace).await?;
        inside.up(inside.required_index("lo").await?).await.context("bring lo up")?;
        if inside.index(POD_INTERFACE).await?.is_none() {
            let name = veth_name(&pod.sandbox_id);
            node.netlink.delete(&name).await?;
            node.netlink.add_veth(&name, node.bridge, MTU, POD_INTERFACE, namespace.as_raw_fd()).await?;
        }
        let interface = inside.required_index(POD_INTERFACE).await?;
        inside.add_address(interface, allocation.address, 32).await?;
        inside.up(interface).await.context("bring the pod's interface up")?;
        inside.route_through(interface, range.gateway()).await?;
        let mut batch = Batch::new();
        self.rules.add(&mut batch, allocation);
        self.firewall.lock().commit(&batch).with_context(|| conflict(allocation))
    }

    async fn release(&self, sandbox: &str) -> anyhow::Result<()> {
        let allocation = self.state.lock().addresses.get(sandbox).cloned();
        if let Some(allocation) = allocation {
            let mut batch = Batch::new();
            self.rules.remove(&mut batch, &allocation);
            // A pod that never got its ports because another has them has none to give back.
            if let Err(error) = self.firewall.lock().commit(&batch) {
                tracing::debug!(sandbox, "host ports were not removed: {error}");
            }
        }
        Netlink::here()?.delete(&veth_name(sandbox)).await?;
        self.state.lock().addresses.release(sandbox)
    }
}

#[async_trait]
impl PodNetwork for Bridge {
    async fn attach(&self, pod: &PodAttachment) -> anyhow::Result<PodAddresses> {
        if pod.bandwidth.ingress.is_some() || pod.bandwidth.egress.is_some() {
            tracing::warn!(
                pod = pod.name,
                namespace = pod.namespace,
                "bandwidth annotations are not enforced by the built-in network"
            );
        }
        let (allocation, range) = {
            let mut state = self.state.lock();
            let Some(range) = state.range else { bail!("the node has no pod CIDR yet") };
            (state.addresses.allocate(range, &pod.sandbox_id, &pod.port_mappings)?, range)
        };
        if let Err(error) = self.wire(pod, &allocation, range).await {
            self.release(&pod.sandbox_id).await?;
            return Err(error);
        }
        Ok(PodAddresses { ips: vec![allocation.address.into()], gateway: Some(IpAddr::V4(range.gateway())) })
    }

    async fn detach(&self, pod: &PodAttachment) -> anyhow::Result<()> {
        self.release(&pod.sandbox_id).await
    }

    async fn ready(&self) -> Result<(), String> {
        let Some(range) = self.state.lock().range else {
            return Err("the pod network is not ready: the node has no pod CIDR yet".into());
        };
        self.node(range).await.map(|_| ()).map_err(|error| format!("{error:#}"))
    }

    fn set_pod_cidr(&self, cidr: &str) {
        let ipv4 = cidr.split(',').find_map(|range| range.parse::<Range>().ok());
        let Some(range) = ipv4 else {
            tracing::error!(cidr, "the node's pod CIDR has no IPv4 range");
            return;
        };
        let mut state = self.state.lock();
        if state.range.is_some_and(|known| known != range) {
            tracing::error!(%range, "the node's pod CIDR changed; it takes effect when the node is drained and restarted");
            return;
        }
        state.range = Some(range);
        if let Err(error) = fs::write(range_file(&self.config), range.to_string()) {
            tracing::warn!("cannot record the node's pod CIDR: {error}");
        }
    }
}

/// Removes the bridge, the pods' interfaces, the rules and the allocations of this namespace.
pub async fn clean_up(config: &Config) -> anyhow::Result<()> {
    let netlink = Netlink::here()?;
    for sandbox in Addresses::open(&config.state_dir.join("pods"))?.iter().map(|(id, _)| id) {
        netlink.delete(&veth_name(sandbox)).await?;
    }
    netlink.delete(&config.bridge).await?;
    let mut batch = Batch::new();
    batch.delete_table(&Rules::new().table);
    Socket::open()?.commit(&batch)?;
    match fs::remove_dir_all(&config.state_dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context("remove the recorded addresses")
        }
        _ => Ok(()),
    }
}

fn range_file(config: &Config) -> PathBuf {
    config.state_dir.join("pod-cidr")
}

/// At most 15 bytes, and as good as unique: sandbox ids are random hexadecimal numbers.
fn veth_name(sandbox: &str) -> String {
    format!("{VETH_PREFIX}{}", sandbox.chars().take(11).collect::<String>())
}

fn conflict(allocation: &Allocation) -> String {
    let ports: Vec<String> =
        allocation.ports.iter().map(|p| format!("{}/{:?}", p.host_port, p.protocol).to_uppercase()).collect();
    format!("open host ports {}; is another pod using one of them?", ports.join(", "))
}
