//! What this server serves: /api, /apis and below, and the aggregated form that clients prefer.
//!
//! All of it is derived from the registry's facts.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderValue, StatusCode, header};
use resources::{Facts, Registry, Resource, Subresource, Verb};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha512};

use crate::respond::{self, Answered};

/// Upstream's order: the first group that has a resource is the one meant by its bare name.
const ORDER: [&str; 22] = [
    "",
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "resource.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    "internal.apiserver.k8s.io",
];

/// Groups in order, each with its versions, newest first, each with its resources by name.
pub struct Groups(Vec<Group>);

struct Group {
    name: &'static str,
    versions: Vec<(&'static str, Vec<&'static Facts>)>,
}

impl Groups {
    pub fn new(registry: &Registry) -> Groups {
        let mut groups: BTreeMap<(usize, &str), BTreeMap<&str, Vec<&'static Facts>>> = BTreeMap::new();
        for facts in registry.all().iter().map(|resource: &&'static dyn Resource| resource.facts()) {
            let rank = ORDER.iter().position(|group| *group == facts.group).unwrap_or(ORDER.len());
            groups.entry((rank, facts.group)).or_default().entry(facts.version).or_default().push(facts);
        }
        Groups(groups.into_iter().map(|((_, name), versions)| Group::new(name, versions)).collect())
    }

    /// Every group version, as `(group, version, resources)`.
    pub fn versions(&self) -> impl Iterator<Item = (&'static str, &'static str, &[&'static Facts])> {
        self.0.iter().flat_map(|group| group.versions.iter().map(|(version, facts)| (group.name, *version, &facts[..])))
    }

    /// The document at an unaggregated discovery path, if there is one.
    pub fn document(&self, path: &[&str], address: &str) -> Option<Value> {
        let group = |name: &str| self.0.iter().find(|group| group.name == name && !name.is_empty());
        match path {
            ["api"] => Some(json!({
                "kind": "APIVersions", "versions": ["v1"],
                "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
            })),
            ["apis"] => {
                let groups: Vec<_> = self.0.iter().filter(|group| !group.name.is_empty()).map(Group::entry).collect();
                Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
            }
            ["api", version] => self.0.iter().find(|group| group.name.is_empty())?.resources(version),
            ["apis", name] => {
                let mut entry = group(name)?.entry();
                entry["kind"] = "APIGroup".into();
                entry["apiVersion"] = "v1".into();
                Some(entry)
            }
            ["apis", name, version] => group(name)?.resources(version),
            _ => None,
        }
    }

    /// The aggregated document of the core group (`legacy`) or of all others.
    pub fn aggregated(&self, legacy: bool, version: &str) -> Value {
        let groups = self.0.iter().filter(|group| group.name.is_empty() == legacy);
        json!({
            "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"), "metadata": {},
            "items": groups.map(Group::aggregated).collect::<Vec<_>>(),
        })
    }
}

impl Group {
    fn new(name: &'static str, versions: BTreeMap<&'static str, Vec<&'static Facts>>) -> Group {
        let mut versions: Vec<_> = versions.into_iter().collect();
        versions.sort_by_key(|(version, _)| std::cmp::Reverse(priority(version)));
        for (_, facts) in &mut versions {
            facts.sort_by_key(|facts| facts.plural);
        }
        Group { name, versions }
    }

    fn entry(&self) -> Value {
        let version = |version: &str| json!({"groupVersion": format!("{}/{version}", self.name), "version": version});
        let versions: Vec<_> = self.versions.iter().map(|(name, _)| version(name)).collect();
        json!({"name": self.name, "versions": versions, "preferredVersion": versions[0]})
    }

    fn resources(&self, version: &str) -> Option<Value> {
        let (version, facts) = self.versions.iter().find(|(name, _)| *name == version)?;
        let group_version = machinery::gvk::api_version(self.name, version);
        let resources: Vec<_> = facts.iter().flat_map(|facts| api_resources(facts)).collect();
        Some(
            json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}),
        )
    }

    fn aggregated(&self) -> Value {
        let version = |(version, facts): &(&str, Vec<&'static Facts>)| json!({"version": version, "freshness": "Current", "resources": facts.iter().map(|facts| aggregated(facts)).collect::<Vec<_>>()});
        json!({
            "metadata": {"name": self.name, "creationTimestamp": null},
            "versions": self.versions.iter().map(version).collect::<Vec<_>>(),
        })
    }
}

