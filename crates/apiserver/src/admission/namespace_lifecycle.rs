//! NamespaceLifecycle: nothing is created in a namespace that is absent or going away, and the
//! system's own namespaces stay.

use std::sync::Arc;

use async_trait::async_trait;
use machinery::status::Result;
use serde::Deserialize;

use super::{Admission, AdmissionRequest, Operation};
use crate::authn::lookup::{Lookup, Meta, NAMESPACES};

const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

pub struct NamespaceLifecycle {
    lookup: Arc<dyn Lookup>,
}

#[derive(Deserialize)]
struct Namespace {
    metadata: Meta,
    #[serde(default)]
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    phase: String,
}

impl NamespaceLifecycle {
    pub fn new(lookup: Arc<dyn Lookup>) -> Self {
        NamespaceLifecycle { lookup }
    }
}

#[async_trait]
impl Admission for NamespaceLifecycle {
    fn handles(&self, operation: Operation) -> bool {
        operation != Operation::Connect
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> Result<()> {
        let is_namespace = request.is("", "namespaces", "");
        if is_namespace && request.operation == Operation::Delete && IMMORTAL.contains(&request.name) {
            return Err(request.forbidden("this namespace may not be deleted"));
        }
        let review = request.resource.group == "authorization.k8s.io";
        if request.resource.plural == "namespaces" || request.namespace.is_empty() || review {
            return Ok(());
        }
        // What is being cleared away must stay updatable and deletable.
        if request.operation != Operation::Create {
            return Ok(());
        }
        let namespace: Namespace = self.lookup.as_ref().require(NAMESPACES, "", request.namespace).await?;
        if namespace.metadata.deletion_timestamp.is_none() && namespace.status.phase != "Terminating" {
            return Ok(());
        }
        let name = request.namespace;
        let why = format!("unable to create new content in namespace {name} because it is being terminated");
        let message = format!("namespace {name} is being terminated");
        Err(request.forbidden(why).with_cause("NamespaceTerminating", message, "metadata.namespace"))
    }
}
