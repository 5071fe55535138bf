//! Volumes of a pod, and the sources persistent volumes share with them.
//!
//! Most sources only need certain fields to be set; those are rows of [`REQUIRED`]. The few with
//! rules of their own have functions.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, HostPathVolumeSource, KeyToPath, ProjectedVolumeSource, Volume, VolumeProjection,
};
use machinery::field::Path;
use machinery::names;
use machinery::quantity::Quantity;
use serde_json::{Map, Value};

use super::container::{Volumes, env};
use super::security::{descending, no_backsteps};
use crate::kinds::core::persistent_volume_claim;
use crate::validate::quantity;
use crate::validate::{Errors, indexed, text};

/// What a volume may be used for besides a mount: a claim as a block device, an empty directory as a source of variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeKind {
    Claim,
    EmptyDir,
    Other,
}

/// Text fields, by source, that must not be empty.
const REQUIRED: &[(&str, &[&str])] = &[
    ("awsElasticBlockStore", &["volumeID"]),
    ("azureDisk", &["diskName", "diskURI"]),
    ("azureFile", &["secretName", "shareName"]),
    ("cephfs", &["monitors"]),
    ("cinder", &["volumeID"]),
    ("configMap", &["name"]),
    ("csi", &["driver"]),
    ("flexVolume", &["driver"]),
    ("gcePersistentDisk", &["pdName"]),
    ("gitRepo", &["repository"]),
    ("glusterfs", &["endpoints", "path"]),
    ("hostPath", &["path"]),
    ("iscsi", &["targetPortal", "iqn"]),
    ("local", &["path"]),
    ("nfs", &["server", "path"]),
    ("persistentVolumeClaim", &["claimName"]),
    ("photonPersistentDisk", &["pdID"]),
    ("portworxVolume", &["volumeID"]),
    ("quobyte", &["registry", "volume"]),
    ("rbd", &["monitors", "image"]),
    ("scaleIO", &["gateway", "system", "volumeName"]),
    ("secret", &["secretName"]),
    ("vsphereVolume", &["volumePath"]),
];

const HOST_PATH_TYPES: &[&str] =
    &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

const DOWNWARD_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

/// Checks all volumes and returns the names that mounts may use.
pub fn validate<'a>(volumes: Option<&'a Vec<Volume>>, path: &Path, errors: &mut Errors) -> Volumes<'a> {
    let mut known = BTreeMap::new();
    for (at, volume) in indexed(volumes, path) {
        let before = errors.len();
        source(volume, &at, errors);
        let name = at.child("name");
        if volume.name.is_empty() {
            errors.required(&name, "");
        } else {
            errors.all_invalid(&name, &volume.name, names::is_dns1123_label(&volume.name));
        }
        if known.contains_key(volume.name.as_str()) {
            errors.duplicate(&name, &volume.name);
        }
        if errors.len() == before {
            let claim = volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some();
            let kind = match volume.empty_dir {
                _ if claim => VolumeKind::Claim,
                Some(_) => VolumeKind::EmptyDir,
                None => VolumeKind::Other,
            };
            known.insert(volume.name.as_str(), kind);
        }
    }
    known
}

fn source(volume: &Volume, path: &Path, errors: &mut Errors) {
    let Ok(Value::Object(mut sources)) = serde_json::to_value(volume) else { return };
    sources.remove("name");
    exactly_one(&sources, path, errors);
    special(volume, path, errors);
}

/// One source, with its required fields.
fn exactly_one(sources: &Map<String, Value>, path: &Path, errors: &mut Errors) {
    let mut given = sources.iter();
    let Some((key, source)) = given.next() else {
        return errors.required(path, "must specify a volume type");
    };
    for (extra, _) in given {
        errors.forbidden(&path.child(extra.clone()), "may not specify more than 1 volume type");
    }
    let fields = REQUIRED.iter().find(|(name, _)| name == key).map_or(&[] as &[&str], |(_, fields)| fields);
    for field in fields {
        let empty = match &source[*field] {
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Null => true,
            _ => false,
        };
        if empty {
            errors.required(&path.child(key.clone()).child(*field), "");
        }
    }
}

