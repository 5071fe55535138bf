//! Strategic merge patch: a merge that knows which lists are keyed, with directives for what a merge cannot say.
//!
//! `$patch: replace|delete|merge` on maps and list elements, `$retainKeys`, `$setElementOrder/FIELD` and
//! `$deleteFromPrimitiveList/FIELD`. Elements keep the order of the patch (or of `$setElementOrder`), with
//! elements only the server has between them where they stood.

use serde_json::{Map, Value};

use super::{go_text, unprocessable};
use crate::{
    ApiError, Result,
    schema::{FieldKind, Merge, Type, Types},
};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const ORDER: &str = "$setElementOrder/";
const DELETE: &str = "$deleteFromPrimitiveList/";

/// Patches `target` of type `type_`.
pub fn strategic(types: &Types, type_: &Type, target: &mut Value, patch: &Value) -> Result<()> {
    let (Value::Object(target), Value::Object(patch)) = (target, patch) else {
        return Err(ApiError::bad_request("invalid JSON document"));
    };
    Shape { types, of: Of::Type(type_) }.merge_map(target, patch.clone())
}

/// What is known of a value's type.
#[derive(Clone, Copy)]
struct Shape<'t> {
    types: &'t Types,
    of: Of<'t>,
}

#[derive(Clone, Copy)]
enum Of<'t> {
    Type(&'t Type),
    Elements(&'t FieldKind),
    Unknown,
}

static PLAIN: Merge = Merge { merge: false, retain_keys: false, replace: false, key: None };

impl<'t> Shape<'t> {
    fn kind(self, kind: &'t FieldKind) -> Self {
        let of = match kind {
            FieldKind::Struct(id) | FieldKind::Union(id, _) => Of::Type(self.types.type_(*id)),
            FieldKind::List(inner) | FieldKind::Wrapped(inner) | FieldKind::Map(inner) => Of::Elements(inner),
            _ => Of::Unknown,
        };
        Self { of, ..self }
    }

    fn field(self, name: &str) -> (Self, &'t Merge) {
        match self.of {
            Of::Type(type_) => match type_.field(name) {
                Some(field) => (self.kind(&field.kind), &field.merge),
                None => (Self { of: Of::Unknown, ..self }, &PLAIN),
            },
            Of::Elements(inner) => (self.kind(inner), &PLAIN),
            Of::Unknown => (self, &PLAIN),
        }
    }

    fn element(self) -> Self {
        match self.of {
            Of::Elements(inner) => self.kind(inner),
            _ => self,
        }
    }

    fn merge_map(self, target: &mut Map<String, Value>, mut patch: Map<String, Value>) -> Result<()> {
        match patch.get(PATCH).map(|directive| directive.as_str().unwrap_or_default()) {
            None => {}
            Some("replace") => {
                patch.remove(PATCH);
                *target = patch;
                return Ok(());
            }
            Some("delete") => {
                target.clear();
                return Ok(());
            }
            Some("merge") => drop(patch.remove(PATCH)),
            Some(_) => return Err(unknown_directive(&patch)),
        }
        retain_keys(target, &mut patch)?;
        self.merge_ordered_lists(target, &mut patch)?;
        for (name, value) in patch {
            match name.strip_prefix(DELETE) {
                Some(name) => delete_primitives(target, name, value)?,
                None => self.merge_field(target, name, value)?,
            }
        }
        Ok(())
    }

    fn merge_field(self, target: &mut Map<String, Value>, name: String, patch: Value) -> Result<()> {
        if patch.is_null() {
            target.remove(&name);
            return Ok(());
        }
        let (shape, merge) = self.field(&name);
        match (target.get_mut(&name), patch) {
            (Some(Value::Object(current)), Value::Object(patch)) if !merge.replace => {
                shape.merge_map(current, patch)?
            }
            (Some(Value::Array(current)), Value::Array(patch)) if merge.merge => {
                shape.merge_list(current, patch, merge)?
            }
            (_, patch) => {
                if let Some(value) = without_directives(patch) {
                    target.insert(name, value);
                }
            }
        }
        Ok(())
    }

    /// Merges the lists that `$setElementOrder` orders, and takes them out of the patch.
    fn merge_ordered_lists(self, target: &mut Map<String, Value>, patch: &mut Map<String, Value>) -> Result<()> {
        let directives: Vec<String> = patch.keys().filter(|key| key.starts_with(ORDER)).cloned().collect();
        for directive in directives {
            let (Some(Value::Array(order)), name) = (patch.remove(&directive), &directive[ORDER.len()..]) else {
                return Err(ApiError::bad_request("invalid patch format of setElementOrder list"));
            };
            let (shape, merge) = self.field(name);
            let key = merge.key.as_deref();
            let server = match target.get(name) {
                Some(Value::Array(server)) => Some(server.clone()),
                None | Some(Value::Null) => None,
                Some(_) => return Err(ApiError::bad_request("invalid patch format of setElementOrder list")),
            };
            let changes = match patch.remove(name) {
                Some(Value::Array(changes)) => Some(changes),
                None | Some(Value::Null) => None,
                Some(_) => return Err(ApiError::bad_request("invalid patch format of setElementOrder list")),
            };
            check_order(changes.as_deref().unwrap_or_default(), &order, key)?;
            let mut merged = server.clone().unwrap_or_default();
            match changes {
                Some(changes) if server.is_some() && merge.merge => shape.merge_list(&mut merged, changes, merge)?,
                Some(changes) => merged = without_directives_in(changes),
                None if server.is_none() => continue,
                None => {}
            }
            let ordered = in_order(merged, &order, &server.unwrap_or_default(), key);
            target.insert(name.to_owned(), Value::Array(ordered));
        }
        Ok(())
    }

    fn merge_list(self, target: &mut Vec<Value>, patch: Vec<Value>, merge: &Merge) -> Result<()> {
        let server = target.clone();
        let maps = target.first().or(patch.first()).is_some_and(Value::is_object);
        if !maps {
            for value in &patch {
                if !target.contains(value) {
                    target.push(value.clone());
                }
            }
            *target = in_order(std::mem::take(target), &patch, &server, None);
            return Ok(());
        }
        let Some(key) = merge.key.as_deref() else {
            return Err(ApiError::bad_request("cannot merge lists without merge key"));
        };
        let (patch, replaces) = apply_special_elements(target, patch, key)?;
        if replaces {
            *target = without_directives_in(patch);
            return Ok(());
        }
        for element in &patch {
            self.merge_element(target, element, key)?;
        }
        *target = in_order(std::mem::take(target), &patch, &server, Some(key));
        Ok(())
    }

    fn merge_element(self, target: &mut Vec<Value>, element: &Value, key: &str) -> Result<()> {
        let Some(identity) = element.get(key) else { return Err(no_merge_key(element, key)) };
        match target.iter_mut().find(|current| current.get(key).is_some_and(|value| same(value, identity))) {
            Some(Value::Object(current)) => {
                self.element().merge_map(current, element.as_object().cloned().unwrap_or_default())
            }
            _ => {
                target.extend(without_directives(element.clone()));
                Ok(())
            }
        }
    }
}

/// Carries out `$patch: delete` elements; answers with the others and whether they replace the whole list.
fn apply_special_elements(target: &mut Vec<Value>, patch: Vec<Value>, key: &str) -> Result<(Vec<Value>, bool)> {
    let (mut plain, mut replaces) = (Vec::new(), false);
    for element in patch {
        match element.get(PATCH).map(|directive| directive.as_str().unwrap_or_default()) {
            None => plain.push(element),
            Some("delete") => {
                let Some(identity) = element.get(key) else { return Err(no_merge_key(&element, key)) };
                target.retain(|current| !current.get(key).is_some_and(|value| same(value, identity)));
            }
            Some("replace") => replaces = true,
            Some("merge") => return Err(ApiError::bad_request("merging lists cannot yet be specified in the patch")),
            Some(_) => return Err(unknown_directive(element.as_object().unwrap_or(&Map::new()))),
        }
    }
    Ok((plain, replaces))
}

/// `$retainKeys` drops every field it does not list, and the patch may not set others.
fn retain_keys(target: &mut Map<String, Value>, patch: &mut Map<String, Value>) -> Result<()> {
    let invalid = || ApiError::bad_request("invalid patch format of retainKeys");
    let Some(keys) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let Value::Array(keys) = keys else { return Err(invalid()) };
    let listed = |name: &str| keys.iter().any(|key| key == name);
    for (name, value) in patch.iter() {
        if !value.is_null() && !name.starts_with(DELETE) && !name.starts_with(ORDER) && !listed(name) {
            return Err(unprocessable());
        }
    }
    target.retain(|name, _| listed(name));
    Ok(())
}

fn delete_primitives(target: &mut Map<String, Value>, name: &str, values: Value) -> Result<()> {
    let Value::Array(values) = values else {
        return Err(ApiError::bad_request("invalid patch format of primitive list"));
    };
    if let Some(Value::Array(current)) = target.get_mut(name) {
        current.retain(|value| !values.contains(value));
    }
    Ok(())
}

/// The elements a patch changes must stand in the same order in `$setElementOrder`.
fn check_order(changes: &[Value], order: &[Value], key: Option<&str>) -> Result<()> {
    let mut rest = order.iter();
    let kept = changes.iter().filter(|element| element.get(PATCH).is_none());
    for element in kept {
        if !rest.any(|ordered| matches_element(ordered, element, key)) {
            let print = |list: &[Value]| go_text(&Value::from(list.to_vec()));
            return Err(failure(format!(
                "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                print(changes),
                print(order)
            )));
        }
    }
    Ok(())
}

/// Elements named by `order` in that order, the others where `server` had them relative to those.
fn in_order(merged: Vec<Value>, order: &[Value], server: &[Value], key: Option<&str>) -> Vec<Value> {
    let index = |list: &[Value], value: &Value| list.iter().position(|other| matches_element(other, value, key));
    let (mut ordered, mut others): (Vec<_>, Vec<_>) =
        merged.into_iter().partition(|value| index(order, value).is_some());
    ordered.sort_by_key(|value| index(order, value));
    others.sort_by_key(|value| index(server, value).unwrap_or(usize::MAX));
    let mut result = Vec::with_capacity(ordered.len() + others.len());
    let (mut ordered, mut others) = (ordered.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let takes_other = match (others.peek(), ordered.peek()) {
            (Some(other), Some(next)) => {
                matches!((index(server, other), index(server, next)), (Some(other), Some(next)) if other < next)
            }
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (None, None) => return result,
        };
        result.extend(if takes_other { others.next() } else { ordered.next() });
    }
}

fn matches_element(a: &Value, b: &Value, key: Option<&str>) -> bool {
    match key {
        Some(key) => matches!((a.get(key), b.get(key)), (Some(a), Some(b)) if same(a, b)),
        None => same(a, b),
    }
}

fn same(a: &Value, b: &Value) -> bool {
    a == b || matches!((a.as_f64(), b.as_f64()), (Some(a), Some(b)) if a == b)
}

/// What a patch says once there is nothing to merge with: no nulls, no directives.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(mut map) => {
            if map.get(PATCH).is_some_and(|directive| directive == "delete" || map.len() == 1) {
                return None;
            }
            map.retain(|name, value| !value.is_null() && !name.starts_with('$') || name == "$ref" || name == "$schema");
            let plain = map.into_iter().filter_map(|(name, value)| Some((name, without_directives(value)?)));
            Some(Value::Object(plain.collect()))
        }
        Value::Array(items) => Some(Value::Array(without_directives_in(items))),
        plain => Some(plain),
    }
}

fn without_directives_in(items: Vec<Value>) -> Vec<Value> {
    items.into_iter().filter_map(without_directives).collect()
}

fn no_merge_key(element: &Value, key: &str) -> ApiError {
    failure(format!("map: {} does not contain declared merge key: {key}", go_text(element)))
}

/// An error upstream has no status for.
fn failure(message: String) -> ApiError {
    ApiError::new(500, "", message)
}

fn unknown_directive(patch: &Map<String, Value>) -> ApiError {
    let directive = patch.get(PATCH).map(go_text).unwrap_or_default();
    failure(format!("unknown patch type: {directive} in map: {}", go_text(&Value::Object(patch.clone()))))
}

#[cfg(test)]
mod tests;
