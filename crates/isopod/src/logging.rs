//! Where logs go: stderr for components run alone, a file for throwaway clusters.

use std::fs::File;
use std::path::Path;

use anyhow::Context;
use tracing_subscriber::EnvFilter;

/// `-v` raises the level of our own crates; RUST_LOG replaces all of it.
fn filter(verbose: u8) -> EnvFilter {
    let level = ["warn", "info", "debug", "trace"][usize::from(verbose.min(3))];
    let default = format!(
        "{level},hyper=warn,h2=warn,tower=warn,rustls=warn,kube_client=error,hickory_server=error,hickory_resolver=error,fjall=warn,lsm_tree=warn,netlink_packet_route=error"
    );
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default))
}

pub fn to_stderr(verbose: u8) {
    tracing_subscriber::fmt().with_env_filter(filter(verbose)).with_writer(std::io::stderr).init();
}

/// Appends, so that the log tells of earlier starts too.
pub fn to_file(verbose: u8, path: &Path) -> anyhow::Result<()> {
    let file =
        File::options().create(true).append(true).open(path).with_context(|| format!("open {}", path.display()))?;
    tracing_subscriber::fmt().with_env_filter(filter(verbose)).with_ansi(false).with_writer(file).init();
    Ok(())
}
