//! The Node object: registration, status and lease.
//!
//! [`status`] is pure but for reading /proc; the loops around it write only what changed, and a
//! heartbeat every five minutes. The lease is the cheap sign of life between.

use crate::config::Config;
use crate::cri_client::Cri;
use crate::eviction::Pressure;
use crate::images;
use crate::pods::Pods;
use crate::resources::{self, Quantities};
use crate::shared::Shared;
use client::{ErrorExt as _, EventType};
use cri::v1;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
    NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeSpec, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use machinery::quantity::Quantity as Amount;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

pub const KUBELET_VERSION: &str = "v1.36.0";
/// Images listed in the status, the largest first, as upstream.
const IMAGES: usize = 50;

/// What the machine has: cpu, memory, disk and pods.
pub fn capacity(config: &Config) -> Quantities {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let (disk, _) = disk(config);
    let mut capacity = Quantities::from([
        ("cpu".to_owned(), Quantity(processors.to_string())),
        ("memory".to_owned(), Quantity(format!("{}Ki", memory_kib("MemTotal")))),
        ("ephemeral-storage".to_owned(), Quantity(format!("{}Ki", disk >> 10))),
        ("pods".to_owned(), Quantity(config.max_pods.to_string())),
    ]);
    for (name, bytes) in hugepages() {
        capacity.insert(name, Quantity(bytes.to_string()));
    }
    capacity
}

fn disk(config: &Config) -> (u64, u64) {
    let existing = config.root_dir.ancestors().find(|path| path.exists());
    existing.and_then(|path| images::disk(&path.display().to_string())).unwrap_or((0, 0))
}

pub fn memory_kib(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn hugepages() -> Vec<(String, u64)> {
    let entries = std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let sized = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let count: u64 = std::fs::read_to_string(entry.path().join("nr_hugepages")).ok()?.trim().parse().ok()?;
        let shown = if kib >= 1 << 20 { format!("{}Gi", kib >> 20) } else { format!("{}Mi", kib >> 10) };
        Some((format!("hugepages-{shown}"), count * kib * 1024))
    });
    sized.collect()
}

/// Capacity without what is reserved.
pub fn allocatable(capacity: &Quantities, reserved: &BTreeMap<String, String>) -> Quantities {
    let mut allocatable = capacity.clone();
    for (name, held) in reserved {
        let amounts = (allocatable.get(name).and_then(|have| Amount::parse(&have.0).ok()), Amount::parse(held).ok());
        if let (Some(have), Some(held)) = amounts {
            let left = if held > have { Quantity("0".to_owned()) } else { Quantity((have - held).to_string()) };
            allocatable.insert(name.clone(), left);
        }
    }
    allocatable
}

