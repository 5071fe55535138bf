//! Keeps the status of PodDisruptionBudgets: how many pods there should be, how many are healthy, and so how many may be
//! evicted. Evictions themselves are judged by the API server against this status.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use client::{Client, Event, EventRecorder, EventType, Store, controller_of, key_of, split_key};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Api;
use kube::api::PostParams;
use machinery::labels::Selector;

use crate::common::{now, pods, selector, selects};
use crate::framework::{Context, Controller, Requeue};

/// How long an eviction that was allowed may take to show.
const EVICTION_GRACE: SignedDuration = SignedDuration::from_secs(2 * 60);

pub struct DisruptionController {
    client: Client,
    events: EventRecorder,
    budgets: Store<PodDisruptionBudget>,
    pods: Store<Pod>,
    owners: Owners,
}

/// What scales pods.
struct Owners {
    deployments: Store<Deployment>,
    replica_sets: Store<ReplicaSet>,
    replication_controllers: Store<ReplicationController>,
    stateful_sets: Store<StatefulSet>,
}

impl Controller for DisruptionController {
    const NAME: &'static str = "disruption-controller";

    fn new(context: &Context) -> Self {
        let budgets = context.watch::<PodDisruptionBudget>().store();
        let known = budgets.clone();
        let pods = context.on::<Pod>(move |event, queue| {
            let budgets = known.list_namespace(event.object().metadata.namespace.as_deref().unwrap_or_default());
            for budget in budgets {
                let selector = selector_of(&budget);
                if event.old().into_iter().chain([event.object()]).any(|pod| selects(&selector, &pod.metadata)) {
                    queue.add(key_of(&budget.metadata));
                }
            }
        });
        // A change of scale changes what is expected of every budget beside it.
        fn scales<K: client::informer::Object<DynamicType = ()>>(
            context: &Context,
            budgets: &Store<PodDisruptionBudget>,
            replicas: fn(&K) -> Option<i32>,
        ) -> Store<K> {
            let budgets = budgets.clone();
            let informer = context.on::<K>(move |event: &Event<K>, queue| {
                if event.old().is_none_or(|old| replicas(old) != replicas(event.object())) {
                    let beside = budgets.list_namespace(event.object().meta().namespace.as_deref().unwrap_or_default());
                    beside.iter().for_each(|budget| queue.add(key_of(&budget.metadata)));
                }
            });
            informer.store()
        }
        let owners = Owners {
            deployments: scales(context, &budgets, |owner: &Deployment| owner.spec.as_ref()?.replicas),
            replica_sets: scales(context, &budgets, |owner: &ReplicaSet| owner.spec.as_ref()?.replicas),
            replication_controllers: scales(context, &budgets, |owner: &ReplicationController| {
                owner.spec.as_ref()?.replicas
            }),
            stateful_sets: scales(context, &budgets, |owner: &StatefulSet| owner.spec.as_ref()?.replicas),
        };
        Self { client: context.client.clone(), events: context.events.clone(), budgets, pods: pods.store(), owners }
    }

    async fn reconcile(&self, key: &str) -> anyhow::Result<Requeue> {
        let Some(budget) = self.budgets.get(key).filter(|budget| budget.metadata.deletion_timestamp.is_none()) else {
            return Ok(Requeue::Never);
        };
        let selector = selector_of(&budget);
        let mut pods = self.pods.list_namespace(split_key(key).0);
        pods.retain(|pod| selects(&selector, &pod.metadata));
        if pods.is_empty() {
            self.events.event(budget.as_ref(), EventType::Normal, "NoPods", "No matching pods found");
        }
        let (scale, unmanaged) = self.owners.scale(&pods);
        if !unmanaged.is_empty() && needs_scale(&budget) {
            let text = format!(
                "Pods selected by this PodDisruptionBudget (selector: {selector}) were found to be unmanaged. As a \
                 result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. \
                 To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value."
            );
            self.events.event(budget.as_ref(), EventType::Warning, "UnmanagedPods", text);
        }
        let (status, requeue) = match scale {
            Err(error) if needs_scale(&budget) => {
                let text = format!("Failed to calculate the number of expected pods: {error}");
                self.events.event(budget.as_ref(), EventType::Warning, "CalculateExpectedPodCountFailed", text);
                (failed(&budget, &error), None)
            }
            scale => self.judge(&budget, &pods, scale.unwrap_or(0)),
        };
        if budget.status.as_ref() != Some(&status) {
            let (namespace, name) = split_key(key);
            let api: Api<PodDisruptionBudget> = Api::namespaced(self.client.clone(), namespace);
            let updated = PodDisruptionBudget { status: Some(status), ..budget.as_ref().clone() };
            api.replace_status(name, &PostParams::default(), &updated).await.context("write the status")?;
        }
        Ok(requeue.into())
    }
}

