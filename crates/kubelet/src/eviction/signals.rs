//! Measures what thresholds are compared with.

use super::threshold::Signal;
use nix::sys::statvfs::statvfs;
use std::collections::BTreeMap;
use std::path::Path;

/// What there is of something, and what of it is left.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    pub available: u64,
    pub capacity: u64,
}

/// A signal that could not be measured is absent, and then meets no threshold.
pub type Levels = BTreeMap<Signal, Level>;

/// `nodefs` and `imagefs` are paths on the file systems of pods and of images.
pub fn measure(nodefs: &Path, imagefs: &Path) -> Levels {
    let mut levels = Levels::new();
    let memory = |field| crate::node::memory_kib(field) << 10;
    let memory = Level { available: memory("MemAvailable"), capacity: memory("MemTotal") };
    if memory.capacity > 0 {
        levels.insert(Signal::MemoryAvailable, memory);
    }
    let disks = [
        (nodefs, Signal::NodefsAvailable, Signal::NodefsInodesFree),
        (imagefs, Signal::ImagefsAvailable, Signal::ImagefsInodesFree),
    ];
    for (path, space, inodes) in disks {
        let Ok(disk) = statvfs(path) else { continue };
        let block = disk.fragment_size();
        levels.insert(space, Level { available: disk.blocks_available() * block, capacity: disk.blocks() * block });
        // Some file systems (btrfs) have no fixed number of inodes and say zero.
        if disk.files() > 0 {
            levels.insert(inodes, Level { available: disk.files_available(), capacity: disk.files() });
        }
    }
    levels.extend(processes().map(|level| (Signal::PidAvailable, level)));
    levels
}

/// The kernel's limits on processes and what runs.
fn processes() -> Option<Level> {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{name}")).ok();
    let limit = |name: &str| read(name)?.trim().parse::<u64>().ok();
    let capacity = limit("sys/kernel/pid_max")?.min(limit("sys/kernel/threads-max")?);
    let running: u64 = read("loadavg")?.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()?;
    Some(Level { available: capacity.saturating_sub(running), capacity })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_can_be_measured() {
        let levels = measure(Path::new("/"), Path::new("/"));
        for signal in [Signal::MemoryAvailable, Signal::NodefsAvailable, Signal::ImagefsAvailable, Signal::PidAvailable]
        {
            let level = levels[&signal];
            assert!(level.capacity > 0 && level.available <= level.capacity, "{signal}: {level:?}");
        }
    }
}
