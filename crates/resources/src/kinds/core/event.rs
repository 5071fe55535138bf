//! Event, in the core shape, which is the stored one; `events.k8s.io` converts to and from it.

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as api;
use machinery::field::Path;
use machinery::names;
use machinery::table::Column;
use serde_json::{Value, json};

use crate::facts::Facts;
use crate::print::{self, UNKNOWN, or, wide};
use crate::resource::{Kind, walk};
use crate::validate::{Errors, text};

pub struct Event;

/// The API server forgets events after an hour.
pub(crate) const TTL_SECONDS: u64 = 3600;
const NOTE_LIMIT: usize = 1024;
const INSTANCE_LIMIT: usize = 128;
/// Where events of objects without a namespace may be.
const CLUSTER_NAMESPACES: [&str; 3] = ["", "default", "kube-system"];

impl Kind for Event {
    type Object = api::Event;

    const FACTS: Facts = Facts {
        short_names: &["ev"],
        ttl_seconds: Some(TTL_SECONDS),
        ..Facts::namespaced("", "v1", "Event", "events", "event", "io.k8s.api.core.v1.Event")
    };
    const COLUMNS: &'static [Column] = COLUMNS;
    const FIELDS: &'static [&'static str] = &[
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ];

    fn validate(object: &api::Event, errors: &mut Errors) {
        let involved = &object.involved_object;
        let (there, here) = (text(&involved.namespace), text(&object.metadata.namespace));
        let matches = if there.is_empty() { CLUSTER_NAMESPACES.contains(&here) } else { there == here };
        if !matches {
            let at = Path::new("involvedObject").child("namespace");
            errors.invalid(&at, there, "does not match event.namespace");
        }
        if object.event_time.is_some() {
            let controller = text(&object.reporting_component);
            new_style(controller, text(&object.reporting_instance), object, errors);
        }
    }

    fn cells(_object: &Value, typed: &api::Event, now: Timestamp) -> Vec<Value> {
        cells(typed, now)
    }

    fn field(object: &Value, field: &str) -> String {
        match field {
            "source" => {
                let component = walk(object, "source.component");
                or(&component, &walk(object, "reportingComponent")).to_owned()
            }
            _ => walk(object, field),
        }
    }
}

pub(crate) const COLUMNS: &[Column] = &[
    print::text("Last Seen"),
    print::text("Type"),
    print::text("Reason"),
    print::text("Object"),
    wide("Subobject"),
    wide("Source"),
    print::text("Message"),
    wide("First Seen"),
    wide("Count"),
    Column { priority: 1, ..print::NAME },
];

fn new_style(controller: &str, instance: &str, event: &api::Event, errors: &mut Errors) {
    let at = Path::new("reportingController");
    if controller.is_empty() {
        errors.required(&at, "");
    } else {
        errors.all_invalid(&at, controller, names::is_qualified_name(controller));
    }
    let at = Path::new("reportingInstance");
    errors.needed(&at, instance);
    if instance.len() > INSTANCE_LIMIT {
        errors.invalid(&at, "", format!("can have at most {INSTANCE_LIMIT} characters"));
    }
    for (key, value) in [("action", &event.action), ("reason", &event.reason)] {
        errors.needed(&Path::new(key), text(value));
        if text(value).len() > INSTANCE_LIMIT {
            errors.invalid(&Path::new(key), "", format!("can have at most {INSTANCE_LIMIT} characters"));
        }
    }
    if text(&event.message).len() > NOTE_LIMIT {
        errors.invalid(&Path::new("message"), "", format!("can have at most {NOTE_LIMIT} characters"));
    }
}

pub(crate) fn cells(event: &api::Event, now: Timestamp) -> Vec<Value> {
    let ago = |time: Option<Timestamp>| time.map_or_else(|| UNKNOWN.to_owned(), |time| print::ago(time, now));
    let first = event.first_timestamp.as_ref().map(|time| time.0).or(event.event_time.as_ref().map(|time| time.0));
    let last = event.last_timestamp.as_ref().map(|time| time.0).or(first);
    let series = event.series.as_ref();
    let last = series.and_then(|series| series.last_observed_time.as_ref()).map(|time| time.0).or(last);
    let count = series.and_then(|series| series.count).or(event.count).filter(|count| *count > 0).unwrap_or(1);
    let involved = &event.involved_object;
    let kind = text(&involved.kind).to_lowercase();
    let target = match text(&involved.name) {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let source = event.source.as_ref();
    let component = or(source.map_or("", |source| text(&source.component)), text(&event.reporting_component));
    let instance = or(source.map_or("", |source| text(&source.host)), text(&event.reporting_instance));
    let source = if instance.is_empty() { component.to_owned() } else { format!("{component}, {instance}") };
    vec![
        json!(ago(last)),
        json!(text(&event.type_)),
        json!(text(&event.reason)),
        json!(target),
        json!(text(&involved.field_path)),
        json!(source),
        json!(text(&event.message).trim()),
        json!(ago(first)),
        json!(count),
        json!(text(&event.metadata.name)),
    ]
}
