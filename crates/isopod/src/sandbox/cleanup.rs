//! Takes a throwaway cluster away: processes, mounts, control groups, namespaces, directories.
//!
//! Idempotent, and independent of whatever the cluster last knew of itself: it looks at the machine
//! (which processes are in the cluster's namespaces or control groups, what is mounted below its
//! directories), so it works after kill -9 at any moment.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{RUN_ROOT, Sandbox, namespaces};

/// Killed processes are gone within milliseconds, unless the kernel waits for a disk.
const KILL_PATIENCE: Duration = Duration::from_secs(20);

/// Removes everything that belongs to `sandbox`. The caller holds its lock or knows it dead.
pub fn remove_sandbox(sandbox: &Sandbox) -> anyhow::Result<()> {
    let pins = pins(&sandbox.run_dir.join("ns"));
    kill_all(&pins, &sandbox.cgroup())?;
    namespaces::unpin(&sandbox.run_dir.join("ns"));
    sweep(&sandbox.cgroup(), &[&sandbox.run_dir, &sandbox.data_dir])?;
    remove(&[&sandbox.data_dir, &sandbox.run_dir])?;
    for parent in [RUN_ROOT, super::DATA_ROOT, "/var/lib/isopod"] {
        let _ = fs::remove_dir(parent);
    }
    Ok(())
}

/// Kills what is in the control group, unmounts what is below `dirs`, removes the control group.
pub fn sweep(cgroup: &str, dirs: &[&Path]) -> anyhow::Result<()> {
    kill_all(&BTreeSet::new(), cgroup)?;
    unmount_below(dirs)?;
    for root in cgroup_roots() {
        let path = root.join(cgroup.trim_start_matches('/'));
        remove_cgroup(&path)?;
        // Parents that are shared, such as /isopod, go with the last of their children.
        for parent in path.ancestors().skip(1).take_while(|parent| *parent != root) {
            let _ = fs::remove_dir(parent);
        }
    }
    Ok(())
}

/// Removes files and directories; missing ones are no error.
pub fn remove(paths: &[&Path]) -> anyhow::Result<()> {
    for path in paths {
        let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Kills until nothing is left: processes may fork while they are being killed.
fn kill_all(pins: &BTreeSet<(u64, u64)>, cgroup: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + KILL_PATIENCE;
    loop {
        let processes = processes(pins, cgroup);
        if processes.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("processes {processes:?} of {cgroup} do not end; is a disk hanging?");
        }
        for pid in processes {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "no executor runs here, and exits of strangers cannot be awaited"
        )]
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The namespaces pinned in `dir`, but never those of this process.
fn pins(dir: &Path) -> BTreeSet<(u64, u64)> {
    let own = own_namespaces();
    ["net", "mnt"].iter().filter_map(|name| identity(&dir.join(name))).filter(|pin| !own.contains(pin)).collect()
}

/// Pids in the namespaces or the control group, this process aside.
fn processes(pins: &BTreeSet<(u64, u64)>, cgroup: &str) -> Vec<i32> {
    let own_pid = std::process::id() as i32;
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|&pid| pid != own_pid && belongs(pid, pins, cgroup))
        .collect()
}

fn belongs(pid: i32, pins: &BTreeSet<(u64, u64)>, cgroup: &str) -> bool {
    if !alive(pid) {
        return false;
    }
    let in_namespace = ["net", "mnt"]
        .iter()
        .any(|kind| identity(Path::new(&format!("/proc/{pid}/ns/{kind}"))).is_some_and(|id| pins.contains(&id)));
    in_namespace
        || fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| {
            text.lines()
                .filter_map(|line| line.splitn(3, ':').nth(2))
                .any(|path| path.strip_prefix(cgroup).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
        })
}

/// Zombies have nothing left to kill; their parents, killed too, hand them to init.
fn alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with(['Z', 'X']))
}

fn own_namespaces() -> Vec<(u64, u64)> {
    ["net", "mnt"].iter().filter_map(|kind| identity(Path::new(&format!("/proc/self/ns/{kind}")))).collect()
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

/// Mounts below the directories that are visible here, innermost first.
fn unmount_below(dirs: &[&Path]) -> anyhow::Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    let mut points: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .filter(|point| dirs.iter().any(|dir| point.starts_with(dir)))
        .collect();
    points.sort();
    for point in points.iter().rev() {
        umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .with_context(|| format!("unmount {}", point.display()))?;
    }
    Ok(())
}

/// Where control groups are mounted: each v1 controller, and v2.
fn cgroup_roots() -> Vec<PathBuf> {
    fs::read_to_string("/proc/self/mountinfo")
        .unwrap_or_default()
        .lines()
        .filter(|line| line.split(" - ").nth(1).is_some_and(|tail| tail.starts_with("cgroup")))
        .filter_map(|line| line.split(' ').nth(4).map(PathBuf::from))
        .collect()
}

fn remove_cgroup(path: &Path) -> anyhow::Result<()> {
    let Ok(entries) = fs::read_dir(path) else { return Ok(()) };
    for child in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir())) {
        remove_cgroup(&child.path())?;
    }
    // A group stays busy for a moment after its last process.
    let deadline = Instant::now() + KILL_PATIENCE;
    loop {
        match fs::remove_dir(path) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                #[expect(clippy::disallowed_methods, reason = "no executor runs here, and the kernel gives no event")]
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove control group {}", path.display()));
            }
            _ => return Ok(()),
        }
    }
}
