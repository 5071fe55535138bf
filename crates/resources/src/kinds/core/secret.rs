//! Secret: like a ConfigMap, with a type that says which keys must be there.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1 as api;
use machinery::field::Path;
use machinery::table::Column;
use serde_json::{Value, json};

use super::config_map::{DATA_LIMIT, FROZEN, frozen, keys};
use crate::facts::Facts;
use crate::print;
use crate::resource::Kind;
use crate::validate::{Errors, text};
use crate::value::Defaulting;

pub struct Secret;

/// Names the service account of a token secret.
const ACCOUNT_ANNOTATION: &str = "kubernetes.io/service-account.name";

/// Keys that secrets of a type must have.
const REQUIRED: &[(&str, &[&str])] = &[
    ("kubernetes.io/dockercfg", &[".dockercfg"]),
    ("kubernetes.io/dockerconfigjson", &[".dockerconfigjson"]),
    ("kubernetes.io/ssh-auth", &["ssh-privatekey"]),
    ("kubernetes.io/tls", &["tls.crt", "tls.key"]),
];

impl Kind for Secret {
    type Object = api::Secret;

    const FACTS: Facts = Facts::namespaced("", "v1", "Secret", "secrets", "secret", "io.k8s.api.core.v1.Secret");
    const COLUMNS: &'static [Column] = &[print::NAME, print::text("Type"), print::text("Data"), print::AGE];
    const IMMUTABLE: &'static [&'static str] = &["type"];
    const FIELDS: &'static [&'static str] = &["type"];

    fn defaults(object: &mut Value) {
        object.or("type", "Opaque");
        // stringData is for writing only.
        if let Some(Value::Object(texts)) = Defaulting::remove(object, "stringData") {
            let data = object.make("data");
            for (key, text) in texts {
                data[key] = json!(BASE64_STANDARD.encode(text.as_str().unwrap_or_default()));
            }
        }
    }

    fn validate(object: &api::Secret, errors: &mut Errors) {
        let path = Path::new("data");
        let entries = object.data.iter().flatten().map(|(key, value)| (key, value.0.len()));
        if keys(entries, &path, errors) > DATA_LIMIT {
            errors.too_long(&path, DATA_LIMIT);
        }
        let type_ = text(&object.type_);
        let value = |key: &str| object.data.as_ref().and_then(|data| data.get(key));
        let required = REQUIRED.iter().filter(|(name, _)| *name == type_).flat_map(|(_, keys)| *keys);
        for key in required {
            match value(key) {
                None => errors.required(&path.key(*key), ""),
                Some(ByteString(bytes)) if *key == "ssh-privatekey" && bytes.is_empty() => {
                    errors.required(&path.key(*key), "");
                }
                Some(ByteString(bytes)) if key.starts_with(".docker") => {
                    if let Err(error) = machinery::schema::decode::json(bytes) {
                        errors.invalid(&path.key(*key), "<secret contents redacted>", error);
                    }
                }
                Some(_) => {}
            }
        }
        match type_ {
            "kubernetes.io/basic-auth" if value("username").is_none() && value("password").is_none() => {
                errors.required(&path.key("username"), "");
                errors.required(&path.key("password"), "");
            }
            "kubernetes.io/service-account-token" => {
                let account = object.metadata.annotations.as_ref().and_then(|map| map.get(ACCOUNT_ANNOTATION));
                let at = Path::new("metadata").child("annotations").key(ACCOUNT_ANNOTATION);
                errors.needed(&at, account.map_or("", String::as_str));
            }
            _ => {}
        }
    }

    fn validate_update(new: &api::Secret, old: &api::Secret, errors: &mut Errors) {
        if old.immutable == Some(true) {
            if new.immutable != Some(true) {
                errors.forbidden(&Path::new("immutable"), FROZEN);
            }
            frozen(&new.data, &old.data, "data", errors);
        }
        Self::validate(new, errors);
    }

    fn cells(object: &Value, typed: &api::Secret, now: Timestamp) -> Vec<Value> {
        let count = typed.data.as_ref().map_or(0, std::collections::BTreeMap::len);
        vec![print::name(object), json!(text(&typed.type_)), json!(count), print::age(object, now)]
    }
}
