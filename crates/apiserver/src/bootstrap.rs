//! What every cluster has from its first second: system namespaces, RBAC policy, priority classes, the
//! `kubernetes` Service. Run at each start: what is absent is created, policy is completed, nothing is taken away.

use futures::{StreamExt, TryStreamExt, stream};
use machinery::{
    gvk::GroupVersionKind,
    meta,
    status::{ApiError, Result},
};
use resources::{Cidr, registry, service_cidrs::READY};
use serde_json::{Value, json};

use crate::{
    identity::UserInfo,
    report,
    write::{Warnings, Write, Writer},
};

/// Objects created at once: enough to share the store's commits.
const PARALLEL: usize = 64;
/// The ServiceCIDR of the configured range.
pub const DEFAULT_RANGE: &str = "kubernetes";
/// Said "false" by an administrator who wants an object of ours left alone.
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

pub async fn run(writer: &Writer, services: Cidr, port: u16) -> Result<()> {
    let user = UserInfo::master("system:apiserver");
    all(writer, &user, resources::bootstrap::namespaces()).await?;
    let mut objects = resources::bootstrap::rbac::cluster_roles();
    objects.extend(resources::bootstrap::rbac::cluster_role_bindings());
    objects.extend(resources::bootstrap::rbac::roles());
    objects.extend(resources::bootstrap::rbac::role_bindings());
    objects.extend(resources::bootstrap::priority_classes());
    all(writer, &user, objects).await?;
    default_range(writer, services).await?;
    // Its address is of that range.
    ensure(writer, &user, kubernetes_service(services, port)).await
}

/// Makes the ServiceCIDR of the configured range, and says that it is in use.
pub async fn default_range(writer: &Writer, services: Cidr) -> Result<()> {
    let user = UserInfo::master("system:apiserver");
    ensure(writer, &user, service_range(services)).await?;
    serve_range(writer, &user, services).await
}

async fn all(writer: &Writer, user: &UserInfo, objects: Vec<Value>) -> Result<()> {
    stream::iter(objects).map(|object| ensure(writer, user, object)).buffer_unordered(PARALLEL).try_collect().await
}

/// Creates the object, or completes the one that is there.
pub async fn ensure(writer: &Writer, user: &UserInfo, object: Value) -> Result<()> {
    let gvk = GroupVersionKind::of(&object).map_err(ApiError::internal)?;
    let resource = registry().by_gvk(&gvk.group, &gvk.version, &gvk.kind);
    let resource =
        resource.ok_or_else(|| ApiError::internal(format!("a bootstrap object has the unknown kind {}", gvk.kind)))?;
    let (namespace, name) = (meta::namespace(&object).to_owned(), meta::name(&object).to_owned());
    let warnings = Warnings::default();
    let write = |name| Write::by_server(resource, "", (&namespace, name), user, &warnings);
    let found = writer.objects.get(resource, &namespace, &name).await?;
    match found {
        None => match writer.create(&write(""), object).await {
            Err(error) if !error.is_already_exists() => Err(error),
            _ => Ok(()),
        },
        Some(entry) if missing(&entry.value(), &object) => {
            let complete = |old: Option<&Value>| {
                let mut new = old.cloned().unwrap_or_else(|| object.clone());
                complete(&mut new, &object);
                Ok(new)
            };
            writer.update(&write(&name), &complete).await.map(drop)
        }
        Some(_) => Ok(()),
    }
}

/// The lists of policy objects, to which entries may be added.
const LISTS: [&str; 2] = ["rules", "subjects"];

fn missing(found: &Value, wanted: &Value) -> bool {
    let mut completed = found.clone();
    complete(&mut completed, wanted);
    completed != *found
}

fn complete(found: &mut Value, wanted: &Value) {
    if meta::annotation(found, AUTOUPDATE) != Some("true") {
        return;
    }
    // An aggregated role's rules belong to the controller that aggregates them.
    if found.get("aggregationRule").is_some() {
        return;
    }
    for key in LISTS {
        for entry in wanted[key].as_array().into_iter().flatten() {
            let entries = found[key].as_array_mut();
            if let Some(entries) = entries.filter(|entries| !entries.contains(entry)) {
                entries.push(entry.clone());
            }
        }
    }
}

/// The range that addresses of Services are drawn from.
fn service_range(services: Cidr) -> Value {
    json!({
        "kind": "ServiceCIDR", "apiVersion": "networking.k8s.io/v1", "metadata": {"name": DEFAULT_RANGE},
        "spec": {"cidrs": [services.to_string()]},
    })
}

/// Says that the range is in use, unless it is another than ours or somebody has said something else of it.
async fn serve_range(writer: &Writer, user: &UserInfo, services: Cidr) -> Result<()> {
    let resource = registry().by_gvk("networking.k8s.io", "v1", "ServiceCIDR");
    let resource = resource.ok_or_else(|| ApiError::internal("ServiceCIDR is not served"))?;
    let ready = |old: Option<&Value>| {
        let mut range = old.cloned().unwrap_or_default();
        let ours = range["spec"] == service_range(services)["spec"] && meta::deletion_timestamp(&range).is_none();
        if ours && range["status"]["conditions"].is_null() {
            range["status"]["conditions"] = json!([{
                "type": "Ready", "status": "True", "reason": "", "message": "Kubernetes default Service CIDR is ready",
                "lastTransitionTime": machinery::time::now_rfc3339(),
            }]);
        }
        Ok(range)
    };
    let warnings = Warnings::default();
    let write = Write::by_server(resource, "status", ("", DEFAULT_RANGE), user, &warnings);
    let range: Value = serde_json::from_slice(&writer.update(&write, &ready).await?.json).unwrap_or_default();
    if let Some((reason, note)) = complaint(&range, services) {
        let metadata = &range["metadata"];
        let regarding = json!({
            "kind": "ServiceCIDR", "apiVersion": "networking.k8s.io/v1", "name": DEFAULT_RANGE,
            "uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"],
        });
        report::warn(writer, "kubernetes-service-cidr-controller", regarding, &reason, "Configure", &note).await;
    }
    Ok(())
}

/// What an administrator should know of the default ServiceCIDR.
fn complaint(range: &Value, services: Cidr) -> Option<(String, String)> {
    let found: Vec<&str> = range["spec"]["cidrs"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if found != [services.to_string()] {
        let found = found.join(" ");
        let note =
            format!("The default ServiceCIDR [{found}] does not match the controller flag configurations [{services}]");
        return Some(("KubernetesDefaultServiceCIDRInconsistent".to_owned(), note));
    }
    let mut conditions = range["status"]["conditions"].as_array()?.iter();
    let refusal = conditions.find(|condition| condition["type"] == READY && condition["status"] == "False")?;
    let text = |key: &str| refusal[key].as_str().unwrap_or_default();
    Some((text("reason").to_owned(), format!("Configuration matches, but {}", text("message"))))
}

fn kubernetes_service(services: Cidr, port: u16) -> Value {
    json!({
        "kind": "Service", "apiVersion": "v1",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "type": "ClusterIP", "sessionAffinity": "None", "clusterIP": services.nth(1).to_string(),
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}],
        },
    })
}
