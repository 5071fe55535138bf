//! CronJobs: a Job each time the schedule is due. When that is, [`clock`] says; here jobs are created, noted and
//! cleaned up.

mod clock;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use client::{
    Client, ErrorExt as _, EventRecorder, EventType, Store, controller_of, key_of, owner_reference, split_key,
};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Resource as _};
use resources::kinds::batch::{Schedule, time_zone};

use crate::common::{is_namespace_terminating, message, written::Written};
use crate::framework::{Context, Controller, Requeue};
use crate::job::view::{condition, is_finished};
use clock::Clock;

const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

pub struct CronJobController {
    client: Client,
    events: EventRecorder,
    cron_jobs: Store<CronJob>,
    jobs: Store<Job>,
    written: Written,
    clock: fn() -> Timestamp,
}

impl Controller for CronJobController {
    const NAME: &'static str = "cronjob-controller";

    fn new(context: &Context) -> Self {
        let cron_jobs = context.watch::<CronJob>().store();
        let jobs = context.watch_owned::<Job>("CronJob");
        jobs.add_index("controller", |job| {
            controller_of(&job.metadata).map(|owner| owner.uid.clone()).into_iter().collect()
        });
        Self {
            client: context.client.clone(),
            events: context.events.clone(),
            cron_jobs,
            jobs: jobs.store(),
            written: Written::default(),
            clock: context.config.clock,
        }
    }

    async fn reconcile(&self, key: &str) -> anyhow::Result<Requeue> {
        let Some(cron_job) = self.cron_jobs.get(key) else {
            self.written.forget(key);
            return Ok(Requeue::Never);
        };
        if self.written.is_ahead_of(key, &cron_job.metadata) {
            return Ok(Requeue::Never);
        }
        let mut pass = Pass {
            controller: self,
            cron_job: &cron_job,
            jobs: self.jobs.by_index("controller", cron_job.metadata.uid.as_deref().unwrap_or_default()),
            status: cron_job.status.clone().unwrap_or_default(),
            now: (self.clock)(),
        };
        pass.clean_up().await?;
        pass.look_at_jobs().await?;
        let outcome = pass.schedule().await;
        let status = pass.status;
        // What was started is noted even if something failed after.
        self.write_status(&cron_job, status).await?;
        outcome.map(Requeue::from)
    }
}

impl CronJobController {
    async fn write_status(&self, cron_job: &CronJob, mut status: CronJobStatus) -> anyhow::Result<()> {
        status.active.take_if(|active| active.is_empty());
        if cron_job.status.clone().unwrap_or_default() == status {
            return Ok(());
        }
        let key = key_of(&cron_job.metadata);
        let (namespace, name) = split_key(&key);
        let updated = CronJob { status: Some(status), ..cron_job.clone() };
        let api: Api<CronJob> = Api::namespaced(self.client.clone(), namespace);
        let written = api.replace_status(name, &PostParams::default(), &updated).await.context("write the status")?;
        self.written.wrote(&key, &written.metadata);
        Ok(())
    }
}

/// One look at one CronJob.
struct Pass<'a> {
    controller: &'a CronJobController,
    cron_job: &'a CronJob,
    jobs: Vec<Arc<Job>>,
    status: CronJobStatus,
    now: Timestamp,
}

