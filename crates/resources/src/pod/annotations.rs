//! Annotations that mean something for a pod, most of them from before there were fields.

use k8s_openapi::api::core::v1::PodSpec;
use machinery::field::Path;
use std::collections::BTreeMap;

use super::MIRROR_ANNOTATION;
use crate::validate::{Errors, text};

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

/// `path` is that of the annotations.
pub fn validate(
    annotations: Option<&BTreeMap<String, String>>,
    spec: Option<&PodSpec>,
    path: &Path,
    errors: &mut Errors,
) {
    let unbound = spec.is_none_or(|spec| text(&spec.node_name).is_empty());
    for (key, value) in annotations.into_iter().flatten() {
        match key.as_str() {
            MIRROR_ANNOTATION if unbound => {
                errors.invalid(&path.key(key), value, "must set spec.nodeName if mirror pod annotation is set");
            }
            DELETION_COST if !is_cost(value) => errors.invalid(&path.key(key), value, "must be a 32bit integer"),
            SECCOMP_POD => seccomp(value, &path.child(key.clone()), errors),
            key if key.starts_with(SECCOMP_CONTAINER) => seccomp(value, &path.child(key.to_owned()), errors),
            key => {
                if let Some(container) = key.strip_prefix(APP_ARMOR) {
                    app_armor(container, value, spec, &path.key(key), errors);
                }
            }
        }
    }
}

/// Written as a number is printed.
fn is_cost(value: &str) -> bool {
    value.parse::<i32>().is_ok() && !value.starts_with('+') && !(value.len() > 1 && value.starts_with('0'))
}

fn seccomp(profile: &str, path: &Path, errors: &mut Errors) {
    match profile {
        "runtime/default" | "docker/default" | "unconfined" => {}
        profile if profile.strip_prefix("localhost/").is_some_and(|file| !file.is_empty()) => {}
        _ => errors.invalid(path, profile, "must be a valid seccomp profile"),
    }
}

fn app_armor(container: &str, profile: &str, spec: Option<&PodSpec>, path: &Path, errors: &mut Errors) {
    let names = spec.into_iter().flat_map(|spec| {
        let ephemeral = spec.ephemeral_containers.iter().flatten().map(|container| &container.name);
        spec.init_containers.iter().flatten().chain(&spec.containers).map(|container| &container.name).chain(ephemeral)
    });
    if !names.into_iter().any(|name| name == container) {
        errors.invalid(path, container, "container not found");
    }
    if !["", "runtime/default", "unconfined"].contains(&profile) && !profile.starts_with("localhost/") {
        errors.invalid(path, profile, format!("invalid AppArmor profile name: {profile:?}"));
    }
}
