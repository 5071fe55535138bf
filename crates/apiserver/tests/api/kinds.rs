//! What is special about single kinds and needs the whole server: generated selectors, versions with
//! one storage, parts of a status with different writers, what is there from the start.

use super::*;

const AUTOSCALERS: &str = "namespaces/default/horizontalpodautoscalers";

#[tokio::test]
async fn a_job_gets_a_selector_from_its_uid() {
    let cluster = Cluster::start().await;
    let jobs = "/apis/batch/v1/namespaces/default/jobs";
    let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"generateName": "a-"}, "spec": {"template": {
        "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
    let made = cluster.create(jobs, job).await;
    let uid = &made["metadata"]["uid"];
    assert_eq!(&made["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"], uid);
    let labels = &made["spec"]["template"]["metadata"]["labels"];
    assert_eq!((&labels["controller-uid"], &labels["job-name"]), (uid, &made["metadata"]["name"]));
    assert_eq!((&made["metadata"]["generation"], &made["spec"]["backoffLimit"]), (&json!(1), &json!(6)));
    let url = format!("{jobs}/{}", text(&made["metadata"]["name"]));
    let same = cluster.call("PATCH", &url, &json!({"spec": {"backoffLimit": 6}})).await.expect(200);
    assert_eq!(same["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"], "nothing changed");
    cluster.call("PATCH", &url, &json!({"spec": {"completions": 2}})).await.expect(422);
    cluster.call("PATCH", &format!("{url}/status"), &json!({"status": {"succeeded": 1}})).await.expect(200);
    let found = cluster.get(&format!("{jobs}?fieldSelector=status.successful%3D1")).await.expect(200);
    assert_eq!(found["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn autoscalers_are_one_in_two_versions() {
    let cluster = Cluster::start().await;
    let (v1, v2) = (format!("/apis/autoscaling/v1/{AUTOSCALERS}"), format!("/apis/autoscaling/v2/{AUTOSCALERS}"));
    let memory = json!({"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}});
    let scaler = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "a"},
        "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "d"}, "maxReplicas": 3, "metrics": [memory]}});
    let mut watch = cluster.watch(&format!("{v1}?watch=1")).await;
    cluster.create(&v2, scaler).await;
    let event = watch.next().await.expect("an event");
    assert_eq!((&event["type"], &event["object"]["apiVersion"]), (&json!("ADDED"), &json!("autoscaling/v1")));
    let patch = json!({"spec": {"targetCPUUtilizationPercentage": 60}});
    cluster.call("PATCH", &format!("{v1}/a"), &patch).await.expect(200);
    let found = cluster.get(&format!("{v2}/a")).await.expect(200);
    let metrics = found["spec"]["metrics"].as_array().unwrap();
    assert_eq!((&metrics[0]["resource"]["target"]["averageUtilization"], &metrics[1]), (&json!(60), &memory));
    assert_eq!(found["metadata"]["annotations"], Value::Null, "what v1 cannot show is hidden in v1 only");
}

#[tokio::test]
async fn a_signing_request_is_approved_apart_from_being_signed() {
    let cluster = Cluster::start().await;
    let url = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    // base64 of a PEM block around an empty DER sequence.
    let pem = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUFBPQotLS0tLUVORCBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0K";
    let request = json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": "r"},
        "spec": {"signerName": "example.com/s", "usages": ["client auth"], "request": pem, "username": "eve"}});
    let mut made = cluster.create(url, request).await;
    assert_eq!(made["spec"]["username"], "test", "the server knows who asked");
    made["status"] = json!({"conditions": [{"type": "Approved", "status": "True"}]});
    let message = |what: &str| {
        let why = format!(r#"updates may not {what} a condition of type "Approved""#);
        format!(r#"CertificateSigningRequest.certificates.k8s.io "r" is invalid: status.conditions: Forbidden: {why}"#)
    };
    let (status, approval) = (format!("{url}/r/status"), format!("{url}/r/approval"));
    cluster.call("PUT", &status, &made).await.fails(422, "Invalid", &message("add"));
    let note = json!({"metadata": {"annotations": {"a": "b"}}, "status": {"conditions": [{"type": "Note", "status": "True"}]}});
    let mut noted = cluster.call("PATCH", &approval, &note).await.expect(200);
    assert_eq!(
        (&noted["status"]["conditions"][0]["type"], &noted["metadata"]["annotations"]["a"]),
        (&json!("Note"), &json!("b"))
    );
    let verdict = json!({"type": "Approved", "status": "True", "message": "yes"});
    noted["status"]["conditions"].as_array_mut().unwrap().push(verdict);
    let mut approved = cluster.call("PUT", &approval, &noted).await.expect(200);
    assert_eq!(approved["status"]["conditions"][1]["message"], "yes");
    approved["status"]["conditions"][1]["message"] = "no".into();
    let kept = cluster.call("PUT", &status, &approved).await.expect(200);
    assert_eq!(kept["status"]["conditions"][1]["message"], "yes", "who signs does not approve");
    cluster.call("PATCH", &approval, &json!({"status": {"conditions": []}})).await.fails(
        422,
        "Invalid",
        &message("remove"),
    );
}

#[tokio::test]
async fn system_priority_classes_are_there() {
    let cluster = Cluster::start().await;
    let url = "/apis/scheduling.k8s.io/v1/priorityclasses";
    let class = cluster.get(&format!("{url}/system-node-critical")).await.expect(200);
    assert_eq!((&class["value"], &class["preemptionPolicy"]), (&json!(2_000_001_000), &json!("PreemptLowerPriority")));
}

#[tokio::test]
async fn components_are_as_well_as_their_tasks_or_leases() {
    let cluster = Cluster::start().await;
    let url = "/api/v1/componentstatuses";
    let told = async || {
        let list = cluster.get(url).await.expect(200);
        let status =
            |item: &Value| format!("{} {}", text(&item["metadata"]["name"]), text(&item["conditions"][0]["status"]));
        list["items"].as_array().unwrap().iter().map(status).collect::<Vec<_>>().join(", ")
    };
    assert_eq!(told().await, "controller-manager False, scheduler False, etcd-0 True");
    cluster.server.beside("scheduler", || true);
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "kube-controller-manager"},
        "spec": {"holderIdentity": "a", "leaseDurationSeconds": 3600, "renewTime": format!("{:.6}", jiff::Timestamp::now())}});
    cluster.create("/apis/coordination.k8s.io/v1/namespaces/kube-system/leases", lease).await;
    assert_eq!(told().await, "controller-manager True, scheduler True, etcd-0 True");
    let one = cluster.get(&format!("{url}/etcd-0")).await.expect(200);
    assert_eq!(
        one,
        json!({"kind": "ComponentStatus", "apiVersion": "v1", "metadata": {"name": "etcd-0"},
        "conditions": [{"type": "Healthy", "status": "True", "message": "ok"}]})
    );
    cluster.get(&format!("{url}/none")).await.fails(
        500,
        "InternalError",
        "Internal error occurred: Component not found: none",
    );
}

#[tokio::test]
async fn the_range_of_service_addresses_is_told() {
    let cluster = Cluster::start().await;
    let range = cluster.get("/apis/networking.k8s.io/v1/servicecidrs/kubernetes/status").await.expect(200);
    assert_eq!((&range["kind"], &range["spec"]["cidrs"]), (&json!("ServiceCIDR"), &json!(["10.43.0.0/16"])));
    assert_eq!(
        (&range["status"]["conditions"][0]["type"], &range["status"]["conditions"][0]["status"]),
        (&json!("Ready"), &json!("True"))
    );
    let again = cluster.restart().await.get("/apis/networking.k8s.io/v1/servicecidrs/kubernetes").await.expect(200);
    assert_eq!(again["metadata"]["resourceVersion"], range["metadata"]["resourceVersion"]);
}

#[tokio::test]
async fn objects_lie_where_upstream_puts_them() {
    let cluster = Cluster::start().await;
    let ingress = json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "a"},
        "spec": {"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}}});
    cluster.create("/apis/networking.k8s.io/v1/namespaces/default/ingresses", ingress).await;
    let range = store::KeyRange::prefix("/registry/ingress/default/");
    let found = cluster.store.range(store::Range { range, revision: None, limit: 0, count_only: true }).await.unwrap();
    assert_eq!(found.count, 1, "the layout of an etcd that others read");
}
