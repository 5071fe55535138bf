//! ServiceAccount: an identity for pods; tokens are made by its `token` subresource.

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as api;
use machinery::table::Column;
use serde_json::{Value, json};

use crate::facts::{CREATE, Facts, Subresource};
use crate::print;
use crate::resource::Kind;

pub struct ServiceAccount;

impl Kind for ServiceAccount {
    type Object = api::ServiceAccount;

    const FACTS: Facts = Facts {
        short_names: &["sa"],
        subresources: &[Subresource::own("token", "authentication.k8s.io", "v1", "TokenRequest").with_verbs(CREATE)],
        ..Facts::namespaced(
            "",
            "v1",
            "ServiceAccount",
            "serviceaccounts",
            "serviceaccount",
            "io.k8s.api.core.v1.ServiceAccount",
        )
    };
    const COLUMNS: &'static [Column] = &[print::NAME, print::text("Secrets"), print::AGE];

    fn warnings(new: &api::ServiceAccount, _old: Option<&api::ServiceAccount>) -> Vec<String> {
        const ENFORCE: &str = "kubernetes.io/enforce-mountable-secrets";
        let annotated = new.metadata.annotations.as_ref().is_some_and(|map| map.contains_key(ENFORCE));
        let why = "deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets";
        annotated.then(|| format!("metadata.annotations[{ENFORCE}]: {why}")).into_iter().collect()
    }

    fn cells(object: &Value, typed: &api::ServiceAccount, now: Timestamp) -> Vec<Value> {
        let secrets = typed.secrets.as_ref().map_or(0, Vec::len);
        vec![print::name(object), json!(secrets), print::age(object, now)]
    }
}
