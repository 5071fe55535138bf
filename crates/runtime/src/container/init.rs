//! A process's way into its container, in the forked child of the shim. Errors travel back to the
//! shim as text and become the pod's message.

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nix::sched::CloneFlags;

use super::process::{Report, Stdio, execute, send};
use super::rootfs;
use super::spec::{Process, Spec};
use super::users::UserNamespace;
use crate::cgroup::Placement;
use crate::sys::process::{close_on_exec_from, exit_now, reset_signals};

/// Exit code of a child that did not come as far as its command.
pub(crate) const START_FAILED: i32 = 128;

/// What the shim hands to a container's init.
pub(crate) struct Init {
    pub(crate) spec: PathBuf,
    pub(crate) placement: Placement,
    /// The pod's infra process and which of its namespaces to join.
    pub(crate) pause: OwnedFd,
    pub(crate) join: CloneFlags,
    /// The pod's own, if it has one.
    pub(crate) users: Option<UserNamespace>,
    pub(crate) stdio: Stdio,
    pub(crate) report: OwnedFd,
}

/// What the shim hands to a process executed in a running container.
pub(crate) struct Exec {
    /// File with a [`Process`].
    pub(crate) process: PathBuf,
    pub(crate) placement: Placement,
    /// The container's init.
    pub(crate) container: OwnedFd,
    pub(crate) users: Option<UserNamespace>,
    pub(crate) stdio: Stdio,
    pub(crate) report: OwnedFd,
}

/// Becomes the container's command; runs in a child that was born in new mount and, if it has its
/// own, pid namespaces.
pub(crate) fn become_container(init: Init) -> Infallible {
    let Init { spec, placement, pause, join, users, stdio, report } = init;
    finish(&report.try_clone(), || {
        enter_cgroup(&placement)?;
        let spec: Spec = read(&spec)?;
        let filter = read_filter(&spec.process)?;
        set_oom_score(&spec.process);
        if !join.is_empty() {
            nix::sched::setns(pause.as_fd(), join).map_err(|error| format!("join the pod's namespaces: {error}"))?;
        }
        if spec.cgroup_views.is_empty() {
            unshare(CloneFlags::CLONE_NEWCGROUP)?;
        }
        let sources = rootfs::open_sources(&spec, Some(&pause), users.as_ref())?;
        nix::sys::stat::umask(nix::sys::stat::Mode::empty()); // what is made below has the mode it asks for
        rootfs::enter(&spec, users.as_ref())?;
        rootfs::populate(&spec, sources, users.as_ref())?;
        if let Some(users) = users {
            users.join(&stdio)?;
            // Again, so that the container's rights act on them; what is mounted is locked in its place by that.
            unshare(CloneFlags::CLONE_NEWNS)?;
            if spec.cgroup_views.is_empty() {
                unshare(CloneFlags::CLONE_NEWCGROUP)?;
            }
        }
        execute(&spec.process, &filter, stdio, report.as_fd(), |terminal| {
            if let Some(slave) = terminal {
                rootfs::console(slave)?;
            }
            if spec.rootfs.readonly { rootfs::seal() } else { Ok(()) }
        })
    })
}

fn unshare(namespace: CloneFlags) -> Result<(), String> {
    nix::sched::unshare(namespace).map_err(|error| format!("new namespace {namespace:?}: {error}"))
}

/// Becomes a command in a running container; its pid namespace was chosen before the fork.
pub(crate) fn become_exec(exec: Exec) -> Infallible {
    let Exec { process, placement, container, users, stdio, report } = exec;
    finish(&report.try_clone(), || {
        enter_cgroup(&placement)?;
        let process: Process = read(&process)?;
        let filter = read_filter(&process)?;
        set_oom_score(&process);
        let namespaces = CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWCGROUP;
        nix::sched::setns(container.as_fd(), namespaces)
            .map_err(|error| format!("join the container's namespaces: {error}"))?;
        if let Some(users) = users {
            users.join(&stdio)?;
        }
        execute(&process, &filter, stdio, report.as_fd(), |_| Ok(()))
    })
}

fn finish(report: &std::io::Result<OwnedFd>, body: impl FnOnce() -> Result<Infallible, String>) -> Infallible {
    reset_signals();
    // Unreadable to the processes of a shared pid namespace until the command takes over.
    let _ = nix::sys::prctl::set_dumpable(false);
    close_on_exec_from(3);
    let Err(message) = body();
    if let Ok(report) = report {
        let _ = send(report.as_fd(), &Report::Failed(message), &[]);
    }
    exit_now(START_FAILED)
}

fn enter_cgroup(placement: &Placement) -> Result<(), String> {
    placement.join().map_err(|error| format!("enter the cgroup: {error}"))
}

fn read<T: serde::de::DeserializeOwned>(path: &std::path::Path) -> Result<T, String> {
    let bytes = std::fs::read(path).map_err(|error| format!("read {}: {error}", path.display()))?;
    serde_json::from_slice(&bytes).map_err(|error| format!("parse {}: {error}", path.display()))
}

/// Read while the host's files are still there.
fn read_filter(process: &Process) -> Result<Vec<u64>, String> {
    let Some(path) = &process.seccomp else { return Ok(Vec::new()) };
    super::seccomp::read(path).map_err(|error| format!("read the seccomp filter {}: {error}", path.display()))
}

/// Raising the score is always allowed; lowering it takes CAP_SYS_RESOURCE, without which the process
/// keeps the shim's. The service has said so once in its log.
fn set_oom_score(process: &Process) {
    if let Some(score) = process.oom_score_adj {
        let _ = std::fs::write("/proc/self/oom_score_adj", score.to_string());
    }
}
