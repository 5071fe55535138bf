//! Bodies to values and back: JSON, YAML and protobuf, checked against a kind's schema.
//!
//! The one place where wire formats meet; handlers see values only.

use bytes::Bytes;
use machinery::{
    gvk::GroupVersion,
    protobuf::{self, Envelope},
    schema::{
        Type,
        decode::{self, FieldValidation},
    },
    status::{ApiError, Result},
};
use resources::{Facts, registry, types};
use serde_json::Value;

use crate::{
    negotiate::{Format, JSON, YAML},
    strategy::DeleteOptions,
    write::Warnings,
};

/// Decodes a body of `facts`' kind: syntax, kind, types, unknown and duplicate fields.
pub fn decode(
    facts: &Facts,
    format: Format,
    body: &[u8],
    validation: FieldValidation,
    warnings: &Warnings,
) -> Result<Value> {
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
        Format::Protobuf => (enveloped(types().get(facts.schema), body)?, Vec::new()),
    };
    if !object.is_object() {
        let (kind, version) = (facts.kind, facts.version);
        let message = format!("{kind} in version {version:?} cannot be handled as a {kind}: the body is not an object");
        return Err(ApiError::bad_request(message));
    }
    Ok((object, duplicates))
}

/// Checks the types of an object and drops what its kind does not know, as `validation` says.
pub fn conform(
    facts: &Facts,
    object: &mut Value,
    duplicates: Vec<String>,
    validation: FieldValidation,
    warnings: &Warnings,
) -> Result<()> {
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
            let message = format!(
                "the API version in the data ({api_version}) does not match the expected API version ({wanted})"
            );
            return Err(ApiError::bad_request(message));
        }
    }
    if !kind.is_empty() && kind != facts.kind {
        let (version, expected) = (facts.version, facts.kind);
        let message = format!(
            "{kind} in version {version:?} cannot be handled as a {expected}: no kind {kind:?} is expected here"
        );
        return Err(ApiError::bad_request(message));
    }
    object["kind"] = facts.kind.into();
    object["apiVersion"] = wanted.into();
    Ok(())
}

/// What a protobuf envelope holds, with the kind that it names.
fn enveloped(schema: Option<&Type>, body: &[u8]) -> Result<Value> {
    let envelope = Envelope::parse(body)?;
    let schema = schema.ok_or_else(|| ApiError::unsupported_media_type(&[JSON, YAML]))?;
    if envelope.content_type == JSON {
        return Ok(decode::json(envelope.raw)?.0);
    }
    let mut object = protobuf::decode(types(), schema, envelope.raw)?;
    for (key, text) in [("apiVersion", envelope.api_version), ("kind", envelope.kind)] {
        if !text.is_empty() {
            object[key] = text.into();
        }
    }
    Ok(object)
}

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// metav1.DeleteOptions, which are not stored.
pub fn delete_options(format: Format, body: &[u8]) -> Result<DeleteOptions> {
    let value = match format {
        Format::Json => decode::json(body)?.0,
        Format::Yaml => decode::yaml(body)?.0,
        Format::Protobuf => enveloped(types().get(&format!("{META}DeleteOptions")), body)?,
    };
    serde_json::from_value(value).map_err(|error| ApiError::bad_request(format!("unable to decode options: {error}")))
}

/// The type of an answer, by the kind it names; lists are named after their items.
fn schema_of(api_version: &str, kind: &str) -> Option<&'static Type> {
    let of_kind = |kind: &str| {
        let version = GroupVersion::parse(api_version).ok()?;
        Some(registry().by_gvk(&version.group, &version.version, kind)?.facts().schema)
    };
    let name = match kind {
        "Status" | "PartialObjectMetadata" | "PartialObjectMetadataList" => format!("{META}{kind}"),
        _ => match (of_kind(kind), kind.strip_suffix("List").and_then(of_kind)) {
            (Some(schema), _) => schema.to_owned(),
            (None, Some(item)) => format!("{item}List"),
            (None, None) => return None,
        },
    };
    types().get(&name)
}

/// The protobuf message of an object, without envelope; `None` for a kind that has none.
pub fn message(object: &Value) -> Option<Bytes> {
    let text = |key: &str| object[key].as_str().unwrap_or_default();
    let schema = schema_of(text("apiVersion"), text("kind"))?;
    Some(protobuf::encode(types(), schema, object).into())
}

/// A message in its envelope.
pub fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    Envelope { api_version, kind, raw, ..Envelope::default() }.to_bytes()
}

/// The protobuf form of a JSON answer.
pub fn protobuf(json: &[u8]) -> Bytes {
    let object: Value = serde_json::from_slice(json).unwrap_or_default();
    let text = |key: &str| object[key].as_str().unwrap_or_default();
    match message(&object) {
        Some(raw) => envelope(text("apiVersion"), text("kind"), &raw).into(),
        // The envelope may carry JSON.
        None => Envelope {
            api_version: text("apiVersion"),
            kind: text("kind"),
            raw: json,
            content_type: JSON,
            ..Envelope::default()
        }
        .to_bytes()
        .into(),
    }
}

/// One item of a list message: its field number, its length, itself.
pub fn list_item(out: &mut Vec<u8>, raw: &[u8]) {
    const ITEMS: u8 = 2 << 3 | 2;
    out.push(ITEMS);
    let mut length = raw.len();
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(raw);
}
