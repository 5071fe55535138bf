//! Whether a pod that was bound here can run here: the node's own last word.
//!
//! Pure. The scheduler has normally made sure; a pod may also come with its node name set by hand.

use crate::eviction::Pressure;
use crate::pod;
use crate::resources::{self, Qos, Quantities};
use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint, Toleration};
use std::sync::Arc;

#[derive(Debug, PartialEq)]
pub struct Refusal {
    pub reason: &'static str,
    pub message: String,
}

pub fn check(
    pod: &Pod,
    others: &[Arc<Pod>],
    allocatable: &Quantities,
    pressures: &[Pressure],
    allowed_sysctls: &[String],
    node: Option<&Node>,
) -> Result<(), Refusal> {
    pressure(pod, pressures)?;
    sysctls(pod, allowed_sysctls)?;
    if let Some(node) = node {
        affinity(pod, node)?;
        taints(pod, node)?;
        os(pod, node)?;
    }
    ports(pod, others)?;
    fit(pod, others, allocatable)
}

fn refuse<T>(reason: &'static str, message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { reason, message: message.into() })
}

/// A node that is short takes none but critical pods; one that lacks only memory, all that ask for some.
fn pressure(pod: &Pod, pressures: &[Pressure]) -> Result<(), Refusal> {
    let memory_only = pressures == [Pressure::Memory];
    let taint = Taint { key: MEMORY_TAINT.to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() };
    let tolerated = || pod::spec(pod).tolerations.iter().flatten().any(|toleration| tolerates(toleration, &taint));
    if pressures.is_empty()
        || pod::is_critical(pod)
        || memory_only && (resources::qos(pod) != Qos::BestEffort || tolerated())
    {
        return Ok(());
    }
    let conditions: Vec<&str> = pressures.iter().map(|pressure| pressure.condition()).collect();
    refuse("Evicted", format!("The node had condition: [{}]. ", conditions.join(" ")))
}

/// Sysctls that a pod can set without touching others.
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// Others need the node's consent: names, or groups as `net.core.*`.
fn sysctls(pod: &Pod, allowed: &[String]) -> Result<(), Refusal> {
    let consented = |name: &str| {
        SAFE_SYSCTLS.contains(&name)
            || allowed.iter().any(|allowed| match allowed.strip_suffix('*') {
                Some(group) => name.starts_with(group),
                None => name == allowed,
            })
    };
    let wanted = pod::spec(pod).security_context.iter().flat_map(|context| context.sysctls.iter().flatten());
    match wanted.map(|sysctl| sysctl.name.replace('/', ".")).find(|name| !consented(name)) {
        Some(name) => refuse("SysctlForbidden", format!("forbidden sysctl: {name:?} not allowlisted")),
        None => Ok(()),
    }
}

const MEMORY_TAINT: &str = "node.kubernetes.io/memory-pressure";

pub fn fit(pod: &Pod, others: &[Arc<Pod>], allocatable: &Quantities) -> Result<(), Refusal> {
    let short = |reason, name: &str, requested: i64, used: i64, capacity: i64| {
        refuse(
            reason,
            format!(
                "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
            ),
        )
    };
    let limit = resources::amount(Some(allocatable), "pods").unwrap_or(i64::MAX);
    if others.len() as i64 + 1 > limit {
        return short("OutOfpods", "pods", 1, others.len() as i64, limit);
    }
    for name in resources::requested_names(pod) {
        let requested = resources::pod_request(pod, &name);
        // Extended resources that somebody patched into the Node are between the scheduler and them.
        if resources::is_extended(&name) && !allocatable.contains_key(&name) {
            continue;
        }
        // Hugepages a node does not have at all are refused as well.
        let capacity = resources::amount(Some(allocatable), &name).unwrap_or(0);
        let used: i64 = others.iter().map(|other| resources::pod_request(other, &name)).sum();
        if requested > 0 && requested + used > capacity {
            let reason = match name.as_str() {
                "cpu" => "OutOfcpu",
                "memory" => "OutOfmemory",
                "ephemeral-storage" => "OutOfephemeral-storage",
                _ => "UnexpectedAdmissionError",
            };
            return short(reason, &name, requested, used, capacity);
        }
    }
    Ok(())
}

