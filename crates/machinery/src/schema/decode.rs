//! From bytes to a checked value: JSON and YAML with duplicate-field detection, then types, unknown fields and
//! Go's idea of absence (`null`, and zero where the field omits it).
//!
//! The errors are those of the Go decoder, which clients and conformance tests compare. Canonical spelling
//! (UTC times, canonical quantities, base64 without line breaks) comes out of the same walk, so a value that
//! passed here serialises as a Go client would write it.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Number, Value};

use super::document::{Location, MAX_STRICT_ERRORS};
use super::{Alternative, Field, FieldKind, Presence, Type, TypeId, Types};
use crate::{
    ApiError, Result,
    field::quote,
    gvk::GroupVersionKind,
    quantity::{ParseError, Quantity},
    time,
};

pub use super::{
    document::{in_order, json},
    yaml::yaml,
};

/// The `fieldValidation` query parameter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

impl FieldValidation {
    /// Absent means `Warn`; the error is upstream's.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "Ignore" => Ok(Self::Ignore),
            "" | "Warn" => Ok(Self::Warn),
            "Strict" => Ok(Self::Strict),
            other => {
                Err(format!("Unsupported value: {}: supported values: \"Ignore\", \"Strict\", \"Warn\"", quote(other)))
            }
        }
    }
}

/// Checks, prunes and normalises `value` as `type_`; the warnings name unknown fields.
pub fn check(types: &Types, type_: &Type, value: &mut Value, validation: FieldValidation) -> Result<Vec<String>> {
    let found = inspect(types, type_, value, true)?;
    judge(value, found, validation)
}

/// The same without dropping zeroes: server-side apply counts every field that was sent.
pub fn check_applied(
    types: &Types,
    type_: &Type,
    value: &mut Value,
    validation: FieldValidation,
) -> Result<Vec<String>> {
    let found = inspect(types, type_, value, false)?;
    judge(value, found, validation)
}

/// What of `value` its type does not know, to be [judged](judge) with what else is known about it.
pub fn unknown(types: &Types, type_: &Type, value: &mut Value) -> Result<Vec<String>> {
    inspect(types, type_, value, true)
}

/// [`check`] for the outcome of a patch, whose errors the caller puts into a context of its own.
pub fn check_patched(
    types: &Types,
    type_: &Type,
    value: &mut Value,
    mut findings: Vec<String>,
    validation: FieldValidation,
) -> Result<Vec<String>, String> {
    findings.extend(walk(types, type_, value, true)?);
    match validation {
        FieldValidation::Ignore => Ok(Vec::new()),
        FieldValidation::Strict if !findings.is_empty() => Err(strict_error(&findings)),
        _ => Ok(findings),
    }
}

/// Turns findings into nothing, warnings or an error, as the client asked.
pub fn judge(value: &Value, findings: Vec<String>, validation: FieldValidation) -> Result<Vec<String>> {
    match validation {
        FieldValidation::Ignore => Ok(Vec::new()),
        FieldValidation::Strict if !findings.is_empty() => Err(cannot_handle(value, &strict_error(&findings))),
        _ => Ok(findings),
    }
}

/// `strict decoding error: ...`; YAML findings come as Go's YAML library words them.
fn strict_error(findings: &[String]) -> String {
    let (yaml, rest): (Vec<_>, Vec<_>) =
        findings.iter().map(String::as_str).partition(|text| text.starts_with("line "));
    let mut parts = Vec::new();
    if !yaml.is_empty() {
        parts.push(format!("yaml: unmarshal errors:\n  {}", yaml.join("\n  ")));
    }
    parts.extend(rest.into_iter().map(str::to_owned));
    format!("strict decoding error: {}", parts.join(", "))
}

fn cannot_handle(value: &Value, error: &str) -> ApiError {
    match GroupVersionKind::of(value) {
        Ok(gvk) if !gvk.kind.is_empty() => ApiError::bad_request(format!(
            "{} in version {} cannot be handled as a {}: {error}",
            gvk.kind,
            quote(&gvk.version),
            gvk.kind
        )),
        _ => ApiError::bad_request(error),
    }
}

fn inspect(types: &Types, type_: &Type, value: &mut Value, drop_zeroes: bool) -> Result<Vec<String>> {
    walk(types, type_, value, drop_zeroes).map_err(|error| cannot_handle(value, &error))
}

fn walk(types: &Types, type_: &Type, value: &mut Value, drop_zeroes: bool) -> Result<Vec<String>, String> {
    let mut walk = Walk { types, drop_zeroes, unknown: Vec::new() };
    walk.root(type_, value)?;
    Ok(walk.unknown)
}

struct Walk<'t> {
    types: &'t Types,
    drop_zeroes: bool,
    unknown: Vec<String>,
}

/// What a type error needs to know beside the path.
#[derive(Clone, Copy)]
struct Place<'a> {
    at: &'a Location<'a>,
    /// The Go struct that holds the field; absent at the root.
    owner: Option<&'a Type>,
}

