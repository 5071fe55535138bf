//! What a pod's spec refers to: the objects its node must read to run it.

use serde_json::Value;

/// Kinds that a pod leads its node to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    ConfigMap,
    PersistentVolumeClaim,
    Secret,
    ServiceAccount,
}

impl Target {
    /// As messages to users name it.
    pub fn plural(self) -> &'static str {
        match self {
            Target::ConfigMap => "configmaps",
            Target::PersistentVolumeClaim => "persistentvolumeclaims",
            Target::Secret => "secrets",
            Target::ServiceAccount => "service accounts",
        }
    }
}

/// All targets named by a pod's `spec`, sorted, each once.
pub fn references(pod_name: &str, spec: &Value) -> Vec<(Target, String)> {
    let mut found = Vec::new();
    let mut add = |target, name: &Value| {
        if let Some(name) = name.as_str().filter(|name| !name.is_empty()) {
            found.push((target, name.to_owned()));
        }
    };
    add(Target::ServiceAccount, &spec["serviceAccountName"]);
    each(&spec["imagePullSecrets"], |secret| add(Target::Secret, &secret["name"]));
    each(&spec["volumes"], |volume| {
        add(Target::PersistentVolumeClaim, &volume["persistentVolumeClaim"]["claimName"]);
        if volume["ephemeral"].is_object() {
            let name = format!("{pod_name}-{}", volume["name"].as_str().unwrap_or_default());
            add(Target::PersistentVolumeClaim, &Value::String(name));
        }
        sources(volume, &mut add);
    });
    for containers in ["containers", "initContainers", "ephemeralContainers"] {
        each(&spec[containers], |container| {
            sources(&container["env"], &mut add);
            sources(&container["envFrom"], &mut add);
        });
    }
    found.sort();
    found.dedup();
    found
}

fn each(list: &Value, visit: impl FnMut(&Value)) {
    list.as_array().into_iter().flatten().for_each(visit);
}

/// Every volume source and environment source spells a secret or config map in one of these ways.
fn sources(value: &Value, add: &mut impl FnMut(Target, &Value)) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| sources(item, add)),
        Value::Object(fields) => {
            for (key, value) in fields {
                match key.as_str() {
                    "secretName" => add(Target::Secret, value),
                    "secret" | "secretRef" | "secretKeyRef" | "nodePublishSecretRef" => {
                        add(Target::Secret, &value["name"]);
                        add(Target::Secret, &value["secretName"]);
                    }
                    "configMap" | "configMapRef" | "configMapKeyRef" => add(Target::ConfigMap, &value["name"]),
                    _ => sources(value, add),
                }
            }
        }
        _ => {}
    }
}
