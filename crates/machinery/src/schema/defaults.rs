//! Puts in what a Go server would have in its structs: structs held by value, fields that are always written,
//! and the constant defaults of the table. What depends on other fields is for the kinds to say.

use serde_json::{Map, Value};

use super::{FieldKind, Presence, Type, TypeId, Types, decode::zero};

/// A time that is not said but must be there, as in `metav1.Condition`: Go's zero, which clients written in Go read as none.
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// Fills in whatever is absent; what is there stays as it is.
pub fn apply(types: &Types, type_: &Type, value: &mut Value) {
    if let Value::Object(map) = value {
        fields(types, type_, map);
    }
}

fn fields(types: &Types, type_: &Type, map: &mut Map<String, Value>) {
    for field in &type_.fields {
        if let Some(value) = map.get_mut(&*field.json_name) {
            if field.kind.type_id().is_some() {
                descend(types, &field.kind, value);
            }
            continue;
        }
        let mut value = match (&field.default, &field.kind) {
            (Some(default), _) => default.clone(),
            (None, FieldKind::Struct(_)) if field.presence == Presence::Always => Value::Object(Map::new()),
            (None, FieldKind::Time) if field.required => ZERO_TIME.into(),
            (None, kind) if field.presence == Presence::Always && is_plain(kind) => zero(kind),
            _ => continue,
        };
        descend(types, &field.kind, &mut value);
        map.insert((*field.json_name).to_owned(), value);
    }
}

fn is_plain(kind: &FieldKind) -> bool {
    matches!(kind, FieldKind::String | FieldKind::Bool | FieldKind::Int32 | FieldKind::Int64 | FieldKind::Double)
}

fn descend(types: &Types, kind: &FieldKind, value: &mut Value) {
    match (kind, value) {
        (FieldKind::Struct(id) | FieldKind::Union(id, _), Value::Object(map)) => struct_(types, *id, map),
        (FieldKind::Union(id, _), Value::Array(items)) => {
            items.iter_mut().filter_map(Value::as_object_mut).for_each(|map| struct_(types, *id, map));
        }
        (FieldKind::List(inner) | FieldKind::Wrapped(inner), Value::Array(items)) => {
            items.iter_mut().for_each(|item| descend(types, inner, item));
        }
        (FieldKind::Map(inner), Value::Object(map)) => map.values_mut().for_each(|item| descend(types, inner, item)),
        _ => {}
    }
}

fn struct_(types: &Types, id: TypeId, map: &mut Map<String, Value>) {
    fields(types, types.type_(id), map);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::testing::TYPES, *};
    use crate::schema::Types;

    #[test]
    fn absent_fields_are_filled() {
        let type_ = TYPES.get("io.k8s.api.core.v1.Pod").unwrap();
        let mut pod = json!({"spec": {"dnsPolicy": "None", "containers": [{"name": "a", "ports": [{"containerPort": 1}]},
            {"terminationMessagePath": "/x", "livenessProbe": {"httpGet": {"port": 80}}}]}});
        apply(&TYPES, type_, &mut pod);
        let expected = json!({"metadata": {}, "status": {}, "spec": {"dnsPolicy": "None",
            "terminationGracePeriodSeconds": 30, "containers": [
                {"name": "a", "resources": {}, "ports": [{"containerPort": 1, "protocol": "TCP"}],
                    "terminationMessagePath": "/dev/termination-log"},
                {"name": "", "resources": {}, "terminationMessagePath": "/x",
                    "livenessProbe": {"periodSeconds": 10, "httpGet": {"path": "/", "port": 80}}}]}});
        assert_eq!(pod, expected);
        let before = pod.clone();
        apply(&TYPES, type_, &mut pod);
        assert_eq!(pod, before, "a second time changes nothing");
    }

    #[test]
    fn a_required_time_is_never_absent() {
        let types = Types::parse("@a\nCondition\n lastTransitionTime 4 t ! +\n probed 5 t +\n").unwrap();
        let mut condition = json!({});
        apply(&types, types.get("a.Condition").unwrap(), &mut condition);
        assert_eq!(condition, json!({"lastTransitionTime": "0001-01-01T00:00:00Z"}));
    }
}
