//! Roles and bindings, indexed by subject and kept up to date by watches.
//!
//! A decision asks "what is bound to this user or these groups, here": a few hash lookups. Roles
//! and bindings refer to each other by name only, so they may arrive in any order.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use parking_lot::RwLock;
use serde::Deserialize;

use super::rules::{Rule, nullable};
use crate::authn::lookup::{
    CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, Change, Index, Kind, Lookup, Meta, ROLE_BINDINGS, ROLES, Synced, follow,
};
use crate::identity::{UserInfo, service_account_user};

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RoleRef {
    /// `Role` or `ClusterRole`.
    pub kind: String,
    pub name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Subject {
    /// `User`, `Group` or `ServiceAccount`.
    pub kind: String,
    pub name: String,
    pub namespace: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Binding {
    metadata: Meta,
    pub role_ref: RoleRef,
    #[serde(deserialize_with = "nullable")]
    pub subjects: Vec<Subject>,
}

impl Binding {
    /// Upstream's words in an allow reason: which subject got it through which binding.
    pub fn describe(&self, subject: usize) -> String {
        let Meta { name, namespace, .. } = &self.metadata;
        let (kind, name) = match namespace.as_str() {
            "" => ("ClusterRoleBinding", name.clone()),
            namespace => ("RoleBinding", format!("{name}/{namespace}")),
        };
        let Subject { kind: who, name: subject, namespace: of } = &self.subjects[subject];
        let subject = match who.as_str() {
            "ServiceAccount" => format!("{subject}/{}", if of.is_empty() { namespace } else { of }),
            _ => subject.clone(),
        };
        let role = &self.role_ref;
        format!("{kind} {name:?} of {} {:?} to {who} {subject:?}", role.kind, role.name)
    }
}

#[derive(Deserialize)]
struct Role {
    metadata: Meta,
    #[serde(default, deserialize_with = "nullable")]
    rules: Vec<Rule>,
}

type BySubject = HashMap<String, Vec<(Arc<Binding>, usize)>>;

/// One namespace's share, or the cluster's (under the empty namespace).
#[derive(Default)]
struct Scope {
    roles: HashMap<String, Arc<[Rule]>>,
    bindings: HashMap<String, Arc<Binding>>,
    /// Users (service accounts by their user names) and groups; the number is the subject's place.
    users: BySubject,
    groups: BySubject,
}

impl Scope {
    fn bind(&mut self, binding: Arc<Binding>) {
        self.unbind(&binding.metadata.name);
        for (place, subject) in binding.subjects.iter().enumerate() {
            if let Some((bound, name)) = self.bound_mut(&binding, subject) {
                bound.entry(name).or_default().push((binding.clone(), place));
            }
        }
        self.bindings.insert(binding.metadata.name.clone(), binding);
    }

    fn unbind(&mut self, name: &str) {
        let Some(binding) = self.bindings.remove(name) else { return };
        for subject in &binding.subjects {
            let Some((bound, name)) = self.bound_mut(&binding, subject) else { continue };
            if let Some(others) = bound.get_mut(&name) {
                others.retain(|(other, _)| !Arc::ptr_eq(other, &binding));
                if others.is_empty() {
                    bound.remove(&name);
                }
            }
        }
    }

    /// Where a subject is indexed, and under which name.
    fn bound_mut(&mut self, binding: &Binding, subject: &Subject) -> Option<(&mut BySubject, String)> {
        match subject.kind.as_str() {
            "User" => Some((&mut self.users, subject.name.clone())),
            "Group" => Some((&mut self.groups, subject.name.clone())),
            "ServiceAccount" => {
                let own = &binding.metadata.namespace;
                let namespace = if subject.namespace.is_empty() { own } else { &subject.namespace };
                Some((&mut self.users, service_account_user(namespace, &subject.name)))
            }
            _ => None,
        }
    }

    /// Bindings of the user, then of the groups.
    fn bound<'a>(&'a self, user: &'a UserInfo) -> impl Iterator<Item = &'a (Arc<Binding>, usize)> {
        let groups = user.groups.iter().filter_map(|group| self.groups.get(group));
        self.users.get(&user.name).into_iter().chain(groups).flatten()
    }
}

#[derive(Default)]
pub struct Policy {
    scopes: RwLock<HashMap<String, Scope>>,
    synced: Synced,
}

/// A binding that applies, and its role's rules; `None` when the role does not exist.
pub struct Bound<'a> {
    pub binding: &'a Binding,
    pub subject: usize,
    pub rules: Option<&'a [Rule]>,
}

impl Policy {
    /// Starts to follow the stored roles and bindings.
    pub fn follow(lookup: &dyn Lookup) -> Arc<Self> {
        let policy = Arc::new(Policy::default());
        let kinds = [CLUSTER_ROLES, CLUSTER_ROLE_BINDINGS, ROLES, ROLE_BINDINGS];
        follow(&policy, |policy| &policy.synced, lookup, &kinds);
        policy
    }

    pub async fn synced(&self) {
        self.synced.wait().await;
    }

    /// Calls `visit` with everything bound to the user: in the cluster, then in `namespace` if given.
    pub fn visit<B>(
        &self,
        user: &UserInfo,
        namespace: &str,
        mut visit: impl FnMut(Bound<'_>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let scopes = self.scopes.read();
        let names = std::iter::once("").chain((!namespace.is_empty()).then_some(namespace));
        for scope in names.filter_map(|name| scopes.get(name)) {
            for (binding, subject) in scope.bound(user) {
                let rules = find(&scopes, &binding.role_ref, &binding.metadata.namespace);
                visit(Bound { binding, subject: *subject, rules })?;
            }
        }
        ControlFlow::Continue(())
    }

    /// The rules of a role as a binding in `namespace` (empty: a cluster role binding) names it.
    pub fn role(&self, role: &RoleRef, namespace: &str) -> Option<Vec<Rule>> {
        find(&self.scopes.read(), role, namespace).map(<[Rule]>::to_vec)
    }
}

fn find<'a>(scopes: &'a HashMap<String, Scope>, role: &RoleRef, namespace: &str) -> Option<&'a [Rule]> {
    let scope = match role.kind.as_str() {
        "ClusterRole" => "",
        "Role" if !namespace.is_empty() => namespace,
        _ => return None,
    };
    scopes.get(scope)?.roles.get(&role.name).map(AsRef::as_ref)
}

