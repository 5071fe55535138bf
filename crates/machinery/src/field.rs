//! Field paths and validation errors, worded as the Go API server words them.
//!
//! Clients match on these texts and on the cause reasons, so the wording is part of the wire format.
//! What is valid is decided by the callers.

use std::{borrow::Cow, fmt, sync::Arc};

use serde_json::Value;

/// A path such as `spec.containers[0].env[a]`; extending it costs one small allocation, rendering is lazy.
#[derive(Clone)]
pub struct Path(Arc<Node>);

struct Node {
    parent: Option<Path>,
    step: Step,
}

enum Step {
    Name(Cow<'static, str>),
    Index(usize),
    Key(String),
}

impl Path {
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self(Arc::new(Node { parent: None, step: Step::Name(name.into()) }))
    }

    pub fn child(&self, name: impl Into<Cow<'static, str>>) -> Self {
        self.step(Step::Name(name.into()))
    }

    pub fn index(&self, index: usize) -> Self {
        self.step(Step::Index(index))
    }

    pub fn key(&self, key: impl Into<String>) -> Self {
        self.step(Step::Key(key.into()))
    }

    fn step(&self, step: Step) -> Self {
        Self(Arc::new(Node { parent: Some(self.clone()), step }))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = &self.0.parent {
            parent.fmt(f)?;
        }
        match &self.0.step {
            Step::Name(name) if self.0.parent.is_some() => write!(f, ".{name}"),
            Step::Name(name) => f.write_str(name),
            Step::Index(index) => write!(f, "[{index}]"),
            Step::Key(key) => write!(f, "[{key}]"),
        }
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Path({self})")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    Internal,
    TypeInvalid,
    /// Invalid for a reason that no one value shows.
    InvalidWhole,
}

impl ErrorKind {
    /// The reason a `Status` cause carries.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid | Self::InvalidWhole => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::Internal => "InternalError",
            Self::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid | Self::InvalidWhole | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::Internal => "Internal error",
        }
    }

    fn shows_value(self) -> bool {
        !matches!(self, Self::Required | Self::Forbidden | Self::TooLong | Self::Internal | Self::InvalidWhole)
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    pub kind: ErrorKind,
    pub path: String,
    pub value: Value,
    pub detail: String,
    /// Shown without quotes, as Go shows what prints itself (a quantity).
    pub plain: bool,
}

pub type ErrorList = Vec<FieldError>;

impl FieldError {
    pub fn new(kind: ErrorKind, path: impl fmt::Display, value: impl Into<Value>, detail: impl fmt::Display) -> Self {
        Self { kind, path: path.to_string(), value: value.into(), detail: detail.to_string(), plain: false }
    }

    pub fn required(path: impl fmt::Display, detail: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Required, path, "", detail)
    }

    pub fn invalid(path: impl fmt::Display, value: impl Into<Value>, detail: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Invalid, path, value, detail)
    }

    pub fn type_invalid(path: impl fmt::Display, value: impl Into<Value>, detail: impl fmt::Display) -> Self {
        Self::new(ErrorKind::TypeInvalid, path, value, detail)
    }

    pub fn not_supported<S: AsRef<str>>(path: impl fmt::Display, value: impl Into<Value>, supported: &[S]) -> Self {
        let supported: Vec<String> = supported.iter().map(|value| quote(value.as_ref())).collect();
        let detail =
            if supported.is_empty() { String::new() } else { format!("supported values: {}", supported.join(", ")) };
        Self::new(ErrorKind::NotSupported, path, value, detail)
    }

    pub fn forbidden(path: impl fmt::Display, detail: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Forbidden, path, "", detail)
    }

    pub fn duplicate(path: impl fmt::Display, value: impl Into<Value>) -> Self {
        Self::new(ErrorKind::Duplicate, path, value, "")
    }

    pub fn plain(self) -> Self {
        Self { plain: true, ..self }
    }

    pub fn not_found(path: impl fmt::Display, value: impl Into<Value>) -> Self {
        Self::new(ErrorKind::NotFound, path, value, "")
    }

    /// `max` in bytes.
    pub fn too_long(path: impl fmt::Display, max: usize) -> Self {
        Self::new(ErrorKind::TooLong, path, "", format!("may not be more than {max} bytes"))
    }

    pub fn too_many(path: impl fmt::Display, actual: usize, max: usize) -> Self {
        let items = if max == 1 { "item" } else { "items" };
        Self::new(ErrorKind::TooMany, path, actual, format!("must have at most {max} {items}"))
    }

    pub fn internal(path: impl fmt::Display, error: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Internal, path, "", error)
    }

    /// The message without the field path, as it stands in a cause.
    pub fn body(&self) -> String {
        let mut text = self.kind.text().to_owned();
        if self.kind.shows_value() {
            text.push_str(": ");
            match &self.value {
                Value::String(value) if self.plain => text.push_str(value),
                Value::String(value) => text.push_str(&quote(value)),
                // Go makes a text of it first.
                Value::Null => text.push_str("\"null\""),
                value => text.push_str(&value.to_string()),
            }
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

impl std::error::Error for FieldError {}

/// One message as it is; several, without repetitions, as `[a, b]`.
pub fn aggregate(messages: impl IntoIterator<Item = String>) -> String {
    let mut unique: Vec<String> = Vec::new();
    for message in messages {
        if !unique.contains(&message) {
            unique.push(message);
        }
    }
    if let [message] = &unique[..] { message.clone() } else { format!("[{}]", unique.join(", ")) }
}

/// Go's `%q`: double quotes, and escapes for quotes, backslashes and unprintable characters.
pub fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if (c as u32) < 0x20 || c == '\x7f' => quoted.push_str(&format!("\\x{:02x}", c as u32)),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn errors_read_as_upstream() {
        let path = Path::new("spec").child("containers").index(0).child("env").key("a");
        for (error, expected) in [
            (FieldError::required(&path, ""), "spec.containers[0].env[a]: Required value"),
            (FieldError::invalid("x", "a\"b", "bad"), r#"x: Invalid value: "a\"b": bad"#),
            (FieldError::invalid("x", -1, "must be greater than 0"), "x: Invalid value: -1: must be greater than 0"),
            (FieldError::invalid("x", json!({"a": 1}), "no"), r#"x: Invalid value: {"a":1}: no"#),
            (FieldError::invalid("x", Value::Null, ""), r#"x: Invalid value: "null""#),
            (
                FieldError::not_supported("x", "c", &["a", "b"]),
                r#"x: Unsupported value: "c": supported values: "a", "b""#,
            ),
            (FieldError::forbidden("x", "field is immutable"), "x: Forbidden: field is immutable"),
            (FieldError::duplicate("x", "a"), r#"x: Duplicate value: "a""#),
            (FieldError::too_long("x", 63), "x: Too long: may not be more than 63 bytes"),
            (FieldError::too_many("x", 5, 1), "x: Too many: 5: must have at most 1 item"),
            (FieldError::not_found("x", "v"), r#"x: Not found: "v""#),
            (FieldError::internal("x", "boom"), "x: Internal error: boom"),
        ] {
            assert_eq!(error.to_string(), expected);
        }
    }
}
