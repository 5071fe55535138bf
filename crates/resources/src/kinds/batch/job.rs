//! Job: pods until enough of them succeeded. Its selector and the labels of its pods carry its UID,
//! so that they are made only once the object has one.

use jiff::Timestamp;
use k8s_openapi::api::batch::v1 as api;
use k8s_openapi::api::core::v1::{PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use machinery::duration;
use machinery::field::Path;
use machinery::labels::Selector;
use machinery::names;
use machinery::table::Column;
use serde_json::{Value, json};

use super::job_status::{self, is};
use super::policies;
use crate::facts::{Facts, Subresource};
use crate::pod;
use crate::print;
use crate::resource::Kind;
use crate::validate::{Errors, IMMUTABLE, named, selector, text};
use crate::value::Defaulting;

pub struct Job;

const UID_LABEL: &str = "batch.kubernetes.io/controller-uid";
const NAME_LABEL: &str = "batch.kubernetes.io/job-name";
/// From before labels had a domain; still set, since people select by them.
const LEGACY_UID_LABEL: &str = "controller-uid";
const LEGACY_NAME_LABEL: &str = "job-name";

const INDEXED: &str = "Indexed";
const MAX_INDEXED_PARALLELISM: i32 = 100_000;
const MAX_FAILED_INDEXES: i32 = 100_000;
/// More completions than this with a limit per index need a tighter bound on what is remembered.
const MANY_COMPLETIONS: i32 = 100_000;
const MAX_WITH_MANY_COMPLETIONS: i32 = 10_000;
const MAX_MANAGED_BY: usize = 63;
const RESTART_POLICIES: &[&str] = &["OnFailure", "Never"];

impl Kind for Job {
    type Object = api::Job;

    const FACTS: Facts = Facts {
        categories: &["all"],
        subresources: &[Subresource::own("status", "batch", "v1", "Job")],
        generation: true,
        ..Facts::namespaced("batch", "v1", "Job", "jobs", "job", "io.k8s.api.batch.v1.Job")
    };
    const COLUMNS: &'static [Column] = &[
        print::NAME,
        print::text("Status"),
        print::text("Completions"),
        print::text("Duration"),
        print::AGE,
        print::CONTAINERS,
        print::IMAGES,
        print::SELECTOR,
    ];
    const TEMPLATE: &'static [&'static str] = &["spec", "template"];
    const NAMES_HOSTS: bool = true;
    const FIELDS: &'static [&'static str] = &["status.successful"];
    const IMMUTABLE: &'static [&'static str] = &[
        "spec.selector",
        "spec.completionMode",
        "spec.podFailurePolicy",
        "spec.backoffLimitPerIndex",
        "spec.managedBy",
        "spec.successPolicy",
    ];

    fn defaults(object: &mut Value) {
        let spec = object.make("spec");
        if !spec.has("completions") && !spec.has("parallelism") {
            spec["completions"] = json!(1);
        }
        let retries = if spec.has("backoffLimitPerIndex") { i32::MAX } else { 6 };
        let replacement = if spec.has("podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
        spec.or("parallelism", 1).or("backoffLimit", retries).or("podReplacementPolicy", replacement);
        spec.or("completionMode", "NonIndexed").or("suspend", false);
        default_labels(object);
    }

    fn prepare_create(object: &mut Value) {
        if object["spec"]["manualSelector"] != true {
            generate_selector(object);
        }
        default_labels(object);
    }

    fn validate(object: &api::Job, errors: &mut Errors) {
        let default = api::JobSpec::default();
        let spec = object.spec.as_ref().unwrap_or(&default);
        if spec.manual_selector != Some(true) {
            generated_selector(object, spec, errors);
        }
        validate_with_selector(spec, &Path::new("spec"), errors);
        host_names(object, spec, errors);
    }

    fn validate_update(new: &api::Job, old: &api::Job, errors: &mut Errors) {
        let (Some(new_spec), Some(old_spec)) = (&new.spec, &old.spec) else { return };
        let path = Path::new("spec");
        validate_with_selector(new_spec, &path, errors);
        completions(new_spec, old_spec, &path, errors);
        template(new_spec, old_spec, changeable(old), &path.child("template"), errors);
    }

    fn validate_status_update(new: &api::Job, old: &api::Job, errors: &mut Errors) {
        job_status::validate_update(new, old, errors);
    }

    fn cells(object: &Value, typed: &api::Job, now: Timestamp) -> Vec<Value> {
        let (default_spec, default_status) = (api::JobSpec::default(), api::JobStatus::default());
        let spec = typed.spec.as_ref().unwrap_or(&default_spec);
        let status = typed.status.as_ref().unwrap_or(&default_status);
        let end = status.completion_time.as_ref().map_or(now, |end| end.0);
        let took = status.start_time.as_ref().map(|start| duration::human(end.as_second() - start.0.as_second()));
        let [containers, images, selector] = wide_cells(spec);
        vec![
            print::name(object),
            json!(shown_status(typed, status)),
            json!(shown_completions(spec, status)),
            json!(took.unwrap_or_default()),
            print::age(object, now),
            containers,
            images,
            selector,
        ]
    }

    fn field(object: &Value, _field: &str) -> String {
        object["status"]["succeeded"].as_i64().unwrap_or(0).to_string()
    }

    fn warnings(new: &api::Job, _old: Option<&api::Job>) -> Vec<String> {
        let Some(spec) = &new.spec else { return Vec::new() };
        let mut warnings = Vec::new();
        if spec.completion_mode.as_deref() == Some(INDEXED)
            && spec.completions.unwrap_or(0) > MANY_COMPLETIONS
            && spec.parallelism.unwrap_or(0) > MAX_WITH_MANY_COMPLETIONS
        {
            warnings.push(
                "In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail"
                    .into(),
            );
        }
        warnings
    }
}

