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
    let operations: json_patch::Patch =
        serde_json::from_value(patch.clone()).map_err(|error| ApiError::bad_request(error.to_string()))?;
    if operations.len() > MAX_OPERATIONS {
        let message = format!(
            "Request entity too large: The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        );
        return Err(ApiError::new(413, "RequestEntityTooLarge", message));
    }
    json_patch::patch_unsafe(target, &operations).map_err(|error| unprocessable(error.to_string()))
}

/// RFC 7386.
pub fn merge_patch(target: &mut Value, patch: &Value) -> Result<()> {
    if !patch.is_object() {
        return Err(ApiError::bad_request("Invalid JSON Patch"));
    }
    json_patch::merge(target, patch);
    Ok(())
}

/// A well-formed patch that cannot be applied; the cause says why, which upstream keeps to itself.
fn unprocessable(why: String) -> ApiError {
    ApiError::new(422, "Invalid", "the server rejected our request due to an error in our request")
        .with_cause("", why, "")
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
            (json!([{"op": "fly", "path": "/a"}]), 400),
            (json!({"a": 1}), 400),
        ] {
            assert_eq!(json_patch(&mut value.clone(), &patch).unwrap_err().code(), code, "{patch}");
        }
        let many: Vec<_> = (0..=MAX_OPERATIONS).map(|_| json!({"op": "test", "path": "/x~1y", "value": "e"})).collect();
        assert_eq!(json_patch(&mut value, &many.into()).unwrap_err().code(), 413);
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
