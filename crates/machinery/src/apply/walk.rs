//! Walks over values along the schema's list and map types: which fields a value sets, what differs between
//! two, merging one into another, and taking fields out.
//!
//! The rules are those of structured merge: structs, granular maps and keyed lists branch, everything else is a
//! leaf that is owned whole. Who owns what is not known here.

use std::{collections::HashMap, sync::Arc};

use serde_json::Value;

use super::set::{self, FieldSet};
use crate::schema::{Field, FieldKind, ListType, Presence, Type, Types};

/// How a value is divided.
#[derive(Debug, Clone, Copy)]
pub enum Shape<'t> {
    Leaf,
    Struct(&'t Type),
    Map(&'t FieldKind),
    /// Free-form content: objects branch, all else is a leaf.
    Any,
    Set,
    Keyed(&'t [Arc<str>], &'t Type),
}

/// The paths that differ between two values.
#[derive(Debug, Default, PartialEq)]
pub struct Comparison {
    pub added: FieldSet,
    pub modified: FieldSet,
    pub removed: FieldSet,
}

impl Comparison {
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.modified.is_empty() && self.removed.is_empty()
    }

    pub fn map(self, change: impl Fn(FieldSet) -> FieldSet) -> Self {
        Self { added: change(self.added), modified: change(self.modified), removed: change(self.removed) }
    }

    fn attach(&mut self, element: String, below: Comparison) {
        if below.is_empty() {
            return;
        }
        self.added.attach(element.clone(), below.added);
        self.modified.attach(element.clone(), below.modified);
        self.removed.attach(element, below.removed);
    }

    fn member(&mut self, old: bool, new: bool) {
        let set = match (old, new) {
            (false, _) => &mut self.added,
            (true, false) => &mut self.removed,
            (true, true) => &mut self.modified,
        };
        set.member = true;
    }
}

#[derive(Clone, Copy)]
pub struct Walker<'t> {
    pub types: &'t Types,
}

