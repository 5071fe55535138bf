//! What is to be done about one address, given the Services that say they have it and the IPAddress of that name. Pure.

use std::{net::IpAddr, time::Duration};

use jiff::Timestamp;
use resources::service_cidrs::family;

use crate::allocate::address::{Address, Metadata, Parent};

/// An IPAddress may be there before its Service for this long, as upstream makes them one after the other.
const GRACE: Duration = Duration::from_secs(60);

pub(super) struct View<'a> {
    pub address: IpAddr,
    pub object: Option<&'a Address>,
    /// Services that say they have the address.
    pub holders: &'a [Metadata],
    /// The Service that the IPAddress refers to is there.
    pub parent_exists: bool,
    /// Some ServiceCIDR has the address.
    pub in_range: bool,
    pub now: Timestamp,
}

#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// Reports reason, action and note about a holder, or about the IPAddress.
    Warn(Option<usize>, &'static str, &'static str, String),
    Delete,
    /// Makes the IPAddress of a holder.
    Create(usize),
    /// Nothing yet: look again.
    Wait(Duration),
}

/// The steps in their order. A change brings another look, so the rest waits for that.
pub(super) fn plan(view: &View<'_>) -> Vec<Step> {
    let mut steps = Vec::new();
    for (index, service) in view.holders.iter().enumerate() {
        if view.holder(index, service, &mut steps) {
            return steps;
        }
    }
    steps.extend(
        view.object.filter(|object| object.is_ours()).and_then(|object| view.orphan(object)).into_iter().flatten(),
    );
    steps
}

