//! The RBAC authorizer: allowed is what some bound role's rule allows.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::{Attributes, Authorizer, Bound, Decision, Policy, Rule, covers, describe_rule, quoted};
use crate::identity::UserInfo;

pub struct Rbac {
    policy: Arc<Policy>,
}

impl Rbac {
    pub fn new(policy: Arc<Policy>) -> Self {
        Rbac { policy }
    }

    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Every rule that holds for the user, and a message for each role that could not be resolved.
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> (Vec<Rule>, Vec<String>) {
        let (mut rules, mut errors) = (Vec::new(), Vec::new());
        let _: ControlFlow<()> = self.policy.visit(user, namespace, |bound| {
            match bound.rules {
                Some(found) => rules.extend_from_slice(found),
                None => errors.push(missing(&bound)),
            }
            ControlFlow::Continue(())
        });
        (rules, errors)
    }

    /// Refuses to let the user grant `rules` in `namespace` (empty: everywhere) without holding them.
    pub fn confirm_no_escalation(&self, user: &UserInfo, namespace: &str, rules: &[Rule]) -> Result<(), String> {
        let (owned, errors) = self.rules_for(user, namespace);
        let lacking = covers(&owned, rules);
        if lacking.is_empty() {
            return Ok(());
        }
        let mut descriptions: Vec<_> = lacking.iter().map(describe_rule).collect();
        descriptions.sort();
        descriptions.dedup();
        let mut message = format!(
            "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
            user.name,
            quoted(&user.groups),
            descriptions.join("\n")
        );
        if !errors.is_empty() {
            message.push_str(&format!("; resolution errors: [{}]", errors.join(" ")));
        }
        Err(message)
    }
}

fn missing(bound: &Bound<'_>) -> String {
    let role = &bound.binding.role_ref;
    match role.kind.as_str() {
        "ClusterRole" | "Role" => {
            format!("{}.rbac.authorization.k8s.io {:?} not found", role.kind.to_lowercase(), role.name)
        }
        kind => format!("unsupported role reference kind: {kind:?}"),
    }
}

impl Authorizer for Rbac {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        let mut errors = Vec::new();
        let found = self.policy.visit(attributes.user, attributes.namespace, |bound| match bound.rules {
            Some(rules) if rules.iter().any(|rule| rule.allows(attributes)) => {
                ControlFlow::Break(format!("RBAC: allowed by {}", bound.binding.describe(bound.subject)))
            }
            Some(_) => ControlFlow::Continue(()),
            None => {
                errors.push(missing(&bound));
                ControlFlow::Continue(())
            }
        });
        match (found, errors.as_slice()) {
            (ControlFlow::Break(reason), _) => Decision::Allow(reason.into()),
            (_, []) => Decision::NoOpinion(Cow::Borrowed("")),
            (_, [error]) => Decision::NoOpinion(format!("RBAC: {error}").into()),
            (_, errors) => Decision::NoOpinion(format!("RBAC: [{}]", errors.join(", ")).into()),
        }
    }
}
