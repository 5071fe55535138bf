//! Issues certificates and judges existing ones. No files here.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use ring::signature::{ECDSA_P256_SHA256_ASN1, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

const DAY: Duration = Duration::from_secs(24 * 3600);
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * DAY.as_secs());
const LEAF_LIFE: Duration = Duration::from_secs(365 * DAY.as_secs());
/// Certificates are valid a little earlier than now, for clients whose clocks are behind.
const BACKDATE: Duration = Duration::from_secs(5 * 60);
/// rcgen keeps one value per attribute type, and an organization can be spelled as two types.
const MAX_GROUPS: usize = 2;

/// A certificate (PEM, leaf first) and its key (PEM, PKCS#8).
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    pub cert: String,
    pub key: String,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential").field("cert", &self.cert).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Client,
    Server { names: Vec<String>, ips: Vec<IpAddr> },
}

/// What a certificate must say.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub name: String,
    pub groups: Vec<String>,
    pub purpose: Purpose,
}

/// A certificate authority.
pub(super) struct Authority {
    pub pem: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn create(name: &str) -> Result<(Self, Credential)> {
        let key = KeyPair::generate()?;
        let mut params = params(name, &[], CA_LIFE)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![SanType::DnsName(name.try_into()?)];
        let credential = Credential { cert: params.self_signed(&key)?.pem(), key: key.serialize_pem() };
        Ok((Self::load(&credential)?, credential))
    }

    pub fn load(credential: &Credential) -> Result<Self> {
        let key = load_key(&credential.key)?;
        let der = CertificateDer::from_pem_slice(credential.cert.as_bytes()).context("no certificate in PEM form")?;
        let certificate = parse(&der)?;
        ensure!(certificate.is_ca(), "the certificate is not that of a certificate authority");
        ensure!(owns(&key, &certificate), "the key does not belong to the certificate");
        ensure!(now() < certificate.validity().not_after.timestamp(), "the certificate has expired");
        let issuer = Issuer::from_ca_cert_der(&der, key)?;
        Ok(Authority { pem: credential.cert.clone(), der: der.clone(), issuer })
    }

    pub fn issue(&self, request: &Request) -> Result<Credential> {
        self.issue_at(request, Duration::ZERO)
    }

    /// Signs another's request (PEM) as a client: its subject and names, for its key. Answers in PEM.
    pub fn sign(&self, request: &str, life: Option<Duration>) -> Result<String> {
        let mut asked = CertificateSigningRequestParams::from_pem(request).context("read the request")?;
        let mine = params("", &[], life.unwrap_or(LEAF_LIFE).min(LEAF_LIFE))?;
        let params = &mut asked.params;
        (params.not_before, params.not_after) = (mine.not_before, mine.not_after);
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = asked.signed_by(&self.issuer)?;
        // Rather none than one with fewer groups than were approved.
        let (_, pem) = x509_parser::pem::parse_x509_pem(request.as_bytes())?;
        let (_, wanted) = x509_parser::certification_request::X509CertificationRequest::from_der(&pem.contents)?;
        let subject = parse(certificate.der())?.subject().iter().count();
        ensure!(
            wanted.certification_request_info.subject.iter().count() == subject,
            "the subject has more than one attribute of a kind, which cannot be signed here"
        );
        Ok(certificate.pem())
    }

