//! Accounts of a cgroup.

use std::path::Path;

use super::v1::V1;

/// CPU in nanoseconds since creation, memory in bytes now.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stats {
    pub(crate) cpu_nanoseconds: u64,
    pub(crate) memory_usage: u64,
    /// Usage without the page cache that can be dropped at once.
    pub(crate) memory_working_set: u64,
    pub(crate) memory_rss: u64,
    /// 0 without a limit.
    pub(crate) memory_limit: u64,
    pub(crate) page_faults: u64,
    pub(crate) major_page_faults: u64,
    pub(crate) swap_usage: u64,
    pub(crate) processes: u64,
}

/// A limit this large is v1's word for none.
const NO_LIMIT: u64 = 1 << 62;

pub(super) fn v1(hierarchies: &V1, path: &str) -> Option<Stats> {
    let file = |controller: &str, name: &str| hierarchies.file(controller, path, name);
    let read = |controller: &str, name: &str| file(controller, name).and_then(|file| number(&file));
    let stat = file("memory", "memory.stat")?;
    let usage = read("memory", "memory.usage_in_bytes")?;
    Some(Stats {
        cpu_nanoseconds: read("cpuacct", "cpuacct.usage").unwrap_or(0),
        memory_usage: usage,
        memory_working_set: usage.saturating_sub(keyed(&stat, "total_inactive_file").unwrap_or(0)),
        memory_rss: keyed(&stat, "total_rss").unwrap_or(0),
        memory_limit: read("memory", "memory.limit_in_bytes").filter(|limit| *limit < NO_LIMIT).unwrap_or(0),
        page_faults: keyed(&stat, "total_pgfault").unwrap_or(0),
        major_page_faults: keyed(&stat, "total_pgmajfault").unwrap_or(0),
        swap_usage: read("memory", "memory.memsw.usage_in_bytes").map_or(0, |both| both.saturating_sub(usage)),
        processes: read("pids", "pids.current").unwrap_or(0),
    })
}

pub(super) fn v2(directory: &Path) -> Option<Stats> {
    let read = |name: &str| number(&directory.join(name));
    let stat = directory.join("memory.stat");
    let usage = read("memory.current")?;
    Some(Stats {
        cpu_nanoseconds: keyed(&directory.join("cpu.stat"), "usage_usec").unwrap_or(0) * 1000,
        memory_usage: usage,
        memory_working_set: usage.saturating_sub(keyed(&stat, "inactive_file").unwrap_or(0)),
        memory_rss: keyed(&stat, "anon").unwrap_or(0),
        memory_limit: read("memory.max").unwrap_or(0),
        page_faults: keyed(&stat, "pgfault").unwrap_or(0),
        major_page_faults: keyed(&stat, "pgmajfault").unwrap_or(0),
        swap_usage: read("memory.swap.current").unwrap_or(0),
        processes: read("pids.current").unwrap_or(0),
    })
}

fn number(file: &Path) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The value beside `key` in a file of "key value" lines.
pub(super) fn keyed(file: &Path, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.split_once(' ').filter(|(name, _)| *name == key)?.1.trim().parse().ok())
}