fn special(volume: &Volume, path: &Path, errors: &mut Errors) {
    if let Some(source) = &volume.empty_dir
        && source.size_limit.as_ref().is_some_and(|limit| quantity::parse(limit) < Quantity::ZERO)
    {
        let detail = "SizeLimit field must be a valid resource quantity";
        errors.forbidden(&path.child("emptyDir").child("sizeLimit"), detail);
    }
    if let Some(source) = &volume.host_path {
        host_path(source, &path.child("hostPath"), errors);
    }
    if let Some(source) = &volume.git_repo {
        descending(text(&source.directory), &path.child("gitRepo").child("directory"), errors);
    }
    if let Some(source) = &volume.secret {
        files(source.items.as_ref(), source.default_mode, &path.child("secret"), errors);
    }
    if let Some(source) = &volume.config_map {
        files(source.items.as_ref(), source.default_mode, &path.child("configMap"), errors);
    }
    if let Some(source) = &volume.downward_api {
        let at = path.child("downwardAPI");
        mode(source.default_mode, &at.child("defaultMode"), errors);
        for (at, file) in indexed(source.items.as_ref(), &at.child("items")) {
            downward(file, &at, errors);
        }
    }
    if let Some(source) = &volume.projected {
        projected(source, &path.child("projected"), errors);
    }
    if let Some(source) = &volume.nfs
        && !source.path.is_empty()
        && !source.path.starts_with('/')
    {
        errors.invalid(&path.child("nfs").child("path"), &source.path, "must be an absolute path");
    }
    if let Some(source) = &volume.csi {
        driver(&source.driver, &path.child("csi").child("driver"), errors);
    }
    if let Some(source) = &volume.ephemeral {
        let at = path.child("ephemeral").child("volumeClaimTemplate");
        match &source.volume_claim_template {
            None => errors.required(&at, ""),
            Some(template) => persistent_volume_claim::validate_spec(&template.spec, &at.child("spec"), errors),
        }
    }
    if let Some(source) = &volume.image {
        let policies = &["Always", "IfNotPresent", "Never"];
        let at = path.child("image");
        errors.needed(&at.child("reference"), text(&source.reference));
        errors.optional_one_of(&at.child("pullPolicy"), source.pull_policy.as_deref(), policies);
    }
}

pub(crate) fn host_path(source: &HostPathVolumeSource, path: &Path, errors: &mut Errors) {
    no_backsteps(&source.path, &path.child("path"), errors);
    errors.optional_one_of(&path.child("type"), source.type_.as_deref(), HOST_PATH_TYPES);
}

pub(crate) fn driver(driver: &str, path: &Path, errors: &mut Errors) {
    if driver.len() > names::DNS1123_LABEL_MAX {
        errors.too_long(path, names::DNS1123_LABEL_MAX);
    }
    if !driver.is_empty() {
        errors.all_invalid(path, driver, names::is_dns1123_subdomain(&driver.to_lowercase()));
    }
}

fn mode(mode: Option<i32>, path: &Path, errors: &mut Errors) {
    if mode.is_some_and(|mode| !(0..=0o777).contains(&mode)) {
        errors.invalid(path, mode, "must be a number between 0 and 0777 (octal), both inclusive");
    }
}

fn files(items: Option<&Vec<KeyToPath>>, default_mode: Option<i32>, path: &Path, errors: &mut Errors) {
    mode(default_mode, &path.child("defaultMode"), errors);
    for (at, item) in indexed(items, &path.child("items")) {
        errors.needed(&at.child("key"), &item.key);
        relative_file(&item.path, &at.child("path"), errors);
        mode(item.mode, &at.child("mode"), errors);
    }
}

/// A file below the mount that cannot escape it or clash with the kubelet's `..data`.
fn relative_file(file: &str, path: &Path, errors: &mut Errors) {
    errors.needed(path, file);
    descending(file, path, errors);
    if file.starts_with("..") && !file.starts_with("../") && file != ".." {
        errors.invalid(path, file, "must not start with '..'");
    }
}

