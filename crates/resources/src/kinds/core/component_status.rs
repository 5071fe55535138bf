//! ComponentStatus: read-only and deprecated; the API server computes it.

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as api;
use machinery::table::Column;
use serde_json::{Value, json};

use crate::facts::{Facts, Verb};
use crate::print;
use crate::resource::Kind;
use crate::validate::text;

pub struct ComponentStatus;

impl Kind for ComponentStatus {
    type Object = api::ComponentStatus;

    const FACTS: Facts = Facts {
        short_names: &["cs"],
        verbs: &[Verb::Get, Verb::List],
        storage_prefix: "",
        deprecated: Some("v1 ComponentStatus is deprecated in v1.19+"),
        ..Facts::cluster(
            "",
            "v1",
            "ComponentStatus",
            "componentstatuses",
            "componentstatus",
            "io.k8s.api.core.v1.ComponentStatus",
        )
    };
    const COLUMNS: &'static [Column] =
        &[print::NAME, print::text("Status"), print::text("Message"), print::text("Error")];

    fn cells(object: &Value, typed: &api::ComponentStatus, _now: Timestamp) -> Vec<Value> {
        let healthy = typed.conditions.iter().flatten().find(|condition| condition.type_ == "Healthy");
        let status = match healthy.map(|condition| condition.status.as_str()) {
            Some("True") => "Healthy",
            Some("False") => "Unhealthy",
            _ => "Unknown",
        };
        let (message, error) = healthy.map_or(("", ""), |condition| (text(&condition.message), text(&condition.error)));
        vec![print::name(object), json!(status), json!(message), json!(error)]
    }
}
