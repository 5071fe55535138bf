//! Packs the running binary as a container image, so that a demo needs no registry.
//!
//! The layer holds the binary and the shared libraries it has mapped (the C library and its loader),
//! at the paths where it looks for them; nothing else.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::json;
use sha2::{Digest, Sha256};

/// The image's name in every cluster.
pub const NAME: &str = "isopod.local/hello:latest";
/// The port that the demo server listens on.
pub const PORT: u16 = 8080;

/// Writes the image as a docker archive (`manifest.json` form) to `archive`.
pub fn write(archive: &Path) -> anyhow::Result<()> {
    let layer = archive.with_extension("layer");
    let packed = pack(archive, &layer).with_context(|| format!("pack {NAME} into {}", archive.display()));
    let _ = fs::remove_file(&layer);
    packed
}

fn pack(archive: &Path, layer: &Path) -> anyhow::Result<()> {
    let diff_id = write_layer(layer)?;
    let config = serde_json::to_vec(&json!({
        "architecture": match std::env::consts::ARCH { "aarch64" => "arm64", _ => "amd64" },
        "os": "linux",
        "config": {
            "Entrypoint": ["/isopod", "hello"],
            "User": "65532:65532",
            "ExposedPorts": { format!("{PORT}/tcp"): {} },
            "Env": ["PATH=/"],
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{diff_id}")] },
    }))?;
    let config_name = format!("{}.json", hex::encode(Sha256::digest(&config)));
    let manifest = json!([{ "Config": config_name, "RepoTags": [NAME], "Layers": ["layer.tar"] }]);
    let mut tar = tar::Builder::new(File::create(archive)?);
    append(&mut tar, &config_name, &config)?;
    append(&mut tar, "manifest.json", &serde_json::to_vec(&manifest)?)?;
    tar.append_path_with_name(layer, "layer.tar")?;
    tar.into_inner()?.flush()?;
    Ok(())
}

/// Returns the layer's digest in hex.
fn write_layer(path: &Path) -> anyhow::Result<String> {
    let mut tar = tar::Builder::new(Hashing { file: File::create(path)?, hash: Sha256::new() });
    let mut directories = BTreeSet::new();
    for (source, name) in files()? {
        let parents: Vec<PathBuf> = name.ancestors().skip(1).map(Path::to_owned).collect();
        for parent in parents.into_iter().rev().filter(|p| !p.as_os_str().is_empty()) {
            if directories.insert(parent.clone()) {
                let mut header = header(tar::EntryType::Directory, 0);
                tar.append_data(&mut header, &parent, io::empty())?;
            }
        }
        let mut file = File::open(&source).with_context(|| format!("open {}", source.display()))?;
        let mut header = header(tar::EntryType::Regular, file.metadata()?.len());
        tar.append_data(&mut header, &name, &mut file)?;
    }
    let hashing = tar.into_inner()?;
    Ok(hex::encode(hashing.hash.finalize()))
}

/// Source and name in the image of everything the process has mapped.
fn files() -> anyhow::Result<Vec<(PathBuf, PathBuf)>> {
    let executable = fs::read_link("/proc/self/exe")?;
    let maps = fs::read_to_string("/proc/self/maps").context("read /proc/self/maps")?;
    let libraries: BTreeSet<&str> = maps
        .lines()
        .filter_map(|line| line.find('/').map(|at| &line[at..]))
        .filter(|path| path.contains(".so") && Path::new(path) != executable)
        .collect();
    let mut files = vec![(PathBuf::from("/proc/self/exe"), PathBuf::from("isopod"))];
    for library in libraries {
        files.push((library.into(), library.trim_start_matches('/').into()));
    }
    // The loader is found by the fixed path in the binary's header, often a symbolic link.
    if let Some(loader) = interpreter()? {
        let name: PathBuf = loader.strip_prefix("/").unwrap_or(&loader).into();
        if !files.iter().any(|(_, present)| *present == name) {
            files.push((loader, name));
        }
    }
    Ok(files)
}

/// The dynamic loader named by the binary's PT_INTERP header (ELF-64, little endian).
fn interpreter() -> anyhow::Result<Option<PathBuf>> {
    const PT_INTERP: u32 = 3;
    let mut head = Vec::new();
    File::open("/proc/self/exe")?.take(64 * 1024).read_to_end(&mut head)?;
    let number = |at: usize, size: usize| {
        let bytes = head.get(at..at + size)?;
        Some(bytes.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte)) as usize)
    };
    let segments = (number(0x20, 8), number(0x36, 2), number(0x38, 2));
    let (Some(table), Some(entry_size), Some(count)) = segments else { return Ok(None) };
    for entry in (0..count).map(|i| table + i * entry_size) {
        if number(entry, 4) == Some(PT_INTERP as usize) {
            let (Some(offset), Some(size)) = (number(entry + 8, 8), number(entry + 32, 8)) else { return Ok(None) };
            let path = head.get(offset..offset + size).unwrap_or_default();
            let path = String::from_utf8_lossy(path).trim_end_matches('\0').to_owned();
            return Ok((!path.is_empty()).then(|| path.into()));
        }
    }
    Ok(None)
}

fn append(tar: &mut tar::Builder<File>, name: &str, content: &[u8]) -> io::Result<()> {
    let mut header = header(tar::EntryType::Regular, content.len() as u64);
    tar.append_data(&mut header, name, content)
}

/// World-readable and executable, dated at the epoch, so that equal binaries make equal images.
fn header(kind: tar::EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

struct Hashing {
    file: File,
    hash: Sha256,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
