//! Containers of all three sorts: regular, init and ephemeral.
//!
//! An ephemeral container is checked as a container with less allowed, so it is first turned into
//! one; both have the same fields on the wire.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, ContainerResizePolicy, ContainerRestartRule, EphemeralContainer, PodSpec, VolumeDevice,
    VolumeMount,
};
use machinery::field::Path;
use machinery::names;
use serde::Deserialize;

use super::volume::VolumeKind;
use super::{probe, security};
use crate::validate::quantity;
use crate::validate::{Errors, indexed, text};

pub(super) mod env;

#[rustfmt::skip]
const STOP_SIGNALS: &[&str] = &[
    "SIGABRT", "SIGALRM", "SIGBUS", "SIGCHLD", "SIGCLD", "SIGCONT", "SIGFPE", "SIGHUP", "SIGILL", "SIGINT",
    "SIGIO", "SIGIOT", "SIGKILL", "SIGPIPE", "SIGPOLL", "SIGPROF", "SIGPWR", "SIGQUIT", "SIGRTMAX",
    "SIGRTMAX-1", "SIGRTMAX-10", "SIGRTMAX-11", "SIGRTMAX-12", "SIGRTMAX-13", "SIGRTMAX-14", "SIGRTMAX-2",
    "SIGRTMAX-3", "SIGRTMAX-4", "SIGRTMAX-5", "SIGRTMAX-6", "SIGRTMAX-7", "SIGRTMAX-8", "SIGRTMAX-9",
    "SIGRTMIN", "SIGRTMIN+1", "SIGRTMIN+10", "SIGRTMIN+11", "SIGRTMIN+12", "SIGRTMIN+13", "SIGRTMIN+14",
    "SIGRTMIN+15", "SIGRTMIN+2", "SIGRTMIN+3", "SIGRTMIN+4", "SIGRTMIN+5", "SIGRTMIN+6", "SIGRTMIN+7",
    "SIGRTMIN+8", "SIGRTMIN+9", "SIGSEGV", "SIGSTKFLT", "SIGSTOP", "SIGSYS", "SIGTERM", "SIGTRAP", "SIGTSTP",
    "SIGTTIN", "SIGTTOU", "SIGURG", "SIGUSR1", "SIGUSR2", "SIGVTALRM", "SIGWINCH", "SIGXCPU", "SIGXFSZ",
];
const PULL_POLICIES: &[&str] = &["Always", "IfNotPresent", "Never"];
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
const RESTART_POLICIES: &[&str] = &["Always", "Never", "OnFailure"];
/// The bound on rules and on exit codes in one.
const MAX_RULES: usize = 20;
const MAX_EXIT_CODES: usize = 255;

pub type Volumes<'a> = BTreeMap<&'a str, VolumeKind>;

/// What a container's checks need to know of its pod.
struct Pod<'a> {
    spec: &'a PodSpec,
    volumes: &'a Volumes<'a>,
    grace: i64,
}

pub fn all(spec: &PodSpec, volumes: &Volumes<'_>, path: &Path, errors: &mut Errors) {
    let pod = Pod { spec, volumes, grace: spec.termination_grace_period_seconds.unwrap_or(30) };
    let at = path.child("containers");
    if spec.containers.is_empty() {
        errors.required(&at, "");
    }
    let mut seen = BTreeSet::new();
    let mut host_ports = BTreeSet::new();
    for (at, container) in indexed(Some(&spec.containers), &at) {
        unique(&container.name, &mut seen, &at, errors);
        pod.container(container, &at, errors);
        pod.hooks(container, &at, errors);
        restart_rules(container, &at, errors);
        unique_host_ports(container, &mut host_ports, &at, errors);
    }
    for (at, container) in indexed(spec.init_containers.as_ref(), &path.child("initContainers")) {
        unique(&container.name, &mut seen, &at, errors);
        pod.container(container, &at, errors);
        pod.init(container, &at, errors);
        restart_rules(container, &at, errors);
        if is_sidecar(container) {
            unique_host_ports(container, &mut host_ports, &at, errors);
        } else {
            unique_host_ports(container, &mut BTreeSet::new(), &at, errors);
        }
    }
    let regular: BTreeSet<&str> = spec.containers.iter().map(|container| container.name.as_str()).collect();
    for (at, container) in indexed(spec.ephemeral_containers.as_ref(), &path.child("ephemeralContainers")) {
        unique(&container.name, &mut seen, &at, errors);
        pod.ephemeral(container, &regular, &at, errors);
    }
}

pub(super) fn is_sidecar(container: &Container) -> bool {
    text(&container.restart_policy) == "Always"
}

