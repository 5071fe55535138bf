//! Cluster IPs and node ports: allocated, kept, released, refused.

use super::*;

const SERVICES: &str = "/api/v1/namespaces/default/services";

fn service(name: &str, spec: Value) -> Value {
    let mut object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": [{"port": 80}], "selector": {"a": "b"}}});
    object["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    object
}

#[tokio::test]
async fn services_get_addresses_of_their_own() {
    let cluster = Cluster::start().await;
    let kubernetes = cluster.get(&format!("{SERVICES}/kubernetes")).await.expect(200);
    assert_eq!(kubernetes["spec"]["clusterIP"], "10.43.0.1");
    let created = cluster.create(SERVICES, service("a", json!({}))).await;
    let address = text(&created["spec"]["clusterIP"]);
    assert!(address.starts_with("10.43."), "{address}");
    assert_eq!((&created["spec"]["clusterIPs"], &created["spec"]["ipFamilies"]), (&json!([address]), &json!(["IPv4"])));

    let taken = cluster.call("POST", SERVICES, &service("b", json!({"clusterIP": address}))).await;
    let message = format!(
        "Service \"b\" is invalid: spec.clusterIPs: Invalid value: [\"{address}\"]: failed to allocate IP {address}: provided IP is already allocated"
    );
    taken.fails(422, "Invalid", &message);
    let outside = cluster.call("POST", SERVICES, &service("b", json!({"clusterIP": "10.9.9.9"}))).await;
    let message = "Service \"b\" is invalid: spec.clusterIPs: Invalid value: [\"10.9.9.9\"]: failed to allocate IP 10.9.9.9: \
        the provided network does not match the current range";
    outside.fails(422, "Invalid", message);
    // A deleted Service's address is free again, and an update keeps what it does not name.
    cluster.call("DELETE", &format!("{SERVICES}/a"), &Value::Null).await.expect(200);
    cluster.create(SERVICES, service("b", json!({"clusterIP": address}))).await;
    let updated = cluster
        .call("PUT", &format!("{SERVICES}/b"), &service("b", json!({"ports": [{"port": 81}]})))
        .await
        .expect(200);
    assert_eq!((&updated["spec"]["clusterIP"], &updated["spec"]["ports"][0]["port"]), (&json!(address), &json!(81)));
    let headless = cluster.create(SERVICES, service("h", json!({"clusterIP": "None"}))).await;
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
}

#[tokio::test]
async fn node_ports_come_and_go_with_the_type() {
    let cluster = Cluster::start().await;
    let created = cluster.create(SERVICES, service("a", json!({"type": "NodePort"}))).await;
    let port = created["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    assert!((30000..=32767).contains(&port));
    let same = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]});
    let message = format!(
        "Service \"b\" is invalid: spec.ports[0].nodePort: Invalid value: {port}: provided port is already allocated"
    );
    cluster.call("POST", SERVICES, &service("b", same.clone())).await.fails(422, "Invalid", &message);
    let low = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]});
    let message = "Service \"b\" is invalid: spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767";
    cluster.call("POST", SERVICES, &service("b", low)).await.fails(422, "Invalid", message);
    let plain =
        cluster.call("PATCH", &format!("{SERVICES}/a"), &json!({"spec": {"type": "ClusterIP"}})).await.expect(200);
    assert!(plain["spec"]["ports"][0]["nodePort"].is_null(), "{plain}");
    cluster.create(SERVICES, service("b", same)).await;
}

#[tokio::test]
async fn a_full_range_says_so() {
    // Of eight addresses the first is the network, the second the kubernetes Service's, the last no host's.
    let cluster = Arc::new(Cluster::with_services("10.43.0.0/29").await);
    let creators: Vec<_> = (0..5)
        .map(|n| {
            let cluster = cluster.clone();
            tokio::spawn(async move {
                text(&cluster.create(SERVICES, service(&format!("s{n}"), json!({}))).await["spec"]["clusterIP"])
            })
        })
        .collect();
    let mut addresses = Vec::new();
    for creator in creators {
        addresses.push(creator.await.unwrap());
    }
    addresses.sort();
    assert_eq!(addresses, ["10.43.0.2", "10.43.0.3", "10.43.0.4", "10.43.0.5", "10.43.0.6"]);
    let full = cluster.call("POST", SERVICES, &service("more", json!({}))).await;
    full.fails(500, "InternalError", "Internal error occurred: failed to allocate a serviceIP: range is full");
}
