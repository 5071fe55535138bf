//! What a pod asks of a node: the sum of its containers, the peak of its init containers, sidecars counted as long as
//! they run, pod-level amounts, overhead. It refuses to know nodes.
//!
//! Amounts are integers in the unit that scheduling compares: millicores for cpu, whole units for all else.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The resources every node has, in the order of the columns.
pub const BASE: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];
pub const CPU: usize = 0;
pub const MEMORY: usize = 1;

/// What a container that requests none counts as when nodes are compared: 0.1 core and 200 MB, as upstream.
const ASSUMED: [i64; 2] = [100, 200 * 1024 * 1024];

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// By index of `BASE`.
    pub base: [i64; 3],
    /// Everything else: huge pages and extended resources.
    pub extended: BTreeMap<String, i64>,
}

type Amounts = BTreeMap<String, Quantity>;

/// Millicores for cpu, whole units otherwise; an unreadable quantity (the API admits none) counts as nothing.
pub fn amount(resource: &str, quantity: &Quantity) -> i64 {
    let Ok(quantity) = machinery::quantity::Quantity::parse(&quantity.0) else { return 0 };
    if resource == "cpu" { quantity.milli_value() } else { quantity.value() }
}

impl Requests {
    pub fn new<'a>(amounts: impl IntoIterator<Item = (&'a String, &'a Quantity)>) -> Self {
        let mut requests = Self::default();
        for (name, quantity) in amounts {
            requests.set(name, amount(name, quantity));
        }
        requests
    }

    fn set(&mut self, name: &str, amount: i64) {
        match BASE.iter().position(|base| *base == name) {
            Some(index) => self.base[index] = amount,
            None => drop(self.extended.insert(name.to_owned(), amount)),
        }
    }

    fn combine(&mut self, other: &Self, combine: fn(i64, i64) -> i64) {
        for (mine, theirs) in self.base.iter_mut().zip(other.base) {
            *mine = combine(*mine, theirs);
        }
        for (name, theirs) in &other.extended {
            let mine = self.extended.entry(name.clone()).or_default();
            *mine = combine(*mine, *theirs);
        }
    }

    pub fn add(&mut self, other: &Self) {
        self.combine(other, i64::saturating_add);
    }

    pub fn subtract(&mut self, other: &Self) {
        self.combine(other, i64::saturating_sub);
    }

    fn raise_to(&mut self, other: &Self) {
        self.combine(other, i64::max);
    }

    /// Base resources and extended ones, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, i64)> {
        let extended = self.extended.iter().map(|(name, amount)| (name.as_str(), *amount));
        BASE.into_iter().zip(self.base).chain(extended)
    }

    pub fn is_zero(&self) -> bool {
        self.iter().all(|(_, amount)| amount == 0)
    }
}

/// What the pod occupies on its node, and cpu and memory again with the assumed amounts for containers that request none.
pub fn of_pod(pod: &Pod) -> (Requests, [i64; 2]) {
    let (exact, assumed) = (total(pod, false), total(pod, true));
    (exact, [assumed.base[CPU], assumed.base[MEMORY]])
}

fn total(pod: &Pod, assume: bool) -> Requests {
    let Some(spec) = &pod.spec else { return Requests::default() };
    let status = pod.status.as_ref();
    let statuses = status.and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    let init_statuses = status.and_then(|status| status.init_container_statuses.as_deref()).unwrap_or_default();
    let (mut sum, mut sidecars, mut peak) = (Requests::default(), Requests::default(), Requests::default());
    for container in &spec.containers {
        sum.add(&of_container(container, statuses, assume));
    }
    for container in spec.init_containers.iter().flatten() {
        let mut running = of_container(container, init_statuses, assume);
        if container.restart_policy.as_deref() == Some("Always") {
            sum.add(&running);
            sidecars.add(&running);
            running = sidecars.clone();
        } else {
            running.add(&sidecars);
        }
        peak.raise_to(&running);
    }
    sum.raise_to(&peak);
    let whole: Option<&Amounts> = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    for (name, quantity) in whole.into_iter().flatten() {
        let has = status.and_then(|status| status.allocated_resources.as_ref()?.get(name));
        sum.set(name, has.map_or(0, |has| amount(name, has)).max(amount(name, quantity)));
    }
    sum.add(&Requests::new(spec.overhead.iter().flatten()));
    sum
}

