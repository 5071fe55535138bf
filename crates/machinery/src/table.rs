//! `metav1.Table`: what kubectl prints without knowing a kind.

use serde_json::{Value, json};

/// A column as a resource declares it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub type_: &'static str,
    /// `name` marks the column that names the object.
    pub format: &'static str,
    pub description: &'static str,
    /// 0 is always shown, anything else only with `-o wide`.
    pub priority: i32,
}

impl Column {
    pub const fn new(name: &'static str, type_: &'static str) -> Self {
        Self { name, type_, format: "", description: "", priority: 0 }
    }

    pub const fn wide(self) -> Self {
        Self { priority: 1, ..self }
    }

    pub const fn format(self, format: &'static str) -> Self {
        Self { format, ..self }
    }

    pub const fn describe(self, description: &'static str) -> Self {
        Self { description, ..self }
    }

    pub fn to_value(&self) -> Value {
        json!({"name": self.name, "type": self.type_, "format": self.format, "description": self.description,
            "priority": self.priority})
    }
}

/// One row: its cells and what stands for the object (whole, metadata only, or nothing).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Row {
    pub cells: Vec<Value>,
    pub object: Option<Value>,
    pub conditions: Vec<Value>,
}

impl Row {
    pub fn new(cells: Vec<Value>, object: Option<Value>) -> Self {
        Self { cells, object, conditions: Vec::new() }
    }

    pub fn to_value(self) -> Value {
        let mut row = json!({"cells": self.cells});
        if !self.conditions.is_empty() {
            row["conditions"] = self.conditions.into();
        }
        if let Some(object) = self.object {
            row["object"] = object;
        }
        row
    }
}

/// A table with its header; watch events after the first leave the header out.
pub fn table(columns: &[Column], rows: impl IntoIterator<Item = Row>, metadata: Value) -> Value {
    with_definitions(columns.iter().map(Column::to_value).collect(), rows, metadata)
}

/// The same with ready-made column definitions, as custom resources have them.
pub fn with_definitions(definitions: Vec<Value>, rows: impl IntoIterator<Item = Row>, metadata: Value) -> Value {
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": definitions, "rows": rows.into_iter().map(Row::to_value).collect::<Vec<_>>(),
    })
}

/// The part of an object that a table carries by default.
pub fn partial_metadata(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_columns_and_rows() {
        const COLUMNS: &[Column] =
            &[Column::new("Name", "string").format("name").describe("the name"), Column::new("IP", "string").wide()];
        let object = json!({"metadata": {"name": "a"}, "spec": {}});
        let row = Row::new(vec!["a".into(), "1.2.3.4".into()], Some(partial_metadata(&object)));
        let table = table(COLUMNS, [row], json!({"resourceVersion": "5"}));
        assert_eq!(table["columnDefinitions"][1]["priority"], 1);
        assert_eq!(table["columnDefinitions"][0]["format"], "name");
        assert_eq!(
            table["rows"][0],
            json!({"cells": ["a", "1.2.3.4"], "object": {"kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1", "metadata": {"name": "a"}}})
        );
    }
}
