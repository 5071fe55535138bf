//! The log files of the node itself, as a plain file server: what `/logs/` of upstream's kubelet is.
//!
//! Knows a directory, no pods. Who may read is decided in `auth`.

use super::Failure;
use crate::pods::Pods;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{Html, IntoResponse, Redirect, Response};
use http::StatusCode;
use std::io;
use std::path::{Component, PathBuf};
use std::sync::Arc;

pub(super) async fn root(State(pods): State<Arc<Pods>>) -> Result<Response, Failure> {
    show(&pods, PathBuf::new(), true).await
}

pub(super) async fn below(State(pods): State<Arc<Pods>>, Path(path): Path<String>) -> Result<Response, Failure> {
    show(&pods, path.clone().into(), path.ends_with('/')).await
}

async fn show(pods: &Pods, path: PathBuf, slash: bool) -> Result<Response, Failure> {
    if path.components().any(|part| !matches!(part, Component::Normal(_))) {
        return Err((StatusCode::BAD_REQUEST, "invalid URL path\n".to_owned()));
    }
    let file = pods.shared().config.node_logs_dir.join(&path);
    let metadata = tokio::fs::metadata(&file).await.map_err(refusal)?;
    match (metadata.is_dir(), slash) {
        (true, true) => Ok(Html(listing(&file).map_err(refusal)?).into_response()),
        // Relative links in the listing need the slash.
        (true, false) => {
            Ok(Redirect::permanent(&format!("{}/", path.file_name().unwrap_or_default().display())).into_response())
        }
        (false, _) if metadata.is_file() => {
            let file = tokio::fs::File::open(&file).await.map_err(refusal)?;
            let body = Body::from_stream(tokio_util::io::ReaderStream::new(file));
            Ok(([("content-type", "text/plain; charset=utf-8")], body).into_response())
        }
        _ => Err((StatusCode::FORBIDDEN, "403 Forbidden\n".to_owned())),
    }
}

fn refusal(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            (StatusCode::NOT_FOUND, "404 page not found\n".to_owned())
        }
        io::ErrorKind::PermissionDenied => (StatusCode::FORBIDDEN, "403 Forbidden\n".to_owned()),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "500 Internal Server Error\n".to_owned()),
    }
}

/// The names in a directory as links.
fn listing(directory: &std::path::Path) -> io::Result<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let slash = if entry.file_type()?.is_dir() { "/" } else { "" };
        names.push(format!("{}{slash}", entry.file_name().to_string_lossy()));
    }
    names.sort();
    let escape =
        |name: &str| name.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;");
    let links = names.iter().map(|name| format!("<a href=\"./{0}\">{0}</a>\n", escape(name)));
    Ok(format!("<!doctype html>\n<pre>\n{}</pre>\n", links.collect::<String>()))
}
