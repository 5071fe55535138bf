//! What validation of every kind shares: the error collector and the checks on common shapes.
//! Messages and field paths are upstream's, since users and tests match on them.

pub mod meta;
pub mod named;
pub mod quantity;
pub mod selector;
pub mod warn;

use std::fmt::Display;
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use machinery::field::{ErrorKind, ErrorList, FieldError, Path};
use machinery::names;
use serde::Serialize;
use serde_json::Value;

pub const IMMUTABLE: &str = "field is immutable";
pub const NEGATIVE: &str = "must be greater than or equal to 0";

/// Collects field errors in the order they are found.
#[derive(Default)]
pub struct Errors(ErrorList);

impl Errors {
    pub fn into_list(self) -> ErrorList {
        self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn push(&mut self, error: FieldError) {
        self.0.push(error);
    }

    pub fn required(&mut self, path: &Path, detail: impl Display) {
        self.0.push(FieldError::required(path, detail));
    }

    pub fn invalid(&mut self, path: &Path, value: impl Serialize, detail: impl Display) {
        self.0.push(FieldError::invalid(path, json(value), detail));
    }

    /// Invalid, without showing the value.
    pub fn invalid_whole(&mut self, path: &Path, detail: impl Display) {
        self.0.push(FieldError::new(ErrorKind::InvalidWhole, path, "", detail));
    }

    /// [`invalid`](Errors::invalid), of a value that prints itself.
    pub fn invalid_amount(&mut self, path: &Path, value: impl Display, detail: impl Display) {
        self.0.push(FieldError::invalid(path, value.to_string(), detail).plain());
    }

    pub fn forbidden(&mut self, path: &Path, detail: impl Display) {
        self.0.push(FieldError::forbidden(path, detail));
    }

    pub fn duplicate(&mut self, path: &Path, value: impl Serialize) {
        self.0.push(FieldError::duplicate(path, json(value)));
    }

    pub fn not_supported(&mut self, path: &Path, value: impl Serialize, valid: &[&str]) {
        self.0.push(FieldError::not_supported(path, json(value), valid));
    }

    pub fn not_found(&mut self, path: &Path, value: impl Serialize) {
        self.0.push(FieldError::not_found(path, json(value)));
    }

    pub fn too_long(&mut self, path: &Path, max: usize) {
        self.0.push(FieldError::too_long(path, max));
    }

    pub fn too_many(&mut self, path: &Path, actual: usize, max: usize) {
        self.0.push(FieldError::too_many(path, actual, max));
    }

    /// One `Invalid value` per message.
    pub fn all_invalid(&mut self, path: &Path, value: &str, messages: Vec<String>) {
        for message in messages {
            self.invalid(path, value, message);
        }
    }

    /// `Unsupported value` unless the value is one of `valid`; `Required value` when it is empty.
    pub fn one_of(&mut self, path: &Path, value: Option<&str>, valid: &[&str]) {
        match value.unwrap_or_default() {
            "" => self.required(path, ""),
            value if valid.contains(&value) => {}
            value => self.not_supported(path, value, valid),
        }
    }

    /// As [`one_of`](Errors::one_of), but an absent value is fine.
    pub fn optional_one_of(&mut self, path: &Path, value: Option<&str>, valid: &[&str]) {
        if value.is_some_and(|value| !value.is_empty()) {
            self.one_of(path, value, valid);
        }
    }

    /// `Required value` when the text is empty.
    pub fn needed(&mut self, path: &Path, value: &str) {
        if value.is_empty() {
            self.required(path, "");
        }
    }

    pub fn non_negative(&mut self, path: &Path, value: Option<impl Into<i64>>) {
        let value = value.map_or(0, Into::into);
        if value < 0 {
            self.invalid(path, value, NEGATIVE);
        }
    }

    /// `field is immutable` when the values differ.
    pub fn immutable<T: PartialEq + Serialize>(&mut self, path: &Path, new: &T, old: &T) {
        if new != old {
            self.invalid(path, new, IMMUTABLE);
        }
    }

    pub fn port(&mut self, path: &Path, port: i32) {
        if !(1..=65535).contains(&port) {
            self.invalid(path, port, PORT_RANGE);
        }
    }

    /// A port number or the name of one.
    pub fn port_or_name(&mut self, path: &Path, port: &IntOrString) {
        match port {
            IntOrString::Int(port) => self.port(path, *port),
            IntOrString::String(name) => {
                self.all_invalid(path, name, names::is_valid_port_name(name));
            }
        }
    }

    pub fn ip(&mut self, path: &Path, text: &str) {
        if text.parse::<IpAddr>().is_err() {
            self.invalid(path, text, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
        }
    }
}

pub const PORT_RANGE: &str = "must be between 1 and 65535, inclusive";

fn json(value: impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or(Value::Null)
}

/// Iterates an optional list with each element's path.
pub fn indexed<'a, T>(list: Option<&'a Vec<T>>, path: &Path) -> impl Iterator<Item = (Path, &'a T)> + use<'a, T> {
    let path = path.clone();
    list.into_iter().flatten().enumerate().map(move |(index, item)| (path.index(index), item))
}

/// The text of an optional field.
pub fn text(value: &Option<String>) -> &str {
    value.as_deref().unwrap_or_default()
}
