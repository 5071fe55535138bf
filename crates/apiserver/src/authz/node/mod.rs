//! The Node authorizer: a kubelet reads only what the pods bound to its node need.
//!
//! What of its own objects a kubelet may change, and how, is NodeRestriction's part, which sees the
//! content; here only names count.

mod graph;
mod references;

use std::borrow::Cow;
use std::sync::{Arc, LazyLock};

use machinery::fields::FieldSelector;

pub use graph::Graph;
pub use references::{Target, references};

use super::{Attributes, Authorizer, Decision, Rule};
use crate::authn::lookup::{Lookup, PERSISTENT_VOLUMES, PODS, VOLUME_ATTACHMENTS, follow};

pub struct NodeAuthorizer {
    graph: Arc<Graph>,
}

/// What every kubelet may do whatever runs on it: verbs, group, resources.
const RULES: &[(&str, &str, &str)] = &[
    ("create", "authentication.k8s.io", "tokenreviews"),
    ("create", "authorization.k8s.io", "subjectaccessreviews localsubjectaccessreviews"),
    ("get list watch", "", "services"),
    ("create update patch", "", "events"),
    ("create update patch", "events.k8s.io", "events"),
    ("get", "", "endpoints"),
    ("create get list watch", "certificates.k8s.io", "certificatesigningrequests"),
    ("get list watch", "storage.k8s.io", "csidrivers"),
    ("get list watch", "node.k8s.io", "runtimeclasses"),
    ("get list watch", "certificates.k8s.io", "clustertrustbundles"),
];

static NODE_RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
    let rule = |&(verbs, group, resources): &(&str, &str, &str)| Rule {
        verbs: words(verbs),
        api_groups: vec![group.to_owned()],
        resources: words(resources),
        ..Rule::default()
    };
    RULES.iter().map(rule).collect()
});

impl NodeAuthorizer {
    pub fn new(graph: Arc<Graph>) -> Self {
        NodeAuthorizer { graph }
    }

    pub fn follow(lookup: &dyn Lookup) -> Self {
        let graph = Arc::new(Graph::default());
        follow(&graph, |graph| &graph.synced, lookup, &[PODS, PERSISTENT_VOLUMES, VOLUME_ATTACHMENTS]);
        NodeAuthorizer { graph }
    }

    pub async fn synced(&self) {
        self.graph.synced.wait().await;
    }

