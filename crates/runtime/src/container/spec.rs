//! What a container is, in the runtime's own words: written by the service as a file, read by the
//! container's init. The shim in between never parses it, so that its heap stays small.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Everything the init needs besides its namespaces and descriptors.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) rootfs: Rootfs,
    /// Ordered so that a mount comes after those it lies in.
    pub(crate) mounts: Vec<Mount>,
    /// Paths the image declares as volumes: they stay writable below a read-only root.
    pub(crate) image_volumes: Vec<PathBuf>,
    pub(crate) masked_paths: Vec<PathBuf>,
    pub(crate) readonly_paths: Vec<PathBuf>,
    pub(crate) devices: Vec<DeviceNode>,
    /// Writable /sys and cgroups.
    pub(crate) privileged: bool,
    /// See `Cgroups::views`; empty means v2 and a cgroup namespace.
    pub(crate) cgroup_views: Vec<(String, PathBuf)>,
    /// Share the host's /dev/shm instead of the pod's.
    pub(crate) host_ipc: bool,
    pub(crate) process: Process,
}

/// An overlay over shared layers.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Rootfs {
    /// Directory that `lowers` are relative to; short names keep the mount options below one page.
    pub(crate) layers: PathBuf,
    /// Topmost first.
    pub(crate) lowers: Vec<String>,
    pub(crate) upper: PathBuf,
    pub(crate) work: PathBuf,
    /// Where the init mounts it, in its own mount namespace: all containers use the same directory.
    pub(crate) mount_point: PathBuf,
    pub(crate) readonly: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Propagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Mount {
    pub(crate) source: Source,
    pub(crate) target: PathBuf,
    pub(crate) readonly: bool,
    pub(crate) recursive_readonly: bool,
    pub(crate) propagation: Propagation,
    /// Files belong to the same users in the pod's user namespace as on the host.
    #[serde(default)]
    pub(crate) idmap: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Source {
    Host(PathBuf),
    /// An image as a read-only volume: overlay lowers, and the path inside to show.
    Image {
        lowers: Vec<String>,
        sub_path: PathBuf,
    },
}

impl Default for Source {
    fn default() -> Source {
        Source::Host(PathBuf::new())
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DeviceNode {
    pub(crate) path: PathBuf,
    pub(crate) block: bool,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// A process of a container: its init, or one executed later.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) args: Vec<String>,
    /// `KEY=value`, as execve takes them.
    pub(crate) env: Vec<String>,
    pub(crate) cwd: PathBuf,
    pub(crate) user: User,
    pub(crate) tty: bool,
    pub(crate) capabilities: Capabilities,
    pub(crate) no_new_privileges: bool,
    /// File with the compiled filter (`seccomp::compile`).
    pub(crate) seccomp: Option<PathBuf>,
    pub(crate) oom_score_adj: Option<i32>,
    pub(crate) apparmor: Option<String>,
}

/// A user as asked for; names are looked up in the container's own files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct User {
    /// `uid`, `name`, `uid:gid`, `name:group`; empty is root.
    pub(crate) name: String,
    pub(crate) gid: Option<u32>,
    pub(crate) supplemental: Vec<u32>,
    /// Leave out the groups that the image's /etc/group gives the user.
    pub(crate) strict: bool,
}

/// A user as found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// Bit sets by capability number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Capabilities {
    pub(crate) bounding: u64,
    pub(crate) ambient: u64,
}
