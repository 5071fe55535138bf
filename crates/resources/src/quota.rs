//! What an object costs in each of the resources that a quota can limit, and which quotas count it. Admission charges by
//! it, the quota controller recounts by it.

use std::collections::BTreeMap;

use machinery::quantity::Quantity;
use serde::Deserialize;
use serde_json::Value;

/// Amounts by resource name.
pub type Amounts = BTreeMap<String, Quantity>;

/// Kinds that can be limited by their bare plural, as before `count/` existed.
const COUNTED: &[&str] = &[
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
];

/// What a write adds; empty when it changes nothing that is counted.
pub fn delta(group: &str, plural: &str, new: &Value, old: Option<&Value>) -> Amounts {
    let mut delta = usage(group, plural, new);
    for (key, amount) in old.map(|old| usage(group, plural, old)).unwrap_or_default() {
        *delta.entry(key).or_insert(Quantity::new(0)) -= amount;
    }
    delta.retain(|_, amount| !amount.is_zero());
    delta
}

/// What an object costs while it is there.
pub fn usage(group: &str, plural: &str, object: &Value) -> Amounts {
    let mut used = Amounts::new();
    let one = Quantity::new(1);
    let qualified = if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") };
    used.insert(format!("count/{qualified}"), one);
    if !group.is_empty() {
        return used;
    }
    // A pod that is over gives back all but its place in count/pods.
    let over = plural == "pods" && ["Succeeded", "Failed"].contains(&text(&object["status"], "phase"));
    if COUNTED.contains(&plural) && !over {
        used.insert(plural.to_owned(), one);
    }
    match plural {
        "pods" if !over => pod(object, &mut used),
        "services" => service(object, &mut used),
        "persistentvolumeclaims" => claim(object, &mut used),
        _ => {}
    }
    used
}

fn service(service: &Value, used: &mut Amounts) {
    let ports = Quantity::new(items(&service["spec"]["ports"]).count() as i64);
    let balanced = text(&service["spec"], "type") == "LoadBalancer";
    let allocates = service["spec"]["allocateLoadBalancerNodePorts"] != false;
    if balanced {
        used.insert("services.loadbalancers".into(), Quantity::new(1));
    }
    if text(&service["spec"], "type") == "NodePort" || balanced && allocates {
        used.insert("services.nodeports".into(), ports);
    }
}

fn claim(claim: &Value, used: &mut Amounts) {
    let class = text(&claim["spec"], "storageClassName");
    let storage = claim["spec"]["resources"]["requests"]["storage"].as_str().and_then(|s| Quantity::parse(s).ok());
    let mut add = |key: String, amount| used.insert(key, amount);
    if let Some(storage) = storage {
        add("requests.storage".into(), storage);
        if !class.is_empty() {
            add(format!("{class}.storageclass.storage.k8s.io/requests.storage"), storage);
        }
    }
    if !class.is_empty() {
        add(format!("{class}.storageclass.storage.k8s.io/persistentvolumeclaims"), Quantity::new(1));
    }
}

fn pod(pod: &Value, used: &mut Amounts) {
    for (list, requested) in [("requests", true), ("limits", false)] {
        for (resource, amount) in pod_total(pod, list) {
            let native = ["cpu", "memory", "ephemeral-storage"].contains(&resource.as_str());
            if native && requested {
                used.insert(resource.clone(), amount);
            }
            if resource.starts_with("hugepages-") && requested {
                used.insert(resource.clone(), amount);
            }
            if native || requested {
                used.insert(format!("{list}.{resource}"), amount);
            }
        }
    }
}

/// `cpu for: a,b; memory for: a`: what the quota limits and a container leaves open; empty if nothing.
pub fn missing_constraints(pod: &Value, hard: &Amounts) -> String {
    let mut missing = Vec::new();
    for key in hard.keys() {
        let (list, resource) = match key.split_once('.') {
            Some((list @ ("requests" | "limits"), resource)) => (list, resource),
            _ => ("requests", key.as_str()),
        };
        if !["cpu", "memory"].contains(&resource) {
            continue;
        }
        let lists = ["containers", "initContainers"].iter().flat_map(|list| items(&pod["spec"][*list]));
        let open = lists.filter(|container| container["resources"][list][resource].is_null());
        let names: Vec<_> = open.map(|container| text(container, "name")).collect();
        if !names.is_empty() {
            missing.push(format!("{key} for: {}", names.join(",")));
        }
    }
    missing.join("; ")
}

