//! One version of one object, ready to be sent: its final bytes and what selectors ask for.
//!
//! A stored object lacks `metadata.resourceVersion`, which is known only once it is committed. The
//! encoder writes `metadata` third, right after kind and apiVersion, so that the version is spliced in
//! at a place found without parsing; this happens once per commit, for all readers there will ever be.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use machinery::{fields::FieldSelector, labels::Selector};
use resources::Resource;
use serde::Deserialize;
use serde_json::Value;

const METADATA: &[u8] = b"\"metadata\":{";
const VERSION: &[u8] = b"\"resourceVersion\":\"";

/// Encodes an object: kind, apiVersion, metadata, then the rest.
pub fn encode(object: &Value) -> Vec<u8> {
    encode_fields(object, |_| true)
}

/// Encodes an object for storage, where it has no resourceVersion.
pub fn encode_stored(object: &Value) -> Vec<u8> {
    encode_fields(object, |key| key != "resourceVersion")
}

fn encode_fields(object: &Value, keep: fn(&str) -> bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    let empty = serde_json::Map::new();
    let object = object.as_object().unwrap_or(&empty);
    let first = ["kind", "apiVersion", "metadata"];
    let rest = object.iter().filter(|(key, _)| !first.contains(&key.as_str()));
    let first = first.iter().filter_map(|key| object.get_key_value(*key));
    out.push(b'{');
    for (index, (key, value)) in first.chain(rest).enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(&mut out, key);
        out.push(b':');
        match value {
            Value::Object(metadata) if key == "metadata" => write_metadata(&mut out, metadata, keep),
            other => write(&mut out, other),
        }
    }
    out.push(b'}');
    out
}

fn write_metadata(out: &mut Vec<u8>, metadata: &serde_json::Map<String, Value>, keep: fn(&str) -> bool) {
    out.push(b'{');
    for (index, (key, value)) in metadata.iter().filter(|(key, _)| keep(key)).enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(out, key);
        out.push(b':');
        write(out, value);
    }
    out.push(b'}');
}

fn write(out: &mut Vec<u8>, value: &(impl serde::Serialize + ?Sized)) {
    serde_json::to_writer(out, value).expect("JSON values encode into memory");
}

/// Where the fields of `metadata` begin in an encoded object.
fn metadata_at(stored: &[u8]) -> Option<usize> {
    // Kind and apiVersion are short; anything later would be somebody else's encoding.
    let head = &stored[..stored.len().min(1024)];
    head.windows(METADATA.len()).position(|window| window == METADATA).map(|at| at + METADATA.len())
}

/// The bytes to serve: `stored` with its resourceVersion.
pub fn splice(stored: &[u8], revision: i64) -> Option<Bytes> {
    let at = metadata_at(stored)?;
    let mut out = Vec::with_capacity(stored.len() + VERSION.len() + 22);
    out.extend_from_slice(&stored[..at]);
    push_version(&mut out, revision);
    if stored.get(at) != Some(&b'}') {
        out.push(b',');
    }
    out.extend_from_slice(&stored[at..]);
    Some(out.into())
}

fn push_version(out: &mut Vec<u8>, revision: i64) {
    out.extend_from_slice(VERSION);
    out.extend_from_slice(revision.to_string().as_bytes());
    out.push(b'"');
}

/// One version of one object.
pub struct Entry {
    /// `namespace/name`, or `name` where there is no namespace: what follows the resource's prefix.
    pub key: Arc<str>,
    pub revision: i64,
    /// What a reader gets.
    pub json: Bytes,
    labels: Box<[(Box<str>, Box<str>)]>,
    /// Values of the resource's selectable fields, in their order.
    fields: Box<[Option<Box<str>>]>,
    /// The same object in the other served version, where a resource has one.
    converted: OnceLock<Bytes>,
    /// The protobuf message, made when the first reader asks for it.
    message: OnceLock<Bytes>,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    labels: Option<BTreeMap<Box<str>, Box<str>>>,
}

impl Entry {
    pub fn new(resource: &dyn Resource, key: Arc<str>, stored: &[u8], revision: i64) -> Result<Entry, String> {
        let json = splice(stored, revision).ok_or("no metadata near the beginning of the object")?;
        let at = metadata_at(stored).map_or(0, |at| at - 1);
        // Stops behind metadata: the rest of the object is not looked at.
        let mut decoder = serde_json::Deserializer::from_slice(&stored[at..]);
        let metadata = Metadata::deserialize(&mut decoder).map_err(|error| error.to_string())?;
        let selectable = resource.selectable_fields();
        let fields = if selectable.is_empty() {
            Box::default()
        } else {
            let value: Value = serde_json::from_slice(stored).map_err(|error| error.to_string())?;
            selectable.iter().map(|field| resource.field(&value, field).map(Box::from)).collect()
        };
        let labels = metadata.labels.unwrap_or_default().into_iter().collect();
        Ok(Entry { key, revision, json, labels, fields, converted: OnceLock::new(), message: OnceLock::new() })
    }

    pub fn name(&self) -> &str {
        self.key.rsplit_once('/').map_or(&self.key, |(_, name)| name)
    }