/// A job without labels has its template's.
fn default_labels(object: &mut Value) {
    let labels = object["spec"]["template"]["metadata"]["labels"].clone();
    let own = object["metadata"]["labels"].as_object();
    if own.is_none_or(serde_json::Map::is_empty) && labels.as_object().is_some_and(|labels| !labels.is_empty()) {
        object.make("metadata")["labels"] = labels;
    }
}

/// Sets what is absent; what is there and wrong fails validation.
fn generate_selector(object: &mut Value) {
    let uid = object["metadata"].text("uid").to_owned();
    let name = object["metadata"].text("name").to_owned();
    let spec = object.make("spec");
    let labels = spec.make("template").make("metadata").make("labels");
    for (key, value) in [(LEGACY_NAME_LABEL, &name), (NAME_LABEL, &name), (LEGACY_UID_LABEL, &uid), (UID_LABEL, &uid)] {
        labels.or(key, value.as_str());
    }
    spec.make("selector").make("matchLabels").or(UID_LABEL, uid);
}

fn generated_selector(object: &api::Job, spec: &api::JobSpec, errors: &mut Errors) {
    let Some(selector) = &spec.selector else { return };
    let (uid, name) = (text(&object.metadata.uid), text(&object.metadata.name));
    if uid.is_empty() {
        errors.required(&Path::new("metadata").child("uid"), "");
    }
    let labels = spec.template.metadata.as_ref().and_then(|meta| meta.labels.as_ref());
    let path = Path::new("spec").child("template").child("metadata").child("labels");
    let expected = [(LEGACY_UID_LABEL, uid), (LEGACY_NAME_LABEL, name), (UID_LABEL, uid), (NAME_LABEL, name)];
    for (key, wanted) in expected {
        match labels.and_then(|labels| labels.get(key)) {
            None => errors.required(&path.key(key), format!("must be '{wanted}'")),
            Some(found) if found != wanted => errors.invalid(&path.key(key), labels, format!("must be '{wanted}'")),
            Some(_) => {}
        }
    }
    let generated = expected.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    if parsed(selector).is_some_and(|selector| !selector.matches_map(&generated)) {
        errors.invalid(&Path::new("spec").child("selector"), selector, "`selector` not auto-generated");
    }
}

fn parsed(selector: &LabelSelector) -> Option<Selector> {
    Selector::from_label_selector(&serde_json::to_value(selector).ok()?).ok()
}

fn validate_with_selector(spec: &api::JobSpec, path: &Path, errors: &mut Errors) {
    validate_spec(spec, path, errors);
    let at = path.child("selector");
    let Some(labels) = &spec.selector else { return errors.required(&at, "") };
    selector::validate(labels, &at, errors);
    let of_template = spec.template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
    if parsed(labels).is_some_and(|selector| !selector.matches_map(&of_template)) {
        let at = path.child("template").child("metadata").child("labels");
        errors.invalid(&at, of_template, "`selector` does not match template `labels`");
    }
}