/// A container being resized counts as the larger of what it asks for and what it still has.
fn of_container(container: &Container, statuses: &[ContainerStatus], assume: bool) -> Requests {
    let asked = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let mut requests = Requests::new(asked.into_iter().flatten());
    if assume {
        for (index, amount) in ASSUMED.into_iter().enumerate() {
            if !asked.is_some_and(|asked| asked.contains_key(BASE[index])) {
                requests.base[index] = amount;
            }
        }
    }
    let status = statuses.iter().find(|status| status.name == container.name);
    if let Some(allocated) = status.and_then(|status| status.allocated_resources.as_ref()) {
        requests.raise_to(&Requests::new(allocated));
    }
    requests
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn container(cpu: &str, memory: &str) -> Value {
        let mut requests = json!({});
        for (name, amount) in [("cpu", cpu), ("memory", memory)] {
            if !amount.is_empty() {
                requests[name] = amount.into();
            }
        }
        json!({"name": "c", "resources": {"requests": requests}})
    }

    fn sidecar(cpu: &str) -> Value {
        let mut sidecar = container(cpu, "");
        sidecar["restartPolicy"] = "Always".into();
        sidecar
    }

    #[test]
    fn a_pod_being_resized_occupies_the_larger() {
        for (wanted, has, occupied) in [("1", "2", 2000), ("3", "2", 3000)] {
            let pod = json!({
                "spec": {"containers": [container("1", "")], "resources": {"requests": {"cpu": wanted}}},
                "status": {"allocatedResources": {"cpu": has}},
            });
            assert_eq!(of_pod(&serde_json::from_value(pod).unwrap()).0.base[CPU], occupied, "{wanted} {has}");
        }
    }

    #[test]
    fn pods_occupy_what_their_phases_need_at_most() {
        let c = container;
        for (what, spec, cpu, memory, assumed) in [
            (
                "the sum of containers",
                json!({"containers": [c("1", "1Ki"), c("500m", "1Ki")]}),
                1500,
                2048,
                [1500, 2048],
            ),
            ("nothing, but counted", json!({"containers": [c("", "")]}), 0, 0, [100, 200 << 20]),
            (
                "a larger init container",
                json!({"containers": [c("1", "")], "initContainers": [c("2", ""), c("1", "")]}),
                2000,
                0,
                [2000, 200 << 20],
            ),
            (
                "a sidecar beside containers",
                json!({"containers": [c("1", "")], "initContainers": [sidecar("1")]}),
                2000,
                0,
                [2000, 400 << 20],
            ),
            (
                "a sidecar before an init",
                json!({"containers": [c("1", "")], "initContainers": [sidecar("1"), c("2", "")]}),
                3000,
                0,
                [3000, 400 << 20],
            ),
            (
                "a sidecar after an init",
                json!({"containers": [c("1", "")], "initContainers": [c("2", ""), sidecar("1")]}),
                2000,
                0,
                [2000, 400 << 20],
            ),
            ("overhead", json!({"containers": [c("1", "1")], "overhead": {"cpu": "10m"}}), 1010, 1, [1010, 1]),
            (
                "pod-level amounts",
                json!({"containers": [c("1", "1")], "resources": {"requests": {"cpu": "3"}}}),
                3000,
                1,
                [3000, 1],
            ),
        ] {
            let pod: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
            let (requests, found) = of_pod(&pod);
            assert_eq!((requests.base[CPU], requests.base[MEMORY], found), (cpu, memory, assumed), "{what}");
        }
    }

    #[test]
    fn a_container_being_resized_counts_as_the_larger() {
        let status = json!({"containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": true,
            "restartCount": 0, "allocatedResources": {"cpu": "2"}}]});
        let pod = json!({"spec": {"containers": [container("1", "1")]}, "status": status});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        assert_eq!(of_pod(&pod).0.base[CPU], 2000);
    }

    #[test]
    fn extended_resources_add_up() {
        let container = json!({"name": "c", "resources": {"requests": {"example.com/gpu": "2"}}});
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [container, container]}})).unwrap();
        assert_eq!(of_pod(&pod).0.extended["example.com/gpu"], 4);
    }
}
