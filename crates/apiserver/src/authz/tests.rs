//! Tables of what RBAC and the node authorizer allow, and in which words they refuse.

use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::authn::lookup::memory::Memory;
use crate::authn::lookup::{
    CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, Kind, PERSISTENT_VOLUMES, PODS, ROLE_BINDINGS, ROLES, VOLUME_ATTACHMENTS,
};
use crate::identity::{AUTHENTICATED, NODES};

fn role(namespace: &str, name: &str, rules: Value) -> Value {
    json!({"metadata": {"namespace": namespace, "name": name}, "rules": rules})
}

fn binding(namespace: &str, name: &str, role: &str, subjects: Value) -> Value {
    let (kind, role) = role.split_once('/').unwrap();
    json!({
        "metadata": {"namespace": namespace, "name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
        "subjects": subjects,
    })
}

fn user(name: &str) -> Value {
    json!([{"kind": "User", "name": name}])
}

async fn start(objects: impl IntoIterator<Item = (Kind, Value)>) -> (Arc<Memory>, Arc<Union>) {
    let memory = Memory::new(objects);
    let union = Union::start(memory.clone());
    union.synced().await;
    (memory, union)
}

/// `verb [group/]resource[/subresource] [namespace/][name]` or `verb /path`.
fn allowed(authorizer: &dyn Authorizer, user: &UserInfo, request: &str) -> bool {
    decide(authorizer, user, request, "").allowed()
}

fn decide(authorizer: &dyn Authorizer, user: &UserInfo, request: &str, field_selector: &str) -> Decision {
    let mut words = request.split(' ');
    let (verb, what, object) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap_or_default());
    if what.starts_with('/') {
        return authorizer.authorize(&Attributes::path(user, verb, what));
    }
    let (group, resource) = what.split_once(':').unwrap_or(("", what));
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let (namespace, name) = object.split_once('/').unwrap_or(("", object));
    let attributes = Attributes::resource(user, verb, group, resource).subresource(subresource);
    authorizer.authorize(&Attributes { field_selector, ..attributes.namespace(namespace).name(name) })
}

#[tokio::test]
async fn rbac_rules_decide() {
    let rules = json!([
        {"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log"]},
        {"verbs": ["update"], "apiGroups": ["apps"], "resources": ["*/scale"]},
        {"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"]},
        {"verbs": ["*"], "apiGroups": ["*"], "resources": ["widgets"]},
        {"verbs": ["get"], "nonResourceURLs": ["/healthz", "/metrics/*"]},
    ]);
    let objects = [
        (CLUSTER_ROLES, role("", "everywhere", rules.clone())),
        (ROLES, role("ns", "here", rules)),
        (CLUSTER_ROLE_BINDINGS, binding("", "cluster", "ClusterRole/everywhere", user("root"))),
        (ROLE_BINDINGS, binding("ns", "local", "Role/here", json!([{"kind": "ServiceAccount", "name": "sa"}]))),
        (
            ROLE_BINDINGS,
            binding("ns", "of-group", "ClusterRole/everywhere", json!([{"kind": "Group", "name": "devs"}])),
        ),
    ];
    let (_, union) = start(objects).await;
    let root = UserInfo::component("root");
    let account = UserInfo::service_account("ns", "sa", "1");
    let stranger = UserInfo::service_account("other", "sa", "1");
    let dev = UserInfo::new("dev", ["devs"]);
    let cases = [
        (&root, "get pods ns/x", true),
        (&root, "list pods", true),
        (&root, "get pods/log ns/x", true),
        (&root, "get pods/exec ns/x", false),
        (&root, "delete pods ns/x", false),
        (&root, "update apps:deployments/scale ns/x", true),
        (&root, "update apps:deployments ns/x", false),
        (&root, "update deployments/scale ns/x", false),
        (&root, "get secrets ns/a", true),
        (&root, "get secrets ns/b", false),
        (&root, "list secrets ns/", false),
        (&root, "frobnicate acme.com:widgets ns/x", true),
        (&root, "get /healthz", true),
        (&root, "get /metrics/cadvisor", true),
        (&root, "get /metrics", false),
        (&root, "post /healthz", false),
        (&account, "list pods ns/", true),
        (&account, "list pods other/", false),
        (&account, "list pods", false),
        (&account, "get /healthz", false),
        (&stranger, "list pods ns/", false),
        (&dev, "list pods ns/", true),
        (&dev, "list pods", false),
        (&UserInfo::master("admin"), "delete anything:any x", true),
    ];
    for (user, request, expected) in cases {
        assert_eq!(allowed(union.as_ref(), user, request), expected, "{}: {request}", user.name);
    }
    let reason = decide(union.as_ref(), &account, "list pods ns/", "");
    let expected = r#"RBAC: allowed by RoleBinding "local/ns" of Role "here" to ServiceAccount "sa/ns""#;
    assert_eq!(reason, Decision::Allow(expected.into()));
}

