//! The main job: a Deployment becomes running pods behind a Service, and a client pod gets a page
//! from each of them by name.

mod common;

use std::collections::BTreeSet;

use common::{BUSYBOX, cluster};
use testkit::{Cluster, eventually};

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: BUSYBOX
        imagePullPolicy: IfNotPresent
        command: [sh, -c, 'hostname > /www/index.html; trap "exit 0" TERM; httpd -p 8080 -h /www; while true; do sleep 0.2; done']
        ports: [{containerPort: 8080}]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: client, image: isopod.local/hello, imagePullPolicy: IfNotPresent}]
"#;

/// Names of the pods that answered `requests` requests, from inside the client pod. (Debian's static
/// busybox crashes when it resolves names, so the client is our own.)
fn answers(cluster: &Cluster, url: &str, requests: usize) -> BTreeSet<String> {
    let told = cluster.run(&["exec", "client", "--", "/isopod", "fetch", "--repeat", &requests.to_string(), url]);
    told.lines().filter(|line| !line.ends_with("answers:") && !line.is_empty()).map(str::to_owned).collect()
}

fn pods(cluster: &Cluster) -> BTreeSet<String> {
    let list = cluster.get(&["pods", "-l", "app=web"]);
    let items = list["items"].as_array().unwrap();
    let live = items.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    live.map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_service_balances_over_a_deployments_pods() {
    let (cluster, _) = cluster();
    cluster.apply(&WEB.replace("BUSYBOX", BUSYBOX));
    cluster.run(&["rollout", "status", "deployment/web", "--timeout=120s"]);
    cluster.run(&["wait", "--for=condition=Ready", "pod/client", "--timeout=120s"]);

    for url in ["http://web", "http://web.default.svc.cluster.local"] {
        eventually(&format!("{url} is answered by every replica"), || {
            let (answered, running) = (answers(&cluster, url, 40), pods(&cluster));
            (answered == running).then_some(()).ok_or(format!("{answered:?} answered of {running:?}"))
        });
    }

    // Scaled down, the Service loses no request once the endpoints are updated.
    cluster.run(&["scale", "deployment/web", "--replicas=2"]);
    eventually("the endpoints follow", || {
        let slices = cluster.get(&["endpointslices", "-l", "kubernetes.io/service-name=web"]);
        let count = slices["items"][0]["endpoints"]
            .as_array()
            .map_or(0, |endpoints| endpoints.iter().filter(|e| e["conditions"]["ready"] == true).count());
        (count == 2).then_some(()).ok_or(format!("{count} endpoints"))
    });
    eventually("only live pods answer", || {
        let (answered, running) = (answers(&cluster, "http://web", 40), pods(&cluster));
        (answered == running).then_some(()).ok_or(format!("{answered:?} answered of {running:?}"))
    });

    // A killed pod is replaced, and its replacement answers.
    let victim = pods(&cluster).pop_first().unwrap();
    cluster.run(&["delete", "pod", &victim]);
    cluster.run(&["rollout", "status", "deployment/web", "--timeout=120s"]);
    eventually("the replacement answers", || {
        let (answered, running) = (answers(&cluster, "http://web", 40), pods(&cluster));
        let well = answered == running && running.len() == 2 && !running.contains(&victim);
        well.then_some(()).ok_or(format!("{answered:?} answered of {running:?}"))
    });

    cluster.run(&["delete", "deployment/web", "service/web"]);
    eventually("the pods are collected", || {
        let left = pods(&cluster);
        left.is_empty().then_some(()).ok_or(format!("{left:?} are left"))
    });
}

#[test]
fn containers_of_a_pod_share_network_and_volumes() {
    let (cluster, _) = cluster();
    cluster.apply(
        &r#"
apiVersion: v1
kind: Pod
metadata: {name: pair}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{name: shared, emptyDir: {}}]
  initContainers:
  - {name: first, image: BUSYBOX, imagePullPolicy: IfNotPresent, command: [sh, -c, 'echo initialised > /shared/index.html'], volumeMounts: [{name: shared, mountPath: /shared}]}
  containers:
  - {name: server, image: BUSYBOX, imagePullPolicy: IfNotPresent, command: [httpd, -f, -p, "127.0.0.1:8080", -h, /data], volumeMounts: [{name: shared, mountPath: /data}]}
  - {name: reader, image: BUSYBOX, imagePullPolicy: IfNotPresent, command: [sleep, "100000"], volumeMounts: [{name: shared, mountPath: /shared}]}
"#
        .replace("BUSYBOX", BUSYBOX),
    );
    cluster.run(&["wait", "--for=condition=Ready", "pod/pair", "--timeout=120s"]);
    let fetch =
        || cluster.run(&["exec", "pair", "-c", "reader", "--", "wget", "-q", "-O", "-", "http://localhost:8080/"]);
    assert_eq!(fetch(), "initialised\n");
    cluster.run(&["exec", "pair", "-c", "reader", "--", "sh", "-c", "echo shared > /shared/index.html"]);
    assert_eq!(fetch(), "shared\n");

    // The infra container is a real process of the host.
    let traces = testkit::Traces::of(&cluster.name);
    assert!(traces.processes.iter().any(|p| p.contains("pause")), "no pause process in {:#?}", traces.processes);
}
