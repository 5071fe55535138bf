//! Says of ServiceCIDRs that addresses may be had from them, and keeps one that is being deleted for as long as Services
//! have addresses from it alone.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context as _;
use client::{Client, ErrorExt as _, EventRecorder, EventType, Store, key_of};
use jiff::Timestamp;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Api;
use kube::api::{Patch, PatchParams};
use resources::service_cidrs::{ALLOCATOR, MANAGED_BY, READY, ServiceRange};
use serde_json::{Value, json};

use crate::common::now;
use crate::framework::{Context, Controller, Requeue};

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
/// Until then an API server may not have heard that the range is being deleted, and give away an address from it.
const GRACE: Duration = Duration::from_secs(10);

pub struct ServiceCidrController {
    client: Client,
    events: EventRecorder,
    ranges: Store<ServiceCIDR>,
    addresses: Store<IPAddress>,
}

impl Controller for ServiceCidrController {
    const NAME: &'static str = "service-cidr-controller";
    const IDENTITY: &'static str = "service-cidrs-controller";

    fn new(context: &Context) -> Self {
        let known = context.informer::<ServiceCIDR>().store();
        let ranges = context.on::<ServiceCIDR>(move |event, queue| {
            // What holds another range back may have come or gone with this one.
            let range = ServiceRange::from(event.object().as_ref());
            queue.add(range.name.clone());
            all(&known)
                .filter(|other| other.deleting && other.overlaps(&range))
                .for_each(|other| queue.add(other.name));
        });
        let known = ranges.store();
        let addresses = context.on::<IPAddress>(move |event, queue| {
            let came_or_went = event.old().is_none();
            let Some(address) = managed(event.object()).filter(|_| came_or_went) else { return };
            all(&known).filter(|range| range.deleting && range.gives(address)).for_each(|range| queue.add(range.name));
        });
        Self {
            client: context.client.clone(),
            events: context.events.clone(),
            ranges: ranges.store(),
            addresses: addresses.store(),
        }
    }

    async fn reconcile(&self, key: &str) -> anyhow::Result<Requeue> {
        let Some(object) = self.ranges.get(key) else { return Ok(Requeue::Never) };
        let addresses = self.addresses.list();
        let plan =
            plan(&object, &all(&self.ranges).collect::<Vec<_>>(), || addresses.iter().filter_map(|a| managed(a)));
        match plan {
            Plan::Keep => {
                self.change_finalizers(&object, true).await?;
                let ready = condition("True", "", "Kubernetes Service CIDR is ready");
                if let Err(error) = self.show(&object, ready).await {
                    let text = "The ServiceCIDR Status can not be set to Ready=True";
                    self.events.event(object.as_ref(), EventType::Warning, "KubernetesServiceCIDRError", text);
                    return Err(error);
                }
            }
            Plan::Hold => {
                let text = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new \
                            ServiceCIDR";
                self.show(&object, condition("False", "Terminating", text)).await?;
            }
            Plan::Wait(time) => return Ok(Requeue::After(time)),
            Plan::Release => self.change_finalizers(&object, false).await?,
        }
        Ok(Requeue::Never)
    }
}

impl ServiceCidrController {
    fn api(&self) -> Api<ServiceCIDR> {
        Api::all(self.client.clone())
    }

    async fn change_finalizers(&self, object: &ServiceCIDR, wanted: bool) -> anyhow::Result<()> {
        let has = object.metadata.finalizers.iter().flatten().any(|known| known == FINALIZER);
        if has == wanted {
            return Ok(());
        }
        let field = if wanted { "finalizers" } else { "$deleteFromPrimitiveList/finalizers" };
        let patch = Patch::Strategic(json!({"metadata": {field: [FINALIZER]}}));
        let name = key_of(&object.metadata);
        match self.api().patch(&name, &PatchParams::default(), &patch).await {
            Err(error) if !error.is_not_found() => {
                Err(error).with_context(|| format!("change the finalizers of {name}"))
            }
            _ => Ok(()),
        }
    }

    /// Sets the Ready condition, unless it says so already.
    async fn show(&self, object: &ServiceCIDR, condition: Condition) -> anyhow::Result<()> {
        let known = object.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let said = |known: &Condition| (known.status.clone(), known.reason.clone(), known.message.clone());
        if known.into_iter().any(|known| known.type_ == READY && said(known) == said(&condition)) {
            return Ok(());
        }
        let name = key_of(&object.metadata);
        let apply: Value = json!({
            "kind": "ServiceCIDR", "apiVersion": "networking.k8s.io/v1", "metadata": {"name": name},
            "status": {"conditions": [condition]},
        });
        let params = PatchParams::apply(Self::NAME).force();
        self.api().patch_status(&name, &params, &Patch::Apply(apply)).await.context("set the Ready condition")?;
        Ok(())
    }
}

