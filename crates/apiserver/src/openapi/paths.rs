//! The operations on each resource, as far as clients look: which verbs there are, on which kind,
//! with which parameters.

use resources::{Facts, Subresource, Verb, registry};
use serde_json::{Map, Value, json};

use super::{Dialect, schemas::Schemas};

/// What a list or watch takes.
const LIST: [(&str, &str); 10] = [
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];
/// What a write takes.
const WRITE: [(&str, &str); 3] = [("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
const DELETE: [(&str, &str); 4] = [
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];
const PATCH_TYPES: [&str; 4] = [
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// Adds all paths of a resource.
pub fn add(paths: &mut Map<String, Value>, dialect: Dialect, facts: &'static Facts, schemas: &mut Schemas) {
    let root = super::place(facts.group, facts.version);
    let plural = facts.plural;
    let base = match facts.namespaced_scope() {
        true => format!("/{root}/namespaces/{{namespace}}/{plural}"),
        false => format!("/{root}/{plural}"),
    };
    let mut builder = Builder { dialect, namespaced: facts.namespaced_scope(), schemas };
    let kind = Kind { group: facts.group, version: facts.version, kind: facts.kind, schema: facts.schema };
    let collection = [Verb::List, Verb::Create, Verb::DeleteCollection];
    let object = [Verb::Get, Verb::Update, Verb::Patch, Verb::Delete];
    paths.insert(base.clone(), builder.path(&kind, facts.verbs, &collection, false));
    if facts.namespaced_scope() && facts.allows(Verb::List) {
        builder.namespaced = false;
        paths.insert(format!("/{root}/{plural}"), builder.path(&kind, facts.verbs, &[Verb::List], false));
        builder.namespaced = true;
    }
    if object.iter().any(|verb| facts.allows(*verb)) {
        paths.insert(format!("{base}/{{name}}"), builder.path(&kind, facts.verbs, &object, true));
    }
    for sub in facts.subresources {
        let kind = Kind { group: sub.group, version: sub.version, kind: sub.kind, schema: schema_of(sub) };
        let verbs = [Verb::Get, Verb::Update, Verb::Patch, Verb::Create];
        paths.insert(format!("{base}/{{name}}/{}", sub.name), builder.path(&kind, sub.verbs, &verbs, true));
    }
}

fn schema_of(sub: &Subresource) -> &'static str {
    registry().by_gvk(sub.group, sub.version, sub.kind).map_or("", |resource| resource.facts().schema)
}

struct Kind {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    /// Empty for streams, whose body is no object.
    schema: &'static str,
}

struct Builder<'a> {
    dialect: Dialect,
    namespaced: bool,
    schemas: &'a mut Schemas,
}

impl Builder<'_> {
    fn path(&mut self, kind: &Kind, allowed: &[Verb], wanted: &[Verb], named: bool) -> Value {
        let mut path = Map::new();
        for verb in wanted.iter().filter(|verb| allowed.contains(verb)) {
            let method = match verb {
                Verb::Create => "post",
                Verb::Delete | Verb::DeleteCollection => "delete",
                Verb::Update => "put",
                Verb::Patch => "patch",
                Verb::Get | Verb::List | Verb::Watch => "get",
            };
            path.insert(method.into(), self.operation(kind, *verb));
        }
        let mut parameters = Vec::new();
        for (name, there) in [("name", named), ("namespace", self.namespaced)] {
            if there {
                parameters.push(self.parameter(name, "path", "string"));
            }
        }
        path.insert("parameters".into(), parameters.into());
        path.into()
    }

    fn operation(&mut self, kind: &Kind, verb: Verb) -> Value {
        let gvk = json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
        let query: &[(&str, &str)] = match verb {
            Verb::List | Verb::DeleteCollection => &LIST,
            Verb::Create | Verb::Update | Verb::Patch => &WRITE,
            Verb::Delete => &DELETE,
            Verb::Get | Verb::Watch => &[],
        };
        let mut parameters: Vec<_> = query.iter().map(|(name, type_)| self.parameter(name, "query", type_)).collect();
        let action = match verb {
            Verb::Create => "post",
            Verb::Update => "put",
            other => other.as_str(),
        };
        let answer = match verb {
            Verb::List if !kind.schema.is_empty() => {
                let list = json!({"group": kind.group, "version": kind.version, "kind": format!("{}List", kind.kind)});
                Some(self.schemas.list(kind.schema, list))
            }
            Verb::Delete | Verb::DeleteCollection => {
                Some(self.schemas.reference("io.k8s.apimachinery.pkg.apis.meta.v1.Status"))
            }
            _ if kind.schema.is_empty() => None,
            _ => Some(self.schemas.reference(kind.schema)),
        };
        let body = match verb {
            Verb::Create | Verb::Update => (!kind.schema.is_empty()).then(|| self.schemas.reference(kind.schema)),
            Verb::Patch => Some(self.schemas.reference("io.k8s.apimachinery.pkg.apis.meta.v1.Patch")),
            Verb::Delete | Verb::DeleteCollection => {
                Some(self.schemas.reference("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions"))
            }
            _ => None,
        };
        let types: &[&str] = if verb == Verb::Patch { &PATCH_TYPES } else { &["application/json", "application/yaml"] };
        let mut operation = json!({"x-kubernetes-action": action, "x-kubernetes-group-version-kind": gvk});
        let ok = match (self.dialect, answer) {
            (_, None) => json!({"description": "OK"}),
            (Dialect::V2, Some(schema)) => json!({"description": "OK", "schema": schema}),
            (Dialect::V3, Some(schema)) => {
                json!({"description": "OK", "content": {"application/json": {"schema": schema}}})
            }
        };
        operation["responses"] = json!({"200": ok});
        match (self.dialect, body) {
            (_, None) => {}
            (Dialect::V2, Some(schema)) => {
                parameters.push(json!({"name": "body", "in": "body", "required": true, "schema": schema}));
                operation["consumes"] = types.into();
            }
            (Dialect::V3, Some(schema)) => {
                let content: Map<_, _> =
                    types.iter().map(|kind| ((*kind).to_owned(), json!({"schema": schema}))).collect();
                operation["requestBody"] = json!({"content": content});
            }
        }
        operation["parameters"] = parameters.into();
        operation
    }

    fn parameter(&self, name: &str, place: &str, kind: &str) -> Value {
        let mut parameter = json!({"name": name, "in": place, "uniqueItems": true});
        if place == "path" {
            parameter["required"] = true.into();
        }
        match self.dialect {
            Dialect::V2 => parameter["type"] = kind.into(),
            Dialect::V3 => {
                parameter.as_object_mut().map(|parameter| parameter.remove("uniqueItems"));
                parameter["schema"] = json!({"type": kind, "uniqueItems": true});
            }
        }
        parameter
    }
}
