//! Requests that end elsewhere: logs, exec, attach and port-forward at a node's kubelet, and the
//! proxy subresources at pods, services and nodes.
//!
//! Bodies stream and upgraded connections are tunnelled as bytes, so WebSocket and SPDY need hardly any
//! understanding here; only logs, which kubelets do not upgrade, become messages on the way, as watches do.
//! [`Dialer`] says how an address is reached: in `isopod up` the way leads through the node's network
//! namespace.

mod forward;
mod options;
mod page;
mod target;
mod tunnel;
pub mod websocket;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use http::{Method, Request, Response, StatusCode, Uri, header};
use machinery::status::{ApiError, Result};
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::authn::lookup::{Lookup, NODES, PODS};
use crate::request::Query;
use forward::{Forward, Rewrite, Scheme, Target};
use target::{Node, Pod};

/// A byte stream to a kubelet, pod or service endpoint.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

#[async_trait]
pub trait Dialer: Send + Sync + 'static {
    /// `host` is an address or, for a node without one, its name.
    async fn dial(&self, host: &str, port: u16) -> io::Result<Box<dyn Connection>>;
}

/// Dials from where the server runs.
pub struct TcpDialer;

#[async_trait]
impl Dialer for TcpDialer {
    async fn dial(&self, host: &str, port: u16) -> io::Result<Box<dyn Connection>> {
        let stream = tokio::net::TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

pub struct Proxy {
    lookup: Arc<dyn Lookup>,
    forward: Forward,
}

/// `.../NAMESPACED/NAME/proxy` and `.../nodes/NAME/proxy` have this many segments before the rest.
const NAMESPACED_SEGMENTS: usize = 7;
const CLUSTER_SEGMENTS: usize = 5;

impl Proxy {
    /// `kubelet_tls` is [`Pki::kubelet_client_config`](crate::pki::Pki::kubelet_client_config).
    pub fn new(lookup: Arc<dyn Lookup>, dialer: Arc<dyn Dialer>, kubelet_tls: ClientConfig) -> Self {
        Proxy { lookup, forward: Forward::new(dialer, kubelet_tls) }
    }

    /// `pods/{log,exec,attach,portforward}`.
    pub async fn pod(
        &self,
        subresource: &str,
        namespace: &str,
        name: &str,
        mut request: Request<Body>,
    ) -> Result<Response<Body>> {
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let log = match subresource {
            "log" => Some(options::log(&query, name)?),
            _ => None,
        };
        if log.is_none() && !is_upgrade(&request) {
            return Err(ApiError::bad_request("Upgrade request required"));
        }
        let pod: Pod = self.lookup.as_ref().require(PODS, namespace, name).await?;
        let container = match subresource {
            "portforward" => None,
            _ => Some(pod.container(name, query.get("container"))?),
        };
        if pod.spec.node_name.is_empty() {
            return match log {
                Some(_) => Ok(Response::new(Body::empty())),
                None => Err(ApiError::bad_request(format!("pod {name} does not have a host assigned"))),
            };
        }
        let path = match (subresource, container) {
            ("log", Some(container)) => format!("/containerLogs/{namespace}/{name}/{container}"),
            (_, Some(container)) => format!("/{subresource}/{namespace}/{name}/{container}"),
            (_, None) => format!("/portForward/{namespace}/{name}"),
        };
        let mut target = self.kubelet(&pod.spec.node_name).await?;
        if query.bool("insecureSkipTLSVerifyBackend") == Some(true) {
            target.scheme = Scheme::KubeletUnverified;
        }
        let reader = if log.is_some() { websocket::reader(&mut request)? } else { None };
        let parameters = log.unwrap_or_else(|| options::stream(subresource, &query));
        let uri = if parameters.is_empty() { path } else { format!("{path}?{parameters}") };
        let response = self
            .forward
            .send(&target, &uri, request, None)
            .await
            .map_err(|error| ApiError::internal(format!("error dialing backend: {error}")))?;
        if subresource != "log" {
            return Ok(response);
        }
        let response = forward::checked(response).await?;
        Ok(match reader {
            Some(reader) => reader.serve(response.into_body()),
            None => response,
        })
    }

    /// `{pods,services,nodes}/NAME/proxy[/PATH]` with any method.
    pub async fn proxy(
        &self,
        plural: &str,
        namespace: &str,
        id: &str,
        request: Request<Body>,
    ) -> Result<Response<Body>> {
        let segments = if plural == "nodes" { CLUSTER_SEGMENTS } else { NAMESPACED_SEGMENTS };
        let (prefix, path) = split_path(request.uri(), segments);
        if path.is_empty() && [Method::GET, Method::HEAD].contains(request.method()) && !is_upgrade(&request) {
            return Ok(redirect_to_slash(request.uri()));
        }
        let target = match plural {
            "pods" => target::pod(self.lookup.as_ref(), namespace, id).await?,
            "services" => target::service(self.lookup.as_ref(), namespace, id).await?,
            _ => self.node(id).await?,
        };
        let path = if path.is_empty() { "/" } else { path };
        let uri = request.uri().query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
        let rewrite = Rewrite::new(prefix, &request);
        let sent = self.forward.send(&target, &uri, request, Some(&rewrite)).await;
        sent.map_err(|error| ApiError::unavailable(format!("error trying to reach service: {error}")))
    }

    async fn kubelet(&self, node: &str) -> Result<Target> {
        let found: Node = self.lookup.as_ref().require(NODES, "", node).await?;
        found.kubelet(node)
    }

    /// The kubelet itself, or any port of the node.
    async fn node(&self, id: &str) -> Result<Target> {
        let (scheme, name, port) =
            target::split(id).ok_or_else(|| ApiError::bad_request(format!("invalid node request {id:?}")))?;
        let kubelet = self.kubelet(name).await?;
        match target::port(port)? {
            None => Ok(kubelet),
            Some(port) if port == kubelet.port => Ok(kubelet),
            Some(port) => Ok(Target { scheme: target::scheme(scheme), port, ..kubelet }),
        }
    }
}

fn is_upgrade(request: &Request<Body>) -> bool {
    let connection = request.headers().get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let mut words = connection.flat_map(|value| value.split(','));
    request.headers().contains_key(header::UPGRADE) && words.any(|word| word.trim().eq_ignore_ascii_case("upgrade"))
}

/// The path up to `/proxy`, and what follows it, both as the client encoded them.
fn split_path(uri: &Uri, segments: usize) -> (&str, &str) {
    let path = uri.path();
    let ends = path.match_indices('/').skip(1).map(|(at, _)| at);
    path.split_at(ends.chain([path.len()]).nth(segments - 1).unwrap_or(path.len()))
}

/// Relative links in the answer need the slash.
fn redirect_to_slash(uri: &Uri) -> Response<Body> {
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(location) = format!("{}/{query}", uri.path()).parse() {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}
