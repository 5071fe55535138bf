//! Settings of one kubelet, with upstream's defaults.

use crate::eviction::Eviction;
use k8s_openapi::api::core::v1::Taint;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Config {
    pub node_name: String,
    /// The node's addresses, the primary one first.
    pub node_ips: Vec<IpAddr>,
    /// The CRI socket.
    pub cri_endpoint: String,
    /// Volumes and what else pods need on disk.
    pub root_dir: PathBuf,
    /// Container logs: `NAMESPACE_NAME_UID/CONTAINER/RESTART.log` below it.
    pub pod_logs_dir: PathBuf,
    /// The log files of the node itself, which administrators can read through the kubelet.
    pub node_logs_dir: PathBuf,
    /// Directories of local volumes are made and deleted here; none, and this node has no such volumes.
    pub local_volumes_dir: Option<PathBuf>,
    /// Static pods are read from here.
    pub manifest_dir: Option<PathBuf>,
    /// Our place in the cgroup tree, handed to the runtime in front of `/kubepods`; empty for the root.
    pub cgroup_root: String,
    /// What the runtime itself puts in front of every cgroup parent; ours, in `isopod`, does.
    pub runtime_cgroup_root: String,
    pub cgroup_mount: PathBuf,
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    /// The host's resolv.conf, on which pods' own are based.
    pub resolv_conf: PathBuf,
    /// The host's /etc/hosts, for pods in the host's network.
    pub hosts_file: PathBuf,
    pub server: Option<Server>,
    pub max_pods: u32,
    pub pod_pids_limit: Option<i64>,
    /// Ids that each pod with a user namespace of its own gets; a multiple of 65536.
    pub user_namespaces_ids_per_pod: u32,
    /// Names, or groups ending in `*`, of sysctls that pods may set besides the safe ones.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Labels and taints the Node is registered with.
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub provider_id: Option<String>,
    /// Held back from pods: resource name to quantity.
    pub reserved: BTreeMap<String, String>,
    pub node_status_interval: Duration,
    pub node_status_report: Duration,
    pub lease_interval: Duration,
    pub lease_seconds: i32,
    pub eviction: Eviction,
    /// Image garbage collection begins above `high` percent of the disk and ends below `low`; at 100 never.
    pub image_gc: ImageGc,
    pub log_max_bytes: u64,
    pub log_max_files: usize,
    /// Pulls at a time.
    pub parallel_pulls: usize,
    /// Upper bound of time between full listings of the runtime; events do the work between.
    pub relist_interval: Duration,
}

#[derive(Clone, Copy, Debug)]
pub struct ImageGc {
    pub high: u64,
    pub low: u64,
    pub interval: Duration,
    /// Younger images stay.
    pub minimum_age: Duration,
}

/// The authenticated endpoint that the API server calls.
#[derive(Clone, Debug)]
pub struct Server {
    pub listen: SocketAddr,
    /// PEM of the serving certificate chain and key, and of the CA that signs clients.
    pub certificate: Vec<u8>,
    pub key: Vec<u8>,
    pub client_ca: Vec<u8>,
}

impl Config {
    /// A kubelet of this name and address on that runtime; everything else is upstream's default.
    pub fn new(node_name: &str, node_ip: IpAddr, cri_endpoint: &str) -> Config {
        Config {
            node_name: node_name.to_owned(),
            node_ips: vec![node_ip],
            cri_endpoint: cri_endpoint.to_owned(),
            root_dir: "/var/lib/isopod/kubelet".into(),
            pod_logs_dir: "/var/log/pods".into(),
            node_logs_dir: "/var/log".into(),
            local_volumes_dir: None,
            manifest_dir: None,
            cgroup_root: String::new(),
            runtime_cgroup_root: String::new(),
            cgroup_mount: "/sys/fs/cgroup".into(),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            resolv_conf: "/etc/resolv.conf".into(),
            hosts_file: "/etc/hosts".into(),
            server: None,
            max_pods: 110,
            pod_pids_limit: None,
            user_namespaces_ids_per_pod: 65_536,
            allowed_unsafe_sysctls: Vec::new(),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            provider_id: None,
            reserved: BTreeMap::new(),
            node_status_interval: Duration::from_secs(10),
            node_status_report: Duration::from_secs(300),
            lease_interval: Duration::from_secs(10),
            lease_seconds: 40,
            eviction: Eviction::default(),
            image_gc: ImageGc {
                high: 85,
                low: 80,
                interval: Duration::from_secs(300),
                minimum_age: Duration::from_secs(120),
            },
            log_max_bytes: 10 << 20,
            log_max_files: 5,
            parallel_pulls: 4,
            relist_interval: Duration::from_secs(300),
        }
    }

    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root_dir.join("pods").join(uid)
    }

    pub fn host_ips(&self) -> Vec<String> {
        self.node_ips.iter().map(IpAddr::to_string).collect()
    }
}
