//! Kubernetes' protobuf: the `k8s\0` envelope, and messages to and from JSON values by the schema table.
//!
//! There are no generated messages; numbers and types come from the same table that checks JSON, so no field can
//! be missing. Decoding gives the plain value: pass it through [`crate::schema::decode::check`] like parsed JSON,
//! which drops the zeroes that Go writes for fields it holds by value.

use serde_json::Value;

use crate::{ApiError, Result, field::quote};

mod decode;
mod encode;
pub mod wire;

pub use decode::decode;
pub use encode::encode;

use wire::{Reader, Wire};

pub const CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// First bytes of every object on the wire and in etcd.
const MAGIC: &[u8] = b"k8s\0";

/// `runtime.Unknown`: what surrounds an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Envelope<'a> {
    pub api_version: &'a str,
    pub kind: &'a str,
    /// The message, or what `content_type` says.
    pub raw: &'a [u8],
    pub content_encoding: &'a str,
    /// Empty for protobuf.
    pub content_type: &'a str,
}

/// Whether bytes carry the envelope.
pub fn is_enveloped(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

impl<'a> Envelope<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let body = bytes.strip_prefix(MAGIC).ok_or_else(|| {
            ApiError::bad_request(
                "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]",
            )
        })?;
        let mut envelope = Self::default();
        let mut reader = Reader::new(body);
        while let Some((number, wire)) = reader.next_field().map_err(malformed)? {
            match (number, wire) {
                (1, Wire::Bytes(type_meta)) => envelope.type_meta(type_meta)?,
                (2, Wire::Bytes(raw)) => envelope.raw = raw,
                (3, Wire::Bytes(text)) => envelope.content_encoding = utf8(text)?,
                (4, Wire::Bytes(text)) => envelope.content_type = utf8(text)?,
                _ => {}
            }
        }
        Ok(envelope)
    }

    fn type_meta(&mut self, bytes: &'a [u8]) -> Result<()> {
        let mut reader = Reader::new(bytes);
        while let Some((number, wire)) = reader.next_field().map_err(malformed)? {
            match (number, wire) {
                (1, Wire::Bytes(text)) => self.api_version = utf8(text)?,
                (2, Wire::Bytes(text)) => self.kind = utf8(text)?,
                _ => {}
            }
        }
        Ok(())
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.raw.len() + 64);
        out.extend_from_slice(MAGIC);
        wire::message(&mut out, 1, |out| {
            wire::bytes(out, 1, self.api_version.as_bytes());
            wire::bytes(out, 2, self.kind.as_bytes());
        });
        wire::bytes(&mut out, 2, self.raw);
        wire::bytes(&mut out, 3, self.content_encoding.as_bytes());
        wire::bytes(&mut out, 4, self.content_type.as_bytes());
        out
    }
}

/// An object in its envelope; `apiVersion` and `kind` are taken from the value.
pub fn object(types: &crate::schema::Types, type_: &crate::schema::Type, value: &Value) -> Vec<u8> {
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
    let raw = encode(types, type_, value);
    Envelope { api_version: text("apiVersion"), kind: text("kind"), raw: &raw, ..Envelope::default() }.to_bytes()
}

/// An enveloped object as a value with its `apiVersion` and `kind`; `type_of` finds the type by these two.
pub fn parse_object<'t>(
    types: &'t crate::schema::Types,
    bytes: &[u8],
    type_of: impl FnOnce(&str, &str) -> Option<&'t crate::schema::Type>,
) -> Result<Value> {
    let Envelope { api_version, kind, raw, content_type, .. } = Envelope::parse(bytes)?;
    let type_ = type_of(api_version, kind).ok_or_else(|| {
        ApiError::bad_request(format!("no kind {} is registered for version {}", quote(kind), quote(api_version)))
    })?;
    let mut value = match content_type {
        "" | CONTENT_TYPE => decode(types, type_, raw)?,
        "application/json" => serde_json::from_slice(raw).map_err(malformed)?,
        other => return Err(malformed(format!("unexpected content type {other} in the envelope"))),
    };
    (value["apiVersion"], value["kind"]) = (api_version.into(), kind.into());
    Ok(value)
}

/// One frame of a watch stream: a bare `WatchEvent` around an enveloped object, after its length in four bytes.
pub fn watch_frame(event: &str, object: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 4];
    wire::bytes(&mut frame, 1, event.as_bytes());
    wire::message(&mut frame, 2, |out| wire::bytes(out, 1, object));
    let length = (frame.len() - 4) as u32;
    frame[..4].copy_from_slice(&length.to_be_bytes());
    frame
}

fn utf8(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(malformed)
}

fn malformed(error: impl std::fmt::Display) -> ApiError {
    ApiError::bad_request(format!("proto: {error}"))
}

#[cfg(test)]
mod tests;
