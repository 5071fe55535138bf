//! `metav1.Status`: every failure a client sees, with upstream's reasons, codes and wording.
//!
//! kubectl and client-go decide by reason and show the message, so the texts are part of the wire format.
//! How a Status travels (HTTP, watch event) is the API server's business.

use serde_json::{Map, Value, json};

use crate::{
    field::{ErrorList, aggregate, quote},
    gvk::qualified,
};

pub type Result<T, E = ApiError> = std::result::Result<T, E>;

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{}", status.message)]
pub struct ApiError {
    pub status: Box<Status>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Status {
    pub code: u16,
    pub reason: String,
    pub message: String,
    pub details: Option<StatusDetails>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct StatusDetails {
    pub name: String,
    pub group: String,
    /// The plural resource for most errors, the kind for `Invalid`.
    pub kind: String,
    pub uid: String,
    pub causes: Vec<Cause>,
    pub retry_after_seconds: u32,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Cause {
    pub reason: String,
    pub message: String,
    pub field: String,
}

impl ApiError {
    pub fn new(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Self { status: Box::new(Status { code, reason: reason.into(), message: message.into(), details: None }) }
    }

    fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        let details = self.status.details.get_or_insert_default();
        (details.group, details.kind, details.name) = (group.into(), kind.into(), name.into());
        self
    }

    pub fn with_cause(mut self, reason: &str, message: impl Into<String>, field: &str) -> Self {
        let cause = Cause { reason: reason.into(), message: message.into(), field: field.into() };
        self.status.details.get_or_insert_default().causes.push(cause);
        self
    }

    /// With details even if they say nothing, as upstream's answers to nothing in particular have them.
    pub fn with_details(mut self) -> Self {
        self.status.details.get_or_insert_default();
        self
    }

    pub fn with_retry_after(mut self, seconds: u32) -> Self {
        self.status.details.get_or_insert_default().retry_after_seconds = seconds;
        self
    }

    pub fn code(&self) -> u16 {
        self.status.code
    }

    pub fn reason(&self) -> &str {
        &self.status.reason
    }

    pub fn is_not_found(&self) -> bool {
        self.status.reason == "NotFound"
    }

    pub fn is_already_exists(&self) -> bool {
        self.status.reason == "AlreadyExists"
    }

    pub fn is_conflict(&self) -> bool {
        self.status.reason == "Conflict"
    }

    pub fn not_found(group: &str, plural: &str, name: &str) -> Self {
        let message = format!("{} {} not found", qualified(group, plural), quote(name));
        Self::new(404, "NotFound", message).about(group, plural, name)
    }

    /// An unknown path or resource, as opposed to an absent object.
    pub fn no_such_resource() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource").about("", "", "")
    }

    pub fn already_exists(group: &str, plural: &str, name: &str) -> Self {
        let message = format!("{} {} already exists", qualified(group, plural), quote(name));
        Self::new(409, "AlreadyExists", message).about(group, plural, name)
    }

    pub fn conflict(group: &str, plural: &str, name: &str, why: impl std::fmt::Display) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {}: {why}", qualified(group, plural), quote(name));
        Self::new(409, "Conflict", message).about(group, plural, name)
    }

