//! From which ServiceCIDRs Services get addresses, and the IPAddress that marks one as taken. Pure.
//!
//! The API server allocates by this and the controller of ServiceCIDRs lets ranges go by it; they must agree, or a
//! range would go while addresses come from it.

use std::net::IpAddr;

use k8s_openapi::api::networking::v1::ServiceCIDR;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Cidr;

/// On an IPAddress: its family, `IPv4` or `IPv6`.
pub const IP_FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
/// On an IPAddress: who looks after it.
pub const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
/// The value of [`MANAGED_BY`] for addresses of Services.
pub const ALLOCATOR: &str = "ipallocator.k8s.io";
/// The condition of a ServiceCIDR from which addresses may be had.
pub const READY: &str = "Ready";

/// What a ServiceCIDR means for addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRange {
    pub name: String,
    pub cidrs: Vec<Cidr>,
    pub deleting: bool,
    /// By its condition. One that has none yet counts as ready, since nothing may be running that would set it.
    pub ready: bool,
}

impl ServiceRange {
    /// Addresses may be had from here.
    pub fn is_open(&self) -> bool {
        self.ready && !self.deleting
    }

    pub fn gives(&self, address: IpAddr) -> bool {
        self.cidrs.iter().any(|cidr| cidr.gives(address))
    }

    pub fn contains(&self, inner: &Cidr) -> bool {
        self.cidrs.iter().any(|cidr| cidr.contains(inner))
    }

    pub fn overlaps(&self, other: &ServiceRange) -> bool {
        self.cidrs.iter().any(|cidr| other.cidrs.iter().any(|theirs| cidr.overlaps(theirs)))
    }

    fn new<'a>(
        name: &str,
        deleting: bool,
        cidrs: impl IntoIterator<Item = &'a String>,
        mut conditions: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> ServiceRange {
        let cidrs = cidrs.into_iter().filter_map(|text| text.parse().ok()).collect();
        let ready = conditions.find(|(kind, _)| *kind == READY).is_none_or(|(_, status)| status == "True");
        ServiceRange { name: name.to_owned(), cidrs, deleting, ready }
    }
}

impl From<&ServiceCIDR> for ServiceRange {
    fn from(object: &ServiceCIDR) -> ServiceRange {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let cidrs = object.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
        let conditions = object.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let conditions = conditions.map(|condition| (condition.type_.as_str(), condition.status.as_str()));
        ServiceRange::new(name, object.metadata.deletion_timestamp.is_some(), cidrs, conditions)
    }
}

/// The fields that matter of a stored ServiceCIDR: each new Service reads all of them.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Stored {
    metadata: Metadata,
    spec: Spec,
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    name: String,
    deletion_timestamp: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Spec {
    cidrs: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    conditions: Vec<Condition>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Condition {
    r#type: String,
    status: String,
}

impl<'de> Deserialize<'de> for ServiceRange {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<ServiceRange, D::Error> {
        let Stored { metadata, spec, status } = Stored::deserialize(deserializer)?;
        let conditions = status.conditions.iter().map(|condition| (&*condition.r#type, &*condition.status));
        Ok(ServiceRange::new(&metadata.name, metadata.deletion_timestamp.is_some(), &spec.cidrs, conditions))
    }
}

pub fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// That a Service has the address.
pub fn ip_address(address: IpAddr, namespace: &str, service: &str) -> Value {
    json!({
        "kind": "IPAddress", "apiVersion": "networking.k8s.io/v1",
        "metadata": {"name": address.to_string(), "labels": {IP_FAMILY: family(address), MANAGED_BY: ALLOCATOR}},
        "spec": {"parentRef": {"resource": "services", "namespace": namespace, "name": service}},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_open_while_nothing_speaks_against_it() {
        for (metadata, conditions, open) in [
            (json!({}), json!(null), true),
            (json!({}), json!([{"type": "Other", "status": "False"}]), true),
            (json!({}), json!([{"type": "Ready", "status": "True"}]), true),
            (json!({}), json!([{"type": "Ready", "status": "False"}]), false),
            (json!({}), json!([{"type": "Ready", "status": "Unknown"}]), false),
            (json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}), json!([{"type": "Ready", "status": "True"}]), false),
        ] {
            let mut object = json!({"metadata": metadata, "spec": {"cidrs": ["10.0.0.0/24", "fd00::/64"]}});
            object["metadata"]["name"] = json!("a");
            if conditions.is_array() {
                let filled = |condition: &Value| {
                    let mut condition = condition.clone();
                    condition["lastTransitionTime"] = json!("2026-01-01T00:00:00Z");
                    (condition["reason"], condition["message"]) = (json!(""), json!(""));
                    condition
                };
                object["status"] =
                    json!({"conditions": conditions.as_array().unwrap().iter().map(filled).collect::<Vec<_>>()});
            }
            let range: ServiceRange = serde_json::from_value(object.clone()).unwrap();
            assert_eq!((range.is_open(), range.cidrs.len(), range.name.as_str()), (open, 2, "a"), "{object}");
            let typed: ServiceCIDR = serde_json::from_value(object).unwrap();
            assert_eq!(ServiceRange::from(&typed), range);
        }
    }
}
