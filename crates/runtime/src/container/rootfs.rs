//! The container's view of the filesystem, built by its init inside its own mount namespace: nothing
//! is ever mounted on the host, so nothing is left when the container is gone.
//!
//! Order is what makes it safe: sources are opened on the host as detached trees, the root is
//! switched, and targets are then resolved inside, where links end at the container's root.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;
use nix::sys::stat::{Mode, SFlag};

use super::spec::{DeviceNode, Mount, Propagation, Source, Spec};
use super::users::UserNamespace;
use crate::sys::mount::{self, Resolve, attr};

type Failed = String;

fn failed<'a>(what: &'a str, path: &'a Path) -> impl FnOnce(io::Error) -> Failed + 'a {
    move |error| format!("{what} {}: {error}", path.display())
}

/// Trees that were opened on the host, waiting for their targets.
pub(crate) struct Sources {
    mounts: Vec<OwnedFd>,
    cgroups: Vec<(String, OwnedFd)>,
    shm: OwnedFd,
}

/// Opens what the container will see of the host. `pause` holds the pod's /dev/shm in its own mount
/// namespace.
pub(crate) fn open_sources(
    spec: &Spec,
    pause: Option<&OwnedFd>,
    users: Option<&UserNamespace>,
) -> Result<Sources, Failed> {
    let shm_path = Path::new("/dev/shm");
    let shm = match (spec.host_ipc, pause) {
        (true, _) | (false, None) => mount::clone_tree(shm_path, false),
        (false, Some(pause)) => pod_shm(pause),
    };
    // Images last: mounting one, even for a moment, needs a private root, and that would cut the host's
    // mounts from their peers.
    let mut mounts: Vec<Option<OwnedFd>> =
        spec.mounts.iter().map(|mount| open_on_host(mount, users)).collect::<Result<_, _>>()?;
    if let Some(users) = users {
        private_root()?;
        map_layers(&spec.rootfs.layers, users)?;
    }
    for (slot, mount) in mounts.iter_mut().zip(&spec.mounts) {
        if let Source::Image { lowers, sub_path } = &mount.source {
            *slot = Some(image_volume(&spec.rootfs.layers, lowers, sub_path, &spec.rootfs.mount_point)?);
        }
    }
    Ok(Sources {
        mounts: mounts.into_iter().flatten().collect(),
        cgroups: spec
            .cgroup_views
            .iter()
            .map(|(name, path)| Ok((name.clone(), mount::clone_tree(path, false).map_err(failed("open", path))?)))
            .collect::<Result<_, Failed>>()?,
        shm: shm.map_err(failed("open the pod's", shm_path))?,
    })
}

fn pod_shm(pause: &OwnedFd) -> io::Result<OwnedFd> {
    let own = std::fs::File::open("/proc/self/ns/mnt")?;
    nix::sched::setns(pause.as_fd(), CloneFlags::CLONE_NEWNS)?;
    let tree = mount::clone_tree(Path::new("/dev/shm"), false);
    nix::sched::setns(own.as_fd(), CloneFlags::CLONE_NEWNS)?;
    tree
}

fn open_on_host(mount: &Mount, users: Option<&UserNamespace>) -> Result<Option<OwnedFd>, Failed> {
    let Source::Host(path) = &mount.source else { return Ok(None) };
    let tree = mount::clone_tree(path, true).map_err(failed("open volume", path))?;
    if let Some(users) = users.filter(|_| mount.idmap) {
        users.map(&tree, path)?;
    }
    let propagation = match mount.propagation {
        Propagation::Private => MsFlags::MS_PRIVATE,
        Propagation::HostToContainer => MsFlags::MS_SLAVE,
        Propagation::Bidirectional => MsFlags::MS_SHARED,
    };
    mount::set_attributes(&tree, true, 0, propagation.bits()).map_err(failed("propagation of", path))?;
    Ok(Some(tree))
}

/// Covers the layers with themselves, owned by the same users of the pod as of the host: overlays of this namespace
/// find them so.
fn map_layers(layers: &Path, users: &UserNamespace) -> Result<(), Failed> {
    let tree = mount::clone_tree(layers, false).map_err(failed("open", layers))?;
    users.map(&tree, layers)?;
    lookup(layers).and_then(|target| mount::attach(&tree, &target)).map_err(failed("mount on", layers))
}

