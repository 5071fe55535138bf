//! The template that shims are forked from: the only process that the service executes.
//!
//! It runs from a read-only view of the binary (or, where that cannot be made, a sealed copy in
//! memory), so that no container can reach the binary on disk through /proc/PID/exe (CVE-2019-5736),
//! and so that the binary may be replaced while pods run. When the service goes, so does the
//! template; the shims stay.

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{SigHandler, Signal};

use super::protocol::{Reply, Sandbox};
use crate::sys::mount::{self, attr};
use crate::sys::{process, seqpacket};

/// The word that makes the binary a spawner.
pub(crate) const ARGUMENT: &str = "shim-spawner";
const SOCKET_FD: i32 = 0;

/// Starts the spawner from the binary at `exe`; talks to it over the returned socket. `empty` is an
/// empty directory.
pub(crate) fn start(exe: &Path, empty: &Path) -> io::Result<(Child, OwnedFd)> {
    let (ours, theirs) = seqpacket::pair()?;
    let protected = protect(exe, empty)?;
    let path = format!("/proc/self/fd/{}", protected.as_raw_fd());
    let mut command = Command::new(path);
    command.arg0("isopod").arg(ARGUMENT).stdin(Stdio::from(theirs)).env_clear().current_dir("/");
    // Messages of a shim that panics go where the service's own go.
    command.stdout(Stdio::null()).stderr(Stdio::inherit());
    let child = command.spawn()?;
    Ok((child, ours))
}

/// The binary as a file that nobody can write through.
fn protect(exe: &Path, empty: &Path) -> io::Result<File> {
    readonly_view(exe, empty).or_else(|error| {
        tracing::debug!(%error, "no read-only view of the binary; copying it to memory");
        let options = pentacle::SealOptions::new().executable(true).close_on_exec(true);
        options.copy_and_seal(&mut File::open(exe)?)
    })
}

/// Opens the binary through a detached read-only overlay of its directory: it shares the page cache
/// with the original, which a copy would not.
fn readonly_view(exe: &Path, empty: &Path) -> io::Result<File> {
    let exe = std::fs::canonicalize(exe)?;
    let (Some(directory), Some(name)) = (exe.parent(), exe.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    // An overlay without an upper wants two lowers.
    let lowers = format!("{}:{}", directory.display(), empty.display());
    let view = mount::new_filesystem("overlay", &[("lowerdir", &lowers)], attr::RDONLY | attr::NOSUID | attr::NODEV)?;
    let file = mount::open_at(view.as_fd(), Path::new(name), libc::O_RDONLY, 0, mount::Resolve::InRoot)?;
    Ok(File::from(file))
}

/// The spawner's main. Its socket is stdin.
pub(crate) fn run() -> Infallible {
    process::set_title("isopod-spawner");
    let socket = match process::inherited(SOCKET_FD) {
        Ok(socket) => socket,
        Err(error) => {
            eprintln!("isopod {ARGUMENT} is started by the runtime, with a socket as stdin: {error}");
            process::exit_now(2)
        }
    };
    // Ctrl-C in a terminal is for the service; shims must not hear of it. Nobody waits for them here.
    let _ = nix::unistd::setsid();
    ignore(Signal::SIGINT);
    ignore(Signal::SIGHUP);
    ignore(Signal::SIGCHLD);
    loop {
        let (sandbox, mut fds) = match seqpacket::receive::<Sandbox>(socket.as_fd()) {
            Ok(Some(message)) => message,
            Ok(None) => process::exit_now(0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => process::exit_now(1),
        };
        let mut connection = fds.pop();
        let forked = sandbox.shim_placement.birthplace().and_then(|cgroup| {
            process::spawn(0, cgroup.as_ref().map(AsFd::as_fd), || match connection.take() {
                Some(connection) => {
                    detach(&sandbox.directory);
                    super::server::run(sandbox, connection)
                }
                None => process::exit_now(2),
            })
        });
        if let (Err(error), Some(connection)) = (forked, connection) {
            let message = Reply::Failed(format!("fork a shim: {error}"));
            let _ = seqpacket::send(connection.as_fd(), &message, &[]);
        }
    }
}

/// Lets go of the spawner's socket, which would keep a dead service looking alive, and of the
/// service's stderr, whose reader may wait for its end. A panic is written beside the socket.
fn detach(directory: &Path) {
    if let Ok(null) = File::open("/dev/null") {
        let _ = nix::unistd::dup2_stdin(&null);
    }
    if let Ok(log) = File::create(directory.join("shim.log")) {
        let _ = nix::unistd::dup2_stderr(&log);
    }
    let _ = nix::unistd::setsid();
}

fn ignore(signal: Signal) {
    // SAFETY: ignoring a signal installs no handler.
    let _ = unsafe { nix::sys::signal::signal(signal, SigHandler::SigIgn) };
}
