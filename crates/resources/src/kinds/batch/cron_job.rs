//! CronJob: jobs by the clock.

use jiff::Timestamp;
use k8s_openapi::api::batch::v1 as api;
use machinery::field::Path;
use machinery::table::Column;
use serde_json::{Value, json};

use super::job;
use super::schedule::{self, Schedule};
use crate::facts::{Facts, Subresource};
use crate::print::{self, NONE, ago};
use crate::resource::Kind;
use crate::validate::{Errors, text};
use crate::value::Defaulting;

pub struct CronJob;

/// Its jobs are called after it, with eleven characters for the time.
const MAX_NAME: usize = 52;
const POLICIES: &[&str] = &["Allow", "Forbid", "Replace"];

impl Kind for CronJob {
    type Object = api::CronJob;

    const FACTS: Facts = Facts {
        short_names: &["cj"],
        categories: &["all"],
        subresources: &[Subresource::own("status", "batch", "v1", "CronJob")],
        generation: true,
        ..Facts::namespaced("batch", "v1", "CronJob", "cronjobs", "cronjob", "io.k8s.api.batch.v1.CronJob")
    };
    const COLUMNS: &'static [Column] = &[
        print::NAME,
        print::text("Schedule"),
        print::text("Timezone"),
        print::boolean("Suspend"),
        print::integer("Active"),
        print::text("Last Schedule"),
        print::AGE,
        print::CONTAINERS,
        print::IMAGES,
        print::SELECTOR,
    ];
    const TEMPLATE: &'static [&'static str] = &["spec", "jobTemplate", "spec", "template"];
    const NAMES_HOSTS: bool = true;

    fn defaults(object: &mut Value) {
        let spec = object.make("spec");
        spec.or("concurrencyPolicy", "Allow").or("suspend", false);
        spec.or("successfulJobsHistoryLimit", 3).or("failedJobsHistoryLimit", 1);
    }

    fn validate(object: &api::CronJob, errors: &mut Errors) {
        validate_spec(&object.spec, None, errors);
        let name = text(&object.metadata.name);
        if name.len() > MAX_NAME {
            let detail = format!("must be no more than {MAX_NAME} characters");
            errors.invalid(&Path::new("metadata").child("name"), name, detail);
        }
    }

    fn validate_update(new: &api::CronJob, old: &api::CronJob, errors: &mut Errors) {
        validate_spec(&new.spec, Some(&old.spec), errors);
    }

    fn cells(object: &Value, typed: &api::CronJob, now: Timestamp) -> Vec<Value> {
        let spec = &typed.spec;
        let status = typed.status.as_ref();
        let last = status.and_then(|status| status.last_schedule_time.as_ref());
        let default = api::JobSpec::default();
        let [containers, images, selector] = job::wide_cells(spec.job_template.spec.as_ref().unwrap_or(&default));
        let suspend = match spec.suspend {
            Some(true) => "True",
            Some(false) => "False",
            None => "<unset>",
        };
        vec![
            print::name(object),
            json!(spec.schedule),
            json!(spec.time_zone.as_deref().unwrap_or(NONE)),
            json!(suspend),
            json!(status.and_then(|status| status.active.as_ref()).map_or(0, Vec::len)),
            json!(last.map_or_else(|| NONE.to_owned(), |last| ago(last.0, now))),
            print::age(object, now),
            containers,
            images,
            selector,
        ]
    }

    fn warnings(new: &api::CronJob, _old: Option<&api::CronJob>) -> Vec<String> {
        let mut warnings = Vec::new();
        if new.spec.schedule.contains("TZ") {
            warnings.push(
                "spec.schedule: TZ or CRON_TZ in the schedule is not supported; use spec.timeZone instead".to_owned(),
            );
        }
        warnings
    }
}

fn validate_spec(spec: &api::CronJobSpec, old: Option<&api::CronJobSpec>, errors: &mut Errors) {
    let path = Path::new("spec");
    let had_zone = old.is_some_and(|old| old.schedule.contains("TZ"));
    validate_schedule(spec, had_zone, &path.child("schedule"), errors);
    errors.non_negative(&path.child("startingDeadlineSeconds"), spec.starting_deadline_seconds);
    // One that was known once stays allowed.
    if let Some(zone) = spec.time_zone.as_ref().filter(|_| old.is_none_or(|old| old.time_zone != spec.time_zone)) {
        time_zone(zone, &path.child("timeZone"), errors);
    }
    errors.one_of(&path.child("concurrencyPolicy"), spec.concurrency_policy.as_deref(), POLICIES);
    errors.non_negative(&path.child("successfulJobsHistoryLimit"), spec.successful_jobs_history_limit);
    errors.non_negative(&path.child("failedJobsHistoryLimit"), spec.failed_jobs_history_limit);
    let (default, at) = (api::JobSpec::default(), path.child("jobTemplate").child("spec"));
    let job = spec.job_template.spec.as_ref().unwrap_or(&default);
    job::validate_spec(job, &at, errors);
    if job.selector.is_some() {
        errors.invalid(&at.child("selector"), &job.selector, "`selector` will be auto-generated");
    }
    if job.manual_selector == Some(true) {
        errors.not_supported(&at.child("manualSelector"), true, &["nil", "false"]);
    }
}

fn validate_schedule(spec: &api::CronJobSpec, zone_allowed: bool, path: &Path, errors: &mut Errors) {
    let schedule = spec.schedule.as_str();
    errors.needed(path, schedule);
    if schedule.is_empty() {
        return;
    }
    if let Err(why) = Schedule::parse(schedule) {
        errors.invalid(path, schedule, why);
    }
    if schedule.contains("TZ") {
        if !zone_allowed {
            errors.invalid(path, schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead");
        } else if spec.time_zone.is_some() {
            errors.invalid(path, schedule, "cannot use both timeZone field and TZ or CRON_TZ in schedule");
        }
    }
}

fn time_zone(zone: &str, path: &Path, errors: &mut Errors) {
    if zone.is_empty() {
        return errors.invalid(path, zone, "timeZone must be nil or non-empty string");
    }
    if zone.eq_ignore_ascii_case("local") {
        let detail = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        errors.invalid(path, zone, detail);
    }
    if let Err(why) = schedule::time_zone(zone) {
        errors.invalid(path, zone, why);
    }
}
