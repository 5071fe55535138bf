//! `cargo xtask vm`: runs tests of this workspace as root of a virtual machine.
//!
//! For what the developer's own machine does not have or must not be used for: Debian's kernel with its
//! modules not loaded yet, unified control groups, and a host's own network namespace for `isopod server`.
//! The guest has no network device but a dummy one, so nothing leaves it. It has no init system: a script
//! mounts what systemd would, runs the tests and powers off. Knows nothing of what the tests test.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::check::root;

/// What a host's kernel decides: control groups, modules, the first network namespace.
const DEFAULT: &[&str] = &["runtime/pods", "isopod/lifecycle", "isopod/host"];
/// A machine that has not powered itself off by then hangs. Emulated, it is some ten times slower than ours.
const LIMIT: Duration = Duration::from_secs(1800);
/// Printed by the guest before it powers off, followed by the exit status.
const MARKER: &str = "guest finished with status ";
/// Enough to see the disk that the rest is on.
const DISK_MODULES: [&str; 6] =
    ["virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_blk"];

/// `tests` are PACKAGE/TEST, optionally followed by `=` and a filter of the test binary's.
pub fn run(tests: Vec<String>) -> Result<()> {
    let tests = if tests.is_empty() { DEFAULT.iter().map(ToString::to_string).collect() } else { tests };
    let kernel = Kernel::find()?;
    let binaries = build(&tests)?;
    let work = root().join("target/vm");
    let _ = fs::remove_dir_all(&work);
    let guest = Guest { root: work.join("root"), libraries: BTreeSet::new() };
    let disk = guest.pack(&kernel, &tests, &binaries, &work)?;
    let initial = initial_filesystem(&kernel, &work)?;
    let status = boot(&kernel, &initial, &disk);
    fs::remove_dir_all(&work)?;
    ensure!(status? == 0, "a test failed in the virtual machine");
    println!("xtask vm: all well");
    Ok(())
}

/// An unpacked Debian kernel package.
struct Kernel {
    image: PathBuf,
    /// `.../lib/modules/VERSION`
    modules: PathBuf,
}

impl Kernel {
    fn find() -> Result<Kernel> {
        let base = std::env::var_os("ISOPOD_TEST_KERNEL")
            .map_or_else(|| root().join("target/test-tools/kernel"), PathBuf::from);
        let advice = || {
            format!(
                "find a kernel under {}: unpack Debian's linux-image-cloud-amd64 there, as CONTRIBUTING.md says",
                base.display()
            )
        };
        let modules = only_entry(&base.join("lib/modules")).with_context(advice)?;
        let version = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Kernel { image: base.join(format!("boot/vmlinuz-{version}")), modules })
    }
}

fn only_entry(directory: &Path) -> Result<PathBuf> {
    let mut entries = fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    Ok(entries.next().with_context(|| format!("{} is empty", directory.display()))??.path())
}

/// What cargo built: every program, and the test binaries by PACKAGE/TEST.
struct Binaries {
    programs: Vec<PathBuf>,
    tests: Vec<(String, PathBuf)>,
}

fn build(tests: &[String]) -> Result<Binaries> {
    let packages: BTreeSet<&str> = tests.iter().filter_map(|test| test.split_once('/')).map(|(p, _)| p).collect();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["test", "--no-run", "--quiet", "--message-format=json"]).current_dir(root());
    for package in packages {
        cargo.args(["-p", package]);
    }
    // What cargo told this program of its own package would have build scripts run again (ring's), and all
    // that depends on them built again.
    for (name, _) in std::env::vars_os().filter(|(name, _)| told_by_cargo(&name.to_string_lossy())) {
        cargo.env_remove(name);
    }
    let output = cargo.stderr(Stdio::inherit()).output().context("run cargo")?;
    ensure!(output.status.success(), "the tests do not build");
    let mut binaries = Binaries { programs: Vec::new(), tests: Vec::new() };
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let message: Value = serde_json::from_str(line).context("read cargo's messages")?;
        let Some(executable) = message["executable"].as_str().map(PathBuf::from) else { continue };
        let package = Path::new(message["manifest_path"].as_str().unwrap_or_default()).parent();
        let package = package.and_then(Path::file_name).unwrap_or_default().to_string_lossy();
        let target = message["target"]["name"].as_str().unwrap_or_default();
        match message["target"]["kind"][0].as_str() {
            Some("bin") if message["profile"]["test"] == false => binaries.programs.push(executable),
            Some("test") => binaries.tests.push((format!("{package}/{target}"), executable)),
            _ => {}
        }
    }
    Ok(binaries)
}

