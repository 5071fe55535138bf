//! From JSON text to a value, with every key that occurs twice noted on the way; YAML feeds the same builder.

use std::{cell::RefCell, fmt, marker::PhantomData};

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::{ApiError, Result, field::quote};

/// Upstream reports no more per object.
pub(super) const MAX_STRICT_ERRORS: usize = 100;

/// Parses JSON, keeping the last of duplicate fields and naming each: `duplicate field "spec.foo"`.
pub fn json(bytes: &[u8]) -> Result<(Value, Vec<String>)> {
    let duplicates = RefCell::new(Vec::new());
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let node: Node<'_, String> = Node { at: &Location::Root, duplicates: &duplicates, key: PhantomData };
    let value = node.deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value));
    match value {
        Ok(value) => Ok((value, duplicates.into_inner())),
        Err(error) => Err(ApiError::bad_request(format!("couldn't get version/kind; json parse error: {error}"))),
    }
}

/// Where the walk is: a list on the stack, rendered only for messages.
#[derive(Clone, Copy)]
pub(super) enum Location<'a> {
    Root,
    Name(&'a Location<'a>, &'a str),
    Index(&'a Location<'a>, usize),
    /// A key of a map, which Go's type errors leave out.
    Key(&'a Location<'a>, &'a str),
}

impl fmt::Display for Location<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Name(Self::Root, name) | Self::Key(Self::Root, name) => f.write_str(name),
            Self::Name(parent, name) | Self::Key(parent, name) => write!(f, "{parent}.{name}"),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

impl Location<'_> {
    /// The path as Go's type errors have it: struct fields only.
    pub(super) fn go_path(&self) -> String {
        match self {
            Self::Root => String::new(),
            Self::Index(parent, _) | Self::Key(parent, _) => parent.go_path(),
            Self::Name(parent, name) => match parent.go_path() {
                path if path.is_empty() => (*name).to_owned(),
                path => format!("{path}.{name}"),
            },
        }
    }
}

/// A key of a mapping, which tells how a duplicate is reported.
pub(super) trait Key: for<'de> serde::Deserialize<'de> {
    fn into_text(self, duplicate: impl FnOnce(&str, Option<usize>)) -> String;
}

impl Key for String {
    fn into_text(self, duplicate: impl FnOnce(&str, Option<usize>)) -> String {
        duplicate(&self, None);
        self
    }
}

/// Builds a value while watching for keys that occur twice.
pub(super) struct Node<'a, K> {
    pub at: &'a Location<'a>,
    pub duplicates: &'a RefCell<Vec<String>>,
    pub key: PhantomData<K>,
}

impl<K> Node<'_, K> {
    fn child<'b>(&'b self, at: &'b Location<'b>) -> Node<'b, K> {
        Node { at, duplicates: self.duplicates, key: self.key }
    }

    fn report(&self, map: &Map<String, Value>, key: &str, line: Option<usize>) {
        let mut duplicates = self.duplicates.borrow_mut();
        if map.contains_key(key) && duplicates.len() < MAX_STRICT_ERRORS {
            duplicates.push(match line {
                Some(line) => format!("line {line}: key {} already set in map", quote(key)),
                None => format!("duplicate field {}", quote(&Location::Name(self.at, key).to_string())),
            });
        }
    }
}

impl<'de, K: Key> DeserializeSeed<'de> for Node<'_, K> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, K: Key> Visitor<'de> for Node<'_, K> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element_seed(self.child(&Location::Index(self.at, items.len())))? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<K>()? {
            let key = key.into_text(|key, line| self.report(&map, key, line));
            let value = access.next_value_seed(self.child(&Location::Name(self.at, &key)))?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}
