//! Clients that are service accounts of `kube-system`, for a controller manager with only a kubeconfig.
//!
//! Each controller acts under the account that upstream grants its rights to; the manager itself may little
//! more than create those accounts and ask for their tokens. A token is asked for when it is needed, and again
//! when four fifths of its life are over.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use http::header::AUTHORIZATION;
use http::{HeaderValue, Request};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::client::Body;
use tokio::sync::Mutex;

use crate::{Client, ErrorExt as _};

const NAMESPACE: &str = "kube-system";
const TOKEN_LIFE: Duration = Duration::from_secs(3600);

/// Hands out clients by the account's name.
pub struct ServiceAccounts {
    manager: Client,
    /// Of the same server, without credentials.
    anyone: Client,
}

impl ServiceAccounts {
    /// `manager` may create the accounts and their tokens.
    pub async fn new(kubeconfig: &Path, manager: Client) -> anyhow::Result<ServiceAccounts> {
        let mut config = crate::remote_config(kubeconfig, None).await?;
        config.auth_info = kube::config::AuthInfo::default();
        let context = || format!("build a client from {}", kubeconfig.display());
        Ok(ServiceAccounts { manager, anyone: Client::try_from(config).with_context(context)? })
    }

    /// Must be called within a Tokio runtime.
    pub fn client(&self, name: &str) -> Client {
        let tokens = Arc::new(Tokens { manager: self.manager.clone(), name: name.to_owned(), known: Mutex::default() });
        let anyone = self.anyone.clone();
        let service = tower::service_fn(move |mut request: Request<Body>| {
            let (tokens, anyone) = (tokens.clone(), anyone.clone());
            async move {
                request.headers_mut().insert(AUTHORIZATION, tokens.bearer().await?);
                anyone.send(request).await.map_err(anyhow::Error::from)
            }
        });
        crate::in_process(service, name)
    }
}

struct Tokens {
    manager: Client,
    name: String,
    /// The header, and when it is to be replaced.
    known: Mutex<Option<(HeaderValue, Instant)>>,
}

impl Tokens {
    async fn bearer(&self) -> anyhow::Result<HeaderValue> {
        let mut known = self.known.lock().await;
        if let Some((header, _)) = known.as_ref().filter(|(_, until)| Instant::now() < *until) {
            return Ok(header.clone());
        }
        let token = self.request().await.with_context(|| format!("get a token of {NAMESPACE}/{}", self.name))?;
        let mut header = HeaderValue::from_str(&format!("Bearer {token}")).context("a token is a header's value")?;
        header.set_sensitive(true);
        *known = Some((header.clone(), Instant::now() + TOKEN_LIFE * 4 / 5));
        Ok(header)
    }

    async fn request(&self) -> kube::Result<String> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.manager.clone(), NAMESPACE);
        let seconds = TOKEN_LIFE.as_secs() as i64;
        let spec = TokenRequestSpec { expiration_seconds: Some(seconds), ..TokenRequestSpec::default() };
        let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        let parameters = PostParams::default();
        let ask = || accounts.create_token_request(&self.name, &parameters, &request);
        let answer = match ask().await {
            Err(error) if error.is_not_found() => {
                let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
                let account = ServiceAccount { metadata, ..ServiceAccount::default() };
                match accounts.create(&parameters, &account).await {
                    Err(error) if error.code() != Some(409) => return Err(error),
                    _ => ask().await?,
                }
            }
            answer => answer?,
        };
        Ok(answer.status.unwrap_or_default().token.unwrap_or_default())
    }
}
