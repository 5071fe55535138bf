//! Unpacking a layer: a tar stream, perhaps compressed, into a directory that overlayfs can stack.
//!
//! The stream is hostile. Paths are resolved with `RESOLVE_IN_ROOT`, so that neither `..` nor a link
//! of the layer itself leads out of the directory; attributes that would steer overlayfs are dropped.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags};
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use sha2::{Digest, Sha256};
use tar::EntryType;

use crate::sys::mount::{Resolve, open_at};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What came out of a blob.
pub(super) struct Unpacked {
    /// Digest of the uncompressed stream.
    pub(super) diff_id: String,
    /// Digest of the stream as it came.
    pub(super) blob: String,
    /// Bytes of file content.
    pub(super) size: u64,
}

pub(super) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Hashes what passes through.
struct Hashing<R> {
    source: R,
    hash: Sha256,
}

impl<R> Hashing<R> {
    fn new(source: R) -> Hashing<R> {
        Hashing { source, hash: Sha256::new() }
    }

    fn digest(self) -> String {
        format!("sha256:{}", hex::encode(self.hash.finalize()))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.source.read(buffer)?;
        self.hash.update(&buffer[..length]);
        Ok(length)
    }
}

/// Unpacks into `directory`, which must not exist.
pub(super) fn unpack(source: impl Read, directory: &Path) -> Result<Unpacked> {
    std::fs::create_dir(directory).with_context(|| format!("create {}", directory.display()))?;
    let mut blob = BufReader::with_capacity(128 * 1024, Hashing::new(source));
    let mut content = Hashing::new(decompress(&mut blob)?);
    let mut layer = Target { root: File::open(directory)?, size: 0, directories: Vec::new() };
    let mut archive = tar::Archive::new(&mut content);
    for entry in archive.entries().context("read the layer")? {
        let mut entry = entry.context("read the layer")?;
        let path = entry.path().context("read a path of the layer")?.into_owned();
        layer.add(&path, &mut entry).with_context(|| format!("unpack {}", path.display()))?;
    }
    layer.set_directory_times()?;
    let size = layer.size;
    // The digests cover everything, padding after the archive's end included.
    io::copy(&mut content, &mut io::sink()).context("read the layer")?;
    let diff_id = content.digest();
    io::copy(&mut blob, &mut io::sink()).context("read the layer")?;
    Ok(Unpacked { diff_id, blob: blob.into_inner().digest(), size })
}

/// Tells the format by its first bytes.
fn decompress<'a>(blob: &'a mut impl BufRead) -> Result<Box<dyn Read + 'a>> {
    let head = blob.fill_buf().context("read the layer")?;
    Ok(match head {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(blob)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            Box::new(Zstd { source: blob, frame: None })
        }
        _ => Box::new(blob),
    })
}

/// zstd streams of several frames, some of which are to be skipped.
struct Zstd<'a, R> {
    source: &'a mut R,
    frame: Option<Box<ruzstd::decoding::FrameDecoder>>,
}

impl<R: BufRead> Read for Zstd<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(frame) = &mut self.frame else {
                if self.source.fill_buf()?.is_empty() {
                    return Ok(0);
                }
                let mut frame = Box::new(ruzstd::decoding::FrameDecoder::new());
                match frame.init(&mut *self.source) {
                    Ok(()) => self.frame = Some(frame),
                    Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                        length, ..
                    })) => {
                        io::copy(&mut (&mut *self.source).take(length.into()), &mut io::sink())?;
                    }
                    Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error.to_string())),
                }
                continue;
            };
            while frame.can_collect() < buffer.len() && !frame.is_finished() {
                let wanted = ruzstd::decoding::BlockDecodingStrategy::UptoBytes(buffer.len());
                frame
                    .decode_blocks(&mut *self.source, wanted)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            }
            let length = frame.read(buffer)?;
            if length > 0 || buffer.is_empty() {
                return Ok(length);
            }
            self.frame = None;
        }
    }
}

/// The directory under construction.
struct Target {
    root: File,
    size: u64,
    /// Times of directories, set last because adding to a directory changes them.
    directories: Vec<(PathBuf, TimeSpec)>,
}