fn told_by_cargo(variable: &str) -> bool {
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_"].iter().any(|prefix| variable.starts_with(prefix))
}

/// The guest's root file system while it is put together.
struct Guest {
    root: PathBuf,
    libraries: BTreeSet<PathBuf>,
}

impl Guest {
    fn pack(mut self, kernel: &Kernel, tests: &[String], binaries: &Binaries, work: &Path) -> Result<PathBuf> {
        for directory in ["dev", "proc", "sys", "run", "tmp", "etc", "root", "sbin", "usr/bin", "var/lib"] {
            fs::create_dir_all(self.root.join(directory))?;
        }
        self.file(Path::new("/bin/busybox"), "/bin/busybox")?;
        for (tool, variable) in [("kubectl", "ISOPOD_TEST_KUBECTL"), ("helm", "ISOPOD_TEST_HELM")] {
            let path = std::env::var_os(variable).map(PathBuf::from);
            let path = path.unwrap_or_else(|| root().join("target/test-tools").join(tool));
            self.file(&path, &format!("/usr/bin/{tool}"))?;
        }
        self.program(Path::new("/usr/sbin/nft"))?;
        // Where the tests were told at compile time to find them.
        binaries.programs.iter().try_for_each(|program| self.program(program))?;
        let script = self.script(tests, binaries)?;
        self.text("/sbin/init", &script)?;
        self.text("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")?;
        self.text("/etc/hosts", "127.0.0.1 localhost\n")?;
        self.text("/etc/resolv.conf", "nameserver 192.0.2.1\n")?;
        self.modules(kernel)?;
        let disk = work.join("disk.ext4");
        File::create(&disk)?.set_len(4 << 30)?;
        done(Command::new("mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(&self.root).arg(&disk))?;
        Ok(disk)
    }

    fn script(&mut self, tests: &[String], binaries: &Binaries) -> Result<String> {
        let mut lines = String::new();
        for test in tests {
            let (name, filter) = test.split_once('=').unwrap_or((test, ""));
            let Some((_, binary)) = binaries.tests.iter().find(|(known, _)| known == name) else {
                bail!("there is no test {name:?}; name it PACKAGE/TEST");
            };
            self.program(binary)?;
            lines += &format!("echo '--- {name}'; {} {filter} || failed=1\n", binary.display());
        }
        Ok(include_str!("vm/init.sh").replace("RUN_TESTS", &lines).replace("MARKER", MARKER.trim_end()))
    }

    /// A program at its own path, without debug information, and the libraries it needs.
    fn program(&mut self, program: &Path) -> Result<()> {
        let target = self.place(program)?;
        done(Command::new("objcopy").arg("--strip-debug").arg(program).arg(&target))?;
        let listed = Command::new("ldd").arg(program).output().context("run ldd")?;
        for path in String::from_utf8_lossy(&listed.stdout).split_whitespace().filter(|word| word.starts_with('/')) {
            if self.libraries.insert(path.into()) {
                self.file(&fs::canonicalize(path)?, path)?;
            }
        }
        Ok(())
    }

    fn modules(&self, kernel: &Kernel) -> Result<()> {
        let target = self.place(&Path::new("/lib/modules").join(kernel.modules.file_name().unwrap_or_default()))?;
        done(Command::new("cp").arg("-r").arg(&kernel.modules).arg(&target))?;
        let version = kernel.modules.file_name().unwrap_or_default();
        done(Command::new("busybox").args(["depmod", "-b"]).arg(&self.root).arg(version))
    }

    fn place(&self, path: &Path) -> Result<PathBuf> {
        let target = self.root.join(path.strip_prefix("/").unwrap_or(path));
        fs::create_dir_all(target.parent().context("a path has a parent")?)?;
        Ok(target)
    }

    fn file(&self, source: &Path, path: &str) -> Result<()> {
        let context = || format!("copy {} to the guest", source.display());
        fs::copy(source, self.place(Path::new(path))?).with_context(context)?;
        Ok(())
    }

    fn text(&self, path: &str, text: &str) -> Result<()> {
        let target = self.place(Path::new(path))?;
        fs::write(&target, text)?;
        Ok(fs::set_permissions(&target, fs::Permissions::from_mode(0o755))?)
    }
}

/// Loads the disk's drivers and goes on from the disk.
fn initial_filesystem(kernel: &Kernel, work: &Path) -> Result<PathBuf> {
    let directory = work.join("initial");
    fs::create_dir_all(directory.join("bin"))?;
    fs::copy("/bin/busybox", directory.join("bin/busybox")).context("copy busybox: install busybox-static")?;
    symlink("busybox", directory.join("bin/sh"))?;
    let mut script = String::from("#!/bin/sh\nbusybox mkdir -p /dev /disk\nbusybox mount -t devtmpfs dev /dev\n");
    for module in DISK_MODULES {
        let found = Command::new("find").arg(&kernel.modules).args(["-name", &format!("{module}.ko")]).output()?;
        let source = PathBuf::from(String::from_utf8_lossy(&found.stdout).trim());
        fs::copy(&source, directory.join(format!("{module}.ko"))).with_context(|| format!("copy module {module}"))?;
        script += &format!("busybox insmod /{module}.ko\n");
    }
    script += "until [ -b /dev/vda ]; do busybox sleep 0.1; done\nbusybox mount -t ext4 /dev/vda /disk\nexec busybox switch_root /disk /sbin/init\n";
    fs::write(directory.join("init"), script)?;
    fs::set_permissions(directory.join("init"), fs::Permissions::from_mode(0o755))?;
    let archive = work.join("initial.cpio");
    let pack = "find . | busybox cpio -o -H newc 2>/dev/null";
    done(Command::new("sh").args(["-c", pack]).current_dir(&directory).stdout(File::create(&archive)?))?;
    Ok(archive)
}

/// Runs the machine to its end, its console on our output; the status of the guest's script.
fn boot(kernel: &Kernel, initial: &Path, disk: &Path) -> Result<i32> {
    // KVM inside of other virtual machines often hangs, and CI is one: who has it says so.
    let accelerator = std::env::var("ISOPOD_TEST_ACCELERATOR").unwrap_or_else(|_| "tcg,thread=multi".into());
    let mut machine = Command::new("timeout")
        .args(["--signal=KILL", &LIMIT.as_secs().to_string(), "qemu-system-x86_64"])
        .args(["-accel", &accelerator, "-cpu", "max", "-smp", "2", "-m", "3072"])
        .args(["-nodefaults", "-no-user-config", "-nic", "none", "-display", "none", "-no-reboot", "-serial", "stdio"])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initial)
        .arg("-drive")
        .arg(format!("file={},format=raw,if=virtio,cache=unsafe", disk.display()))
        .args(["-append", "console=ttyS0 quiet panic=-1 cgroup_no_v1=all"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("run qemu-system-x86_64: install Debian's package qemu-system-x86")?;
    let started = Instant::now();
    let console = machine.stdout.take().context("the machine's console")?;
    let mut status = None;
    for line in BufReader::new(console).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).trim_end().to_owned();
        println!("{:6.1} | {line}", started.elapsed().as_secs_f32());
        std::io::stdout().flush()?;
        status = line.strip_prefix(MARKER).and_then(|text| text.parse().ok()).or(status);
    }
    machine.wait()?;
    status.context("the virtual machine ended, or was ended, before its tests did")
}

fn done(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("run {command:?}"))?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}
