//! The query of `pods/log`, `exec`, `attach` and `portforward`: checked, and said in the kubelet's words.

use machinery::field::FieldError;
use machinery::status::{ApiError, Result};

use crate::request::Query;

/// A log request's query for the kubelet; 422 with upstream's words if it makes no sense.
pub fn log(query: &Query, pod: &str) -> Result<String> {
    let mut errors = Vec::new();
    let mut number = |key: &str, least: i64, why: &str| -> Result<Option<i64>> {
        let value = query.int(key)?;
        if let Some(value) = value.filter(|value| *value < least) {
            errors.push(FieldError::invalid(key, value, why));
        }
        Ok(value)
    };
    let positive = "must be greater than 0";
    let tail = number("tailLines", 0, "must be greater than or equal to 0")?;
    let limit = number("limitBytes", 1, positive)?;
    let since = number("sinceSeconds", 1, positive)?;
    let time = query.find("sinceTime").filter(|time| !time.is_empty());
    if since.is_some() && time.is_some() {
        errors.push(FieldError::forbidden("", "at most one of `sinceTime` or `sinceSeconds` may be specified"));
    }
    if let Some(time) = time.filter(|time| time.parse::<jiff::Timestamp>().is_err()) {
        return Err(ApiError::bad_request(format!("parsing time {time:?} of sinceTime as RFC 3339 failed")));
    }
    let stream = query.get("stream");
    if !["", "All", "Stdout", "Stderr"].contains(&stream) {
        errors.push(FieldError::not_supported("stream", stream, &["All", "Stderr", "Stdout"]));
    }
    if tail.is_some() && ["Stdout", "Stderr"].contains(&stream) {
        errors.push(FieldError::forbidden("", "`tailLines` and specific `stream` are mutually exclusive for now"));
    }
    if !errors.is_empty() {
        return Err(ApiError::invalid("", "PodLogOptions", pod, errors));
    }
    let flags = ["follow", "previous", "timestamps"].into_iter();
    let flags = flags.filter(|flag| query.bool(flag) == Some(true)).map(|flag| (flag, "true".to_owned()));
    let numbers = [("tailLines", tail), ("limitBytes", limit), ("sinceSeconds", since)].into_iter();
    let numbers = numbers.filter_map(|(key, value)| Some((key, value?.to_string())));
    let texts = [("sinceTime", time.unwrap_or_default()), ("stream", stream)].into_iter();
    let texts = texts.filter(|(_, value)| !value.is_empty()).map(|(key, value)| (key, value.to_owned()));
    Ok(join(flags.chain(numbers).chain(texts)))
}

/// The streams that exec and attach open, and what port-forward may connect to.
pub fn stream(subresource: &str, query: &Query) -> String {
    if subresource == "portforward" {
        let ports: Vec<_> = query.all("ports").collect();
        return if ports.is_empty() { String::new() } else { join([("port", ports.join(","))].into_iter()) };
    }
    let kubelets = [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")].into_iter();
    let streams = kubelets.filter(|(ours, _)| query.bool(ours) == Some(true));
    let streams = streams.map(|(_, theirs)| (theirs, "1".to_owned()));
    join(streams.chain(query.all("command").map(|word| ("command", word.to_owned()))))
}

fn join<'a>(pairs: impl Iterator<Item = (&'a str, String)>) -> String {
    let pairs: Vec<_> = pairs.map(|(key, value)| format!("{key}={}", encode(&value))).collect();
    pairs.join("&")
}

fn encode(text: &str) -> String {
    let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes().fold(String::new(), |mut encoded, byte| {
        match unreserved(byte) {
            true => encoded.push(char::from(byte)),
            false => encoded.push_str(&format!("%{byte:02X}")),
        }
        encoded
    })
}
