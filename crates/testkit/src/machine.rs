//! What a cluster could leave behind on the machine, for comparing before and after.

use std::collections::BTreeSet;
use std::fs;

use nix::sys::statvfs::statvfs;

/// Images, stores and logs of a few clusters at a time.
const NEEDED_DISK_BYTES: u64 = 1 << 30;

/// Fails, naming what is lacking, where every cluster would fail for it in its own obscure way.
pub(crate) fn preflight() {
    let disk = statvfs("/var/lib").expect("look at the file system of /var/lib");
    let available = disk.blocks_available() * disk.fragment_size();
    assert!(
        available >= NEEDED_DISK_BYTES,
        "the disk is too full for test clusters: /var/lib has {} MiB left and needs {} MiB",
        available >> 20,
        NEEDED_DISK_BYTES >> 20
    );
}

/// A snapshot of processes, mounts, control groups, interfaces and directories that name a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traces {
    pub processes: BTreeSet<String>,
    pub mounts: BTreeSet<String>,
    pub cgroups: BTreeSet<String>,
    pub interfaces: BTreeSet<String>,
    pub directories: BTreeSet<String>,
}

impl Traces {
    /// Everything on this machine that has to do with the cluster `name`. Interfaces and nft rules
    /// live in the cluster's own namespaces; the machine's interfaces are listed whole.
    pub fn of(name: &str) -> Traces {
        let run = format!("/run/isopod/{name}");
        let data = format!("/var/lib/isopod/clusters/{name}");
        let group = format!("/isopod/{name}");
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read mountinfo");
        let paths: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(4)).collect();
        Traces {
            processes: processes(&group, &[&run, &data]),
            mounts: paths
                .iter()
                .filter(|p| p.starts_with(&run) || p.starts_with(&data))
                .map(|p| p.to_string())
                .collect(),
            cgroups: cgroups(&group),
            interfaces: fs::read_dir("/sys/class/net")
                .expect("list interfaces")
                .flatten()
                .filter_map(|entry| entry.file_name().into_string().ok())
                .collect(),
            directories: [run, data].into_iter().filter(|path| fs::metadata(path).is_ok()).collect(),
        }
    }
}

/// Where the control group exists.
pub(crate) fn cgroups(group: &str) -> BTreeSet<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read mountinfo");
    let hierarchies =
        mounts.lines().filter(|line| line.split(" - ").nth(1).is_some_and(|tail| tail.starts_with("cgroup")));
    let roots = hierarchies.filter_map(|line| line.split(' ').nth(4));
    roots.map(|root| format!("{root}{group}")).filter(|path| fs::metadata(path).is_ok()).collect()
}

/// Live processes in the control group, or whose command line names one of `paths`.
pub(crate) fn processes(group: &str, paths: &[&str]) -> BTreeSet<String> {
    let entries = fs::read_dir("/proc").expect("list processes").flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(|pid| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
            let inside = groups.lines().any(|line| {
                line.splitn(3, ':')
                    .nth(2)
                    .and_then(|path| path.strip_prefix(group))
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            });
            (inside || paths.iter().any(|path| command.contains(path))).then(|| format!("{pid} {command}"))
        })
        .collect()
}
