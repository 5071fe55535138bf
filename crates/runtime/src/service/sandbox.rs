//! Pod sandboxes: a shim, an infra process, a cgroup and addresses.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cri::v1::{ContainerEventType, NamespaceMode, NamespaceOption, PodSandboxConfig, Protocol};
use network::{Bandwidth, PodAttachment, PortMapping};

use super::records::PodRecord;
use super::shims::{Session, call};
use super::users::users;
use super::{Pod, Runtime, new_id, records};
use crate::cgroup::Limits;
use crate::container::users::Users;
use crate::shim::log::now;
use crate::shim::protocol::{Event, Exit, Reply, Request, Sandbox, State};

/// How long the kernel may take to let go of killed processes.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// Namespaces CRI asks for, with its defaults.
pub(super) fn namespaces(config: &PodSandboxConfig) -> NamespaceOption {
    let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    security.and_then(|security| security.namespace_options.clone()).unwrap_or_default()
}

impl Runtime {
    pub(super) async fn run_pod(self: &Arc<Self>, config: PodSandboxConfig, handler: String) -> Result<String> {
        let metadata = config.metadata.as_ref().context("sandbox config must include metadata")?;
        let twin = |pod: &&Arc<Pod>| pod.record.lock().config().metadata.as_ref() == Some(metadata);
        if let Some(twin) = self.pods.lock().values().find(twin) {
            bail!("failed to reserve sandbox name: it is reserved for {:?}", twin.id);
        }
        let parent = config.linux.as_ref().map_or("", |linux| linux.cgroup_parent.as_str());
        let id = new_id();
        let record = PodRecord {
            id: id.clone(),
            cgroup: pod_cgroup(&self.config.cgroup_root, parent, &id),
            config: Some(config),
            created_at: now(),
            runtime_handler: handler,
            ..PodRecord::default()
        };
        let directory = self.pod_directory(&id);
        std::fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        records::save(&directory, &record).context("save the pod's record")?;
        let pod = Pod::new(record);
        let _turn = pod.turn.lock().await;
        self.pods.lock().insert(id.clone(), pod.clone());
        if let Err(error) = self.start_pod(&pod).await {
            let _ = self.tear_down(&pod).await;
            self.forget_pod(&pod);
            return Err(error);
        }
        self.publish(&id, &id, ContainerEventType::ContainerCreatedEvent);
        self.publish(&id, &id, ContainerEventType::ContainerStartedEvent);
        Ok(id)
    }

