//! Each admission plugin on its own: what it adds, what it refuses, in which words.

use std::sync::Arc;

use resources::Scope;
use serde_json::json;

use super::*;
use crate::authn::lookup::memory::Memory;
use crate::authn::lookup::{
    CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, Kind, LIMIT_RANGES, NAMESPACES, NODES, PODS, PRIORITY_CLASSES,
    RESOURCE_QUOTAS, RUNTIME_CLASSES, SERVICE_ACCOUNTS, STORAGE_CLASSES,
};
use crate::identity::NODES as NODES_GROUP;

const fn facts(group: &'static str, kind: &'static str, plural: &'static str) -> Facts {
    Facts::namespaced(group, "v1", kind, plural, "", "")
}

static POD: Facts = facts("", "Pod", "pods");
static CONFIG_MAP: Facts = facts("", "ConfigMap", "configmaps");
static CLAIM: Facts = facts("", "PersistentVolumeClaim", "persistentvolumeclaims");
static VOLUME: Facts = Facts { scope: Scope::Cluster, ..facts("", "PersistentVolume", "persistentvolumes") };
static ACCOUNT: Facts = facts("", "ServiceAccount", "serviceaccounts");
static LEASE: Facts = facts("coordination.k8s.io", "Lease", "leases");
static ROLE: Facts = facts("rbac.authorization.k8s.io", "Role", "roles");
static BINDING: Facts = facts("rbac.authorization.k8s.io", "RoleBinding", "rolebindings");
static NODE: Facts = Facts { scope: Scope::Cluster, ..facts("", "Node", "nodes") };
static NAMESPACE: Facts = Facts { scope: Scope::Cluster, ..facts("", "Namespace", "namespaces") };

struct World {
    memory: Arc<Memory>,
    chain: Chain,
    user: UserInfo,
}

async fn world(objects: impl IntoIterator<Item = (Kind, Value)>) -> World {
    let base = [
        (NAMESPACES, json!({"metadata": {"name": "ns"}, "status": {"phase": "Active"}})),
        (SERVICE_ACCOUNTS, json!({"metadata": {"namespace": "ns", "name": "default", "uid": "1"}})),
    ];
    let memory = Memory::new(base.into_iter().chain(objects));
    let lookup: Arc<dyn Lookup> = memory.clone();
    let union = Union::start(lookup.clone());
    union.synced().await;
    World { memory, chain: Chain::standard(&lookup, &union), user: UserInfo::component("bob") }
}

impl World {
    fn into_node(mut self, node: &str) -> Self {
        self.user = UserInfo::new(format!("system:node:{node}"), [NODES_GROUP]);
        self
    }

    async fn run(
        &self,
        operation: Operation,
        resource: &'static Facts,
        subresource: &str,
        object: Option<Value>,
        old_object: Option<Value>,
    ) -> Result<Value> {
        let some = object.as_ref().or(old_object.as_ref()).unwrap();
        let name = some["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let mut request = AdmissionRequest {
            operation,
            resource,
            subresource,
            namespace: if resource.scope == Scope::Cluster { "" } else { "ns" },
            name: if operation == Operation::Create && subresource.is_empty() { "" } else { &name },
            object,
            old_object,
            user: &self.user,
            dry_run: false,
            options: json!({}),
            warnings: vec![],
        };
        self.chain.admit(&mut request).await?;
        self.chain.validate(&request).await?;
        Ok(request.object.unwrap_or_default())
    }

    async fn create(&self, resource: &'static Facts, object: Value) -> Result<Value> {
        self.run(Operation::Create, resource, "", Some(object), None).await
    }

    async fn update(&self, resource: &'static Facts, subresource: &str, old: Value, new: Value) -> Result<Value> {
        self.run(Operation::Update, resource, subresource, Some(new), Some(old)).await
    }

    async fn delete(&self, resource: &'static Facts, old: Value) -> Result<Value> {
        self.run(Operation::Delete, resource, "", None, Some(old)).await
    }

