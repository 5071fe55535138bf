//! Values of fieldRef and resourceFieldRef, for environments and downwardAPI volumes alike.
//!
//! Pure; what the node adds (addresses, allocatable) comes in as [`Facts`].

use crate::pod;
use crate::resources::{self, Quantities};
use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use std::collections::BTreeMap;

/// What the node knows about the pod that its spec does not say.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub node_name: String,
    pub host_ips: Vec<String>,
    pub pod_ips: Vec<String>,
    pub allocatable: Quantities,
}

/// The value of one field path, such as `metadata.labels['app']` or `status.podIP`.
pub fn pod_field(pod: &Pod, path: &str, facts: &Facts) -> Result<String, String> {
    let meta = &pod.metadata;
    let first = |ips: &[String]| ips.first().cloned().unwrap_or_default();
    if let Some((list, key)) = subscript(path) {
        let map = match list {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return Err(format!("fieldPath {list:?} does not support subscript")),
        };
        return Ok(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => pod::name(pod).to_owned(),
        "metadata.namespace" => pod::namespace(pod).to_owned(),
        "metadata.uid" => pod::uid(pod).to_owned(),
        "metadata.labels" => lines(&meta.labels),
        "metadata.annotations" => lines(&meta.annotations),
        "spec.nodeName" => facts.node_name.clone(),
        "spec.serviceAccountName" => pod::spec(pod).service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => first(&facts.host_ips),
        "status.hostIPs" => facts.host_ips.join(","),
        "status.podIP" => first(&facts.pod_ips),
        "status.podIPs" => facts.pod_ips.join(","),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

fn subscript(path: &str) -> Option<(&str, &str)> {
    let (list, rest) = path.split_once("['")?;
    Some((list, rest.strip_suffix("']")?))
}

/// A map as downwardAPI files show it: sorted `key="value"` lines.
fn lines(map: &Option<BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.iter().flatten().map(|(key, value)| format!("{key}={}", quote(value))).collect();
    lines.join("\n")
}

/// Quotes as Go's `%q` does for what labels and annotations hold.
fn quote(value: &str) -> String {
    let mut quoted = String::from("\"");
    for character in value.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            control if control.is_control() => quoted.push_str(&format!("\\x{:02x}", control as u32)),
            other => quoted.push(other),
        }
    }
    quoted + "\""
}

/// The value of a resourceFieldRef; it may name another container of the pod.
pub fn resource(
    pod: &Pod,
    container: &Container,
    field: &ResourceFieldSelector,
    facts: &Facts,
) -> Result<String, String> {
    let named = field.container_name.as_deref().filter(|name| !name.is_empty() && *name != container.name);
    let other = match named {
        Some(name) => Some(pod::member(pod, name).ok_or_else(|| format!("container {name} not found"))?),
        None => None,
    };
    let container = other.as_ref().map_or(container, |member| &member.container);
    resources::field_value(container, &field.resource, field.divisor.as_ref(), &facts.allocatable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"b": "2", "a": "1\"x"}},
            "spec": {"serviceAccountName": "sa", "containers": []}
        }))
        .unwrap();
        let facts = Facts {
            node_name: "node".into(),
            host_ips: vec!["10.0.0.1".into()],
            pod_ips: vec!["10.42.0.2".into(), "fd00::2".into()],
            ..Facts::default()
        };
        for (path, expected) in [
            ("metadata.name", "p"),
            ("metadata.uid", "u"),
            ("metadata.labels['b']", "2"),
            ("metadata.annotations['none']", ""),
            ("metadata.labels", "a=\"1\\\"x\"\nb=\"2\""),
            ("spec.nodeName", "node"),
            ("spec.serviceAccountName", "sa"),
            ("status.hostIP", "10.0.0.1"),
            ("status.podIPs", "10.42.0.2,fd00::2"),
        ] {
            assert_eq!(pod_field(&pod, path, &facts).as_deref(), Ok(expected), "{path}");
        }
        assert!(pod_field(&pod, "spec.hostname", &facts).is_err());
        assert!(pod_field(&pod, "metadata.name['x']", &facts).is_err());
    }
}
