//! Cluster roles with an aggregation rule hold the rules of every role that the rule selects.

use anyhow::Context as _;
use client::{Client, Store, key_of};
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::common::{selector, selects};
use crate::framework::{Context, Controller, Requeue};

pub struct ClusterRoleAggregation {
    client: Client,
    roles: Store<ClusterRole>,
}

impl Controller for ClusterRoleAggregation {
    const NAME: &'static str = "clusterrole-aggregation-controller";

    fn new(context: &Context) -> Self {
        let known = context.informer::<ClusterRole>().store();
        let roles = context.on::<ClusterRole>(move |_, queue| {
            let aggregated = known.list().into_iter().filter(|role| role.aggregation_rule.is_some());
            aggregated.for_each(|role| queue.add(key_of(&role.metadata)));
        });
        Self { client: context.client.clone(), roles: roles.store() }
    }

    async fn reconcile(&self, key: &str) -> anyhow::Result<Requeue> {
        let Some(role) = self.roles.get(key) else { return Ok(Requeue::Never) };
        let all = self.roles.list();
        let Some(rules) = aggregate(&role, all.iter().map(AsRef::as_ref)) else { return Ok(Requeue::Never) };
        if role.rules.as_deref().unwrap_or_default() == rules {
            return Ok(Requeue::Never);
        }
        let patch = json!({"rules": rules, "metadata": {"resourceVersion": role.metadata.resource_version}});
        let api: Api<ClusterRole> = Api::all(self.client.clone());
        api.patch(key, &PatchParams::default(), &Patch::Merge(patch)).await.context("aggregate rules")?;
        Ok(Requeue::Never)
    }
}

/// The union of the rules of the selected roles, in the order of their names; None if the role does not aggregate.
fn aggregate<'a>(role: &ClusterRole, all: impl Iterator<Item = &'a ClusterRole>) -> Option<Vec<PolicyRule>> {
    let selectors = role.aggregation_rule.as_ref()?.cluster_role_selectors.iter().flatten();
    let selectors: Vec<_> = selectors.map(selector).collect();
    let others = all.filter(|other| other.metadata.name != role.metadata.name);
    let mut selected: Vec<_> =
        others.filter(|other| selectors.iter().any(|selector| selects(selector, &other.metadata))).collect();
    selected.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    let mut rules: Vec<PolicyRule> = Vec::new();
    for rule in selected.into_iter().flat_map(|role| role.rules.iter().flatten()) {
        if !rules.contains(rule) {
            rules.push(rule.clone());
        }
    }
    Some(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_united_in_order_of_names() {
        let role = |name: &str, label: &str, verb: &str| -> ClusterRole {
            serde_json::from_value(json!({"metadata": {"name": name, "labels": {"to": label}},
                "rules": [{"verbs": [verb], "resources": ["pods"], "apiGroups": [""]}]}))
            .unwrap()
        };
        let mut admin = role("admin", "admin", "none");
        let rule = json!({"clusterRoleSelectors": [{"matchLabels": {"to": "admin"}}]});
        admin.aggregation_rule = serde_json::from_value(rule).unwrap();
        let all = [
            role("z", "admin", "get"),
            role("b", "admin", "list"),
            role("c", "admin", "get"),
            role("d", "x", "*"),
            admin.clone(),
        ];
        let rules = aggregate(&admin, all.iter()).unwrap();
        assert_eq!(rules.iter().map(|rule| rule.verbs[0].as_str()).collect::<Vec<_>>(), ["list", "get"]);
        assert!(aggregate(&all[0], all.iter()).is_none());
    }
}