/// Our figures, and the extended resources that others put into the node's capacity: what they put there is allocatable.
fn with_foreign(own: &Quantities, old: &NodeStatus) -> Quantities {
    let foreign = old.capacity.iter().flatten().filter(|(name, _)| resources::is_extended(name));
    let mut all: Quantities = foreign.map(|(name, amount)| (name.clone(), amount.clone())).collect();
    all.extend(own.clone());
    all
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn system_info(runtime: &v1::VersionResponse) -> NodeSystemInfo {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux").trim_matches('"');
    let machine_id = read("/etc/machine-id");
    let system_uuid = Some(read("/sys/class/dmi/id/product_uuid")).filter(|id| !id.is_empty());
    NodeSystemInfo {
        architecture: architecture().to_owned(),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: format!("{}://{}", runtime.runtime_name, runtime.runtime_version),
        kernel_version: read("/proc/sys/kernel/osrelease"),
        kubelet_version: KUBELET_VERSION.to_owned(),
        machine_id: machine_id.clone(),
        operating_system: "linux".to_owned(),
        os_image: name.to_owned(),
        system_uuid: system_uuid.unwrap_or(machine_id),
        ..NodeSystemInfo::default()
    }
}

/// The labels a node always has, under those that were configured.
fn labels(config: &Config) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<String, String> = [
        ("kubernetes.io/hostname", config.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", architecture()),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    labels.extend(config.labels.clone());
    labels
}

/// Everything a node's conditions follow from.
pub struct Health {
    /// Complaints that keep the node from being ready.
    pub complaints: Vec<String>,
    pub pressures: Vec<Pressure>,
}

/// The conditions, with transition times kept where nothing changed.
pub fn conditions(health: &Health, old: &[NodeCondition], now: Timestamp) -> Vec<NodeCondition> {
    let pressure = |pressure: Pressure, what: &str| {
        let (kind, present) = (pressure.condition(), health.pressures.contains(&pressure));
        let (reason, message) = match present {
            true => (format!("KubeletHas{what}"), format!("kubelet has {}", words(what))),
            false => {
                let good = what.replace("Insufficient", "Sufficient");
                let reason = if good == what { format!("KubeletHasNo{what}") } else { format!("KubeletHas{good}") };
                let message = if good == what {
                    format!("kubelet has no {}", words(what))
                } else {
                    format!("kubelet has {}", words(&good))
                };
                (reason, message)
            }
        };
        (kind.to_owned(), present, reason, message)
    };
    let ready = match health.complaints.is_empty() {
        true => ("Ready".to_owned(), true, "KubeletReady".to_owned(), "kubelet is posting ready status".to_owned()),
        false => ("Ready".to_owned(), false, "KubeletNotReady".to_owned(), health.complaints.join(", ")),
    };
    let all = [
        pressure(Pressure::Memory, "InsufficientMemory"),
        pressure(Pressure::Disk, "DiskPressure"),
        pressure(Pressure::Pid, "InsufficientPID"),
        ready,
    ];
    let condition = |(kind, holds, reason, message): (String, bool, String, String)| {
        let status = if holds { "True" } else { "False" }.to_owned();
        let same = old.iter().find(|old| old.type_ == kind && old.status == status);
        let since = same.and_then(|old| old.last_transition_time.clone()).unwrap_or(Time(now));
        NodeCondition {
            type_: kind,
            status,
            reason: Some(reason),
            message: Some(message),
            last_heartbeat_time: Some(Time(now)),
            last_transition_time: Some(since),
        }
    };
    all.map(condition).into()
}

/// `InsufficientMemory` as words.
fn words(name: &str) -> String {
    match name {
        "InsufficientMemory" => "insufficient memory available".to_owned(),
        "SufficientMemory" => "sufficient memory available".to_owned(),
        "InsufficientPID" => "insufficient PID available".to_owned(),
        "SufficientPID" => "sufficient PID available".to_owned(),
        _ => "disk pressure".to_owned(),
    }
}

/// Asks the runtime whether it and the network are ready.
async fn health(shared: &Shared) -> Health {
    let mut complaints = Vec::new();
    match shared.cri.status(v1::StatusRequest { verbose: false }).await {
        Err(error) => complaints.push(format!("container runtime is down: {error}")),
        Ok(response) => {
            let conditions = response.status.clone().map(|status| status.conditions).unwrap_or_default();
            *shared.runtime_status.write() = Some(response);
            let told = |kind: &str| conditions.iter().find(|condition| condition.r#type == kind);
            for (kind, text) in [
                ("RuntimeReady", "container runtime not ready: RuntimeReady=false"),
                ("NetworkReady", "container runtime network not ready: NetworkReady=false"),
            ] {
                match told(kind) {
                    Some(condition) if condition.status => {}
                    Some(condition) => {
                        complaints.push(format!("{text} reason:{} message:{}", condition.reason, condition.message));
                    }
                    None => complaints.push(format!("{text} reason:Unknown message:the runtime does not tell")),
                }
            }
        }
    }
    Health { complaints, pressures: shared.pressures() }
}

fn runtime_handler(handler: &v1::RuntimeHandler) -> NodeRuntimeHandler {
    let features = handler.features.map(|features| NodeRuntimeHandlerFeatures {
        recursive_read_only_mounts: Some(features.recursive_read_only_mounts),
        user_namespaces: Some(features.user_namespaces),
    });
    NodeRuntimeHandler { name: Some(handler.name.clone()), features }
}

/// The whole status of the node.
async fn status(pods: &Pods, old: &NodeStatus, runtime: &v1::VersionResponse, port: u16) -> NodeStatus {
    let shared = pods.shared();
    let config = &shared.config;
    let health = health(shared).await;
    let mut addresses: Vec<NodeAddress> =
        config.host_ips().into_iter().map(|address| NodeAddress { type_: "InternalIP".to_owned(), address }).collect();
    addresses.push(NodeAddress { type_: "Hostname".to_owned(), address: config.node_name.clone() });
    let listed = shared.cri.list_images(v1::ListImagesRequest::default()).await.map(|list| list.images);
    let mut images: Vec<ContainerImage> = listed
        .unwrap_or_default()
        .into_iter()
        .map(|image| ContainerImage {
            names: Some(image.repo_digests.into_iter().chain(image.repo_tags).take(5).collect()),
            size_bytes: Some(image.size as i64),
        })
        .collect();
    images.sort_by_key(|image| std::cmp::Reverse(image.size_bytes));
    images.truncate(IMAGES);
    let told = shared.runtime_status.read().clone().unwrap_or_default();
    let mut handlers: Vec<NodeRuntimeHandler> = told.runtime_handlers.iter().map(runtime_handler).collect();
    handlers.sort_by(|a, b| a.name.cmp(&b.name));
    let features = told
        .features
        .map(|features| NodeFeatures { supplemental_groups_policy: Some(features.supplemental_groups_policy) });
    NodeStatus {
        addresses: Some(addresses),
        allocatable: Some(with_foreign(&pods.allocatable(), old)),
        capacity: Some(with_foreign(&shared.capacity, old)),
        conditions: Some(conditions(&health, old.conditions.as_deref().unwrap_or_default(), Timestamp::now())),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(port) }),
        }),
        images: Some(images).filter(|images| !images.is_empty()),
        node_info: Some(system_info(runtime)),
        runtime_handlers: Some(handlers).filter(|handlers| !handlers.is_empty()),
        features,
        ..NodeStatus::default()
    }
}

