//! The state of the cluster that decisions are made on: nodes in columns, and how many pods of each class every node has.
//! Kept up to date by single additions and removals, never rebuilt. It refuses to know queues, clients and plugins.
//!
//! A node keeps its id (its row in every column) as long as it exists or pods are bound to it: pods may become known
//! before their node does, and stay when it is deleted.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Taint};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use machinery::labels::Selector;

use crate::affinity::Labels;
use crate::groups::Group;
use crate::pod::{Class, HostPort, PodInfo};
use crate::requests::Requests;
use crate::storage::Storage;

pub type NodeId = usize;

/// Amounts of resources, a column per resource and a row per node.
#[derive(Debug, Default)]
pub struct Columns {
    pub base: [Vec<i64>; 3],
    extended: HashMap<String, Vec<i64>>,
}

impl Columns {
    fn grow(&mut self, rows: usize) {
        self.base.iter_mut().chain(self.extended.values_mut()).for_each(|column| column.resize(rows, 0));
    }

    pub fn extended(&self, resource: &str, node: NodeId) -> i64 {
        self.extended.get(resource).map_or(0, |column| column[node])
    }

    fn clear(&mut self, node: NodeId) {
        self.base.iter_mut().chain(self.extended.values_mut()).for_each(|column| column[node] = 0);
    }

    fn add(&mut self, node: NodeId, requests: &Requests, sign: i64) {
        let rows = self.base[0].len();
        for (column, amount) in self.base.iter_mut().zip(requests.base) {
            column[node] += sign * amount;
        }
        for (name, amount) in &requests.extended {
            if !self.extended.contains_key(name) {
                self.extended.insert(name.clone(), vec![0; rows]);
            }
            self.extended.get_mut(name).expect("just inserted")[node] += sign * amount;
        }
    }
}

#[derive(Debug, Default)]
pub struct NodeInfo {
    pub name: String,
    /// None while only pods bound to it are known.
    pub object: Option<Arc<Node>>,
    pub pods: Vec<Arc<PodInfo>>,
    /// One entry per pod that uses it.
    pub host_ports: Vec<HostPort>,
    /// Sizes by name.
    pub images: HashMap<String, i64>,
}

static NO_NODE: std::sync::LazyLock<Node> = std::sync::LazyLock::new(Node::default);

impl NodeInfo {
    pub fn object(&self) -> &Node {
        self.object.as_deref().unwrap_or(&NO_NODE)
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.object().metadata.labels.as_ref()?.get(key).map(String::as_str)
    }

    pub fn taints(&self) -> &[Taint] {
        taints(self.object())
    }
}

