//! Cuts `metadata.managedFields` out of an object's text before it is decoded: no component reads it, it is half of the
//! bytes, and every entry would become a tree.

use std::borrow::Cow;

use serde_json::value::RawValue;

const KEY: &str = "\"managedFields\":";

/// The object without its managed fields, if it is written without spaces, as API servers write; else as it is. No
/// string can look like them: within one, the key's quotes are escaped, and no label or annotation has a list as value.
pub(crate) fn cut(object: &str) -> Cow<'_, str> {
    without(object).map_or(Cow::Borrowed(object), Cow::Owned)
}

fn without(object: &str) -> Option<String> {
    let is_key = |at: usize| object[..at].ends_with([',', '{']) && object[at + KEY.len()..].starts_with('[');
    let (start, _) = object.match_indices(KEY).find(|(at, _)| is_key(*at))?;
    let list = start + KEY.len();
    let mut values = serde_json::Deserializer::from_str(&object[list..]).into_iter::<&RawValue>();
    values.next()?.ok()?;
    let (before, after) = (&object[..start], &object[list + values.byte_offset()..]);
    Some(match after.strip_prefix(',') {
        Some(after) => [before, after].concat(),
        None => [before.strip_suffix(',').unwrap_or(before), after].concat(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_managed_fields_are_cut() {
        for (object, expected) in [
            (
                r#"{"metadata":{"managedFields":[{"fieldsV1":{"f:a":{}}}],"name":"a"},"b":1}"#,
                r#"{"metadata":{"name":"a"},"b":1}"#,
            ),
            (r#"{"metadata":{"name":"a","managedFields":[[]]},"b":1}"#, r#"{"metadata":{"name":"a"},"b":1}"#),
            (r#"{"metadata":{"managedFields":[]}}"#, r#"{"metadata":{}}"#),
            (r#"{"metadata":{"labels":{"managedFields":"[]"}}}"#, r#"{"metadata":{"labels":{"managedFields":"[]"}}}"#),
            (
                r#"{"data":{"a":"{\"managedFields\":[]}","b":"1"}}"#,
                r#"{"data":{"a":"{\"managedFields\":[]}","b":"1"}}"#,
            ),
            (r#"{"data":{",\"managedFields":"[]"}}"#, r#"{"data":{",\"managedFields":"[]"}}"#),
            (r#"{"metadata":{"managedFields":[{"cut":"off"#, r#"{"metadata":{"managedFields":[{"cut":"off"#),
        ] {
            assert_eq!(cut(object), expected);
        }
    }
}
