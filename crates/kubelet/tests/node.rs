//! A whole kubelet between the real API server, in memory, and a runtime without processes. The kubelet
//! is `system:node:test` there, so what the Node authorizer would refuse it fails here too.

use apiserver::identity::UserInfo;
use apiserver::pki::{Pki, PkiOptions};
use client::Client;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Node, Pod};
use kube::Api;
use kube::api::{DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams};
use kubelet::fake_cri::FakeCri;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// How long anything that should happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOPBACK: [u8; 4] = [127, 0, 0, 1];

struct Cluster {
    server: apiserver::Server,
    pki: Arc<Pki>,
    cri: FakeCri,
    directory: tempfile::TempDir,
    runtime_stop: CancellationToken,
}

struct Kubelet {
    task: JoinHandle<anyhow::Result<()>>,
    stop: CancellationToken,
}

impl Kubelet {
    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.runtime_stop.cancel();
    }
}

impl Cluster {
    async fn start() -> Cluster {
        let directory = tempfile::tempdir().unwrap();
        let options = PkiOptions { server_names: vec![], server_ips: vec![], cluster_domain: "cluster.local".into() };
        let pki = Arc::new(Pki::load_or_create(&directory.path().join("pki"), options).unwrap());
        let store = store::FjallStore::open(directory.path().join("store"), store::Options::default()).unwrap();
        let server = apiserver::Server::new(apiserver::Config {
            store: Arc::new(store),
            pki: pki.clone(),
            advertise: "127.0.0.1:6443".parse().unwrap(),
            service_cidr: "10.43.0.0/16".parse().unwrap(),
            node_ports: 30000..=32767,
            dialer: Arc::new(apiserver::upgrade::TcpDialer),
        })
        .await
        .unwrap();
        let (cri, runtime_stop) = (FakeCri::default(), CancellationToken::new());
        let socket = directory.path().join("cri.sock");
        let (serving, stop) = (cri.clone(), runtime_stop.clone());
        tokio::spawn(async move { serving.serve(&socket, stop).await.unwrap() });
        let cluster = Cluster { server, pki, cri, directory, runtime_stop };
        // The work of controllers elsewhere.
        for (path, object) in [
            ("serviceaccounts", json!({"kind": "ServiceAccount", "metadata": {"name": "default"}})),
            (
                "configmaps",
                json!({"kind": "ConfigMap", "metadata": {"name": "kube-root-ca.crt"}, "data": {"ca.crt": "CA"}}),
            ),
        ] {
            let request = http::Request::post(format!("/api/v1/namespaces/default/{path}"));
            let mut object = object;
            object["apiVersion"] = "v1".into();
            let request =
                request.header("content-type", "application/json").body(object.to_string().into_bytes()).unwrap();
            let _: Value = cluster.admin().request(request).await.unwrap();
        }
        cluster
    }

    fn client(&self, user: UserInfo) -> Client {
        let service = self.server.service().map_request(move |mut request: http::Request<_>| {
            request.extensions_mut().insert(user.clone());
            request
        });
        client::in_process(service, "test")
    }