impl<'t> Walker<'t> {
    fn of_field(self, field: &'t Field) -> Shape<'t> {
        match (&field.kind, &field.list) {
            _ if field.atomic => Shape::Leaf,
            (FieldKind::List(_), ListType::Set) => Shape::Set,
            (FieldKind::List(item), ListType::Map(keys)) => match &**item {
                FieldKind::Struct(id) => Shape::Keyed(keys, self.types.type_(*id)),
                _ => Shape::Leaf,
            },
            (kind, _) => self.of_kind(kind),
        }
    }

    fn of_kind(self, kind: &'t FieldKind) -> Shape<'t> {
        match kind {
            FieldKind::Struct(id) => of_type(self.types.type_(*id)),
            FieldKind::Map(value) => Shape::Map(value),
            FieldKind::Raw | FieldKind::FieldsV1 => Shape::Any,
            _ => Shape::Leaf,
        }
    }

    fn field(self, shape: Shape<'t>, name: &str) -> Shape<'t> {
        match shape {
            Shape::Struct(type_) => type_.field(name).map_or(Shape::Leaf, |field| self.of_field(field)),
            Shape::Map(kind) => self.of_kind(kind),
            _ => Shape::Any,
        }
    }

    /// The shape below a path element.
    fn below(self, shape: Shape<'t>, element: &str) -> Shape<'t> {
        match shape {
            Shape::Keyed(_, item) => of_type(item),
            Shape::Set | Shape::Leaf => Shape::Leaf,
            _ => self.field(shape, element.trim_start_matches("f:")),
        }
    }

    /// What a Go server sees in an object that says nothing: structs held by value, and lists always written.
    pub fn empty(self, type_: &Type) -> Value {
        let always = type_.fields.iter().filter(|field| field.presence == Presence::Always);
        let fields = always.map(|field| {
            let value = match &field.kind {
                FieldKind::Struct(id) => self.empty(self.types.type_(*id)),
                _ => Value::Null,
            };
            ((*field.json_name).to_owned(), value)
        });
        Value::Object(fields.collect())
    }

    /// The fields that a value sets. Items of keyed lists without keys, or twice, are noted as problems.
    pub fn fields(self, shape: Shape<'t>, value: &Value, problems: &mut Vec<String>) -> FieldSet {
        let mut set = FieldSet::default();
        match (shape, value) {
            (Shape::Struct(_) | Shape::Map(_) | Shape::Any, Value::Object(map)) => {
                for (name, value) in map {
                    let mut below = self.fields(self.field(shape, name), value, problems);
                    let empty = value.is_null() || value.as_object().is_some_and(|map| map.is_empty());
                    below.member |= empty || !matches!(shape, Shape::Struct(_));
                    set.attach(format!("f:{name}"), below);
                }
            }
            (Shape::Set | Shape::Keyed(..), Value::Array(items)) => {
                for (index, item) in items.iter().enumerate() {
                    let Some(element) = element(shape, item) else {
                        problems.push(missing_keys(shape, index));
                        continue;
                    };
                    if set.children.contains_key(&element) {
                        problems.push(format!("duplicate entries for key {}", set::display(&[&element])));
                    }
                    let mut below = self.fields(self.below(shape, &element), item, problems);
                    below.member = true;
                    set.attach(element, below);
                }
            }
            (Shape::Set | Shape::Keyed(..) | Shape::Struct(_) | Shape::Map(_), Value::Null) => {}
            _ => set.member = true,
        }
        set
    }

    /// What changes from `old` to `new`; equal branches are not entered.
    pub fn compare(self, shape: Shape<'t>, old: Option<&Value>, new: Option<&Value>) -> Comparison {
        let mut all = Comparison::default();
        if old == new {
            return all;
        }
        let nothing = old.is_none_or(is_nothing) && new.is_none_or(is_nothing);
        match shape {
            Shape::Struct(_) | Shape::Map(_) | Shape::Any
                if !nothing && branches(old, Value::is_object) && branches(new, Value::is_object) =>
            {
                self.compare_fields(shape, old, new, &mut all);
            }
            Shape::Set | Shape::Keyed(..)
                if !nothing && branches(old, Value::is_array) && branches(new, Value::is_array) =>
            {
                if !self.compare_items(shape, old, new, &mut all) {
                    all = Comparison::default();
                    all.member(old.is_some(), new.is_some());
                    return all;
                }
            }
            _ => {
                all.member(old.is_some(), new.is_some());
                return all;
            }
        }
        if old.is_none() || new.is_none() {
            all.member(old.is_some(), new.is_some());
        }
        all
    }

    fn compare_fields(self, shape: Shape<'t>, old: Option<&Value>, new: Option<&Value>, all: &mut Comparison) {
        let (old, new) = (old.and_then(Value::as_object), new.and_then(Value::as_object));
        for (name, new) in new.into_iter().flatten() {
            let old = old.and_then(|old| old.get(name));
            if old != Some(new) {
                all.attach(format!("f:{name}"), self.compare(self.field(shape, name), old, Some(new)));
            }
        }
        for (name, old) in old.into_iter().flatten() {
            if new.is_none_or(|new| !new.contains_key(name)) {
                all.attach(format!("f:{name}"), self.compare(self.field(shape, name), Some(old), None));
            }
        }
    }

    /// False when an item has no key to compare by.
    fn compare_items(self, shape: Shape<'t>, old: Option<&Value>, new: Option<&Value>, all: &mut Comparison) -> bool {
        let (Some(old), Some(new)) = (Items::of(shape, old), Items::of(shape, new)) else { return false };
        let gone = old.order.iter().filter(|(element, _)| !new.index.contains_key(element));
        for (element, _) in new.order.iter().chain(gone) {
            let found = (old.index.get(element), new.index.get(element));
            let below = match found {
                (Some(old), Some(new)) if old.len() > 1 || new.len() > 1 => {
                    let mut below = Comparison::default();
                    if old != new {
                        below.member(true, true);
                    }
                    below
                }
                (old, new) => {
                    let [old, new] = [old, new].map(|found| found.and_then(|items| items.first().copied()));
                    self.compare(self.below(shape, element), old, new)
                }
            };
            all.attach(element.clone(), below);
        }
        true
    }

    /// `live` with what `config` says.
    pub fn merge(self, shape: Shape<'t>, live: &Value, config: &Value) -> Value {
        match (shape, live, config) {
            (Shape::Struct(_) | Shape::Map(_) | Shape::Any, Value::Object(live), Value::Object(config)) => {
                let mut merged = live.clone();
                for (name, value) in config {
                    let value = match live.get(name) {
                        Some(live) => self.merge(self.field(shape, name), live, value),
                        None => value.clone(),
                    };
                    merged.insert(name.clone(), value);
                }
                Value::Object(merged)
            }
            (Shape::Set | Shape::Keyed(..), Value::Array(_), Value::Array(_)) => {
                self.merge_items(shape, live, config).unwrap_or_else(|| config.clone())
            }
            _ => config.clone(),
        }
    }

    /// The config's order rules; items that only `live` has stay before what they stood before.
    fn merge_items(self, shape: Shape<'t>, live: &Value, config: &Value) -> Option<Value> {
        let (live, config) = (Items::of(shape, Some(live))?, Items::of(shape, Some(config))?);
        let mut shared = config
            .order
            .iter()
            .map(|(element, _)| element)
            .filter(|element| live.index.contains_key(*element))
            .peekable();
        let mut rest = live.order.iter().peekable();
        let mut merged = Vec::new();
        for (element, item) in &config.order {
            while let Some((at, value)) = rest.next_if(|(at, _)| shared.peek() != Some(&at)) {
                if !config.index.contains_key(at) {
                    merged.push((*value).clone());
                }
            }
            shared.next_if_eq(&element);
            merged.push(match live.index.get(element).map(Vec::as_slice) {
                Some([old]) => self.merge(self.below(shape, element), old, item),
                _ => (*item).clone(),
            });
        }
        merged.extend(rest.filter(|(at, _)| !config.index.contains_key(at)).map(|(_, value)| (*value).clone()));
        Some(Value::Array(merged))
    }

    /// Takes the paths of `set` out; what becomes empty becomes null.
    pub fn remove(self, shape: Shape<'t>, value: &mut Value, set: &FieldSet) {
        let stays = |element: &str, below: Shape<'t>, item: &mut Value| match set.children.get(element) {
            Some(node) if node.member => false,
            Some(node) => {
                self.remove(below, item, node);
                true
            }
            None => true,
        };
        let empty = match (shape, &mut *value) {
            (Shape::Struct(_) | Shape::Map(_) | Shape::Any, Value::Object(map)) if !map.is_empty() => {
                map.retain(|name, item| stays(&format!("f:{name}"), self.field(shape, name), item));
                map.is_empty()
            }
            (Shape::Set | Shape::Keyed(..), Value::Array(items)) if !items.is_empty() => {
                items.retain_mut(|item| match element(shape, item) {
                    Some(element) => stays(&element, self.below(shape, &element), item),
                    None => true,
                });
                items.is_empty()
            }
            _ => false,
        };
        if empty {
            *value = Value::Null;
        }
    }

    /// Counts the structs' fields on the way to a path as in the set: sets made by comparing have them, sets of
    /// what a config says do not.
    pub fn named(self, shape: Shape<'t>, set: &FieldSet) -> FieldSet {
        let mut named = FieldSet { member: set.member, ..FieldSet::default() };
        for (element, node) in &set.children {
            let mut node = self.named(self.below(shape, element), node);
            node.member |=
                matches!(shape, Shape::Struct(type_) if type_.field(element.trim_start_matches("f:")).is_some());
            named.children.insert(element.clone(), node);
        }
        named
    }
}

pub fn of_type(type_: &Type) -> Shape<'_> {
    if type_.atomic { Shape::Leaf } else { Shape::Struct(type_) }
}

/// A list's items by the element that names each.
struct Items<'v> {
    order: Vec<(String, &'v Value)>,
    index: HashMap<String, Vec<&'v Value>>,
}

impl<'v> Items<'v> {
    fn of(shape: Shape<'_>, list: Option<&'v Value>) -> Option<Items<'v>> {
        let items = list.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let order: Vec<_> = items.iter().map(|item| Some((element(shape, item)?, item))).collect::<Option<_>>()?;
        let mut index: HashMap<_, Vec<_>> = HashMap::with_capacity(order.len());
        for (element, item) in &order {
            index.entry(element.clone()).or_default().push(*item);
        }
        Some(Items { order, index })
    }
}

/// The path element of an item; `None` when a keyed one has none of its keys.
fn element(shape: Shape<'_>, item: &Value) -> Option<String> {
    let Shape::Keyed(keys, type_) = shape else { return Some(format!("v:{item}")) };
    let default = |key: &str| type_.field(key).and_then(|field| field.default.as_ref());
    let found = keys.iter().filter_map(|key| Some((&**key, item.get(&**key).or_else(|| default(key))?)));
    item.as_object().filter(|item| keys.iter().any(|key| item.contains_key(&**key)))?;
    Some(set::keyed(found))
}

fn missing_keys(shape: Shape<'_>, index: usize) -> String {
    let key = match shape {
        Shape::Keyed([key, ..], _) => key,
        _ => "",
    };
    format!(
        "element {index}: associative list with keys has an element that omits key field {key:?} (and doesn't have default value)"
    )
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// Absent and null take whatever form the other side has.
fn branches(value: Option<&Value>, form: fn(&Value) -> bool) -> bool {
    value.is_none_or(|value| value.is_null() || form(value))
}