pub fn taints(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

type Counts = HashMap<NodeId, i64>;

#[derive(Debug, Default)]
pub struct Snapshot {
    rows: Vec<NodeInfo>,
    free: Vec<NodeId>,
    ids: HashMap<String, NodeId>,
    existing: Vec<NodeId>,
    pub allocatable: Columns,
    pub requested: Columns,
    /// Requested cpu and memory with assumed amounts for containers that request none.
    pub assumed: [Vec<i64>; 2],
    /// How many pods each node takes.
    pub capacity: Vec<i64>,
    classes: HashMap<String, HashMap<Arc<Class>, Counts>>,
    demanding: HashSet<Arc<Class>>,
    images: HashMap<String, usize>,
    namespaces: HashMap<String, Labels>,
    /// By namespace, then by kind and name.
    groups: HashMap<String, BTreeMap<(Cow<'static, str>, String), Selector>>,
    nominated: BTreeMap<String, Vec<Arc<PodInfo>>>,
    pub budgets: BTreeMap<String, Arc<PodDisruptionBudget>>,
    pub storage: Storage,
    /// How many pods on nodes use each claim.
    claims: HashMap<String, i64>,
}

/// Nodes.
impl Snapshot {
    /// The nodes that exist.
    pub fn nodes(&self) -> &[NodeId] {
        &self.existing
    }

    pub fn node(&self, id: NodeId) -> &NodeInfo {
        &self.rows[id]
    }

    /// The node of that name, if it exists.
    pub fn id(&self, name: &str) -> Option<NodeId> {
        self.ids.get(name).copied().filter(|id| self.rows[*id].object.is_some())
    }

    pub fn set_node(&mut self, node: Arc<Node>) {
        let id = self.row(node.metadata.name.as_deref().unwrap_or_default());
        if self.rows[id].object.is_none() {
            self.existing.push(id);
        }
        let amounts = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
        let mut allocatable = Requests::new(amounts.into_iter().flatten());
        self.capacity[id] = allocatable.extended.remove("pods").unwrap_or_default();
        self.allocatable.clear(id);
        self.allocatable.add(id, &allocatable, 1);
        let images = node.status.as_ref().and_then(|status| status.images.as_ref());
        let named = |image: &k8s_openapi::api::core::v1::ContainerImage| {
            let size = image.size_bytes.unwrap_or_default();
            image.names.iter().flatten().map(|name| (name.clone(), size)).collect::<Vec<_>>()
        };
        self.set_images(id, images.into_iter().flatten().flat_map(named).collect());
        self.rows[id].object = Some(node);
    }

    pub fn remove_node(&mut self, name: &str) {
        let Some(id) = self.id(name) else { return };
        self.existing.retain(|existing| *existing != id);
        self.set_images(id, HashMap::new());
        self.rows[id].object = None;
        self.allocatable.clear(id);
        self.capacity[id] = 0;
        self.collect(id);
    }

    fn set_images(&mut self, id: NodeId, images: HashMap<String, i64>) {
        for name in self.rows[id].images.keys() {
            match self.images.get_mut(name) {
                Some(nodes) if *nodes > 1 => *nodes -= 1,
                _ => drop(self.images.remove(name)),
            }
        }
        for name in images.keys() {
            *self.images.entry(name.clone()).or_default() += 1;
        }
        self.rows[id].images = images;
    }

    /// How many nodes have an image.
    pub fn nodes_with_image(&self, name: &str) -> usize {
        self.images.get(name).copied().unwrap_or_default()
    }

    fn row(&mut self, name: &str) -> NodeId {
        if let Some(id) = self.ids.get(name) {
            return *id;
        }
        let id = self.free.pop().unwrap_or_else(|| {
            let rows = self.rows.len() + 1;
            self.rows.push(NodeInfo::default());
            self.allocatable.grow(rows);
            self.requested.grow(rows);
            self.assumed.iter_mut().chain([&mut self.capacity]).for_each(|column| column.resize(rows, 0));
            rows - 1
        });
        self.rows[id].name = name.to_owned();
        self.ids.insert(name.to_owned(), id);
        id
    }

    /// Frees the row of a node that neither exists nor has pods.
    fn collect(&mut self, id: NodeId) {
        if self.rows[id].object.is_none() && self.rows[id].pods.is_empty() {
            self.ids.remove(&self.rows[id].name);
            self.rows[id] = NodeInfo::default();
            self.free.push(id);
        }
    }
}

/// Pods.
impl Snapshot {
    pub fn add_pod(&mut self, node: &str, pod: Arc<PodInfo>) {
        let id = self.row(node);
        self.account(id, &pod, 1);
        self.rows[id].host_ports.extend(pod.host_ports.iter().cloned());
        self.count_claims(&pod, 1);
        let classes = self.classes.entry(pod.class.namespace.clone()).or_default();
        *classes.entry(pod.class.clone()).or_default().entry(id).or_default() += 1;
        if !pod.class.demands.is_empty() {
            self.demanding.insert(pod.class.clone());
        }
        self.rows[id].pods.push(pod);
    }

    pub fn remove_pod(&mut self, node: &str, uid: &str) {
        let Some(id) = self.ids.get(node).copied() else { return };
        let Some(index) = self.rows[id].pods.iter().position(|pod| pod.uid == uid) else { return };
        let pod = self.rows[id].pods.swap_remove(index);
        self.account(id, &pod, -1);
        for port in &pod.host_ports {
            if let Some(index) = self.rows[id].host_ports.iter().position(|used| used == port) {
                self.rows[id].host_ports.swap_remove(index);
            }
        }
        self.count_claims(&pod, -1);
        self.discount(id, &pod.class);
        self.collect(id);
    }

    fn count_claims(&mut self, pod: &PodInfo, sign: i64) {
        for used in &pod.claims {
            let key = format!("{}/{}", pod.namespace(), used.claim);
            let uses = self.claims.entry(key.clone()).or_default();
            *uses += sign;
            if *uses == 0 {
                self.claims.remove(&key);
            }
        }
    }

    /// How many pods on nodes use a claim.
    pub fn uses_of(&self, namespace: &str, claim: &str) -> i64 {
        self.claims.get(&format!("{namespace}/{claim}")).copied().unwrap_or_default()
    }

    fn account(&mut self, id: NodeId, pod: &PodInfo, sign: i64) {
        self.requested.add(id, &pod.requests, sign);
        for (column, amount) in self.assumed.iter_mut().zip(pod.assumed) {
            column[id] += sign * amount;
        }
    }

    fn discount(&mut self, id: NodeId, class: &Arc<Class>) {
        let Some(classes) = self.classes.get_mut(&class.namespace) else { return };
        let Some(counts) = classes.get_mut(class) else { return };
        if let Some(count) = counts.get_mut(&id) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&id);
            }
        }
        if counts.is_empty() {
            classes.remove(class);
            self.demanding.remove(class);
        }
        if classes.is_empty() {
            self.classes.remove(&class.namespace);
        }
    }

    /// The classes of pods in a namespace, with the nodes that have some and how many.
    pub fn classes_in(&self, namespace: &str) -> impl Iterator<Item = (&Class, &Counts)> {
        self.classes.get(namespace).into_iter().flatten().map(|(class, counts)| (&**class, counts))
    }

    /// The classes of all pods.
    pub fn classes(&self) -> impl Iterator<Item = (&Class, &Counts)> {
        self.classes.values().flatten().map(|(class, counts)| (&**class, counts))
    }

    /// The classes whose pods make demands on others.
    pub fn demanding(&self) -> impl Iterator<Item = (&Class, &Counts)> {
        self.demanding.iter().filter_map(|class| Some((&**class, self.classes.get(&class.namespace)?.get(class)?)))
    }
}

