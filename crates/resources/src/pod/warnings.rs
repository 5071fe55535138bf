//! Warnings about pod specs: valid, but surely not meant.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, PodSpec, PodTemplateSpec};
use machinery::field::Path;

use crate::validate::indexed;

pub fn template(template: &PodTemplateSpec, path: &Path) -> Vec<String> {
    template.spec.as_ref().map(|spec| self::spec(spec, &path.child("spec"))).unwrap_or_default()
}

pub fn spec(spec: &PodSpec, path: &Path) -> Vec<String> {
    let mut warnings = Vec::new();
    let at = path.child("nodeSelector");
    for (label, instead) in DEPRECATED_LABELS {
        if spec.node_selector.as_ref().is_some_and(|selector| selector.contains_key(*label)) {
            warnings.push(format!("{}: deprecated since {instead}", at.key(*label)));
        }
    }
    for (at, volume) in indexed(spec.volumes.as_ref(), &path.child("volumes")) {
        if volume.git_repo.is_some() {
            warnings.push(format!("{}: deprecated in v1.11", at.child("gitRepo")));
        }
        if volume.glusterfs.is_some() {
            warnings.push(format!("{}: deprecated in v1.25, non-functional in v1.26+", at.child("glusterfs")));
        }
    }
    let lists = [("initContainers", spec.init_containers.as_ref()), ("containers", Some(&spec.containers))];
    for (key, list) in lists {
        for (at, container) in indexed(list, &path.child(key)) {
            duplicate_env(container, &at, &mut warnings);
            fractional_memory(container, &at, &mut warnings);
        }
    }
    if spec.termination_grace_period_seconds.is_some_and(|seconds| seconds < 0) {
        let at = path.child("terminationGracePeriodSeconds");
        warnings.push(format!("{at}: must be >= 0; negative values are invalid and will be treated as 1"));
    }
    warnings
}

const DEPRECATED_LABELS: &[(&str, &str)] = &[
    ("beta.kubernetes.io/arch", "v1.14; use \"kubernetes.io/arch\" instead"),
    ("beta.kubernetes.io/os", "v1.14; use \"kubernetes.io/os\" instead"),
    ("failure-domain.beta.kubernetes.io/region", "v1.17; use \"topology.kubernetes.io/region\" instead"),
    ("failure-domain.beta.kubernetes.io/zone", "v1.17; use \"topology.kubernetes.io/zone\" instead"),
    ("beta.kubernetes.io/instance-type", "v1.17; use \"node.kubernetes.io/instance-type\" instead"),
];

fn duplicate_env(container: &Container, path: &Path, warnings: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for (at, variable) in indexed(container.env.as_ref(), &path.child("env")) {
        let name = variable.name.as_str();
        if !seen.insert(name) {
            warnings
                .push(format!("{at}: hides previous definition of {name:?}, which may be dropped when using apply"));
        }
    }
}

fn fractional_memory(container: &Container, path: &Path, warnings: &mut Vec<String>) {
    let Some(resources) = &container.resources else { return };
    for (key, list) in [("limits", &resources.limits), ("requests", &resources.requests)] {
        for name in ["ephemeral-storage", "memory"] {
            let Some(value) = list.as_ref().and_then(|list| list.get(name)) else { continue };
            if crate::validate::quantity::parse(value).milli_value() % 1000 != 0 {
                let at = path.child("resources").child(key).key(name);
                warnings.push(format!("{at}: fractional byte value {:?} is invalid, must be an integer", value.0));
            }
        }
    }
}
