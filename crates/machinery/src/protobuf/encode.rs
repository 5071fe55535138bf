//! From a checked value to a message. Absent fields are not written: a Go reader gives them their zero.

use std::cmp::Ordering;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value};

use super::wire;
use crate::{
    schema::{Alternative, Field, FieldKind, Type, Types},
    time,
};

/// The message bytes of a value, without envelope; fields the type does not have are skipped.
pub fn encode(types: &Types, type_: &Type, value: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    if let Value::Object(map) = value {
        Encoder { types }.fields(&mut out, type_, map);
    }
    out
}

struct Encoder<'t> {
    types: &'t Types,
}

impl Encoder<'_> {
    fn fields(&self, out: &mut Vec<u8>, type_: &Type, map: &Map<String, Value>) {
        let mut fields: Vec<(&Field, &Value)> =
            map.iter().filter_map(|(name, value)| Some((type_.field(name)?, value))).collect();
        fields.retain(|(field, value)| field.number > 0 && !value.is_null());
        fields.sort_by(|(a, _), (b, _)| path_order(a, b));
        self.group(out, &fields, 0);
    }

    /// Writes fields that share `depth` outer numbers; those of one embedded message stand together.
    fn group(&self, out: &mut Vec<u8>, fields: &[(&Field, &Value)], depth: usize) {
        for run in
            fields.chunk_by(|(a, _), (b, _)| a.outer.get(depth).is_some() && a.outer.get(depth) == b.outer.get(depth))
        {
            match run[0].0.outer.get(depth) {
                Some(number) => wire::message(out, *number, |out| self.group(out, run, depth + 1)),
                None => self.value(out, run[0].0.number, &run[0].0.kind, run[0].1),
            }
        }
    }

    fn value(&self, out: &mut Vec<u8>, number: u32, kind: &FieldKind, value: &Value) {
        match (kind, value) {
            (FieldKind::String, Value::String(text)) => wire::bytes(out, number, text.as_bytes()),
            (FieldKind::Bool, Value::Bool(value)) => wire::varint(out, number, u64::from(*value)),
            (FieldKind::Int32 | FieldKind::Int64, value) => {
                wire::varint(out, number, value.as_i64().unwrap_or(0) as u64);
            }
            (FieldKind::Double, value) => wire::fixed64(out, number, value.as_f64().unwrap_or(0.0).to_bits()),
            (FieldKind::Bytes, Value::String(text)) => {
                wire::bytes(out, number, &STANDARD.decode(text).unwrap_or_default());
            }
            (FieldKind::Quantity, Value::String(text)) => {
                wire::message(out, number, |out| wire::bytes(out, 1, text.as_bytes()));
            }
            (FieldKind::IntOrString, value) => wire::message(out, number, |out| int_or_string(out, value)),
            (FieldKind::Time | FieldKind::MicroTime, Value::String(text)) => {
                wire::message(out, number, |out| timestamp(out, text));
            }
            (FieldKind::Duration, Value::String(text)) => {
                let nanos = crate::duration::parse_go(text).unwrap_or(0);
                wire::message(out, number, |out| wire::varint(out, 1, nanos as u64));
            }
            (FieldKind::Raw | FieldKind::Json | FieldKind::FieldsV1, value) => {
                wire::message(out, number, |out| wire::bytes(out, 1, value.to_string().as_bytes()));
            }
            (FieldKind::Struct(id), Value::Object(map)) => {
                wire::message(out, number, |out| self.fields(out, self.types.type_(*id), map));
            }
            (FieldKind::List(inner), Value::Array(items)) => {
                items.iter().for_each(|item| self.value(out, number, inner, item));
            }
            (FieldKind::Wrapped(inner), Value::Array(items)) => wire::message(out, number, |out| {
                items.iter().for_each(|item| self.value(out, 1, inner, item));
            }),
            (FieldKind::Map(inner), Value::Object(map)) => {
                for (key, item) in map {
                    wire::message(out, number, |out| {
                        wire::bytes(out, 1, key.as_bytes());
                        self.value(out, 2, inner, item);
                    });
                }
            }
            (FieldKind::Union(id, alternative), value) => {
                let schema = FieldKind::Struct(*id);
                wire::message(out, number, |out| self.union(out, &schema, *alternative, value));
            }
            _ => {}
        }
    }

    fn union(&self, out: &mut Vec<u8>, schema: &FieldKind, alternative: Alternative, value: &Value) {
        match (alternative, value) {
            (Alternative::Bool, Value::Object(_)) => {
                wire::varint(out, 1, 1);
                self.value(out, 2, schema, value);
            }
            (Alternative::Bool, value) => self.value(out, 1, &FieldKind::Bool, value),
            (_, Value::Object(_)) => self.value(out, 1, schema, value),
            (Alternative::Structs, value) => self.value(out, 2, &FieldKind::List(Box::new(schema.clone())), value),
            (Alternative::Strings, value) => {
                self.value(out, 2, &FieldKind::List(Box::new(FieldKind::String)), value);
            }
        }
    }
}

fn path_order(a: &Field, b: &Field) -> Ordering {
    let path = |field: &Field| field.outer.iter().copied().chain([field.number]).collect::<Vec<_>>();
    if a.outer.is_empty() && b.outer.is_empty() { a.number.cmp(&b.number) } else { path(a).cmp(&path(b)) }
}

fn int_or_string(out: &mut Vec<u8>, value: &Value) {
    let text = value.as_str();
    wire::varint(out, 1, u64::from(text.is_some()));
    wire::varint(out, 2, value.as_i64().unwrap_or(0) as u64);
    wire::bytes(out, 3, text.unwrap_or_default().as_bytes());
}

fn timestamp(out: &mut Vec<u8>, text: &str) {
    if let Ok(timestamp) = time::parse(text) {
        let nanos = timestamp.as_nanosecond();
        wire::varint(out, 1, nanos.div_euclid(1_000_000_000) as i64 as u64);
        wire::varint(out, 2, nanos.rem_euclid(1_000_000_000) as u64);
    }
}
