//! Flags. A flag's name is also its key in the config file and, upper-cased after `ISOPOD_`, its
//! environment variable; a flag wins over the environment, which wins over the file.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, CommandFactory, Parser, Subcommand};

/// Kubernetes, the whole system, in one binary.
#[derive(Debug, Parser)]
#[command(name = "isopod", version, propagate_version = true, args_override_self = true)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
    /// Log more (-v: info, -vv: debug, -vvv: trace); RUST_LOG is honoured.
    #[arg(short, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a throwaway cluster in namespaces of its own; Ctrl-C removes every trace.
    Up(Up),
    /// Remove a throwaway cluster, or what `isopod server` left on this host; also after a crash.
    Down(Down),
    /// Start a cluster, deploy a web page behind a Service and fetch it from every pod.
    Demo(Name),
    /// List throwaway clusters.
    List,
    /// Run control plane and node on this host.
    Server(Server),
    /// Run the API server alone, on an embedded store.
    Apiserver(Server),
    /// Run the scheduler alone.
    Scheduler(Component),
    /// Run the controllers alone.
    ControllerManager(Component),
    /// Run the kubelet alone, on the embedded runtime or any CRI endpoint.
    Kubelet(Kubelet),
    /// Run the service proxy alone.
    Proxy(Proxy),
    /// Manage a cluster's images.
    #[command(subcommand)]
    Image(Image),
    /// Serve the demo page (what the image isopod.local/hello runs).
    Hello {
        #[arg(long, default_value_t = crate::hello::image::PORT)]
        port: u16,
    },
    /// Fetch a page over plain HTTP (a client for the demo).
    Fetch {
        url: String,
        /// Fetch this many times and print each different answer with its count.
        #[arg(long, default_value_t = 1)]
        repeat: u32,
        /// Fetch this many times a second instead, and tell each second how many failed.
        #[arg(long, conflicts_with = "repeat", value_parser = clap::value_parser!(u32).range(1..=10_000))]
        rate: Option<u32>,
        /// End after this many seconds, with 1 if a request failed; 0: go on until ended.
        #[arg(long, requires = "rate", default_value_t = 0)]
        seconds: u64,
    },
    /// The cluster's main process, started by `up` inside its namespaces.
    #[command(hide = true, name = "cluster-process")]
    ClusterProcess { spec: PathBuf },
}

#[derive(Clone, Debug, Args)]
pub struct Name {
    /// The cluster's name: lower-case letters, digits and '-'.
    #[arg(long, env = "ISOPOD_NAME", default_value = "default")]
    pub name: String,
}

#[derive(Debug, Args)]
pub struct Down {
    #[command(flatten)]
    pub name: Name,
    /// Stop `isopod server` and `isopod kubelet` of this host, and end their pods with all that belongs to
    /// them: network, firewall rules, mounts, control groups. Data stay.
    #[arg(long, conflicts_with = "name")]
    pub server: bool,
    /// Remove the data too: store, certificates, images, volumes, logs.
    #[arg(long, requires = "server")]
    pub purge: bool,
    #[command(flatten)]
    pub place: Place,
}

/// Where a host keeps a node.
#[derive(Clone, Debug, Args)]
pub struct Place {
    /// Store, certificates, images, volumes.
    #[arg(long, env = "ISOPOD_DATA_DIR", default_value = "/var/lib/isopod")]
    pub data_dir: PathBuf,
    /// Control group of all pods, below each controller's root.
    #[arg(long, env = "ISOPOD_CGROUP_ROOT", default_value = "/isopod/node")]
    pub cgroup_root: String,
}

#[derive(Debug, Args)]
pub struct Up {
    #[command(flatten)]
    pub name: Name,
    /// Where to write the kubeconfig (mode 0600); default: in the cluster's directory.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Also merge the cluster into $KUBECONFIG (or ~/.kube/config) and make it current.
    #[arg(long)]
    pub merge: bool,
    /// Return once the cluster is ready and leave it running.
    #[arg(long)]
    pub detach: bool,
    /// Import an image archive (docker save or OCI layout) before the cluster is ready; repeatable.
    #[arg(long = "image-archive", value_name = "TAR")]
    pub image_archives: Vec<PathBuf>,
    /// Port of the API on 127.0.0.1; default: a free one, kept over restarts.
    #[arg(long, env = "ISOPOD_API_PORT")]
    pub api_port: Option<u16>,
    #[command(flatten)]
    pub network: NetworkOptions,
}

