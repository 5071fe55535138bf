//! NodeRestriction: a kubelet changes only its own Node, its Lease and the pods bound to it.
//!
//! The Node authorizer decided by names; this looks at the content.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use machinery::status::{ApiError, Result};
use serde::Deserialize;
use serde_json::Value;

use super::pod::{MIRROR, is_mirror, items, text};
use super::{Admission, AdmissionRequest, Operation};
use crate::authn::lookup::{Lookup, Meta, NODES, PODS, Partial};
use crate::authz::{Target, references};

/// Labels under kubernetes.io that a kubelet may set on its Node.
const KUBELET_LABELS: &[&str] = &[
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
const KUBELET_LABEL_NAMESPACES: &[&str] = &["kubelet.kubernetes.io", "node.kubernetes.io"];
const RESTRICTED: &str = "node-restriction.kubernetes.io";

pub struct NodeRestriction {
    lookup: Arc<dyn Lookup>,
}

#[derive(Deserialize)]
struct Pod {
    metadata: Meta,
    #[serde(default)]
    spec: PodSpec,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodSpec {
    node_name: String,
}

impl NodeRestriction {
    pub fn new(lookup: Arc<dyn Lookup>) -> Self {
        NodeRestriction { lookup }
    }

    async fn pod(&self, namespace: &str, name: &str) -> Result<Pod> {
        self.lookup.as_ref().require(PODS, namespace, name).await
    }

    async fn judge(&self, node: &str, a: &AdmissionRequest<'_>) -> Result<()> {
        let object = a.object.as_ref().unwrap_or(&Value::Null);
        match (a.resource.group, a.resource.plural, a.subresource) {
            ("", "pods", "") => match a.operation {
                Operation::Create => self.create_pod(node, a, object).await,
                Operation::Delete => {
                    let own = self.pod(a.namespace, a.name).await?.spec.node_name == node;
                    require(own, a, || format!("node {node:?} can only delete pods with spec.nodeName set to itself"))
                }
                operation => Err(a.forbidden(format!(
                    "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
                    operation.as_str()
                ))),
            },
            ("", "pods", "status") => pod_status(node, a, object),
            ("", "pods", "eviction") => {
                let name = if a.name.is_empty() { text(&object["metadata"], "name") } else { a.name };
                let own = self.pod(a.namespace, name).await?.spec.node_name == node;
                require(own, a, || format!("node {node} can only evict pods with spec.nodeName set to itself"))
            }
            ("", "pods", other) => Err(
                a.forbidden(format!("unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"))
            ),
            ("", "nodes", _) => own_node(node, a, object),
            ("", "persistentvolumeclaims", "status") => claim_status(node, a, object),
            ("", "persistentvolumeclaims", _) => Err(a.forbidden("may only update PVC status")),
            ("", "serviceaccounts", "token") => self.token(node, a, object).await,
            ("coordination.k8s.io", "leases", _) => {
                let why = "can only access leases in the \"kube-node-lease\" system namespace";
                require(a.namespace == "kube-node-lease", a, || why.into())?;
                let why = "can only access node lease with the same name as the requesting node";
                require(a.name() == node, a, || why.into())
            }
            ("storage.k8s.io", "csinodes", _) => {
                let why = "can only access CSINode with the same name as the requesting node";
                require(a.name() == node, a, || why.into())
            }
            _ => Ok(()),
        }
    }

    async fn create_pod(&self, node: &str, a: &AdmissionRequest<'_>, pod: &Value) -> Result<()> {
        require(is_mirror(pod), a, || {
            format!("pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods")
        })?;
        let own = text(&pod["spec"], "nodeName") == node;
        require(own, a, || format!("node {node:?} can only create pods with spec.nodeName set to itself"))?;
        let owners: Vec<_> = items(&pod["metadata"]["ownerReferences"]).collect();
        let [owner] = owners[..] else {
            let what = if owners.is_empty() { "an" } else { "a single" };
            return Err(
                a.forbidden(format!("node {node:?} can only create pods with {what} owner reference set to itself"))
            );
        };
        let itself = [text(owner, "apiVersion"), text(owner, "kind"), text(owner, "name")] == ["v1", "Node", node];
        require(itself, a, || format!("node {node:?} can only create pods with an owner reference set to itself"))?;
        require(owner["controller"] == true, a, || {
            format!("node {node:?} can only create pods with a controller owner reference set to itself")
        })?;
        require(owner["blockOwnerDeletion"] != true, a, || {
            format!("node {node:?} must not set blockOwnerDeletion on an owner reference")
        })?;
        let stored: Partial = self.lookup.as_ref().require(NODES, "", node).await?;
        let (given, uid) = (text(owner, "uid"), stored.metadata.uid);
        require(given == uid, a, || format!("node {node} UID mismatch: expected {given} got {uid}"))?;
        match references(a.name(), &pod["spec"]).first() {
            None => Ok(()),
            Some((target, _)) => {
                let what = if *target == Target::ServiceAccount { "a service account" } else { target.plural() };
                Err(a.forbidden(format!("node {node:?} can not create pods that reference {what}")))
            }
        }
    }

    async fn token(&self, node: &str, a: &AdmissionRequest<'_>, object: &Value) -> Result<()> {
        let bound = &object["spec"]["boundObjectRef"];
        let to_pod =
            text(bound, "apiVersion") == "v1" && text(bound, "kind") == "Pod" && !text(bound, "name").is_empty();
        require(to_pod, a, || "node requested token not bound to a pod".into())?;
        let uid = text(bound, "uid");
        require(!uid.is_empty(), a, || "node requested token with a pod binding without a uid".into())?;
        let pod = self.pod(a.namespace, text(bound, "name")).await?;
        require(pod.metadata.uid == uid, a, || {
            format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. \
                 The object might have been deleted and then recreated"
            )
        })?;
        let why = "node requested token bound to a pod scheduled on a different node";
        require(pod.spec.node_name == node, a, || why.into())
    }
}

fn require(holds: bool, a: &AdmissionRequest<'_>, why: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(a.forbidden(why())) }
}

fn old<'a>(a: &'a AdmissionRequest<'_>) -> Result<&'a Value, ApiError> {
    let unexpected = || a.forbidden(format!("unexpected operation {:?}", a.operation.as_str()));
    a.old_object.as_ref().filter(|_| a.operation == Operation::Update).ok_or_else(unexpected)
}

fn pod_status(node: &str, a: &AdmissionRequest<'_>, pod: &Value) -> Result<()> {
    let old = old(a)?;
    require(text(&old["spec"], "nodeName") == node, a, || {
        format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself")
    })?;
    require(modified_labels(old, pod).is_empty(), a, || {
        format!("node {node:?} cannot update labels through pod status")
    })?;
    let claims = |pod: &Value| items(&pod["status"]["resourceClaimStatuses"]).cloned().collect::<Vec<_>>();
    require(claims(old) == claims(pod), a, || format!("node {node:?} cannot update resource claim statues"))
}

fn claim_status(node: &str, a: &AdmissionRequest<'_>, claim: &Value) -> Result<()> {
    let rest = |claim: &Value| {
        let mut rest = claim.clone();
        for field in ["capacity", "conditions", "allocatedResourceStatuses", "allocatedResources"] {
            rest["status"].as_object_mut().map(|status| status.remove(field));
        }
        for field in ["resourceVersion", "managedFields"] {
            rest["metadata"].as_object_mut().map(|metadata| metadata.remove(field));
        }
        rest
    };
    require(rest(old(a)?) == rest(claim), a, || {
        format!("node {node:?} is not allowed to update fields other than status.capacity and status.conditions")
    })
}

fn own_node(node: &str, a: &AdmissionRequest<'_>, object: &Value) -> Result<()> {
    let name = a.name();
    require(name == node, a, || format!("node {node:?} is not allowed to modify node {name:?}"))?;
    let none = Value::Null;
    let before = a.old_object.as_ref().unwrap_or(&none);
    let modified = modified_labels(before, object);
    let forbidden = forbidden_labels(&modified);
    match a.operation {
        Operation::Create => {
            require(object["spec"]["configSource"].is_null(), a, || {
                format!("node {node:?} is not allowed to create pods with a non-nil configSource")
            })?;
            require(forbidden.is_empty(), a, || {
                format!("node {node:?} is not allowed to set the following labels: {}", forbidden.join(", "))
            })
        }
        Operation::Update => {
            let taints = |node: &Value| items(&node["spec"]["taints"]).cloned().collect::<Vec<_>>();
            require(taints(before) == taints(object), a, || format!("node {node:?} is not allowed to modify taints"))?;
            require(forbidden.is_empty(), a, || format!("is not allowed to modify labels: {}", forbidden.join(", ")))
        }
        _ => Ok(()),
    }
}

fn modified_labels(old: &Value, new: &Value) -> BTreeSet<String> {
    let (old, new) = (&old["metadata"]["labels"], &new["metadata"]["labels"]);
    let keys = [old, new].into_iter().filter_map(Value::as_object).flat_map(|labels| labels.keys());
    keys.filter(|key| old.get(*key) != new.get(*key)).cloned().collect()
}

fn forbidden_labels(modified: &BTreeSet<String>) -> Vec<&str> {
    let under = |namespace: &str, domain: &str| {
        namespace == domain || namespace.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
    };
    let forbidden = |label: &&str| {
        let namespace = label.split_once('/').map_or("", |(namespace, _)| namespace);
        let allowed =
            KUBELET_LABELS.contains(label) || KUBELET_LABEL_NAMESPACES.iter().any(|own| under(namespace, own));
        let kubernetes = under(namespace, "kubernetes.io") || under(namespace, "k8s.io");
        under(namespace, RESTRICTED) || kubernetes && !allowed
    };
    modified.iter().map(String::as_str).filter(forbidden).collect()
}

#[async_trait]
impl Admission for NodeRestriction {
    fn handles(&self, operation: Operation) -> bool {
        operation != Operation::Connect
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> Result<()> {
        match request.user.node() {
            None => Ok(()),
            Some("") => {
                let why = format!("could not determine node from user {:?}", request.user.name);
                Err(request.forbidden(why))
            }
            Some(node) => self.judge(node, request).await,
        }
    }
}