fn unique<'a>(name: &'a str, seen: &mut BTreeSet<&'a str>, path: &Path, errors: &mut Errors) {
    if !name.is_empty() && !seen.insert(name) {
        errors.duplicate(&path.child("name"), name);
    }
}

impl Pod<'_> {
    fn container(&self, container: &Container, path: &Path, errors: &mut Errors) {
        let name = path.child("name");
        if container.name.is_empty() {
            errors.required(&name, "");
        } else {
            errors.all_invalid(&name, &container.name, names::is_dns1123_label(&container.name));
        }
        let image = text(&container.image);
        errors.needed(&path.child("image"), image);
        if image != image.trim() {
            errors.invalid(&path.child("image"), image, "must not have leading or trailing whitespace");
        }
        errors.one_of(
            &path.child("terminationMessagePolicy"),
            container.termination_message_policy.as_deref(),
            &["FallbackToLogsOnError", "File"],
        );
        self.ports(container.ports.as_ref(), &path.child("ports"), errors);
        env::validate(container, self.volumes, path, errors);
        self.mounts(container, &path.child("volumeMounts"), errors);
        self.devices(container.volume_devices.as_ref(), &path.child("volumeDevices"), errors);
        if self.spec.host_users == Some(false) && container.volume_devices.as_ref().is_some_and(|all| !all.is_empty()) {
            errors.forbidden(&path.child("volumeDevices"), "when `hostUsers` is false");
        }
        errors.one_of(&path.child("imagePullPolicy"), container.image_pull_policy.as_deref(), PULL_POLICIES);
        if let Some(resources) = &container.resources {
            quantity::requirements(resources, &path.child("resources"), errors);
            self.claims(container, path, errors);
        }
        resize_policy(container.resize_policy.as_ref(), &path.child("resizePolicy"), errors);
        if let Some(context) = &container.security_context {
            let host_users = self.spec.host_users != Some(false);
            security::container(context, host_users, &path.child("securityContext"), errors);
        }
    }

    /// Which signals there are depends on the system.
    fn stop_signal(&self, signal: &str, path: &Path, errors: &mut Errors) {
        match self.spec.os.as_ref().map(|os| os.name.as_str()) {
            Some("windows") => errors.one_of(path, Some(signal), &["SIGKILL", "SIGTERM"]),
            Some("linux") => errors.one_of(path, Some(signal), STOP_SIGNALS),
            _ => errors.forbidden(path, "may not be set for containers with empty `spec.os.name`"),
        }
    }

    /// Lifecycle and probes of containers that run on.
    fn hooks(&self, container: &Container, path: &Path, errors: &mut Errors) {
        if let Some(lifecycle) = &container.lifecycle {
            let path = path.child("lifecycle");
            probe::lifecycle(lifecycle, self.grace, &path, errors);
            if let Some(signal) = &lifecycle.stop_signal {
                self.stop_signal(signal, &path.child("stopSignal"), errors);
            }
        }
        if let Some(liveness) = &container.liveness_probe {
            probe::single_success(liveness, &path.child("livenessProbe"), errors);
        }
        if let Some(readiness) = &container.readiness_probe {
            probe::readiness(readiness, &path.child("readinessProbe"), errors);
        }
        if let Some(startup) = &container.startup_probe {
            probe::single_success(startup, &path.child("startupProbe"), errors);
        }
    }

    /// Only init containers that restart (sidecars) have a life to hook into.
    fn init(&self, container: &Container, path: &Path, errors: &mut Errors) {
        if is_sidecar(container) {
            return self.hooks(container, path, errors);
        }
        let set = [
            ("lifecycle", container.lifecycle.is_some()),
            ("livenessProbe", container.liveness_probe.is_some()),
            ("readinessProbe", container.readiness_probe.is_some()),
            ("startupProbe", container.startup_probe.is_some()),
        ];
        for (key, _) in set.iter().filter(|(_, set)| *set) {
            errors.forbidden(&path.child(*key), "may not be set for init containers without restartPolicy=Always");
        }
    }

    fn ephemeral(&self, ephemeral: &EphemeralContainer, regular: &BTreeSet<&str>, path: &Path, errors: &mut Errors) {
        let as_container = serde_json::to_value(ephemeral).and_then(|value| Container::deserialize(&value));
        let Ok(container) = as_container else { return };
        self.container(&container, path, errors);
        let target = text(&ephemeral.target_container_name);
        if !target.is_empty() && !regular.contains(target) {
            errors.not_found(&path.child("targetContainerName"), target);
        }
        let resources = container.resources.as_ref();
        let forbidden = [
            ("ports", container.ports.as_ref().is_some_and(|ports| !ports.is_empty())),
            ("lifecycle", container.lifecycle.is_some()),
            ("livenessProbe", container.liveness_probe.is_some()),
            ("readinessProbe", container.readiness_probe.is_some()),
            ("startupProbe", container.startup_probe.is_some()),
            ("resources", resources.is_some_and(|resources| *resources != Default::default())),
            ("resizePolicy", container.resize_policy.is_some()),
            ("restartPolicy", container.restart_policy.is_some()),
        ];
        for (key, _) in forbidden.iter().filter(|(_, set)| *set) {
            errors.forbidden(&path.child(*key), "cannot be set for an Ephemeral Container");
        }
        for (at, mount) in indexed(container.volume_mounts.as_ref(), &path.child("volumeMounts")) {
            if !text(&mount.sub_path).is_empty() {
                errors.forbidden(&at.child("subPath"), "cannot be set for an Ephemeral Container");
            }
            if !text(&mount.sub_path_expr).is_empty() {
                errors.forbidden(&at.child("subPathExpr"), "cannot be set for an Ephemeral Container");
            }
        }
    }

    fn ports(&self, ports: Option<&Vec<ContainerPort>>, path: &Path, errors: &mut Errors) {
        let mut seen = BTreeSet::new();
        for (at, port) in indexed(ports, path) {
            let name = text(&port.name);
            if !name.is_empty() {
                let wrong = names::is_valid_port_name(name);
                if wrong.is_empty() && !seen.insert(name) {
                    errors.duplicate(&at.child("name"), name);
                }
                errors.all_invalid(&at.child("name"), name, wrong);
            }
            match port.container_port {
                0 => errors.required(&at.child("containerPort"), ""),
                number => errors.port(&at.child("containerPort"), number),
            }
            let host_port = port.host_port.unwrap_or(0);
            if host_port != 0 {
                errors.port(&at.child("hostPort"), host_port);
                if self.spec.host_network == Some(true) && host_port != port.container_port {
                    let detail = "must match `hostPort` when `hostNetwork` is true";
                    errors.invalid(&at.child("containerPort"), port.container_port, detail);
                }
            }
            if !text(&port.host_ip).is_empty() {
                errors.ip(&at.child("hostIP"), text(&port.host_ip));
            }
            errors.one_of(&at.child("protocol"), port.protocol.as_deref(), PROTOCOLS);
        }
    }

    fn mounts(&self, container: &Container, path: &Path, errors: &mut Errors) {
        let mut seen = BTreeSet::new();
        let devices: BTreeSet<&str> =
            container.volume_devices.iter().flatten().map(|device| device.device_path.as_str()).collect();
        let context = container.security_context.as_ref();
        let privileged = context.is_some_and(|context| context.privileged == Some(true));
        for (at, mount) in indexed(container.volume_mounts.as_ref(), path) {
            if mount.name.is_empty() {
                errors.required(&at.child("name"), "");
            }
            if !self.volumes.contains_key(mount.name.as_str()) {
                errors.not_found(&at.child("name"), &mount.name);
            }
            errors.needed(&at.child("mountPath"), &mount.mount_path);
            if !seen.insert(&mount.mount_path) {
                errors.invalid(&at.child("mountPath"), &mount.mount_path, "must be unique");
            }
            if devices.contains(mount.mount_path.as_str()) {
                let detail = "must not already exist as a path in volumeDevices";
                errors.invalid(&at.child("mountPath"), &mount.mount_path, detail);
            }
            self.mount_options(mount, privileged, &at, errors);
        }
    }

    fn mount_options(&self, mount: &VolumeMount, privileged: bool, path: &Path, errors: &mut Errors) {
        let (sub_path, expression) = (text(&mount.sub_path), text(&mount.sub_path_expr));
        if !sub_path.is_empty() {
            security::descending(sub_path, &path.child("subPath"), errors);
        }
        if !expression.is_empty() {
            security::descending(expression, &path.child("subPathExpr"), errors);
            if !sub_path.is_empty() {
                let detail = "subPathExpr and subPath are mutually exclusive";
                errors.invalid(&path.child("subPathExpr"), expression, detail);
            }
        }
        let propagation = mount.mount_propagation.as_deref();
        if let Some(mode) = propagation {
            let at = path.child("mountPropagation");
            errors.one_of(&at, Some(mode), &["Bidirectional", "HostToContainer", "None"]);
            if mode == "Bidirectional" && !privileged {
                let detail = "Bidirectional mount propagation is available only to privileged containers";
                errors.forbidden(&at, detail);
            }
        }
        if let Some(mode) = &mount.recursive_read_only {
            let at = path.child("recursiveReadOnly");
            errors.one_of(&at, Some(mode), &["Disabled", "Enabled", "IfPossible"]);
            if mode != "Disabled" && mount.read_only != Some(true) {
                errors.forbidden(&at, "may only be specified when readOnly is true");
            }
            if mode != "Disabled" && propagation.is_some_and(|mode| mode != "None") {
                errors.forbidden(&at, "may only be specified when mountPropagation is None or not specified");
            }
        }
    }

    fn devices(&self, devices: Option<&Vec<VolumeDevice>>, path: &Path, errors: &mut Errors) {
        let (mut seen, mut paths) = (BTreeSet::new(), BTreeSet::new());
        for (at, device) in indexed(devices, path) {
            match self.volumes.get(device.name.as_str()) {
                _ if device.name.is_empty() => errors.required(&at.child("name"), ""),
                None => errors.not_found(&at.child("name"), &device.name),
                Some(VolumeKind::Claim) => {}
                Some(VolumeKind::EmptyDir | VolumeKind::Other) => {
                    let detail = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                    errors.invalid(&at.child("name"), &device.name, detail);
                }
            }
            if !seen.insert(&device.name) {
                errors.invalid(&at.child("name"), &device.name, "must be unique");
            }
            errors.needed(&at.child("devicePath"), &device.device_path);
            if !paths.insert(&device.device_path) {
                errors.invalid(&at.child("devicePath"), &device.device_path, "must be unique");
            }
            security::no_backsteps(&device.device_path, &at.child("devicePath"), errors);
        }
    }

    /// A container's claims are among its pod's.
    fn claims(&self, container: &Container, path: &Path, errors: &mut Errors) {
        let claims = container.resources.as_ref().and_then(|resources| resources.claims.as_ref());
        for (at, claim) in indexed(claims, &path.child("resources").child("claims")) {
            let known = self.spec.resource_claims.iter().flatten().any(|known| known.name == claim.name);
            if !known && !claim.name.is_empty() {
                errors.not_found(&at.child("name"), &claim.name);
            }
        }
    }
}

