//! The shim: one small process per pod that outlives the service, owns the pause process and the
//! containers, holds their stdio and tells how they ended.
//!
//! Single-threaded, a poll loop, no async runtime. Shims are forked from one template process
//! ([`spawner`]) instead of executed, so that relocated data and heap are shared among them: what a
//! pod costs is the pages its shim has written to.

pub(crate) mod log;
pub(crate) mod pause;
pub(crate) mod protocol;
pub(crate) mod server;
pub(crate) mod spawner;
mod streams;

/// Name of the control socket in a sandbox's state directory.
pub(crate) const SOCKET: &str = "shim.sock";
