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
use serde_json::{Value, json};

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
    let (mut object, mut findings) = parse(facts, format, body)?;
    check_kind(facts, &mut object)?;
    findings.extend(prune(facts, &mut object)?);
    if format == Format::Json {
        findings = decode::in_order(body, findings);
    }
    warnings.lock().extend(decode::judge(&object, findings, validation)?);
    Ok(object)
}

/// Any body as a value, with what it said twice.
fn parse(facts: &Facts, format: Format, body: &[u8]) -> Result<(Value, Vec<String>)> {
    let parsed = match format {
        Format::Json => decode::json(body).map_err(|error| format!("{HEADLESS} {error}")),
        Format::Yaml => decode::yaml(body),
        Format::Protobuf => Ok((enveloped(types().get(facts.schema), body)?, Vec::new())),
    };
    let (mut object, duplicates) = parsed.map_err(|error| unrecognized(facts, &error, body))?;
    if object.is_null() {
        object = json!({});
    }
    if let Some(error) = head_error(&object) {
        return Err(unrecognized(facts, &format!("{HEADLESS} {error}"), body));
    }
    match GroupVersion::parse(text(&object, "apiVersion")) {
        Err(error) => Err(unrecognized(facts, &error, body)),
        Ok(_) => Ok((object, duplicates)),
    }
}

const HEADLESS: &str = "couldn't get version/kind; json parse error:";

/// Why Go finds no kind and version in a value.
fn head_error(object: &Value) -> Option<String> {
    let name = |value: &Value| match value {
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Number(_) => "number",
        Value::Bool(_) => "bool",
        Value::Null | Value::Object(_) => "object",
    };
    if !object.is_object() {
        let head =
            r#"struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"#;
        return Some(format!("json: cannot unmarshal {} into Go value of type {head}", name(object)));
    }
    let wrong = |key: &&&str| object.get(**key).is_some_and(|value| !value.is_string() && !value.is_null());
    let key = ["apiVersion", "kind"].iter().find(wrong)?;
    Some(format!("json: cannot unmarshal {} into Go struct field .{key} of type string", name(&object[key])))
}

/// Bytes of a body that an error shows.
const SUMMARY: usize = 30;

fn unrecognized(facts: &Facts, error: &str, body: &[u8]) -> ApiError {
    let shown = &body[..body.len().min(SUMMARY)];
    let shown = match body.first() {
        None => "<empty>".into(),
        Some(b'{') => String::from_utf8_lossy(shown).into_owned(),
        Some(_) => hex::encode(shown),
    };
    let more = if body.len() > SUMMARY { " ..." } else { "" };
    let kind = facts.kind;
    ApiError::bad_request(format!(
        "the object provided is unrecognized (must be of type {kind}): {error} ({shown}{more})"
    ))
}

/// Checks the types of an object and drops what its kind does not know; says what that was.
pub fn prune(facts: &Facts, object: &mut Value) -> Result<Vec<String>> {
    match types().get(facts.schema) {
        Some(schema) => decode::unknown(types(), schema, object),
        None => Ok(Vec::new()),
    }
}

/// Checks that an object is of the kind of `facts`, and completes what it says of it.
pub fn check_kind(facts: &Facts, object: &mut Value) -> Result<()> {
    if let Some(error) = wrong_kind(facts, object) {
        let (kind, version) = (text(object, "kind"), text(object, "apiVersion"));
        let version = version.rsplit('/').next().filter(|version| !version.is_empty()).unwrap_or(facts.version);
        let kind = if kind.is_empty() { facts.kind } else { kind };
        return Err(ApiError::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {}: {error}",
            facts.kind
        )));
    }
    let (found, wanted) = (text(object, "apiVersion"), facts.api_version());
    if !found.is_empty() && found != wanted {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({found}) does not match the expected API version ({wanted})"
        )));
    }
    object["kind"] = facts.kind.into();
    object["apiVersion"] = wanted.into();
    Ok(())
}

fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object[key].as_str().unwrap_or_default()
}

/// Where upstream keeps its kinds, which its errors name.
const SCHEME: &str = "pkg/api/legacyscheme/scheme.go:30";

/// Why an object cannot become one of the kind of `facts`; another version of the same kind can.
pub fn wrong_kind(facts: &Facts, object: &Value) -> Option<String> {
    let (kind, api_version) = (text(object, "kind"), text(object, "apiVersion"));
    let kind = if kind.is_empty() { facts.kind } else { kind };
    let found = match api_version {
        "" => GroupVersion::new(facts.group, facts.version),
        text => match GroupVersion::parse(text) {
            Ok(found) => found,
            Err(error) => return Some(error),
        },
    };
    if kind == facts.kind && found.group == facts.group && found.version == facts.version {
        return None;
    }
    match registry().by_gvk(&found.group, &found.version, kind) {
        None => {
            Some(format!("no kind {kind:?} is registered for version {:?} in scheme {SCHEME:?}", found.to_string()))
        }
        Some(other) if other.facts().group == facts.group && kind == facts.kind => None,
        Some(_) => {
            let internal = match facts.group.split('.').next() {
                None | Some("") => "core",
                Some(group) => group,
            };
            Some(format!("converting ({}.{kind}) to ({internal}.{}): unknown conversion", found.version, facts.kind))
        }
    }
}

/// What a protobuf envelope holds, with the kind that it names.
fn enveloped(schema: Option<&Type>, body: &[u8]) -> Result<Value> {
    let envelope = Envelope::parse(body)?;
    let schema = schema.ok_or_else(|| ApiError::unsupported_media_type(&[JSON, YAML]))?;
    if envelope.content_type == JSON {
        return Ok(decode::json(envelope.raw).map_err(ApiError::bad_request)?.0);
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
        Format::Json => decode::json(body).map_err(|error| ApiError::bad_request(format!("{HEADLESS} {error}")))?.0,
        Format::Yaml => decode::yaml(body).map_err(ApiError::bad_request)?.0,
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
