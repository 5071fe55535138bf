//! The cluster's certificates and keys, in a directory laid out like kubeadm's `/etc/kubernetes/pki`.
//!
//! What is missing is created, what is past two thirds of its life is renewed (at start and while
//! running, without a restart), and what is damaged is an error that names the file and the remedy:
//! a certificate authority is never replaced silently, because every credential hangs on it.

mod files;
mod issue;

#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::RwLock;
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SignatureScheme};
use tokio_util::sync::CancellationToken;

pub use issue::Credential;
use issue::{Authority, Purpose, Request};

use crate::authn::{ClientTrust, Tokens};
use crate::identity::{MASTERS, NODE_PREFIX, NODES};

/// How often a running server looks for certificates to renew or replaced files to load.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(3600);

#[derive(Clone, Debug)]
pub struct PkiOptions {
    /// DNS names of the API server besides `kubernetes...` and `localhost`.
    pub server_names: Vec<String>,
    /// Its addresses besides loopback: the first service IP and what it advertises.
    pub server_ips: Vec<IpAddr>,
    pub cluster_domain: String,
}

/// Certificates kept as files and renewed: file stem, common name, organization.
const CLIENTS: &[(&str, &str, &str)] = &[
    (KUBELET_CLIENT, "kube-apiserver-kubelet-client", MASTERS),
    ("admin", "kubernetes-admin", MASTERS),
    ("controller-manager", "system:kube-controller-manager", ""),
    ("scheduler", "system:kube-scheduler", ""),
    ("proxy", "system:kube-proxy", ""),
];
const SERVER: &str = "apiserver";
const KUBELET_CLIENT: &str = "apiserver-kubelet-client";
const FRONT_PROXY_CLIENT: &str = "front-proxy-client";

pub struct Pki {
    dir: PathBuf,
    options: PkiOptions,
    ca: Authority,
    front_proxy_ca: Authority,
    sa_key: String,
    sa_pub: String,
    leaves: BTreeMap<&'static str, Arc<Leaf>>,
}

impl Pki {
    pub fn load_or_create(dir: &Path, options: PkiOptions) -> Result<Self> {
        files::create_dir(dir)?;
        let ca = files::authority(dir, "ca", "kubernetes")?;
        let front_proxy_ca = files::authority(dir, "front-proxy-ca", "front-proxy-ca")?;
        let (sa_key, sa_pub) = files::service_account_keys(dir)?;
        let pki = Pki { dir: dir.to_owned(), options, ca, front_proxy_ca, sa_key, sa_pub, leaves: BTreeMap::new() };
        let leaves = pki.requests().into_iter().map(|(stem, authority, request)| {
            let credential = files::leaf(dir, stem, authority, &request)?;
            Ok((stem, Arc::new(Leaf::new(credential)?)))
        });
        let leaves = leaves.collect::<Result<_>>()?;
        Ok(Pki { leaves, ..pki })
    }

    /// Every certificate kept as files, with who signs it and what it must say.
    fn requests(&self) -> Vec<(&'static str, &Authority, Request)> {
        let client = |name: &str, groups: &[&str]| {
            let groups = groups.iter().filter(|group| !group.is_empty()).map(|group| (*group).to_owned());
            Request { name: name.to_owned(), groups: groups.collect(), purpose: Purpose::Client }
        };
        let mut requests = vec![
            (SERVER, &self.ca, self.server_request()),
            (FRONT_PROXY_CLIENT, &self.front_proxy_ca, client(FRONT_PROXY_CLIENT, &[])),
        ];
        requests.extend(CLIENTS.iter().map(|(stem, name, group)| (*stem, &self.ca, client(name, &[group]))));
        requests
    }

    fn server_request(&self) -> Request {
        let domain = &self.options.cluster_domain;
        let mut names = vec![
            "kubernetes".to_owned(),
            "kubernetes.default".to_owned(),
            "kubernetes.default.svc".to_owned(),
            format!("kubernetes.default.svc.{domain}"),
            "localhost".to_owned(),
        ];
        names.extend(self.options.server_names.iter().cloned());
        let mut ips = vec![IpAddr::from([127, 0, 0, 1]), IpAddr::from(std::net::Ipv6Addr::LOCALHOST)];
        ips.extend(&self.options.server_ips);
        names.dedup();
        ips.sort();
        ips.dedup();
        Request { name: "kube-apiserver".into(), groups: vec![], purpose: Purpose::Server { names, ips } }
    }