/// What every part of a cluster must agree on.
#[derive(Clone, Debug, Args, serde::Serialize, serde::Deserialize)]
pub struct NetworkOptions {
    /// Addresses of pods.
    #[arg(long, env = "ISOPOD_CLUSTER_CIDR", default_value = "10.42.0.0/16")]
    pub cluster_cidr: String,
    /// Addresses of Services.
    #[arg(long, env = "ISOPOD_SERVICE_CIDR", default_value = "10.43.0.0/16")]
    pub service_cidr: String,
    /// Address of the DNS Service; must be in the service range.
    #[arg(long, env = "ISOPOD_CLUSTER_DNS", default_value_t = Ipv4Addr::new(10, 43, 0, 10))]
    pub cluster_dns: Ipv4Addr,
    /// Domain of the cluster's DNS names.
    #[arg(long, env = "ISOPOD_CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// How Services become packets.
    #[arg(long, env = "ISOPOD_PROXY_MODE", default_value = "nftables", value_parser = ["nftables"])]
    pub proxy_mode: String,
}

impl NetworkOptions {
    /// The pod range as base and prefix length.
    pub fn cluster_range(&self) -> anyhow::Result<(Ipv4Addr, u8)> {
        let range: network::Range = self.cluster_cidr.parse().context("--cluster-cidr")?;
        Ok((range.base, range.prefix))
    }

    /// The range of Services that the cluster begins with.
    pub fn service_range(&self) -> anyhow::Result<apiserver::Cidr> {
        let range: apiserver::Cidr =
            self.service_cidr.parse().map_err(|error| anyhow::anyhow!("--service-cidr: {error}"))?;
        let fits = range.is_ipv4() && (12..=30).contains(&range.prefix());
        anyhow::ensure!(fits, "--service-cidr {range} is no IPv4 network of 4 to 2^20 addresses");
        Ok(range)
    }

    /// What would show only as a cluster that never becomes ready.
    pub fn check(&self) -> anyhow::Result<()> {
        if !self.service_range()?.gives(self.cluster_dns.into()) {
            anyhow::bail!("--cluster-dns {} is not in --service-cidr {}", self.cluster_dns, self.service_cidr);
        }
        Ok(())
    }
}

/// When a node runs short, and what it does about it.
#[derive(Clone, Debug, Args, serde::Serialize, serde::Deserialize)]
pub struct NodeOptions {
    /// Evict pods, and take no more, when less than this is left: SIGNAL<VALUE, of memory.available,
    /// nodefs.available, nodefs.inodesFree, imagefs.available, imagefs.inodesFree, pid.available.
    #[arg(long, env = "ISOPOD_EVICTION_HARD", value_name = "SIGNAL<VALUE,...", default_value = kubelet::Eviction::HARD)]
    pub eviction_hard: String,
    /// Evict pods when less than this is left for a while; same form.
    #[arg(long, env = "ISOPOD_EVICTION_SOFT", value_name = "SIGNAL<VALUE,...", default_value = "")]
    pub eviction_soft: String,
    /// How long that while is, for each.
    #[arg(long, env = "ISOPOD_EVICTION_SOFT_GRACE_PERIOD", value_name = "SIGNAL=DURATION,...", default_value = "")]
    pub eviction_soft_grace_period: String,
    /// What must be left beyond the threshold before eviction ends.
    #[arg(long, env = "ISOPOD_EVICTION_MINIMUM_RECLAIM", value_name = "SIGNAL=VALUE,...", default_value = "")]
    pub eviction_minimum_reclaim: String,
    /// How long the node's pressure conditions outlive their cause.
    #[arg(long, env = "ISOPOD_EVICTION_PRESSURE_TRANSITION_PERIOD", value_name = "DURATION", default_value = "5m0s")]
    pub eviction_pressure_transition_period: String,
    /// Bounds the grace period of pods that --eviction-soft evicts; negative leaves it to them.
    #[arg(
        long,
        env = "ISOPOD_EVICTION_MAX_POD_GRACE_PERIOD",
        value_name = "SECONDS",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    pub eviction_max_pod_grace_period: i64,
    /// Sysctls that pods may set besides the safe ones: names, or groups ending in *.
    #[arg(long, env = "ISOPOD_ALLOWED_UNSAFE_SYSCTLS", value_delimiter = ',', value_name = "SYSCTL,...")]
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Ids that each pod with a user namespace of its own (hostUsers: false) gets; a multiple of 65536.
    #[arg(long, env = "ISOPOD_USER_NAMESPACES_IDS_PER_POD", default_value_t = 65_536, value_name = "NUMBER")]
    pub user_namespaces_ids_per_pod: u32,
    /// Remove unused images above this percentage of the disk; 100 never does.
    #[arg(long, env = "ISOPOD_IMAGE_GC_HIGH_THRESHOLD", default_value_t = 85, value_name = "PERCENT",
        value_parser = clap::value_parser!(u64).range(0..=100))]
    pub image_gc_high_threshold: u64,
    /// Remove no more of them below this one.
    #[arg(long, env = "ISOPOD_IMAGE_GC_LOW_THRESHOLD", default_value_t = 80, value_name = "PERCENT",
        value_parser = clap::value_parser!(u64).range(0..=100))]
    pub image_gc_low_threshold: u64,
}

