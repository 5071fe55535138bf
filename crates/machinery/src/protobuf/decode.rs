//! From a message to a value.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value};

use super::{
    Envelope, is_enveloped, malformed, utf8,
    wire::{Reader, Wire},
};
use crate::{
    Result,
    schema::{Alternative, Field, FieldKind, Presence, Type, Types},
    time,
};

/// Nesting that a message may have; JSONSchemaProps nests as deep as its author likes.
const MAX_DEPTH: usize = 128;

/// The value of a message without envelope; numbers the type does not have are skipped, as protobuf demands.
pub fn decode(types: &Types, type_: &Type, bytes: &[u8]) -> Result<Value> {
    let mut map = Map::new();
    Decoder { types, depth: 0 }.message(type_, &[], bytes, &mut map)?;
    Ok(Value::Object(map))
}

#[derive(Clone, Copy)]
struct Decoder<'t> {
    types: &'t Types,
    depth: usize,
}

impl Decoder<'_> {
    /// Reads the message that stands at `outer` within `type_`.
    fn message(self, type_: &Type, outer: &[u32], bytes: &[u8], map: &mut Map<String, Value>) -> Result<()> {
        if self.depth > MAX_DEPTH {
            return Err(malformed("message nested too deep"));
        }
        let inner = Self { depth: self.depth + 1, ..self };
        let mut reader = Reader::new(bytes);
        while let Some((number, wire)) = reader.next_field().map_err(malformed)? {
            let at = type_.fields.iter().find(|field| field.number == number && *field.outer == *outer);
            if let Some(field) = at {
                inner.field(field, wire, map)?;
                continue;
            }
            let path = [outer, &[number]].concat();
            if let (Wire::Bytes(bytes), true) = (wire, type_.fields.iter().any(|field| field.outer.starts_with(&path)))
            {
                inner.message(type_, &path, bytes, map)?;
            }
        }
        Ok(())
    }

    fn field(self, field: &Field, wire: Wire<'_>, map: &mut Map<String, Value>) -> Result<()> {
        let name = &*field.json_name;
        match (&field.kind, wire) {
            (FieldKind::List(inner), Wire::Bytes(packed)) if is_numeric(inner) => {
                let mut reader = Reader::new(packed);
                while let Some(item) = reader.packed().map_err(malformed)? {
                    list(map, name).push(self.value(inner, Wire::Varint(item))?);
                }
            }
            (FieldKind::List(inner), wire) => {
                let item = self.value(inner, wire)?;
                list(map, name).push(item);
            }
            (FieldKind::Map(inner), Wire::Bytes(entry)) => {
                let (key, item) = self.entry(inner, entry)?;
                if let Value::Object(entries) = map.entry(name).or_insert_with(|| Value::Object(Map::new())) {
                    entries.insert(key, item);
                }
            }
            // A struct that occurs again is merged into the first.
            (FieldKind::Struct(id), Wire::Bytes(bytes)) => {
                if let Value::Object(fields) = map.entry(name).or_insert_with(|| Value::Object(Map::new())) {
                    self.message(self.types.type_(*id), &[], bytes, fields)?;
                }
            }
            (kind, wire) => {
                let value = self.value(kind, wire)?;
                let unset = value.is_null()
                    || matches!(kind, FieldKind::IntOrString) && field.presence != Presence::Set && value == 0;
                if !unset {
                    map.insert(name.to_owned(), value);
                }
            }
        }
        Ok(())
    }

    fn entry(self, inner: &FieldKind, bytes: &[u8]) -> Result<(String, Value)> {
        let (mut key, mut item) = (String::new(), None);
        let mut reader = Reader::new(bytes);
        while let Some((number, wire)) = reader.next_field().map_err(malformed)? {
            match (number, wire) {
                (1, Wire::Bytes(text)) => key = utf8(text)?.to_owned(),
                (2, wire) => item = Some(self.value(inner, wire)?),
                _ => {}
            }
        }
        Ok((key, item.unwrap_or_else(|| crate::schema::decode::zero(inner))))
    }

    fn value(self, kind: &FieldKind, wire: Wire<'_>) -> Result<Value> {
        Ok(match (kind, wire) {
            (FieldKind::String, Wire::Bytes(text)) => utf8(text)?.into(),
            (FieldKind::Bool, Wire::Varint(value)) => (value != 0).into(),
            (FieldKind::Int32, Wire::Varint(value)) => (value as i32).into(),
            (FieldKind::Int64, Wire::Varint(value)) => (value as i64).into(),
            (FieldKind::Double, Wire::Fixed64(bits)) => f64::from_bits(bits).into(),
            (FieldKind::Bytes, Wire::Bytes(bytes)) => STANDARD.encode(bytes).into(),
            (FieldKind::Quantity, Wire::Bytes(bytes)) => match first_bytes(bytes)? {
                [] => "0".into(),
                text => utf8(text)?.into(),
            },
            (FieldKind::IntOrString, Wire::Bytes(bytes)) => int_or_string(bytes)?,
            (FieldKind::Time | FieldKind::MicroTime, Wire::Bytes(bytes)) => timestamp(bytes, kind)?,
            (FieldKind::Duration, Wire::Bytes(bytes)) => {
                crate::duration::format_go(varints::<1>(bytes)?[0] as i64).into()
            }
            (FieldKind::Raw | FieldKind::Json | FieldKind::FieldsV1, Wire::Bytes(bytes)) => embedded(bytes)?,
            (FieldKind::Struct(id), Wire::Bytes(bytes)) => {
                let mut fields = Map::new();
                self.message(self.types.type_(*id), &[], bytes, &mut fields)?;
                Value::Object(fields)
            }
            (FieldKind::Wrapped(inner), Wire::Bytes(bytes)) => self.wrapped(inner, 1, bytes)?,
            (FieldKind::Union(id, alternative), Wire::Bytes(bytes)) => {
                self.union(&FieldKind::Struct(*id), *alternative, bytes)?
            }
            _ => return Err(malformed("wrong wireType for a field")),
        })
    }

    /// The items with one number, in a message that has nothing else.
    fn wrapped(self, inner: &FieldKind, number: u32, bytes: &[u8]) -> Result<Value> {
        let mut items = Vec::new();
        let mut reader = Reader::new(bytes);
        while let Some((found, wire)) = reader.next_field().map_err(malformed)? {
            if found == number {
                items.push(self.value(inner, wire)?);
            }
        }
        Ok(Value::Array(items))
    }

    fn union(self, schema: &FieldKind, alternative: Alternative, bytes: &[u8]) -> Result<Value> {
        let schema_number = if alternative == Alternative::Bool { 2 } else { 1 };
        if let Value::Array(mut schemas) = self.wrapped(schema, schema_number, bytes)?
            && let Some(schema) = schemas.pop()
        {
            return Ok(schema);
        }
        match alternative {
            Alternative::Structs => self.wrapped(schema, 2, bytes),
            Alternative::Strings => self.wrapped(&FieldKind::String, 2, bytes),
            Alternative::Bool => Ok((varints::<1>(bytes)?[0] != 0).into()),
        }
    }
}

