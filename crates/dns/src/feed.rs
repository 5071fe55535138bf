//! From Services and EndpointSlices to the zone: whenever one changes, its Service's entry is made
//! anew from the informers' stores.

use std::collections::BTreeSet;
use std::net::IpAddr;

use client::{Informers, Store, key_of, split_key};
use k8s_openapi::api::core::v1::{Service as ServiceObject, ServicePort};
use k8s_openapi::api::discovery::v1::{EndpointPort, EndpointSlice};
use parking_lot::RwLock;

use crate::zone::{Endpoint, Kind, Port, Service, Zone};

const SERVICE_LABEL: &str = "kubernetes.io/service-name";
const BY_SERVICE: &str = "service";

/// Waits until the cluster is known; nothing is answered before.
pub async fn synced(informers: &Informers) {
    informers.get::<ServiceObject>().synced().await;
    informers.get::<EndpointSlice>().synced().await;
}

/// Keeps the zone until the informers end.
pub async fn keep(informers: &Informers, zone: &RwLock<Zone>) -> anyhow::Result<()> {
    let (services, slices) = (informers.get::<ServiceObject>(), informers.get::<EndpointSlice>());
    slices.add_index(BY_SERVICE, |slice: &EndpointSlice| service_key(slice).into_iter().collect());
    let (mut service_events, mut slice_events) = (services.subscribe(), slices.subscribe());
    let (service_store, slice_store) = (services.store(), slices.store());
    for service in service_store.list() {
        update(zone, &key_of(&service.metadata), &service_store, &slice_store);
    }
    loop {
        let keys: BTreeSet<String> = tokio::select! {
            Some(event) = service_events.recv() => [key_of(&event.object().metadata)].into(),
            Some(event) = slice_events.recv() => {
                [Some(event.object()), event.old()].into_iter().flatten().filter_map(|slice| service_key(slice)).collect()
            }
            else => return Ok(()),
        };
        for key in keys {
            update(zone, &key, &service_store, &slice_store);
        }
    }
}

fn service_key(slice: &EndpointSlice) -> Option<String> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_LABEL)?;
    Some(format!("{}/{name}", slice.metadata.namespace.as_deref().unwrap_or_default()))
}

fn update(zone: &RwLock<Zone>, key: &str, services: &Store<ServiceObject>, slices: &Store<EndpointSlice>) {
    let entry = services.get(key).map(|service| entry(&service, || slices.by_index(BY_SERVICE, key)));
    let (namespace, name) = split_key(key);
    zone.write().set(namespace, name, entry);
}

fn entry(service: &ServiceObject, slices: impl Fn() -> Vec<std::sync::Arc<EndpointSlice>>) -> Service {
    let spec = service.spec.clone().unwrap_or_default();
    let ports = spec.ports.iter().flatten().map(service_port).collect();
    let cluster_ip = spec.cluster_ip.as_deref().unwrap_or_default();
    let kind = match spec.type_.as_deref() {
        Some("ExternalName") => Kind::External(spec.external_name.unwrap_or_default()),
        _ if cluster_ip == "None" => Kind::Headless(slices().iter().flat_map(|slice| endpoints(slice)).collect()),
        _ => {
            let all = spec.cluster_ips.unwrap_or_else(|| vec![cluster_ip.to_owned()]);
            Kind::Cluster(all.iter().filter_map(|ip| ip.parse().ok()).collect())
        }
    };
    Service { kind, ports }
}

fn endpoints(slice: &EndpointSlice) -> Vec<Endpoint> {
    let ports: Vec<Port> = slice.ports.iter().flatten().filter_map(endpoint_port).collect();
    let ready = slice.endpoints.iter().flatten().filter(|endpoint| {
        // Absent means ready. Services that publish unready addresses have them marked ready.
        endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
    });
    let with_address = ready.filter_map(|endpoint| {
        let address: IpAddr = endpoint.addresses.first()?.parse().ok()?;
        Some(Endpoint { address, hostname: endpoint.hostname.clone(), ports: ports.clone() })
    });
    with_address.collect()
}

fn service_port(port: &ServicePort) -> Port {
    Port {
        name: port.name.clone().unwrap_or_default(),
        protocol: port.protocol.as_deref().unwrap_or("TCP").to_lowercase(),
        number: port.port as u16,
    }
}

fn endpoint_port(port: &EndpointPort) -> Option<Port> {
    Some(Port {
        name: port.name.clone().unwrap_or_default(),
        protocol: port.protocol.as_deref().unwrap_or("TCP").to_lowercase(),
        number: u16::try_from(port.port?).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    fn of(spec: Value, slices: Vec<Value>) -> Service {
        let service = serde_json::from_value(json!({ "metadata": { "name": "s" }, "spec": spec })).unwrap();
        entry(&service, || slices.iter().map(|s| Arc::new(serde_json::from_value(s.clone()).unwrap())).collect())
    }

    #[test]
    fn services_become_entries() {
        let cluster = of(
            json!({ "clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9"], "ports": [{ "port": 80, "protocol": "UDP" }] }),
            vec![],
        );
        assert_eq!(cluster.kind, Kind::Cluster(vec![[10, 43, 0, 9].into()]));
        assert_eq!(cluster.ports, [Port { name: String::new(), protocol: "udp".into(), number: 80 }]);
        assert_eq!(
            of(json!({ "type": "ExternalName", "externalName": "x.org" }), vec![]).kind,
            Kind::External("x.org".into())
        );
        let slice = json!({
            "metadata": {}, "addressType": "IPv4", "ports": [{ "name": "a", "port": 1 }],
            "endpoints": [
                { "addresses": ["10.42.0.2"], "hostname": "h" },
                { "addresses": ["10.42.0.3"], "conditions": { "ready": false } },
            ],
        });
        let Kind::Headless(endpoints) = of(json!({ "clusterIP": "None" }), vec![slice]).kind else {
            panic!("headless")
        };
        assert_eq!(endpoints.len(), 1);
        assert_eq!((endpoints[0].hostname.as_deref(), endpoints[0].ports[0].number), (Some("h"), 1));
    }
}
