//! Writes one pod's status to the API: in order, the newest only, and until it is there.
//!
//! A strategic merge patch of `status`, so that conditions of others stay. Deletion follows the
//! last status and never overtakes it.

use crate::pod;
use crate::status::PASSING;
use client::{Client, ErrorExt as _};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// The conditions that are ours to write.
const OURS: [&str; 6] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled", "DisruptionTarget"];
/// Fields that must be emptied in the API when we no longer set them.
const CLEARED: [&str; 4] = ["reason", "message", "podIP", "ephemeralContainerStatuses"];

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
struct Wanted {
    status: PodStatus,
    delete: bool,
    uid: Option<String>,
}

pub struct StatusWriter {
    wanted: watch::Sender<Option<Wanted>>,
    uid: Option<String>,
    _task: AbortOnDropHandle<()>,
}

impl StatusWriter {
    pub fn start(client: Client, pod: &Pod) -> StatusWriter {
        let (wanted, receiver) = watch::channel(None);
        let api: Api<Pod> = Api::namespaced(client, pod::namespace(pod));
        let known = pod::status(pod).pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect();
        let task = Task { api, name: pod::name(pod).to_owned(), known_ips: known, wanted: receiver };
        // A static pod has no object until its mirror is made.
        let uid = if pod::is_static(pod) { None } else { pod.metadata.uid.clone() };
        StatusWriter { wanted, uid, _task: AbortOnDropHandle::new(tokio::spawn(task.run())) }
    }

    pub fn write(&self, status: PodStatus, delete: bool) {
        self.wanted.send_replace(Some(Wanted { status, delete, uid: self.uid.clone() }));
    }

    /// Writes to another object from now on: a static pod's new mirror.
    pub fn retarget(&mut self, uid: String, status: &PodStatus) {
        self.uid = Some(uid);
        self.write(status.clone(), false);
    }
}

struct Task {
    api: Api<Pod>,
    name: String,
    known_ips: Vec<String>,
    wanted: watch::Receiver<Option<Wanted>>,
}

impl Task {
    async fn run(mut self) {
        let mut retry: Option<Duration> = None;
        loop {
            match retry {
                None => {
                    if self.wanted.changed().await.is_err() {
                        return;
                    }
                }
                Some(delay) => {
                    let _ = tokio::time::timeout(delay, self.wanted.changed()).await;
                }
            }
            let Some(wanted) = self.wanted.borrow_and_update().clone() else { continue };
            let Some(uid) = wanted.uid.clone() else { continue };
            retry = match self.attempt(&wanted, &uid).await {
                Ok(()) => None,
                // Another pod has taken the name, or nobody has it: our last word has no reader.
                Err(error) if error.is_not_found() || error.code() == Some(409) && !error.is_conflict() => None,
                Err(error) if error.is_conflict() && error.to_string().contains("UID") => None,
                Err(error) => {
                    tracing::debug!(pod = self.name, %error, "status not written, will retry");
                    Some(retry.map_or(FIRST_RETRY, |delay| (delay * 2).min(LAST_RETRY)))
                }
            };
        }
    }

