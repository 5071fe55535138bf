//! Updating objects: PUT, PATCH and the subresources that write the object itself.

use bytes::Bytes;
use machinery::{
    field::ErrorList,
    meta,
    status::{ApiError, Result},
};
use serde_json::Value;

use super::{ATTEMPTS, Source, Write, Writer, Written, complete};
use crate::{
    admission::Operation,
    cache::{Entry, entry},
    objects::{Commit, Committed, bytes, load, stored_form},
    request::key,
    strategy::{self, CREATE_ON_UPDATE},
};

impl Writer {
    /// Replaces the object by what `source` makes of it, again and again until nobody interferes.
    pub async fn update(&self, write: &Write<'_>, source: Source<'_>) -> Result<Written> {
        for attempt in 0..ATTEMPTS {
            let Some(current) = self.objects.get(write.resource, write.namespace, write.name).await? else {
                match self.create_on_update(write, source).await {
                    // Somebody created it between the look and the write.
                    Err(error) if error.is_already_exists() => continue,
                    other => return other,
                }
            };
            if let Some(json) = self.try_update(write, source, &current, attempt).await? {
                return Ok(Written { json, created: false });
            }
        }
        Err(write.modified())
    }

    async fn create_on_update(&self, write: &Write<'_>, source: Source<'_>) -> Result<Written> {
        let facts = write.facts();
        let creates = write.create || CREATE_ON_UPDATE.contains(&(facts.group, facts.plural));
        if !write.subresource.is_empty() || !creates {
            return Err(write.not_found());
        }
        let mut object = source(None)?;
        // A version or UID names an object that must have been there.
        if !["", "0"].contains(&meta::resource_version(&object)) {
            return Err(write.modified());
        }
        if !meta::uid(&object).is_empty() {
            return Err(strategy::uid_mismatch(facts, write.namespace, write.name, meta::uid(&object), ""));
        }
        meta::metadata_mut(&mut object).remove("resourceVersion");
        self.create(write, object).await
    }

    /// One attempt; `None` when somebody else wrote meanwhile.
    async fn try_update(
        &self,
        write: &Write<'_>,
        source: Source<'_>,
        current: &Entry,
        attempt: usize,
    ) -> Result<Option<Bytes>> {
        let resource = write.resource;
        let mut old = load(resource, current);
        let mut new = source(Some(&old))?;
        strategy::match_request(write.facts(), &mut new, write.namespace, Some(write.name))?;
        write.warn(strategy::distinct_owners(&mut new));
        strategy::match_current(write.facts(), &new, &old)?;
        write.track(Some(&old), &mut new);

        let mut request = write.admission(Operation::Update, Some(new), Some(old.clone()));
        self.admission.admit(&mut request).await?;
        let Some(new) = &mut request.object else { return Err(ApiError::internal("admission removed the object")) };
        complete(resource, new);
        strategy::prepare_update(resource, write.subresource, new, &old);
        let claims = match write.subresource {
            "" => self.allocators.plan(write.facts(), new, Some(&old), attempt).await?,
            _ => Default::default(),
        };
        let (errors, warnings) = judge(write, new, &mut old);
        write.valid(new, errors)?;
        self.admission.validate(&request).await?;
        write.warn(std::mem::take(&mut request.warnings));
        let Some(mut new) = request.object else { return Err(ApiError::internal("admission removed the object")) };
        write.warn(warnings);
        meta::set_resource_version(&mut new, &current.revision.to_string());
        machinery::apply::keep_times(&old, &mut new);

        let stored = stored_form(resource, &new);
        if entry::splice(&stored, current.revision).is_some_and(|json| json == current.json) {
            return Ok(Some(bytes(resource, current).clone()));
        }
        if write.dry_run {
            return Ok(Some(entry::encode(&new).into()));
        }
        if strategy::finished(write.facts(), &new) {
            return self.remove(write, current, &new).await;
        }
        let errors: Vec<_> = claims.take.iter().map(|claim| claim.error.clone()).collect();
        let key = key(write.namespace, write.name);
        let commit = Commit { resource, key: &key, expected: current.revision, object: Some(&new), claims };
        match self.objects.commit(commit).await? {
            Committed::Done(json) => Ok(Some(json)),
            Committed::Conflict => Ok(None),
            Committed::Taken(index) => write.valid(&new, errors[index].clone().into_iter().collect()).map(|()| None),
        }
    }

    /// The last update of a deleted object: nothing holds it any more.
    async fn remove(&self, write: &Write<'_>, current: &Entry, new: &Value) -> Result<Option<Bytes>> {
        let key = key(write.namespace, write.name);
        let claims = self.allocators.release(write.facts(), new).await?;
        let commit = Commit { resource: write.resource, key: &key, expected: current.revision, object: None, claims };
        match self.objects.commit(commit).await? {
            Committed::Done(_) => Ok(Some(entry::encode(new).into())),
            _ => Ok(None),
        }
    }
}

/// What the kind finds wrong, and what it warns of. No kind looks at the managed fields, and to decode them would be half
/// of the work.
fn judge(write: &Write<'_>, new: &mut Value, old: &mut Value) -> (ErrorList, Vec<String>) {
    let managers = [&mut *new, &mut *old].map(|object| meta::metadata_mut(object).remove("managedFields"));
    let errors = match write.subresource {
        "" | "scale" => write.resource.validate_update(new, old),
        "status" => write.resource.validate_status_update(new, old),
        other => write.resource.validate_subresource_update(other, new, old),
    };
    let warnings = match write.subresource {
        "" | "scale" => write.resource.warnings(new, Some(old)),
        _ => Vec::new(),
    };
    for (object, managers) in [new, old].into_iter().zip(managers) {
        meta::set(object, "managedFields", managers);
    }
    (errors, warnings)
}

impl Writer {
    /// Asks admission about a body that is not stored (a binding, a token request).
    pub async fn judge(&self, write: &Write<'_>, operation: Operation, body: &Value) -> Result<()> {
        let mut request = write.admission(operation, Some(body.clone()), None);
        self.admission.admit(&mut request).await?;
        self.admission.validate(&request).await
    }

    /// Changes the object on behalf of a subresource whose body is of another kind (a binding):
    /// `body` is what admission judges, `change` what it does to the object.
    pub async fn amend(
        &self,
        write: &Write<'_>,
        operation: Operation,
        body: &Value,
        change: &(dyn Fn(&mut Value) -> Result<()> + Send + Sync),
    ) -> Result<()> {
        self.judge(write, operation, body).await?;
        for _ in 0..ATTEMPTS {
            let current = self.objects.get(write.resource, write.namespace, write.name).await?;
            let current = current.ok_or_else(|| write.not_found())?;
            let mut new = load(write.resource, &current);
            change(&mut new)?;
            if write.dry_run {
                return Ok(());
            }
            let key = key(write.namespace, write.name);
            let commit = Commit {
                resource: write.resource,
                key: &key,
                expected: current.revision,
                object: Some(&new),
                claims: Default::default(),
            };
            if let Committed::Done(_) = self.objects.commit(commit).await? {
                return Ok(());
            }
        }
        Err(write.modified())
    }
}