/// Stable before beta before alpha, then by number.
fn priority(version: &str) -> (u8, u32, u32) {
    let numbers: Vec<u32> = version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect();
    let stability = if version.contains("alpha") {
        0
    } else if version.contains("beta") {
        1
    } else {
        2
    };
    (stability, numbers.first().copied().unwrap_or(0), numbers.get(1).copied().unwrap_or(0))
}

fn verbs(verbs: &[Verb]) -> Vec<&'static str> {
    verbs.iter().map(|verb| verb.as_str()).collect()
}

fn api_resources(facts: &'static Facts) -> Vec<Value> {
    let mut main = Map::new();
    main.insert("name".into(), facts.plural.into());
    main.insert("singularName".into(), facts.singular.into());
    main.insert("namespaced".into(), facts.namespaced_scope().into());
    main.insert("kind".into(), facts.kind.into());
    main.insert("verbs".into(), verbs(facts.verbs).into());
    if facts.stored() {
        // Changes with the stored form only, which is this version's.
        let text = format!("{}/{}/{}", facts.group, facts.version, facts.kind);
        main.insert("storageVersionHash".into(), base64_prefix(&text).into());
    }
    names(&mut main, facts);
    let subresource = |sub: &Subresource| {
        let mut value = json!({
            "name": format!("{}/{}", facts.plural, sub.name), "singularName": "",
            "namespaced": facts.namespaced_scope(), "kind": sub.kind, "verbs": verbs(sub.verbs),
        });
        if (sub.group, sub.version) != (facts.group, facts.version) {
            value["group"] = sub.group.into();
            value["version"] = sub.version.into();
        }
        value
    };
    std::iter::once(Value::Object(main)).chain(facts.subresources.iter().map(subresource)).collect()
}

fn base64_prefix(text: &str) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    STANDARD.encode(&Sha512::digest(text)[..8])
}

fn names(value: &mut Map<String, Value>, facts: &Facts) {
    for (key, list) in [("shortNames", facts.short_names), ("categories", facts.categories)] {
        if !list.is_empty() {
            value.insert(key.into(), list.into());
        }
    }
}

fn aggregated(facts: &'static Facts) -> Value {
    let kind = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let mut value = json!({
        "resource": facts.plural, "responseKind": kind(facts.group, facts.version, facts.kind),
        "scope": if facts.namespaced_scope() { "Namespaced" } else { "Cluster" },
        "singularResource": facts.singular, "verbs": verbs(facts.verbs),
    });
    if let Some(value) = value.as_object_mut() {
        names(value, facts);
    }
    if !facts.subresources.is_empty() {
        let subresource = |sub: &Subresource| json!({"subresource": sub.name, "responseKind": kind(sub.group, sub.version, sub.kind), "verbs": verbs(sub.verbs)});
        value["subresources"] = facts.subresources.iter().map(subresource).collect();
    }
    value
}

/// The version of aggregated discovery that the client prefers, if any.
pub fn wants_aggregated(headers: &HeaderMap) -> Option<&'static str> {
    let accept = headers.get(header::ACCEPT)?.to_str().ok()?;
    let clause = accept.split(',').map(str::trim).find(|clause| {
        let plain = !clause.contains("as=") && !clause.contains("protobuf");
        clause.contains("as=APIGroupDiscoveryList")
            || (plain && (clause.starts_with("application/json") || *clause == "*/*"))
    })?;
    ["v2", "v2beta1"].into_iter().find(|version| {
        clause.contains("as=APIGroupDiscoveryList")
            && clause.split(';').any(|part| part.strip_prefix("v=") == Some(version))
    })
}

/// Answers with a document that clients keep and ask about by its hash.
pub fn cacheable(headers: &HeaderMap, content_type: String, json: bytes::Bytes) -> Answered {
    let etag = format!("\"{}\"", hex::encode_upper(Sha512::digest(&json)));
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let mut response = respond::text(StatusCode::OK, "");
    match known == Some(etag.as_str()) {
        true => *response.status_mut() = StatusCode::NOT_MODIFIED,
        false => *response.body_mut() = json.into(),
    }
    let values = [
        (header::ETAG, etag),
        (header::CONTENT_TYPE, content_type),
        (header::VARY, "Accept".into()),
        (header::CACHE_CONTROL, "public".into()),
    ];
    for (name, value) in values {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}
