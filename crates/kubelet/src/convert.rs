//! A pod's spec into CRI's sandbox and container configurations.
//!
//! Pure: mounts, environment and figures come in finished. Labels and annotations written here are
//! what a restarted kubelet finds its pods by.

use crate::config::Config;
use crate::pod::{self, Kind, Member};
use crate::security::{self, ImageUser};
use crate::{cgroup, dns, env, resources, state};
use cri::v1;
use k8s_openapi::api::core::v1::{Container, Pod};
use std::collections::HashMap;
use std::path::PathBuf;

/// Longest host name Linux takes.
const HOSTNAME_MAX: usize = 64;

pub fn log_directory(config: &Config, pod: &Pod) -> PathBuf {
    config.pod_logs_dir.join(format!("{}_{}_{}", pod::namespace(pod), pod::name(pod), pod::uid(pod)))
}

fn identity(pod: &Pod) -> HashMap<String, String> {
    [(state::POD_NAME, pod::name(pod)), (state::POD_NAMESPACE, pod::namespace(pod)), (state::POD_UID, pod::uid(pod))]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

/// The host name inside the pod; with setHostnameAsFQDN the full one, which may be too long.
fn hostname(pod: &Pod, config: &Config) -> Result<String, String> {
    if pod::host_network(pod) && pod::spec(pod).hostname_override.is_none() {
        return Ok(config.node_name.clone());
    }
    let short = pod::hostname(pod);
    match pod::domain(pod, &config.cluster_domain) {
        Some(domain) if pod::spec(pod).set_hostname_as_fqdn == Some(true) => {
            let full = format!("{short}.{domain}");
            match full.len() > HOSTNAME_MAX {
                true => Err(format!(
                    "failed to construct FQDN from pod hostname and cluster domain, FQDN {full} is too long \
                     ({HOSTNAME_MAX} characters is the max, {} characters requested)",
                    full.len()
                )),
                false => Ok(full),
            }
        }
        _ => Ok(short),
    }
}

/// `host_resolv` is the text of the host's resolv.conf, `users` the pod's own user namespace.
pub fn sandbox(
    pod: &Pod,
    config: &Config,
    attempt: u32,
    host_resolv: &str,
    users: Option<&v1::UserNamespace>,
) -> Result<v1::PodSandboxConfig, String> {
    let spec = pod::spec(pod);
    if spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()) {
        return Err("resource claims are not supported by this node".to_owned());
    }
    let servers: Vec<String> = config.cluster_dns.iter().map(ToString::to_string).collect();
    let mut labels = identity(pod);
    labels.extend(pod.metadata.labels.iter().flatten().map(|(key, value)| (key.clone(), value.clone())));
    let mut annotations: HashMap<String, String> =
        pod.metadata.annotations.iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
    annotations.insert(state::POD_GRACE.to_owned(), spec.termination_grace_period_seconds.unwrap_or(30).to_string());
    let sysctls = spec.security_context.iter().flat_map(|context| context.sysctls.iter().flatten());
    Ok(v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: pod::name(pod).to_owned(),
            uid: pod::uid(pod).to_owned(),
            namespace: pod::namespace(pod).to_owned(),
            attempt,
        }),
        hostname: hostname(pod, config)?,
        log_directory: log_directory(config, pod).display().to_string(),
        dns_config: Some(dns::config(pod, &servers, &config.cluster_domain, host_resolv)),
        port_mappings: port_mappings(pod),
        labels,
        annotations,
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: cgroup::parent(pod, config),
            security_context: Some(security::sandbox(pod, &config.root_dir.join("seccomp"), users)),
            sysctls: sysctls.map(|sysctl| (sysctl.name.replace('/', "."), sysctl.value.clone())).collect(),
            overhead: None,
            resources: Some(v1::LinuxContainerResources {
                cpu_period: resources::CPU_PERIOD,
                cpu_quota: resources::pod_limit(pod, "cpu").map_or(0, resources::cpu_quota),
                cpu_shares: resources::cpu_shares(resources::pod_request(pod, "cpu")),
                memory_limit_in_bytes: resources::pod_limit(pod, "memory").unwrap_or(0),
                ..Default::default()
            }),
        }),
        windows: None,
    })
}

