//! Who are you? Client certificates, service-account tokens, front-proxy headers, or anonymous.
//!
//! In-process callers put a [`UserInfo`] into the request's extensions and are believed: nobody
//! outside can. Credentials that are wrong are a 401 even where none would have been fine, as
//! upstream does it, so that a broken client notices.

pub mod impersonation;
pub mod keys;
pub mod lookup;
pub mod tokens;
pub mod x509;

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use http::request::Parts;
use http::{HeaderMap, HeaderName};
use machinery::status::{ApiError, Result};

pub use impersonation::impersonate;
pub use lookup::{Change, Kind, Lookup};
pub use tokens::Tokens;
pub use x509::{ClientTrust, PeerCertificates};

use crate::authz::Authorizer;
use crate::identity::{ANONYMOUS, AUTHENTICATED, UserInfo};

#[async_trait]
pub trait Authenticator: Send + Sync {
    /// `Ok(None)` when the request carries no credentials and anonymous requests are off.
    async fn authenticate(&self, parts: &Parts, peer: Option<&PeerCertificates>) -> Result<Option<UserInfo>>;
}

/// The cluster's authenticator: front proxy, then certificate, then token, then anonymous.
pub struct Authentication {
    tokens: Arc<Tokens>,
    lookup: Arc<dyn Lookup>,
}

impl Authentication {
    pub fn new(tokens: Arc<Tokens>, lookup: Arc<dyn Lookup>) -> Self {
        Authentication { tokens, lookup }
    }

    async fn credentials(&self, parts: &Parts, peer: Option<&PeerCertificates>) -> Result<Option<UserInfo>> {
        if let Some(user) = peer.and_then(|peer| peer.front_proxy_user(&parts.headers)) {
            return Ok(Some(user));
        }
        let certificate = peer.map(PeerCertificates::user).transpose();
        if let Ok(Some(Some(user))) = certificate {
            return Ok(Some(user));
        }
        match bearer_token(&parts.headers) {
            Some(token) => self.tokens.authenticate(&token, self.lookup.as_ref()).await.map(Some).map_err(|error| {
                tracing::debug!(%error, "refused a bearer token");
                ApiError::unauthorized()
            }),
            None => certificate.map(|_| None).map_err(|error| {
                tracing::debug!(%error, "refused a client certificate");
                ApiError::unauthorized()
            }),
        }
    }
}

#[async_trait]
impl Authenticator for Authentication {
    async fn authenticate(&self, parts: &Parts, peer: Option<&PeerCertificates>) -> Result<Option<UserInfo>> {
        if let Some(user) = parts.extensions.get::<UserInfo>() {
            return Ok(Some(user.clone()));
        }
        Ok(Some(match self.credentials(parts, peer).await? {
            Some(mut user) => {
                if user.name != ANONYMOUS {
                    user.add_group(AUTHENTICATED);
                }
                user
            }
            None => UserInfo::anonymous(),
        }))
    }
}

/// Authentication and impersonation together: whom the rest of the request acts as.
pub async fn identify(
    authenticator: &dyn Authenticator,
    authorizer: &dyn Authorizer,
    parts: &Parts,
    peer: Option<&PeerCertificates>,
) -> Result<UserInfo> {
    let user = authenticator.authenticate(parts, peer).await?.ok_or_else(ApiError::unauthorized)?;
    impersonate(&parts.headers, user, authorizer)
}

pub(crate) const WEBSOCKET_TOKEN: &str = "base64url.bearer.authorization.k8s.io.";

/// From `Authorization`, or from the WebSocket protocol list, since browsers can set no header there.
fn bearer_token(headers: &HeaderMap) -> Option<String> {
    if let Some(value) = headers.get(AUTHORIZATION) {
        let (scheme, token) = value.to_str().ok()?.trim().split_once(' ')?;
        return scheme
            .eq_ignore_ascii_case("bearer")
            .then(|| token.trim().to_owned())
            .filter(|token| !token.is_empty());
    }
    let protocols = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let encoded = protocols.flat_map(|list| list.split(',')).find_map(|p| p.trim().strip_prefix(WEBSOCKET_TOKEN))?;
    String::from_utf8(URL_SAFE_NO_PAD.decode(encoded.trim_end_matches('=')).ok()?).ok()
}

/// Headers that speak to this server only; none may reach a kubelet, pod or aggregated server.
pub fn is_credential_header(name: &HeaderName) -> bool {
    *name == AUTHORIZATION || ["impersonate-", "x-remote-"].iter().any(|prefix| name.as_str().starts_with(prefix))
}

/// Values of every header `PREFIX<key>`, the key percent-decoded and in lower case.
fn extra_headers(headers: &HeaderMap, prefix: &str) -> Vec<(String, String)> {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers
        .iter()
        .filter_map(|(name, value)| Some((percent_decode(name.as_str().strip_prefix(prefix)?), text(value))))
        .collect()
}

fn header_values(headers: &HeaderMap, name: &str) -> Vec<String> {
    headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
}

fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = (*first == b'%').then(|| tail.get(..2)).flatten().and_then(|pair| hex::decode(pair).ok());
        match escaped {
            Some(byte) => (bytes.extend(byte), rest = &tail[2..]).1,
            None => (bytes.push(*first), rest = tail).1,
        }
    }
    String::from_utf8_lossy(&bytes).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bearer_tokens_are_found() {
        let header = |name: &'static str, value: &'static str| {
            HeaderMap::from_iter([(HeaderName::from_static(name), value.parse().unwrap())])
        };
        let cases = [
            (header("authorization", "Bearer abc"), Some("abc")),
            (header("authorization", "bearer  abc "), Some("abc")),
            (header("authorization", "Basic abc"), None),
            (header("authorization", "Bearer "), None),
            (
                header("sec-websocket-protocol", "v4.channel.k8s.io, base64url.bearer.authorization.k8s.io.YWJj"),
                Some("abc"),
            ),
            (HeaderMap::new(), None),
        ];
        for (headers, expected) in cases {
            assert_eq!(bearer_token(&headers).as_deref(), expected, "{headers:?}");
        }
    }

    #[test]
    fn extra_keys_are_decoded() {
        assert_eq!(percent_decode("acme.com%2Fproject"), "acme.com/project");
        assert_eq!(percent_decode("100%"), "100%");
    }
}
