//! emptyDir: a directory on disk, or a tmpfs, that lives as long as its pod.

use super::ownership::Owner;
use super::{Context, Plugin};
use crate::resources;
use async_trait::async_trait;
use k8s_openapi::api::core::v1::Volume;
use machinery::quantity::Quantity;
use nix::mount::{MsFlags, mount};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

pub struct EmptyDir;

#[async_trait]
impl Plugin for EmptyDir {
    fn name(&self) -> &'static str {
        "kubernetes.io~empty-dir"
    }

    fn handles(&self, volume: &Volume) -> bool {
        volume.empty_dir.is_some()
    }

    /// Contents survive a second call: only a missing mount is made.
    async fn set_up(&self, context: &Context<'_>, volume: &Volume, directory: &Path) -> Result<(), String> {
        let source = volume.empty_dir.clone().unwrap_or_default();
        let medium = source.medium.as_deref().unwrap_or_default();
        let ready = directory.with_file_name(format!(".{}.ready", volume.name));
        let done = if medium.is_empty() {
            ready.exists()
        } else {
            super::mounts_below(directory).iter().any(|p| p == directory)
        };
        if done {
            return Ok(());
        }
        match medium.split_once('-').map_or((medium, None), |(medium, size)| (medium, Some(size))) {
            ("", _) => {}
            ("Memory", _) => {
                let limit =
                    source.size_limit.as_ref().and_then(|size| Quantity::parse(&size.0).ok()).map(|q| q.value());
                let options = tmpfs_options(context, limit.filter(|&size| size > 0));
                mount(Some("tmpfs"), directory, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
                    .map_err(|error| format!("mount tmpfs at {}: {error}", directory.display()))?;
            }
            ("HugePages", size) => {
                let size =
                    size.and_then(|size| Quantity::parse(size).ok()).map(|size| format!("pagesize={}", size.value()));
                mount(Some("nodev"), directory, Some("hugetlbfs"), MsFlags::empty(), size.as_deref())
                    .map_err(|error| format!("mount hugetlbfs at {}: {error}", directory.display()))?;
            }
            _ => return Err(format!("unknown storage medium {medium:?}")),
        }
        // Set by hand: neither umask nor the default mode of a tmpfs may decide.
        fs::set_permissions(directory, fs::Permissions::from_mode(0o777))
            .and_then(|()| Owner::of(context, false).apply(directory))
            .and_then(|()| if medium.is_empty() { fs::write(&ready, "") } else { Ok(()) })
            .map_err(|error| format!("prepare {}: {error}", directory.display()))
    }
}

/// The size is the volume's limit, but no more than the pod may use or the node has.
fn tmpfs_options(context: &Context<'_>, limit: Option<i64>) -> String {
    let pod = resources::pod_limit(context.pod, "memory");
    let node = resources::amount(Some(&context.facts.allocatable), "memory");
    match [limit, pod, node].into_iter().flatten().filter(|&size| size > 0).min() {
        Some(size) => format!("size={size}"),
        None => "size=50%".to_owned(),
    }
}
