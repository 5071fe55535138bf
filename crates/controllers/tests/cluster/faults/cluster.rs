//! Controllers of namespaces, nodes and everything else, killed.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, ResourceQuota, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::Api;
use kube::api::{DeleteParams, Patch};
use serde_json::{Value, json};

use super::kubelet::ENDS;
use super::{Run, Scenario, survives};
use crate::Handy as _;
use crate::nodes::{beat, keeper, taints};

pub const SCENARIOS: &[Scenario] =
    &[GARBAGE, NAMESPACE, PUBLISHED, QUOTA, BUDGET, NODES, RETURN, POD_GC, TTL, AGGREGATION, SIGNING];

const GARBAGE: Scenario = Scenario::of(&["generic-garbage-collector"], |run| garbage(run).boxed());
const NAMESPACE: Scenario = Scenario::of(&["namespace-controller"], |run| namespace(run).boxed());
const PUBLISHED: Scenario =
    Scenario::of(&["service-account-controller", "root-ca-cert-publisher"], |run| published(run).boxed());
const QUOTA: Scenario = Scenario::of(&["resourcequota-controller"], |run| quota(run).boxed());
const BUDGET: Scenario = Scenario::of(&["disruption-controller"], |run| budget(run).boxed());
const NODES: Scenario = Scenario {
    identities: &["node-controller"],
    configure: |config| config.node_monitor_grace = Duration::from_millis(1500),
    beside: Some(|client| keeper(Api::all(client))),
    ..Scenario::of(&["node-controller", "taint-eviction-controller", "node-ipam-controller"], |run| nodes(run).boxed())
};
const RETURN: Scenario = Scenario {
    controllers: &["node-controller", "taint-eviction-controller"],
    drive: |run| comes_back(run).boxed(),
    ..NODES
};
const POD_GC: Scenario = Scenario {
    configure: |config| config.missing_node_quarantine = Duration::ZERO,
    ..Scenario::of(&["pod-garbage-collector"], |run| pod_gc(run).boxed())
};
const TTL: Scenario = Scenario {
    helpers: &["job-controller", "generic-garbage-collector"],
    ..Scenario::of(&["ttl-after-finished-controller"], |run| ttl(run).boxed())
};
const AGGREGATION: Scenario = Scenario::of(&["clusterrole-aggregation-controller"], |run| aggregation(run).boxed());

