//! Schemas of named types: structure and merge facts from the table, prose from k8s-openapi.

use std::collections::BTreeMap;

use machinery::schema::{Alternative, Field, FieldKind, ListType, Type, TypeId, Types};
use resources::{registry, types};
use serde_json::{Map, Value, json};

use super::Dialect;
use super::descriptions::Descriptions;

/// Types that are no structs: name, JSON type, format.
const SCALARS: [(&str, &str, &str); 8] = [
    ("io.k8s.apimachinery.pkg.api.resource.Quantity", "string", ""),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.Time", "string", "date-time"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime", "string", "date-time"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.Duration", "string", ""),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1", "object", ""),
    ("io.k8s.apimachinery.pkg.runtime.RawExtension", "object", ""),
    ("io.k8s.apimachinery.pkg.util.intstr.IntOrString", "string", "int-or-string"),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON", "", ""),
];

/// Types of which dialect 3 can say that they have several forms; `kubectl explain` calls them by name for that.
const ALTERNATIVES: [(&str, [&str; 2]); 2] =
    [(SCALARS[0].0, ["string", "number"]), (SCALARS[6].0, ["integer", "string"])];

/// The schemas that a document refers to, gathered while it is built.
pub struct Schemas {
    dialect: Dialect,
    types: &'static Types,
    prose: Descriptions,
    /// Group, version and kind of each served kind's schema.
    kinds: BTreeMap<&'static str, Vec<Value>>,
    done: BTreeMap<String, Value>,
}

impl Schemas {
    pub fn new(dialect: Dialect) -> Schemas {
        let mut kinds: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
        for resource in registry().all() {
            let facts = resource.facts();
            let kind = json!({"group": facts.group, "version": facts.version, "kind": facts.kind});
            kinds.entry(facts.schema).or_default().push(kind);
        }
        Schemas { dialect, types: types(), prose: Descriptions::unpack(), kinds, done: BTreeMap::new() }
    }

    pub fn finish(self) -> Value {
        self.done.into_iter().collect()
    }

    /// Refers to a type by name, and sees to it that it is in the document.
    pub fn reference(&mut self, name: &str) -> Value {
        if !self.done.contains_key(name) {
            // Entered first, so that a type may contain itself.
            self.done.insert(name.to_owned(), Value::Null);
            let schema = self.named(name);
            self.done.insert(name.to_owned(), schema);
        }
        json!({"$ref": self.dialect.reference(name)})
    }

    /// The list of a kind, which is not always a type of the table.
    pub fn list(&mut self, item: &str, kind: Value) -> Value {
        let name = format!("{item}List");
        if !self.done.contains_key(&name) {
            let items = self.reference(item);
            let metadata = self.reference("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta");
            let schema = json!({
                "type": "object", "required": ["items"],
                "properties": {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": metadata,
                    "items": {"type": "array", "items": items}},
                "x-kubernetes-group-version-kind": [kind],
            });
            self.done.insert(name.clone(), schema);
        }
        json!({"$ref": self.dialect.reference(&name)})
    }

    fn named(&mut self, name: &str) -> Value {
        let mut schema = match (self.types.get(name), SCALARS.iter().find(|(scalar, ..)| *scalar == name)) {
            (_, Some((_, kind, format))) => match ALTERNATIVES.iter().find(|(alternative, _)| *alternative == name) {
                Some((_, kinds)) if self.dialect == Dialect::V3 => one_of(kinds, format),
                _ => scalar(kind, format),
            },
            (Some(type_), None) => self.structure(type_),
            (None, None) => json!({"type": "object"}),
        };
        if let Some(prose) = self.prose.of_type(name) {
            schema["description"] = prose.into();
        }
        if let Some(kinds) = self.kinds.get(name) {
            schema["x-kubernetes-group-version-kind"] = kinds.clone().into();
        }
        schema
    }

