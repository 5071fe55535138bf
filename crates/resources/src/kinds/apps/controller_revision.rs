//! ControllerRevision: an immutable snapshot of a workload's template.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1 as api;
use machinery::field::Path;
use machinery::table::Column;
use serde_json::{Value, json};

use crate::facts::Facts;
use crate::print::{self, NONE};
use crate::resource::Kind;
use crate::validate::Errors;

pub struct ControllerRevision;

impl Kind for ControllerRevision {
    type Object = api::ControllerRevision;

    const FACTS: Facts = Facts::namespaced(
        "apps",
        "v1",
        "ControllerRevision",
        "controllerrevisions",
        "controllerrevision",
        "io.k8s.api.apps.v1.ControllerRevision",
    );
    const IMMUTABLE: &'static [&'static str] = &["data"];
    const COLUMNS: &'static [Column] = &[print::NAME, print::text("Controller"), print::text("Revision"), print::AGE];

    fn validate(object: &api::ControllerRevision, errors: &mut Errors) {
        errors.non_negative(&Path::new("revision"), Some(object.revision));
        if object.data.is_none() {
            errors.required(&Path::new("data"), "data is mandatory");
        }
    }

    fn cells(object: &Value, typed: &api::ControllerRevision, now: Timestamp) -> Vec<Value> {
        let owner = typed.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        let controller = owner.map_or_else(
            || NONE.to_owned(),
            |owner| {
                let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
                let dot = if group.is_empty() { "" } else { "." };
                format!("{}{dot}{group}/{}", owner.kind.to_lowercase(), owner.name)
            },
        );
        vec![print::name(object), json!(controller), json!(typed.revision), print::age(object, now)]
    }
}