    /// Renews what is due and loads what was replaced on disk; returns the stems that changed.
    pub fn renew(&self) -> Result<Vec<&'static str>> {
        let mut changed = Vec::new();
        for (stem, authority, request) in self.requests() {
            let credential = files::leaf(&self.dir, stem, authority, &request)?;
            if self.leaves[stem].replace(credential)? {
                changed.push(stem);
            }
        }
        Ok(changed)
    }

    /// Renews until shut down. A failure is logged and tried again at the next interval.
    pub async fn keep_renewed(&self, shutdown: CancellationToken) {
        while shutdown.run_until_cancelled(tokio::time::sleep(RENEWAL_INTERVAL)).await.is_some() {
            match self.renew() {
                Ok(changed) if changed.is_empty() => {}
                Ok(changed) => tracing::info!(?changed, "renewed certificates"),
                Err(error) => tracing::error!(error = format!("{error:#}"), "cannot renew certificates"),
            }
        }
    }

    /// The cluster CA's certificate, PEM.
    pub fn ca(&self) -> &str {
        &self.ca.pem
    }

    pub fn front_proxy_ca(&self) -> &str {
        &self.front_proxy_ca.pem
    }

    /// The certificate kept as files under a stem such as `admin`.
    pub fn stored(&self, stem: &str) -> Option<Credential> {
        self.leaves.get(stem).map(|leaf| leaf.0.read().0.clone())
    }

    /// A new client certificate that is kept nowhere here.
    pub fn client(&self, name: &str, groups: &[&str]) -> Result<Credential> {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        self.ca.issue(&Request { name: name.to_owned(), groups, purpose: Purpose::Client })
    }

    /// A certificate for what another's request (PEM) asks, valid as a client's; a year at most.
    pub fn sign_client(&self, request: &str, life: Option<Duration>) -> Result<String> {
        self.ca.sign(request, life)
    }

    pub fn node_client(&self, node: &str) -> Result<Credential> {
        self.client(&format!("{NODE_PREFIX}{node}"), &[NODES])
    }

    /// A kubelet's serving certificate; API servers dial it by address.
    pub fn node_serving(&self, node: &str, names: &[String], ips: &[IpAddr]) -> Result<Credential> {
        let mut all = vec![node.to_owned()];
        all.extend(names.iter().filter(|name| *name != node).cloned());
        self.ca.issue(&Request {
            name: format!("{NODE_PREFIX}{node}"),
            groups: vec![NODES.to_owned()],
            purpose: Purpose::Server { names: all, ips: ips.to_vec() },
        })
    }

    pub fn tokens(&self) -> Result<Tokens> {
        let issuer = Tokens::default_issuer(&self.options.cluster_domain);
        Tokens::new(&issuer, &self.sa_key, &self.sa_pub)
            .with_context(|| format!("{} or sa.pub is unusable", self.dir.join("sa.key").display()))
    }

    pub fn client_trust(&self) -> Result<ClientTrust> {
        let proxies = vec![FRONT_PROXY_CLIENT.to_owned()];
        ClientTrust::new(roots(self.ca())?, Some(roots(self.front_proxy_ca())?), proxies)
    }

    /// TLS 1.2 and 1.3, HTTP/2 and 1.1, client certificates welcome; follows renewals.
    pub fn server_config(&self, trust: &ClientTrust) -> Result<ServerConfig> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(trust.handshake_verifier())
            .with_cert_resolver(self.leaves[SERVER].clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    /// For dialling kubelets: presents `apiserver-kubelet-client`, trusts the cluster CA.
    pub fn kubelet_client_config(&self) -> Result<ClientConfig> {
        self.client_config(KUBELET_CLIENT)
    }

    /// For dialling aggregated API servers with the front proxy's identity.
    pub fn front_proxy_client_config(&self) -> Result<ClientConfig> {
        self.client_config(FRONT_PROXY_CLIENT)
    }

    fn client_config(&self, stem: &str) -> Result<ClientConfig> {
        Ok(ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots(self.ca())?)
            .with_client_cert_resolver(self.leaves[stem].clone()))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The certificates of a PEM bundle as trust anchors.
pub fn roots(pem: &str) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.context("damaged CA certificate")?)?;
    }
    Ok(roots)
}

/// A certificate in use, which renewal replaces under its users' hands.
#[derive(Debug)]
struct Leaf(RwLock<(Credential, Arc<CertifiedKey>)>);

impl Leaf {
    fn new(credential: Credential) -> Result<Self> {
        let key = certified(&credential)?;
        Ok(Leaf(RwLock::new((credential, key))))
    }

    fn replace(&self, credential: Credential) -> Result<bool> {
        if self.0.read().0 == credential {
            return Ok(false);
        }
        let key = certified(&credential)?;
        *self.0.write() = (credential, key);
        Ok(true)
    }

    fn current(&self) -> Arc<CertifiedKey> {
        self.0.read().1.clone()
    }
}

fn certified(credential: &Credential) -> Result<Arc<CertifiedKey>> {
    let chain = CertificateDer::pem_slice_iter(credential.cert.as_bytes()).collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(credential.key.as_bytes())?;
    Ok(Arc::new(CertifiedKey::from_der(chain, key, &provider())?))
}

impl ResolvesServerCert for Leaf {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

impl ResolvesClientCert for Leaf {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// A kubeconfig for one cluster, user and context, all named after `name`; contains the key, so
/// write it with mode 0600.
pub fn kubeconfig(server: &str, ca: &str, cert: &str, key: &str, name: &str) -> String {
    let encode = |pem: &str| STANDARD.encode(pem);
    let mut text = String::from("apiVersion: v1\nkind: Config\n");
    let _ = write!(
        text,
        "clusters:\n- name: {name}\n  cluster:\n    server: {server}\n    certificate-authority-data: {}\n\
         users:\n- name: {name}\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n\
         contexts:\n- name: {name}\n  context:\n    cluster: {name}\n    user: {name}\ncurrent-context: {name}\n",
        encode(ca),
        encode(cert),
        encode(key),
    );
    text
}
