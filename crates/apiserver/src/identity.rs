//! Who makes a request: the result of authentication, the input of authorization and admission.
//!
//! It knows neither how an identity was proved nor what it may do. The well-known names are here
//! because every layer above compares against them, and a typing error in one would open a door.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub const ANONYMOUS: &str = "system:anonymous";
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
pub const AUTHENTICATED: &str = "system:authenticated";
pub const MASTERS: &str = "system:masters";
pub const NODES: &str = "system:nodes";
pub const NODE_PREFIX: &str = "system:node:";
pub const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";
pub const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";

/// Put into a request's extensions by an in-process caller, it is trusted as it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UserInfo {
    #[serde(alias = "username", alias = "user")]
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    pub fn new(name: impl Into<String>, groups: impl IntoIterator<Item = impl Into<String>>) -> Self {
        UserInfo { name: name.into(), groups: groups.into_iter().map(Into::into).collect(), ..Default::default() }
    }

    pub fn anonymous() -> Self {
        UserInfo::new(ANONYMOUS, [UNAUTHENTICATED])
    }

    /// A component inside this process, such as `system:kube-scheduler`.
    pub fn component(name: impl Into<String>) -> Self {
        UserInfo::new(name, [AUTHENTICATED])
    }

    /// The API server itself and administrators: above every rule.
    pub fn master(name: impl Into<String>) -> Self {
        UserInfo::new(name, [MASTERS, AUTHENTICATED])
    }

    pub fn service_account(namespace: &str, name: &str, uid: impl Into<String>) -> Self {
        UserInfo {
            name: service_account_user(namespace, name),
            uid: uid.into(),
            groups: service_account_groups(namespace),
            extra: BTreeMap::new(),
        }
    }

    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The node behind a kubelet's identity: `None` for others, `Some("")` for a member of
    /// `system:nodes` whose user name does not name a node.
    pub fn node(&self) -> Option<&str> {
        self.in_group(NODES).then(|| self.name.strip_prefix(NODE_PREFIX).unwrap_or_default())
    }

    /// `(namespace, name)` when this is a service account.
    pub fn as_service_account(&self) -> Option<(&str, &str)> {
        split_service_account(&self.name)
    }

    pub fn add_group(&mut self, group: &str) {
        if !self.in_group(group) {
            self.groups.push(group.to_owned());
        }
    }

    /// `authentication.k8s.io/v1 UserInfo`, empty fields left out.
    pub fn to_value(&self) -> Value {
        let mut value = json!({"username": self.name});
        if !self.uid.is_empty() {
            value["uid"] = json!(self.uid);
        }
        if !self.groups.is_empty() {
            value["groups"] = json!(self.groups);
        }
        if !self.extra.is_empty() {
            value["extra"] = json!(self.extra);
        }
        value
    }
}

pub fn service_account_user(namespace: &str, name: &str) -> String {
    format!("{SERVICE_ACCOUNT_PREFIX}{namespace}:{name}")
}

pub fn service_account_groups(namespace: &str) -> Vec<String> {
    vec![SERVICE_ACCOUNTS.to_owned(), format!("{SERVICE_ACCOUNTS}:{namespace}"), AUTHENTICATED.to_owned()]
}

pub fn split_service_account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix(SERVICE_ACCOUNT_PREFIX)?.split_once(':')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some((namespace, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_and_service_accounts_are_recognised() {
        let cases = [
            ("system:node:a", vec![NODES], Some("a"), None),
            ("bob", vec![NODES], Some(""), None),
            ("system:node:a", vec![], None, None),
            ("system:serviceaccount:ns:sa", vec![], None, Some(("ns", "sa"))),
            ("system:serviceaccount:ns:", vec![], None, None),
            ("system:serviceaccount:ns:a:b", vec![], None, None),
        ];
        for (name, groups, node, account) in cases {
            let user = UserInfo::new(name, groups);
            assert_eq!(user.node(), node, "{name}");
            assert_eq!(user.as_service_account(), account, "{name}");
        }
    }
}
