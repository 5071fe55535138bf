//! `admissionregistration.k8s.io/v1`: who else has a say in writes. What it says is checked here only
//! for its shape; expressions are compiled by whoever evaluates them.

mod policy;
mod policy_binding;
mod rules;
mod webhook;

pub use policy::ValidatingAdmissionPolicy;
pub use policy_binding::ValidatingAdmissionPolicyBinding;
pub use webhook::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};

use crate::facts::Facts;

const GROUP: &str = "admissionregistration.k8s.io";

const fn cluster(kind: &'static str, plural: &'static str, singular: &'static str, schema: &'static str) -> Facts {
    Facts {
        categories: &["api-extensions"],
        generation: true,
        ..Facts::cluster(GROUP, "v1", kind, plural, singular, schema)
    }
}
