//! Sets of field paths, as `metadata.managedFields` spells them (`fieldsV1`).
//!
//! A set is a tree whose edges are the wire format's own path elements (`f:name`, `k:{"name":"a"}`, `v:1`), so
//! reading and writing it is a walk and comparing elements is comparing text. It knows no schema.

use std::{borrow::Cow, collections::BTreeMap};

use serde_json::{Map, Value};

/// A node of the tree; the set is its root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSet {
    /// The path that ends here is in the set.
    pub member: bool,
    pub children: BTreeMap<String, FieldSet>,
}

impl FieldSet {
    pub fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }

    /// Hangs a set below an element; an empty one leaves no trace.
    pub fn attach(&mut self, element: String, set: FieldSet) {
        if !set.is_empty() {
            self.children.insert(element, set);
        }
    }

    pub fn from_value(value: &Value) -> Self {
        let mut set = Self::default();
        for (element, child) in value.as_object().into_iter().flatten() {
            if element == "." {
                set.member = true;
                continue;
            }
            let mut child = Self::from_value(child);
            child.member |= child.children.is_empty();
            set.children.insert(canonical(element).into_owned(), child);
        }
        set
    }

    pub fn to_value(&self) -> Value {
        let mut map: Map<String, Value> =
            self.children.iter().map(|(element, child)| (element.clone(), child.to_value())).collect();
        if self.member && !self.children.is_empty() {
            map.insert(".".into(), Value::Object(Map::new()));
        }
        Value::Object(map)
    }

    pub fn union(mut self, other: &Self) -> Self {
        self.member |= other.member;
        for (element, theirs) in &other.children {
            let ours = self.children.remove(element).unwrap_or_default();
            self.children.insert(element.clone(), ours.union(theirs));
        }
        self
    }

    pub fn intersection(&self, other: &Self) -> Self {
        let mut set = Self { member: self.member && other.member, children: BTreeMap::new() };
        for (element, ours) in &self.children {
            if let Some(theirs) = other.children.get(element) {
                set.attach(element.clone(), ours.intersection(theirs));
            }
        }
        set
    }

    /// Without the paths of `other`; what lies below them stays.
    pub fn difference(mut self, other: &Self) -> Self {
        self.member &= !other.member;
        for (element, theirs) in &other.children {
            if let Some(ours) = self.children.remove(element) {
                self.attach(element.clone(), ours.difference(theirs));
            }
        }
        self
    }

    /// Every path in the set, each as its elements.
    pub fn paths(&self) -> Vec<Vec<&str>> {
        let mut paths = Vec::new();
        self.gather(&mut Vec::new(), &mut paths);
        paths
    }

    fn gather<'a>(&'a self, at: &mut Vec<&'a str>, paths: &mut Vec<Vec<&'a str>>) {
        if self.member {
            paths.push(at.clone());
        }
        for (element, child) in &self.children {
            at.push(element);
            child.gather(at, paths);
            at.pop();
        }
    }
}

/// `.spec.containers[name="a"].image`
pub fn display(path: &[&str]) -> String {
    path.iter()
        .map(|element| match element.split_once(':') {
            Some(("f", name)) => format!(".{name}"),
            Some(("v", value)) => format!("[={value}]"),
            Some(("k", keys)) => {
                let keys: BTreeMap<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                let pairs: Vec<_> = keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
                format!("[{}]", pairs.join(","))
            }
            _ => format!("[{}]", element.trim_start_matches("i:")),
        })
        .collect()
}

/// The element of a list's item with these keys.
pub fn keyed<'a>(keys: impl Iterator<Item = (&'a str, &'a Value)>) -> String {
    let keys: BTreeMap<_, _> = keys.collect();
    let pairs: Vec<_> = keys.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
    format!("k:{{{}}}", pairs.join(","))
}

/// Other writers may space and order their keys as they like.
fn canonical(element: &str) -> Cow<'_, str> {
    match element.split_once(':') {
        Some(("k", keys)) => match serde_json::from_str::<BTreeMap<String, Value>>(keys) {
            Ok(keys) => keyed(keys.iter().map(|(key, value)| (key.as_str(), value))).into(),
            Err(_) => element.into(),
        },
        _ => element.into(),
    }
}
