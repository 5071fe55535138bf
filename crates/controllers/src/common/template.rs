//! Pods from pod templates, and the short hash that names a template. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use machinery::schema::semantic_equal;

pub const HASH_LABEL: &str = "pod-template-hash";

/// A pod as its template says, owned by `owner` and named after it by the server.
pub fn pod(template: &PodTemplateSpec, owner: OwnerReference, namespace: &str) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", owner.name)),
            namespace: Some(namespace.to_owned()),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner]),
            ..Default::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Whether two templates make the same pods; the hash label does not count, nor does empty against absent.
pub fn same(left: &PodTemplateSpec, right: &PodTemplateSpec) -> bool {
    let bare = |template: &PodTemplateSpec| serde_json::to_value(without_hash(template)).unwrap_or_default();
    without_hash(left) == without_hash(right) || semantic_equal(&bare(left), &bare(right))
}

fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(labels) = template.metadata.as_mut().and_then(|meta| meta.labels.as_mut()) {
        labels.remove(HASH_LABEL);
    }
    template
}

/// A hash of the template in upstream's alphabet; `collisions` tells apart templates that met in one hash.
pub fn hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    let canonical = serde_json::to_string(template).unwrap_or_default();
    let fnv = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    let mut hash = canonical.as_bytes().iter().fold(0x811c_9dc5, fnv);
    if let Some(collisions) = collisions {
        hash = collisions.to_le_bytes().iter().fold(hash, fnv);
    }
    // No vowels and no characters that look alike: nothing offensive, nothing ambiguous.
    let alphabet = b"bcdfghjklmnpqrstvwxz2456789";
    hash.to_string().bytes().map(|digit| alphabet[digit as usize % alphabet.len()] as char).collect()
}

/// The labels with one more.
pub fn with_label(labels: Option<BTreeMap<String, String>>, key: &str, value: &str) -> BTreeMap<String, String> {
    let mut labels = labels.unwrap_or_default();
    labels.insert(key.to_owned(), value.to_owned());
    labels
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn template(value: serde_json::Value) -> PodTemplateSpec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_hash_label_and_emptiness_do_not_tell_templates_apart() {
        let plain = template(json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c"}]}}));
        let hashed = template(json!({"metadata": {"labels": {"a": "b", HASH_LABEL: "x"}},
            "spec": {"containers": [{"name": "c", "env": []}]}}));
        let other = template(json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "d"}]}}));
        assert!(same(&plain, &hashed) && !same(&plain, &other));
        assert_ne!(hash(&plain, None), hash(&other, None));
        assert_ne!(hash(&plain, None), hash(&plain, Some(1)));
        assert_eq!(hash(&plain, None), hash(&plain.clone(), None));
    }
}
