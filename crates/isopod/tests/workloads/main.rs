//! StatefulSets, DaemonSets, Jobs and CronJobs with real pods, seen through the real kubectl.
//!
//! Behaviours of one kind share a cluster: each is a scene in a namespace of its own, and all scenes of a cluster run at
//! the same time.

#[path = "../common/mod.rs"]
mod common;
mod cron;
mod daemon;
mod job;
mod stateful;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use common::{BUSYBOX, cluster};
use serde_json::Value;
use testkit::{Cluster, condition, eventually, name};

/// One behaviour's stage.
struct Scene<'a> {
    cluster: &'a Cluster,
    namespace: &'a str,
}

type Act = fn(&Scene);

/// Starts a cluster and runs scenes in it, each in the namespace it is named after.
fn play(scenes: &[(&str, Act)]) {
    let (cluster, _) = cluster();
    testkit::beside(&cluster, scenes, |namespace, act| act(&Scene { cluster: &cluster, namespace }));
}

impl Scene<'_> {
    fn arguments<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        ["-n", self.namespace].into_iter().chain(arguments.iter().copied()).collect()
    }

    fn run(&self, arguments: &[&str]) -> String {
        self.cluster.run(&self.arguments(arguments))
    }

    fn refuse(&self, arguments: &[&str]) -> String {
        self.cluster.refuse(&self.arguments(arguments))
    }

    /// Applies a manifest in which IMAGE stands for the image.
    fn apply(&self, manifest: &str) {
        let image = format!("image: {BUSYBOX}, imagePullPolicy: IfNotPresent");
        let manifest = manifest.replace("IMAGE", &image);
        self.run(&["apply", "-f", &self.file("yaml", &manifest).to_string_lossy()]);
    }

    /// What the server says to a manifest it does not take.
    fn reject(&self, manifest: &str) -> String {
        let manifest = manifest.replace("IMAGE", &format!("image: {BUSYBOX}"));
        self.refuse(&["create", "-f", &self.file("yaml", &manifest).to_string_lossy()])
    }

    /// A new file of the scene's.
    fn file(&self, kind: &str, content: &str) -> PathBuf {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{}-{}.{kind}", self.namespace, NEXT.fetch_add(1, Ordering::Relaxed));
        let path = self.cluster.directory.path().join(name);
        std::fs::write(&path, content).expect("write a file");
        path
    }

    fn get(&self, object: &str) -> Value {
        self.cluster.get(&["-n", self.namespace, object])
    }

    fn wait(&self, object: &str, condition: impl Fn(&Value) -> bool) -> Value {
        self.cluster.wait(&["-n", self.namespace, object], condition)
    }

    /// Merges into an object, or into one of its subresources.
    fn patch(&self, object: &str, patch: &str) {
        self.run(&["patch", object, "--type=merge", "-p", patch]);
    }

    fn patch_status(&self, object: &str, patch: &str) {
        self.run(&["patch", object, "--subresource=status", "--type=merge", "-p", patch]);
    }

    /// The pods of the label `app`, by name.
    fn pods(&self, app: &str) -> Vec<Value> {
        let list = self.cluster.get(&["-n", self.namespace, "pods", "-l", &format!("app={app}")]);
        list["items"].as_array().expect("a list").clone()
    }

    /// Waits until the pods of an app are as they should be.
    fn wait_pods(&self, app: &str, condition: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        eventually(&format!("the pods of {}/{app}", self.namespace), || {
            let pods = self.pods(app);
            let shown = || pods.iter().map(|pod| format!("{} {}\n", name(pod), pod["status"])).collect::<String>();
            if condition(&pods) { Ok(pods) } else { Err(shown()) }
        })
    }

    /// The message of an event about an object, once there is one.
    fn event(&self, object: &str, reason: &str) -> String {
        self.wait_events(object, reason, |messages| messages.first().map(|message| (*message).to_owned()))
    }

    /// Waits for an event that says just this.
    fn told(&self, object: &str, reason: &str, message: &str) {
        self.wait_events(object, reason, |messages| messages.contains(&message).then_some(()));
    }

    fn wait_events<T>(&self, object: &str, reason: &str, look: impl Fn(&[&str]) -> Option<T>) -> T {
        let selector = format!("involvedObject.name={object},reason={reason}");
        let lines = r#"jsonpath={range .items[*]}{.message}{"\n"}{end}"#;
        eventually(&format!("the event {reason} of {}/{object}", self.namespace), || {
            let shown = self.run(&["get", "events", "--field-selector", &selector, "-o", lines]);
            look(&shown.lines().collect::<Vec<_>>()).ok_or_else(|| self.run(&["get", "events"]))
        })
    }

    /// Waits until the controller has acted on the object as it is now specified.
    fn observed(&self, object: &str) -> Value {
        self.wait(object, |object| object["status"]["observedGeneration"] == object["metadata"]["generation"])
    }
}

fn names(objects: &[Value]) -> Vec<&str> {
    objects.iter().map(name).collect()
}

fn is_ready(pod: &Value) -> bool {
    has_condition(pod, "Ready") && pod["metadata"]["deletionTimestamp"].is_null()
}

fn has_condition(object: &Value, kind: &str) -> bool {
    condition(object, kind)["status"] == "True"
}
