//! Writes a set of files so that readers see either all old or all new ones.
//!
//! Files live in a time-stamped directory; `..data` points at it and is swapped by one rename; each
//! visible name is a link through `..data`. Programs watch these links, so the names are a contract.

use super::ownership::Owner;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, PartialEq)]
pub struct File {
    pub data: Vec<u8>,
    pub mode: u32,
    /// Owner of this file alone, where it differs from the volume's.
    pub uid: Option<u32>,
}

/// Relative paths and what they hold.
pub type Payload = BTreeMap<String, File>;

const DATA: &str = "..data";
const NEXT: &str = "..data_tmp";

/// Makes `directory` hold exactly `payload`. True if anything changed.
pub fn write(directory: &Path, payload: &Payload, owner: Owner) -> Result<bool, String> {
    for path in payload.keys() {
        check(path)?;
    }
    try_write(directory, payload, owner).map_err(|error| format!("write volume at {}: {error}", directory.display()))
}

fn check(path: &str) -> Result<(), String> {
    let parts: Vec<&str> = path.split('/').collect();
    let bad = path.is_empty() || path.len() > 4096 || parts.iter().any(|part| matches!(*part, "" | "." | ".."));
    match bad || path.starts_with("..") {
        true => Err(format!("invalid path: {path:?}")),
        false => Ok(()),
    }
}

fn try_write(directory: &Path, payload: &Payload, owner: Owner) -> io::Result<bool> {
    let current = fs::read_link(directory.join(DATA)).ok();
    if let Some(current) = &current
        && holds(&directory.join(current), payload)?
    {
        return Ok(false);
    }
    let stamp = jiff::Timestamp::now().strftime("..%Y_%m_%d_%H_%M_%S.").to_string();
    let name = format!("{stamp}{}", rand::random_range(100_000_000u32..u32::MAX));
    let fresh = directory.join(&name);
    fs::create_dir(&fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755))?;
    for (path, file) in payload {
        let target = fresh.join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&target, &file.data)?;
        fs::set_permissions(&target, fs::Permissions::from_mode(file.mode))?;
        if let Some(uid) = file.uid {
            std::os::unix::fs::chown(&target, Some(uid), None)?;
        }
    }
    owner.apply(&fresh)?;
    let next = directory.join(NEXT);
    remove(&next)?;
    symlink(&name, &next)?;
    fs::rename(&next, directory.join(DATA))?;
    link(directory, payload)?;
    owner.apply_to(directory)?;
    if let Some(old) = current {
        fs::remove_dir_all(directory.join(old))?;
    }
    Ok(true)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Adds the visible links and drops those whose file is gone.
fn link(directory: &Path, payload: &Payload) -> io::Result<()> {
    let tops: BTreeSet<&str> = payload.keys().filter_map(|path| path.split('/').next()).collect();
    for top in &tops {
        let visible = directory.join(top);
        if fs::symlink_metadata(&visible).is_err() {
            symlink(Path::new(DATA).join(top), &visible)?;
        }
    }
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !tops.contains(&*name) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Whether the directory already holds exactly these contents and modes.
fn holds(directory: &Path, payload: &Payload) -> io::Result<bool> {
    let mut found = BTreeSet::new();
    files(directory, directory, &mut found)?;
    if found.len() != payload.len() {
        return Ok(false);
    }
    for (path, file) in payload {
        let same = found.contains(path) && fs::read(directory.join(path))? == file.data;
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}

fn files(root: &Path, directory: &Path, found: &mut BTreeSet<String>) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path: PathBuf = entry?.path();
        match path.is_dir() {
            true => files(root, &path, found)?,
            false => {
                let relative = path.strip_prefix(root).unwrap_or(&path);
                found.insert(relative.to_string_lossy().into_owned());
            }
        }
    }
    Ok(())
}
