//! cgroup v2: one hierarchy, controllers handed down through `cgroup.subtree_control`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{DeviceRule, Limits, mounts_of, write, write_if_present};

#[derive(Clone, Debug)]
pub(crate) struct V2 {
    pub(super) mount: PathBuf,
}

pub(super) fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mounts_of(mountinfo, "cgroup2").map(|(_, mount, _)| mount.into()).next()
}

impl V2 {
    pub(super) fn directory(&self, path: &str) -> PathBuf {
        self.mount.join(path.trim_start_matches('/'))
    }

    pub(super) fn create(&self, path: &str) -> Result<bool> {
        let directory = self.directory(path);
        if directory.is_dir() {
            return Ok(false);
        }
        let mut current = self.mount.clone();
        for part in Path::new(path.trim_start_matches('/')) {
            delegate(&current)?;
            current.push(part);
            match std::fs::create_dir(&current) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                other => other.with_context(|| format!("create cgroup {}", current.display()))?,
            }
        }
        Ok(true)
    }

    pub(super) fn apply(&self, path: &str, limits: &Limits) -> Result<()> {
        let directory = self.directory(path);
        let set = |name: &str, value: Option<String>| match value {
            Some(value) => write_if_present(&directory.join(name), &value),
            None => Ok(()),
        };
        set("cpu.weight", limits.cpu_shares.map(|shares| weight(shares).to_string()))?;
        if limits.cpu_quota.is_some() || limits.cpu_period.is_some() {
            let quota = limits.cpu_quota.filter(|quota| *quota > 0).map_or("max".into(), |quota| quota.to_string());
            set("cpu.max", Some(format!("{quota} {}", limits.cpu_period.unwrap_or(100_000))))?;
        }
        set("cpuset.cpus", limits.cpuset_cpus.clone())?;
        set("cpuset.mems", limits.cpuset_mems.clone())?;
        set("memory.max", limits.memory.map(bytes_or_max))?;
        set("memory.swap.max", swap_only(limits).map(bytes_or_max))?;
        for (size, bytes) in &limits.huge_pages {
            set(&format!("hugetlb.{size}.max"), Some(bytes.to_string()))?;
        }
        for (name, value) in &limits.unified {
            anyhow::ensure!(!name.contains('/'), "unified resource {name:?} must be a file name");
            write(&directory.join(name), value)?;
        }
        Ok(())
    }

    pub(super) fn restrict_devices(&self, path: &str, rules: &[DeviceRule]) -> Result<()> {
        let directory = std::fs::File::open(self.directory(path))?;
        crate::sys::bpf::restrict_devices(std::os::fd::AsFd::as_fd(&directory), rules)
            .with_context(|| format!("restrict the devices of cgroup {path}"))
    }
}

/// The files of a cgroup that its new owner must be able to write; the limits are not among them.
const DELEGATED: &str = "cgroup.procs cgroup.subtree_control cgroup.threads";

/// Lets a user make and fill cgroups below `directory`.
pub(super) fn give(directory: &Path, uid: u32, gid: u32) -> Result<()> {
    let files = std::fs::read_to_string("/sys/kernel/cgroup/delegate").unwrap_or_else(|_| DELEGATED.into());
    for name in std::iter::once("").chain(files.split_whitespace()) {
        let path = directory.join(name);
        match std::os::unix::fs::chown(&path, Some(uid), Some(gid)) {
            // The list is of all the kernel could have.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => other.with_context(|| format!("give {} to user {uid}", path.display()))?,
        }
    }
    Ok(())
}

/// Hands every available controller to the children of `directory`.
fn delegate(directory: &Path) -> Result<()> {
    let available = std::fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
    let control = directory.join("cgroup.subtree_control");
    let enabled = std::fs::read_to_string(&control).unwrap_or_default();
    let missing = available.split_whitespace().filter(|name| !enabled.split_whitespace().any(|other| other == *name));
    for controller in missing {
        let value = format!("+{controller}");
        if std::fs::write(&control, &value).is_ok() {
            continue;
        }
        // A cgroup with processes cannot have children with controllers. At the root of a container's
        // cgroup namespace those processes are our own surroundings: they move to a leaf.
        make_room(directory)?;
        if std::fs::write(&control, &value).is_err() {
            tracing::debug!(directory = %directory.display(), controller, "controller not delegated");
        }
    }
    Ok(())
}

fn make_room(directory: &Path) -> Result<()> {
    let leaf = directory.join("init");
    let procs = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    if procs.is_empty() {
        return Ok(());
    }
    std::fs::create_dir_all(&leaf).with_context(|| format!("create cgroup {}", leaf.display()))?;
    for pid in procs.lines() {
        let _ = std::fs::write(leaf.join("cgroup.procs"), pid); // it may have exited
    }
    Ok(())
}

/// v1 shares (2 to 262144) to v2 weight (1 to 10000), the mapping every runtime uses.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn bytes_or_max(bytes: i64) -> String {
    if bytes < 0 { "max".into() } else { bytes.to_string() }
}

/// CRI counts memory and swap together, v2 swap alone.
fn swap_only(limits: &Limits) -> Option<i64> {
    match (limits.memory_swap?, limits.memory.unwrap_or(-1)) {
        (swap, _) if swap < 0 => Some(-1),
        (_, memory) if memory < 0 => None,
        (swap, memory) => Some((swap - memory).max(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_map_onto_weights() {
        for (shares, expected) in [(0, 1), (2, 1), (1024, 39), (262_144, 10_000)] {
            assert_eq!(weight(shares), expected, "{shares}");
        }
    }

    #[test]
    fn swap_excludes_memory() {
        let limits = |memory, swap| Limits { memory, memory_swap: swap, ..Limits::default() };
        for (memory, swap, expected) in [
            (Some(100), Some(150), Some(50)),
            (Some(100), Some(100), Some(0)),
            (Some(100), Some(-1), Some(-1)),
            (None, Some(100), None),
            (Some(100), None, None),
        ] {
            assert_eq!(swap_only(&limits(memory, swap)), expected, "{memory:?} {swap:?}");
        }
    }
}
