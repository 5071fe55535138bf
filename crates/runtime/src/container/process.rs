//! The last steps of a process in a container, the same for its init and for one executed later:
//! stdio, identity, rights, seccomp, and the words for a command that cannot be run.

use std::convert::Infallible;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::Mode;
use nix::unistd::{AccessFlags, Gid, Uid};

use super::spec::{Identity, Process};
use super::user;
use crate::sys::{credentials, terminal};

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where a process's stdio goes.
pub(crate) enum Stdio {
    /// stdin, stdout, stderr; `None` is /dev/null.
    Descriptors([Option<OwnedFd>; 3]),
    /// A terminal of the container, whose master end is handed out.
    Terminal,
}

/// What goes back to the shim while a process starts; end of file means that it runs.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(crate) enum Report {
    Identity(Identity),
    /// Carries the master end.
    Terminal,
    /// The text stands where users expect the runtime's: `exec: "x": ...`.
    Failed(String),
}

/// Replaces the calling process, which stands in the container's namespaces and root, by the command.
/// `before_rights` runs with stdio in place and all rights still held.
pub(crate) fn execute(
    process: &Process,
    filter: &[u64],
    stdio: Stdio,
    report: BorrowedFd,
    before_rights: impl FnOnce(Option<&OwnedFd>) -> Result<(), String>,
) -> Result<Infallible, String> {
    let identity = user::resolve(&process.user)?;
    send(report, &Report::Identity(identity.clone()), &[])?;
    let _ = nix::unistd::setsid();
    let slave = connect(stdio, &identity, report)?;
    before_rights(slave.as_ref())?;
    nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
    let entered_before = nix::unistd::chdir(&process.cwd).is_ok();
    drop_rights(process, &identity, filter)?;
    if !entered_before {
        // A directory that only the user may enter, such as one on a root-squashed share.
        nix::unistd::chdir(&process.cwd).map_err(|e| {
            format!(
                "chdir to cwd ({:?}) set in config.json failed: {}",
                process.cwd.display().to_string(),
                lower(e.into())
            )
        })?;
    }
    run(process, &identity)
}

pub(crate) fn send(report: BorrowedFd, message: &Report, fds: &[BorrowedFd]) -> Result<(), String> {
    crate::sys::seqpacket::send(report, message, fds).map_err(|error| format!("report to the shim: {error}"))
}

/// Puts stdio on 0, 1 and 2. Every other descriptor is close-on-exec.
fn connect(stdio: Stdio, identity: &Identity, report: BorrowedFd) -> Result<Option<OwnedFd>, String> {
    let fail = |error: io::Error| format!("set up stdio: {error}");
    let (fds, slave) = match stdio {
        Stdio::Descriptors(fds) => (fds, None),
        Stdio::Terminal => {
            let (master, slave) = terminal::open().map_err(|error| format!("open a terminal: {error}"))?;
            send(report, &Report::Terminal, &[master.as_fd()])?;
            terminal::control(slave.as_fd()).map_err(|error| format!("take the terminal: {error}"))?;
            let copy = || slave.try_clone().map_err(fail);
            ([Some(copy()?), Some(copy()?), Some(copy()?)], Some(slave))
        }
    };
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    for (number, fd) in fds.into_iter().enumerate() {
        let fd = match fd {
            Some(fd) => {
                // So that the user can open /dev/stdout again; a file or socket may refuse.
                let _ = nix::unistd::fchown(&fd, Some(uid), slave.is_none().then_some(gid));
                fd
            }
            None => std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").map_err(fail)?.into(),
        };
        let result = match number {
            0 => nix::unistd::dup2_stdin(&fd),
            1 => nix::unistd::dup2_stdout(&fd),
            _ => nix::unistd::dup2_stderr(&fd),
        };
        result.map_err(|error| fail(error.into()))?;
    }
    Ok(slave)
}

