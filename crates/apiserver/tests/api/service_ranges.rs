//! ServiceCIDRs and IPAddresses: where Services' addresses come from, how they are marked, what happens when a user
//! comes in between.

use std::collections::BTreeSet;

use machinery::meta;
use store::{Compare, KeyRange, Range, Txn, Write};

use super::*;

const SERVICES: &str = "/api/v1/namespaces/default/services";
const RANGES: &str = "/apis/networking.k8s.io/v1/servicecidrs";
const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";
/// The value of the label of addresses that the allocator manages.
const OURS: &str = "ipallocator.k8s.io";

fn service(name: &str, address: &str) -> Value {
    let address = if address.is_empty() { Value::Null } else { json!(address) };
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"clusterIP": address, "ports": [{"port": 80}], "selector": {"a": "b"}}})
}

fn range(name: &str, cidrs: &[&str]) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name}, "spec": {"cidrs": cidrs}})
}

/// An IPAddress that a user makes.
fn ip_address(name: &str, manager: &str, parent: Value) -> Value {
    let labels = json!({"ipaddress.kubernetes.io/ip-family": "IPv4", "ipaddress.kubernetes.io/managed-by": manager});
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress", "metadata": {"name": name, "labels": labels},
        "spec": {"parentRef": parent}})
}

fn parent(name: &str) -> Value {
    json!({"resource": "services", "namespace": "default", "name": name})
}

impl Cluster {
    async fn address_of(&self, name: &str) -> String {
        text(&self.create(SERVICES, service(name, "")).await["spec"]["clusterIP"])
    }

    async fn delete(&self, url: &str) {
        self.call("DELETE", url, &Value::Null).await.expect(200);
    }

    /// The Service that asks for an address is refused.
    async fn refuses(&self, address: &str, why: &str) {
        let answer = self.call("POST", SERVICES, &service("refused", address)).await;
        let message = format!(
            "Service \"refused\" is invalid: spec.clusterIPs: Invalid value: [\"{address}\"]: failed to allocate IP {address}: {why}"
        );
        answer.fails(422, "Invalid", &message);
    }

