//! Claims: persistent volumes that are directories, files or devices of this node (`local`, `hostPath`), and generic
//! ephemeral volumes, which are claims too.
//!
//! The volume is bind-mounted at the pod's own place, so that from then on nobody has to know what it is. A node may read
//! claims and volumes of its pods one by one only, hence no informers: a mount asks for them, and an existing mount is
//! not asked about again, since a pod that runs keeps its volumes whatever becomes of their objects.

use super::ownership::Owner;
use super::{Context, Plugin, host_path, mounts_below};
use crate::{admit, pod};
use async_trait::async_trait;
use client::ErrorExt as _;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, Pod, Volume};
use kube::Api;
use nix::mount::{MsFlags, mount};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub const DIRECTORY: &str = "kubernetes.io~local-volume";
/// Whose volumes' directories are made here when first mounted.
const PROVISIONED_BY: (&str, &str) = ("pv.kubernetes.io/provisioned-by", "isopod.io/local-path");
/// The API server's view of what is on this node may be a moment behind ours.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);

pub struct Claim;

#[async_trait]
impl Plugin for Claim {
    fn name(&self) -> &'static str {
        DIRECTORY
    }

    fn handles(&self, volume: &Volume) -> bool {
        volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some()
    }

    fn read_only(&self, volume: &Volume) -> bool {
        volume.persistent_volume_claim.as_ref().is_some_and(|source| source.read_only == Some(true))
    }

    /// Errors are about claims or persistent volumes and say so themselves.
    fn complaint(&self, _: &Volume, error: String) -> String {
        error
    }

    async fn set_up(&self, context: &Context<'_>, volume: &Volume, directory: &Path) -> Result<(), String> {
        if mounts_below(directory).iter().any(|point| point == directory) || device(directory).exists() {
            return Ok(());
        }
        let name = &volume.name;
        let found = find(context, volume).await.map_err(|error| {
            format!(
                "Unable to attach or mount volumes: unmounted volumes=[{name}], unattached volumes=[], \
                 failed to process volumes=[{name}]: {error}"
            )
        })?;
        reachable(context, &found).await?;
        place(context, &found, self.read_only(volume), directory)
    }
}

/// Where the link to a block volume's device is.
pub fn device(directory: &Path) -> PathBuf {
    directory.join("device")
}

fn claim_name(pod: &Pod, volume: &Volume) -> String {
    match &volume.persistent_volume_claim {
        Some(source) => source.claim_name.clone(),
        None => format!("{}-{}", pod.metadata.name.as_deref().unwrap_or_default(), volume.name),
    }
}

async fn get<K>(api: &Api<K>, name: &str) -> Result<K, String>
where
    K: Clone + DeserializeOwned + Debug,
{
    let mut attempts = ATTEMPTS;
    loop {
        match api.get(name).await {
            Err(error) if error.is_forbidden() && attempts > 0 => {
                attempts -= 1;
                tokio::time::sleep(PAUSE).await;
            }
            Err(kube::Error::Api(status)) => return Err(status.message.clone()),
            found => return found.map_err(|error| error.to_string()),
        }
    }
}

async fn find(context: &Context<'_>, volume: &Volume) -> Result<PersistentVolume, String> {
    let (namespace, name) = (pod::namespace(context.pod), claim_name(context.pod, volume));
    let processing = |why: String| format!("error processing PVC {namespace}/{name}: {why}");
    let api: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), namespace);
    let claim = get(&api, &name).await;
    let claim = claim.map_err(|error| processing(format!("failed to fetch PVC from API server: {error}")))?;
    let volume_name = volume_of(context.pod, volume, &claim).map_err(processing)?;
    let found = get(&Api::<PersistentVolume>::all(context.client.clone()), volume_name).await;
    let found =
        found.map_err(|error| processing(format!("failed to fetch PV {volume_name} from API server: {error}")))?;
    is_bound(&found, &claim).map_err(processing)?;
    suits(context.pod, volume, &found).map_err(processing)?;
    Ok(found)
}

