//! Nobody grants what they do not hold: checks writes of roles and bindings.
//!
//! Upstream does this in RBAC's storage; to users it is the same 403. Holders of the verbs
//! `escalate` (on the role) or `bind` (on the role a binding names) are exempt.

use std::sync::Arc;

use async_trait::async_trait;
use machinery::status::{ApiError, Result};
use serde::Deserialize;
use serde_json::Value;

use super::pod::text;
use super::{Admission, AdmissionRequest};
use crate::authz::{Attributes, Authorizer, RoleRef, Rule, Union};
use crate::identity::MASTERS;

const GROUP: &str = "rbac.authorization.k8s.io";

pub struct RbacEscalation {
    authorizer: Arc<Union>,
}

impl RbacEscalation {
    pub fn new(authorizer: Arc<Union>) -> Self {
        RbacEscalation { authorizer }
    }

    fn may(&self, request: &AdmissionRequest<'_>, verb: &str, resource: &str, name: &str) -> bool {
        let attributes = Attributes::resource(request.user, verb, GROUP, resource);
        self.authorizer.authorize(&attributes.namespace(request.namespace).name(name)).allowed()
    }

    fn confirm(&self, request: &AdmissionRequest<'_>, rules: &[Rule]) -> Result<(), String> {
        self.authorizer.rbac().confirm_no_escalation(request.user, request.namespace, rules)
    }

    fn role(&self, request: &AdmissionRequest<'_>, role: &Value) -> Result<()> {
        let old = request.old_object.as_ref().unwrap_or(&Value::Null);
        let aggregates = |role: &Value| !role["aggregationRule"].is_null();
        if role["rules"] == old["rules"] && role["aggregationRule"] == old["aggregationRule"] {
            return Ok(());
        }
        if self.may(request, "escalate", request.resource.plural, request.name()) {
            return Ok(());
        }
        if aggregates(role) || aggregates(old) {
            let everything = self.confirm(request, &full_authority());
            everything
                .map_err(|_| request.forbidden("must have cluster-admin privileges to use an aggregationRule"))?;
        }
        let rules = Option::<Vec<Rule>>::deserialize(&role["rules"]);
        let rules = rules.map_err(|error| ApiError::bad_request(error.to_string()))?.unwrap_or_default();
        self.confirm(request, &rules).map_err(|why| request.forbidden(why))
    }

    fn binding(&self, request: &AdmissionRequest<'_>, binding: &Value) -> Result<()> {
        let old = request.old_object.as_ref().unwrap_or(&Value::Null);
        if binding["roleRef"] == old["roleRef"] && binding["subjects"] == old["subjects"] {
            return Ok(());
        }
        let reference =
            RoleRef { kind: text(&binding["roleRef"], "kind").into(), name: text(&binding["roleRef"], "name").into() };
        let plural = if reference.kind == "Role" { "roles" } else { "clusterroles" };
        if self.may(request, "bind", plural, &reference.name) {
            return Ok(());
        }
        let rules = self.authorizer.rbac().policy().role(&reference, request.namespace);
        let rules = rules.ok_or_else(|| ApiError::not_found(GROUP, plural, &reference.name))?;
        self.confirm(request, &rules).map_err(|why| request.forbidden(why))
    }
}

fn full_authority() -> [Rule; 2] {
    let all = || vec!["*".to_owned()];
    [
        Rule { verbs: all(), api_groups: all(), resources: all(), ..Rule::default() },
        Rule { verbs: all(), non_resource_urls: all(), ..Rule::default() },
    ]
}

#[async_trait]
impl Admission for RbacEscalation {
    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<()> {
        if request.resource.group != GROUP || request.user.in_group(MASTERS) {
            return Ok(());
        }
        let Some(object) = &request.object else { return Ok(()) };
        match request.resource.plural {
            "roles" | "clusterroles" => self.role(request, object),
            "rolebindings" | "clusterrolebindings" => self.binding(request, object),
            _ => Ok(()),
        }
    }
}