/// What a tar header says, with its PAX extensions applied.
struct Attributes {
    mode: Mode,
    uid: Uid,
    gid: Gid,
    modified: TimeSpec,
    extended: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Target {
    fn add(&mut self, path: &Path, entry: &mut tar::Entry<impl Read>) -> Result<()> {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let path = clean(path)?;
        let attributes = attributes(entry)?;
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            return self.finish(&path, &attributes, kind); // the root directory itself
        };
        let parent_path = path.parent().unwrap_or(Path::new(""));
        let parent = self.directory(parent_path)?;
        if name.as_bytes() == OPAQUE {
            return set_attribute(&parent, b"trusted.overlay.opaque", b"y").context("mark as opaque");
        }
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            return match hidden.starts_with(WHITEOUT) {
                true => Ok(()), // another union filesystem's bookkeeping
                false => whiteout(&parent, OsStr::from_bytes(hidden)),
            };
        }
        let name = name.as_os_str();
        if kind != EntryType::Directory || !self.is_directory(&parent, name) {
            remove(&parent, name)?;
        }
        let device = || -> Result<u64> {
            let (major, minor) = (entry.header().device_major()?, entry.header().device_minor()?);
            Ok(nix::sys::stat::makedev(major.unwrap_or(0).into(), minor.unwrap_or(0).into()))
        };
        let node = |kind, number| nix::sys::stat::mknodat(&parent, name, kind, attributes.mode, number);
        match kind {
            EntryType::Directory => match nix::sys::stat::mkdirat(&parent, name, Mode::from_bits_truncate(0o755)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(error) => return Err(error.into()),
            },
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
                let file = nix::fcntl::openat(&parent, name, flags, Mode::from_bits_truncate(0o600))?;
                self.size += io::copy(entry, &mut File::from(file))?;
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().context("symbolic link without a target")?;
                nix::unistd::symlinkat(OsStr::from_bytes(&target), &parent, name)?;
            }
            EntryType::Link => {
                let target = entry.link_name()?.context("hard link without a target")?.into_owned();
                return self.hard_link(&clean(&target)?, &parent, name);
            }
            EntryType::Char => node(SFlag::S_IFCHR, device()?)?,
            EntryType::Block => node(SFlag::S_IFBLK, device()?)?,
            EntryType::Fifo => node(SFlag::S_IFIFO, 0)?,
            other => bail!("unsupported entry type {other:?}"),
        }
        self.finish(&path, &attributes, kind)
    }

    /// The directory at `path`, made where missing; links are followed inside the layer.
    fn directory(&self, path: &Path) -> Result<OwnedFd> {
        const FLAGS: i32 = libc::O_RDONLY | libc::O_DIRECTORY;
        let open = |path: &Path| open_at(self.root.as_fd(), path, FLAGS, 0, Resolve::InRoot);
        let dot = Path::new(".");
        match open(&dot.join(path)) {
            Ok(found) => return Ok(found),
            Err(error) if error.kind() != io::ErrorKind::NotFound && error.kind() != io::ErrorKind::NotADirectory => {
                return Err(error.into());
            }
            Err(_) => {}
        }
        let mut current = dot.to_path_buf();
        let mut directory = open(&current)?;
        for part in path.components() {
            current.push(part);
            directory = match open(&current) {
                Ok(found) => found,
                Err(_) => {
                    // A file, or a link that leads nowhere, gives way, as in other unpackers.
                    remove(&directory, part.as_os_str())?;
                    nix::sys::stat::mkdirat(&directory, part.as_os_str(), Mode::from_bits_truncate(0o755))?;
                    open(&current)?
                }
            };
        }
        Ok(directory)
    }

    fn is_directory(&self, parent: &OwnedFd, name: &OsStr) -> bool {
        let stat = nix::sys::stat::fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW);
        stat.is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
    }

    fn hard_link(&self, target: &Path, parent: &OwnedFd, name: &OsStr) -> Result<()> {
        let directory = self.directory(target.parent().unwrap_or(Path::new("")))?;
        let target_name = target.file_name().context("hard link to a directory")?;
        nix::unistd::linkat(&directory, target_name, parent, name, AtFlags::empty())
            .with_context(|| format!("link to {}", target.display()))
    }

    /// Owner before mode, because changing the owner clears setuid; capabilities after both.
    fn finish(&mut self, path: &Path, attributes: &Attributes, kind: EntryType) -> Result<()> {
        let name = path.file_name().unwrap_or(OsStr::new("."));
        let parent = self.directory(path.parent().unwrap_or(Path::new("")))?;
        let no_follow = AtFlags::AT_SYMLINK_NOFOLLOW;
        nix::unistd::fchownat(&parent, name, Some(attributes.uid), Some(attributes.gid), no_follow)?;
        if kind != EntryType::Symlink {
            nix::sys::stat::fchmodat(&parent, name, attributes.mode, nix::sys::stat::FchmodatFlags::FollowSymlink)?;
            if !attributes.extended.is_empty() {
                let node =
                    open_at(parent.as_fd(), Path::new(name), libc::O_PATH | libc::O_NOFOLLOW, 0, Resolve::InRoot)?;
                for (key, value) in &attributes.extended {
                    set_attribute(&node, key, value).with_context(|| String::from_utf8_lossy(key).into_owned())?;
                }
            }
        }
        if kind == EntryType::Directory {
            self.directories.push((path.to_path_buf(), attributes.modified));
            return Ok(());
        }
        let times = UtimensatFlags::NoFollowSymlink;
        Ok(nix::sys::stat::utimensat(&parent, name, &attributes.modified, &attributes.modified, times)?)
    }

    fn set_directory_times(&mut self) -> Result<()> {
        for (path, modified) in std::mem::take(&mut self.directories).into_iter().rev() {
            // A later entry may have put something else in its place.
            if let Ok(found) =
                open_at(self.root.as_fd(), &Path::new(".").join(path), libc::O_RDONLY, 0, Resolve::InRoot)
            {
                nix::sys::stat::futimens(&found, &modified, &modified)?;
            }
        }
        Ok(())
    }
}

