//! Priority: turns a pod's priority class into the number that the scheduler compares.

use std::sync::Arc;

use async_trait::async_trait;
use machinery::status::Result;
use serde::Deserialize;
use serde_json::{Value, json};

use super::pod::text;
use super::{Admission, AdmissionRequest, Operation};
use crate::authn::lookup::{Lookup, Meta, PRIORITY_CLASSES};

/// Known even before their objects are stored.
const SYSTEM: &[(&str, i64)] = &[("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];
const PREEMPT: &str = "PreemptLowerPriority";

pub struct Priority {
    lookup: Arc<dyn Lookup>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PriorityClass {
    metadata: Meta,
    value: i64,
    global_default: bool,
    preemption_policy: Option<String>,
}

impl Priority {
    pub fn new(lookup: Arc<dyn Lookup>) -> Self {
        Priority { lookup }
    }

    async fn class(&self, request: &AdmissionRequest<'_>, name: &str) -> Result<PriorityClass> {
        if name.is_empty() {
            let classes: Vec<PriorityClass> = self.lookup.as_ref().list_as(PRIORITY_CLASSES, "").await?;
            let defaults = classes.into_iter().filter(|class| class.global_default);
            return Ok(defaults.min_by_key(|class| class.value).unwrap_or_default());
        }
        if let Some(class) = self.lookup.as_ref().get_as(PRIORITY_CLASSES, "", name).await? {
            return Ok(class);
        }
        match SYSTEM.iter().find(|(system, _)| *system == name) {
            Some((_, value)) => Ok(PriorityClass { value: *value, ..PriorityClass::default() }),
            None => Err(request.forbidden(format!("no PriorityClass with name {name} was found"))),
        }
    }

    async fn create(&self, request: &mut AdmissionRequest<'_>) -> Result<()> {
        let Some(pod) = &request.object else { return Ok(()) };
        let class = self.class(request, text(&pod["spec"], "priorityClassName")).await?;
        let policy = class.preemption_policy.as_deref().unwrap_or(PREEMPT);
        if let Some(given) = pod["spec"]["priority"].as_i64().filter(|given| *given != class.value) {
            return Err(request.forbidden(format!(
                "the integer value of priority ({given}) must not be provided in pod spec; \
                 priority admission controller computed {} from the given PriorityClass name",
                class.value
            )));
        }
        if let Some(given) = pod["spec"]["preemptionPolicy"].as_str().filter(|given| *given != policy) {
            return Err(request.forbidden(format!(
                "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; \
                 priority admission controller computed {policy} from the given PriorityClass name"
            )));
        }
        let fields = [
            ("priority", json!(class.value)),
            ("preemptionPolicy", json!(policy)),
            ("priorityClassName", json!(class.metadata.name)),
        ];
        let Some(pod) = &mut request.object else { return Ok(()) };
        for (field, value) in fields {
            if pod["spec"].get(field).is_none_or(Value::is_null) && value != json!("") {
                pod["spec"][field] = value;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Admission for Priority {
    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> Result<()> {
        if !request.is_pod() {
            return Ok(());
        }
        if request.operation == Operation::Create {
            return self.create(request).await;
        }
        // A client that does not know the computed fields may leave them out of its update.
        if let (Some(pod), Some(old)) = (&mut request.object, &request.old_object) {
            for field in ["priority", "preemptionPolicy"] {
                let stored = &old["spec"][field];
                if pod["spec"][field].is_null() && !stored.is_null() {
                    pod["spec"][field] = stored.clone();
                }
            }
        }
        Ok(())
    }
}
