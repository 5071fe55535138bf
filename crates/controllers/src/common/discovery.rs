//! Every resource that the API serves, each in its group's preferred version that has it: what works on all of them
//! (namespace deletion, garbage collection) knows no kind by name.

use futures::future::join_all;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResourceList;
use kube::Client;
use kube::core::{ApiResource, DynamicObject, PartialObjectMeta};

/// Any object's metadata.
pub type Meta = PartialObjectMeta<DynamicObject>;

#[derive(Clone, Debug)]
pub struct Discovered {
    pub resource: ApiResource,
    pub namespaced: bool,
    verbs: Vec<String>,
}

impl Discovered {
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|has| has == verb)
    }
}

/// What is served, and the versions that could not be asked (an aggregated server that is down must not hide the rest).
#[derive(Debug, Default)]
pub struct Discovery {
    pub resources: Vec<Discovered>,
    pub failures: Vec<String>,
}

pub async fn discover(client: &Client) -> kube::Result<Discovery> {
    let (core, groups) = futures::try_join!(client.list_core_api_versions(), client.list_api_groups())?;
    let mut versions: Vec<(String, String)> =
        core.versions.into_iter().map(|version| (String::new(), version)).collect();
    for group in groups.groups {
        let preferred = group.preferred_version.map(|preferred| preferred.version);
        let mut served: Vec<String> = group.versions.into_iter().map(|version| version.version).collect();
        served.sort_by_key(|version| Some(version) != preferred.as_ref()); // stable: the preferred one first
        versions.extend(served.into_iter().map(|version| (group.name.clone(), version)));
    }
    let lists = join_all(versions.iter().map(|(group, version)| list(client, group, version))).await;
    let mut discovery = Discovery::default();
    for ((group, version), listed) in versions.iter().zip(lists) {
        match listed {
            Ok(list) => discovery.add(group, version, list),
            Err(error) => discovery.failures.push(format!("{group}/{version}: {}", super::message(&error))),
        }
    }
    Ok(discovery)
}

async fn list(client: &Client, group: &str, version: &str) -> kube::Result<APIResourceList> {
    match group {
        "" => client.list_core_api_resources(version).await,
        group => client.list_api_group_resources(&format!("{group}/{version}")).await,
    }
}

impl Discovery {
    fn add(&mut self, group: &str, version: &str, list: APIResourceList) {
        for served in list.resources {
            let known = |has: &Discovered| has.resource.group == group && has.resource.plural == served.name;
            if served.name.contains('/') || self.resources.iter().any(known) {
                continue;
            }
            let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
            let resource = ApiResource {
                group: group.to_owned(),
                version: version.to_owned(),
                api_version,
                kind: served.kind,
                plural: served.name,
            };
            self.resources.push(Discovered { resource, namespaced: served.namespaced, verbs: served.verbs });
        }
    }
}

/// A resource by hand, for tests of what works on any.
#[cfg(test)]
pub fn discovered(group: &str, version: &str, kind: &str, plural: &str, namespaced: bool) -> Discovered {
    let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let resource = ApiResource {
        group: group.into(),
        version: version.into(),
        api_version,
        kind: kind.into(),
        plural: plural.into(),
    };
    Discovered { resource, namespaced, verbs: Vec::new() }
}
