//! Control groups, v1 (and hybrid) and v2, behind one set of verbs on paths.
//!
//! Knows paths and limits, not pods. A path is absolute under every hierarchy, as cgroups count it.
//! Limits of features the kernel lacks (swap accounting, huge pages) are left out, as upstream does;
//! every other failed write is an error that names the file.

mod devices;
mod stats;
mod v1;
mod v2;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

pub(crate) use crate::sys::bpf::DeviceRule;
pub(crate) use devices::{DEFAULT as DEFAULT_DEVICES, rule as device_rule};
pub(crate) use stats::Stats;

/// Limits of one cgroup; `None` leaves a value as it is. Memory and swap in bytes, -1 for no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) cpu_shares: Option<u64>,
    /// Microseconds of CPU per `cpu_period`; -1 for no limit.
    pub(crate) cpu_quota: Option<i64>,
    pub(crate) cpu_period: Option<u64>,
    pub(crate) cpuset_cpus: Option<String>,
    pub(crate) cpuset_mems: Option<String>,
    pub(crate) memory: Option<i64>,
    /// Memory and swap together, as CRI and v1 count it.
    pub(crate) memory_swap: Option<i64>,
    /// Page size ("2MB") to bytes.
    pub(crate) huge_pages: BTreeMap<String, u64>,
    /// Raw v2 files; ignored on v1, as upstream does.
    pub(crate) unified: BTreeMap<String, String>,
}

/// How a new process gets into a cgroup: born in it on v2, by its own write on v1.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Placement {
    /// The v2 directory.
    unified: Option<PathBuf>,
    /// The v1 `tasks` files. Writing "0" moves the writing thread alone, which the kernel does without
    /// the lock that makes the first write to `cgroup.procs` take 14 ms.
    tasks: Vec<PathBuf>,
}

impl Placement {
    /// The directory to pass to `CLONE_INTO_CGROUP`.
    pub(crate) fn birthplace(&self) -> io::Result<Option<OwnedFd>> {
        self.unified.as_ref().map(|path| std::fs::File::open(path).map(OwnedFd::from)).transpose()
    }

    /// Moves the calling, single-threaded process.
    pub(crate) fn join(&self) -> io::Result<()> {
        self.tasks.iter().try_for_each(|path| {
            std::fs::write(path, "0")
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
        })
    }
}

/// The machine's hierarchies.
#[derive(Clone, Debug)]
pub(crate) enum Cgroups {
    V1(v1::V1),
    V2(v2::V2),
}