/// Tells of conditions that are not as they were told last, under the names users know from `describe`.
fn tell(pods: &Pods, status: &NodeStatus, told: &mut BTreeMap<String, String>) {
    for condition in status.conditions.iter().flatten() {
        if told.insert(condition.type_.clone(), condition.status.clone()).as_ref() != Some(&condition.status) {
            let reason = match condition.type_.as_str() {
                "Ready" if condition.status == "True" => "NodeReady".to_owned(),
                "Ready" => "NodeNotReady".to_owned(),
                _ => condition.reason.clone().unwrap_or_default().replace("Kubelet", "Node"),
            };
            let message = format!("Node {} status is now: {reason}", pods.shared().config.node_name);
            pods.shared().node_event(EventType::Normal, &reason, message);
        }
    }
}

/// Whether two statuses differ in anything but heartbeats.
fn differs(old: &NodeStatus, new: &NodeStatus) -> bool {
    let plain = |status: &NodeStatus| {
        let mut status = NodeStatus {
            addresses: status.addresses.clone(),
            allocatable: status.allocatable.clone(),
            capacity: status.capacity.clone(),
            conditions: status.conditions.clone(),
            daemon_endpoints: status.daemon_endpoints.clone(),
            images: status.images.clone(),
            node_info: status.node_info.clone(),
            runtime_handlers: status.runtime_handlers.clone(),
            features: status.features.clone(),
            ..NodeStatus::default()
        };
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        // Others' conditions (such as NetworkUnavailable) are not ours to compare.
        let ours = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"];
        status.conditions.iter_mut().for_each(|list| list.retain(|c| ours.contains(&c.type_.as_str())));
        status.conditions.iter_mut().for_each(|list| list.sort_by(|a, b| a.type_.cmp(&b.type_)));
        status
    };
    plain(old) != plain(new)
}

/// The patch to the new status. It must name what goes: what others took out of the capacity is allocatable no more.
fn patch(old: &NodeStatus, new: &NodeStatus) -> Value {
    let mut patch = json!({"status": new});
    let names = old.allocatable.iter().flatten().map(|(name, _)| name).filter(|name| resources::is_extended(name));
    for gone in names.filter(|name| new.allocatable.as_ref().is_none_or(|left| !left.contains_key(*name))) {
        patch["status"]["allocatable"][gone] = Value::Null;
    }
    patch
}

