//! RBAC rules: whether one allows a request, and whether some cover others.
//!
//! Pure functions of values, so that the same matching serves decisions, escalation checks and the
//! Node authorizer's fixed rules.

use serde::{Deserialize, Serialize};

use super::Attributes;

const ALL: &str = "*";

/// `rbac.authorization.k8s.io/v1 PolicyRule`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Rule {
    #[serde(deserialize_with = "nullable")]
    pub verbs: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs", deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
}

/// Go clients write an absent list as null.
pub(super) fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == wanted)
}

fn has_or_all(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == ALL || item == wanted)
}

fn url_matches(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => pattern == path,
    }
}

impl Rule {
    pub fn allows(&self, a: &Attributes<'_>) -> bool {
        if !has_or_all(&self.verbs, a.verb) {
            return false;
        }
        if !a.resource_request {
            return self.non_resource_urls.iter().any(|pattern| url_matches(pattern, a.path));
        }
        has_or_all(&self.api_groups, a.group)
            && self.resources.iter().any(|resource| resource_matches(resource, a.resource, a.subresource))
            && (self.resource_names.is_empty() || has(&self.resource_names, a.name))
    }

    /// The rule as many, each with one verb on one thing: what a covering rule must match whole.
    fn atoms(&self) -> Vec<Rule> {
        let one = |text: &String| vec![text.clone()];
        let mut atoms = Vec::new();
        for verb in &self.verbs {
            for group in &self.api_groups {
                for resource in &self.resources {
                    let atom =
                        Rule { verbs: one(verb), api_groups: one(group), resources: one(resource), ..Rule::default() };
                    match self.resource_names.as_slice() {
                        [] => atoms.push(atom),
                        names => atoms.extend(names.iter().map(|n| Rule { resource_names: one(n), ..atom.clone() })),
                    }
                }
            }
            let urls = self.non_resource_urls.iter();
            atoms.extend(urls.map(|url| Rule { verbs: one(verb), non_resource_urls: one(url), ..Rule::default() }));
        }
        atoms
    }

    fn covers(&self, atom: &Rule) -> bool {
        let all = |owned: &[String], wanted: &[String]| wanted.iter().all(|item| has_or_all(owned, item));
        all(&self.verbs, &atom.verbs)
            && all(&self.api_groups, &atom.api_groups)
            && atom.resources.iter().all(|resource| {
                has_or_all(&self.resources, resource)
                    || resource.split_once('/').is_some_and(|(_, sub)| has(&self.resources, &format!("*/{sub}")))
            })
            && atom.non_resource_urls.iter().all(|url| self.non_resource_urls.iter().any(|own| url_matches(own, url)))
            && (self.resource_names.is_empty()
                || !atom.resource_names.is_empty()
                    && atom.resource_names.iter().all(|name| has(&self.resource_names, name)))
    }
}

/// `pods`, `pods/log`, `*/scale` and `*` against a request's resource and subresource.
fn resource_matches(pattern: &str, resource: &str, subresource: &str) -> bool {
    match pattern.split_once('/') {
        _ if pattern == ALL => true,
        None => subresource.is_empty() && pattern == resource,
        Some((parent, sub)) => !subresource.is_empty() && sub == subresource && (parent == ALL || parent == resource),
    }
}

/// What of `wanted` the owner's rules do not cover; empty when they cover it all.
pub fn covers(owned: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    let atoms = wanted.iter().flat_map(Rule::atoms);
    compact(atoms.filter(|atom| !owned.iter().any(|rule| rule.covers(atom))))
}

/// Joins the verbs of rules that are otherwise the same.
fn compact(rules: impl Iterator<Item = Rule>) -> Vec<Rule> {
    let mut compacted: Vec<Rule> = Vec::new();
    for rule in rules {
        let same =
            |other: &&mut Rule| Rule { verbs: vec![], ..(**other).clone() } == Rule { verbs: vec![], ..rule.clone() };
        match compacted.iter_mut().find(same) {
            Some(other) => other.verbs.extend(rule.verbs),
            None => compacted.push(rule),
        }
    }
    compacted
}

/// `{APIGroups:["apps"], Resources:["deployments"], Verbs:["get" "list"]}`
pub fn describe(rule: &Rule) -> String {
    let parts = [
        ("APIGroups", &rule.api_groups),
        ("Resources", &rule.resources),
        ("NonResourceURLs", &rule.non_resource_urls),
        ("ResourceNames", &rule.resource_names),
        ("Verbs", &rule.verbs),
    ];
    let parts = parts.into_iter().filter(|(_, list)| !list.is_empty());
    let parts: Vec<_> = parts.map(|(name, list)| format!("{name}:{}", quoted(list))).collect();
    format!("{{{}}}", parts.join(", "))
}

/// Go's `%q` of a list.
pub fn quoted(list: &[String]) -> String {
    let items: Vec<_> = list.iter().map(|item| format!("{item:?}")).collect();
    format!("[{}]", items.join(" "))
}
