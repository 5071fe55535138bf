//! Who may call the kubelet: client certificates and tokens, authorised by the API server.
//!
//! Only the API server's own client certificate, and administrators, need no asking. Answers are kept
//! for a while, as upstream: tokens 2 min, allowed 5 min, denied 30 s.

use client::Client;
use http::StatusCode;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Api;
use kube::api::PostParams;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Entries of each cache; a full one is emptied.
const CACHED: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    name: String,
    uid: Option<String>,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

impl Identity {
    /// The API server itself, or somebody who may do anything.
    fn trusted(&self) -> bool {
        self.name == "kube-apiserver-kubelet-client" || self.groups.iter().any(|group| group == "system:masters")
    }
}

/// The name and groups in a client certificate, which TLS has verified.
pub fn identity(certificate: &CertificateDer<'_>) -> Option<Identity> {
    use x509_parser::prelude::{FromDer as _, X509Certificate};
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject.iter_organization().filter_map(|group| group.as_str().ok()).map(str::to_owned).collect();
    Some(Identity { name, uid: None, groups, extra: BTreeMap::new() })
}

struct Cache<K, V>(Mutex<HashMap<K, (Instant, V)>>);

impl<K: Eq + Hash, V: Clone> Cache<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        self.0.lock().get(key).filter(|(until, _)| Instant::now() < *until).map(|(_, value)| value.clone())
    }

    fn put(&self, key: K, value: V, life: Duration) {
        let mut entries = self.0.lock();
        if entries.len() >= CACHED {
            entries.clear();
        }
        entries.insert(key, (Instant::now() + life, value));
    }
}

pub struct Gate {
    client: Client,
    node_name: String,
    tokens: Cache<String, Option<Identity>>,
    decisions: Cache<(Identity, &'static str, &'static str), bool>,
}

impl Gate {
    pub fn new(client: Client, node_name: &str) -> Gate {
        let (tokens, decisions) = (Cache(Mutex::default()), Cache(Mutex::default()));
        Gate { client, node_name: node_name.to_owned(), tokens, decisions }
    }

    pub async fn admit<B>(
        &self,
        request: &http::Request<B>,
        peer: Option<&Identity>,
    ) -> Result<(), (StatusCode, String)> {
        let unauthorized = || (StatusCode::UNAUTHORIZED, "Unauthorized".to_owned());
        let identity = match (peer, bearer(request)) {
            (Some(peer), _) => peer.clone(),
            (None, Some(token)) => self.token(token).await.ok_or_else(unauthorized)?,
            (None, None) => return Err(unauthorized()),
        };
        if identity.trusted() {
            return Ok(());
        }
        let verb = verb(request.method());
        let subresource = subresource(request.uri().path());
        match self.allowed(&identity, verb, subresource).await {
            Ok(true) => Ok(()),
            Ok(false) => {
                let text = format!(
                    "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{subresource}])\n",
                    identity.name
                );
                Err((StatusCode::FORBIDDEN, text))
            }
            Err(error) => {
                let text =
                    format!("Authorization error (user={}, verb={verb}, resource=nodes): {error}", identity.name);
                Err((StatusCode::INTERNAL_SERVER_ERROR, text))
            }
        }
    }

    async fn token(&self, token: &str) -> Option<Identity> {
        let key = token.to_owned();
        if let Some(known) = self.tokens.get(&key) {
            return known;
        }
        let review =
            TokenReview { spec: TokenReviewSpec { token: key.clone(), audiences: None }, ..TokenReview::default() };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let status = api.create(&PostParams::default(), &review).await.ok()?.status.unwrap_or_default();
        let user = status.user.filter(|_| status.authenticated == Some(true));
        let identity = user.map(|user| Identity {
            name: user.username.unwrap_or_default(),
            uid: user.uid,
            groups: user.groups.unwrap_or_default(),
            extra: user.extra.unwrap_or_default(),
        });
        self.tokens.put(key, identity.clone(), Duration::from_secs(120));
        identity
    }

