//! hostPath: a path of the host itself, checked or made as its type says.

use super::{Context, Plugin};
use async_trait::async_trait;
use k8s_openapi::api::core::v1::Volume;
use std::fs::{self, FileType};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

pub struct HostPath;

#[async_trait]
impl Plugin for HostPath {
    fn name(&self) -> &'static str {
        "kubernetes.io~host-path"
    }

    fn handles(&self, volume: &Volume) -> bool {
        volume.host_path.is_some()
    }

    fn path(&self, volume: &Volume) -> Option<PathBuf> {
        volume.host_path.as_ref().map(|source| source.path.clone().into())
    }

    async fn set_up(&self, _: &Context<'_>, volume: &Volume, path: &Path) -> Result<(), String> {
        let kind = volume.host_path.as_ref().and_then(|source| source.type_.as_deref()).unwrap_or_default();
        check(kind, path).map_err(|error| format!("hostPath type check failed: {} {error}", path.display()))
    }
}

/// The rest of a sentence that begins with the path.
pub fn check(kind: &str, path: &Path) -> Result<(), String> {
    let found = match fs::metadata(path) {
        Ok(metadata) => Some(metadata.file_type()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(format!("cannot be examined: {error}")),
    };
    let is = |test: fn(&FileType) -> bool, what: &str| match &found {
        Some(kind) if test(kind) => Ok(()),
        _ => Err(format!("is not a {what}")),
    };
    let failed = |error: io::Error| format!("cannot be created: {error}");
    match kind {
        "" => Ok(()),
        // As upstream: only the last part of the path is made for files, the whole for directories.
        "DirectoryOrCreate" if found.is_none() => {
            fs::create_dir_all(path).map_err(failed)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(failed)
        }
        "FileOrCreate" if found.is_none() => {
            fs::write(path, "").map_err(failed)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o644)).map_err(failed)
        }
        "DirectoryOrCreate" | "Directory" => is(FileType::is_dir, "directory"),
        "FileOrCreate" | "File" => is(FileType::is_file, "file"),
        "Socket" => is(FileType::is_socket, "socket file"),
        "CharDevice" => is(FileType::is_char_device, "character device"),
        "BlockDevice" => is(FileType::is_block_device, "block device"),
        _ => Err(format!("has an invalid type {kind:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("file"), "").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        for (kind, name, expected) in [
            ("", "missing", Ok(())),
            ("Directory", "missing", Err("is not a directory")),
            ("DirectoryOrCreate", "made/deep", Ok(())),
            ("Directory", "made/deep", Ok(())),
            ("FileOrCreate", "new", Ok(())),
            ("File", "new", Ok(())),
            ("File", "made", Err("is not a file")),
            ("FileOrCreate", "made", Err("is not a file")),
            ("Socket", "socket", Ok(())),
            ("Socket", "file", Err("is not a socket file")),
            ("BlockDevice", "file", Err("is not a block device")),
        ] {
            assert_eq!(check(kind, &path(name)), expected.map_err(str::to_owned), "{kind} {name}");
        }
        assert_eq!(check("CharDevice", Path::new("/dev/null")), Ok(()));
    }
}