    fn structure(&mut self, type_: &Type) -> Value {
        let mut properties = Map::new();
        // Every kind has these two, so the table does not say them.
        let own = ["apiVersion", "kind"].into_iter().filter(|_| type_.object).map(|name| (name, scalar("string", "")));
        let fields: Vec<_> = type_.fields.iter().map(|field| (&*field.json_name, self.field(field))).collect();
        for (name, mut property) in own.chain(fields) {
            if let Some(prose) = self.prose.of_field(&type_.name, name) {
                property["description"] = prose.into();
            }
            properties.insert(name.to_owned(), property);
        }
        let required: Vec<_> =
            type_.fields.iter().filter(|field| field.required).map(|field| &*field.json_name).collect();
        let mut schema = json!({"type": "object"});
        if !properties.is_empty() {
            schema["properties"] = properties.into();
        }
        if !required.is_empty() {
            schema["required"] = required.into();
        }
        if type_.atomic {
            schema["x-kubernetes-map-type"] = "atomic".into();
        }
        schema
    }

    fn field(&mut self, field: &Field) -> Value {
        let mut schema = self.kind(&field.kind);
        // Dialect 3 allows nothing beside a reference, so it is wrapped.
        if self.dialect == Dialect::V3 && schema.get("$ref").is_some() {
            schema = json!({"allOf": [schema]});
        }
        if let Some(default) = &field.default {
            schema["default"] = default.clone();
        }
        merge_facts(&mut schema, field);
        schema
    }

    fn kind(&mut self, kind: &FieldKind) -> Value {
        match kind {
            FieldKind::String => scalar("string", ""),
            FieldKind::Bool => scalar("boolean", ""),
            FieldKind::Int32 => scalar("integer", "int32"),
            FieldKind::Int64 => scalar("integer", "int64"),
            FieldKind::Double => scalar("number", "double"),
            FieldKind::Bytes => scalar("string", "byte"),
            FieldKind::Quantity => self.reference(SCALARS[0].0),
            FieldKind::Time => self.reference(SCALARS[1].0),
            FieldKind::MicroTime => self.reference(SCALARS[2].0),
            FieldKind::Duration => self.reference(SCALARS[3].0),
            FieldKind::FieldsV1 => self.reference(SCALARS[4].0),
            FieldKind::Raw => self.reference(SCALARS[5].0),
            FieldKind::IntOrString => self.reference(SCALARS[6].0),
            FieldKind::Json => self.reference(SCALARS[7].0),
            FieldKind::Struct(id)
            | FieldKind::Union(id, Alternative::Structs | Alternative::Bool | Alternative::Strings) => self.type_(*id),
            FieldKind::List(item) | FieldKind::Wrapped(item) => json!({"type": "array", "items": self.kind(item)}),
            FieldKind::Map(value) => json!({"type": "object", "additionalProperties": self.kind(value)}),
        }
    }

    fn type_(&mut self, id: TypeId) -> Value {
        let name = self.types.type_(id).name.clone();
        self.reference(&name)
    }
}

fn scalar(kind: &str, format: &str) -> Value {
    let mut schema = Map::new();
    for (key, value) in [("type", kind), ("format", format)] {
        if !value.is_empty() {
            schema.insert(key.into(), value.into());
        }
    }
    schema.into()
}

fn one_of(kinds: &[&str; 2], format: &str) -> Value {
    let mut schema = scalar("", format);
    schema["oneOf"] = kinds.iter().map(|kind| scalar(kind, "")).collect();
    schema
}

/// What strategic merge and server-side apply need to know.
fn merge_facts(schema: &mut Value, field: &Field) {
    let merge = &field.merge;
    let strategies = [(merge.merge, "merge"), (merge.replace, "replace"), (merge.retain_keys, "retainKeys")];
    let strategy: Vec<_> = strategies.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
    if !strategy.is_empty() {
        schema["x-kubernetes-patch-strategy"] = strategy.join(",").into();
    }
    if let Some(key) = &merge.key {
        schema["x-kubernetes-patch-merge-key"] = (**key).into();
    }
    if matches!(field.kind, FieldKind::List(_)) {
        let kind = match &field.list {
            ListType::Atomic => "atomic",
            ListType::Set => "set",
            ListType::Map(keys) => {
                schema["x-kubernetes-list-map-keys"] = keys.iter().map(|key| Value::from(&**key)).collect();
                "map"
            }
        };
        schema["x-kubernetes-list-type"] = kind.into();
    } else if field.atomic {
        schema["x-kubernetes-map-type"] = "atomic".into();
    }
}
