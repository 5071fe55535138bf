//! Where ReplicaSets and ReplicationControllers keep what the generic controller needs.

use client::informer::Object;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    PodTemplateSpec, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::NamespaceResourceScope;
use machinery::labels::Selector;

use crate::common::selector;

/// The status both kinds share.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    pub replicas: i32,
    pub fully_labeled: i32,
    pub ready: i32,
    pub available: i32,
    pub terminating: Option<i32>,
    pub observed_generation: i64,
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    pub type_: String,
    pub status: String,
    pub reason: Option<String>,
    pub message: Option<String>,
    pub last_transition_time: Option<Time>,
}

pub trait Replicator: Object<DynamicType = (), Scope = NamespaceResourceScope> + serde::Serialize {
    const CONTROLLER: &'static str;
    /// Whether the status says how many pods are terminating.
    const COUNTS_TERMINATING: bool;

    fn replicas(&self) -> i32;
    fn min_ready_seconds(&self) -> i32;
    fn selector(&self) -> Selector;
    fn template(&self) -> PodTemplateSpec;
    fn status(&self) -> Status;
    fn set_status(&mut self, status: Status);
}

/// The accessors of the two statuses differ by one field only.
macro_rules! replicator {
    (
        $kind:ident, $status:ident, $condition:ident, $controller:literal, $counts:literal,
        $selector:expr, $get_terminating:expr, {$($terminating:ident)?}
    ) => {
        impl Replicator for $kind {
            const CONTROLLER: &'static str = $controller;
            const COUNTS_TERMINATING: bool = $counts;

            fn replicas(&self) -> i32 {
                self.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
            }

            fn min_ready_seconds(&self) -> i32 {
                self.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
            }

            fn selector(&self) -> Selector {
                self.spec.as_ref().map_or_else(Selector::nothing, $selector)
            }

            fn template(&self) -> PodTemplateSpec {
                self.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default()
            }

            fn status(&self) -> Status {
                let Some(status) = self.status.clone() else { return Status::default() };
                let get_terminating: fn(&$status) -> Option<i32> = $get_terminating;
                let terminating = get_terminating(&status);
                let conditions = status.conditions.unwrap_or_default().into_iter().map(|condition| Condition {
                    type_: condition.type_,
                    status: condition.status,
                    reason: condition.reason,
                    message: condition.message,
                    last_transition_time: condition.last_transition_time,
                });
                Status {
                    replicas: status.replicas,
                    fully_labeled: status.fully_labeled_replicas.unwrap_or(0),
                    ready: status.ready_replicas.unwrap_or(0),
                    available: status.available_replicas.unwrap_or(0),
                    observed_generation: status.observed_generation.unwrap_or(0),
                    conditions: conditions.collect(),
                    terminating,
                }
            }

            fn set_status(&mut self, status: Status) {
                let conditions: Vec<_> = status.conditions.into_iter().map(|condition| $condition {
                    type_: condition.type_,
                    status: condition.status,
                    reason: condition.reason,
                    message: condition.message,
                    last_transition_time: condition.last_transition_time,
                }).collect();
                self.status = Some($status {
                    replicas: status.replicas,
                    fully_labeled_replicas: Some(status.fully_labeled),
                    ready_replicas: Some(status.ready),
                    available_replicas: Some(status.available),
                    observed_generation: Some(status.observed_generation),
                    conditions: (!conditions.is_empty()).then_some(conditions),
                    $($terminating: status.terminating,)?
                });
            }
        }
    };
}

replicator!(
    ReplicaSet,
    ReplicaSetStatus,
    ReplicaSetCondition,
    "replicaset-controller",
    true,
    |spec| selector(&spec.selector),
    |status| status.terminating_replicas,
    { terminating_replicas }
);
replicator!(
    ReplicationController,
    ReplicationControllerStatus,
    ReplicationControllerCondition,
    "replication-controller",
    false,
    |spec| match &spec.selector {
        Some(labels) if !labels.is_empty() => Selector::from_map(labels),
        _ => Selector::nothing(),
    },
    |_| None,
    {}
);