fn resize_policy(policies: Option<&Vec<ContainerResizePolicy>>, path: &Path, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (at, policy) in indexed(policies, path) {
        if !seen.insert(&policy.resource_name) {
            errors.duplicate(&at, &policy.resource_name);
        }
        errors.one_of(&at.child("resourceName"), Some(&policy.resource_name), &["cpu", "memory"]);
        let policies = &["NotRequired", "RestartContainer"];
        errors.one_of(&at.child("restartPolicy"), Some(&policy.restart_policy), policies);
    }
}

fn restart_rules(container: &Container, path: &Path, errors: &mut Errors) {
    let rules = container.restart_policy_rules.as_ref();
    let Some(policy) = &container.restart_policy else {
        if rules.is_some_and(|rules| !rules.is_empty()) {
            let detail = "must specify restartPolicy when restart rules are used";
            errors.required(&path.child("restartPolicy"), detail);
        }
        return;
    };
    errors.one_of(&path.child("restartPolicy"), Some(policy), RESTART_POLICIES);
    let at = path.child("restartPolicyRules");
    if let Some(rules) = rules
        && rules.len() > MAX_RULES
    {
        errors.too_many(&at, rules.len(), MAX_RULES);
    }
    for (at, rule) in indexed(rules, &at) {
        restart_rule(rule, &at, errors);
    }
}

