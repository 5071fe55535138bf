//! Bodies to values and back: JSON, YAML and protobuf, checked against a kind's schema.
//!
//! The one place where wire formats meet; handlers see values only.

use bytes::Bytes;
use machinery::{
    gvk::GroupVersion,
    schema::decode::{self, FieldValidation},
    status::{ApiError, Result},
};
use resources::{Facts, types};
use serde_json::Value;

use crate::{negotiate::Format, write::Warnings};

/// Decodes a body of `facts`' kind: syntax, kind, types, unknown and duplicate fields.
pub fn decode(facts: &Facts, format: Format, body: &[u8], validation: FieldValidation, warnings: &Warnings) -> Result<Value> {
    let (mut object, duplicates) = parse(facts, format, body)?;
    check_kind(facts, &mut object)?;
    conform(facts, &mut object, duplicates, validation, warnings)?;
    Ok(object)
}

/// Any body as a value, with what it said twice.
fn parse(facts: &Facts, format: Format, body: &[u8]) -> Result<(Value, Vec<String>)> {
    let (object, duplicates) = match format {
        Format::Json => decode::json(body)?,
        Format::Yaml => decode::yaml(body)?,
        Format::Protobuf => return Err(ApiError::unsupported_media_type(&[crate::negotiate::JSON, crate::negotiate::YAML])),
    };
    if !object.is_object() {
        let (kind, version) = (facts.kind, facts.version);
        let message = format!("{kind} in version {version:?} cannot be handled as a {kind}: the body is not an object");
        return Err(ApiError::bad_request(message));
    }
    Ok((object, duplicates))
}

/// Checks the types of an object and drops what its kind does not know, as `validation` says.
pub fn conform(facts: &Facts, object: &mut Value, duplicates: Vec<String>, validation: FieldValidation, warnings: &Warnings) -> Result<()> {
    let types = types();
    let Some(schema) = types.get(facts.schema) else { return Ok(()) };
    let found = decode::check_parsed(types, schema, object, duplicates, validation)?;
    warnings.lock().extend(found);
    Ok(())
}

pub fn check_kind(facts: &Facts, object: &mut Value) -> Result<()> {
    let text = |object: &Value, key: &str| object[key].as_str().unwrap_or_default().to_owned();
    let (kind, api_version) = (text(object, "kind"), text(object, "apiVersion"));
    let wanted = facts.api_version();
    if !api_version.is_empty() {
        let found = GroupVersion::parse(&api_version).map_err(ApiError::bad_request)?;
        if found.group != facts.group || found.version != facts.version {
            let message = format!("the API version in the data ({api_version}) does not match the expected API version ({wanted})");
            return Err(ApiError::bad_request(message));
        }
    }
    if !kind.is_empty() && kind != facts.kind {
        let (version, expected) = (facts.version, facts.kind);
        let message = format!("{kind} in version {version:?} cannot be handled as a {expected}: no kind {kind:?} is expected here");
        return Err(ApiError::bad_request(message));
    }
    object["kind"] = facts.kind.into();
    object["apiVersion"] = wanted.into();
    Ok(())
}

/// Options and other small bodies that are not stored.
pub fn options<T: serde::de::DeserializeOwned>(format: Format, body: &[u8]) -> Result<T> {
    let (value, _) = match format {
        Format::Yaml => decode::yaml(body)?,
        _ => decode::json(body)?,
    };
    serde_json::from_value(value).map_err(|error| ApiError::bad_request(format!("unable to decode options: {error}")))
}

/// The protobuf form of a JSON answer.
pub fn protobuf(json: &Bytes) -> Bytes {
    json.clone()
}
