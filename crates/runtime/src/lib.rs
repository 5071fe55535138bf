//! The embedded container runtime: images, snapshots, sandboxes, shim; served as CRI v1.
//!
//! Never knows the Kubernetes API: what it is told comes through CRI, so the kubelet can have any
//! other runtime in its place, and crictl works. Three kinds of process share this crate. The
//! *service* (`serve`) is async and multi-threaded, keeps records and decides. A *shim* per pod
//! (`shim`) is single-threaded and outlives it. A container's *init* (`container`) is a fork of the
//! shim that turns into the container's command.

mod cgroup;
mod container;
mod images;
mod service;
mod shim;
pub mod streaming;
mod sys;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use tokio_util::sync::CancellationToken;

pub use images::{Credentials, Image, ImageConfig, Images};
pub use service::Service;

/// Where the runtime keeps things and what it works with.
#[derive(Clone)]
pub struct Config {
    /// Images and container directories: survives reboots. `/var/lib/isopod/runtime`.
    pub root: PathBuf,
    /// Sockets and specs of running pods: must not survive a reboot. `/run/isopod/runtime`.
    pub state: PathBuf,
    /// The CRI socket, mode 0600.
    pub socket: PathBuf,
    /// Absolute path that every cgroup of ours is below, such as `/isopod/NAME`.
    pub cgroup_root: String,
    pub network: Arc<dyn network::PodNetwork>,
    /// Where exec, attach and port-forward streams are served.
    pub streaming_listen: std::net::SocketAddr,
    /// The binary to run shims from; its main calls [`entrypoint`] first.
    pub shim_exe: PathBuf,
    /// Images that are made here instead of pulled, by full name.
    pub builtin_images: BTreeMap<String, WriteImage>,
}

/// Writes an image archive to the path it is given.
pub type WriteImage = Arc<dyn Fn(&std::path::Path) -> Result<()> + Send + Sync>;

impl Config {
    /// The usual places for a node called `name`, and shims from the running binary.
    pub fn new(name: &str, network: Arc<dyn network::PodNetwork>) -> Config {
        let state = PathBuf::from("/run/isopod").join(name);
        Config {
            root: "/var/lib/isopod/runtime".into(),
            socket: state.join("runtime.sock"),
            state: state.join("runtime"),
            cgroup_root: format!("/isopod/{name}"),
            network,
            streaming_listen: ([127, 0, 0, 1], 0).into(),
            shim_exe: "/proc/self/exe".into(),
            builtin_images: BTreeMap::new(),
        }
    }
}

/// Serves CRI until `shutdown`. Pods go on running afterwards and are found again by the next call.
pub async fn serve(config: Config, shutdown: CancellationToken) -> Result<()> {
    Service::open(config).await?.serve(shutdown).await
}

/// Ends every pod under this configuration and removes what they left: processes, cgroups, addresses,
/// records. Images stay. For clusters that leave nothing behind; idempotent.
pub async fn remove_all(config: Config) -> Result<()> {
    service::remove_all(config).await
}

/// Called first in main, before any thread exists: takes over if the arguments say that this process
/// is to be the template of shims.
pub fn entrypoint(mut args: impl Iterator<Item = std::ffi::OsString>) -> Option<Infallible> {
    (args.nth(1)? == shim::spawner::ARGUMENT).then(shim::spawner::run)
}
