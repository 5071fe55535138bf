//! YAML bodies: the same value JSON would give, duplicate keys kept track of with their lines.

use std::{cell::RefCell, fmt, marker::PhantomData};

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Visitor};
use serde_json::Value;
use serde_saphyr::{DuplicateKeyPolicy, Spanned};

use super::document::{Key, Location, Node};

/// Parses one YAML document; the warnings read `line 3: key "foo" already set in map`.
pub fn yaml(bytes: &[u8]) -> Result<(Value, Vec<String>), String> {
    let duplicates = RefCell::new(Vec::new());
    let options = serde_saphyr::options! { duplicate_keys: DuplicateKeyPolicy::LastWins, strict_booleans: false };
    let parsed = serde_saphyr::with_deserializer_from_slice_with_options(bytes, options, |deserializer| {
        let node: Node<'_, YamlKey> =
            Node { at: &Location::Root, duplicates: &duplicates, every: false, key: PhantomData };
        node.deserialize(deserializer)
    });
    match parsed {
        Ok(value) => Ok((value, duplicates.into_inner())),
        Err(error) => Err(format!("error converting YAML to JSON: {error}")),
    }
}

/// A scalar key with its line; numbers and booleans become their text, as JSON needs it.
struct YamlKey(Spanned<Text>);

impl<'de> Deserialize<'de> for YamlKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Spanned::deserialize(deserializer).map(Self)
    }
}

impl Key for YamlKey {
    fn into_text(self, duplicate: impl FnOnce(&str, Option<usize>)) -> String {
        let line = self.0.referenced.line() as usize;
        duplicate(&self.0.value.0, Some(line));
        self.0.value.0
    }
}

struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor)
    }
}

struct TextVisitor;

impl Visitor<'_> for TextVisitor {
    type Value = Text;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a scalar key")
    }

    fn visit_str<E>(self, value: &str) -> Result<Text, E> {
        Ok(Text(value.to_owned()))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Text, E> {
        Ok(Text(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Text, E> {
        Ok(Text(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Text, E> {
        Ok(Text(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Text, E> {
        Ok(Text(value.to_string()))
    }

    fn visit_unit<E>(self) -> Result<Text, E> {
        Ok(Text("null".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn yaml_reads_as_json() {
        let text = "a: 1\nb: [x, 'y', 1.5, true, null]\nc:\n  d: |\n    two\n    lines\n1: one\ntrue: yes\n";
        let (value, duplicates) = yaml(text.as_bytes()).unwrap();
        assert_eq!(
            value,
            json!({"a": 1, "b": ["x", "y", 1.5, true, null], "c": {"d": "two\nlines\n"}, "1": "one", "true": true})
        );
        assert!(duplicates.is_empty());
    }

    #[test]
    fn duplicates_have_their_lines() {
        let (value, duplicates) = yaml(b"a: 1\nb:\n  c: 2\n  c: 3\na: 4\n").unwrap();
        assert_eq!(value, json!({"a": 4, "b": {"c": 3}}));
        assert_eq!(duplicates, [r#"line 4: key "c" already set in map"#, r#"line 5: key "a" already set in map"#]);
        assert!(yaml(b"a: [").unwrap_err().to_string().starts_with("error converting YAML to JSON: "));
    }
}