fn port_mappings(pod: &Pod) -> Vec<v1::PortMapping> {
    let members = pod::members(pod);
    let ports = members.iter().flat_map(|member| member.container.ports.iter().flatten());
    let mapping = |port: &k8s_openapi::api::core::v1::ContainerPort| v1::PortMapping {
        protocol: match port.protocol.as_deref() {
            Some("UDP") => v1::Protocol::Udp,
            Some("SCTP") => v1::Protocol::Sctp,
            _ => v1::Protocol::Tcp,
        }
        .into(),
        container_port: port.container_port,
        host_port: port.host_port.unwrap_or(0),
        host_ip: port.host_ip.clone().unwrap_or_default(),
    };
    ports.map(mapping).collect()
}

/// What a container needs besides its spec.
pub struct Prepared<'a> {
    pub attempt: u32,
    /// The image as the runtime names it.
    pub image: &'a str,
    pub image_user: &'a ImageUser,
    pub environment: &'a [(String, String)],
    pub mounts: Vec<v1::Mount>,
    /// The pod's own user namespace, in which files belong to whom they belong on the host.
    pub users: Option<&'a v1::UserNamespace>,
    pub devices: Vec<v1::Device>,
    pub target_id: Option<&'a str>,
    pub node_memory: i64,
}

pub fn container(pod: &Pod, member: &Member<'_>, config: &Config, prepared: Prepared<'_>) -> v1::ContainerConfig {
    let container = &member.container;
    let known: HashMap<&str, &str> =
        prepared.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let expand = |list: &Option<Vec<String>>| -> Vec<String> {
        let lookup = |name: &str| known.get(name).map(|value| (*value).to_owned());
        list.iter().flatten().map(|template| env::expand(template, lookup)).collect()
    };
    let mut labels = identity(pod);
    labels.insert(state::CONTAINER_NAME.to_owned(), member.name().to_owned());
    let policy = container.termination_message_policy.clone().unwrap_or_else(|| "File".to_owned());
    let annotations = [
        (state::CONTAINER_HASH, pod::container_hash(container)),
        (state::RESTART_COUNT, prepared.attempt.to_string()),
        (state::MESSAGE_PATH, message_path(container).to_owned()),
        (state::MESSAGE_POLICY, policy),
        (state::POD_GRACE, pod::spec(pod).termination_grace_period_seconds.unwrap_or(30).to_string()),
    ];
    let seccomp_root = config.root_dir.join("seccomp");
    let environment = prepared.environment.iter();
    let mut mounts = prepared.mounts;
    if let Some(users) = prepared.users {
        for mount in &mut mounts {
            (mount.uid_mappings, mount.gid_mappings) = (users.uids.clone(), users.gids.clone());
        }
    }
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: member.name().to_owned(), attempt: prepared.attempt }),
        image: Some(v1::ImageSpec {
            image: prepared.image.to_owned(),
            user_specified_image: container.image.clone().unwrap_or_default(),
            ..Default::default()
        }),
        command: expand(&container.command),
        args: expand(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: environment.map(|(key, value)| v1::KeyValue { key: key.clone(), value: value.clone() }).collect(),
        mounts,
        devices: prepared.devices,
        labels,
        annotations: annotations.map(|(key, value)| (key.to_owned(), value)).into(),
        log_path: format!("{}/{}.log", member.name(), prepared.attempt),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        stop_signal: stop_signal(container).into(),
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(resources::container(pod, container, prepared.node_memory)),
            security_context: Some(security::container(
                pod,
                container,
                prepared.image_user,
                prepared.target_id.filter(|_| member.kind == Kind::Ephemeral),
                &seccomp_root,
                prepared.users,
            )),
        }),
        ..Default::default()
    }
}

fn stop_signal(container: &Container) -> v1::Signal {
    let wanted = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.as_deref());
    wanted.map_or(v1::Signal::RuntimeDefault, cri::signal)
}

pub fn message_path(container: &Container) -> &str {
    container.termination_message_path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/dev/termination-log")
}