/// Registers the node and keeps its status; `node` follows what the API has of it.
pub async fn run(pods: Arc<Pods>, runtime: v1::VersionResponse, port: u16, node: watch::Sender<Option<Arc<Node>>>) {
    let shared = pods.shared().clone();
    let config = &shared.config;
    let api: Api<Node> = Api::all(shared.client.clone());
    let mut retry = Duration::from_millis(100);
    let mut current = loop {
        match register(&api, &pods, &runtime, port).await {
            Ok(node) => break node,
            Err(error) => tracing::warn!(node = config.node_name, %error, "cannot register the node, will retry"),
        }
        tokio::time::sleep(retry).await;
        retry = (retry * 2).min(Duration::from_secs(7));
    };
    tracing::info!(node = config.node_name, "registered");
    let mut reported = tokio::time::Instant::now();
    let (mut pod_cidr, mut told) = (None, BTreeMap::new());
    // Right after the start things change quickly: the network waits for its address range.
    let mut pause = Duration::from_millis(200);
    loop {
        apply_pod_cidr(&shared.cri, &current, &mut pod_cidr).await;
        node.send_replace(Some(Arc::new(current.clone())));
        let old = current.status.clone().unwrap_or_default();
        let new = status(&pods, &old, &runtime, port).await;
        tell(&pods, &new, &mut told);
        let ready =
            new.conditions.iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True");
        if differs(&old, &new) || reported.elapsed() >= config.node_status_report {
            let patch = patch(&old, &new);
            match api.patch_status(&config.node_name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Ok(updated) => {
                    current = updated;
                    reported = tokio::time::Instant::now();
                }
                Err(error) if error.is_not_found() => match register(&api, &pods, &runtime, port).await {
                    Ok(node) => current = node,
                    Err(error) => tracing::warn!(%error, "cannot register the node again"),
                },
                Err(error) => tracing::warn!(%error, "node status not written, will retry"),
            }
        }
        pause = if ready { config.node_status_interval } else { (pause * 2).min(config.node_status_interval) };
        tokio::time::sleep(pause).await;
        if let Ok(fresh) = api.get(&config.node_name).await {
            current = fresh;
        }
    }
}

/// Tells the runtime its address range once the node has one.
async fn apply_pod_cidr(cri: &Cri, node: &Node, applied: &mut Option<String>) {
    let Some(spec) = &node.spec else { return };
    let all = spec.pod_cidrs.as_ref().map(|cidrs| cidrs.join(","));
    let Some(pod_cidr) = all.filter(|all| !all.is_empty()).or(spec.pod_cidr.clone()) else { return };
    if applied.as_ref() == Some(&pod_cidr) {
        return;
    }
    let network_config = Some(v1::NetworkConfig { pod_cidr: pod_cidr.clone() });
    let runtime_config = Some(v1::RuntimeConfig { network_config });
    match cri.update_runtime_config(v1::UpdateRuntimeConfigRequest { runtime_config }).await {
        Ok(_) => *applied = Some(pod_cidr),
        Err(error) => tracing::warn!(pod_cidr, %error, "the runtime did not take the pod network range"),
    }
}

/// Creates the Node, or brings the labels of an existing one up to date.
async fn register(api: &Api<Node>, pods: &Pods, runtime: &v1::VersionResponse, port: u16) -> Result<Node, kube::Error> {
    let config = &pods.shared().config;
    let node = Node {
        metadata: ObjectMeta {
            name: Some(config.node_name.clone()),
            labels: Some(labels(config)),
            annotations: Some(annotations(config)),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            taints: Some(config.taints.clone()).filter(|taints| !taints.is_empty()),
            provider_id: config.provider_id.clone(),
            ..NodeSpec::default()
        }),
        status: Some(status(pods, &NodeStatus::default(), runtime, port).await),
    };
    match api.create(&PostParams::default(), &node).await {
        Err(error) if error.is_already_exists() => {
            let patch = json!({"metadata": {"labels": labels(config), "annotations": node.metadata.annotations}});
            api.patch(&config.node_name, &PatchParams::default(), &Patch::Strategic(patch)).await
        }
        result => result,
    }
}

/// On a Node: where it keeps the directories of local volumes; it has none without.
const LOCAL_VOLUMES: &str = "isopod.io/local-volumes";

fn annotations(config: &Config) -> BTreeMap<String, String> {
    let managed = ("volumes.kubernetes.io/controller-managed-attach-detach".to_owned(), "true".to_owned());
    let local = config.local_volumes_dir.as_ref().map(|path| (LOCAL_VOLUMES.to_owned(), path.display().to_string()));
    [managed].into_iter().chain(local).collect()
}

const LEASES: &str = "kube-node-lease";

