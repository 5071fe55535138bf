//! `events.k8s.io/v1`: the newer shape of events. Stored as core events, so each is seen in both.

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::events::v1 as api;
use machinery::field::Path;
use machinery::table::Column;
use serde::Deserialize;
use serde_json::Value;

use super::core::event;
use crate::facts::{Conversion, Facts};
use crate::resource::{Kind, walk};
use crate::validate::{Errors, text};
use crate::value::Defaulting;

pub struct Event;

const API_VERSION: &str = "events.k8s.io/v1";

/// Fields that are called otherwise in the two versions; all others are called the same.
const NAMES: &[(&str, &str)] = &[
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

impl Kind for Event {
    type Object = api::Event;

    const FACTS: Facts = Facts {
        short_names: &["ev"],
        storage_prefix: "events",
        ttl_seconds: Some(event::TTL_SECONDS),
        ..Facts::namespaced("events.k8s.io", "v1", "Event", "events", "event", "io.k8s.api.events.v1.Event")
    };
    const COLUMNS: &'static [Column] = event::COLUMNS;
    const FIELDS: &'static [&'static str] = &[
        "reason",
        "regarding.kind",
        "regarding.namespace",
        "regarding.name",
        "regarding.uid",
        "regarding.apiVersion",
        "regarding.resourceVersion",
        "regarding.fieldPath",
        "reportingController",
        "type",
    ];
    const CONVERSION: Option<Conversion> =
        Some(Conversion { group: "", version: "v1", kind: "Event", to_storage, from_storage });

    fn validate(object: &api::Event, errors: &mut Errors) {
        if object.event_time.is_none() {
            errors.required(&Path::new("eventTime"), "");
        }
        for (key, value) in [
            ("reportingController", &object.reporting_controller),
            ("reportingInstance", &object.reporting_instance),
            ("action", &object.action),
            ("reason", &object.reason),
        ] {
            errors.needed(&Path::new(key), text(value));
        }
        errors.one_of(&Path::new("type"), object.type_.as_deref(), &["Normal", "Warning"]);
    }

    fn validate_update(_new: &api::Event, _old: &api::Event, _errors: &mut Errors) {}

    fn cells(object: &Value, _typed: &api::Event, now: Timestamp) -> Vec<Value> {
        let mut stored = object.clone();
        to_storage(&mut stored);
        core::Event::deserialize(&stored).map(|event| event::cells(&event, now)).unwrap_or_default()
    }

    fn field(object: &Value, field: &str) -> String {
        walk(object, field)
    }
}

fn to_storage(object: &mut Value) {
    for (here, stored) in NAMES {
        rename(object, here, stored);
    }
    object["apiVersion"] = "v1".into();
}

fn from_storage(object: &mut Value) {
    for (here, stored) in NAMES {
        rename(object, stored, here);
    }
    object["apiVersion"] = API_VERSION.into();
}

fn rename(object: &mut Value, from: &str, to: &str) {
    if let Some(value) = Defaulting::remove(object, from) {
        object[to] = value;
    }
}