    /// Waits until the IPAddress is as it should be.
    async fn until(&self, address: &str, wanted: impl Fn(&Answer) -> bool) -> Value {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let found = self.get(&format!("{ADDRESSES}/{address}")).await;
            if wanted(&found) {
                return found.body;
            }
            assert!(tokio::time::Instant::now() < deadline, "{address} is {}", found.text);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits for an event about an object: `REASON: message`.
    async fn until_told(&self, object: &str, want: &str) {
        let url = format!("/api/v1/namespaces/default/events?fieldSelector=involvedObject.name={object}");
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let list = self.get(&url).await.expect(200);
            let events = list["items"].as_array().unwrap();
            let told: Vec<_> =
                events.iter().map(|event| format!("{}: {}", text(&event["reason"]), text(&event["message"]))).collect();
            if told.iter().any(|told| told == want) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{told:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

const OUTSIDE: &str = "the provided network does not match the current range";
const TAKEN: &str = "provided IP is already allocated";

#[tokio::test]
async fn each_address_of_a_service_is_an_object() {
    let cluster = Cluster::start().await;
    let mut watch = cluster.watch(&format!("{ADDRESSES}?watch=1")).await;
    assert_eq!(watch.told().await, "ADDED 10.43.0.1");
    let address = cluster.address_of("a").await;
    let told = watch.next().await.unwrap();
    let object = cluster.get(&format!("{ADDRESSES}/{address}")).await.expect(200);
    assert_eq!((&told["type"], &told["object"]), (&json!("ADDED"), &object));
    assert_eq!((&object["kind"], &object["apiVersion"]), (&json!("IPAddress"), &json!("networking.k8s.io/v1")));
    let labels = json!({"ipaddress.kubernetes.io/ip-family": "IPv4", "ipaddress.kubernetes.io/managed-by": OURS});
    assert_eq!((meta::name(&object), &object["metadata"]["labels"]), (&*address, &labels));
    assert_eq!(object["spec"], json!({"parentRef": parent("a")}));
    assert!(!meta::uid(&object).is_empty() && object["metadata"]["creationTimestamp"].is_string(), "{object}");
    let fields = &object["metadata"]["managedFields"][0];
    assert_eq!((&fields["manager"], &fields["operation"]), (&json!("kube-apiserver"), &json!("Update")));
    let owned = json!({".": {}, "f:name": {}, "f:namespace": {}, "f:resource": {}});
    assert_eq!(fields["fieldsV1"]["f:spec"]["f:parentRef"], owned);
    // An object made by a request is no different.
    let own = ip_address("10.43.0.200", "me", parent("none"));
    let made = cluster.create(ADDRESSES, own).await;
    let keys = |object: &Value| object["metadata"].as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(keys(&made), keys(&object));
    assert_eq!(watch.told().await, "ADDED 10.43.0.200");
    cluster.refuses("10.43.0.200", TAKEN).await;

    let table = cluster.send("GET", ADDRESSES, &[("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")], "").await;
    let table = Answer::of(table).await.body;
    assert_eq!(table["rows"][0]["cells"], json!(["10.43.0.1", "services/default/kubernetes"]));

    // It goes with the Service, and with the type that has one.
    cluster.delete(&format!("{SERVICES}/a")).await;
    assert_eq!(watch.told().await, format!("DELETED {address}"));
    cluster.create(SERVICES, service("b", &address)).await;
    assert_eq!(watch.told().await, format!("ADDED {address}"));
    let away = json!({"spec": {"type": "ExternalName", "externalName": "example.org"}});
    cluster.call("PATCH", &format!("{SERVICES}/b"), &away).await.expect(200);
    assert_eq!(watch.told().await, format!("DELETED {address}"));
}

#[tokio::test]
async fn addresses_come_from_every_open_range() {
    let cluster = Cluster::with_services("10.43.0.0/30").await;
    assert_eq!(cluster.address_of("first").await, "10.43.0.2");
    let full = "Internal error occurred: failed to allocate a serviceIP: range is full";
    cluster.call("POST", SERVICES, &service("more", "")).await.fails(500, "InternalError", full);
    // A range of a family that the cluster has not is no help.
    cluster.create(RANGES, range("six", &["fd00:43::/64"])).await;
    cluster.call("POST", SERVICES, &service("more", "")).await.fails(500, "InternalError", full);
    let message = "Service \"six\" is invalid: spec.clusterIPs[0]: Invalid value: [\"fd00:43::5\"]: IPv6 is not configured on this cluster";
    cluster.call("POST", SERVICES, &service("six", "fd00:43::5")).await.fails(422, "Invalid", message);

    cluster.create(RANGES, range("more", &["10.96.100.0/29", "fd00:44::/64"])).await;
    cluster.create(SERVICES, service("asked", "10.96.100.5")).await;
    for address in ["10.96.100.0", "10.96.100.7", "10.96.100.8"] {
        cluster.refuses(address, OUTSIDE).await;
    }
    cluster.refuses("10.96.100.5", TAKEN).await;
    let drawn = cluster.address_of("drawn").await;
    assert!(drawn.starts_with("10.96.100."), "{drawn}");

    let (url, free) = (format!("{RANGES}/more"), if drawn == "10.96.100.6" { "10.96.100.4" } else { "10.96.100.6" });
    let ready = |status: &str| {
        json!({"status": {"conditions": [{"type": "Ready", "status": status, "reason": "Test",
        "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})
    };
    let unready = cluster.call("PATCH", &format!("{url}/status"), &ready("False")).await.expect(200);
    cluster.refuses(free, OUTSIDE).await;
    cluster.call("POST", SERVICES, &service("more", "")).await.fails(500, "InternalError", full);
    // What has an address keeps it.
    cluster.call("PATCH", &format!("{SERVICES}/asked"), &json!({"spec": {"ports": [{"port": 81}]}})).await.expect(200);
    cluster.call("PATCH", &format!("{url}/status"), &ready("True")).await.expect(200);
    cluster.create(SERVICES, service("again", free)).await;
    assert_eq!(unready["spec"]["cidrs"], json!(["10.96.100.0/29", "fd00:44::/64"]));

    let held = json!({"metadata": {"finalizers": ["example.com/held"]}});
    cluster.call("PATCH", &url, &held).await.expect(200);
    cluster.delete(&url).await;
    cluster.refuses("10.96.100.1", OUTSIDE).await;
}

#[tokio::test]
async fn users_that_come_in_between_are_made_good() {
    let cluster = Cluster::start().await;
    let address = cluster.address_of("a").await;
    let url = format!("{ADDRESSES}/{address}");
    let uid = |object: &Value| meta::uid(object).to_owned();
    let first = cluster.get(&url).await.expect(200);
    cluster.delete(&url).await;
    let back = cluster.until(&address, |found| found.code == 200 && uid(&found.body) != uid(&first)).await;
    assert_eq!((&back["spec"], &back["metadata"]["labels"]), (&first["spec"], &first["metadata"]["labels"]));
    let told = format!("ClusterIPNotAllocated: Cluster IP [IPv4]: {address} is not allocated; repairing");
    cluster.until_told("a", &told).await;
    cluster.refuses(&address, TAKEN).await;

    // Labels are as the allocator sets them.
    let unlabelled = json!({"metadata": {"labels": null}});
    cluster.call("PATCH", &url, &unlabelled).await.expect(200);
    cluster
        .until(&address, |found| {
            found.code == 200
                && uid(&found.body) != uid(&back)
                && found.body["metadata"]["labels"] == first["metadata"]["labels"]
        })
        .await;

    // Of ours without a Service, one goes at once; of others', none.
    let pod = json!({"group": "example.com", "resource": "pods", "namespace": "default", "name": "p"});
    for (name, manager, parent) in [
        ("10.43.9.1", OURS, pod.clone()),
        ("10.43.9.2", OURS, parent("a")),
        ("10.43.9.3", OURS, parent("gone")),
        ("10.43.9.4", "me", pod),
    ] {
        cluster.create(ADDRESSES, ip_address(name, manager, parent)).await;
    }
    for (name, told) in [
        (
            "10.43.9.1",
            "IPAddressNotAllocated: IPAddress 10.43.9.1 appears to have been modified, not referencing a Service \
             &ParentReference{Group:example.com,Resource:pods,Namespace:default,Name:p,}: cleaning up",
        ),
        (
            "10.43.9.2",
            "IPAddressWrongReference: IPAddress: 10.43.9.2 for Service default/a has a wrong reference; cleaning up",
        ),
    ] {
        cluster.until(name, |found| found.code == 404).await;
        cluster.until_told(name, told).await;
    }
    for name in ["10.43.9.3", "10.43.9.4"] {
        cluster.get(&format!("{ADDRESSES}/{name}")).await.expect(200);
    }

    // The default range comes back.
    let range = format!("{RANGES}/kubernetes");
    let first = uid(&cluster.get(&range).await.expect(200));
    cluster.delete(&range).await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let found = cluster.get(&range).await;
        if found.code == 200 && uid(&found.body) != first {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{}", found.text);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.address_of("after").await;
}

/// A finalizer of a user's holds an IPAddress whose Service goes, and another Service does not get it.
#[tokio::test]
async fn finalizers_of_addresses_count() {
    let cluster = Cluster::start().await;
    let address = cluster.address_of("a").await;
    let held = json!({"metadata": {"finalizers": ["example.com/held"]}});
    cluster.call("PATCH", &format!("{ADDRESSES}/{address}"), &held).await.expect(200);
    cluster.delete(&format!("{SERVICES}/a")).await;
    cluster.get(&format!("{ADDRESSES}/{address}")).await.expect(200);
    cluster.refuses(&address, TAKEN).await;
}

#[tokio::test]
async fn addresses_marked_by_an_older_server_become_objects() {
    let cluster = Cluster::start().await;
    let address = cluster.address_of("a").await;
    let Cluster { server, store, pki, dir, .. } = cluster;
    server.shutdown().await;
    let marks = [(address.as_str(), "default/a"), ("10.43.0.1", "default/kubernetes")];
    let mut writes = Vec::new();
    for (address, holder) in marks {
        writes.push(Write::Delete { key: format!("/registry/ipaddresses/{address}").into() });
        let key = format!("/registry/ranges/serviceips/{address}").into();
        writes.push(Write::Put { key, value: holder.into(), lease: 0 });
    }
    store.txn(Txn { compares: Vec::<Compare>::new(), writes }).await.unwrap();
    store.close().await.unwrap();
    drop((server, store, pki));

    let cluster = Cluster::on(dir, "10.43.0.0/16", LOOPBACK).await;
    for (address, service) in [(address.as_str(), "a"), ("10.43.0.1", "kubernetes")] {
        let object = cluster.get(&format!("{ADDRESSES}/{address}")).await.expect(200);
        assert_eq!(object["spec"]["parentRef"], parent(service));
        assert!(!meta::uid(&object).is_empty(), "{object}");
    }
    cluster.refuses(&address, TAKEN).await;
    let range = KeyRange::prefix("/registry/ranges/serviceips/");
    let left = cluster.store.range(Range { range, revision: None, limit: 0, count_only: true }).await.unwrap();
    assert_eq!(left.count, 0);
    cluster.delete(&format!("{SERVICES}/a")).await;
    cluster.get(&format!("{ADDRESSES}/{address}")).await.expect(404);
}

/// The object counts, not the flag, once it is there.
#[tokio::test]
async fn another_range_than_the_configured_one_is_complained_of() {
    let Cluster { server, store, pki, dir, .. } = Cluster::start().await;
    server.shutdown().await;
    store.close().await.unwrap();
    drop((server, store, pki));
    let cluster = Cluster::on(dir, "10.44.0.0/16", LOOPBACK).await;
    let told = "KubernetesDefaultServiceCIDRInconsistent: The default ServiceCIDR [10.43.0.0/16] does not match the \
                controller flag configurations [10.44.0.0/16]";
    cluster.until_told("kubernetes", told).await;
    let address = cluster.address_of("a").await;
    assert!(address.starts_with("10.43."), "{address}");
    cluster.refuses("10.44.0.5", OUTSIDE).await;
}
