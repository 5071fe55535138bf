//! The shape of every type: fields with their JSON name, protobuf number, Go kind, defaults, and the merge
//! and list facts that patches and server-side apply need.
//!
//! Built from a compact table ([`parse`]) for built-in types; custom resources insert types of their own.
//! One shape drives checking, pruning, defaulting, patching and protobuf, so they cannot disagree. What a kind
//! means (validation, strategies) is not known here.

use std::{collections::HashMap, sync::Arc};

use serde_json::Value;

pub mod decode;
pub mod defaults;
mod document;
mod equality;
mod parse;
mod yaml;

pub use equality::semantic_equal;
pub use parse::ParseError;

/// Index of a type within its [`Types`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeId(u32);

/// All named types.
#[derive(Debug, Clone, Default)]
pub struct Types {
    types: Vec<Type>,
    index: HashMap<Arc<str>, TypeId>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Type {
    /// As in OpenAPI: `io.k8s.api.core.v1.Pod`.
    pub name: Arc<str>,
    /// Sorted by JSON name; Go's embedded structs are flattened, as they are in JSON.
    pub fields: Vec<Field>,
    /// Carries `apiVersion` and `kind`, which protobuf keeps in its envelope.
    pub object: bool,
    /// Server-side apply owns it as a whole (`x-kubernetes-map-type: atomic`).
    pub atomic: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    pub json_name: Arc<str>,
    /// The protobuf number; 0 if the field has none.
    pub number: u32,
    /// Protobuf numbers of the embedded messages around the field, outermost first.
    pub outer: Box<[u32]>,
    pub kind: FieldKind,
    pub required: bool,
    pub presence: Presence,
    pub default: Option<Value>,
    pub merge: Merge,
    pub list: ListType,
    /// Server-side apply owns the map or struct in this field as a whole.
    pub atomic: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum FieldKind {
    String,
    Bool,
    Int32,
    Int64,
    Double,
    /// Base64 in JSON.
    Bytes,
    /// A string; bare numbers are taken too.
    Quantity,
    IntOrString,
    Time,
    MicroTime,
    /// Go's duration syntax.
    Duration,
    /// An embedded object of any kind, kept as it is (`runtime.RawExtension`).
    Raw,
    /// Any JSON value (`apiextensions.JSON`).
    Json,
    /// Ownership sets of server-side apply.
    FieldsV1,
    Struct(TypeId),
    List(Box<FieldKind>),
    /// A list in JSON that protobuf wraps in a message with `items` = 1.
    Wrapped(Box<FieldKind>),
    Map(Box<FieldKind>),
    /// The JSONSchemaProps unions: either a struct, or the alternative.
    Union(TypeId, Alternative),
}

/// What else than the struct a union holds; in protobuf each is a message with two fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alternative {
    /// A list of the same struct.
    Structs,
    Bool,
    Strings,
}

/// When Go's encoder writes a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// Not when it is zero or empty (`omitempty` on a value).
    NonZero,
    /// Whenever it is set: a zero is a statement (a pointer).
    Set,
    /// Always (a struct held by value, or no `omitempty`).
    Always,
}

/// What a strategic merge patch does with the field.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Merge {
    /// Lists are merged instead of replaced.
    pub merge: bool,
    /// `$retainKeys` is generated and honoured.
    pub retain_keys: bool,
    /// A struct or map is replaced instead of merged.
    pub replace: bool,
    /// The key that identifies an element of a merged list of maps.
    pub key: Option<Arc<str>>,
}

/// How server-side apply sees a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ListType {
    #[default]
    Atomic,
    Set,
    Map(Box<[Arc<str>]>),
}

impl Types {
    /// Parses the compact table; see ADR 001 for its grammar.
    pub fn parse(table: &str) -> Result<Self, ParseError> {
        parse::parse(table)
    }

    pub fn get(&self, name: &str) -> Option<&Type> {
        self.id(name).map(|id| self.type_(id))
    }

    pub fn id(&self, name: &str) -> Option<TypeId> {
        self.index.get(name).copied()
    }

    pub fn type_(&self, id: TypeId) -> &Type {
        &self.types[id.0 as usize]
    }

    pub fn iter(&self) -> impl Iterator<Item = &Type> {
        self.types.iter()
    }

    /// Adds a type, or replaces the one of the same name.
    pub fn insert(&mut self, mut type_: Type) -> TypeId {
        type_.fields.sort_by(|a, b| a.json_name.cmp(&b.json_name));
        match self.index.get(&type_.name) {
            Some(id) => {
                let id = *id;
                self.types[id.0 as usize] = type_;
                id
            }
            None => {
                let id = TypeId(self.types.len() as u32);
                self.index.insert(type_.name.clone(), id);
                self.types.push(type_);
                id
            }
        }
    }
}

impl Type {
    /// A type without fields.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self { name: name.into(), fields: Vec::new(), object: false, atomic: false }
    }

    pub fn field(&self, json_name: &str) -> Option<&Field> {
        let at = self.fields.binary_search_by(|field| (*field.json_name).cmp(json_name)).ok()?;
        Some(&self.fields[at])
    }

    /// `Pod` of `io.k8s.api.core.v1.Pod`.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or_default()
    }

    /// `v1.Pod`: the way Go names it in errors.
    pub fn go_name(&self) -> &str {
        let mut dots = self.name.rmatch_indices('.').map(|(at, _)| at);
        dots.nth(1).map_or(&*self.name, |at| &self.name[at + 1..])
    }
}

impl Field {
    /// An optional field without protobuf number.
    pub fn new(json_name: impl Into<Arc<str>>, kind: FieldKind) -> Self {
        Self {
            json_name: json_name.into(),
            number: 0,
            outer: Box::default(),
            kind,
            required: false,
            presence: Presence::Set,
            default: None,
            merge: Merge::default(),
            list: ListType::default(),
            atomic: false,
        }
    }
}

impl FieldKind {
    /// The named type of the field, or of its elements.
    pub fn type_id(&self) -> Option<TypeId> {
        match self {
            Self::Struct(id) | Self::Union(id, _) => Some(*id),
            Self::List(inner) | Self::Wrapped(inner) | Self::Map(inner) => inner.type_id(),
            _ => None,
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! The types that tests of this crate share: a corner of the real ones, in the table's syntax.

    use std::sync::LazyLock;

    use super::Types;

    pub(crate) static TYPES: LazyLock<Types> = LazyLock::new(|| Types::parse(TABLE).expect("the table parses"));

    pub(crate) const TABLE: &str = include_str!("testing.txt");
}
