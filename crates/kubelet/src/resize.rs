//! In-place resize: whether more can be granted, and what of it is not carried out yet.
//!
//! Pure. The API's object says what is wanted; a pod's task works on a copy whose containers have what
//! was granted, so that nothing else knows of the difference.

use crate::admit;
use crate::pod::{self, Kind};
use crate::resources::{self, Quantities};
use crate::state::{RunState, Runtime};
use cri::v1::LinuxContainerResources;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Value, json};
use std::sync::Arc;

/// Why a pod does not have what it wants: the condition PodResizePending.
#[derive(Clone, Debug, PartialEq)]
pub struct Pending {
    pub reason: &'static str,
    pub message: String,
}

const DEFERRED: &str = "Deferred";
const INFEASIBLE: &str = "Infeasible";

impl Pending {
    /// Room may come when other pods end.
    pub fn is_deferred(&self) -> bool {
        self.reason == DEFERRED
    }
}

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod::spec(pod);
    spec.containers.iter().chain(spec.init_containers.iter().flatten())
}

/// Whether the two, or containers of them, have different resources.
pub fn differ(one: &Pod, other: &Pod) -> bool {
    if pod::spec(one).resources != pod::spec(other).resources {
        return true;
    }
    let find = |name: &str| containers(other).find(|container| container.name == name);
    containers(one).any(|container| find(&container.name).is_some_and(|other| other.resources != container.resources))
}

/// The pod as it is, but with `whole` for resources and those that `choose` says by container.
fn with_resources(
    pod: &Pod,
    whole: Option<ResourceRequirements>,
    choose: impl Fn(&Container) -> Option<ResourceRequirements>,
) -> Pod {
    let mut pod = pod.clone();
    if let Some(spec) = &mut pod.spec {
        spec.resources = whole;
        for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
            container.resources = choose(container);
        }
    }
    pod
}

/// `wanted`, with the resources that `granted` has.
pub fn restrict(wanted: &Pod, granted: &Pod) -> Pod {
    with_resources(wanted, pod::spec(granted).resources.clone(), |container| {
        let found = containers(granted).find(|granted| granted.name == container.name);
        found.map_or_else(|| container.resources.clone(), |granted| granted.resources.clone())
    })
}

/// What an earlier kubelet had granted: all that is wanted, unless it said otherwise.
pub fn granted_before(pod: &Pod) -> Pod {
    let status = pod::status(pod);
    if !status.conditions.iter().flatten().any(|condition| condition.type_ == "PodResizePending") {
        return pod.clone();
    }
    let told = |requests: Option<&Quantities>, actual: Option<&ResourceRequirements>| {
        let limits = actual.and_then(|actual| actual.limits.clone());
        requests.map(|requests| ResourceRequirements { requests: Some(requests.clone()), limits, claims: None })
    };
    let whole = pod::spec(pod).resources.as_ref().map(|wanted| {
        told(status.allocated_resources.as_ref(), status.resources.as_ref()).unwrap_or_else(|| wanted.clone())
    });
    with_resources(pod, whole, |container| {
        let status = pod::container_status(status, &container.name);
        let granted = status.and_then(|status| told(status.allocated_resources.as_ref(), status.resources.as_ref()));
        granted.or_else(|| container.resources.clone())
    })
}

/// Whether the node has room for what is wanted, beside `others`.
pub fn decide(wanted: &Pod, others: &[Arc<Pod>], allocatable: &Quantities) -> Result<(), Pending> {
    for name in ["cpu", "memory"] {
        let requested = resources::pod_request(wanted, name);
        let capacity = resources::amount(Some(allocatable), name).unwrap_or(0);
        if requested > capacity {
            let message =
                format!("Node didn't have enough capacity: {name}, requested: {requested}, capacity: {capacity}");
            return Err(Pending { reason: INFEASIBLE, message });
        }
    }
    admit::fit(wanted, others, allocatable).map_err(|refusal| Pending { reason: DEFERRED, message: refusal.message })
}