/// The volume of a claim that a pod may start with.
pub(super) fn volume_of<'a>(pod: &Pod, volume: &Volume, claim: &'a PersistentVolumeClaim) -> Result<&'a str, String> {
    let owner = client::controller_of(&claim.metadata);
    if volume.ephemeral.is_some() && owner.is_none_or(|owner| owner.uid != pod::uid(pod)) {
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        let (namespace, pod) = (pod::namespace(pod), pod.metadata.name.as_deref().unwrap_or_default());
        return Err(format!("PVC {namespace}/{name} was not created for pod {namespace}/{pod} (pod is not owner)"));
    }
    if claim.metadata.deletion_timestamp.is_some() {
        return Err("PVC is being deleted".to_owned());
    }
    if claim.status.as_ref().and_then(|status| status.phase.as_deref()) != Some("Bound") {
        return Err("PVC is not bound".to_owned());
    }
    let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
    if name.is_empty() { Err("PVC has empty pvc.Spec.VolumeName".to_owned()) } else { Ok(name) }
}

pub(super) fn is_bound(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), String> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let Some(reference) = spec(volume).and_then(|spec| spec.claim_ref.as_ref()) else {
        let what = "a nil pv.Spec.ClaimRef indicating it is not yet bound to the claim";
        return Err(format!("found PV object {name} but it has {what}"));
    };
    let [points, uid] = [&reference.uid, &claim.metadata.uid].map(|uid| uid.as_deref().unwrap_or_default());
    match points == uid {
        true => Ok(()),
        false => Err(format!(
            "found PV object {name} but its pv.Spec.ClaimRef.UID {points} does not point to claim.UID {uid}"
        )),
    }
}

fn spec(volume: &PersistentVolume) -> Option<&PersistentVolumeSpec> {
    volume.spec.as_ref()
}

fn is_block(volume: &PersistentVolume) -> bool {
    spec(volume).and_then(|spec| spec.volume_mode.as_deref()) == Some("Block")
}

/// Whether the containers use the volume as what it is.
fn suits(pod: &Pod, volume: &Volume, found: &PersistentVolume) -> Result<(), String> {
    let name = &volume.name;
    let mut members = pod::members(pod).into_iter();
    let wrong = match is_block(found) {
        true => members.any(|m| m.container.volume_mounts.iter().flatten().any(|mount| mount.name == *name)),
        false => members.any(|m| m.container.volume_devices.iter().flatten().any(|device| device.name == *name)),
    };
    match (wrong, is_block(found)) {
        (true, true) => Err(format!("volume {name} has volumeMode Block, but is specified in volumeMounts")),
        (true, false) => Err(format!("volume {name} has volumeMode Filesystem, but is specified in volumeDevices")),
        _ => Ok(()),
    }
}

async fn reachable(context: &Context<'_>, volume: &PersistentVolume) -> Result<(), String> {
    let affinity = spec(volume).and_then(|spec| spec.node_affinity.as_ref()?.required.as_ref());
    let Some(required) = affinity else { return Ok(()) };
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let failed = |why: &str| format!("MountVolume.NodeAffinity check failed for volume {name:?} : {why}");
    let node = get(&Api::<Node>::all(context.client.clone()), &context.facts.node_name).await;
    let node = node.map_err(|error| failed(&error))?;
    match required.node_selector_terms.iter().any(|term| admit::term_matches(term, &node)) {
        true => Ok(()),
        false => Err(failed("no matching NodeSelectorTerms")),
    }
}