/// Renews the node's lease; the node's absence from it is what the cluster notices first.
pub async fn keep_lease(pods: Arc<Pods>, mut node: watch::Receiver<Option<Arc<Node>>>) {
    let shared = pods.shared().clone();
    let config = &shared.config;
    let api: Api<Lease> = Api::namespaced(shared.client.clone(), LEASES);
    let Ok(owner) = node.wait_for(Option::is_some).await.map(|node| node.clone()) else { return };
    let mut retry = Duration::from_millis(200);
    loop {
        match renew(&api, config, owner.as_deref()).await {
            Ok(()) => {
                retry = Duration::from_millis(200);
                tokio::time::sleep(config.lease_interval).await;
            }
            Err(error) => {
                tracing::warn!(%error, "node lease not renewed, will retry");
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(Duration::from_secs(7));
            }
        }
    }
}

async fn renew(api: &Api<Lease>, config: &Config, node: Option<&Node>) -> Result<(), kube::Error> {
    let spec = LeaseSpec {
        holder_identity: Some(config.node_name.clone()),
        lease_duration_seconds: Some(config.lease_seconds),
        renew_time: Some(MicroTime(Timestamp::now())),
        ..LeaseSpec::default()
    };
    let patch = json!({"spec": spec});
    match api.patch(&config.node_name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Err(error) if error.is_not_found() => {
            let owner = node.and_then(|node| {
                Some(OwnerReference {
                    api_version: "v1".to_owned(),
                    kind: "Node".to_owned(),
                    name: node.metadata.name.clone()?,
                    uid: node.metadata.uid.clone()?,
                    ..OwnerReference::default()
                })
            });
            let metadata = ObjectMeta {
                name: Some(config.node_name.clone()),
                owner_references: owner.map(|owner| vec![owner]),
                ..ObjectMeta::default()
            };
            api.create(&PostParams::default(), &Lease { metadata, spec: Some(spec) }).await.map(drop)
        }
        result => result.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_keep_their_transition_times() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let healthy = Health { complaints: vec![], pressures: vec![] };
        let first = conditions(&healthy, &[], at(1));
        let summary: Vec<(&str, &str, &str)> =
            first.iter().map(|c| (c.type_.as_str(), c.status.as_str(), c.reason.as_deref().unwrap())).collect();
        assert_eq!(
            summary,
            [
                ("MemoryPressure", "False", "KubeletHasSufficientMemory"),
                ("DiskPressure", "False", "KubeletHasNoDiskPressure"),
                ("PIDPressure", "False", "KubeletHasSufficientPID"),
                ("Ready", "True", "KubeletReady"),
            ]
        );
        let sick = Health { complaints: vec!["network".into()], pressures: vec![Pressure::Disk] };
        let second = conditions(&sick, &first, at(9));
        let since: Vec<i64> = second.iter().map(|c| c.last_transition_time.as_ref().unwrap().0.as_second()).collect();
        assert_eq!(since, [1, 9, 1, 9]);
        let status = |conditions| NodeStatus { conditions: Some(conditions), ..Default::default() };
        let healthy = Health { complaints: vec![], pressures: vec![] };
        assert!(!differs(&status(first.clone()), &status(conditions(&healthy, &first, at(99)))));
        assert!(differs(&status(first), &status(second)));
    }

    #[test]
    fn reserved_amounts_are_held_back() {
        let capacity: Quantities =
            [("cpu", "4"), ("memory", "1048576Ki")].map(|(key, value)| (key.to_owned(), Quantity(value.into()))).into();
        let reserved =
            [("cpu", "500m"), ("memory", "2Gi")].map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let left = allocatable(&capacity, &reserved);
        assert_eq!((left["cpu"].0.as_str(), left["memory"].0.as_str()), ("3500m", "0"));
    }

    #[test]
    fn resources_of_others_stay() {
        let quantities = |list: &[(&str, &str)]| -> Quantities {
            list.iter().map(|(name, amount)| ((*name).to_owned(), Quantity((*amount).to_owned()))).collect()
        };
        let patched = quantities(&[("cpu", "9"), ("example.com/fake", "5"), ("gone-2Mi", "1")]);
        let old = NodeStatus { capacity: Some(patched), ..NodeStatus::default() };
        let told = with_foreign(&quantities(&[("cpu", "4")]), &old);
        assert_eq!(told, quantities(&[("cpu", "4"), ("example.com/fake", "5")]));
        let before = NodeStatus { allocatable: Some(told), ..NodeStatus::default() };
        let after = NodeStatus { allocatable: Some(quantities(&[("cpu", "4")])), ..NodeStatus::default() };
        assert_eq!(
            patch(&before, &after)["status"]["allocatable"],
            json!({"cpu": "4", "example.com/fake": null}),
            "what goes is named"
        );
    }
}
