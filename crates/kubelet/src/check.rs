//! Reaches into a container to see or tell something: exec, HTTP, TCP and gRPC, for probes and hooks.
//!
//! Knows addresses and commands, not why they are asked.

use crate::cri_client::Cri;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, ExecAction, GRPCAction, HTTPGetAction, Probe, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

/// Bytes of output quoted in a failure.
const QUOTED: usize = 1024;
/// Bytes read of a response body at most.
const BODY_BYTES: usize = 10 << 10;
const REDIRECTS: usize = 10;
const PLAIN_SERVER: &str = "http: server gave HTTP response to HTTPS client";

#[derive(Debug, PartialEq)]
pub enum Outcome {
    Healthy,
    /// Healthy, with something to tell.
    Warning(String),
    Unhealthy(String),
    /// The check itself could not be made.
    Error(String),
}

/// One container, as checks see it.
#[derive(Clone)]
pub struct Target {
    pub cri: Cri,
    pub container_id: String,
    pub container: Arc<Container>,
    pub pod_ip: String,
}

impl Target {
    pub async fn check(&self, probe: &Probe, timeout: Duration) -> Outcome {
        let within = timeout + Duration::from_secs(if probe.exec.is_some() { 2 } else { 0 });
        let check = async {
            match (&probe.exec, &probe.http_get, &probe.tcp_socket, &probe.grpc) {
                (Some(action), ..) => self.exec(action, timeout).await,
                (_, Some(action), ..) => self.http(action).await,
                (_, _, Some(action), _) => self.tcp(action).await,
                (.., Some(action)) => self.grpc(action, timeout).await,
                _ => Outcome::Error("missing probe handler".to_owned()),
            }
        };
        match tokio::time::timeout(within, check).await {
            Ok(outcome) => outcome,
            Err(_) if probe.http_get.is_some() => {
                let url = probe.http_get.as_ref().and_then(|action| self.url(action).ok()).unwrap_or_default();
                let text = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)";
                Outcome::Unhealthy(format!("Get \"{url}\": {text}"))
            }
            Err(_) if probe.grpc.is_some() => {
                Outcome::Unhealthy(format!("timeout: health rpc did not complete within {}s", timeout.as_secs()))
            }
            Err(_) if probe.tcp_socket.is_some() => Outcome::Unhealthy("dial tcp: i/o timeout".to_owned()),
            Err(_) => Outcome::Unhealthy(format!("command timed out after {}s", timeout.as_secs())),
        }
    }

    async fn exec(&self, action: &ExecAction, timeout: Duration) -> Outcome {
        let command = action.command.clone().unwrap_or_default();
        match self.cri.exec_sync(&self.container_id, command, timeout).await {
            Ok(response) if response.exit_code == 0 => Outcome::Healthy,
            Ok(response) => {
                let output = [response.stdout, response.stderr].concat();
                Outcome::Unhealthy(String::from_utf8_lossy(&output[..output.len().min(QUOTED)]).into_owned())
            }
            Err(error) if error.code == tonic::Code::DeadlineExceeded => {
                Outcome::Unhealthy(format!("command timed out: {}", error.message))
            }
            Err(error) => Outcome::Error(error.to_string()),
        }
    }

    /// Runs a command for a hook; the error names the command and its output.
    pub async fn run(&self, command: Vec<String>, timeout: Duration) -> Result<(), String> {
        let shown = command.join(" ");
        match self.cri.exec_sync(&self.container_id, command, timeout).await {
            Ok(response) if response.exit_code == 0 => Ok(()),
            Ok(response) => {
                let output = String::from_utf8_lossy(&[response.stdout, response.stderr].concat()).into_owned();
                Err(format!("command '{shown}' exited with {}: {output}", response.exit_code))
            }
            Err(error) => Err(error.to_string()),
        }
    }

    fn port(&self, port: &IntOrString) -> Result<u16, String> {
        match port {
            IntOrString::Int(number) => u16::try_from(*number).map_err(|_| format!("invalid port number: {number}")),
            IntOrString::String(name) => {
                let named = self.container.ports.iter().flatten().find(|port| port.name.as_deref() == Some(name));
                let number = named.map(|port| port.container_port).or_else(|| name.parse().ok());
                number
                    .and_then(|number| u16::try_from(number).ok())
                    .ok_or_else(|| format!("couldn't find port: {name:?} in container {:?}", self.container.name))
            }
        }
    }

    fn url(&self, action: &HTTPGetAction) -> Result<String, String> {
        let host = action.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(&self.pod_ip);
        let scheme = action.scheme.as_deref().unwrap_or("HTTP").to_lowercase();
        let path = action.path.as_deref().unwrap_or("/");
        let slash = if path.starts_with('/') { "" } else { "/" };
        let host =
            if host.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()) { format!("[{host}]") } else { host.to_owned() };
        Ok(format!("{scheme}://{host}:{}{slash}{path}", self.port(&action.port)?))
    }

    async fn http(&self, action: &HTTPGetAction) -> Outcome {
        let url = match self.url(action) {
            Ok(url) => url,
            Err(error) => return Outcome::Error(error),
        };
        match follow(&url, action, "probe").await {
            Ok((200..=299, _)) => Outcome::Healthy,
            // Another host's health is not this container's.
            Ok((300..=399, body)) => Outcome::Warning(format!("Probe terminated redirects, Response body: {body}")),
            Ok((status, _)) => Outcome::Unhealthy(format!("HTTP probe failed with statuscode: {status}")),
            Err(error) => Outcome::Unhealthy(error),
        }
    }

    /// Sends a hook's request: whatever the answer, it was heard. A server that speaks no TLS is asked again
    /// without; its address is returned then.
    pub async fn tell(&self, action: &HTTPGetAction) -> Result<Option<String>, String> {
        let url = self.url(action)?;
        match (follow(&url, action, "lifecycle").await, url.strip_prefix("https://")) {
            (Ok(_), _) => Ok(None),
            (Err(error), Some(rest)) if error.ends_with(PLAIN_SERVER) => {
                let mut plain = action.clone();
                let secret = |name: &str| name.eq_ignore_ascii_case("authorization");
                plain.http_headers.iter_mut().for_each(|headers| headers.retain(|header| !secret(&header.name)));
                follow(&format!("http://{rest}"), &plain, "lifecycle").await?;
                Ok(rest.split('/').next().map(str::to_owned))
            }
            (Err(error), _) => Err(error),
        }
    }

    async fn tcp(&self, action: &TCPSocketAction) -> Outcome {
        let host = action.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(&self.pod_ip);
        let port = match self.port(&action.port) {
            Ok(port) => port,
            Err(error) => return Outcome::Error(error),
        };
        match TcpStream::connect((host, port)).await {
            Ok(_) => Outcome::Healthy,
            Err(error) => Outcome::Unhealthy(format!("dial tcp {host}:{port}: connect: {}", words(&error))),
        }
    }

    async fn grpc(&self, action: &GRPCAction, timeout: Duration) -> Outcome {
        use tonic::{Request, client::Grpc, transport::Endpoint};
        let host = if self.pod_ip.contains(':') { format!("[{}]", self.pod_ip) } else { self.pod_ip.clone() };
        let address = format!("http://{host}:{}", action.port);
        let endpoint = match Endpoint::from_shared(address.clone()) {
            Ok(endpoint) => endpoint.timeout(timeout),
            Err(error) => return Outcome::Error(error.to_string()),
        };
        let channel = match endpoint.connect().await {
            Ok(channel) => channel,
            Err(_) => {
                let seconds = timeout.as_secs();
                let text = format!("timeout: failed to connect service \"{host}:{}\" within {seconds}s", action.port);
                return Outcome::Unhealthy(format!("{text}: connection refused"));
            }
        };
        let mut client = Grpc::new(channel);
        if let Err(error) = client.ready().await {
            return Outcome::Unhealthy(error.to_string());
        }
        let request = HealthRequest { service: action.service.clone().unwrap_or_default() };
        let codec: tonic_prost::ProstCodec<HealthRequest, HealthResponse> = tonic_prost::ProstCodec::default();
        let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        match client.unary(Request::new(request), path, codec).await {
            Ok(response) if response.get_ref().status == SERVING => Outcome::Healthy,
            Ok(response) => {
                let name = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];
                let status = name.get(response.get_ref().status as usize).copied().unwrap_or("UNKNOWN");
                Outcome::Unhealthy(format!("service unhealthy (responded with {status:?})"))
            }
            Err(status) => Outcome::Unhealthy(match (status.code(), status.message()) {
                (tonic::Code::Unimplemented, text) => {
                    format!(
                        "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {text}"
                    )
                }
                (code, text) => format!("error: health rpc probe failed: rpc error: code = {code:?} desc = {text}"),
            }),
        }
    }
}

