//! /openapi/v2 and /openapi/v3: what clients validate with, explain from and merge by.
//!
//! Structure comes from the schema table that the write path itself uses, prose from k8s-openapi. A
//! document is built when first asked for and kept compressed, since few clients ask and a document
//! is twenty times its compressed size.

mod descriptions;
mod paths;
mod protobuf;
mod schemas;

use std::{
    collections::BTreeMap,
    io::{Read, Write as _},
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use http::{HeaderMap, HeaderValue, header};
use machinery::status::Result;
use parking_lot::Mutex;
use resources::Facts;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha512};

use crate::{
    api::not_found,
    discovery::{Groups, cacheable},
    negotiate,
    nonresource::VERSION,
    request::Query,
    respond::Answered,
};

/// Made at most once, whoever asks first.
type Shared = Arc<OnceLock<Document>>;

#[derive(Default)]
pub struct OpenApi {
    /// By path below /openapi: at most one per group version, plus v2 in each encoding.
    documents: Mutex<BTreeMap<(String, Encoding), Shared>>,
}

struct Document {
    content_type: &'static str,
    gzip: Bytes,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Encoding {
    Json,
    Protobuf,
}

const JSON: (&str, Encoding) = ("application/json", Encoding::Json);
/// Clients say the first, which is no valid media type, hence the second.
const PROTOBUF: [(&str, Encoding); 2] = [
    ("application/com.github.proto-openapi.spec.v2@v1.0+protobuf", Encoding::Protobuf),
    ("application/com.github.proto-openapi.spec.v2.v1.0+protobuf", Encoding::Protobuf),
];

/// Which of the two dialects.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    V2,
    V3,
}

impl Dialect {
    fn reference(self, name: &str) -> Value {
        match self {
            Dialect::V2 => format!("#/definitions/{name}").into(),
            Dialect::V3 => format!("#/components/schemas/{name}").into(),
        }
    }
}

impl OpenApi {
    /// `path` is what follows /openapi.
    pub fn serve(&self, headers: &HeaderMap, path: &[&str], query: &Query, groups: &Groups) -> Result<Answered> {
        if let ["v3"] = path {
            return Ok(cacheable(headers, "application/json".into(), index(groups).to_string().into()));
        }
        let encoding = match path {
            ["v2"] => negotiate::offer(headers, &[JSON, PROTOBUF[0], PROTOBUF[1]]),
            _ => negotiate::offer(headers, &[JSON]),
        }?;
        let wanted: Vec<_> = groups
            .versions()
            .filter(|(group, version, _)| match path {
                ["v2"] => true,
                ["v3", rest @ ..] => rest.join("/") == place(group, version),
                _ => false,
            })
            .collect();
        if wanted.is_empty() {
            return Ok(not_found());
        }
        let dialect = if path == ["v2"] { Dialect::V2 } else { Dialect::V3 };
        let slot = self.documents.lock().entry((path.join("/"), encoding)).or_default().clone();
        let document = slot.get_or_init(|| Document::new(&build(dialect, &wanted), encoding));
        let mut response = document.answer(headers);
        if query.find("hash").is_some() {
            // The address changes with the content.
            response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
        }
        Ok(response)
    }
}

impl Document {
    fn new(document: &Map<String, Value>, encoding: Encoding) -> Document {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
        let (content_type, written) = match encoding {
            Encoding::Json => (JSON.0, serde_json::to_writer(&mut gzip, document).map_err(Into::into)),
            Encoding::Protobuf => {
                let (message, lost) = protobuf::encode(document);
                if !lost.is_empty() {
                    tracing::warn!(?lost, "OpenAPI v2 has no protobuf fields for these keys");
                }
                (PROTOBUF[1].0, gzip.write_all(&message))
            }
        };
        let gzip = written.and_then(|()| gzip.finish()).expect("documents are written into memory").into();
        Document { content_type, gzip }
    }

    fn answer(&self, headers: &HeaderMap) -> Answered {
        let accepted = headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let content_type = self.content_type.to_owned();
        if !accepted.contains("gzip") {
            let mut plain = Vec::new();
            GzDecoder::new(&self.gzip[..]).read_to_end(&mut plain).expect("it was compressed here");
            return cacheable(headers, content_type, plain.into());
        }
        let mut response = cacheable(headers, content_type, self.gzip.clone());
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response
    }
}

fn place(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

fn index(groups: &Groups) -> Value {
    let entry = |(group, version, facts): (&str, &str, &[&Facts])| {
        let place = place(group, version);
        // The document follows from these facts and this binary.
        let hash = hex::encode_upper(Sha512::digest(format!("{} {facts:?}", env!("CARGO_PKG_VERSION"))));
        (place.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{place}?hash={hash}")}))
    };
    json!({"paths": groups.versions().map(entry).collect::<Map<_, _>>()})
}

fn build(dialect: Dialect, versions: &[(&'static str, &'static str, &[&'static Facts])]) -> Map<String, Value> {
    let mut schemas = schemas::Schemas::new(dialect);
    let mut all = Map::new();
    for (_, _, facts) in versions {
        for facts in facts.iter() {
            paths::add(&mut all, dialect, facts, &mut schemas);
        }
    }
    let info = json!({"title": "Kubernetes", "version": VERSION.2});
    let (version, definitions) = match dialect {
        Dialect::V2 => (("swagger", "2.0"), ("definitions", schemas.finish())),
        Dialect::V3 => (("openapi", "3.0.0"), ("components", json!({"schemas": schemas.finish()}))),
    };
    let parts = [(version.0, version.1.into()), ("info", info), ("paths", all.into()), definitions];
    parts.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_v2_document_can_be_said_in_protobuf() {
        let facts: Vec<_> = resources::registry().all().iter().map(|resource| resource.facts()).collect();
        let document = build(Dialect::V2, &[("", "v1", &facts)]);
        for field in ["apiVersion", "kind"] {
            let property = &document["definitions"]["io.k8s.api.core.v1.ConfigMap"]["properties"][field];
            assert!(property["description"].is_string(), "{field}: {property}");
        }
        let (message, lost) = protobuf::encode(&document);
        assert!(lost.is_empty(), "{lost:?}");
        assert!(message.len() > 500_000, "{}", message.len());
    }
}