    async fn allowed(
        &self,
        identity: &Identity,
        verb: &'static str,
        subresource: &'static str,
    ) -> Result<bool, kube::Error> {
        let key = (identity.clone(), verb, subresource);
        if let Some(known) = self.decisions.get(&key) {
            return Ok(known);
        }
        let attributes = ResourceAttributes {
            verb: Some(verb.to_owned()),
            version: Some("v1".to_owned()),
            resource: Some("nodes".to_owned()),
            subresource: Some(subresource.to_owned()),
            name: Some(self.node_name.clone()),
            ..ResourceAttributes::default()
        };
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                resource_attributes: Some(attributes),
                user: Some(identity.name.clone()),
                uid: identity.uid.clone(),
                groups: Some(identity.groups.clone()),
                extra: Some(identity.extra.clone()),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let allowed = api.create(&PostParams::default(), &review).await?.status.is_some_and(|status| status.allowed);
        self.decisions.put(key, allowed, Duration::from_secs(if allowed { 300 } else { 30 }));
        Ok(allowed)
    }
}

fn bearer<B>(request: &http::Request<B>) -> Option<&str> {
    let header = request.headers().get("authorization")?.to_str().ok()?;
    let (scheme, token) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|token| !token.is_empty())
}

fn verb(method: &http::Method) -> &'static str {
    match method.as_str() {
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "get",
    }
}

/// The subresource of `nodes` that a path stands for.
fn subresource(path: &str) -> &'static str {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    match first {
        "stats" => "stats",
        "metrics" => "metrics",
        "logs" => "log",
        _ => "proxy",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stand_for_subresources() {
        for (path, expected) in [
            ("/metrics/cadvisor", "metrics"),
            ("/metricsx", "proxy"),
            ("/stats/summary", "stats"),
            ("/exec/a/b/c", "proxy"),
            ("/logs/x", "log"),
            ("/", "proxy"),
        ] {
            assert_eq!(subresource(path), expected, "{path}");
        }
    }

    #[tokio::test]
    async fn nobody_comes_in_without_identity_or_permission() {
        let answer = |request: http::Request<kube::client::Body>| async move {
            let body = http_body_util::BodyExt::collect(request.into_body()).await.unwrap().to_bytes();
            let mut review: serde_json::Value = serde_json::from_slice(&body).unwrap();
            review["status"] = match review["kind"].as_str() {
                Some("TokenReview") => {
                    serde_json::json!({"authenticated": review["spec"]["token"] == "good", "user": {"username": "prometheus"}})
                }
                _ => serde_json::json!({"allowed": review["spec"]["resourceAttributes"]["subresource"] == "metrics"}),
            };
            Ok::<_, std::io::Error>(
                http::Response::builder()
                    .status(201)
                    .body(kube::client::Body::from(review.to_string().into_bytes()))
                    .unwrap(),
            )
        };
        let gate = Gate::new(Client::new(tower::service_fn(answer), "default"), "node");
        let person = |name: &str, group: &str| Identity {
            name: name.into(),
            uid: None,
            groups: vec![group.into()],
            extra: BTreeMap::new(),
        };
        let cases = [
            (None, "", "/metrics", 401),
            (None, "bad", "/metrics", 401),
            (None, "good", "/metrics", 200),
            (None, "good", "/pods", 403),
            (Some(person("x", "dev")), "", "/exec/a/b/c", 403),
            (Some(person("kube-apiserver-kubelet-client", "")), "", "/exec/a/b/c", 200),
            (Some(person("admin", "system:masters")), "", "/exec/a/b/c", 200),
        ];
        for (peer, token, path, expected) in cases {
            let mut request = http::Request::get(path);
            if !token.is_empty() {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let result = gate.admit(&request.body(()).unwrap(), peer.as_ref()).await;
            assert_eq!(
                result.map_or_else(|(status, _)| status.as_u16(), |()| 200),
                expected,
                "{peer:?} {token} {path}"
            );
        }
    }
}
