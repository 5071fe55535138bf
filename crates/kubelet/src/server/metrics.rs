//! Metrics and statistics: Prometheus text and the summary API, from the runtime's figures.

use crate::node;
use crate::pods::Pods;
use axum::extract::State;
use axum::response::{IntoResponse, Json, Response};
use cri::v1;
use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::sync::Arc;

const TEXT: [(&str, &str); 1] = [("content-type", "text/plain; version=0.0.4; charset=utf-8")];

async fn stats(pods: &Pods) -> Result<Vec<v1::PodSandboxStats>, (StatusCode, String)> {
    let request = v1::ListPodSandboxStatsRequest { filter: None };
    let answer = pods.shared().cri.list_pod_sandbox_stats(request).await;
    answer.map(|answer| answer.stats).map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

fn number(value: &Option<v1::UInt64Value>) -> u64 {
    value.as_ref().map_or(0, |value| value.value)
}

/// Cumulative cpu seconds of the whole machine.
fn node_cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks: Vec<u64> = fields.filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal: all but idle and iowait is use.
    let used: u64 = ticks.iter().take(8).enumerate().filter(|(index, _)| !matches!(index, 3 | 4)).map(|(_, t)| t).sum();
    used as f64 / 100.0
}

fn node_working_set() -> u64 {
    node::memory_kib("MemTotal").saturating_sub(node::memory_kib("MemAvailable")) << 10
}

pub(super) async fn kubelet(State(pods): State<Arc<Pods>>) -> Response {
    let snapshots = pods.snapshots();
    let running = snapshots.iter().filter(|snapshot| snapshot.runtime.running().next().is_some()).count();
    let containers: usize = snapshots.iter().map(|snapshot| snapshot.runtime.running().count()).sum();
    let resident = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = resident.split_whitespace().nth(1).and_then(|field| field.parse().ok()).unwrap_or(0);
    let mut text = String::new();
    for (name, help, value) in [
        ("kubelet_running_pods", "Number of pods that have a running container", running as u64),
        ("kubelet_desired_pods", "Number of pods bound to this node", snapshots.len() as u64),
        ("process_resident_memory_bytes", "Resident memory size in bytes.", pages * 4096),
    ] {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
    }
    let _ = writeln!(
        text,
        "# HELP kubelet_running_containers Number of containers currently running\n\
         # TYPE kubelet_running_containers gauge\nkubelet_running_containers{{container_state=\"running\"}} {containers}\n\
         # HELP kubelet_node_name The node's name. The count is always 1.\n# TYPE kubelet_node_name gauge\n\
         kubelet_node_name{{node=\"{}\"}} 1",
        pods.shared().config.node_name
    );
    (TEXT, text).into_response()
}

/// One sample of a container or pod: labels and the figures.
struct Sample {
    labels: String,
    cpu_seconds: f64,
    working_set: u64,
}

fn sample(labels: String, cpu: Option<&v1::CpuUsage>, memory: Option<&v1::MemoryUsage>) -> Sample {
    Sample {
        labels,
        cpu_seconds: cpu.map_or(0.0, |cpu| number(&cpu.usage_core_nano_seconds) as f64 / 1e9),
        working_set: memory.map_or(0, |memory| number(&memory.working_set_bytes)),
    }
}

fn samples(stats: &[v1::PodSandboxStats]) -> (Vec<Sample>, Vec<Sample>) {
    let (mut containers, mut all) = (Vec::new(), Vec::new());
    for pod in stats {
        let metadata = pod.attributes.clone().unwrap_or_default().metadata.unwrap_or_default();
        let place = format!("namespace=\"{}\",pod=\"{}\"", metadata.namespace, metadata.name);
        let linux = pod.linux.clone().unwrap_or_default();
        all.push(sample(place.clone(), linux.cpu.as_ref(), linux.memory.as_ref()));
        for container in &linux.containers {
            let name = container.attributes.clone().unwrap_or_default().metadata.unwrap_or_default().name;
            let labels = format!("container=\"{name}\",{place}");
            containers.push(sample(labels, container.cpu.as_ref(), container.memory.as_ref()));
        }
    }
    (containers, all)
}

fn family(text: &mut String, name: &str, kind: &str, samples: &[Sample], value: impl Fn(&Sample) -> String) {
    let _ = writeln!(text, "# TYPE {name} {kind}");
    for sample in samples {
        let _ = writeln!(text, "{name}{{{}}} {}", sample.labels, value(sample));
    }
}