fn downward(file: &DownwardAPIVolumeFile, path: &Path, errors: &mut Errors) {
    relative_file(&file.path, &path.child("path"), errors);
    match (&file.field_ref, &file.resource_field_ref) {
        (Some(field), resource) => {
            env::object_field(field, DOWNWARD_FIELDS, &path.child("fieldRef"), errors);
            if resource.is_some() {
                let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.invalid(path, "resource", detail);
            }
        }
        (None, Some(resource)) => {
            env::resource_field(resource, true, &path.child("resourceFieldRef"), errors);
        }
        (None, None) => errors.required(path, "one of fieldRef and resourceFieldRef is required"),
    }
    mode(file.mode, &path.child("mode"), errors);
}

fn projected(source: &ProjectedVolumeSource, path: &Path, errors: &mut Errors) {
    mode(source.default_mode, &path.child("defaultMode"), errors);
    let mut seen = BTreeSet::new();
    for (at, projection) in indexed(source.sources.as_ref(), &path.child("sources")) {
        self::projection(projection, &at, errors);
        for file in projected_files(projection) {
            if !file.is_empty() && !seen.insert(file.to_owned()) {
                errors.invalid(path, file, "conflicting duplicate paths");
            }
        }
    }
}

fn projection(projection: &VolumeProjection, path: &Path, errors: &mut Errors) {
    let Ok(Value::Object(sources)) = serde_json::to_value(projection) else { return };
    if sources.is_empty() {
        errors.required(path, "must specify a volume type");
    }
    for extra in sources.keys().skip(1) {
        errors.forbidden(&path.child(extra.clone()), "may not specify more than 1 volume type");
    }
    if let Some(secret) = &projection.secret {
        errors.needed(&path.child("secret").child("name"), &secret.name);
        files(secret.items.as_ref(), None, &path.child("secret"), errors);
    }
    if let Some(config_map) = &projection.config_map {
        errors.needed(&path.child("configMap").child("name"), &config_map.name);
        files(config_map.items.as_ref(), None, &path.child("configMap"), errors);
    }
    if let Some(source) = &projection.downward_api {
        for (at, file) in indexed(source.items.as_ref(), &path.child("downwardAPI").child("items")) {
            downward(file, &at, errors);
        }
    }
    if let Some(token) = &projection.service_account_token {
        let at = path.child("serviceAccountToken");
        let seconds = token.expiration_seconds.unwrap_or(3600);
        if seconds < 600 {
            let detail = "may not specify a duration less than 10 minutes";
            errors.invalid(&at.child("expirationSeconds"), seconds, detail);
        }
        if seconds > 1 << 32 {
            let detail = "may not specify a duration larger than 2^32 seconds";
            errors.invalid(&at.child("expirationSeconds"), seconds, detail);
        }
        relative_file(&token.path, &at.child("path"), errors);
    }
    if let Some(bundle) = &projection.cluster_trust_bundle {
        relative_file(&bundle.path, &path.child("clusterTrustBundle").child("path"), errors);
    }
}

fn projected_files(projection: &VolumeProjection) -> Vec<&str> {
    let secret = projection.secret.iter().flat_map(|source| source.items.iter().flatten());
    let config_map = projection.config_map.iter().flat_map(|source| source.items.iter().flatten());
    let downward = projection.downward_api.iter().flat_map(|source| source.items.iter().flatten());
    secret
        .chain(config_map)
        .map(|item| item.path.as_str())
        .chain(downward.map(|file| file.path.as_str()))
        .chain(projection.service_account_token.iter().map(|token| token.path.as_str()))
        .chain(projection.cluster_trust_bundle.iter().map(|bundle| bundle.path.as_str()))
        .collect()
}

/// The source of a persistent volume: exactly one, with its required fields.
pub(crate) fn persistent_source(sources: &Map<String, Value>, path: &Path, errors: &mut Errors) {
    exactly_one(sources, path, errors);
}

/// Access modes of claims and volumes.
pub(crate) fn access_modes(modes: Option<&Vec<String>>, path: &Path, errors: &mut Errors) {
    const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
    let modes = modes.map(Vec::as_slice).unwrap_or_default();
    if modes.is_empty() {
        errors.required(path, "at least 1 access mode is required");
    }
    for mode in modes {
        if !MODES.contains(&mode.as_str()) {
            errors.not_supported(path, mode, MODES);
        }
    }
    if modes.len() > 1 && modes.iter().any(|mode| mode == "ReadWriteOncePod") {
        errors.forbidden(path, "may not use ReadWriteOncePod with other access modes");
    }
}
