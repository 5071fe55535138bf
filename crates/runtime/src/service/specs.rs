//! From CRI and an image's defaults to the runtime's own spec.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use cri::v1::{
    Int64Value, LinuxContainerResources, LinuxContainerSecurityContext, MountPropagation, NamespaceMode,
    NamespaceOption, SecurityProfile, SupplementalGroupsPolicy, security_profile::ProfileType,
};
use sha2::{Digest, Sha256};

use super::Runtime;
use super::records::{ContainerRecord, PodRecord};
use super::users::{maps, users};
use crate::cgroup::{DEFAULT_DEVICES, DeviceRule, Limits, device_rule};
use crate::container::capabilities;
use crate::container::seccomp;
use crate::container::spec::{DeviceNode, Mount, Process, Propagation, Rootfs, Source, Spec, User};
use crate::container::users::Users;
use crate::images::{Image, Images};

/// All that a container's spec is made of.
pub(super) struct Context<'a> {
    pub(super) runtime: &'a Runtime,
    pub(super) pod: &'a PodRecord,
    pub(super) record: &'a ContainerRecord,
    pub(super) image: &'a Image,
}

/// Finds mistakes that need no filesystem.
pub(super) fn check(record: &ContainerRecord, image: &Image) -> Result<()> {
    let security = security(record);
    if security.run_as_group.is_some() && security.run_as_user.is_none() && security.run_as_username.is_empty() {
        bail!("user group is specified without user");
    }
    arguments(record, image)?;
    let names = security.capabilities.unwrap_or_default();
    let all = capabilities::resolve(
        security.privileged,
        &names.add_capabilities,
        &names.drop_capabilities,
        &names.add_ambient_capabilities,
        0,
    );
    all.map(drop).map_err(anyhow::Error::msg)
}

fn security(record: &ContainerRecord) -> LinuxContainerSecurityContext {
    record.config().linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default()
}

pub(super) fn namespaces(record: &ContainerRecord) -> NamespaceOption {
    security(record).namespace_options.unwrap_or_default()
}

/// A command replaces the image's entrypoint and with it the image's arguments.
fn arguments(record: &ContainerRecord, image: &Image) -> Result<Vec<String>> {
    let config = record.config();
    let (command, image_args) = match config.command.is_empty() {
        true => (&image.config.entrypoint, &image.config.cmd),
        false => (&config.command, &Vec::new()),
    };
    let args = if config.args.is_empty() { image_args } else { &config.args };
    let all: Vec<String> = command.iter().chain(args).cloned().collect();
    if all.is_empty() { Err(anyhow!("no command specified")) } else { Ok(all) }
}

