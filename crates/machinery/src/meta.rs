//! Reading and writing `metadata` of an object that is a JSON value.
//!
//! Readers answer with empty values where something is absent, as Go's accessors do; writers create what is
//! missing and drop what becomes empty.

use serde_json::{Map, Value};

pub fn name(object: &Value) -> &str {
    text(object, "name")
}

pub fn generate_name(object: &Value) -> &str {
    text(object, "generateName")
}

pub fn namespace(object: &Value) -> &str {
    text(object, "namespace")
}

pub fn uid(object: &Value) -> &str {
    text(object, "uid")
}

pub fn resource_version(object: &Value) -> &str {
    text(object, "resourceVersion")
}

pub fn generation(object: &Value) -> i64 {
    get(object, "generation").and_then(Value::as_i64).unwrap_or(0)
}

pub fn creation_timestamp(object: &Value) -> Option<&str> {
    get(object, "creationTimestamp").and_then(Value::as_str)
}

pub fn deletion_timestamp(object: &Value) -> Option<&str> {
    get(object, "deletionTimestamp").and_then(Value::as_str)
}

pub fn deletion_grace_period_seconds(object: &Value) -> Option<i64> {
    get(object, "deletionGracePeriodSeconds").and_then(Value::as_i64)
}

pub fn labels(object: &Value) -> impl Iterator<Item = (&str, &str)> {
    pairs(object, "labels")
}

pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    get(object, "labels")?.get(key)?.as_str()
}

pub fn annotations(object: &Value) -> impl Iterator<Item = (&str, &str)> {
    pairs(object, "annotations")
}

pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    get(object, "annotations")?.get(key)?.as_str()
}

pub fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    list(object, "finalizers").iter().filter_map(Value::as_str)
}

pub fn owner_references(object: &Value) -> &[Value] {
    list(object, "ownerReferences")
}

/// The owner that has `controller: true`.
pub fn controller_of(object: &Value) -> Option<&Value> {
    owner_references(object).iter().find(|owner| owner["controller"] == true)
}

pub fn managed_fields(object: &Value) -> &[Value] {
    list(object, "managedFields")
}

/// `namespace/name`, or only the name of a cluster-scoped object.
pub fn key(object: &Value) -> String {
    match namespace(object) {
        "" => name(object).to_owned(),
        namespace => format!("{namespace}/{}", name(object)),
    }
}

pub fn get<'a>(object: &'a Value, key: &str) -> Option<&'a Value> {
    object.get("metadata")?.get(key)
}

/// `metadata`, made if it is absent or not an object.
///
/// # Panics
/// If `object` is not a JSON object.
pub fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    let metadata =
        object.as_object_mut().expect("an API object is a JSON object").entry("metadata").or_insert(Value::Null);
    if !metadata.is_object() {
        *metadata = Value::Object(Map::new());
    }
    metadata.as_object_mut().expect("just made an object")
}

/// Sets a field; `null`, empty text, lists and maps remove it.
pub fn set(object: &mut Value, key: &str, value: impl Into<Value>) {
    let value = value.into();
    let empty = match &value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    };
    if empty {
        metadata_mut(object).remove(key);
    } else {
        metadata_mut(object).insert(key.to_owned(), value);
    }
}

pub fn set_name(object: &mut Value, name: &str) {
    set(object, "name", name);
}

pub fn set_namespace(object: &mut Value, namespace: &str) {
    set(object, "namespace", namespace);
}

pub fn set_uid(object: &mut Value, uid: &str) {
    set(object, "uid", uid);
}

pub fn set_resource_version(object: &mut Value, resource_version: &str) {
    set(object, "resourceVersion", resource_version);
}

pub fn set_generation(object: &mut Value, generation: i64) {
    set(object, "generation", generation);
}

pub fn set_creation_timestamp(object: &mut Value, timestamp: &str) {
    set(object, "creationTimestamp", timestamp);
}

pub fn set_deletion_timestamp(object: &mut Value, timestamp: &str) {
    set(object, "deletionTimestamp", timestamp);
}

pub fn set_deletion_grace_period_seconds(object: &mut Value, seconds: Option<i64>) {
    set(object, "deletionGracePeriodSeconds", seconds.map_or(Value::Null, Value::from));
}

pub fn set_finalizers(object: &mut Value, finalizers: Vec<String>) {
    set(object, "finalizers", finalizers);
}

pub fn set_label(object: &mut Value, key: &str, value: &str) {
    set_pair(object, "labels", key, value);
}

pub fn set_annotation(object: &mut Value, key: &str, value: &str) {
    set_pair(object, "annotations", key, value);
}

/// `metadata` of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListMeta {
    pub resource_version: String,
    pub continue_token: String,
    pub remaining_item_count: Option<i64>,
}

impl ListMeta {
    pub fn of(list: &Value) -> Self {
        Self {
            resource_version: text(list, "resourceVersion").to_owned(),
            continue_token: text(list, "continue").to_owned(),
            remaining_item_count: get(list, "remainingItemCount").and_then(Value::as_i64),
        }
    }

    pub fn to_value(&self) -> Value {
        let mut meta = Map::new();
        meta.insert("resourceVersion".into(), self.resource_version.as_str().into());
        if !self.continue_token.is_empty() {
            meta.insert("continue".into(), self.continue_token.as_str().into());
        }
        if let Some(count) = self.remaining_item_count {
            meta.insert("remainingItemCount".into(), count.into());
        }
        Value::Object(meta)
    }
}

fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    get(object, key).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(object: &'a Value, key: &str) -> &'a [Value] {
    get(object, key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn pairs<'a>(object: &'a Value, key: &str) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
    let map = get(object, key).and_then(Value::as_object);
    map.into_iter().flatten().filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
}

fn set_pair(object: &mut Value, field: &str, key: &str, value: &str) {
    let map = metadata_mut(object).entry(field).or_insert_with(|| Value::Object(Map::new()));
    if !map.is_object() {
        *map = Value::Object(Map::new());
    }
    map[key] = value.into();
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn metadata_is_read_and_written() {
        let mut object = json!({"metadata": {"name": "a", "labels": {"x": "y"}, "ownerReferences": [
            {"name": "o", "controller": true}]}});
        assert_eq!((name(&object), namespace(&object), &*key(&object)), ("a", "", "a"));
        assert_eq!(labels(&object).collect::<Vec<_>>(), [("x", "y")]);
        assert_eq!(controller_of(&object).unwrap()["name"], "o");
        set_namespace(&mut object, "n");
        set_generation(&mut object, 2);
        set_annotation(&mut object, "k", "v");
        assert_eq!((&*key(&object), generation(&object), annotation(&object, "k")), ("n/a", 2, Some("v")));
        set_namespace(&mut object, "");
        assert_eq!(object["metadata"].get("namespace"), None);

        let mut bare = json!({});
        assert_eq!((name(&bare), finalizers(&bare).count()), ("", 0));
        set_finalizers(&mut bare, vec!["f".into()]);
        assert_eq!(bare, json!({"metadata": {"finalizers": ["f"]}}));
    }
}
