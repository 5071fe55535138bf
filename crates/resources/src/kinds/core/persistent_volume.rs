//! PersistentVolume: a piece of storage in the cluster. Its source never changes.

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as api;
use machinery::field::Path;
use machinery::names;
use machinery::quantity::Quantity;
use machinery::table::Column;
use serde_json::{Map, Value, json};

use super::persistent_volume_claim::{UNSET, VOLUME_MODES, modes};
use crate::facts::{Facts, Subresource};
use crate::pod;
use crate::print::{self, or, wide};
use crate::resource::Kind;
use crate::validate::quantity::{self, parse};
use crate::validate::{Errors, text};
use crate::value::Defaulting;

pub struct PersistentVolume;

/// Keys of the spec that are not the volume's source.
const NOT_SOURCES: &[&str] = &[
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

impl Kind for PersistentVolume {
    type Object = api::PersistentVolume;

    const FACTS: Facts = Facts {
        short_names: &["pv"],
        subresources: &[Subresource::own("status", "", "v1", "PersistentVolume")],
        ..Facts::cluster(
            "",
            "v1",
            "PersistentVolume",
            "persistentvolumes",
            "persistentvolume",
            "io.k8s.api.core.v1.PersistentVolume",
        )
    };
    const COLUMNS: &'static [Column] = &[
        print::NAME,
        print::text("Capacity"),
        print::text("Access Modes"),
        print::text("Reclaim Policy"),
        print::text("Status"),
        print::text("Claim"),
        print::text("StorageClass"),
        print::text("VolumeAttributesClass"),
        print::text("Reason"),
        print::AGE,
        wide("VolumeMode"),
    ];

    fn defaults(object: &mut Value) {
        let spec = object.make("spec");
        spec.or("persistentVolumeReclaimPolicy", "Retain").or("volumeMode", "Filesystem");
        if let Some(host_path) = spec.at("hostPath")
            && !host_path.has("type")
        {
            host_path["type"] = json!("");
        }
        if let Some(iscsi) = spec.at("iscsi") {
            iscsi.or("iscsiInterface", "default");
        }
        object.make("status").or("phase", "Pending");
    }

    fn prepare_create(object: &mut Value) {
        object["status"] = json!({"phase": "Pending", "lastPhaseTransitionTime": now()});
    }

    fn prepare_status_update(new: &mut Value, old: &Value) {
        let (new, old) = (&mut new["status"], &old["status"]);
        let key = "lastPhaseTransitionTime";
        if new["phase"] != old["phase"] && (new[key].is_null() || new[key] == old[key]) {
            new[key] = now();
        }
    }

    fn validate(object: &api::PersistentVolume, errors: &mut Errors) {
        let path = Path::new("spec");
        let default = api::PersistentVolumeSpec::default();
        let spec = object.spec.as_ref().unwrap_or(&default);
        pod::access_modes(spec.access_modes.as_ref(), &path.child("accessModes"), errors);
        capacity(spec, &path.child("capacity"), errors);
        pod::persistent_source(&source(spec), &path, errors);
        if let Some(host_path) = &spec.host_path {
            pod::host_path(host_path, &path.child("hostPath"), errors);
            if host_path.path == "/" && text(&spec.persistent_volume_reclaim_policy) == "Recycle" {
                errors.forbidden(
                    &path.child("persistentVolumeReclaimPolicy"),
                    "may not be 'recycle' for a hostPath mount of '/'",
                );
            }
        }
        if let Some(csi) = &spec.csi {
            pod::driver(&csi.driver, &path.child("csi").child("driver"), errors);
            errors.needed(&path.child("csi").child("volumeHandle"), &csi.volume_handle);
        }
        errors.optional_one_of(
            &path.child("persistentVolumeReclaimPolicy"),
            spec.persistent_volume_reclaim_policy.as_deref(),
            &["Delete", "Recycle", "Retain"],
        );
        errors.optional_one_of(&path.child("volumeMode"), spec.volume_mode.as_deref(), VOLUME_MODES);
        let class = text(&spec.storage_class_name);
        if !class.is_empty() {
            errors.all_invalid(&path.child("storageClassName"), class, names::is_dns1123_subdomain(class));
        }
        match spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref()) {
            Some(selector) => {
                pod::node_selector(selector, &path.child("nodeAffinity").child("required"), errors);
            }
            None if spec.node_affinity.is_some() => {
                let at = path.child("nodeAffinity").child("required");
                errors.required(&at, "must specify required node constraints");
            }
            None if spec.local.is_some() => {
                let at = Path::new("metadata").child("annotations");
                errors.required(&at, "Local volume requires node affinity");
            }
            None => {}
        }
    }

    fn validate_update(new: &api::PersistentVolume, old: &api::PersistentVolume, errors: &mut Errors) {
        Self::validate(new, errors);
        let path = Path::new("spec");
        let (Some(new), Some(old)) = (&new.spec, &old.spec) else { return };
        if source(new) != source(old) {
            let detail = "spec.persistentvolumesource is immutable after creation";
            errors.forbidden(&path.child("persistentvolumesource"), detail);
        }
        errors.immutable(&path.child("volumeMode"), &new.volume_mode, &old.volume_mode);
        if old.node_affinity.is_some() {
            errors.immutable(&path.child("nodeAffinity"), &new.node_affinity, &old.node_affinity);
        }
    }

    fn cells(object: &Value, typed: &api::PersistentVolume, now: Timestamp) -> Vec<Value> {
        let default = api::PersistentVolumeSpec::default();
        let spec = typed.spec.as_ref().unwrap_or(&default);
        let status = typed.status.as_ref();
        let phase = match typed.metadata.deletion_timestamp {
            Some(_) => "Terminating",
            None => status.map_or("", |status| text(&status.phase)),
        };
        let claim = spec
            .claim_ref
            .as_ref()
            .map(|claim| format!("{}/{}", text(&claim.namespace), text(&claim.name)))
            .unwrap_or_default();
        let capacity = spec.capacity.as_ref().and_then(|capacity| capacity.get("storage"));
        vec![
            print::name(object),
            json!(capacity.map_or("", |capacity| capacity.0.as_str())),
            json!(modes(spec.access_modes.as_ref())),
            json!(text(&spec.persistent_volume_reclaim_policy)),
            json!(phase),
            json!(claim),
            json!(text(&spec.storage_class_name)),
            json!(or(text(&spec.volume_attributes_class_name), UNSET)),
            json!(status.map_or("", |status| text(&status.reason))),
            print::age(object, now),
            json!(or(text(&spec.volume_mode), UNSET)),
        ]
    }
}

/// As the API writes times: in whole seconds.
fn now() -> Value {
    let now = Timestamp::now();
    json!(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

fn source(spec: &api::PersistentVolumeSpec) -> Map<String, Value> {
    match serde_json::to_value(spec) {
        Ok(Value::Object(map)) => map.into_iter().filter(|(key, _)| !NOT_SOURCES.contains(&key.as_str())).collect(),
        _ => Map::new(),
    }
}

fn capacity(spec: &api::PersistentVolumeSpec, path: &Path, errors: &mut Errors) {
    let Some(capacity) = spec.capacity.as_ref().filter(|capacity| !capacity.is_empty()) else {
        return errors.required(path, "");
    };
    if capacity.len() > 1 || !capacity.contains_key("storage") {
        errors.not_supported(path, capacity, &["storage"]);
    }
    for (name, value) in capacity {
        let at = path.key(name);
        quantity::non_negative(value, &at, errors);
        if parse(value) == Quantity::ZERO {
            errors.invalid(&at, &value.0, "must be greater than zero");
        }
    }
}
