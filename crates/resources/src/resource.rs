//! [`Kind`] is what a kind's file writes; [`Resource`] is what the API server calls. The adapter
//! between them does what every kind has in common: metadata validation, typed decoding, dropping
//! and keeping `status`, and walking to selectable fields.

use std::marker::PhantomData;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use machinery::field::{ErrorList, Path};
use machinery::schema::semantic_equal;
use machinery::table::Column;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::facts::{Conversion, Facts};
use crate::validate::meta::{self, NameRule};
use crate::validate::{Errors, IMMUTABLE, warn};
use crate::value::Defaulting;
use crate::{pod, print};

/// A kind as the API server sees it.
///
/// The order of a write: decode, [`default`](Resource::default), mutating admission,
/// `prepare_*`, `validate*`, validating admission, commit.
pub trait Resource: Send + Sync + 'static {
    fn facts(&self) -> &'static Facts;
    /// What the schema's defaults cannot say. Idempotent.
    fn default(&self, _object: &mut Value) {}
    /// After mutating admission: drops `status` and sets what only the server may.
    fn prepare_create(&self, _object: &mut Value) {}
    /// Carries over what a write of the main resource may not touch.
    fn prepare_update(&self, _new: &mut Value, _old: &Value) {}
    /// The generic path has put the old spec and metadata back already.
    fn prepare_status_update(&self, _new: &mut Value, _old: &Value) {}
    /// For objects being created.
    fn validate(&self, object: &Value) -> ErrorList;
    /// Everything an update must satisfy; includes what of `validate` applies to it.
    fn validate_update(&self, new: &Value, old: &Value) -> ErrorList;
    fn validate_status_update(&self, new: &Value, old: &Value) -> ErrorList;
    /// Updates through any other subresource that writes the object itself
    /// (`ephemeralcontainers`, `resize`, `finalize`): puts back what it may not change.
    fn prepare_subresource_update(&self, _subresource: &str, _new: &mut Value, _old: &Value) {}
    fn validate_subresource_update(&self, _subresource: &str, new: &Value, old: &Value) -> ErrorList {
        self.validate_update(new, old)
    }
    fn columns(&self) -> &'static [Column];
    /// One cell per column. An object that cannot be decoded still yields its name.
    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value>;
    /// Besides `metadata.name` and `metadata.namespace`.
    fn selectable_fields(&self) -> &'static [&'static str];
    /// None for a field that is not selectable.
    fn field(&self, object: &Value, field: &str) -> Option<String>;
    /// Sent to the client as Warning headers.
    fn warnings(&self, _new: &Value, _old: Option<&Value>) -> Vec<String> {
        Vec::new()
    }
    /// Whether `metadata.generation` moves. Always false when the kind does not count generations.
    fn generation_changes(&self, new: &Value, old: &Value) -> bool {
        self.facts().generation && !semantic_equal(&new["spec"], &old["spec"])
    }
    /// Set when this version is served from another version's storage.
    fn conversion(&self) -> Option<&'static Conversion> {
        None
    }
}