impl DisruptionController {
    fn judge(
        &self,
        budget: &PodDisruptionBudget,
        pods: &[Arc<Pod>],
        scale: i32,
    ) -> (PodDisruptionBudgetStatus, Option<Duration>) {
        let now = Timestamp::now();
        let (disrupted, overdue, requeue) = disrupted(budget, pods, now);
        for pod in overdue {
            let text = format!("Pod was expected by PDB {} to be deleted but it wasn't", key_of(&budget.metadata));
            self.events.event(pod.as_ref(), EventType::Warning, "NotDeleted", text);
        }
        (status(budget, pods, scale, disrupted), requeue)
    }
}

fn selector_of(budget: &PodDisruptionBudget) -> Selector {
    let labels = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    labels.map_or_else(Selector::nothing, selector)
}

/// Whether the budget counts in parts of what the pods' controllers want.
fn needs_scale(budget: &PodDisruptionBudget) -> bool {
    budget.spec.as_ref().is_some_and(|spec| {
        spec.max_unavailable.is_some() || matches!(spec.min_available, Some(IntOrString::String(_)))
    })
}

impl Owners {
    /// How many pods their controllers want in all, and the pods without a controller.
    fn scale<'a>(&self, pods: &'a [Arc<Pod>]) -> (Result<i32, String>, Vec<&'a str>) {
        let (mut scales, mut unmanaged) = (BTreeMap::new(), Vec::new());
        for pod in pods {
            let Some(owner) = controller_of(&pod.metadata) else {
                unmanaged.push(pod.metadata.name.as_deref().unwrap_or_default());
                continue;
            };
            if scales.contains_key(&owner.uid) {
                continue;
            }
            let key = format!("{}/{}", pod.metadata.namespace.as_deref().unwrap_or_default(), owner.name);
            match self.of(&owner.kind, &key) {
                Ok((uid, replicas)) => drop(scales.insert(uid, replicas)),
                Err(error) => return (Err(error), unmanaged),
            }
        }
        (Ok(scales.values().sum()), unmanaged)
    }

    /// The uid of what scales, a deployment rather than its set, and the replicas it wants.
    fn of(&self, kind: &str, key: &str) -> Result<(String, i32), String> {
        let wanted =
            |meta: &ObjectMeta, replicas: Option<i32>| (meta.uid.clone().unwrap_or_default(), replicas.unwrap_or(1));
        let found = match kind {
            "ReplicaSet" => self.replica_sets.get(key).map(|set| {
                let deployment = crate::framework::owner_key(&set.metadata, "Deployment");
                match deployment.and_then(|key| self.deployments.get(&key)) {
                    Some(owner) => wanted(&owner.metadata, owner.spec.as_ref().and_then(|spec| spec.replicas)),
                    None => wanted(&set.metadata, set.spec.as_ref().and_then(|spec| spec.replicas)),
                }
            }),
            "ReplicationController" => {
                let owner = self.replication_controllers.get(key);
                owner.map(|owner| wanted(&owner.metadata, owner.spec.as_ref().and_then(|spec| spec.replicas)))
            }
            "StatefulSet" => {
                let owner = self.stateful_sets.get(key);
                owner.map(|owner| wanted(&owner.metadata, owner.spec.as_ref().and_then(|spec| spec.replicas)))
            }
            kind => return Err(format!("{kind} {key} does not implement the scale subresource")),
        };
        found.ok_or_else(|| format!("{kind} {key} not found"))
    }
}

/// Evictions that were allowed and may yet show; pods for which they should have; and when the next one should have.
fn disrupted(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    now: Timestamp,
) -> (BTreeMap<String, Time>, Vec<Arc<Pod>>, Option<Duration>) {
    let noted = budget.status.as_ref().and_then(|status| status.disrupted_pods.clone()).unwrap_or_default();
    let (mut pending, mut overdue, mut requeue) = (BTreeMap::new(), Vec::new(), None);
    for pod in pods.iter().filter(|pod| !pods::is_terminating(pod)) {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let Some(time) = noted.get(&name) else { continue };
        let left = EVICTION_GRACE - now.duration_since(time.0);
        if left.is_positive() {
            let left = Duration::try_from(left).unwrap_or_default();
            requeue = Some(requeue.map_or(left, |sooner: Duration| sooner.min(left)));
            pending.insert(name, time.clone());
        } else {
            overdue.push(pod.clone());
        }
    }
    (pending, overdue, requeue)
}

