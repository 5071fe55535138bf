//! Who owns whom, as far as the watches have told. Pure: changes go in, keys worth looking at come out.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::common::discovery::Discovered;

pub const FOREGROUND: &str = "foregroundDeletion";
pub const ORPHANING: &str = "orphan";
/// Prefix of keys of owners whose dependents are to be orphaned; every other key is the uid of an object to check.
pub const ORPHAN: &str = "orphan/";

#[derive(Clone, Debug)]
pub struct Node {
    pub resource: Arc<Discovered>,
    pub namespace: String,
    pub name: String,
    pub owners: Vec<OwnerReference>,
    pub state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Alive,
    /// Being deleted, and waiting for nothing of ours.
    Deleting,
    /// Being deleted in the foreground: dependents first.
    DeletingDependents,
    /// Being deleted once its dependents are set free.
    Orphaning,
}

impl State {
    pub fn of(meta: &ObjectMeta) -> Self {
        let has = |wanted: &str| meta.finalizers.iter().flatten().any(|finalizer| finalizer == wanted);
        match meta.deletion_timestamp {
            None => Self::Alive,
            Some(_) if has(ORPHANING) => Self::Orphaning,
            Some(_) if has(FOREGROUND) => Self::DeletingDependents,
            Some(_) => Self::Deleting,
        }
    }
}

#[derive(Default)]
pub struct Graph {
    nodes: HashMap<String, Node>,
    /// By owner, known or not.
    dependents: HashMap<String, HashSet<String>>,
}

impl Graph {
    pub fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    pub fn dependents(&self, owner: &str) -> impl Iterator<Item = (&String, &Node)> {
        self.dependents.get(owner).into_iter().flatten().filter_map(|uid| self.nodes.get_key_value(uid))
    }

    /// Dependents that hold up the foreground deletion of their owner.
    pub fn blocking(&self, owner: &str) -> Vec<String> {
        let blocks = |node: &Node| {
            node.owners.iter().any(|reference| reference.uid == owner && reference.block_owner_deletion == Some(true))
        };
        self.dependents(owner).filter(|(_, node)| blocks(node)).map(|(uid, _)| uid.clone()).collect()
    }

