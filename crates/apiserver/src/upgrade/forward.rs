//! Sends one request on one fresh connection and streams the answer back, upgraded or not.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::header::{CONNECTION, HOST, LOCATION, UPGRADE};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use machinery::status::{ApiError, Result as ApiResult};
use rustls::ClientConfig;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, SignatureScheme};
use thiserror::Error;
use tokio_rustls::TlsConnector;

use super::{Connection, Dialer, is_upgrade, page, tunnel};
use crate::authn::is_credential_header;

/// TCP and TLS together, as upstream's dialer.
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);
/// Of a kubelet's error text.
const MAX_ERROR_BYTES: usize = 8 * 1024;
const HOP_BY_HOP: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Plain,
    /// Encrypted but not verified, and without our client certificate: what pods serve.
    Tls,
    /// With our client certificate, and the kubelet's verified.
    Kubelet,
    /// With our client certificate; the client asked not to verify the kubelet's.
    KubeletUnverified,
}

#[derive(Clone, Debug)]
pub struct Target {
    pub scheme: Scheme,
    pub host: String,
    pub port: u16,
}

impl Target {
    fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

#[derive(Debug, Error)]
pub enum ForwardError {
    #[error("dial tcp {0}: {1}")]
    Dial(String, String),
    #[error("tls to {0}: {1}")]
    Tls(String, std::io::Error),
    #[error("{0}: {1}")]
    Http(String, hyper::Error),
    #[error("{0} is no valid request target: {1}")]
    Request(String, http::Error),
}

pub struct Forward {
    dialer: Arc<dyn Dialer>,
    kubelet: TlsConnector,
    kubelet_unverified: TlsConnector,
    tls: TlsConnector,
}

impl Forward {
    pub fn new(dialer: Arc<dyn Dialer>, kubelet: ClientConfig) -> Self {
        let mut unverified = kubelet.clone();
        let verifier = Arc::new(NoVerification(kubelet.crypto_provider().clone()));
        unverified.dangerous().set_certificate_verifier(verifier);
        let mut tls = unverified.clone();
        tls.client_auth_cert_resolver = Arc::new(NoCertificate);
        let connector = |config: ClientConfig| TlsConnector::from(Arc::new(config));
        Forward { dialer, kubelet: connector(kubelet), kubelet_unverified: connector(unverified), tls: connector(tls) }
    }

    /// `uri` is path and query at the target.
    pub async fn send(
        &self,
        target: &Target,
        uri: &str,
        mut request: Request<Body>,
        rewrite: Option<&Rewrite>,
    ) -> Result<Response<Body>, ForwardError> {
        let authority = target.authority();
        let upgrade = is_upgrade(&request).then(|| hyper::upgrade::on(&mut request));
        let outgoing = outgoing(&authority, uri, request, upgrade.is_some(), rewrite)?;
        let connection = self.connect(target, &authority).await?;
        let http = |error| ForwardError::Http(authority.clone(), error);
        let (mut sender, driver) = http1::handshake(TokioIo::new(connection)).await.map_err(http)?;
        tokio::spawn(driver.with_upgrades());
        let mut response = sender.send_request(outgoing).await.map_err(http)?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            if let Some(client) = upgrade {
                let websocket = tunnel::is_websocket(response.headers());
                tokio::spawn(tunnel::run(client, hyper::upgrade::on(&mut response), websocket));
            }
        } else {
            remove_hop_by_hop(response.headers_mut());
        }
        *response.version_mut() = Version::default();
        let response = response.map(Body::new);
        Ok(match rewrite {
            Some(rewrite) => rewrite.response(authority, response),
            None => response,
        })
    }

    async fn connect(&self, target: &Target, authority: &str) -> Result<Box<dyn Connection>, ForwardError> {
        let failed = |why: String| ForwardError::Dial(authority.to_owned(), why);
        let connect = async {
            let dialled = self.dialer.dial(&target.host, target.port).await;
            let stream = dialled.map_err(|error| failed(format!("connect: {}", cause(&error))))?;
            let connector = match target.scheme {
                Scheme::Plain => return Ok(stream),
                Scheme::Tls => &self.tls,
                Scheme::KubeletUnverified => &self.kubelet_unverified,
                Scheme::Kubelet => &self.kubelet,
            };
            let name = ServerName::try_from(target.host.clone()).map_err(|error| failed(error.to_string()))?;
            let tls = connector.connect(name, stream).await;
            let tls = tls.map_err(|error| ForwardError::Tls(authority.to_owned(), error))?;
            Ok(Box::new(tls) as Box<dyn Connection>)
        };
        tokio::time::timeout(DIAL_TIMEOUT, connect).await.unwrap_or_else(|_| Err(failed("i/o timeout".into())))
    }
}

