//! Object metadata: names, labels, annotations, owners and finalizers, alike for every kind.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use machinery::field::Path;
use machinery::names;
use serde::Deserialize;
use serde_json::Value;

use super::{Errors, IMMUTABLE, indexed, text};

/// Checks a name; `prefix` when it is a generateName. Returns what is wrong.
pub type NameRule = fn(name: &str, prefix: bool) -> Vec<String>;

/// Sum of annotation keys and values, in bytes.
const ANNOTATION_LIMIT: usize = 256 * 1024;

pub fn subdomain(name: &str, prefix: bool) -> Vec<String> {
    names::is_dns1123_subdomain(&masked(name, prefix))
}

pub fn label(name: &str, prefix: bool) -> Vec<String> {
    names::is_dns1123_label(&masked(name, prefix))
}

pub fn dns1035(name: &str, prefix: bool) -> Vec<String> {
    names::is_dns1035_label(&masked(name, prefix))
}

/// RBAC objects may be named by anything that fits into one URL path segment.
pub fn path_segment(name: &str, prefix: bool) -> Vec<String> {
    names::is_valid_path_segment(&masked(name, prefix))
}

/// A generated suffix will follow a trailing dash.
fn masked(name: &str, prefix: bool) -> String {
    match name.strip_suffix('-') {
        Some(stem) if prefix && !stem.is_empty() => format!("{stem}a"),
        _ => name.to_owned(),
    }
}

pub fn validate(object: &Value, namespaced: bool, rule: NameRule, errors: &mut Errors) {
    let path = Path::new("metadata");
    let Some(meta) = decode(object, &path, errors) else { return };
    let generate = text(&meta.generate_name);
    if !generate.is_empty() {
        errors.all_invalid(&path.child("generateName"), generate, rule(generate, true));
    }
    match text(&meta.name) {
        "" => errors.required(&path.child("name"), "name or generateName is required"),
        name => errors.all_invalid(&path.child("name"), name, rule(name, false)),
    }
    let namespace = text(&meta.namespace);
    match (namespaced, namespace) {
        (true, "") => errors.required(&path.child("namespace"), ""),
        (true, _) => {
            errors.all_invalid(&path.child("namespace"), namespace, label(namespace, false));
        }
        (false, "") => {}
        (false, _) => errors.forbidden(&path.child("namespace"), "not allowed on this type"),
    }
    common(&meta, &path, errors);
}

pub fn validate_update(new: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("metadata");
    let Some(meta) = decode(new, &path, errors) else { return };
    for key in ["name", "namespace", "uid", "creationTimestamp"] {
        let (new, old) = (&new["metadata"][key], &old["metadata"][key]);
        if new != old && !new.is_null() {
            errors.invalid(&path.child(key), new, IMMUTABLE);
        }
    }
    let (generation, before) = (meta.generation.unwrap_or(0), old["metadata"]["generation"].as_i64().unwrap_or(0));
    if generation < before {
        errors.invalid(&path.child("generation"), generation, "must not be decremented");
    }
    if !old["metadata"]["deletionTimestamp"].is_null() {
        no_new_finalizers(&meta, old, &path, errors);
    }
    common(&meta, &path, errors);
}

fn decode(object: &Value, path: &Path, errors: &mut Errors) -> Option<ObjectMeta> {
    ObjectMeta::deserialize(&object["metadata"])
        .map_err(|error| errors.invalid(path, Value::Null, error.to_string()))
        .ok()
}

fn common(meta: &ObjectMeta, path: &Path, errors: &mut Errors) {
    if meta.generation.is_some_and(|generation| generation < 0) {
        errors.invalid(&path.child("generation"), meta.generation, super::NEGATIVE);
    }
    labels(meta.labels.as_ref(), &path.child("labels"), errors);
    annotations(meta.annotations.as_ref(), &path.child("annotations"), errors);
    owners(meta.owner_references.as_ref(), &path.child("ownerReferences"), errors);
    finalizers(meta.finalizers.as_ref(), &path.child("finalizers"), errors);
}

pub fn labels(labels: Option<&BTreeMap<String, String>>, path: &Path, errors: &mut Errors) {
    for (key, value) in labels.into_iter().flatten() {
        errors.all_invalid(path, key, names::is_qualified_name(key));
        errors.all_invalid(path, value, names::is_valid_label_value(value));
    }
}

pub fn annotations(map: Option<&BTreeMap<String, String>>, path: &Path, errors: &mut Errors) {
    for key in map.into_iter().flatten().map(|(key, _)| key) {
        errors.all_invalid(path, key, names::is_qualified_name(&key.to_lowercase()));
    }
    let size: usize = map.into_iter().flatten().map(|(key, value)| key.len() + value.len()).sum();
    if size > ANNOTATION_LIMIT {
        errors.too_long(path, ANNOTATION_LIMIT);
    }
}

fn owners(owners: Option<&Vec<OwnerReference>>, path: &Path, errors: &mut Errors) {
    let mut controller: Option<&str> = None;
    for (at, owner) in indexed(owners, path) {
        let version = owner.api_version.rsplit('/').next().unwrap_or_default();
        if version.is_empty() {
            errors.invalid(&at.child("apiVersion"), &owner.api_version, "version must not be empty");
        }
        for (key, value) in [("kind", &owner.kind), ("name", &owner.name), ("uid", &owner.uid)] {
            if value.is_empty() {
                errors.invalid(&at.child(key), value, "must not be empty");
            }
        }
        if owner.api_version == "v1" && owner.kind == "Event" {
            errors.invalid(&at, owner, "/v1, Kind=Event is disallowed from being an owner");
        }
        if owner.controller == Some(true) {
            if let Some(other) = controller {
                let detail = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {other} and {}",
                    owner.name
                );
                errors.invalid(path, owners, detail);
            }
            controller = Some(&owner.name);
        }
    }
}

fn finalizers(finalizers: Option<&Vec<String>>, path: &Path, errors: &mut Errors) {
    let has = |name: &str| finalizers.is_some_and(|list| list.iter().any(|item| item == name));
    for (at, name) in indexed(finalizers, path) {
        finalizer(name, &at, errors);
    }
    if has("orphan") && has("foregroundDeletion") {
        let detail = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.invalid(path, finalizers, detail);
    }
}

/// One finalizer: qualified, or one of the few standard bare names.
pub fn finalizer(name: &str, path: &Path, errors: &mut Errors) {
    errors.all_invalid(path, name, names::is_qualified_name(name));
    let standard = ["kubernetes", "orphan", "foregroundDeletion"];
    if !name.contains('/') && !standard.contains(&name) {
        let detail = "name is neither a standard finalizer name nor is it fully qualified";
        errors.invalid(path, name, detail);
    }
}

fn no_new_finalizers(meta: &ObjectMeta, old: &Value, path: &Path, errors: &mut Errors) {
    let before: Vec<&str> = old["metadata"]["finalizers"]
        .as_array()
        .map(|list| list.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    let added: Vec<String> = meta
        .finalizers
        .iter()
        .flatten()
        .filter(|name| !before.contains(&name.as_str()))
        .map(|name| format!("{name:?}"))
        .collect();
    if !added.is_empty() {
        let detail = format!(
            "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
            added.join(", ")
        );
        errors.forbidden(&path.child("finalizers"), detail);
    }
}
