//! Namespace: a label with its own name, a finalizer in its spec that its controller takes off when
//! the namespace is empty, and a `finalize` subresource that alone may do so.

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as api;
use machinery::field::Path;
use machinery::table::Column;
use serde_json::{Value, json};

use crate::facts::{Facts, Subresource, Verb};
use crate::print;
use crate::resource::{Kind, keep};
use crate::validate::meta::{self, NameRule};
use crate::validate::{Errors, indexed};
use crate::value::Defaulting;

pub struct Namespace;

/// Holds the namespace's name, for selectors.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

impl Kind for Namespace {
    type Object = api::Namespace;

    const FACTS: Facts = Facts {
        short_names: &["ns"],
        verbs: &[Verb::Create, Verb::Delete, Verb::Get, Verb::List, Verb::Patch, Verb::Update, Verb::Watch],
        subresources: &[
            Subresource::own("finalize", "", "v1", "Namespace").with_verbs(&[Verb::Update]),
            Subresource::own("status", "", "v1", "Namespace"),
        ],
        ..Facts::cluster("", "v1", "Namespace", "namespaces", "namespace", "io.k8s.api.core.v1.Namespace")
    };
    const NAME: NameRule = meta::label;
    const COLUMNS: &'static [Column] = &[print::NAME, print::text("Status"), print::AGE];
    const FIELDS: &'static [&'static str] = &["status.phase"];

    fn defaults(object: &mut Value) {
        let name = object["metadata"].text("name").to_owned();
        if !name.is_empty() {
            object.make("metadata").make("labels")[NAME_LABEL] = name.into();
        }
        object.make("status").or("phase", "Active");
    }

    fn prepare_create(object: &mut Value) {
        // A generated name is known only now.
        object["status"] = json!({"phase": "Active"});
        Self::defaults(object);
        let finalizers = &mut object.make("spec")["finalizers"];
        let list = match finalizers {
            Value::Array(list) => list,
            other => {
                *other = json!([]);
                other.as_array_mut().expect("just made an array")
            }
        };
        if !list.iter().any(|finalizer| finalizer == "kubernetes") {
            list.push(json!("kubernetes"));
        }
    }

    fn prepare_update(new: &mut Value, old: &Value) {
        keep(new, old, "spec");
    }

    fn validate(object: &api::Namespace, errors: &mut Errors) {
        let finalizers = object.spec.as_ref().and_then(|spec| spec.finalizers.as_ref());
        for (at, finalizer) in indexed(finalizers, &Path::new("spec").child("finalizers")) {
            meta::finalizer(finalizer, &at, errors);
        }
    }

    fn validate_status_update(new: &api::Namespace, _old: &api::Namespace, errors: &mut Errors) {
        let phase = new.status.as_ref().and_then(|status| status.phase.as_deref());
        let path = Path::new("status").child("Phase");
        let deleted = new.metadata.deletion_timestamp.is_some();
        match (deleted, phase.unwrap_or_default()) {
            (true, "Terminating") | (false, "Active") => {}
            (true, phase) => {
                errors.invalid(&path, phase, "may only be 'Terminating' if `deletionTimestamp` is not empty")
            }
            (false, phase) => errors.invalid(&path, phase, "may only be 'Active' if `deletionTimestamp` is empty"),
        }
    }

    fn cells(object: &Value, _typed: &api::Namespace, now: Timestamp) -> Vec<Value> {
        vec![print::name(object), object["status"]["phase"].clone(), print::age(object, now)]
    }
}
