//! Client certificates: trusted by the cluster CA they name a user; by the front-proxy CA, a proxy
//! that may name any user in headers.
//!
//! The TLS handshake only makes the client prove that it holds the key of whatever it presents.
//! Trust is decided here, once per connection, so that a bad certificate gets the client a 401 that
//! it can explain instead of a broken connection.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderMap;
use rustls::RootCertStore;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::AttributeTypeAndValue;

use super::{extra_headers, header_values};
use crate::identity::UserInfo;

/// Whom we believe.
#[derive(Clone, Debug)]
pub struct ClientTrust {
    cluster: Arc<dyn ClientCertVerifier>,
    front_proxy: Option<Arc<dyn ClientCertVerifier>>,
    /// Common names that the front-proxy CA may vouch for; empty means any.
    proxy_names: Vec<String>,
}

impl ClientTrust {
    pub fn new(
        cluster_ca: RootCertStore,
        front_proxy_ca: Option<RootCertStore>,
        proxy_names: Vec<String>,
    ) -> anyhow::Result<Self> {
        let verifier = |roots: RootCertStore| {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build()
        };
        Ok(ClientTrust {
            cluster: verifier(cluster_ca)?,
            front_proxy: front_proxy_ca.map(verifier).transpose()?,
            proxy_names,
        })
    }

    /// For [`rustls::ServerConfig`]: a certificate is asked for, not required, and not judged.
    pub fn handshake_verifier(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::new(AnyCertificate(self.cluster.clone()))
    }

    /// Judges what a client presented; once per connection.
    pub fn judge(&self, chain: &[CertificateDer<'_>]) -> PeerCertificates {
        let Some((leaf, intermediates)) = chain.split_first() else {
            return PeerCertificates { verdict: Verdict::Untrusted("no certificate".into()), not_after: 0 };
        };
        let not_after =
            X509Certificate::from_der(leaf).map_or(0, |(_, certificate)| certificate.validity().not_after.timestamp());
        let verdict = self.verdict(leaf, intermediates).unwrap_or_else(Verdict::Untrusted);
        PeerCertificates { verdict, not_after }
    }

    fn verdict(&self, leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Result<Verdict, String> {
        let (_, certificate) = X509Certificate::from_der(leaf).map_err(|error| error.to_string())?;
        let trusted = |verifier: &Arc<dyn ClientCertVerifier>| {
            verifier.verify_client_cert(leaf, intermediates, UnixTime::now()).map_err(|error| error.to_string())
        };
        if let Some(front_proxy) = &self.front_proxy
            && trusted(front_proxy).is_ok()
        {
            let name = common_name(&certificate);
            return match self.proxy_names.is_empty() || self.proxy_names.contains(&name) {
                true => Ok(Verdict::FrontProxy),
                false => Err(format!("{name:?} is not among the allowed front proxies")),
            };
        }
        trusted(&self.cluster)?;
        let user = user(leaf, &certificate);
        if user.name.is_empty() { Err("the certificate has no common name".into()) } else { Ok(Verdict::User(user)) }
    }
}

#[derive(Clone, Debug)]
enum Verdict {
    User(UserInfo),
    FrontProxy,
    Untrusted(String),
}

/// What a connection's client certificates prove.
#[derive(Clone, Debug)]
pub struct PeerCertificates {
    verdict: Verdict,
    /// Unix seconds. A connection may outlive its certificate.
    not_after: i64,
}

impl PeerCertificates {
    /// The certificate's user; `None` for a front proxy; an error for one that we do not trust.
    pub fn user(&self) -> Result<Option<UserInfo>, String> {
        match &self.verdict {
            _ if self.expired() => Err("the certificate has expired".into()),
            Verdict::User(user) => Ok(Some(user.clone())),
            Verdict::FrontProxy => Ok(None),
            Verdict::Untrusted(why) => Err(why.clone()),
        }
    }

    /// The user that a trusted front proxy names.
    pub fn front_proxy_user(&self, headers: &HeaderMap) -> Option<UserInfo> {
        if !matches!(self.verdict, Verdict::FrontProxy) || self.expired() {
            return None;
        }
        let one = |name| header_values(headers, name).into_iter().next().filter(|value| !value.is_empty());
        let mut extra = BTreeMap::<String, Vec<String>>::new();
        for (key, value) in extra_headers(headers, "x-remote-extra-") {
            extra.entry(key).or_default().push(value);
        }
        Some(UserInfo {
            name: one("x-remote-user")?,
            uid: one("x-remote-uid").unwrap_or_default(),
            groups: header_values(headers, "x-remote-group"),
            extra,
        })
    }

    fn expired(&self) -> bool {
        jiff::Timestamp::now().as_second() > self.not_after
    }
}

fn user(leaf: &CertificateDer<'_>, certificate: &X509Certificate<'_>) -> UserInfo {
    let id = format!("X509SHA256={}", hex::encode(Sha256::digest(leaf)));
    UserInfo {
        name: common_name(certificate),
        uid: String::new(),
        groups: certificate.subject().iter_organization().filter_map(text).collect(),
        extra: BTreeMap::from([("authentication.kubernetes.io/credential-id".into(), vec![id])]),
    }
}

fn common_name(certificate: &X509Certificate<'_>) -> String {
    certificate.subject().iter_common_name().filter_map(text).last().unwrap_or_default()
}

fn text(attribute: &AttributeTypeAndValue<'_>) -> Option<String> {
    attribute.as_str().ok().map(str::to_owned)
}

/// Checks possession of the key only; see the module's words on why.
#[derive(Debug)]
struct AnyCertificate(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for AnyCertificate {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
