//! What is known of a pod's sandboxes and containers, as the runtime told it.
//!
//! Pure; fed by CRI messages from `cri_client`. States only move forward for one container id,
//! because an event may have been composed before the answer to a later call.

use cri::v1;
use std::collections::BTreeMap;

pub const POD_NAME: &str = "io.kubernetes.pod.name";
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub const POD_UID: &str = "io.kubernetes.pod.uid";
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
pub const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
pub const MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
pub const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
pub const POD_GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RunState {
    Created,
    Running,
    Exited,
}

/// One run of a container.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    pub id: String,
    pub name: String,
    /// Restart count this instance was made with.
    pub attempt: u32,
    pub sandbox: String,
    pub state: RunState,
    /// Nanoseconds since 1970, as in CRI; zero is "never".
    pub created_at: i64,
    pub started_at: i64,
    pub finished_at: i64,
    pub exit_code: i32,
    pub reason: String,
    /// The runtime's message, or the termination message once it was read.
    pub message: String,
    /// Whether `message` already holds the termination message.
    pub message_read: bool,
    pub image: String,
    pub image_id: String,
    pub hash: String,
    pub log_path: String,
    /// The termination message's file on the host and its policy.
    pub message_file: Option<String>,
    pub message_policy: String,
    pub user: Option<v1::LinuxContainerUser>,
    pub resources: Option<v1::LinuxContainerResources>,
    /// What it is asked to end by, if the runtime tells.
    pub stop_signal: Option<String>,
}

impl Instance {
    /// Reads a CRI status; `sandbox` is the pod sandbox it belongs to, where known.
    pub fn from_cri(status: v1::ContainerStatus, sandbox: &str) -> Instance {
        let annotation = |key: &str| status.annotations.get(key).cloned().unwrap_or_default();
        let message_path = annotation(MESSAGE_PATH);
        let state = match status.state() {
            v1::ContainerState::ContainerCreated => RunState::Created,
            v1::ContainerState::ContainerRunning => RunState::Running,
            v1::ContainerState::ContainerExited | v1::ContainerState::ContainerUnknown => RunState::Exited,
        };
        let metadata = status.metadata.clone().unwrap_or_default();
        Instance {
            name: status.labels.get(CONTAINER_NAME).cloned().unwrap_or(metadata.name),
            attempt: annotation(RESTART_COUNT).parse().unwrap_or(metadata.attempt),
            sandbox: sandbox.to_owned(),
            state,
            created_at: status.created_at,
            started_at: status.started_at,
            finished_at: status.finished_at,
            exit_code: status.exit_code,
            reason: status.reason.clone(),
            message: status.message.clone(),
            message_read: false,
            image: status.image.as_ref().map(display_image).unwrap_or_default(),
            image_id: if status.image_id.is_empty() { status.image_ref.clone() } else { status.image_id.clone() },
            hash: annotation(CONTAINER_HASH),
            log_path: status.log_path.clone(),
            message_file: status
                .mounts
                .iter()
                .find(|mount| !message_path.is_empty() && mount.container_path == message_path)
                .map(|mount| mount.host_path.clone()),
            message_policy: annotation(MESSAGE_POLICY),
            user: status.user.clone().and_then(|user| user.linux),
            resources: status.resources.clone().and_then(|resources| resources.linux),
            stop_signal: cri::signal_name(status.stop_signal()),
            id: status.id,
        }
    }
}

