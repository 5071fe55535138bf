//! The new mount API: trees as descriptors, which can be opened in one view of the filesystem and
//! attached in another. That is what lets the container's init open its sources on the host, switch
//! to the new root, and only then resolve targets, where no symbolic link can lead outside.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use super::{c_path, check};

const OPEN_TREE_CLONE: u32 = 1;
const OPEN_TREE_CLOEXEC: u32 = libc::O_CLOEXEC as u32;
const FSOPEN_CLOEXEC: u32 = 1;
const FSMOUNT_CLOEXEC: u32 = 1;
const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 0x04;
const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;
const AT_RECURSIVE: u32 = 0x8000;

/// Attributes of a mount, as `mount_setattr` knows them.
pub(crate) mod attr {
    pub(crate) const RDONLY: u64 = 0x1;
    pub(crate) const NOSUID: u64 = 0x2;
    pub(crate) const NODEV: u64 = 0x4;
    pub(crate) const NOEXEC: u64 = 0x8;
    pub(crate) const RELATIME: u64 = 0;
    /// Together with a user namespace.
    pub(super) const IDMAP: u64 = 0x0010_0000;
}

#[repr(C)]
#[derive(Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let raw = check(result)? as i32;
    // SAFETY: the kernel just returned this descriptor to us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// A detached copy of the mounts at `path`, with everything below it if `recursive`.
pub(crate) fn clone_tree(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: `path` is a NUL-terminated string that outlives the call.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })
}

/// A detached new filesystem. Options without a value are flags.
pub(crate) fn new_filesystem(kind: &str, options: &[(&str, &str)], attributes: u64) -> io::Result<OwnedFd> {
    let kind = CString::new(kind)?;
    // SAFETY: `kind` is NUL-terminated and outlives the call.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) })?;
    for (key, value) in options {
        configure(context.as_fd(), key, value)?;
    }
    let (fd, none) = (context.as_raw_fd(), std::ptr::null::<libc::c_char>());
    // SAFETY: CMD_CREATE takes no strings; null pointers are what it asks for.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_CMD_CREATE, none, none, 0) })?;
    // SAFETY: plain integers.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, fd, FSMOUNT_CLOEXEC, attributes) })
}

fn configure(context: BorrowedFd, key: &str, value: &str) -> io::Result<()> {
    let (key, value) = (CString::new(key)?, CString::new(value)?);
    let (command, value) = match value.is_empty() {
        true => (FSCONFIG_SET_FLAG, std::ptr::null()),
        false => (FSCONFIG_SET_STRING, value.as_ptr()),
    };
    // SAFETY: both strings are NUL-terminated and live until the end of this function.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, key.as_ptr(), value, 0) })?;
    Ok(())
}

/// Attaches a detached tree on `target` (opened with `O_PATH`).
pub(crate) fn attach(tree: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
    let empty = c"".as_ptr();
    let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: `empty` is a static NUL-terminated string.
    check(unsafe { libc::syscall(libc::SYS_move_mount, tree.as_raw_fd(), empty, target.as_raw_fd(), empty, flags) })?;
    Ok(())
}

/// Sets attributes and, unless 0, the propagation (`MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`) of a mount.
pub(crate) fn set_attributes(tree: &OwnedFd, recursive: bool, set: u64, propagation: u64) -> io::Result<()> {
    change(tree, recursive, &MountAttr { set, propagation, ..MountAttr::default() })
}

/// Shows the files of a detached tree's topmost mount as owned by what their owners are in `users`, a user namespace.
pub(crate) fn map_owners(tree: &OwnedFd, users: BorrowedFd) -> io::Result<()> {
    let users = users.as_raw_fd() as u64;
    change(tree, false, &MountAttr { set: attr::IDMAP, userns_fd: users, ..MountAttr::default() })
}

fn change(tree: &OwnedFd, recursive: bool, attributes: &MountAttr) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH as u32 | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: the attribute block is borrowed for the call and its size is passed along.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            attributes,
            size_of::<MountAttr>(),
        )
    })?;
    Ok(())
}

/// How far `open_beneath` follows links.
#[derive(Clone, Copy)]
pub(crate) enum Resolve {
    /// Absolute and `..` links stay below the directory, as after a chroot; `/proc` links are refused.
    InRoot,
    /// The usual rules, but `/proc` links are refused.
    NoMagicLinks,
}

/// `openat2` relative to `directory`.
pub(crate) fn open_at(
    directory: BorrowedFd,
    path: &Path,
    flags: i32,
    mode: u32,
    resolve: Resolve,
) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let resolve = match resolve {
        Resolve::InRoot => libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS,
        Resolve::NoMagicLinks => libc::RESOLVE_NO_MAGICLINKS,
    };
    let how = OpenHow { flags: (flags | libc::O_CLOEXEC) as u64, mode: mode.into(), resolve };
    // SAFETY: path and `how` are live locals; the size of `how` is passed along.
    owned(unsafe { libc::syscall(libc::SYS_openat2, directory.as_raw_fd(), path.as_ptr(), &how, size_of::<OpenHow>()) })
}