/// A running container whose cgroup does not have what was granted.
#[derive(Clone, Debug, PartialEq)]
pub struct Outdated {
    pub id: String,
    pub name: String,
    pub wanted: LinuxContainerResources,
    pub current: LinuxContainerResources,
    /// The container asked to be restarted rather than changed while it runs.
    pub restart: bool,
}

/// What has to be carried out. A runtime that does not tell its figures is believed to be up to date.
pub fn outdated(pod: &Pod, runtime: &Runtime, node_memory: i64) -> Vec<Outdated> {
    let members = pod::members(pod);
    let found = members.iter().filter(|member| member.kind != Kind::Ephemeral).filter_map(|member| {
        let instance = runtime.latest(member.name()).filter(|instance| instance.state == RunState::Running)?;
        let current = instance.resources.clone()?;
        let wanted = resources::container(pod, &member.container, node_memory);
        let set = |value: i64| Some(value).filter(|&value| value > 0);
        let cpu =
            wanted.cpu_shares.max(2) != current.cpu_shares.max(2) || set(wanted.cpu_quota) != set(current.cpu_quota);
        let memory = set(wanted.memory_limit_in_bytes) != set(current.memory_limit_in_bytes);
        let restarts = |name: &str| {
            let mut policies = member.container.resize_policy.iter().flatten();
            policies.any(|policy| policy.resource_name == name && policy.restart_policy == "RestartContainer")
        };
        (cpu || memory).then(|| Outdated {
            id: instance.id.clone(),
            name: member.name().to_owned(),
            // In an update, zero leaves a value as it is.
            wanted: LinuxContainerResources {
                cpu_shares: wanted.cpu_shares,
                cpu_period: wanted.cpu_period,
                cpu_quota: set(wanted.cpu_quota).unwrap_or(-1),
                memory_limit_in_bytes: set(wanted.memory_limit_in_bytes).unwrap_or(-1),
                ..LinuxContainerResources::default()
            },
            current,
            restart: cpu && restarts("cpu") || memory && restarts("memory"),
        })
    });
    found.collect()
}

/// What a container really has: granted figures, with those of its cgroup where they differ.
pub fn actual(container: &Container, outdated: Option<&Outdated>) -> Option<ResourceRequirements> {
    let mut actual = container.resources.clone().filter(|r| r.requests.is_some() || r.limits.is_some())?;
    let Some(Outdated { wanted, current, .. }) = outdated else { return Some(actual) };
    let milli = |milli: i64| if milli % 1000 == 0 { (milli / 1000).to_string() } else { format!("{milli}m") };
    let set = |list: &mut Option<Quantities>, name: &str, value: String| {
        if let Some(entry) = list.as_mut().and_then(|list| list.get_mut(name)) {
            *entry = Quantity(value);
        }
    };
    if current.cpu_quota > 0 && current.cpu_quota != wanted.cpu_quota {
        set(&mut actual.limits, "cpu", milli(current.cpu_quota * 1000 / current.cpu_period.max(1)));
    }
    if current.memory_limit_in_bytes > 0 && current.memory_limit_in_bytes != wanted.memory_limit_in_bytes {
        let shown = machinery::quantity::Quantity::bytes(current.memory_limit_in_bytes);
        set(&mut actual.limits, "memory", shown.to_string());
    }
    if current.cpu_shares != wanted.cpu_shares {
        // Rounded up, since the shares were rounded down.
        set(&mut actual.requests, "cpu", milli((current.cpu_shares * 1000 + 1023) / 1024));
    }
    Some(actual)
}

