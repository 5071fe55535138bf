//! What exists in every cluster before anybody creates anything.

pub mod rbac;

use serde_json::{Value, json};

/// The namespaces the API server makes sure of.
pub const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

pub fn namespaces() -> Vec<Value> {
    let namespace = |name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    NAMESPACES.into_iter().map(namespace).collect()
}

/// The two classes that system pods name.
pub fn priority_classes() -> Vec<Value> {
    let class = |(name, value, description)| {
        json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
            "value": value, "description": description})
    };
    crate::kinds::scheduling::SYSTEM.into_iter().map(class).collect()
}