impl Cgroups {
    /// Reads what is mounted. A hybrid layout counts as v1, because the controllers are there.
    pub(crate) fn detect() -> Result<Cgroups> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
        let hierarchies = v1::V1::from_mountinfo(&mounts);
        if hierarchies.has("memory") || hierarchies.has("cpu") {
            return Ok(Cgroups::V1(hierarchies));
        }
        let mount = v2::mount_point(&mounts).context("no cgroup hierarchy with a memory controller is mounted")?;
        Ok(Cgroups::V2(v2::V2 { mount }))
    }

    /// Makes the cgroup and its missing parents; `true` if it did not exist.
    pub(crate) fn create(&self, path: &str) -> Result<bool> {
        match self {
            Cgroups::V1(v1) => v1.create(path),
            Cgroups::V2(v2) => v2.create(path),
        }
    }

    pub(crate) fn apply(&self, path: &str, limits: &Limits) -> Result<()> {
        match self {
            Cgroups::V1(v1) => v1.apply(path, limits),
            Cgroups::V2(v2) => v2.apply(path, limits),
        }
    }

    /// Denies every device but those of `rules`.
    pub(crate) fn restrict_devices(&self, path: &str, rules: &[DeviceRule]) -> Result<()> {
        match self {
            Cgroups::V1(v1) => v1.restrict_devices(path, rules),
            Cgroups::V2(v2) => v2.restrict_devices(path, rules),
        }
    }

    /// Has a user manage what is below the cgroup. On v1 nobody but the host's root can.
    pub(crate) fn give(&self, path: &str, uid: u32, gid: u32) -> Result<()> {
        match self {
            Cgroups::V1(_) => Ok(()),
            Cgroups::V2(v2) => v2::give(&v2.directory(path), uid, gid),
        }
    }

    pub(crate) fn placement(&self, path: &str) -> Placement {
        match self {
            Cgroups::V1(v1) => {
                Placement { unified: None, tasks: v1.directories(path).map(|d| d.join("tasks")).collect() }
            }
            Cgroups::V2(v2) => Placement { unified: Some(v2.directory(path)), tasks: Vec::new() },
        }
    }

    /// Directories to show read-only in a container, as (name below /sys/fs/cgroup, source). Empty on
    /// v2, where a cgroup namespace shows the right one by itself.
    pub(crate) fn views(&self, path: &str) -> Vec<(String, PathBuf)> {
        match self {
            Cgroups::V1(v1) => v1.views(path),
            Cgroups::V2(_) => Vec::new(),
        }
    }

    pub(crate) fn is_v2(&self) -> bool {
        matches!(self, Cgroups::V2(_))
    }

    /// Every directory of this cgroup; the first is where `pids` looks.
    fn directories(&self, path: &str) -> Vec<PathBuf> {
        match self {
            Cgroups::V1(v1) => v1.directories(path).collect(),
            Cgroups::V2(v2) => vec![v2.directory(path)],
        }
    }

    pub(crate) fn stats(&self, path: &str) -> Option<Stats> {
        match self {
            Cgroups::V1(v1) => stats::v1(v1, path),
            Cgroups::V2(v2) => stats::v2(&v2.directory(path)),
        }
    }

    /// How many processes of this cgroup the kernel killed for want of memory.
    pub(crate) fn oom_kills(&self, path: &str) -> u64 {
        let file = match self {
            Cgroups::V1(v1) => v1.file("memory", path, "memory.oom_control"),
            Cgroups::V2(v2) => Some(v2.directory(path).join("memory.events")),
        };
        file.and_then(|file| stats::keyed(&file, "oom_kill")).unwrap_or(0)
    }

    /// Processes in the cgroup and below it.
    pub(crate) fn pids(&self, path: &str) -> Vec<Pid> {
        let mut pids = Vec::new();
        if let Some(directory) = self.directories(path).first() {
            walk(directory, &mut |directory| {
                let text = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
                pids.extend(text.lines().filter_map(|line| line.parse().ok()).map(Pid::from_raw));
            });
        }
        pids
    }

    /// Sends SIGKILL to every process; `true` if there was one.
    pub(crate) fn kill(&self, path: &str) -> bool {
        let pids = self.pids(path);
        if let (Cgroups::V2(v2), false) = (self, pids.is_empty())
            && std::fs::write(v2.directory(path).join("cgroup.kill"), "1").is_ok()
        {
            return true;
        }
        for pid in &pids {
            let _ = nix::sys::signal::kill(*pid, Signal::SIGKILL);
        }
        !pids.is_empty()
    }

    /// Removes the cgroup with its children. Idempotent; `ResourceBusy` while a process is left.
    pub(crate) fn remove(&self, path: &str) -> io::Result<()> {
        for directory in self.directories(path) {
            remove_tree(&directory)?;
        }
        Ok(())
    }

    /// Kills and removes, waiting up to `limit` for the kernel to let go of the processes.
    pub(crate) async fn destroy(&self, path: &str, limit: std::time::Duration) -> io::Result<()> {
        let deadline = tokio::time::Instant::now() + limit;
        let mut pause = std::time::Duration::from_millis(1);
        loop {
            let busy = self.kill(path);
            match self.remove(path) {
                Ok(()) if !busy => return Ok(()),
                Ok(()) => {}
                Err(error) if tokio::time::Instant::now() >= deadline => return Err(error),
                Err(_) => {}
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(std::time::Duration::from_millis(50));
        }
    }

    /// Removes the parents of `path` below `stop` that are empty now.
    pub(crate) fn prune(&self, path: &str, stop: &str) {
        let mut current = Path::new(path);
        while let Some(parent) =
            current.parent().filter(|parent| parent.starts_with(stop) && *parent != Path::new(stop))
        {
            let text = parent.to_string_lossy();
            if self.directories(&text).iter().any(|directory| has_children(directory)) || self.remove(&text).is_err() {
                return;
            }
            current = parent;
        }
    }
}

fn walk(directory: &Path, visit: &mut impl FnMut(&Path)) {
    for child in children(directory) {
        walk(&child, visit);
    }
    visit(directory);
}

fn children(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

fn has_children(directory: &Path) -> bool {
    !children(directory).is_empty()
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    for child in children(directory) {
        remove_tree(&child)?;
    }
    match std::fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn write(file: &Path, value: &str) -> Result<()> {
    std::fs::write(file, value).with_context(|| format!("write {value:?} to {}", file.display()))
}

/// Writes where the kernel has the file, and is content where it has not.
fn write_if_present(file: &Path, value: &str) -> Result<()> {
    if file.exists() { write(file, value) } else { Ok(()) }
}

/// Mount entries of one filesystem type: (root, mount point, super options).
fn mounts_of<'a>(mountinfo: &'a str, kind: &'a str) -> impl Iterator<Item = (&'a str, &'a str, &'a str)> {
    mountinfo.lines().filter_map(move |line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut filesystem = filesystem.split(' ');
        (filesystem.next()? == kind).then_some(())?;
        let mut fields = mount.split(' ').skip(3);
        Some((fields.next()?, fields.next()?, filesystem.nth(1).unwrap_or("")))
    })
}
