//! The image store: what images there are, and their unpacked layers.
//!
//! Knows archives, registries and files; nothing of containers but the list of layers each one uses.
//! Layers are unpacked once per content and shared by all images. Every change is made under a file
//! lock and ends with a rename, so a second process (`isopod image import`) may work on the store of
//! a running service, and a crash leaves either the old or the new state.

mod archive;
mod config;
mod layer;
mod pull;
mod reference;

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

pub use config::ImageConfig;
pub use pull::Credentials;
pub(crate) use reference::normalize;

/// An image of the store. Ids and digests read `sha256:<hex>`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// Digest of the image's configuration.
    pub id: String,
    /// Full names, such as `docker.io/library/nginx:1.27`.
    pub tags: Vec<String>,
    /// Names with the manifest's digest, such as `docker.io/library/nginx@sha256:...`.
    pub digests: Vec<String>,
    /// Digests of the uncompressed layers, lowest first.
    pub layers: Vec<String>,
    /// Bytes on disk, all layers counted.
    pub size: u64,
    pub config: ImageConfig,
}

/// What the store knows of an unpacked layer.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Layer {
    diff_id: String,
    size: u64,
    /// Compressed blobs that unpack to it: not fetched again.
    blobs: BTreeSet<String>,
}

/// Name of the directory without content among the layers, for overlays that lack a second one.
pub(crate) const EMPTY_LAYER: &str = "empty";

/// File in a container's directory with the layers it uses, one diff id per line.
pub(crate) const PINS: &str = "layers";

/// A handle to the store under one directory; cheap to clone, usable from any thread or process.
#[derive(Clone)]
pub struct Images {
    inner: Arc<Inner>,
}

struct Inner {
    root: PathBuf,
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    generation: Vec<u8>,
    images: Arc<Vec<Image>>,
}

