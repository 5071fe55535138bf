//! cgroup v1: a hierarchy per controller.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{DeviceRule, Limits, devices, mounts_of, write, write_if_present};

/// Controllers whose limits, accounts or protection we use; `systemd` so that an init system does not
/// take pods for processes of our service.
const USED: &[&str] = &["memory", "pids", "cpu", "cpuacct", "cpuset", "devices", "hugetlb", "systemd"];

/// One mounted hierarchy with the used controllers on it.
#[derive(Clone, Debug)]
struct Hierarchy {
    controllers: Vec<String>,
    mount: PathBuf,
}

#[derive(Clone, Debug)]
pub(crate) struct V1 {
    hierarchies: Vec<Hierarchy>,
}

impl V1 {
    pub(super) fn from_mountinfo(mountinfo: &str) -> V1 {
        let mut hierarchies: Vec<Hierarchy> = mounts_of(mountinfo, "cgroup")
            .filter_map(|(_, mount, options)| {
                let controllers: Vec<String> = options
                    .split(',')
                    .map(|option| option.strip_prefix("name=").unwrap_or(option))
                    .filter(|option| USED.contains(option))
                    .map(String::from)
                    .collect();
                (!controllers.is_empty()).then(|| Hierarchy { controllers, mount: mount.into() })
            })
            .collect();
        hierarchies.sort_by_key(|hierarchy| USED.iter().position(|used| hierarchy.controllers[0] == *used));
        hierarchies.dedup_by(|a, b| a.controllers == b.controllers);
        V1 { hierarchies }
    }

    pub(super) fn has(&self, controller: &str) -> bool {
        self.mount(controller).is_some()
    }

    fn mount(&self, controller: &str) -> Option<&Path> {
        let found =
            self.hierarchies.iter().find(|hierarchy| hierarchy.controllers.iter().any(|name| name == controller));
        found.map(|hierarchy| hierarchy.mount.as_path())
    }

    pub(super) fn directories<'a>(&'a self, path: &'a str) -> impl Iterator<Item = PathBuf> + 'a {
        self.hierarchies.iter().map(move |hierarchy| below(&hierarchy.mount, path))
    }

    pub(super) fn file(&self, controller: &str, path: &str, name: &str) -> Option<PathBuf> {
        Some(below(self.mount(controller)?, path).join(name))
    }

    pub(super) fn create(&self, path: &str) -> Result<bool> {
        let mut created = false;
        for hierarchy in &self.hierarchies {
            let cpuset = hierarchy.controllers.iter().any(|name| name == "cpuset");
            created |= create_below(&hierarchy.mount, path, cpuset)
                .with_context(|| format!("create cgroup {path} in {}", hierarchy.mount.display()))?;
        }
        Ok(created)
    }

    pub(super) fn apply(&self, path: &str, limits: &Limits) -> Result<()> {
        let set = |controller: &str, name: &str, value: Option<String>| match (value, self.file(controller, path, name))
        {
            (Some(value), Some(file)) => write_if_present(&file, &value),
            _ => Ok(()),
        };
        set("cpu", "cpu.shares", limits.cpu_shares.map(|shares| shares.to_string()))?;
        set("cpu", "cpu.cfs_period_us", limits.cpu_period.map(|period| period.to_string()))?;
        set("cpu", "cpu.cfs_quota_us", limits.cpu_quota.map(|quota| quota.to_string()))?;
        set("cpuset", "cpuset.cpus", limits.cpuset_cpus.clone())?;
        set("cpuset", "cpuset.mems", limits.cpuset_mems.clone())?;
        for (size, bytes) in &limits.huge_pages {
            set("hugetlb", &format!("hugetlb.{size}.limit_in_bytes"), Some(bytes.to_string()))?;
        }
        let memory = limits.memory.map(|bytes| bytes.to_string());
        let swap = limits.memory_swap.map(|bytes| bytes.to_string());
        // The sum must never be below memory: whichever moves away from the other goes first.
        if set("memory", "memory.limit_in_bytes", memory.clone()).is_err() {
            set("memory", "memory.memsw.limit_in_bytes", swap)?;
            return set("memory", "memory.limit_in_bytes", memory);
        }
        set("memory", "memory.memsw.limit_in_bytes", swap)
    }

    pub(super) fn restrict_devices(&self, path: &str, rules: &[DeviceRule]) -> Result<()> {
        let Some(deny) = self.file("devices", path, "devices.deny") else { return Ok(()) };
        write(&deny, "a")?;
        let allow = deny.with_file_name("devices.allow");
        rules.iter().try_for_each(|rule| write(&allow, &devices::text(rule)))
    }

    pub(super) fn views(&self, path: &str) -> Vec<(String, PathBuf)> {
        self.hierarchies
            .iter()
            .map(|hierarchy| (hierarchy.controllers.join(","), below(&hierarchy.mount, path)))
            .collect()
    }
}

fn below(mount: &Path, path: &str) -> PathBuf {
    mount.join(path.trim_start_matches('/'))
}

/// A cpuset takes no process before it has its parent's CPUs and memory nodes.
fn create_below(mount: &Path, path: &str, cpuset: bool) -> std::io::Result<bool> {
    let directory = below(mount, path);
    if directory.is_dir() {
        return Ok(false);
    }
    if !cpuset {
        std::fs::create_dir_all(&directory)?;
        return Ok(true);
    }
    let mut current = mount.to_path_buf();
    for part in Path::new(path.trim_start_matches('/')) {
        let parent = current.clone();
        current.push(part);
        match std::fs::create_dir(&current) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
            other => other?,
        }
        for name in ["cpuset.cpus", "cpuset.mems"] {
            std::fs::write(current.join(name), std::fs::read(parent.join(name))?)?;
        }
    }
    Ok(true)
}
