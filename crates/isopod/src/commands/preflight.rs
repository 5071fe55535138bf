//! Says what the machine lacks before anything is started, in one sentence.

use std::fs;
use std::process::Command;

use anyhow::bail;

/// What running containers needs.
pub fn node() -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("a cluster needs root for namespaces, mounts and control groups; run it with sudo");
    }
    if !has_overlay() {
        // The kernel loads most modules when they are asked for; this one is looked for before it is.
        let _ = Command::new("modprobe").arg("overlay").output();
    }
    if !has_overlay() {
        bail!("this kernel has no overlay file system, which container images need; load it with `modprobe overlay`");
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    if !mounts.lines().any(|line| line.split(' ').nth(2).is_some_and(|kind| kind.starts_with("cgroup"))) {
        bail!("no control groups are mounted, which containers need; mount cgroup2 on /sys/fs/cgroup");
    }
    Ok(())
}

fn has_overlay() -> bool {
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    filesystems.split_whitespace().any(|name| name == "overlay")
}