impl Images {
    /// Opens or makes the store in `root`, and clears what an interrupted change left.
    pub fn open(root: &Path) -> Result<Images> {
        for directory in ["layers/empty", "images", "blobs/sha256", "tmp"] {
            let directory = root.join(directory);
            std::fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        }
        // Images bring setuid programs, which are not for the users of the host.
        std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o700))
            .with_context(|| format!("close {} to others", root.display()))?;
        let inner = Inner { root: root.into(), cache: Mutex::default() };
        let images = Images { inner: Arc::new(inner) };
        // What looks left over may be the work of an import that is under way in another process.
        if let (Some(_lock), Some(_idle)) = (images.try_lock("lock")?, images.try_lock("active")?) {
            images.clear_leftovers()?;
        }
        Ok(images)
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.inner.root.join(name)
    }

    /// Directory that the names from [`Images::lowers`] are in.
    pub(crate) fn layers_directory(&self) -> PathBuf {
        self.path("layers")
    }

    /// Overlay lowers of an image, topmost first.
    pub(crate) fn lowers(image: &Image) -> Vec<String> {
        image.layers.iter().rev().map(|layer| short(layer)).collect()
    }

    /// All images; read again only when some process has changed the store.
    pub fn list(&self) -> Result<Arc<Vec<Image>>> {
        let generation = std::fs::read(self.path("generation")).unwrap_or_default();
        let mut cache = self.inner.cache.lock();
        if cache.generation != generation || generation.is_empty() {
            let mut images: Vec<Image> = read_all(&self.path("images"))?;
            images.sort_by(|a, b| a.id.cmp(&b.id));
            *cache = Cache { generation, images: Arc::new(images) };
        }
        Ok(cache.images.clone())
    }

    /// Finds an image by name, name with digest, id, or unambiguous beginning of an id.
    pub fn get(&self, reference: &str) -> Result<Option<Image>> {
        let images = self.list()?;
        let name = normalize(reference).unwrap_or_default();
        let named = |image: &&Image| image.tags.contains(&name) || image.digests.contains(&name);
        let id = reference.strip_prefix("sha256:").unwrap_or(reference);
        let by_id = || {
            let hex = id.len() >= 6 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
            let mut matches = images.iter().filter(|image| hex && image.id["sha256:".len()..].starts_with(id));
            matches.next().filter(|_| matches.next().is_none())
        };
        Ok(images.iter().find(named).or_else(by_id).cloned())
    }

    /// Imports the images of a `docker save` or OCI-layout archive, gzipped or not; returns them.
    /// Blocks.
    pub fn import(&self, archive: &Path) -> Result<Vec<Image>> {
        let active = self.begin()?;
        let images = archive::import(self, archive).with_context(|| format!("import {}", archive.display()));
        drop(active);
        self.collect_garbage()?;
        images
    }

    /// Pulls from a registry; returns the image.
    pub async fn pull(&self, reference: &str, credentials: Credentials) -> Result<Image> {
        let active = self.begin()?;
        let image = pull::pull(self, reference, credentials).await;
        drop(active);
        self.collect_garbage()?;
        image
    }

    /// Removes an image with all its names, as CRI means it, and the layers that nothing else needs.
    /// Idempotent. Blocks.
    pub fn remove(&self, reference: &str) -> Result<()> {
        let _lock = self.lock()?;
        let Some(image) = self.get(reference)? else { return Ok(()) };
        remove_if_present(&self.image_file(&image.id))?;
        remove_if_present(&self.blob_file(&image.id))?;
        self.changed()?;
        self.collect()
    }

    /// Removes layers that neither an image nor a container uses. Called without the lock held.
    pub(crate) fn collect_garbage(&self) -> Result<()> {
        let _lock = self.lock()?;
        self.collect()
    }

    /// A pull in progress has layers in place that no image names yet: it collects when it is done.
    fn collect(&self) -> Result<()> {
        let Some(_idle) = self.try_lock("active")? else { return Ok(()) };
        let mut used = self.pinned();
        used.extend(self.list()?.iter().flat_map(|image| image.layers.clone()));
        for layer in read_all::<Layer>(&self.path("layers"))? {
            if !used.contains(&layer.diff_id) {
                self.remove_layer(&short(&layer.diff_id))?;
            }
        }
        Ok(())
    }

    /// Layers that containers use survive their image: each container lists its own in a file.
    fn pinned(&self) -> BTreeSet<String> {
        let containers = std::fs::read_dir(self.path("containers")).into_iter().flatten().flatten();
        let lists = containers.filter_map(|entry| std::fs::read_to_string(entry.path().join(PINS)).ok());
        lists.flat_map(|list| list.lines().map(String::from).collect::<Vec<_>>()).collect()
    }

    /// The record goes first: a layer is there when its record is.
    fn remove_layer(&self, name: &str) -> Result<()> {
        remove_if_present(&self.path("layers").join(format!("{name}.json")))?;
        let trash = self.temporary();
        match std::fs::rename(self.path("layers").join(name), &trash) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.with_context(|| format!("remove layer {name}"))?,
        }
        std::fs::remove_dir_all(&trash).with_context(|| format!("remove {}", trash.display()))
    }

    fn clear_leftovers(&self) -> Result<()> {
        for entry in std::fs::read_dir(self.path("tmp"))?.flatten() {
            let removed = if entry.path().is_dir() {
                std::fs::remove_dir_all(entry.path())
            } else {
                std::fs::remove_file(entry.path())
            };
            removed.with_context(|| format!("remove {}", entry.path().display()))?;
        }
        for entry in std::fs::read_dir(self.path("layers"))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let complete = || self.path("layers").join(format!("{name}.json")).exists();
            if !name.ends_with(".json") && name != EMPTY_LAYER && !complete() {
                self.remove_layer(&name)?;
            }
        }
        Ok(())
    }

    /// A new path in the store's own filesystem, for content that is renamed into place.
    fn temporary(&self) -> PathBuf {
        self.path("tmp").join(uuid::Uuid::new_v4().to_string())
    }

    fn layer(&self, diff_id: &str) -> Option<Layer> {
        let bytes = std::fs::read(self.path("layers").join(format!("{}.json", short(diff_id)))).ok()?;
        serde_json::from_slice(&bytes).ok().filter(|layer: &Layer| layer.diff_id == diff_id)
    }

    /// Unpacks a layer unless it is there. `source` yields the blob, compressed or not; `blob` is its
    /// digest and `diff_id` that of the content: both are checked.
    fn add_layer(&self, diff_id: &str, blob: &str, source: impl io::Read) -> Result<()> {
        if self.note_blob(diff_id, blob)? {
            return Ok(());
        }
        let directory = self.temporary();
        let unpacked = layer::unpack(source, &directory).and_then(|unpacked| {
            if unpacked.diff_id != diff_id {
                bail!("layer {blob} unpacks to {}, the image says {diff_id}", unpacked.diff_id);
            }
            if !blob.is_empty() && unpacked.blob != blob {
                bail!("layer {blob} has digest {}", unpacked.blob);
            }
            sync_filesystem(&directory)?;
            Ok(unpacked)
        });
        let unpacked = match unpacked {
            Ok(unpacked) => unpacked,
            Err(error) => {
                let _ = std::fs::remove_dir_all(&directory);
                return Err(error);
            }
        };
        let _lock = self.lock()?;
        if self.layer(diff_id).is_some() {
            return Ok(std::fs::remove_dir_all(&directory)?); // somebody else was faster
        }
        let name = short(diff_id);
        let target = self.path("layers").join(&name);
        if target.exists() {
            std::fs::remove_dir_all(&target)?;
        }
        std::fs::rename(&directory, &target).with_context(|| format!("place layer {diff_id}"))?;
        let record = Layer { diff_id: diff_id.into(), size: unpacked.size, blobs: BTreeSet::from([unpacked.blob]) };
        self.write_json(&self.path("layers").join(format!("{name}.json")), &record)
    }

    /// Whether the layer is there; remembers the blob it comes from.
    fn note_blob(&self, diff_id: &str, blob: &str) -> Result<bool> {
        let Some(mut layer) = self.layer(diff_id) else { return Ok(false) };
        if !blob.is_empty() && layer.blobs.insert(blob.into()) {
            self.write_json(&self.path("layers").join(format!("{}.json", short(diff_id))), &layer)?;
        }
        Ok(true)
    }

    /// Records an image whose layers are in place. Its names move here from older images.
    fn add_image(&self, configuration: &[u8], tags: &[String], digests: &[String]) -> Result<Image> {
        let _lock = self.lock()?;
        let id = layer::digest(configuration);
        let parsed = config::parse(configuration)?;
        let mut image = Image { id: id.clone(), config: parsed.config, layers: parsed.diff_ids, ..Image::default() };
        for diff_id in &image.layers {
            let layer = self.layer(diff_id).with_context(|| format!("layer {diff_id} of image {id} is missing"))?;
            image.size += layer.size;
        }
        let images = self.list()?;
        if let Some(old) = images.iter().find(|old| old.id == id) {
            (image.tags, image.digests) = (old.tags.clone(), old.digests.clone());
        }
        append_new(&mut image.tags, tags);
        append_new(&mut image.digests, digests);
        self.write(&self.blob_file(&id), configuration)?;
        self.write_image(&image)?;
        for old in images.iter().filter(|old| old.id != id && old.tags.iter().any(|tag| tags.contains(tag))) {
            let mut old = old.clone();
            old.tags.retain(|tag| !tags.contains(tag));
            self.write_image(&old)?;
        }
        self.changed()?;
        Ok(image)
    }

    fn image_file(&self, id: &str) -> PathBuf {
        self.path("images").join(format!("{}.json", hex_of(id)))
    }

    fn blob_file(&self, digest: &str) -> PathBuf {
        self.path("blobs/sha256").join(hex_of(digest))
    }

    /// The image's configuration as it was pulled.
    pub(crate) fn raw_config(&self, id: &str) -> Option<String> {
        std::fs::read_to_string(self.blob_file(id)).ok()
    }

    fn write_image(&self, image: &Image) -> Result<()> {
        self.write_json(&self.image_file(&image.id), image)
    }

    fn write_json(&self, path: &Path, value: &impl Serialize) -> Result<()> {
        self.write(path, &serde_json::to_vec(value)?)
    }

    /// Replaces a file durably.
    fn write(&self, path: &Path, content: &[u8]) -> Result<()> {
        let temporary = self.temporary();
        let write = || -> io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(content)?;
            file.sync_all()?;
            std::fs::rename(&temporary, path)?;
            File::open(path.parent().unwrap_or(path))?.sync_all()
        };
        write().with_context(|| format!("write {}", path.display()))
    }

    /// Makes every process read the list of images again.
    fn changed(&self) -> Result<()> {
        self.write(&self.path("generation"), uuid::Uuid::new_v4().to_string().as_bytes())
    }

    /// Keeps garbage collection away, in every process, while layers of a new image arrive.
    fn begin(&self) -> Result<File> {
        let file = self.lock_file("active")?;
        file.lock_shared().context("lock the image store")?;
        Ok(file)
    }

    fn lock(&self) -> Result<File> {
        let file = self.lock_file("lock")?;
        file.lock().context("lock the image store")?;
        Ok(file)
    }

    fn try_lock(&self, name: &str) -> Result<Option<File>> {
        let file = self.lock_file(name)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error).context("lock the image store"),
        }
    }

    fn lock_file(&self, name: &str) -> Result<File> {
        let path = self.path(name);
        File::options()
            .create(true)
            .write(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))
    }

    /// Bytes of all unpacked layers.
    pub(crate) fn usage(&self) -> Result<u64> {
        Ok(read_all::<Layer>(&self.path("layers"))?.iter().map(|layer| layer.size).sum())
    }

    pub(crate) fn root(&self) -> &Path {
        &self.inner.root
    }
}

/// Directory name of a layer: 126 bits of its digest in 21 letters, so that an overlay of 170 layers
/// still fits into one page of mount options.
pub(crate) fn short(diff_id: &str) -> String {
    use base64::Engine;
    let bytes = hex::decode(hex_of(diff_id)).unwrap_or_default();
    let mut name = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    name.truncate(21);
    name
}

fn hex_of(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

fn append_new(list: &mut Vec<String>, more: &[String]) {
    for item in more {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

/// Every readable JSON record of a directory; one that cannot be read is reported and left out.
fn read_all<T: serde::de::DeserializeOwned>(directory: &Path) -> Result<Vec<T>> {
    let entries = std::fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    let files =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "json"));
    Ok(files
        .filter_map(|path| {
            let parsed =
                std::fs::read(&path).map_err(anyhow::Error::from).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
            parsed.inspect_err(|error| tracing::warn!(path = %path.display(), %error, "unreadable record")).ok()
        })
        .collect())
}

fn remove_if_present(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// One call for all files of a layer instead of an fsync for each.
fn sync_filesystem(directory: &Path) -> Result<()> {
    let directory = File::open(directory)?;
    nix::unistd::syncfs(&directory).context("sync the layer to disk")
}
