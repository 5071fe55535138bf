//! What a write must still pass after authorization: plugins that complete objects, then plugins
//! that judge them.
//!
//! A plugin sees one request and reads other objects through [`Lookup`](crate::authn::Lookup); it
//! knows neither HTTP nor storage. All mutate before any validates, so that a validator sees what
//! will be stored. Adding one: a file here and a line in [`Chain::standard`].

mod certificates;
mod claim_resize;
mod default_tolerations;
mod limit_ranger;
mod namespace_lifecycle;
mod node_restriction;
mod pod;
mod priority;
mod quota;
mod rbac_escalation;
mod runtime_class;
mod service_account;
mod storage_class;
mod storage_in_use;
mod taint_nodes;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use machinery::status::{ApiError, Result};
use resources::Facts;
use serde_json::Value;

use crate::authn::Lookup;
use crate::authz::Union;
use crate::identity::UserInfo;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    pub const fn as_str(self) -> &'static str {
        match self {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Connect => "CONNECT",
        }
    }
}

/// One write. For a subresource, `object` is the subresource's body where it has its own kind
/// (binding, eviction, token) and the whole object otherwise (status).
pub struct AdmissionRequest<'a> {
    pub operation: Operation,
    pub resource: &'static Facts,
    /// Empty for the object itself.
    pub subresource: &'a str,
    /// Empty for cluster-scoped kinds.
    pub namespace: &'a str,
    /// Empty when the server is yet to generate it, and for deletecollection.
    pub name: &'a str,
    /// The new object; `None` for deletes.
    pub object: Option<Value>,
    /// The stored object; `None` for creates.
    pub old_object: Option<Value>,
    pub user: &'a UserInfo,
    pub dry_run: bool,
    /// CreateOptions, UpdateOptions, DeleteOptions or the connect options.
    pub options: Value,
    /// Sent to the client as Warning headers.
    pub warnings: Vec<String>,
}

impl AdmissionRequest<'_> {
    fn is(&self, group: &str, plural: &str, subresource: &str) -> bool {
        self.resource.group == group && self.resource.plural == plural && self.subresource == subresource
    }

    fn is_pod(&self) -> bool {
        self.is("", "pods", "")
    }

    fn name(&self) -> &str {
        match &self.object {
            Some(object) if self.name.is_empty() => object["metadata"]["name"].as_str().unwrap_or_default(),
            _ => self.name,
        }
    }

    /// Upstream's 403 of an admission plugin.
    fn forbidden(&self, why: impl AsRef<str>) -> ApiError {
        let generated = self.object.as_ref().and_then(|object| object["metadata"]["generateName"].as_str());
        let name = match self.name() {
            "" => generated.unwrap_or("Unknown"),
            name => name,
        };
        ApiError::forbidden(self.resource.group, self.resource.plural, name, why.as_ref())
    }
}

/// Plugins bear the names that users know from `--enable-admission-plugins`.
#[async_trait]
pub trait Admission: Send + Sync {
    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    /// May change `request.object`.
    async fn admit(&self, _request: &mut AdmissionRequest<'_>) -> Result<()> {
        Ok(())
    }

    async fn validate(&self, _request: &AdmissionRequest<'_>) -> Result<()> {
        Ok(())
    }
}

/// The plugins in order.
pub struct Chain(Vec<Box<dyn Admission>>);

impl Chain {
    /// The plugins of a stock API server that concern the kinds we serve, in upstream's order.
    pub fn standard(lookup: &Arc<dyn Lookup>, authorizer: &Arc<Union>) -> Self {
        Chain(vec![
            Box::new(namespace_lifecycle::NamespaceLifecycle::new(lookup.clone())),
            Box::new(limit_ranger::LimitRanger::new(lookup.clone())),
            Box::new(service_account::ServiceAccount::new(lookup.clone())),
            Box::new(node_restriction::NodeRestriction::new(lookup.clone())),
            Box::new(taint_nodes::TaintNodesByCondition),
            Box::new(priority::Priority::new(lookup.clone())),
            Box::new(default_tolerations::DefaultTolerationSeconds),
            Box::new(storage_class::DefaultStorageClass::new(lookup.clone())),
            Box::new(storage_in_use::StorageObjectInUseProtection),
            Box::new(claim_resize::PersistentVolumeClaimResize::new(lookup.clone())),
            Box::new(runtime_class::RuntimeClass::new(lookup.clone())),
            Box::new(certificates::Certificates::new(authorizer.clone())),
            Box::new(rbac_escalation::RbacEscalation::new(authorizer.clone())),
            Box::new(quota::ResourceQuota::new(lookup.clone())),
        ])
    }

    pub fn new(plugins: Vec<Box<dyn Admission>>) -> Self {
        Chain(plugins)
    }

    fn handling(&self, operation: Operation) -> impl Iterator<Item = &dyn Admission> {
        self.0.iter().map(AsRef::as_ref).filter(move |plugin| plugin.handles(operation))
    }

    /// Completes the object; the caller checks it against its schema and strategy afterwards.
    pub async fn admit(&self, request: &mut AdmissionRequest<'_>) -> Result<()> {
        for plugin in self.handling(request.operation) {
            plugin.admit(request).await?;
        }
        Ok(())
    }

    /// Judges what is about to be stored. Inside a retry on conflict, call it again with the newer
    /// `old_object`; a plugin that counts (ResourceQuota) is last, so that nothing refuses after it.
    pub async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<()> {
        for plugin in self.handling(request.operation) {
            plugin.validate(request).await?;
        }
        Ok(())
    }
}
