//! May this user do this? Node and RBAC authorizers, in that order, in union.
//!
//! Nothing here knows HTTP: a request arrives as borrowed [`Attributes`], so that the decision on
//! the path of every request costs no allocation. Policy is held in indexes fed by [`Lookup::watch`]
//! (see [`Lookup`](crate::authn::Lookup)), never read from the store during a decision.

mod node;
mod policy;
pub mod rbac;
mod rules;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::Arc;

use machinery::status::{ApiError, Result};

pub use node::{Graph, NodeAuthorizer, Target, references};
pub use policy::{Binding, Bound, Policy, RoleRef};
pub use rbac::Rbac;
pub use rules::{Rule, covers, describe as describe_rule, quoted};

use crate::authn::Lookup;
use crate::identity::{MASTERS, UserInfo};

/// What a request wants to do. For a non-resource request only `user`, `verb` and `path` count.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    pub user: &'a UserInfo,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, or the
    /// lower-case HTTP method for a path.
    pub verb: &'a str,
    pub group: &'a str,
    pub version: &'a str,
    /// The plural.
    pub resource: &'a str,
    pub subresource: &'a str,
    /// Empty for cluster-scoped resources and lists over all namespaces.
    pub namespace: &'a str,
    /// Empty for lists and creates; a list or watch with the field selector `metadata.name=x` has x.
    pub name: &'a str,
    pub path: &'a str,
    pub resource_request: bool,
    /// As the client sent it; the Node authorizer lets a kubelet list only what is its own.
    pub field_selector: &'a str,
}

impl<'a> Attributes<'a> {
    pub fn resource(user: &'a UserInfo, verb: &'a str, group: &'a str, resource: &'a str) -> Self {
        Attributes {
            user,
            verb,
            group,
            version: "v1",
            resource,
            subresource: "",
            namespace: "",
            name: "",
            path: "",
            resource_request: true,
            field_selector: "",
        }
    }

    pub fn path(user: &'a UserInfo, verb: &'a str, path: &'a str) -> Self {
        Attributes { path, resource_request: false, version: "", ..Attributes::resource(user, verb, "", "") }
    }

    pub fn subresource(self, subresource: &'a str) -> Self {
        Attributes { subresource, ..self }
    }

    pub fn namespace(self, namespace: &'a str) -> Self {
        Attributes { namespace, ..self }
    }

    pub fn name(self, name: &'a str) -> Self {
        Attributes { name, ..self }
    }
}

pub type Reason = Cow<'static, str>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow(Reason),
    /// Final: no later authorizer is asked.
    Deny(Reason),
    /// The next authorizer is asked; if none allows, the request is refused with these reasons.
    NoOpinion(Reason),
}

impl Decision {
    pub fn allowed(&self) -> bool {
        matches!(self, Decision::Allow(_))
    }
}

/// Decides from memory, so it is not async: a decision may not wait for anything.
pub trait Authorizer: Send + Sync {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision;
}

/// The authorizers of a cluster in order.
pub struct Union {
    node: NodeAuthorizer,
    rbac: Arc<Rbac>,
}

impl Union {
    /// Follows policy and pods through `lookup` from now on. Decisions before [`Union::synced`]
    /// returns see partial policy, which can only refuse too much.
    pub fn start(lookup: Arc<dyn Lookup>) -> Arc<Self> {
        let policy = Policy::follow(lookup.as_ref());
        Arc::new(Union { node: NodeAuthorizer::follow(lookup.as_ref()), rbac: Arc::new(Rbac::new(policy)) })
    }

    /// Over given indexes, for tests and for callers that feed them themselves.
    pub fn new(node: NodeAuthorizer, rbac: Arc<Rbac>) -> Self {
        Union { node, rbac }
    }

    pub async fn synced(&self) {
        self.rbac.policy().synced().await;
        self.node.synced().await;
    }

    pub fn rbac(&self) -> &Arc<Rbac> {
        &self.rbac
    }
}

impl Authorizer for Union {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        if attributes.user.in_group(MASTERS) {
            return Decision::Allow(Cow::Borrowed(""));
        }
        let node = match self.node.authorize(attributes) {
            Decision::NoOpinion(reason) => reason,
            decided => return decided,
        };
        match self.rbac.authorize(attributes) {
            Decision::NoOpinion(rbac) => Decision::NoOpinion(join(node, rbac)),
            decided => decided,
        }
    }
}

fn join(first: Reason, second: Reason) -> Reason {
    match (first.is_empty(), second.is_empty()) {
        (true, _) => second,
        (_, true) => first,
        _ => Cow::Owned(format!("{first}\n{second}")),
    }
}

/// Refuses with upstream's 403 unless the authorizer allows.
pub fn check(authorizer: &dyn Authorizer, attributes: &Attributes<'_>) -> Result<()> {
    match authorizer.authorize(attributes) {
        Decision::Allow(_) => Ok(()),
        Decision::Deny(reason) | Decision::NoOpinion(reason) => Err(refusal(attributes, &reason)),
    }
}

/// The 403 for a request that nobody allowed.
pub fn refusal(a: &Attributes<'_>, reason: &str) -> ApiError {
    let mut message = message(a);
    if !reason.is_empty() {
        message = format!("{message}: {reason}");
    }
    if a.resource_request {
        ApiError::forbidden(a.group, a.resource, a.name, &message)
    } else {
        ApiError::forbidden("", "", "", &message)
    }
}

fn message(a: &Attributes<'_>) -> String {
    let user = &a.user.name;
    if !a.resource_request {
        return format!("User {user:?} cannot {} path {:?}", a.verb, a.path);
    }
    let resource = match a.subresource {
        "" => Cow::Borrowed(a.resource),
        subresource => Cow::Owned(format!("{}/{subresource}", a.resource)),
    };
    let place = match a.namespace {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace {namespace:?}"),
    };
    format!("User {user:?} cannot {} resource {resource:?} in API group {:?} {place}", a.verb, a.group)
}
