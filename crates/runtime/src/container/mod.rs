//! A container's init: from a [`spec::Spec`] to a running process, in the forked child of a shim.
//!
//! Knows the kernel, not CRI: the service has turned requests into specs before. It is our own code
//! and not a runtime library's for the reasons of docs/adr/002-own-container-init.md.

pub(crate) mod capabilities;
pub(crate) mod init;
pub(crate) mod process;
pub(crate) mod rootfs;
pub(crate) mod seccomp;
pub(crate) mod spec;
mod syscalls;
pub(crate) mod user;
pub(crate) mod users;
