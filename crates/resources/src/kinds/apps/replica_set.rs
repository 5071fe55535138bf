//! ReplicaSet: keeps a number of pods of one template running.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1 as api;
use machinery::field::Path;
use machinery::table::Column;
use serde_json::{Value, json};

use super::{count, validate_workload, wide_cells};
use crate::facts::{Facts, Subresource};
use crate::print;
use crate::resource::Kind;
use crate::validate::Errors;
use crate::value::Defaulting;

pub struct ReplicaSet;

impl Kind for ReplicaSet {
    type Object = api::ReplicaSet;

    const FACTS: Facts = Facts {
        short_names: &["rs"],
        categories: &["all"],
        subresources: &[Subresource::scale(), Subresource::own("status", "apps", "v1", "ReplicaSet")],
        generation: true,
        ..Facts::namespaced("apps", "v1", "ReplicaSet", "replicasets", "replicaset", "io.k8s.api.apps.v1.ReplicaSet")
    };
    const TEMPLATE: &'static [&'static str] = &["spec", "template"];
    const IMMUTABLE: &'static [&'static str] = &["spec.selector"];
    const NAMES_HOSTS: bool = true;
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
    const FIELDS: &'static [&'static str] = &["status.replicas"];

    fn defaults(object: &mut Value) {
        object.make("spec").or("replicas", 1);
    }

    fn prepare_create(object: &mut Value) {
        object["status"] = json!({"replicas": 0});
    }

    fn validate(object: &api::ReplicaSet, errors: &mut Errors) {
        let path = Path::new("spec");
        let default = api::ReplicaSetSpec::default();
        let spec = object.spec.as_ref().unwrap_or(&default);
        errors.non_negative(&path.child("replicas"), spec.replicas);
        errors.non_negative(&path.child("minReadySeconds"), spec.min_ready_seconds);
        match &spec.template {
            Some(template) => validate_workload(&spec.selector, template, "deployment", &path, errors),
            None => errors.required(&path.child("template"), ""),
        }
    }

    fn cells(object: &Value, typed: &api::ReplicaSet, now: Timestamp) -> Vec<Value> {
        let default = api::ReplicaSetSpec::default();
        let spec = typed.spec.as_ref().unwrap_or(&default);
        let status = typed.status.as_ref();
        let template = spec.template.clone().unwrap_or_default();
        let [containers, images, selector] = wide_cells(&template, &spec.selector);
        vec![
            print::name(object),
            count(spec.replicas),
            json!(status.map_or(0, |status| status.replicas)),
            count(status.and_then(|status| status.ready_replicas)),
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
