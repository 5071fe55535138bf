//! The pause process: holds a pod's namespaces and its /dev/shm, reaps orphans where it is pid 1.
//!
//! A fork of the shim that never executes anything, so it costs a few private pages. It lives in its
//! own mount namespace whose root is an empty tmpfs: nothing of the host is pinned by it.

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Gid, Uid};

use super::protocol::Sandbox;
use crate::container::process::{Report, send};
use crate::sys::{credentials, process};

/// The user nobody maps to: the pause process needs no rights at all.
const NOBODY: u32 = 65_535;
/// As upstream's default for a pod's /dev/shm.
const SHM_SIZE: &str = "65536k";

/// Namespaces the pause process is born in.
pub(crate) fn namespaces(sandbox: &Sandbox) -> CloneFlags {
    let mut flags = CloneFlags::CLONE_NEWNS;
    flags.set(CloneFlags::CLONE_NEWNET, !sandbox.host_network);
    flags.set(CloneFlags::CLONE_NEWUTS, !sandbox.host_network);
    flags.set(CloneFlags::CLONE_NEWIPC, !sandbox.host_ipc);
    flags.set(CloneFlags::CLONE_NEWPID, sandbox.shared_pid);
    flags
}

/// Never returns; says through `report` when the pod's namespaces are ready.
pub(crate) fn become_pause(sandbox: &Sandbox, report: OwnedFd) -> Infallible {
    process::reset_signals();
    let _ = nix::sys::prctl::set_dumpable(false);
    process::set_title("/pause");
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD].into_iter().collect();
    let _ = signals.thread_block();
    let _ = std::fs::write("/proc/self/oom_score_adj", "-998");
    if let Err(message) = prepare(sandbox) {
        let _ = send(report.as_fd(), &Report::Failed(message), &[]);
        process::exit_now(1);
    }
    drop(report);
    process::close_from(0);
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => reap(),
            Ok(_) => process::exit_now(0),
            Err(_) => {}
        }
    }
}

fn reap() {
    while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive) {}
}

fn prepare(sandbox: &Sandbox) -> Result<(), String> {
    sandbox.placement.join().map_err(|error| format!("enter the sandbox's cgroup: {error}"))?;
    if let Some(hostname) = &sandbox.hostname {
        nix::unistd::sethostname(hostname).map_err(|error| format!("set hostname {hostname:?}: {error}"))?;
    }
    if !sandbox.host_network {
        credentials::loopback_up().map_err(|error| format!("bring up the loopback interface: {error}"))?;
    }
    for (name, value) in &sandbox.sysctls {
        let file = format!("/proc/sys/{}", name.replace('.', "/"));
        std::fs::write(&file, value).map_err(|error| format!("sysctl {name}={value}: {error}"))?;
    }
    own_root(&sandbox.directory)?;
    drop_rights().map_err(|error| format!("drop rights: {error}"))
}

fn own_root(mount_point: &Path) -> Result<(), String> {
    let step = |what: &'static str| move |error: nix::Error| format!("{what}: {error}");
    let guarded = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let tmpfs = |target: &Path, flags: MsFlags, options: &str| {
        nix::mount::mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some(options))
    };
    let slave = MsFlags::MS_SLAVE | MsFlags::MS_REC;
    nix::mount::mount(None::<&str>, "/", None::<&str>, slave, None::<&str>).map_err(step("make / a slave"))?;
    tmpfs(mount_point, guarded, "size=64k,mode=755").map_err(step("mount the pause root"))?;
    let shm = mount_point.join("dev/shm");
    std::fs::create_dir_all(&shm).map_err(|error| format!("create {}: {error}", shm.display()))?;
    tmpfs(&shm, guarded, &format!("size={SHM_SIZE},mode=1777")).map_err(step("mount /dev/shm"))?;
    nix::unistd::chdir(mount_point).map_err(step("enter the pause root"))?;
    nix::unistd::pivot_root(".", ".").map_err(step("pivot_root"))?;
    nix::mount::umount2(".", MntFlags::MNT_DETACH).map_err(step("detach the old root"))?;
    nix::unistd::chdir("/").map_err(step("enter the new root"))
}

fn drop_rights() -> std::io::Result<()> {
    credentials::limit_bounding(0)?;
    nix::unistd::setgroups(&[])?;
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::unistd::setresuid(uid, uid, uid)?;
    Ok(nix::sys::prctl::set_no_new_privs()?)
}
