//! Archives as `docker save`, `ctr export`, `skopeo copy oci-archive:` and `buildah` write them.
//!
//! The archive is indexed once and then read in the order the images want, so that layers need not
//! stand before or after what names them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::layer::digest;
use super::reference::repository;
use super::{Image, Images, normalize};

/// Names and places of the files in an uncompressed archive.
struct Archive {
    file: File,
    entries: HashMap<String, (u64, u64)>,
    links: HashMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    digest: String,
    #[serde(default)]
    media_type: String,
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
}

#[derive(Clone, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: &str = "amd64";
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: &str = "arm64";

/// Annotations that name an image, most telling first.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

pub(super) fn import(images: &Images, path: &Path) -> Result<Vec<Image>> {
    let archive = Archive::open(images, path)?;
    // `docker save` writes both since version 25; its index lacks the repository's name.
    let imported = match (archive.has("manifest.json"), archive.has("index.json")) {
        (true, _) => docker(images, &archive)?,
        (false, true) => layout(images, &archive)?,
        (false, false) => bail!("neither manifest.json nor index.json in the archive: not an image archive"),
    };
    if imported.is_empty() {
        bail!("the archive has no image for linux/{ARCHITECTURE}");
    }
    Ok(imported)
}

fn docker(images: &Images, archive: &Archive) -> Result<Vec<Image>> {
    let listed: Vec<DockerImage> = archive.json("manifest.json")?;
    listed
        .iter()
        .map(|image| {
            let configuration = archive.bytes(&image.config)?;
            let diff_ids = super::config::parse(&configuration)?.diff_ids;
            if diff_ids.len() != image.layers.len() {
                bail!("{} names {} layers, the archive {}", image.config, diff_ids.len(), image.layers.len());
            }
            for (diff_id, layer) in diff_ids.iter().zip(&image.layers) {
                images.add_layer(diff_id, "", archive.reader(layer)?)?;
            }
            let tags = image.repo_tags.iter().flatten().map(|tag| normalize(tag).map_err(anyhow::Error::msg));
            images.add_image(&configuration, &tags.collect::<Result<Vec<_>>>()?, &[])
        })
        .collect()
}

fn layout(images: &Images, archive: &Archive) -> Result<Vec<Image>> {
    let index: Index = archive.json("index.json")?;
    let mut imported = Vec::new();
    for descriptor in &index.manifests {
        let name = descriptor.annotations.as_ref().and_then(|all| NAMES.iter().find_map(|key| all.get(*key)));
        let name = name.map(|name| normalize(name)).transpose().map_err(anyhow::Error::msg)?;
        if let Some(manifest) = archive.select(descriptor)? {
            imported.push(layout_image(images, archive, &descriptor.digest, &manifest, name)?);
        }
    }
    Ok(imported)
}

fn layout_image(
    images: &Images,
    archive: &Archive,
    named_digest: &str,
    manifest: &Descriptor,
    name: Option<String>,
) -> Result<Image> {
    let manifest: Manifest = archive.blob_json(&manifest.digest)?;
    let configuration = archive.blob(&manifest.config.digest)?;
    let diff_ids = super::config::parse(&configuration)?.diff_ids;
    for (diff_id, layer) in diff_ids.iter().zip(&manifest.layers) {
        images.add_layer(diff_id, &layer.digest, archive.reader(&blob_path(&layer.digest))?)?;
    }
    let digests = name.iter().map(|name| format!("{}@{named_digest}", repository(name)));
    images.add_image(&configuration, name.as_slice(), &digests.collect::<Vec<_>>())
}

fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

impl Archive {
    fn open(images: &Images, path: &Path) -> Result<Archive> {
        let mut file = File::open(path)?;
        let mut magic = [0; 2];
        if file.read_exact(&mut magic).is_ok() && magic == [0x1f, 0x8b] {
            file.rewind()?;
            let temporary = images.temporary();
            let mut plain = File::options().read(true).write(true).create_new(true).open(&temporary)?;
            std::fs::remove_file(&temporary)?; // open until we are done, gone whatever happens
            io::copy(&mut flate2::read::MultiGzDecoder::new(file), &mut plain).context("decompress the archive")?;
            file = plain;
        }
        file.rewind()?;
        let (mut entries, mut links) = (HashMap::new(), HashMap::new());
        for entry in tar::Archive::new(&file).entries_with_seek()? {
            let entry = entry.context("read the archive")?;
            let name = plain_name(&entry.path()?);
            match entry.link_name()? {
                // Old docker archives link layers that several images share.
                Some(target) if entry.header().entry_type().is_symlink() => {
                    let parent = Path::new(&name).parent().unwrap_or(Path::new("")).to_path_buf();
                    links.insert(name, plain_name(&parent.join(target)));
                }
                _ => drop(entries.insert(name, (entry.raw_file_position(), entry.size()))),
            }
        }
        Ok(Archive { file, entries, links })
    }

    fn find(&self, name: &str) -> Option<(u64, u64)> {
        let name = plain_name(Path::new(name));
        self.entries.get(self.links.get(&name).unwrap_or(&name)).copied()
    }

    fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    fn reader(&self, name: &str) -> Result<impl Read> {
        let (position, size) = self.find(name).with_context(|| format!("{name} is missing in the archive"))?;
        Ok(Section { file: &self.file, position, end: position + size })
    }

    /// A small file; the bound keeps a hostile archive from filling memory.
    fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        const LIMIT: u64 = 8 * 1024 * 1024;
        let mut bytes = Vec::new();
        self.reader(name)?.take(LIMIT).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        serde_json::from_slice(&self.bytes(name)?).with_context(|| format!("parse {name}"))
    }

    fn blob(&self, wanted: &str) -> Result<Vec<u8>> {
        let bytes = self.bytes(&blob_path(wanted))?;
        if digest(&bytes) != wanted {
            bail!("blob {wanted} has digest {}", digest(&bytes));
        }
        Ok(bytes)
    }

    fn blob_json<T: DeserializeOwned>(&self, wanted: &str) -> Result<T> {
        serde_json::from_slice(&self.blob(wanted)?).with_context(|| format!("parse {wanted}"))
    }

    /// The manifest for this platform behind a descriptor of a manifest or of an index.
    fn select(&self, descriptor: &Descriptor) -> Result<Option<Descriptor>> {
        if !descriptor.media_type.contains("index") && !descriptor.media_type.contains("manifest.list") {
            return Ok(Some(descriptor.clone()));
        }
        let index: Index = self.blob_json(&descriptor.digest)?;
        let here = |platform: &Platform| platform.os == "linux" && platform.architecture == ARCHITECTURE;
        Ok(index.manifests.into_iter().find(|manifest| manifest.platform.as_ref().is_none_or(here)))
    }
}

fn plain_name(path: &Path) -> String {
    let mut parts: Vec<String> = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => parts.push(name.to_string_lossy().into_owned()),
            Component::ParentDir => drop(parts.pop()),
            _ => {}
        }
    }
    parts.join("/")
}

/// Part of a file, read without moving the file's own position.
struct Section<'a> {
    file: &'a File,
    position: u64,
    end: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min((self.end - self.position) as usize);
        let length = self.file.read_at(&mut buffer[..wanted], self.position)?;
        self.position += length as u64;
        Ok(length)
    }
}