    /// Takes in the present state of an object.
    pub fn observe(&mut self, resource: &Arc<Discovered>, meta: &ObjectMeta) -> Vec<String> {
        let uid = meta.uid.clone().unwrap_or_default();
        let owners: Vec<_> = meta.owner_references.clone().unwrap_or_default();
        let node = Node {
            resource: resource.clone(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            state: State::of(meta),
            owners,
        };
        let (state, new_owners) = (node.state, node.owners.clone());
        let old = self.nodes.insert(uid.clone(), node);
        let old_owners = old.as_ref().map(|old| old.owners.clone()).unwrap_or_default();
        let mut keys = Vec::new();
        self.relink(&uid, &old_owners, &new_owners, &mut keys);
        if old_owners != new_owners && self.needs_check(&new_owners) {
            keys.push(uid.clone());
        }
        if old.map(|old| old.state) != Some(state) {
            match state {
                State::DeletingDependents => {
                    keys.extend(self.dependents(&uid).map(|(dependent, _)| dependent.clone()));
                    keys.push(uid);
                }
                State::Orphaning => keys.push(format!("{ORPHAN}{uid}")),
                State::Alive | State::Deleting => {}
            }
        }
        keys
    }

    /// Whether an object with these owners may be garbage.
    fn needs_check(&self, owners: &[OwnerReference]) -> bool {
        owners.iter().any(|owner| {
            self.nodes.get(&owner.uid).is_none_or(|found| !is(found, owner) || found.state == State::DeletingDependents)
        })
    }

    /// Keeps the dependents of owners that were added or removed, and wakes owners that no longer wait for this object.
    fn relink(&mut self, uid: &str, old: &[OwnerReference], new: &[OwnerReference], keys: &mut Vec<String>) {
        for owner in old {
            let kept = new.iter().find(|candidate| candidate.uid == owner.uid);
            if kept.is_none() {
                self.unlink(&owner.uid, uid);
            }
            let unblocked = owner.block_owner_deletion == Some(true)
                && kept.is_none_or(|kept| kept.block_owner_deletion != Some(true));
            if unblocked {
                keys.extend(self.waiting(&owner.uid));
            }
        }
        for owner in new {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.to_owned());
        }
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    fn waiting(&self, owner: &str) -> Option<String> {
        self.nodes.get(owner).filter(|node| node.state == State::DeletingDependents).map(|_| owner.to_owned())
    }

    /// An object is gone: its dependents may be garbage, and its owners may have waited for it.
    pub fn forget(&mut self, uid: &str) -> Vec<String> {
        let Some(node) = self.nodes.remove(uid) else { return Vec::new() };
        let mut keys: Vec<String> = self.dependents.get(uid).into_iter().flatten().cloned().collect();
        for owner in &node.owners {
            self.unlink(&owner.uid, uid);
            keys.extend(self.waiting(&owner.uid));
        }
        keys
    }

    /// Whether all owners of an object are known to be there and to stay.
    pub fn is_owned_safely(&self, node: &Node) -> bool {
        !self.needs_check(&node.owners)
    }
}

/// Whether a known object is the one that a reference means: uids are only trusted with the coordinates they came with.
pub fn is(node: &Node, owner: &OwnerReference) -> bool {
    let group = |api_version: &str| api_version.split_once('/').map_or("", |(group, _)| group).to_owned();
    let resource = &node.resource.resource;
    resource.kind == owner.kind && node.name == owner.name && resource.group == group(&owner.api_version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::discovery::discovered;
    use serde_json::json;

    fn meta(uid: &str, owner: &str, more: serde_json::Value) -> ObjectMeta {
        let mut value = json!({"name": uid, "uid": uid, "namespace": "ns"});
        if !owner.is_empty() {
            value["ownerReferences"] =
                json!([{"apiVersion": "v1", "kind": "Pod", "name": owner, "uid": owner, "blockOwnerDeletion": true}]);
        }
        machinery::patch::merge_patch(&mut value, &more).unwrap();
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_is_worth_looking_at() {
        let pods = Arc::new(discovered("", "v1", "Pod", "pods", true));
        let mut graph = Graph::default();
        assert_eq!(graph.observe(&pods, &meta("child", "parent", json!({}))), ["child"], "its owner is not known");
        assert!(graph.observe(&pods, &meta("parent", "", json!({}))).is_empty());
        assert!(graph.observe(&pods, &meta("second", "parent", json!({}))).is_empty(), "its owner is");
        assert_eq!(graph.blocking("parent").len(), 2);

        let foreground = json!({"deletionTimestamp": "2024-01-01T00:00:00Z", "finalizers": [FOREGROUND]});
        let mut keys = graph.observe(&pods, &meta("parent", "", foreground));
        keys.sort();
        assert_eq!(keys, ["child", "parent", "second"]);
        assert_eq!(graph.forget("child"), ["parent"], "the owner waited for it");
        let unblocked = json!({"ownerReferences": [
            {"apiVersion": "v1", "kind": "Pod", "name": "parent", "uid": "parent", "blockOwnerDeletion": false}]});
        let keys = graph.observe(&pods, &meta("second", "parent", unblocked));
        assert!(keys.contains(&"parent".to_owned()) && graph.blocking("parent").is_empty());
        assert_eq!(graph.forget("parent"), ["second"]);
    }

    #[test]
    fn orphaning_and_false_names() {
        let pods = Arc::new(discovered("", "v1", "Pod", "pods", true));
        let mut graph = Graph::default();
        let orphaning = json!({"deletionTimestamp": "2024-01-01T00:00:00Z", "finalizers": [ORPHANING]});
        assert_eq!(graph.observe(&pods, &meta("parent", "", orphaning)), ["orphan/parent"]);
        graph.observe(&pods, &meta("real", "", json!({})));
        let liar = json!({"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "other", "uid": "real"}]});
        assert_eq!(graph.observe(&pods, &meta("liar", "", liar)), ["liar"], "a uid under another name is not trusted");
    }
}
