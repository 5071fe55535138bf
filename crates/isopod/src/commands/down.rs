//! `isopod down` and `isopod list`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::bail;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::single_threaded;
use crate::cli::Down;
use crate::cluster::node::{self, Place};
use crate::sandbox::{Sandbox, cleanup, try_lock};

/// A running cluster gets this long to end by itself before it is killed.
const GRACE: Duration = Duration::from_secs(10);

pub fn run(options: &Down) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("removing a cluster needs root; run it with sudo");
    }
    match options.server {
        true => host(options),
        false => throwaway(&Sandbox::new(&options.name.name)?),
    }
}

/// Stops the cluster if it runs, then removes everything of it.
fn throwaway(sandbox: &Sandbox) -> anyhow::Result<()> {
    let name = &sandbox.name;
    if !sandbox.run_dir.exists() && !sandbox.data_dir.exists() {
        println!("there is no cluster {name:?}");
        return Ok(());
    }
    if let Some(state) = sandbox.state() {
        stop(&sandbox.run_dir, state.pid);
    }
    // The launcher of a foreground cluster cleans up too; both do no harm.
    cleanup::remove_sandbox(sandbox)?;
    println!("cluster {name:?} is removed");
    Ok(())
}

/// The same for what runs on the host itself, whose data stay unless they are to go too.
fn host(options: &Down) -> anyhow::Result<()> {
    let place = Place::on_host(&options.place);
    if let Some(pid) = place.pid() {
        stop(&place.run_dir, pid);
    }
    let Some(_lock) = try_lock(&place.run_dir)? else {
        bail!("the node's process does not end; kill it, and run this again")
    };
    // Errors are told last: a record that cannot be read must not keep the rest from going.
    let ended = single_threaded()?.block_on(node::clean_up(&place));
    let data = place.data();
    let data: Vec<&Path> = data.iter().map(PathBuf::as_path).collect();
    cleanup::sweep(&place.cgroup_root, &[&data[..], &[&place.run_dir]].concat())?;
    cleanup::remove(&[&place.run_dir])?;
    ended?;
    if !options.purge {
        println!("the node is stopped; its data stay in {}", place.data_dir.display());
        return Ok(());
    }
    cleanup::remove(&data)?;
    let _ = fs::remove_dir(&place.data_dir);
    println!("the node is removed");
    Ok(())
}
/// The lock, not the pid, tells that the process runs: pids are reused.
fn stop(run_dir: &Path, pid: i32) {
    let runs = || matches!(try_lock(run_dir), Ok(None));
    if !runs() {
        return;
    }
    let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    let deadline = Instant::now() + GRACE;
    while run_dir.exists() && runs() && Instant::now() < deadline {
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