    async fn start_pod(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<()> {
        let record = pod.record();
        let config = record.config();
        let leaf = self.infra_cgroup(&record);
        if self.cgroups.create(&record.cgroup)? {
            let resources = config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
            // Shares only: the sum of limits is no limit while one container has none.
            let shares = resources.map(|resources| resources.cpu_shares as u64).filter(|shares| *shares > 0);
            self.cgroups.apply(&record.cgroup, &Limits { cpu_shares: shares, ..Limits::default() })?;
        }
        let shim = self.shim_cgroup(&record);
        self.cgroups.create(&leaf)?;
        self.cgroups.create(&shim)?;
        let state = self.pod_state(&pod.id);
        std::fs::create_dir_all(&state).with_context(|| format!("create {}", state.display()))?;
        write_files(&self.pod_directory(&pod.id), config)?;
        let options = namespaces(config);
        let users = users(&options)?;
        let host_network = options.network() == NamespaceMode::Node;
        let sandbox = Sandbox {
            directory: state,
            placement: self.cgroups.placement(&leaf),
            shim_placement: self.cgroups.placement(&shim),
            hostname: (!host_network && !config.hostname.is_empty()).then(|| config.hostname.clone()),
            host_network,
            host_ipc: options.ipc() == NamespaceMode::Node,
            shared_pid: options.pid() == NamespaceMode::Pod,
            sysctls: sysctls(config, host_network, users),
            users,
        };
        let started = self.spawner.spawn(&sandbox).await;
        let (session, pause) = started.with_context(|| format!("failed to start sandbox {:?}", pod.id))?;
        self.update_pod(pod, |record| record.pause = pause);
        if !host_network {
            self.update_pod(pod, |record| record.attached = true);
            let attachment = attachment(&pod.record());
            let addresses = self.config.network.attach(&attachment).await;
            let addresses = addresses.with_context(|| format!("failed to setup network for sandbox {:?}", pod.id))?;
            let ips = addresses.ips.iter().map(ToString::to_string).collect();
            self.update_pod(pod, |record| record.ips = ips);
        }
        self.update_pod(pod, |record| record.ready = true);
        tokio::spawn(self.clone().watch_pod(pod.clone(), session));
        Ok(())
    }

    pub(super) fn infra_cgroup(&self, record: &PodRecord) -> String {
        format!("{}/{}", record.cgroup, record.id)
    }

    fn shim_cgroup(&self, record: &PodRecord) -> String {
        format!("{}/shim-{}", self.config.cgroup_root.trim_end_matches('/'), record.id)
    }

    /// Ends what is left of the pod itself: pause process and shim.
    async fn destroy_cgroups(&self, record: &PodRecord) -> Result<()> {
        for cgroup in [self.shim_cgroup(record), self.infra_cgroup(record)] {
            self.cgroups.destroy(&cgroup, KILL_LIMIT).await.with_context(|| format!("remove cgroup {cgroup}"))?;
        }
        Ok(())
    }

    /// Follows a shim's events until it is gone.
    async fn watch_pod(self: Arc<Self>, pod: Arc<Pod>, mut session: Session) {
        loop {
            match session.receive().await {
                Ok(Some((Reply::Event(Event::Exited { container, exit }), _))) => {
                    self.container_exited(&container, exit)
                }
                Ok(Some((Reply::Event(Event::PauseDied), _))) => self.pod_died(&pod),
                Ok(Some(_)) => {}
                // A connection that was cut for slowness is made anew; a dead shim refuses.
                Ok(None) | Err(_) => match self.resume(&pod).await {
                    Some(again) => session = again,
                    None if self.pod(&pod.id).is_some() => return self.pod_lost(&pod).await,
                    None => return,
                },
            }
        }
    }

    fn pod_died(&self, pod: &Pod) {
        let was_ready = self.update_pod(pod, |record| {
            record.pause = 0;
            std::mem::replace(&mut record.ready, false)
        });
        if was_ready {
            self.publish(&pod.id, &pod.id, ContainerEventType::ContainerStoppedEvent);
        }
    }

    /// Without its shim nobody would notice how the pod's processes end: they end now.
    async fn pod_lost(self: &Arc<Self>, pod: &Pod) {
        if pod.record.lock().ready {
            tracing::warn!(pod = pod.id, "the pod's shim is gone");
        }
        for container in self.containers_of(&pod.id) {
            if container.is_running() {
                let cgroup = container.record().cgroup;
                let _ = self.cgroups.destroy(&cgroup, KILL_LIMIT).await;
                self.container_exited(&container.id, Exit { code: 255, at: now() });
            }
        }
        let _ = self.destroy_cgroups(&pod.record()).await;
        self.pod_died(pod);
    }

    /// Finds the shims of an earlier service again.
    pub(super) async fn reattach(self: &Arc<Self>) {
        let pods: Vec<Arc<Pod>> = self.pods.lock().values().cloned().collect();
        for pod in pods {
            match self.resume(&pod).await {
                Some(session) => drop(tokio::spawn(self.clone().watch_pod(pod, session))),
                None => self.pod_lost(&pod).await,
            }
        }
        self.forget_strays();
    }

    /// Watches a shim that is there already; `None` if none answers.
    async fn resume(self: &Arc<Self>, pod: &Arc<Pod>) -> Option<Session> {
        let session = Session::connect(&self.pod_state(&pod.id)).ok()?;
        session.send(&Request::Watch, &[]).await.ok()?;
        let Ok((Reply::State(state), _)) = session.answer().await else { return None };
        self.adopt(pod, state);
        Some(session)
    }

    fn adopt(self: &Arc<Self>, pod: &Pod, state: State) {
        if state.pause.is_none() {
            self.pod_died(pod);
        }
        for container in self.containers_of(&pod.id) {
            let known = state.containers.iter().find(|known| known.container == container.id);
            match known {
                Some(known) => {
                    self.update_container(&container, |record| {
                        record.pid = known.pid;
                        if record.started_at == 0 {
                            record.started_at = known.started_at;
                        }
                    });
                    if let Some(exit) = known.exit {
                        self.container_exited(&container.id, exit);
                    }
                }
                None if container.is_running() => {
                    self.container_exited(&container.id, Exit { code: 255, at: now() });
                }
                None => {}
            }
        }
    }

    /// Containers whose pod has no record are what an interrupted removal left.
    fn forget_strays(&self) {
        let containers: Vec<_> = self.containers.lock().values().cloned().collect();
        for container in containers.into_iter().filter(|container| self.pod(&container.record().pod).is_none()) {
            self.containers.lock().remove(&container.id);
            let _ = std::fs::remove_dir_all(self.container_directory(&container.id));
        }
    }

    /// Idempotent, also for a pod nobody knows.
    pub(super) async fn stop_pod(self: &Arc<Self>, id: &str) -> Result<()> {
        let Some(pod) = self.pod(id) else { return Ok(()) };
        let _turn = pod.turn.lock().await;
        let was_ready = pod.record.lock().ready;
        for container in self.containers_of(&pod.id) {
            self.kill_container(&container).await?;
        }
        self.tear_down(&pod).await?;
        if was_ready {
            self.publish(&pod.id, &pod.id, ContainerEventType::ContainerStoppedEvent);
        }
        Ok(())
    }

    /// Network first, while the namespace is there; then every process.
    async fn tear_down(&self, pod: &Pod) -> Result<()> {
        let record = pod.record();
        if record.attached {
            let detached = self.config.network.detach(&attachment(&record)).await;
            detached.with_context(|| format!("failed to destroy network for sandbox {:?}", pod.id))?;
            self.update_pod(pod, |record| record.attached = false);
        }
        self.update_pod(pod, |record| {
            record.ready = false;
            record.pause = 0;
        });
        let _ = call(&self.pod_state(&pod.id), &Request::Stop).await; // it may be gone; its cgroups are what counts
        self.destroy_cgroups(&record).await
    }

    /// Idempotent, also for a pod nobody knows. Stops what runs.
    pub(super) async fn remove_pod(self: &Arc<Self>, id: &str) -> Result<()> {
        let Some(pod) = self.pod(id) else { return Ok(()) };
        self.stop_pod(&pod.id).await?;
        let _turn = pod.turn.lock().await;
        for container in self.containers_of(&pod.id) {
            self.remove_container(&container.id).await?;
        }
        self.forget_pod(&pod);
        self.publish(&pod.id, &pod.id, ContainerEventType::ContainerDeletedEvent);
        Ok(())
    }

    fn forget_pod(&self, pod: &Pod) {
        let record = pod.record();
        self.cgroups.prune(&self.infra_cgroup(&record), &self.config.cgroup_root);
        for directory in [self.pod_state(&pod.id), self.pod_directory(&pod.id)] {
            let removed = std::fs::remove_dir_all(&directory);
            if let Err(error) = removed.or_else(|error| match error.kind() {
                std::io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            }) {
                tracing::warn!(directory = %directory.display(), %error, "remove the pod's directory");
            }
        }
        self.pods.lock().remove(&pod.id);
    }
}

/// A pod's own network lets everyone ping and bind low ports, as upstream's runtimes have it: the
/// host's reasons against it do not hold there.
fn network_sysctls(users: Option<Users>) -> [(&'static str, String); 2] {
    let last_group = users.map_or(u32::MAX, |users| users.gids.length - 1).min(i32::MAX as u32);
    [("net.ipv4.ip_unprivileged_port_start", "0".to_owned()), ("net.ipv4.ping_group_range", format!("0 {last_group}"))]
}

fn sysctls(config: &PodSandboxConfig, host_network: bool, users: Option<Users>) -> Vec<(String, String)> {
    let asked = config.linux.as_ref().map(|linux| &linux.sysctls);
    let ours = network_sysctls(users).into_iter().filter(|_| !host_network);
    let mut all: BTreeMap<String, String> = ours.map(|(name, value)| (name.into(), value)).collect();
    all.extend(asked.into_iter().flatten().map(|(name, value)| (name.replace('/', "."), value.clone())));
    all.into_iter().collect()
}

/// Where a pod's cgroup is: CRI's parent below our root, unless it says so already.
fn pod_cgroup(root: &str, parent: &str, id: &str) -> String {
    let (root, parent) = (root.trim_end_matches('/'), parent.trim_matches('/'));
    let full = format!("/{parent}");
    match parent {
        "" => format!("{root}/pod-{id}"),
        _ if Path::new(&full).starts_with(root) && !root.is_empty() => full,
        _ => format!("{root}{full}"),
    }
}

/// resolv.conf, hosts and hostname as the pod's containers see them.
fn write_files(directory: &Path, config: &PodSandboxConfig) -> Result<()> {
    let copy = |name: &str| std::fs::read(Path::new("/etc").join(name)).unwrap_or_default();
    let resolv = match config.dns_config.as_ref().map(resolv_conf) {
        Some(text) if !text.is_empty() => text.into_bytes(),
        _ => copy("resolv.conf"),
    };
    let hostname = match config.hostname.as_str() {
        "" => copy("hostname"),
        name => format!("{name}\n").into_bytes(),
    };
    for (name, content) in [("resolv.conf", resolv), ("hosts", copy("hosts")), ("hostname", hostname)] {
        let path = directory.join(name);
        std::fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn resolv_conf(dns: &cri::v1::DnsConfig) -> String {
    let mut text = String::new();
    let mut line = |key: &str, values: &[String]| {
        if !values.is_empty() {
            text.push_str(&format!("{key} {}\n", values.join(" ")));
        }
    };
    line("search", &dns.searches);
    dns.servers.iter().for_each(|server| line("nameserver", std::slice::from_ref(server)));
    line("options", &dns.options);
    text
}

fn attachment(record: &PodRecord) -> PodAttachment {
    let config = record.config();
    let metadata = config.metadata.clone().unwrap_or_default();
    let rate = |direction: &str| {
        let annotation = config.annotations.get(&format!("kubernetes.io/{direction}-bandwidth"))?;
        bits_per_second(annotation)
    };
    PodAttachment {
        sandbox_id: record.id.clone(),
        netns: PathBuf::from(format!("/proc/{}/ns/net", record.pause)),
        namespace: metadata.namespace,
        name: metadata.name,
        uid: metadata.uid,
        port_mappings: config.port_mappings.iter().filter_map(port_mapping).collect(),
        bandwidth: Bandwidth { ingress: rate("ingress"), egress: rate("egress") },
    }
}

fn port_mapping(mapping: &cri::v1::PortMapping) -> Option<PortMapping> {
    let host_port = u16::try_from(mapping.host_port).ok().filter(|port| *port > 0)?;
    Some(PortMapping {
        host_ip: mapping.host_ip.parse().ok(),
        host_port,
        container_port: u16::try_from(mapping.container_port).ok()?,
        protocol: match mapping.protocol() {
            Protocol::Tcp => network::Protocol::Tcp,
            Protocol::Udp => network::Protocol::Udp,
            Protocol::Sctp => network::Protocol::Sctp,
        },
    })
}

/// A quantity with a decimal or binary suffix, as the annotation has it ("10M").
fn bits_per_second(text: &str) -> Option<u64> {
    let (digits, suffix) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let powers = ["", "k", "M", "G", "T", "P"];
    let binary = suffix.strip_suffix('i').map(|prefix| if prefix == "K" { "k" } else { prefix });
    let (base, prefix) = binary.map_or((1000u64, suffix), |prefix| (1024, prefix));
    let power = powers.iter().position(|known| *known == prefix)?;
    digits.parse::<u64>().ok()?.checked_mul(base.pow(power as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_stay_below_the_root() {
        for (root, parent, expected) in [
            ("/isopod/a", "/kubepods/burstable/podX", "/isopod/a/kubepods/burstable/podX"),
            ("/isopod/a", "/isopod/a/kubepods/podX", "/isopod/a/kubepods/podX"),
            ("/isopod/a", "/isopod/ab/podX", "/isopod/a/isopod/ab/podX"),
            ("/isopod/a", "", "/isopod/a/pod-7"),
            ("", "/kubepods/podX", "/kubepods/podX"),
        ] {
            assert_eq!(pod_cgroup(root, parent, "7"), expected);
        }
    }

    #[test]
    fn bandwidths_are_quantities() {
        for (text, expected) in
            [("10M", Some(10_000_000)), ("1Ki", Some(1024)), ("7", Some(7)), ("2G", Some(2_000_000_000)), ("x", None)]
        {
            assert_eq!(bits_per_second(text), expected, "{text}");
        }
    }

    #[test]
    fn resolv_conf_has_cris_parts() {
        let dns = cri::v1::DnsConfig {
            servers: vec!["10.0.0.1".into(), "10.0.0.2".into()],
            searches: vec!["a.b".into(), "c".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(resolv_conf(&dns), "search a.b c\nnameserver 10.0.0.1\nnameserver 10.0.0.2\noptions ndots:5\n");
    }
}