fn ports(pod: &Pod, others: &[Arc<Pod>]) -> Result<(), Refusal> {
    let wanted = host_ports(pod);
    let clash = others.iter().flat_map(|other| host_ports(other)).any(|taken| {
        let any = |ip: &str| ip.is_empty() || ip == "0.0.0.0" || ip == "::";
        let same = |(ip, protocol, port): &(String, String, i32)| {
            *protocol == taken.1 && *port == taken.2 && (any(ip) || any(&taken.0) || *ip == taken.0)
        };
        wanted.iter().any(same)
    });
    if clash {
        refuse("NodePorts", "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports")
    } else {
        Ok(())
    }
}

fn host_ports(pod: &Pod) -> Vec<(String, String, i32)> {
    let members = pod::members(pod);
    let ports = members.iter().flat_map(|member| member.container.ports.iter().flatten());
    let used = ports.filter_map(|port| {
        let number = port.host_port.filter(|&number| number > 0)?;
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        Some((port.host_ip.clone().unwrap_or_default(), protocol, number))
    });
    used.collect()
}

fn affinity(pod: &Pod, node: &Node) -> Result<(), Refusal> {
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let spec = pod::spec(pod);
    let chosen = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let required = spec.affinity.as_ref().and_then(|affinity| {
        affinity.node_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.as_ref()
    });
    let fits = required.is_none_or(|required| required.node_selector_terms.iter().any(|term| term_matches(term, node)));
    if chosen && fits {
        return Ok(());
    }
    refuse("NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector")
}

pub fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let label = |key: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
    let field = |key: &str| node.metadata.name.as_deref().filter(|_| key == "metadata.name");
    let any = !expressions.is_empty() || !fields.is_empty();
    any && expressions.iter().all(|requirement| holds(requirement, label(&requirement.key)))
        && fields.iter().all(|requirement| holds(requirement, field(&requirement.key)))
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.iter().any(|candidate| candidate == value));
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<i64>().ok());
    let bound = number(values.first().map(String::as_str));
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => number(value).zip(bound).is_some_and(|(value, bound)| value > bound),
        "Lt" => number(value).zip(bound).is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}

/// Only NoExecute keeps a bound pod away; static pods run regardless.
fn taints(pod: &Pod, node: &Node) -> Result<(), Refusal> {
    let tolerations = pod::spec(pod).tolerations.as_deref().unwrap_or_default();
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let untolerated = taints
        .iter()
        .filter(|taint| taint.effect == "NoExecute")
        .find(|taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint)));
    match untolerated {
        Some(taint) if !pod::is_static(pod) => {
            let shown = match taint.value.as_deref().unwrap_or_default() {
                "" => format!("{}:{}", taint.key, taint.effect),
                value => format!("{}={value}:{}", taint.key, taint.effect),
            };
            refuse(
                "TaintToleration",
                format!("Predicate TaintToleration failed: node(s) had untolerated taint {{{shown}}}"),
            )
        }
        _ => Ok(()),
    }
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let effect = text(&toleration.effect);
    let key = text(&toleration.key);
    (effect.is_empty() || effect == taint.effect)
        && match text(&toleration.operator).as_str() {
            "Exists" => key.is_empty() || key == taint.key,
            "" | "Equal" => key == taint.key && text(&toleration.value) == text(&taint.value),
            _ => false,
        }
}

