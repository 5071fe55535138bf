//! Linux calls that no library of ours wraps, each behind a safe function.
//!
//! Knows nothing of containers. All `unsafe` of the runtime lives below this module.

pub(crate) mod bpf;
pub(crate) mod credentials;
pub(crate) mod mount;
pub(crate) mod process;
pub(crate) mod seqpacket;
pub(crate) mod terminal;

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A path as the kernel wants it. A NUL in it is refused as the kernel would refuse the name.
pub(crate) fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Turns the `-1 and errno` convention into a result.
pub(crate) fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Sets an extended attribute of what `path` leads to.
pub(crate) fn set_xattr(path: &Path, name: &std::ffi::OsStr, value: &[u8]) -> io::Result<()> {
    let (path, name) = (c_path(path)?, c_path(Path::new(name))?);
    // SAFETY: both strings are NUL-terminated; the value's length is passed along.
    check(unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) }.into())?;
    Ok(())
}
