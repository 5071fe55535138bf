//! Shapes of pods that several plugins read and write.

pub(in crate::admission) use resources::quota::{Amounts, items, pod_total, text};
use serde_json::{Map, Value, json};

pub(in crate::admission) const MIRROR: &str = "kubernetes.io/config.mirror";

pub(in crate::admission) fn is_mirror(pod: &Value) -> bool {
    pod["metadata"]["annotations"].get(MIRROR).is_some()
}

/// The list under a key, made when absent.
pub(in crate::admission) fn list_mut<'a>(object: &'a mut Value, key: &str) -> &'a mut Vec<Value> {
    let list = &mut object[key];
    if !list.is_array() {
        *list = json!([]);
    }
    list.as_array_mut().expect("made an array above")
}

/// The object under a key, made when absent.
pub(in crate::admission) fn map_mut<'a>(object: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    let map = &mut object[key];
    if !map.is_object() {
        *map = json!({});
    }
    map.as_object_mut().expect("made an object above")
}

/// Calls `visit` with each container of the named lists, by place in the spec.
pub(in crate::admission) fn each_container_mut(
    pod: &mut Value,
    lists: &[&'static str],
    mut visit: impl FnMut(&'static str, &mut Value),
) {
    for list in lists {
        if let Some(containers) = pod["spec"].get_mut(*list).and_then(Value::as_array_mut) {
            containers.iter_mut().for_each(|container| visit(list, container));
        }
    }
}
