//! RuntimeClass: what a pod's runtime class says of its overhead and of the nodes that can run it.

use std::sync::Arc;

use async_trait::async_trait;
use machinery::status::Result;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::pod::text;
use super::{Admission, AdmissionRequest, Operation};
use crate::authn::lookup::{Lookup, RUNTIME_CLASSES};

pub struct RuntimeClass {
    lookup: Arc<dyn Lookup>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Class {
    overhead: Option<Overhead>,
    scheduling: Scheduling,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Overhead {
    pod_fixed: Map<String, Value>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Scheduling {
    node_selector: Map<String, Value>,
    tolerations: Vec<Value>,
}

impl RuntimeClass {
    pub fn new(lookup: Arc<dyn Lookup>) -> Self {
        RuntimeClass { lookup }
    }

    async fn class(&self, request: &AdmissionRequest<'_>) -> Result<Option<Class>> {
        let name = request.object.as_ref().map_or("", |pod| text(&pod["spec"], "runtimeClassName"));
        if name.is_empty() {
            return Ok(None);
        }
        match self.lookup.as_ref().get_as(RUNTIME_CLASSES, "", name).await? {
            Some(class) => Ok(Some(class)),
            None => Err(request.forbidden(format!("pod rejected: RuntimeClass \"{name}\" not found"))),
        }
    }
}

fn schedule(spec: &mut Value, scheduling: &Scheduling) -> Result<(), String> {
    for (key, value) in &scheduling.node_selector {
        let given = &spec["nodeSelector"][key];
        if !given.is_null() && given != value {
            let (key, value) = (key.as_str(), value.as_str().unwrap_or_default());
            return Err(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}; pod.spec.nodeSelector[{key}] = {}",
                given.as_str().unwrap_or_default()
            ));
        }
        spec["nodeSelector"][key] = value.clone();
    }
    if !scheduling.tolerations.is_empty() {
        let mut all = spec["tolerations"].as_array().cloned().unwrap_or_default();
        let new = scheduling.tolerations.iter().filter(|toleration| !all.contains(toleration));
        all.extend(new.cloned().collect::<Vec<_>>());
        spec["tolerations"] = json!(all);
    }
    Ok(())
}

#[async_trait]
impl Admission for RuntimeClass {
    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> Result<()> {
        if !request.is_pod() {
            return Ok(());
        }
        let Some(class) = self.class(request).await? else { return Ok(()) };
        let Some(spec) = request.object.as_mut().map(|pod| &mut pod["spec"]) else { return Ok(()) };
        let given = spec["overhead"].as_object().cloned().unwrap_or_default();
        let mut complaint = None;
        match &class.overhead {
            Some(overhead) if given.is_empty() => spec["overhead"] = json!(overhead.pod_fixed),
            Some(overhead) if given != overhead.pod_fixed => {
                complaint =
                    Some("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead".to_owned());
            }
            _ => {}
        }
        let complaint = complaint.or_else(|| schedule(spec, &class.scheduling).err());
        complaint.map_or(Ok(()), |complaint| Err(request.forbidden(complaint)))
    }

    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<()> {
        let Some(pod) = request.object.as_ref().filter(|_| request.is_pod()) else { return Ok(()) };
        let overhead = pod["spec"]["overhead"].as_object().is_some_and(|overhead| !overhead.is_empty());
        let class = self.class(request).await?;
        match class.and_then(|class| class.overhead) {
            None if overhead => {
                Err(request
                    .forbidden("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"))
            }
            _ => Ok(()),
        }
    }
}
