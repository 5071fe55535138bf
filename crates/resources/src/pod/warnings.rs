//! Warnings about pods and pod templates: valid, but surely not meant.
//!
//! Paths start at the template, or at nothing for a pod.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, NodeSelectorTerm, PodAffinityTerm, PodSpec, PodTemplateSpec, ProjectedVolumeSource,
    ResourceRequirements, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use machinery::field::Path;
use serde::Deserialize;

use crate::validate::{indexed, quantity, text};

pub fn template(template: &PodTemplateSpec, path: &Path) -> Vec<String> {
    let metadata = template.metadata.clone().unwrap_or_default();
    template.spec.as_ref().map(|spec| all(spec, &metadata, Some(path))).unwrap_or_default()
}

pub fn pod(spec: &PodSpec, metadata: &ObjectMeta) -> Vec<String> {
    all(spec, metadata, None)
}

fn all(spec: &PodSpec, metadata: &ObjectMeta, base: Option<&Path>) -> Vec<String> {
    let at = |key: &'static str| base.map_or_else(|| Path::new(key), |base| base.child(key));
    let (path, annotations) = (at("spec"), at("metadata").child("annotations"));
    let containers = containers(spec, &path);
    let mut warnings = Vec::new();
    placement(spec, &path, &mut warnings);
    for (key, instead) in DEPRECATED_ANNOTATIONS {
        if metadata.annotations.as_ref().is_some_and(|map| map.contains_key(*key)) {
            warnings.push(format!("{}: {instead}", annotations.key(*key)));
        }
    }
    for (at, volume) in indexed(spec.volumes.as_ref(), &path.child("volumes")) {
        self::volume(volume, &at, &mut warnings);
    }
    token_paths(spec, &path.child("volumes"), &mut warnings);
    repeated(spec, &path, &mut warnings);
    let overhead = ResourceRequirements { limits: spec.overhead.clone(), ..ResourceRequirements::default() };
    fractions(&overhead, |_| path.child("overhead"), &mut warnings);
    profiles(spec, metadata, &containers, &annotations, base.is_some(), &mut warnings);
    for (at, container) in &containers {
        let resources = container.resources.clone().unwrap_or_default();
        fractions(&resources, |key| at.child("resources").child(key), &mut warnings);
        hidden_variables(container, at, &mut warnings);
    }
    ports(&containers, &mut warnings);
    if spec.termination_grace_period_seconds.is_some_and(|seconds| seconds < 0) {
        let at = path.child("terminationGracePeriodSeconds");
        warnings.push(format!("{at}: must be >= 0; negative values are invalid and will be treated as 1"));
    }
    affinity(spec, &path.child("affinity"), &mut warnings);
    warnings
}

const DEPRECATED_LABELS: &[(&str, &str)] = &[
    ("beta.kubernetes.io/arch", "deprecated since v1.14; use \"kubernetes.io/arch\" instead"),
    ("beta.kubernetes.io/os", "deprecated since v1.14; use \"kubernetes.io/os\" instead"),
    (
        "failure-domain.beta.kubernetes.io/region",
        "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
    ),
    ("failure-domain.beta.kubernetes.io/zone", "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead"),
    ("beta.kubernetes.io/instance-type", "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead"),
    ("app.kubernetes.io/created-by", "deprecated since v1.9"),
    ("scheduler.alpha.kubernetes.io/preferAvoidPods", "deprecated since v1.22; use Taints and Tolerations instead"),
    ("node-role.kubernetes.io/master", "use \"node-role.kubernetes.io/control-plane\" instead"),
];

/// What to use instead of a node's label.
pub fn deprecated_label(label: &str) -> Option<&'static str> {
    DEPRECATED_LABELS.iter().find(|(deprecated, _)| *deprecated == label).map(|(_, instead)| *instead)
}