/// Without the number that Rust appends: `connection refused`.
fn cause(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

fn outgoing(
    authority: &str,
    uri: &str,
    request: Request<Body>,
    upgrade: bool,
    rewrite: Option<&Rewrite>,
) -> Result<Request<Body>, ForwardError> {
    let invalid = |error| ForwardError::Request(uri.to_owned(), error);
    let (parts, body) = request.into_parts();
    let mut headers = parts.headers;
    let protocol = headers.get(UPGRADE).cloned().filter(|_| upgrade);
    remove_hop_by_hop(&mut headers);
    let ours: Vec<_> = headers.keys().filter(|name| is_credential_header(name)).cloned().collect();
    ours.into_iter().for_each(|name| drop(headers.remove(name)));
    if let Some(protocol) = protocol {
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, protocol);
    }
    let host = HeaderValue::from_str(authority).map_err(|error| invalid(error.into()))?;
    headers.insert(HOST, host);
    if let Some(rewrite) = rewrite {
        rewrite.forwarded(&mut headers);
    }
    let uri: Uri = uri.parse().map_err(|error: http::uri::InvalidUri| invalid(error.into()))?;
    let mut outgoing = Request::builder().method(parts.method).uri(uri).body(body).map_err(invalid)?;
    *outgoing.headers_mut() = headers;
    Ok(outgoing)
}

/// Also what `Connection` names.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').filter_map(|name| name.trim().parse().ok()))
        .collect();
    named.into_iter().for_each(|name| drop(headers.remove(name)));
    HOP_BY_HOP.iter().for_each(|name| drop(headers.remove(*name)));
}

/// A proxied server's word about who may call it does not hold for the API server, under whose name it appears.
const CROSS_ORIGIN: &[&str] = &[
    "access-control-allow-credentials",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-allow-origin",
];

/// Makes a proxied server's world agree with the URL that its client sees.
#[derive(Clone)]
pub struct Rewrite {
    /// The path up to and with `/proxy`.
    prefix: String,
    path: String,
    host: Option<HeaderValue>,
}

impl Rewrite {
    pub fn new(prefix: &str, request: &Request<Body>) -> Self {
        let authority = |uri: &Uri| uri.authority().map(Authority::as_str).and_then(|host| host.parse().ok());
        Rewrite {
            prefix: prefix.to_owned(),
            path: request.uri().path().to_owned(),
            host: request.headers().get(HOST).cloned().or_else(|| authority(request.uri())),
        }
    }

    fn forwarded(&self, headers: &mut HeaderMap) {
        let mut set = |name: &'static str, value: HeaderValue| headers.insert(HeaderName::from_static(name), value);
        if let Ok(path) = HeaderValue::from_str(&self.path) {
            set("x-forwarded-uri", path);
        }
        if let Some(host) = &self.host {
            set("x-forwarded-host", host.clone());
        }
        set("x-forwarded-proto", HeaderValue::from_static("https"));
    }

    fn response(&self, authority: String, mut response: Response<Body>) -> Response<Body> {
        let headers = response.headers_mut();
        CROSS_ORIGIN.iter().for_each(|name| drop(headers.remove(*name)));
        if let Some(location) = headers.get(LOCATION) {
            let location = location.to_str().ok().and_then(|location| self.link(&authority, location)?.parse().ok());
            if let Some(location) = location {
                headers.insert(LOCATION, location);
            }
            return response;
        }
        let rewrite = self.clone();
        page::rewritten(response, move |link: &str| rewrite.link(&authority, link))
    }

    /// A link within the target becomes one within the proxied path.
    fn link(&self, authority: &str, link: &str) -> Option<String> {
        let (host, rest) = match link.split_once("//") {
            Some((scheme, rest)) if scheme.is_empty() || (scheme.ends_with(':') && !scheme.contains('/')) => {
                let (host, rest) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
                (Some(host), rest)
            }
            _ => (None, link),
        };
        let own = self.host.as_ref().and_then(|host| host.to_str().ok());
        let elsewhere = host.is_some_and(|host| host != authority && Some(host) != own);
        if elsewhere || !rest.starts_with('/') {
            return None;
        }
        Some(if rest.starts_with(&self.prefix) { rest.to_owned() } else { format!("{}{rest}", self.prefix) })
    }
}

/// A kubelet's plain-text refusal as a Status.
pub async fn checked(response: Response<Body>) -> ApiResult<Response<Body>> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = Limited::new(response.into_body(), MAX_ERROR_BYTES).collect().await;
    let text = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).trim().to_owned()).unwrap_or_default();
    let text = if text.is_empty() { status.to_string() } else { text };
    let reason = match status {
        StatusCode::BAD_REQUEST => "BadRequest",
        StatusCode::UNAUTHORIZED => "Unauthorized",
        StatusCode::FORBIDDEN => "Forbidden",
        StatusCode::NOT_FOUND => "NotFound",
        StatusCode::CONFLICT => "Conflict",
        StatusCode::TOO_MANY_REQUESTS => "TooManyRequests",
        StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailable",
        StatusCode::GATEWAY_TIMEOUT => "Timeout",
        _ if status.is_server_error() => "InternalError",
        _ => "Unknown",
    };
    Err(ApiError::new(status.as_u16(), reason, text))
}

/// We do not tell pods who we are.
#[derive(Debug)]
struct NoCertificate;

impl ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// For targets whose certificates nobody we know has signed.
#[derive(Debug)]
struct NoVerification(Arc<CryptoProvider>);

impl ServerCertVerifier for NoVerification {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