    fn judge(&self, node: &str, a: &Attributes<'_>) -> Result<(), Cow<'static, str>> {
        let related = |found: bool| match found {
            true => Ok(()),
            false => Err(format!("no relationship found between node '{node}' and this object").into()),
        };
        let target = |target| self.graph.leads_to(node, target, a.namespace, a.name);
        match (a.group, a.resource, a.subresource) {
            ("", "secrets", _) => readable(a).and_then(|()| related(target(Target::Secret))),
            ("", "configmaps", _) => readable(a).and_then(|()| related(target(Target::ConfigMap))),
            ("", "persistentvolumeclaims", "status") => {
                verbs(a, &["update", "patch"], "can only get/update/patch this type")?;
                named(a).and_then(|()| related(target(Target::PersistentVolumeClaim)))
            }
            ("", "persistentvolumeclaims", _) => {
                gettable(a).and_then(|()| related(target(Target::PersistentVolumeClaim)))
            }
            ("", "persistentvolumes", _) => gettable(a).and_then(|()| related(self.graph.volume_is_on(node, a.name))),
            ("storage.k8s.io", "volumeattachments", _) => {
                gettable(a).and_then(|()| related(self.graph.attachment_is_on(node, a.name)))
            }
            ("", "serviceaccounts", "token") => {
                if a.verb != "create" || a.name.is_empty() {
                    return Err("can only create tokens for individual service accounts".into());
                }
                related(target(Target::ServiceAccount))
            }
            ("", "serviceaccounts", _) => gettable(a).and_then(|()| related(target(Target::ServiceAccount))),
            ("coordination.k8s.io", "leases", _) => lease(node, a),
            ("storage.k8s.io", "csinodes", _) => csi_node(node, a),
            ("", "nodes", subresource) => own_node(node, a, subresource),
            ("", "pods", subresource) => self.pod(node, a, subresource),
            _ if NODE_RULES.iter().any(|rule| rule.allows(a)) => Ok(()),
            _ => Err("".into()),
        }
    }

    fn pod(&self, node: &str, a: &Attributes<'_>, subresource: &str) -> Result<(), Cow<'static, str>> {
        let own = || match self.graph.pod_is_on(node, a.namespace, a.name) {
            true => Ok(()),
            false => Err(format!("no relationship found between node '{node}' and this object").into()),
        };
        match (subresource, a.verb) {
            ("", "get") => named(a).and_then(|()| own()),
            ("", "list" | "watch") if selects(a.field_selector, "spec.nodeName", node) => Ok(()),
            ("", "list" | "watch") if !a.name.is_empty() => own(),
            ("", "list" | "watch") => Err("can only list/watch pods with spec.nodeName field selector".into()),
            // What they may contain and whose they must be, NodeRestriction checks.
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => Ok(()),
            _ => Err("".into()),
        }
    }
}

fn selects(selector: &str, field: &str, value: &str) -> bool {
    FieldSelector::parse(selector).is_ok_and(|selector| selector.exact(field) == Some(value))
}

fn verbs(a: &Attributes<'_>, allowed: &[&str], why: &'static str) -> Result<(), Cow<'static, str>> {
    if allowed.contains(&a.verb) { Ok(()) } else { Err(why.into()) }
}

fn named(a: &Attributes<'_>) -> Result<(), Cow<'static, str>> {
    if a.name.is_empty() { Err("No Object name found".into()) } else { Ok(()) }
}

fn gettable(a: &Attributes<'_>) -> Result<(), Cow<'static, str>> {
    verbs(a, &["get"], "can only get individual resources of this type")?;
    if a.subresource.is_empty() { named(a) } else { Err("cannot get subresource".into()) }
}

fn readable(a: &Attributes<'_>) -> Result<(), Cow<'static, str>> {
    verbs(a, &["get", "list", "watch"], "can only read resources of this type")?;
    match (a.subresource, a.namespace) {
        ("", "") => Err("can only read namespaced object of this type".into()),
        ("", _) => named(a),
        _ => Err("cannot read subresource".into()),
    }
}

fn lease(node: &str, a: &Attributes<'_>) -> Result<(), Cow<'static, str>> {
    let why = "can only get, create, update, patch, or delete a node lease";
    verbs(a, &["get", "create", "update", "patch", "delete"], why)?;
    if a.namespace != "kube-node-lease" {
        return Err("can only access leases in the \"kube-node-lease\" system namespace".into());
    }
    match a.verb == "create" || a.name == node {
        true => Ok(()),
        false => Err("can only access node lease with the same name as the requesting node".into()),
    }
}

fn csi_node(node: &str, a: &Attributes<'_>) -> Result<(), Cow<'static, str>> {
    let why = "can only get, create, update, patch, or delete a CSINode";
    verbs(a, &["get", "create", "update", "patch", "delete"], why)?;
    match (a.subresource, a.verb == "create" || a.name == node) {
        ("", true) => Ok(()),
        ("", false) => Err("can only access CSINode with the same name as the requesting node".into()),
        _ => Err("cannot authorize CSINode subresources".into()),
    }
}

fn own_node(node: &str, a: &Attributes<'_>, subresource: &str) -> Result<(), Cow<'static, str>> {
    let selected = || selects(a.field_selector, "metadata.name", node);
    match (subresource, a.verb) {
        // NodeRestriction keeps it to its own Node.
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Ok(()),
        ("", "get" | "list" | "watch") if a.name == node => Ok(()),
        ("", "list" | "watch") if a.name.is_empty() && selected() => Ok(()),
        ("", "get" | "list" | "watch") => Err(match a.name {
            "" => format!("node '{node}' cannot read all nodes, only its own Node object").into(),
            other => format!("node '{node}' cannot read '{other}', only its own Node object").into(),
        }),
        _ => Err("".into()),
    }
}

impl Authorizer for NodeAuthorizer {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        let Some(node) = attributes.user.node() else { return Decision::NoOpinion("".into()) };
        if node.is_empty() {
            return Decision::NoOpinion(format!("unknown node for user {:?}", attributes.user.name).into());
        }
        let judged = match attributes.resource_request {
            true => self.judge(node, attributes),
            false => Err("".into()),
        };
        judged.map_or_else(Decision::NoOpinion, |()| Decision::Allow("".into()))
    }
}
