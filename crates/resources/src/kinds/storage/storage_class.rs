//! StorageClass: how volumes of a kind are made. All of it but growing is fixed.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::TopologySelectorTerm;
use k8s_openapi::api::storage::v1 as api;
use machinery::field::Path;
use machinery::names;
use machinery::table::Column;
use serde_json::{Value, json};

use super::{cluster, forbidden_update, parameters};
use crate::facts::Facts;
use crate::print;
use crate::resource::Kind;
use crate::validate::{Errors, indexed, text};
use crate::value::Defaulting;
use crate::volumes::DEFAULT_CLASS;

pub struct StorageClass;

impl Kind for StorageClass {
    type Object = api::StorageClass;

    const FACTS: Facts = Facts {
        short_names: &["sc"],
        ..cluster("StorageClass", "storageclasses", "storageclass", "io.k8s.api.storage.v1.StorageClass")
    };
    const COLUMNS: &'static [Column] = &[
        print::NAME,
        print::text("Provisioner"),
        print::text("ReclaimPolicy"),
        print::text("VolumeBindingMode"),
        print::text("AllowVolumeExpansion"),
        print::AGE,
    ];

    fn defaults(object: &mut Value) {
        object.or("reclaimPolicy", "Delete").or("volumeBindingMode", "Immediate");
    }

    fn validate(object: &api::StorageClass, errors: &mut Errors) {
        let (at, provisioner) = (Path::new("provisioner"), &object.provisioner);
        errors.needed(&at, provisioner);
        if !provisioner.is_empty() {
            errors.all_invalid(&at, provisioner, names::is_qualified_name(&provisioner.to_lowercase()));
        }
        parameters(object.parameters.as_ref(), &Path::new("parameters"), errors);
        errors.optional_one_of(&Path::new("reclaimPolicy"), object.reclaim_policy.as_deref(), &["Delete", "Retain"]);
        errors.one_of(
            &Path::new("volumeBindingMode"),
            object.volume_binding_mode.as_deref(),
            &["Immediate", "WaitForFirstConsumer"],
        );
        topologies(object.allowed_topologies.as_ref(), &Path::new("allowedTopologies"), errors);
    }

    fn validate_update(new: &api::StorageClass, old: &api::StorageClass, errors: &mut Errors) {
        forbidden_update("parameters", &new.parameters, &old.parameters, errors);
        forbidden_update("provisioner", &new.provisioner, &old.provisioner, errors);
        forbidden_update("reclaimPolicy", &new.reclaim_policy, &old.reclaim_policy, errors);
        let (new_mode, old_mode) = (&new.volume_binding_mode, &old.volume_binding_mode);
        errors.immutable(&Path::new("volumeBindingMode"), new_mode, old_mode);
        topologies(new.allowed_topologies.as_ref(), &Path::new("allowedTopologies"), errors);
    }

    fn cells(object: &Value, typed: &api::StorageClass, now: Timestamp) -> Vec<Value> {
        let name = text(&typed.metadata.name);
        let annotations = typed.metadata.annotations.as_ref();
        let says = |key: &&str| annotations.is_some_and(|map| map.get(*key).is_some_and(|value| value == "true"));
        let default = if DEFAULT_CLASS.iter().any(says) { " (default)" } else { "" };
        vec![
            json!(format!("{name}{default}")),
            json!(typed.provisioner),
            json!(text(&typed.reclaim_policy)),
            json!(text(&typed.volume_binding_mode)),
            json!(typed.allow_volume_expansion.unwrap_or(false)),
            print::age(object, now),
        ]
    }
}

fn topologies(terms: Option<&Vec<TopologySelectorTerm>>, path: &Path, errors: &mut Errors) {
    for (index, (at, term)) in indexed(terms, path).enumerate() {
        if terms.into_iter().flatten().take(index).any(|other| other == term) {
            errors.duplicate(&at.child("matchLabelExpressions"), "");
        }
        let mut keys = BTreeSet::new();
        let expressions = at.child("matchLabelExpressions");
        for (at, requirement) in indexed(term.match_label_expressions.as_ref(), &expressions) {
            let (key, values) = (&requirement.key, at.child("values"));
            errors.all_invalid(&at.child("key"), key, names::is_qualified_name(key));
            if requirement.values.is_empty() {
                errors.required(&values, "");
            }
            crate::validate::named::distinct(Some(&requirement.values), &values, errors);
            if !keys.insert(key) {
                errors.duplicate(&at.child("key"), key);
            }
        }
    }
}
