//! The quality-of-service class, fixed when a pod is created.

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};

use machinery::quantity::Quantity;

use crate::validate::quantity::get;

const COMPUTE: [&str; 2] = ["cpu", "memory"];

/// `Guaranteed` when every container's cpu and memory requests equal its limits, `BestEffort` when
/// nothing is asked for, else `Burstable`. Pod-level resources, when set, decide alone.
pub fn qos_class(spec: &PodSpec) -> &'static str {
    let pod_level = spec.resources.as_ref().filter(|resources| asks(resources));
    if let Some(resources) = pod_level {
        return if guaranteed(Some(resources)) { "Guaranteed" } else { "Burstable" };
    }
    let containers = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let resources = |container: &'_ Container| container.resources.clone();
    if !containers().filter_map(resources).any(|resources| asks(&resources)) {
        "BestEffort"
    } else if containers().all(|container| guaranteed(container.resources.as_ref())) {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

fn asks(resources: &ResourceRequirements) -> bool {
    [&resources.requests, &resources.limits].into_iter().any(|list| {
        COMPUTE.iter().any(|name| get(list.as_ref(), name).is_some_and(|quantity| quantity > Quantity::ZERO))
    })
}

fn guaranteed(resources: Option<&ResourceRequirements>) -> bool {
    let Some(resources) = resources else { return false };
    COMPUTE.iter().all(|name| {
        let limit = get(resources.limits.as_ref(), name).filter(|limit| *limit > Quantity::ZERO);
        let request = get(resources.requests.as_ref(), name).or(limit);
        limit.is_some() && request == limit
    })
}