/// What events tell of a resize.
pub fn summary(pod: &Pod, error: Option<&str>) -> Value {
    let list: Vec<Value> =
        pod::spec(pod).containers.iter().map(|c| json!({"name": c.name, "resources": c.resources})).collect();
    let mut summary = json!({"containers": list, "generation": pod.metadata.generation});
    if let Some(whole) = &pod::spec(pod).resources {
        summary["resources"] = json!(whole);
    }
    if let Some(error) = error {
        summary["error"] = error.into();
    }
    summary
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Instance;

    fn pod(cpu: &str, memory: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c",
            "resizePolicy": [{"resourceName": "memory", "restartPolicy": "RestartContainer"}],
            "resources": {"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu, "memory": memory}}}]}}))
        .unwrap()
    }

    #[test]
    fn room_decides() {
        let allocatable: Quantities = [("cpu", "2"), ("memory", "1Gi"), ("pods", "9")]
            .map(|(name, amount)| (name.to_owned(), Quantity(amount.into())))
            .into();
        let others = [Arc::new(pod("1500m", "1Mi"))];
        let decision = |cpu, memory| decide(&pod(cpu, memory), &others, &allocatable).err();
        let pending = |reason, message: &str| Some(Pending { reason, message: message.into() });
        assert_eq!(decision("500m", "64Mi"), None);
        assert_eq!(
            decision("3", "64Mi"),
            pending(INFEASIBLE, "Node didn't have enough capacity: cpu, requested: 3000, capacity: 2000")
        );
        assert_eq!(
            decision("1", "64Mi"),
            pending(DEFERRED, "Node didn't have enough resource: cpu, requested: 1000, used: 1500, capacity: 2000")
        );
    }

    #[test]
    fn what_is_pending_stays_with_what_was_granted() {
        let (wanted, granted) = (pod("1", "64Mi"), pod("500m", "64Mi"));
        assert!(differ(&wanted, &granted));
        let restricted = restrict(&wanted, &granted);
        assert!(!differ(&restricted, &granted));
        let mut told = wanted.clone();
        told.status = serde_json::from_value(json!({
            "conditions": [{"type": "PodResizePending", "status": "True"}],
            "containerStatuses": [{"name": "c", "ready": true, "restartCount": 0, "image": "i", "imageID": "i",
                "allocatedResources": {"cpu": "500m", "memory": "64Mi"},
                "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}}}]}))
        .unwrap();
        assert!(!differ(&granted_before(&told), &granted));
        assert!(!differ(&granted_before(&wanted), &wanted));
    }

    #[test]
    fn pods_as_a_whole_are_granted_too() {
        let whole = |cpu: &str| {
            let resources = json!({"requests": {"cpu": cpu}, "limits": {"cpu": cpu}});
            serde_json::from_value(json!({"spec": {"resources": resources, "containers": [{"name": "c"}]}})).unwrap()
        };
        let (wanted, granted): (Pod, Pod) = (whole("1"), whole("500m"));
        assert!(differ(&wanted, &granted));
        assert_eq!(restrict(&wanted, &granted), granted);
        let mut told = wanted.clone();
        told.status = serde_json::from_value(json!({
            "conditions": [{"type": "PodResizePending", "status": "True"}],
            "allocatedResources": {"cpu": "500m"}, "resources": {"limits": {"cpu": "500m"}}}))
        .unwrap();
        assert!(!differ(&granted_before(&told), &granted));
        assert_eq!(summary(&wanted, None)["resources"]["limits"]["cpu"], "1");
    }

    #[test]
    fn cgroups_follow_or_containers_restart() {
        let before = pod("500m", "64Mi");
        let figures = resources::container(&before, &pod::spec(&before).containers[0], 1 << 30);
        let mut runtime = Runtime::default();
        runtime.observe(Instance { resources: Some(figures), ..Instance::running_for_tests("c", "id") });
        assert_eq!(outdated(&before, &runtime, 1 << 30), []);
        let after = pod("1", "64Mi");
        let found = outdated(&after, &runtime, 1 << 30);
        assert_eq!((found.len(), found[0].restart, found[0].wanted.cpu_quota), (1, false, 100_000));
        let shown = actual(&pod::spec(&after).containers[0], Some(&found[0])).unwrap();
        assert_eq!(shown.limits.unwrap()["cpu"].0, "500m", "not yet carried out");
        assert_eq!(shown.requests.unwrap()["cpu"].0, "500m");
        assert!(outdated(&pod("1", "128Mi"), &runtime, 1 << 30)[0].restart, "as its policy for memory says");
    }
}