/// A read-only overlay of an image's layers. It is mounted for a moment on the shared mount point, of
/// which this namespace has its own copy, and detached again once the tree is open.
fn image_volume(layers: &Path, lowers: &[String], sub_path: &Path, mount_point: &Path) -> Result<OwnedFd, Failed> {
    private_root()?;
    let mut lowers = lowers.to_vec();
    if lowers.len() < 2 {
        lowers.push("empty".into()); // an overlay without an upper needs two layers
    }
    overlay(layers, &format!("lowerdir={}", lowers.join(":")), mount_point, MsFlags::MS_RDONLY)?;
    let inside = std::fs::File::open(mount_point).map_err(failed("open", mount_point))?;
    let relative = Path::new(".").join(sub_path.strip_prefix("/").unwrap_or(sub_path));
    let found = mount::open_at(inside.as_fd(), &relative, libc::O_PATH, 0, Resolve::InRoot);
    let found = found.map_err(failed("open image sub path", sub_path))?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
    let tree = mount::clone_tree(&path, true).map_err(failed("open image volume", sub_path))?;
    nix::mount::umount2(mount_point, MntFlags::MNT_DETACH).map_err(|e| failed("detach", mount_point)(e.into()))?;
    Ok(tree)
}

/// Our changes stay ours; the host's go on reaching the mounts that ask for them.
fn private_root() -> Result<(), Failed> {
    let flags = MsFlags::MS_SLAVE | MsFlags::MS_REC;
    nix::mount::mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).map_err(|e| format!("make / a slave: {e}"))
}

fn overlay(layers: &Path, options: &str, target: &Path, flags: MsFlags) -> Result<(), Failed> {
    nix::unistd::chdir(layers).map_err(|e| failed("enter", layers)(e.into()))?;
    nix::mount::mount(Some("overlay"), target, Some("overlay"), flags, Some(options))
        .map_err(|e| format!("mount the root filesystem ({options}): {e}"))
}

/// Mounts the overlay and makes it `/`. The old root is gone afterwards.
pub(crate) fn enter(spec: &Spec, users: Option<&UserNamespace>) -> Result<(), Failed> {
    private_root()?;
    let rootfs = &spec.rootfs;
    if let Some((uid, gid)) = users.map(|users| users.users.root()) {
        let (uid, gid) = (Some(uid.as_raw()), Some(gid.as_raw()));
        std::os::unix::fs::chown(&rootfs.upper, uid, gid).map_err(failed("own", &rootfs.upper))?;
    }
    let lowers = if rootfs.lowers.is_empty() { "empty".into() } else { rootfs.lowers.join(":") };
    let options = format!("lowerdir={lowers},upperdir={},workdir={}", rootfs.upper.display(), rootfs.work.display());
    // Nothing of a container's root outlives it, so syncing it to disk would be waste.
    let volatile = format!("{options},volatile");
    let target = &rootfs.mount_point;
    overlay(&rootfs.layers, &volatile, target, MsFlags::empty())
        .or_else(|_| overlay(&rootfs.layers, &options, target, MsFlags::empty()))?;
    pivot(target)
}

/// Makes the mount at `root` the root of this mount namespace.
pub(crate) fn pivot(root: &Path) -> Result<(), Failed> {
    let step = |what: &str, result: nix::Result<()>| result.map_err(|error| format!("{what}: {error}"));
    step("enter the root filesystem", nix::unistd::chdir(root))?;
    // The old root comes to lie on top of the new one, from where it is detached.
    step("pivot_root", nix::unistd::pivot_root(".", "."))?;
    step("detach the old root", nix::mount::umount2(".", MntFlags::MNT_DETACH))?;
    step("enter the new root", nix::unistd::chdir("/"))
}

