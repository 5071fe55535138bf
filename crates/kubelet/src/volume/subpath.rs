//! subPath: one file or directory inside a volume, pinned so that the container cannot make it
//! point elsewhere.
//!
//! The path is resolved by the kernel beneath the volume (links may not lead out), and what was
//! found is bind-mounted by its descriptor: nothing is resolved twice.

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, mkdirat};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// As much as is read of a file of variables.
const READ_BYTES: u64 = 1 << 20;

/// The path to mount for `sub_path` of the volume; `target` is where it is pinned.
pub fn prepare(volume: &Path, sub_path: &Path, target: &Path) -> io::Result<PathBuf> {
    if fs::metadata(volume)?.is_file() {
        return Err(io::Error::other(format!("volume {} is a file and has no sub-paths", volume.display())));
    }
    let root = File::options().read(true).custom_flags(libc::O_DIRECTORY).open(volume)?;
    let found = open_or_create(&root, sub_path)?;
    let source = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
    let wanted = fs::metadata(&source)?;
    // A container that starts again finds its mount; a different file behind the name replaces it.
    if super::mounts_below(target).iter().any(|point| point == target) {
        let pinned = fs::metadata(target)?;
        if (pinned.dev(), pinned.ino()) == (wanted.dev(), wanted.ino()) {
            return Ok(target.to_path_buf());
        }
        super::unmount_below(target);
        if wanted.is_dir() { fs::remove_dir(target)? } else { fs::remove_file(target)? }
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    if wanted.is_dir() {
        fs::create_dir_all(target)?;
    } else {
        File::create(target)?;
    }
    mount(Some(&source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
    Ok(target.to_path_buf())
}

/// The text of a regular file inside a volume.
pub fn read(volume: &Path, path: &Path) -> io::Result<String> {
    let root = File::options().read(true).custom_flags(libc::O_DIRECTORY).open(volume)?;
    // Without O_NONBLOCK a pipe put there would hold us up.
    let file = File::from(open(&root, path, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    io::read_to_string(file.take(READ_BYTES))
}

fn beneath(root: &impl AsFd, path: &Path) -> nix::Result<OwnedFd> {
    open(root, path, OFlag::O_PATH)
}

/// Links may not lead out.
fn open(root: &impl AsFd, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    openat2(root, path, OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve))
}

/// Opens the path, making missing directories on the way with the volume's own mode.
fn open_or_create(root: &File, path: &Path) -> io::Result<OwnedFd> {
    match beneath(root, path) {
        Err(nix::Error::ENOENT) => {}
        Err(nix::Error::EXDEV) => {
            return Err(io::Error::other(format!("subPath {} leads out of its volume", path.display())));
        }
        other => return Ok(other?),
    }
    let mode = Mode::from_bits_truncate(root.metadata()?.mode() & 0o7777);
    let mut here = beneath(root, Path::new("."))?;
    for part in path.components() {
        let part = Path::new(part.as_os_str());
        here = match beneath(&here, part) {
            Err(nix::Error::ENOENT) => {
                mkdirat(&here, part, mode)?;
                let made = beneath(&here, part)?;
                // The umask must not narrow what the volume allows.
                let path = format!("/proc/self/fd/{}", made.as_raw_fd());
                fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode.bits()))?;
                made
            }
            other => other?,
        };
    }
    Ok(here)
}
