//! Which pod goes first, which pods use more than they may, and what is said about it.
//!
//! Pure; usage comes in. Order and messages are upstream's.

use super::signals::Levels;
use super::threshold::{Signal, Threshold};
use super::usage::{Disk, PodUsage};
use crate::pod::{self, Kind};
use crate::resources;
use k8s_openapi::api::core::v1::Pod;
use machinery::quantity::Quantity;
use std::cmp::Reverse;
use std::sync::Arc;

#[derive(Clone, Debug)]
pub struct Candidate {
    pub pod: Arc<Pod>,
    /// Unknown if the runtime did not tell.
    pub usage: Option<PodUsage>,
}

/// What a signal is about, as events and messages call it.
pub fn resource(signal: Signal) -> &'static str {
    match signal {
        Signal::MemoryAvailable => "memory",
        Signal::NodefsAvailable | Signal::ImagefsAvailable => "ephemeral-storage",
        Signal::NodefsInodesFree | Signal::ImagefsInodesFree => "inodes",
        Signal::PidAvailable => "pids",
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Unknown,
    Over,
    Within,
}

/// The pods in the order in which they are to go: those that use more than they asked for first, then by
/// priority, then by how much more they use. Critical ones are spared.
pub fn order(signal: Signal, candidates: &[Candidate]) -> Vec<&Candidate> {
    let mut ranked: Vec<&Candidate> = candidates.iter().filter(|c| !pod::is_critical(&c.pod)).collect();
    ranked.sort_by_cached_key(|candidate| {
        let priority = pod::spec(&candidate.pod).priority.unwrap_or(0);
        let of_number = signal == Signal::PidAvailable;
        let Some(usage) = &candidate.usage else {
            let place = if of_number { Place::Over } else { Place::Unknown };
            return (place, priority, Reverse(i64::MAX));
        };
        let used = used(signal, usage);
        let requested = match signal {
            Signal::MemoryAvailable | Signal::NodefsAvailable | Signal::ImagefsAvailable => {
                resources::pod_request(&candidate.pod, resource(signal))
            }
            _ => 0,
        };
        // Processes are not asked for, so nobody exceeds there.
        let place = if of_number || used > requested { Place::Over } else { Place::Within };
        (place, priority, Reverse(used - requested))
    });
    ranked
}

fn used(signal: Signal, usage: &PodUsage) -> i64 {
    let disk = local_disk(usage, |_| true);
    let used = match signal {
        Signal::MemoryAvailable => usage.memory,
        Signal::NodefsAvailable | Signal::ImagefsAvailable => disk.bytes,
        Signal::NodefsInodesFree | Signal::ImagefsInodesFree => disk.inodes,
        Signal::PidAvailable => usage.processes,
    };
    used as i64
}

/// Writable layers, logs, and the volumes that `counts`.
fn local_disk(usage: &PodUsage, counts: impl Fn(&str) -> bool) -> Disk {
    let containers = usage.containers.values().map(|container| container.layer + container.logs);
    let volumes = usage.volumes.iter().filter(|(name, _)| counts(name)).map(|(_, disk)| *disk);
    containers.chain(volumes).fold(Disk::default(), |sum, disk| sum + disk)
}

/// Why a pod is evicted for the node's sake.
pub fn message(threshold: &Threshold, levels: &Levels, candidate: &Candidate) -> String {
    let resource = resource(threshold.signal);
    let mut message = format!("The node was low on resource: {resource}. ");
    if let Some(level) = levels.get(&threshold.signal) {
        let (quantity, available) = (threshold.value.of(level.capacity), level.available);
        let (quantity, available) = (bytes(quantity), bytes(available));
        message += &format!("Threshold quantity: {quantity}, available: {available}. ");
    }
    let Some(usage) = &candidate.usage else { return message };
    for member in pod::members(&candidate.pod).iter().filter(|member| member.kind != Kind::Ephemeral) {
        let Some(container) = usage.containers.get(member.name()) else { continue };
        let used = match resource {
            "memory" => container.memory,
            "ephemeral-storage" => (container.layer + container.logs).bytes,
            _ => continue,
        };
        let requests = member.container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        let requested = requests.and_then(|requests| Quantity::parse(&requests.get(resource)?.0).ok());
        let requested = requested.unwrap_or(Quantity::new(0));
        if used as i64 > requested.value() {
            message += &format!(
                "Container {} was using {}, request is {requested}, has larger consumption of {resource}. ",
                member.name(),
                bytes(used)
            );
        }
    }
    message
}