    fn admin(&self) -> Client {
        self.client(UserInfo::master("admin"))
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.admin(), "default")
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("kubelet")
    }

    /// Starts the kubelet and waits for its node.
    async fn kubelet(&self) -> Kubelet {
        let endpoint = self.directory.path().join("cri.sock").display().to_string();
        let mut config = kubelet::Config::new("test", LOOPBACK.into(), &endpoint);
        config.root_dir = self.root();
        config.pod_logs_dir = self.directory.path().join("logs");
        config.cgroup_mount = self.directory.path().join("no-cgroups");
        config.node_status_interval = Duration::from_millis(200);
        // However full the disk of the machine that tests.
        let hard = kubelet::Eviction::HARD_WITHOUT_DISK;
        config.eviction = kubelet::Eviction::parse(&kubelet::EvictionFlags { hard, ..Default::default() }).unwrap();
        config.manifest_dir = Some(self.directory.path().join("manifests"));
        let serving = self.pki.node_serving("test", &["test".into()], &[LOOPBACK.into()]).unwrap();
        config.server = Some(kubelet::Server {
            listen: (LOOPBACK, 0).into(),
            certificate: serving.cert.into_bytes(),
            key: serving.key.into_bytes(),
            client_ca: self.pki.ca().as_bytes().to_vec(),
        });
        let stop = CancellationToken::new();
        let user = UserInfo::new("system:node:test", ["system:nodes", "system:authenticated"]);
        let task = tokio::spawn(kubelet::run(config, self.client(user), stop.clone()));
        let nodes: Api<Node> = Api::all(self.admin());
        wait("a ready node", async || {
            let node = nodes.get_opt("test").await.unwrap()?;
            let conditions = node.status.as_ref()?.conditions.clone()?;
            conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True").then_some(())
        })
        .await;
        Kubelet { task, stop }
    }

    async fn create(&self, name: &str, spec: Value) -> Pod {
        let mut spec = spec;
        spec["nodeName"] = "test".into();
        let pod = json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": spec});
        self.api::<Pod>().create(&PostParams::default(), &parse(pod)).await.unwrap()
    }

    /// Waits until the pod satisfies `check`; shows its last state if it never does.
    async fn until(&self, name: &str, what: &str, check: impl Fn(&Value) -> bool) -> Value {
        let pods = self.api::<Pod>();
        let last = std::cell::RefCell::new(Value::Null);
        let found = async {
            loop {
                let pod = serde_json::to_value(pods.get(name).await.unwrap()).unwrap();
                last.replace(pod.clone());
                if check(&pod["status"]) {
                    return pod;
                }
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        };
        let found = tokio::time::timeout(PATIENCE, found).await;
        found.unwrap_or_else(|_| panic!("{name} never became {what}: {:#}\n{:?}", last.borrow(), self.cri.calls()))
    }

    async fn phase(&self, name: &str, phase: &str) -> Value {
        self.until(name, phase, |status| status["phase"] == phase).await
    }

    async fn ready(&self, name: &str) -> Value {
        self.until(name, "ready", |status| is(status, "Ready", "True")).await
    }

    async fn gone(&self, name: &str) {
        let pods = self.api::<Pod>();
        wait(&format!("the end of {name}"), async || pods.get_opt(name).await.unwrap().is_none().then_some(())).await;
    }

    /// Waits for an event about the pod.
    async fn event(&self, pod: &str, reason: &str) -> Event {
        let events = self.api::<Event>();
        wait(&format!("event {reason} of {pod}"), async || {
            let all = events.list(&ListParams::default()).await.unwrap();
            let about = |event: &Event| event.involved_object.name.as_deref() == Some(pod);
            all.items.into_iter().find(|event| about(event) && event.reason.as_deref() == Some(reason))
        })
        .await
    }
}

fn parse<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

fn is(status: &Value, kind: &str, value: &str) -> bool {
    let conditions = status["conditions"].as_array();
    conditions.into_iter().flatten().any(|condition| condition["type"] == kind && condition["status"] == value)
}

fn waiting(status: &Value) -> &Value {
    &status["containerStatuses"][0]["state"]["waiting"]["reason"]
}

