//! Capability sets, seccomp filters and the loopback switch: the calls behind a process's rights.

use std::io;

use super::check;

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Capabilities this process may hand on, as a bit set.
pub(crate) fn permitted() -> io::Result<u64> {
    let header = Header { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut sets = [Sets::default(); 2];
    // SAFETY: version 3 writes two `Sets`, which is what we pass.
    check(unsafe { libc::syscall(libc::SYS_capget, &header, sets.as_mut_ptr()) })?;
    Ok(u64::from(sets[0].permitted) | u64::from(sets[1].permitted) << 32)
}

pub(crate) fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> io::Result<()> {
    let header = Header { version: CAPABILITY_VERSION_3, pid: 0 };
    let half = |shift: u32| Sets {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let sets = [half(0), half(32)];
    // SAFETY: version 3 reads two `Sets`.
    check(unsafe { libc::syscall(libc::SYS_capset, &header, sets.as_ptr()) })?;
    Ok(())
}

/// Drops from the bounding set everything outside `keep`.
pub(crate) fn limit_bounding(keep: u64) -> io::Result<()> {
    for capability in 0..64 {
        if keep & (1 << capability) != 0 {
            continue;
        }
        // SAFETY: plain integers.
        match check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }.into()) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break, // past the kernel's last
            other => other?,
        };
    }
    Ok(())
}

pub(crate) fn raise_ambient(capabilities: u64) -> io::Result<()> {
    for capability in (0..64).filter(|bit| capabilities & (1 << bit) != 0) {
        // SAFETY: plain integers.
        check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, capability, 0, 0) }.into())?;
    }
    Ok(())
}

/// Whether capabilities survive the change away from uid 0.
pub(crate) fn keep_capabilities(keep: bool) -> io::Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, libc::c_ulong::from(keep), 0, 0, 0) }.into())?;
    Ok(())
}

/// Installs a compiled filter: 64-bit words of (code, jt, jf, k) as `struct sock_filter` lays them out.
pub(crate) fn install_filter(program: &[u64]) -> io::Result<()> {
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr() as *mut libc::sock_filter };
    // SAFETY: the words are `sock_filter`s of the same size and layout; the kernel only reads them.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &program) })?;
    Ok(())
}

/// Brings up `lo` of the current network namespace.
pub(crate) fn loopback_up() -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: an all-zero ifreq is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *slot = *byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: SIOCSIFFLAGS reads the name and the flags of one ifreq.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) }.into())?;
    Ok(())
}