fn bytes(amount: u64) -> Quantity {
    Quantity::bytes(amount as i64)
}

/// Whether a pod has limits on disk at all: only then is its usage worth measuring.
pub fn has_disk_limits(pod: &Pod) -> bool {
    let volumes = pod::spec(pod).volumes.iter().flatten().filter_map(|volume| volume.empty_dir.as_ref());
    volumes.into_iter().any(|source| source.size_limit.is_some()) || pod_disk_limit(pod).is_some()
}

fn pod_disk_limit(pod: &Pod) -> Option<i64> {
    let spec = pod::spec(pod);
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let any = all.filter_map(|container| resources::limit(container.resources.as_ref(), DISK)).next();
    // Unlike with memory, one container's limit is a limit to the pod.
    any.map(|_| resources::limits_sum(pod, DISK))
}

const DISK: &str = "ephemeral-storage";

/// The first limit on disk that the pod exceeds, in words.
pub fn exceeded(pod: &Pod, usage: &PodUsage) -> Option<String> {
    empty_dir(pod, usage).or_else(|| whole_pod(pod, usage)).or_else(|| container(pod, usage))
}

fn empty_dir(pod: &Pod, usage: &PodUsage) -> Option<String> {
    pod::spec(pod).volumes.iter().flatten().find_map(|volume| {
        let limit = Quantity::parse(&volume.empty_dir.as_ref()?.size_limit.as_ref()?.0).ok()?;
        let used = usage.volumes.get(&volume.name)?.bytes as i64;
        let exceeds = limit.value() > 0 && used > limit.value();
        exceeds.then(|| format!("Usage of EmptyDir volume {:?} exceeds the limit \"{limit}\". ", volume.name))
    })
}

fn whole_pod(pod: &Pod, usage: &PodUsage) -> Option<String> {
    let limit = pod_disk_limit(pod)?;
    // Volumes in memory are accounted as memory.
    let volumes = pod::spec(pod).volumes.as_deref().unwrap_or_default();
    let on_disk = |name: &str| {
        let source = volumes.iter().find(|volume| volume.name == name).and_then(|volume| volume.empty_dir.as_ref());
        source.is_some_and(|source| source.medium.as_deref().unwrap_or_default().is_empty())
    };
    let exceeds = local_disk(usage, on_disk).bytes as i64 > limit;
    let shown = Quantity::bytes(limit);
    exceeds.then(|| format!("Pod ephemeral local storage usage exceeds the total limit of containers {shown}. "))
}