/// A built-in kind. Only [`FACTS`](Kind::FACTS) is required; the rest has the usual behaviour.
pub trait Kind: Send + Sync + 'static {
    type Object: DeserializeOwned;
    const FACTS: Facts;
    const NAME: NameRule = meta::subdomain;
    const COLUMNS: &'static [Column] = &[print::NAME, print::AGE];
    const FIELDS: &'static [&'static str] = &[];
    const CONVERSION: Option<Conversion> = None;
    /// Whether a client may set the status when it creates the object.
    const STATUS_AT_CREATE: bool = false;
    /// Where a workload has its pod template, which gets defaults and warnings.
    const TEMPLATE: &'static [&'static str] = &[];
    /// Fields, as dotted paths, that no update may change.
    const IMMUTABLE: &'static [&'static str] = &[];
    /// Whether the object's name becomes part of its pods' host names.
    const NAMES_HOSTS: bool = false;
    /// Subresources that write the status, besides `status` itself.
    const STATUS_WRITERS: &'static [&'static str] = &[];

    fn defaults(_object: &mut Value) {}
    fn prepare_create(_object: &mut Value) {}
    fn prepare_update(_new: &mut Value, _old: &Value) {}
    fn prepare_status_update(_new: &mut Value, _old: &Value) {}
    fn prepare_subresource_update(_subresource: &str, _new: &mut Value, _old: &Value) {}
    fn validate(_object: &Self::Object, _errors: &mut Errors) {}
    /// Replaces [`validate`](Kind::validate) on updates.
    fn validate_update(new: &Self::Object, _old: &Self::Object, errors: &mut Errors) {
        Self::validate(new, errors);
    }
    fn validate_status_update(_new: &Self::Object, _old: &Self::Object, _errors: &mut Errors) {}
    fn validate_subresource_update(_subresource: &str, new: &Self::Object, old: &Self::Object, errors: &mut Errors) {
        Self::validate_update(new, old, errors);
    }
    /// The cells between the name and the age are the kind's; this returns all of them.
    fn cells(object: &Value, _typed: &Self::Object, now: Timestamp) -> Vec<Value> {
        vec![print::name(object), print::age(object, now)]
    }
    /// A selectable field's value; asked only for [`FIELDS`](Kind::FIELDS).
    fn field(object: &Value, field: &str) -> String {
        walk(object, field)
    }
    /// Besides what a workload's template deserves.
    fn warnings(_new: &Self::Object, _old: Option<&Self::Object>) -> Vec<String> {
        Vec::new()
    }
    fn generation_changes(new: &Value, old: &Value) -> bool {
        !semantic_equal(&new["spec"], &old["spec"])
    }
}

/// The [`Resource`] of a [`Kind`].
pub(crate) struct Adapter<K>(PhantomData<fn() -> K>);

impl<K: Kind> Adapter<K> {
    const FACTS: &'static Facts = &K::FACTS;
    const CONVERSION: Option<&'static Conversion> = match &K::CONVERSION {
        Some(conversion) => Some(conversion),
        None => None,
    };

    pub(crate) fn new() -> Self {
        Adapter(PhantomData)
    }

    /// Decodes and checks one object; a decoding failure is itself the error.
    fn check(object: &Value, errors: &mut Errors, check: impl FnOnce(K::Object, &mut Errors)) {
        match K::Object::deserialize(object) {
            Ok(typed) => check(typed, errors),
            Err(error) => errors.invalid(&Path::new(""), Value::Null, error.to_string()),
        }
    }

    fn check_both(new: &Value, old: &Value, check: impl FnOnce(&K::Object, &K::Object, &mut Errors)) -> ErrorList {
        let mut errors = Errors::default();
        meta::validate_update(new, old, &mut errors);
        Self::check(new, &mut errors, |new, errors| {
            Self::check(old, errors, |old, errors| check(&new, &old, errors));
        });
        errors.into_list()
    }
}

