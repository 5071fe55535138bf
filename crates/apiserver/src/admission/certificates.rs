//! Certificate signing requests: says who asks, and who may approve and sign for a signer.
//!
//! Upstream spreads this over the storage of requests and the plugins CertificateApproval,
//! CertificateSigning and CertificateSubjectRestriction; to users it is the same. Without it a client
//! could ask in another's name, and an approver that knows only names would believe it.

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use machinery::status::Result;
use serde_json::{Value, json};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::FromDer;

use super::pod::text;
use super::{Admission, AdmissionRequest, Operation};
use crate::authz::{Attributes, Authorizer, Union};
use crate::identity::MASTERS;

const GROUP: &str = "certificates.k8s.io";
const PLURAL: &str = "certificatesigningrequests";
/// The signer of clients of this server; it signs for nobody who would be above every rule.
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

pub struct Certificates {
    authorizer: Arc<Union>,
}

impl Certificates {
    pub fn new(authorizer: Arc<Union>) -> Self {
        Certificates { authorizer }
    }

    /// For the signer itself, or for all of its domain.
    fn may(&self, request: &AdmissionRequest<'_>, verb: &str, signer: &str) -> bool {
        let domain = signer.split_once('/').map(|(domain, _)| format!("{domain}/*"));
        [Some(signer), domain.as_deref()].into_iter().flatten().any(|name| {
            let attributes = Attributes::resource(request.user, verb, GROUP, "signers").name(name);
            self.authorizer.authorize(&attributes).allowed()
        })
    }

    fn require(&self, request: &AdmissionRequest<'_>, verb: &str, object: &Value) -> Result<()> {
        let signer = text(&object["spec"], "signerName");
        match self.may(request, verb, signer) {
            true => Ok(()),
            false => {
                Err(request.forbidden(format!("user not permitted to {verb} requests with signerName {signer:?}")))
            }
        }
    }
}

#[async_trait]
impl Admission for Certificates {
    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> Result<()> {
        if request.operation != Operation::Create || !request.is(GROUP, PLURAL, "") {
            return Ok(());
        }
        let (user, Some(object)) = (request.user, &mut request.object) else { return Ok(()) };
        let fields = [
            ("username", json!(user.name)),
            ("uid", json!(user.uid)),
            ("groups", json!(user.groups)),
            ("extra", json!(user.extra)),
        ];
        for (key, value) in fields {
            object["spec"][key] = value;
        }
        Ok(())
    }

    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<()> {
        if request.resource.group != GROUP || request.resource.plural != PLURAL {
            return Ok(());
        }
        let (Some(object), old) = (&request.object, request.old_object.as_ref().unwrap_or(&Value::Null)) else {
            return Ok(());
        };
        match (request.operation, request.subresource) {
            (Operation::Create, "") if text(&object["spec"], "signerName") == CLIENT_SIGNER => {
                match asks_for_masters(text(&object["spec"], "request")) {
                    true => {
                        Err(request
                            .forbidden(format!("use of {CLIENT_SIGNER} signer with {MASTERS} group is not allowed")))
                    }
                    false => Ok(()),
                }
            }
            (Operation::Update, "approval") => self.require(request, "approve", old),
            (Operation::Update, "status") if signed(object) != signed(old) => self.require(request, "sign", old),
            _ => Ok(()),
        }
    }
}

/// What a signer writes: the certificate, or that it failed.
fn signed(object: &Value) -> (&Value, Vec<&Value>) {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    let failed = conditions.filter(|condition| condition["type"] == "Failed");
    (&object["status"]["certificate"], failed.map(|condition| &condition["status"]).collect())
}

/// What cannot be read was refused by the validation of the kind, or will be by the signer.
fn asks_for_masters(request: &str) -> bool {
    let Ok(pem) = STANDARD.decode(request) else { return false };
    let Ok((_, pem)) = parse_x509_pem(&pem) else { return false };
    let Ok((_, parsed)) = X509CertificationRequest::from_der(&pem.contents) else { return false };
    let organizations = parsed.certification_request_info.subject.iter_organization();
    organizations.filter_map(|organization| organization.as_str().ok()).any(|name| name == MASTERS)
}
