//! The facts of a kind that discovery, routing and storage need. Data only: the same table serves
//! the URL router, the discovery documents, the RBAC attributes and the key layout.

use std::fmt;

use serde_json::Value;

/// Whether objects of a kind live in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Namespaced,
    Cluster,
}

/// A request verb, as discovery and RBAC spell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verb {
    Create,
    Delete,
    DeleteCollection,
    Get,
    List,
    Patch,
    Update,
    Watch,
}

impl Verb {
    pub const fn as_str(self) -> &'static str {
        match self {
            Verb::Create => "create",
            Verb::Delete => "delete",
            Verb::DeleteCollection => "deletecollection",
            Verb::Get => "get",
            Verb::List => "list",
            Verb::Patch => "patch",
            Verb::Update => "update",
            Verb::Watch => "watch",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a stored kind usually allows, in discovery's order.
pub const ALL: &[Verb] = &[
    Verb::Create,
    Verb::Delete,
    Verb::DeleteCollection,
    Verb::Get,
    Verb::List,
    Verb::Patch,
    Verb::Update,
    Verb::Watch,
];
/// What a kind that is only ever posted allows (reviews, bindings).
pub const CREATE: &[Verb] = &[Verb::Create];

/// A path below an object, such as `pods/log`. `group`, `version` and `kind` name the body's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subresource {
    pub name: &'static str,
    pub kind: &'static str,
    pub group: &'static str,
    pub version: &'static str,
    pub verbs: &'static [Verb],
}

const READ_WRITE: &[Verb] = &[Verb::Get, Verb::Patch, Verb::Update];
const STREAM: &[Verb] = &[Verb::Create, Verb::Get];
const PROXY: &[Verb] = &[Verb::Create, Verb::Delete, Verb::Get, Verb::Patch, Verb::Update];

impl Subresource {
    /// A view of the same object, read and written like it.
    pub const fn own(name: &'static str, group: &'static str, version: &'static str, kind: &'static str) -> Self {
        Subresource { name, kind, group, version, verbs: READ_WRITE }
    }

    pub const fn scale() -> Self {
        Subresource::own("scale", "autoscaling", "v1", "Scale")
    }

    /// A long-lived stream: exec, attach, portforward.
    pub const fn stream(name: &'static str, kind: &'static str) -> Self {
        Subresource { verbs: STREAM, ..Subresource::own(name, "", "v1", kind) }
    }

    pub const fn proxy(kind: &'static str) -> Self {
        Subresource { verbs: PROXY, ..Subresource::own("proxy", "", "v1", kind) }
    }

    pub const fn with_verbs(self, verbs: &'static [Verb]) -> Self {
        Subresource { verbs, ..self }
    }
}

/// How a version that is not the stored one becomes it, and back. Both leave names and labels alone;
/// what a version has no field for it may keep in annotations.
#[derive(Clone, Copy, Debug)]
pub struct Conversion {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    /// From this version to the stored one; sets `apiVersion` too.
    pub to_storage: fn(&mut Value),
    /// From the stored version to this one; sets `apiVersion` too.
    pub from_storage: fn(&mut Value),
}

#[derive(Clone, Copy, Debug)]
pub struct Facts {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    /// Empty for kinds that are only the body of a subresource (Scale, Eviction, TokenRequest).
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub scope: Scope,
    pub verbs: &'static [Verb],
    /// The name of the type in [`crate::types`].
    pub schema: &'static str,
    /// Upstream's etcd layout below `/registry`, without slashes at the ends; empty when not stored.
    pub storage_prefix: &'static str,
    pub subresources: &'static [Subresource],
    /// Deleted in two steps with a grace period (pods).
    pub graceful: bool,
    /// `metadata.generation` counts changes of the desired state.
    pub generation: bool,
    /// Seconds after which the store forgets the object (events).
    pub ttl_seconds: Option<u64>,
    /// What every request for a deprecated kind is told.
    pub deprecated: Option<&'static str>,
}

impl Facts {
    /// A stored, namespaced kind with all verbs and its plural as storage prefix.
    pub const fn namespaced(
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        plural: &'static str,
        singular: &'static str,
        schema: &'static str,
    ) -> Self {
        Facts {
            group,
            version,
            kind,
            plural,
            singular,
            short_names: &[],
            categories: &[],
            scope: Scope::Namespaced,
            verbs: ALL,
            schema,
            storage_prefix: plural,
            subresources: &[],
            graceful: false,
            generation: false,
            ttl_seconds: None,
            deprecated: None,
        }
    }

    pub const fn cluster(
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        plural: &'static str,
        singular: &'static str,
        schema: &'static str,
    ) -> Self {
        let facts = Facts::namespaced(group, version, kind, plural, singular, schema);
        Facts { scope: Scope::Cluster, ..facts }
    }

    /// Turns the facts into those of a kind that is posted, answered and forgotten.
    pub const fn posted(self) -> Self {
        Facts { verbs: CREATE, storage_prefix: "", ..self }
    }

    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    pub fn namespaced_scope(&self) -> bool {
        self.scope == Scope::Namespaced
    }

    pub fn stored(&self) -> bool {
        !self.storage_prefix.is_empty()
    }

    pub fn allows(&self, verb: Verb) -> bool {
        self.verbs.contains(&verb)
    }

    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|subresource| subresource.name == name)
    }

    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }
}