fn restart_rule(rule: &ContainerRestartRule, path: &Path, errors: &mut Errors) {
    errors.one_of(&path.child("action"), Some(&rule.action), &["Restart", "RestartAllContainers"]);
    let Some(codes) = &rule.exit_codes else {
        errors.required(&path.child("exitCodes"), "must be specified");
        return;
    };
    let at = path.child("exitCodes");
    errors.one_of(&at.child("operator"), Some(&codes.operator), &["In", "NotIn"]);
    let count = codes.values.as_ref().map_or(0, Vec::len);
    match count {
        0 => errors.invalid(&at.child("values"), &codes.values, "must specify at least one value"),
        count if count > MAX_EXIT_CODES => errors.too_many(&at.child("values"), count, MAX_EXIT_CODES),
        _ => {}
    }
}

/// Within a pod, two containers cannot have the same port of the host.
fn unique_host_ports(container: &Container, seen: &mut BTreeSet<String>, path: &Path, errors: &mut Errors) {
    for (at, port) in indexed(container.ports.as_ref(), &path.child("ports")) {
        let host_port = port.host_port.unwrap_or(0);
        let key = format!("{}/{}/{host_port}", text(&port.protocol), text(&port.host_ip));
        if host_port != 0 && !seen.insert(key.clone()) {
            errors.duplicate(&at.child("hostPort"), key);
        }
    }
}