/// Which objects a quota counts.
#[derive(Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Scoped {
    scopes: Vec<String>,
    scope_selector: ScopeSelector,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ScopeSelector {
    match_expressions: Vec<Expression>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Expression {
    scope_name: String,
    operator: String,
    values: Vec<String>,
}

impl Scoped {
    /// Scopes select pods; a quota without scopes counts every kind.
    pub fn matches(&self, is_pod: bool, object: &Value) -> bool {
        if self.scopes.is_empty() && self.scope_selector.match_expressions.is_empty() {
            return true;
        }
        is_pod
            && self.scopes.iter().all(|scope| in_scope(scope, object))
            && self.scope_selector.match_expressions.iter().all(|expression| expression.matches(object))
    }
}

impl Expression {
    fn matches(&self, pod: &Value) -> bool {
        if self.scope_name != "PriorityClass" {
            return in_scope(&self.scope_name, pod);
        }
        let class = text(&pod["spec"], "priorityClassName");
        let listed = self.values.iter().any(|value| value == class);
        match self.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            "Exists" => !class.is_empty(),
            _ => class.is_empty(),
        }
    }
}

fn in_scope(scope: &str, pod: &Value) -> bool {
    let spec = &pod["spec"];
    let terminating = spec["activeDeadlineSeconds"].as_i64().is_some_and(|seconds| seconds >= 0);
    let affine = |kind: &str| {
        items(&spec["affinity"][kind]["requiredDuringSchedulingIgnoredDuringExecution"])
            .chain(
                items(&spec["affinity"][kind]["preferredDuringSchedulingIgnoredDuringExecution"])
                    .map(|p| &p["podAffinityTerm"]),
            )
            .any(|term| items(&term["namespaces"]).next().is_some() || term["namespaceSelector"].is_object())
    };
    match scope {
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "BestEffort" => best_effort(spec),
        "NotBestEffort" => !best_effort(spec),
        "PriorityClass" => !text(spec, "priorityClassName").is_empty(),
        "CrossNamespacePodAffinity" => affine("podAffinity") || affine("podAntiAffinity"),
        _ => false,
    }
}

fn best_effort(spec: &Value) -> bool {
    let mut containers = ["containers", "initContainers"].iter().flat_map(|list| items(&spec[*list]));
    containers.all(|container| {
        ["requests", "limits"]
            .iter()
            .all(|list| ["cpu", "memory"].iter().all(|resource| container["resources"][*list][*resource].is_null()))
    })
}

/// The larger of all containers with sidecars together, and any init container with those before it.
pub fn pod_total(pod: &Value, list: &str) -> Amounts {
    let amounts = |container: &Value| Amounts::deserialize(&container["resources"][list]).unwrap_or_default();
    let add = |sum: &mut Amounts, more: Amounts| {
        more.into_iter().for_each(|(key, amount)| *sum.entry(key).or_insert(Quantity::new(0)) += amount);
    };
    let raise = |most: &mut Amounts, now: Amounts| {
        for (key, amount) in now {
            let entry = most.entry(key).or_insert(amount);
            *entry = amount.max(*entry);
        }
    };
    let (mut sidecars, mut peak) = (Amounts::new(), Amounts::new());
    for container in items(&pod["spec"]["initContainers"]) {
        let mut now = sidecars.clone();
        add(&mut now, amounts(container));
        if text(container, "restartPolicy") == "Always" {
            sidecars = now.clone();
        }
        raise(&mut peak, now);
    }
    let mut total = sidecars;
    items(&pod["spec"]["containers"]).for_each(|container| add(&mut total, amounts(container)));
    raise(&mut total, peak);
    total
}

/// The items of a list; none if it is absent.
pub fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// The text under a key; empty if it is absent.
pub fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}
