//! exec, attach and port-forward: asks the runtime for a streaming address and hands the upgraded
//! connection through to it, byte for byte.

use super::{Failure, Place, query_all};
use crate::pods::Pods;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use cri::v1;
use http::{HeaderValue, StatusCode, header};
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

/// The flags of a stream, under the names kubelets and API servers use.
fn flag(request: &Request, names: [&str; 2]) -> bool {
    names.iter().flat_map(|name| query_all(request, name)).any(|value| matches!(value.as_str(), "1" | "true"))
}

fn failed(error: crate::cri_client::CriError) -> Failure {
    let status = if error.is_not_found() { StatusCode::NOT_FOUND } else { StatusCode::INTERNAL_SERVER_ERROR };
    (status, error.to_string())
}

pub(super) async fn exec(
    State(pods): State<Arc<Pods>>,
    Path(place): Path<Place>,
    request: Request,
) -> Result<Response, Failure> {
    let tty = flag(&request, ["tty", "tty"]);
    let message = v1::ExecRequest {
        container_id: place.running(&pods)?,
        cmd: query_all(&request, "command"),
        tty,
        stdin: flag(&request, ["input", "stdin"]),
        stdout: flag(&request, ["output", "stdout"]),
        stderr: flag(&request, ["error", "stderr"]) && !tty,
    };
    if message.cmd.is_empty() {
        return Err((StatusCode::BAD_REQUEST, "you must specify at least one command for the container".to_owned()));
    }
    if !(message.stdin || message.stdout || message.stderr) {
        return Err((StatusCode::BAD_REQUEST, "you must specify at least 1 of stdin, stdout, stderr".to_owned()));
    }
    let url = pods.shared().cri.exec(message).await.map_err(failed)?.url;
    hand_through(&url, request).await
}

pub(super) async fn attach(
    State(pods): State<Arc<Pods>>,
    Path(place): Path<Place>,
    request: Request,
) -> Result<Response, Failure> {
    let container_id = place.running(&pods)?;
    // Whether there is a terminal is the container's nature, not the caller's wish.
    let snapshot = place.find(&pods)?.borrow().clone();
    let tty = crate::pod::member(&snapshot.pod, place.container()).is_some_and(|m| m.container.tty == Some(true));
    let message = v1::AttachRequest {
        container_id,
        tty,
        stdin: flag(&request, ["input", "stdin"]),
        stdout: flag(&request, ["output", "stdout"]),
        stderr: flag(&request, ["error", "stderr"]) && !tty,
    };
    if !(message.stdin || message.stdout || message.stderr) {
        return Err((StatusCode::BAD_REQUEST, "you must specify at least 1 of stdin, stdout, stderr".to_owned()));
    }
    let url = pods.shared().cri.attach(message).await.map_err(failed)?.url;
    hand_through(&url, request).await
}

pub(super) async fn port_forward(
    State(pods): State<Arc<Pods>>,
    Path(place): Path<Place>,
    request: Request,
) -> Result<Response, Failure> {
    let sandbox = place.find(&pods)?.borrow().runtime.sandbox().filter(|sandbox| sandbox.ready).map(|s| s.id.clone());
    let pod_sandbox_id =
        sandbox.ok_or_else(|| (StatusCode::NOT_FOUND, format!("pod \"{}\" has no running sandbox", place.pod)))?;
    let ports =
        query_all(&request, "port").into_iter().flat_map(|list| list.split(',').map(str::to_owned).collect::<Vec<_>>());
    let port: Vec<i32> = ports.filter_map(|port| port.parse().ok()).collect();
    let message = v1::PortForwardRequest { pod_sandbox_id, port };
    let url = pods.shared().cri.port_forward(message).await.map_err(failed)?.url;
    hand_through(&url, request).await
}

/// Runs a command to its end and answers with its output.
pub(super) async fn run(
    State(pods): State<Arc<Pods>>,
    Path(place): Path<Place>,
    request: Request,
) -> Result<Response, Failure> {
    let id = place.running(&pods)?;
    let mut command = query_all(&request, "command");
    if command.is_empty() {
        command = query_all(&request, "cmd").iter().flat_map(|line| line.split(' ')).map(str::to_owned).collect();
    }
    let answer = pods.shared().cri.exec_sync(&id, command, Duration::ZERO).await.map_err(failed)?;
    let output = [answer.stdout, answer.stderr].concat();
    match answer.exit_code {
        0 => Ok(output.into_response()),
        code => {
            let text = format!("{}command terminated with exit code {code}", String::from_utf8_lossy(&output));
            Err((StatusCode::INTERNAL_SERVER_ERROR, text))
        }
    }
}

/// Repeats the request at `url` and joins both connections once the runtime agrees to upgrade.
async fn hand_through(url: &str, mut request: Request) -> Result<Response, Failure> {
    let bad = |error: &dyn std::fmt::Display| {
        (StatusCode::BAD_GATEWAY, format!("error dialing the runtime's streaming server: {error}"))
    };
    let target: http::Uri = url.parse().map_err(|error| bad(&error))?;
    let authority = target.authority().ok_or_else(|| bad(&"no address"))?.clone();
    let address = (authority.host().trim_matches(['[', ']']), authority.port_u16().unwrap_or(80));
    let stream = TcpStream::connect(address).await.map_err(|error| bad(&error))?;
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| bad(&error))?;
    tokio::spawn(connection.with_upgrades());
    let ours = hyper::upgrade::on(&mut request);
    let mut onward = http::Request::builder()
        .method(request.method().clone())
        .uri(target.path_and_query().map_or("/", |path| path.as_str()))
        .body(Body::empty())
        .map_err(|error| bad(&error))?;
    *onward.headers_mut() = request.headers().clone();
    // The caller's credentials are none of the runtime's business.
    onward.headers_mut().remove(header::AUTHORIZATION);
    let host = HeaderValue::from_str(authority.as_str()).map_err(|error| bad(&error))?;
    onward.headers_mut().insert(header::HOST, host);
    let mut response = sender.send_request(onward).await.map_err(|error| bad(&error))?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response.map(Body::new));
    }
    let theirs = hyper::upgrade::on(&mut response);
    tokio::spawn(async move {
        let (Ok(ours), Ok(theirs)) = tokio::join!(ours, theirs) else { return };
        let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
        // An end that just goes away is how these sessions usually finish.
        let _ = tokio::io::copy_bidirectional(&mut ours, &mut theirs).await;
    });
    Ok(response.map(|_| Body::empty()))
}