impl<K: Kind> Resource for Adapter<K> {
    fn facts(&self) -> &'static Facts {
        Self::FACTS
    }

    fn default(&self, object: &mut Value) {
        K::defaults(object);
        let template = K::TEMPLATE.iter().try_fold(object, |value, key| value.at(key));
        if let (Some(template), false) = (template, K::TEMPLATE.is_empty()) {
            pod::default_template(template);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        if K::FACTS.has_status() && !K::STATUS_AT_CREATE {
            object["status"] = json!({});
        }
        K::prepare_create(object);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        if K::FACTS.has_status() {
            keep(new, old, "status");
        }
        K::prepare_update(new, old);
    }

    fn prepare_status_update(&self, new: &mut Value, old: &Value) {
        K::prepare_status_update(new, old);
    }

    fn validate(&self, object: &Value) -> ErrorList {
        let mut errors = Errors::default();
        if K::FACTS.stored() {
            meta::validate(object, K::FACTS.namespaced_scope(), K::NAME, &mut errors);
        }
        Self::check(object, &mut errors, |object, errors| K::validate(&object, errors));
        errors.into_list()
    }

    fn validate_update(&self, new: &Value, old: &Value) -> ErrorList {
        Self::check_both(new, old, |typed, typed_old, errors| {
            K::validate_update(typed, typed_old, errors);
            for field in K::IMMUTABLE {
                let keys: Vec<_> = field.split('.').collect();
                let value = |object: &Value| keys.iter().try_fold(object, |value, key| value.get(*key)).cloned();
                if let (Some(path), (new, old)) = (path(&keys), (value(new), value(old)))
                    && !semantic_equal(&json!(new), &json!(old))
                {
                    errors.invalid(&path, new, IMMUTABLE);
                }
            }
        })
    }

    fn validate_status_update(&self, new: &Value, old: &Value) -> ErrorList {
        Self::check_both(new, old, K::validate_status_update)
    }

    fn prepare_subresource_update(&self, subresource: &str, new: &mut Value, old: &Value) {
        if K::FACTS.has_status() && !K::STATUS_WRITERS.contains(&subresource) {
            keep(new, old, "status");
        }
        K::prepare_subresource_update(subresource, new, old);
    }

    fn validate_subresource_update(&self, subresource: &str, new: &Value, old: &Value) -> ErrorList {
        Self::check_both(new, old, |new, old, errors| {
            K::validate_subresource_update(subresource, new, old, errors);
        })
    }

    fn columns(&self) -> &'static [Column] {
        K::COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        match K::Object::deserialize(object) {
            Ok(typed) => K::cells(object, &typed, now),
            Err(_) => K::COLUMNS.iter().map(|column| unreadable(column, object)).collect(),
        }
    }

    fn selectable_fields(&self) -> &'static [&'static str] {
        K::FIELDS
    }

    fn field(&self, object: &Value, field: &str) -> Option<String> {
        match field {
            "metadata.name" => Some(walk(object, field)),
            "metadata.namespace" if K::FACTS.namespaced_scope() => Some(walk(object, field)),
            _ => K::FIELDS.contains(&field).then(|| K::field(object, field)),
        }
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        let Ok(typed) = K::Object::deserialize(new) else { return Vec::new() };
        let mut warnings: Vec<String> = Vec::new();
        if K::NAMES_HOSTS && old.is_none() {
            warnings.extend(warn::host_name(&walk(new, "metadata.name"), "Pod names and hostnames"));
        }
        let generation = |object: &Value| object["metadata"]["generation"].clone();
        let template = K::TEMPLATE.iter().try_fold(new, |value, key| value.get(key));
        if let (Some(path), Some(Ok(template))) = (path(K::TEMPLATE), template.map(PodTemplateSpec::deserialize))
            && old.is_none_or(|old| generation(old) != generation(new))
        {
            warnings.extend(pod::template_warnings(&template, &path));
        }
        let old = old.and_then(|old| K::Object::deserialize(old).ok());
        warnings.extend(K::warnings(&typed, old.as_ref()));
        warnings
    }

    fn generation_changes(&self, new: &Value, old: &Value) -> bool {
        K::FACTS.generation && K::generation_changes(new, old)
    }

    fn conversion(&self) -> Option<&'static Conversion> {
        Self::CONVERSION
    }
}

/// The path with these steps, if there are any.
fn path(keys: &[&'static str]) -> Option<Path> {
    let (first, rest) = keys.split_first()?;
    Some(rest.iter().fold(Path::new(*first), |path, key| path.child(*key)))
}

/// The cell of an object that cannot be decoded.
fn unreadable(column: &Column, object: &Value) -> Value {
    match column.format {
        "name" => print::name(object),
        _ => json!(print::UNKNOWN),
    }
}

/// Puts `old`'s value of a top-level key back.
pub(crate) fn keep(new: &mut Value, old: &Value, key: &str) {
    match (new.as_object_mut(), old.get(key)) {
        (Some(new), Some(value)) => drop(new.insert(key.to_owned(), value.clone())),
        (Some(new), None) => drop(new.remove(key)),
        (None, _) => {}
    }
}

/// The text at a dotted path; empty when absent.
pub(crate) fn walk(object: &Value, field: &str) -> String {
    match field.split('.').try_fold(object, |value, key| value.get(key)) {
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => String::new(),
        Some(other) => other.to_string(),
    }
}
