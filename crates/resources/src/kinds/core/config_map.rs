//! ConfigMap: keys and values, at most a mebibyte, optionally immutable.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as api;
use machinery::field::Path;
use machinery::names;
use machinery::table::Column;
use serde_json::{Value, json};

use crate::facts::Facts;
use crate::print;
use crate::resource::Kind;
use crate::validate::Errors;

pub struct ConfigMap;

/// Sum of all keys and values of a ConfigMap or Secret, in bytes.
pub(super) const DATA_LIMIT: usize = 1024 * 1024;

impl Kind for ConfigMap {
    type Object = api::ConfigMap;

    const FACTS: Facts = Facts {
        short_names: &["cm"],
        ..Facts::namespaced("", "v1", "ConfigMap", "configmaps", "configmap", "io.k8s.api.core.v1.ConfigMap")
    };
    const COLUMNS: &'static [Column] = &[print::NAME, print::text("Data"), print::AGE];

    fn validate(object: &api::ConfigMap, errors: &mut Errors) {
        let (data, binary) = (Path::new("data"), Path::new("binaryData"));
        let text_keys = object.data.iter().flatten().map(|(key, value)| (key, value.len()));
        let binary_keys = object.binary_data.iter().flatten().map(|(key, value)| (key, value.0.len()));
        let mut size = keys(text_keys, &data, errors);
        for key in object.data.iter().flatten().map(|(key, _)| key) {
            if object.binary_data.as_ref().is_some_and(|map| map.contains_key(key)) {
                errors.invalid(&data.key(key), key, "duplicate of key present in binaryData");
            }
        }
        size += keys(binary_keys, &binary, errors);
        if size > DATA_LIMIT {
            errors.too_long(&Path::new(""), DATA_LIMIT);
        }
    }

    fn validate_update(new: &api::ConfigMap, old: &api::ConfigMap, errors: &mut Errors) {
        if old.immutable == Some(true) {
            if new.immutable != Some(true) {
                errors.forbidden(&Path::new("immutable"), FROZEN);
            }
            frozen(&new.data, &old.data, "data", errors);
            frozen(&new.binary_data, &old.binary_data, "binaryData", errors);
        }
        Self::validate(new, errors);
    }

    fn cells(object: &Value, typed: &api::ConfigMap, now: Timestamp) -> Vec<Value> {
        let count = typed.data.as_ref().map_or(0, BTreeMap::len) + typed.binary_data.as_ref().map_or(0, BTreeMap::len);
        vec![print::name(object), json!(count), print::age(object, now)]
    }
}

pub(super) const FROZEN: &str = "field is immutable when `immutable` is set";

/// Checks the keys; returns the bytes they and their values take.
pub(super) fn keys<'a>(entries: impl Iterator<Item = (&'a String, usize)>, path: &Path, errors: &mut Errors) -> usize {
    entries
        .map(|(key, size)| {
            errors.all_invalid(&path.key(key), key, names::is_config_map_key(key));
            size
        })
        .sum()
}

pub(super) fn frozen<T: PartialEq>(
    new: &Option<BTreeMap<String, T>>,
    old: &Option<BTreeMap<String, T>>,
    key: &'static str,
    errors: &mut Errors,
) {
    let entries = |map: &Option<BTreeMap<String, T>>| map.as_ref().map_or(0, BTreeMap::len);
    if new != old && entries(new) + entries(old) > 0 {
        errors.forbidden(&Path::new(key), FROZEN);
    }
}
