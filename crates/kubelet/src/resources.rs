//! Requests and limits: totals, QoS class, cgroup figures, and values for resourceFieldRef.
//!
//! Pure. Amounts are milli-units for cpu and whole units for everything else.

use crate::pod::{self, Kind};
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use machinery::quantity::Quantity as Amount;
use std::collections::BTreeMap;

pub type Quantities = BTreeMap<String, Quantity>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Qos {
    pub fn as_str(self) -> &'static str {
        match self {
            Qos::Guaranteed => "Guaranteed",
            Qos::Burstable => "Burstable",
            Qos::BestEffort => "BestEffort",
        }
    }
}

fn parse(quantity: &Quantity) -> Option<Amount> {
    Amount::parse(&quantity.0).ok()
}

/// Milli-units of `cpu`, units of anything else; `None` where absent.
pub fn amount(quantities: Option<&Quantities>, name: &str) -> Option<i64> {
    let quantity = parse(quantities?.get(name)?)?;
    Some(if name == "cpu" { quantity.milli_value() } else { quantity.value() })
}

pub fn request(resources: Option<&ResourceRequirements>, name: &str) -> Option<i64> {
    let resources = resources?;
    amount(resources.requests.as_ref(), name).or_else(|| amount(resources.limits.as_ref(), name))
}

pub fn limit(resources: Option<&ResourceRequirements>, name: &str) -> Option<i64> {
    amount(resources?.limits.as_ref(), name).filter(|&amount| amount > 0)
}

/// The class eviction, cgroups and OOM scores go by; cpu and memory alone count.
pub fn qos(pod: &Pod) -> Qos {
    let spec = pod::spec(pod);
    let pod_level = spec.resources.as_ref().filter(|r| r.requests.is_some() || r.limits.is_some());
    let all: Vec<Option<&ResourceRequirements>> = match pod_level {
        Some(resources) => vec![Some(resources)],
        None => {
            let init = spec.init_containers.iter().flatten();
            spec.containers.iter().chain(init).map(|container| container.resources.as_ref()).collect()
        }
    };
    let positive = |amount: Option<i64>| amount.filter(|&amount| amount > 0);
    let names = ["cpu", "memory"];
    let any = all.iter().any(|&r| names.iter().any(|name| positive(request(r, name)).is_some()));
    let equal = |r: Option<&ResourceRequirements>, name: &str| {
        let limit = limit(r, name);
        limit.is_some() && limit == request(r, name)
    };
    match any {
        false => Qos::BestEffort,
        true if all.iter().all(|&r| names.iter().all(|name| equal(r, name))) => Qos::Guaranteed,
        true => Qos::Burstable,
    }
}

/// What a pod takes of its node: the larger of the app containers' sum and each init step, with
/// sidecars counted from their start on, plus overhead. `pick` chooses requests or limits.
fn total(pod: &Pod, name: &str, pick: fn(Option<&ResourceRequirements>, &str) -> Option<i64>) -> i64 {
    let spec = pod::spec(pod);
    let overhead = amount(spec.overhead.as_ref(), name).unwrap_or(0);
    if let Some(amount) = pick(spec.resources.as_ref(), name) {
        return amount + overhead;
    }
    let of = |container: &Container| pick(container.resources.as_ref(), name).unwrap_or(0);
    let (mut sidecars, mut peak) = (0, 0);
    for member in pod::members(pod) {
        match member.kind {
            Kind::Sidecar => {
                sidecars += of(&member.container);
                peak = peak.max(sidecars);
            }
            Kind::Init => peak = peak.max(sidecars + of(&member.container)),
            Kind::App | Kind::Ephemeral => {}
        }
    }
    let apps: i64 = spec.containers.iter().map(of).sum();
    peak.max(apps + sidecars) + overhead
}

pub fn pod_request(pod: &Pod, name: &str) -> i64 {
    total(pod, name, request)
}

/// The pod's limit, only if every container has one.
pub fn pod_limit(pod: &Pod, name: &str) -> Option<i64> {
    let spec = pod::spec(pod);
    let limited = |container: &Container| limit(container.resources.as_ref(), name).is_some();
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten()).all(limited);
    (all || limit(spec.resources.as_ref(), name).is_some()).then(|| total(pod, name, limit))
}

