//! `certificates.k8s.io/v1`: CertificateSigningRequest. Who asks is the server's to say, who approves
//! and who signs are others; each writes its own part and cannot touch the rest.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1 as api;
use machinery::duration;
use machinery::field::Path;
use machinery::table::Column;
use serde_json::{Value, json};

use crate::facts::{Facts, Subresource};
use crate::print::{self, NONE};
use crate::resource::{Kind, keep};
use crate::validate::{Errors, indexed, named, text};
use crate::value::Defaulting;

pub struct CertificateSigningRequest;

const GROUP: &str = "certificates.k8s.io";
const MIN_SECONDS: i32 = 600;
/// Written through `approval` only.
const VERDICTS: [&str; 2] = ["Approved", "Denied"];
const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

impl Kind for CertificateSigningRequest {
    type Object = api::CertificateSigningRequest;

    const FACTS: Facts = Facts {
        short_names: &["csr"],
        subresources: &[
            Subresource::own("approval", GROUP, "v1", "CertificateSigningRequest"),
            Subresource::own("status", GROUP, "v1", "CertificateSigningRequest"),
        ],
        ..Facts::cluster(
            GROUP,
            "v1",
            "CertificateSigningRequest",
            "certificatesigningrequests",
            "certificatesigningrequest",
            "io.k8s.api.certificates.v1.CertificateSigningRequest",
        )
    };
    const NAME: crate::validate::meta::NameRule = crate::validate::meta::path_segment;
    const COLUMNS: &'static [Column] = &[
        print::NAME,
        print::AGE,
        print::text("SignerName"),
        print::text("Requestor"),
        print::text("RequestedDuration"),
        print::text("Condition"),
    ];
    const FIELDS: &'static [&'static str] = &["spec.signerName"];
    const STATUS_WRITERS: &'static [&'static str] = &["approval"];

    fn prepare_update(new: &mut Value, old: &Value) {
        keep(new, old, "spec");
    }

    fn prepare_status_update(new: &mut Value, old: &Value) {
        preserve_verdicts(new, old);
        stamp(new, old);
    }

    fn prepare_subresource_update(_subresource: &str, new: &mut Value, old: &Value) {
        keep(new, old, "spec");
        let conditions = new["status"]["conditions"].take();
        keep(new, old, "status");
        let status = new.make("status");
        match conditions.is_null() {
            true => drop(Defaulting::remove(status, "conditions")),
            false => status["conditions"] = conditions,
        }
        stamp(new, old);
    }

    fn validate(object: &api::CertificateSigningRequest, errors: &mut Errors) {
        let (spec, path) = (&object.spec, Path::new("spec"));
        if let Err(why) = request(&spec.request.0) {
            errors.invalid(&path.child("request"), &spec.request, why);
        }
        let at = path.child("usages");
        if spec.usages.as_ref().is_none_or(Vec::is_empty) {
            errors.required(&at, "usages required");
        }
        named::distinct(spec.usages.as_ref(), &at, errors);
        for (at, usage) in indexed(spec.usages.as_ref(), &at) {
            errors.one_of(&at, Some(usage), USAGES);
        }
        let at = path.child("signerName");
        if spec.signer_name == "kubernetes.io/legacy-unknown" {
            errors.invalid(&at, &spec.signer_name, "the legacy signerName is not allowed via this API version");
        } else {
            signer(&spec.signer_name, &at, errors);
        }
        if let Some(seconds) = spec.expiration_seconds.filter(|seconds| *seconds < MIN_SECONDS) {
            let detail = "may not specify a duration less than 600 seconds (10 minutes)";
            errors.invalid(&path.child("expirationSeconds"), seconds, detail);
        }
        conditions(object, errors);
    }

    fn validate_update(
        new: &api::CertificateSigningRequest,
        _old: &api::CertificateSigningRequest,
        errors: &mut Errors,
    ) {
        conditions(new, errors);
    }

    fn validate_subresource_update(
        _subresource: &str,
        new: &api::CertificateSigningRequest,
        old: &api::CertificateSigningRequest,
        errors: &mut Errors,
    ) {
        conditions(new, errors);
        verdicts(new, old, true, errors);
    }

    fn validate_status_update(
        new: &api::CertificateSigningRequest,
        old: &api::CertificateSigningRequest,
        errors: &mut Errors,
    ) {
        conditions(new, errors);
        verdicts(new, old, false, errors);
        let certificate = |request: &api::CertificateSigningRequest| {
            request.status.as_ref().and_then(|status| status.certificate.clone()).filter(|found| !found.0.is_empty())
        };
        let (issued, before) = (certificate(new), certificate(old));
        let at = Path::new("status").child("certificate");
        match (&issued, &before) {
            (issued, Some(before)) if issued.as_ref() != Some(before) => {
                errors.forbidden(&at, "updates may not modify existing certificate content");
            }
            (Some(issued), None) if blocks(&issued.0, "CERTIFICATE").is_none() => {
                errors.invalid(
                    &at,
                    "<certificate data>",
                    "must contain at least one CERTIFICATE PEM block and nothing else",
                );
            }
            _ => {}
        }
    }

    fn cells(object: &Value, typed: &api::CertificateSigningRequest, now: Timestamp) -> Vec<Value> {
        let spec = &typed.spec;
        let lasting = spec.expiration_seconds.map(|seconds| duration::human(seconds.into()));
        vec![
            print::name(object),
            print::age(object, now),
            json!(spec.signer_name),
            json!(text(&spec.username)),
            json!(lasting.as_deref().unwrap_or(NONE)),
            json!(shown(typed)),
        ]
    }
}

