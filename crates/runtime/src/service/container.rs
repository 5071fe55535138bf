//! Containers: created as records and directories, started by the pod's shim.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cri::v1::{
    ContainerConfig, ContainerEventType, ContainerState, LinuxContainerResources, NamespaceMode, PodSandboxConfig,
};

use super::records::{ContainerRecord, PodRecord};
use super::shims::{Session, call};
use super::users::users;
use super::{Container, Pod, Runtime, new_id, records, specs};
use crate::container::init::START_FAILED;
use crate::images::PINS;
use crate::shim::log::now;
use crate::shim::protocol::{Exit, PidNamespace, Reply, Request, Start};

/// Longest a container's init may take to reach its command (a hanging network volume).
const START_LIMIT: Duration = Duration::from_secs(120);
/// How long a killed process may take to die.
const KILL_LIMIT: Duration = Duration::from_secs(60);

/// Asked for an object that is not there.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NotFound(pub(super) String);

impl Runtime {
    pub(super) fn known_container(&self, id: &str) -> Result<Arc<Container>> {
        Ok(self.container(id).ok_or_else(|| NotFound(format!("container {id:?} not found")))?)
    }

    pub(super) fn known_pod(&self, id: &str) -> Result<Arc<Pod>> {
        Ok(self.pod(id).ok_or_else(|| NotFound(format!("sandbox {id:?} not found")))?)
    }

    pub(super) async fn create_container(
        self: &Arc<Self>,
        pod: &str,
        config: ContainerConfig,
        sandbox: Option<PodSandboxConfig>,
    ) -> Result<String> {
        let pod = self.known_pod(pod)?;
        let pod_record = pod.record();
        if !pod_record.ready {
            bail!("sandbox container {:?} is not running", pod.id);
        }
        let metadata = config.metadata.clone().context("container config must include metadata")?;
        let named = |container: &Arc<Container>| container.record.lock().config().metadata.as_ref() == Some(&metadata);
        if let Some(twin) = self.containers_of(&pod.id).into_iter().find(named) {
            bail!("failed to reserve container name {:?}: it is reserved for {:?}", metadata.name, twin.id);
        }
        let wanted = config.image.as_ref().map_or("", |image| image.image.as_str());
        let image = self.images.get(wanted)?.ok_or_else(|| NotFound(format!("image {wanted:?} not found")))?;
        let id = new_id();
        let log_directory = sandbox.as_ref().unwrap_or(pod_record.config()).log_directory.clone();
        let log_path = match (log_directory.as_str(), config.log_path.as_str()) {
            ("", _) | (_, "") => String::new(),
            (directory, name) => std::path::Path::new(directory).join(name).to_string_lossy().into_owned(),
        };
        let record = ContainerRecord {
            id: id.clone(),
            pod: pod.id.clone(),
            image_ref: image.digests.first().unwrap_or(&image.id).clone(),
            image_id: image.id.clone(),
            created_at: now(),
            cgroup: format!("{}/{id}", pod_record.cgroup),
            stop_signal: cri::signal_name(config.stop_signal()).unwrap_or_else(|| image.config.stop_signal.clone()),
            log_path,
            config: Some(config),
            ..ContainerRecord::default()
        };
        let sandbox_users = users(&super::sandbox::namespaces(pod_record.config()))?;
        if users(&specs::namespaces(&record))? != sandbox_users {
            bail!("user namespace config for sandbox is different from container");
        }
        // Refused now, not at start, like other mistakes in the configuration.
        specs::check(&record, &image)?;
        let directory = self.container_directory(&id);
        for part in ["upper", "work"] {
            std::fs::create_dir_all(directory.join(part)).with_context(|| format!("create {}", directory.display()))?;
        }
        std::fs::write(directory.join(PINS), image.layers.join("\n")).context("pin the image's layers")?;
        records::save(&directory, &record).context("save the container's record")?;
        self.containers.lock().insert(id.clone(), Container::new(record));
        self.publish(&id, &pod.id, ContainerEventType::ContainerCreatedEvent);
        Ok(id)
    }

    pub(super) async fn start_container(self: &Arc<Self>, id: &str) -> Result<()> {
        let container = self.known_container(id)?;
        let _turn = container.turn.lock().await;
        let record = container.record();
        if record.state() != ContainerState::ContainerCreated {
            bail!("container {:?} is in {} state", container.id, record.state().as_str_name());
        }
        let pod = self.known_pod(&record.pod)?.record();
        if !pod.ready {
            bail!("sandbox container {:?} is not running", pod.id);
        }
        if let Err(error) = self.launch(&container, &record, &pod).await {
            let _ = self.cgroups.destroy(&record.cgroup, KILL_LIMIT).await;
            self.update_container(&container, |record| {
                (record.finished_at, record.exit_code) = (now(), START_FAILED);
                (record.reason, record.message) = ("StartError".into(), format!("{error:#}"));
            });
            self.publish(&container.id, &record.pod, ContainerEventType::ContainerStoppedEvent);
            container.exited.send_replace(true);
            return Err(error);
        }
        self.publish(&container.id, &record.pod, ContainerEventType::ContainerStartedEvent);
        Ok(())
    }

