//! What the binary's tests share: a cluster with busybox in it.

use std::path::PathBuf;

use testkit::Cluster;

pub const ISOPOD: &str = env!("CARGO_BIN_EXE_isopod");
pub const BUSYBOX: &str = "docker.io/library/busybox:test";

/// A started cluster that has [`BUSYBOX`], and the archive it came from.
pub fn cluster() -> (Cluster, PathBuf) {
    let cluster = Cluster::named(ISOPOD);
    let archive = testkit::busybox_archive(cluster.directory.path(), BUSYBOX);
    cluster.up(&[&archive]);
    (cluster, archive)
}
