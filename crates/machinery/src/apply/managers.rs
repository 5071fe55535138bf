//! Who owns which fields: the entries of `metadata.managedFields`.

use serde_json::{Value, json};

use super::set::FieldSet;
use crate::field::quote;

/// Managers that updated (not applied) an object and are remembered, as upstream; older ones become one.
const MAX_UPDATERS: usize = 10;
const ANCIENT: &str = "ancient-changes";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Apply,
    Update,
}

/// One entry: a manager, and what it owns.
#[derive(Debug, Clone, PartialEq)]
pub struct Manager {
    pub name: String,
    pub operation: Operation,
    pub api_version: String,
    pub subresource: String,
    pub time: Option<String>,
    pub fields: FieldSet,
}

impl Manager {
    /// An entry's Value; `None` if it is not well-formed.
    fn from_value(entry: &Value) -> Option<Self> {
        let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
        let operation = match entry["operation"].as_str()? {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return None,
        };
        if entry["fieldsType"] != "FieldsV1" {
            return None;
        }
        Some(Self {
            name: text("manager"),
            operation,
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            time: entry["time"].as_str().map(str::to_owned),
            fields: FieldSet::from_value(&entry["fieldsV1"]),
        })
    }

    fn to_value(&self) -> Value {
        let operation = match self.operation {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        };
        let mut entry = json!({"operation": operation, "fieldsType": "FieldsV1", "fieldsV1": self.fields.to_value()});
        let texts = [
            ("manager", Some(&self.name)),
            ("apiVersion", Some(&self.api_version)),
            ("subresource", Some(&self.subresource)),
            ("time", self.time.as_ref()),
        ];
        for (key, text) in texts {
            if let Some(text) = text.filter(|text| !text.is_empty()) {
                entry[key] = text.as_str().into();
            }
        }
        entry
    }

    /// Appliers are one manager in all versions, updaters one in each.
    pub fn is(&self, other: &Self) -> bool {
        (&self.name, self.operation, &self.subresource) == (&other.name, other.operation, &other.subresource)
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }
}

/// As a conflict names it.
impl std::fmt::Display for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&quote(&self.name))?;
        if !self.subresource.is_empty() {
            write!(f, " with subresource {}", quote(&self.subresource))?;
        }
        match self.operation {
            Operation::Apply => Ok(()),
            Operation::Update => write!(f, " using {}", self.api_version),
        }
    }
}

/// `None` if any entry cannot be understood.
pub fn decode(entries: &[Value]) -> Option<Vec<Manager>> {
    entries.iter().map(Manager::from_value).collect()
}

/// Without those that own nothing any more, in upstream's order.
pub fn encode(mut managers: Vec<Manager>) -> Value {
    managers.retain(|manager| !manager.fields.is_empty());
    managers.sort_by(|a, b| {
        let key = |manager: &Manager| (manager.operation, manager.time.clone());
        let name = |manager: &Manager| (manager.name.clone(), manager.api_version.clone(), manager.subresource.clone());
        key(a).cmp(&key(b)).then_with(|| name(a).cmp(&name(b)))
    });
    cap(&mut managers);
    managers.iter().map(Manager::to_value).collect()
}

/// Folds the oldest updaters of each version into one; `managers` are in order of time.
fn cap(managers: &mut Vec<Manager>) {
    let updaters =
        |managers: &[Manager]| managers.iter().filter(|manager| manager.operation == Operation::Update).count();
    while updaters(managers) > MAX_UPDATERS {
        let Some(at) =
            managers.iter().position(|manager| manager.operation == Operation::Update && manager.name != ANCIENT)
        else {
            return;
        };
        let oldest = Manager { name: ANCIENT.into(), subresource: String::new(), ..managers.remove(at) };
        match managers.iter_mut().find(|manager| manager.is(&oldest)) {
            Some(ancient) => {
                ancient.fields = std::mem::take(&mut ancient.fields).union(&oldest.fields);
                ancient.time = oldest.time;
            }
            None => managers.insert(at, oldest),
        }
        if managers.iter().filter(|manager| manager.name == ANCIENT).count() >= MAX_UPDATERS {
            return;
        }
    }
}
