//! What the server sets, keeps and drops on its own.

use serde_json::{Value, json};

use crate::{create, deployment, kind, pod, service, update};

#[test]
fn status_is_the_servers() {
    let mut deployment = deployment(json!({"status": {"replicas": 7}}));
    create("apps/v1/Deployment", &mut deployment);
    assert_eq!(deployment["status"], json!({}));
    let mut node = json!({"metadata": {"name": "a"}, "status": {"capacity": {"cpu": "1"}}});
    create("v1/Node", &mut node);
    assert_eq!(node["status"]["capacity"]["cpu"], "1", "nodes register with their status");
    let mut old = deployment.clone();
    old["status"] = json!({"replicas": 3});
    update("apps/v1/Deployment", &mut deployment, &old);
    assert_eq!(deployment["status"], json!({"replicas": 3}));
}

#[test]
fn new_pods_are_pending_with_a_class() {
    let resources =
        |value: Value| json!({"spec": {"containers": [{"name": "main", "image": "a", "resources": value}]}});
    for (patch, class) in [
        (json!({}), "BestEffort"),
        (resources(json!({"requests": {"cpu": "1"}})), "Burstable"),
        (resources(json!({"limits": {"cpu": "1"}})), "Burstable"),
        (resources(json!({"limits": {"cpu": "1", "memory": "1Gi"}})), "Guaranteed"),
        (resources(json!({"limits": {"cpu": "1000m", "memory": "1Gi"}, "requests": {"cpu": "1"}})), "Guaranteed"),
        (resources(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "0.5"}})), "Burstable"),
        (resources(json!({"limits": {"example.com/gpu": "1"}})), "BestEffort"),
    ] {
        let mut pod = pod(patch);
        assert_eq!(create("v1/Pod", &mut pod), Vec::<String>::new());
        assert_eq!(pod["status"], json!({"phase": "Pending", "qosClass": class}));
    }
    let mut gated = pod(json!({"spec": {"schedulingGates": [{"name": "a"}]}}));
    create("v1/Pod", &mut gated);
    assert_eq!(gated["status"]["conditions"][0]["reason"], "SchedulingGated");
}

#[test]
fn generation_counts_the_desired_state() {
    for (path, key, moves) in [
        ("v1/Pod", "nodeName", false),
        ("v1/Pod", "activeDeadlineSeconds", true),
        ("apps/v1/Deployment", "replicas", true),
        ("v1/Service", "type", false),
    ] {
        let old = json!({"spec": {}});
        let new = json!({"spec": {key: 1}});
        assert_eq!(kind(path).generation_changes(&new, &old), moves, "{path} {key}");
    }
}

#[test]
fn a_namespace_starts_active_with_its_finalizer() {
    let mut namespace = json!({"metadata": {"name": "n"}});
    create("v1/Namespace", &mut namespace);
    assert_eq!(namespace["spec"]["finalizers"], json!(["kubernetes"]));
    assert_eq!(namespace["status"], json!({"phase": "Active"}));
    let mut new = namespace.clone();
    new["spec"] = json!({"finalizers": []});
    update("v1/Namespace", &mut new, &namespace);
    assert_eq!(new["spec"], namespace["spec"], "only finalize takes finalizers off");
}

