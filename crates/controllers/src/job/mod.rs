//! Jobs: pods that run to completion. What to do is decided in [`plan`], what to count in [`track`]; here it is carried
//! out in the order that makes counting exact: note ended pods in the status, take their finalizers, move them to the
//! counters, and declare the end last.

mod backoff;
mod indexes;
mod plan;
mod policy;
mod track;
pub mod view;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use anyhow::Context as _;
use client::{Client, ErrorExt as _, Event, EventRecorder, EventType, Store, controller_of, key_of, split_key};
use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use machinery::labels::Selector;
use parking_lot::Mutex;
use serde_json::json;

use crate::common::pod_control::{PodControl, candidates};
use crate::common::{claims, pods, selector, selects, written::Written};
use crate::framework::{Context, Controller, Requeue};
use backoff::Backoff;
use plan::{Ending, Plan};
use view::{FINALIZER, Tally, View, has_finalizer, is_finished, uid};

const MANAGER: &str = "kubernetes.io/job-controller";
/// Before the key of a pod that may have lost its job; every other key is a job's.
const ORPHAN: &str = "orphan:";

pub struct JobController {
    client: Client,
    events: EventRecorder,
    control: PodControl,
    jobs: Store<Job>,
    pods: Store<Pod>,
    /// Uids of pods whose finalizer was taken and that the cache still shows with it.
    released: Arc<Mutex<HashSet<String>>>,
    backoffs: Mutex<HashMap<String, Backoff>>,
    written: Written,
}

impl Controller for JobController {
    const NAME: &'static str = "job-controller";

    fn new(context: &Context) -> Self {
        let jobs = context.watch::<Job>().store();
        let released = Arc::<Mutex<HashSet<String>>>::default();
        let (seen, known) = (released.clone(), jobs.clone());
        context.on::<Pod>(move |event, queue| {
            let pod = event.object();
            if matches!(event, Event::Deleted(_)) || !has_finalizer(pod) {
                seen.lock().remove(uid(pod));
            } else if owner(&known, pod).is_none_or(|job| is_finished(&job)) {
                queue.add(format!("{ORPHAN}{}", key_of(&pod.metadata)));
            }
        });
        let control = PodControl::new(context);
        let pods = control.watch(context, &jobs, job_selector).store();
        Self {
            client: context.client.clone(),
            events: context.events.clone(),
            control,
            jobs,
            pods,
            released,
            backoffs: Mutex::default(),
            written: Written::default(),
        }
    }

    async fn reconcile(&self, key: &str) -> anyhow::Result<Requeue> {
        if let Some(pod) = key.strip_prefix(ORPHAN) {
            return self.free_orphan(pod).await;
        }
        let Some(job) = self.jobs.get(key) else {
            self.control.expectations.forget(key);
            self.written.forget(key);
            self.backoffs.lock().remove(key);
            return Ok(Requeue::Never);
        };
        if job.spec.as_ref().is_none_or(|spec| spec.managed_by.as_deref().is_some_and(|manager| manager != MANAGER)) {
            return Ok(Requeue::Never);
        }
        if is_finished(&job) {
            self.backoffs.lock().remove(key);
            return Ok(Requeue::Never);
        }
        if self.written.is_ahead_of(key, &job.metadata) {
            return Ok(Requeue::Never);
        }
        self.sync(key, &job).await
    }
}

fn job_selector(job: &Job) -> Selector {
    let labels = job.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    labels.map_or_else(Selector::nothing, selector)
}

/// The job of a pod, if there is one.
fn owner(jobs: &Store<Job>, pod: &Pod) -> Option<Arc<Job>> {
    let owner = controller_of(&pod.metadata)?;
    let job = jobs.get(&format!("{}/{}", pod.metadata.namespace.as_deref().unwrap_or_default(), owner.name));
    job.filter(|job| job.metadata.uid.as_ref() == Some(&owner.uid))
}