fn is_numeric(kind: &FieldKind) -> bool {
    matches!(kind, FieldKind::Bool | FieldKind::Int32 | FieldKind::Int64)
}

fn list<'m>(map: &'m mut Map<String, Value>, name: &str) -> &'m mut Vec<Value> {
    let value = map.entry(name).or_insert_with(|| Value::Array(Vec::new()));
    value.as_array_mut().expect("a list field holds nothing but its list")
}

/// The varints numbered 1 to N of a message; absent ones are 0.
fn varints<const N: usize>(bytes: &[u8]) -> Result<[u64; N]> {
    let mut values = [0; N];
    let mut reader = Reader::new(bytes);
    while let Some((number, wire)) = reader.next_field().map_err(malformed)? {
        if let (Wire::Varint(value), Some(slot)) = (wire, values.get_mut(number as usize - 1)) {
            *slot = value;
        }
    }
    Ok(values)
}

/// The bytes numbered 1 of a message.
fn first_bytes(bytes: &[u8]) -> Result<&[u8]> {
    let mut found: &[u8] = &[];
    let mut reader = Reader::new(bytes);
    while let Some((number, wire)) = reader.next_field().map_err(malformed)? {
        if let (1, Wire::Bytes(bytes)) = (number, wire) {
            found = bytes;
        }
    }
    Ok(found)
}

fn int_or_string(bytes: &[u8]) -> Result<Value> {
    let [type_, number] = varints::<2>(bytes)?;
    if type_ == 0 {
        return Ok((number as i32).into());
    }
    let mut text: &[u8] = &[];
    let mut reader = Reader::new(bytes);
    while let Some((number, wire)) = reader.next_field().map_err(malformed)? {
        if let (3, Wire::Bytes(bytes)) = (number, wire) {
            text = bytes;
        }
    }
    Ok(utf8(text)?.into())
}

/// An empty message is Go's zero time: no time at all.
fn timestamp(bytes: &[u8], kind: &FieldKind) -> Result<Value> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let [seconds, nanos] = varints::<2>(bytes)?;
    let timestamp = jiff::Timestamp::new(seconds as i64, nanos as i32).map_err(malformed)?;
    Ok(if *kind == FieldKind::Time { time::format(timestamp) } else { time::format_micro(timestamp) }.into())
}

/// JSON in a bytes field; an object in an envelope of its own must hold JSON too.
fn embedded(bytes: &[u8]) -> Result<Value> {
    let mut raw = first_bytes(bytes)?;
    if is_enveloped(raw) {
        let envelope = Envelope::parse(raw)?;
        if envelope.content_type != "application/json" {
            return Err(malformed(format!("embedded {} must be JSON", envelope.kind)));
        }
        raw = envelope.raw;
    }
    if raw.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(raw).map_err(malformed) }
}
