//! A pod as scheduling sees it: everything that plugins ask of it, worked out once when it arrives.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, PodSpec, Taint, Toleration};
use resources::volumes;

use crate::affinity::{Labels, NodeDemands, PodDemands, Spread, tolerates};
use crate::requests::{self, Requests};

/// Pods that no selector and no affinity term can tell apart. Nodes count pods by it, so that plugins that ask "how many
/// pods like these are there" look at templates instead of pods.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
pub struct Class {
    pub namespace: String,
    pub labels: Labels,
    pub terminating: bool,
    pub demands: PodDemands,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    pub protocol: String,
    pub port: i32,
    /// Empty for every address.
    pub ip: String,
}

impl HostPort {
    pub fn conflicts(&self, other: &Self) -> bool {
        let same_address = self.ip == other.ip || self.ip.is_empty() || other.ip.is_empty();
        same_address && self.port == other.port && self.protocol == other.protocol
    }
}

#[derive(Debug)]
pub struct PodInfo {
    pub object: Arc<Pod>,
    pub uid: String,
    pub priority: i32,
    pub requests: Requests,
    /// Cpu and memory, with assumed amounts for containers that request none.
    pub assumed: [i64; 2],
    pub host_ports: BTreeSet<HostPort>,
    pub class: Arc<Class>,
    pub node_demands: NodeDemands,
    pub spread: Vec<Spread>,
    pub claims: Vec<volumes::Use>,
}

impl PodInfo {
    pub fn new(object: Arc<Pod>) -> Self {
        let spec = object.spec.as_ref().unwrap_or(&EMPTY);
        let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
        let labels = object.metadata.labels.clone().unwrap_or_default();
        let (requests, assumed) = requests::of_pod(&object);
        Self {
            uid: object.metadata.uid.clone().unwrap_or_default(),
            priority: spec.priority.unwrap_or_default(),
            requests,
            assumed,
            host_ports: host_ports(spec),
            node_demands: NodeDemands::new(spec),
            claims: volumes::claims_of(&object),
            spread: spec
                .topology_spread_constraints
                .iter()
                .flatten()
                .map(|found| Spread::new(found, &labels))
                .collect(),
            class: Arc::new(Class {
                demands: PodDemands::new(spec, namespace, &labels),
                namespace: namespace.to_owned(),
                labels,
                terminating: object.metadata.deletion_timestamp.is_some(),
            }),
            object,
        }
    }

    pub fn spec(&self) -> &PodSpec {
        self.object.spec.as_ref().unwrap_or(&EMPTY)
    }

    pub fn name(&self) -> &str {
        self.object.metadata.name.as_deref().unwrap_or_default()
    }

    pub fn namespace(&self) -> &str {
        &self.class.namespace
    }

    pub fn uses_claim(&self, claim: &PersistentVolumeClaim) -> bool {
        let meta = &claim.metadata;
        meta.namespace.as_deref() == Some(self.namespace())
            && self.claims.iter().any(|used| Some(used.claim.as_str()) == meta.name.as_deref())
    }

    /// An empty name is no name.
    pub fn node_name(&self) -> Option<&str> {
        self.spec().node_name.as_deref().filter(|name| !name.is_empty())
    }

    pub fn nominated_node(&self) -> Option<&str> {
        let status = self.object.status.as_ref()?;
        status.nominated_node_name.as_deref().filter(|name| !name.is_empty())
    }

    pub fn tolerations(&self) -> &[Toleration] {
        self.spec().tolerations.as_deref().unwrap_or_default()
    }

    pub fn tolerates(&self, taint: &Taint) -> bool {
        self.tolerations().iter().any(|toleration| tolerates(toleration, taint))
    }

    /// Whether the taints of a node keep the pod out.
    pub fn is_kept_out_by(&self, taints: &[Taint]) -> bool {
        let keeps_out = |taint: &&Taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute");
        taints.iter().filter(keeps_out).any(|taint| !self.tolerates(taint))
    }
}

/// The API admits no pod without a spec.
static EMPTY: LazyLock<PodSpec> = LazyLock::new(PodSpec::default);

fn host_ports(spec: &PodSpec) -> BTreeSet<HostPort> {
    let sidecars =
        spec.init_containers.iter().flatten().filter(|found| found.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let ip = port.host_ip.clone().filter(|ip| ip != "0.0.0.0").unwrap_or_default();
            let protocol = port.protocol.clone().filter(|protocol| !protocol.is_empty());
            let number = port.host_port.filter(|number| *number > 0)?;
            Some(HostPort { protocol: protocol.unwrap_or_else(|| "TCP".into()), port: number, ip })
        })
        .collect()
}