impl Context<'_> {
    pub(super) fn resources(&self) -> Option<&LinuxContainerResources> {
        self.record.config().linux.as_ref()?.resources.as_ref()
    }

    pub(super) fn spec(&self) -> Result<Spec> {
        let security = security(self.record);
        let runtime = self.runtime;
        let directory = runtime.container_directory(&self.record.id);
        let paths = |list: &[String]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
        Ok(Spec {
            rootfs: Rootfs {
                layers: runtime.images.layers_directory(),
                lowers: Images::lowers(self.image),
                upper: directory.join("upper"),
                work: directory.join("work"),
                mount_point: runtime.config.root.join("rootfs"),
                readonly: security.readonly_rootfs,
            },
            mounts: self.mounts(&security)?,
            image_volumes: self.image.config.volumes.keys().map(PathBuf::from).collect(),
            masked_paths: paths(&security.masked_paths),
            readonly_paths: paths(&security.readonly_paths),
            devices: self.devices()?.into_iter().map(|(node, _)| node).collect(),
            privileged: security.privileged,
            cgroup_views: runtime.cgroups.views(&self.record.cgroup),
            host_ipc: namespaces(self.record).ipc() == NamespaceMode::Node,
            process: self.process(&security)?,
        })
    }

    fn process(&self, security: &LinuxContainerSecurityContext) -> Result<Process> {
        let config = self.record.config();
        let names = security.capabilities.clone().unwrap_or_default();
        let capabilities = capabilities::resolve(
            security.privileged,
            &names.add_capabilities,
            &names.drop_capabilities,
            &names.add_ambient_capabilities,
            self.runtime.permitted,
        )
        .map_err(anyhow::Error::msg)?;
        let cwd = [&config.working_dir, &self.image.config.working_dir].into_iter().find(|path| !path.is_empty());
        let seccomp = self.seccomp(security, capabilities.bounding)?;
        Ok(Process {
            args: arguments(self.record, self.image)?,
            env: self.environment(),
            cwd: Path::new("/").join(cwd.map_or("/", String::as_str)),
            user: self.user(security),
            tty: config.tty,
            capabilities,
            no_new_privileges: security.no_new_privs,
            seccomp,
            oom_score_adj: self.resources().map(|resources| resources.oom_score_adj as i32),
            apparmor: apparmor(security),
        })
    }

    /// Image first, then CRI; the last value of a name counts.
    fn environment(&self) -> Vec<String> {
        let config = self.record.config();
        let mut order: Vec<String> = Vec::new();
        let mut values: BTreeMap<String, String> = BTreeMap::new();
        let hostname = self.pod.config().hostname.clone();
        let image = self.image.config.env.iter().filter_map(|entry| entry.split_once('='));
        let host = std::iter::once(("HOSTNAME", hostname.as_str())).filter(|(_, value)| !value.is_empty());
        let own = config.envs.iter().map(|env| (env.key.as_str(), env.value.as_str()));
        for (key, value) in image.chain(host).chain(own) {
            if values.insert(key.into(), value.into()).is_none() {
                order.push(key.into());
            }
        }
        order.into_iter().map(|key| format!("{key}={}", values[&key])).collect()
    }

    fn user(&self, security: &LinuxContainerSecurityContext) -> User {
        let number = |value: &Option<Int64Value>| value.as_ref().map(|value| value.value as u32);
        let name = match (number(&security.run_as_user), security.run_as_username.as_str()) {
            (Some(uid), _) => uid.to_string(),
            (None, "") => self.image.config.user.clone(),
            (None, name) => name.into(),
        };
        User {
            name,
            gid: number(&security.run_as_group),
            supplemental: security.supplemental_groups.iter().map(|gid| *gid as u32).collect(),
            strict: security.supplemental_groups_policy() == SupplementalGroupsPolicy::Strict,
        }
    }

    /// The compiled filter as a file, one per content.
    fn seccomp(&self, security: &LinuxContainerSecurityContext, held: u64) -> Result<Option<PathBuf>> {
        let Some(profile) = security.seccomp.as_ref().filter(|_| !security.privileged) else { return Ok(None) };
        let profile = match profile.profile_type() {
            ProfileType::Unconfined => return Ok(None),
            ProfileType::RuntimeDefault => seccomp::runtime_default(held),
            ProfileType::Localhost => read_profile(profile)?,
        };
        let program = seccomp::compile(&profile, held).map_err(anyhow::Error::msg)?;
        let bytes: Vec<u8> = program.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let name = hex::encode(Sha256::digest(&bytes));
        let path = self.runtime.config.state.join("seccomp").join(&name);
        if !path.exists() {
            let fresh = path.with_extension(super::new_id());
            seccomp::write(&fresh, &program)
                .and_then(|()| std::fs::rename(&fresh, &path))
                .context("write the seccomp filter")?;
        }
        Ok(Some(path))
    }

    fn mounts(&self, security: &LinuxContainerSecurityContext) -> Result<Vec<Mount>> {
        let config = self.record.config();
        let users = users(&namespaces(self.record))?;
        let mut mounts = config.mounts.iter().map(|mount| self.mount(mount, users)).collect::<Result<Vec<_>>>()?;
        let pod = self.runtime.pod_directory(&self.pod.id);
        for (name, readonly) in [("hosts", false), ("hostname", false), ("resolv.conf", true)] {
            let target = Path::new("/etc").join(name);
            if !mounts.iter().any(|mount| mount.target == target) {
                let readonly = readonly && security.readonly_rootfs;
                let source = Source::Host(pod.join(name));
                mounts.push(Mount { source, target, readonly, idmap: users.is_some(), ..Mount::default() });
            }
        }
        mounts.sort_by_key(|mount| mount.target.components().count());
        Ok(mounts)
    }

    fn mount(&self, mount: &cri::v1::Mount, users: Option<Users>) -> Result<Mount> {
        let target = Path::new("/").join(&mount.container_path);
        if let Some(image) = mount.image.as_ref().filter(|image| !image.image.is_empty()) {
            let found = self.runtime.images.get(&image.image)?;
            let found =
                found.with_context(|| format!("image {:?} for volume {} not found", image.image, target.display()))?;
            let source =
                Source::Image { lowers: Images::lowers(&found), sub_path: mount.image_sub_path.clone().into() };
            return Ok(Mount { source, target, readonly: true, recursive_readonly: true, ..Mount::default() });
        }
        let host = Path::new(&mount.host_path);
        if !host.exists() {
            std::fs::create_dir_all(host).with_context(|| format!("failed to mkdir {:?}", mount.host_path))?;
        }
        let propagation = match mount.propagation() {
            MountPropagation::PropagationPrivate => Propagation::Private,
            MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
            MountPropagation::PropagationBidirectional => {
                require_shared(host)?;
                Propagation::Bidirectional
            }
        };
        Ok(Mount {
            source: Source::Host(host.into()),
            target,
            readonly: mount.readonly,
            recursive_readonly: mount.recursive_read_only,
            propagation,
            idmap: maps(mount, users)?,
        })
    }

    /// Device nodes for /dev with what the cgroup is to allow of each.
    fn devices(&self) -> Result<Vec<(DeviceNode, DeviceRule)>> {
        let mut devices = Vec::new();
        if security(self.record).privileged {
            host_devices(Path::new("/dev"), &mut devices);
        }
        for device in &self.record.config().devices {
            let (path, inside) = (Path::new(&device.host_path), Path::new(&device.container_path));
            let node = device_node(path, inside, &device.permissions);
            devices.push(node.with_context(|| {
                format!("error gathering device information while adding custom device {:?}", device.host_path)
            })?);
        }
        Ok(devices)
    }

    /// `None` leaves every device open.
    pub(super) fn device_rules(&self) -> Result<Option<Vec<DeviceRule>>> {
        if security(self.record).privileged {
            return Ok(None);
        }
        let mut rules = DEFAULT_DEVICES.to_vec();
        rules.extend(self.devices()?.into_iter().map(|(_, rule)| rule));
        Ok(Some(rules))
    }
}

