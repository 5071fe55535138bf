//! DefaultStorageClass: a claim that says nothing of its class gets the default one, if there is one.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::StorageClass;
use machinery::status::{ApiError, Result};
use resources::volumes;
use serde::Deserialize as _;

use super::{Admission, AdmissionRequest, Operation};
use crate::authn::lookup::{Lookup, STORAGE_CLASSES};

pub struct DefaultStorageClass {
    lookup: Arc<dyn Lookup>,
}

impl DefaultStorageClass {
    pub fn new(lookup: Arc<dyn Lookup>) -> Self {
        DefaultStorageClass { lookup }
    }
}

#[async_trait]
impl Admission for DefaultStorageClass {
    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> Result<()> {
        let is_claim = request.is("", "persistentvolumeclaims", "");
        let Some(claim) = request.object.as_mut().filter(|_| is_claim) else { return Ok(()) };
        let typed = PersistentVolumeClaim::deserialize(&*claim);
        if volumes::has_class(&typed.map_err(|error| ApiError::bad_request(error.to_string()))?) {
            return Ok(());
        }
        let classes: Vec<StorageClass> = self.lookup.as_ref().list_as(STORAGE_CLASSES, "").await?;
        if let Some(name) = volumes::default_class(&classes).and_then(|class| class.metadata.name.as_ref()) {
            claim["spec"]["storageClassName"] = name.as_str().into();
        }
        Ok(())
    }
}
