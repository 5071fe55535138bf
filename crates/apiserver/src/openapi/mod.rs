//! /openapi/v2 and /openapi/v3: what clients validate with, explain from and merge by.
//!
//! Structure comes from the schema table that the write path itself uses, prose from k8s-openapi. A
//! document is built when first asked for and kept compressed, since few clients ask and a document
//! is twenty times its compressed size.

mod descriptions;
mod paths;
mod schemas;

use std::{
    collections::BTreeMap,
    io::{Read, Write as _},
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use http::{HeaderMap, HeaderValue, header};
use machinery::status::{ApiError, Result};
use parking_lot::Mutex;
use resources::Facts;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha512};

use crate::{
    api::not_found,
    discovery::{Groups, cacheable},
    nonresource::VERSION,
    request::Query,
    respond::Answered,
};

#[derive(Default)]
pub struct OpenApi {
    /// By path below /openapi: at most one per group version, plus v2.
    documents: Mutex<BTreeMap<String, Arc<OnceLock<Document>>>>,
}

struct Document {
    gzip: Bytes,
}

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
        let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let json_too = accept.is_empty() || ["json", "*/*", "application/*"].iter().any(|kind| accept.contains(kind));
        if !json_too {
            return Err(ApiError::not_acceptable(&["application/json"]));
        }
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
        let slot = self.documents.lock().entry(path.join("/")).or_default().clone();
        let document = slot.get_or_init(|| Document::new(&build(dialect, &wanted)));
        let mut response = document.answer(headers);
        if query.find("hash").is_some() {
            // The address changes with the content.
            response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
        }
        Ok(response)
    }
}

impl Document {
    fn new(document: &Value) -> Document {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        serde_json::to_writer(&mut encoder, document).expect("JSON values encode into memory");
        encoder.flush().expect("compression into memory");
        Document { gzip: encoder.finish().expect("compression into memory").into() }
    }

    fn answer(&self, headers: &HeaderMap) -> Answered {
        let accepted = headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if !accepted.contains("gzip") {
            let mut plain = Vec::new();
            GzDecoder::new(&self.gzip[..]).read_to_end(&mut plain).expect("it was compressed here");
            return cacheable(headers, "application/json".into(), plain.into());
        }
        let mut response = cacheable(headers, "application/json".into(), self.gzip.clone());
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

fn build(dialect: Dialect, versions: &[(&'static str, &'static str, &[&'static Facts])]) -> Value {
    let mut schemas = schemas::Schemas::new(dialect);
    let mut all = Map::new();
    for (_, _, facts) in versions {
        for facts in facts.iter() {
            paths::add(&mut all, dialect, facts, &mut schemas);
        }
    }
    let info = json!({"title": "Kubernetes", "version": VERSION.2});
    match dialect {
        Dialect::V2 => json!({"swagger": "2.0", "info": info, "paths": all, "definitions": schemas.finish()}),
        Dialect::V3 => {
            json!({"openapi": "3.0.0", "info": info, "paths": all, "components": {"schemas": schemas.finish()}})
        }
    }
}