    /// As if it had been issued some time ago.
    pub fn issue_at(&self, request: &Request, ago: Duration) -> Result<Credential> {
        let mut params = params(&request.name, &request.groups, LEAF_LIFE)?;
        params.not_before -= ago;
        params.not_after -= ago;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        match &request.purpose {
            Purpose::Client => params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
            Purpose::Server { names, ips } => {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
                for name in names {
                    let name = name.as_str().try_into().with_context(|| format!("{name:?} is no DNS name"))?;
                    params.subject_alt_names.push(SanType::DnsName(name));
                }
                params.subject_alt_names.extend(ips.iter().copied().map(SanType::IpAddress));
            }
        }
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Credential { cert: certificate.pem(), key: key.serialize_pem() })
    }

    /// Whether a stored certificate still serves `request`; an error if it is damaged.
    pub fn still_good(&self, credential: &Credential, request: &Request) -> Result<bool> {
        let key = load_key(&credential.key)?;
        let der = CertificateDer::from_pem_slice(credential.cert.as_bytes()).context("no certificate in PEM form")?;
        let certificate = parse(&der)?;
        ensure!(owns(&key, &certificate), "the key does not belong to the certificate");
        let (from, to) = (certificate.validity().not_before.timestamp(), certificate.validity().not_after.timestamp());
        let fresh = now() < from + (to - from) / 3 * 2;
        Ok(fresh && self.signed(&certificate)? && says(&certificate, request))
    }

    fn signed(&self, certificate: &X509Certificate<'_>) -> Result<bool> {
        let ca = parse(&self.der)?;
        let raw = &ca.public_key().subject_public_key.data;
        let (message, signature) = (certificate.tbs_certificate.as_ref(), &certificate.signature_value.data);
        Ok(match ca.public_key().parsed() {
            Ok(PublicKey::EC(_)) => UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, raw).verify(message, signature),
            Ok(PublicKey::RSA(_)) => {
                UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, raw).verify(message, signature)
            }
            _ => bail!("the certificate authority's key is neither ECDSA nor RSA"),
        }
        .is_ok())
    }
}

fn params(name: &str, groups: &[String], life: Duration) -> Result<CertificateParams> {
    ensure!(groups.len() <= MAX_GROUPS, "a certificate carries at most {MAX_GROUPS} groups, {} asked", groups.len());
    let mut subject = DistinguishedName::new();
    let organization = [DnType::OrganizationName, DnType::CustomDnType(vec![2, 5, 4, 10])];
    for (kind, group) in organization.into_iter().zip(groups) {
        subject.push(kind, group.as_str());
    }
    subject.push(DnType::CommonName, name);
    let mut params = CertificateParams::default();
    params.distinguished_name = subject;
    let start = SystemTime::now().duration_since(UNIX_EPOCH)? - BACKDATE;
    params.not_before = date_time_ymd(1970, 1, 1) + start;
    params.not_after = params.not_before + life + BACKDATE;
    Ok(params)
}

pub(super) fn load_key(pem: &str) -> Result<KeyPair> {
    KeyPair::from_pem(pem)
        .context("no usable private key; it must be in PKCS#8 form (`openssl pkcs8 -topk8 -nocrypt` converts it)")
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>> {
    Ok(X509Certificate::from_der(der).context("damaged certificate")?.1)
}

fn owns(key: &KeyPair, certificate: &X509Certificate<'_>) -> bool {
    *key.public_key_raw() == *certificate.public_key().subject_public_key.data
}

/// Whether a certificate has the subject and at least the names of a request.
fn says(certificate: &X509Certificate<'_>, request: &Request) -> bool {
    let subject = certificate.subject();
    let name = subject.iter_common_name().any(|name| name.as_str() == Ok(request.name.as_str()));
    let groups: Vec<_> = subject.iter_organization().filter_map(|group| group.as_str().ok()).collect();
    let Purpose::Server { names, ips } = &request.purpose else { return name && groups == request.groups };
    let Ok(Some(alternatives)) = certificate.subject_alternative_name() else { return false };
    let has = |wanted: &dyn Fn(&GeneralName<'_>) -> bool| alternatives.value.general_names.iter().any(wanted);
    name && names.iter().all(|name| has(&|other| matches!(other, GeneralName::DNSName(other) if other == name)))
        && ips.iter().all(|ip| {
            let octets = match ip {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            has(&|other| matches!(other, GeneralName::IPAddress(other) if *other == octets))
        })
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}
