//! Pod specs, shared by pods and everything that has a pod template.
//!
//! Defaults work on JSON values, since they run before anything is known to be well-formed;
//! validation is typed. Paths start where the caller says, so that one text serves
//! `spec.containers[0]` and `spec.template.spec.containers[0]`.

mod affinity;
mod annotations;
mod container;
mod defaults;
mod dns;
mod print;
mod probe;
mod qos;
mod security;
mod spec;
mod update;
mod volume;
mod warnings;

pub(crate) use affinity::node_selector;
pub use annotations::validate as validate_annotations;
pub use defaults::{image_pull_policy, pod as default_pod, spec as default_spec, template as default_template};
pub use print::{cells, status_text};
pub use qos::qos_class;
pub(crate) use spec::tolerations;
pub use spec::{replicas_template, spec as validate_spec, template as validate_template};
pub use update::{ephemeral_containers, pod as validate_update, resize, status as validate_status};
pub(crate) use volume::{access_modes, driver, host_path, persistent_source};
pub use warnings::{deprecated_label, pod as warnings, template as template_warnings};

/// The key that marks a pod as the mirror of a static pod.
pub const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// The deprecated `serviceAccount` and `serviceAccountName` always say the same.
pub fn sync_service_account(spec: &mut serde_json::Value) {
    use crate::value::Defaulting;
    match (spec.text("serviceAccountName").to_owned(), spec.text("serviceAccount").to_owned()) {
        (name, alias) if name == alias => {}
        (name, alias) if name.is_empty() => spec["serviceAccountName"] = alias.into(),
        (name, _) => spec["serviceAccount"] = name.into(),
    }
}
