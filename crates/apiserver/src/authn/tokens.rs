//! Service-account tokens: issues them, proves them, and describes their keys (OIDC discovery).
//!
//! A token names the objects it is bound to; each use looks them up again, so deleting the pod or
//! the account revokes it. Only the signature check is remembered: it is a pure function of the
//! token and by far the dearest part.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::keys::{SigningKey, VerifyingKey};
use super::lookup::{Kind, Lookup, NODES, PODS, Partial, SECRETS, SERVICE_ACCOUNTS};
use crate::identity::{UserInfo, split_service_account};

/// The lifetime kubelets ask for pods; such tokens live a year and warn after it (old clients never
/// reread the file).
pub const WARN_ONLY_SECONDS: i64 = 3607;
const EXTENDED_SECONDS: i64 = 365 * 24 * 3600;
/// Grace after an object's deletionTimestamp, and clock skew for `nbf`.
const LEEWAY_SECONDS: i64 = 60;
/// Remembered signature checks (each about 1 KiB); all are dropped when full.
const CACHE_ENTRIES: usize = 4096;
/// Longer tokens are refused unread.
const MAX_TOKEN_BYTES: usize = 16 * 1024;
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";
const EXTRA: &str = "authentication.kubernetes.io/";

#[derive(Debug, Error)]
pub enum TokenError {
    #[error("the token is malformed")]
    Malformed,
    #[error("no key verifies the token's signature")]
    Signature,
    #[error("the token was issued by {0:?}")]
    Issuer(String),
    #[error("the token's audiences {0:?} are none of those wanted")]
    Audience(Vec<String>),
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    NotYet,
    #[error("the {0} {1:?} that the token is bound to is gone or is another one by now")]
    Revoked(&'static str, String),
    #[error("cannot look up the {0} that the token is bound to: {1}")]
    Lookup(&'static str, String),
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    pub name: String,
    #[serde(default)]
    pub uid: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Private {
    namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<Reference>,
    serviceaccount: Reference,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    warnafter: Option<i64>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Claims {
    #[serde(default, deserialize_with = "one_or_many")]
    aud: Vec<String>,
    exp: i64,
    #[serde(default)]
    iat: i64,
    iss: String,
    #[serde(default)]
    jti: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Private,
    #[serde(default)]
    nbf: i64,
    sub: String,
}

/// A token kept in a Secret of type `kubernetes.io/service-account-token`: it never expires.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct LegacyClaims {
    iss: String,
    #[serde(rename = "kubernetes.io/serviceaccount/namespace")]
    namespace: String,
    #[serde(rename = "kubernetes.io/serviceaccount/secret.name")]
    secret: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.name")]
    name: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.uid")]
    uid: String,
    sub: String,
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Audiences {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Audiences::deserialize(deserializer)? {
        Audiences::One(one) => vec![one],
        Audiences::Many(many) => many,
    })
}

/// What a token is to say.
#[derive(Clone, Debug, Default)]
pub struct TokenSpec {
    pub namespace: String,
    pub service_account: Reference,
    pub pod: Option<Reference>,
    pub node: Option<Reference>,
    pub secret: Option<Reference>,
    /// Empty: the API server itself.
    pub audiences: Vec<String>,
    pub expiration_seconds: i64,
}

#[derive(Clone, Debug)]
pub struct IssuedToken {
    pub token: String,
    /// When the holder must have replaced it.
    pub expires: Timestamp,
    pub id: String,
}

/// A proven token.
#[derive(Clone, Debug)]
pub struct Verified {
    pub user: UserInfo,
    /// Those of the wanted audiences that the token has.
    pub audiences: Vec<String>,
}

type Digested = [u8; 32];

pub struct Tokens {
    issuer: String,
    audiences: Vec<String>,
    signing: SigningKey,
    signing_id: String,
    keys: Vec<VerifyingKey>,
    cache: Mutex<HashMap<Digested, Arc<[u8]>>>,
    now: fn() -> Timestamp,
}

impl Tokens {
    /// `public_pem` may hold older keys too; the one of `signing_pem` must be among them.
    pub fn new(issuer: &str, signing_pem: &str, public_pem: &str) -> anyhow::Result<Self> {
        let signing = SigningKey::from_pem(signing_pem).context("service-account signing key")?;
        let keys = VerifyingKey::all_from_pem(public_pem).context("service-account public keys")?;
        let probe = signing.sign(b"probe")?;
        let ours = keys.iter().find(|key| key.verify(b"probe", &probe));
        let ours = ours.context("no service-account public key belongs to the signing key")?;
        Ok(Tokens {
            signing_id: ours.id.clone(),
            issuer: issuer.to_owned(),
            audiences: vec![issuer.to_owned()],
            signing,
            keys,
            cache: Mutex::default(),
            now: Timestamp::now,
        })
    }

    /// Upstream's default issuer for a cluster domain.
    pub fn default_issuer(cluster_domain: &str) -> String {
        format!("https://kubernetes.default.svc.{cluster_domain}")
    }

    #[cfg(test)]
    pub(crate) fn with_clock(mut self, now: fn() -> Timestamp) -> Self {
        self.now = now;
        self
    }

    /// The audiences of the API server itself.
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    pub fn issue(&self, spec: TokenSpec) -> anyhow::Result<IssuedToken> {
        let now = (self.now)().as_second();
        let audiences = if spec.audiences.is_empty() { self.audiences.clone() } else { spec.audiences };
        let deadline = now + spec.expiration_seconds;
        let extend = spec.expiration_seconds == WARN_ONLY_SECONDS && audiences == self.audiences;
        let claims = Claims {
            aud: audiences,
            exp: if extend { now + EXTENDED_SECONDS } else { deadline },
            iat: now,
            iss: self.issuer.clone(),
            jti: uuid::Uuid::new_v4().to_string(),
            sub: crate::identity::service_account_user(&spec.namespace, &spec.service_account.name),
            kubernetes: Private {
                namespace: spec.namespace,
                node: spec.node,
                pod: spec.pod,
                secret: spec.secret,
                serviceaccount: spec.service_account,
                warnafter: extend.then_some(deadline),
            },
            nbf: now,
        };
        let token = self.sign(&claims)?;
        Ok(IssuedToken { token, expires: Timestamp::from_second(deadline)?, id: claims.jti })
    }

    /// The token of a Secret of type `kubernetes.io/service-account-token`.
    pub fn issue_legacy(&self, namespace: &str, account: &Reference, secret: &str) -> anyhow::Result<String> {
        self.sign(&LegacyClaims {
            iss: LEGACY_ISSUER.to_owned(),
            namespace: namespace.to_owned(),
            secret: secret.to_owned(),
            name: account.name.clone(),
            uid: account.uid.clone(),
            sub: crate::identity::service_account_user(namespace, &account.name),
        })
    }

    fn sign(&self, claims: &impl Serialize) -> anyhow::Result<String> {
        let header = json!({"alg": self.signing.algorithm(), "kid": self.signing_id});
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let message = format!("{}.{}", encode(header.to_string().as_bytes()), encode(&serde_json::to_vec(claims)?));
        let signature = self.signing.sign(message.as_bytes()).context("signing a service-account token")?;
        Ok(format!("{message}.{}", encode(&signature)))
    }

    /// The user of a token meant for the API server.
    pub async fn authenticate(&self, token: &str, lookup: &dyn Lookup) -> Result<UserInfo, TokenError> {
        Ok(self.verify(token, &self.audiences, lookup).await?.user)
    }

    /// Proves a token for any of `audiences`.
    pub async fn verify(&self, token: &str, audiences: &[String], lookup: &dyn Lookup) -> Result<Verified, TokenError> {
        let payload = self.payload(token)?;
        #[derive(Deserialize)]
        struct Issuer {
            iss: String,
        }
        let issuer = serde_json::from_slice::<Issuer>(&payload).map_err(|_| TokenError::Malformed)?.iss;
        if issuer == LEGACY_ISSUER {
            return self.legacy(token, &payload, audiences, lookup).await;
        }
        if issuer != self.issuer {
            return Err(TokenError::Issuer(issuer));
        }
        let claims = serde_json::from_slice::<Claims>(&payload).map_err(|_| TokenError::Malformed)?;
        let audiences = self.check_claims(&claims, audiences)?;
        self.check_bound(&claims.kubernetes, lookup).await?;
        Ok(Verified { user: user(claims), audiences })
    }

    /// The claims of a token whose signature is good.
    fn payload(&self, token: &str) -> Result<Arc<[u8]>, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Malformed);
        }
        let digest: Digested = Sha256::digest(token).into();
        if let Some(payload) = self.cache.lock().get(&digest) {
            return Ok(payload.clone());
        }
        let payload: Arc<[u8]> = self.check_signature(token)?.into();
        let mut cache = self.cache.lock();
        if cache.len() >= CACHE_ENTRIES {
            cache.clear();
        }
        cache.insert(digest, payload.clone());
        Ok(payload)
    }

