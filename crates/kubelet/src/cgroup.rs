//! Cgroups of pods and QoS classes: `/kubepods[/burstable|/besteffort]/podUID`.
//!
//! Containers' own cgroups are the runtime's. Handles the v1, hybrid and v2 layouts by looking at
//! what is mounted; a machine that refuses is worked on without limits, and says so once.

use crate::config::Config;
use crate::pod;
use crate::resources::{self, Qos};
use k8s_openapi::api::core::v1::Pod;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Once;

/// The v1 controllers in which we make directories.
const V1: [&str; 3] = ["cpu", "memory", "pids"];

/// The parent of a pod's containers, as told to the runtime.
pub fn parent(pod: &Pod, config: &Config) -> String {
    let class = match resources::qos(pod) {
        Qos::Guaranteed => "",
        Qos::Burstable => "/burstable",
        Qos::BestEffort => "/besteffort",
    };
    format!("{}/kubepods{class}/pod{}", config.cgroup_root.trim_end_matches('/'), pod::uid(pod))
}

/// Makes the pod's cgroup and sets its limits. Failure is reported, not fatal.
pub fn create(pod: &Pod, config: &Config) {
    static SAID: Once = Once::new();
    if let Err(error) = try_create(pod, config) {
        SAID.call_once(|| tracing::warn!(%error, "cannot manage pod cgroups; pods run without pod-level limits"));
    }
}

/// Sets the limits of an existing cgroup anew.
pub fn update(pod: &Pod, config: &Config) -> Result<(), String> {
    try_create(pod, config).map_err(|error| format!("update the pod's cgroup: {error}"))
}

/// Weighs the classes against guaranteed pods: burstable ones get what they ask for together, the rest what is left.
/// Failure is no worse than what [`create`] reports.
pub fn weigh_classes<'a>(pods: impl IntoIterator<Item = &'a Pod>, config: &Config) {
    for (class, shares) in class_shares(pods) {
        let parent = directory(config, &format!("{}/kubepods/{class}", config.cgroup_root.trim_end_matches('/')));
        if let Err(error) = apply(config, Path::new(parent.trim_start_matches('/')), vec![weight(shares)]) {
            tracing::debug!(class, %error, "class not weighed");
        }
    }
}

