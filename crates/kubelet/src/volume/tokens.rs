//! Service account tokens for pods, bound to them, and renewed in time.
//!
//! A token is renewed at 80 % of its life, or after a day if that is sooner.

use crate::pod;
use client::Client;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount, ServiceAccountTokenProjection};
use kube::Api;
use kube::api::PostParams;
use parking_lot::Mutex;
use std::collections::HashMap;

const DEFAULT_SECONDS: i64 = 3600;
const LONGEST_USE: SignedDuration = SignedDuration::from_hours(24);

#[derive(Clone)]
struct Token {
    value: String,
    renew_at: Timestamp,
    expires_at: Timestamp,
}

/// The tokens of each pod, by its uid.
pub struct Tokens {
    client: Client,
    tokens: Mutex<HashMap<String, PodTokens>>,
}

/// By audience and lifetime in seconds.
type PodTokens = HashMap<(String, i64), Token>;

impl Tokens {
    pub fn new(client: Client) -> Tokens {
        Tokens { client, tokens: Mutex::default() }
    }

    /// A current token; an old one serves on while the API server cannot be asked.
    pub async fn get(&self, pod: &Pod, source: &ServiceAccountTokenProjection) -> Result<String, String> {
        let seconds = source.expiration_seconds.unwrap_or(DEFAULT_SECONDS);
        let key = (source.audience.clone().unwrap_or_default(), seconds);
        let known = self.tokens.lock().get(pod::uid(pod)).and_then(|tokens| tokens.get(&key)).cloned();
        let now = Timestamp::now();
        if let Some(token) = known.as_ref().filter(|token| now < token.renew_at) {
            return Ok(token.value.clone());
        }
        match self.request(pod, &key.0, seconds, now).await {
            Ok(token) => {
                let value = token.value.clone();
                self.tokens.lock().entry(pod::uid(pod).to_owned()).or_default().insert(key, token);
                Ok(value)
            }
            Err(error) => match known.filter(|token| now < token.expires_at) {
                Some(token) => Ok(token.value),
                None => Err(format!("failed to fetch token: {error}")),
            },
        }
    }

    async fn request(&self, pod: &Pod, audience: &str, seconds: i64, now: Timestamp) -> Result<Token, kube::Error> {
        let account =
            pod::spec(pod).service_account_name.as_deref().filter(|name| !name.is_empty()).unwrap_or("default");
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), pod::namespace(pod));
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(
                    vec![audience.to_owned()].into_iter().filter(|audience| !audience.is_empty()).collect(),
                ),
                expiration_seconds: Some(seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: pod.metadata.name.clone(),
                    uid: pod.metadata.uid.clone(),
                }),
            }),
            ..TokenRequest::default()
        };
        let answer = api.create_token_request(account, &PostParams::default(), &request).await?;
        let status = answer.status.unwrap_or_default();
        let expires_at = status.expiration_timestamp.map_or(now, |time| time.0);
        let life = expires_at.duration_since(now);
        Ok(Token {
            value: status.token.unwrap_or_default(),
            renew_at: now + (life * 4 / 5).min(LONGEST_USE),
            expires_at,
        })
    }

    /// When the first of a pod's tokens wants renewal.
    pub fn renew_at(&self, uid: &str) -> Option<Timestamp> {
        self.tokens.lock().get(uid)?.values().map(|token| token.renew_at).min()
    }

    pub fn forget(&self, uid: &str) {
        self.tokens.lock().remove(uid);
    }
}
