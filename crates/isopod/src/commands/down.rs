//! `isopod down` and `isopod list`.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::bail;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::sandbox::{Sandbox, cleanup};

/// A running cluster gets this long to end by itself before it is killed.
const GRACE: Duration = Duration::from_secs(10);

/// Stops the cluster if it runs, then removes everything of it.
pub fn run(name: &str) -> anyhow::Result<()> {
    let sandbox = Sandbox::new(name)?;
    if !nix::unistd::geteuid().is_root() {
        bail!("removing a cluster needs root; run it with sudo");
    }
    if !sandbox.run_dir.exists() && !sandbox.data_dir.exists() {
        println!("there is no cluster {name:?}");
        return Ok(());
    }
    if let Some(state) = sandbox.state() {
        stop(&sandbox, state.pid);
    }
    // The launcher of a foreground cluster cleans up too; both do no harm.
    cleanup::remove(&sandbox)?;
    println!("cluster {name:?} is removed");
    Ok(())
}

/// The lock, not the pid, tells that the cluster runs: pids are reused.
fn stop(sandbox: &Sandbox, pid: i32) {
    if sandbox.lock().is_ok() {
        return;
    }
    let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    let deadline = Instant::now() + GRACE;
    while sandbox.run_dir.exists() && sandbox.lock().is_err() && Instant::now() < deadline {
        #[expect(
            clippy::disallowed_methods,
            reason = "no executor runs here, and exits of strangers cannot be awaited"
        )]
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn list() {
    for name in Sandbox::list() {
        let Ok(sandbox) = Sandbox::new(&name) else { continue };
        let Some(state) = sandbox.state() else {
            println!("{name}\tbroken; remove it with `isopod down --name {name}`");
            continue;
        };
        let running = fs::metadata(format!("/proc/{}", state.pid)).is_ok();
        let what = if running { "running" } else { "stopped" };
        println!("{name}\t{what}\thttps://127.0.0.1:{}\t{}", state.api_port, state.kubeconfig.display());
    }
}