pub(super) async fn resource(State(pods): State<Arc<Pods>>) -> Result<Response, (StatusCode, String)> {
    let (containers, all) = samples(&stats(&pods).await?);
    let mut text = String::new();
    for (prefix, samples) in [("container", &containers), ("pod", &all)] {
        family(&mut text, &format!("{prefix}_cpu_usage_seconds_total"), "counter", samples, |s| {
            s.cpu_seconds.to_string()
        });
        family(&mut text, &format!("{prefix}_memory_working_set_bytes"), "gauge", samples, |s| {
            s.working_set.to_string()
        });
    }
    let _ = writeln!(
        text,
        "# TYPE node_cpu_usage_seconds_total counter\nnode_cpu_usage_seconds_total {}\n\
         # TYPE node_memory_working_set_bytes gauge\nnode_memory_working_set_bytes {}\n\
         # TYPE resource_scrape_error gauge\nresource_scrape_error 0",
        node_cpu_seconds(),
        node_working_set()
    );
    Ok((TEXT, text).into_response())
}

pub(super) async fn cadvisor(State(pods): State<Arc<Pods>>) -> Result<Response, (StatusCode, String)> {
    let (containers, _) = samples(&stats(&pods).await?);
    let mut text = String::new();
    family(&mut text, "container_cpu_usage_seconds_total", "counter", &containers, |s| s.cpu_seconds.to_string());
    family(&mut text, "container_memory_working_set_bytes", "gauge", &containers, |s| s.working_set.to_string());
    Ok((TEXT, text).into_response())
}

fn cpu(usage: Option<&v1::CpuUsage>) -> Value {
    let Some(usage) = usage else { return json!({}) };
    json!({
        "time": time(usage.timestamp),
        "usageNanoCores": number(&usage.usage_nano_cores),
        "usageCoreNanoSeconds": number(&usage.usage_core_nano_seconds),
    })
}

fn memory(usage: Option<&v1::MemoryUsage>) -> Value {
    let Some(usage) = usage else { return json!({}) };
    json!({
        "time": time(usage.timestamp),
        "usageBytes": number(&usage.usage_bytes),
        "workingSetBytes": number(&usage.working_set_bytes),
        "rssBytes": number(&usage.rss_bytes),
        "pageFaults": number(&usage.page_faults),
        "majorPageFaults": number(&usage.major_page_faults),
    })
}

fn network(usage: Option<&v1::NetworkUsage>) -> Value {
    let Some(usage) = usage else { return json!({}) };
    let interface = |interface: &v1::NetworkInterfaceUsage| {
        json!({
            "name": interface.name,
            "rxBytes": number(&interface.rx_bytes),
            "rxErrors": number(&interface.rx_errors),
            "txBytes": number(&interface.tx_bytes),
            "txErrors": number(&interface.tx_errors),
        })
    };
    let mut value = usage.default_interface.as_ref().map(interface).unwrap_or_else(|| json!({}));
    value["time"] = time(usage.timestamp);
    value["interfaces"] = usage.interfaces.iter().map(interface).collect();
    value
}

fn time(nanoseconds: i64) -> Value {
    let time = Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or_else(|_| Timestamp::now());
    Value::String(time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// The summary API, which metrics-server and eviction policies of others read.
pub(super) async fn summary(State(pods): State<Arc<Pods>>) -> Result<Json<Value>, (StatusCode, String)> {
    let stats = stats(&pods).await?;
    let now = i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(0);
    let list: Vec<Value> = stats
        .iter()
        .map(|pod| {
            let metadata = pod.attributes.clone().unwrap_or_default().metadata.unwrap_or_default();
            let linux = pod.linux.clone().unwrap_or_default();
            let containers: Vec<Value> = linux
                .containers
                .iter()
                .map(|container| {
                    let name = container.attributes.clone().unwrap_or_default().metadata.unwrap_or_default().name;
                    let mut value = json!({
                        "name": name, "cpu": cpu(container.cpu.as_ref()), "memory": memory(container.memory.as_ref()),
                    });
                    if let Some(layer) = &container.writable_layer {
                        value["rootfs"] = json!({"time": time(layer.timestamp),
                            "usedBytes": number(&layer.used_bytes), "inodesUsed": number(&layer.inodes_used)});
                    }
                    value
                })
                .collect();
            json!({
                "podRef": {"name": metadata.name, "namespace": metadata.namespace, "uid": metadata.uid},
                "containers": containers,
                "cpu": cpu(linux.cpu.as_ref()),
                "memory": memory(linux.memory.as_ref()),
                "network": network(linux.network.as_ref()),
                "process_stats": {"process_count": linux.process.as_ref().map_or(0, |p| number(&p.process_count))},
            })
        })
        .collect();
    let config = &pods.shared().config;
    let disk = crate::images::disk(&config.root_dir.display().to_string()).unwrap_or((0, 0));
    Ok(Json(json!({
        "node": {
            "nodeName": config.node_name,
            "cpu": {"time": time(now), "usageCoreNanoSeconds": (node_cpu_seconds() * 1e9) as u64},
            "memory": {
                "time": time(now),
                "availableBytes": node::memory_kib("MemAvailable") << 10,
                "workingSetBytes": node_working_set(),
            },
            "fs": {
                "time": time(now), "capacityBytes": disk.0, "availableBytes": disk.1, "usedBytes": disk.0 - disk.1,
            },
        },
        "pods": list,
    })))
}