/// Everything but the selector, which the template of a CronJob lacks.
pub(super) fn validate_spec(spec: &api::JobSpec, path: &Path, errors: &mut Errors) {
    let counts = [
        ("parallelism", spec.parallelism.map(i64::from)),
        ("completions", spec.completions.map(i64::from)),
        ("activeDeadlineSeconds", spec.active_deadline_seconds),
        ("backoffLimit", spec.backoff_limit.map(i64::from)),
        ("ttlSecondsAfterFinished", spec.ttl_seconds_after_finished.map(i64::from)),
        ("backoffLimitPerIndex", spec.backoff_limit_per_index.map(i64::from)),
        ("maxFailedIndexes", spec.max_failed_indexes.map(i64::from)),
    ];
    for (key, count) in counts {
        errors.non_negative(&path.child(key), count);
    }
    if let Some(manager) = &spec.managed_by {
        let at = path.child("managedBy");
        named::domain_prefixed_path(manager, &at, errors);
        if manager.len() > MAX_MANAGED_BY {
            errors.too_long(&at, MAX_MANAGED_BY);
        }
    }
    errors.optional_one_of(&path.child("completionMode"), spec.completion_mode.as_deref(), &[INDEXED, "NonIndexed"]);
    indexing(spec, path, errors);
    if let Some(policy) = &spec.pod_failure_policy {
        policies::failure(policy, spec, &path.child("podFailurePolicy"), errors);
    }
    if let Some(policy) = &spec.success_policy {
        let at = path.child("successPolicy");
        match (spec.completion_mode.as_deref(), spec.completions) {
            (Some(INDEXED), Some(completions)) => policies::success(policy, completions, &at, errors),
            (Some(INDEXED), None) => {}
            _ => errors.invalid(&at, policy, "requires indexed completion mode"),
        }
    }
    let replacements: &[&str] =
        if spec.pod_failure_policy.is_some() { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
    errors.optional_one_of(&path.child("podReplacementPolicy"), spec.pod_replacement_policy.as_deref(), replacements);
    pod::validate_template(&spec.template, &path.child("template"), errors);
    restarts(spec, &path.child("template").child("spec").child("restartPolicy"), errors);
}

fn restarts(spec: &api::JobSpec, path: &Path, errors: &mut Errors) {
    let policy = spec.template.spec.as_ref().map_or("", |pod| text(&pod.restart_policy));
    match policy {
        // Said by the check of the template.
        "" => {}
        "Always" => errors.required(path, "valid values: \"OnFailure\", \"Never\""),
        "OnFailure" if spec.pod_failure_policy.is_some() => {
            errors.invalid(path, policy, "only \"Never\" is supported when podFailurePolicy is specified");
        }
        policy if RESTART_POLICIES.contains(&policy) => {}
        policy => errors.not_supported(path, policy, RESTART_POLICIES),
    }
}

fn indexing(spec: &api::JobSpec, path: &Path, errors: &mut Errors) {
    let per_index = spec.backoff_limit_per_index;
    if spec.max_failed_indexes.is_some() && per_index.is_none() {
        errors.required(&path.child("backoffLimitPerIndex"), "when maxFailedIndexes is specified");
    }
    if spec.completion_mode.as_deref() != Some(INDEXED) {
        if per_index.is_some() {
            errors.invalid(&path.child("backoffLimitPerIndex"), per_index, "requires indexed completion mode");
        }
        if let Some(failed) = spec.max_failed_indexes {
            errors.invalid(&path.child("maxFailedIndexes"), failed, "requires indexed completion mode");
        }
        return;
    }
    if spec.completions.is_none() {
        errors.required(&path.child("completions"), format!("when completion mode is {INDEXED}"));
    }
    let parallelism = spec.parallelism.unwrap_or(0);
    let at = path.child("parallelism");
    if parallelism > MAX_INDEXED_PARALLELISM {
        let detail =
            format!("must be less than or equal to {MAX_INDEXED_PARALLELISM} when completion mode is {INDEXED}");
        errors.invalid(&at, parallelism, detail);
    }
    let most_failed = path.child("maxFailedIndexes");
    let failed = spec.max_failed_indexes;
    if failed.is_some_and(|failed| spec.completions.is_some_and(|completions| failed > completions)) {
        errors.invalid(&most_failed, failed, "must be less than or equal to completions");
    }
    if failed.is_some_and(|failed| failed > MAX_FAILED_INDEXES) {
        errors.invalid(&most_failed, failed, format!("must be less than or equal to {MAX_FAILED_INDEXES}"));
    }
    let completions = spec.completions.unwrap_or(0);
    if completions <= MANY_COMPLETIONS || per_index.is_none() {
        return;
    }
    let limit = format!(
        "must be less than or equal to {MAX_WITH_MANY_COMPLETIONS} when completions are above {MANY_COMPLETIONS} and used with backoff limit per index"
    );
    match failed {
        None => {
            let detail = format!("must be specified when completions is above {MANY_COMPLETIONS}");
            errors.required(&most_failed, detail);
        }
        Some(failed) if failed > MAX_WITH_MANY_COMPLETIONS => errors.invalid(&most_failed, failed, &limit),
        Some(_) => {}
    }
    if parallelism > MAX_WITH_MANY_COMPLETIONS {
        errors.invalid(&at, parallelism, &limit);
    }
}

/// Pods of an indexed job are called after the job and their index.
fn host_names(object: &api::Job, spec: &api::JobSpec, errors: &mut Errors) {
    let completions = spec.completions.unwrap_or(0);
    if spec.completion_mode.as_deref() != Some(INDEXED) || completions < 1 {
        return;
    }
    let name = text(&object.metadata.name);
    let longest = format!("{name}-{}", completions - 1);
    if !names::is_dns1123_label(&longest).is_empty() {
        let detail = format!("will not able to create pod with invalid DNS label: {longest}");
        errors.invalid(&Path::new("metadata").child("name"), name, detail);
    }
}

/// An indexed job may grow and shrink as a whole.
fn completions(new: &api::JobSpec, old: &api::JobSpec, path: &Path, errors: &mut Errors) {
    let at = path.child("completions");
    if new.completion_mode.as_deref() != Some(INDEXED) {
        return errors.immutable(&at, &new.completions, &old.completions);
    }
    // That it is missing is said elsewhere.
    if new.completions.is_some() && new.completions != old.completions && new.completions != new.parallelism {
        let detail = format!("can only be modified in tandem with {}", path.child("parallelism"));
        errors.invalid(&at, new.completions, detail);
    }
}

/// What of its template a suspended job without pods may change: where and how big its pods will be.
fn changeable(old: &api::Job) -> bool {
    let suspended = old.spec.as_ref().is_some_and(|spec| spec.suspend == Some(true));
    let status = old.status.as_ref();
    let idle = status.is_none_or(|status| status.active.unwrap_or(0) == 0);
    suspended && idle && status.is_none_or(|status| status.start_time.is_none() || is(status, "Suspended"))
}

fn template(new: &api::JobSpec, old: &api::JobSpec, changeable: bool, path: &Path, errors: &mut Errors) {
    let mut fixed = new.template.clone();
    if changeable {
        restore(&mut fixed, &old.template);
    }
    if fixed != old.template {
        errors.invalid(path, &new.template, IMMUTABLE);
    }
}

fn restore(new: &mut PodTemplateSpec, old: &PodTemplateSpec) {
    new.metadata = old.metadata.clone();
    let (Some(new), Some(old)) = (&mut new.spec, &old.spec) else { return };
    let nodes = |pod: &PodSpec| pod.affinity.as_ref().and_then(|affinity| affinity.node_affinity.clone());
    match (&mut new.affinity, &old.affinity) {
        (Some(affinity), Some(_)) => affinity.node_affinity = nodes(old),
        (affinity @ Some(_), None) => {
            let others =
                affinity.as_ref().is_some_and(|own| own.pod_affinity.is_some() || own.pod_anti_affinity.is_some());
            if !others {
                *affinity = None;
            }
        }
        (affinity @ None, Some(before)) => {
            if before.pod_affinity.is_none() && before.pod_anti_affinity.is_none() {
                *affinity = Some(before.clone());
            }
        }
        (None, None) => {}
    }
    new.node_selector = old.node_selector.clone();
    new.tolerations = old.tolerations.clone();
    new.scheduling_gates = old.scheduling_gates.clone();
    let containers = new.containers.iter_mut().zip(&old.containers);
    let init = new.init_containers.iter_mut().flatten().zip(old.init_containers.iter().flatten());
    for (new, old) in containers.chain(init) {
        new.resources = old.resources.clone();
    }
}

fn shown_status(job: &api::Job, status: &api::JobStatus) -> &'static str {
    const ENDS: [&str; 2] = ["Complete", "Failed"];
    const ON_THE_WAY: [&str; 3] = ["Suspended", "FailureTarget", "SuccessCriteriaMet"];
    let first = |of: &[&'static str]| of.iter().find(|condition| is(status, condition)).copied();
    let deleted = job.metadata.deletion_timestamp.as_ref().map(|_| "Terminating");
    first(&ENDS).or(deleted).or_else(|| first(&ON_THE_WAY)).unwrap_or("Running")
}

fn shown_completions(spec: &api::JobSpec, status: &api::JobStatus) -> String {
    let succeeded = status.succeeded.unwrap_or(0);
    match (spec.completions, spec.parallelism.unwrap_or(0)) {
        (Some(completions), _) => format!("{succeeded}/{completions}"),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    }
}

/// Containers, images and selector.
pub(super) fn wide_cells(spec: &api::JobSpec) -> [Value; 3] {
    let selector = spec.selector.as_ref().map_or_else(|| print::NONE.to_owned(), print::selector);
    print::template(Some(&spec.template), selector)
}
