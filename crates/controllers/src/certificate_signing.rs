//! Signs approved certificate requests of clients of the API server. What a certificate is and who holds the CA's key it
//! refuses to know: the signer is injected. Other signers' requests are left to whoever serves those signers.

use std::sync::Arc;

use anyhow::Context as _;
use client::{Client, Store};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec,
};
use kube::Api;
use kube::api::PostParams;

use crate::common::now;
use crate::framework::{Context, Controller, Requeue};

/// Makes a certificate (PEM) of what was asked for.
pub type Signer = Arc<dyn Fn(&CertificateSigningRequestSpec) -> anyhow::Result<String> + Send + Sync>;

const SIGNER: &str = "kubernetes.io/kube-apiserver-client";

pub struct CertificateSigning {
    client: Client,
    requests: Store<CertificateSigningRequest>,
    signer: Option<Signer>,
}

impl Controller for CertificateSigning {
    const NAME: &'static str = "certificatesigningrequest-signing-controller";
    const IDENTITY: &'static str = "certificate-controller";
    const WORKERS: usize = 1;

    fn new(context: &Context) -> Self {
        Self {
            client: context.client.clone(),
            requests: context.watch::<CertificateSigningRequest>().store(),
            signer: context.config.signer.clone(),
        }
    }

    async fn reconcile(&self, key: &str) -> anyhow::Result<Requeue> {
        let request = self.requests.get(key).filter(|request| awaits(request));
        let (Some(request), Some(signer)) = (request, &self.signer) else { return Ok(Requeue::Never) };
        let mut updated = request.as_ref().clone();
        let status = updated.status.get_or_insert_default();
        match check_usages(&request.spec) {
            Ok(()) => {
                let certificate = signer(&request.spec).with_context(|| format!("sign {key}"))?;
                status.certificate = Some(ByteString(certificate.into_bytes()));
            }
            Err(why) => status.conditions.get_or_insert_default().push(refusal(why)),
        }
        let api: Api<CertificateSigningRequest> = Api::all(self.client.clone());
        api.replace_status(key, &PostParams::default(), &updated).await.context("write the certificate")?;
        Ok(Requeue::Never)
    }
}

/// Approved, for our signer, and neither signed nor refused.
fn awaits(request: &CertificateSigningRequest) -> bool {
    let Some(status) = &request.status else { return false };
    let has = |kind: &str| status.conditions.iter().flatten().any(|condition| condition.type_ == kind);
    let signed = status.certificate.as_ref().is_some_and(|certificate| !certificate.0.is_empty());
    request.spec.signer_name == SIGNER && has("Approved") && !has("Denied") && !has("Failed") && !signed
}

fn check_usages(spec: &CertificateSigningRequestSpec) -> Result<(), String> {
    const REQUIRED: &str = "client auth";
    let usages = spec.usages.as_deref().unwrap_or_default();
    let allowed = ["digital signature", "key encipherment", REQUIRED];
    if let Some(other) = usages.iter().find(|usage| !allowed.contains(&usage.as_str())) {
        return Err(format!("invalid usage for client certificate: {other}"));
    }
    if usages.iter().any(|usage| usage == REQUIRED) {
        return Ok(());
    }
    Err(format!("missing required usage for client certificate: {REQUIRED}"))
}

fn refusal(message: String) -> CertificateSigningRequestCondition {
    CertificateSigningRequestCondition {
        type_: "Failed".into(),
        status: "True".into(),
        reason: Some("SignerValidationFailure".into()),
        message: Some(message),
        last_update_time: Some(now()),
        last_transition_time: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn request(conditions: &[&str], usages: &[&str]) -> CertificateSigningRequest {
        let conditions: Vec<_> = conditions.iter().map(|kind| json!({"type": kind, "status": "True"})).collect();
        serde_json::from_value(json!({"metadata": {"name": "a"}, "status": {"conditions": conditions},
            "spec": {"signerName": SIGNER, "request": "", "usages": usages}}))
        .unwrap()
    }

    #[test]
    fn only_approved_requests_are_signed() {
        for (conditions, expected) in
            [(&["Approved"][..], true), (&[], false), (&["Denied"], false), (&["Approved", "Failed"], false)]
        {
            assert_eq!(awaits(&request(conditions, &[])), expected, "{conditions:?}");
        }
    }

    #[test]
    fn clients_are_signed_as_clients() {
        for (usages, expected) in [
            (&["client auth"][..], Ok(())),
            (&["client auth", "digital signature", "key encipherment"], Ok(())),
            (&["digital signature"], Err("missing required usage for client certificate: client auth".to_owned())),
            (&["client auth", "server auth"], Err("invalid usage for client certificate: server auth".to_owned())),
        ] {
            assert_eq!(check_usages(&request(&[], usages).spec), expected, "{usages:?}");
        }
    }
}
