//! A host for components that run on "the machine itself", without using the developer's.
//!
//! It is a network and a mount namespace with an interface, a default route that leads nowhere and a `/run`
//! of its own. In a machine that may be used up (`cargo xtask vm`) it is that machine.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::cluster::{output, succeed, text};
use crate::machine::{cgroups, processes};

/// Says that the machine's own namespaces may be used.
const ON_HOST: &str = "ISOPOD_TEST_ON_HOST";

/// Waits on its input, so that the namespaces end with the test, however that ends.
const SET_UP: &str = "mount --make-rshared / && mount -t tmpfs run /run && ip link set lo up \
    && ip link add nic0 type veth peer name nic1 && ip link set nic1 up && ip link set nic0 up \
    && ip addr add 192.0.2.2/24 dev nic0 && ip route add default via 192.0.2.1 && echo ready && exec cat";

pub struct Host {
    /// Keeps the namespaces.
    holder: Option<Child>,
    binary: PathBuf,
    /// Working files of the test.
    pub directory: tempfile::TempDir,
    /// Control group for the node's pods.
    pub cgroup: String,
}

impl Host {
    /// The host's address.
    pub const IP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

    pub fn new(binary: &str) -> Host {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let cgroup = format!("/isopod/test-{}-host-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let holder = std::env::var_os(ON_HOST).is_none().then(hold);
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("config.yaml"), "").expect("write the config file");
        Host { holder, binary: binary.into(), directory, cgroup }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A command on the host.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = match &self.holder {
            None => Command::new(program.as_ref()),
            Some(holder) => {
                let mut enter = Command::new("nsenter");
                enter.args(["--net", "--mount", "--target", &holder.id().to_string(), "--"]).arg(program.as_ref());
                enter
            }
        };
        command.stdin(Stdio::null()).env("ISOPOD_CONFIG", self.path("config.yaml"));
        command
    }

    /// An `isopod` command whose place, where it has one, is this test's.
    pub fn isopod(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(&self.binary);
        command
            .args(arguments)
            .env("ISOPOD_DATA_DIR", self.path("data"))
            .env("ISOPOD_CGROUP_ROOT", &self.cgroup)
            .env("ISOPOD_NODE_IP", Host::IP.to_string())
            // How full the disk of the developer's machine is, is no matter.
            .env("ISOPOD_EVICTION_HARD", "memory.available<100Mi")
            .env("ISOPOD_IMAGE_GC_HIGH_THRESHOLD", "100");
        command
    }

    /// Starts a component; what it logs is kept in NAME.log. The caller ends it.
    pub fn spawn(&self, name: &str, command: &mut Command) -> Child {
        let log = File::options().create(true).append(true).open(self.path(&format!("{name}.log"))).expect("a log");
        command.stdout(Stdio::null()).stderr(log).spawn().unwrap_or_else(|error| panic!("start {name}: {error}"))
    }

    /// Runs kubectl with `kubeconfig`, which must succeed, and returns what it printed.
    pub fn kubectl(&self, kubeconfig: &Path, arguments: &[&str]) -> Result<String, String> {
        let mut command = self.command(crate::kubectl());
        command.args(arguments).env("KUBECONFIG", kubeconfig).env("HOME", self.directory.path());
        let output = output(&mut command);
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(text(&output.stderr)),
        }
    }

    /// Runs a command that must succeed and returns what it printed.
    pub fn run(&self, command: &mut Command) -> String {
        succeed(command)
    }

    /// What runs in the node's control group.
    pub fn processes(&self) -> BTreeSet<String> {
        processes(&self.cgroup, &[])
    }

    /// Control groups, mounts, interfaces, firewall rules and run files that a node made on this host.
    pub fn traces(&self) -> Vec<String> {
        let mounts = self.run(self.command("cat").arg("/proc/self/mountinfo"));
        let data = self.path("data").display().to_string();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        let ours = points.filter(|point| point.starts_with("/run/isopod/node") || point.starts_with(&data));
        let groups = cgroups(&self.cgroup);
        let links = self.run(self.command("ip").args(["-o", "link"]));
        let links = links.lines().filter_map(|line| line.split([' ', ':', '@']).find(|word| node_link(word)));
        let rules = self.run(self.command("nft").args(["list", "tables"]));
        let rules = rules.lines().filter(|table| table.contains("isopod") || table.contains("kube"));
        let files = self.run(self.command("sh").args(["-c", "ls -d /run/isopod/node 2>/dev/null || true"]));
        let all = ours.chain(links).chain(rules).chain(files.lines()).map(str::to_owned);
        all.chain(groups).chain(self.processes()).collect()
    }

    /// The last lines of a component's log, for a failure's message.
    pub fn log(&self, name: &str) -> String {
        let log = std::fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(60).collect();
        tail.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

fn node_link(name: &str) -> bool {
    name == "cni0" || name.starts_with("veth")
}

fn hold() -> Child {
    let mut holder = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "slave", "sh", "-c", SET_UP])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("run unshare");
    let mut line = String::new();
    let told = BufReader::new(holder.stdout.take().expect("it is piped")).read_line(&mut line);
    assert!(told.is_ok() && line == "ready\n", "setting up a host's namespaces failed: {line}");
    holder
}

impl Drop for Host {
    fn drop(&mut self) {
        // Another runtime's shims end with what they look after; those of a failed test have to be told.
        for process in processes(&self.cgroup, &[&self.directory.path().display().to_string()]) {
            let pid = process.split(' ').next().unwrap_or_default();
            let _ = Command::new("kill").args(["-9", pid]).output();
        }
        let _ = self.isopod(&["down", "--server", "--purge"]).output();
        for group in cgroups(&self.cgroup) {
            let _ = Command::new("find").args([&group, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";"]).output();
        }
        if let Some(mut holder) = self.holder.take() {
            drop(holder.stdin.take());
            let _ = holder.wait();
        }
    }
}
