//! Creating objects.

use machinery::{
    field::ErrorList,
    meta, names,
    status::{ApiError, Result},
};
use resources::Resource;
use serde_json::Value;

use super::{Write, Writer, Written, complete};
use crate::{
    admission::Operation,
    allocate::DRAWS,
    cache::entry,
    objects::{Commit, Committed},
    request::key,
    strategy,
};

/// Names tried for one generateName, as upstream.
const GENERATED_NAMES: usize = 8;

impl Writer {
    pub async fn create(&self, write: &Write<'_>, mut object: Value) -> Result<Written> {
        let name = (!write.name.is_empty()).then_some(write.name);
        strategy::match_request(write.facts(), &mut object, write.namespace, name)?;
        write.warn(strategy::distinct_owners(&mut object));
        if !meta::resource_version(&object).is_empty() {
            return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
        }
        let managers = meta::metadata_mut(&mut object).remove("managedFields");
        strategy::fill_new(&mut object, &machinery::time::now_rfc3339());
        match managers.filter(|_| write.manager.is_none()) {
            Some(managers) => meta::set(&mut object, "managedFields", managers),
            None => write.track(None, &mut object),
        }
        if !meta::name(&object).is_empty() || meta::generate_name(&object).is_empty() {
            return self.create_named(write, object).await;
        }
        let mut last = None;
        for _ in 0..GENERATED_NAMES {
            let mut named = object.clone();
            meta::set_name(&mut named, &names::generate(meta::generate_name(&object)));
            match self.create_named(write, named).await {
                Err(error) if error.is_already_exists() => last = Some(error),
                other => return other,
            }
        }
        Err(last.unwrap_or_else(|| ApiError::internal("no name was generated")))
    }

    async fn create_named(&self, write: &Write<'_>, object: Value) -> Result<Written> {
        let resource = write.resource;
        let mut request = write.admission(Operation::Create, Some(object), None);
        self.admission.admit(&mut request).await?;
        let Some(object) = &mut request.object else {
            return Err(ApiError::internal("admission removed the object"));
        };
        complete(resource, object);
        resource.prepare_create(object);
        if write.facts().generation {
            meta::set_generation(object, 1);
        }
        let prepared = object.clone();
        for draw in 0..DRAWS {
            let object = request.object.insert(prepared.clone());
            let claims = self.allocators.plan(write.facts(), object, None, draw).await?;
            let (errors, warnings) = judge(resource, object);
            write.valid(object, errors)?;
            self.admission.validate(&request).await?;
            write.warn(std::mem::take(&mut request.warnings));
            write.warn(warnings);
            let Some(object) = &request.object else { break };
            if write.dry_run {
                self.must_be_absent(write, object).await?;
                return Ok(Written { json: entry::encode(object).into(), created: true });
            }
            let errors: Vec<_> = claims.take.iter().map(|claim| claim.error.clone()).collect();
            let key = key(write.namespace, meta::name(object));
            let commit = Commit { resource, key: &key, expected: 0, object: Some(object), claims };
            match self.objects.commit(commit).await? {
                Committed::Done(json) => return Ok(Written { json, created: true }),
                Committed::Conflict => return Err(self.already_exists(write, object).await),
                Committed::Taken(index) => {
                    // A claim that was asked for by value cannot be drawn again.
                    write.valid(object, errors[index].clone().into_iter().collect())?;
                }
            }
        }
        Err(ApiError::internal("failed to allocate an address or port: others were faster each time"))
    }

    async fn must_be_absent(&self, write: &Write<'_>, object: &Value) -> Result<()> {
        match self.objects.get(write.resource, write.namespace, meta::name(object)).await? {
            Some(_) => Err(self.already_exists(write, object).await),
            None => Ok(()),
        }
    }

    /// Says too that the other one is going, or that its name was the server's choice.
    async fn already_exists(&self, write: &Write<'_>, object: &Value) -> ApiError {
        let name = meta::name(object);
        let mut error = ApiError::already_exists(write.facts().group, write.facts().plural, name);
        let message = &mut error.status.message;
        if !meta::generate_name(object).is_empty() {
            message.push_str(", the server was not able to generate a unique name for the object");
        }
        let other = self.objects.get(write.resource, write.namespace, name).await.ok().flatten();
        if other.is_some_and(|other| meta::deletion_timestamp(&other.value()).is_some()) {
            message.insert_str(0, "object is being deleted: ");
        }
        if meta::generate_name(object).is_empty() { error } else { error.with_retry_after(1) }
    }
}

/// What the kind finds wrong, and what it warns of: as for updates, without the managed fields.
fn judge(resource: &dyn Resource, object: &mut Value) -> (ErrorList, Vec<String>) {
    let managers = meta::metadata_mut(object).remove("managedFields");
    let judged = (resource.validate(object), resource.warnings(object, None));
    meta::set(object, "managedFields", managers);
    judged
}