    fn check_signature(&self, token: &str) -> Result<Vec<u8>, TokenError> {
        #[derive(Deserialize)]
        struct Header {
            alg: String,
            #[serde(default)]
            kid: String,
        }
        let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, payload) = message.split_once('.').ok_or(TokenError::Malformed)?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed);
        let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| TokenError::Malformed)?;
        let signature = decode(signature)?;
        let fits = |key: &&VerifyingKey| key.algorithm == header.alg && (header.kid.is_empty() || key.id == header.kid);
        if !self.keys.iter().filter(fits).any(|key| key.verify(message.as_bytes(), &signature)) {
            return Err(TokenError::Signature);
        }
        decode(payload)
    }

    fn check_claims(&self, claims: &Claims, wanted: &[String]) -> Result<Vec<String>, TokenError> {
        let now = (self.now)().as_second();
        if now >= claims.exp {
            return Err(TokenError::Expired);
        }
        if now + LEEWAY_SECONDS < claims.nbf {
            return Err(TokenError::NotYet);
        }
        let private = &claims.kubernetes;
        if split_service_account(&claims.sub) != Some((&private.namespace, &private.serviceaccount.name)) {
            return Err(TokenError::Malformed);
        }
        let matching: Vec<String> = wanted.iter().filter(|a| claims.aud.contains(a)).cloned().collect();
        if matching.is_empty() { Err(TokenError::Audience(claims.aud.clone())) } else { Ok(matching) }
    }

    async fn check_bound(&self, private: &Private, lookup: &dyn Lookup) -> Result<(), TokenError> {
        let namespace = private.namespace.as_str();
        let bound = [
            (SERVICE_ACCOUNTS, "service account", namespace, Some(&private.serviceaccount)),
            (SECRETS, "secret", namespace, private.secret.as_ref()),
            (PODS, "pod", namespace, private.pod.as_ref()),
            // A pod's node is said for information; a token bound to the node alone dies with it.
            (NODES, "node", "", private.node.as_ref().filter(|_| private.pod.is_none())),
        ];
        for (kind, what, namespace, reference) in bound {
            if let Some(reference) = reference {
                self.check_alive(kind, what, namespace, reference, lookup).await?;
            }
        }
        Ok(())
    }

    async fn check_alive(
        &self,
        kind: Kind,
        what: &'static str,
        namespace: &str,
        reference: &Reference,
        lookup: &dyn Lookup,
    ) -> Result<(), TokenError> {
        let found = lookup.get_as::<Partial>(kind, namespace, &reference.name).await;
        let found = found.map_err(|error| TokenError::Lookup(what, error.to_string()))?;
        let now = (self.now)().as_second();
        let alive = |object: &Partial| {
            let deleted = object.metadata.deletion_timestamp;
            object.metadata.uid == reference.uid && deleted.is_none_or(|at| now <= at.as_second() + LEEWAY_SECONDS)
        };
        match found.is_some_and(|object| alive(&object)) {
            true => Ok(()),
            false => Err(TokenError::Revoked(what, reference.name.clone())),
        }
    }

    async fn legacy(
        &self,
        token: &str,
        payload: &[u8],
        wanted: &[String],
        lookup: &dyn Lookup,
    ) -> Result<Verified, TokenError> {
        #[derive(Deserialize)]
        struct Secret {
            #[serde(default)]
            data: BTreeMap<String, String>,
        }
        let claims = serde_json::from_slice::<LegacyClaims>(payload).map_err(|_| TokenError::Malformed)?;
        if split_service_account(&claims.sub) != Some((&claims.namespace, &claims.name)) {
            return Err(TokenError::Malformed);
        }
        let audiences: Vec<String> = wanted.iter().filter(|a| self.audiences.contains(a)).cloned().collect();
        if audiences.is_empty() {
            return Err(TokenError::Audience(self.audiences.clone()));
        }
        let account = Reference { name: claims.name, uid: claims.uid };
        self.check_alive(SERVICE_ACCOUNTS, "service account", &claims.namespace, &account, lookup).await?;
        let secret = lookup.get_as::<Secret>(SECRETS, &claims.namespace, &claims.secret).await;
        let secret = secret.map_err(|error| TokenError::Lookup("secret", error.to_string()))?;
        let stored =
            secret.and_then(|secret| base64::engine::general_purpose::STANDARD.decode(secret.data.get("token")?).ok());
        if stored.as_deref() != Some(token.as_bytes()) {
            return Err(TokenError::Revoked("secret", claims.secret));
        }
        Ok(Verified { user: UserInfo::service_account(&claims.namespace, &account.name, account.uid), audiences })
    }

    /// `/.well-known/openid-configuration`.
    pub fn openid_configuration(&self, jwks_uri: &str) -> Value {
        let mut algorithms: Vec<_> = self.keys.iter().map(|key| key.algorithm).collect();
        algorithms.sort_unstable();
        algorithms.dedup();
        json!({
            "issuer": self.issuer,
            "jwks_uri": jwks_uri,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": algorithms,
        })
    }

    /// `/openid/v1/jwks`.
    pub fn jwks(&self) -> Value {
        json!({"keys": self.keys.iter().map(VerifyingKey::jwk).collect::<Vec<_>>()})
    }
}

