//! From JSON text to a value, with every key that occurs twice noted on the way; YAML feeds the same builder.

use std::{cell::RefCell, fmt, marker::PhantomData};

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::field::quote;

/// Upstream reports no more per object.
pub(super) const MAX_STRICT_ERRORS: usize = 100;

/// Parses JSON, keeping the last of duplicate fields and naming each: `duplicate field "spec.foo"`. Errors are
/// worded as Go's.
pub fn json(bytes: &[u8]) -> Result<(Value, Vec<String>), String> {
    let duplicates = RefCell::new(Vec::new());
    match build(bytes, &duplicates, false) {
        Ok(value) => Ok((value, duplicates.into_inner())),
        Err(error) => Err(syntax_error(bytes, &error)),
    }
}

fn build(bytes: &[u8], found: &RefCell<Vec<String>>, every: bool) -> serde_json::Result<Value> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let node: Node<'_, String> = Node { at: &Location::Root, duplicates: found, every, key: PhantomData };
    node.deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value))
}

/// Findings about JSON text in the order in which Go comes upon them: a second look at the text, for bad ones only.
pub fn in_order(bytes: &[u8], mut findings: Vec<String>) -> Vec<String> {
    let every = RefCell::new(Vec::new());
    if findings.len() > 1 && build(bytes, &every, true).is_ok() {
        let every = every.into_inner();
        findings.sort_by_cached_key(|finding| every.iter().position(|other| other == finding));
    }
    findings
}

/// What Go's decoder says where this one failed, by this one's words.
const SYNTAX: &[(&str, &str)] = &[
    ("key must be a string", "looking for beginning of object key string"),
    ("expected `:`", "after object key"),
    ("expected `,` or `}`", "after object key:value pair"),
    ("expected `,` or `]`", "after array element"),
    ("trailing characters", "after top-level value"),
    ("control character", "in string literal"),
    ("invalid escape", "in string escape code"),
    ("invalid number", "in numeric literal"),
];

fn syntax_error(bytes: &[u8], error: &serde_json::Error) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".into();
    }
    let line = bytes.split(|byte| *byte == b'\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    let found = match line.get(error.column().saturating_sub(1)) {
        Some(b'\'') => r"'\''".to_owned(),
        Some(b'"') => r#"'"'"#.to_owned(),
        Some(byte) => quote(&char::from(*byte).to_string()).replace('"', "'"),
        None => r"'\n'".to_owned(),
    };
    let text = error.to_string();
    let before = &line[..line.len().min(error.column().saturating_sub(1))];
    if text.starts_with("expected ident")
        && let Some((literal, next)) = literal(before)
    {
        return format!("invalid character {found} in literal {literal} (expecting '{next}')");
    }
    let context = match SYNTAX.iter().find(|(own, _)| text.starts_with(own)) {
        Some((_, context)) => context,
        None if text.starts_with("trailing comma") && found == "'}'" => "looking for beginning of object key string",
        None => "looking for beginning of value",
    };
    format!("invalid character {found} {context}")
}

/// The literal that a text breaks off in, and how it should go on.
fn literal(before: &[u8]) -> Option<(&'static str, char)> {
    let begun = ["null", "true", "false"].into_iter().flat_map(|all| (1..all.len()).map(move |end| (all, end)));
    let mut begun = begun.filter(|(all, end)| before.ends_with(&all.as_bytes()[..*end]));
    begun.next_back().map(|(all, end)| (all, char::from(all.as_bytes()[end])))
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
    /// Notes all fields, those that occur once as unknown.
    pub every: bool,
    pub key: PhantomData<K>,
}

impl<K> Node<'_, K> {
    fn child<'b>(&'b self, at: &'b Location<'b>) -> Node<'b, K> {
        Node { at, ..*self }
    }

    fn report(&self, map: &Map<String, Value>, key: &str, line: Option<usize>) {
        let mut duplicates = self.duplicates.borrow_mut();
        if self.every {
            let what = if map.contains_key(key) { "duplicate" } else { "unknown" };
            duplicates.push(format!("{what} field {}", quote(&Location::Name(self.at, key).to_string())));
        } else if map.contains_key(key) && duplicates.len() < MAX_STRICT_ERRORS {
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