/// The sum of what limits there are.
pub fn limits_sum(pod: &Pod, name: &str) -> i64 {
    total(pod, name, limit)
}

/// Every resource name the pod asks for.
pub fn requested_names(pod: &Pod) -> Vec<String> {
    let spec = pod::spec(pod);
    let lists = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let requirements = lists.filter_map(|c| c.resources.as_ref()).chain(spec.resources.as_ref());
    let names = requirements.flat_map(|r| r.requests.iter().chain(r.limits.iter())).flat_map(|q| q.keys().cloned());
    names.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
}

/// Resources of somebody's domain, which the kubelet itself has none of.
pub fn is_extended(name: &str) -> bool {
    name.split_once('/').is_some_and(|(domain, _)| !domain.ends_with("kubernetes.io"))
}

pub const CPU_PERIOD: i64 = 100_000;

/// `cpu.shares` for a request in milli-cpu: 1024 per core, at least 2.
pub fn cpu_shares(milli: i64) -> i64 {
    (milli * 1024 / 1000).clamp(2, 262_144)
}

/// `cpu.cfs_quota_us` for a limit in milli-cpu and the usual period; at least 1 ms.
pub fn cpu_quota(milli: i64) -> i64 {
    if milli == 0 { 0 } else { (milli * CPU_PERIOD / 1000).max(1000) }
}

/// cgroup v2's weight for v1's shares: 2..262144 onto 1..10000.
pub fn cpu_weight(shares: i64) -> i64 {
    1 + ((shares.clamp(2, 262_144) - 2) * 9999) / 262_142
}

/// Who the kernel kills first: best effort pods, then those that use more than they asked for.
pub fn oom_score_adj(pod: &Pod, container: &Container, node_memory: i64) -> i64 {
    if pod::is_critical(pod) {
        return -997;
    }
    match qos(pod) {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let memory = request(container.resources.as_ref(), "memory").unwrap_or(0);
            (1000 - 1000 * memory / node_memory.max(1)).clamp(3, 999)
        }
    }
}

/// The figures of one container's cgroup.
pub fn container(pod: &Pod, container: &Container, node_memory: i64) -> cri::v1::LinuxContainerResources {
    let resources = container.resources.as_ref();
    let cpu_limit = limit(resources, "cpu");
    let pages = resources.and_then(|resources| resources.limits.as_ref()).into_iter().flatten();
    let hugepage_limits = pages.filter_map(|(name, amount)| {
        let size = Amount::parse(name.strip_prefix("hugepages-")?).ok()?.value();
        let page_size = match size {
            size if size >= 1 << 30 => format!("{}GB", size >> 30),
            size if size >= 1 << 20 => format!("{}MB", size >> 20),
            size => format!("{}KB", size >> 10),
        };
        Some(cri::v1::HugepageLimit { page_size, limit: parse(amount)?.value().try_into().ok()? })
    });
    cri::v1::LinuxContainerResources {
        cpu_shares: cpu_shares(request(resources, "cpu").unwrap_or(0)),
        cpu_quota: cpu_limit.map_or(0, cpu_quota),
        cpu_period: CPU_PERIOD,
        memory_limit_in_bytes: limit(resources, "memory").unwrap_or(0),
        oom_score_adj: oom_score_adj(pod, container, node_memory),
        hugepage_limits: hugepage_limits.collect(),
        ..Default::default()
    }
}