    async fn launch(&self, container: &Container, record: &ContainerRecord, pod: &PodRecord) -> Result<()> {
        let image = self.images.get(&record.image_id)?;
        let image = image.ok_or_else(|| NotFound(format!("image {:?} not found", record.image_id)))?;
        let context = specs::Context { runtime: self, pod, record, image: &image };
        let spec = context.spec()?;
        let state = self.pod_state(&pod.id);
        let spec_file = state.join(format!("{}.json", record.id));
        std::fs::write(&spec_file, serde_json::to_vec(&spec)?).context("write the container's spec")?;
        self.cgroups.create(&record.cgroup)?;
        self.cgroups.apply(&record.cgroup, &specs::limits(context.resources()))?;
        match (context.device_rules()?, users(&specs::namespaces(record))?) {
            (Some(rules), _) => self.cgroups.restrict_devices(&record.cgroup, &rules)?,
            // Privileged, and so the owner of what is writable in /sys/fs/cgroup.
            (None, Some(users)) => self.cgroups.give(&record.cgroup, users.uids.host, users.gids.host)?,
            (None, None) => {}
        }
        if let Some(parent) = std::path::Path::new(&record.log_path).parent() {
            std::fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        }
        let config = record.config();
        let namespaces = specs::namespaces(record);
        let request = Request::Start(Start {
            container: record.id.clone(),
            spec: spec_file,
            placement: self.cgroups.placement(&record.cgroup),
            pid_namespace: match namespaces.pid() {
                NamespaceMode::Pod => PidNamespace::Pod,
                NamespaceMode::Container => PidNamespace::Own,
                NamespaceMode::Node => PidNamespace::Host,
                NamespaceMode::Target => PidNamespace::Target(self.known_container(&namespaces.target_id)?.id.clone()),
            },
            host_network: namespaces.network() == NamespaceMode::Node,
            host_ipc: namespaces.ipc() == NamespaceMode::Node,
            stdin: config.stdin,
            stdin_once: config.stdin_once,
            tty: config.tty,
            log: (!record.log_path.is_empty()).then(|| record.log_path.clone().into()),
        });
        let session = Session::connect(&state).context("reach the pod's shim")?;
        session.send(&request, &[]).await.context("ask the pod's shim")?;
        let answer = tokio::time::timeout(START_LIMIT, session.answer()).await;
        let (reply, _) = answer
            .context("the container's init did not finish in time")?
            .context("failed to create containerd task: unable to start container process")?;
        let Reply::Started { pid, identity } = reply else { bail!("unexpected answer from the shim: {reply:?}") };
        self.update_container(container, |record| {
            record.pid = pid;
            (record.uid, record.gid, record.groups) = (identity.uid, identity.gid, identity.groups);
            record.started_at = now();
            // Its exit may have been told on the other connection already.
            if record.finished_at > 0 {
                record.started_at = record.started_at.min(record.finished_at);
            }
        });
        Ok(())
    }

    /// Takes note of an exit; idempotent, since a new connection tells it again.
    pub(super) fn container_exited(self: &Arc<Self>, id: &str, exit: Exit) {
        let Some(container) = self.container(id) else { return };
        if container.record.lock().finished_at > 0 {
            return;
        }
        let cgroup = container.record().cgroup;
        let oom = self.cgroups.oom_kills(&cgroup) > 0;
        self.update_container(&container, |record| {
            (record.finished_at, record.exit_code, record.pid) = (exit.at, exit.code, 0);
            record.reason = match exit.code {
                _ if oom => "OOMKilled",
                0 => "Completed",
                255 => "Unknown",
                _ => "Error",
            }
            .into();
        });
        // Told before anybody who waits for the exit can remove the container.
        self.publish(id, &container.record().pod, ContainerEventType::ContainerStoppedEvent);
        container.exited.send_replace(true);
        // In a shared pid namespace the init's children outlive it otherwise.
        let runtime = self.clone();
        tokio::spawn(async move {
            if let Err(error) = runtime.cgroups.destroy(&cgroup, KILL_LIMIT).await {
                tracing::warn!(cgroup, %error, "remove the container's cgroup");
            }
        });
    }

    /// Asks it to end, and insists after `timeout`. Idempotent.
    pub(super) async fn stop_container(self: &Arc<Self>, id: &str, timeout: Duration) -> Result<()> {
        let Some(container) = self.container(id) else { return Ok(()) };
        if !container.is_running() {
            return Ok(());
        }
        if !timeout.is_zero() {
            let record = container.record();
            let request = Request::Signal { container: record.id.clone(), signal: signal_number(&record.stop_signal) };
            let _ = call(&self.pod_state(&record.pod), &request).await; // it may just have exited
            if tokio::time::timeout(timeout, container.wait_for_exit()).await.is_ok() {
                return Ok(());
            }
        }
        self.kill_container(&container).await
    }

