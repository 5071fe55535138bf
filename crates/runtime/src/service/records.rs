//! What the service knows about pods and containers, as it is kept on disk: CRI's own messages in
//! protobuf, one file each, so that a restarted service has what the kubelet told the last one.
//!
//! Written by rename but not synced: after a power failure nothing of a pod is left to describe.

use std::io;
use std::path::Path;

use cri::v1::{ContainerConfig, ContainerState, PodSandboxConfig, PodSandboxState};
use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub(crate) struct PodRecord {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) config: Option<PodSandboxConfig>,
    #[prost(int64, tag = "3")]
    pub(crate) created_at: i64,
    #[prost(bool, tag = "4")]
    pub(crate) ready: bool,
    #[prost(string, repeated, tag = "5")]
    pub(crate) ips: Vec<String>,
    #[prost(string, tag = "6")]
    pub(crate) runtime_handler: String,
    /// Cgroup of the pod; containers and infra process are its children.
    #[prost(string, tag = "7")]
    pub(crate) cgroup: String,
    /// 0 when it is not running.
    #[prost(int32, tag = "8")]
    pub(crate) pause: i32,
    /// The network has been asked for addresses and not yet told to take them back.
    #[prost(bool, tag = "9")]
    pub(crate) attached: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ContainerRecord {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(string, tag = "2")]
    pub(crate) pod: String,
    #[prost(message, optional, tag = "3")]
    pub(crate) config: Option<ContainerConfig>,
    #[prost(string, tag = "4")]
    pub(crate) image_id: String,
    #[prost(string, tag = "5")]
    pub(crate) image_ref: String,
    /// Nanoseconds since the epoch, as the three after it; 0 for not yet.
    #[prost(int64, tag = "6")]
    pub(crate) created_at: i64,
    #[prost(int64, tag = "7")]
    pub(crate) started_at: i64,
    #[prost(int64, tag = "8")]
    pub(crate) finished_at: i64,
    #[prost(int32, tag = "9")]
    pub(crate) exit_code: i32,
    #[prost(string, tag = "10")]
    pub(crate) reason: String,
    #[prost(string, tag = "11")]
    pub(crate) message: String,
    #[prost(int32, tag = "12")]
    pub(crate) pid: i32,
    #[prost(uint32, tag = "13")]
    pub(crate) uid: u32,
    #[prost(uint32, tag = "14")]
    pub(crate) gid: u32,
    #[prost(uint32, repeated, tag = "15")]
    pub(crate) groups: Vec<u32>,
    #[prost(string, tag = "16")]
    pub(crate) cgroup: String,
    /// Absolute; empty for none.
    #[prost(string, tag = "17")]
    pub(crate) log_path: String,
    #[prost(string, tag = "18")]
    pub(crate) stop_signal: String,
}

impl PodRecord {
    pub(crate) fn state(&self) -> PodSandboxState {
        if self.ready { PodSandboxState::SandboxReady } else { PodSandboxState::SandboxNotready }
    }

    pub(crate) fn config(&self) -> &PodSandboxConfig {
        static EMPTY: std::sync::LazyLock<PodSandboxConfig> = std::sync::LazyLock::new(PodSandboxConfig::default);
        self.config.as_ref().unwrap_or(&EMPTY)
    }
}

impl ContainerRecord {
    pub(crate) fn state(&self) -> ContainerState {
        match (self.started_at, self.finished_at) {
            (_, finished) if finished > 0 => ContainerState::ContainerExited,
            (started, _) if started > 0 => ContainerState::ContainerRunning,
            _ => ContainerState::ContainerCreated,
        }
    }

    pub(crate) fn config(&self) -> &ContainerConfig {
        static EMPTY: std::sync::LazyLock<ContainerConfig> = std::sync::LazyLock::new(ContainerConfig::default);
        self.config.as_ref().unwrap_or(&EMPTY)
    }
}

/// Name of a record in its directory.
const FILE: &str = "record";

pub(crate) fn save(directory: &Path, record: &impl Message) -> io::Result<()> {
    let temporary = directory.join("record.new");
    std::fs::write(&temporary, record.encode_to_vec())?;
    std::fs::rename(&temporary, directory.join(FILE))
}

/// The records of all subdirectories; a directory without a readable one is removed, being what an
/// interrupted creation or removal left.
pub(crate) fn load_all<T: Message + Default>(parent: &Path) -> io::Result<Vec<T>> {
    let mut records = Vec::new();
    for entry in std::fs::read_dir(parent)?.flatten() {
        let path = entry.path();
        match std::fs::read(path.join(FILE)).ok().and_then(|bytes| T::decode(bytes.as_slice()).ok()) {
            Some(record) => records.push(record),
            None => std::fs::remove_dir_all(&path)?,
        }
    }
    Ok(records)
}