impl Walk<'_> {
    fn root(&mut self, type_: &Type, value: &mut Value) -> Result<(), String> {
        let place = Place { at: &Location::Root, owner: None };
        match value {
            Value::Object(map) => self.fields(type_, map, place.at),
            other => Err(wrong_type(other, place, type_.go_name())),
        }
    }

    fn fields(&mut self, type_: &Type, map: &mut Map<String, Value>, at: &Location<'_>) -> Result<(), String> {
        let mut problem = None;
        map.retain(|name, value| {
            if problem.is_some() {
                return true;
            }
            let Some(field) = type_.field(name) else {
                return self.without_field(type_, name, value, at, &mut problem);
            };
            if value.is_null() {
                return false;
            }
            let here = Location::Name(at, name);
            if let Err(error) = self.kind(&field.kind, value, Place { at: &here, owner: Some(type_) }) {
                problem = Some(error);
                return true;
            }
            !(self.drop_zeroes && omitted(field, value))
        });
        problem.map_or(Ok(()), Err)
    }

    /// `apiVersion` and `kind` of objects stay; other fields are unknown, noted and pruned.
    fn without_field(
        &mut self,
        type_: &Type,
        name: &str,
        value: &Value,
        at: &Location<'_>,
        problem: &mut Option<String>,
    ) -> bool {
        let here = Location::Name(at, name);
        if type_.object && matches!(name, "apiVersion" | "kind") {
            if !value.is_string() && !value.is_null() {
                *problem = Some(wrong_type(value, Place { at: &here, owner: Some(type_) }, "string"));
            }
            return value.is_string();
        }
        if self.unknown.len() < MAX_STRICT_ERRORS {
            self.unknown.push(format!("unknown field {}", quote(&here.to_string())));
        }
        false
    }

    fn kind(&mut self, kind: &FieldKind, value: &mut Value, place: Place<'_>) -> Result<(), String> {
        match (kind, &mut *value) {
            (FieldKind::String, Value::String(_))
            | (FieldKind::Bool, Value::Bool(_))
            | (FieldKind::Double, Value::Number(_))
            | (FieldKind::FieldsV1, Value::Object(_))
            | (FieldKind::Raw | FieldKind::Json, _) => Ok(()),
            (FieldKind::Int32, Value::Number(number)) if fits_int32(number) => Ok(()),
            (FieldKind::Int64, Value::Number(number)) if number.is_i64() => Ok(()),
            (FieldKind::Struct(id), Value::Object(map)) => self.fields(self.types.type_(*id), map, place.at),
            (FieldKind::List(inner) | FieldKind::Wrapped(inner), Value::Array(items)) => {
                self.items(inner, items, place)
            }
            (FieldKind::Map(inner), Value::Object(map)) => self.entries(inner, map, place),
            (FieldKind::Quantity, value) => quantity(value),
            (FieldKind::IntOrString, value) => int_or_string(value),
            (FieldKind::Time, value) => timestamp(value, is_canonical_time, time::format),
            (FieldKind::MicroTime, value) => timestamp(value, is_canonical_micro_time, time::format_micro),
            (FieldKind::Bytes, Value::String(text)) => bytes(text),
            (FieldKind::Duration, Value::String(text)) => crate::duration::parse_go(text).map(|_| ()),
            (FieldKind::Union(id, alternative), value) => self.union(*id, *alternative, value, place),
            (kind, value) => Err(wrong_type(value, place, &self.go_type(kind))),
        }
    }

    fn items(&mut self, inner: &FieldKind, items: &mut [Value], place: Place<'_>) -> Result<(), String> {
        for (index, item) in items.iter_mut().enumerate() {
            self.element(inner, item, Place { at: &Location::Index(place.at, index), ..place })?;
        }
        Ok(())
    }

    fn entries(&mut self, inner: &FieldKind, map: &mut Map<String, Value>, place: Place<'_>) -> Result<(), String> {
        for (key, item) in map.iter_mut() {
            self.element(inner, item, Place { at: &Location::Key(place.at, key), ..place })?;
        }
        Ok(())
    }

    /// An element of a list or map: `null` is the zero value there.
    fn element(&mut self, kind: &FieldKind, value: &mut Value, place: Place<'_>) -> Result<(), String> {
        if value.is_null() {
            *value = zero(kind);
            return Ok(());
        }
        self.kind(kind, value, place)
    }

    fn union(
        &mut self,
        id: TypeId,
        alternative: Alternative,
        value: &mut Value,
        place: Place<'_>,
    ) -> Result<(), String> {
        match (alternative, value) {
            (_, Value::Object(map)) => self.fields(self.types.type_(id), map, place.at),
            (Alternative::Structs, Value::Array(items)) => self.items(&FieldKind::Struct(id), items, place),
            (Alternative::Strings, Value::Array(items)) => self.items(&FieldKind::String, items, place),
            (Alternative::Bool, Value::Bool(_)) => Ok(()),
            (Alternative::Bool, _) => Err("boolean or JSON schema expected".into()),
            (_, value) => Err(wrong_type(value, place, self.types.type_(id).go_name())),
        }
    }

    fn go_type(&self, kind: &FieldKind) -> String {
        match kind {
            FieldKind::Bool => "bool".into(),
            FieldKind::Int32 => "int32".into(),
            FieldKind::Int64 => "int64".into(),
            FieldKind::Double => "float64".into(),
            FieldKind::Bytes => "[]uint8".into(),
            FieldKind::FieldsV1 => "v1.FieldsV1".into(),
            FieldKind::Struct(id) | FieldKind::Union(id, _) => self.types.type_(*id).go_name().into(),
            FieldKind::List(inner) | FieldKind::Wrapped(inner) => format!("[]{}", self.go_type(inner)),
            FieldKind::Map(inner) => format!("map[string]{}", self.go_type(inner)),
            FieldKind::Quantity => "resource.Quantity".into(),
            _ => "string".into(),
        }
    }
}