/// Namespaces, groups and nominations.
impl Snapshot {
    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        match labels {
            Some(labels) => drop(self.namespaces.insert(name.to_owned(), labels)),
            None => drop(self.namespaces.remove(name)),
        }
    }

    pub fn namespace_labels(&self, name: &str) -> &Labels {
        static NONE: Labels = Labels::new();
        self.namespaces.get(name).unwrap_or(&NONE)
    }

    pub fn set_group(&mut self, group: Group) {
        let groups = self.groups.entry(group.namespace.clone()).or_default();
        let key = (group.kind, group.name);
        match group.selector {
            Some(selector) => drop(groups.insert(key, selector)),
            None => drop(groups.remove(&key)),
        }
        if groups.is_empty() {
            self.groups.remove(&group.namespace);
        }
    }

    /// What selects the pods that belong together with this one: the Services that select it, and its controller.
    pub fn siblings(&self, pod: &PodInfo) -> Option<Selector> {
        let groups = self.groups.get(pod.namespace())?;
        let controller = client::controller_of(&pod.object.metadata);
        let belongs = |((kind, name), selector): &(&(Cow<'static, str>, String), &Selector)| match &**kind {
            "Service" => selector.matches_map(&pod.class.labels),
            kind => controller.is_some_and(|owner| owner.kind == kind && owner.name == *name),
        };
        let chosen = groups.iter().filter(belongs).flat_map(|(_, selector)| selector.requirements().to_vec());
        Some(Selector::new(chosen)).filter(|selector| !selector.is_everything())
    }

    /// Reserves room on a node for a pod that waits there for its victims to end.
    pub fn nominate(&mut self, node: &str, pod: Arc<PodInfo>) {
        self.drop_nomination(&pod.uid);
        self.nominated.entry(node.to_owned()).or_default().push(pod);
    }

    /// The node that was nominated, if any.
    pub fn drop_nomination(&mut self, uid: &str) -> Option<String> {
        let is_it = |pod: &Arc<PodInfo>| pod.uid == uid;
        let node = self.nominated.iter().find(|(_, pods)| pods.iter().any(is_it))?.0.clone();
        let pods = self.nominated.get_mut(&node)?;
        pods.retain(|pod| !is_it(pod));
        if pods.is_empty() {
            self.nominated.remove(&node);
        }
        Some(node)
    }

    pub fn nominated_to(&self, node: &str) -> &[Arc<PodInfo>] {
        self.nominated.get(node).map(Vec::as_slice).unwrap_or_default()
    }

    pub fn has_nominations(&self) -> bool {
        !self.nominated.is_empty()
    }
}
