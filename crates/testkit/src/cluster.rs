//! One throwaway cluster per test.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::eventually;

/// A running cluster of its own; dropped, it is removed.
pub struct Cluster {
    pub name: String,
    pub kubeconfig: PathBuf,
    binary: PathBuf,
    /// Working files of the test; removed with it.
    pub directory: tempfile::TempDir,
}

impl Cluster {
    /// Starts a cluster with the `isopod` at `binary`, with the images in `archives` imported.
    pub fn start(binary: &str, archives: &[&Path]) -> Cluster {
        let cluster = Cluster::named(binary);
        cluster.up(archives);
        cluster
    }

    /// A cluster that is not started yet.
    pub fn named(binary: &str) -> Cluster {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let directory = tempfile::tempdir().expect("create a temporary directory");
        Cluster { kubeconfig: directory.path().join("kubeconfig"), name, binary: binary.into(), directory }
    }

    /// `isopod up --detach`; also starts it again.
    pub fn up(&self, archives: &[&Path]) {
        crate::machine::preflight();
        let mut command = self.isopod(&["up", "--detach"]);
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        for archive in archives {
            command.arg("--image-archive").arg(archive);
        }
        succeed(&mut command);
    }

    /// An `isopod` command for this cluster.
    pub fn isopod(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(arguments).args(["--name", &self.name]).stdin(Stdio::null());
        command
    }

    /// A kubectl command against this cluster, away from any configuration of the user's.
    pub fn kubectl(&self, arguments: &[&str]) -> Command {
        self.with(&crate::kubectl(), arguments)
    }

    /// Requests without kubectl's help.
    pub fn api(&self) -> crate::Api {
        crate::Api::start(self.kubectl(&[]))
    }

    /// The same with another kubectl.
    pub fn with(&self, kubectl: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(kubectl);
        command
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", self.directory.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs kubectl, which must succeed, and returns what it printed.
    pub fn run(&self, arguments: &[&str]) -> String {
        succeed(&mut self.kubectl(arguments))
    }

    /// Runs kubectl, which must fail, and returns what it complained.
    pub fn refuse(&self, arguments: &[&str]) -> String {
        let output = output(&mut self.kubectl(arguments));
        assert!(!output.status.success(), "kubectl {arguments:?} succeeded: {}", text(&output.stdout));
        text(&output.stderr)
    }

    /// Applies a manifest.
    pub fn apply(&self, manifest: &str) -> String {
        let file = self.directory.path().join(format!("{:x}.yaml", fingerprint(manifest)));
        std::fs::write(&file, manifest).expect("write the manifest");
        self.run(&["apply", "-f", &file.to_string_lossy()])
    }

    /// An object as JSON.
    pub fn get(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["get", "-o", "json"];
        all.extend(arguments);
        serde_json::from_str(&self.run(&all)).expect("kubectl prints JSON")
    }

    /// Waits until an object satisfies `condition`.
    pub fn wait(&self, arguments: &[&str], condition: impl Fn(&Value) -> bool) -> Value {
        eventually(&format!("{arguments:?}"), || {
            let mut all = vec!["get", "-o", "json"];
            all.extend(arguments);
            let output = output(&mut self.kubectl(&all));
            if !output.status.success() {
                return Err(text(&output.stderr));
            }
            let object: Value = serde_json::from_slice(&output.stdout).map_err(|e| e.to_string())?;
            if condition(&object) { Ok(object) } else { Err(format!("it is {:#}", object["status"])) }
        })
    }

    /// The main process.
    pub fn pid(&self) -> i32 {
        let state = std::fs::read(format!("/run/isopod/{}/cluster.json", self.name)).expect("read the cluster's state");
        serde_json::from_slice::<Value>(&state).expect("state is JSON")["pid"].as_i64().expect("state has a pid") as i32
    }

    /// Ends the main process by kill -9. It has the cluster's lock until the kernel is done with it.
    pub fn crash(&self) {
        let pid = self.pid();
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill the main process");
        let program = PathBuf::from(format!("/proc/{pid}/exe"));
        eventually("the main process ends", || match std::fs::read_link(&program) {
            Ok(_) => Err(format!("process {pid} is there")),
            Err(_) => Ok(()),
        });
    }

    pub fn down(&self) {
        succeed(&mut self.isopod(&["down"]));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(format!("/var/lib/isopod/clusters/{}/isopod.log", self.name))
                .unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("last lines of the cluster's log:\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
            let events = output(&mut self.kubectl(&["get", "events,pods", "-A", "--request-timeout=5s"]));
            eprintln!("{}", text(&events.stdout));
        }
        let _ = self.isopod(&["down"]).output();
    }
}

pub(crate) fn succeed(command: &mut Command) -> String {
    let output = output(command);
    assert!(
        output.status.success(),
        "{command:?} failed ({}):\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

pub(crate) fn output(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("run {command:?}: {error}"))
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn fingerprint(text: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}