impl NodeOptions {
    /// For clusters on a developer's machine: its disk may be full, its images are nobody's to remove.
    pub fn throwaway() -> NodeOptions {
        NodeOptions {
            eviction_hard: kubelet::Eviction::HARD_WITHOUT_DISK.into(),
            eviction_soft: String::new(),
            eviction_soft_grace_period: String::new(),
            eviction_minimum_reclaim: String::new(),
            eviction_pressure_transition_period: "5m0s".into(),
            eviction_max_pod_grace_period: 0,
            allowed_unsafe_sysctls: Vec::new(),
            user_namespaces_ids_per_pod: 65_536,
            image_gc_high_threshold: 100,
            image_gc_low_threshold: 80,
        }
    }

    pub fn apply(&self, config: &mut kubelet::Config) -> anyhow::Result<()> {
        let flags = kubelet::EvictionFlags {
            hard: &self.eviction_hard,
            soft: &self.eviction_soft,
            soft_grace_period: &self.eviction_soft_grace_period,
            minimum_reclaim: &self.eviction_minimum_reclaim,
            pressure_transition_period: &self.eviction_pressure_transition_period,
            max_pod_grace_period: self.eviction_max_pod_grace_period,
        };
        config.allowed_unsafe_sysctls = self.allowed_unsafe_sysctls.clone();
        config.user_namespaces_ids_per_pod = self.user_namespaces_ids_per_pod;
        config.eviction = kubelet::Eviction::parse(&flags).map_err(anyhow::Error::msg)?;
        if self.image_gc_low_threshold >= self.image_gc_high_threshold {
            anyhow::bail!(
                "--image-gc-low-threshold {} must be below --image-gc-high-threshold {}",
                self.image_gc_low_threshold,
                self.image_gc_high_threshold
            );
        }
        (config.image_gc.high, config.image_gc.low) = (self.image_gc_high_threshold, self.image_gc_low_threshold);
        Ok(())
    }
}

#[derive(Debug, Args)]
pub struct Server {
    /// Read settings from this YAML file; its keys are the flags' names.
    #[arg(long, env = "ISOPOD_CONFIG", default_value = "/etc/isopod/config.yaml", value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    pub place: Place,
    /// Address and port of the API.
    #[arg(long, env = "ISOPOD_BIND_ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    pub bind_address: IpAddr,
    #[arg(long, env = "ISOPOD_SECURE_PORT", default_value_t = 6443)]
    pub secure_port: u16,
    /// This machine's address in the cluster; default: the source address of its default route.
    #[arg(long, env = "ISOPOD_NODE_IP")]
    pub node_ip: Option<Ipv4Addr>,
    /// Default: the host name.
    #[arg(long, env = "ISOPOD_NODE_NAME")]
    pub node_name: Option<String>,
    /// Further names and addresses for the API's certificate.
    #[arg(long, env = "ISOPOD_TLS_SAN", value_delimiter = ',')]
    pub tls_san: Vec<String>,
    /// Where to write the admin's kubeconfig (mode 0600); default: DATA_DIR/kubeconfig.
    #[arg(long, env = "ISOPOD_WRITE_KUBECONFIG", value_name = "FILE")]
    pub write_kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    pub network: NetworkOptions,
    #[command(flatten)]
    pub node: NodeOptions,
}

