//! Answers: stored bytes as they are where the client wants JSON, and rendered views where it wants a
//! table, metadata only, YAML or indentation.
//!
//! A list is a stream of pieces: its head, then each item's stored bytes. It is never whole in memory,
//! and no item is parsed unless a view asks for it.

use std::{io::Write as _, sync::Arc};

use axum::body::Body;
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use futures::stream;
use http::{HeaderValue, Response, StatusCode, header};
use machinery::{
    field::FieldError,
    meta,
    protobuf::watch_frame,
    status::{ApiError, Result},
};
use resources::Resource;
use serde_json::{Value, json};

use crate::{
    cache::{Entry, EventType, change::frame, entry},
    codec,
    negotiate::{Answer, Format, View},
    objects,
    request::Query,
};

pub type Answered = Response<Body>;

/// Answers from this size on are compressed for clients that accept it, as upstream.
const GZIP_FLOOR: usize = 128 << 10;
/// Items are gathered into pieces of about this size.
const CHUNK: usize = 64 << 10;

/// Turns a resource's objects into what one client asked for.
#[derive(Clone)]
pub struct Renderer {
    pub resource: &'static dyn Resource,
    pub answer: Answer,
    include: Include,
}

/// What a table row says of its object.
#[derive(Clone, Copy, PartialEq)]
enum Include {
    Nothing,
    Metadata,
    Object,
}

impl Renderer {
    pub fn new(resource: &'static dyn Resource, answer: Answer, query: &Query) -> Result<Renderer> {
        let include = match query.get("includeObject") {
            "None" => Include::Nothing,
            "Object" => Include::Object,
            "" | "Metadata" => Include::Metadata,
            _ if answer.view != View::Table => Include::Metadata,
            other => {
                let detail = "must be 'Metadata', 'Object', 'None', or empty";
                let error = FieldError::invalid("includeObject", other, detail);
                return Err(ApiError::bad_request(format!("Unable to convert to Table as requested: {error}")));
            }
        };
        Ok(Renderer { resource, answer, include })
    }

    /// Writes one object as an item of a list or a row of a table.
    fn item(&self, out: &mut Vec<u8>, json: &[u8]) {
        match self.answer.view {
            View::Object => out.extend_from_slice(json),
            View::Partial => write(out, &partial(&parse(json))),
            View::Table => write(out, &self.row(parse(json))),
        }
    }

    fn row(&self, object: Value) -> Value {
        let cells = self.resource.cells(&object, jiff::Timestamp::now());
        match self.include {
            Include::Nothing => json!({"cells": cells}),
            Include::Metadata => json!({"cells": cells, "object": partial(&object)}),
            Include::Object => json!({"cells": cells, "object": object}),
        }
    }

