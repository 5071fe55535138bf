//! The place a throwaway cluster lives in: its namespaces, directories and control groups.
//!
//! `isopod up` puts a whole cluster into a [`Sandbox`], so that nothing of it shows on the host but
//! one loopback listener, and so that [`cleanup::remove_sandbox`] can take it away again whatever happened.
//! It knows nothing of what runs inside. The namespaces are pinned by bind mounts, as `ip netns`
//! does, because pods outlive the main process: a second start must find the same ones.

pub mod cleanup;
mod lan;
mod namespaces;

use std::fs::{self, File, TryLockError};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
pub use namespaces::{Namespaces, in_network_namespace};
use serde::{Deserialize, Serialize};

/// Runtime state of every throwaway cluster; a tmpfs on most machines.
pub const RUN_ROOT: &str = "/run/isopod";
/// Stored state of every throwaway cluster.
const DATA_ROOT: &str = "/var/lib/isopod/clusters";

/// The name, among those of throwaway clusters, of what runs on the host itself.
pub const HOST: &str = "node";

/// The first node's address on the cluster's private LAN; the LAN's own end is `.1`.
pub const NODE_IP: Ipv4Addr = Ipv4Addr::new(10, 40, 0, 2);

/// How long a process may take to end.
const DYING: Duration = Duration::from_secs(10);

/// A named throwaway cluster's place.
pub struct Sandbox {
    pub name: String,
    /// `/run/isopod/NAME`: lock, state, sockets, namespace pins.
    pub run_dir: PathBuf,
    /// `/var/lib/isopod/clusters/NAME`: store, certificates, images, volumes, logs.
    pub data_dir: PathBuf,
}

/// What a later command must know of a cluster; written to `cluster.json` when it starts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// The launcher (`isopod up`) or, when detached, the main process.
    pub pid: i32,
    /// Loopback port of the API, kept over restarts so that kubeconfigs stay true.
    pub api_port: u16,
    pub kubeconfig: PathBuf,
}

/// Takes a run directory for this process and its children; `None` while others have it. The lock ends when
/// the last of them closes the file; a guard that unlocks would end it for the main process when a detached
/// launcher leaves.
pub fn try_lock(run_dir: &Path) -> anyhow::Result<Option<File>> {
    fs::create_dir_all(run_dir).with_context(|| format!("create {}", run_dir.display()))?;
    let path = run_dir.join("lock");
    let file = File::options().create(true).truncate(false).read(true).write(true).open(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("lock {}", path.display())),
    }
}

/// The same, for a start soon after a crash: the kernel takes a moment to close the files of the process that
/// last had the directory.
pub fn lock_after(run_dir: &Path, last: Option<i32>) -> anyhow::Result<Option<File>> {
    let is_dying = |pid: i32| fs::read_link(format!("/proc/{pid}/exe")).is_err();
    let deadline = Instant::now() + DYING;
    loop {
        let lock = try_lock(run_dir)?;
        if lock.is_some() || !last.is_some_and(is_dying) || Instant::now() > deadline {
            return Ok(lock);
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "no executor runs here, and exits of strangers cannot be awaited"
        )]
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Sandbox {
    /// Names are path components and cgroup names, so they must be DNS labels.
    pub fn new(name: &str) -> anyhow::Result<Sandbox> {
        let valid = !name.is_empty()
            && name.len() <= 40
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !name.starts_with('-')
            && !name.ends_with('-');
        if !valid {
            bail!(
                "cluster name {name:?} must be at most 40 lower-case letters, digits or '-', and not begin or end with '-'"
            );
        }
        if name == HOST {
            bail!("cluster name {HOST:?} is taken: it is what `isopod server` runs as");
        }
        Ok(Sandbox {
            name: name.to_owned(),
            run_dir: Path::new(RUN_ROOT).join(name),
            data_dir: Path::new(DATA_ROOT).join(name),
        })
    }

    /// Names of the clusters that have left something on this machine.
    pub fn list() -> Vec<String> {
        let mut names: Vec<String> = [RUN_ROOT, DATA_ROOT]
            .iter()
            .filter_map(|root| fs::read_dir(root).ok())
            .flat_map(|entries| entries.flatten())
            .filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name != HOST)
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// Path of the cluster's control groups below each controller.
    pub fn cgroup(&self) -> String {
        format!("/isopod/{}", self.name)
    }

    pub fn state(&self) -> Option<State> {
        serde_json::from_slice(&fs::read(self.run_dir.join("cluster.json")).ok()?).ok()
    }

    pub fn save_state(&self, state: &State) -> anyhow::Result<()> {
        let path = self.run_dir.join("cluster.json");
        fs::write(&path, serde_json::to_vec(state)?).with_context(|| format!("write {}", path.display()))
    }

    /// Takes the cluster for this process and its children.
    pub fn lock(&self) -> anyhow::Result<File> {
        fs::create_dir_all(&self.data_dir).with_context(|| format!("create {}", self.data_dir.display()))?;
        let last = self.state().map(|state| state.pid);
        let Some(file) = lock_after(&self.run_dir, last)? else {
            let pid = last.map_or(String::new(), |pid| format!(" (pid {pid})"));
            let name = &self.name;
            bail!("cluster {name:?} is already running{pid}; use it, or remove it with `isopod down --name {name}`")
        };
        Ok(file)
    }

    /// The pinned namespaces, made and wired up if this is the first start.
    pub fn namespaces(&self) -> anyhow::Result<Namespaces> {
        let namespaces = Namespaces::open_or_create(&self.run_dir.join("ns"))?;
        if namespaces.created {
            lan::connect(&namespaces).context("set up the cluster's virtual network")?;
        }
        Ok(namespaces)
    }
}