fn shown(request: &api::CertificateSigningRequest) -> String {
    let status = request.status.clone().unwrap_or_default();
    let has = |type_: &str| status.conditions.iter().flatten().any(|condition| condition.type_ == type_);
    let mut shown = match () {
        () if has("Denied") => "Denied",
        () if has("Approved") => "Approved",
        () => "Pending",
    }
    .to_owned();
    if has("Failed") {
        shown.push_str(",Failed");
    }
    if status.certificate.is_some_and(|certificate| !certificate.0.is_empty()) {
        shown.push_str(",Issued");
    }
    shown
}

/// The verdicts as they were, word for word; one that came or went is left for validation to refuse.
fn preserve_verdicts(new: &mut Value, old: &Value) {
    let of = |object: &Value, verdict: &str| -> Vec<Value> {
        let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
        conditions.filter(|condition| condition["type"] == verdict).cloned().collect()
    };
    for verdict in VERDICTS {
        let before = of(old, verdict);
        if before.len() == of(new, verdict).len() {
            let mut before = before.into_iter();
            new.make("status").each("conditions", |condition| {
                if condition["type"] == *verdict {
                    *condition = before.next().unwrap_or_default();
                }
            });
        }
    }
}

/// What no update may do to conditions, and what only an approval may.
fn verdicts(
    new: &api::CertificateSigningRequest,
    old: &api::CertificateSigningRequest,
    approving: bool,
    errors: &mut Errors,
) {
    let path = Path::new("status").child("conditions");
    let count = |request: &api::CertificateSigningRequest, type_: &str| {
        let conditions = request.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.filter(|condition| condition.type_ == type_).count()
    };
    for type_ in ["Approved", "Denied", "Failed"] {
        let (now, before) = (count(new, type_), count(old, type_));
        if now < before {
            errors.forbidden(&path, format!("updates may not remove a condition of type {type_:?}"));
        } else if now > before && !approving && VERDICTS.contains(&type_) {
            errors.forbidden(&path, format!("updates may not add a condition of type {type_:?}"));
        }
    }
}

