//! Usage of containers and pods, from cgroups, the pod's network devices and the writable layers.

use std::path::Path;
use std::time::{Duration, Instant};

use cri::v1::{
    ContainerAttributes, ContainerMetrics, ContainerStats, CpuUsage, FilesystemIdentifier, FilesystemUsage,
    LinuxPodSandboxStats, MemoryUsage, Metric, MetricDescriptor, MetricType, NetworkInterfaceUsage, NetworkUsage,
    PodSandboxAttributes, PodSandboxMetrics, PodSandboxStats, ProcessUsage, SwapUsage, UInt64Value,
};

use super::records::{ContainerRecord, PodRecord};
use super::{Container, Runtime};
use crate::cgroup::Stats;
use crate::shim::log::now;

/// How long the size of a writable layer is believed: walking a large one is costly.
const DISK_FRESH: Duration = Duration::from_secs(30);

/// Earlier readings, for rates and for what is costly to read.
#[derive(Default)]
pub(crate) struct Samples {
    cpu: Option<(Instant, u64, u64)>,
    disk: Option<(Instant, u64, u64)>,
}

fn value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

fn cpu(stats: &Stats, rate: Option<u64>) -> CpuUsage {
    CpuUsage {
        timestamp: now(),
        usage_core_nano_seconds: value(stats.cpu_nanoseconds),
        usage_nano_cores: rate.and_then(value),
    }
}

fn memory(stats: &Stats) -> MemoryUsage {
    let limit = Some(stats.memory_limit).filter(|limit| *limit > 0);
    MemoryUsage {
        timestamp: now(),
        working_set_bytes: value(stats.memory_working_set),
        available_bytes: limit.and_then(|limit| value(limit.saturating_sub(stats.memory_working_set))),
        usage_bytes: value(stats.memory_usage),
        rss_bytes: value(stats.memory_rss),
        page_faults: value(stats.page_faults),
        major_page_faults: value(stats.major_page_faults),
    }
}

/// Nanocores since the last reading, which this one replaces once it is a second old.
fn rate(samples: &mut Samples, total: u64) -> Option<u64> {
    let time = Instant::now();
    let Some((before, earlier, last)) = samples.cpu else {
        samples.cpu = Some((time, total, 0));
        return None;
    };
    let elapsed = time.duration_since(before);
    if elapsed < Duration::from_secs(1) {
        return Some(last);
    }
    let rate = (u128::from(total.saturating_sub(earlier)) * 1_000_000_000 / elapsed.as_nanos()) as u64;
    samples.cpu = Some((time, total, rate));
    Some(rate)
}

impl Runtime {
    /// `None` for a container that does not run.
    pub(super) fn container_stats(&self, container: &Container) -> Option<ContainerStats> {
        let record = container.record();
        let stats = self.cgroups.stats(&record.cgroup);
        if stats.is_none() && record.started_at > 0 && record.finished_at == 0 {
            return None;
        }
        let mut samples = container.samples.lock();
        let rate = stats.and_then(|stats| rate(&mut samples, stats.cpu_nanoseconds));
        let upper = self.container_directory(&record.id).join("upper");
        let (bytes, inodes) = disk(&mut samples, &upper);
        Some(ContainerStats {
            attributes: Some(attributes(&record)),
            cpu: stats.as_ref().map(|stats| cpu(stats, rate)),
            memory: stats.as_ref().map(memory),
            writable_layer: Some(filesystem(&upper, bytes, inodes)),
            swap: stats.as_ref().map(|stats| SwapUsage {
                timestamp: now(),
                swap_available_bytes: None,
                swap_usage_bytes: value(stats.swap_usage),
            }),
        })
    }

    pub(super) fn pod_stats(&self, record: &PodRecord) -> PodSandboxStats {
        let config = record.config();
        let stats = self.cgroups.stats(&record.cgroup);
        let containers = self.containers_of(&record.id);
        let running = containers.iter().filter(|container| container.is_running());
        let containers: Vec<ContainerStats> = running.filter_map(|container| self.container_stats(container)).collect();
        let rates = containers.iter().filter_map(|stats| stats.cpu.as_ref()?.usage_nano_cores.as_ref());
        let rate = rates.map(|rate| rate.value).sum();
        PodSandboxStats {
            attributes: Some(PodSandboxAttributes {
                id: record.id.clone(),
                metadata: config.metadata.clone(),
                labels: config.labels.clone(),
                annotations: config.annotations.clone(),
            }),
            linux: Some(LinuxPodSandboxStats {
                cpu: stats.as_ref().map(|stats| cpu(stats, Some(rate))),
                memory: stats.as_ref().map(memory),
                network: network_usage(record.pause),
                process: stats.map(|stats| ProcessUsage { timestamp: now(), process_count: value(stats.processes) }),
                containers,
            }),
            windows: None,
        }
    }

    pub(super) fn pod_metrics(&self, record: &PodRecord) -> PodSandboxMetrics {
        let containers = self.containers_of(&record.id);
        let container_metrics = containers.iter().filter(|container| container.is_running()).filter_map(|container| {
            let stats = self.cgroups.stats(&container.record().cgroup)?;
            let metrics = METRICS.iter().map(|(name, _, kind, read)| Metric {
                name: (*name).into(),
                timestamp: now(),
                metric_type: (*kind).into(),
                label_values: label_values(&container.record(), record),
                value: value(read(&stats)),
            });
            Some(ContainerMetrics { container_id: container.id.clone(), metrics: metrics.collect() })
        });
        PodSandboxMetrics {
            pod_sandbox_id: record.id.clone(),
            metrics: Vec::new(),
            container_metrics: container_metrics.collect(),
        }
    }

