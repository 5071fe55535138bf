//! CSIDriver: what a storage driver can and wants.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::storage::v1 as api;
use machinery::field::Path;
use machinery::table::Column;
use serde_json::{Value, json};

use super::cluster;
use crate::facts::Facts;
use crate::print::{self, or};
use crate::resource::Kind;
use crate::validate::{Errors, indexed, text};
use crate::value::Defaulting;

pub struct CSIDriver;

/// Bounds of a token's life, in seconds.
const TOKEN_SECONDS: std::ops::RangeInclusive<i64> = 600..=1 << 32;
const MIN_UPDATE_PERIOD_SECONDS: i64 = 10;

impl Kind for CSIDriver {
    type Object = api::CSIDriver;

    const FACTS: Facts = cluster("CSIDriver", "csidrivers", "csidriver", "io.k8s.api.storage.v1.CSIDriver");
    const COLUMNS: &'static [Column] = &[
        print::NAME,
        print::boolean("AttachRequired"),
        print::boolean("PodInfoOnMount"),
        print::boolean("StorageCapacity"),
        print::text("TokenRequests"),
        print::boolean("RequiresRepublish"),
        print::text("Modes"),
        print::AGE,
    ];

    fn defaults(object: &mut Value) {
        let spec = object.make("spec");
        spec.or("attachRequired", true).or("fsGroupPolicy", "ReadWriteOnceWithFSType");
        for key in ["podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount"] {
            spec.or(key, false);
        }
        if spec["volumeLifecycleModes"].as_array().is_none_or(Vec::is_empty) {
            spec["volumeLifecycleModes"] = json!(["Persistent"]);
        }
    }

    fn validate(object: &api::CSIDriver, errors: &mut Errors) {
        let (spec, path) = (&object.spec, Path::new("spec"));
        crate::pod::driver(text(&object.metadata.name), &Path::new("metadata").child("name"), errors);
        errors.optional_one_of(
            &path.child("fsGroupPolicy"),
            spec.fs_group_policy.as_deref(),
            &["File", "None", "ReadWriteOnceWithFSType"],
        );
        for (at, mode) in indexed(spec.volume_lifecycle_modes.as_ref(), &path.child("volumeLifecycleModes")) {
            errors.one_of(&at, Some(mode), &["Ephemeral", "Persistent"]);
        }
        tokens(spec.token_requests.as_ref(), &path.child("tokenRequests"), errors);
        if let Some(seconds) = spec.node_allocatable_update_period_seconds
            && seconds < MIN_UPDATE_PERIOD_SECONDS
        {
            let detail = format!("must be greater than or equal to {MIN_UPDATE_PERIOD_SECONDS} seconds");
            errors.invalid(&path.child("nodeAllocatableUpdatePeriodSeconds"), seconds, detail);
        }
    }

    fn validate_update(new: &api::CSIDriver, old: &api::CSIDriver, errors: &mut Errors) {
        Self::validate(new, errors);
        let (new, old, path) = (&new.spec, &old.spec, Path::new("spec"));
        errors.immutable(&path.child("attachedRequired"), &new.attach_required, &old.attach_required);
        let at = path.child("volumeLifecycleModes");
        errors.immutable(&at, &new.volume_lifecycle_modes, &old.volume_lifecycle_modes);
    }

    fn cells(object: &Value, typed: &api::CSIDriver, now: Timestamp) -> Vec<Value> {
        let spec = &typed.spec;
        let audiences = spec.token_requests.as_ref().map(|requests| {
            let audiences: Vec<_> = requests.iter().map(|request| request.audience.as_str()).collect();
            audiences.join(",")
        });
        let modes = spec.volume_lifecycle_modes.as_ref().map(|modes| modes.join(",")).unwrap_or_default();
        vec![
            print::name(object),
            json!(spec.attach_required.unwrap_or(true)),
            json!(spec.pod_info_on_mount.unwrap_or(false)),
            json!(spec.storage_capacity.unwrap_or(false)),
            json!(audiences.as_deref().unwrap_or("<unset>")),
            json!(spec.requires_republish.unwrap_or(false)),
            json!(or(&modes, print::NONE)),
            print::age(object, now),
        ]
    }
}

fn tokens(requests: Option<&Vec<api::TokenRequest>>, path: &Path, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (at, request) in indexed(requests, path) {
        if !seen.insert(&request.audience) {
            errors.duplicate(&at.child("audience"), &request.audience);
        }
        let Some(seconds) = request.expiration_seconds else { continue };
        let at = at.child("expirationSeconds");
        if seconds < *TOKEN_SECONDS.start() {
            errors.invalid(&at, seconds, "may not specify a duration less than 10 minutes");
        }
        if seconds > *TOKEN_SECONDS.end() {
            errors.invalid(&at, seconds, "may not specify a duration larger than 2^32 seconds");
        }
    }
}
