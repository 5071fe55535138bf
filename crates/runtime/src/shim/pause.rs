//! The pause process: holds a pod's namespaces and its /dev/shm, reaps orphans where it is pid 1.
//!
//! A fork of the shim that never executes anything, so it costs a few private pages. It lives in its
//! own mount namespace whose root is an empty tmpfs: nothing of the host is pinned by it.

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};

use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Gid, Uid};

use super::protocol::Sandbox;
use crate::container::process::{Report, send};
use crate::container::users::{Ids, become_root};
use crate::sys::mount::{self, Resolve, attr};
use crate::sys::{credentials, process, seqpacket};

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
    flags.set(CloneFlags::CLONE_NEWUSER, sandbox.users.is_some());
    flags
}

/// Never returns; says through `report` when the pod's namespaces are ready.
pub(crate) fn become_pause(sandbox: &Sandbox, report: OwnedFd) -> Infallible {
    process::reset_signals();
    let _ = nix::sys::prctl::set_dumpable(false);
    process::set_title("/pause");
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD].into_iter().collect();
    let _ = signals.thread_block();
    if let Err(message) = prepare(sandbox, &report) {
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

fn prepare(sandbox: &Sandbox, shim: &OwnedFd) -> Result<(), String> {
    sandbox.placement.join().map_err(|error| format!("enter the sandbox's cgroup: {error}"))?;
    let directory = mount::open_at(nix::fcntl::AT_FDCWD, &sandbox.directory, libc::O_PATH, 0, Resolve::NoMagicLinks)
        .map_err(|error| format!("open {}: {error}", sandbox.directory.display()))?;
    if sandbox.users.is_some() {
        // Nothing above was for this user namespace to decide; now the shim has given it its ids, or ends us.
        seqpacket::receive::<()>(shim.as_fd()).map_err(|error| format!("hear from the shim: {error}"))?;
        become_root()?;
    }
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
    own_root(&directory)?;
    drop_rights(sandbox).map_err(|error| format!("drop rights: {error}"))
}

/// By descriptors: the root of a user namespace may not walk the host's directories.
fn own_root(directory: &OwnedFd) -> Result<(), String> {
    let step = |what: &'static str| move |error: nix::Error| format!("{what}: {error}");
    let slave = MsFlags::MS_SLAVE | MsFlags::MS_REC;
    nix::mount::mount(None::<&str>, "/", None::<&str>, slave, None::<&str>).map_err(step("make / a slave"))?;
    let root = tmpfs("64k", "755", directory)?;
    nix::unistd::fchdir(&root).map_err(step("enter the pause root"))?;
    std::fs::create_dir_all("dev/shm").map_err(|error| format!("create /dev/shm: {error}"))?;
    let shm = mount::open_at(nix::fcntl::AT_FDCWD, "dev/shm".as_ref(), libc::O_PATH, 0, Resolve::NoMagicLinks);
    tmpfs(SHM_SIZE, "1777", &shm.map_err(|error| format!("open /dev/shm: {error}"))?)?;
    nix::unistd::pivot_root(".", ".").map_err(step("pivot_root"))?;
    nix::mount::umount2(".", MntFlags::MNT_DETACH).map_err(step("detach the old root"))?;
    nix::unistd::chdir("/").map_err(step("enter the new root"))
}

fn tmpfs(size: &str, mode: &str, target: &OwnedFd) -> Result<OwnedFd, String> {
    let options = [("size", size), ("mode", mode)];
    let tree = mount::new_filesystem("tmpfs", &options, attr::NOSUID | attr::NODEV | attr::NOEXEC);
    let mounted = tree.and_then(|tree| mount::attach(&tree, target).map(|()| tree));
    mounted.map_err(|error| format!("mount a tmpfs of {size} for the pause process: {error}"))
}

fn drop_rights(sandbox: &Sandbox) -> std::io::Result<()> {
    credentials::limit_bounding(0)?;
    nix::unistd::setgroups(&[])?;
    let known = |ids: Ids| NOBODY.min(ids.length - 1);
    let (uid, gid) = sandbox.users.map_or((NOBODY, NOBODY), |users| (known(users.uids), known(users.gids)));
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::unistd::setresuid(uid, uid, uid)?;
    Ok(nix::sys::prctl::set_no_new_privs()?)
}
