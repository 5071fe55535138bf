//! Environment variables and where their values come from.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, EnvVar, EnvVarSource, FileKeySelector, ObjectFieldSelector, ResourceFieldSelector,
};
use machinery::field::Path;
use machinery::names;

use super::Volumes;
use crate::pod::security;
use crate::pod::volume::VolumeKind;
use crate::validate::{Errors, indexed, text};

const FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const ONE_SOURCE: &str = "may not have more than one field specified at a time";

pub fn validate(container: &Container, volumes: &Volumes<'_>, path: &Path, errors: &mut Errors) {
    for (at, variable) in indexed(container.env.as_ref(), &path.child("env")) {
        let name = at.child("name");
        if variable.name.is_empty() {
            errors.required(&name, "");
        } else {
            errors.all_invalid(&name, &variable.name, names::is_relaxed_env_var_name(&variable.name));
        }
        if let Some(source) = &variable.value_from {
            value_from(variable, source, volumes, &at.child("valueFrom"), errors);
        }
    }
    for (at, source) in indexed(container.env_from.as_ref(), &path.child("envFrom")) {
        let prefix = text(&source.prefix);
        if !prefix.is_empty() {
            errors.all_invalid(&at.child("prefix"), prefix, names::is_relaxed_env_var_name(prefix));
        }
        let config_map = source.config_map_ref.as_ref().map(|source| ("configMapRef", &source.name));
        let secret = source.secret_ref.as_ref().map(|source| ("secretRef", &source.name));
        if config_map.is_some() && secret.is_some() {
            errors.invalid(&at, "", ONE_SOURCE);
        }
        if config_map.is_none() && secret.is_none() {
            errors.invalid(&at, "", "must specify one of: `configMapRef` or `secretRef`");
        }
        for (key, name) in config_map.into_iter().chain(secret) {
            errors.needed(&at.child(key).child("name"), name);
        }
    }
}

fn value_from(variable: &EnvVar, source: &EnvVarSource, volumes: &Volumes<'_>, path: &Path, errors: &mut Errors) {
    let mut count = 0;
    if let Some(field) = &source.field_ref {
        count += 1;
        object_field(field, FIELDS, &path.child("fieldRef"), errors);
    }
    if let Some(resource) = &source.resource_field_ref {
        count += 1;
        resource_field(resource, false, &path.child("resourceFieldRef"), errors);
    }
    let config_map = source.config_map_key_ref.as_ref().map(|key| ("configMapKeyRef", &key.name, &key.key));
    let secret = source.secret_key_ref.as_ref().map(|key| ("secretKeyRef", &key.name, &key.key));
    for (source, name, key) in config_map.into_iter().chain(secret) {
        count += 1;
        let at = path.child(source);
        errors.needed(&at.child("name"), name);
        if key.is_empty() {
            errors.required(&at.child("key"), "");
        } else {
            errors.all_invalid(&at.child("key"), key, names::is_config_map_key(key));
        }
    }
    if let Some(file) = &source.file_key_ref {
        count += 1;
        file_key(file, volumes, &path.child("fileKeyRef"), errors);
    }
    match count {
        0 => errors.invalid(
            path,
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        ),
        1 if !text(&variable.value).is_empty() => {
            errors.invalid(path, "", "may not be specified when `value` is not empty");
        }
        1 => {}
        _ => errors.invalid(path, "", ONE_SOURCE),
    }
}

/// A variable of a file that an init container leaves in an empty directory (KEP-3721).
fn file_key(file: &FileKeySelector, volumes: &Volumes<'_>, path: &Path, errors: &mut Errors) {
    let (volume, key) = (path.child("volumeName"), path.child("key"));
    for (at, value) in [(&volume, &file.volume_name), (&path.child("path"), &file.path), (&key, &file.key)] {
        errors.needed(at, value);
    }
    if !file.key.is_empty() {
        errors.all_invalid(&key, &file.key, names::is_relaxed_env_var_name(&file.key));
    }
    security::descending(&file.path, &path.child("path"), errors);
    match volumes.get(file.volume_name.as_str()) {
        _ if file.volume_name.is_empty() => {}
        Some(VolumeKind::EmptyDir) => {}
        Some(_) => errors.invalid(&volume, &file.volume_name, "referenced volume must be of type emptyDir"),
        None => errors.not_found(&volume, &file.volume_name),
    }
}

/// A path into the pod: one of `allowed`, or one label or annotation.
pub(in crate::pod) fn object_field(field: &ObjectFieldSelector, allowed: &[&str], path: &Path, errors: &mut Errors) {
    errors.needed(&path.child("apiVersion"), text(&field.api_version));
    let at = path.child("fieldPath");
    let expression = field.field_path.as_str();
    if expression.is_empty() {
        return errors.required(&at, "");
    }
    let Some((stem, subscript)) = subscript(expression) else {
        if !allowed.contains(&expression) {
            errors.not_supported(&at, expression, allowed);
        }
        return;
    };
    match stem {
        "metadata.annotations" => {
            errors.all_invalid(&at, expression, names::is_qualified_name(&subscript.to_lowercase()));
        }
        "metadata.labels" => errors.all_invalid(&at, expression, names::is_qualified_name(subscript)),
        _ => errors.invalid(&at, expression, "does not support subscript"),
    }
}

/// `metadata.labels['a']` is (`metadata.labels`, `a`).
fn subscript(expression: &str) -> Option<(&str, &str)> {
    expression.strip_suffix("']")?.split_once("['")
}

pub(in crate::pod) fn resource_field(field: &ResourceFieldSelector, in_volume: bool, path: &Path, errors: &mut Errors) {
    if in_volume {
        errors.needed(&path.child("containerName"), text(&field.container_name));
    }
    let resource = field.resource.as_str();
    let huge = resource.starts_with("limits.hugepages-") || resource.starts_with("requests.hugepages-");
    if resource.is_empty() {
        return errors.required(&path.child("resource"), "");
    }
    if !RESOURCES.contains(&resource) && !huge {
        return errors.not_supported(&path.child("resource"), resource, RESOURCES);
    }
    let divisor = field.divisor.as_ref().map_or("0", |divisor| divisor.0.as_str());
    let units: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("cpu", &["1m", "1", "0"] as &[&str]),
        ("bytes", &["0", "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"] as &[&str]),
    ]);
    let (unit, detail) = if resource.ends_with(".cpu") {
        ("cpu", "only divisor's values 1m and 1 are supported with the cpu resource")
    } else {
        (
            "bytes",
            "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the memory resource",
        )
    };
    if !units[unit].contains(&divisor) {
        errors.invalid(&path.child("divisor"), divisor, detail);
    }
}
