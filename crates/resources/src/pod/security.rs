//! Security contexts of pods and containers, sysctls, and what sharing the host's namespaces implies.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use k8s_openapi::api::core::v1::{AppArmorProfile, PodSecurityContext, PodSpec, SeccompProfile, SecurityContext};
use machinery::field::Path;
use regex::Regex;

use crate::validate::{Errors, indexed, text};

const ID_RANGE: &str = "must be between 0 and 2147483647, inclusive";
const PROFILES: &[&str] = &["Localhost", "RuntimeDefault", "Unconfined"];
const SYSCTL_LENGTH: usize = 253;
const SYSCTL_PATTERN: &str = "^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";

pub fn pod(spec: &PodSpec, path: &Path, errors: &mut Errors) {
    let at = path.child("securityContext");
    if spec.share_process_namespace == Some(true) && spec.host_pid == Some(true) {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.invalid(&path.child("shareProcessNamespace"), true, detail);
    }
    if spec.host_users == Some(false) {
        host_namespaces(spec, path, errors);
    }
    let Some(context) = &spec.security_context else { return };
    let ids = [("fsGroup", context.fs_group), ("runAsUser", context.run_as_user), ("runAsGroup", context.run_as_group)];
    for (key, value) in ids {
        id(value, &at.child(key), errors);
    }
    for (at, group) in indexed(context.supplemental_groups.as_ref(), &at.child("supplementalGroups")) {
        id(Some(*group), &at, errors);
    }
    sysctls(context, spec, &at.child("sysctls"), errors);
    let choices: [(&'static str, &Option<String>, &[&str]); 3] = [
        ("fsGroupChangePolicy", &context.fs_group_change_policy, &["Always", "OnRootMismatch"]),
        ("supplementalGroupsPolicy", &context.supplemental_groups_policy, &["Merge", "Strict"]),
        ("seLinuxChangePolicy", &context.se_linux_change_policy, &["MountOption", "Recursive"]),
    ];
    for (key, value, valid) in choices {
        errors.optional_one_of(&at.child(key), value.as_deref(), valid);
    }
    profiles(context.seccomp_profile.as_ref(), context.app_armor_profile.as_ref(), &at, errors);
}

/// A pod with its own user namespace cannot share the host's other namespaces.
fn host_namespaces(spec: &PodSpec, path: &Path, errors: &mut Errors) {
    let shared = [("hostNetwork", spec.host_network), ("hostPID", spec.host_pid), ("hostIPC", spec.host_ipc)];
    for (key, shared) in shared {
        if shared == Some(true) {
            errors.forbidden(&path.child(key), "when `hostUsers` is false");
        }
    }
}

fn id(value: Option<i64>, path: &Path, errors: &mut Errors) {
    if value.is_some_and(|value| !(0..=i64::from(i32::MAX)).contains(&value)) {
        errors.invalid(path, value, ID_RANGE);
    }
}

fn sysctls(context: &PodSecurityContext, spec: &PodSpec, path: &Path, errors: &mut Errors) {
    static NAME: LazyLock<Regex> = LazyLock::new(|| Regex::new(SYSCTL_PATTERN).expect("a valid pattern"));
    let mut seen = BTreeSet::new();
    for (at, sysctl) in indexed(context.sysctls.as_ref(), path) {
        let name = sysctl.name.replace('/', ".");
        if name.is_empty() {
            errors.required(&at.child("name"), "");
        } else if name.len() > SYSCTL_LENGTH || !NAME.is_match(&name) {
            let detail = format!("must have at most {SYSCTL_LENGTH} characters and match regex {SYSCTL_PATTERN}");
            errors.invalid(&at.child("name"), &sysctl.name, detail);
        } else if !seen.insert(name.clone()) {
            errors.duplicate(&at.child("name"), &sysctl.name);
        }
        let shared_ipc = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."];
        if spec.host_network == Some(true) && name.starts_with("net.") {
            errors.invalid(&at.child("name"), &sysctl.name, "may not be specified when 'hostNetwork' is true");
        }
        if spec.host_ipc == Some(true) && shared_ipc.iter().any(|prefix| name.starts_with(prefix)) {
            errors.invalid(&at.child("name"), &sysctl.name, "may not be specified when 'hostIPC' is true");
        }
    }
}

fn profiles(seccomp: Option<&SeccompProfile>, app_armor: Option<&AppArmorProfile>, path: &Path, errors: &mut Errors) {
    let given = seccomp
        .map(|profile| ("seccompProfile", "seccomp", &profile.type_, &profile.localhost_profile))
        .into_iter()
        .chain(app_armor.map(|p| ("appArmorProfile", "AppArmor", &p.type_, &p.localhost_profile)));
    for (key, what, type_, localhost) in given {
        let at = path.child(key);
        errors.one_of(&at.child("type"), Some(type_), PROFILES);
        let at = at.child("localhostProfile");
        match (type_.as_str(), localhost) {
            ("Localhost", None) => {
                errors.required(&at, format!("must be set when {what} type is Localhost"));
            }
            ("Localhost", Some(profile)) => descending(profile, &at, errors),
            (_, Some(profile)) => {
                errors.invalid(&at, profile, format!("can only be set when {what} type is Localhost"));
            }
            (_, None) => {}
        }
    }
}

/// A relative path that does not climb.
pub(super) fn descending(value: &str, path: &Path, errors: &mut Errors) {
    if value.starts_with('/') {
        errors.invalid(path, value, "must be a relative path");
    }
    no_backsteps(value, path, errors);
}

pub(super) fn no_backsteps(value: &str, path: &Path, errors: &mut Errors) {
    if value.split('/').any(|step| step == "..") {
        errors.invalid(path, value, "must not contain '..'");
    }
}

pub fn container(context: &SecurityContext, host_users: bool, path: &Path, errors: &mut Errors) {
    id(context.run_as_user, &path.child("runAsUser"), errors);
    id(context.run_as_group, &path.child("runAsGroup"), errors);
    if let Some(mount) = &context.proc_mount {
        errors.one_of(&path.child("procMount"), Some(mount), &["Default", "Unmasked"]);
        if host_users && mount == "Unmasked" {
            let detail = "`hostUsers` must be false to use `Unmasked`";
            errors.invalid(&path.child("procMount"), mount, detail);
        }
    }
    profiles(context.seccomp_profile.as_ref(), context.app_armor_profile.as_ref(), path, errors);
    if context.allow_privilege_escalation == Some(false) {
        if context.privileged == Some(true) {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.invalid(path, context, detail);
        }
        let added = context.capabilities.as_ref().and_then(|capabilities| capabilities.add.as_ref());
        if added.is_some_and(|added| added.iter().any(|capability| capability == "CAP_SYS_ADMIN")) {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.invalid(path, context, detail);
        }
    }
    if let Some(windows) = &context.windows_options
        && text(&windows.run_as_user_name).contains(['\0', '\n', '\r'])
    {
        let detail = "runAsUserName cannot contain control characters";
        errors.invalid(&path.child("windowsOptions").child("runAsUserName"), &windows.run_as_user_name, detail);
    }
}
