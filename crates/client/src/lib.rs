//! What every component needs to talk to a Kubernetes API: clients, shared informers, work queues, leader election and
//! the event recorder. It refuses to know whether the API is in this process or across a network: both are a
//! [`Client`], which is why a component cannot tell `isopod server` from a stock kube-apiserver.

pub mod election;
pub mod events;
pub mod informer;
mod managed_fields;
pub mod reference;
mod reflector;
mod service_accounts;
pub mod shared;
mod wait;
pub mod workqueue;

use std::path::Path;

use anyhow::Context as _;
use http::{HeaderValue, Request, Response, header::USER_AGENT};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tower::{BoxError, Service, ServiceExt as _};

pub use events::{EventRecorder, EventType};
pub use informer::{Event, Informer, Informers, Store, Subscription};
pub use kube::Client;
pub use reference::{controller_of, key_of, owner_reference, split_key};
pub use service_accounts::ServiceAccounts;
pub use wait::await_condition;
pub use workqueue::WorkQueue;

/// A client of the cluster named by `context` (the current one if none) of a kubeconfig file.
pub async fn remote(kubeconfig: &Path, context: Option<&str>, user_agent: &str) -> anyhow::Result<Client> {
    let mut config = remote_config(kubeconfig, context).await?;
    config.headers.push((USER_AGENT, HeaderValue::from_str(user_agent).context("user agent")?));
    Client::try_from(config).with_context(|| format!("build a client from {}", kubeconfig.display()))
}

/// How to reach that cluster, and as whom.
pub async fn remote_config(kubeconfig: &Path, context: Option<&str>) -> anyhow::Result<kube::Config> {
    let file =
        Kubeconfig::read_from(kubeconfig).with_context(|| format!("read kubeconfig {}", kubeconfig.display()))?;
    let options = KubeConfigOptions { context: context.map(Into::into), ..Default::default() };
    let config = kube::Config::from_custom_kubeconfig(file, &options).await;
    config.with_context(|| format!("use kubeconfig {}", kubeconfig.display()))
}

/// A client whose requests are answered by `service` without a socket. The caller has bound an identity to the service.
/// Must be called within a Tokio runtime: the client's queue is a task.
pub fn in_process<S, B>(service: S, user_agent: &str) -> Client
where
    S: Service<Request<Body>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let agent = HeaderValue::from_str(user_agent).unwrap_or(HeaderValue::from_static("isopod"));
    let service = service.map_request(move |mut request: Request<Body>| {
        request.headers_mut().insert(USER_AGENT, agent.clone());
        request
    });
    Client::new(service, "default")
}

/// Questions that controllers ask of a failed request.
pub trait ErrorExt {
    /// The HTTP code of the server's Status, if the server answered at all.
    fn code(&self) -> Option<u16>;
    /// The reason of the server's Status.
    fn reason(&self) -> &str;

    fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }
    fn is_conflict(&self) -> bool {
        self.code() == Some(409) && self.reason() == "Conflict"
    }
    fn is_already_exists(&self) -> bool {
        self.reason() == "AlreadyExists"
    }
    fn is_forbidden(&self) -> bool {
        self.code() == Some(403)
    }
}

impl ErrorExt for kube::Error {
    fn code(&self) -> Option<u16> {
        match self {
            kube::Error::Api(status) => Some(status.code),
            _ => None,
        }
    }

    fn reason(&self) -> &str {
        match self {
            kube::Error::Api(status) => &status.reason,
            _ => "",
        }
    }
}
