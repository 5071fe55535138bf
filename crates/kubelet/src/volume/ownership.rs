//! fsGroup: gives a volume's files to a group, with the rights that go with it.
//!
//! Links are never followed.

use super::Context;
use crate::pod;
use nix::fcntl::AtFlags;
use nix::unistd::{Gid, Uid, fchownat};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Group and rights of a volume's content.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    pub group: Option<u32>,
    pub read_only: bool,
}

impl Owner {
    pub fn of(context: &Context<'_>, read_only: bool) -> Owner {
        let security = pod::spec(context.pod).security_context.as_ref();
        Owner { group: security.and_then(|security| security.fs_group).map(|group| group as u32), read_only }
    }

    /// The whole tree below `path`.
    pub fn apply(self, path: &Path) -> io::Result<()> {
        if self.group.is_none() {
            return Ok(());
        }
        self.apply_to(path)?;
        if fs::symlink_metadata(path)?.is_dir() {
            for entry in fs::read_dir(path)? {
                self.apply(&entry?.path())?;
            }
        }
        Ok(())
    }

    /// One file or directory.
    pub fn apply_to(self, path: &Path) -> io::Result<()> {
        let Some(group) = self.group else { return Ok(()) };
        fchownat(nix::fcntl::AT_FDCWD, path, None::<Uid>, Some(Gid::from_raw(group)), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let metadata = fs::symlink_metadata(path)?;
        if metadata.is_symlink() {
            return Ok(());
        }
        let rights = if self.read_only { 0o440 } else { 0o660 };
        let extra = if metadata.is_dir() { 0o2110 } else { 0 };
        let mode = metadata.permissions().mode() | rights | extra;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    }
}
