//! What the tasks of all pods share: clients, caches and the node's figures.
//!
//! Nothing here belongs to one pod, and no lock is held across an await.

use crate::config::Config;
use crate::cri_client::Cri;
use crate::eviction::Pressure;
use crate::fields::Facts;
use crate::images::Images;
use crate::objects::Objects;
use crate::pod::{self, Member};
use crate::resources::{self, Quantities};
use crate::userns::UserNamespaces;
use crate::volume::Tokens;
use client::{Client, EventRecorder, EventType, Informer};
use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service};
use parking_lot::RwLock;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

pub struct Shared {
    pub config: Config,
    pub client: Client,
    pub cri: Cri,
    pub images: Images,
    pub objects: Objects,
    pub tokens: Tokens,
    pub recorder: EventRecorder,
    pub services: Informer<Service>,
    /// As in `containerd://ID`.
    pub runtime_name: String,
    pub capacity: Quantities,
    pub allocatable: RwLock<Arc<Quantities>>,
    /// What the node is short of.
    pub pressures: RwLock<Vec<Pressure>>,
    /// What the runtime last said of itself.
    pub runtime_status: RwLock<Option<cri::v1::StatusResponse>>,
    pub users: UserNamespaces,
    /// Ends the tasks of all pods; the pods themselves go on.
    pub shutdown: CancellationToken,
}

impl Shared {
    pub fn event(&self, pod: &Pod, kind: EventType, reason: &str, message: impl Into<String>) {
        self.recorder.event_about(reference(pod, None), kind, reason, message);
    }

    pub fn container_event(
        &self,
        pod: &Pod,
        member: &Member<'_>,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.recorder.event_about(reference(pod, Some(member.field_path())), kind, reason, message);
    }

    pub fn node_event(&self, kind: EventType, reason: &str, message: impl Into<String>) {
        let name = &self.config.node_name;
        // Upstream's kubelet does not know its node's uid either.
        let node = ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(name.clone()),
            uid: Some(name.clone()),
            ..ObjectReference::default()
        };
        self.recorder.event_about(node, kind, reason, message);
    }

    pub fn pressures(&self) -> Vec<Pressure> {
        self.pressures.read().clone()
    }

    pub fn set_pressures(&self, pressures: Vec<Pressure>) {
        *self.pressures.write() = pressures;
    }

    pub fn node_memory(&self) -> i64 {
        resources::amount(Some(&self.capacity), "memory").unwrap_or(1)
    }

    pub fn facts(&self, pod: &Pod, sandbox_ips: &[String]) -> Facts {
        let host_ips = self.config.host_ips();
        Facts {
            node_name: self.config.node_name.clone(),
            pod_ips: if pod::host_network(pod) { host_ips.clone() } else { sandbox_ips.to_vec() },
            host_ips,
            allocatable: (**self.allocatable.read()).clone(),
        }
    }

    /// The text of the host's resolver configuration; empty if it has none.
    pub fn host_resolv(&self) -> String {
        std::fs::read_to_string(&self.config.resolv_conf).unwrap_or_default()
    }
}

fn reference(pod: &Pod, field_path: Option<String>) -> ObjectReference {
    // Events of a static pod belong to its mirror, whose uid the API knows it by.
    let uid = if pod::is_static(pod) { pod::annotation(pod, pod::HASH_ANNOTATION).map(str::to_owned) } else { None };
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: uid.or_else(|| pod.metadata.uid.clone()),
        resource_version: pod.metadata.resource_version.clone(),
        field_path,
    }
}