fn drop_rights(process: &Process, identity: &Identity, filter: &[u64]) -> Result<(), String> {
    let step = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    let nix_step = |what: &'static str| move |error: Errno| format!("{what}: {error}");
    let id_step = |what: &'static str| {
        move |error: Errno| match error {
            Errno::EINVAL => format!("cannot set {what} to unmapped user in user namespace"),
            other => format!("set {what}: {other}"),
        }
    };
    let capabilities = process.capabilities;
    if let Some(profile) = &process.apparmor {
        let command = format!("exec {profile}");
        let file = "/proc/thread-self/attr/apparmor/exec";
        std::fs::write(file, &command)
            .or_else(|_| std::fs::write("/proc/thread-self/attr/exec", &command))
            .map_err(|error| format!("apply apparmor profile {profile:?}: {error}"))?;
    }
    credentials::limit_bounding(capabilities.bounding).map_err(step("drop capabilities"))?;
    let groups: Vec<Gid> = identity.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    nix::unistd::setgroups(&groups).map_err(id_step("groups"))?;
    // Without no_new_privs only CAP_SYS_ADMIN may install a filter, and it is about to go.
    if !filter.is_empty() && !process.no_new_privileges {
        credentials::install_filter(filter).map_err(step("install the seccomp filter"))?;
    }
    credentials::keep_capabilities(true).map_err(step("keep capabilities"))?;
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    nix::unistd::setresgid(gid, gid, gid).map_err(id_step("gid"))?;
    nix::unistd::setresuid(uid, uid, uid).map_err(id_step("uid"))?;
    credentials::keep_capabilities(false).map_err(step("keep capabilities"))?;
    let set = capabilities.bounding;
    credentials::set_capabilities(set, set, capabilities.ambient).map_err(step("set capabilities"))?;
    credentials::raise_ambient(capabilities.ambient).map_err(step("raise ambient capabilities"))?;
    if process.no_new_privileges {
        nix::sys::prctl::set_no_new_privs().map_err(nix_step("set no_new_privs"))?;
        if !filter.is_empty() {
            credentials::install_filter(filter).map_err(step("install the seccomp filter"))?;
        }
    }
    Ok(())
}

fn run(process: &Process, identity: &Identity) -> Result<Infallible, String> {
    let command = process.args.first().filter(|command| !command.is_empty()).ok_or("no command specified")?;
    let env = environment(process, identity);
    let program = find(command, &env)?;
    let fail = |error: io::Error| format!("exec {}: {}", program.display(), lower(error));
    let strings = |list: &[String]| list.iter().map(|text| CString::new(text.as_str())).collect::<Result<Vec<_>, _>>();
    let arguments = strings(&process.args).map_err(|error| fail(error.into()))?;
    let environment = strings(&env).map_err(|error| fail(error.into()))?;
    let path = crate::sys::c_path(&program).map_err(fail)?;
    nix::unistd::execve(&path, &arguments, &environment).map_err(|error| fail(error.into()))
}

fn environment(process: &Process, identity: &Identity) -> Vec<String> {
    let mut env = process.env.clone();
    let has = |env: &[String], key: &str| env.iter().any(|entry| entry.starts_with(key));
    if !has(&env, "PATH=") {
        env.push(DEFAULT_PATH.into());
    }
    if process.tty && !has(&env, "TERM=") {
        env.push("TERM=xterm".into());
    }
    if !has(&env, "HOME=") {
        env.push(format!("HOME={}", identity.home));
    }
    env
}

/// The file a command names, looked up as a shell would, with the error messages users know.
fn find(command: &str, env: &[String]) -> Result<PathBuf, String> {
    let runnable = |path: &Path| -> Result<(), io::Error> {
        if std::fs::metadata(path)?.is_dir() {
            return Err(Errno::EISDIR.into());
        }
        Ok(nix::unistd::access(path, AccessFlags::X_OK)?)
    };
    if command.contains('/') {
        let path = PathBuf::from(command);
        return match runnable(&path) {
            Ok(()) => Ok(path),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Err(format!("exec: {command:?}: permission denied"))
            }
            Err(error) if error.raw_os_error() == Some(libc::EISDIR) => {
                Err(format!("exec: {command:?}: is a directory"))
            }
            Err(error) => Err(format!("exec: {command:?}: stat {command}: {}", lower(error))),
        };
    }
    let path = env.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or("");
    let mut denied = false;
    for directory in path.split(':') {
        let candidate =
            Path::new(if directory.is_empty() { "." } else { directory }).join(OsStr::from_bytes(command.as_bytes()));
        match runnable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(error) => denied |= error.kind() == io::ErrorKind::PermissionDenied,
        }
    }
    let reason = if denied { "permission denied" } else { "executable file not found in $PATH" };
    Err(format!("exec: {command:?}: {reason}"))
}

/// The system's message as other runtimes print it: lower case, no number.
pub(super) fn lower(error: io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => Errno::from_raw(code).desc().to_ascii_lowercase(),
        None => error.to_string(),
    }
}
