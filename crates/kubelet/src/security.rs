//! securityContext into CRI, and the checks that refuse a container.
//!
//! Pure. A container's own setting wins over its pod's.

use crate::pod;
use cri::v1::{self, NamespaceMode, security_profile::ProfileType};
use k8s_openapi::api::core::v1::{AppArmorProfile, Container, Pod, SELinuxOptions, SeccompProfile, SecurityContext};
use std::path::Path;

/// Paths hidden or read-only in /proc and /sys unless the container is privileged or unmasked.
const MASKED: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Whom the image runs as, from its configuration.
#[derive(Clone, Debug, Default)]
pub struct ImageUser {
    pub uid: Option<i64>,
    pub name: String,
}

fn own(container: &Container) -> Option<&SecurityContext> {
    container.security_context.as_ref()
}

pub fn privileged(container: &Container) -> bool {
    own(container).and_then(|context| context.privileged) == Some(true)
}

pub fn run_as_user(pod: &Pod, container: &Container) -> Option<i64> {
    let pod_level = || pod::spec(pod).security_context.as_ref()?.run_as_user;
    own(container).and_then(|context| context.run_as_user).or_else(pod_level)
}

fn run_as_group(pod: &Pod, container: &Container) -> Option<i64> {
    let pod_level = || pod::spec(pod).security_context.as_ref()?.run_as_group;
    own(container).and_then(|context| context.run_as_group).or_else(pod_level)
}

/// Refuses to run as root what said it must not.
pub fn check_non_root(pod: &Pod, container: &Container, image: &ImageUser) -> Result<(), String> {
    let pod_level = || pod::spec(pod).security_context.as_ref()?.run_as_non_root;
    let required = own(container).and_then(|context| context.run_as_non_root).or_else(pod_level);
    if required != Some(true) {
        return Ok(());
    }
    let place = format!("(pod: \"{}\", container: {})", pod::full_name(pod), container.name);
    match (run_as_user(pod, container), image.uid) {
        (Some(0), _) => Err(format!("container's runAsUser breaks non-root policy {place}")),
        (Some(_), _) => Ok(()),
        (None, Some(0)) => Err(format!("container has runAsNonRoot and image will run as root {place}")),
        (None, Some(_)) => Ok(()),
        (None, None) if !image.name.is_empty() => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({}), cannot verify user is non-root {place}",
            image.name
        )),
        (None, None) => Err(format!("container has runAsNonRoot and image will run as root {place}")),
    }
}

pub fn namespaces(pod: &Pod, users: Option<&v1::UserNamespace>) -> v1::NamespaceOption {
    let spec = pod::spec(pod);
    let node = |host: Option<bool>, otherwise| if host == Some(true) { NamespaceMode::Node } else { otherwise };
    let shared = spec.share_process_namespace == Some(true);
    let pid = if shared { NamespaceMode::Pod } else { NamespaceMode::Container };
    v1::NamespaceOption {
        network: node(spec.host_network, NamespaceMode::Pod).into(),
        pid: node(spec.host_pid, pid).into(),
        ipc: node(spec.host_ipc, NamespaceMode::Pod).into(),
        userns_options: users.cloned(),
        ..Default::default()
    }
}

fn supplemental_groups(pod: &Pod) -> Vec<i64> {
    let context = pod::spec(pod).security_context.as_ref();
    let groups = context.and_then(|context| context.supplemental_groups.clone()).unwrap_or_default();
    context.and_then(|context| context.fs_group).into_iter().chain(groups).collect()
}

fn groups_policy(pod: &Pod) -> v1::SupplementalGroupsPolicy {
    let context = pod::spec(pod).security_context.as_ref();
    match context.and_then(|context| context.supplemental_groups_policy.as_deref()) {
        Some("Strict") => v1::SupplementalGroupsPolicy::Strict,
        _ => v1::SupplementalGroupsPolicy::Merge,
    }
}