impl JobController {
    async fn sync(&self, key: &str, job: &Job) -> anyhow::Result<Requeue> {
        let Some(spec) = &job.spec else { return Ok(Requeue::Never) };
        let settled = self.control.expectations.satisfied(key);
        let pods = candidates(&self.pods, &job.metadata);
        let owned = claims::claim_with(&self.client, job, &job_selector(job), &[FINALIZER], pods).await?;
        let released = self.released.lock().clone();
        let mut started = job.clone();
        let status = started.status.get_or_insert_default();
        let now = Timestamp::now();
        if status.start_time.is_none() && spec.suspend != Some(true) {
            status.start_time = Some(crate::common::now());
        }
        let view = View { job: &started, spec, pods: &owned, released: &released, now };
        let tally = Tally::of(&view);
        let known = self.backoffs.lock().get(key).copied().unwrap_or_default();
        let backoff = known.after(&tally.new_succeeded, &tally.new_failed, now);
        let plan = plan::plan(&view, &tally, backoff, settled);
        let (changed, error) = self.execute(job, key, &plan).await;
        let done = error.is_none() && settled;
        let status = self.status(&view, &tally, plan.ending.filter(|_| done), plan.managed && error.is_none(), changed);
        self.account(key, &view, &tally, status).await?;
        self.backoffs.lock().insert(key.to_owned(), backoff);
        error.map_or(Ok(plan.requeue.into()), |error| Err(anyhow::Error::from(error).context("manage the pods")))
    }

    /// Creates and deletes as planned; by how much that changes the number of active pods.
    async fn execute(&self, job: &Job, key: &str, plan: &Plan) -> (isize, Option<kube::Error>) {
        if !plan.delete.is_empty() {
            // Pods that are given up count for nothing; those of a job that ends count as failed.
            let given_up = if plan.ending.is_none() { plan.delete.as_slice() } else { &[] };
            let freed = self.release(given_up).await;
            let stuck = |pod: &Arc<Pod>| plan.ending.is_none() && !freed.done.contains(uid(pod));
            let doomed: Vec<_> = plan.delete.iter().filter(|pod| !stuck(pod)).cloned().collect();
            let outcome = self.control.delete(job, key, &doomed).await;
            return (-(outcome.done as isize), outcome.error.or(freed.error));
        }
        if plan.create.is_empty() {
            return (0, None);
        }
        let outcome = self.control.create(job, key, plan.create.clone()).await;
        (outcome.done as isize, outcome.error)
    }

    /// The numbers after executing, whether the job is suspended, and how it ends if it does.
    fn status(
        &self,
        view: &View,
        tally: &Tally,
        ending: Option<Ending>,
        managed: bool,
        changed: isize,
    ) -> (JobStatus, Option<Ending>) {
        let mut status = view.job.status.clone().unwrap_or_default();
        status.uncounted_terminated_pods.get_or_insert_default();
        let pods = view.active();
        let active = (pods.len() as isize + changed).max(0) as usize;
        let deleted = (-changed).max(0) as usize;
        status.active = track::count(active);
        let ready = pods.iter().filter(|pod| pods::is_ready(pod)).count();
        status.ready = Some(ready.min(active) as i32);
        status.terminating = Some((view.terminating().count() + deleted) as i32);
        let reached = match view.spec.completions {
            None => tally.succeeded > 0,
            Some(completions) => tally.succeeded >= completions,
        };
        let announced = view::condition(view.job, "FailureTarget").is_some();
        let ending =
            ending.or_else(|| (managed && !announced && reached && active == 0).then(Ending::completions_reached));
        if managed && ending.is_none() {
            self.suspend_or_resume(view, &mut status);
        }
        (status, ending)
    }

    fn suspend_or_resume(&self, view: &View, status: &mut JobStatus) {
        let now = track::now(view);
        let (value, reason, message, event) = match view.is_suspended() {
            true => ("True", "JobSuspended", "Job suspended", "Suspended"),
            false => ("False", "JobResumed", "Job resumed", "Resumed"),
        };
        if track::set_condition(status, "Suspended", value, reason, message, &now) {
            self.events.event(view.job, EventType::Normal, event, message);
            // The clock starts anew.
            if !view.is_suspended() {
                status.start_time = Some(now);
            }
        }
    }

