//! The scheduler on a real API server, called in memory under the identity and roles of the real one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use apiserver::{
    Config, Server,
    identity::UserInfo,
    pki::{Pki, PkiOptions},
    upgrade::TcpDialer,
};
use client::Client;
use k8s_openapi::api::core::v1::{Event, Node, Pod, ServiceAccount};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// How long anything that should happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server with a scheduler; everything ends with it.
struct Cluster {
    admin: Client,
    shutdown: CancellationToken,
    scheduling: tokio::task::JoinHandle<anyhow::Result<()>>,
    server: Server,
    _dir: tempfile::TempDir,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Cluster {
    async fn start(election: Option<String>) -> Self {
        Self::with_failing_bindings(election, 0).await
    }

    /// The first `failures` bindings are answered with an error.
    async fn with_failing_bindings(election: Option<String>, failures: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = PkiOptions { server_names: vec![], server_ips: vec![], cluster_domain: "cluster.local".into() };
        let config = Config {
            store: Arc::new(store::FjallStore::open(dir.path().join("store"), store::Options::default()).unwrap()),
            pki: Arc::new(Pki::load_or_create(&dir.path().join("pki"), options).unwrap()),
            advertise: "127.0.0.1:6443".parse().unwrap(),
            service_cidr: "10.43.0.0/16".parse().unwrap(),
            node_ports: 30000..=32767,
            dialer: Arc::new(TcpDialer),
        };
        let server = Server::new(config).await.unwrap();
        let service = server.service();
        let as_user = |user: UserInfo, failures: usize| {
            let (service, failures) = (service.clone(), Arc::new(AtomicUsize::new(failures)));
            let answer = tower::service_fn(move |mut request: http::Request<kube::client::Body>| {
                request.extensions_mut().insert(user.clone());
                let is_binding = request.uri().path().ends_with("/binding");
                let fails = || failures.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok();
                let fails = is_binding && fails();
                let service = service.clone();
                async move {
                    match fails {
                        true => Ok(http::Response::builder().status(500).body("broken".into()).unwrap()),
                        false => service.oneshot(request).await,
                    }
                }
            });
            client::in_process(answer, "test")
        };
        let admin = as_user(UserInfo::master("test"), 0);
        let account = json!({"metadata": {"name": "default"}});
        let accounts: Api<ServiceAccount> = Api::default_namespaced(admin.clone());
        accounts.create(&PostParams::default(), &serde_json::from_value(account).unwrap()).await.unwrap();
        let shutdown = CancellationToken::new();
        let config = scheduler::Config { election, ..Default::default() };
        let scheduler = as_user(UserInfo::component("system:kube-scheduler"), failures);
        let scheduling = tokio::spawn(scheduler::run(config, scheduler, shutdown.clone()));
        Self { admin, shutdown, scheduling, server, _dir: dir }
    }

    fn pods(&self) -> Api<Pod> {
        Api::default_namespaced(self.admin.clone())
    }

    async fn node(&self, name: &str, cpu: &str) {
        let nodes: Api<Node> = Api::all(self.admin.clone());
        create(&nodes, json!({"metadata": {"name": name}})).await;
        let status = json!({"status": {"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "110"},
            "capacity": {"cpu": cpu, "memory": "8Gi", "pods": "110"}}});
        nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
        // Admission taints new nodes until they are ready.
        let taints = json!({"spec": {"taints": null}});
        nodes.patch(name, &PatchParams::default(), &Patch::Merge(taints)).await.unwrap();
    }

    async fn pod(&self, name: &str, cpu: &str, change: Value) -> Pod {
        let mut spec = json!({"automountServiceAccountToken": false,
            "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}]});
        spec.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        create(&self.pods(), json!({"metadata": {"name": name}, "spec": spec})).await
    }

    /// Waits until a pod is as wanted, and returns it.
    async fn until(&self, name: &str, wanted: impl Fn(&Pod) -> bool) -> Pod {
        self.wait(&format!("pod {name}"), async || self.pods().get(name).await.ok().filter(|pod| wanted(pod))).await
    }

    async fn event(&self, pod: &str, reason: &str) -> String {
        let events: Api<Event> = Api::default_namespaced(self.admin.clone());
        let selector = ListParams::default().fields(&format!("involvedObject.name={pod},reason={reason}"));
        let found = async || events.list(&selector).await.unwrap().items.into_iter().next_back()?.message;
        self.wait(&format!("event {reason} of {pod}"), found).await
    }

    async fn wait<T>(&self, what: &str, look: impl AsyncFn() -> Option<T>) -> T {
        let found = async {
            loop {
                assert!(!self.scheduling.is_finished(), "the scheduler runs");
                match look().await {
                    Some(found) => return found,
                    None => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, &mut self.scheduling).await.expect("the scheduler ends").unwrap().unwrap();
        self.server.shutdown().await;
    }
}

async fn create<K>(api: &Api<K>, object: Value) -> K
where
    K: Clone + std::fmt::Debug + DeserializeOwned + serde::Serialize,
{
    api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap()
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

fn scheduled(pod: &Pod) -> Option<(String, String, String)> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let found = conditions.iter().find(|condition| condition.type_ == "PodScheduled")?;
    Some((found.status.clone(), found.reason.clone().unwrap_or_default(), found.message.clone().unwrap_or_default()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_bound_and_refused_pods_wait_for_room() {
    let cluster = Cluster::start(None).await;
    cluster.pod("early", "1", json!({})).await;
    let early = cluster.until("early", |pod| scheduled(pod).is_some()).await;
    let lonely = ("False".into(), "Unschedulable".into(), "no nodes available to schedule pods".into());
    assert_eq!(scheduled(&early).unwrap(), lonely);

    cluster.node("a", "2").await;
    let early = cluster.until("early", |pod| node_of(pod) == Some("a")).await;
    assert_eq!(scheduled(&early).unwrap().0, "True");
    assert_eq!(cluster.event("early", "Scheduled").await, "Successfully assigned default/early to a");

    cluster.pod("large", "1500m", json!({})).await;
    let message = "0/1 nodes are available: 1 Insufficient cpu. \
        preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.";
    let large = cluster.until("large", |pod| scheduled(pod).is_some()).await;
    assert_eq!(scheduled(&large).unwrap(), ("False".into(), "Unschedulable".into(), message.into()));
    assert_eq!(cluster.event("large", "FailedScheduling").await, message);

    // Others are not held up, and neither a foreign pod nor a gated one is touched.
    cluster.pod("small", "500m", json!({})).await;
    cluster.until("small", |pod| node_of(pod) == Some("a")).await;
    cluster.pod("foreign", "1m", json!({"schedulerName": "other"})).await;
    cluster.pod("gated", "1m", json!({"schedulingGates": [{"name": "g"}]})).await;
    cluster.until("gated", |pod| scheduled(pod).is_some_and(|(_, reason, _)| reason == "SchedulingGated")).await;

    for name in ["early", "small"] {
        cluster.pods().delete(name, &DeleteParams::default().grace_period(0)).await.unwrap();
    }
    cluster.until("large", |pod| node_of(pod) == Some("a")).await;
    let ungated = json!({"spec": {"schedulingGates": null}});
    cluster.pods().patch("gated", &PatchParams::default(), &Patch::Merge(ungated)).await.unwrap();
    cluster.until("gated", |pod| node_of(pod) == Some("a")).await;
    let foreign = cluster.pods().get("foreign").await.unwrap();
    assert_eq!((node_of(&foreign), scheduled(&foreign)), (None, None));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn important_pods_take_the_place_of_others() {
    let cluster = Cluster::start(Some("one".into())).await;
    cluster.node("a", "1").await;
    cluster.pod("low", "1", json!({"terminationGracePeriodSeconds": 0})).await;
    cluster.until("low", |pod| node_of(pod) == Some("a")).await;
    cluster.pod("high", "1", json!({"priorityClassName": "system-cluster-critical"})).await;
    cluster.until("high", |pod| node_of(pod) == Some("a")).await;
    assert!(cluster.pods().get_opt("low").await.unwrap().is_none());
    assert!(cluster.event("low", "Preempted").await.ends_with("on node a"));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_pods_are_spread_and_never_overcommit() {
    let cluster = Cluster::start(None).await;
    for node in ["a", "b", "c"] {
        cluster.node(node, "10").await;
    }
    let names: Vec<String> = (0..60).map(|number| format!("p{number}")).collect();
    futures::future::join_all(names.iter().map(|name| cluster.pod(name, "500m", json!({})))).await;
    let all = async || {
        let pods = cluster.pods().list(&ListParams::default()).await.unwrap().items;
        pods.iter().all(|pod| node_of(pod).is_some()).then_some(pods)
    };
    let pods = cluster.wait("all pods on nodes", all).await;
    for node in ["a", "b", "c"] {
        assert_eq!(pods.iter().filter(|pod| node_of(pod) == Some(node)).count(), 20, "{node}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_binding_that_fails_is_tried_again_and_holds_no_room() {
    let cluster = Cluster::with_failing_bindings(None, 1).await;
    cluster.node("a", "1").await;
    cluster.pod("first", "1", json!({})).await;
    let message = cluster.event("first", "FailedScheduling").await;
    assert!(message.starts_with("bind default/first to a"), "{message}");
    // While it backs off, another takes the room that it no longer holds; the first gets it after that one.
    cluster.pod("second", "1", json!({})).await;
    let winner = async || {
        let pods = cluster.pods().list(&ListParams::default()).await.unwrap().items;
        pods.into_iter().find(|pod| node_of(pod) == Some("a"))?.metadata.name
    };
    let winner = cluster.wait("a bound pod", winner).await;
    cluster.pods().delete(&winner, &DeleteParams::default().grace_period(0)).await.unwrap();
    let other = if winner == "first" { "second" } else { "first" };
    cluster.until(other, |pod| node_of(pod) == Some("a")).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_bound_by_others_count_and_are_left_alone() {
    let cluster = Cluster::start(None).await;
    cluster.node("a", "1").await;
    cluster.pod("taken", "2", json!({})).await;
    cluster.until("taken", |pod| scheduled(pod).is_some()).await;
    let binding = json!({"metadata": {"name": "taken"}, "target": {"kind": "Node", "name": "a"}});
    let posted: kube::Result<Value> =
        cluster.pods().create_subresource("binding", "taken", &PostParams::default(), &binding).await;
    posted.unwrap();
    // The room it took is more than there is: nothing fits any more until it goes.
    let events: Api<Event> = Api::default_namespaced(cluster.admin.clone());
    cluster.pod("next", "1m", json!({})).await;
    assert!(cluster.event("next", "FailedScheduling").await.contains("1 Insufficient cpu"));
    let about_taken = ListParams::default().fields("involvedObject.name=taken,reason=Scheduled");
    assert!(events.list(&about_taken).await.unwrap().items.is_empty());
    cluster.pods().delete("taken", &DeleteParams::default().grace_period(0)).await.unwrap();
    cluster.until("next", |pod| node_of(pod) == Some("a")).await;
    cluster.stop().await;
}
