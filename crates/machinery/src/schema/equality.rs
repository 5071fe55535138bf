//! Equality of objects as the API server means it: absent, `null` and empty maps and lists are the same.

use serde_json::{Map, Value};

/// Like Go's `Semantic.DeepEqual` on objects whose empty fields are omitted.
pub fn semantic_equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => covers(a, b) && only_empty_beyond(b, a),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| semantic_equal(a, b)),
        (Value::Number(x), Value::Number(y)) => x == y || x.as_f64() == y.as_f64(),
        _ => a == b || (is_empty(a) && is_empty(b)),
    }
}

/// Every field of `a` equals that of `b`.
fn covers(a: &Map<String, Value>, b: &Map<String, Value>) -> bool {
    a.iter().all(|(key, value)| match b.get(key) {
        Some(other) => semantic_equal(value, other),
        None => is_empty(value),
    })
}

fn only_empty_beyond(b: &Map<String, Value>, a: &Map<String, Value>) -> bool {
    b.iter().all(|(key, value)| a.contains_key(key) || is_empty(value))
}

/// Whether a value says nothing: null, or a map or list without anything in it.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn empty_equals_absent() {
        for (a, b, equal) in [
            (json!({"a": null, "b": {}}), json!({}), true),
            (json!({"a": {"b": []}}), json!({}), true),
            (json!({"a": [1]}), json!({"a": [1.0]}), true),
            (json!({"a": 0}), json!({}), false),
            (json!({"a": [{}]}), json!({"a": []}), false),
            (json!({"a": "x"}), json!({"a": "y"}), false),
            (json!({}), json!({"a": false}), false),
            (json!([1, 2]), json!([2, 1]), false),
        ] {
            assert_eq!(semantic_equal(&a, &b), equal, "{a} {b}");
            assert_eq!(semantic_equal(&b, &a), equal, "{b} {a}");
        }
    }
}
