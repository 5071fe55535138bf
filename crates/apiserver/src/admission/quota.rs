//! ResourceQuota: charges a write to the namespace's quotas before it happens, or refuses it.
//!
//! The charge is a compare-and-swap of the quota's status, so that two servers cannot both take the
//! last unit. What is charged for a write that then fails comes back when the quota controller
//! recounts. [`resources::quota`] says what an object costs.

use std::sync::Arc;

use async_trait::async_trait;
use machinery::status::{ApiError, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::pod::Amounts;
use super::{Admission, AdmissionRequest, Operation};
use crate::authn::lookup::{Lookup, RESOURCE_QUOTAS};
use resources::quota::{self as usage, Scoped};

/// Conflicts with other servers before giving up; our own writes queue.
const ATTEMPTS: usize = 10;

pub struct ResourceQuota {
    lookup: Arc<dyn Lookup>,
    /// One charge at a time: the quotas' statuses are what all of them write.
    turn: Semaphore,
}

#[derive(Clone, Deserialize)]
struct Quota {
    metadata: Value,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Spec {
    hard: Amounts,
    #[serde(flatten)]
    scoped: Scoped,
}

#[derive(Clone, Default, Deserialize, Serialize)]
#[serde(default)]
struct Status {
    hard: Amounts,
    used: Amounts,
}

impl ResourceQuota {
    pub fn new(lookup: Arc<dyn Lookup>) -> Self {
        ResourceQuota { lookup, turn: Semaphore::new(1) }
    }

    async fn quotas(&self, namespace: &str) -> Result<Vec<Quota>> {
        self.lookup.as_ref().list_as(RESOURCE_QUOTAS, namespace).await
    }

    /// Charges each quota that counts the object; `Ok(false)` when another server was faster.
    async fn charge(&self, request: &AdmissionRequest<'_>, object: &Value, delta: &Amounts) -> Result<bool> {
        for mut quota in self.quotas(request.namespace).await? {
            let Some(used) = evaluate(request, &quota, object, delta)? else { continue };
            if request.dry_run {
                continue;
            }
            quota.status.used = used;
            let stored = json!({
                "apiVersion": "v1", "kind": "ResourceQuota", "metadata": quota.metadata, "status": quota.status,
            });
            match self.lookup.update_status(RESOURCE_QUOTAS, stored).await {
                Err(error) if error.is_conflict() => return Ok(false),
                Err(error) if error.is_not_found() => {}
                result => result?,
            }
        }
        Ok(true)
    }
}

/// The quota's usage after the write; `None` when it does not count the object.
fn evaluate(request: &AdmissionRequest<'_>, quota: &Quota, object: &Value, delta: &Amounts) -> Result<Option<Amounts>> {
    let pod = request.resource.plural == "pods" && request.resource.group.is_empty();
    if !quota.spec.scoped.matches(pod, object) {
        return Ok(None);
    }
    let name = quota.metadata["name"].as_str().unwrap_or_default();
    let hard = &quota.spec.hard;
    if pod && request.operation == Operation::Create {
        let missing = usage::missing_constraints(object, hard);
        if !missing.is_empty() {
            return Err(request.forbidden(format!("failed quota: {name}: must specify {missing}")));
        }
    }
    let requested: Amounts =
        delta.iter().filter(|(key, _)| hard.contains_key(*key)).map(|(key, amount)| (key.clone(), *amount)).collect();
    if requested.is_empty() {
        return Ok(None);
    }
    let uncounted: Vec<_> = requested.keys().filter(|key| !quota.status.used.contains_key(*key)).cloned().collect();
    if !uncounted.is_empty() {
        let resources = uncounted.join(",");
        return Err(request.forbidden(format!("status unknown for quota: {name}, resources: {resources}")));
    }
    let mut used = quota.status.used.clone();
    let mut exceeded = Vec::new();
    for (key, amount) in &requested {
        let after = used[key] + *amount;
        if amount.sign() > 0 && after > hard[key] {
            exceeded.push(key);
        }
        used.insert(key.clone(), after);
    }
    if exceeded.is_empty() {
        return Ok(Some(used));
    }
    let show = |amounts: &Amounts| {
        let shown: Vec<_> = exceeded.iter().map(|key| format!("{key}={}", amounts[*key])).collect();
        shown.join(",")
    };
    let (requested, before, limited) = (show(&requested), show(&quota.status.used), show(hard));
    Err(request
        .forbidden(format!("exceeded quota: {name}, requested: {requested}, used: {before}, limited: {limited}")))
}

#[async_trait]
impl Admission for ResourceQuota {
    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<()> {
        let Some(object) = request.object.as_ref().filter(|_| !request.namespace.is_empty()) else { return Ok(()) };
        if !(request.subresource.is_empty() || request.is("", "pods", "resize")) {
            return Ok(());
        }
        let old = request.old_object.as_ref();
        let delta = usage::delta(request.resource.group, request.resource.plural, object, old);
        if delta.is_empty() || self.quotas(request.namespace).await?.is_empty() {
            return Ok(());
        }
        let _turn = self.turn.acquire().await.map_err(ApiError::internal)?;
        for _ in 0..ATTEMPTS {
            if self.charge(request, object, &delta).await? {
                return Ok(());
            }
        }
        let (group, plural) = (request.resource.group, request.resource.plural);
        Err(ApiError::conflict(group, plural, request.name(), "Operation cannot be fulfilled on resourcequotas"))
    }
}
