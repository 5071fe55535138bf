//! ComponentStatus: whether the parts of the control plane are well. Computed for each request, stored nowhere.
//!
//! A component in this process is as well as its task, of which the composition tells. One elsewhere is well while it
//! renews its lease: we know no address at which to ask it.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use futures::future::join_all;
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use machinery::status::{ApiError, Result};
use parking_lot::Mutex;
use resources::{Resource, registry};
use serde_json::{Value, json};

use crate::{
    api::{Api, Context},
    cache::{Entry, entry},
    read,
    respond::{Answered, Renderer},
};

const NAMES: [&str; 3] = ["controller-manager", "scheduler", STORE];
/// Upstream's name for the first store, whatever it is.
const STORE: &str = "etcd-0";

/// Whether a component of this process is alive.
type Check = Arc<dyn Fn() -> bool + Send + Sync>;

/// The components in this process.
#[derive(Default)]
pub struct Components(Mutex<HashMap<&'static str, Check>>);

impl Components {
    pub fn tell(&self, name: &'static str, alive: impl Fn() -> bool + Send + Sync + 'static) {
        self.0.lock().insert(name, Arc::new(alive));
    }
}

pub async fn serve(context: &Context, resource: &'static dyn Resource) -> Result<Answered> {
    let renderer = Renderer::new(resource, context.answer, &context.query)?;
    let name = context.info.name.as_str();
    if name.is_empty() {
        let filter = read::filter(context, resource)?;
        let statuses = join_all(NAMES.map(|name| status(&context.api, name))).await;
        let entries = statuses.into_iter().zip(NAMES).map(|(status, name)| {
            let mut made = Entry::new(resource, name.into(), &status, 0).map_err(ApiError::internal)?;
            made.json = status; // without the version of something stored
            Ok(Arc::new(made))
        });
        let mut entries = entries.collect::<Result<Vec<_>>>()?;
        entries.retain(|entry| filter.matches(entry));
        return Ok(renderer.list(&json!({}), entries));
    }
    if !NAMES.contains(&name) {
        return Err(ApiError::internal(format!("Component not found: {name}")));
    }
    Ok(renderer.one(StatusCode::OK, &status(&context.api, name).await))
}

async fn status(api: &Api, name: &str) -> Bytes {
    let mut healthy = json!({"type": "Healthy", "status": "True", "message": "ok"});
    if let Err(error) = check(api, name).await {
        healthy = json!({"type": "Healthy", "status": "False", "error": error});
    }
    let object = json!({
        "kind": "ComponentStatus", "apiVersion": "v1", "metadata": {"name": name}, "conditions": [healthy],
    });
    entry::encode(&object).into()
}

async fn check(api: &Api, name: &str) -> Result<(), String> {
    if name == STORE {
        return api.writer.objects.hub.consistent().await.map(drop).map_err(|error| error.to_string());
    }
    let own = api.components.0.lock().get(name).cloned();
    if let Some(alive) = own {
        return if alive() { Ok(()) } else { Err("it has ended".to_owned()) };
    }
    let lease = format!("kube-{name}");
    let leases = registry().by_gvr("coordination.k8s.io", "v1", "leases").ok_or("leases are not served")?;
    let found = api.writer.objects.get(leases, "kube-system", &lease).await.map_err(|error| error.to_string())?;
    let held = found.is_some_and(|found| is_held(&found.value()["spec"], Timestamp::now()));
    if held { Ok(()) } else { Err(format!("nobody holds the lease kube-system/{lease}")) }
}

fn is_held(spec: &Value, now: Timestamp) -> bool {
    let renewed = spec["renewTime"].as_str().and_then(|time| time.parse::<Timestamp>().ok());
    let lasts = SignedDuration::from_secs(spec["leaseDurationSeconds"].as_i64().unwrap_or_default());
    renewed.is_some_and(|renewed| now.duration_since(renewed) < lasts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_held_until_it_runs_out() {
        let now: Timestamp = "2024-01-01T00:00:15Z".parse().unwrap();
        for (renewed, seconds, held) in
            [("2024-01-01T00:00:01.500000Z", 15, true), ("2024-01-01T00:00:00.000000Z", 15, false), ("", 15, false)]
        {
            assert_eq!(
                is_held(&json!({"renewTime": renewed, "leaseDurationSeconds": seconds}), now),
                held,
                "{renewed}"
            );
        }
    }
}