    fn table_head(&self, columns: bool) -> String {
        let columns: Vec<Value> = match columns {
            true => self.resource.columns().iter().map(|column| column.to_value()).collect(),
            false => Vec::new(),
        };
        format!(r#""columnDefinitions":{},"rows":["#, Value::Array(columns))
    }

    /// One object on its own, as in a get or a watch event. A watch describes columns once.
    pub fn object(&self, json: &Bytes, columns: bool) -> Bytes {
        match self.answer.view {
            View::Object => json.clone(),
            View::Partial => {
                let mut out = Vec::new();
                self.item(&mut out, json);
                out.into()
            }
            View::Table => {
                let version = parse_metadata(json);
                let mut out =
                    format!(r#"{{"kind":"Table","apiVersion":"meta.k8s.io/v1","metadata":{version},"#).into_bytes();
                out.extend_from_slice(self.table_head(columns).as_bytes());
                self.item(&mut out, json);
                out.extend_from_slice(b"]}");
                out.into()
            }
        }
    }

    fn list_head(&self, metadata: &Value) -> String {
        let facts = self.resource.facts();
        match self.answer.view {
            View::Object => {
                let (kind, version) = (facts.kind, facts.api_version());
                format!(r#"{{"kind":"{kind}List","apiVersion":"{version}","metadata":{metadata},"items":["#)
            }
            View::Partial => {
                format!(
                    r#"{{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/v1","metadata":{metadata},"items":["#
                )
            }
            View::Table => {
                let head = self.table_head(true);
                format!(r#"{{"kind":"Table","apiVersion":"meta.k8s.io/v1","metadata":{metadata},{head}"#)
            }
        }
    }

    /// Answers with one object.
    pub fn one(&self, status: StatusCode, json: &Bytes) -> Answered {
        whole(&self.answer, status, self.object(json, true))
    }

    /// One object as a watch event carries it: of the cache's own encoding where it has one.
    pub fn event(&self, out: &mut Vec<u8>, kind: EventType, entry: &Entry, columns: bool) {
        let json = objects::bytes(self.resource, entry);
        if self.answer.format != Format::Protobuf {
            return frame(out, kind, &self.object(json, columns));
        }
        let object = match self.answer.view {
            View::Object => {
                let facts = self.resource.facts();
                codec::envelope(&facts.api_version(), facts.kind, &self.message(entry)).into()
            }
            _ => codec::protobuf(&self.object(json, columns)),
        };
        out.extend_from_slice(&watch_frame(kind.as_str(), &object));
    }

    /// An object made up for a watch: a bookmark, a Status.
    pub fn made_up(&self, out: &mut Vec<u8>, kind: EventType, json: &[u8]) {
        match self.answer.format {
            Format::Protobuf => out.extend_from_slice(&watch_frame(kind.as_str(), &codec::protobuf(json))),
            _ => frame(out, kind, json),
        }
    }

    fn message(&self, entry: &Entry) -> Bytes {
        let encode = || codec::message(&parse(objects::bytes(self.resource, entry))).unwrap_or_default();
        // What is kept with the entry is of the stored version.
        if self.resource.conversion().is_some() { encode() } else { entry.message(encode).clone() }
    }

    fn message_list(&self, metadata: &Value, entries: &[Arc<Entry>]) -> Answered {
        let facts = self.resource.facts();
        let (kind, version) = (format!("{}List", facts.kind), facts.api_version());
        let empty = json!({"kind": kind, "apiVersion": version, "metadata": metadata, "items": []});
        let mut raw = codec::message(&empty).unwrap_or_default().to_vec();
        for entry in entries {
            codec::list_item(&mut raw, &self.message(entry));
        }
        encoded(&self.answer, StatusCode::OK, codec::envelope(&version, &kind, &raw).into())
    }

    /// Answers with a list.
    pub fn list(&self, metadata: &Value, entries: Vec<Arc<Entry>>) -> Answered {
        if self.answer.format == Format::Protobuf && self.answer.view == View::Object {
            return self.message_list(metadata, &entries);
        }
        let size: usize = entries.iter().map(|entry| entry.json.len() + 1).sum();
        let head = self.list_head(metadata).into_bytes();
        if self.answer.format != Format::Json || self.answer.pretty {
            let mut out = head;
            let mut items = Items { renderer: self.clone(), entries: entries.into_iter(), first: true };
            while items.fill(&mut out, usize::MAX) {}
            return whole(&self.answer, StatusCode::OK, out.into());
        }
        let items = Items { renderer: self.clone(), entries: entries.into_iter(), first: true };
        let gzip = (self.answer.gzip && size >= GZIP_FLOOR).then(|| GzEncoder::new(Vec::new(), Compression::fast()));
        let compressed = gzip.is_some();
        let body = Body::from_stream(stream::unfold(Some(Pieces { items, head, gzip }), |pieces| async move {
            let mut pieces = pieces?;
            let (chunk, more) = pieces.next();
            Some((Ok::<_, std::io::Error>(chunk), more.then_some(pieces)))
        }));
        respond(StatusCode::OK, self.answer.content_type(false), compressed, body)
    }
}

struct Items {
    renderer: Renderer,
    entries: std::vec::IntoIter<Arc<Entry>>,
    first: bool,
}

impl Items {
    /// Appends items until `out` is about `limit` long; false when the list has been closed.
    fn fill(&mut self, out: &mut Vec<u8>, limit: usize) -> bool {
        while out.len() < limit {
            let Some(entry) = self.entries.next() else {
                out.extend_from_slice(b"]}");
                return false;
            };
            if !std::mem::take(&mut self.first) {
                out.push(b',');
            }
            self.renderer.item(out, objects::bytes(self.renderer.resource, &entry));
        }
        true
    }
}

struct Pieces {
    items: Items,
    head: Vec<u8>,
    gzip: Option<GzEncoder<Vec<u8>>>,
}

impl Pieces {
    fn next(&mut self) -> (Bytes, bool) {
        let mut out = std::mem::take(&mut self.head);
        out.reserve(CHUNK + 4096);
        let mut more = self.items.fill(&mut out, CHUNK);
        while let Some(gzip) = &mut self.gzip {
            gzip.write_all(&out).expect("compression into memory");
            out.clear();
            if !more {
                gzip.try_finish().expect("compression into memory");
            }
            if !more || gzip.get_ref().len() >= CHUNK {
                out = std::mem::take(gzip.get_mut());
                break;
            }
            more = self.items.fill(&mut out, CHUNK);
        }
        (out.into(), more)
    }
}

fn parse(json: &[u8]) -> Value {
    serde_json::from_slice(json).unwrap_or_default()
}

/// A table's own metadata, as upstream: the resourceVersion of its only object.
fn parse_metadata(json: &[u8]) -> Value {
    json!({"resourceVersion": meta::resource_version(&parse(json))})
}

fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

fn write(out: &mut Vec<u8>, value: &Value) {
    serde_json::to_writer(out, value).expect("JSON values encode into memory");
}

/// Answers with JSON bytes in the client's format.
pub fn whole(answer: &Answer, status: StatusCode, json: Bytes) -> Answered {
    let body = match answer.format {
        Format::Json if !answer.pretty => json,
        Format::Json => indented(&json),
        Format::Yaml => yaml(&json),
        Format::Protobuf => codec::protobuf(&json),
    };
    encoded(answer, status, body)
}

/// Answers with bytes that are in the client's format already.
fn encoded(answer: &Answer, status: StatusCode, body: Bytes) -> Answered {
    let compress = answer.gzip && body.len() >= GZIP_FLOOR;
    let body = if compress { gzip(&body) } else { body };
    respond(status, answer.content_type(false), compress, Body::from(body))
}

fn indented(json: &[u8]) -> Bytes {
    let mut out = serde_json::to_vec_pretty(&parse(json)).unwrap_or_default();
    out.push(b'\n');
    out.into()
}

fn yaml(json: &[u8]) -> Bytes {
    serde_saphyr::to_string(&parse(json)).unwrap_or_default().into()
}

fn gzip(body: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(body).and_then(|()| encoder.finish()).expect("compression into memory").into()
}

fn respond(status: StatusCode, content_type: &'static str, gzip: bool, body: Body) -> Answered {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    if gzip {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    }
    response
}

/// Answers with a value.
pub fn value(answer: &Answer, status: StatusCode, value: &Value) -> Answered {
    whole(answer, status, entry::encode(value).into())
}

/// Answers with plain text.
pub fn text(status: StatusCode, text: impl Into<String>) -> Answered {
    respond(status, "text/plain; charset=utf-8", false, Body::from(text.into()))
}

/// Answers with a body whose length is not known yet.
pub fn streaming(answer: &Answer, body: Body) -> Answered {
    respond(StatusCode::OK, answer.content_type(true), false, body)
}

/// Answers with a Status.
pub fn error(answer: &Answer, error: &ApiError) -> Answered {
    let status = StatusCode::from_u16(error.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = value(answer, status, &error.to_value());
    let retry = error.status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
    if retry > 0 {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(retry));
    }
    response
}
