//! Pods that use more of the disk than they may are evicted, and tell why.

mod common;

use common::{BUSYBOX, cluster};
use serde_json::Value;

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: volume}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - name: writer
    image: BUSYBOX
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "dd if=/dev/zero of=/data/file bs=1M count=3; sleep 100000"]
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, emptyDir: {sizeLimit: 1Mi}}]
---
apiVersion: v1
kind: Pod
metadata: {name: layer}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - name: writer
    image: BUSYBOX
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "dd if=/dev/zero of=/file bs=1M count=3; sleep 100000"]
    resources: {limits: {ephemeral-storage: 2Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: within}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: writer
    image: BUSYBOX
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "dd if=/dev/zero of=/data/file bs=1M count=3; sleep 100000"]
    resources: {limits: {ephemeral-storage: 50Mi}}
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, emptyDir: {sizeLimit: 50Mi}}]
"#;

#[test]
fn limits_on_disk_are_enforced() {
    let (cluster, _archive) = cluster();
    cluster.apply(&PODS.replace("BUSYBOX", BUSYBOX));
    for (name, message) in [
        ("volume", "Usage of EmptyDir volume \"data\" exceeds the limit \"1Mi\". "),
        ("layer", "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. "),
    ] {
        let pod = cluster.wait(&["pod", name], |pod| pod["status"]["phase"] == "Failed");
        let status = &pod["status"];
        assert_eq!((&status["reason"], &status["message"]), (&Value::from("Evicted"), &Value::from(message)));
        let ended = &status["containerStatuses"][0]["state"]["terminated"];
        assert_eq!(ended["exitCode"], 137, "{status:#}");
        let events = cluster.run(&[
            "get",
            "events",
            "--field-selector",
            &format!("involvedObject.name={name},reason=Evicted"),
            "-o",
            "jsonpath={.items[*].type} {.items[*].message}",
        ]);
        assert_eq!(events, format!("Warning {message}"));
    }
    let within = cluster.get(&["pod", "within"]);
    assert_eq!(within["status"]["phase"], "Running", "within its limits: {:#}", within["status"]);
    assert_eq!(within["status"]["containerStatuses"][0]["restartCount"], 0);
}
