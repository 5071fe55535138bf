//! TaintNodesByCondition: a new node takes no pods until the node controller has seen it ready.

use async_trait::async_trait;
use machinery::status::Result;
use serde_json::json;

use super::pod::{items, list_mut, text};
use super::{Admission, AdmissionRequest, Operation};

const NOT_READY: &str = "node.kubernetes.io/not-ready";

pub struct TaintNodesByCondition;

#[async_trait]
impl Admission for TaintNodesByCondition {
    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> Result<()> {
        if !request.is("", "nodes", "") {
            return Ok(());
        }
        let Some(node) = &mut request.object else { return Ok(()) };
        let same = |taint: &_| text(taint, "key") == NOT_READY && text(taint, "effect") == "NoSchedule";
        if !items(&node["spec"]["taints"]).any(same) {
            list_mut(&mut node["spec"], "taints").push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
        }
        Ok(())
    }
}