#[derive(Debug, Args)]
pub struct Component {
    /// How to reach the API server.
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: PathBuf,
    /// Work only while holding the Lease of this component.
    #[arg(long, env = "ISOPOD_LEADER_ELECT", default_value_t = true, action = clap::ArgAction::Set)]
    pub leader_elect: bool,
    #[command(flatten)]
    pub network: NetworkOptions,
}

#[derive(Debug, Args)]
pub struct Kubelet {
    /// How to reach the API server.
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: PathBuf,
    /// Another CRI runtime's socket; default: the embedded runtime.
    #[arg(long, env = "ISOPOD_CONTAINER_RUNTIME_ENDPOINT", value_name = "SOCKET")]
    pub container_runtime_endpoint: Option<String>,
    #[command(flatten)]
    pub place: Place,
    #[arg(long, env = "ISOPOD_NODE_IP")]
    pub node_ip: Option<Ipv4Addr>,
    #[arg(long, env = "ISOPOD_NODE_NAME")]
    pub node_name: Option<String>,
    /// The kubelet's serving certificate and key; default: self-signed.
    #[arg(long, requires = "tls_private_key_file", value_name = "FILE")]
    pub tls_cert_file: Option<PathBuf>,
    #[arg(long, requires = "tls_cert_file", value_name = "FILE")]
    pub tls_private_key_file: Option<PathBuf>,
    /// Certificates of clients that the kubelet's endpoint accepts.
    #[arg(long, value_name = "FILE")]
    pub client_ca_file: Option<PathBuf>,
    #[command(flatten)]
    pub network: NetworkOptions,
    #[command(flatten)]
    pub node: NodeOptions,
}

#[derive(Debug, Args)]
pub struct Proxy {
    /// How to reach the API server.
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: PathBuf,
    #[arg(long, env = "ISOPOD_NODE_NAME")]
    pub node_name: Option<String>,
    #[command(flatten)]
    pub network: NetworkOptions,
}

/// Whose images.
#[derive(Clone, Debug, Args)]
pub struct ImageStore {
    #[command(flatten)]
    pub name: Name,
    /// The images of `isopod server` or `isopod kubelet` with this data directory, not a throwaway cluster's.
    #[arg(long, conflicts_with = "name", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Image {
    /// Import an archive made by `docker save` or in OCI layout, optionally gzipped.
    Import {
        archives: Vec<PathBuf>,
        #[command(flatten)]
        store: ImageStore,
    },
    /// List images.
    List(ImageStore),
    /// Remove images by name or id.
    Rm {
        images: Vec<String>,
        #[command(flatten)]
        store: ImageStore,
    },
}

/// Parses the command line, after the config file has filled in what neither flags nor environment
/// say. Errors print usage and exit with 2.
pub fn parse() -> Result<Arguments, clap::Error> {
    let arguments: Vec<_> = std::env::args_os().collect();
    let first = Arguments::try_parse_from(&arguments)?;
    let (Command::Server(server) | Command::Apiserver(server)) = &first.command else { return Ok(first) };
    let command = Arguments::command();
    let server_command = command.find_subcommand("server").expect("`server` is declared above");
    let explicit = std::env::var_os("ISOPOD_CONFIG").is_some()
        || arguments.iter().any(|a| a.to_string_lossy().starts_with("--config"));
    crate::config::apply(&server.config, explicit, server_command)
        .map_err(|error| Arguments::command().error(clap::error::ErrorKind::ValueValidation, format!("{error:#}")))?;
    Arguments::try_parse_from(&arguments)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{Arguments, Command};

    #[test]
    fn the_dns_address_is_one_of_the_service_range() {
        for (flags, expected) in [
            (&[][..], true),
            (&["--cluster-dns", "1.2.3.4"], false),
            (&["--service-cidr", "10.96.0.0/12"], false),
            (&["--service-cidr", "10.96.0.0/12", "--cluster-dns", "10.96.0.10"], true),
        ] {
            let arguments = Arguments::try_parse_from(["isopod", "up"].iter().chain(flags)).unwrap();
            let Command::Up(up) = arguments.command else { panic!("`up` was asked for") };
            assert_eq!(up.network.check().is_ok(), expected, "{flags:?}");
        }
    }
}