impl Pass<'_> {
    fn event(&self, kind: EventType, reason: &str, message: impl Into<String>) {
        self.controller.events.event(self.cron_job, kind, reason, message);
    }

    fn api(&self) -> Api<Job> {
        let namespace = self.cron_job.metadata.namespace.as_deref().unwrap_or_default();
        Api::namespaced(self.controller.client.clone(), namespace)
    }

    /// Deletes the oldest finished jobs beyond the history limits.
    async fn clean_up(&self) -> anyhow::Result<()> {
        let spec = &self.cron_job.spec;
        let limits = [("Complete", spec.successful_jobs_history_limit), ("Failed", spec.failed_jobs_history_limit)];
        for (ending, limit) in limits {
            let Some(limit) = limit else { continue };
            for job in surplus(&self.jobs, ending, limit.max(0) as usize) {
                self.delete(job.metadata.name.as_deref().unwrap_or_default()).await?;
            }
        }
        Ok(())
    }

    async fn delete(&self, name: &str) -> anyhow::Result<()> {
        match self.api().delete(name, &DeleteParams::background()).await {
            Ok(_) => self.event(EventType::Normal, "SuccessfulDelete", format!("Deleted job {name}")),
            Err(error) if error.is_not_found() => {}
            Err(error) => {
                self.event(EventType::Warning, "FailedDelete", format!("Deleted job: {}", message(&error)));
                return Err(error).with_context(|| format!("delete job {name}"));
            }
        }
        Ok(())
    }

    /// Brings the list of active jobs up to date.
    async fn look_at_jobs(&mut self) -> anyhow::Result<()> {
        for job in &self.jobs {
            let (name, uid) = (job.metadata.name.as_deref().unwrap_or_default(), &job.metadata.uid);
            let active = self.status.active.iter().flatten().any(|active| active.uid == *uid);
            let finished = is_finished(job);
            if !active && !finished {
                let text = format!("Saw a job that the controller did not create or forgot: {name}");
                self.event(EventType::Warning, "UnexpectedJob", text);
            } else if active && finished {
                let ending = if condition(job, "Complete").is_some() { "Complete" } else { "Failed" };
                let text = format!("Saw completed job: {name}, condition: {ending}");
                self.event(EventType::Normal, "SawCompletedJob", text);
                self.status.active.iter_mut().for_each(|active| active.retain(|active| active.uid != *uid));
            }
            if condition(job, "Complete").is_some() {
                let completed = job.status.as_ref().and_then(|status| status.completion_time.clone());
                self.status.last_successful_time = self.status.last_successful_time.take().max(completed);
            }
        }
        let listed = self.status.active.clone().unwrap_or_default();
        for missing in listed.iter().filter(|active| !self.jobs.iter().any(|job| job.metadata.uid == active.uid)) {
            let name = missing.name.as_deref().unwrap_or_default();
            // The cache may not know it yet.
            let live = self.api().get_opt(name).await.with_context(|| format!("look up job {name}"))?;
            if live.is_none_or(|live| live.metadata.uid != missing.uid) {
                self.event(EventType::Normal, "MissingJob", format!("Active job went missing: {name}"));
                self.status.active.iter_mut().for_each(|active| active.retain(|active| active.uid != missing.uid));
            }
        }
        Ok(())
    }

    /// Starts what is due. How long until the next time.
    async fn schedule(&mut self) -> anyhow::Result<Option<Duration>> {
        let spec = &self.cron_job.spec;
        if self.cron_job.metadata.deletion_timestamp.is_some() || spec.suspend == Some(true) {
            return Ok(None);
        }
        let Some(clock) = self.clock() else { return Ok(None) };
        let wait = clock.wait(self.since(), self.now);
        let Some(due) = self.due(&clock) else { return Ok(wait) };
        let deadline = spec.starting_deadline_seconds.map(SignedDuration::from_secs);
        if deadline.is_some_and(|deadline| due + deadline < self.now) {
            let shown = due.strftime("%a, %d %b %Y %H:%M:%S +0000");
            self.event(EventType::Warning, "MissSchedule", format!("Missed scheduled time to start a job: {shown}"));
            return Ok(wait);
        }
        let job = self.job(due, &clock);
        let name = job.metadata.name.as_ref();
        let listed = self.status.active.clone().unwrap_or_default();
        if listed.iter().any(|active| active.name.as_ref() == name)
            || self.status.last_schedule_time.as_ref().is_some_and(|last| last.0 == due)
        {
            return Ok(wait);
        }
        match spec.concurrency_policy.as_deref() {
            Some("Forbid") if !listed.is_empty() => {
                let text = "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.event(EventType::Normal, "JobAlreadyActive", text);
                return Ok(wait);
            }
            Some("Replace") => {
                for active in &listed {
                    self.delete(active.name.as_deref().unwrap_or_default()).await?;
                    self.status.active.iter_mut().for_each(|list| list.retain(|kept| kept.uid != active.uid));
                }
            }
            _ => {}
        }
        self.start(job, due).await?;
        Ok(wait)
    }

    fn clock(&self) -> Option<Clock> {
        let spec = &self.cron_job.spec;
        let text = &spec.schedule;
        // Old objects may name their zone in the schedule.
        let inline = ["CRON_TZ=", "TZ="].iter().find_map(|prefix| text.strip_prefix(prefix)?.split(' ').next());
        if text.contains("TZ") {
            let what = "is not officially supported, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details";
            self.event(
                EventType::Warning,
                "UnsupportedSchedule",
                format!("CRON_TZ or TZ used in schedule {text:?} {what}"),
            );
        }
        let named = spec.time_zone.as_deref();
        let unknown = |name: &str, error: String| ("UnknownTimeZone", format!("invalid timeZone: {name:?}: {error}"));
        let zone = named.map_or(Ok(TimeZone::system()), |name| time_zone(name).map_err(|error| unknown(name, error)));
        // That this one is known, the parser of the schedule says.
        let zone = zone.map(|zone| inline.and_then(|name| time_zone(name).ok()).unwrap_or(zone));
        let schedule = Schedule::parse(text)
            .map_err(|error| ("UnparseableSchedule", format!("unparseable schedule: {text:?} : {error}")));
        match zone.and_then(|zone| Ok(Clock { schedule: schedule?, zone })) {
            Ok(clock) => Some(clock),
            Err((reason, text)) => {
                self.event(EventType::Warning, reason, text);
                None
            }
        }
    }

    /// When it last ran, or was made.
    fn since(&self) -> Timestamp {
        let created = self.cron_job.metadata.creation_timestamp.as_ref();
        self.status.last_schedule_time.as_ref().or(created).map_or(self.now, |time| time.0)
    }

    /// The time that is due and not too long ago.
    fn due(&self, clock: &Clock) -> Option<Timestamp> {
        let last = self.since();
        let deadline = self.cron_job.spec.starting_deadline_seconds.map(SignedDuration::from_secs);
        let since =
            deadline.and_then(|deadline| self.now.checked_sub(deadline).ok()).map_or(last, |limit| last.max(limit));
        let (due, many) = clock.due(since, self.now)?;
        if many {
            let text = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            self.event(EventType::Warning, "TooManyMissedTimes", text);
        }
        Some(due)
    }

    /// Named after its minute, so that no controller starts it twice.
    fn job(&self, due: Timestamp, clock: &Clock) -> Job {
        let meta = &self.cron_job.metadata;
        let template = self.cron_job.spec.job_template.clone();
        let own = template.metadata.unwrap_or_default();
        let mut annotations = own.annotations.unwrap_or_default();
        let zone = self.cron_job.spec.time_zone.as_ref().map_or(TimeZone::UTC, |_| clock.zone.clone());
        let shown = due.to_zoned(zone).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string().replace("+00:00", "Z");
        annotations.insert(SCHEDULED.into(), shown);
        Job {
            metadata: ObjectMeta {
                name: Some(format!("{}-{}", meta.name.as_deref().unwrap_or_default(), due.as_second() / 60)),
                namespace: meta.namespace.clone(),
                labels: own.labels,
                annotations: Some(annotations),
                owner_references: Some(vec![owner_reference(self.cron_job)]),
                ..Default::default()
            },
            spec: template.spec,
            status: None,
        }
    }

    async fn start(&mut self, job: Job, due: Timestamp) -> anyhow::Result<()> {
        let name = job.metadata.name.clone().unwrap_or_default();
        let created = match self.api().create(&PostParams::default(), &job).await {
            Ok(created) => {
                self.event(EventType::Normal, "SuccessfulCreate", format!("Created job {name}"));
                created
            }
            // Started before the controller last died: note it now.
            Err(error) if error.is_already_exists() => {
                let found = self.api().get(&name).await.context("look at the job that exists already")?;
                let ours =
                    controller_of(&found.metadata).map(|owner| &owner.uid) == self.cron_job.metadata.uid.as_ref();
                if !ours {
                    return Ok(()); // somebody else's, who looks after it
                }
                found
            }
            Err(error) if is_namespace_terminating(&error) => return Ok(()),
            Err(error) => {
                self.event(EventType::Warning, "FailedCreate", format!("Error creating job: {}", message(&error)));
                return Err(error).context("create the job");
            }
        };
        self.status.last_schedule_time = Some(Time(due));
        if !is_finished(&created) {
            let reference = ObjectReference {
                resource_version: created.metadata.resource_version.clone(),
                ..created.object_ref(&())
            };
            self.status.active.get_or_insert_default().push(reference);
        }
        Ok(())
    }
}

/// The oldest jobs with this ending beyond the limit.
fn surplus<'a>(jobs: &'a [Arc<Job>], ending: &str, limit: usize) -> Vec<&'a Arc<Job>> {
    let mut ended: Vec<_> = jobs.iter().filter(|job| condition(job, ending).is_some()).collect();
    let start = |job: &Job| job.status.as_ref().and_then(|status| status.start_time.clone());
    ended.sort_by_key(|job| (start(job).is_none(), start(job), job.metadata.name.clone()));
    ended.truncate(ended.len().saturating_sub(limit));
    ended.retain(|job| job.metadata.deletion_timestamp.is_none());
    ended
}