/// The value of a resourceFieldRef such as `limits.cpu`, in units of `divisor`, rounded up. An unset
/// limit is what the node can give.
pub fn field_value(
    container: &Container,
    resource: &str,
    divisor: Option<&Quantity>,
    allocatable: &Quantities,
) -> Result<String, String> {
    let unsupported = || format!("Unsupported container resource : {resource}");
    let (list, name) = resource.split_once('.').ok_or_else(unsupported)?;
    let resources = container.resources.as_ref();
    let found = match list {
        "limits" => limit(resources, name).or_else(|| amount(Some(allocatable), name)),
        "requests" => request(resources, name),
        _ => return Err(unsupported()),
    };
    if !(name == "cpu" || name == "memory" || name == "ephemeral-storage" || name.starts_with("hugepages-")) {
        return Err(unsupported());
    }
    let divisor = match (divisor.filter(|divisor| !matches!(divisor.0.as_str(), "" | "0")), name) {
        (None, "cpu") => 1000,
        (None, _) => 1,
        (Some(quantity), "cpu") => parse(quantity).ok_or_else(unsupported)?.milli_value(),
        (Some(quantity), _) => parse(quantity).ok_or_else(unsupported)?.value(),
    };
    Ok(ceil_div(found.unwrap_or(0), divisor.max(1)).to_string())
}

fn ceil_div(amount: i64, divisor: i64) -> i64 {
    (amount + divisor - 1) / divisor
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    fn container(requests: Value, limits: Value) -> Value {
        json!({"name": "c", "resources": {"requests": requests, "limits": limits}})
    }

    #[test]
    fn qos_classes() {
        let full = json!({"cpu": "1", "memory": "1Gi"});
        let cases = [
            (vec![container(json!({}), json!({}))], Qos::BestEffort),
            (vec![container(json!({"cpu": "0"}), json!({}))], Qos::BestEffort),
            (vec![container(json!({"cpu": "1"}), json!({}))], Qos::Burstable),
            (vec![container(full.clone(), full.clone())], Qos::Guaranteed),
            (vec![container(json!({}), full.clone())], Qos::Guaranteed),
            (vec![container(json!({"cpu": "500m"}), full.clone())], Qos::Burstable),
            (vec![container(full.clone(), full.clone()), container(json!({}), json!({}))], Qos::Burstable),
        ];
        for (containers, expected) in cases {
            assert_eq!(qos(&pod(json!({"containers": containers}))), expected, "{containers:?}");
        }
    }

    #[test]
    fn totals_take_the_larger_of_init_and_app_with_sidecars_in_both() {
        let mut sidecar = container(json!({"cpu": "100m"}), json!({}));
        sidecar["restartPolicy"] = "Always".into();
        let pod = pod(json!({
            "overhead": {"cpu": "10m"},
            "initContainers": [sidecar, container(json!({"cpu": "2"}), json!({}))],
            "containers": [container(json!({"cpu": "1"}), json!({})), container(json!({"cpu": "500m"}), json!({}))],
        }));
        assert_eq!(pod_request(&pod, "cpu"), 2110);
        assert_eq!(pod_limit(&pod, "cpu"), None);
    }

    #[test]
    fn cgroup_figures() {
        assert_eq!([0, 1, 100, 1000].map(cpu_shares), [2, 2, 102, 1024]);
        assert_eq!([0, 5, 250, 1500].map(cpu_quota), [0, 1000, 25_000, 150_000]);
        assert_eq!([2, 1024, 262_144].map(cpu_weight), [1, 39, 10_000]);
        let burstable = pod(json!({"containers": [container(json!({"memory": "1Gi"}), json!({}))]}));
        assert_eq!(oom_score_adj(&burstable, &pod::spec(&burstable).containers[0], 4 << 30), 750);
    }

    #[test]
    fn field_values_divide_and_round_up() {
        let container: Container =
            serde_json::from_value(container(json!({"cpu": "250m", "memory": "32Mi"}), json!({"cpu": "1250m"})))
                .unwrap();
        let node = Quantities::from([("memory".to_owned(), Quantity("64Mi".into()))]);
        let value = |resource: &str, divisor: &str| {
            field_value(&container, resource, Some(&Quantity(divisor.into())), &node).unwrap()
        };
        assert_eq!(value("limits.cpu", "0"), "2");
        assert_eq!(value("limits.cpu", "1m"), "1250");
        assert_eq!(value("requests.cpu", "1"), "1");
        assert_eq!(value("requests.memory", "1Mi"), "32");
        assert_eq!(value("limits.memory", "1Mi"), "64", "the node's allocatable stands in");
        assert!(field_value(&container, "limits.gpu", None, &node).is_err());
    }
}
