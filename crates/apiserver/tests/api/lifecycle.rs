//! Every operation on kinds that nothing here acts upon, in the order in which upstream's conformance tests do them.

use super::*;

/// Group and version, plural, kind, namespaced, the rest of an object, and what a status may be patched and set to.
type Case = (&'static str, &'static str, &'static str, bool, Value, Option<(Value, Value)>);

fn cases() -> Vec<Case> {
    let condition = |kind: &str| json!({"type": kind, "status": "True", "reason": "E2E", "message": "m"});
    let conditions =
        |kinds: &[&str]| json!({"conditions": kinds.iter().map(|kind| condition(kind)).collect::<Vec<_>>()});
    let balanced = |ip: &str| json!({"loadBalancer": {"ingress": [{"ip": ip}]}});
    let rule = json!({"subjects": [{"kind": "User", "user": {"name": "nobody"}}],
        "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]});
    // base64 of a PEM block around an empty DER sequence.
    let pem = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUFBPQotLS0tLUVORCBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0K";
    let ready = Some((conditions(&["Patched"]), conditions(&["Patched", "Updated"])));
    vec![
        (
            "certificates.k8s.io/v1",
            "certificatesigningrequests",
            "CertificateSigningRequest",
            false,
            json!({"spec": {"signerName": "e2e.example.com/s", "request": pem, "usages": ["server auth"]}}),
            ready.clone(),
        ),
        (
            "networking.k8s.io/v1",
            "ingresses",
            "Ingress",
            true,
            json!({"spec": {"defaultBackend": {"service": {"name": "s", "port": {"number": 8080}}}}}),
            Some((balanced("169.1.1.1"), balanced("169.1.1.2"))),
        ),
        (
            "networking.k8s.io/v1",
            "ingressclasses",
            "IngressClass",
            false,
            json!({"spec": {"controller": "e.com/c"}}),
            None,
        ),
        (
            "v1",
            "services",
            "Service",
            true,
            json!({"spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}}),
            // Clients in Go send conditions without a time.
            Some((balanced("203.0.113.1"), with(balanced("203.0.113.2"), conditions(&["Updated"])))),
        ),
        ("v1", "endpoints", "Endpoints", true, json!({"subsets": [{"addresses": [{"ip": "10.0.0.24"}]}]}), None),
        ("v1", "serviceaccounts", "ServiceAccount", true, json!({}), None),
        (
            "v1",
            "limitranges",
            "LimitRange",
            true,
            json!({"spec": {"limits": [{"type": "Pod", "max": {"cpu": "1"}}]}}),
            None,
        ),
        (
            "v1",
            "resourcequotas",
            "ResourceQuota",
            true,
            json!({"spec": {"hard": {"cpu": "500m"}}}),
            Some((json!({"hard": {"cpu": "1"}}), json!({"hard": {"memory": "1Gi"}}))),
        ),
        ("v1", "events", "Event", true, json!({"involvedObject": {"namespace": "default"}, "reason": "r"}), None),
        (
            "discovery.k8s.io/v1",
            "endpointslices",
            "EndpointSlice",
            true,
            json!({"addressType": "IPv4", "endpoints": []}),
            None,
        ),
        ("scheduling.k8s.io/v1", "priorityclasses", "PriorityClass", false, json!({"value": 7}), None),
        ("storage.k8s.io/v1", "csidrivers", "CSIDriver", false, json!({"spec": {"attachRequired": false}}), None),
        ("storage.k8s.io/v1", "csinodes", "CSINode", false, json!({"spec": {"drivers": []}}), None),
        (
            "storage.k8s.io/v1",
            "csistoragecapacities",
            "CSIStorageCapacity",
            true,
            json!({"storageClassName": "c"}),
            None,
        ),
        (
            "flowcontrol.apiserver.k8s.io/v1",
            "flowschemas",
            "FlowSchema",
            false,
            json!({"spec": {"priorityLevelConfiguration": {"name": "global-default"}, "rules": [rule]}}),
            ready,
        ),
    ]
}

fn with(mut object: Value, more: Value) -> Value {
    object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    object
}

/// Whether all that is said in `part` is in `whole`.
fn holds(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            part.iter().all(|(key, part)| whole.get(key).is_some_and(|whole| holds(whole, part)))
        }
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len() && whole.iter().zip(part).all(|(whole, part)| holds(whole, part))
        }
        _ => whole == part,
    }
}

#[tokio::test]
async fn every_operation_on_every_kind() {
    let cluster = Cluster::start().await;
    for case in cases() {
        live(&cluster, case).await;
    }
}

async fn live(cluster: &Cluster, (version, plural, kind, namespaced, object, status): Case) {
    let root = if version == "v1" { "/api/v1".to_owned() } else { format!("/apis/{version}") };
    let served = cluster.get(&root).await.expect(200);
    assert!(served["resources"].as_array().unwrap().iter().any(|resource| resource["name"] == plural), "{plural}");
    let url = if namespaced { format!("{root}/namespaces/default/{plural}") } else { format!("{root}/{plural}") };
    let chosen = "labelSelector=life%3Dshort";
    let mut names = Vec::new();
    for _ in 0..3 {
        let metadata = json!({"generateName": "e2e-", "labels": {"life": "short"}});
        let made = with(json!({"apiVersion": version, "kind": kind, "metadata": metadata}), object.clone());
        names.push(text(&cluster.create(&url, made).await["metadata"]["name"]));
    }
    let one = format!("{url}/{}", names[0]);
    let everywhere = cluster.get(&format!("{root}/{plural}?{chosen}")).await.expect(200);
    assert_eq!(everywhere["items"].as_array().unwrap().len(), 3, "{plural}");
    let since = text(&everywhere["metadata"]["resourceVersion"]);
    let mut watch = cluster.watch(&format!("{root}/{plural}?watch=1&{chosen}&resourceVersion={since}")).await;

    let note = json!({"metadata": {"annotations": {"patched": "true"}}});
    let mut changed = cluster.call("PATCH", &one, &note).await.expect(200);
    assert!(holds(&changed, &note), "{changed}");
    assert_eq!(watch.told().await, format!("MODIFIED {}", names[0]));
    changed["metadata"]["annotations"]["updated"] = "true".into();
    let changed = cluster.call("PUT", &one, &changed).await.expect(200);
    assert_eq!(changed["metadata"]["annotations"]["updated"], "true");
    assert_eq!(watch.told().await, format!("MODIFIED {}", names[0]));
    if let Some((patch, update)) = status {
        let status = format!("{one}/status");
        let patch = json!({"metadata": {"annotations": {"patchedstatus": "true"}}, "status": patch});
        let mut changed = cluster.call("PATCH", &status, &patch).await.expect(200);
        assert!(holds(&changed, &patch), "{plural}: {changed}");
        changed["status"] = update.clone();
        let changed = cluster.call("PUT", &status, &changed).await.expect(200);
        assert!(holds(&changed["status"], &update), "{plural}: {changed}");
        let found = cluster.get(&status).await.expect(200);
        assert_eq!((&found["kind"], &found["status"]), (&json!(kind), &changed["status"]));
        for _ in 0..2 {
            assert_eq!(watch.told().await, format!("MODIFIED {}", names[0]));
        }
    }
    cluster.call("DELETE", &one, &Value::Null).await.expect(200);
    cluster.get(&one).await.expect(404);
    assert_eq!(watch.told().await, format!("DELETED {}", names[0]));
    cluster.call("DELETE", &format!("{url}?{chosen}"), &Value::Null).await.expect(200);
    assert_eq!(super::names(&cluster.get(&format!("{url}?{chosen}")).await.expect(200)), Vec::<String>::new());
}
