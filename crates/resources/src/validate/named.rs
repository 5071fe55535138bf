//! Names with a domain in front, and lists whose items must differ or may hold a wildcard.

use std::sync::LazyLock;

use machinery::field::Path;
use machinery::names;
use regex::Regex;

use super::{Errors, indexed};

/// `example.com/anything`: a subdomain and a path that is fit for a URL.
pub fn domain_prefixed_path(value: &str, path: &Path, errors: &mut Errors) {
    static SEGMENTS: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"^[A-Za-z0-9/\-._~%!$&'()*+,;=:]+$").expect("a constant expression"));
    match value.split_once('/') {
        _ if value.is_empty() => errors.required(path, ""),
        Some((host, rest)) if !host.is_empty() && !rest.is_empty() => {
            errors.all_invalid(path, host, names::is_dns1123_subdomain(host));
            if !SEGMENTS.is_match(rest) {
                errors.invalid(path, rest, "Invalid path");
            }
        }
        _ => errors.invalid(path, value, "must be a domain-prefixed path (such as \"acme.io/foo\")"),
    }
}

/// A required name that becomes one segment of a URL.
pub fn segment(name: &str, path: &Path, errors: &mut Errors) {
    errors.needed(path, name);
    errors.all_invalid(path, name, names::is_valid_path_segment(name));
}

/// A name that may be left out.
pub fn optional_subdomain(name: &str, path: &Path, errors: &mut Errors) {
    if !name.is_empty() {
        errors.all_invalid(path, name, names::is_dns1123_subdomain(name));
    }
}

/// Reports every item that was there before.
pub fn distinct<T: PartialEq + serde::Serialize>(list: Option<&Vec<T>>, path: &Path, errors: &mut Errors) {
    let mut seen = Vec::new();
    for (at, item) in indexed(list, path) {
        if seen.contains(&item) {
            errors.duplicate(&at, item);
        }
        seen.push(item);
    }
}

/// A list in which `*` stands for everything, and therefore alone; `what` names the others.
pub fn wildcard_alone(list: &[String], what: &str, path: &Path, errors: &mut Errors) {
    if list.len() > 1 && list.iter().any(|item| item == "*") {
        errors.invalid(path, list, format!("if '*' is present, must not specify other {what}"));
    }
}