fn read_profile(profile: &SecurityProfile) -> Result<seccomp::Profile> {
    let path = profile.localhost_ref.strip_prefix("localhost/").unwrap_or(&profile.localhost_ref);
    let bytes = std::fs::read(path).with_context(|| format!("cannot load seccomp profile {path:?}"))?;
    serde_json::from_slice(&bytes).with_context(|| format!("decoding seccomp profile {path:?} failed"))
}

fn apparmor(security: &LinuxContainerSecurityContext) -> Option<String> {
    let profile = security.apparmor.as_ref().filter(|_| !security.privileged)?;
    match profile.profile_type() {
        ProfileType::Localhost => Some(profile.localhost_ref.trim_start_matches("localhost/").into()),
        _ => None,
    }
}

fn device_node(host: &Path, inside: &Path, permissions: &str) -> Result<(DeviceNode, DeviceRule)> {
    let metadata = std::fs::metadata(host)?;
    let kind = metadata.file_type();
    if !kind.is_block_device() && !kind.is_char_device() {
        bail!("not a device node");
    }
    let (major, minor) = (nix::sys::stat::major(metadata.rdev()) as u32, nix::sys::stat::minor(metadata.rdev()) as u32);
    let permissions = if permissions.is_empty() { "rwm" } else { permissions };
    let node = DeviceNode {
        path: inside.into(),
        block: kind.is_block_device(),
        major,
        minor,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
    };
    Ok((node, device_rule(kind.is_block_device(), major, minor, permissions)))
}

/// For privileged containers: what the host has, without what a container gets of its own.
fn host_devices(directory: &Path, devices: &mut Vec<(DeviceNode, DeviceRule)>) {
    const OWN: [&str; 6] = ["pts", "shm", "mqueue", "fd", "console", "ptmx"];
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, Ok(kind)) = (entry.path(), entry.file_type()) else { continue };
        if OWN.iter().any(|own| entry.file_name() == *own) {
            continue;
        }
        if kind.is_dir() {
            host_devices(&path, devices);
        } else if let (false, Ok(device)) = (kind.is_symlink(), device_node(&path, &path, "rwm")) {
            devices.push(device);
        }
    }
}

