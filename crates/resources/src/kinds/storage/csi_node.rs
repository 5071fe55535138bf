//! CSINode: the drivers on a node, as the kubelet found them.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::storage::v1 as api;
use machinery::field::Path;
use machinery::names;
use machinery::table::Column;
use serde_json::{Value, json};

use super::{cluster, driver};
use crate::facts::Facts;
use crate::print;
use crate::resource::Kind;
use crate::validate::{Errors, IMMUTABLE, indexed, named};

pub struct CSINode;

const MAX_NODE_ID: usize = 192;

impl Kind for CSINode {
    type Object = api::CSINode;

    const FACTS: Facts = cluster("CSINode", "csinodes", "csinode", "io.k8s.api.storage.v1.CSINode");
    const COLUMNS: &'static [Column] = &[print::NAME, print::integer("Drivers"), print::AGE];

    fn validate(object: &api::CSINode, errors: &mut Errors) {
        let mut seen = BTreeSet::new();
        for (at, found) in indexed(Some(&object.spec.drivers), &drivers()) {
            if !seen.insert(&found.name) {
                errors.duplicate(&at.child("name"), &found.name);
            }
            self::found(found, &at, errors);
        }
    }

    fn validate_update(new: &api::CSINode, old: &api::CSINode, errors: &mut Errors) {
        Self::validate(new, errors);
        for (at, found) in indexed(Some(&new.spec.drivers), &drivers()) {
            let before = old.spec.drivers.iter().find(|before| before.name == found.name);
            // What a node can hold changes while it runs.
            let same = |before: &api::CSINodeDriver| {
                api::CSINodeDriver { allocatable: before.allocatable.clone(), ..found.clone() } == *before
            };
            if before.is_some_and(|before| !same(before)) {
                errors.invalid(&at, found, IMMUTABLE);
            }
        }
    }

    fn cells(object: &Value, typed: &api::CSINode, now: Timestamp) -> Vec<Value> {
        vec![print::name(object), json!(typed.spec.drivers.len()), print::age(object, now)]
    }
}

fn drivers() -> Path {
    Path::new("spec").child("drivers")
}

fn found(found: &api::CSINodeDriver, path: &Path, errors: &mut Errors) {
    driver(&found.name, &path.child("name"), errors);
    let at = path.child("nodeID");
    errors.needed(&at, &found.node_id);
    if found.node_id.len() > MAX_NODE_ID {
        errors.invalid(&at, &found.node_id, format!("must be {MAX_NODE_ID} characters or less"));
    }
    errors.non_negative(
        &path.child("allocatable").child("count"),
        found.allocatable.as_ref().and_then(|allocatable| allocatable.count),
    );
    let at = path.child("topologyKeys");
    named::distinct(found.topology_keys.as_ref(), &at, errors);
    for (at, key) in indexed(found.topology_keys.as_ref(), &at) {
        errors.needed(&at, key);
        if !key.is_empty() {
            errors.all_invalid(&at, key, names::is_qualified_name(key));
        }
    }
}