impl Index for Policy {
    fn change(&self, kind: Kind, change: &Change) {
        let mut scopes = self.scopes.write();
        let is_role = kind == ROLES || kind == CLUSTER_ROLES;
        match change {
            Change::Reset => {
                let cluster = kind == CLUSTER_ROLES || kind == CLUSTER_ROLE_BINDINGS;
                for (_, scope) in scopes.iter_mut().filter(|(name, _)| name.is_empty() == cluster) {
                    match is_role {
                        true => scope.roles.clear(),
                        false => *scope = Scope { roles: std::mem::take(&mut scope.roles), ..Scope::default() },
                    }
                }
            }
            Change::Put(bytes) if is_role => match serde_json::from_slice::<Role>(bytes) {
                Ok(Role { metadata, rules }) => {
                    scopes.entry(metadata.namespace).or_default().roles.insert(metadata.name, rules.into());
                }
                Err(error) => tracing::error!(%error, kind = kind.plural, "a stored role cannot be decoded"),
            },
            Change::Put(bytes) => match serde_json::from_slice::<Binding>(bytes) {
                Ok(binding) => {
                    scopes.entry(binding.metadata.namespace.clone()).or_default().bind(Arc::new(binding));
                }
                Err(error) => tracing::error!(%error, kind = kind.plural, "a stored binding cannot be decoded"),
            },
            Change::Delete { namespace, name } => {
                let Some(scope) = scopes.get_mut(namespace) else { return };
                match is_role {
                    true => drop(scope.roles.remove(name)),
                    false => scope.unbind(name),
                }
                if scope.roles.is_empty() && scope.bindings.is_empty() {
                    scopes.remove(namespace);
                }
            }
            Change::Synced => {}
        }
    }
}
