//! What exists in every cluster before anybody creates anything.

pub mod rbac;

use serde_json::{Value, json};

/// The namespaces the API server makes sure of.
pub const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

pub fn namespaces() -> Vec<Value> {
    let namespace = |name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    NAMESPACES.into_iter().map(namespace).collect()
}