fn wrong_type(value: &Value, place: Place<'_>, go_type: &str) -> String {
    let found = match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "bool".into(),
        Value::Number(number) if matches!(go_type, "int32" | "int64") => format!("number {number}"),
        Value::Number(_) => "number".into(),
        Value::String(_) => "string".into(),
        Value::Array(_) => "array".to_owned(),
        Value::Object(_) => "object".into(),
    };
    match place.owner {
        Some(owner) => format!(
            "json: cannot unmarshal {found} into Go struct field {}.{} of type {go_type}",
            owner.short_name(),
            place.at.go_path()
        ),
        None => format!("json: cannot unmarshal {found} into Go value of type {go_type}"),
    }
}

/// The zero value of an element.
pub(crate) fn zero(kind: &FieldKind) -> Value {
    match kind {
        FieldKind::String | FieldKind::Bytes => "".into(),
        FieldKind::Bool => false.into(),
        FieldKind::Int32 | FieldKind::Int64 | FieldKind::IntOrString | FieldKind::Double => 0.into(),
        FieldKind::Quantity => "0".into(),
        FieldKind::Duration => "0s".into(),
        FieldKind::List(_) | FieldKind::Wrapped(_) => Value::Array(Vec::new()),
        FieldKind::Time | FieldKind::MicroTime | FieldKind::Json => Value::Null,
        FieldKind::Raw | FieldKind::FieldsV1 | FieldKind::Struct(_) | FieldKind::Map(_) | FieldKind::Union(..) => {
            Value::Object(Map::new())
        }
    }
}

/// Whether Go's encoder leaves the field out at this value.
fn omitted(field: &Field, value: &Value) -> bool {
    if field.presence != Presence::NonZero {
        return false;
    }
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0) && !matches!(field.kind, FieldKind::IntOrString),
        Value::String(text) => text.is_empty() && !matches!(field.kind, FieldKind::IntOrString),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty() && matches!(field.kind, FieldKind::Map(_)),
    }
}

fn fits_int32(number: &Number) -> bool {
    number.as_i64().is_some_and(|number| i32::try_from(number).is_ok())
}

fn quantity(value: &mut Value) -> Result<(), String> {
    let parsed = match value {
        Value::String(text) => {
            // The usual spellings are canonical already: a few digits, perhaps with a suffix.
            if text.len() < 4 && !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit()) {
                return Ok(());
            }
            Quantity::parse(text.trim())
        }
        Value::Number(number) => Quantity::parse(&number.to_string()),
        _ => Err(ParseError::Format),
    };
    *value = parsed.map_err(|error| error.to_string())?.to_string().into();
    Ok(())
}

fn int_or_string(value: &Value) -> Result<(), String> {
    match value {
        Value::String(_) => Ok(()),
        Value::Number(number) if fits_int32(number) => Ok(()),
        other => Err(wrong_type(other, Place { at: &Location::Root, owner: None }, "int32")),
    }
}

fn timestamp(
    value: &mut Value,
    is_canonical: fn(&[u8]) -> bool,
    format: fn(jiff::Timestamp) -> String,
) -> Result<(), String> {
    let Value::String(text) = value else {
        return Err(wrong_type(value, Place { at: &Location::Root, owner: None }, "string"));
    };
    let parsed = time::parse(text)?;
    if !is_canonical(text.as_bytes()) {
        *text = format(parsed);
    }
    Ok(())
}

fn is_canonical_time(text: &[u8]) -> bool {
    text.len() == 20 && text[10] == b'T' && text[19] == b'Z'
}

fn is_canonical_micro_time(text: &[u8]) -> bool {
    text.len() == 27 && text[10] == b'T' && text[26] == b'Z'
}

/// Go skips line breaks within base64, and never writes them.
fn bytes(text: &mut String) -> Result<(), String> {
    if text.contains(['\n', '\r']) {
        text.retain(|c| c != '\n' && c != '\r');
    }
    STANDARD.decode(text.as_bytes()).map(|_| ()).map_err(|error| {
        let at = match error {
            base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
            base64::DecodeError::InvalidLength(length) => length / 4 * 4,
            base64::DecodeError::InvalidPadding => text.len() / 4 * 4,
        };
        format!("illegal base64 data at input byte {at}")
    })
}

#[cfg(test)]
mod tests;
