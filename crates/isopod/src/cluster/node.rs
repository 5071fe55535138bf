//! What makes a machine a node: runtime, pod network, kubelet, proxy; and the cluster's DNS.

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use apiserver::identity::{AUTHENTICATED, NODES, UserInfo};
use client::Client;
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::Api;
use network::bridge::{self, Bridge};
use tokio_util::sync::CancellationToken;

use super::control_plane::ControlPlane;
use super::{Components, Config, Progress};
use crate::cli::{self, NetworkOptions, NodeOptions};
use crate::hello::image as hello;
use crate::sandbox;

/// DNS is served on the node's address at this port and reached through its Service at 53: on a
/// real host, port 53 of the node may be taken.
const DNS_PORT: u16 = 10053;

/// Where a node keeps things.
#[derive(Clone, Debug)]
pub struct Place {
    pub data_dir: PathBuf,
    pub run_dir: PathBuf,
    /// Control group of everything that runs in pods, below each controller's root.
    pub cgroup_root: String,
}

impl Place {
    /// The place of the one node that a host can be outside of throwaway clusters.
    pub fn on_host(place: &cli::Place) -> Place {
        Place {
            data_dir: place.data_dir.clone(),
            run_dir: Path::new(sandbox::RUN_ROOT).join(sandbox::HOST),
            cgroup_root: place.cgroup_root.clone(),
        }
    }

    /// All that a node and its control plane keep in the data directory, which they may share with others.
    pub fn data(&self) -> Vec<PathBuf> {
        let names = ["store", "pki", "runtime", "kubelet", "network", "logs", "kubeconfig"];
        names.iter().map(|name| self.data_dir.join(name)).collect()
    }

    /// Takes the place for this process, and says in the file which one that is.
    pub fn lock(&self) -> anyhow::Result<File> {
        let Some(mut file) = sandbox::lock_after(&self.run_dir, self.pid())? else {
            let pid = self.pid().map_or(String::new(), |pid| format!(" (pid {pid})"));
            bail!("this host is a node already{pid}; `isopod down --server` stops it");
        };
        file.set_len(0).and_then(|()| write!(file, "{}", std::process::id())).context("write the lock file")?;
        Ok(file)
    }

    /// The process that has, or last had, the place.
    pub fn pid(&self) -> Option<i32> {
        std::fs::read_to_string(self.run_dir.join("lock")).ok()?.parse().ok()
    }
}

/// What takes longer is told while it goes on.
const A_WHILE: Duration = Duration::from_secs(1);

/// Starts everything; each part waits for what it needs by itself.
pub async fn start(
    config: &Config,
    plane: &ControlPlane,
    components: &mut Components,
    progress: &Progress,
) -> anyhow::Result<()> {
    let place = &config.place;
    let mut images = pin!(import_images(place, config.image_archives.clone()));
    let runtime = start_runtime(place, &config.network, components.shutdown()).await?;
    let endpoint = runtime.endpoint.clone();
    components.spawn("container runtime", async move { runtime.task.await? });
    match tokio::time::timeout(A_WHILE, &mut images).await {
        Ok(imported) => imported?,
        Err(_) => {
            let archives: Vec<String> = config.image_archives.iter().map(|path| path.display().to_string()).collect();
            progress.step(&format!("importing {}", archives.join(", ")));
            images.await?;
        }
    }
    progress.step("the container runtime is serving, and its images are imported");

    let node =
        plane.client(UserInfo::new(format!("system:node:{}", config.node_name), [NODES, AUTHENTICATED]), "kubelet");
    let mut kubelet_config =
        kubelet_config(place, &config.node_name, config.node_ip, &endpoint, &config.network, &config.node)?;
    let ip = IpAddr::V4(config.node_ip);
    let serving = plane.pki.node_serving(&config.node_name, std::slice::from_ref(&config.node_name), &[ip])?;
    kubelet_config.server = Some(kubelet::Server {
        listen: SocketAddr::new(ip, kubelet::PORT),
        certificate: serving.cert.into_bytes(),
        key: serving.key.into_bytes(),
        client_ca: plane.pki.ca().as_bytes().to_vec(),
    });
    components.spawn("kubelet", kubelet::run(kubelet_config, node, components.shutdown()));

    let proxy_config = proxy_config(&config.node_name, &config.network)?;
    let proxy_client = plane.component("system:kube-proxy");
    components.spawn("service proxy", proxy::run(proxy_config, proxy_client, components.shutdown()));

    // Its own registration writes a Service, which the DNS role alone may not.
    let dns_client = plane.client(UserInfo::master("system:dns"), "dns");
    components.spawn(
        "cluster DNS",
        dns::run(dns_config(config.node_ip, &config.network)?, dns_client, components.shutdown()),
    );
    Ok(())
}

