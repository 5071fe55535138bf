//! Volumes of a pod: set up before its containers, kept current while they run, removed after them.
//!
//! A plugin is one file and one line in [`PLUGINS`]; it gets a directory and fills it. Where that
//! directory is, who may write and what is cleaned up is decided here, so that plugins know neither
//! containers nor the runtime.

mod atomic;
mod claim;
mod empty_dir;
mod host_path;
mod image;
mod ownership;
mod payload;
mod subpath;
mod tokens;

pub use claim::remove as remove_local;
pub use subpath::read;
pub use tokens::Tokens;

use crate::config::Config;
use crate::convert;
use crate::env::{self, References};
use crate::fields::Facts;
use crate::pod::{self, Member};
use async_trait::async_trait;
use cri::v1;
use k8s_openapi::api::core::v1::{Pod, Volume, VolumeDevice, VolumeMount};
use kube::Client;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

/// What a plugin may know of the pod.
pub struct Context<'a> {
    pub pod: &'a Pod,
    pub references: &'a References,
    pub facts: &'a Facts,
    pub tokens: &'a Tokens,
    pub client: &'a Client,
    /// Where this node keeps the directories of local volumes.
    pub local_volumes: Option<&'a Path>,
}

#[async_trait]
trait Plugin: Send + Sync {
    /// The directory name, such as `kubernetes.io~empty-dir`.
    fn name(&self) -> &'static str;
    fn handles(&self, volume: &Volume) -> bool;
    /// Containers get it read-only whatever they ask.
    fn read_only(&self, _volume: &Volume) -> bool {
        false
    }
    /// What users read when `set_up` fails.
    fn complaint(&self, volume: &Volume, error: String) -> String {
        format!("MountVolume.SetUp failed for volume {:?} : {error}", volume.name)
    }
    /// A path elsewhere that stands for the volume.
    fn path(&self, _volume: &Volume) -> Option<PathBuf> {
        None
    }
    /// Fills `directory`, which exists. Called again whenever something it depends on changed.
    async fn set_up(&self, context: &Context<'_>, volume: &Volume, directory: &Path) -> Result<(), String>;
}

static PLUGINS: [&dyn Plugin; 8] = [
    &image::Image,
    &claim::Claim,
    &empty_dir::EmptyDir,
    &host_path::HostPath,
    &payload::CONFIG_MAP,
    &payload::SECRET,
    &payload::DOWNWARD_API,
    &payload::PROJECTED,
];

fn plugin(volume: &Volume) -> Option<&'static dyn Plugin> {
    PLUGINS.iter().copied().find(|plugin| plugin.handles(volume))
}

/// Where a volume is on the host.
pub fn path(config: &Config, pod: &Pod, volume: &str) -> Option<PathBuf> {
    let volume = pod::spec(pod).volumes.iter().flatten().find(|candidate| candidate.name == volume)?;
    let plugin = plugin(volume)?;
    let own = || config.pod_dir(pod::uid(pod)).join("volumes").join(plugin.name()).join(&volume.name);
    Some(plugin.path(volume).unwrap_or_else(own))
}

/// The volumes some container uses; others are not set up.
fn used(pod: &Pod) -> Vec<&Volume> {
    let mut names = BTreeSet::new();
    for member in pod::members(pod) {
        names.extend(member.container.volume_mounts.iter().flatten().map(|mount| mount.name.clone()));
        names.extend(member.container.volume_devices.iter().flatten().map(|device| device.name.clone()));
        let sources = member.container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref());
        names.extend(sources.filter_map(|source| source.file_key_ref.as_ref()).map(|key| key.volume_name.clone()));
    }
    pod::spec(pod).volumes.iter().flatten().filter(|volume| names.contains(&volume.name)).collect()
}

/// Sets every used volume up, or brings it up to date. The error names the volume that failed.
pub async fn set_up(config: &Config, context: &Context<'_>) -> Result<(), String> {
    for volume in used(context.pod) {
        let none = || format!("MountVolume.SetUp failed for volume {:?} : no volume plugin matched", volume.name);
        let plugin = plugin(volume).ok_or_else(none)?;
        let failed = |error: String| plugin.complaint(volume, error);
        let directory = path(config, context.pod, &volume.name).unwrap_or_default();
        if plugin.path(volume).is_none() && !directory.exists() {
            create_dir(&directory).map_err(failed)?;
        }
        plugin.set_up(context, volume, &directory).await.map_err(failed)?;
    }
    Ok(())
}