#[tokio::test]
async fn policy_follows_changes() {
    let (memory, union) = start([]).await;
    let bob = UserInfo::component("bob");
    let wait_for = async |expected| {
        while allowed(union.as_ref(), &bob, "list pods ns/") != expected {
            tokio::task::yield_now().await;
        }
    };
    let rules = json!([{"verbs": ["list"], "apiGroups": [""], "resources": ["pods"]}]);
    memory.put(ROLE_BINDINGS, binding("ns", "b", "Role/r", user("bob")));
    memory.put(ROLES, role("ns", "r", rules.clone()));
    wait_for(true).await;
    memory.put(ROLES, role("ns", "r", json!(null)));
    wait_for(false).await;
    memory.put(ROLES, role("ns", "r", rules));
    wait_for(true).await;
    memory.put(ROLE_BINDINGS, binding("ns", "b", "Role/r", user("alice")));
    wait_for(false).await;
    memory.put(ROLE_BINDINGS, binding("ns", "b", "Role/r", user("bob")));
    wait_for(true).await;
    memory.delete(ROLE_BINDINGS, "ns", "b");
    wait_for(false).await;
}

#[tokio::test]
async fn refusals_read_as_upstream() {
    let objects = [(CLUSTER_ROLE_BINDINGS, binding("", "b", "ClusterRole/gone", user("x")))];
    let (_, union) = start(objects).await;
    let (x, y) = (UserInfo::component("x"), UserInfo::component("y"));
    let pods = |user| Attributes::resource(user, "list", "", "pods").namespace("ns");
    let cases = [
        (pods(&y), r#"pods is forbidden: User "y" cannot list resource "pods" in API group "" in the namespace "ns""#),
        (
            pods(&x),
            r#"pods is forbidden: User "x" cannot list resource "pods" in API group "" in the namespace "ns": RBAC: clusterrole.rbac.authorization.k8s.io "gone" not found"#,
        ),
        (
            Attributes::resource(&y, "get", "apps", "deployments").subresource("scale").namespace("ns").name("d"),
            r#"deployments.apps "d" is forbidden: User "y" cannot get resource "deployments/scale" in API group "apps" in the namespace "ns""#,
        ),
        (
            Attributes::resource(&y, "list", "", "nodes"),
            r#"nodes is forbidden: User "y" cannot list resource "nodes" in API group "" at the cluster scope"#,
        ),
        (Attributes::path(&y, "get", "/metrics"), r#"forbidden: User "y" cannot get path "/metrics""#),
    ];
    for (attributes, message) in cases {
        let error = check(union.as_ref(), &attributes).unwrap_err();
        assert_eq!((error.status.code, error.to_string()), (403, message.to_owned()));
    }
}

fn rule(verbs: &[&str], groups: &[&str], resources: &[&str], names: &[&str]) -> Rule {
    let list = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect();
    Rule {
        verbs: list(verbs),
        api_groups: list(groups),
        resources: list(resources),
        resource_names: list(names),
        non_resource_urls: vec![],
    }
}

#[test]
fn rules_cover_only_what_they_hold() {
    let pods = rule(&["get", "list"], &[""], &["pods"], &[]);
    let cases = [
        (vec![pods.clone()], rule(&["get"], &[""], &["pods"], &["a"]), ""),
        (
            vec![pods.clone()],
            rule(&["get"], &[""], &["pods/log"], &[]),
            r#"{APIGroups:[""], Resources:["pods/log"], Verbs:["get"]}"#,
        ),
        (vec![rule(&["*"], &["*"], &["*"], &[])], rule(&["get"], &["apps"], &["deployments/scale"], &["a"]), ""),
        (
            vec![rule(&["get"], &["apps"], &["*/scale"], &[])],
            rule(&["get"], &["apps"], &["deployments/scale"], &[]),
            "",
        ),
        (
            vec![rule(&["get"], &[""], &["pods"], &["a"])],
            rule(&["get"], &[""], &["pods"], &[]),
            r#"{APIGroups:[""], Resources:["pods"], Verbs:["get"]}"#,
        ),
        (
            vec![pods.clone()],
            rule(&["get", "delete", "watch"], &[""], &["pods"], &[]),
            r#"{APIGroups:[""], Resources:["pods"], Verbs:["delete" "watch"]}"#,
        ),
        // Each atom may come from another rule.
        (vec![pods, rule(&["watch"], &[""], &["pods"], &[])], rule(&["list", "watch"], &[""], &["pods"], &[]), ""),
    ];
    for (owned, wanted, missing) in cases {
        let lacking: Vec<_> = covers(&owned, std::slice::from_ref(&wanted)).iter().map(describe_rule).collect();
        assert_eq!(lacking.join("\n"), missing, "{owned:?} covers {wanted:?}");
    }
    let urls = |urls: &[&str]| Rule {
        verbs: vec!["get".into()],
        non_resource_urls: urls.iter().map(|url| (*url).to_owned()).collect(),
        ..Rule::default()
    };
    assert!(covers(&[urls(&["/metrics/*"])], &[urls(&["/metrics/a"])]).is_empty());
    assert!(!covers(&[urls(&["/metrics/*"])], &[urls(&["/metrics"])]).is_empty());
    assert!(!covers(&[urls(&["/metrics/*"])], &[urls(&["*"])]).is_empty());
}

fn pod(name: &str, node: &str) -> Value {
    json!({
        "metadata": {"namespace": "ns", "name": name, "uid": name},
        "spec": {
            "nodeName": node,
            "serviceAccountName": "sa",
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [
                {"name": "a", "secret": {"secretName": "vol"}},
                {"name": "b", "projected": {"sources": [{"secret": {"name": "proj"}}, {"configMap": {"name": "projcm"}}]}},
                {"name": "c", "persistentVolumeClaim": {"claimName": "claim"}},
                {"name": "d", "ephemeral": {"volumeClaimTemplate": {}}},
                {"name": "e", "csi": {"driver": "d", "nodePublishSecretRef": {"name": "csi"}}},
            ],
            "containers": [{
                "name": "c",
                "env": [
                    {"name": "A", "valueFrom": {"secretKeyRef": {"name": "env", "key": "k"}}},
                    {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "envcm", "key": "k"}}},
                ],
                "envFrom": [{"secretRef": {"name": "from"}}],
            }],
        },
    })
}

