//! The server that a kubeconfig names: where it is, how to trust it, and who we are to it.
//!
//! Credentials are resolved once, at the start: an exec plugin's token is a header like any other afterwards.

use std::sync::Arc;

use anyhow::Context as _;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::Empty;
use hyper::body::Bytes;
use kube::{
    Config,
    client::ConfigExt,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};
use tower::{BoxError, Layer, ServiceExt as _, service_fn};

use crate::cli::Options;

pub struct Target {
    /// As the kubeconfig has it.
    pub url: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    /// `host:port` of requests.
    pub(crate) authority: String,
    /// Precedes every path: servers behind a gateway have one.
    pub(crate) prefix: String,
    /// Of every request.
    pub(crate) headers: HeaderMap,
    /// None for plain HTTP.
    pub(crate) tls: Option<(TlsConnector, ServerName<'static>)>,
    pub(crate) http2: bool,
}

/// What a client library makes of the kubeconfig.
pub(crate) async fn config(options: &Options) -> anyhow::Result<Config> {
    let file = match &options.kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let choice = KubeConfigOptions { context: options.context.clone(), ..Default::default() };
    let config = Config::from_custom_kubeconfig(file.context("read the kubeconfig")?, &choice).await;
    config.context("use the kubeconfig")
}

impl Target {
    pub async fn load(options: &Options) -> anyhow::Result<Target> {
        Target::of(config(options).await?, options.http2).await
    }

    async fn of(config: Config, http2: bool) -> anyhow::Result<Target> {
        anyhow::ensure!(config.proxy_url.is_none(), "the kubeconfig names a proxy-url; benchmarks connect directly");
        let url = &config.cluster_url;
        let secure = url.scheme_str() != Some("http");
        let host = url.host().with_context(|| format!("server {url} has no host"))?;
        let host = host.trim_matches(['[', ']']).to_owned();
        let tls = if secure { Some(tls(&config, &host, http2)?) } else { None };
        Ok(Target {
            url: url.to_string().trim_end_matches('/').to_owned(),
            port: url.port_u16().unwrap_or(if secure { 443 } else { 80 }),
            authority: url.authority().map(ToString::to_string).unwrap_or_default(),
            prefix: url.path().trim_end_matches('/').to_owned(),
            headers: headers(&config).await.context("resolve the kubeconfig's credentials")?,
            host,
            tls,
            http2,
        })
    }

    pub(crate) fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    pub(crate) fn protocol(&self) -> &'static str {
        match (self.http2, &self.tls) {
            (false, Some(_)) => "HTTP/1.1 over TLS",
            (true, Some(_)) => "HTTP/2 over TLS",
            (false, None) => "plain HTTP/1.1",
            (true, None) => "plain HTTP/2",
        }
    }
}

fn tls(config: &Config, host: &str, http2: bool) -> anyhow::Result<(TlsConnector, ServerName<'static>)> {
    let mut tls = config.rustls_client_config().context("use the kubeconfig's certificates")?;
    tls.alpn_protocols = vec![if http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    let name = config.tls_server_name.clone().unwrap_or_else(|| host.to_owned());
    let name = ServerName::try_from(name.clone()).with_context(|| format!("server name {name}"))?;
    Ok((TlsConnector::from(Arc::new(tls)), name))
}

/// The headers that kube's layers (tokens, exec plugins, impersonation) would put on a request.
async fn headers(config: &Config) -> anyhow::Result<HeaderMap> {
    let echo = service_fn(|request: Request<Empty<Bytes>>| async move {
        let mut response = Response::new(());
        *response.headers_mut() = request.headers().clone();
        Ok::<_, BoxError>(response)
    });
    let echo = config.extra_headers_layer()?.layer(echo);
    let request = Request::new(Empty::new());
    let echoed = match config.auth_layer()? {
        Some(authenticated) => authenticated.layer(echo).oneshot(request).await,
        None => echo.oneshot(request).await,
    };
    let mut headers = echoed.map_err(anyhow::Error::from_boxed)?.headers().clone();
    headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("isopod-bench/", env!("CARGO_PKG_VERSION"))));
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn target(cluster: &str, user: &str) -> anyhow::Result<Target> {
        let text = format!(
            "{{apiVersion: v1, kind: Config, current-context: c, clusters: [{{name: c, cluster: {cluster}}}], \
             users: [{{name: u, user: {user}}}], contexts: [{{name: c, context: {{cluster: c, user: u}}}}]}}"
        );
        let config =
            Config::from_custom_kubeconfig(Kubeconfig::from_yaml(&text)?, &KubeConfigOptions::default()).await?;
        Target::of(config, false).await
    }

    #[tokio::test]
    async fn kubeconfigs_become_targets() {
        let plain = target("{server: 'http://[::1]:8001/k8s/'}", "{token: secret, as: somebody}").await.unwrap();
        assert_eq!((plain.host.as_str(), plain.port, plain.prefix.as_str()), ("::1", 8001, "/k8s"));
        assert_eq!((plain.authority.as_str(), plain.protocol()), ("[::1]:8001", "plain HTTP/1.1"));
        assert_eq!(plain.headers["authorization"], "Bearer secret");
        assert_eq!(plain.headers["impersonate-user"], "somebody");

        let secure = target("{server: 'https://example.com', insecure-skip-tls-verify: true}", "{}").await.unwrap();
        assert_eq!((secure.port, secure.prefix.as_str(), secure.scheme()), (443, "", "https"));
        assert!(!secure.headers.contains_key("authorization"));

        let proxied = target("{server: 'https://example.com', proxy-url: 'http://127.0.0.1:1'}", "{}").await;
        assert!(proxied.is_err_and(|error| error.to_string().contains("proxy-url")));
    }
}