/// Mounts can only spread to the host from where the host shares them.
fn require_shared(path: &Path) -> Result<()> {
    let path = std::fs::canonicalize(path)?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let containing = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(4);
            let mount_point = fields.next()?;
            path.starts_with(mount_point).then(|| (mount_point, fields.any(|field| field.starts_with("shared:"))))
        })
        .max_by_key(|(mount_point, _)| mount_point.len());
    match containing {
        Some((_, true)) => Ok(()),
        Some((mount_point, false)) => {
            bail!("path {:?} is mounted on {mount_point:?} but it is not a shared mount", path.display().to_string())
        }
        None => bail!("no mount contains {}", path.display()),
    }
}

/// CRI counts an unset value as 0.
pub(super) fn limits(resources: Option<&LinuxContainerResources>) -> Limits {
    let Some(resources) = resources else { return Limits::default() };
    let set = |value: i64| (value != 0).then_some(value);
    let positive = |value: i64| (value > 0).then_some(value as u64);
    let text = |value: &String| (!value.is_empty()).then(|| value.clone());
    Limits {
        cpu_shares: positive(resources.cpu_shares),
        cpu_quota: set(resources.cpu_quota),
        cpu_period: positive(resources.cpu_period),
        cpuset_cpus: text(&resources.cpuset_cpus),
        cpuset_mems: text(&resources.cpuset_mems),
        memory: set(resources.memory_limit_in_bytes),
        memory_swap: set(resources.memory_swap_limit_in_bytes),
        huge_pages: resources.hugepage_limits.iter().map(|limit| (limit.page_size.clone(), limit.limit)).collect(),
        unified: resources.unified.clone().into_iter().collect(),
    }
}

/// New values over old ones; what is unset stays.
pub(super) fn merge_resources(old: LinuxContainerResources, new: LinuxContainerResources) -> LinuxContainerResources {
    let number = |old: i64, new: i64| if new == 0 { old } else { new };
    let text = |old: String, new: String| if new.is_empty() { old } else { new };
    LinuxContainerResources {
        cpu_period: number(old.cpu_period, new.cpu_period),
        cpu_quota: number(old.cpu_quota, new.cpu_quota),
        cpu_shares: number(old.cpu_shares, new.cpu_shares),
        memory_limit_in_bytes: number(old.memory_limit_in_bytes, new.memory_limit_in_bytes),
        memory_swap_limit_in_bytes: number(old.memory_swap_limit_in_bytes, new.memory_swap_limit_in_bytes),
        oom_score_adj: number(old.oom_score_adj, new.oom_score_adj),
        cpuset_cpus: text(old.cpuset_cpus, new.cpuset_cpus),
        cpuset_mems: text(old.cpuset_mems, new.cpuset_mems),
        hugepage_limits: if new.hugepage_limits.is_empty() { old.hugepage_limits } else { new.hugepage_limits },
        unified: old.unified.into_iter().chain(new.unified).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cri::v1::ContainerConfig;

    #[test]
    fn command_and_arguments_override_the_image() {
        let list = |text: &str| text.split_whitespace().map(String::from).collect::<Vec<_>>();
        for (entrypoint, cmd, command, args, expected) in [
            ("/e", "c", "", "", Some("/e c")),
            ("/e", "c", "", "a b", Some("/e a b")),
            ("/e", "c", "/x", "", Some("/x")),
            ("/e", "c", "/x", "a", Some("/x a")),
            ("", "c d", "", "", Some("c d")),
            ("", "", "", "", None),
        ] {
            let config = ContainerConfig { command: list(command), args: list(args), ..Default::default() };
            let record = ContainerRecord { config: Some(config), ..Default::default() };
            let mut image = Image::default();
            (image.config.entrypoint, image.config.cmd) = (list(entrypoint), list(cmd));
            assert_eq!(arguments(&record, &image).ok().map(|all| all.join(" ")), expected.map(String::from));
        }
    }
}