    pub(super) async fn kill_container(&self, container: &Container) -> Result<()> {
        if !container.is_running() {
            return Ok(());
        }
        let record = container.record();
        let request = Request::Signal { container: record.id.clone(), signal: libc::SIGKILL };
        let _ = call(&self.pod_state(&record.pod), &request).await;
        self.cgroups.kill(&record.cgroup);
        let died = tokio::time::timeout(KILL_LIMIT, container.wait_for_exit()).await;
        died.with_context(|| format!("container {:?} does not die", container.id))
    }

    /// Kills it if it runs. Idempotent.
    pub(super) async fn remove_container(self: &Arc<Self>, id: &str) -> Result<()> {
        let Some(container) = self.container(id) else { return Ok(()) };
        let _turn = container.turn.lock().await;
        self.kill_container(&container).await?;
        let record = container.record();
        if record.finished_at > 0 {
            container.wait_for_exit().await;
        }
        let state = self.pod_state(&record.pod);
        if record.started_at > 0 {
            let _ = call(&state, &Request::Remove { container: record.id.clone() }).await; // the shim may be gone
        }
        let _ = std::fs::remove_file(state.join(format!("{}.json", record.id)));
        self.cgroups.destroy(&record.cgroup, KILL_LIMIT).await.context("remove the container's cgroup")?;
        let directory = self.container_directory(&container.id);
        let images = self.images.clone();
        let image = record.image_id.clone();
        tokio::task::spawn_blocking(move || -> Result<()> {
            match std::fs::remove_dir_all(&directory) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("remove {}", directory.display()));
                }
                _ => {}
            }
            if images.get(&image)?.is_none() { images.collect_garbage() } else { Ok(()) }
        })
        .await??;
        self.containers.lock().remove(&container.id);
        self.publish(&container.id, &record.pod, ContainerEventType::ContainerDeletedEvent);
        Ok(())
    }

    pub(super) fn update_resources(&self, id: &str, resources: LinuxContainerResources) -> Result<()> {
        let container = self.known_container(id)?;
        let record = container.record();
        if container.is_running() {
            self.cgroups.apply(&record.cgroup, &specs::limits(Some(&resources)))?;
        }
        self.update_container(&container, |record| {
            let linux = record.config.get_or_insert_default().linux.get_or_insert_default();
            linux.resources = Some(specs::merge_resources(linux.resources.take().unwrap_or_default(), resources));
        });
        Ok(())
    }

    pub(super) async fn reopen_log(&self, id: &str) -> Result<()> {
        let container = self.known_container(id)?;
        let record = container.record();
        if !container.is_running() {
            bail!("container is not running");
        }
        call(&self.pod_state(&record.pod), &Request::ReopenLog { container: record.id }).await.map(drop)
    }
}

/// As the C libraries count, which keep the first two to themselves.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The signal of that number in CRI's terms.
pub(super) fn cri_signal(number: i32) -> cri::v1::Signal {
    let named = nix::sys::signal::Signal::try_from(number).ok().map(|signal| signal.as_str().to_owned());
    let name = named.unwrap_or_else(|| match number {
        RTMIN | RTMAX => {
            if number == RTMIN {
                "SIGRTMIN".to_owned()
            } else {
                "SIGRTMAX".to_owned()
            }
        }
        35..50 => format!("SIGRTMIN+{}", number - RTMIN),
        _ => format!("SIGRTMAX-{}", RTMAX - number),
    });
    cri::signal(&name)
}

/// `SIGQUIT`, `QUIT`, `3`, `SIGRTMIN+3` or `SIGRTMAX-3`; TERM for none.
pub(super) fn signal_number(text: &str) -> i32 {
    let upper = text.to_ascii_uppercase();
    let number = || upper.parse().ok().filter(|number| (1..65).contains(number));
    let real_time = || {
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let offset = |from: &str| {
            name.strip_prefix(from).and_then(|text| if text.is_empty() { Some(0) } else { text.parse::<i32>().ok() })
        };
        offset("RTMIN").map(|offset| RTMIN + offset).or_else(|| offset("RTMAX").map(|offset| RTMAX + offset))
    };
    let name = if upper.starts_with("SIG") { upper.clone() } else { format!("SIG{upper}") };
    let name = match name.as_str() {
        "SIGCLD" => "SIGCHLD".to_owned(),
        "SIGIOT" => "SIGABRT".to_owned(),
        "SIGPOLL" => "SIGIO".to_owned(),
        _ => name,
    };
    let named = name.parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32);
    named.or_else(number).or_else(real_time).unwrap_or(libc::SIGTERM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_signals_have_names_and_numbers() {
        for (text, expected) in [
            ("", 15),
            ("SIGQUIT", 3),
            ("quit", 3),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("SIGRTMAX-14", 50),
            ("SIGPOLL", 29),
            ("nonsense", 15),
        ] {
            assert_eq!(signal_number(text), expected, "{text}");
            assert_eq!(signal_number(&cri::signal_name(cri_signal(expected)).unwrap()), expected, "{text}");
        }
    }
}
