//! The write path: every change of a stored object, by whatever verb, goes through here.
//!
//! A write decodes once to a JSON value, lets admission complete it, lets the kind prepare and
//! validate it, lets admission judge it, and commits it under the revision it was made from. When
//! somebody else was faster, it starts again from what they wrote. It knows no kind by name: what is
//! special comes from [`Resource`] and [`strategy`](crate::strategy).

mod create;
mod delete;
mod update;

use std::sync::Arc;

use bytes::Bytes;
use machinery::{
    field::ErrorList,
    meta,
    status::{ApiError, Result},
};
use parking_lot::Mutex;
use resources::{Facts, Resource};
use serde_json::Value;

use crate::{
    admission::{AdmissionRequest, Chain, Operation},
    allocate::Allocators,
    identity::UserInfo,
    objects::Objects,
};

/// What the server calls itself where it writes of its own accord, as upstream.
pub const MANAGER: &str = "kube-apiserver";
/// Attempts of one write against others before it gives up. Each loses only to a write that succeeded.
const ATTEMPTS: usize = 100;

pub struct Writer {
    pub objects: Arc<Objects>,
    allocators: Allocators,
    admission: Chain,
}

/// Warnings for the client, gathered while a request is handled.
pub type Warnings = Mutex<Vec<String>>;

/// Who writes what, and how.
pub struct Write<'a> {
    pub resource: &'static dyn Resource,
    pub subresource: &'a str,
    /// Empty for cluster-scoped kinds.
    pub namespace: &'a str,
    /// Empty for creates.
    pub name: &'a str,
    pub user: &'a UserInfo,
    pub dry_run: bool,
    /// Whose the changed fields are; `None` when the source has settled that itself.
    pub manager: Option<&'a str>,
    /// An absent object is created whatever its kind (server-side apply).
    pub create: bool,
    /// CreateOptions, UpdateOptions, PatchOptions or DeleteOptions, for admission.
    pub options: Value,
    pub warnings: &'a Warnings,
}

/// The object after a write, in the version that was written.
#[derive(Debug)]
pub struct Written {
    pub json: Bytes,
    pub created: bool,
}

/// Makes the new object from the present one; `None` when there is none yet.
pub type Source<'a> = &'a (dyn Fn(Option<&Value>) -> Result<Value> + Send + Sync);

impl Writer {
    pub fn new(objects: Arc<Objects>, allocators: Allocators, admission: Chain) -> Writer {
        Writer { objects, allocators, admission }
    }
}

impl<'a> Write<'a> {
    /// What the server writes of its own accord.
    pub fn by_server(
        resource: &'static dyn Resource,
        subresource: &'a str,
        (namespace, name): (&'a str, &'a str),
        user: &'a UserInfo,
        warnings: &'a Warnings,
    ) -> Write<'a> {
        Write {
            resource,
            subresource,
            namespace,
            name,
            user,
            dry_run: false,
            manager: Some(MANAGER),
            create: false,
            options: serde_json::json!({}),
            warnings,
        }
    }
}

impl Write<'_> {
    fn facts(&self) -> &'static Facts {
        self.resource.facts()
    }

    /// Notes whose the fields of `new` are; they count with their defaults.
    pub fn track(&self, live: Option<&Value>, new: &mut Value) {
        let types = resources::types();
        if let (Some(manager), Some(schema)) = (self.manager, types.get(self.facts().schema)) {
            complete(self.resource, new);
            let now = machinery::time::now_rfc3339();
            ownership(self.facts(), schema, self.subresource, manager, &now).track(live, new);
        }
    }

    fn admission(
        &self,
        operation: Operation,
        object: Option<Value>,
        old_object: Option<Value>,
    ) -> AdmissionRequest<'_> {
        AdmissionRequest {
            operation,
            resource: self.facts(),
            subresource: self.subresource,
            namespace: self.namespace,
            name: self.name,
            object,
            old_object,
            user: self.user,
            dry_run: self.dry_run,
            options: self.options.clone(),
            warnings: Vec::new(),
        }
    }

    pub fn warn(&self, warnings: impl IntoIterator<Item = String>) {
        let mut all = self.warnings.lock();
        for warning in warnings {
            if !all.contains(&warning) {
                all.push(warning);
            }
        }
    }

    fn valid(&self, object: &Value, errors: ErrorList) -> Result<()> {
        if errors.is_empty() {
            return Ok(());
        }
        Err(ApiError::invalid(self.facts().group, self.facts().kind, meta::name(object), errors))
    }

    fn not_found(&self) -> ApiError {
        ApiError::not_found(self.facts().group, self.facts().plural, self.name)
    }

    fn modified(&self) -> ApiError {
        ApiError::modified(self.facts().group, self.facts().plural, self.name)
    }
}

/// A write as server-side apply sees it.
pub fn ownership<'a>(
    facts: &'a Facts,
    schema: &'a machinery::schema::Type,
    subresource: &'a str,
    manager: &'a str,
    now: &'a str,
) -> machinery::apply::Write<'a> {
    machinery::apply::Write {
        types: resources::types(),
        schema,
        manager,
        api_version: facts.api_version(),
        subresource,
        status: facts.subresource("status").is_some(),
        now,
    }
}

/// Admission may leave out what a client may leave out.
fn complete(resource: &dyn Resource, object: &mut Value) {
    let types = resources::types();
    if let Some(schema) = types.get(resource.facts().schema) {
        machinery::schema::defaults::apply(types, schema, object);
    }
    resource.default(object);
}