fn os(pod: &Pod, node: &Node) -> Result<(), Refusal> {
    let wanted = pod::spec(pod).os.as_ref().map(|os| os.name.as_str());
    let label = node.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/os")).map(String::as_str);
    match wanted {
        Some(wanted) if wanted != label.unwrap_or("linux") => {
            refuse("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    #[test]
    fn refusals() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n", "labels": {"zone": "a", "size": "5"}},
            "spec": {"taints": [{"key": "k", "effect": "NoExecute"}, {"key": "s", "effect": "NoSchedule"}]}
        }))
        .unwrap();
        let allocatable: Quantities =
            [("cpu", "2"), ("memory", "1Gi"), ("pods", "3")].map(|(k, v)| (k.to_owned(), Quantity(v.into()))).into();
        let other = Arc::new(pod(json!({"containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": 80}],
            "resources": {"requests": {"cpu": "1500m"}}}]})));
        let tolerant = json!([{"operator": "Exists"}]);
        let with = |extra: Value| {
            let mut spec = json!({"containers": [{"name": "c"}], "tolerations": tolerant});
            spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            pod(spec)
        };
        let requests = |requests: Value| json!({"containers": [{"name": "c", "resources": {"requests": requests}}]});
        let term = |operator: &str, values: Value| {
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "size", "operator": operator, "values": values}]}]}}}})
        };
        let cases = [
            (with(json!({})), None),
            (with(json!({"tolerations": []})), Some("TaintToleration")),
            (with(json!({"tolerations": [{"key": "k", "operator": "Exists", "effect": "NoExecute"}]})), None),
            (with(json!({"nodeSelector": {"zone": "b"}})), Some("NodeAffinity")),
            (with(term("Gt", json!(["4"]))), None),
            (with(term("NotIn", json!(["5"]))), Some("NodeAffinity")),
            (with(requests(json!({"cpu": "500m"}))), None),
            (with(requests(json!({"cpu": "501m"}))), Some("OutOfcpu")),
            (with(requests(json!({"memory": "2Gi"}))), Some("OutOfmemory")),
            (with(requests(json!({"hugepages-2Mi": "2Mi"}))), Some("UnexpectedAdmissionError")),
            (with(requests(json!({"example.com/gpu": "1"}))), None),
            (
                with(json!({"containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": 80}]}]})),
                Some("NodePorts"),
            ),
            (
                with(
                    json!({"containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": 80, "protocol": "UDP"}]}]}),
                ),
                None,
            ),
            (with(json!({"securityContext": {"sysctls": [{"name": "net/core/somaxconn", "value": "9"}]}})), None),
            (
                with(json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "9"}]}})),
                Some("SysctlForbidden"),
            ),
            (with(json!({"os": {"name": "windows"}})), Some("PodOSNotSupported")),
        ];
        for (pod, expected) in cases {
            let result =
                check(&pod, std::slice::from_ref(&other), &allocatable, &[], &["net.core.*".to_owned()], Some(&node));
            assert_eq!(result.err().map(|refusal| refusal.reason), expected, "{:?}", pod.spec);
        }
        let full = vec![other.clone(), other.clone(), other];
        assert_eq!(check(&with(json!({})), &full, &allocatable, &[], &[], None).unwrap_err().reason, "OutOfpods");
    }

    #[test]
    fn a_node_under_pressure_is_choosy() {
        use Pressure::{Disk, Memory};
        let pod_with = |resources: Value, extra: Value| {
            let mut spec = json!({"containers": [{"name": "c", "resources": resources}]});
            spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            pod(spec)
        };
        let best_effort = pod_with(json!({}), json!({}));
        let burstable = pod_with(json!({"requests": {"memory": "1Mi"}}), json!({}));
        let tolerant = pod_with(json!({}), json!({"tolerations": [{"key": MEMORY_TAINT, "operator": "Exists"}]}));
        let critical = pod_with(json!({}), json!({"priority": 2_000_000_000}));
        for (pod, pressures, expected) in [
            (&best_effort, &[][..], None),
            (&best_effort, &[Memory], Some("The node had condition: [MemoryPressure]. ")),
            (&burstable, &[Memory], None),
            (&tolerant, &[Memory], None),
            (&burstable, &[Memory, Disk], Some("The node had condition: [MemoryPressure DiskPressure]. ")),
            (&tolerant, &[Disk], Some("The node had condition: [DiskPressure]. ")),
            (&critical, &[Disk], None),
        ] {
            let refusal = pressure(pod, pressures).err().map(|refusal| refusal.message);
            assert_eq!(refusal.as_deref(), expected, "{:?} {pressures:?}", pod.spec);
        }
    }
}
