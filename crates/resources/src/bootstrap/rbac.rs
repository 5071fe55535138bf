//! Upstream's bootstrap RBAC policy, from the table in `rbac.txt`.
//!
//! The table holds one role per block: its head says what it is called, the lines below what it may
//! do and who has it. JSON for the same would be thirty times as long, and nobody would see what
//! changed. A malformed table is a bug in this crate, so reading it panics, and a test reads it.

use serde_json::{Map, Value, json};

const TABLE: &str = include_str!("rbac.txt");
const GROUP: &str = "rbac.authorization.k8s.io";
const CONTROLLER_PREFIX: &str = "system:controller:";

/// Cluster roles, as objects ready to be created.
pub fn cluster_roles() -> Vec<Value> {
    blocks().filter(|block| block.namespace.is_none()).map(|block| block.role()).collect()
}

pub fn cluster_role_bindings() -> Vec<Value> {
    blocks().filter(|block| block.namespace.is_none()).filter_map(|block| block.binding()).collect()
}

/// Roles in the system namespaces.
pub fn roles() -> Vec<Value> {
    blocks().filter(|block| block.namespace.is_some()).map(|block| block.role()).collect()
}

pub fn role_bindings() -> Vec<Value> {
    blocks().filter(|block| block.namespace.is_some()).filter_map(|block| block.binding()).collect()
}

/// A head line and the indented lines below it.
struct Block<'a> {
    name: String,
    namespace: Option<&'a str>,
    controller: Option<&'a str>,
    /// Labels under which other roles collect this one's rules.
    aggregate_to: Vec<&'a str>,
    /// Set when this role is the sum of others.
    collects: Option<&'a str>,
    lines: Vec<&'a str>,
}

fn blocks() -> impl Iterator<Item = Block<'static>> {
    let mut lines = TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).peekable();
    std::iter::from_fn(move || {
        let mut block = Block::head(lines.next()?);
        while let Some(line) = lines.next_if(|line| line.starts_with(' ')) {
            block.lines.push(line.trim());
        }
        Some(block)
    })
}

impl<'a> Block<'a> {
    /// `NAME [collects=X] [to=X,Y] [in=NAMESPACE]`, where a leading `~` is the controllers' prefix.
    fn head(line: &'a str) -> Self {
        let mut words = line.split_whitespace();
        let name = words.next().expect("a head has a name");
        let controller = name.strip_prefix('~');
        let mut block = Block {
            name: controller.map_or_else(|| name.to_owned(), |name| format!("{CONTROLLER_PREFIX}{name}")),
            namespace: None,
            controller,
            aggregate_to: Vec::new(),
            collects: None,
            lines: Vec::new(),
        };
        for word in words {
            match word.split_once('=') {
                Some(("collects", label)) => block.collects = Some(label),
                Some(("to", labels)) => block.aggregate_to = labels.split(',').collect(),
                Some(("in", namespace)) => block.namespace = Some(namespace),
                _ => panic!("{line}: {word} is no option"),
            }
        }
        block
    }

    fn metadata(&self, name: &str) -> Value {
        let mut labels = Map::from_iter([("kubernetes.io/bootstrapping".to_owned(), json!("rbac-defaults"))]);
        labels.extend(self.aggregate_to.iter().map(|to| (format!("{GROUP}/aggregate-to-{to}"), json!("true"))));
        let mut metadata = json!({
            "name": name,
            "labels": labels,
            "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
        });
        if let Some(namespace) = self.namespace {
            metadata["namespace"] = json!(namespace);
        }
        metadata
    }

    fn kind(&self, suffix: &str) -> String {
        let scope = if self.namespace.is_some() { "" } else { "Cluster" };
        format!("{scope}Role{suffix}")
    }

    fn role(&self) -> Value {
        let rules = self.lines.iter().filter(|line| !line.starts_with('>')).map(|line| rule(line));
        let mut role = json!({
            "apiVersion": format!("{GROUP}/v1"),
            "kind": self.kind(""),
            "metadata": self.metadata(&self.name),
            "rules": rules.collect::<Vec<_>>(),
        });
        if let Some(label) = self.collects {
            let labels = json!({format!("{GROUP}/aggregate-to-{label}"): "true"});
            role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": labels}]});
            role["rules"] = Value::Null;
        }
        role
    }

