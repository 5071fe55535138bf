//! Pod networking: bridge, address management, host ports, overlays.
//!
//! Knows network namespaces by path and pods by name only for messages; nothing of the kubelet,
//! the runtime or the Kubernetes API. The runtime calls it through [`PodNetwork`], so that a
//! third-party CNI configuration can take the place of the built-in bridge.

mod addresses;
pub mod bridge;
mod netlink;
mod rules;

use std::net::IpAddr;
use std::path::PathBuf;

pub use addresses::Range;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

/// What connects a pod's network namespace to the rest of the world.
#[async_trait]
pub trait PodNetwork: Send + Sync {
    /// Gives the namespace an interface, addresses, routes and host ports.
    async fn attach(&self, pod: &PodAttachment) -> anyhow::Result<PodAddresses>;
    /// Takes back all `attach` gave. Idempotent; the namespace may be gone already.
    async fn detach(&self, pod: &PodAttachment) -> anyhow::Result<()>;
    /// `Err` says why pods cannot be attached yet, in the words of the node's Ready condition.
    async fn ready(&self) -> Result<(), String>;
    /// The node's range, comma separated when dual-stack.
    fn set_pod_cidr(&self, cidr: &str);
}

/// One pod as the network sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodAttachment {
    pub sandbox_id: String,
    /// A path that can be opened for `setns`, such as `/proc/123/ns/net`.
    pub netns: PathBuf,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub port_mappings: Vec<PortMapping>,
    pub bandwidth: Bandwidth,
}

/// A host port of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// `None` listens on every address of the node.
    pub host_ip: Option<IpAddr>,
    pub host_port: u16,
    pub container_port: u16,
    pub protocol: Protocol,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// Limits in bits per second, from the pod's `kubernetes.io/{ingress,egress}-bandwidth` annotations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bandwidth {
    pub ingress: Option<u64>,
    pub egress: Option<u64>,
}

/// What the pod was given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodAddresses {
    /// The first is the pod's IP; the second, if any, of the other family.
    pub ips: Vec<IpAddr>,
    pub gateway: Option<IpAddr>,
}
