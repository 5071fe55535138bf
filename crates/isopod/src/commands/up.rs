//! `isopod up`: a launcher outside the cluster's namespaces, the main process inside.
//!
//! The launcher opens the API's loopback listener on the host and hands it in, relays progress, and
//! takes everything away at the end. It is a process of its own because only something outside the
//! namespaces can remove them.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::sync::mpsc;
use std::time::Instant;

use anyhow::{Context, bail};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::preflight;
use crate::cli::{NetworkOptions, NodeOptions, Up};
use crate::sandbox::{NODE_IP, Namespaces, Sandbox, State, cleanup};
use crate::{cluster, kubeconfig, logging};

/// What the launcher tells the main process.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    name: String,
    network: NetworkOptions,
    image_archives: Vec<PathBuf>,
    api_port: u16,
    kubeconfig: PathBuf,
    verbose: u8,
    listener: RawFd,
    progress: RawFd,
    lock: RawFd,
}

pub fn run(options: &Up, verbose: u8) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let sandbox = Sandbox::new(&options.name.name)?;
    preflight::node()?;
    options.network.check()?;
    for archive in &options.image_archives {
        File::open(archive).with_context(|| format!("open image archive {}", archive.display()))?;
    }
    let previous = sandbox.state();
    let lock = sandbox.lock()?;
    let wanted = options.api_port.or(previous.as_ref().map(|state| state.api_port));
    let prepared = listen(wanted, options.api_port.is_some())
        .and_then(|listener| Ok((listener, sandbox.namespaces()?)))
        // What was never there has left nothing worth a look.
        .or_else(
            |error| if previous.is_none() { cleanup::remove_sandbox(&sandbox).and(Err(error)) } else { Err(error) },
        );
    let (listener, namespaces) = prepared?;
    let api_port = listener.local_addr()?.port();
    let kubeconfig = match &options.kubeconfig {
        Some(path) => std::path::absolute(path)?,
        None => sandbox.data_dir.join("kubeconfig"),
    };
    println!("starting cluster {:?}", sandbox.name);
    let (progress, progress_writer) = nix::unistd::pipe()?;
    let spec = Spec {
        name: sandbox.name.clone(),
        network: options.network.clone(),
        image_archives: options.image_archives.iter().map(std::path::absolute).collect::<Result<_, _>>()?,
        api_port,
        kubeconfig: kubeconfig.clone(),
        verbose,
        listener: listener.as_raw_fd(),
        progress: progress_writer.as_raw_fd(),
        lock: lock.as_raw_fd(),
    };
    let signals = block_signals()?;
    let inherited = [lock.as_fd(), listener.as_fd(), progress_writer.as_fd()];
    let mut child = spawn(&sandbox, &spec, &namespaces, &inherited, options.detach)?;
    drop((listener, progress_writer));
    let pid = if options.detach { child.id() } else { std::process::id() } as i32;
    sandbox.save_state(&State { pid, api_port, kubeconfig: kubeconfig.clone() })?;

    let events = watch(progress, signals);
    let mut stopping = false;
    loop {
        match events.recv()? {
            Event::Progress(line) => println!("  {line}"),
            Event::Failed(message) => eprintln!("isopod: {message}"),
            Event::Ready => {
                announce(&sandbox, started, options)?;
                if options.detach {
                    return Ok(ExitCode::SUCCESS);
                }
            }
            Event::Signal(Signal::SIGCHLD) => {
                if let Some(status) = child.try_wait()? {
                    return finish(&sandbox, status.success() || stopping);
                }
            }
            Event::Signal(_) => {
                if !stopping {
                    println!("stopping cluster {:?}", sandbox.name);
                }
                stopping = true;
                kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM)?;
            }
        }
    }
}

fn finish(sandbox: &Sandbox, wanted: bool) -> anyhow::Result<ExitCode> {
    if wanted {
        cleanup::remove_sandbox(sandbox)?;
        println!("cluster {:?} is removed", sandbox.name);
        return Ok(ExitCode::SUCCESS);
    }
    let name = &sandbox.name;
    bail!(
        "the main process of cluster {name:?} ended unexpectedly; its log is {}; start it again with `isopod up --name {name}`, or remove it with `isopod down --name {name}`",
        log_file(sandbox).display()
    );
}

fn announce(sandbox: &Sandbox, started: Instant, options: &Up) -> anyhow::Result<()> {
    let state = sandbox.state().context("read back the cluster's state")?;
    println!("cluster {:?} is ready after {:.2} s; try:", sandbox.name, started.elapsed().as_secs_f64());
    println!("  export KUBECONFIG={}", state.kubeconfig.display());
    println!("  kubectl get nodes");
    if options.merge {
        let path = kubeconfig::default_path()?;
        kubeconfig::merge(&path, &fs::read_to_string(&state.kubeconfig)?)?;
        println!("merged into {} as the current context", path.display());
    }
    if !options.detach {
        println!("Ctrl-C stops and removes it");
    }
    Ok(())
}

