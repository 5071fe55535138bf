//! Which form the client wants an answer in, and which form it sent a body in.
//!
//! An `Accept` header is a list of wishes; the first that can be met wins. A wish is a media type and,
//! for `as=Table` and `as=PartialObjectMetadata`, a transformation of what is served.

use http::{HeaderMap, header};
use machinery::status::{ApiError, Result};

use crate::request::Query;

pub const JSON: &str = "application/json";
pub const YAML: &str = "application/yaml";
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
pub const ACCEPTED: [&str; 3] = [JSON, YAML, PROTOBUF];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Yaml,
    Protobuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    Object,
    Table,
    /// Metadata only, of one object or a list.
    Partial,
}

/// How to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub format: Format,
    pub view: View,
    pub pretty: bool,
    pub gzip: bool,
}

impl Answer {
    pub const JSON: Answer = Answer { format: Format::Json, view: View::Object, pretty: false, gzip: false };

    pub fn content_type(&self, stream: bool) -> &'static str {
        match (self.format, stream) {
            (Format::Json, _) => JSON,
            (Format::Yaml, _) => YAML,
            (Format::Protobuf, false) => PROTOBUF,
            (Format::Protobuf, true) => "application/vnd.kubernetes.protobuf;stream=watch",
        }
    }

    /// Stored bytes can be sent as they are.
    pub fn raw(&self) -> bool {
        self.format == Format::Json && self.view == View::Object && !self.pretty
    }
}

/// Reads `Accept`; `views` for an answer that is an object, which may be a table, metadata or protobuf.
pub fn answer(headers: &HeaderMap, query: &Query, views: bool) -> Result<Answer> {
    let accept = text(headers, header::ACCEPT);
    let mut clauses: Vec<Clause> = accept.split(',').filter_map(Clause::parse).collect();
    // Stable, so that equal wishes keep the client's order.
    clauses.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    let (format, view) = match clauses.is_empty() {
        true => (Format::Json, View::Object),
        false => {
            clauses.iter().find_map(|clause| clause.meets(views)).ok_or_else(|| ApiError::not_acceptable(&ACCEPTED))?
        }
    };
    Ok(Answer { format, view, pretty: pretty(headers, query), gzip: accepts_gzip(headers) })
}

/// The offer that the client likes best, by media type; the first one when it says nothing.
pub fn offer<T: Copy>(headers: &HeaderMap, offers: &[(&str, T)]) -> Result<T> {
    let accept = match text(headers, header::ACCEPT) {
        "" => "*/*",
        accept => accept,
    };
    let mut clauses: Vec<Clause> = accept.split(',').filter_map(Clause::parse).collect();
    clauses.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    let meets = |clause: &Clause, media: &str| ["*/*", "application/*", media].contains(&clause.media);
    let mut met = clauses.iter().filter_map(|clause| offers.iter().find(|(media, _)| meets(clause, media)));
    met.next()
        .map(|(_, offer)| *offer)
        .ok_or_else(|| ApiError::not_acceptable(&offers.iter().map(|(media, _)| *media).collect::<Vec<_>>()))
}

fn pretty(headers: &HeaderMap, query: &Query) -> bool {
    let agent = text(headers, header::USER_AGENT);
    let browser = || ["curl", "Wget", "Mozilla/5.0"].iter().any(|prefix| agent.starts_with(prefix));
    query.bool("pretty").unwrap_or_else(browser)
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    text(headers, header::ACCEPT_ENCODING).split(',').any(|coding| coding.trim() == "gzip")
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> &str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

struct Clause<'a> {
    media: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
    quality: f32,
}

impl<'a> Clause<'a> {
    fn parse(clause: &'a str) -> Option<Clause<'a>> {
        let mut parts = clause.split(';').map(str::trim);
        let media = parts.next().filter(|media| !media.is_empty())?;
        let parameters: Vec<_> = parts.filter_map(|part| part.split_once('=')).collect();
        let quality = parameters.iter().find(|(key, _)| *key == "q").and_then(|(_, q)| q.parse().ok());
        Some(Clause { media, parameters, quality: quality.unwrap_or(1.0) })
    }

    fn parameter(&self, key: &str) -> &'a str {
        self.parameters.iter().find(|(name, _)| *name == key).map_or("", |(_, value)| value)
    }

    fn meets(&self, views: bool) -> Option<(Format, View)> {
        let format = match self.media {
            "*/*" | "application/*" | JSON => Format::Json,
            YAML | "application/x-yaml" | "text/yaml" => Format::Yaml,
            PROTOBUF => Format::Protobuf,
            _ => return None,
        };
        let meta = self.parameter("g") == "meta.k8s.io" && ["v1", "v1beta1"].contains(&self.parameter("v"));
        let view = match self.parameter("as") {
            "" => View::Object,
            "Table" if meta && views => View::Table,
            "PartialObjectMetadata" | "PartialObjectMetadataList" if meta && views => View::Partial,
            _ => return None,
        };
        // Documents and tables have no protobuf form.
        (format != Format::Protobuf || (views && view != View::Table)).then_some((format, view))
    }
}

/// The form of a request's body.
pub fn body(headers: &HeaderMap) -> Result<Format> {
    let content_type = text(headers, header::CONTENT_TYPE);
    match content_type.split(';').next().unwrap_or_default().trim() {
        "" | JSON => Ok(Format::Json),
        YAML | "application/x-yaml" | "text/yaml" => Ok(Format::Yaml),
        PROTOBUF => Ok(Format::Protobuf),
        _ => Err(ApiError::unsupported_media_type(&ACCEPTED)),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    Strategic,
}

const APPLY: &str = "application/apply-patch+yaml";

/// Whether a patch is a configuration to apply, rather than a change.
pub fn applies(headers: &HeaderMap) -> bool {
    text(headers, header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim() == APPLY
}

/// The form of a patch.
pub fn patch(headers: &HeaderMap) -> Result<PatchType> {
    const JSON_PATCH: &str = "application/json-patch+json";
    const MERGE: &str = "application/merge-patch+json";
    const STRATEGIC: &str = "application/strategic-merge-patch+json";
    let content_type = text(headers, header::CONTENT_TYPE);
    match content_type.split(';').next().unwrap_or_default().trim() {
        JSON_PATCH => Ok(PatchType::Json),
        MERGE => Ok(PatchType::Merge),
        STRATEGIC => Ok(PatchType::Strategic),
        _ => Err(ApiError::unsupported_media_type(&[JSON_PATCH, MERGE, STRATEGIC, APPLY])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_wish_that_can_be_met_wins() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
        let cases = [
            ("", true, Some((Format::Json, View::Object))),
            ("*/*", true, Some((Format::Json, View::Object))),
            (table, true, Some((Format::Json, View::Table))),
            (table, false, Some((Format::Json, View::Object))),
            ("application/json;as=Table;v=v9;g=meta.k8s.io", true, None),
            (
                "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
                true,
                Some((Format::Json, View::Partial)),
            ),
            ("application/yaml", true, Some((Format::Yaml, View::Object))),
            ("text/html;q=0.9,application/yaml;q=0.5,application/json;q=0.6", true, Some((Format::Json, View::Object))),
            ("application/vnd.kubernetes.protobuf,application/json", true, Some((Format::Protobuf, View::Object))),
            ("text/html", true, None),
        ];
        for (accept, views, want) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            let got = answer(&headers, &Query::default(), views).ok().map(|answer| (answer.format, answer.view));
            assert_eq!(got, want, "{accept}");
        }
    }
}