fn create_dir(path: &Path) -> Result<(), String> {
    std::fs::create_dir_all(path).map_err(|error| format!("create {}: {error}", path.display()))
}

/// Whether any volume's content can change while the pod runs.
pub fn is_live(pod: &Pod) -> bool {
    used(pod).iter().any(|volume| {
        volume.config_map.is_some()
            || volume.secret.is_some()
            || volume.projected.is_some()
            || volume.downward_api.is_some()
    })
}

/// Image volumes by name, as the runtime knows their images.
pub type Images = BTreeMap<String, String>;

/// The mounts of one container, with its termination log and hosts file.
pub fn mounts(
    config: &Config,
    pod: &Pod,
    member: &Member<'_>,
    environment: &[(String, String)],
    images: &Images,
    hosts: &str,
) -> Result<Vec<v1::Mount>, String> {
    let container = &member.container;
    let mut mounts = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        mounts.push(volume_mount(config, pod, member, (index, mount), environment, images)?);
    }
    let pod_dir = config.pod_dir(pod::uid(pod));
    let taken = |path: &str| container.volume_mounts.iter().flatten().any(|mount| mount.mount_path == path);
    if !taken("/etc/hosts") {
        let file = pod_dir.join("etc-hosts");
        write(&file, hosts, 0o644)?;
        mounts.push(bind("/etc/hosts", &file));
    }
    if !taken(convert::message_path(container)) {
        let directory = pod_dir.join("containers").join(member.name());
        create_dir(&directory)?;
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let file = directory.join(&unique[..8]);
        write(&file, "", 0o666)?;
        mounts.push(bind(convert::message_path(container), &file));
    }
    Ok(mounts)
}

/// The block devices of one container.
pub fn devices(config: &Config, pod: &Pod, member: &Member<'_>) -> Result<Vec<v1::Device>, String> {
    let find = |device: &VolumeDevice| {
        let missing = || format!("cannot find volume {:?} to pass into container {:?}", device.name, member.name());
        let link = claim::device(&path(config, pod, &device.name).ok_or_else(missing)?);
        let host_path = std::fs::read_link(link).map_err(|_| missing())?.display().to_string();
        let read_only =
            pod::spec(pod).volumes.iter().flatten().any(|volume| {
                volume.name == device.name && plugin(volume).is_some_and(|plugin| plugin.read_only(volume))
            });
        let permissions = if read_only { "r" } else { "mrw" }.to_owned();
        Ok(v1::Device { container_path: device.device_path.clone(), host_path, permissions })
    };
    member.container.volume_devices.iter().flatten().map(find).collect()
}

fn bind(container_path: &str, host_path: &Path) -> v1::Mount {
    v1::Mount {
        container_path: container_path.to_owned(),
        host_path: host_path.display().to_string(),
        ..Default::default()
    }
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt as _;
    let failed = |error: std::io::Error| format!("write {}: {error}", path.display());
    if let Some(parent) = path.parent() {
        create_dir(parent)?;
    }
    std::fs::write(path, text).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed)
}