    async fn attempt(&mut self, wanted: &Wanted, uid: &str) -> Result<(), kube::Error> {
        let patch = patch(&wanted.status, uid, &self.known_ips);
        self.api.patch_status(&self.name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
        self.known_ips = wanted.status.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect();
        if wanted.delete {
            let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
            let params = DeleteParams {
                grace_period_seconds: Some(0),
                preconditions: Some(preconditions),
                ..DeleteParams::default()
            };
            self.api.delete(&self.name, &params).await?;
        }
        Ok(())
    }
}

/// Whether the API has what we last said, whatever others have added.
pub fn agree(api: &PodStatus, ours: &PodStatus) -> bool {
    let conditions = |status: &PodStatus| {
        let all = status.conditions.iter().flatten();
        let mut own: Vec<_> = all.filter(|condition| is_ours(&condition.type_)).cloned().collect();
        own.sort_by(|one, other| one.type_.cmp(&other.type_));
        own
    };
    let texts = |status: &PodStatus| [&status.phase, &status.reason, &status.message, &status.pod_ip].map(Clone::clone);
    let containers = |status: &PodStatus| {
        [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses]
            .map(Clone::clone)
    };
    texts(api) == texts(ours) && conditions(api) == conditions(ours) && containers(api) == containers(ours)
}

fn is_ours(condition: &str) -> bool {
    OURS.contains(&condition) || PASSING.contains(&condition)
}

/// The patch that makes the API's status ours.
fn patch(status: &PodStatus, uid: &str, known_ips: &[String]) -> Value {
    let mut value = serde_json::to_value(status).unwrap_or_default();
    for field in CLEARED {
        if value.get(field).is_none() {
            value[field] = Value::Null;
        }
    }
    if let Some(conditions) = value["conditions"].as_array_mut() {
        conditions.retain(|condition| is_ours(condition["type"].as_str().unwrap_or_default()));
        for condition in conditions.iter_mut() {
            for field in ["reason", "message"] {
                if condition.get(field).is_none() {
                    condition[field] = Value::Null;
                }
            }
        }
    }
    if let Some(conditions) = value["conditions"].as_array_mut() {
        let gone: Vec<&str> =
            PASSING.into_iter().filter(|kind| !conditions.iter().any(|condition| condition["type"] == *kind)).collect();
        conditions.extend(gone.into_iter().map(|kind| json!({"$patch": "delete", "type": kind})));
    }
    // Addresses merge by key: those that are gone must be told apart.
    let current: Vec<&str> = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).collect();
    let stale = known_ips.iter().filter(|known| !current.contains(&known.as_str()));
    let deletions: Vec<Value> = stale.map(|ip| json!({"$patch": "delete", "ip": ip})).collect();
    if !deletions.is_empty() {
        let mut list = value["podIPs"].as_array().cloned().unwrap_or_default();
        list.extend(deletions);
        value["podIPs"] = Value::Array(list);
    }
    json!({"metadata": {"uid": uid}, "status": value})
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PodCondition, PodIP};

    #[test]
    fn others_may_add_but_not_change() {
        let condition =
            |kind: &str, status: &str| PodCondition { type_: kind.into(), status: status.into(), ..Default::default() };
        let with =
            |conditions: &[PodCondition]| PodStatus { conditions: Some(conditions.to_vec()), ..PodStatus::default() };
        let (ready, gate) = (condition("Ready", "True"), condition("example.com/gate", "True"));
        let ours = with(std::slice::from_ref(&ready));
        assert!(agree(&with(&[gate.clone(), ready]), &ours));
        assert!(!agree(&with(&[condition("Ready", "False")]), &ours) && !agree(&with(&[gate]), &ours));
        assert!(!agree(&PodStatus { message: Some("mine".into()), ..ours.clone() }, &ours));
    }

    #[test]
    fn patches_only_what_is_ours() {
        let condition = |kind: &str| PodCondition { type_: kind.into(), status: "True".into(), ..Default::default() };
        let status = PodStatus {
            conditions: Some(vec![condition("Ready"), condition("example.com/gate")]),
            pod_ips: Some(vec![PodIP { ip: "10.0.0.2".into() }]),
            pod_ip: Some("10.0.0.2".into()),
            ..PodStatus::default()
        };
        let patch = patch(&status, "u", &["10.0.0.1".into(), "10.0.0.2".into()]);
        assert_eq!(patch["metadata"]["uid"], "u");
        let conditions = patch["status"]["conditions"].as_array().unwrap();
        assert_eq!((conditions.len(), &conditions[0]["type"]), (3, &json!("Ready")));
        assert_eq!(conditions[1], json!({"$patch": "delete", "type": "PodResizePending"}));
        assert_eq!(patch["status"]["podIPs"], json!([{"ip": "10.0.0.2"}, {"$patch": "delete", "ip": "10.0.0.1"}]));
        assert!(patch["status"].as_object().unwrap().contains_key("message"), "cleared fields are sent as null");
    }
}