fn status(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    scale: i32,
    disrupted: BTreeMap<String, Time>,
) -> PodDisruptionBudgetStatus {
    let spec = budget.spec.clone().unwrap_or_default();
    let percent = |text: &str| {
        let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
        ((i64::from(scale) * percent + 99) / 100) as i32
    };
    let (expected, desired) = match (spec.max_unavailable, spec.min_available) {
        (Some(IntOrString::Int(number)), _) => (scale, scale - number),
        (Some(IntOrString::String(text)), _) => (scale, scale - percent(&text)),
        (None, Some(IntOrString::Int(number))) => (pods.len() as i32, number),
        (None, Some(IntOrString::String(text))) => (scale, percent(&text)),
        (None, None) => (pods.len() as i32, 1),
    };
    let desired = desired.max(0);
    let leaving: BTreeSet<&str> = disrupted.keys().map(String::as_str).collect();
    let stays =
        |pod: &Pod| !pods::is_terminating(pod) && !leaving.contains(pod.metadata.name.as_deref().unwrap_or_default());
    let healthy = pods.iter().filter(|pod| stays(pod) && pods::is_ready(pod)).count() as i32;
    let allowed = if expected > 0 { (healthy - desired).max(0) } else { 0 };
    let (value, reason) = if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    PodDisruptionBudgetStatus {
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        expected_pods: Some(expected),
        disruptions_allowed: Some(allowed),
        disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
        observed_generation: budget.metadata.generation,
        conditions: Some(vec![condition(budget, value, reason, "")]),
    }
}

/// Whoever cannot count allows nothing.
fn failed(budget: &PodDisruptionBudget, error: &str) -> PodDisruptionBudgetStatus {
    PodDisruptionBudgetStatus {
        disruptions_allowed: Some(0),
        observed_generation: budget.metadata.generation,
        conditions: Some(vec![condition(budget, "False", "SyncFailed", error)]),
        ..budget.status.clone().unwrap_or_default()
    }
}

fn condition(budget: &PodDisruptionBudget, value: &str, reason: &str, message: &str) -> Condition {
    const TYPE: &str = "DisruptionAllowed";
    let mut known = budget.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let same = known.find(|known| known.type_ == TYPE && known.status == value);
    Condition {
        type_: TYPE.into(),
        status: value.into(),
        reason: reason.into(),
        message: message.into(),
        observed_generation: budget.metadata.generation,
        last_transition_time: same.map_or_else(now, |same| same.last_transition_time.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn budgets() {
        let pod = |(number, ready): (usize, bool)| -> Arc<Pod> {
            let ready = if ready { "True" } else { "False" };
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": number.to_string()},
                    "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
                .unwrap(),
            )
        };
        for (spec, ready, scale, expected) in [
            (json!({"minAvailable": 2}), vec![true, true, true], 0, (3, 2, 3, 1)),
            (json!({"minAvailable": 2}), vec![true, false, true], 0, (2, 2, 3, 0)),
            (json!({"minAvailable": "50%"}), vec![true, true, true], 3, (3, 2, 3, 1)),
            (json!({"maxUnavailable": 1}), vec![true, true, true], 3, (3, 2, 3, 1)),
            (json!({"maxUnavailable": "34%"}), vec![true, true, true], 3, (3, 1, 3, 2)),
            (json!({"maxUnavailable": 5}), vec![true], 3, (1, 0, 3, 1)),
            (json!({"minAvailable": 0}), vec![], 0, (0, 0, 0, 0)),
        ] {
            let budget: PodDisruptionBudget =
                serde_json::from_value::<PodDisruptionBudget>(json!({"metadata": {"name": "b"}, "spec": spec}))
                    .unwrap();
            let pods: Vec<_> = ready.into_iter().enumerate().map(pod).collect();
            let status = status(&budget, &pods, scale, BTreeMap::new());
            let numbers =
                [status.current_healthy, status.desired_healthy, status.expected_pods, status.disruptions_allowed];
            let (healthy, desired, all, allowed) = expected;
            assert_eq!(numbers, [healthy, desired, all, allowed].map(Some), "{:?}", budget.spec);
        }
    }

    #[test]
    fn evictions_are_awaited_for_a_while() {
        let value: Value = json!({"metadata": {"name": "b", "namespace": "ns"}, "spec": {"minAvailable": 1}, "status": {
            "disruptedPods": {"a": "2024-01-01T00:00:00Z", "b": "2024-01-01T00:01:30Z", "gone": "2024-01-01T00:01:30Z"}}});
        let budget: PodDisruptionBudget = serde_json::from_value(value).unwrap();
        let pod = |name: &str| Arc::new(serde_json::from_value::<Pod>(json!({"metadata": {"name": name}})).unwrap());
        let (pending, overdue, requeue) =
            disrupted(&budget, &["a", "b", "c"].map(pod), "2024-01-01T00:02:00Z".parse().unwrap());
        assert_eq!(pending.into_keys().collect::<Vec<_>>(), ["b"]);
        assert_eq!(overdue[0].metadata.name.as_deref(), Some("a"));
        assert_eq!(requeue, Some(Duration::from_secs(90)));
    }
}