fn class_shares<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> [(&'static str, i64); 2] {
    let burstable = pods.into_iter().filter(|pod| resources::qos(pod) == Qos::Burstable);
    let asked = burstable.map(|pod| resources::pod_request(pod, "cpu")).sum();
    [("burstable", resources::cpu_shares(asked)), ("besteffort", resources::cpu_shares(0))]
}

fn directory(config: &Config, parent: &str) -> String {
    format!("{}{parent}", config.runtime_cgroup_root.trim_end_matches('/'))
}

/// One setting, in both dialects. `max` is written as -1 in v1.
struct Setting {
    controller: &'static str,
    v1: Vec<(&'static str, String)>,
    v2: (&'static str, String),
}

fn weight(shares: i64) -> Setting {
    Setting {
        controller: "cpu",
        v1: vec![("cpu.shares", shares.to_string())],
        v2: ("cpu.weight", resources::cpu_weight(shares).to_string()),
    }
}

fn settings(pod: &Pod, config: &Config) -> Vec<Setting> {
    let shares = resources::cpu_shares(resources::pod_request(pod, "cpu"));
    let period = resources::CPU_PERIOD;
    let mut settings = vec![weight(shares)];
    if let Some(quota) = resources::pod_limit(pod, "cpu").map(resources::cpu_quota) {
        settings.push(Setting {
            controller: "cpu",
            v1: vec![("cpu.cfs_period_us", period.to_string()), ("cpu.cfs_quota_us", quota.to_string())],
            v2: ("cpu.max", format!("{quota} {period}")),
        });
    }
    if let Some(limit) = resources::pod_limit(pod, "memory") {
        settings.push(Setting {
            controller: "memory",
            v1: vec![("memory.limit_in_bytes", limit.to_string())],
            v2: ("memory.max", limit.to_string()),
        });
    }
    if let Some(limit) = config.pod_pids_limit {
        settings.push(Setting {
            controller: "pids",
            v1: vec![("pids.max", limit.to_string())],
            v2: ("pids.max", limit.to_string()),
        });
    }
    settings
}

fn try_create(pod: &Pod, config: &Config) -> io::Result<()> {
    let parent = directory(config, &parent(pod, config));
    apply(config, Path::new(parent.trim_start_matches('/')), settings(pod, config))
}

fn apply(config: &Config, relative: &Path, settings: Vec<Setting>) -> io::Result<()> {
    let unified = config.cgroup_mount.join("cgroup.controllers").exists();
    if unified {
        create_v2(&config.cgroup_mount, relative)?;
    }
    for setting in settings {
        if unified {
            std::fs::write(config.cgroup_mount.join(relative).join(setting.v2.0), setting.v2.1)?;
            continue;
        }
        let controller = config.cgroup_mount.join(setting.controller);
        if controller.exists() {
            std::fs::create_dir_all(controller.join(relative))?;
            for (file, value) in setting.v1 {
                std::fs::write(controller.join(relative).join(file), value)?;
            }
        }
    }
    if !unified {
        for controller in V1.map(|name| config.cgroup_mount.join(name)).iter().filter(|path| path.exists()) {
            std::fs::create_dir_all(controller.join(relative))?;
        }
    }
    Ok(())
}

/// In v2 each level must hand its controllers down before children can use them.
fn create_v2(mount: &Path, relative: &Path) -> io::Result<()> {
    let mut path = mount.to_path_buf();
    for part in relative.components() {
        let available = std::fs::read_to_string(path.join("cgroup.controllers"))?;
        let wanted: Vec<String> = available
            .split_whitespace()
            .filter(|name| ["cpu", "memory", "pids", "cpuset", "io", "hugetlb"].contains(name))
            .map(|name| format!("+{name}"))
            .collect();
        std::fs::write(path.join("cgroup.subtree_control"), wanted.join(" "))?;
        path.push(part);
        match std::fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Removes the cgroup of a pod in which nothing runs any more.
pub fn remove(pod: &Pod, config: &Config) {
    let parent = directory(config, &parent(pod, config));
    remove_everywhere(config, parent.trim_start_matches('/'));
}

/// Removes the cgroups that carry this uid in any class: those of pods nobody knows any more.
pub fn remove_uid(uid: &str, config: &Config) {
    for class in ["", "/burstable", "/besteffort"] {
        let parent = format!("{}/kubepods{class}/pod{uid}", config.cgroup_root.trim_end_matches('/'));
        remove_everywhere(config, directory(config, &parent).trim_start_matches('/'));
    }
}

fn remove_everywhere(config: &Config, relative: &str) {
    let controllers = std::fs::read_dir(&config.cgroup_mount).into_iter().flatten().flatten();
    let roots: Vec<PathBuf> = controllers.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    for root in roots.iter().chain([&config.cgroup_mount]) {
        remove_tree(&root.join(relative));
    }
}

/// Control files cannot be unlinked; only directories are removed, the deepest first.
fn remove_tree(path: &Path) {
    let children = std::fs::read_dir(path).into_iter().flatten().flatten();
    for child in children.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_tree(&child.path());
    }
    if let Err(error) = std::fs::remove_dir(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!(path = %path.display(), %error, "cgroup not removed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn parent_and_limits_by_class() {
        let mut config = Config::new("n", [127, 0, 0, 1].into(), "x");
        config.cgroup_root = "/me".into();
        let pod = |resources: serde_json::Value| -> Pod {
            serde_json::from_value(
                json!({"metadata": {"uid": "7"}, "spec": {"containers": [{"name": "c", "resources": resources}]}}),
            )
            .unwrap()
        };
        assert_eq!(parent(&pod(json!({})), &config), "/me/kubepods/besteffort/pod7");
        let limited = pod(json!({"limits": {"cpu": "500m", "memory": "64Mi"}}));
        assert_eq!(parent(&limited, &config), "/me/kubepods/pod7");
        let v2: Vec<(&str, String)> = settings(&limited, &config).into_iter().map(|setting| setting.v2).collect();
        let expected = [("cpu.weight", "20"), ("cpu.max", "50000 100000"), ("memory.max", "67108864")];
        assert_eq!(v2, expected.map(|(file, value)| (file, value.to_owned())));
        let pods = ["500m", "1500m"].map(|cpu| pod(json!({"requests": {"cpu": cpu}})));
        let shares = class_shares(pods.iter().chain([&limited, &pod(json!({}))]));
        assert_eq!(shares, [("burstable", 2048), ("besteffort", 2)]);
    }
}
