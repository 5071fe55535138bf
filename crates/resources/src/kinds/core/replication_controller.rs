//! ReplicationController: a ReplicaSet with a map for a selector, older than both.

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as api;
use machinery::field::Path;
use machinery::table::Column;
use serde_json::{Value, json};

use crate::facts::{Facts, Subresource};
use crate::pod;
use crate::print;
use crate::resource::Kind;
use crate::validate::Errors;
use crate::value::Defaulting;

pub struct ReplicationController;

impl Kind for ReplicationController {
    type Object = api::ReplicationController;

    const FACTS: Facts = Facts {
        short_names: &["rc"],
        categories: &["all"],
        storage_prefix: "controllers",
        subresources: &[Subresource::scale(), Subresource::own("status", "", "v1", "ReplicationController")],
        generation: true,
        ..Facts::namespaced(
            "",
            "v1",
            "ReplicationController",
            "replicationcontrollers",
            "replicationcontroller",
            "io.k8s.api.core.v1.ReplicationController",
        )
    };
    const COLUMNS: &'static [Column] = &[
        print::NAME,
        print::integer("Desired"),
        print::integer("Current"),
        print::integer("Ready"),
        print::AGE,
        print::CONTAINERS,
        print::IMAGES,
        print::SELECTOR,
    ];
    const TEMPLATE: &'static [&'static str] = &["spec", "template"];
    const NAMES_HOSTS: bool = true;
    const FIELDS: &'static [&'static str] = &["status.replicas"];

    fn defaults(object: &mut Value) {
        let labels = object["spec"]["template"]["metadata"]["labels"].clone();
        let spec = object.make("spec");
        spec.or("replicas", 1);
        if labels.as_object().is_some_and(|labels| !labels.is_empty()) {
            if spec["selector"].as_object().is_none_or(serde_json::Map::is_empty) {
                spec["selector"] = labels.clone();
            }
            let own = object.make("metadata");
            if own["labels"].as_object().is_none_or(serde_json::Map::is_empty) {
                own["labels"] = labels;
            }
        }
    }

    fn prepare_create(object: &mut Value) {
        object["status"] = json!({"replicas": 0});
    }

    fn validate(object: &api::ReplicationController, errors: &mut Errors) {
        let path = Path::new("spec");
        let Some(spec) = &object.spec else { return };
        errors.non_negative(&path.child("minReadySeconds"), spec.min_ready_seconds);
        let selector = spec.selector.clone().unwrap_or_default();
        if selector.is_empty() {
            errors.required(&path.child("selector"), "");
        }
        errors.non_negative(&path.child("replicas"), spec.replicas);
        let at = path.child("template");
        let Some(template) = &spec.template else {
            return errors.required(&at, "");
        };
        let labels = template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
        if selector.iter().any(|(key, value)| labels.get(key) != Some(value)) {
            let detail = "`selector` does not match template `labels`";
            errors.invalid(&at.child("metadata").child("labels"), labels, detail);
        }
        pod::replicas_template(template, "ReplicationController", &at, errors);
    }

    fn validate_status_update(
        new: &api::ReplicationController,
        _old: &api::ReplicationController,
        errors: &mut Errors,
    ) {
        let (path, Some(status)) = (Path::new("status"), &new.status) else { return };
        let counts = [
            ("replicas", Some(status.replicas)),
            ("fullyLabeledReplicas", status.fully_labeled_replicas),
            ("readyReplicas", status.ready_replicas),
            ("availableReplicas", status.available_replicas),
        ];
        for (key, count) in counts {
            errors.non_negative(&path.child(key), count);
        }
        errors.non_negative(&path.child("observedGeneration"), status.observed_generation);
        for (key, count) in &counts[1..] {
            if count.is_some_and(|count| count > status.replicas) {
                errors.invalid(&path.child(*key), count, "cannot be greater than status.replicas");
            }
        }
        if status.available_replicas.unwrap_or(0) > status.ready_replicas.unwrap_or(0) {
            let detail = "cannot be greater than readyReplicas";
            errors.invalid(&path.child("availableReplicas"), status.available_replicas, detail);
        }
    }

    fn cells(object: &Value, typed: &api::ReplicationController, now: Timestamp) -> Vec<Value> {
        let spec = typed.spec.as_ref();
        let status = typed.status.as_ref();
        let [containers, images, selector] = print::template(
            spec.and_then(|spec| spec.template.as_ref()),
            print::labels(spec.and_then(|spec| spec.selector.as_ref())),
        );
        vec![
            print::name(object),
            json!(spec.and_then(|spec| spec.replicas).unwrap_or(0)),
            json!(status.map_or(0, |status| status.replicas)),
            json!(status.and_then(|status| status.ready_replicas).unwrap_or(0)),
            print::age(object, now),
            containers,
            images,
            selector,
        ]
    }

    fn field(object: &Value, _field: &str) -> String {
        object["status"]["replicas"].as_i64().unwrap_or(0).to_string()
    }
}