/// Says when each condition was written, where its writer did not.
fn stamp(new: &mut Value, old: &Value) {
    let before = old["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let now = machinery::time::now_rfc3339();
    let Some(status) = new.at("status") else { return };
    status.each("conditions", |condition| {
        let same =
            before.iter().find(|other| other["type"] == condition["type"] && other["status"] == condition["status"]);
        let since = same.and_then(|other| other["lastTransitionTime"].as_str()).unwrap_or(&now);
        condition.or("lastTransitionTime", since).or("lastUpdateTime", now.as_str());
    });
}

fn conditions(request: &api::CertificateSigningRequest, errors: &mut Errors) {
    let path = Path::new("status").child("conditions");
    let conditions = request.status.as_ref().and_then(|status| status.conditions.as_ref());
    let mut seen = BTreeSet::new();
    for (at, condition) in indexed(conditions, &path) {
        let (type_, status) = (condition.type_.as_str(), condition.status.as_str());
        errors.needed(&at.child("type"), type_);
        match (type_, status) {
            (_, "") => errors.required(&at.child("status"), ""),
            ("Approved" | "Denied" | "Failed", "True") => {}
            ("Approved" | "Denied" | "Failed", other) => errors.not_supported(&at.child("status"), other, &["True"]),
            (_, other) => errors.one_of(&at.child("status"), Some(other), &["False", "True", "Unknown"]),
        }
        let opposite = VERDICTS.iter().find(|verdict| **verdict != type_ && seen.contains(*verdict));
        if VERDICTS.contains(&type_) && opposite.is_some() {
            let detail = "Approved and Denied conditions are mutually exclusive";
            errors.invalid(&at.child("type"), type_, detail);
        }
        if !seen.insert(type_) {
            errors.duplicate(&at.child("type"), type_);
        }
    }
}

fn signer(name: &str, path: &Path, errors: &mut Errors) {
    const MAX: usize = 571;
    let form = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
    match name.split_once('/') {
        _ if name.is_empty() => errors.required(path, ""),
        Some((domain, rest)) if !rest.is_empty() && !rest.contains('/') => {
            errors.all_invalid(path, domain, machinery::names::is_dns1123_subdomain(domain));
            if !domain.contains('.') {
                errors.invalid(path, domain, "should be a domain with at least two segments separated by dots");
            }
            errors.all_invalid(path, rest, machinery::names::is_dns1123_subdomain(rest));
        }
        _ => errors.invalid(path, name, form),
    }
    if name.len() > MAX {
        errors.too_long(path, MAX);
    }
}

/// Whether the bytes are one PEM block that holds a request.
fn request(pem: &[u8]) -> Result<(), &'static str> {
    const WRONG: &str = "PEM block type must be CERTIFICATE REQUEST";
    let found = blocks(pem, "CERTIFICATE REQUEST").ok_or(WRONG)?;
    // A DER sequence that is as long as it says; its signature is for the signer to check.
    let long = |der: &[u8]| match der {
        [0x30, length, rest @ ..] if *length < 0x80 => rest.len() == usize::from(*length),
        [0x30, 0x82, high, low, rest @ ..] => rest.len() == usize::from(*high) << 8 | usize::from(*low),
        [0x30, 0x81, length, rest @ ..] => rest.len() == usize::from(*length),
        _ => false,
    };
    match &found[..] {
        [der] if long(der) => Ok(()),
        [_] => Err("asn1: structure error: the block holds no certificate request"),
        _ => Err(WRONG),
    }
}

/// The contents of PEM blocks of one kind; `None` when there is none, or anything else.
fn blocks(pem: &[u8], kind: &str) -> Option<Vec<Vec<u8>>> {
    let mut rest = std::str::from_utf8(pem).ok()?.trim();
    let (begin, end) = (format!("-----BEGIN {kind}-----"), format!("-----END {kind}-----"));
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (body, after) = rest.strip_prefix(&begin)?.split_once(&end)?;
        let body: String = body.split_whitespace().collect();
        found.push(STANDARD.decode(body).ok()?);
        rest = after.trim_start();
    }
    (!found.is_empty()).then_some(found)
}