/// Waits until the node is ready and DNS is reachable.
pub async fn ready(config: &Config, plane: &ControlPlane, progress: &Progress) -> anyhow::Result<()> {
    let observer = plane.client(UserInfo::master("system:isopod"), "isopod");
    let node = node_ready(&observer, &config.node_name).await?;
    progress.step(&format!("node {} is ready", config.node_name));
    for complaint in pressures(&node) {
        progress.step(&format!("but no new pods are scheduled to it as long as {complaint}"));
    }
    dns_published(&observer).await;
    progress.step("cluster DNS is published");
    Ok(())
}

pub struct Runtime {
    pub endpoint: String,
    pub task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

/// Starts the embedded runtime on the built-in pod network; when this returns, its socket answers.
pub async fn start_runtime(
    place: &Place,
    network: &NetworkOptions,
    shutdown: CancellationToken,
) -> anyhow::Result<Runtime> {
    let config = runtime_config(place, network.cluster_cidr.parse().context("--cluster-cidr")?)?;
    let endpoint = format!("unix://{}", config.socket.display());
    let task = tokio::spawn(runtime::serve(config, shutdown));
    let mut client = cri::v1::runtime_service_client::RuntimeServiceClient::new(cri::connect(&endpoint));
    while client.version(cri::v1::VersionRequest::default()).await.is_err() {
        if task.is_finished() {
            return Err(match task.await? {
                Err(error) => error.context("start the container runtime"),
                Ok(()) => anyhow!("the container runtime ended"),
            });
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(Runtime { endpoint, task })
}

fn runtime_config(place: &Place, pods: network::Range) -> anyhow::Result<runtime::Config> {
    let bridge = Bridge::new(bridge_config(place, pods)).context("prepare the pod network")?;
    Ok(runtime::Config {
        root: place.data_dir.join("runtime"),
        state: place.run_dir.join("runtime"),
        socket: place.run_dir.join("runtime.sock"),
        cgroup_root: place.cgroup_root.clone(),
        network: Arc::new(bridge),
        streaming_listen: (Ipv4Addr::LOCALHOST, 0).into(),
        shim_exe: "/proc/self/exe".into(),
        builtin_images: [(hello::NAME.to_owned(), Arc::new(hello::write) as runtime::WriteImage)].into(),
    })
}

fn bridge_config(place: &Place, pods: network::Range) -> bridge::Config {
    bridge::Config { bridge: "cni0".into(), state_dir: place.data_dir.join("network"), cluster_cidr: pods }
}

/// Ends every pod of the embedded runtime and takes away the node's network and firewall rules. What is
/// left of them after a crash (mounts, control groups) is the caller's to sweep up.
pub async fn clean_up(place: &Place) -> anyhow::Result<()> {
    // Only the rules depend on it, and they go.
    let pods = network::Range { base: Ipv4Addr::UNSPECIFIED, prefix: 0 };
    let removed = runtime::remove_all(runtime_config(place, pods)?).await.context("end the pods");
    bridge::clean_up(&bridge_config(place, pods)).await.context("remove the pod network")?;
    for mode in proxy::applier::MODES {
        (mode.clean_up)().with_context(|| format!("remove the rules of proxy mode {}", mode.name))?;
    }
    removed
}

/// Imports archives on a blocking thread, beside whatever else starts.
fn import_images(place: &Place, archives: Vec<PathBuf>) -> impl Future<Output = anyhow::Result<()>> + use<> {
    let data_dir = place.data_dir.clone();
    let importing = tokio::task::spawn_blocking(move || {
        let images = open_images(&data_dir)?;
        for archive in &archives {
            images.import(archive).with_context(|| format!("import image archive {}", archive.display()))?;
        }
        Ok(())
    });
    async move { importing.await? }
}

/// The image store of the node whose data is under `data_dir`.
pub fn open_images(data_dir: &Path) -> anyhow::Result<runtime::Images> {
    runtime::Images::open(&data_dir.join("runtime"))
}

pub fn kubelet_config(
    place: &Place,
    name: &str,
    ip: Ipv4Addr,
    endpoint: &str,
    network: &NetworkOptions,
    node: &NodeOptions,
) -> anyhow::Result<kubelet::Config> {
    let mut config = kubelet::Config::new(name, IpAddr::V4(ip), endpoint);
    config.root_dir = place.data_dir.join("kubelet");
    config.local_volumes_dir = Some(place.data_dir.join("volumes"));
    config.pod_logs_dir = place.data_dir.join("logs/pods");
    config.runtime_cgroup_root = place.cgroup_root.clone();
    config.cluster_dns = vec![IpAddr::V4(network.cluster_dns)];
    config.cluster_domain = network.cluster_domain.clone();
    node.apply(&mut config)?;
    Ok(config)
}

pub fn proxy_config(name: &str, network: &NetworkOptions) -> anyhow::Result<proxy::Config> {
    let cluster = network.cluster_cidr.parse().map_err(anyhow::Error::msg).context("--cluster-cidr")?;
    let services = network.service_cidr.parse().map_err(anyhow::Error::msg).context("--service-cidr")?;
    Ok(proxy::Config { mode: network.proxy_mode.clone(), ..proxy::Config::new(name, vec![cluster], vec![services]) })
}

fn dns_config(ip: Ipv4Addr, network: &NetworkOptions) -> anyhow::Result<dns::Config> {
    let address = SocketAddr::from((ip, DNS_PORT));
    let context = || format!("listen on {address} for DNS");
    Ok(dns::Config {
        udp: UdpSocket::bind(address).with_context(context)?,
        tcp: TcpListener::bind(address).with_context(context)?,
        advertise: address,
        cluster_ip: network.cluster_dns,
        cluster_domain: network.cluster_domain.clone(),
        resolv_conf: "/etc/resolv.conf".into(),
    })
}

async fn node_ready(client: &Client, name: &str) -> anyhow::Result<Arc<Node>> {
    let nodes: Api<Node> = Api::all(client.clone());
    let ready = |node: Option<&Node>| node.is_some_and(|node| holds(node, "Ready").is_some());
    client::await_condition(nodes, name, ready).await.context("the node vanished")
}

fn holds<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().find(|condition| condition.type_ == kind && condition.status == "True")
}

/// What keeps a ready node from taking pods, in words.
fn pressures(node: &Node) -> Vec<String> {
    let found = ["MemoryPressure", "DiskPressure", "PIDPressure"].into_iter().filter_map(|kind| holds(node, kind));
    found
        .map(|condition| format!("{}: {}", condition.type_, condition.message.as_deref().unwrap_or_default()))
        .collect()
}

async fn dns_published(client: &Client) {
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), dns::NAMESPACE);
    client::await_condition(slices, dns::SLICE, |slice: Option<&EndpointSlice>| slice.is_some()).await;
}
