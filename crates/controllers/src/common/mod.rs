//! Parts that several controllers share. None of them knows which.

pub mod claims;
pub mod discovery;
pub mod expectations;
pub mod history;
pub mod pod_control;
pub mod pods;
pub mod services;
pub mod template;
pub mod trigger_time;
pub mod written;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use machinery::labels::Selector;

/// The selector of a typed LabelSelector; one that does not parse (validation lets none pass) selects nothing.
pub fn selector(selector: &LabelSelector) -> Selector {
    let value = serde_json::to_value(selector).unwrap_or_default();
    Selector::from_label_selector(&value).unwrap_or_else(|_| Selector::nothing())
}

/// Whether a selector chooses an object by its labels.
pub fn selects(selector: &Selector, meta: &kube::core::ObjectMeta) -> bool {
    match &meta.labels {
        Some(labels) => selector.matches_map(labels),
        None => selector.matches(|_| None),
    }
}

/// Now, as the API writes it: in whole seconds, so that what is read back compares equal.
pub fn now() -> Time {
    let now = Timestamp::now();
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// Whether a creation failed because its namespace is being deleted, so that trying again is pointless.
pub fn is_namespace_terminating(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

/// What the server said, without the client's framing.
pub fn message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        error => error.to_string(),
    }
}

/// An error and its causes, down to what the server said.
pub fn describe(error: &anyhow::Error) -> String {
    let mut text = Vec::new();
    for cause in error.chain() {
        if let Some(error) = cause.downcast_ref::<kube::Error>() {
            text.push(message(error));
            break;
        }
        text.push(cause.to_string());
    }
    text.join(": ")
}
