//! Shapes of pods that several plugins read and write.

use std::collections::BTreeMap;

use machinery::quantity::Quantity;
use serde::Deserialize;
use serde_json::{Map, Value, json};

pub(in crate::admission) type Amounts = BTreeMap<String, Quantity>;

pub(in crate::admission) const MIRROR: &str = "kubernetes.io/config.mirror";

pub(in crate::admission) fn is_mirror(pod: &Value) -> bool {
    pod["metadata"]["annotations"].get(MIRROR).is_some()
}

pub(in crate::admission) fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
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

pub(in crate::admission) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The larger of all containers with sidecars together, and any init container with those before it.
pub(in crate::admission) fn pod_total(pod: &Value, list: &str) -> Amounts {
    let amounts = |container: &Value| Amounts::deserialize(&container["resources"][list]).unwrap_or_default();
    let add = |sum: &mut Amounts, more: Amounts| {
        more.into_iter().for_each(|(key, amount)| *sum.entry(key).or_insert(Quantity::new(0)) += amount);
    };
    let raise = |most: &mut Amounts, now: Amounts| {
        for (key, amount) in now {
            let entry = most.entry(key).or_insert(amount);
            *entry = amount.max(*entry);
        }
    };
    let (mut sidecars, mut peak) = (Amounts::new(), Amounts::new());
    for container in items(&pod["spec"]["initContainers"]) {
        let mut now = sidecars.clone();
        add(&mut now, amounts(container));
        if text(container, "restartPolicy") == "Always" {
            sidecars = now.clone();
        }
        raise(&mut peak, now);
    }
    let mut total = sidecars;
    items(&pod["spec"]["containers"]).for_each(|container| add(&mut total, amounts(container)));
    raise(&mut total, peak);
    total
}
