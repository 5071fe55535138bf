//! What the service and a shim say to each other. Kept stable: a service of tomorrow meets shims of
//! today, so fields are only added, with a default.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cgroup::Placement;
use crate::container::spec::Identity;
use crate::container::users::Users;

/// Which pid namespace a container lives in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PidNamespace {
    #[default]
    Own,
    Pod,
    Host,
    /// That of another container of the pod, by id.
    Target(String),
}

/// Spawner: fork a shim. One descriptor comes along, the shim's first connection, on which it
/// answers `Ready` or `Failed` and then goes on as after `Watch`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Sandbox {
    /// Holds the control socket.
    pub(crate) directory: PathBuf,
    /// Of the pause process.
    pub(crate) placement: Placement,
    /// Outside the pod's own cgroup: its memory limit must neither count nor kill the shim.
    pub(crate) shim_placement: Placement,
    /// `None` leaves the host's name (host network).
    pub(crate) hostname: Option<String>,
    pub(crate) host_network: bool,
    pub(crate) host_ipc: bool,
    /// The pause process is pid 1 of a namespace that containers may join.
    pub(crate) shared_pid: bool,
    pub(crate) sysctls: Vec<(String, String)>,
    /// The pod has a user namespace of its own.
    #[serde(default)]
    pub(crate) users: Option<Users>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// State now, then events as they come.
    Watch,
    Start(Start),
    /// With up to three descriptors for stdio; without a tty each `true` of `stdio` takes one.
    /// Answered by `Started`, then by `Exited`. Closing the connection leaves the process alone.
    Exec {
        container: String,
        process: PathBuf,
        placement: Placement,
        tty: bool,
        stdio: [bool; 3],
    },
    /// To the process of the `Exec` on the same connection.
    KillExec,
    Signal {
        container: String,
        signal: i32,
    },
    /// With a descriptor for each `true`. Answered by `Done` when the container's output has ended.
    Attach {
        container: String,
        stdio: [bool; 3],
    },
    Resize {
        container: String,
        columns: u16,
        rows: u16,
    },
    ReopenLog {
        container: String,
    },
    /// Forget an exited container.
    Remove {
        container: String,
    },
    /// Kill the pause process and leave.
    Stop,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    pub(crate) container: String,
    /// File with the container's `Spec`.
    pub(crate) spec: PathBuf,
    pub(crate) placement: Placement,
    pub(crate) pid_namespace: PidNamespace,
    pub(crate) host_network: bool,
    pub(crate) host_ipc: bool,
    pub(crate) stdin: bool,
    pub(crate) stdin_once: bool,
    pub(crate) tty: bool,
    pub(crate) log: Option<PathBuf>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Ready {
        pause: i32,
    },
    Done,
    Failed(String),
    /// With the terminal's master end for an exec with a tty.
    Started {
        pid: i32,
        identity: Identity,
    },
    Exited {
        code: i32,
    },
    State(State),
    Event(Event),
}

/// Everything a service that lost its memory needs.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) shim: i32,
    /// `None` once it has died.
    pub(crate) pause: Option<i32>,
    pub(crate) containers: Vec<ContainerState>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ContainerState {
    pub(crate) container: String,
    pub(crate) pid: i32,
    pub(crate) identity: Identity,
    /// Nanoseconds since the epoch.
    pub(crate) started_at: i64,
    pub(crate) exit: Option<Exit>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exit {
    /// 128 + n for a death by signal n.
    pub(crate) code: i32,
    /// Nanoseconds since the epoch.
    pub(crate) at: i64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Event {
    Exited { container: String, exit: Exit },
    PauseDied,
}