fn container(pod: &Pod, usage: &PodUsage) -> Option<String> {
    pod::members(pod).iter().find_map(|member| {
        let limits = member.container.resources.as_ref()?.limits.as_ref()?;
        let limit = Quantity::parse(&limits.get(DISK)?.0).ok()?;
        let container = usage.containers.get(member.name())?;
        let exceeds = (container.layer + container.logs).bytes as i64 > limit.value();
        exceeds.then(|| format!("Container {} exceeded its local ephemeral storage limit \"{limit}\". ", member.name()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eviction::signals::Level;
    use crate::eviction::threshold::{Eviction, Flags};
    use crate::eviction::usage::ContainerUsage;
    use serde_json::{Value, json};

    const MIB: u64 = 1 << 20;

    fn candidate(name: &str, priority: i64, resources: Value, memory: u64, disk: u64) -> Candidate {
        let pod = json!({"metadata": {"name": name}, "spec": {"priority": priority,
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}, {"name": "m", "emptyDir": {"medium": "Memory"}}],
            "containers": [{"name": "c", "resources": resources}]}});
        let container = ContainerUsage { memory, layer: Disk { bytes: disk, inodes: 3 }, logs: Disk::default() };
        let usage = PodUsage {
            memory,
            processes: memory / MIB,
            containers: [("c".to_owned(), container)].into(),
            volumes: [("m".to_owned(), Disk { bytes: 9 * MIB, inodes: 1 })].into(),
        };
        Candidate { pod: Arc::new(serde_json::from_value(pod).unwrap()), usage: Some(usage) }
    }

    fn requests(memory: &str) -> Value {
        json!({"requests": {"memory": memory}})
    }

    #[test]
    fn the_greediest_goes_first_and_the_critical_stay() {
        let mut unknown = candidate("unknown", 9, json!({}), 0, 0);
        unknown.usage = None;
        let candidates = [
            candidate("modest", 0, requests("64Mi"), 32 * MIB, 0),
            candidate("over", 0, requests("16Mi"), 32 * MIB, 0),
            candidate("best-effort", 0, json!({}), 24 * MIB, 0),
            candidate("valued", 10, json!({}), 500 * MIB, 0),
            candidate("critical", 2_000_000_000, json!({}), 900 * MIB, 0),
            unknown,
        ];
        let names = |signal| -> Vec<String> {
            order(signal, &candidates).iter().map(|c| pod::name(&c.pod).to_owned()).collect()
        };
        assert_eq!(names(Signal::MemoryAvailable), ["unknown", "best-effort", "over", "valued", "modest"]);
        assert_eq!(names(Signal::PidAvailable)[..2], ["modest", "over"], "by number alone");
    }

    #[test]
    fn the_message_names_thresholds_and_culprits() {
        let eviction = Eviction::parse(&Flags { hard: "memory.available<100Mi", ..Flags::default() }).unwrap();
        let level = Level { available: 50 * MIB, capacity: 1000 * MIB };
        let levels = Levels::from([(Signal::MemoryAvailable, level)]);
        let text = |candidate: &Candidate| message(&eviction.thresholds[0], &levels, candidate);
        let node = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. ";
        assert_eq!(
            text(&candidate("a", 0, requests("16Mi"), 32 * MIB, 0)),
            format!("{node}Container c was using 32Mi, request is 16Mi, has larger consumption of memory. ")
        );
        assert_eq!(text(&candidate("b", 0, requests("64Mi"), 32 * MIB, 0)), node);
    }

    #[test]
    fn limits_on_disk() {
        let limited = json!({"limits": {"ephemeral-storage": "2Mi"}});
        let container = "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. ";
        let cases = [
            (limited.clone(), 2 * MIB, 0, None),
            (limited.clone(), 3 * MIB, 0, Some(container)),
            (limited, 0, 3 * MIB, Some("Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ")),
            (json!({}), 300 * MIB, MIB, None),
        ];
        for (resources, layer, volume, expected) in cases {
            let mut candidate = candidate("p", 0, resources, 0, layer);
            let usage = candidate.usage.as_mut().unwrap();
            usage.volumes.insert("v".to_owned(), Disk { bytes: volume, inodes: 1 });
            assert_eq!(exceeded(&candidate.pod, usage).as_deref(), expected, "{layer} {volume}");
            assert!(has_disk_limits(&candidate.pod));
        }
        // A container over its own limit in a pod that is within the sum.
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [
            {"name": "a", "resources": {"limits": {"ephemeral-storage": "1Mi"}}},
            {"name": "b", "resources": {"limits": {"ephemeral-storage": "1Gi"}}}]}}))
        .unwrap();
        let over = ContainerUsage { logs: Disk { bytes: 2 * MIB, inodes: 1 }, ..ContainerUsage::default() };
        let usage = PodUsage { containers: [("a".to_owned(), over)].into(), ..PodUsage::default() };
        let expected = "Container a exceeded its local ephemeral storage limit \"1Mi\". ";
        assert_eq!(exceeded(&pod, &usage).as_deref(), Some(expected));
    }
}