fn volume_mount(
    config: &Config,
    pod: &Pod,
    member: &Member<'_>,
    (index, mount): (usize, &VolumeMount),
    environment: &[(String, String)],
    images: &Images,
) -> Result<v1::Mount, String> {
    let missing = || format!("cannot find volume {:?} to mount into container {:?}", mount.name, member.name());
    let volume =
        pod::spec(pod).volumes.iter().flatten().find(|volume| volume.name == mount.name).ok_or_else(missing)?;
    let plugin = plugin(volume).ok_or_else(missing)?;
    let container_path = match mount.mount_path.starts_with('/') {
        true => mount.mount_path.clone(),
        false => format!("/{}", mount.mount_path),
    };
    let sub_path = sub_path(mount, environment)?;
    if volume.image.is_some() {
        let image = images.get(&volume.name).cloned().ok_or_else(missing)?;
        let image = Some(v1::ImageSpec { image, ..Default::default() });
        let image_sub_path = sub_path.unwrap_or_default();
        return Ok(v1::Mount { container_path, readonly: true, image, image_sub_path, ..Default::default() });
    }
    let mut host_path = path(config, pod, &mount.name).ok_or_else(missing)?;
    if let Some(sub_path) = sub_path {
        let target = config
            .pod_dir(pod::uid(pod))
            .join("volume-subpaths")
            .join(&volume.name)
            .join(member.name())
            .join(index.to_string());
        host_path = subpath::prepare(&host_path, Path::new(&sub_path), &target).map_err(|error| {
            // Users are not told more: it would let them look around on the host.
            tracing::warn!(pod = pod::full_name(pod), container = member.name(), volume = mount.name, %error, "subPath");
            format!("failed to prepare subPath for volumeMount {:?} of container {:?}", mount.name, member.name())
        })?;
    }
    let read_only = mount.read_only == Some(true) || plugin.read_only(volume);
    Ok(v1::Mount {
        container_path,
        host_path: host_path.display().to_string(),
        readonly: read_only,
        recursive_read_only: read_only
            && matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible")),
        propagation: match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => v1::MountPropagation::PropagationHostToContainer,
            Some("Bidirectional") => v1::MountPropagation::PropagationBidirectional,
            _ => v1::MountPropagation::PropagationPrivate,
        }
        .into(),
        ..Default::default()
    })
}

/// The subPath or expanded subPathExpr; refuses to leave the volume.
fn sub_path(mount: &VolumeMount, environment: &[(String, String)]) -> Result<Option<String>, String> {
    let text = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
    let path = match (text(&mount.sub_path), text(&mount.sub_path_expr)) {
        (Some(path), _) => path,
        (None, None) => return Ok(None),
        (None, Some(expression)) => {
            let missing = std::cell::RefCell::new(BTreeSet::new());
            let expanded = env::expand(&expression, |name| {
                let found = environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
                // An empty one would lead to another directory than was meant.
                if found.as_ref().is_none_or(String::is_empty) {
                    missing.borrow_mut().insert(name.to_owned());
                }
                found
            });
            let missing: Vec<String> = missing.into_inner().into_iter().collect();
            if !missing.is_empty() {
                return Err(format!("missing value for {}", missing.join(", ")));
            }
            expanded
        }
    };
    if path.starts_with('/') {
        return Err(format!("error SubPath `{path}` must not be an absolute path"));
    }
    match Path::new(&path).components().any(|part| part == Component::ParentDir) {
        true => Err(format!("unable to provision SubPath `{path}`: must not contain '..'")),
        false => Ok(Some(path)),
    }
}

/// Releases what one container's subPath mounts hold.
pub fn clean_container(config: &Config, uid: &str, container: &str) {
    let volumes = std::fs::read_dir(config.pod_dir(uid).join("volume-subpaths")).into_iter().flatten().flatten();
    for volume in volumes {
        let directory = volume.path().join(container);
        unmount_below(&directory);
        if directory.exists() && !has_mounts(&directory) {
            let _ = std::fs::remove_dir_all(&directory);
        }
    }
}

/// Unmounts and deletes everything a pod had on disk. Never deletes through a mount that stayed.
pub fn tear_down(config: &Config, uid: &str) -> Result<(), String> {
    let directory = config.pod_dir(uid);
    unmount_below(&directory);
    if has_mounts(&directory) {
        return Err(format!("mounts remain below {}", directory.display()));
    }
    match std::fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("remove {}: {error}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// Mount points at or below a path, the deepest first.
fn mounts_below(path: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    let mut below: Vec<PathBuf> = points.filter(|point| point.starts_with(path)).collect();
    below.reverse();
    below
}

fn has_mounts(path: &Path) -> bool {
    !mounts_below(path).is_empty()
}

/// mountinfo writes spaces, tabs, newlines and backslashes in octal.
fn unescape(field: &str) -> PathBuf {
    let named = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    named.iter().fold(field.to_owned(), |text, (code, plain)| text.replace(code, plain)).into()
}

fn unmount_below(path: &Path) {
    use nix::mount::{MntFlags, umount2};
    for point in mounts_below(path) {
        if umount2(&point, MntFlags::UMOUNT_NOFOLLOW).is_err()
            && let Err(error) = umount2(&point, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH)
        {
            tracing::warn!(mount = %point.display(), %error, "cannot unmount");
        }
    }
}

#[cfg(test)]
mod tests;
