//! ReplicaSet: keeps a number of pods of one template running.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1 as api;
use machinery::field::Path;
use machinery::table::Column;
use serde_json::{Value, json};

use super::{count, default_template, validate_workload, wide_cells};
use crate::facts::{Facts, Subresource};
use crate::pod;
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
        default_template(object);
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

    fn validate_update(new: &api::ReplicaSet, old: &api::ReplicaSet, errors: &mut Errors) {
        Self::validate(new, errors);
        if let (Some(new), Some(old)) = (&new.spec, &old.spec) {
            errors.immutable(&Path::new("spec").child("selector"), &new.selector, &old.selector);
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

    fn warnings(new: &api::ReplicaSet, _old: Option<&api::ReplicaSet>) -> Vec<String> {
        let template = new.spec.as_ref().and_then(|spec| spec.template.as_ref());
        template.map(|t| pod::template_warnings(t, &Path::new("spec").child("template"))).unwrap_or_default()
    }
}