/// Everything that is mounted in the new root.
pub(crate) fn populate(spec: &Spec, sources: Sources, users: Option<&UserNamespace>) -> Result<(), Failed> {
    const STRICT: u64 = attr::NOSUID | attr::NODEV | attr::NOEXEC;
    users.map_or(Ok(()), UserNamespace::create_as_root)?;
    let root = users.map_or((0, 0), |users| (users.users.uids.host, users.users.gids.host));
    let readonly_unless_privileged = if spec.privileged { STRICT } else { STRICT | attr::RDONLY };
    new_mount("proc", "/proc", &[], STRICT)?;
    new_mount("tmpfs", "/dev", &[("mode", "755"), ("size", "65536k")], attr::NOSUID | attr::RELATIME)?;
    device_nodes(&spec.devices, root)?;
    let terminals = (root.1 + TERMINAL_GROUP).to_string();
    let terminal_options = [("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", &terminals)];
    new_mount("devpts", "/dev/pts", &terminal_options, attr::NOSUID | attr::NOEXEC)?;
    new_mount("mqueue", "/dev/mqueue", &[], STRICT)?;
    if users.is_some() {
        // Made by the host's root, together with the namespace.
        let queues = Path::new("/dev/mqueue");
        std::os::unix::fs::chown(queues, Some(root.0), Some(root.1)).map_err(failed("own", queues))?;
    }
    mount_on(&sources.shm, Path::new("/dev/shm"))?;
    new_mount("sysfs", "/sys", &[], readonly_unless_privileged)?;
    cgroups(spec, &sources.cgroups, readonly_unless_privileged)?;
    let early: Vec<OwnedFd> = match spec.rootfs.readonly {
        true => spec.image_volumes.iter().map(|path| writable_volume(path)).collect::<Result<_, _>>()?,
        false => Vec::new(),
    };
    for (tree, path) in early.iter().zip(&spec.image_volumes) {
        mount_on(tree, path)?;
    }
    for (mount, tree) in spec.mounts.iter().zip(&sources.mounts) {
        volume(mount, tree)?;
    }
    directory(&spec.process.cwd)?;
    if !spec.privileged {
        restrict(spec)?;
    }
    Ok(())
}

fn new_mount(kind: &str, target: &str, options: &[(&str, &str)], attributes: u64) -> Result<(), Failed> {
    let tree =
        mount::new_filesystem(kind, options, attributes).map_err(|e| format!("make {kind} for {target}: {e}"))?;
    mount_on(&tree, Path::new(target))
}

/// Attaches a tree, making the directory or file it goes on if there is none.
fn mount_on(tree: &OwnedFd, target: &Path) -> Result<(), Failed> {
    let is_directory = nix::sys::stat::fstat(tree).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR);
    let target_fd = mount_target(target, is_directory)?;
    mount::attach(tree, &target_fd).map_err(failed("mount on", target))
}

fn lookup(path: &Path) -> io::Result<OwnedFd> {
    mount::open_at(nix::fcntl::AT_FDCWD, path, libc::O_PATH, 0, Resolve::NoMagicLinks)
}

fn mount_target(path: &Path, is_directory: bool) -> Result<OwnedFd, Failed> {
    match lookup(path) {
        Ok(found) => return Ok(found),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("open", path)(error)),
        Err(_) => {}
    }
    if is_directory {
        return directory(path);
    }
    let (parent, name) = (path.parent().unwrap_or(Path::new("/")), path.file_name().unwrap_or_default());
    let parent_fd = directory(parent)?;
    let flags = nix::fcntl::OFlag::O_CREAT | nix::fcntl::OFlag::O_EXCL | nix::fcntl::OFlag::O_CLOEXEC;
    nix::fcntl::openat(&parent_fd, name, flags, Mode::from_bits_truncate(0o755))
        .map_err(|e| failed("create", path)(e.into()))?;
    lookup(path).map_err(failed("open", path))
}

/// `mkdir -p` that follows links but those of /proc.
fn directory(path: &Path) -> Result<OwnedFd, Failed> {
    let mut current = PathBuf::from("/");
    let mut fd = lookup(&current).map_err(failed("open", &current))?;
    for part in path.components() {
        let part = match part {
            Component::Normal(part) => part,
            Component::ParentDir => return Err(format!("{} must not contain \"..\"", path.display())),
            _ => continue,
        };
        current.push(part);
        fd = match lookup(&current) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                nix::sys::stat::mkdirat(&fd, part, Mode::from_bits_truncate(0o755))
                    .map_err(|e| failed("create", &current)(e.into()))?;
                lookup(&current).map_err(failed("open", &current))?
            }
            other => other.map_err(failed("open", &current))?,
        };
    }
    Ok(fd)
}

/// The group that owns terminals, as distributions number it.
const TERMINAL_GROUP: u32 = 5;

const STANDARD_DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Those of the host keep their owners, whom a user namespace does not know: its root is no owner of disks.
fn device_nodes(extra: &[DeviceNode], (uid, gid): (u32, u32)) -> Result<(), Failed> {
    for (name, major, minor) in STANDARD_DEVICES {
        let path = PathBuf::from(format!("/dev/{name}"));
        make_node(&DeviceNode { path, block: false, major, minor, mode: 0o666, uid, gid })?;
    }
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
        ("/dev/ptmx", "pts/ptmx"),
    ] {
        std::os::unix::fs::symlink(target, link).map_err(failed("link", Path::new(link)))?;
    }
    extra.iter().try_for_each(make_node)
}

