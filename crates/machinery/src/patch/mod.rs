//! The patches of the API: RFC 6902, RFC 7386 and strategic merge; server-side apply joins them here.
//!
//! All work on values in place and know nothing of versions or storage. On an error the value may be half
//! patched: callers patch a copy.

use serde_json::Value;

use crate::{ApiError, Result};

mod strategic;

pub use strategic::strategic;

/// Upstream's bound on the operations of one JSON patch.
const MAX_OPERATIONS: usize = 10_000;

/// RFC 6902. A patch that cannot be read is a bad request, one that does not fit the object is `Invalid`.
pub fn json_patch(target: &mut Value, patch: &Value) -> Result<()> {
    let operations = patch.as_array().map_or(&[][..], Vec::as_slice);
    if operations.len() > MAX_OPERATIONS {
        let message = format!(
            "Request entity too large: The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        );
        return Err(ApiError::new(413, "RequestEntityTooLarge", message));
    }
    // Go looks at an operation only when it is its turn, so a malformed one fails as one that does not fit.
    let operations: json_patch::Patch = serde_json::from_value(patch.clone()).map_err(|_| unprocessable())?;
    json_patch::patch_unsafe(target, &operations).map_err(|_| unprocessable())
}

/// RFC 7386.
pub fn merge_patch(target: &mut Value, patch: &Value) -> Result<()> {
    if !patch.is_object() {
        return Err(ApiError::bad_request("Invalid JSON Patch"));
    }
    json_patch::merge(target, patch);
    Ok(())
}

/// A well-formed patch that cannot be applied; upstream does not say why.
fn unprocessable() -> ApiError {
    ApiError::new(422, "Invalid", "the server rejected our request due to an error in our request").with_details()
}

/// A value as Go prints it in errors: `map[a:1 b:[x y]]`.
pub fn go_text(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(go_text).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let sorted: std::collections::BTreeMap<_, _> = map.iter().collect();
            let pairs = sorted.iter().map(|(key, value)| format!("{key}:{}", go_text(value)));
            format!("map[{}]", pairs.collect::<Vec<_>>().join(" "))
        }
        plain => plain.to_string(),
    }
}

/// What the converter from maps, through which strategic patches go, says to a value of the wrong type; `error` is
/// the decoder's. A type with a decoder of its own (a quantity, a time) answers alike in both.
pub fn conversion_error(error: &str) -> String {
    let parsed = || {
        let (found, rest) = error.strip_prefix("json: cannot unmarshal ")?.split_once(" into Go ")?;
        Some((found.split(' ').collect::<Vec<_>>(), rest.rsplit_once(" of type ")?.1))
    };
    let Some((found, wanted)) = parsed() else { return error.to_owned() };
    let kind = match found[..] {
        ["object"] => "map",
        ["array"] => "slice",
        ["number", number] if number.contains(['.', 'e', 'E']) => "float64",
        ["number", ..] => "int64",
        [kind, ..] => kind,
        [] => "invalid",
    };
    match wanted {
        list if list.starts_with("[]") => format!("cannot restore slice from {kind}"),
        map if map.starts_with("map[") => format!("cannot restore map from {kind}"),
        "resource.Quantity" => error.to_owned(),
        name if name.contains('.') => format!("cannot restore struct from: {kind}"),
        simple if kind == "int64" && simple == "string" => format!("cannot convert {kind} to {simple}"),
        simple if kind == "float64" && simple.starts_with("int") => format!("cannot convert {kind} to {simple}"),
        simple => format!("unrecognized type: {simple}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_patches_apply_or_say_why_not() {
        let mut value = json!({"a": [1, 2], "b": {"c": "d"}});
        let patch = json!([
            {"op": "test", "path": "/b/c", "value": "d"},
            {"op": "add", "path": "/a/-", "value": 3},
            {"op": "remove", "path": "/a/0"},
            {"op": "replace", "path": "/b/c", "value": "e"},
            {"op": "copy", "from": "/b/c", "path": "/f"},
            {"op": "move", "from": "/f", "path": "/x~1y"},
        ]);
        json_patch(&mut value, &patch).unwrap();
        assert_eq!(value, json!({"a": [2, 3], "b": {"c": "e"}, "x/y": "e"}));
        for (patch, code) in [
            (json!([{"op": "test", "path": "/b/c", "value": "no"}]), 422),
            (json!([{"op": "replace", "path": "/none", "value": 1}]), 422),
            (json!([{"op": "remove", "path": "/none"}]), 422),
            (json!([{"op": "add", "path": "/none/deep", "value": 1}]), 422),
            (json!([{"op": "fly", "path": "/a"}]), 422),
        ] {
            assert_eq!(json_patch(&mut value.clone(), &patch).unwrap_err().code(), code, "{patch}");
        }
        let many: Vec<_> = (0..=MAX_OPERATIONS).map(|_| json!({"op": "test", "path": "/x~1y", "value": "e"})).collect();
        assert_eq!(json_patch(&mut value, &many.into()).unwrap_err().code(), 413);
    }

    #[test]
    fn values_and_errors_read_as_go_s() {
        assert_eq!(go_text(&json!({"b": [1, "x", null], "a": {"c": true}})), "map[a:map[c:true] b:[1 x <nil>]]");
        let at = "into Go struct field S.a of type";
        for (error, expected) in [
            (format!("json: cannot unmarshal string {at} int32"), "unrecognized type: int32"),
            (format!("json: cannot unmarshal number {at} string"), "cannot convert int64 to string"),
            (format!("json: cannot unmarshal number 1.5 {at} int32"), "cannot convert float64 to int32"),
            (format!("json: cannot unmarshal string {at} []v1.Container"), "cannot restore slice from string"),
            (format!("json: cannot unmarshal array {at} map[string]string"), "cannot restore map from slice"),
            (format!("json: cannot unmarshal bool {at} v1.PodSpec"), "cannot restore struct from: bool"),
            ("illegal base64 data at input byte 0".into(), "illegal base64 data at input byte 0"),
        ] {
            assert_eq!(conversion_error(&error), expected, "{error}");
        }
    }

    #[test]
    fn merge_patches_follow_the_rfc() {
        for (target, patch, expected) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ] {
            let mut value = target;
            merge_patch(&mut value, &patch).unwrap();
            assert_eq!(value, expected, "{patch}");
        }
        assert_eq!(merge_patch(&mut json!({}), &json!([])).unwrap_err().code(), 400);
    }
}
