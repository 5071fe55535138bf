//! Mirrors Endpoints that somebody wrote by hand, for services without a selector, into EndpointSlices: everything that
//! reads endpoints today reads slices.

use std::collections::BTreeMap;
use std::net::IpAddr;

use client::{Store, key_of};
use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::desired::Group;
use super::reconcile::{Changes, reconcile};
use super::{MANAGED_BY, SERVICE_NAME, Slices};
use crate::common::services::service_selector;
use crate::framework::{Context, Controller, Requeue};

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Addresses mirrored per subset, upstream's default.
const MAX_PER_SUBSET: usize = 1000;

pub struct EndpointSliceMirroring {
    services: Store<Service>,
    endpoints: Store<Endpoints>,
    slices: Slices,
}

impl Controller for EndpointSliceMirroring {
    const NAME: &'static str = "endpointslicemirroring-controller";

    fn new(context: &Context) -> Self {
        Self {
            services: context.watch::<Service>().store(),
            endpoints: context.watch::<Endpoints>().store(),
            slices: Slices::watch(context, MANAGER),
        }
    }

    async fn reconcile(&self, key: &str) -> anyhow::Result<Requeue> {
        if !self.slices.up_to_date(key) {
            return Ok(Requeue::Never);
        }
        let by_hand = self.services.get(key).is_some_and(|service| service_selector(&service).is_none());
        let endpoints = self.endpoints.get(key).filter(|endpoints| by_hand && should_mirror(&endpoints.metadata));
        let existing = self.slices.of(key);
        let changes = match endpoints {
            Some(endpoints) => reconcile(&metadata(&endpoints), &[], groups(&endpoints), &existing),
            None => Changes { delete: existing, ..Changes::default() },
        };
        self.slices.write(key, changes).await.map(|()| Requeue::Never)
    }
}

fn should_mirror(meta: &ObjectMeta) -> bool {
    let skipped = meta.labels.as_ref().and_then(|labels| labels.get(SKIP)).is_some_and(|skip| skip == "true");
    !skipped && !meta.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(LEADER))
}

fn metadata(endpoints: &Endpoints) -> ObjectMeta {
    let name = key_of(&ObjectMeta { namespace: None, ..endpoints.metadata.clone() });
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.into(), name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    ObjectMeta {
        generate_name: Some(format!("{name}-")),
        namespace: endpoints.metadata.namespace.clone(),
        labels: Some(labels),
        owner_references: Some(vec![client::owner_reference(endpoints)]),
        ..Default::default()
    }
}

fn groups(endpoints: &Endpoints) -> Vec<Group> {
    let mut groups: BTreeMap<(&str, String), Group> = BTreeMap::new();
    for subset in endpoints.subsets.iter().flatten() {
        let port = |port: &k8s_openapi::api::core::v1::EndpointPort| EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(port.port),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
            app_protocol: port.app_protocol.clone(),
        };
        let ports: Vec<_> = subset.ports.iter().flatten().map(port).collect();
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let not_ready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        for (address, ready) in ready.chain(not_ready).take(MAX_PER_SUBSET) {
            let Ok(ip) = address.ip.parse::<IpAddr>() else { continue };
            let address_type = if ip.is_ipv6() { "IPv6" } else { "IPv4" };
            let key = (address_type, serde_json::to_string(&ports).unwrap_or_default());
            let new = || Group { address_type, ports: ports.clone(), endpoints: Vec::new() };
            groups.entry(key).or_insert_with(new).endpoints.push(endpoint(address, ready));
        }
    }
    groups.into_values().collect()
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..Default::default() }),
        hostname: address.hostname.clone().filter(|hostname| !hostname.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn subsets_become_groups_per_family_and_ports() {
        let endpoints: Endpoints =
            serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "ns"}, "subsets": [
            {"addresses": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}], "notReadyAddresses": [{"ip": "10.0.0.2"}],
             "ports": [{"port": 80}]},
            {"addresses": [{"ip": "10.0.0.3"}], "ports": [{"port": 80}]}]}))
            .unwrap();
        let groups = groups(&endpoints);
        let ready = |endpoint: &Endpoint| endpoint.conditions.as_ref().unwrap().ready.unwrap();
        let v4: Vec<_> = groups[0].endpoints.iter().map(|e| (e.addresses[0].as_str(), ready(e))).collect();
        assert_eq!(v4, [("10.0.0.1", true), ("10.0.0.2", false), ("10.0.0.3", true)]);
        assert_eq!((groups.len(), groups[1].address_type), (2, "IPv6"));
        assert_eq!(metadata(&endpoints).labels.unwrap()[SERVICE_NAME], "s");
    }
}