fn seccomp(pod: &Pod, container: Option<&Container>, root: &Path) -> v1::SecurityProfile {
    let pod_level = pod::spec(pod).security_context.as_ref().and_then(|context| context.seccomp_profile.as_ref());
    let profile = container.and_then(own).and_then(|context| context.seccomp_profile.as_ref()).or(pod_level);
    let unconfined = SeccompProfile { type_: "Unconfined".to_owned(), ..Default::default() };
    let profile = profile.unwrap_or(&unconfined);
    let reference = profile.localhost_profile.as_ref().map(|name| root.join(name).display().to_string());
    security_profile(&profile.type_, reference)
}

fn apparmor(pod: &Pod, container: Option<&Container>) -> Option<v1::SecurityProfile> {
    let pod_level = pod::spec(pod).security_context.as_ref().and_then(|context| context.app_armor_profile.as_ref());
    let profile: &AppArmorProfile =
        container.and_then(own).and_then(|context| context.app_armor_profile.as_ref()).or(pod_level)?;
    Some(security_profile(&profile.type_, profile.localhost_profile.clone()))
}

fn security_profile(kind: &str, reference: Option<String>) -> v1::SecurityProfile {
    let profile_type = match kind {
        "RuntimeDefault" => ProfileType::RuntimeDefault,
        "Localhost" => ProfileType::Localhost,
        _ => ProfileType::Unconfined,
    };
    let localhost_ref = reference.filter(|_| profile_type == ProfileType::Localhost).unwrap_or_default();
    v1::SecurityProfile { profile_type: profile_type.into(), localhost_ref }
}

fn selinux(options: Option<&SELinuxOptions>) -> Option<v1::SeLinuxOption> {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    options.map(|options| v1::SeLinuxOption {
        user: text(&options.user),
        role: text(&options.role),
        r#type: text(&options.type_),
        level: text(&options.level),
    })
}

fn int64(value: Option<i64>) -> Option<v1::Int64Value> {
    value.map(|value| v1::Int64Value { value })
}

pub fn sandbox(pod: &Pod, seccomp_root: &Path, users: Option<&v1::UserNamespace>) -> v1::LinuxSandboxSecurityContext {
    let context = pod::spec(pod).security_context.as_ref();
    v1::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod, users)),
        selinux_options: selinux(context.and_then(|context| context.se_linux_options.as_ref())),
        run_as_user: int64(context.and_then(|context| context.run_as_user)),
        run_as_group: int64(context.filter(|c| c.run_as_user.is_some()).and_then(|context| context.run_as_group)),
        supplemental_groups: supplemental_groups(pod),
        supplemental_groups_policy: groups_policy(pod).into(),
        privileged: pod::members(pod).iter().any(|member| privileged(&member.container)),
        // The infra process runs no user code: the default profile is always right for it.
        seccomp: Some(match seccomp(pod, None, seccomp_root) {
            profile if profile.profile_type() == ProfileType::Unconfined => security_profile("RuntimeDefault", None),
            profile => profile,
        }),
        apparmor: apparmor(pod, None),
        ..Default::default()
    }
}