async fn wait<T>(what: &str, check: impl AsyncFn() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = check().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

fn one(extra: Value) -> Value {
    let mut container = json!({"name": "c", "image": "app:1", "command": ["serve"]});
    container.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    json!({"containers": [container], "terminationGracePeriodSeconds": 7})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_lives_from_binding_to_deletion() {
    let cluster = Cluster::start().await;
    let kubelet = cluster.kubelet().await;
    let map: ConfigMap = parse(json!({"metadata": {"name": "settings"}, "data": {"key": "one"}}));
    cluster.api::<ConfigMap>().create(&PostParams::default(), &map).await.unwrap();
    let mut spec = one(json!({
        "env": [
            {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "key"}}},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "BOTH", "value": "$(KEY)/$(KUBERNETES_SERVICE_HOST)"}],
        "lifecycle": {"preStop": {"exec": {"command": ["goodbye"]}}},
        "volumeMounts": [{"name": "v", "mountPath": "/v"}]}));
    spec["volumes"] = json!([{"name": "v", "configMap": {"name": "settings"}}]);
    let began = Instant::now();
    cluster.create("p", spec).await;
    let pod = cluster.ready("p").await;
    println!("from binding to Ready: {:?}", began.elapsed());
    let status = &pod["status"];
    assert_eq!(
        (&status["phase"], &status["qosClass"], &status["hostIP"]),
        (&json!("Running"), &json!("BestEffort"), &json!("127.0.0.1"))
    );
    assert!(status["podIP"].as_str().unwrap().starts_with("10.42."));
    let container = cluster.cri.container("c").unwrap();
    let variable = |name: &str| container.envs.iter().find(|env| env.key == name).map(|env| env.value.clone());
    assert_eq!(variable("IP").as_deref(), status["podIP"].as_str());
    assert_eq!(variable("BOTH").as_deref(), Some("one/10.43.0.1"));
    let mounted =
        |path: &str| container.mounts.iter().find(|mount| mount.container_path == path).unwrap().host_path.clone();
    let token =
        std::fs::read_to_string(format!("{}/token", mounted("/var/run/secrets/kubernetes.io/serviceaccount"))).unwrap();
    assert_eq!(token.split('.').count(), 3, "a signed token: {token}");
    for reason in ["Pulling", "Pulled", "Created", "Started"] {
        cluster.event("p", reason).await;
    }

    // A changed ConfigMap reaches the running container.
    let file = format!("{}/key", mounted("/v"));
    let patch = Patch::Merge(json!({"data": {"key": "two"}}));
    cluster.api::<ConfigMap>().patch("settings", &PatchParams::default(), &patch).await.unwrap();
    wait("the new content", async || (std::fs::read_to_string(&file).ok()? == "two").then_some(())).await;

    // Through the API server, the kubelet's TLS and its log reader.
    let logs = cluster.api::<Pod>().logs("p", &LogParams::default()).await.unwrap();
    assert_eq!(logs, "c runs\n");

    cluster.api::<Pod>().delete("p", &DeleteParams::default()).await.unwrap();
    cluster.gone("p").await;
    wait("an empty runtime", async || (cluster.cri.sandboxes() == 0).then_some(())).await;
    let calls = cluster.cri.calls();
    let position = |wanted: &str| {
        calls.iter().position(|call| call.starts_with(wanted)).unwrap_or_else(|| panic!("{wanted} in {calls:?}"))
    };
    assert!(position("ExecSync goodbye") < position("StopContainer c 7"));
    assert!(!cluster.root().join("pods").join(pod["metadata"]["uid"].as_str().unwrap()).exists());
    cluster.event("p", "Killing").await;
    kubelet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_told_and_retried() {
    let cluster = Cluster::start().await;
    let kubelet = cluster.kubelet().await;
    cluster.create("crash", one(json!({"command": ["exit", "3"]}))).await;
    cluster.create("image", one(json!({"image": "missing:1"}))).await;
    cluster.create("config", one(json!({"envFrom": [{"configMapRef": {"name": "later"}}]}))).await;
    cluster.create("name", one(json!({"image": "Not A Name"}))).await;
    let mut never = one(json!({"command": ["exit", "3"]}));
    never["restartPolicy"] = "Never".into();
    cluster.create("never", never.clone()).await;
    never["containers"][0]["command"] = json!(["exit", "0"]);
    cluster.create("done", never).await;
    let mut big = one(json!({"resources": {"requests": {"cpu": "1000"}}}));
    big["restartPolicy"] = "Never".into();
    cluster.create("big", big).await;

    let crash = cluster.until("crash", "backing off", |status| waiting(status) == "CrashLoopBackOff").await;
    let container = &crash["status"]["containerStatuses"][0];
    assert_eq!((&container["restartCount"], &container["lastState"]["terminated"]["exitCode"]), (&json!(1), &json!(3)));
    let message = container["state"]["waiting"]["message"].as_str().unwrap();
    assert!(message.starts_with("back-off 10s restarting failed container=c pod=crash_default("), "{message}");
    assert_eq!(cluster.event("crash", "BackOff").await.type_.as_deref(), Some("Warning"));

    cluster.until("image", "backing off", |status| waiting(status) == "ImagePullBackOff").await;
    let failed = cluster.event("image", "Failed").await;
    assert!(failed.message.unwrap().starts_with("Failed to pull image \"missing:1\": failed to resolve"));
    cluster.until("name", "refused", |status| waiting(status) == "InvalidImageName").await;
    let failed = cluster.phase("never", "Failed").await;
    assert_eq!(failed["status"]["containerStatuses"][0]["state"]["terminated"]["reason"], "Error");
    let done = cluster.phase("done", "Succeeded").await;
    assert!(is(&done["status"], "Ready", "False"));
    let big = cluster.phase("big", "Failed").await;
    assert_eq!(big["status"]["reason"], "OutOfcpu");

    // What was missing arrives.
    cluster.until("config", "refused", |status| waiting(status) == "CreateContainerConfigError").await;
    let map: ConfigMap = parse(json!({"metadata": {"name": "later"}, "data": {"A": "1"}}));
    cluster.api::<ConfigMap>().create(&PostParams::default(), &map).await.unwrap();
    cluster.ready("config").await;
    let big = cluster.phase("big", "Failed").await;
    assert_eq!(big["status"]["containerStatuses"], Value::Null, "what never began has no containers to tell of");
    for pod in ["crash", "image", "config", "name", "never", "done", "big"] {
        cluster.api::<Pod>().delete(pod, &DeleteParams::default().grace_period(0)).await.unwrap();
        cluster.gone(pod).await;
    }
    wait("an empty runtime", async || (cluster.cri.sandboxes() == 0).then_some(())).await;
    kubelet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_show_no_gap_and_ends_make_room() {
    let cluster = Cluster::start().await;
    let kubelet = cluster.kubelet().await;
    cluster.create("swap", one(json!({}))).await;
    cluster.ready("swap").await;
    let pods = cluster.api::<Pod>();
    let image = json!({"spec": {"containers": [{"name": "c", "image": "app:2"}]}});
    pods.patch("swap", &PatchParams::default(), &Patch::Strategic(image)).await.unwrap();
    let replaced = |status: &Value| {
        assert!(is(status, "Ready", "True") && is(status, "ContainersReady", "True"), "{status:#}");
        status["containerStatuses"][0]["restartCount"] == 1
    };
    cluster.until("swap", "replaced", replaced).await;

    // Whose last word is the node's own has what it takes for others at once.
    let nodes: Api<Node> = Api::all(cluster.admin());
    let node = nodes.list(&ListParams::default()).await.unwrap().items.remove(0);
    let cpu = serde_json::to_value(node).unwrap()["status"]["allocatable"]["cpu"].clone();
    for index in 0..10 {
        let mut spec = one(json!({"command": ["exit", "0"], "resources": {"requests": {"cpu": cpu}}}));
        spec["restartPolicy"] = "Never".into();
        let name = format!("whole-{index}");
        cluster.create(&name, spec).await;
        cluster.phase(&name, "Succeeded").await;
    }

    // A status that somebody else has written gives way to the kubelet's.
    let lie = json!({"status": {"message": "mine", "conditions": [{"type": "Ready", "status": "False"}]}});
    pods.patch_status("swap", &PatchParams::default(), &Patch::Strategic(lie)).await.unwrap();
    cluster.until("swap", "ready again", |status| is(status, "Ready", "True") && status["message"].is_null()).await;
    kubelet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_and_hooks_decide_readiness() {
    let cluster = Cluster::start().await;
    let kubelet = cluster.kubelet().await;
    let probe = |command: &str| json!({"exec": {"command": [command]}, "periodSeconds": 1, "failureThreshold": 1});
    cluster.create("good", one(json!({"startupProbe": probe("true"), "readinessProbe": probe("true")}))).await;
    cluster.create("unready", one(json!({"readinessProbe": probe("false")}))).await;
    cluster.create("sick", one(json!({"livenessProbe": probe("false")}))).await;
    let mut staged = one(json!({"lifecycle": {"postStart": {"exec": {"command": ["true", "hello"]}}}}));
    staged["initContainers"] = json!([
        {"name": "init", "image": "app:1", "command": ["exit", "0"]},
        {"name": "side", "image": "app:1", "restartPolicy": "Always"}]);
    cluster.create("staged", staged).await;

    cluster.ready("good").await;
    cluster.ready("staged").await;
    let calls = cluster.cri.calls();
    let starts: Vec<&String> = calls
        .iter()
        .filter(|c| ["StartContainer init", "StartContainer side", "ExecSync true hello"].contains(&c.as_str()))
        .collect();
    assert_eq!(starts, ["StartContainer init", "StartContainer side", "ExecSync true hello"]);

    let unhealthy = cluster.event("unready", "Unhealthy").await;
    assert_eq!(unhealthy.message.as_deref(), Some("Readiness probe failed: "));
    let unready = cluster.phase("unready", "Running").await;
    assert!(is(&unready["status"], "ContainersReady", "False"));
    let restarted = |status: &Value| status["containerStatuses"][0]["restartCount"].as_i64() >= Some(1);
    cluster.until("sick", "restarted", restarted).await;
    let killing = cluster.event("sick", "Killing").await;
    assert_eq!(killing.message.as_deref(), Some("Container c failed liveness probe, will be restarted"));
    kubelet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_kubelet_keeps_pods_and_removes_orphans() {
    let cluster = Cluster::start().await;
    let kubelet = cluster.kubelet().await;
    cluster.create("kept", one(json!({}))).await;
    cluster.create("orphan", one(json!({"name": "o"}))).await;
    let before = cluster.ready("kept").await;
    cluster.ready("orphan").await;
    kubelet.stop().await;
    assert_eq!(cluster.cri.sandboxes(), 2, "pods outlive the kubelet");
    cluster.api::<Pod>().delete("orphan", &DeleteParams::default().grace_period(0)).await.unwrap();
    cluster.gone("orphan").await;

    let kubelet = cluster.kubelet().await;
    wait("the orphan's end", async || (cluster.cri.sandboxes() == 1).then_some(())).await;
    let after = cluster.ready("kept").await;
    let id = |pod: &Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    assert_eq!(id(&before), id(&after));
    assert_eq!(after["status"]["containerStatuses"][0]["restartCount"], 0);
    // It is not only remembered but owned: an exit is noticed and repaired.
    cluster.cri.exit("c", 1);
    cluster.until("kept", "restarted", |status| status["containerStatuses"][0]["restartCount"] == 1).await;
    kubelet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_is_registered_and_alive() {
    let cluster = Cluster::start().await;
    let kubelet = cluster.kubelet().await;
    let nodes: Api<Node> = Api::all(cluster.admin());
    let node = nodes.get("test").await.unwrap();
    let labels = node.metadata.labels.unwrap();
    assert_eq!((labels["kubernetes.io/hostname"].as_str(), labels["kubernetes.io/os"].as_str()), ("test", "linux"));
    let status = node.status.unwrap();
    assert_eq!(status.node_info.unwrap().container_runtime_version, "fake://1");
    assert!(status.daemon_endpoints.unwrap().kubelet_endpoint.unwrap().port > 0);
    let leases: Api<Lease> = Api::namespaced(cluster.admin(), "kube-node-lease");
    let lease = wait("a lease", async || leases.get_opt("test").await.unwrap()).await;
    assert_eq!(lease.spec.unwrap().holder_identity.as_deref(), Some("test"));
    let patch = Patch::Merge(json!({"spec": {"podCIDR": "10.42.7.0/24", "podCIDRs": ["10.42.7.0/24"]}}));
    nodes.patch("test", &PatchParams::default(), &patch).await.unwrap();
    wait("the runtime's address range", async || {
        cluster.cri.calls().contains(&"UpdateRuntimeConfig 10.42.7.0/24".to_owned()).then_some(())
    })
    .await;
    kubelet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn static_pods_run_and_are_mirrored() {
    let cluster = Cluster::start().await;
    let manifests = cluster.directory.path().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    let manifest =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: 'app:1'}]}\n";
    std::fs::write(manifests.join("web.yaml"), manifest).unwrap();
    let kubelet = cluster.kubelet().await;
    let exists = || async { cluster.api::<Pod>().get_opt("web-test").await.unwrap() };
    wait("the mirror", async || exists().await).await;
    let first = cluster.ready("web-test").await;
    assert_eq!(cluster.cri.sandboxes(), 1);
    // A mirror is only a picture.
    cluster.api::<Pod>().delete("web-test", &DeleteParams::default().grace_period(0)).await.unwrap();
    wait("another mirror", async || {
        exists().await.filter(|pod| pod.metadata.uid.as_deref() != first["metadata"]["uid"].as_str())
    })
    .await;
    cluster.ready("web-test").await;
    assert_eq!(cluster.cri.calls().iter().filter(|call| call.starts_with("RunPodSandbox")).count(), 1);
    std::fs::remove_file(manifests.join("web.yaml")).unwrap();
    cluster.gone("web-test").await;
    wait("an empty runtime", async || (cluster.cri.sandboxes() == 0).then_some(())).await;
    kubelet.stop().await;
}

/// The user namespace that a container was made in, and that of its mounts.
fn users(container: &cri::v1::ContainerConfig) -> (Option<cri::v1::UserNamespace>, Vec<&cri::v1::IdMapping>) {
    let context = container.linux.as_ref().unwrap().security_context.as_ref().unwrap();
    let mounts = container.mounts.iter().flat_map(|mount| mount.uid_mappings.iter().chain(&mount.gid_mappings));
    (context.namespace_options.as_ref().unwrap().userns_options.clone(), mounts.collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_have_ids_of_their_own() {
    let cluster = Cluster::start().await;
    let kubelet = cluster.kubelet().await;
    let named = |name: &str, host_users: Value| {
        let mut spec = one(json!({"name": name}));
        spec["hostUsers"] = host_users;
        spec
    };
    let pod = cluster.create("one", named("first", false.into())).await;
    let refused = cluster.event("one", "FailedCreatePodSandBox").await.message.unwrap();
    let refusal =
        "can't set `spec.hostUsers: false`, runtime does not support user namespaces: the handler \"\" is not known";
    assert_eq!(refused, format!("Failed to create pod sandbox: {refusal}"));
    cluster.cri.support_user_namespaces();
    cluster.create("two", named("second", false.into())).await;
    cluster.create("three", named("third", Value::Null)).await;
    for name in ["one", "two", "three"] {
        cluster.ready(name).await;
    }
    let node = serde_json::to_value(Api::<Node>::all(cluster.admin()).get("test").await.unwrap()).unwrap();
    let features = json!({"recursiveReadOnlyMounts": false, "userNamespaces": true});
    assert_eq!(node["status"]["runtimeHandlers"], json!([{"name": "", "features": features}]));

    let first = cluster.cri.container("first").unwrap();
    let (namespace, mounts) = users(&first);
    let ids = namespace.clone().unwrap().uids[0];
    assert!(ids.host_id >= 65_536 && ids.host_id.is_multiple_of(65_536) && ids.length == 65_536, "{ids:?}");
    assert!(mounts.len() == 2 * first.mounts.len() && mounts.iter().all(|mapping| **mapping == ids), "{mounts:?}");
    let directory = cluster.root().join("pods").join(pod.metadata.uid.as_deref().unwrap());
    let kept: Value = serde_json::from_slice(&std::fs::read(directory.join("userns")).unwrap()).unwrap();
    let mapping = json!([{"hostId": ids.host_id, "containerId": 0, "length": 65_536}]);
    assert_eq!(kept, json!({"uidMappings": mapping, "gidMappings": mapping}));
    assert_ne!(users(&cluster.cri.container("second").unwrap()).0.unwrap().uids[0].host_id, ids.host_id);
    assert_eq!(users(&cluster.cri.container("third").unwrap()), (None, vec![]));

    // The next kubelet goes on with the same ids.
    kubelet.stop().await;
    let kubelet = cluster.kubelet().await;
    cluster.cri.exit("first", 1);
    cluster.until("one", "restarted", |status| status["containerStatuses"][0]["restartCount"] == 1).await;
    cluster.ready("one").await;
    assert_eq!(users(&cluster.cri.container("first").unwrap()).0, namespace);
    for name in ["one", "two", "three"] {
        cluster.api::<Pod>().delete(name, &DeleteParams::default().grace_period(0)).await.unwrap();
        cluster.gone(name).await;
    }
    kubelet.stop().await;
}
