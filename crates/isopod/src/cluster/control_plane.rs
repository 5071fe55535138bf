//! Store, API server, scheduler and controllers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use apiserver::identity::UserInfo;
use apiserver::pki::{self, Pki, PkiOptions};
use client::{Client, Informers};

use store::{FjallStore, Options, Store};
use tower::ServiceExt;

use super::{Components, Config};

pub struct ControlPlane {
    pub server: apiserver::Server,
    pub pki: Arc<Pki>,
    store: Arc<dyn Store>,
}

/// Opens the store and builds the API server; when this returns, it answers in memory.
pub async fn start(config: &Config) -> anyhow::Result<ControlPlane> {
    let service_cidr = config.network.service_range()?;
    let advertise = SocketAddr::from((config.node_ip, config.api_port));
    let (names, mut ips): (Vec<String>, Vec<_>) = split_names(&config.certificate_names);
    ips.extend([advertise.ip(), service_cidr.nth(1)]);
    let options =
        PkiOptions { server_names: names, server_ips: ips, cluster_domain: config.network.cluster_domain.clone() };
    let pki =
        Arc::new(Pki::load_or_create(&config.place.data_dir.join("pki"), options).context("prepare certificates")?);
    let directory = config.place.data_dir.join("store");
    let store: Arc<dyn Store> =
        Arc::new(FjallStore::open(&directory, Options::default()).context("open the embedded store")?);
    let server = apiserver::Server::new(apiserver::Config {
        store: store.clone(),
        pki: pki.clone(),
        advertise,
        service_cidr,
        node_ports: 30000..=32767,
        dialer: Arc::new(apiserver::upgrade::TcpDialer),
    })
    .await
    .context("start the API server")?;
    Ok(ControlPlane { server, pki, store })
}

impl ControlPlane {
    /// A client inside this process that is `user`.
    pub fn client(&self, user: UserInfo, agent: &str) -> Client {
        let service = self.server.service().map_request(move |mut request: http::Request<_>| {
            request.extensions_mut().insert(user.clone());
            request
        });
        client::in_process(service, agent)
    }

    pub fn component(&self, name: &str) -> Client {
        self.client(UserInfo::component(name), name.trim_start_matches("system:"))
    }

    pub fn admin_kubeconfig(&self, server: &str, name: &str) -> anyhow::Result<String> {
        let admin = self.pki.stored("admin").context("the admin's certificate is missing")?;
        Ok(pki::kubeconfig(server, self.pki.ca(), &admin.cert, &admin.key, name))
    }

    /// No leader election: the embedded store has exactly one user.
    pub fn start_controllers(&self, config: &Config, components: &mut Components) -> anyhow::Result<()> {
        let manager = self.component("system:kube-controller-manager");
        let mut settings = controllers::Config::new(manager.clone());
        let service = self.server.service();
        settings.clients = Arc::new(move |name: &str| {
            let user = UserInfo::service_account("kube-system", name, "");
            let service = service.clone().map_request(move |mut request: http::Request<_>| {
                request.extensions_mut().insert(user.clone());
                request
            });
            client::in_process(service, name)
        });
        settings.root_ca = Some(self.pki.ca().to_owned());
        let pki = self.pki.clone();
        settings.signer = Some(Arc::new(move |spec| {
            let request = std::str::from_utf8(&spec.request.0).context("the request is not PEM")?;
            let seconds = spec.expiration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
            pki.sign_client(request, seconds.map(Duration::from_secs))
        }));
        settings.cluster_cidr = Some(config.network.cluster_range()?);
        let run = controllers::run(settings, Informers::new(manager), components.shutdown());
        let manager = components.spawn("controller manager", run);
        self.server.beside("controller-manager", move || !manager.is_finished());

        let client = self.component("system:kube-scheduler");
        let run = scheduler::run(scheduler::Config::default(), client, components.shutdown());
        let scheduler = components.spawn("scheduler", run);
        self.server.beside("scheduler", move || !scheduler.is_finished());
        Ok(())
    }

    /// After the components have ended.
    pub async fn stop(&self) {
        self.server.shutdown().await;
        if let Err(error) = self.store.close().await {
            tracing::error!("close the store: {error}");
        }
    }
}

fn split_names(names: &[String]) -> (Vec<String>, Vec<std::net::IpAddr>) {
    let (ips, names): (Vec<_>, Vec<_>) =
        names.iter().cloned().partition(|name| name.parse::<std::net::IpAddr>().is_ok());
    (names, ips.iter().filter_map(|ip| ip.parse().ok()).collect())
}
