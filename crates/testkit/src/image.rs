//! Images made from Debian packages, since nothing can be pulled.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The applets that tests call by name.
const APPLETS: &[&str] = &[
    "sh", "cat", "echo", "ls", "sleep", "wget", "httpd", "nc", "nslookup", "id", "mount", "ps", "env", "hostname",
    "true", "false", "touch", "mkdir", "rm", "stat", "tail", "head", "grep", "seq", "date", "kill", "tar", "dd", "ip",
    "test", "printf", "wc", "cut", "sort", "uniq", "awk", "sed", "chmod", "chown", "ln", "cp", "mv", "df", "free",
    "tee", "trap", "base64", "which", "tr", "find", "xargs",
];

/// Writes a docker archive of an image `name` with busybox in it to `directory`.
pub fn busybox_archive(directory: &Path, name: &str) -> PathBuf {
    let archive = directory.join("busybox.tar");
    image_archive(&archive, name, &["/bin/sh"]);
    archive
}

/// Writes a docker archive of an image `name` that runs one of busybox's commands.
pub fn image_archive(archive: &Path, name: &str, command: &[&str]) {
    configured_archive(archive, name, &json!({"Cmd": command, "Env": ["PATH=/bin:/usr/bin"]}));
}

/// Writes a docker archive of an image `name` of busybox's commands with this configuration.
pub fn configured_archive(archive: &Path, name: &str, config: &Value) {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().map(Path::new).find(|p| p.is_file());
    let busybox = busybox.expect("busybox is missing: install Debian's package busybox-static");
    pack(busybox, name, config, archive).expect("write the busybox image");
}

fn pack(busybox: &Path, name: &str, config: &Value, archive: &Path) -> io::Result<()> {
    let layer = layer(busybox)?;
    let config = serde_json::to_vec(&json!({
        "architecture": "amd64", "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", hex::encode(Sha256::digest(&layer)))] },
    }))?;
    let config_name = format!("{}.json", hex::encode(Sha256::digest(&config)));
    let manifest =
        serde_json::to_vec(&json!([{ "Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"] }]))?;
    let mut tar = tar::Builder::new(File::create(archive)?);
    for (name, content) in [(config_name.as_str(), &config), ("manifest.json", &manifest), ("layer.tar", &layer)] {
        tar.append_data(&mut header(tar::EntryType::Regular, content.len(), 0o644), name, &content[..])?;
    }
    tar.into_inner()?.flush()
}

fn layer(busybox: &Path) -> io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (directory, mode) in
        [("bin", 0o755), ("etc", 0o755), ("root", 0o700), ("tmp", 0o1777), ("var", 0o755), ("www", 0o755)]
    {
        tar.append_data(&mut header(tar::EntryType::Directory, 0, mode), directory, io::empty())?;
    }
    let content = std::fs::read(busybox)?;
    tar.append_data(&mut header(tar::EntryType::Regular, content.len(), 0o755), "bin/busybox", &content[..])?;
    for applet in APPLETS {
        tar.append_link(&mut header(tar::EntryType::Symlink, 0, 0o777), format!("bin/{applet}"), "busybox")?;
    }
    for (path, text) in [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
        ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    ] {
        tar.append_data(&mut header(tar::EntryType::Regular, text.len(), 0o644), path, text.as_bytes())?;
    }
    tar.into_inner()
}

fn header(kind: tar::EntryType, size: usize, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size as u64);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}
