//! Warnings about services: fields that are ignored, deprecated or oddly spelt.

use k8s_openapi::api::core::v1::Service;
use machinery::field::Path;

use super::validate::is_headless;
use super::{TOPOLOGY_HINTS, TOPOLOGY_MODE};
use crate::validate::{indexed, text, warn};

pub fn service(service: &Service) -> Vec<String> {
    let spec = service.spec.clone().unwrap_or_default();
    let (path, type_) = (Path::new("spec"), text(&spec.type_));
    let headless = type_ == "ClusterIP" && is_headless(&spec);
    let external_ips = spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty());
    let external_name = type_ == "ExternalName";
    let mut warnings = Vec::new();
    let mut warn_if = |given: bool, warning: &str| {
        if given {
            warnings.push(warning.to_owned());
        }
    };
    let hinted = service.metadata.annotations.as_ref().is_some_and(|map| map.contains_key(TOPOLOGY_HINTS));
    warn_if(hinted, &format!("annotation {TOPOLOGY_HINTS} is deprecated, please use {TOPOLOGY_MODE} instead"));
    let balancer = text(&spec.load_balancer_ip);
    warn_if(headless && !balancer.is_empty(), "spec.loadBalancerIP is ignored for headless services");
    warn_if(headless && external_ips, "spec.externalIPs is ignored for headless services");
    let affine = spec.session_affinity.as_deref() != Some("None");
    warn_if(headless && affine, "spec.SessionAffinity is ignored for headless services");
    let deprecated = "spec.externalIPs is deprecated and may no longer be implemented in some clusters";
    warn_if(external_ips && !headless && !external_name, deprecated);
    warn_if(external_name && external_ips, "spec.externalIPs is ignored when spec.type is \"ExternalName\"");
    let ignored = "spec.externalName is ignored when spec.type is not \"ExternalName\"";
    warn_if(!external_name && !text(&spec.external_name).is_empty(), ignored);
    let close = r#"spec.trafficDistribution: "PreferClose" is deprecated; use "PreferSameZone""#;
    warn_if(spec.traffic_distribution.as_deref() == Some("PreferClose"), close);

    for (key, list) in [("clusterIPs", spec.cluster_ips.as_ref()), ("externalIPs", spec.external_ips.as_ref())] {
        warnings.extend(indexed(list, &path.child(key)).filter_map(|(at, ip)| warn::ip(ip, &at)));
    }
    warnings.extend(warn::ip(balancer, &path.child("loadBalancerIP")));
    let ranges = indexed(spec.load_balancer_source_ranges.as_ref(), &path.child("loadBalancerSourceRanges"));
    warnings.extend(ranges.flat_map(|(at, range)| warn::cidr(range, &at)));
    warnings
}