/// The security context of a container; `target` is the instance whose processes it shall see.
pub fn container(
    pod: &Pod,
    container: &Container,
    image: &ImageUser,
    target: Option<&str>,
    seccomp_root: &Path,
    users: Option<&v1::UserNamespace>,
) -> v1::LinuxContainerSecurityContext {
    let context = own(container).cloned().unwrap_or_default();
    let privileged = privileged(container);
    let unmasked = privileged || context.proc_mount.as_deref() == Some("Unmasked");
    let paths = |paths: &[&str]| match unmasked {
        true => vec![],
        false => paths.iter().map(|&path| path.to_owned()).collect(),
    };
    let mut namespace_options = namespaces(pod, users);
    if let Some(target) = target {
        namespace_options.set_pid(NamespaceMode::Target);
        namespace_options.target_id = target.to_owned();
    }
    let user = run_as_user(pod, container);
    let username = if user.is_none() && image.uid.is_none() { image.name.clone() } else { String::new() };
    let pod_context = pod::spec(pod).security_context.as_ref();
    let selinux_options = context.se_linux_options.as_ref();
    let capabilities = context.capabilities.unwrap_or_default();
    v1::LinuxContainerSecurityContext {
        capabilities: Some(v1::Capability {
            add_capabilities: capabilities.add.unwrap_or_default(),
            drop_capabilities: capabilities.drop.unwrap_or_default(),
            ..Default::default()
        }),
        privileged,
        namespace_options: Some(namespace_options),
        selinux_options: selinux(selinux_options.or(pod_context.and_then(|c| c.se_linux_options.as_ref()))),
        run_as_user: int64(user.or(image.uid)),
        run_as_group: int64(run_as_group(pod, container)),
        run_as_username: username,
        readonly_rootfs: context.read_only_root_filesystem == Some(true),
        supplemental_groups: supplemental_groups(pod),
        supplemental_groups_policy: groups_policy(pod).into(),
        no_new_privs: context.allow_privilege_escalation == Some(false),
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READ_ONLY),
        seccomp: Some(if privileged {
            security_profile("Unconfined", None)
        } else {
            seccomp(pod, Some(container), seccomp_root)
        }),
        apparmor: apparmor(pod, Some(container)),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(pod_level: Value, own: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"securityContext": pod_level, "containers": [{"name": "c", "securityContext": own}]}}))
        .unwrap()
    }

    #[test]
    fn non_root() {
        let image = |uid, name: &str| ImageUser { uid, name: name.to_owned() };
        let cases = [
            (json!({}), json!({}), image(Some(0), ""), None),
            (json!({"runAsNonRoot": true}), json!({}), image(Some(0), ""), Some("image will run as root")),
            (json!({"runAsNonRoot": true}), json!({}), image(None, "www"), Some("non-numeric user (www)")),
            (
                json!({"runAsNonRoot": true}),
                json!({"runAsUser": 0}),
                image(Some(5), ""),
                Some("breaks non-root policy"),
            ),
            (json!({"runAsNonRoot": true}), json!({"runAsUser": 7}), image(Some(0), ""), None),
            (json!({"runAsNonRoot": true}), json!({"runAsNonRoot": false}), image(Some(0), ""), None),
        ];
        for (pod_level, own, image, expected) in cases {
            let pod = pod(pod_level.clone(), own.clone());
            let result = check_non_root(&pod, &pod::spec(&pod).containers[0], &image);
            match expected {
                None => assert_eq!(result, Ok(()), "{pod_level} {own}"),
                Some(text) => assert!(result.unwrap_err().contains(text), "{pod_level} {own}"),
            }
        }
    }

    #[test]
    fn container_overrides_pod() {
        let pod = pod(
            json!({"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3, "supplementalGroups": [4],
                "seccompProfile": {"type": "RuntimeDefault"}}),
            json!({"runAsUser": 9, "seccompProfile": {"type": "Localhost", "localhostProfile": "a.json"},
                "allowPrivilegeEscalation": false, "procMount": "Unmasked"}),
        );
        let root = Path::new("/seccomp");
        let context = container(&pod, &pod::spec(&pod).containers[0], &ImageUser::default(), None, root, None);
        assert_eq!(context.run_as_user.map(|v| v.value), Some(9));
        assert_eq!(context.run_as_group.map(|v| v.value), Some(2));
        assert_eq!(context.supplemental_groups, [3, 4]);
        assert_eq!(context.seccomp.unwrap().localhost_ref, "/seccomp/a.json");
        assert!(context.no_new_privs && context.masked_paths.is_empty());
        let options = container(&pod, &pod::spec(&pod).containers[0], &ImageUser::default(), Some("t"), root, None)
            .namespace_options
            .unwrap();
        assert_eq!((options.pid(), options.target_id.as_str()), (NamespaceMode::Target, "t"));
    }
}