fn make_node(node: &DeviceNode) -> Result<(), Failed> {
    let parent = directory(node.path.parent().unwrap_or(Path::new("/")))?;
    let name = node.path.file_name().unwrap_or_default();
    let kind = if node.block { SFlag::S_IFBLK } else { SFlag::S_IFCHR };
    let number = nix::sys::stat::makedev(node.major.into(), node.minor.into());
    match nix::sys::stat::mknodat(&parent, name, kind, Mode::from_bits_truncate(node.mode), number) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
        Err(error) => return Err(failed("create device", &node.path)(error.into())),
    }
    std::os::unix::fs::lchown(&node.path, Some(node.uid), Some(node.gid)).map_err(failed("own device", &node.path))
}

fn cgroups(spec: &Spec, views: &[(String, OwnedFd)], attributes: u64) -> Result<(), Failed> {
    let base = "/sys/fs/cgroup";
    if views.is_empty() {
        return new_mount("cgroup2", base, &[], attributes);
    }
    // v1 mounts cannot be read-only by themselves: a tmpfs with read-only binds is.
    let tmpfs = mount::new_filesystem("tmpfs", &[("mode", "755")], attributes & !attr::RDONLY);
    let tmpfs = tmpfs.map_err(|e| format!("make tmpfs for {base}: {e}"))?;
    mount_on(&tmpfs, Path::new(base))?;
    for (name, tree) in views {
        mount::set_attributes(tree, false, attributes, 0).map_err(|e| format!("cgroup {name}: {e}"))?;
        mount_on(tree, &Path::new(base).join(name))?;
        for alias in name.split(',').filter(|alias| *alias != name.as_str()) {
            let link = Path::new(base).join(alias);
            std::os::unix::fs::symlink(name, &link).map_err(failed("link", &link))?;
        }
    }
    if spec.privileged {
        return Ok(());
    }
    mount::set_attributes(&tmpfs, false, attributes, 0).map_err(|e| format!("make {base} read-only: {e}"))
}

/// A second, writable mount of a directory of the root, which outlives the root's turn to read-only.
fn writable_volume(path: &Path) -> Result<OwnedFd, Failed> {
    directory(path)?;
    mount::clone_tree(path, false).map_err(failed("open image volume", path))
}

fn volume(mount: &Mount, tree: &OwnedFd) -> Result<(), Failed> {
    mount_on(tree, &mount.target)?;
    if mount.readonly {
        mount::set_attributes(tree, mount.recursive_readonly, attr::RDONLY, 0)
            .map_err(failed("make read-only", &mount.target))?;
    }
    Ok(())
}

/// Read-only and hidden paths, then the root itself.
fn restrict(spec: &Spec) -> Result<(), Failed> {
    for path in &spec.readonly_paths {
        let Some(tree) = present(mount::clone_tree(path, true), path)? else { continue };
        mount::set_attributes(&tree, true, attr::RDONLY, 0).map_err(failed("make read-only", path))?;
        mount_on(&tree, path)?;
    }
    for path in &spec.masked_paths {
        let Some(target) = present(lookup(path), path)? else { continue };
        let stat = nix::sys::stat::fstat(&target).map_err(|e| failed("stat", path)(e.into()))?;
        let cover = if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
            mount::new_filesystem("tmpfs", &[("size", "0"), ("nr_inodes", "2")], attr::RDONLY)
        } else {
            mount::clone_tree(Path::new("/dev/null"), false)
        };
        mount::attach(&cover.map_err(failed("hide", path))?, &target).map_err(failed("hide", path))?;
    }
    Ok(())
}

/// Makes `/` read-only; apart from `restrict` because the console must be placed before.
pub(crate) fn seal() -> Result<(), Failed> {
    let root = lookup(Path::new("/")).map_err(failed("open", Path::new("/")))?;
    mount::set_attributes(&root, false, attr::RDONLY, 0).map_err(failed("make read-only", Path::new("/")))
}

/// Shows the terminal as /dev/console.
pub(crate) fn console(slave: &OwnedFd) -> Result<(), Failed> {
    let path = PathBuf::from(format!("/proc/self/fd/{}", slave.as_raw_fd()));
    let name = std::fs::read_link(&path).map_err(failed("read", &path))?;
    let tree = mount::clone_tree(&name, false).map_err(failed("open", &name))?;
    mount_on(&tree, Path::new("/dev/console"))
}

fn present<T>(result: io::Result<T>, path: &Path) -> Result<Option<T>, Failed> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        Err(error) => Err(failed("open", path)(error)),
    }
}
