//! Table tests of the built-in kinds, through the interface the API server uses.

mod apps;
mod autoscaling;
mod batch;
mod cluster;
mod columns;
mod defaults;
mod registry;
mod strategy;
mod validation;

use resources::{Resource, registry as kinds};
use serde_json::{Value, json};

/// The resource of `apps/v1/Deployment` or `v1/Pod`.
fn kind(path: &str) -> &'static dyn Resource {
    let words: Vec<&str> = path.split('/').collect();
    let (group, version, kind) = match words[..] {
        [version, kind] => ("", version, kind),
        [group, version, kind] => (group, version, kind),
        _ => panic!("{path} is no kind"),
    };
    kinds().by_gvk(group, version, kind).unwrap_or_else(|| panic!("{path} is not registered"))
}

/// Defaults and prepares an object as the API server does, and returns what validation says.
fn create(path: &str, object: &mut Value) -> Vec<String> {
    let kind = kind(path);
    kind.default(object);
    kind.prepare_create(object);
    messages(kind.validate(object))
}

fn update(path: &str, new: &mut Value, old: &Value) -> Vec<String> {
    let kind = kind(path);
    kind.default(new);
    kind.prepare_update(new, old);
    messages(kind.validate_update(new, old))
}

fn messages(errors: machinery::field::ErrorList) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

/// A valid pod with one container, changed by a merge patch.
fn pod(patch: Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "a", "namespace": "default"},
        "spec": {"containers": [{"name": "main", "image": "nginx:1"}]},
    });
    merge(&mut pod, patch);
    pod
}

fn deployment(patch: Value) -> Value {
    let mut deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "a", "namespace": "default"},
        "spec": {
            "selector": {"matchLabels": {"app": "a"}},
            "template": {
                "metadata": {"labels": {"app": "a"}},
                "spec": {"containers": [{"name": "main", "image": "nginx"}]},
            },
        },
    });
    merge(&mut deployment, patch);
    deployment
}

fn service(patch: Value) -> Value {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "a", "namespace": "default"},
        "spec": {"ports": [{"port": 80}], "clusterIP": "10.43.0.7"},
    });
    merge(&mut service, patch);
    service
}

fn merge(target: &mut Value, patch: Value) {
    machinery::patch::merge_patch(target, &patch).expect("an object takes a patch");
}