    /// What images take, with the filesystem they are on.
    pub(super) fn image_filesystem(&self) -> anyhow::Result<FilesystemUsage> {
        let layers = self.images.layers_directory();
        let entries = std::fs::read_dir(&layers).map_or(0, Iterator::count) as u64;
        Ok(filesystem(self.images.root(), self.images.usage()?, entries))
    }
}

type Reading = fn(&Stats) -> u64;

/// Name, help, type and value, under the names cAdvisor made usual.
const METRICS: &[(&str, &str, MetricType, Reading)] = &[
    ("container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds", MetricType::Counter, |stats| {
        stats.cpu_nanoseconds / 1_000_000_000
    }),
    ("container_memory_usage_bytes", "Current memory usage in bytes", MetricType::Gauge, |stats| stats.memory_usage),
    ("container_memory_working_set_bytes", "Current working set in bytes", MetricType::Gauge, |stats| {
        stats.memory_working_set
    }),
    ("container_memory_rss", "Size of RSS in bytes", MetricType::Gauge, |stats| stats.memory_rss),
    ("container_memory_swap", "Container swap usage in bytes", MetricType::Gauge, |stats| stats.swap_usage),
    ("container_spec_memory_limit_bytes", "Memory limit for the container", MetricType::Gauge, |stats| {
        stats.memory_limit
    }),
    ("container_processes", "Number of processes running inside the container", MetricType::Gauge, |stats| {
        stats.processes
    }),
];

const LABELS: [&str; 5] = ["id", "name", "image", "container", "pod"];

pub(super) fn metric_descriptors() -> Vec<MetricDescriptor> {
    let label_keys: Vec<String> = LABELS.map(String::from).into();
    let descriptor = |(name, help, ..): &(&str, &str, MetricType, Reading)| MetricDescriptor {
        name: (*name).into(),
        help: (*help).into(),
        label_keys: label_keys.clone(),
    };
    METRICS.iter().map(descriptor).collect()
}

fn label_values(container: &ContainerRecord, pod: &PodRecord) -> Vec<String> {
    let config = container.config();
    let name = config.metadata.as_ref().map_or(String::new(), |metadata| metadata.name.clone());
    let pod = pod.config().metadata.as_ref().map_or(String::new(), |metadata| metadata.name.clone());
    vec![container.cgroup.clone(), container.id.clone(), container.image_ref.clone(), name, pod]
}

fn attributes(record: &ContainerRecord) -> ContainerAttributes {
    let config = record.config();
    ContainerAttributes {
        id: record.id.clone(),
        metadata: config.metadata.clone(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
    }
}

fn filesystem(path: &Path, bytes: u64, inodes: u64) -> FilesystemUsage {
    FilesystemUsage {
        timestamp: now(),
        fs_id: Some(FilesystemIdentifier { mountpoint: path.to_string_lossy().into_owned() }),
        used_bytes: value(bytes),
        inodes_used: value(inodes),
    }
}

fn disk(samples: &mut Samples, directory: &Path) -> (u64, u64) {
    match samples.disk {
        Some((when, bytes, inodes)) if when.elapsed() < DISK_FRESH => (bytes, inodes),
        _ => {
            let (bytes, inodes) = usage(directory);
            samples.disk = Some((Instant::now(), bytes, inodes));
            (bytes, inodes)
        }
    }
}

/// Allocated bytes and inodes below a directory.
fn usage(directory: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let (mut bytes, mut inodes) = (0, 0);
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        (bytes, inodes) = (bytes + metadata.blocks() * 512, inodes + 1);
        if metadata.is_dir() {
            let (below_bytes, below_inodes) = usage(&entry.path());
            (bytes, inodes) = (bytes + below_bytes, inodes + below_inodes);
        }
    }
    (bytes, inodes)
}

/// The devices of the infra process's network namespace.
fn network_usage(pause: i32) -> Option<NetworkUsage> {
    let text = std::fs::read_to_string(format!("/proc/{pause}/net/dev")).ok().filter(|_| pause > 0)?;
    let interfaces: Vec<NetworkInterfaceUsage> =
        text.lines().skip(2).filter_map(interface).filter(|interface| interface.name != "lo").collect();
    let default = interfaces.iter().find(|interface| interface.name == "eth0").or(interfaces.first()).cloned();
    Some(NetworkUsage { timestamp: now(), default_interface: default, interfaces })
}

fn interface(line: &str) -> Option<NetworkInterfaceUsage> {
    let (name, counters) = line.split_once(':')?;
    let counters: Vec<u64> = counters.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    let counter = |position: usize| counters.get(position).copied().and_then(value);
    Some(NetworkInterfaceUsage {
        name: name.trim().into(),
        rx_bytes: counter(0),
        rx_errors: counter(2),
        tx_bytes: counter(8),
        tx_errors: counter(10),
    })
}
