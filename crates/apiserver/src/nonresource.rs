//! Paths that are no resources: discovery, OpenAPI, version, health, metrics, token issuer documents.

use axum::body::Body;
use http::{Method, StatusCode, request::Parts};
use machinery::status::{ApiError, Result};
use serde_json::{Value, json};

use crate::{
    api::{Context, not_found},
    authn::Tokens,
    discovery::{self, Groups},
    openapi::OpenApi,
    respond::{self, Answered},
};

/// The Kubernetes version whose API this is.
pub const VERSION: (&str, &str, &str) = ("1", "36", "v1.36.0");

/// Documents that do not change while the server runs.
pub struct Documents {
    pub groups: Groups,
    pub openapi: OpenApi,
    pub tokens: std::sync::Arc<Tokens>,
    /// `address:port` for clients outside.
    pub address: String,
}

pub async fn serve(context: &Context, parts: Parts, _body: Body) -> Result<Answered> {
    if ![Method::GET, Method::HEAD].contains(&parts.method) {
        return Err(ApiError::method_not_allowed());
    }
    let api = &context.api;
    let documents = &api.nonresource;
    let path: Vec<&str> = parts.uri.path().trim_matches('/').split('/').collect();
    let json = |value: &Value| Ok(respond::value(&context.answer, StatusCode::OK, value));
    if let (["api"] | ["apis"], Some(version)) = (&path[..], discovery::wants_aggregated(&parts.headers)) {
        let document = documents.groups.aggregated(path[0] == "api", version);
        let content_type = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
        return Ok(discovery::cacheable(&parts.headers, content_type, document.to_string().into()));
    }
    match path[..] {
        [""] => json(&root(documents)),
        ["version"] => json(&version()),
        ["healthz" | "livez" | "readyz", ..] => Ok(api.healthy(&path.join("/"), &context.query).await),
        ["metrics"] => Ok(respond::text(StatusCode::OK, api.metrics.render(&api.writer.objects.hub))),
        ["openapi", ..] => documents.openapi.serve(&parts.headers, &path[1..], &context.query, &documents.groups),
        [".well-known", "openid-configuration"] => {
            json(&documents.tokens.openid_configuration(&format!("https://{}/openid/v1/jwks", documents.address)))
        }
        ["openid", "v1", "jwks"] => json(&documents.tokens.jwks()),
        _ => match documents.groups.document(&path, &documents.address) {
            Some(document) => json(&document),
            None => Ok(not_found()),
        },
    }
}

pub fn version() -> Value {
    let (major, minor, version) = VERSION;
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    json!({
        "major": major, "minor": minor, "gitVersion": format!("{version}+isopod"), "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc", "platform": format!("linux/{arch}"),
        "emulationMajor": major, "emulationMinor": minor, "minCompatibilityMajor": major, "minCompatibilityMinor": "35",
    })
}

fn root(documents: &Documents) -> Value {
    let groups = documents.groups.versions().map(|(group, version, _)| match group {
        "" => format!("/api/{version}"),
        group => format!("/apis/{group}/{version}"),
    });
    let fixed = [
        "/api",
        "/apis",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ];
    let mut paths: Vec<String> = fixed.into_iter().map(str::to_owned).chain(groups).collect();
    paths.sort();
    json!({"paths": paths})
}
