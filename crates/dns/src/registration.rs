//! The Service `kube-system/kube-dns` and its endpoint: how pods reach this server.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use client::{Client, ErrorExt};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

/// Where the Service is.
pub const NAMESPACE: &str = "kube-system";
const NAME: &str = "kube-dns";
/// The name of its EndpointSlice.
pub const SLICE: &str = "kube-dns-isopod";
/// Somebody may delete them; they come back within this time.
const CHECK: Duration = Duration::from_secs(30);

/// Creates both and puts them right again whenever they are not.
pub async fn keep(client: Client, cluster_ip: Ipv4Addr, advertise: SocketAddr) -> anyhow::Result<()> {
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    let slices: Api<EndpointSlice> = Api::namespaced(client, NAMESPACE);
    loop {
        let done = async {
            ensure(&services, &service(cluster_ip))
                .await
                .with_context(|| format!("publish the Service {NAMESPACE}/{NAME}"))?;
            ensure(&slices, &slice(advertise))
                .await
                .with_context(|| format!("publish the endpoint of {NAMESPACE}/{NAME}"))
        };
        if let Err(error) = done.await {
            tracing::warn!("{error:#}");
            tokio::time::sleep(Duration::from_secs(1)).await;
            continue;
        }
        tokio::time::sleep(CHECK).await;
    }
}

async fn ensure<K>(api: &Api<K>, wanted: &Value) -> anyhow::Result<()>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    let name = wanted["metadata"]["name"].as_str().unwrap_or_default();
    match api.patch(name, &PatchParams::default(), &Patch::Merge(wanted)).await {
        Err(error) if error.is_not_found() => {
            api.create(&PostParams::default(), &K::deserialize(wanted)?).await?;
        }
        result => drop(result?),
    }
    Ok(())
}

fn service(cluster_ip: Ipv4Addr) -> Value {
    let port = |name: &str, protocol: &str| json!({ "name": name, "port": 53, "targetPort": 53, "protocol": protocol });
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": NAME, "labels": { "k8s-app": NAME, "kubernetes.io/name": "CoreDNS", "kubernetes.io/cluster-service": "true" } },
        "spec": { "clusterIP": cluster_ip, "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")] },
    })
}

fn slice(advertise: SocketAddr) -> Value {
    let port = |name: &str, protocol: &str| json!({ "name": name, "port": advertise.port(), "protocol": protocol });
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": SLICE,
            "labels": {
                "kubernetes.io/service-name": NAME,
                "endpointslice.kubernetes.io/managed-by": "dns.isopod",
            },
        },
        "addressType": "IPv4",
        "endpoints": [{ "addresses": [advertise.ip()], "conditions": { "ready": true, "serving": true, "terminating": false } }],
        "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")],
    })
}
