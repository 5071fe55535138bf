//! `coordination.k8s.io/v1`: Lease, who leads and which node is alive.

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1 as api;
use machinery::field::Path;
use machinery::table::Column;
use serde_json::{Value, json};

use crate::facts::Facts;
use crate::print;
use crate::resource::Kind;
use crate::validate::{Errors, text};

pub struct Lease;

impl Kind for Lease {
    type Object = api::Lease;

    const FACTS: Facts =
        Facts::namespaced("coordination.k8s.io", "v1", "Lease", "leases", "lease", "io.k8s.api.coordination.v1.Lease");
    const COLUMNS: &'static [Column] = &[print::NAME, print::text("Holder"), print::AGE];

    fn validate(object: &api::Lease, errors: &mut Errors) {
        let path = Path::new("spec");
        let Some(spec) = &object.spec else { return };
        if let Some(seconds) = spec.lease_duration_seconds
            && seconds <= 0
        {
            errors.invalid(&path.child("leaseDurationSeconds"), seconds, "must be greater than 0");
        }
        errors.non_negative(&path.child("leaseTransitions"), spec.lease_transitions);
        if let Some(strategy) = &spec.strategy {
            errors.one_of(&path.child("strategy"), Some(strategy), &["OldestEmulationVersion"]);
        } else if spec.preferred_holder.is_some() {
            let detail = "must not be specified if `strategy` is not specified";
            errors.forbidden(&path.child("preferredHolder"), detail);
        }
    }

    fn cells(object: &Value, typed: &api::Lease, now: Timestamp) -> Vec<Value> {
        let holder = typed.spec.as_ref().map_or("", |spec| text(&spec.holder_identity));
        vec![print::name(object), json!(holder), print::age(object, now)]
    }
}
