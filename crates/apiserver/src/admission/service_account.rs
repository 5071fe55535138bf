//! ServiceAccount: every pod runs as an account of its namespace and gets a token for the API.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use machinery::names;
use machinery::status::Result;
use serde::Deserialize;
use serde_json::{Value, json};

use super::pod::{each_container_mut, is_mirror, items, list_mut, text};
use super::{Admission, AdmissionRequest, Operation};
use crate::authn::lookup::{Lookup, SERVICE_ACCOUNTS};
use crate::authn::tokens::WARN_ONLY_SECONDS;
use crate::authz::references;

const DEFAULT: &str = "default";
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// A controller makes the default account right after its namespace: worth waiting up to a second.
const DEFAULT_ATTEMPTS: usize = 10;
const DEFAULT_RETRY: Duration = Duration::from_millis(100);

pub struct ServiceAccount {
    lookup: Arc<dyn Lookup>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Account {
    #[serde(default)]
    image_pull_secrets: Option<Value>,
    automount_service_account_token: Option<bool>,
}

impl ServiceAccount {
    pub fn new(lookup: Arc<dyn Lookup>) -> Self {
        ServiceAccount { lookup }
    }

    async fn account(&self, namespace: &str, name: &str) -> Result<Option<Account>> {
        for _ in 1..if name == DEFAULT { DEFAULT_ATTEMPTS } else { 1 } {
            if let Some(account) = self.lookup.as_ref().get_as(SERVICE_ACCOUNTS, namespace, name).await? {
                return Ok(Some(account));
            }
            tokio::time::sleep(DEFAULT_RETRY).await;
        }
        self.lookup.as_ref().get_as(SERVICE_ACCOUNTS, namespace, name).await
    }
}

#[async_trait]
impl Admission for ServiceAccount {
    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> Result<()> {
        let Some(pod) = request.object.as_mut().filter(|pod| !is_mirror(pod)) else { return Ok(()) };
        if !(request.resource.group.is_empty() && request.resource.plural == "pods" && request.subresource.is_empty()) {
            return Ok(());
        }
        let spec = &mut pod["spec"];
        let name = ["serviceAccountName", "serviceAccount"].map(|field| text(spec, field).to_owned());
        let name = name.into_iter().find(|name| !name.is_empty()).unwrap_or_else(|| DEFAULT.to_owned());
        spec["serviceAccountName"] = json!(name);
        spec["serviceAccount"] = json!(name);

        let namespace = request.namespace;
        let Some(account) = self.account(namespace, &name).await? else {
            return Err(request.forbidden(format!(
                "error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"
            )));
        };
        let Some(pod) = &mut request.object else { return Ok(()) };
        let pods_word = pod["spec"]["automountServiceAccountToken"].as_bool();
        if pods_word.or(account.automount_service_account_token).unwrap_or(true) {
            mount_token(pod);
        }
        if let Some(secrets) = account.image_pull_secrets.filter(|secrets| items(secrets).next().is_some())
            && items(&pod["spec"]["imagePullSecrets"]).next().is_none()
        {
            pod["spec"]["imagePullSecrets"] = secrets;
        }
        Ok(())
    }

    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<()> {
        let Some(pod) = request.object.as_ref().filter(|pod| request.is_pod() && is_mirror(pod)) else {
            return Ok(());
        };
        let name = request.name();
        if let Some((target, _)) = references(name, &pod["spec"]).first() {
            return Err(request.forbidden(format!("a mirror pod may not reference {}", target.plural())));
        }
        let tokens =
            |volume: &Value| items(&volume["projected"]["sources"]).any(|s| s["serviceAccountToken"].is_object());
        if items(&pod["spec"]["volumes"]).any(tokens) {
            return Err(request.forbidden("a mirror pod may not use ServiceAccountToken volume projections"));
        }
        Ok(())
    }
}

/// Mounts the token into each container that has nothing there already.
fn mount_token(pod: &mut Value) {
    let existing = items(&pod["spec"]["volumes"]).map(|volume| text(volume, "name"));
    let existing = existing.filter(|name| name.starts_with(VOLUME_PREFIX)).map(str::to_owned).next();
    let volume = existing.clone().unwrap_or_else(|| names::generate(VOLUME_PREFIX));
    let mut mounted = false;
    each_container_mut(pod, &["initContainers", "containers"], |_, container| {
        if !items(&container["volumeMounts"]).any(|mount| text(mount, "mountPath") == MOUNT_PATH) {
            let mount = json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH});
            list_mut(container, "volumeMounts").push(mount);
            mounted = true;
        }
    });
    if mounted && existing.is_none() {
        list_mut(&mut pod["spec"], "volumes").push(token_volume(&volume));
    }
}

fn token_volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"expirationSeconds": WARN_ONLY_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [
            {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
        ]}},
    ]}})
}