    async fn account(
        &self,
        key: &str,
        view: &View<'_>,
        tally: &Tally,
        (status, ending): (JobStatus, Option<Ending>),
    ) -> anyhow::Result<()> {
        let tracked = track::track(view, tally, ending.as_ref(), status);
        let mut job = self.write(key, view.job, tracked.status).await?;
        let freed = self.release(&tracked.release).await;
        let mut status = job.status.clone().unwrap_or_default();
        let still = view.pods.iter().filter(|pod| view.is_tracked(pod)).map(|pod| uid(pod));
        track::settle(&mut status, &still.filter(|uid| !freed.done.contains(*uid)).collect(), view.is_indexed());
        let finished = match &ending {
            Some(ending) if !tracked.partial => track::finish(view, ending, &mut status),
            _ => false,
        };
        job = self.write(key, &job, status).await?;
        if let Some(ending) = ending.filter(|_| finished) {
            match ending.fails {
                true => self.events.event(&job, EventType::Warning, &ending.reason, ending.message),
                false => {
                    let succeeded = job.status.as_ref().and_then(|status| status.succeeded);
                    if view.spec.completions.is_some() && succeeded > view.spec.completions {
                        let text = "Too many succeeded pods running after completion count reached";
                        self.events.event(&job, EventType::Warning, "TooManySucceededPods", text);
                    }
                    self.events.event(&job, EventType::Normal, "Completed", "Job completed");
                }
            }
        }
        freed.error.map_or(Ok(()), |error| Err(error).context("take the finalizer from a pod"))
    }

    /// Writes the status under the resourceVersion it was computed from.
    async fn write(&self, key: &str, job: &Job, status: JobStatus) -> anyhow::Result<Job> {
        let cached =
            self.jobs.get(key).filter(|cached| cached.metadata.resource_version == job.metadata.resource_version);
        let before = cached.as_ref().map_or(job.status.as_ref(), |cached| cached.status.as_ref());
        if before == Some(&status) {
            return Ok(Job { status: Some(status), ..job.clone() });
        }
        let (namespace, name) = split_key(key);
        let updated = Job { status: Some(status), ..job.clone() };
        let api: Api<Job> = Api::namespaced(self.client.clone(), namespace);
        let written = api.replace_status(name, &PostParams::default(), &updated).await.context("write the status")?;
        self.written.wrote(key, &written.metadata);
        Ok(written)
    }

    async fn release(&self, pods: &[Arc<Pod>]) -> Released {
        let outcomes = join_all(pods.iter().map(|pod| async {
            self.released.lock().insert(uid(pod).to_owned());
            let outcome = self.take_finalizer(pod).await;
            if outcome.is_err() {
                self.released.lock().remove(uid(pod));
            }
            outcome.map(|()| uid(pod).to_owned())
        }));
        let (mut done, mut error) = (HashSet::new(), None);
        for outcome in outcomes.await {
            match outcome {
                Ok(uid) => drop(done.insert(uid)),
                Err(failed) => error = Some(failed),
            }
        }
        Released { done, error }
    }

    async fn take_finalizer(&self, pod: &Pod) -> kube::Result<()> {
        let key = key_of(&pod.metadata);
        let (namespace, name) = split_key(&key);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let patch = json!({"metadata": {"uid": pod.metadata.uid, "$deleteFromPrimitiveList/finalizers": [FINALIZER]}});
        match api.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            // Another pod of that name: ours is gone.
            Err(error) if !error.is_not_found() && error.code() != Some(422) && !error.is_conflict() => Err(error),
            _ => Ok(()),
        }
    }

    /// Pods whose job is gone or over must not wait for somebody to count them.
    async fn free_orphan(&self, key: &str) -> anyhow::Result<Requeue> {
        let Some(pod) = self.pods.get(key).filter(|pod| has_finalizer(pod)) else { return Ok(Requeue::Never) };
        let theirs = |job: &Job| {
            let manager = job.spec.as_ref().and_then(|spec| spec.managed_by.as_deref());
            manager.is_some_and(|manager| manager != MANAGER) || !is_finished(job)
        };
        // Its job, or one that is about to adopt it.
        let adopts = |job: &Job| controller_of(&pod.metadata).is_none() && selects(&job_selector(job), &pod.metadata);
        let jobs = self.jobs.list_namespace(pod.metadata.namespace.as_deref().unwrap_or_default());
        let adopted = jobs.iter().any(|job| !is_finished(job) && adopts(job));
        if adopted || owner(&self.jobs, &pod).is_some_and(|job| theirs(&job)) {
            return Ok(Requeue::Never);
        }
        self.take_finalizer(&pod).await.context("take the finalizer from an orphan")?;
        Ok(Requeue::Never)
    }
}

struct Released {
    done: HashSet<String>,
    error: Option<kube::Error>,
}