fn listen(port: Option<u16>, required: bool) -> anyhow::Result<TcpListener> {
    match TcpListener::bind(("127.0.0.1", port.unwrap_or(0))) {
        Err(_) if port.is_some() && !required => listen(None, false),
        result => result.with_context(|| format!("listen on 127.0.0.1:{} for the API", port.unwrap_or(0))),
    }
}

fn spawn(
    sandbox: &Sandbox,
    spec: &Spec,
    namespaces: &Namespaces,
    inherited: &[BorrowedFd],
    detach: bool,
) -> anyhow::Result<Child> {
    let path = sandbox.run_dir.join("spec.json");
    fs::write(&path, serde_json::to_vec(spec)?)?;
    for fd in inherited {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    }
    let (net, mnt) = (namespaces.net.try_clone()?, namespaces.mnt.try_clone()?);
    let mut command = Command::new("/proc/self/exe");
    command.arg0("isopod").arg("cluster-process").arg(&path).stdin(std::process::Stdio::null());
    if detach {
        let log = File::options().create(true).append(true).open(log_file(sandbox))?;
        command.stdout(log.try_clone()?).stderr(log);
    }
    // SAFETY: only async-signal-safe system calls are made between fork and exec.
    unsafe {
        command.pre_exec(move || {
            // A terminal's Ctrl-C must reach the launcher alone.
            nix::unistd::setsid()?;
            SigSet::all().thread_unblock()?;
            if !detach {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            }
            setns(net.as_fd(), CloneFlags::CLONE_NEWNET)?;
            setns(mnt.as_fd(), CloneFlags::CLONE_NEWNS)?;
            Ok(())
        });
    }
    command.spawn().context("start the cluster's main process")
}

enum Event {
    Progress(String),
    Ready,
    Failed(String),
    Signal(Signal),
}

fn block_signals() -> anyhow::Result<SigSet> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD] {
        signals.add(signal);
    }
    signals.thread_block()?;
    Ok(signals)
}

fn watch(progress: OwnedFd, signals: SigSet) -> mpsc::Receiver<Event> {
    let (sender, events) = mpsc::channel();
    let signal_sender = sender.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(File::from(progress)).lines().map_while(Result::ok) {
            let event = match line.split_once(' ') {
                _ if line == "ready" => Event::Ready,
                Some(("step", text)) => Event::Progress(text.to_owned()),
                Some(("failed", text)) => Event::Failed(text.to_owned()),
                _ => continue,
            };
            if sender.send(event).is_err() {
                return;
            }
        }
    });
    std::thread::spawn(move || {
        while let Ok(signal) = signals.wait() {
            if signal_sender.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    });
    events
}

fn log_file(sandbox: &Sandbox) -> PathBuf {
    sandbox.data_dir.join("isopod.log")
}

/// The main process: already inside the namespaces, with the listener and the lock open.
pub fn cluster_process(spec: &Path) -> anyhow::Result<ExitCode> {
    let text = fs::read(spec).with_context(|| format!("read {}", spec.display()))?;
    let spec: Spec = serde_json::from_slice(&text)?;
    let sandbox = Sandbox::new(&spec.name)?;
    logging::to_file(spec.verbose.max(1), &log_file(&sandbox))?;
    // SAFETY: the launcher left these descriptors open for this process and nothing else owns them.
    let (listener, progress, lock) = unsafe {
        (TcpListener::from_raw_fd(spec.listener), File::from_raw_fd(spec.progress), File::from_raw_fd(spec.lock))
    };
    // The lock above all: shims outlive this process and must not keep the next one out.
    for fd in [listener.as_fd(), progress.as_fd(), lock.as_fd()] {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    let progress = cluster::Progress::new(progress);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let config = cluster::Config {
            node_name: format!("{}-1", sandbox.name),
            node_ip: NODE_IP,
            place: cluster::node::Place {
                data_dir: sandbox.data_dir.clone(),
                run_dir: sandbox.run_dir.clone(),
                cgroup_root: sandbox.cgroup(),
            },
            network: spec.network,
            node: NodeOptions::throwaway(),
            api_port: cluster::IN_CLUSTER_API_PORT,
            kubeconfig: spec.kubeconfig,
            kubeconfig_server: format!("https://127.0.0.1:{}", spec.api_port),
            context: format!("isopod-{}", sandbox.name),
            certificate_names: Vec::new(),
            image_archives: spec.image_archives,
            with_node: true,
        };
        cluster::run(config, vec![listener], &progress).await
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    if let Err(error) = &result {
        tracing::error!("{error:#}");
        progress.failed(&format!("{error:#}"));
    }
    result.map(|()| ExitCode::SUCCESS)
}