const DEPRECATED_ANNOTATIONS: &[(&str, &str)] = &[
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "non-functional in v1.16+; use the \"priorityClassName\" field instead",
    ),
    ("security.alpha.kubernetes.io/sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
    ("security.alpha.kubernetes.io/unsafe-sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
];

const NO_SELECTOR: &str = "a null labelSelector results in matching no pod";

fn placement(spec: &PodSpec, path: &Path, warnings: &mut Vec<String>) {
    for label in spec.node_selector.iter().flat_map(BTreeMap::keys) {
        if let Some(instead) = deprecated_label(label) {
            warnings.push(format!("{}: {instead}", path.child("nodeSelector").key(label)));
        }
    }
    if let Some(node) = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref()) {
        let path = path.child("affinity").child("nodeAffinity");
        let required = node.required_during_scheduling_ignored_during_execution.as_ref();
        let at = path.child("requiredDuringSchedulingIgnoredDuringExecution").child("nodeSelectorTerms");
        for (at, term) in indexed(required.map(|required| &required.node_selector_terms), &at) {
            self::term(term, &at, warnings);
        }
        let preferred = node.preferred_during_scheduling_ignored_during_execution.as_ref();
        for (at, term) in indexed(preferred, &path.child("preferredDuringSchedulingIgnoredDuringExecution")) {
            self::term(&term.preference, &at.child("preference"), warnings);
        }
    }
    let spread = spec.topology_spread_constraints.as_ref();
    for (at, constraint) in indexed(spread, &path.child("topologySpreadConstraints")) {
        let key = &constraint.topology_key;
        if let Some(instead) = deprecated_label(key) {
            warnings.push(format!("{}: {key} is {instead}", at.child("topologyKey")));
        }
        if constraint.label_selector.is_none() {
            warnings.push(format!("{}: {NO_SELECTOR}", at.child("labelSelector")));
        }
    }
}

fn term(term: &NodeSelectorTerm, path: &Path, warnings: &mut Vec<String>) {
    for (at, expression) in indexed(term.match_expressions.as_ref(), &path.child("matchExpressions")) {
        if let Some(instead) = deprecated_label(&expression.key) {
            warnings.push(format!("{}: {} is {instead}", at.child("key"), expression.key));
        }
    }
}

fn volume(volume: &Volume, path: &Path, warnings: &mut Vec<String>) {
    let since = |version: &str, gone: &str| format!("deprecated in {version}, non-functional in {gone}+");
    let deprecated = [
        ("photonPersistentDisk", volume.photon_persistent_disk.is_some(), since("v1.11", "v1.16")),
        ("gitRepo", volume.git_repo.is_some(), "deprecated in v1.11".into()),
        ("scaleIO", volume.scale_io.is_some(), since("v1.16", "v1.22")),
        ("flocker", volume.flocker.is_some(), since("v1.22", "v1.25")),
        ("storageOS", volume.storageos.is_some(), since("v1.22", "v1.25")),
        ("quobyte", volume.quobyte.is_some(), since("v1.22", "v1.25")),
        ("glusterfs", volume.glusterfs.is_some(), since("v1.25", "v1.26")),
        ("cephfs", volume.cephfs.is_some(), since("v1.28", "v1.31")),
        ("rbd", volume.rbd.is_some(), since("v1.28", "v1.31")),
    ];
    for (key, _, why) in deprecated.iter().filter(|(_, used, _)| *used) {
        warnings.push(format!("{}: {why}", path.child(*key)));
    }
}

/// Files that a token of the service account will hide.
fn token_paths(spec: &PodSpec, path: &Path, warnings: &mut Vec<String>) {
    let projected = || {
        let volumes = indexed(spec.volumes.as_ref(), path);
        volumes.filter_map(|(at, volume)| Some((at.child("projected").child("sources"), volume.projected.as_ref()?)))
    };
    let sources = |projected: &ProjectedVolumeSource| projected.sources.clone().unwrap_or_default();
    let all = projected().flat_map(|(_, projected)| sources(projected));
    let tokens: BTreeSet<String> =
        all.filter_map(|source| source.service_account_token.map(|token| token.path)).collect();
    for (at, source) in projected().flat_map(|(at, p)| sources(p).into_iter().map(move |source| (at.clone(), source))) {
        let keys = |items: Option<Vec<k8s_openapi::api::core::v1::KeyToPath>>| {
            items.into_iter().flatten().map(|item| item.path).collect::<Vec<_>>()
        };
        let files = [
            ("configMap", keys(source.config_map.and_then(|map| map.items))),
            ("secrets", keys(source.secret.and_then(|secret| secret.items))),
            (
                "downwardAPI",
                source.downward_api.into_iter().flat_map(|api| api.items).flatten().map(|item| item.path).collect(),
            ),
        ];
        let items = files.into_iter().flat_map(|(key, files)| {
            let at = at.child(key);
            files.into_iter().enumerate().map(move |(index, file)| (at.index(index), file))
        });
        let bundle = source.cluster_trust_bundle.map(|bundle| (at.child("ClusterTrustBundle"), bundle.path));
        for (at, file) in items.chain(bundle).filter(|(_, file)| tokens.contains(file)) {
            warnings.push(format!("{at}: has duplicated path with ServiceAccountToken {file:?}"));
        }
    }
}

