//! Processes: creation in new namespaces and a cgroup, identity, and what a child must forget of us.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::unistd::Pid;

use super::check;

#[repr(C, align(8))]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Forks with `clone3`: `child` runs in the namespaces `flags` ask for and, on cgroup v2, is born in
/// `cgroup`, which spares the migration lock. Only for single-threaded processes: the child goes on
/// with a copy of this address space, allocator included.
pub(crate) fn spawn(
    flags: i32,
    cgroup: Option<BorrowedFd>,
    child: impl FnOnce() -> Infallible,
) -> io::Result<(Pid, OwnedFd)> {
    let mut pidfd: i32 = -1;
    let mut arguments = CloneArgs {
        flags: flags as u64 | libc::CLONE_PIDFD as u64,
        pidfd: &raw mut pidfd as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM this is a fork; the caller is single-threaded, so no lock is held by a
    // thread that does not exist in the child. The argument block outlives the call.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &arguments, size_of::<CloneArgs>()) })?;
    if pid == 0 {
        child();
    }
    // SAFETY: CLONE_PIDFD stored a descriptor that nobody else owns.
    Ok((Pid::from_raw(pid as i32), unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// A child in the namespaces `flags` ask for that does nothing until it is killed, or its parent dies. It touches no
/// memory that a lock guards, so that threads may make one.
pub(crate) fn sleeper(flags: i32) -> io::Result<(Pid, OwnedFd)> {
    spawn(flags, None, || {
        // SAFETY: plain system calls.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        loop {
            // SAFETY: waits for a signal.
            unsafe { libc::pause() };
        }
    })
}

/// Leaves without running destructors or exit handlers, which belong to the parent.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Default handlers, nothing blocked: what an executed program expects of its parent.
pub(crate) fn reset_signals() {
    for signal in Signal::iterator() {
        // SAFETY: restores a default disposition; KILL and STOP fail, which is fine.
        unsafe { libc::signal(signal as i32, libc::SIG_DFL) };
    }
    let _ = nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}

/// Takes ownership of a descriptor number that this process was started with.
pub(crate) fn inherited(fd: i32) -> io::Result<OwnedFd> {
    nix::fcntl::fcntl(
        // SAFETY: borrowed only to ask whether it is open and to mark it close-on-exec.
        unsafe { BorrowedFd::borrow_raw(fd) },
        nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC),
    )?;
    // SAFETY: the parent passed it for us to own, and each number is taken once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Marks every descriptor from `first` on close-on-exec.
pub(crate) fn close_on_exec_from(first: u32) {
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    // SAFETY: changes flags only.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_CLOEXEC) };
}

/// Closes every descriptor from `first` on. For a process that owns none of them any more.
pub(crate) fn close_from(first: u32) {
    // SAFETY: the caller never returns to code that uses descriptors (see `pause`).
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
}

/// The name `ps` shows, in comm and, as far as the original command line is long enough, in argv.
pub(crate) fn set_title(title: &str) {
    let _ = nix::sys::prctl::set_name(&std::ffi::CString::new(title.trim_start_matches('/')).unwrap_or_default());
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else { return };
    // Fields 48 and 49 count from the pid; the command name before ") " may hold anything.
    let Some((_, rest)) = stat.rsplit_once(") ") else { return };
    let bound = |field: usize| rest.split(' ').nth(field - 3).and_then(|text| text.parse::<usize>().ok());
    let (Some(start), Some(end)) = (bound(48), bound(49)) else { return };
    if start == 0 || end <= start {
        return;
    }
    let length = title.len().min(end - start - 1);
    // SAFETY: the kernel says that [start, end) is the argument area of this process; it is writable
    // stack memory, and nobody reads arguments after a fork without exec.
    unsafe {
        std::ptr::write_bytes(start as *mut u8, 0, end - start);
        std::ptr::copy_nonoverlapping(title.as_ptr(), start as *mut u8, length);
    }
}

/// Sends a signal through a pidfd: never to a stranger that got the number later.
pub(crate) fn signal(pidfd: BorrowedFd, signal: i32) -> io::Result<()> {
    // SAFETY: plain integers and a null siginfo, as documented.
    check(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0)
    })?;
    Ok(())
}