#[cfg(test)]
impl Instance {
    pub fn running_for_tests(name: &str, id: &str) -> Instance {
        let status = v1::ContainerStatus {
            id: id.to_owned(),
            metadata: Some(v1::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            state: v1::ContainerState::ContainerRunning.into(),
            ..Default::default()
        };
        Instance::from_cri(status, "s")
    }
}

fn display_image(image: &v1::ImageSpec) -> String {
    if image.user_specified_image.is_empty() { image.image.clone() } else { image.user_specified_image.clone() }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Sandbox {
    pub id: String,
    pub attempt: u32,
    pub ready: bool,
    pub created_at: i64,
    pub host_network: bool,
    pub ips: Vec<String>,
}

impl Sandbox {
    pub fn from_cri(status: v1::PodSandboxStatus) -> Sandbox {
        let network = status.network.clone().unwrap_or_default();
        let namespaces = status.linux.clone().and_then(|linux| linux.namespaces).and_then(|n| n.options);
        let additional = network.additional_ips.into_iter().map(|ip| ip.ip);
        Sandbox {
            attempt: status.metadata.as_ref().map_or(0, |metadata| metadata.attempt),
            ready: status.state() == v1::PodSandboxState::SandboxReady,
            created_at: status.created_at,
            host_network: namespaces.is_some_and(|options| options.network() == v1::NamespaceMode::Node),
            ips: std::iter::once(network.ip).chain(additional).filter(|ip| !ip.is_empty()).collect(),
            id: status.id,
        }
    }
}

/// Everything the runtime holds for one pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Runtime {
    /// Newest first.
    pub sandboxes: Vec<Sandbox>,
    /// Newest first.
    pub instances: Vec<Instance>,
}

impl Runtime {
    pub fn sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first()
    }

    pub fn latest(&self, name: &str) -> Option<&Instance> {
        self.instances.iter().find(|instance| instance.name == name)
    }

    /// The dead instance before the latest one.
    pub fn previous(&self, name: &str) -> Option<&Instance> {
        self.instances.iter().filter(|instance| instance.name == name).nth(1)
    }

    /// The latest instance, unless it belonged to an earlier sandbox.
    pub fn current(&self, name: &str) -> Option<&Instance> {
        let sandbox = self.sandbox()?;
        self.latest(name).filter(|instance| instance.sandbox == sandbox.id)
    }

    pub fn running(&self) -> impl Iterator<Item = &Instance> {
        self.instances.iter().filter(|instance| instance.state == RunState::Running)
    }

    pub fn by_id(&self, id: &str) -> Option<&Instance> {
        self.instances.iter().find(|instance| instance.id == id)
    }

    pub fn observe_sandbox(&mut self, sandbox: Sandbox) {
        match self.sandboxes.iter_mut().find(|known| known.id == sandbox.id) {
            // Addresses vanish from the status of a stopped sandbox; a stopped one never comes back.
            Some(known) => {
                known.ready &= sandbox.ready;
                if !sandbox.ips.is_empty() {
                    known.ips = sandbox.ips;
                }
            }
            None => {
                self.sandboxes.push(sandbox);
                self.sandboxes.sort_by_key(|sandbox| std::cmp::Reverse((sandbox.created_at, sandbox.attempt)));
            }
        }
    }

    pub fn observe(&mut self, instance: Instance) {
        match self.instances.iter_mut().find(|known| known.id == instance.id) {
            Some(known) if instance.state < known.state => {}
            Some(known) => {
                let (sandbox, message) = (std::mem::take(&mut known.sandbox), std::mem::take(&mut known.message));
                let read = known.message_read;
                *known = instance;
                if known.sandbox.is_empty() {
                    known.sandbox = sandbox;
                }
                if read {
                    (known.message, known.message_read) = (message, true);
                }
            }
            None => {
                self.instances.push(instance);
                self.instances.sort_by_key(|instance| std::cmp::Reverse((instance.attempt, instance.created_at)));
            }
        }
    }

    pub fn forget(&mut self, id: &str) {
        self.instances.retain(|instance| instance.id != id);
        self.sandboxes.retain(|sandbox| sandbox.id != id);
    }

    /// Forgets what a complete listing lacks.
    pub fn retain(&mut self, listing: &Runtime) {
        self.sandboxes.retain(|known| listing.sandboxes.iter().any(|sandbox| sandbox.id == known.id));
        self.instances.retain(|known| listing.instances.iter().any(|instance| instance.id == known.id));
    }

    /// Dead instances beyond the newest `keep` of each container, and those of no container.
    pub fn garbage(&self, keep: usize) -> Vec<String> {
        let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
        let mut garbage = Vec::new();
        for instance in &self.instances {
            let latest = self.latest(&instance.name).is_some_and(|latest| latest.id == instance.id);
            if instance.state == RunState::Running || latest {
                continue;
            }
            let count = seen.entry(&instance.name).or_default();
            *count += 1;
            if *count > keep {
                garbage.push(instance.id.clone());
            }
        }
        garbage
    }
}
