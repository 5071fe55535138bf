//! A pod's own user namespace, and how its processes come into it.
//!
//! What a container sees is put together by the host's root, who alone may mount overlays and set owners; its process
//! joins the namespace last (docs/adr/008-late-user-namespace.md). Knows no mounts by name.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::sched::CloneFlags;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Gid, Uid};
use serde::{Deserialize, Serialize};

use super::process::{Stdio, lower};
use crate::sys::{credentials, mount, process};

/// The ids from 0 to `length` of a namespace are the host's from `host` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ids {
    pub(crate) host: u32,
    pub(crate) length: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Users {
    pub(crate) uids: Ids,
    pub(crate) gids: Ids,
}

impl Users {
    /// Gives a process in a new user namespace its ids.
    pub(crate) fn give(&self, pid: i32) -> io::Result<()> {
        for (file, ids) in [("uid_map", self.uids), ("gid_map", self.gids)] {
            std::fs::write(format!("/proc/{pid}/{file}"), format!("0 {} {}", ids.host, ids.length))?;
        }
        Ok(())
    }

    /// Root's ids, as the host counts.
    pub(crate) fn root(&self) -> (Uid, Gid) {
        (Uid::from_raw(self.uids.host), Gid::from_raw(self.gids.host))
    }
}

/// A namespace that lives as long as this.
pub(crate) struct UserNamespace {
    pub(crate) users: Users,
    fd: OwnedFd,
}

impl UserNamespace {
    pub(crate) fn of(pid: i32, users: Users) -> io::Result<UserNamespace> {
        Ok(UserNamespace { users, fd: std::fs::File::open(format!("/proc/{pid}/ns/user"))?.into() })
    }

    pub(crate) fn try_clone(&self) -> io::Result<UserNamespace> {
        Ok(UserNamespace { users: self.users, fd: self.fd.try_clone()? })
    }

    /// Has the files of a detached tree belong to the same users inside as outside. `source` is where it is from.
    pub(crate) fn map(&self, tree: &OwnedFd, source: &Path) -> Result<(), String> {
        mount::map_owners(tree, self.fd.as_fd()).map_err(|error| {
            let hint = match error.raw_os_error() {
                Some(libc::EINVAL) => " (maybe the filesystem used doesn't support idmap mounts on this kernel?)",
                _ => "",
            };
            format!("failed to set MOUNT_ATTR_IDMAP on {}: {}{hint}", source.display(), lower(error))
        })
    }

    /// From here on what the calling process creates belongs to the namespace's root; its rights stay the host's.
    pub(crate) fn create_as_root(&self) -> Result<(), String> {
        let (uid, gid) = self.users.root();
        nix::unistd::setfsgid(gid);
        nix::unistd::setfsuid(uid);
        // The change has taken the rights over files away.
        let held = credentials::permitted().and_then(|held| credentials::set_capabilities(held, held, 0));
        held.map_err(|error| format!("keep the rights of the host's root: {error}"))
    }

    /// Joins the namespace for good, as its root. The rights over others end here, so `stdio` changes hands before.
    pub(crate) fn join(&self, stdio: &Stdio) -> Result<(), String> {
        let (uid, gid) = self.users.root();
        if let Stdio::Descriptors(fds) = stdio {
            for fd in fds.iter().flatten() {
                let _ = nix::unistd::fchown(fd, Some(uid), Some(gid)); // a file or socket may refuse
            }
        }
        nix::sched::setns(self.fd.as_fd(), CloneFlags::CLONE_NEWUSER)
            .map_err(|error| format!("join the pod's user namespace: {error}"))?;
        become_root()
    }
}

/// Takes the root user of the user namespace that the calling process is in.
pub(crate) fn become_root() -> Result<(), String> {
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    nix::unistd::setgroups(&[])
        .and_then(|()| nix::unistd::setresgid(gid, gid, gid))
        .and_then(|()| nix::unistd::setresuid(uid, uid, uid))
        .map_err(|error| format!("become root of the user namespace: {error}"))
}

/// Whether the files of `directory` can be shown to user namespaces: tried, for it depends on the kernel, on what it
/// allows, and on the filesystem.
pub(crate) fn supported(directory: &Path) -> Result<(), String> {
    let ids = Ids { host: 65_536, length: 65_536 };
    let users = Users { uids: ids, gids: ids };
    let fail = |error: io::Error| format!("make a user namespace: {error}");
    let (pid, pidfd) = process::sleeper(libc::CLONE_NEWUSER).map_err(fail)?;
    let namespace = users.give(pid.as_raw()).and_then(|()| UserNamespace::of(pid.as_raw(), users)).map_err(fail);
    let tried = namespace.and_then(|namespace| {
        let tree = mount::clone_tree(directory, false).map_err(|e| format!("open {}: {e}", directory.display()))?;
        namespace.map(&tree, directory)
    });
    let _ = process::signal(pidfd.as_fd(), libc::SIGKILL);
    let _ = waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED);
    tried
}