fn user(claims: Claims) -> UserInfo {
    let private = claims.kubernetes;
    let mut user =
        UserInfo::service_account(&private.namespace, &private.serviceaccount.name, private.serviceaccount.uid);
    let mut extra = |key: &str, value: String| user.extra.insert(format!("{EXTRA}{key}"), vec![value]);
    if !claims.jti.is_empty() {
        extra("credential-id", format!("JTI={}", claims.jti));
    }
    for (what, reference) in [("pod", private.pod), ("node", private.node)] {
        if let Some(reference) = reference {
            extra(&format!("{what}-name"), reference.name);
            if !reference.uid.is_empty() {
                extra(&format!("{what}-uid"), reference.uid);
            }
        }
    }
    user
}

/// Bounds of `spec.expirationSeconds` of a TokenRequest, in upstream's words.
pub fn check_expiration(seconds: i64) -> Result<(), &'static str> {
    match seconds {
        ..600 => Err("may not specify a duration less than 10 minutes"),
        600..=0x1_0000_0000 => Ok(()),
        _ => Err("may not specify a duration larger than 2^32 seconds"),
    }
}

/// Turns a failed proof into the message of a TokenReview's `status.error`.
pub fn review_error(error: &TokenError) -> String {
    format!("[invalid bearer token, {error}]")
}

#[cfg(test)]
#[path = "tokens_tests.rs"]
mod tests;