fn condition(status: &str, reason: &str, message: &str) -> Condition {
    Condition {
        type_: READY.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: now(),
        observed_generation: None,
    }
}

fn all(ranges: &Store<ServiceCIDR>) -> impl Iterator<Item = ServiceRange> {
    ranges.list().into_iter().map(|range| ServiceRange::from(range.as_ref()))
}

/// The address, if the API server's allocator looks after it.
fn managed(object: &IPAddress) -> Option<IpAddr> {
    let manager = object.metadata.labels.as_ref()?.get(MANAGED_BY)?;
    object.metadata.name.as_ref()?.parse().ok().filter(|_| manager == ALLOCATOR)
}

#[derive(Debug, PartialEq)]
enum Plan {
    /// It serves.
    Keep,
    /// It is being deleted, and addresses keep it.
    Hold,
    Wait(Duration),
    Release,
}

fn plan<A: Iterator<Item = IpAddr>>(object: &ServiceCIDR, all: &[ServiceRange], addresses: impl FnOnce() -> A) -> Plan {
    let Some(deleted) = &object.metadata.deletion_timestamp else { return Plan::Keep };
    let range = ServiceRange::from(object);
    let others: Vec<_> = all.iter().filter(|other| other.name != range.name && other.is_open()).collect();
    let covered = range.cidrs.iter().all(|cidr| others.iter().any(|other| other.contains(cidr)));
    let is_last = |address: &IpAddr| range.gives(*address) && !others.iter().any(|other| other.gives(*address));
    if !covered && addresses().any(|address| is_last(&address)) {
        return Plan::Hold;
    }
    let age = Duration::try_from(Timestamp::now().duration_since(deleted.0)).unwrap_or_default();
    match GRACE.checked_sub(age).filter(|left| !left.is_zero()) {
        Some(left) => Plan::Wait(left),
        None => Plan::Release,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(name: &str, cidrs: &[&str], deleted: Option<u64>) -> ServiceCIDR {
        let deleted = deleted.map(|seconds| Timestamp::now() - Duration::from_secs(seconds));
        let value = json!({"metadata": {"name": name, "deletionTimestamp": deleted}, "spec": {"cidrs": cidrs}});
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_range_goes_when_nothing_is_from_it_alone() {
        let going = |cidrs: &[&str]| object("a", cidrs, Some(60));
        let other = |cidrs: &[&str]| object("b", cidrs, None);
        let (small, large) = (&["10.0.0.0/28"][..], &["10.0.0.0/24"][..]);
        let cases: &[(ServiceCIDR, &[ServiceCIDR], &[&str], Plan)] = &[
            (object("a", small, None), &[], &["10.0.0.1"], Plan::Keep),
            (going(small), &[], &[], Plan::Release),
            (going(small), &[], &["10.0.0.1"], Plan::Hold),
            (going(small), &[], &["10.0.0.0", "10.0.0.15", "10.0.0.16", "fd00::1"], Plan::Release),
            (going(small), &[other(large)], &["10.0.0.1"], Plan::Release),
            (going(small), &[other(small)], &["10.0.0.1"], Plan::Release),
            (going(small), &[object("b", large, Some(60))], &["10.0.0.1"], Plan::Hold),
            (going(large), &[other(small)], &["10.0.0.1"], Plan::Release),
            (going(large), &[other(small)], &["10.0.0.1", "10.0.0.15"], Plan::Hold),
            (going(&["10.0.0.0/28", "fd00::/64"]), &[other(large)], &["10.0.0.1"], Plan::Release),
            (going(&["10.0.0.0/28", "fd00::/64"]), &[other(large)], &["10.0.0.1", "fd00::1"], Plan::Hold),
        ];
        for (range, others, addresses, want) in cases {
            let all: Vec<_> = others.iter().chain([range]).map(ServiceRange::from).collect();
            let addresses = || addresses.iter().map(|text| text.parse().unwrap());
            assert_eq!(plan(range, &all, addresses), *want, "{range:?} {others:?}");
        }
    }

    #[test]
    fn a_range_stays_until_all_have_heard_of_its_end() {
        let range = object("a", &["10.0.0.0/28"], Some(4));
        let Plan::Wait(left) = plan(&range, &[ServiceRange::from(&range)], || [].into_iter()) else {
            panic!("it goes")
        };
        assert!(left <= Duration::from_secs(7) && left > Duration::from_secs(1), "{left:?}");
    }
}
