//! The demo workload: a small web server that tells which pod and node answered, and a client.
//!
//! It needs no registry, because the binary that runs the cluster packs itself as its image
//! ([`image`]). [`load`] counts what fails while pods come and go.

pub mod image;
pub mod load;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use futures::FutureExt;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a terminating pod goes on serving, so that proxies have stopped sending to it.
const DRAIN: Duration = Duration::from_millis(1500);
/// How long connections may then take to end; the pod's grace period may be over sooner.
const FAREWELL: Duration = Duration::from_secs(20);

/// Serves until SIGTERM or SIGINT, then drains: whoever has connected gets an answer.
pub async fn serve(port: u16) -> anyhow::Result<()> {
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on port {port}"))?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (connections, ending) = (TaskTracker::new(), CancellationToken::new());
    println!("listening on port {port}");
    let stop = async {
        tokio::select! { _ = terminate.recv() => (), _ = interrupt.recv() => () }
        println!("terminating: serving for {DRAIN:?} more");
        tokio::time::sleep(DRAIN).await;
    };
    tokio::pin!(stop);
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                connections.spawn(converse(stream, ending.clone()));
            },
            () = &mut stop => break,
        }
    }
    // Those that the kernel has connected already, but nobody has accepted.
    while let Some(Ok((stream, _))) = listener.accept().now_or_never() {
        connections.spawn(converse(stream, ending.clone()));
    }
    drop(listener);
    ending.cancel();
    connections.close();
    let _ = tokio::time::timeout(FAREWELL, connections.wait()).await;
    Ok(())
}

/// Serves one connection; once we are ending, until it has had an answer: hyper's graceful shutdown would close one that
/// has sent its request but has not been read.
async fn converse(stream: TcpStream, ending: CancellationToken) {
    let asked = Notify::new();
    let service = hyper::service::service_fn(|request| {
        asked.notify_one();
        answer(request)
    });
    let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = async { ending.cancelled().await; asked.notified().await } => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    println!("{} {}", request.method(), request.uri());
    Ok(Response::new(Full::from(page(request.uri().path()))))
}

fn page(path: &str) -> String {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let pod = variable("POD_NAME").or_else(|| variable("HOSTNAME")).unwrap_or_else(|| "unknown".into());
    let node = variable("NODE_NAME").unwrap_or_else(|| "unknown".into());
    format!("Hello from Isopod!\npod:  {pod}\nnode: {node}\npath: {path}\n")
}

/// Fetches `repeat` times and prints each different answer once, with how often it came.
pub async fn fetch_and_print(url: &str, repeat: u32) -> anyhow::Result<()> {
    let mut answers = BTreeMap::<String, u32>::new();
    for _ in 0..repeat {
        *answers.entry(fetch(url).await?).or_default() += 1;
    }
    for (answer, count) in answers {
        match repeat {
            1 => print!("{answer}"),
            _ => println!("{count} of {repeat} answers:\n{answer}"),
        }
    }
    Ok(())
}

/// Gets `url` (plain HTTP) and returns the body; anything but 200 is an error.
pub async fn fetch(url: &str) -> anyhow::Result<String> {
    Target::resolve(url).await?.fetch().await
}

/// A URL whose host has been looked up.
struct Target {
    url: String,
    host: String,
    path: String,
    addresses: Vec<SocketAddr>,
}

impl Target {
    async fn resolve(url: &str) -> anyhow::Result<Target> {
        let uri: hyper::Uri = url.parse().with_context(|| format!("{url:?} is not a URL"))?;
        if uri.scheme_str() != Some("http") {
            bail!("{url:?} must begin with http://");
        }
        let host = uri.host().context("the URL names no host")?.to_owned();
        let found = tokio::net::lookup_host((host.as_str(), uri.port_u16().unwrap_or(80))).await;
        let addresses = found.with_context(|| format!("look up {host}"))?.collect();
        let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
        Ok(Target { url: url.to_owned(), host, path, addresses })
    }

    async fn fetch(&self) -> anyhow::Result<String> {
        let stream =
            TcpStream::connect(&self.addresses[..]).await.with_context(|| format!("connect to {}", self.host))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::get(&self.path).header("host", &self.host).body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = String::from_utf8_lossy(&response.into_body().collect().await?.to_bytes()).into_owned();
        if status != hyper::StatusCode::OK {
            bail!("{} answered {status}: {body}", self.url);
        }
        Ok(body)
    }
}