    /// Controllers are bound to the service account of their name; others as their `>` line says.
    fn binding(&self) -> Option<Value> {
        let own = self.controller.map(|name| format!("> sa:kube-system/{name}"));
        let line = self.lines.iter().copied().find(|line| line.starts_with('>')).or(own.as_deref())?;
        let mut words = line.trim_start_matches('>').split_whitespace().peekable();
        let name = words.next_if(|word| word.starts_with("as=")).map(|word| &word[3..]).unwrap_or(&self.name);
        let mut metadata = self.metadata(name);
        metadata["labels"] = json!({"kubernetes.io/bootstrapping": "rbac-defaults"});
        Some(json!({
            "apiVersion": format!("{GROUP}/v1"),
            "kind": self.kind("Binding"),
            "metadata": metadata,
            "roleRef": {"apiGroup": GROUP, "kind": self.kind(""), "name": self.name},
            "subjects": words.map(subject).collect::<Vec<_>>(),
        }))
    }
}

/// `VERBS : GROUPS : RESOURCES [: NAMES]`, or `VERBS : url : PATHS`; `events` alone is what every
/// component that records events may do.
fn rule(line: &str) -> Value {
    let line = if line == "events" { "create patch update : core events.k8s.io : events" } else { line };
    let columns: Vec<&str> = line.split(" : ").collect();
    let words = |column: &str| column.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let verbs: Vec<String> = words(columns[0]).iter().flat_map(|verb| verbs(verb)).collect();
    if columns[1] == "url" {
        return json!({"verbs": verbs, "nonResourceURLs": words(columns[2])});
    }
    let groups: Vec<String> =
        words(columns[1]).into_iter().map(|group| if group == "core" { String::new() } else { group }).collect();
    let mut rule = json!({"verbs": verbs, "apiGroups": groups, "resources": words(columns[2])});
    if let Some(names) = columns.get(3) {
        rule["resourceNames"] = json!(words(names));
    }
    rule
}

fn verbs(verb: &str) -> Vec<String> {
    let verbs: &[&str] = match verb {
        "read" => &["get", "list", "watch"],
        "write" => &["create", "delete", "deletecollection", "patch", "update"],
        verb => &[verb],
    };
    verbs.iter().map(|verb| (*verb).to_owned()).collect()
}

/// `user:NAME`, `group:NAME` or `sa:NAMESPACE/NAME`.
fn subject(word: &str) -> Value {
    match word.split_once(':').expect("a subject has a kind") {
        ("user", name) => json!({"kind": "User", "apiGroup": GROUP, "name": name}),
        ("group", name) => json!({"kind": "Group", "apiGroup": GROUP, "name": name}),
        ("sa", account) => {
            let (namespace, name) = account.split_once('/').expect("an account has a namespace");
            json!({"kind": "ServiceAccount", "namespace": namespace, "name": name})
        }
        (kind, _) => panic!("{kind} is no kind of subject"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn names(objects: &[Value]) -> BTreeSet<&str> {
        objects.iter().filter_map(|object| object["metadata"]["name"].as_str()).collect()
    }

    #[test]
    fn the_policy_is_valid_and_whole() {
        let registry = crate::registry();
        let lists = [cluster_roles(), cluster_role_bindings(), roles(), role_bindings()];
        for object in lists.iter().flatten() {
            let kind = object["kind"].as_str().expect("a kind");
            let resource = registry.by_gvk(GROUP, "v1", kind).expect("a known kind");
            let mut object = object.clone();
            resource.default(&mut object);
            assert_eq!(resource.validate(&object), [], "{object}");
        }
        for role in ["cluster-admin", "view", "edit", "admin", "system:node", "system:controller:job-controller"] {
            assert!(names(&lists[0]).contains(role), "{role}");
        }
        assert_eq!(names(&lists[0]).len(), lists[0].len(), "role names are unique");
    }

    #[test]
    fn bindings_bind_existing_roles() {
        let (cluster, namespaced) = (cluster_roles(), roles());
        for binding in cluster_role_bindings() {
            assert!(names(&cluster).contains(binding["roleRef"]["name"].as_str().expect("a name")), "{binding}");
        }
        for binding in role_bindings() {
            assert!(names(&namespaced).contains(binding["roleRef"]["name"].as_str().expect("a name")), "{binding}");
        }
    }

    #[test]
    fn rules_read_as_the_table_says() {
        assert_eq!(
            rule("get update : coordination.k8s.io core : leases : me"),
            json!({"verbs": ["get", "update"], "apiGroups": ["coordination.k8s.io", ""], "resources": ["leases"],
                "resourceNames": ["me"]})
        );
        assert_eq!(rule("get : url : /api /api/*"), json!({"verbs": ["get"], "nonResourceURLs": ["/api", "/api/*"]}));
    }
}