const SERVING: i32 = 1;

/// `grpc.health.v1`, the two messages of it that a probe needs.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

fn words(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

/// The next address of a redirect, if it stays on the same host.
fn redirect(from: &str, location: &str) -> Option<String> {
    let from: http::Uri = from.parse().ok()?;
    let to: http::Uri = location.parse().ok()?;
    match to.authority() {
        Some(_) => (to.host() == from.host()).then(|| location.to_owned()),
        None => {
            let base = format!("{}://{}", from.scheme_str()?, from.authority()?);
            let relative = if location.starts_with('/') {
                location.to_owned()
            } else {
                format!("{}/{location}", from.path().rsplit_once('/').map_or("", |(directory, _)| directory))
            };
            Some(base + &relative)
        }
    }
}

/// One GET and its redirects on the same host: the last answer's status and body.
async fn follow(first: &str, action: &HTTPGetAction, purpose: &str) -> Result<(u16, String), String> {
    let mut url = first.to_owned();
    for _ in 0..=REDIRECTS {
        let answer = get(&url, action, purpose).await;
        let (status, location, body) = answer.map_err(|error| format!("Get \"{url}\": {error}"))?;
        let redirected = location.filter(|_| matches!(status, 301..=303 | 307 | 308));
        match redirected.and_then(|location| redirect(&url, &location)) {
            Some(next) => url = next,
            None => return Ok((status, body)),
        }
    }
    Err(format!("Get \"{first}\": stopped after {REDIRECTS} redirects"))
}

/// One GET without following redirects: status, Location and the body's beginning.
async fn get(url: &str, action: &HTTPGetAction, purpose: &str) -> Result<(u16, Option<String>, String), String> {
    let uri: http::Uri = url.parse().map_err(|error| format!("{error}"))?;
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let secure = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let stream = TcpStream::connect((host.as_str(), port))
        .await
        .map_err(|error| format!("dial tcp {host}:{port}: connect: {}", words(&error)))?;
    let mut request = http::Request::get(uri.path_and_query().map_or("/", |path| path.as_str()));
    let given = action.http_headers.iter().flatten();
    let has = |name: &str| given.clone().any(|header| header.name.eq_ignore_ascii_case(name));
    let agent = format!("kube-{purpose}/1.36");
    for (name, value) in
        [("host", uri.authority().map(|a| a.as_str()).unwrap_or_default()), ("user-agent", &agent), ("accept", "*/*")]
    {
        if !has(name) {
            request = request.header(name, value);
        }
    }
    for header in given.clone().filter(|header| !header.value.is_empty() || header.name != "Accept") {
        request = request.header(&header.name, &header.value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    if secure {
        let name = rustls::pki_types::ServerName::try_from(host).map_err(|error| error.to_string())?;
        let stream = tls().connect(name, stream).await.map_err(|error| match error.to_string() {
            // What stands where a TLS record should begin.
            text if text.contains("InvalidContentType") => PLAIN_SERVER.to_owned(),
            text => text,
        })?;
        exchange(stream, request).await
    } else {
        exchange(stream, request).await
    }
}

async fn exchange<S>(stream: S, request: http::Request<Empty<Bytes>>) -> Result<(u16, Option<String>, String), String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let text = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(text)?;
    let location = response.headers().get("location").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), BODY_BYTES).collect().await.map(|body| body.to_bytes());
    connection.abort();
    Ok((status, location, String::from_utf8_lossy(&body.unwrap_or_default()).into_owned()))
}

/// TLS that trusts anybody: a probe asks whether the container answers, not who it is.
fn tls() -> tokio_rustls::TlsConnector {
    static CONNECTOR: std::sync::OnceLock<tokio_rustls::TlsConnector> = std::sync::OnceLock::new();
    let connector = CONNECTOR.get_or_init(|| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("ring offers the default versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Unverified(provider)))
            .with_no_client_auth();
        Arc::new(config).into()
    });
    connector.clone()
}

#[derive(Debug)]
struct Unverified(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &rustls::pki_types::CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &rustls::pki_types::CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