    pub fn namespace(&self) -> &str {
        self.key.rsplit_once('/').map_or("", |(namespace, _)| namespace)
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(name, _)| **name == *key).map(|(_, value)| &**value)
    }

    /// Values of the selectable fields, by their index.
    pub fn fields(&self) -> impl Iterator<Item = (usize, &str)> {
        self.fields.iter().enumerate().filter_map(|(index, value)| Some((index, value.as_deref()?)))
    }

    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.json).expect("an entry is checked when it is made")
    }

    /// The object in another served version, made at most once.
    pub fn converted(&self, convert: impl FnOnce(Value) -> Value) -> &Bytes {
        self.converted.get_or_init(|| encode(&convert(self.value())).into())
    }

    /// The protobuf message of the object, made at most once.
    pub fn message(&self, encode: impl FnOnce() -> Bytes) -> &Bytes {
        self.message.get_or_init(encode)
    }

    /// The same object under another resourceVersion: the last thing a watcher hears of it.
    pub fn moved_to(&self, revision: i64) -> Entry {
        let start = metadata_at(&self.json).unwrap_or(0);
        let end = start + VERSION.len() + self.revision.to_string().len() + 1;
        let mut json = Vec::with_capacity(self.json.len() + 2);
        json.extend_from_slice(&self.json[..start]);
        push_version(&mut json, revision);
        json.extend_from_slice(&self.json[end..]);
        Entry {
            key: self.key.clone(),
            revision,
            json: json.into(),
            labels: self.labels.clone(),
            fields: self.fields.clone(),
            converted: OnceLock::new(),
            message: OnceLock::new(),
        }
    }

    /// Bytes this entry keeps alive, roughly.
    pub fn cost(&self) -> usize {
        self.json.len() + 128
    }
}

/// Selects entries of one resource.
#[derive(Clone)]
pub struct Filter {
    /// Empty selects all namespaces.
    pub namespace: String,
    pub labels: Selector,
    pub fields: FieldSelector,
    selectable: &'static [&'static str],
    unfiltered: bool,
}

impl Filter {
    pub fn new(resource: &dyn Resource, namespace: &str, labels: Selector, fields: FieldSelector) -> Filter {
        let unfiltered = labels.is_everything() && fields.requirements().is_empty();
        let selectable = resource.selectable_fields();
        Filter { namespace: namespace.into(), labels, fields, selectable, unfiltered }
    }

    /// Selects all of a namespace, or everything.
    pub fn is_unfiltered(&self) -> bool {
        self.unfiltered
    }

    pub fn matches(&self, entry: &Entry) -> bool {
        if !self.namespace.is_empty() && entry.namespace() != self.namespace {
            return false;
        }
        self.unfiltered
            || (self.labels.matches(|key| entry.label(key)) && self.fields.matches(|field| self.field(entry, field)))
    }

    fn field(&self, entry: &Entry, field: &str) -> Option<String> {
        match field {
            "metadata.name" => Some(entry.name().into()),
            "metadata.namespace" => Some(entry.namespace().into()),
            _ => {
                let index = self.selectable.iter().position(|name| *name == field)?;
                Some(entry.fields[index].as_deref().unwrap_or_default().into())
            }
        }
    }

    /// The narrowest thing all selected entries share, by which a watcher is found.
    pub fn trigger(&self) -> Trigger {
        let namespaced = || match self.namespace.as_str() {
            "" => Trigger::All,
            namespace => Trigger::Namespace(namespace.into()),
        };
        if let Some(name) = self.fields.exact("metadata.name") {
            // Without a namespace the name alone is no key of a namespaced resource.
            return match self.namespace.as_str() {
                "" => Trigger::Name(name.into()),
                namespace => Trigger::Key(format!("{namespace}/{name}").into()),
            };
        }
        let exact = |(index, field): (usize, &&str)| {
            let value = self.fields.exact(field).filter(|value| !value.is_empty())?;
            Some(Trigger::Field(index, value.into()))
        };
        self.selectable.iter().enumerate().find_map(exact).unwrap_or_else(namespaced)
    }
}

/// An index over watchers: an event looks up the triggers of its object instead of asking them all.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Trigger {
    All,
    Namespace(Box<str>),
    Name(Box<str>),
    Key(Box<str>),
    Field(usize, Box<str>),
}

impl Trigger {
    pub fn of(entry: &Entry) -> impl Iterator<Item = Trigger> {
        let place = [
            Trigger::All,
            Trigger::Namespace(entry.namespace().into()),
            Trigger::Name(entry.name().into()),
            Trigger::Key((&*entry.key).into()),
        ];
        place.into_iter().chain(entry.fields().map(|(index, value)| Trigger::Field(index, value.into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_version_is_spliced_into_metadata() {
        let object = json!({"apiVersion": "v1", "data": {"metadata": {"a": "b"}}, "kind": "ConfigMap", "metadata": {"name": "x"}});
        let stored = encode_stored(&object);
        assert!(stored.starts_with(br#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name""#));
        let served: Value = serde_json::from_slice(&splice(&stored, 42).unwrap()).unwrap();
        let mut want = object.clone();
        want["metadata"]["resourceVersion"] = "42".into();
        assert_eq!(served, want);
        let empty = encode(&json!({"kind": "X", "apiVersion": "v1", "metadata": {}}));
        let served: Value = serde_json::from_slice(&splice(&empty, 7).unwrap()).unwrap();
        assert_eq!(served["metadata"], json!({"resourceVersion": "7"}));
        assert!(splice(b"{}", 1).is_none());
    }
}
