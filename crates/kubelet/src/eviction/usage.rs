//! What pods use: memory and processes as the runtime tells, disk as found on it.
//!
//! Walking directories is costly, so it is done only for those asked for, and off the executor.

use crate::config::Config;
use crate::pods::Pods;
use crate::worker::Snapshot;
use crate::{convert, pod, volume};
use cri::v1;
use k8s_openapi::api::core::v1::Pod;
use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Disk {
    pub bytes: u64,
    pub inodes: u64,
}

impl std::ops::Add for Disk {
    type Output = Disk;
    fn add(self, other: Disk) -> Disk {
        Disk { bytes: self.bytes + other.bytes, inodes: self.inodes + other.inodes }
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerUsage {
    pub memory: u64,
    pub layer: Disk,
    pub logs: Disk,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodUsage {
    pub memory: u64,
    pub processes: u64,
    pub containers: BTreeMap<String, ContainerUsage>,
    /// emptyDir volumes by name, those in memory too.
    pub volumes: BTreeMap<String, Disk>,
}

/// The usage of the given pods, in their order; `None` where the runtime says nothing of one.
pub async fn collect(pods: &Pods, wanted: &[Snapshot]) -> Vec<Option<PodUsage>> {
    let request = v1::ListPodSandboxStatsRequest { filter: None };
    let listed = match pods.shared().cri.list_pod_sandbox_stats(request).await {
        Ok(listed) => listed.stats,
        Err(error) => {
            tracing::warn!(%error, "the runtime does not tell what pods use");
            return vec![None; wanted.len()];
        }
    };
    let mut found: HashMap<String, v1::LinuxPodSandboxStats> = HashMap::new();
    for stats in listed {
        let uid = stats.attributes.and_then(|attributes| attributes.metadata).map(|metadata| metadata.uid);
        if let (Some(uid), Some(linux)) = (uid, stats.linux) {
            found.insert(uid, linux);
        }
    }
    let own: Vec<(Arc<Pod>, Option<v1::LinuxPodSandboxStats>)> =
        wanted.iter().map(|snapshot| (snapshot.pod.clone(), found.remove(pod::uid(&snapshot.pod)))).collect();
    let config = pods.shared().config.clone();
    let walk = move || own.into_iter().map(|(pod, stats)| Some(usage(&config, &pod, stats?))).collect();
    tokio::task::spawn_blocking(walk).await.unwrap_or_else(|_| vec![None; wanted.len()])
}

fn usage(config: &Config, pod: &Pod, stats: v1::LinuxPodSandboxStats) -> PodUsage {
    let number = |value: Option<&v1::UInt64Value>| value.map_or(0, |value| value.value);
    let memory = |usage: Option<&v1::MemoryUsage>| number(usage.and_then(|usage| usage.working_set_bytes.as_ref()));
    let logs = convert::log_directory(config, pod);
    let containers = stats.containers.iter().map(|container| {
        let name = container.attributes.clone().unwrap_or_default().metadata.unwrap_or_default().name;
        let layer = container.writable_layer.as_ref().map_or(Disk::default(), |layer| Disk {
            bytes: number(layer.used_bytes.as_ref()),
            inodes: number(layer.inodes_used.as_ref()),
        });
        let usage = ContainerUsage { memory: memory(container.memory.as_ref()), layer, logs: walk(&logs.join(&name)) };
        (name, usage)
    });
    let volumes = pod::spec(pod).volumes.iter().flatten().filter(|volume| volume.empty_dir.is_some());
    let volumes =
        volumes.filter_map(|volume| Some((volume.name.clone(), walk(&volume::path(config, pod, &volume.name)?))));
    PodUsage {
        memory: memory(stats.memory.as_ref()),
        processes: number(stats.process.as_ref().and_then(|process| process.process_count.as_ref())),
        containers: containers.collect(),
        volumes: volumes.collect(),
    }
}

/// Allocated bytes and inodes below a directory; a file with several names counts once per name.
fn walk(directory: &Path) -> Disk {
    let mut total = Disk::default();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        total = total + Disk { bytes: metadata.blocks() * 512, inodes: 1 };
        if metadata.is_dir() {
            total = total + walk(&entry.path());
        }
    }
    total
}
