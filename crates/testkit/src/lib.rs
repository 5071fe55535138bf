//! The harness for tests that need a real cluster: starts one, drives it with the real kubectl,
//! waits for conditions, and takes it away whatever happened.
//!
//! It knows the `isopod` command line and nothing of its insides. Whatever a test needs and the
//! machine lacks is named in a failure, never skipped.

mod api;
mod cluster;
mod containerd;
mod host;
mod image;
mod machine;
mod stage;
mod wait;

pub use api::{Answer, Api, MERGE, STRATEGIC, Watch};
pub use cluster::Cluster;
pub use containerd::Containerd;
pub use host::Host;
pub use image::{busybox_archive, configured_archive, image_archive};
pub use machine::Traces;
pub use stage::{beside, condition, name, uid};
pub use wait::eventually;

use std::path::PathBuf;

/// The kubectl under test: `ISOPOD_TEST_KUBECTL`, or the one on the PATH.
pub fn kubectl() -> PathBuf {
    tool("ISOPOD_TEST_KUBECTL", "kubectl")
}

/// The older kubectl under test: `ISOPOD_TEST_KUBECTL_1_32`, or a `kubectl-1.32` on the PATH.
pub fn kubectl_1_32() -> PathBuf {
    tool("ISOPOD_TEST_KUBECTL_1_32", "kubectl-1.32")
}

/// The helm under test: `ISOPOD_TEST_HELM`, or the one on the PATH.
pub fn helm() -> PathBuf {
    tool("ISOPOD_TEST_HELM", "helm")
}

fn tool(variable: &str, name: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return path.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| {
            panic!("{name} is missing: run the tests with ./test.sh, which fetches it, or set {variable}")
        })
}