const SIGNING: Scenario = Scenario {
    identities: &["certificate-controller"],
    configure: |config| config.signer = Some(Arc::new(|_| Ok(block("CERTIFICATE")))),
    ..Scenario::of(&["certificatesigningrequest-signing-controller"], |run| signing(run).boxed())
};

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_garbage_collector_leaves_no_garbage() {
    survives(GARBAGE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_namespace_controller_empties_namespaces() {
    survives(NAMESPACE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_publishers_publish() {
    survives(PUBLISHED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_quota_controller_counts_right() {
    survives(QUOTA).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_disruption_controller_counts_right() {
    survives(BUDGET).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_node_controllers_give_each_node_its_due() {
    survives(NODES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_node_controllers_take_a_node_back() {
    survives(RETURN).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_pod_collector_collects() {
    survives(POD_GC).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_ttl_controller_ends_jobs() {
    survives(TTL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_aggregation_controller_aggregates() {
    survives(AGGREGATION).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_signer_signs() {
    survives(SIGNING).await;
}

async fn owned(run: &Run, name: &str, owner: &ConfigMap) -> ConfigMap {
    let reference = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": owner.metadata.name,
        "uid": owner.metadata.uid, "blockOwnerDeletion": true});
    run.make(json!({"metadata": {"name": name, "ownerReferences": [reference]}})).await
}

async fn garbage(run: Run) {
    for (name, deletion) in [
        ("background", DeleteParams::background()),
        ("foreground", DeleteParams::foreground()),
        ("orphan", DeleteParams::orphan()),
    ] {
        let owner: ConfigMap = run.make(json!({"metadata": {"name": name}})).await;
        for child in ["a", "b"] {
            let child = owned(&run, &format!("{name}-{child}"), &owner).await;
            owned(&run, &format!("{}-child", crate::name_of(&child)), &child).await;
        }
        run.remove::<ConfigMap>(name, deletion).await;
    }
    let kept = run.until_list::<ConfigMap>("what was set free, with its own, and the root CA", |maps| {
        maps.len() == 5 && maps.iter().filter(|map| map.metadata.owner_references.is_some()).count() == 2
    });
    assert!(kept.await.iter().all(|map| !crate::name_of(map.as_ref()).contains("ground")));
}

async fn namespace(run: Run) {
    let name = run.own("gone");
    let namespaces = run.cluster::<Namespace>();
    namespaces.make(json!({"metadata": {"name": name}})).await;
    run.until_key::<ServiceAccount>(&format!("{name}/default"), |_| true).await;
    let maps: Api<ConfigMap> = Api::namespaced(run.client.clone(), &name);
    maps.make(json!({"metadata": {"name": "held", "finalizers": ["example.com/hold"]}})).await;
    let pods: Api<Pod> = Api::namespaced(run.client.clone(), &name);
    pods.make(json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}})).await;
    namespaces.remove(&name, DeleteParams::default()).await;
    run.until_key::<ConfigMap>(&format!("{name}/held"), |map| map.metadata.deletion_timestamp.is_some()).await;
    maps.merge("held", json!({"metadata": {"finalizers": null}})).await;
    run.until_gone_key::<Namespace>(&name).await;
}

async fn published(run: Run) {
    const CA: &str = "kube-root-ca.crt";
    let published = |map: &ConfigMap| map.data.as_ref().is_some_and(|data| data["ca.crt"] == "the CA");
    run.until_get(CA, published).await;
    let first = run.until_get::<ServiceAccount>("default", |_| true).await;
    run.remove::<ServiceAccount>("default", DeleteParams::default()).await;
    run.until_get::<ServiceAccount>("default", |found| found.metadata.uid != first.metadata.uid).await;
    run.merge::<ConfigMap>(CA, json!({"data": {"ca.crt": "another"}})).await;
    run.until_get(CA, published).await;
    run.remove::<ConfigMap>(CA, DeleteParams::default()).await;
    run.until_get(CA, published).await;
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"app": "web"}}, "spec": {"terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "100m"}}}]}})
}

async fn quota(run: Run) {
    let uses = |quota: &ResourceQuota, pods: &str, maps: &str| {
        let used = quota.status.as_ref().and_then(|status| status.used.clone()).unwrap_or_default();
        used.get("pods").is_some_and(|used| used.0 == pods)
            && used.get("count/configmaps").is_some_and(|used| used.0 == maps)
    };
    run.make::<Pod>(pod("a")).await;
    run.until_get::<ConfigMap>("kube-root-ca.crt", |_| true).await;
    let hard = json!({"pods": "9", "requests.cpu": "1", "count/configmaps": "10"});
    run.make::<ResourceQuota>(json!({"metadata": {"name": "q"}, "spec": {"hard": hard}})).await;
    run.until_get("q", |quota| uses(quota, "1", "1")).await;
    run.make::<Pod>(pod("b")).await;
    run.make::<ConfigMap>(json!({"metadata": {"name": "m"}})).await;
    run.until_get("q", |quota| uses(quota, "2", "2")).await;
    run.remove::<Pod>("a", DeleteParams::default()).await;
    run.remove::<ConfigMap>("m", DeleteParams::default()).await;
    run.until_get("q", |quota| uses(quota, "1", "1")).await;
}

async fn budget(run: Run) {
    let spec = json!({"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}});
    run.make::<PodDisruptionBudget>(json!({"metadata": {"name": "web"}, "spec": spec})).await;
    for name in ["a", "b"] {
        run.make::<Pod>(pod(name)).await;
    }
    let allows = |budget: &PodDisruptionBudget, number: i32, healthy: i32| {
        let status = budget.status.clone().unwrap_or_default();
        (status.disruptions_allowed, status.current_healthy) == (Some(number), Some(healthy))
    };
    run.until_get("web", |budget| allows(budget, 1, 2)).await;
    run.api::<Pod>().evict("a", &Default::default()).await.unwrap();
    run.until_gone::<Pod>("a").await;
    run.until_get("web", |budget| allows(budget, 0, 1)).await;
}

/// A node whose kubelet said once that it is ready, and nothing since.
async fn silent_node(run: &Run) -> String {
    let (name, nodes) = (run.own("n"), run.cluster::<Node>());
    // In a zone of its own: nodes of one zone are given up slowly.
    let labels = json!({"topology.kubernetes.io/zone": run.name});
    nodes.make(json!({"metadata": {"name": name, "labels": labels}})).await;
    let ready = json!([{"type": "Ready", "status": "True", "reason": "KubeletReady",
        "lastHeartbeatTime": "2024-01-01T00:00:00Z", "lastTransitionTime": "2024-01-01T00:00:00Z"}]);
    nodes.merge_status(&name, json!({"conditions": ready})).await;
    name
}

/// A pod of a node, which bears for a while that nothing is heard of it.
async fn bound(run: &Run, name: &str, node: &str, seconds: u32) {
    let tolerations = json!([{"operator": "Exists", "effect": "NoExecute", "key": "node.kubernetes.io/unreachable",
        "tolerationSeconds": seconds},
        {"operator": "Exists", "effect": "NoExecute", "key": "node.kubernetes.io/not-ready"}]);
    let spec = json!({"nodeName": node, "terminationGracePeriodSeconds": 0, "tolerations": tolerations,
        "containers": [{"name": "c", "image": "i"}]});
    run.make::<Pod>(json!({"metadata": {"name": name}, "spec": spec})).await;
}

fn is_unready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "False")
}

/// A node falls silent: it had addresses of its own, and its pods go unless they tolerate that.
async fn nodes(run: Run) {
    let (name, nodes) = (silent_node(&run).await, run.cluster::<Node>());
    for (pod, seconds) in [("brief", 0), ("patient", 3600)] {
        bound(&run, pod, &name, seconds).await;
    }
    run.until_gone::<Pod>("brief").await;
    run.until_get("patient", is_unready).await;
    let cidr = |node: &Node| node.spec.as_ref().and_then(|spec| spec.pod_cidr.clone());
    let node = run.until_key(&name, |node| cidr(node).is_some()).await;
    let all = nodes.list(&Default::default()).await.unwrap().items;
    assert_eq!(all.iter().filter(|other| cidr(other) == cidr(&node)).count(), 1, "addresses given twice");
}

/// A node is heard of again before its pods lose patience: it loses its taints, and they stay.
async fn comes_back(run: Run) {
    let (name, nodes) = (silent_node(&run).await, run.cluster::<Node>());
    bound(&run, "patient", &name, 3600).await;
    run.until_key::<Node>(&name, |node| taints(node).len() == 2).await;
    run.until_get("patient", is_unready).await;
    let node = name.clone();
    // Until the test ends: the state of all runs is compared while it lives.
    tokio::spawn(async move { beat(nodes, &node).await });
    run.until_key::<Node>(&name, |node| taints(node).is_empty()).await;
    run.until_get::<Pod>("patient", |pod| pod.metadata.deletion_timestamp.is_none()).await;
}

async fn pod_gc(run: Run) {
    let spec = json!({"nodeName": run.own("missing"), "containers": [{"name": "c", "image": "i"}]});
    run.make::<Pod>(json!({"metadata": {"name": "p"}, "spec": spec})).await;
    run.until_gone::<Pod>("p").await;
}

async fn ttl(run: Run) {
    let template = json!({"metadata": {"annotations": {ENDS: "Succeeded"}},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}});
    let spec = json!({"ttlSecondsAfterFinished": 0, "template": template});
    run.make::<Job>(json!({"metadata": {"name": "job"}, "spec": spec})).await;
    run.until_gone::<Job>("job").await;
    run.until_list::<Pod>("its pods went too", <[_]>::is_empty).await;
}

async fn aggregation(run: Run) {
    let roles = run.cluster::<ClusterRole>();
    let labels = json!({"to": run.name});
    let rule = json!({"clusterRoleSelectors": [{"matchLabels": labels}]});
    roles.make(json!({"metadata": {"name": run.own("all")}, "aggregationRule": rule})).await;
    let verbs =
        |role: &ClusterRole| role.rules.iter().flatten().flat_map(|rule| rule.verbs.clone()).collect::<Vec<_>>();
    for (count, verb) in ["get", "list"].into_iter().enumerate() {
        let rules = json!([{"verbs": [verb], "apiGroups": [""], "resources": ["pods"]}]);
        roles.make(json!({"metadata": {"name": run.own(verb), "labels": labels}, "rules": rules})).await;
        run.until_key(&run.own("all"), |role| verbs(role).len() == count + 1).await;
    }
    roles.remove(&run.own("get"), DeleteParams::default()).await;
    run.until_key(&run.own("all"), |role| verbs(role) == ["list"]).await;
}

/// PEM of an empty DER sequence, which is a well-formed anything.
fn block(kind: &str) -> String {
    format!("-----BEGIN {kind}-----\nMAA=\n-----END {kind}-----\n")
}

async fn signing(run: Run) {
    let requests = run.cluster::<CertificateSigningRequest>();
    for (name, usage) in [("good", "client auth"), ("bad", "server auth")] {
        let request = ByteString(block("CERTIFICATE REQUEST").into_bytes());
        let spec = json!({"signerName": "kubernetes.io/kube-apiserver-client", "usages": [usage], "request": request});
        requests.make(json!({"metadata": {"name": run.own(name)}, "spec": spec})).await;
        let approved = json!({"status": {"conditions": [{"type": "Approved", "status": "True"}]}});
        requests
            .patch_subresource("approval", &run.own(name), &Default::default(), &Patch::Merge(approved))
            .await
            .unwrap();
    }
    run.until_key::<CertificateSigningRequest>(&run.own("good"), |request| {
        request.status.as_ref().is_some_and(|status| status.certificate.is_some())
    })
    .await;
    run.until_key::<CertificateSigningRequest>(&run.own("bad"), |request| {
        let conditions = request.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.into_iter().any(|condition| condition.type_ == "Failed")
    })
    .await;
}
