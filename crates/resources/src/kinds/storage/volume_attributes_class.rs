//! VolumeAttributesClass: properties of a volume that may change while it is in use.

use jiff::Timestamp;
use k8s_openapi::api::storage::v1 as api;
use machinery::field::Path;
use machinery::table::Column;
use serde_json::{Value, json};

use super::{cluster, driver, forbidden_update, parameters};
use crate::facts::Facts;
use crate::print;
use crate::resource::Kind;
use crate::validate::Errors;

pub struct VolumeAttributesClass;

impl Kind for VolumeAttributesClass {
    type Object = api::VolumeAttributesClass;

    const FACTS: Facts = Facts {
        short_names: &["vac"],
        ..cluster(
            "VolumeAttributesClass",
            "volumeattributesclasses",
            "volumeattributesclass",
            "io.k8s.api.storage.v1.VolumeAttributesClass",
        )
    };
    const COLUMNS: &'static [Column] = &[print::NAME, print::text("DriverName"), print::AGE];

    fn validate(object: &api::VolumeAttributesClass, errors: &mut Errors) {
        driver(&object.driver_name, &Path::new("driverName"), errors);
        let at = Path::new("parameters");
        if object.parameters.as_ref().is_none_or(|parameters| parameters.is_empty()) {
            errors.required(&at, "must contain at least one key/value pair");
        }
        parameters(object.parameters.as_ref(), &at, errors);
    }

    fn validate_update(new: &api::VolumeAttributesClass, old: &api::VolumeAttributesClass, errors: &mut Errors) {
        forbidden_update("driverName", &new.driver_name, &old.driver_name, errors);
        forbidden_update("parameters", &new.parameters, &old.parameters, errors);
    }

    fn cells(object: &Value, typed: &api::VolumeAttributesClass, now: Timestamp) -> Vec<Value> {
        vec![print::name(object), json!(typed.driver_name), print::age(object, now)]
    }
}
