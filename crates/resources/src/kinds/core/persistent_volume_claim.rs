//! PersistentVolumeClaim: a request for storage; fixed once made, but for growing.

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as api;
use machinery::field::Path;
use machinery::names;
use machinery::quantity::Quantity;
use machinery::table::Column;
use serde_json::{Value, json};

use crate::facts::{Facts, Subresource};
use crate::pod::access_modes;
use crate::print::{self, or, wide};
use crate::resource::Kind;
use crate::validate::quantity::{get, parse};
use crate::validate::{Errors, selector, text};
use crate::value::Defaulting;

pub struct PersistentVolumeClaim;

pub(crate) const VOLUME_MODES: &[&str] = &["Block", "Filesystem"];
pub(crate) const UNSET: &str = "<unset>";
const FIXED: &str =
    "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";

impl Kind for PersistentVolumeClaim {
    type Object = api::PersistentVolumeClaim;

    const FACTS: Facts = Facts {
        short_names: &["pvc"],
        subresources: &[Subresource::own("status", "", "v1", "PersistentVolumeClaim")],
        ..Facts::namespaced(
            "",
            "v1",
            "PersistentVolumeClaim",
            "persistentvolumeclaims",
            "persistentvolumeclaim",
            "io.k8s.api.core.v1.PersistentVolumeClaim",
        )
    };
    const COLUMNS: &'static [Column] = &[
        print::NAME,
        print::text("Status"),
        print::text("Volume"),
        print::text("Capacity"),
        print::text("Access Modes"),
        print::text("StorageClass"),
        print::text("VolumeAttributesClass"),
        print::AGE,
        wide("VolumeMode"),
    ];

    fn defaults(object: &mut Value) {
        defaults(object);
    }

    fn prepare_create(object: &mut Value) {
        object["status"] = json!({"phase": "Pending"});
    }

    fn validate(object: &api::PersistentVolumeClaim, errors: &mut Errors) {
        validate_claim(object, &Path::new("spec"), errors);
    }

    fn validate_update(new: &api::PersistentVolumeClaim, old: &api::PersistentVolumeClaim, errors: &mut Errors) {
        Self::validate(new, errors);
        let (Some(new_spec), Some(old_spec)) = (&new.spec, &old.spec) else { return };
        let path = Path::new("spec");
        let mut fixed = new_spec.clone();
        // The binder fills this in.
        if text(&old_spec.volume_name).is_empty() {
            fixed.volume_name = old_spec.volume_name.clone();
        }
        // A default class may be found later.
        if old_spec.storage_class_name.is_none() {
            fixed.storage_class_name = None;
        }
        if new.status.as_ref().is_some_and(|status| text(&status.phase) == "Bound") {
            grown(new, old, &path, errors);
            if let (Some(resources), Some(before)) = (&mut fixed.resources, &old_spec.resources) {
                resources.requests = before.requests.clone();
            }
            fixed.volume_attributes_class_name = old_spec.volume_attributes_class_name.clone();
        }
        if fixed != *old_spec {
            errors.forbidden(&path, FIXED);
        }
    }

    fn cells(object: &Value, typed: &api::PersistentVolumeClaim, now: Timestamp) -> Vec<Value> {
        let default = api::PersistentVolumeClaimSpec::default();
        let spec = typed.spec.as_ref().unwrap_or(&default);
        let status = typed.status.as_ref();
        let volume = text(&spec.volume_name);
        let bound = status.filter(|_| !volume.is_empty());
        let phase = match typed.metadata.deletion_timestamp {
            Some(_) => "Terminating",
            None => status.map_or("", |status| text(&status.phase)),
        };
        let capacity = bound.and_then(|status| status.capacity.as_ref()?.get("storage"));
        vec![
            print::name(object),
            json!(phase),
            json!(volume),
            json!(capacity.map_or("", |capacity| capacity.0.as_str())),
            json!(modes(bound.and_then(|status| status.access_modes.as_ref()))),
            json!(text(&spec.storage_class_name)),
            json!(or(text(&spec.volume_attributes_class_name), UNSET)),
            print::age(object, now),
            json!(or(text(&spec.volume_mode), UNSET)),
        ]
    }
}

/// Of claims, and of the claim templates of stateful sets.
pub(crate) fn defaults(claim: &mut Value) {
    claim.make("spec").or("volumeMode", "Filesystem");
    claim.make("status").or("phase", "Pending");
}

pub(crate) fn validate_claim(claim: &api::PersistentVolumeClaim, path: &Path, errors: &mut Errors) {
    match &claim.spec {
        Some(spec) => validate_spec(spec, path, errors),
        None => errors.required(&path.child("accessModes"), "at least 1 access mode is required"),
    }
}

pub(crate) fn validate_spec(spec: &api::PersistentVolumeClaimSpec, path: &Path, errors: &mut Errors) {
    access_modes(spec.access_modes.as_ref(), &path.child("accessModes"), errors);
    if let Some(labels) = &spec.selector {
        selector::validate(labels, &path.child("selector"), errors);
    }
    let requests = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let at = path.child("resources").key("storage");
    match requests.and_then(|requests| requests.get("storage")) {
        None => errors.required(&at, ""),
        Some(storage) if parse(storage) <= Quantity::ZERO => {
            errors.invalid(&at, &storage.0, "must be greater than zero");
        }
        Some(_) => {}
    }
    for (key, name) in [
        ("storageClassName", &spec.storage_class_name),
        ("volumeAttributesClassName", &spec.volume_attributes_class_name),
    ] {
        let name = text(name);
        if !name.is_empty() {
            errors.all_invalid(&path.child(key), name, names::is_dns1123_subdomain(name));
        }
    }
    errors.optional_one_of(&path.child("volumeMode"), spec.volume_mode.as_deref(), VOLUME_MODES);
    if let Some(source) = &spec.data_source {
        let at = path.child("dataSource");
        errors.needed(&at.child("name"), &source.name);
        errors.needed(&at.child("kind"), &source.kind);
        if text(&source.api_group).is_empty() && source.kind != "PersistentVolumeClaim" {
            errors.invalid(&at, &source.kind, "must be 'PersistentVolumeClaim' when referencing the default apiGroup");
        }
    }
}

/// A bound claim may grow, and shrink back to no less than it has.
fn grown(new: &api::PersistentVolumeClaim, old: &api::PersistentVolumeClaim, path: &Path, errors: &mut Errors) {
    let asked =
        |claim: &api::PersistentVolumeClaim| get(claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref(), "storage");
    let has = old.status.as_ref().and_then(|status| get(status.capacity.as_ref(), "storage"));
    if asked(new) < asked(old) && asked(new) <= has {
        let at = path.child("resources").child("requests").child("storage");
        errors.forbidden(&at, "field can not be less than status.capacity");
    }
}

/// `RWO,ROX`, in upstream's order.
pub(crate) fn modes(modes: Option<&Vec<String>>) -> String {
    const SHORT: [(&str, &str); 4] =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let has = |mode: &str| modes.is_some_and(|modes| modes.iter().any(|item| item == mode));
    let short: Vec<_> = SHORT.iter().filter(|(mode, _)| has(mode)).map(|(_, short)| *short).collect();
    short.join(",")
}
