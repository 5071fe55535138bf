//! `scheduling.k8s.io/v1`: PriorityClass, a name for a number that the scheduler compares.

use jiff::Timestamp;
use k8s_openapi::api::scheduling::v1 as api;
use machinery::field::Path;
use machinery::table::Column;
use serde_json::{Value, json};

use crate::facts::Facts;
use crate::print;
use crate::resource::Kind;
use crate::validate::{Errors, text};
use crate::value::Defaulting;

pub struct PriorityClass;

const HIGHEST_OF_USERS: i32 = 1_000_000_000;
const SYSTEM_PREFIX: &str = "system-";
/// Name, value and description of the classes every cluster has.
pub(crate) const SYSTEM: [(&str, i32, &str); 2] = [
    (
        "system-node-critical",
        2 * HIGHEST_OF_USERS + 1000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
    (
        "system-cluster-critical",
        2 * HIGHEST_OF_USERS,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
];

impl Kind for PriorityClass {
    type Object = api::PriorityClass;

    const FACTS: Facts = Facts {
        short_names: &["pc"],
        ..Facts::cluster(
            "scheduling.k8s.io",
            "v1",
            "PriorityClass",
            "priorityclasses",
            "priorityclass",
            "io.k8s.api.scheduling.v1.PriorityClass",
        )
    };
    const COLUMNS: &'static [Column] = &[
        print::NAME,
        print::integer("Value"),
        print::boolean("Global-Default"),
        print::AGE,
        print::text("PreemptionPolicy"),
    ];

    fn defaults(object: &mut Value) {
        object.or("preemptionPolicy", "PreemptLowerPriority");
    }

    fn validate(object: &api::PriorityClass, errors: &mut Errors) {
        let (name, value) = (text(&object.metadata.name), object.value.unwrap_or(0));
        if name.starts_with(SYSTEM_PREFIX) {
            if let Err(why) = known(name, value, object.global_default == Some(true)) {
                let detail = format!(
                    "priority class names with '{SYSTEM_PREFIX}' prefix are reserved for system use only. error: {why}"
                );
                errors.forbidden(&Path::new("metadata").child("name"), detail);
            }
        } else if value > HIGHEST_OF_USERS {
            let detail = format!("maximum allowed value of a user defined priority is {HIGHEST_OF_USERS}");
            errors.forbidden(&Path::new("value"), detail);
        }
        errors.optional_one_of(
            &Path::new("preemptionPolicy"),
            object.preemption_policy.as_deref(),
            &["Never", "PreemptLowerPriority"],
        );
    }

    fn validate_update(new: &api::PriorityClass, old: &api::PriorityClass, errors: &mut Errors) {
        if new.value.unwrap_or(0) != old.value.unwrap_or(0) {
            errors.forbidden(&Path::new("value"), "may not be changed in an update.");
        }
        errors.immutable(&Path::new("preemptionPolicy"), &new.preemption_policy, &old.preemption_policy);
    }

    fn cells(object: &Value, typed: &api::PriorityClass, now: Timestamp) -> Vec<Value> {
        vec![
            print::name(object),
            json!(typed.value.unwrap_or(0)),
            json!(typed.global_default.unwrap_or(false)),
            print::age(object, now),
            json!(text(&typed.preemption_policy)),
        ]
    }
}

fn known(name: &str, value: i32, global_default: bool) -> Result<(), String> {
    match SYSTEM.iter().find(|(known, ..)| *known == name) {
        None => Err(format!("{name} is not a known system priority class")),
        Some((_, wanted, _)) if *wanted != value => Err(format!("value of {name} PriorityClass must be {wanted}")),
        Some(_) if global_default => Err(format!("globalDefault of {name} PriorityClass must be false")),
        Some(_) => Ok(()),
    }
}