/// A relative path without `.`; `..` must not go above the layer's root.
fn clean(path: &Path) -> Result<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir if !clean.pop() => bail!("path leads out of the layer"),
            _ => {}
        }
    }
    Ok(clean)
}

fn attributes(entry: &mut tar::Entry<impl Read>) -> Result<Attributes> {
    let header = entry.header();
    let (mut uid, mut gid) = (header.uid()?, header.gid()?);
    let mode = Mode::from_bits_truncate(header.mode()? & 0o7777);
    let mut modified = TimeSpec::new(header.mtime().unwrap_or(0) as i64, 0);
    let mut extended = Vec::new();
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        let extension = extension?;
        let (key, value) = (extension.key_bytes(), extension.value_bytes());
        let text = || std::str::from_utf8(value).unwrap_or("");
        match key {
            b"uid" => uid = text().parse().unwrap_or(uid),
            b"gid" => gid = text().parse().unwrap_or(gid),
            b"mtime" => modified = parse_time(text()).unwrap_or(modified),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.").filter(|name| is_harmless(name)) {
                    extended.push((name.to_vec(), value.to_vec()));
                }
            }
        }
    }
    Ok(Attributes { mode, uid: Uid::from_raw(uid as u32), gid: Gid::from_raw(gid as u32), modified, extended })
}

/// Neither overlay's own attributes, which could show the host's files, nor labels of another host.
fn is_harmless(name: &[u8]) -> bool {
    [&b"user."[..], b"security.capability", b"system.posix_acl"].iter().any(|prefix| name.starts_with(prefix))
        && !name.starts_with(b"user.overlay.")
}

fn parse_time(text: &str) -> Option<TimeSpec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanoseconds = format!("{fraction:0<9}")[..9].parse().ok()?;
    Some(TimeSpec::new(seconds.parse().ok()?, nanoseconds))
}

fn whiteout(parent: &OwnedFd, name: &OsStr) -> Result<()> {
    remove(parent, name)?;
    nix::sys::stat::mknodat(parent, name, SFlag::S_IFCHR, Mode::empty(), 0).context("create a whiteout")
}

/// Removes what is there, of whatever kind.
fn remove(parent: &OwnedFd, name: &OsStr) -> Result<()> {
    match nix::unistd::unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(Errno::EISDIR) => {
            let path = format!("/proc/self/fd/{}", parent.as_raw_fd());
            Ok(std::fs::remove_dir_all(Path::new(&path).join(name))?)
        }
        Err(error) => Err(error.into()),
    }
}

/// Through /proc, because descriptors opened with O_PATH take no attributes directly.
fn set_attribute(node: &OwnedFd, name: &[u8], value: &[u8]) -> Result<()> {
    let path = PathBuf::from(format!("/proc/self/fd/{}", node.as_raw_fd()));
    crate::sys::set_xattr(&path, OsStr::from_bytes(name), value).map_err(Into::into)
}

#[cfg(test)]
#[path = "layer_tests.rs"]
mod tests;
