//! What a run has left in the cluster, without what differs from run to run: names that the server made up, uids,
//! addresses, times, revisions. Two runs that converged to the same state have equal snapshots.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use client::Client;
use controllers::common::discovery::{Discovered, discover};
use futures::future::join_all;
use jiff::Timestamp;
use kube::Api;
use kube::core::DynamicObject;
use serde_json::{Map, Value, json};

/// By run, a line for each object.
pub type Snapshots = BTreeMap<String, Vec<String>>;

/// Reports and heartbeats are no state.
const IGNORED: [&str; 2] = ["events", "leases"];

pub async fn resources(client: &Client) -> Vec<Discovered> {
    let mut found = discover(client).await.unwrap().resources;
    found.retain(|found| found.can("list") && !IGNORED.contains(&found.resource.plural.as_str()));
    found
}

pub async fn snapshots(client: &Client, resources: &[Discovered]) -> Snapshots {
    let lists = resources.iter().map(|found| async {
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &found.resource);
        let items = api.list(&Default::default()).await.unwrap().items;
        let kind = &found.resource.kind;
        items.into_iter().map(|item| (kind.clone(), serde_json::to_value(item).unwrap())).collect::<Vec<_>>()
    });
    let mut by_run: BTreeMap<String, Vec<(String, Value)>> = BTreeMap::new();
    for (kind, object) in join_all(lists).await.into_iter().flatten() {
        let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
        let place = [text("namespace"), text("name")].into_iter().find(|place| !place.is_empty());
        let run = place.unwrap_or_default().split('-').next().unwrap_or_default().to_owned();
        by_run.entry(run).or_default().push((kind, object));
    }
    by_run.into_iter().map(|(run, objects)| (run.clone(), lines(&run, objects))).collect()
}

fn lines(run: &str, objects: Vec<(String, Value)>) -> Vec<String> {
    let mut names: HashMap<String, String> = HashMap::new();
    for (kind, object) in &objects {
        let metadata = &object["metadata"];
        let name = metadata["name"].as_str().unwrap_or_default();
        if let Some(prefix) = metadata["generateName"].as_str() {
            names.insert(name.to_owned(), format!("{prefix}*"));
        }
        if let (Some(revision), Some(hash)) =
            (object["revision"].as_i64(), metadata["labels"]["controller-revision-hash"].as_str())
        {
            // A hash of what names the run.
            names.insert(hash.to_owned(), format!("hash of revision {revision}"));
            names.insert(name.to_owned(), format!("revision {revision}"));
        }
        if let Some(uid) = metadata["uid"].as_str() {
            let shown = names.get(name).map_or(name, String::as_str);
            names.insert(uid.to_owned(), format!("uid of {kind} {shown}"));
        }
    }
    let normal = Normal { run, names };
    let mut lines: Vec<String> = objects.into_iter().map(|(kind, object)| normal.object(&kind, object)).collect();
    lines.sort();
    lines
}

struct Normal<'a> {
    run: &'a str,
    names: HashMap<String, String>,
}

impl Normal<'_> {
    fn object(&self, kind: &str, mut object: Value) -> String {
        let generation = object["metadata"]["generation"].take();
        if let Some(observed) = object.pointer_mut("/status/observedGeneration") {
            *observed = json!(*observed == generation);
        }
        if let Some(metadata) = object["metadata"].as_object_mut() {
            ["managedFields", "generation", "creationTimestamp"].iter().for_each(|key| drop(metadata.remove(*key)));
        }
        format!("{kind} {}", self.value(object))
    }

    fn value(&self, value: Value) -> Value {
        match value {
            Value::String(text) => self.text(&text).into(),
            Value::Array(items) => {
                let mut items: Vec<_> = items.into_iter().map(|item| self.value(item)).collect();
                items.sort_by_cached_key(ToString::to_string); // the order may be that of names
                items.into()
            }
            Value::Object(fields) => self.fields(fields).into(),
            value => value,
        }
    }

    fn fields(&self, mut fields: Map<String, Value>) -> Map<String, Value> {
        // How long ago the news was depends on who brings it.
        for key in ["resourceVersion", "endpoints.kubernetes.io/last-change-trigger-time"] {
            fields.remove(key);
        }
        let is_condition = fields.contains_key("lastTransitionTime");
        if is_condition {
            fields.retain(|key, _| ["type", "status", "reason"].contains(&key.as_str()));
        }
        let fields = fields.into_iter().map(|(key, value)| (self.text(&key), self.value(value)));
        fields.filter(|(key, value)| key != "annotations" || *value != json!({})).collect()
    }

    fn text(&self, text: &str) -> String {
        let address = text.split('/').next().unwrap_or_default();
        if address.parse::<IpAddr>().is_ok() {
            return text.replace(address, "ADDRESS");
        }
        if text.parse::<Timestamp>().is_ok() {
            return "TIME".into();
        }
        if text.starts_with("kube-api-access-") {
            return "kube-api-access-*".into();
        }
        // Of provisioned volumes and what is gone.
        let volume = text.strip_prefix("pvc-").unwrap_or(text);
        if !self.names.contains_key(text) && is_uid(volume) {
            return "another's uid".into();
        }
        match self.names.get(text) {
            Some(name) => name.replace(self.run, "RUN"),
            None => text.replace(self.run, "RUN"),
        }
    }
}

fn is_uid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// What one snapshot has and the other has not.
pub fn difference(expected: &[String], found: &[String]) -> String {
    let without = |sign: char, from: &[String], other: &[String]| {
        let mut other = other.to_vec();
        let lacking = from.iter().filter(|line| match other.iter().position(|candidate| candidate == *line) {
            Some(index) => {
                other.swap_remove(index);
                false
            }
            None => true,
        });
        lacking.map(|line| format!("{sign} {line}\n")).collect::<String>()
    };
    without('-', expected, found) + &without('+', found, expected)
}

#[test]
fn snapshots_tell_state_and_nothing_else() {
    let pod = |run: &str, name: &str, phase: &str| {
        let object = json!({"metadata": {"name": name, "generateName": "web-", "namespace": run, "uid": name,
            "resourceVersion": name, "generation": 2}, "status": {"phase": phase, "observedGeneration": 2, "podIP": "10.0.0.1",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2024-01-01T00:00:00Z"}]}});
        ("Pod".to_owned(), object)
    };
    let one = lines("r1", vec![pod("r1", "web-a", "Running")]);
    assert_eq!(one, lines("r2", vec![pod("r2", "web-b", "Running")]));
    assert_eq!(difference(&one, &lines("r2", vec![pod("r2", "web-b", "Running")])), "");
    assert_ne!(one, lines("r2", vec![pod("r2", "web-b", "Failed")]));
    let two = lines("r2", vec![pod("r2", "web-b", "Running"), pod("r2", "web-c", "Running")]);
    assert_eq!(difference(&one, &two), format!("+ {}\n", one[0]));
}
