//! Namespaces that outlive their creator, pinned by bind mounts.
//!
//! `lan` is a network that only the cluster's nodes are on; `net` and `mnt` belong to the node.
//! None has a route to the machine's own interfaces.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// Handles to a cluster's namespaces.
pub struct Namespaces {
    pub lan: File,
    pub net: File,
    pub mnt: File,
    /// They were made by this call, so nothing is configured in them yet.
    pub created: bool,
}

const NAMES: [&str; 3] = ["lan", "net", "mnt"];

impl Namespaces {
    pub fn open_or_create(dir: &Path) -> anyhow::Result<Namespaces> {
        if let Some(existing) = Self::open(dir) {
            return Ok(existing);
        }
        unpin(dir);
        create(dir).with_context(|| format!("create namespaces under {}", dir.display()))?;
        let mut made = Self::open(dir).ok_or_else(|| anyhow!("namespaces under {} vanished", dir.display()))?;
        made.created = true;
        Ok(made)
    }

    /// `None` unless all of them are pinned: half a set is of no use.
    pub fn open(dir: &Path) -> Option<Namespaces> {
        let open = |name| {
            let file = File::open(dir.join(name)).ok()?;
            (nix::sys::statfs::fstatfs(&file).ok()?.filesystem_type() == nix::sys::statfs::NSFS_MAGIC).then_some(file)
        };
        Some(Namespaces { lan: open(NAMES[0])?, net: open(NAMES[1])?, mnt: open(NAMES[2])?, created: false })
    }
}

/// Runs `work` on a thread of its own inside `namespace`, so that no other code ever sees it.
pub fn in_network_namespace<T: Send>(
    namespace: &File,
    work: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    on_thread(|| {
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).context("enter network namespace")?;
        work()
    })
}

fn on_thread<T: Send>(work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    std::thread::scope(|scope| scope.spawn(work).join().map_err(|_| anyhow!("a namespace thread panicked"))?)
}

fn create(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir)?;
    // A mount namespace can only be pinned on a mount that does not propagate into it.
    mount(Some(dir), dir, None::<&str>, MsFlags::MS_BIND, None::<&str>).context("bind the pin directory")?;
    mount(None::<&str>, dir, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>).context("make it private")?;
    for (name, flag, kind) in [
        (NAMES[0], CloneFlags::CLONE_NEWNET, "net"),
        (NAMES[1], CloneFlags::CLONE_NEWNET, "net"),
        (NAMES[2], CloneFlags::CLONE_NEWNS, "mnt"),
    ] {
        pin_new(&dir.join(name), flag, kind).with_context(|| format!("create namespace {name}"))?;
    }
    Ok(())
}

/// One thread moves into a new namespace and waits; this one, still outside, pins it.
fn pin_new(pin: &Path, flag: CloneFlags, kind: &str) -> anyhow::Result<()> {
    File::create(pin)?;
    let (ready_sender, ready) = std::sync::mpsc::channel::<nix::Result<PathBuf>>();
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let path = |kind: &str| PathBuf::from(format!("/proc/self/task/{}/ns/{kind}", nix::unistd::gettid()));
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let entered = unshare(flag).and_then(|()| match flag {
                CloneFlags::CLONE_NEWNS => isolate_mounts(),
                _ => Ok(()),
            });
            // The receiver is alive: it waits for exactly this message.
            let _ = ready_sender.send(entered.map(|()| path(kind)));
            let _ = wait.recv();
        });
        let source = ready.recv().context("namespace thread ended")?.context("unshare")?;
        mount(Some(&source), pin, None::<&str>, MsFlags::MS_BIND, None::<&str>).context("pin")?;
        drop(done);
        Ok(())
    })
}

/// Mounts of the host come in, none goes out; inside they propagate, as Bidirectional volumes need.
fn isolate_mounts() -> nix::Result<()> {
    for propagation in [MsFlags::MS_SLAVE, MsFlags::MS_SHARED] {
        mount(None::<&str>, "/", None::<&str>, propagation | MsFlags::MS_REC, None::<&str>)?;
    }
    Ok(())
}

/// Removes the pins and their directory; namespaces end with their last process.
pub fn unpin(dir: &Path) {
    for name in NAMES {
        let pin = dir.join(name);
        while umount2(&pin, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).is_ok() {}
        let _ = fs::remove_file(&pin);
    }
    while umount2(dir, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).is_ok() {}
    let _ = fs::remove_dir(dir);
}
