//! Events that the API server itself reports, by its own writer. They tell of what an administrator should look at, so
//! there are few: nothing here counts or combines them.

use jiff::Timestamp;
use machinery::status::{ApiError, Result};
use resources::registry;
use serde_json::{Value, json};

use crate::{
    identity::UserInfo,
    write::{Warnings, Write, Writer},
};

/// `regarding` is an ObjectReference.
pub async fn warn(writer: &Writer, controller: &str, regarding: Value, reason: &str, action: &str, note: &str) {
    tracing::warn!(controller, reason, "{note}");
    if let Err(error) = record(writer, controller, regarding, reason, action, note).await {
        tracing::debug!(%error, reason, "event rejected");
    }
}

async fn record(
    writer: &Writer,
    controller: &str,
    regarding: Value,
    reason: &str,
    action: &str,
    note: &str,
) -> Result<()> {
    let events = registry().by_gvr("events.k8s.io", "v1", "events");
    let events = events.ok_or_else(|| ApiError::internal("events are not served"))?;
    let now = Timestamp::now();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let namespace = regarding["namespace"].as_str().filter(|namespace| !namespace.is_empty()).unwrap_or("default");
    let name = format!("{}.{:x}", regarding["name"].as_str().unwrap_or_default(), now.as_nanosecond());
    let event = json!({
        "kind": "Event", "apiVersion": "events.k8s.io/v1", "metadata": {"name": name, "namespace": namespace},
        "eventTime": format!("{now:.6}"), "type": "Warning", "reason": reason, "action": action, "note": note,
        "reportingController": controller, "reportingInstance": format!("{controller}-{}", host.trim()),
        "regarding": regarding,
    });
    let (user, warnings) = (UserInfo::master("system:apiserver"), Warnings::default());
    writer.create(&Write::by_server(events, "", (namespace, ""), &user, &warnings), event).await.map(drop)
}