impl View<'_> {
    /// Whether a step changes the IPAddress for the sake of this holder.
    fn holder(&self, index: usize, service: &Metadata, steps: &mut Vec<Step>) -> bool {
        let (address, family) = (self.address, family(self.address));
        let Metadata { namespace, name, .. } = service;
        let mut warn = |reason, note| steps.push(Step::Warn(Some(index), reason, "ClusterIPAllocation", note));
        if !self.in_range {
            warn(
                "ClusterIPOutOfRange",
                format!(
                    "Cluster IP [{family}]: {address} is not within any configured Service CIDR; please recreate service"
                ),
            );
            return false;
        }
        let Some(object) = self.object else {
            warn("ClusterIPNotAllocated", format!("Cluster IP [{family}]: {address} is not allocated; repairing"));
            steps.push(Step::Create(index));
            return true;
        };
        let parent = object.parent();
        let own = parent.is(namespace, name);
        if !parent.is_service() || !own && !self.parent_exists {
            let what = format!("the ClusterIP [{family}]: {address} for Service {namespace}/{name}");
            warn("ClusterIPNotAllocated", format!("{what} has a wrong reference; repairing"));
        } else if !own && self.holds(parent) {
            let note =
                format!("Cluster IP [{family}]:{address} was assigned to multiple services; please recreate service");
            warn("ClusterIPAlreadyAllocated", note);
            return false;
        } else if object.is_labelled(address) {
            return false;
        }
        steps.extend([Step::Delete, Step::Create(index)]);
        true
    }

    fn holds(&self, parent: &Parent) -> bool {
        self.holders.iter().any(|holder| parent.is(&holder.namespace, &holder.name))
    }

    /// What to do with an IPAddress of ours that no Service stands behind.
    fn orphan(&self, object: &Address) -> Option<Vec<Step>> {
        let (address, parent) = (self.address, object.parent());
        let Parent { group, resource, namespace, name } = parent;
        let remove = |reason, note| Some(vec![Step::Warn(None, reason, "IPAddressAllocation", note), Step::Delete]);
        if !parent.is_service() {
            let parent =
                format!("&ParentReference{{Group:{group},Resource:{resource},Namespace:{namespace},Name:{name},}}");
            let what = format!("IPAddress {address} appears to have been modified");
            return remove("IPAddressNotAllocated", format!("{what}, not referencing a Service {parent}: cleaning up"));
        }
        if self.holds(parent) {
            return None;
        }
        let what = format!("IPAddress: {address} for Service {namespace}/{name}");
        if self.parent_exists {
            return remove("IPAddressWrongReference", format!("{what} has a wrong reference; cleaning up"));
        }
        let created = object.metadata.creation_timestamp.unwrap_or_default();
        let age = Duration::try_from(self.now.duration_since(created)).unwrap_or_default();
        match GRACE.checked_sub(age).filter(|left| !left.is_zero()) {
            Some(left) => Some(vec![Step::Wait(left)]),
            None => remove("IPAddressNotAllocated", format!("{what} appears to have leaked: cleaning up")),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn address(labels: Value, parent: Value) -> Value {
        json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z", "labels": labels}, "spec": {"parentRef": parent}})
    }

    fn service(name: &str) -> Value {
        json!({"resource": "services", "namespace": "ns", "name": name})
    }

    /// IPAddress, holders, whether the parent exists, whether the address is in range, age in seconds; steps.
    type Case<'a> = (Value, &'a [&'a str], bool, bool, i64, &'a [&'a str]);

    fn told(step: Step) -> String {
        match step {
            Step::Warn(about, reason, action, note) => {
                format!("{} {reason} {action} {note}", about.map_or("ip".into(), |index| index.to_string()))
            }
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn addresses_and_services_are_brought_together() {
        let ours = json!({
            "ipaddress.kubernetes.io/ip-family": "IPv4", "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
        });
        let six = json!({
            "ipaddress.kubernetes.io/ip-family": "IPv6", "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
        });
        let pod = json!({"group": "g", "resource": "pods", "namespace": "ns", "name": "a"});
        let wrong = "0 ClusterIPNotAllocated ClusterIPAllocation the ClusterIP [IPv4]: 10.0.0.5 for Service ns/a has a wrong reference; repairing";
        let cases: &[Case<'_>] = &[
            (address(ours.clone(), service("a")), &["a"], true, true, 0, &[]),
            (
                Value::Null,
                &["a"],
                false,
                true,
                0,
                &[
                    "0 ClusterIPNotAllocated ClusterIPAllocation Cluster IP [IPv4]: 10.0.0.5 is not allocated; repairing",
                    "Create(0)",
                ],
            ),
            (
                Value::Null,
                &["a"],
                false,
                false,
                0,
                &[
                    "0 ClusterIPOutOfRange ClusterIPAllocation Cluster IP [IPv4]: 10.0.0.5 is not within any configured Service CIDR; please recreate service",
                ],
            ),
            (address(ours.clone(), pod.clone()), &["a"], false, true, 0, &[wrong, "Delete", "Create(0)"]),
            (address(json!({}), pod.clone()), &["a"], false, true, 0, &[wrong, "Delete", "Create(0)"]),
            (address(ours.clone(), service("gone")), &["a"], false, true, 0, &[wrong, "Delete", "Create(0)"]),
            (
                address(ours.clone(), service("a")),
                &["a", "b"],
                true,
                true,
                0,
                &[
                    "1 ClusterIPAlreadyAllocated ClusterIPAllocation Cluster IP [IPv4]:10.0.0.5 was assigned to multiple services; please recreate service",
                ],
            ),
            (
                address(ours.clone(), service("other")),
                &["a"],
                true,
                true,
                0,
                &[
                    "ip IPAddressWrongReference IPAddressAllocation IPAddress: 10.0.0.5 for Service ns/other has a wrong reference; cleaning up",
                    "Delete",
                ],
            ),
            (address(six, service("a")), &["a"], true, true, 0, &["Delete", "Create(0)"]),
            (address(json!({}), service("a")), &["a"], true, true, 0, &["Delete", "Create(0)"]),
            (
                address(ours.clone(), pod.clone()),
                &[],
                false,
                true,
                0,
                &[
                    "ip IPAddressNotAllocated IPAddressAllocation IPAddress 10.0.0.5 appears to have been modified, not referencing a Service &ParentReference{Group:g,Resource:pods,Namespace:ns,Name:a,}: cleaning up",
                    "Delete",
                ],
            ),
            (address(ours.clone(), service("gone")), &[], false, true, 59, &["Wait(1s)"]),
            (
                address(ours, service("gone")),
                &[],
                false,
                true,
                60,
                &[
                    "ip IPAddressNotAllocated IPAddressAllocation IPAddress: 10.0.0.5 for Service ns/gone appears to have leaked: cleaning up",
                    "Delete",
                ],
            ),
            (address(json!({}), pod), &[], false, true, 3600, &[]),
            (address(json!({}), service("gone")), &[], false, true, 3600, &[]),
            (Value::Null, &[], false, true, 0, &[]),
        ];
        for (object, holders, parent_exists, in_range, age, want) in cases {
            let object: Option<Address> = serde_json::from_value(object.clone()).unwrap();
            let holder = |name: &&str| Metadata { namespace: "ns".into(), name: (*name).into(), ..Metadata::default() };
            let holders: Vec<Metadata> = holders.iter().map(holder).collect();
            let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
            let view = View {
                address: "10.0.0.5".parse().unwrap(),
                object: object.as_ref(),
                holders: &holders,
                parent_exists: *parent_exists,
                in_range: *in_range,
                now: start + jiff::SignedDuration::from_secs(*age),
            };
            let steps: Vec<String> = plan(&view).into_iter().map(told).collect();
            assert_eq!(steps, *want, "{object:?} {holders:?}");
        }
    }
}