/// Puts the volume at the pod's place for it.
pub(super) fn place(
    context: &Context<'_>,
    volume: &PersistentVolume,
    read_only: bool,
    directory: &Path,
) -> Result<(), String> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let failed = |error: String| format!("MountVolume.SetUp failed for volume {name:?} : {error}");
    let default = PersistentVolumeSpec::default();
    let spec = spec(volume).unwrap_or(&default);
    let source = match (&spec.local, &spec.host_path) {
        (Some(local), _) => {
            let path = PathBuf::from(&local.path);
            provide(context, volume, &path).map_err(failed)?;
            if !path.exists() {
                let why = format!("path {:?} does not exist", local.path);
                return Err(format!("MountVolume.NewMounter initialization failed for volume {name:?} : {why}"));
            }
            path
        }
        (None, Some(host)) => {
            let (kind, path) = (host.type_.as_deref().unwrap_or_default(), PathBuf::from(&host.path));
            // As a runtime does for a path that nobody checked.
            if kind.is_empty() && !path.exists() {
                super::create_dir(&path).map_err(failed)?;
            }
            let checked = host_path::check(kind, &path);
            checked.map_err(|error| failed(format!("hostPath type check failed: {} {error}", host.path)))?;
            path
        }
        (None, None) => return Err(failed("no volume plugin matched".to_owned())),
    };
    match is_block(volume) {
        true => link(&source, directory).map_err(failed),
        false => {
            bind(&source, directory).map_err(|error| failed(format!("mount {}: {error}", source.display())))?;
            let own = spec.local.is_some() && !read_only;
            let owned = if own { own_once(context, directory) } else { Ok(()) };
            owned.map_err(|error| failed(format!("applying fsGroup: {error}")))
        }
    }
}

/// Makes the directory of a volume that was provisioned here and was not mounted before.
fn provide(context: &Context<'_>, volume: &PersistentVolume, path: &Path) -> Result<(), String> {
    let provisioner = volume.metadata.annotations.as_ref().and_then(|all| all.get(PROVISIONED_BY.0));
    let ours = provisioner.is_some_and(|name| name == PROVISIONED_BY.1) && path.parent() == context.local_volumes;
    if !ours || path.exists() {
        return Ok(());
    }
    let made = fs::create_dir_all(path).and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o777)));
    made.map_err(|error| format!("create {}: {error}", path.display()))
}

fn bind(source: &Path, target: &Path) -> std::io::Result<()> {
    if !fs::metadata(source)?.is_dir() {
        fs::remove_dir(target)?;
        fs::File::create(target)?;
    }
    let none = None::<&str>;
    mount(Some(source), target, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    // What is unmounted here later must not vanish at the source.
    Ok(mount(none, target, none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none)?)
}

fn link(source: &Path, directory: &Path) -> Result<(), String> {
    let kind = fs::metadata(source).map_err(|error| format!("examine {}: {error}", source.display()))?.file_type();
    if !kind.is_block_device() {
        return Err(format!("{} is not a block device", source.display()));
    }
    std::os::unix::fs::symlink(source, device(directory)).map_err(|error| format!("link the device: {error}"))
}

/// Gives the content to the pod's group; with the policy OnRootMismatch only if the top is not the group's already.
fn own_once(context: &Context<'_>, path: &Path) -> std::io::Result<()> {
    let security = pod::spec(context.pod).security_context.as_ref();
    let policy = security.and_then(|security| security.fs_group_change_policy.as_deref());
    let owner = Owner::of(context, false);
    let top = fs::metadata(path)?;
    let matches = owner.group == Some(top.gid()) && top.mode() & 0o2770 == 0o2770;
    if policy == Some("OnRootMismatch") && matches { Ok(()) } else { owner.apply(path) }
}

/// Removes the directory of a volume of this node; that there is none is no error.
pub fn remove(local_volumes: &Path, name: &str) -> Result<(), String> {
    let mut parts = Path::new(name).components();
    if !matches!((parts.next(), parts.next()), (Some(std::path::Component::Normal(_)), None)) {
        return Err(format!("{name:?} is no name of a directory"));
    }
    let path = local_volumes.join(name);
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("remove {}: {error}", path.display()))
        }
        _ => Ok(()),
    }
}
