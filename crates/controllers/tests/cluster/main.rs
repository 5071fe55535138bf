//! The controllers against the real API server in memory, each under its own service account: what they may not do by
//! RBAC fails here as it would in a cluster. Each test has a server of its own.

mod batch;
mod collection;
mod faults;
mod limits;
mod namespaces;
mod nodes;
mod services;
mod stateful;
mod volumes;
mod workloads;

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use apiserver::identity::UserInfo;
use apiserver::pki::{Pki, PkiOptions};
use apiserver::upgrade::TcpDialer;
use client::{Client, Informers};
use controllers::Config;
use faults::seam::Seam;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long anything that should happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// An API server in memory, with a store of its own.
struct Server {
    server: apiserver::Server,
    _dir: tempfile::TempDir,
}

impl Server {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = PkiOptions { server_names: vec![], server_ips: vec![], cluster_domain: "cluster.local".into() };
        let config = apiserver::Config {
            pki: Arc::new(Pki::load_or_create(&dir.path().join("pki"), options).unwrap()),
            store: Arc::new(store::FjallStore::open(dir.path().join("store"), store::Options::default()).unwrap()),
            advertise: "127.0.0.1:6443".parse().unwrap(),
            service_cidr: "10.43.0.0/16".parse().unwrap(),
            node_ports: 30000..=32767,
            dialer: Arc::new(TcpDialer),
        };
        Self { server: apiserver::Server::new(config).await.unwrap(), _dir: dir }
    }

    /// A cluster administrator.
    fn admin(&self) -> Client {
        Seam::default().client(&self.server, UserInfo::master("admin"), "")
    }

    /// Every controller, each under its own service account, whose writes pass `seam`.
    fn controllers(&self, configure: impl FnOnce(&mut Config), seam: Seam) -> Controllers {
        let manager = UserInfo::component("system:kube-controller-manager");
        let manager = Seam::default().client(&self.server, manager, "");
        let mut config = Config::new(manager.clone());
        let server = self.server.clone();
        config.clients =
            Arc::new(move |name| seam.client(&server, UserInfo::service_account("kube-system", name, ""), name));
        config.root_ca = Some("the CA".into());
        configure(&mut config);
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(controllers::run(config, Informers::new(manager), shutdown.clone()));
        Controllers { shutdown, running }
    }
}

/// Controllers that run until stopped.
struct Controllers {
    shutdown: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Controllers {
    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.running).await.expect("controllers stop").unwrap().unwrap();
    }
}

struct Cluster {
    server: Server,
    client: Client,
    controllers: Controllers,
}

impl Cluster {
    async fn start() -> Self {
        Self::with(|_| ()).await
    }

    async fn with(configure: impl FnOnce(&mut Config)) -> Self {
        let server = Server::start().await;
        Self { client: server.admin(), controllers: server.controllers(configure, Seam::default()), server }
    }

    /// Stops everything; that it does stop is part of each test.
    async fn stop(self) {
        self.controllers.stop().await;
        self.server.server.shutdown().await;
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    fn all<K: kube::Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }
}

trait Handy<K> {
    async fn make(&self, object: Value) -> K;
    async fn merge(&self, name: &str, patch: Value) -> K;
    async fn merge_status(&self, name: &str, patch: Value) -> K;
    async fn remove(&self, name: &str, params: DeleteParams);
}

impl<K: Clone + DeserializeOwned + Serialize + Debug> Handy<K> for Api<K> {
    async fn make(&self, object: Value) -> K {
        self.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap()
    }

    async fn merge(&self, name: &str, patch: Value) -> K {
        self.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap()
    }

    async fn merge_status(&self, name: &str, patch: Value) -> K {
        self.patch_status(name, &PatchParams::default(), &Patch::Merge(json!({"status": patch}))).await.unwrap()
    }

    async fn remove(&self, name: &str, params: DeleteParams) {
        self.delete(name, &params).await.unwrap();
    }
}

/// Asks until the answer is something.
async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("still not so: {what}"))
}

/// Waits for the objects of a kind in a namespace to satisfy.
async fn until_list<K>(what: &str, api: &Api<K>, satisfies: impl Fn(&[K]) -> bool) -> Vec<K>
where
    K: Clone + DeserializeOwned + Debug,
{
    until(what, || async {
        let found = api.list(&Default::default()).await.unwrap().items;
        satisfies(&found).then_some(found)
    })
    .await
}

/// Waits for one object to satisfy.
async fn until_get<K>(what: &str, api: &Api<K>, name: &str, satisfies: impl Fn(&K) -> bool) -> K
where
    K: Clone + DeserializeOwned + Debug,
{
    until(what, || async { api.get_opt(name).await.unwrap().filter(|found| satisfies(found)) }).await
}

async fn until_gone<K>(what: &str, api: &Api<K>, name: &str)
where
    K: Clone + DeserializeOwned + Debug,
{
    until(what, || async { api.get_opt(name).await.unwrap().is_none().then_some(()) }).await;
}

fn name_of<K: kube::Resource>(object: &K) -> String {
    object.meta().name.clone().unwrap()
}
