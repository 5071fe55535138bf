//! Questions about a pod's spec that every part of the kubelet asks.
//!
//! Pure; refuses to know the runtime. The four sorts of containers are one list here, so that no
//! caller forgets one of them.

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodSpec, PodStatus};
use serde::Deserialize as _;
use std::borrow::Cow;
use std::sync::LazyLock;

/// What a container is within its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Runs to completion before the next one starts.
    Init,
    /// A restartable init container: starts in init order, then runs beside the app containers.
    Sidecar,
    App,
    /// Added to the running pod for debugging, never restarted.
    Ephemeral,
}

/// A container of any sort, as it stands in the spec.
pub struct Member<'a> {
    pub kind: Kind,
    pub container: Cow<'a, Container>,
    /// Whose namespaces an ephemeral container joins.
    pub target: Option<&'a str>,
}

impl Member<'_> {
    pub fn name(&self) -> &str {
        &self.container.name
    }

    /// The path events use for this container.
    pub fn field_path(&self) -> String {
        let list = match self.kind {
            Kind::Init | Kind::Sidecar => "initContainers",
            Kind::App => "containers",
            Kind::Ephemeral => "ephemeralContainers",
        };
        format!("spec.{list}{{{}}}", self.name())
    }
}

static NO_SPEC: LazyLock<PodSpec> = LazyLock::new(PodSpec::default);
static NO_STATUS: LazyLock<PodStatus> = LazyLock::new(PodStatus::default);

pub fn spec(pod: &Pod) -> &PodSpec {
    pod.spec.as_ref().unwrap_or(&NO_SPEC)
}

pub fn status(pod: &Pod) -> &PodStatus {
    pod.status.as_ref().unwrap_or(&NO_STATUS)
}

pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// `NAME_NAMESPACE(UID)`, the form events and errors use.
pub fn full_name(pod: &Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}

pub fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Where a static pod says it came from; the API's own pods have none.
pub const SOURCE_ANNOTATION: &str = "kubernetes.io/config.source";
/// A static pod's hash; on a pod of the API it marks a mirror pod.
pub const HASH_ANNOTATION: &str = "kubernetes.io/config.hash";
pub const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

pub fn is_static(pod: &Pod) -> bool {
    annotation(pod, SOURCE_ANNOTATION).is_some_and(|source| source != "api")
}

pub fn is_mirror(pod: &Pod) -> bool {
    annotation(pod, MIRROR_ANNOTATION).is_some()
}

pub fn is_terminal(pod: &Pod) -> bool {
    is_over(status(pod))
}

pub fn is_over(status: &PodStatus) -> bool {
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

pub fn host_network(pod: &Pod) -> bool {
    spec(pod).host_network == Some(true)
}

/// System-critical pods outrank `2_000_000_000`; static pods are critical always.
pub fn is_critical(pod: &Pod) -> bool {
    is_static(pod) || spec(pod).priority.is_some_and(|priority| priority >= 2_000_000_000)
}

pub fn restart_policy(pod: &Pod) -> &str {
    spec(pod).restart_policy.as_deref().unwrap_or("Always")
}

pub fn grace_seconds(pod: &Pod) -> i64 {
    pod.metadata.deletion_grace_period_seconds.or(spec(pod).termination_grace_period_seconds).unwrap_or(30)
}

/// All containers: init and sidecars in their order, then app, then ephemeral ones.
pub fn members(pod: &Pod) -> Vec<Member<'_>> {
    let spec = spec(pod);
    let init = spec.init_containers.iter().flatten().map(|container| Member {
        kind: if is_sidecar(container) { Kind::Sidecar } else { Kind::Init },
        container: Cow::Borrowed(container),
        target: None,
    });
    let app = spec.containers.iter().map(|container| Member {
        kind: Kind::App,
        container: Cow::Borrowed(container),
        target: None,
    });
    let ephemeral = spec.ephemeral_containers.iter().flatten().filter_map(|container| {
        let value = serde_json::to_value(container).ok()?;
        Some(Member {
            kind: Kind::Ephemeral,
            container: Cow::Owned(Container::deserialize(&value).ok()?),
            target: container.target_container_name.as_deref().filter(|target| !target.is_empty()),
        })
    });
    init.chain(app).chain(ephemeral).collect()
}

pub fn member<'a>(pod: &'a Pod, name: &str) -> Option<Member<'a>> {
    members(pod).into_iter().find(|member| member.name() == name)
}

pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Whether an exit with this code is followed by another start.
pub fn restarts(pod: &Pod, member: &Member<'_>, exit_code: i32) -> bool {
    if member.kind == Kind::Ephemeral {
        return false;
    }
    let rule = member.container.restart_policy_rules.iter().flatten().find(|rule| {
        rule.exit_codes.as_ref().is_some_and(|codes| {
            let listed = codes.values.iter().flatten().any(|&value| value == exit_code);
            listed == (codes.operator == "In")
        })
    });
    if rule.is_some_and(|rule| rule.action == "Restart") {
        return true;
    }
    let policy = member.container.restart_policy.as_deref().unwrap_or_else(|| restart_policy(pod));
    match policy {
        "Never" => false,
        "OnFailure" => exit_code != 0,
        // An init container of an `Always` pod is done when it succeeds.
        _ => member.kind != Kind::Init || exit_code != 0,
    }
}

/// The API's last word about a container, of any sort.
pub fn container_status<'a>(status: &'a PodStatus, name: &str) -> Option<&'a ContainerStatus> {
    [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses]
        .into_iter()
        .flatten()
        .flatten()
        .find(|status| status.name == name)
}

/// The hash that tells whether a running container still matches its spec: name and image are the
/// only mutable fields that need a restart.
pub fn container_hash(container: &Container) -> String {
    format!("{:08x}", fnv(format!("{}\0{}", container.name, container.image.as_deref().unwrap_or_default()).as_bytes()))
}

/// FNV-1a: stable across builds, unlike the standard hasher.
pub fn fnv(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// The name inside the pod: `spec.hostnameOverride`, `spec.hostname` or the pod's name, cut to 63 characters.
pub fn hostname(pod: &Pod) -> String {
    let (spec, given) = (spec(pod), |name: &Option<String>| name.clone().filter(|name| !name.is_empty()));
    let wanted =
        given(&spec.hostname_override).or_else(|| given(&spec.hostname)).unwrap_or_else(|| name(pod).to_owned());
    match wanted.len() {
        0..=63 => wanted,
        _ => wanted.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned(),
    }
}

/// `SUBDOMAIN.NAMESPACE.svc.DOMAIN`, for pods with a subdomain.
pub fn domain(pod: &Pod, cluster_domain: &str) -> Option<String> {
    let spec = spec(pod);
    if spec.hostname_override.as_deref().is_some_and(|name| !name.is_empty()) {
        return None;
    }
    let subdomain = spec.subdomain.as_deref().filter(|name| !name.is_empty())?;
    Some(format!("{subdomain}.{}.svc.{cluster_domain}", namespace(pod)))
}