    /// The conflict of optimistic locking.
    pub fn modified(group: &str, plural: &str, name: &str) -> Self {
        Self::conflict(
            group,
            plural,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    pub fn invalid(group: &str, kind: &str, name: &str, errors: ErrorList) -> Self {
        let mut message = format!("{} {} is invalid", qualified(group, kind), quote(name));
        if !errors.is_empty() {
            message.push_str(": ");
            message.push_str(&aggregate(errors.iter().map(ToString::to_string)));
        }
        let error = Self::new(422, "Invalid", message).about(group, kind, name);
        errors.iter().fold(error, |all, error| all.with_cause(error.kind.reason(), error.body(), &error.path))
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    pub fn forbidden(group: &str, plural: &str, name: &str, why: impl std::fmt::Display) -> Self {
        let resource = qualified(group, plural);
        let message = match (resource.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (false, true) => format!("{resource} is forbidden: {why}"),
            (false, false) => format!("{resource} {} is forbidden: {why}", quote(name)),
        };
        Self::new(403, "Forbidden", message).about(group, plural, name)
    }

    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(405, "MethodNotAllowed", message).with_details()
    }

    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let message = format!("only the following media types are accepted: {}", accepted.join(", "));
        Self::new(406, "NotAcceptable", message)
    }

    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// `limit` in bytes.
    pub fn request_entity_too_large(limit: usize) -> Self {
        Self::new(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {limit}"))
    }

    pub fn gone(message: impl Into<String>) -> Self {
        Self::new(410, "Gone", message)
    }

    /// A resource version or continue token that compaction has overtaken.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        Self::new(429, "TooManyRequests", message).with_retry_after(retry_after_seconds)
    }

    pub fn internal(message: impl std::fmt::Display) -> Self {
        Self::new(500, "InternalError", format!("Internal error occurred: {message}")).with_cause(
            "",
            message.to_string(),
            "",
        )
    }

    pub fn timeout(message: impl std::fmt::Display, retry_after_seconds: u32) -> Self {
        Self::new(504, "Timeout", format!("Timeout: {message}")).with_retry_after(retry_after_seconds)
    }

    pub fn server_timeout(group: &str, plural: &str, verb: &str, retry_after_seconds: u32) -> Self {
        let resource = qualified(group, plural);
        let message =
            format!("The {verb} operation against {resource} could not be completed at this time, please try again.");
        Self::new(500, "ServerTimeout", message).about(group, plural, verb).with_retry_after(retry_after_seconds)
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    pub fn to_value(&self) -> Value {
        self.status.to_value()
    }

    /// Reads a `Status` object back; anything else becomes an internal error that quotes it.
    pub fn from_value(value: &Value) -> Self {
        if value["kind"] != "Status" {
            return Self::internal(value);
        }
        Self { status: Box::new(Status::from_value(value)) }
    }
}

impl Status {
    /// A `metav1.Status` of failure.
    pub fn to_value(&self) -> Value {
        let mut object = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if let Some(details) = &self.details {
            object["details"] = details.to_value();
        }
        object
    }

    fn from_value(value: &Value) -> Self {
        Self {
            code: value["code"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or(500),
            reason: text(value, "reason"),
            message: text(value, "message"),
            details: value.get("details").map(StatusDetails::from_value),
        }
    }
}

impl StatusDetails {
    fn to_value(&self) -> Value {
        let mut object = Map::new();
        for (key, value) in [("name", &self.name), ("group", &self.group), ("kind", &self.kind), ("uid", &self.uid)] {
            insert_text(&mut object, key, value);
        }
        if !self.causes.is_empty() {
            object.insert("causes".into(), self.causes.iter().map(Cause::to_value).collect());
        }
        if self.retry_after_seconds > 0 {
            object.insert("retryAfterSeconds".into(), self.retry_after_seconds.into());
        }
        Value::Object(object)
    }

    fn from_value(value: &Value) -> Self {
        let causes = value["causes"].as_array().map(Vec::as_slice).unwrap_or_default();
        Self {
            name: text(value, "name"),
            group: text(value, "group"),
            kind: text(value, "kind"),
            uid: text(value, "uid"),
            causes: causes.iter().map(Cause::from_value).collect(),
            retry_after_seconds: value["retryAfterSeconds"].as_u64().unwrap_or(0) as u32,
        }
    }
}

impl Cause {
    fn to_value(&self) -> Value {
        let mut object = Map::new();
        for (key, value) in [("reason", &self.reason), ("message", &self.message), ("field", &self.field)] {
            insert_text(&mut object, key, value);
        }
        Value::Object(object)
    }

    fn from_value(value: &Value) -> Self {
        Self { reason: text(value, "reason"), message: text(value, "message"), field: text(value, "field") }
    }
}

fn insert_text(object: &mut Map<String, Value>, key: &str, value: &str) {
    if !value.is_empty() {
        object.insert(key.into(), value.into());
    }
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::FieldError;

    #[test]
    fn messages_read_as_upstream() {
        let required = || FieldError::required("spec.containers[0].image", "");
        let two = vec![required(), FieldError::invalid("spec.x", 1, "bad"), required()];
        for (error, code, reason, message) in [
            (ApiError::not_found("", "pods", "x"), 404, "NotFound", r#"pods "x" not found"#),
            (ApiError::not_found("apps", "deployments", "x"), 404, "NotFound", r#"deployments.apps "x" not found"#),
            (ApiError::already_exists("", "pods", "x"), 409, "AlreadyExists", r#"pods "x" already exists"#),
            (
                ApiError::modified("", "pods", "x"),
                409,
                "Conflict",
                "Operation cannot be fulfilled on pods \"x\": the object has been modified; \
                 please apply your changes to the latest version and try again",
            ),
            (
                ApiError::invalid("", "Pod", "x", vec![required()]),
                422,
                "Invalid",
                r#"Pod "x" is invalid: spec.containers[0].image: Required value"#,
            ),
            (
                ApiError::invalid("apps", "Deployment", "x", two),
                422,
                "Invalid",
                "Deployment.apps \"x\" is invalid: \
                 [spec.containers[0].image: Required value, spec.x: Invalid value: 1: bad]",
            ),
            (ApiError::forbidden("", "pods", "", "no"), 403, "Forbidden", "pods is forbidden: no"),
            (ApiError::forbidden("", "pods", "x", "no"), 403, "Forbidden", r#"pods "x" is forbidden: no"#),
            (ApiError::forbidden("", "", "", "no"), 403, "Forbidden", "forbidden: no"),
            (
                ApiError::method_not_allowed(),
                405,
                "MethodNotAllowed",
                "the server does not allow this method on the requested resource",
            ),
            (
                ApiError::request_entity_too_large(10),
                413,
                "RequestEntityTooLarge",
                "Request entity too large: limit is 10",
            ),
            (ApiError::internal("boom"), 500, "InternalError", "Internal error occurred: boom"),
        ] {
            assert_eq!((error.code(), error.reason(), &*error.to_string()), (code, reason, message));
        }
    }

    #[test]
    fn status_objects_round_trip() {
        let error = ApiError::invalid("apps", "Deployment", "x", vec![FieldError::required("spec", "")]);
        let value = error.to_value();
        assert_eq!(
            value["details"],
            json!({"name": "x", "group": "apps", "kind": "Deployment", "causes": [
                {"reason": "FieldValueRequired", "message": "Required value", "field": "spec"}]})
        );
        assert_eq!(ApiError::from_value(&value), error);
        assert_eq!(ApiError::no_such_resource().to_value()["details"], json!({}));
    }
}