    async fn refusal(&self, resource: &'static Facts, object: Value) -> String {
        self.create(resource, object).await.expect_err("must be refused").to_string()
    }
}

fn pod(spec: Value) -> Value {
    let mut pod = json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": spec});
    if pod["spec"]["containers"].is_null() {
        pod["spec"]["containers"] = json!([{"name": "c"}]);
    }
    pod
}

#[tokio::test]
async fn namespaces_gate_creation() {
    let world = world([(NAMESPACES, json!({"metadata": {"name": "default"}}))]).await;
    let map = json!({"metadata": {"name": "m"}});
    assert!(world.create(&CONFIG_MAP, map.clone()).await.is_ok());

    world.memory.put(NAMESPACES, json!({"metadata": {"name": "ns"}, "status": {"phase": "Terminating"}}));
    let error = world.create(&CONFIG_MAP, map.clone()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"configmaps "m" is forbidden: unable to create new content in namespace ns because it is being terminated"#
    );
    assert_eq!(error.status.details.unwrap().causes[0].reason, "NamespaceTerminating");
    assert!(world.update(&CONFIG_MAP, "", map.clone(), map.clone()).await.is_ok());
    assert!(world.delete(&CONFIG_MAP, map.clone()).await.is_ok());

    world.memory.delete(NAMESPACES, "", "ns");
    assert_eq!(world.refusal(&CONFIG_MAP, map).await, r#"namespaces "ns" not found"#);
    let default = json!({"metadata": {"name": "default"}});
    let refusal = world.delete(&NAMESPACE, default).await.unwrap_err().to_string();
    assert_eq!(refusal, r#"namespaces "default" is forbidden: this namespace may not be deleted"#);
}

#[tokio::test]
async fn claims_and_volumes_are_completed() {
    let class = |name: &str, default: &str, grows: bool| {
        let annotations = json!({"storageclass.kubernetes.io/is-default-class": default});
        let class = json!({"metadata": {"name": name, "annotations": annotations}, "provisioner": "p",
            "allowVolumeExpansion": grows});
        (STORAGE_CLASSES, class)
    };
    let world = world([class("plain", "true", false), class("grows", "false", true)]).await;
    let claim = |class: Value, size: &str| {
        let spec = json!({"storageClassName": class, "resources": {"requests": {"storage": size}}});
        json!({"metadata": {"name": "c"}, "spec": spec, "status": {"phase": "Bound"}})
    };
    for (asked, given) in [(json!(null), "plain"), (json!(""), ""), (json!("grows"), "grows")] {
        let created = world.create(&CLAIM, claim(asked, "1Gi")).await.unwrap();
        assert_eq!(created["spec"]["storageClassName"], given);
        assert_eq!(created["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
    }
    let volume = json!({"metadata": {"name": "v", "finalizers": ["a/b"]}});
    let created = world.create(&VOLUME, volume).await.unwrap();
    assert_eq!(created["metadata"]["finalizers"], json!(["a/b", "kubernetes.io/pv-protection"]));

    let grow = |class: &str| world.update(&CLAIM, "", claim(json!(class), "1Gi"), claim(json!(class), "2Gi"));
    assert!(grow("grows").await.is_ok());
    assert_eq!(
        grow("plain").await.unwrap_err().to_string(),
        r#"persistentvolumeclaims "c" is forbidden: only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize"#
    );
    let mut pending = claim(json!("grows"), "1Gi");
    pending["status"] = json!({"phase": "Pending"});
    let refusal = world.update(&CLAIM, "", pending, claim(json!("grows"), "2Gi")).await.unwrap_err();
    assert!(refusal.to_string().ends_with("Only bound persistent volume claims can be expanded"));
}

#[tokio::test]
async fn pods_get_an_account_and_its_token() {
    let world = world([(
        SERVICE_ACCOUNTS,
        json!({"metadata": {"namespace": "ns", "name": "quiet"}, "automountServiceAccountToken": false,
            "imagePullSecrets": [{"name": "registry"}]}),
    )])
    .await;
    let mounts = json!([{"name": "own", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}]);
    let spec = json!({
        "initContainers": [{"name": "i"}],
        "containers": [{"name": "a"}, {"name": "b", "volumeMounts": mounts}],
    });
    let created = world.create(&POD, pod(spec)).await.unwrap();
    let spec = &created["spec"];
    assert_eq!((&spec["serviceAccountName"], &spec["serviceAccount"]), (&json!("default"), &json!("default")));
    let volume = &spec["volumes"][0];
    let name = volume["name"].as_str().unwrap();
    assert!(name.starts_with("kube-api-access-") && name.len() == "kube-api-access-".len() + 5, "{name}");
    let expected =
        json!([{"name": name, "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}]);
    assert_eq!(spec["initContainers"][0]["volumeMounts"], expected);
    assert_eq!(spec["containers"][0]["volumeMounts"], expected);
    assert_eq!(spec["containers"][1]["volumeMounts"], mounts, "an own mount stays");
    let sources = &volume["projected"]["sources"];
    assert_eq!(sources[0], json!({"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}}));
    assert_eq!(sources[1]["configMap"]["name"], "kube-root-ca.crt");
    assert_eq!(sources[2]["downwardAPI"]["items"][0]["path"], "namespace");

    let quiet = world.create(&POD, pod(json!({"serviceAccountName": "quiet"}))).await.unwrap();
    assert!(quiet["spec"]["volumes"].is_null());
    assert_eq!(quiet["spec"]["imagePullSecrets"], json!([{"name": "registry"}]));
    let asked = pod(json!({"serviceAccountName": "quiet", "automountServiceAccountToken": true}));
    assert!(world.create(&POD, asked).await.unwrap()["spec"]["volumes"].is_array());
    assert_eq!(
        world.refusal(&POD, pod(json!({"serviceAccountName": "none"}))).await,
        r#"pods "p" is forbidden: error looking up service account ns/none: serviceaccount "none" not found"#
    );
}

#[tokio::test]
async fn a_pod_waits_for_its_namespaces_default_account() {
    let world = world([]).await;
    world.memory.delete(SERVICE_ACCOUNTS, "ns", "default");
    let create = world.create(&POD, pod(json!({})));
    let appear = async {
        tokio::task::yield_now().await;
        world.memory.put(SERVICE_ACCOUNTS, json!({"metadata": {"namespace": "ns", "name": "default"}}));
    };
    let (created, ()) = tokio::join!(create, appear);
    created.unwrap();
}

#[tokio::test]
async fn pods_get_tolerations_and_priority() {
    let class = json!({"metadata": {"name": "high"}, "value": 7, "preemptionPolicy": "Never"});
    let world = world([(PRIORITY_CLASSES, class)]).await;
    let created = world.create(&POD, pod(json!({}))).await.unwrap();
    let keys: Vec<_> = pod::items(&created["spec"]["tolerations"]).map(|t| pod::text(t, "key")).collect();
    assert_eq!(keys, ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"]);
    assert_eq!(created["spec"]["tolerations"][0]["tolerationSeconds"], 300);
    assert_eq!(created["spec"]["priority"], 0);
    assert_eq!(created["spec"]["preemptionPolicy"], "PreemptLowerPriority");
    assert!(created["spec"]["priorityClassName"].is_null());

    let all = json!([{"operator": "Exists"}]);
    let created = world.create(&POD, pod(json!({"tolerations": all, "priorityClassName": "high"}))).await.unwrap();
    assert_eq!(created["spec"]["tolerations"], all);
    assert_eq!((&created["spec"]["priority"], &created["spec"]["preemptionPolicy"]), (&json!(7), &json!("Never")));

    let system = pod(json!({"priorityClassName": "system-node-critical"}));
    let created = world.create(&POD, system).await.unwrap();
    assert_eq!(created["spec"]["priority"], 2_000_001_000);
    let kept = world.update(&POD, "", created.clone(), pod(json!({}))).await.unwrap();
    assert_eq!(kept["spec"]["priority"], 2_000_001_000);

    assert_eq!(
        world.refusal(&POD, pod(json!({"priorityClassName": "x"}))).await,
        r#"pods "p" is forbidden: no PriorityClass with name x was found"#
    );
    assert!(
        world
            .refusal(&POD, pod(json!({"priority": 5})))
            .await
            .contains("the integer value of priority (5) must not be")
    );
}

#[tokio::test]
async fn runtime_classes_add_what_their_pods_need() {
    let class = json!({"metadata": {"name": "vm"}, "handler": "vm", "overhead": {"podFixed": {"memory": "64Mi"}},
        "scheduling": {"nodeSelector": {"vm": "yes"}, "tolerations": [{"key": "vm", "operator": "Exists"}]}});
    let world = world([(RUNTIME_CLASSES, class)]).await;
    let wanted = |extra: Value| {
        let mut spec = json!({"runtimeClassName": "vm", "nodeSelector": {"disk": "fast"}});
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        pod(spec)
    };
    let created = world.create(&POD, wanted(json!({}))).await.unwrap();
    assert_eq!(created["spec"]["overhead"], json!({"memory": "64Mi"}));
    assert_eq!(created["spec"]["nodeSelector"], json!({"disk": "fast", "vm": "yes"}));
    let tolerations = created["spec"]["tolerations"].as_array().unwrap();
    assert!(
        tolerations.contains(&json!({"key": "vm", "operator": "Exists"})),
        "beside the default ones: {tolerations:?}"
    );
    for (spec, complaint) in [
        (pod(json!({"runtimeClassName": "none"})), "pod rejected: RuntimeClass \"none\" not found"),
        (wanted(json!({"overhead": {"memory": "1Mi"}})), "Overhead doesn't match RuntimeClass's defined Overhead"),
        (pod(json!({"overhead": {"memory": "1Mi"}})), "Overhead set without corresponding RuntimeClass"),
        (wanted(json!({"nodeSelector": {"vm": "no"}})), "nodeSelector[vm] = yes; pod.spec.nodeSelector[vm] = no"),
    ] {
        let refusal = world.refusal(&POD, spec).await;
        assert!(refusal.contains(complaint), "{refusal} should say {complaint}");
    }
}

#[tokio::test]
async fn limit_ranges_fill_in_and_bound() {
    let limits = json!([
        {"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"},
         "min": {"cpu": "50m"}, "max": {"cpu": "1"}, "maxLimitRequestRatio": {"cpu": "8"}},
        {"type": "Pod", "max": {"cpu": "1500m"}},
        {"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "2Gi"}},
    ]);
    let range = json!({"metadata": {"namespace": "ns", "name": "l"}, "spec": {"limits": limits}});
    let world = world([(LIMIT_RANGES, range)]).await;
    let created = world.create(&POD, pod(json!({}))).await.unwrap();
    let resources = json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "500m"}});
    assert_eq!(created["spec"]["containers"][0]["resources"], resources);
    assert_eq!(
        created["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
        "LimitRanger plugin set: cpu request for container c; cpu limit for container c"
    );
    let with = |request: &str, limit: &str| {
        let resources = json!({"requests": {"cpu": request}, "limits": {"cpu": limit}});
        pod(json!({"containers": [{"name": "c", "resources": resources}]}))
    };
    let cases = [
        (with("10m", "50m"), "minimum cpu usage per Container is 50m, but request is 10m"),
        (
            with("1", "2"),
            "[maximum cpu usage per Container is 1, but limit is 2, maximum cpu usage per Pod is 1500m, but limit is 2]",
        ),
        (with("100m", "1"), "cpu max limit to request ratio per Container is 8, but provided ratio is 10.000000"),
    ];
    for (pod, why) in cases {
        assert_eq!(world.refusal(&POD, pod).await, format!("pods \"p\" is forbidden: {why}"));
    }
    let claim = |size: &str| json!({"metadata": {"name": "v"}, "spec": {"resources": {"requests": {"storage": size}}}});
    assert!(world.create(&CLAIM, claim("1Gi")).await.is_ok());
    assert!(
        world
            .refusal(&CLAIM, claim("3Gi"))
            .await
            .ends_with("maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi")
    );
}

#[tokio::test]
async fn nodes_start_tainted() {
    let world = world([]).await;
    let taint = json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]);
    let node = world.create(&NODE, json!({"metadata": {"name": "n"}, "spec": {}})).await.unwrap();
    assert_eq!(node["spec"]["taints"], taint);
    assert_eq!(world.create(&NODE, node).await.unwrap()["spec"]["taints"], taint, "once");
}

#[tokio::test]
async fn kubelets_change_only_their_own() {
    let bound =
        |node: &str| json!({"metadata": {"namespace": "ns", "name": "p", "uid": "u"}, "spec": {"nodeName": node}});
    let world =
        world([(PODS, bound("n")), (NODES, json!({"metadata": {"name": "n", "uid": "nu"}}))]).await.into_node("n");
    let owner = json!([{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "nu", "controller": true}]);
    let mirror = json!({
        "metadata": {"name": "m", "annotations": {"kubernetes.io/config.mirror": "h"}, "ownerReferences": owner},
        "spec": {"nodeName": "n", "containers": [{"name": "c"}]},
    });
    assert!(world.create(&POD, mirror.clone()).await.is_ok());
    let edit = |path: &str, value: Value| {
        let mut edited = mirror.clone();
        *edited.pointer_mut(path).unwrap() = value;
        edited
    };
    let refused = [
        (edit("/metadata/annotations", json!({})), "can only create mirror pods"),
        (edit("/spec/nodeName", json!("other")), "with spec.nodeName set to itself"),
        (edit("/metadata/ownerReferences", json!([])), "with an owner reference set to itself"),
        (edit("/metadata/ownerReferences/0/uid", json!("x")), "node n UID mismatch: expected x got nu"),
        (edit("/metadata/ownerReferences/0/controller", json!(false)), "with a controller owner reference"),
        (
            edit("/spec", json!({"nodeName": "n", "volumes": [{"configMap": {"name": "x"}}]})),
            "can not create pods that reference configmaps",
        ),
    ];
    for (pod, why) in refused {
        let refusal = world.refusal(&POD, pod).await;
        assert!(refusal.contains(why), "{refusal}");
    }

    let node =
        |labels: Value, taints: Value| json!({"metadata": {"name": "n", "labels": labels}, "spec": {"taints": taints}});
    let plain = node(json!({}), json!([]));
    let cases = [
        (node(json!({"kubernetes.io/os": "linux", "node.kubernetes.io/x": "y", "mine": "z"}), json!([])), None),
        (
            node(json!({"node-restriction.kubernetes.io/x": "y"}), json!([])),
            Some("is not allowed to modify labels: node-restriction.kubernetes.io/x"),
        ),
        (node(json!({"foo.k8s.io/x": "y"}), json!([])), Some("is not allowed to modify labels: foo.k8s.io/x")),
        (node(json!({}), json!([{"key": "k"}])), Some("is not allowed to modify taints")),
    ];
    for (changed, why) in cases {
        let updated = world.update(&NODE, "", plain.clone(), changed).await;
        match why {
            None => drop(updated.unwrap()),
            Some(why) => assert!(updated.unwrap_err().to_string().contains(why)),
        }
    }
    assert!(world.create(&NODE, json!({"metadata": {"name": "other"}})).await.is_err());

    assert!(world.update(&POD, "status", bound("n"), bound("n")).await.is_ok());
    assert!(world.update(&POD, "status", bound("m"), bound("m")).await.is_err());
    assert!(world.update(&POD, "", bound("n"), bound("n")).await.is_err());
    assert!(world.delete(&POD, bound("n")).await.is_ok());
    assert!(world.create(&LEASE, json!({"metadata": {"name": "n"}})).await.is_err(), "not in kube-node-lease");

    let token = |uid: &str| {
        json!({"metadata": {"name": "default"}, "spec": {
        "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid}}})
    };
    let request = async |body| world.run(Operation::Create, &ACCOUNT, "token", Some(body), None).await;
    assert!(request(token("u")).await.is_ok());
    assert!(request(token("x")).await.is_err());
    assert!(request(json!({"metadata": {"name": "default"}, "spec": {}})).await.is_err());
}

#[tokio::test]
async fn nobody_grants_what_they_lack() {
    let rules = |verbs: &[&str]| json!([{"verbs": verbs, "apiGroups": [""], "resources": ["pods"]}]);
    let own = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]);
    let subjects = json!([{"kind": "User", "name": "bob"}]);
    let role_ref = |name: &str| json!({"kind": "ClusterRole", "name": name});
    let world = world([
        (CLUSTER_ROLES, json!({"metadata": {"name": "reader"}, "rules": own})),
        (CLUSTER_ROLES, json!({"metadata": {"name": "writer"}, "rules": rules(&["delete"])})),
        (
            CLUSTER_ROLE_BINDINGS,
            json!({"metadata": {"name": "b"}, "roleRef": role_ref("reader"), "subjects": subjects}),
        ),
    ])
    .await;
    let role = |verbs: &[&str]| json!({"metadata": {"name": "r", "namespace": "ns"}, "rules": rules(verbs)});
    let binding = |name: &str| json!({"metadata": {"name": "b", "namespace": "ns"}, "roleRef": role_ref(name), "subjects": subjects});
    assert!(world.create(&ROLE, role(&["get"])).await.is_ok());
    assert_eq!(
        world.refusal(&ROLE, role(&["get", "delete"])).await,
        "roles.rbac.authorization.k8s.io \"r\" is forbidden: user \"bob\" (groups=[\"system:authenticated\"]) is \
         attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\"]}"
    );
    assert!(world.update(&ROLE, "", role(&["delete"]), role(&["delete"])).await.is_ok(), "nothing new is granted");
    assert!(world.create(&BINDING, binding("reader")).await.is_ok());
    assert!(world.refusal(&BINDING, binding("writer")).await.contains("not currently held"));
    assert_eq!(world.create(&BINDING, binding("none")).await.unwrap_err().status.code, 404);
    let master = World { user: UserInfo::master("admin"), ..world };
    assert!(master.create(&BINDING, binding("writer")).await.is_ok());
}

fn quota(hard: Value, used: Value) -> (Kind, Value) {
    let quota = json!({"metadata": {"namespace": "ns", "name": "q"}, "spec": {"hard": hard}, "status": {"hard": hard, "used": used}});
    (RESOURCE_QUOTAS, quota)
}

#[tokio::test]
async fn quotas_are_charged_and_enforced() {
    let hard = json!({"pods": "2", "requests.cpu": "1", "count/configmaps": "1"});
    let world = world([quota(hard, json!({"pods": "0", "requests.cpu": "0", "count/configmaps": "0"}))]).await;
    let with = |cpu: &str| pod(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}));
    assert_eq!(
        world.refusal(&POD, pod(json!({}))).await,
        r#"pods "p" is forbidden: failed quota: q: must specify requests.cpu for: c"#
    );
    world.create(&POD, with("600m")).await.unwrap();
    assert_eq!(
        world.refusal(&POD, with("600m")).await,
        r#"pods "p" is forbidden: exceeded quota: q, requested: requests.cpu=600m, used: requests.cpu=600m, limited: requests.cpu=1"#
    );
    world.create(&POD, with("400m")).await.unwrap();
    let lookup: Arc<dyn Lookup> = world.memory.clone();
    let stored: Value = lookup.require(RESOURCE_QUOTAS, "ns", "q").await.unwrap();
    assert_eq!(stored["status"]["used"], json!({"pods": "2", "requests.cpu": "1", "count/configmaps": "0"}));

    let map = |n: &str| json!({"metadata": {"name": n}});
    world.create(&CONFIG_MAP, map("a")).await.unwrap();
    assert!(world.update(&CONFIG_MAP, "", map("a"), map("a")).await.is_ok(), "an update costs nothing");
    assert!(world.refusal(&CONFIG_MAP, map("b")).await.contains("exceeded quota: q, requested: count/configmaps=1"));
}

#[tokio::test]
async fn concurrent_creates_never_exceed_a_quota() {
    let world = world([quota(json!({"count/configmaps": "5"}), json!({"count/configmaps": "0"}))]).await;
    let create = |n: usize| world.create(&CONFIG_MAP, json!({"metadata": {"name": n.to_string()}}));
    let results = futures::future::join_all((0..20).map(create)).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 5);
}

static SIGNING_REQUEST: Facts = Facts {
    scope: Scope::Cluster,
    ..facts("certificates.k8s.io", "CertificateSigningRequest", "certificatesigningrequests")
};

/// A request in PEM, as JSON carries bytes.
fn certificate_request(organization: &str) -> String {
    use base64::Engine;
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, organization);
    let request = params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap();
    base64::engine::general_purpose::STANDARD.encode(request.pem().unwrap())
}

#[tokio::test]
async fn requesters_are_stamped_and_signers_guarded() {
    let role = json!({"metadata": {"name": "approver"}, "rules": [
        {"apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "resourceNames": ["example.com/*"], "verbs": ["approve"]}]});
    let binding = json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "approver"},
        "subjects": [{"kind": "User", "name": "bob"}]});
    let world = world([(CLUSTER_ROLES, role), (CLUSTER_ROLE_BINDINGS, binding)]).await;
    let request = |signer: &str, organization: &str| {
        json!({"metadata": {"name": "r"},
            "spec": {"signerName": signer, "request": certificate_request(organization), "username": "alice", "groups": ["system:masters"]}})
    };
    let made = world.create(&SIGNING_REQUEST, request("example.com/s", "o")).await.unwrap();
    assert_eq!((&made["spec"]["username"], &made["spec"]["groups"]), (&json!("bob"), &json!(["system:authenticated"])));

    let client = "kubernetes.io/kube-apiserver-client";
    world.create(&SIGNING_REQUEST, request(client, "o")).await.unwrap();
    let refused = world.refusal(&SIGNING_REQUEST, request(client, "system:masters")).await;
    assert!(refused.ends_with("signer with system:masters group is not allowed"), "{refused}");

    let with = |signer: &str, status: Value| json!({"metadata": {"name": "r"}, "spec": {"signerName": signer}, "status": status});
    let (none, issued) = (json!({}), json!({"certificate": "AA=="}));
    for (subresource, signer, status, refusal) in [
        ("approval", "example.com/s", &none, None),
        ("approval", client, &none, Some("user not permitted to approve requests with signerName")),
        ("status", "example.com/s", &issued, Some("user not permitted to sign requests with signerName")),
        ("status", "example.com/s", &none, None),
        ("", client, &none, None),
    ] {
        let (old, new) = (with(signer, none.clone()), with(signer, status.clone()));
        let answer = world.update(&SIGNING_REQUEST, subresource, old, new).await.map_err(|error| error.to_string());
        match refusal {
            None => assert!(answer.is_ok(), "{subresource} {signer}: {answer:?}"),
            Some(why) => assert!(answer.as_ref().is_err_and(|error| error.contains(why)), "{subresource}: {answer:?}"),
        }
    }
}