#[tokio::test]
async fn nodes_read_what_their_pods_need() {
    let mut mirror = pod("mirror", "m");
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    let objects = [
        (PODS, pod("p", "n")),
        (PODS, pod("unbound", "")),
        (PODS, mirror),
        (
            PERSISTENT_VOLUMES,
            json!({"metadata": {"name": "pv"}, "spec": {
                "claimRef": {"namespace": "ns", "name": "claim"},
                "csi": {"nodeStageSecretRef": {"namespace": "storage", "name": "stage"}},
            }}),
        ),
        (VOLUME_ATTACHMENTS, json!({"metadata": {"name": "va"}, "spec": {"nodeName": "n"}})),
    ];
    let (memory, union) = start(objects).await;
    let node = |name: &str| UserInfo::new(format!("system:node:{name}"), [NODES, AUTHENTICATED]);
    let (n, m) = (node("n"), node("m"));
    let own = [
        "get secrets ns/vol",
        "watch secrets ns/vol",
        "get secrets ns/proj",
        "get secrets ns/pull",
        "get secrets ns/env",
        "get secrets ns/from",
        "get secrets ns/csi",
        "get secrets storage/stage",
        "get configmaps ns/projcm",
        "list configmaps ns/envcm",
        "get persistentvolumeclaims ns/claim",
        "get persistentvolumeclaims ns/p-d",
        "patch persistentvolumeclaims/status ns/claim",
        "get persistentvolumes pv",
        "get storage.k8s.io:volumeattachments va",
        "create serviceaccounts/token ns/sa",
        "get pods ns/p",
        "get nodes n",
        "get coordination.k8s.io:leases kube-node-lease/n",
        "update coordination.k8s.io:leases kube-node-lease/n",
    ];
    for request in own {
        assert!(allowed(union.as_ref(), &n, request), "{request}");
        assert!(!allowed(union.as_ref(), &m, request), "{request} from another node");
    }
    let nobody = [
        "list secrets ns/",
        "list secrets",
        "delete secrets ns/vol",
        "get secrets ns/other",
        "create serviceaccounts ns/sa",
        "get pods/log ns/p",
        "list pods ns/",
        "delete nodes n",
        "get coordination.k8s.io:leases other/n",
        "get roles ns/x",
        "get /metrics",
    ];
    for request in nobody {
        assert!(!allowed(union.as_ref(), &n, request), "{request}");
    }
    let everyone = [
        "list services",
        "create events ns/",
        "create authentication.k8s.io:tokenreviews",
        "create pods ns/",
        "patch pods/status ns/p",
        "create pods/eviction ns/p",
        "create coordination.k8s.io:leases kube-node-lease/",
        "patch nodes/status n",
    ];
    for request in everyone {
        assert!(allowed(union.as_ref(), &n, request), "{request}");
    }
    assert!(decide(union.as_ref(), &n, "list pods", "spec.nodeName=n").allowed());
    assert!(!decide(union.as_ref(), &n, "list pods", "spec.nodeName=m").allowed());
    assert!(decide(union.as_ref(), &n, "watch nodes", "metadata.name=n").allowed());
    let refused = decide(union.as_ref(), &m, "get secrets ns/vol", "");
    assert_eq!(refused, Decision::NoOpinion("no relationship found between node 'm' and this object".into()));

    // The same objects follow the pod to another node, and go with it.
    memory.delete(PODS, "ns", "p");
    memory.put(PODS, pod("q", "m"));
    while !allowed(union.as_ref(), &m, "get secrets ns/vol") {
        tokio::task::yield_now().await;
    }
    assert!(!allowed(union.as_ref(), &n, "get secrets ns/vol"));
    assert!(!allowed(union.as_ref(), &n, "get persistentvolumes pv"));
}