fn repeated(spec: &PodSpec, path: &Path, warnings: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for (at, alias) in indexed(spec.host_aliases.as_ref(), &path.child("hostAliases")) {
        if !seen.insert(&alias.ip) {
            warnings.push(format!("{}: duplicate ip {:?}", at.child("ip"), alias.ip));
        }
    }
    let (mut seen, mut nameless) = (BTreeSet::new(), Vec::new());
    for (at, secret) in indexed(spec.image_pull_secrets.as_ref(), &path.child("imagePullSecrets")) {
        if !seen.insert(&secret.name) {
            warnings.push(format!("{}: duplicate name {:?}", at.child("name"), secret.name));
        }
        if secret.name.is_empty() {
            nameless.push(format!("{}: invalid empty name \"\"", at.child("name")));
        }
    }
    warnings.append(&mut nameless);
}

/// Seccomp and AppArmor by annotation, without the field that replaced it.
fn profiles(
    spec: &PodSpec,
    metadata: &ObjectMeta,
    containers: &[(Path, Container)],
    annotations: &Path,
    of_template: bool,
    warnings: &mut Vec<String>,
) {
    let annotated = |key: &str| metadata.annotations.as_ref().is_some_and(|map| map.contains_key(key));
    let of_pod = spec.security_context.as_ref();
    // The backslashes are upstream's.
    let seccomp = |key: &str| {
        format!(r#"{}: non-functional in v1.27+; use the \"seccompProfile\" field instead"#, annotations.key(key))
    };
    const POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
    if of_pod.is_none_or(|context| context.seccomp_profile.is_none()) && annotated(POD) {
        warnings.push(seccomp(POD));
    }
    for (_, container) in containers {
        let context = container.security_context.as_ref();
        let key = format!("container.seccomp.security.alpha.kubernetes.io/{}", container.name);
        if context.is_none_or(|context| context.seccomp_profile.is_none()) && annotated(&key) {
            warnings.push(seccomp(&key));
        }
        let key = format!("container.apparmor.security.beta.kubernetes.io/{}", container.name);
        let confined = of_pod.is_some_and(|context| context.app_armor_profile.is_some())
            || context.is_some_and(|context| context.app_armor_profile.is_some());
        if of_template && !confined && annotated(&key) {
            warnings.push(format!(
                r#"{}: deprecated since v1.30; use the \"appArmorProfile\" field instead"#,
                annotations.key(&key)
            ));
        }
    }
}

/// All containers with their paths; an ephemeral one is a container with more.
fn containers(spec: &PodSpec, path: &Path) -> Vec<(Path, Container)> {
    let plain = [("initContainers", spec.init_containers.as_ref()), ("containers", Some(&spec.containers))];
    let mut all = Vec::new();
    for (key, list) in plain {
        all.extend(indexed(list, &path.child(key)).map(|(at, container)| (at, container.clone())));
    }
    for (at, ephemeral) in indexed(spec.ephemeral_containers.as_ref(), &path.child("ephemeralContainers")) {
        let container = serde_json::to_value(ephemeral).and_then(|value| Container::deserialize(&value));
        all.extend(container.ok().map(|container| (at, container)));
    }
    all
}

fn hidden_variables(container: &Container, path: &Path, warnings: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for (at, variable) in indexed(container.env.as_ref(), &path.child("env")) {
        let (name, value) = (variable.name.as_str(), text(&variable.value));
        let reference = format!("$({name})");
        // A variable may build on what it replaces.
        let builds = variable.value_from.is_none() && value != reference && value.contains(&reference);
        if !seen.insert(name) && !builds {
            warnings
                .push(format!("{at}: hides previous definition of {name:?}, which may be dropped when using apply"));
        }
    }
}

fn fractions(resources: &ResourceRequirements, at: impl Fn(&'static str) -> Path, warnings: &mut Vec<String>) {
    for name in ["memory", "ephemeral-storage"] {
        for (key, list) in [("limits", &resources.limits), ("requests", &resources.requests)] {
            let Some(value) = list.as_ref().and_then(|list| list.get(name)) else { continue };
            if quantity::parse(value).milli_value() % 1000 != 0 {
                let at = at(key).key(name);
                warnings.push(format!("{at}: fractional byte value {:?} is invalid, must be an integer", value.0));
            }
        }
    }
}

fn ports(containers: &[(Path, Container)], warnings: &mut Vec<String>) {
    let all = containers.iter().flat_map(|(at, container)| indexed(container.ports.as_ref(), &at.child("ports")));
    let mut seen: Vec<(Path, &ContainerPort)> = Vec::new();
    for (at, port) in all {
        let (ip, number) = (text(&port.host_ip), port.host_port.unwrap_or(0));
        if !ip.is_empty() && number == 0 {
            let (name, protocol) = (text(&port.name), text(&port.protocol));
            warnings.push(format!(
                "{at}: hostIP set without hostPort: {{Name:{name} HostPort:0 ContainerPort:{} Protocol:{protocol} HostIP:{ip}}}",
                port.container_port
            ));
        }
        let same = |other: &&ContainerPort| {
            other.container_port == port.container_port && text(&other.protocol) == text(&port.protocol)
        };
        for (other_at, other) in seen.iter().filter(|(_, other)| same(other)) {
            let (other_ip, other_number) = (text(&other.host_ip), other.host_port.unwrap_or(0));
            let what = if ip == other_ip && number == other_number {
                "duplicate"
            } else if number == 0 || other_number == 0 {
                "overlapping"
            } else if number == other_number && ip.is_empty() != other_ip.is_empty() {
                "dangerously ambiguous"
            } else {
                continue;
            };
            warnings.push(format!("{at}: {what} port definition with {other_at}"));
        }
        let name = text(&port.name);
        if let Some((other, _)) = seen.iter().find(|(_, other)| !name.is_empty() && text(&other.name) == name) {
            warnings.push(format!(
                "{at}: duplicate port name {name:?} with {other}, services and probes that select ports by name will use {other}"
            ));
        }
        seen.push((at, port));
    }
}

fn affinity(spec: &PodSpec, path: &Path, warnings: &mut Vec<String>) {
    let Some(affinity) = &spec.affinity else { return };
    let terms = |pods: Option<&k8s_openapi::api::core::v1::PodAffinity>| {
        let required = pods.and_then(|pods| pods.required_during_scheduling_ignored_during_execution.clone());
        let preferred = pods.and_then(|pods| pods.preferred_during_scheduling_ignored_during_execution.clone());
        (required, preferred)
    };
    let anti = affinity.pod_anti_affinity.clone().map(|anti| k8s_openapi::api::core::v1::PodAffinity {
        required_during_scheduling_ignored_during_execution: anti.required_during_scheduling_ignored_during_execution,
        preferred_during_scheduling_ignored_during_execution: anti.preferred_during_scheduling_ignored_during_execution,
    });
    for (key, pods) in [("podAffinity", affinity.pod_affinity.as_ref()), ("podAntiAffinity", anti.as_ref())] {
        let (path, (required, preferred)) = (path.child(key), terms(pods));
        let unset = |term: &PodAffinityTerm| term.label_selector.is_none();
        let at = path.child("requiredDuringSchedulingIgnoredDuringExecution");
        for (at, _) in indexed(required.as_ref(), &at).filter(|(_, term)| unset(term)) {
            warnings.push(format!("{}: {NO_SELECTOR}", at.child("labelSelector")));
        }
        let at = path.child("preferredDuringSchedulingIgnoredDuringExecution");
        for (at, _) in indexed(preferred.as_ref(), &at).filter(|(_, term)| unset(&term.pod_affinity_term)) {
            warnings.push(format!("{}: {NO_SELECTOR}", at.child("podAffinityTerm").child("labelSelector")));
        }
    }
}
