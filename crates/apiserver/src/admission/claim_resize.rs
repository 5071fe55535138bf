//! PersistentVolumeClaimResize: a claim grows only if it is bound and its class says that its volumes can.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::StorageClass;
use machinery::quantity::Quantity;
use machinery::status::Result;
use resources::volumes;
use serde::Deserialize as _;
use serde_json::Value;

use super::{Admission, AdmissionRequest, Operation};
use crate::authn::lookup::{Lookup, STORAGE_CLASSES};

pub struct PersistentVolumeClaimResize {
    lookup: Arc<dyn Lookup>,
}

impl PersistentVolumeClaimResize {
    pub fn new(lookup: Arc<dyn Lookup>) -> Self {
        PersistentVolumeClaimResize { lookup }
    }

    async fn can_grow(&self, claim: &Value) -> Result<bool> {
        let Ok(claim) = PersistentVolumeClaim::deserialize(claim) else { return Ok(false) };
        let name = volumes::claim_class(&claim);
        let class: Option<StorageClass> = self.lookup.as_ref().get_as(STORAGE_CLASSES, "", name).await?;
        Ok(class.is_some_and(|class| class.allow_volume_expansion == Some(true)))
    }
}

fn asked(claim: &Value) -> Option<Quantity> {
    Quantity::parse(claim["spec"]["resources"]["requests"]["storage"].as_str()?).ok()
}

#[async_trait]
impl Admission for PersistentVolumeClaimResize {
    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Update
    }

    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<()> {
        let (Some(new), Some(old)) = (&request.object, &request.old_object) else { return Ok(()) };
        if !request.is("", "persistentvolumeclaims", "") || asked(new) <= asked(old) {
            return Ok(());
        }
        if old["status"]["phase"] != "Bound" {
            return Err(request.forbidden("Only bound persistent volume claims can be expanded"));
        }
        match self.can_grow(new).await? {
            true => Ok(()),
            false => Err(request.forbidden(
                "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
            )),
        }
    }
}
