//! StorageObjectInUseProtection: claims and volumes are born with the finalizer that keeps them while they are used.

use async_trait::async_trait;
use machinery::status::Result;
use serde_json::json;

use super::pod::list_mut;
use super::{Admission, AdmissionRequest, Operation};

const FINALIZERS: [(&str, &str); 2] =
    [("persistentvolumeclaims", "kubernetes.io/pvc-protection"), ("persistentvolumes", "kubernetes.io/pv-protection")];

pub struct StorageObjectInUseProtection;

#[async_trait]
impl Admission for StorageObjectInUseProtection {
    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> Result<()> {
        let known = FINALIZERS.iter().find(|(plural, _)| request.is("", plural, ""));
        let (Some((_, finalizer)), Some(object)) = (known, &mut request.object) else { return Ok(()) };
        let finalizers = list_mut(&mut object["metadata"], "finalizers");
        if !finalizers.iter().any(|known| known == finalizer) {
            finalizers.push(json!(finalizer));
        }
        Ok(())
    }
}