#[test]
fn a_service_keeps_what_was_allocated_and_loses_what_its_type_has_no_use_for() {
    let mut old = service(json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}}));
    assert_eq!(create("v1/Service", &mut old), Vec::<String>::new());
    assert_eq!(old["spec"]["clusterIPs"], json!(["10.43.0.7"]));
    let mut sparse = service(json!({"spec": {"type": "NodePort", "clusterIP": null}}));
    assert_eq!(update("v1/Service", &mut sparse, &old), Vec::<String>::new());
    assert_eq!(sparse["spec"]["clusterIP"], "10.43.0.7");
    assert_eq!(sparse["spec"]["ports"][0]["nodePort"], 30080);
    let mut moved = service(json!({"spec": {"type": "NodePort", "ports": [{"port": 81, "protocol": "UDP"}]}}));
    assert_eq!(update("v1/Service", &mut moved, &old), Vec::<String>::new());
    assert_eq!(moved["spec"]["ports"][0]["nodePort"], 30080, "a port is known by its name");
    let mut narrowed = old.clone();
    narrowed["spec"]["type"] = json!("ClusterIP");
    assert_eq!(update("v1/Service", &mut narrowed, &old), Vec::<String>::new());
    assert_eq!(narrowed["spec"]["ports"][0]["nodePort"], Value::Null);
    assert_eq!(narrowed["spec"]["externalTrafficPolicy"], Value::Null);
    let mut named = old.clone();
    named["spec"]["type"] = json!("ExternalName");
    named["spec"]["externalName"] = json!("example.com");
    assert_eq!(update("v1/Service", &mut named, &old), Vec::<String>::new());
    assert_eq!(named["spec"]["clusterIP"], Value::Null);
}

#[test]
fn subresources_change_only_their_part() {
    let mut old = pod(json!({}));
    create("v1/Pod", &mut old);
    let kind = kind("v1/Pod");
    let mut new = old.clone();
    new["spec"]["ephemeralContainers"] = json!([{"name": "debug", "image": "b"}]);
    new["spec"]["restartPolicy"] = json!("Never");
    kind.default(&mut new);
    kind.prepare_subresource_update("ephemeralcontainers", &mut new, &old);
    assert_eq!(new["spec"]["restartPolicy"], "Always");
    assert_eq!(kind.validate_subresource_update("ephemeralcontainers", &new, &old), []);
    let mut removed = new.clone();
    removed["spec"]["ephemeralContainers"] = json!([]);
    let errors = kind.validate_subresource_update("ephemeralcontainers", &removed, &new);
    assert!(errors[0].to_string().contains("may not be removed"), "{errors:?}");

    let mut bigger = pod(json!({"spec": {"containers": [
        {"name": "main", "image": "nginx:1", "resources": {"requests": {"cpu": "1"}}}]}}));
    create("v1/Pod", &mut bigger);
    let mut resized = bigger.clone();
    resized["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!("2");
    assert_eq!(kind.validate_subresource_update("resize", &resized, &bigger), []);
    resized["spec"]["containers"][0]["image"] = json!("other");
    kind.prepare_subresource_update("resize", &mut resized, &bigger);
    assert_eq!(resized["spec"]["containers"][0]["image"], "nginx:1");
    assert_eq!(resized["spec"]["containers"][0]["resources"]["requests"]["cpu"], "2");
    resized["spec"]["containers"][0]["resources"]["requests"]["example.com/gpu"] = json!("1");
    resized["spec"]["containers"][0]["resources"]["limits"] = json!({"example.com/gpu": "1"});
    let errors = kind.validate_subresource_update("resize", &resized, &bigger);
    assert!(errors[0].to_string().starts_with("spec: Forbidden: only cpu and memory resources are mutable"));
}

#[test]
fn addresses_of_a_pod_agree() {
    let mut old = pod(json!({}));
    create("v1/Pod", &mut old);
    let mut new = old.clone();
    new["status"] = json!({"phase": "Running", "podIP": "10.42.0.5", "qosClass": "Guaranteed"});
    kind("v1/Pod").prepare_status_update(&mut new, &old);
    assert_eq!(new["status"]["podIPs"], json!([{"ip": "10.42.0.5"}]));
    assert_eq!(new["status"]["qosClass"], "BestEffort");
}

#[test]
fn ended_containers_stay_ended() {
    let mut old = pod(json!({"spec": {"restartPolicy": "Never"}}));
    create("v1/Pod", &mut old);
    old["status"]["containerStatuses"] = json!([{"name": "main", "ready": false, "restartCount": 0, "image": "a",
        "imageID": "", "state": {"terminated": {"exitCode": 1}}}]);
    let mut new = old.clone();
    new["status"]["containerStatuses"][0]["state"] = json!({"running": {}});
    let errors = kind("v1/Pod").validate_status_update(&new, &old);
    assert_eq!(
        errors[0].to_string(),
        "status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state"
    );
}
