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
        container_id: place.running(&pods).await?,
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
    let container_id = place.running(&pods).await?;
    // Whether there is a terminal is the container's nature, not the caller's wish.
    let snapshot = place.find(&pods).await?.borrow().clone();
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
    let sandbox =
        place.find(&pods).await?.borrow().runtime.sandbox().filter(|sandbox| sandbox.ready).map(|s| s.id.clone());
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
    let id = place.running(&pods).await?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    async fn read_head(stream: &mut TcpStream) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        String::from_utf8(head).unwrap().to_lowercase()
    }

    #[tokio::test]
    async fn an_upgraded_connection_is_a_pipe() {
        let runtime = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/exec/once", runtime.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut stream, _) = runtime.accept().await.unwrap();
            let head = read_head(&mut stream).await;
            assert!(head.starts_with("post /exec/once http/1.1\r\n") && head.contains("upgrade: spdy/3.1"), "{head}");
            assert!(
                head.contains("x-stream-protocol-version: v4.channel.k8s.io") && !head.contains("secret"),
                "{head}"
            );
            let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\nhello";
            stream.write_all(answer.as_bytes()).await.unwrap();
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await.unwrap();
        });
        let kubelet = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = kubelet.local_addr().unwrap();
        let app =
            axum::Router::new().fallback(move |request: Request| async move { hand_through(&url, request).await });
        tokio::spawn(async move {
            let (stream, _) = kubelet.accept().await.unwrap();
            let service = hyper_util::service::TowerToHyperService::new(app);
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            connection.with_upgrades().await.unwrap();
        });
        let mut client = TcpStream::connect(address).await.unwrap();
        let request = "POST /exec/a/b/c HTTP/1.1\r\nHost: k\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
            X-Stream-Protocol-Version: v4.channel.k8s.io\r\nAuthorization: Bearer secret\r\n\r\n";
        client.write_all(request.as_bytes()).await.unwrap();
        assert!(read_head(&mut client).await.starts_with("http/1.1 101"));
        client.write_all(b" there").await.unwrap();
        let mut echoed = [0; 11];
        client.read_exact(&mut echoed).await.unwrap();
        assert_eq!(&echoed, b"hello there");
    }
}
