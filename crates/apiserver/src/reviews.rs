//! Kinds that are asked and answered but never stored: access reviews, token reviews, token requests.
//!
//! They ask the same authorizer and authenticator as requests do, so `kubectl auth can-i` cannot
//! disagree with what then happens.

use std::ops::Not;
use std::sync::Arc;

use machinery::field::{FieldError, Path};
use machinery::status::{ApiError, Result};
use resources::Facts;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::authn::Tokens;
use crate::authn::lookup::{Kind, Lookup, Meta, NODES, PODS, Partial, SECRETS, SERVICE_ACCOUNTS};
use crate::authn::tokens::{Reference, TokenSpec, check_expiration, review_error};
use crate::authz::{Attributes, Authorizer, Decision, Union};
use crate::identity::{AUTHENTICATED, MASTERS, UserInfo};

const AUTHORIZATION: &str = "authorization.k8s.io";
const AUTHENTICATION: &str = "authentication.k8s.io";

pub struct Reviews {
    tokens: Arc<Tokens>,
    authorizer: Arc<Union>,
    lookup: Arc<dyn Lookup>,
}

#[derive(Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[derive(Default)]
struct AccessSpec {
    resource_attributes: Option<ResourceAttributes>,
    non_resource_attributes: Option<NonResourceAttributes>,
    user: String,
    groups: Vec<String>,
    uid: String,
    extra: std::collections::BTreeMap<String, Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ResourceAttributes {
    namespace: String,
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    name: String,
    field_selector: FieldSelectorAttributes,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct FieldSelectorAttributes {
    raw_selector: String,
    requirements: Vec<Requirement>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Requirement {
    key: String,
    operator: String,
    values: Vec<String>,
}

impl FieldSelectorAttributes {
    /// As a request's selector; what cannot be said in one only narrows and may be left out.
    fn text(&self) -> String {
        let said = self.requirements.iter().filter_map(|requirement| match requirement.values.as_slice() {
            [value] if requirement.operator == "In" => Some(format!("{}={value}", requirement.key)),
            _ => None,
        });
        let said: Vec<_> = said.collect();
        if said.is_empty() { self.raw_selector.clone() } else { said.join(",") }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NonResourceAttributes {
    path: String,
    verb: String,
}

#[derive(Serialize)]
struct AccessStatus {
    allowed: bool,
    #[serde(skip_serializing_if = "<&bool>::not")]
    denied: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
}

fn decode<T: for<'de> Deserialize<'de>>(value: &Value) -> Result<T> {
    T::deserialize(value).map_err(|error| ApiError::bad_request(error.to_string()))
}

impl Reviews {
    pub fn new(tokens: Arc<Tokens>, authorizer: Arc<Union>, lookup: Arc<dyn Lookup>) -> Self {
        Reviews { tokens, authorizer, lookup }
    }

    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Answers a posted review: the object with its status. `namespace` is that of the request.
    pub async fn create(&self, facts: &Facts, namespace: &str, user: &UserInfo, mut review: Value) -> Result<Value> {
        review["status"] = match (facts.group, facts.kind) {
            (AUTHORIZATION, "SelfSubjectAccessReview") => {
                let spec: AccessSpec = decode(&review["spec"])?;
                self.access(facts, &spec, user)?
            }
            (AUTHORIZATION, "SubjectAccessReview" | "LocalSubjectAccessReview") => {
                let spec: AccessSpec = decode(&review["spec"])?;
                check_local(facts, &spec, namespace)?;
                self.access(facts, &spec, &subject(facts, &spec)?)?
            }
            (AUTHORIZATION, "SelfSubjectRulesReview") => self.rules(&review, user)?,
            (AUTHENTICATION, "TokenReview") => self.token_review(&review).await?,
            (AUTHENTICATION, "SelfSubjectReview") => json!({"userInfo": user.to_value()}),
            _ => return Err(ApiError::method_not_allowed()),
        };
        Ok(review)
    }

    fn access(&self, facts: &Facts, spec: &AccessSpec, user: &UserInfo) -> Result<Value> {
        let path = Path::new("spec");
        let invalid = |errors| Err(ApiError::invalid(facts.group, facts.kind, "", errors));
        let decision = match (&spec.resource_attributes, &spec.non_resource_attributes) {
            (Some(a), None) => {
                let field_selector = a.field_selector.text();
                self.authorizer.authorize(&Attributes {
                    user,
                    verb: &a.verb,
                    group: &a.group,
                    version: &a.version,
                    resource: &a.resource,
                    subresource: &a.subresource,
                    namespace: &a.namespace,
                    name: &a.name,
                    path: "",
                    resource_request: true,
                    field_selector: &field_selector,
                })
            }
            (None, Some(a)) => self.authorizer.authorize(&Attributes::path(user, &a.verb, &a.path)),
            (Some(_), Some(_)) => {
                let why = "cannot be specified in combination with resourceAttributes";
                return invalid(vec![FieldError::invalid(path.child("nonResourceAttributes"), Value::Null, why)]);
            }
            (None, None) => {
                let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
                return invalid(vec![FieldError::invalid(path.child("resourceAttributes"), Value::Null, why)]);
            }
        };
        let (allowed, denied, reason) = match decision {
            Decision::Allow(reason) => (true, false, reason),
            Decision::Deny(reason) => (false, true, reason),
            Decision::NoOpinion(reason) => (false, false, reason),
        };
        serde_json::to_value(AccessStatus { allowed, denied, reason: reason.into_owned() }).map_err(ApiError::internal)
    }

    fn rules(&self, review: &Value, user: &UserInfo) -> Result<Value> {
        let namespace = review["spec"]["namespace"].as_str().unwrap_or_default();
        if namespace.is_empty() {
            return Err(ApiError::bad_request("no namespace on request"));
        }
        let (mut resource, mut non_resource) = (Vec::new(), Vec::new());
        if user.in_group(MASTERS) {
            resource.push(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
            non_resource.push(json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
        }
        let (rules, errors) = self.authorizer.rbac().rules_for(user, namespace);
        for mut rule in rules {
            let urls = std::mem::take(&mut rule.non_resource_urls);
            if !rule.resources.is_empty() {
                resource.push(json!(rule));
            }
            if !urls.is_empty() {
                non_resource.push(json!({"verbs": rule.verbs, "nonResourceURLs": urls}));
            }
        }
        let mut errors = errors;
        if user.node().is_some() {
            errors.push("node authorizer does not support user rule resolution".to_owned());
        }
        let mut status = json!({
            "resourceRules": resource, "nonResourceRules": non_resource, "incomplete": !errors.is_empty(),
        });
        if !errors.is_empty() {
            status["evaluationError"] = json!(machinery::field::aggregate(errors));
        }
        Ok(status)
    }

    async fn token_review(&self, review: &Value) -> Result<Value> {
        #[derive(Deserialize)]
        #[serde(default)]
        #[derive(Default)]
        struct Spec {
            token: String,
            audiences: Vec<String>,
        }
        let spec: Spec = decode(&review["spec"])?;
        if spec.token.is_empty() {
            return Err(ApiError::bad_request("token is required for TokenReview in authentication"));
        }
        let audiences = if spec.audiences.is_empty() { self.tokens.audiences().to_vec() } else { spec.audiences };
        Ok(match self.tokens.verify(&spec.token, &audiences, self.lookup.as_ref()).await {
            Ok(mut verified) => {
                verified.user.add_group(AUTHENTICATED);
                json!({"authenticated": true, "user": verified.user.to_value(), "audiences": verified.audiences})
            }
            Err(error) => json!({"user": {}, "error": review_error(&error)}),
        })
    }

    /// `serviceaccounts/NAME/token`: issues a token; the answer is the request with its status.
    pub async fn token_request(&self, namespace: &str, name: &str, mut request: Value) -> Result<Value> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Spec {
            #[serde(default)]
            audiences: Vec<String>,
            expiration_seconds: Option<i64>,
            bound_object_ref: Option<Bound>,
        }
        const DEFAULT_SECONDS: i64 = 3600;
        let spec: Spec = match &request["spec"] {
            Value::Null => Spec { audiences: vec![], expiration_seconds: None, bound_object_ref: None },
            spec => decode(spec)?,
        };
        let expiration_seconds = spec.expiration_seconds.unwrap_or(DEFAULT_SECONDS);
        if let Err(why) = check_expiration(expiration_seconds) {
            let path = Path::new("spec").child("expirationSeconds");
            let errors = vec![FieldError::invalid(path, expiration_seconds, why)];
            return Err(ApiError::invalid(AUTHENTICATION, "TokenRequest", "", errors));
        }
        let account: Partial = self.lookup.as_ref().require(SERVICE_ACCOUNTS, namespace, name).await?;
        let mut token = TokenSpec {
            namespace: namespace.to_owned(),
            service_account: Reference { name: name.to_owned(), uid: account.metadata.uid },
            audiences: if spec.audiences.is_empty() { self.tokens.audiences().to_vec() } else { spec.audiences },
            expiration_seconds,
            ..TokenSpec::default()
        };
        if let Some(bound) = &spec.bound_object_ref {
            self.bind(namespace, name, bound, &mut token).await?;
        }
        request["metadata"]["name"] = json!(name);
        request["metadata"]["namespace"] = json!(namespace);
        request["metadata"]["creationTimestamp"] = json!(machinery::time::now_rfc3339());
        request["spec"]["audiences"] = json!(token.audiences);
        request["spec"]["expirationSeconds"] = json!(expiration_seconds);
        let issued = self
            .tokens
            .issue(token)
            .map_err(|error| ApiError::internal(format!("failed to generate token: {error:#}")))?;
        request["status"] =
            json!({"token": issued.token, "expirationTimestamp": machinery::time::format(issued.expires)});
        Ok(request)
    }

    async fn bind(&self, namespace: &str, account: &str, bound: &Bound, token: &mut TokenSpec) -> Result<()> {
        let (kind, scope): (Kind, &str) = match (bound.api_version.as_str(), bound.kind.as_str()) {
            ("v1", "Pod") => (PODS, namespace),
            ("v1", "Secret") => (SECRETS, namespace),
            ("v1", "Node") => (NODES, ""),
            (version, kind) => {
                let (group, version) = version.split_once('/').unwrap_or(("", version));
                let kind = format!("{group}/{version}, Kind={kind}");
                return Err(ApiError::bad_request(format!("cannot bind token to object of type {kind}")));
            }
        };
        let object: BoundObject = self.lookup.as_ref().require(kind, scope, &bound.name).await?;
        let uid = object.metadata.uid;
        if !bound.uid.is_empty() && bound.uid != uid {
            return Err(ApiError::conflict(
                "",
                &bound.kind,
                &bound.name,
                format!(
                    "the UID in the bound object reference ({}) does not match the UID in record. \
                 The object might have been deleted and then recreated",
                    bound.uid
                ),
            ));
        }
        let reference = Some(Reference { name: bound.name.clone(), uid });
        match bound.kind.as_str() {
            "Secret" => token.secret = reference,
            "Node" => token.node = reference,
            _ if object.spec.service_account_name != account => {
                return Err(ApiError::bad_request(format!(
                    "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
                )));
            }
            _ => {
                token.pod = reference;
                token.node = self.node_of(&object.spec.node_name).await?;
            }
        }
        Ok(())
    }

    async fn node_of(&self, name: &str) -> Result<Option<Reference>> {
        if name.is_empty() {
            return Ok(None);
        }
        let node: Option<Partial> = self.lookup.as_ref().get_as(NODES, "", name).await?;
        let uid = node.map(|node| node.metadata.uid).unwrap_or_default();
        Ok(Some(Reference { name: name.to_owned(), uid }))
    }
}

#[derive(Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[derive(Default)]
struct Bound {
    api_version: String,
    kind: String,
    name: String,
    uid: String,
}

#[derive(Deserialize)]
struct BoundObject {
    metadata: Meta,
    #[serde(default)]
    spec: BoundSpec,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct BoundSpec {
    service_account_name: String,
    node_name: String,
}

fn subject(facts: &Facts, spec: &AccessSpec) -> Result<UserInfo> {
    if spec.user.is_empty() && spec.groups.is_empty() {
        let path = Path::new("spec").child("user");
        let errors = vec![FieldError::invalid(path, "", "at least one of user or group must be specified")];
        return Err(ApiError::invalid(facts.group, facts.kind, "", errors));
    }
    Ok(UserInfo {
        name: spec.user.clone(),
        uid: spec.uid.clone(),
        groups: spec.groups.clone(),
        extra: spec.extra.iter().map(|(key, values)| (key.to_lowercase(), values.clone())).collect(),
    })
}

fn check_local(facts: &Facts, spec: &AccessSpec, namespace: &str) -> Result<()> {
    if facts.kind != "LocalSubjectAccessReview" {
        return Ok(());
    }
    match &spec.resource_attributes {
        Some(attributes) if attributes.namespace != namespace => {
            Err(ApiError::bad_request(format!("spec.resourceAttributes.namespace must match namespace: {namespace}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "reviews_tests.rs"]
mod tests;
