//! Deletes finished Jobs once their ttlSecondsAfterFinished have passed.

use std::time::Duration;

use anyhow::Context as _;
use client::{Client, ErrorExt as _, Store, split_key};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use kube::Api;
use kube::api::{DeleteParams, Preconditions};

use crate::framework::{Context, Controller, Requeue};
use crate::job::view::condition;

pub struct TtlAfterFinished {
    client: Client,
    jobs: Store<Job>,
}

impl Controller for TtlAfterFinished {
    const NAME: &'static str = "ttl-after-finished-controller";

    fn new(context: &Context) -> Self {
        Self { client: context.client.clone(), jobs: context.watch::<Job>().store() }
    }

    async fn reconcile(&self, key: &str) -> anyhow::Result<Requeue> {
        let Some(wait) = self.jobs.get(key).and_then(|job| expires_in(&job, Timestamp::now())) else {
            return Ok(Requeue::Never);
        };
        if !wait.is_zero() {
            return Ok(Requeue::After(wait));
        }
        // The TTL may have been lengthened since: the API server knows.
        let (namespace, name) = split_key(key);
        let api: Api<Job> = Api::namespaced(self.client.clone(), namespace);
        let Some(live) = api.get_opt(name).await.context("look at the job again")? else { return Ok(Requeue::Never) };
        match expires_in(&live, Timestamp::now()) {
            None => return Ok(Requeue::Never),
            Some(wait) if !wait.is_zero() => return Ok(Requeue::After(wait)),
            Some(_) => {}
        }
        let this = Preconditions { uid: live.metadata.uid, resource_version: live.metadata.resource_version };
        match api.delete(name, &DeleteParams::foreground().preconditions(this)).await {
            Err(error) if !error.is_not_found() => Err(error).context("delete the job"),
            _ => Ok(Requeue::Never),
        }
    }
}

/// None for a job that has no TTL, is not finished or is being deleted.
fn expires_in(job: &Job, now: Timestamp) -> Option<Duration> {
    let ttl = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let ended = condition(job, "Complete").or_else(|| condition(job, "Failed"))?.last_transition_time.as_ref()?.0;
    let left = SignedDuration::from_secs(ttl.into()) - now.duration_since(ended);
    job.metadata.deletion_timestamp.is_none().then(|| Duration::try_from(left).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_finished_jobs_with_a_ttl_expire() {
        let now = "2024-01-01T00:00:30Z".parse().unwrap();
        let expires = |ttl: serde_json::Value, condition: &str| {
            let conditions =
                json!([{"type": condition, "status": "True", "lastTransitionTime": "2024-01-01T00:00:00Z"}]);
            let job = json!({"metadata": {}, "spec": {"ttlSecondsAfterFinished": ttl, "template": {}},
                "status": {"conditions": conditions}});
            expires_in(&serde_json::from_value(job).unwrap(), now).map(|wait| wait.as_secs())
        };
        assert_eq!(expires(json!(0), "Complete"), Some(0));
        assert_eq!(expires(json!(100), "Failed"), Some(70));
        assert_eq!(expires(json!(10), "Suspended"), None);
        assert_eq!(expires(json!(null), "Complete"), None);
    }
}
