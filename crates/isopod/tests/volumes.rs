//! Persistent volumes with real data: written by pods, found again by their successors, gone with their claims.

mod common;

use std::path::{Path, PathBuf};

use common::{BUSYBOX, cluster};
use serde_json::Value;
use testkit::{Cluster, eventually};

const CLAIM: &str = r#"
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 1Gi}}
"#;

/// A pod that sleeps with a claim at /data.
fn user(name: &str, claim: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {{runAsUser: 1000, runAsGroup: 1000, fsGroup: 2000}}
  containers:
  - name: c
    image: {BUSYBOX}
    imagePullPolicy: IfNotPresent
    command: [sleep, "100000"]
    volumeMounts: [{{name: data, mountPath: /data}}, {{name: data, mountPath: /sub, subPath: deep/er}}]
  volumes: [{{name: data, persistentVolumeClaim: {{claimName: {claim}}}}}]
"#
    )
}

fn run_user(cluster: &Cluster, name: &str, claim: &str) {
    cluster.apply(&user(name, claim));
    cluster.run(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=120s"]);
}

fn read(cluster: &Cluster, pod: &str, file: &str) -> String {
    cluster.run(&["exec", pod, "--", "cat", file])
}

fn write(cluster: &Cluster, pod: &str, text: &str, file: &str) {
    cluster.run(&["exec", pod, "--", "sh", "-c", &format!("echo {text} > {file}")]);
}

fn delete_pod(cluster: &Cluster, name: &str) {
    cluster.run(&["delete", "pod", name, "--wait", "--timeout=120s"]);
}

/// Where a claim's data is on this machine.
fn directory(cluster: &Cluster, claim: &str) -> PathBuf {
    let name = cluster.get(&["pvc", claim])["spec"]["volumeName"].as_str().unwrap().to_owned();
    cluster.get(&["pv", &name])["spec"]["local"]["path"].as_str().unwrap().into()
}

fn gone(path: &Path) {
    eventually("the directory is removed", || (!path.exists()).then_some(()).ok_or(path.display().to_string()));
}

fn events(cluster: &Cluster, object: &str) -> Vec<String> {
    let about = format!("involvedObject.name={object}");
    let list = cluster.get(&["events", "--field-selector", &about]);
    let text = |event: &Value| format!("{}: {}", event["reason"].as_str().unwrap(), event["message"].as_str().unwrap());
    list["items"].as_array().unwrap().iter().map(text).collect()
}

fn told(cluster: &Cluster, object: &str, expected: &str) {
    eventually(expected, || {
        let events = events(cluster, object);
        events.iter().any(|event| event == expected).then_some(()).ok_or(format!("{events:#?}"))
    });
}

#[test]
fn a_claims_data_outlives_pods_and_goes_with_the_claim() {
    let (cluster, archive) = cluster();
    let classes = cluster.run(&["get", "storageclass"]);
    let row: Vec<_> = classes.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[..6], ["local-path", "(default)", "isopod.io/local-path", "Delete", "WaitForFirstConsumer", "true"]);

    cluster.apply(CLAIM);
    told(&cluster, "data", "WaitForFirstConsumer: waiting for first consumer to be created before binding");
    let pending = cluster.get(&["pvc", "data"]);
    assert_eq!(
        (&pending["status"]["phase"], &pending["spec"]["storageClassName"]),
        (&"Pending".into(), &"local-path".into())
    );
    assert!(cluster.run(&["describe", "pvc", "data"]).contains("waiting for first consumer"));

    run_user(&cluster, "first", "data");
    write(&cluster, "first", "kept", "/data/file");
    write(&cluster, "first", "below", "/sub/file");
    let path = directory(&cluster, "data");
    assert_eq!(std::fs::read_to_string(path.join("file")).unwrap(), "kept\n");
    assert_eq!(std::fs::read_to_string(path.join("deep/er/file")).unwrap(), "below\n");
    let claim = cluster.get(&["pvc", "data"]);
    let volume = claim["spec"]["volumeName"].as_str().unwrap().to_owned();
    assert_eq!((&claim["status"]["phase"], &claim["status"]["capacity"]["storage"]), (&"Bound".into(), &"1Gi".into()));
    told(&cluster, "data", &format!("ProvisioningSucceeded: Successfully provisioned volume {volume}"));
    let row = cluster.run(&["get", "pv", &volume, "--no-headers"]);
    let row: Vec<_> = row.split_whitespace().collect();
    assert_eq!(row[1..7], ["1Gi", "RWO", "Delete", "Bound", "default/data", "local-path"]);
    assert!(cluster.run(&["describe", "pv", &volume]).contains("LocalVolume"));
    let class = cluster.run(&["describe", "sc", "local-path"]);
    assert!(class.split_whitespace().collect::<Vec<_>>().join(" ").contains("IsDefaultClass: Yes"), "{class}");

    delete_pod(&cluster, "first");
    run_user(&cluster, "second", "data");
    assert_eq!(
        (read(&cluster, "second", "/data/file"), read(&cluster, "second", "/sub/file")),
        ("kept\n".into(), "below\n".into())
    );

    // The main process dies; the mount does not, and neither does what is known of it.
    cluster.crash();
    cluster.up(&[&archive]);
    cluster.run(&["wait", "--for=condition=Ready", "pod/second", "--timeout=120s"]);
    assert_eq!(read(&cluster, "second", "/data/file"), "kept\n");
    write(&cluster, "second", "after", "/data/file");
    assert_eq!(std::fs::read_to_string(path.join("file")).unwrap(), "after\n");

    // Growing is a matter of saying so.
    cluster.run(&["patch", "pvc", "data", "-p", r#"{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}"#]);
    cluster.wait(&["pvc", "data"], |claim| claim["status"]["capacity"]["storage"] == "2Gi");

    // In use, the claim waits; then all of it goes.
    cluster.run(&["delete", "pvc", "data", "--wait=false"]);
    assert!(cluster.run(&["get", "pvc", "data"]).contains("Terminating"));
    cluster.apply(&user("late", "data"));
    cluster.wait(&["pod", "late"], |pod| {
        let message = pod["status"]["conditions"][0]["message"].as_str().unwrap_or_default();
        message.starts_with("0/1 nodes are available: persistentvolumeclaim \"data\" is being deleted.")
    });
    assert_eq!(read(&cluster, "second", "/data/file"), "after\n");
    delete_pod(&cluster, "second");
    cluster.run(&["wait", "--for=delete", "pvc/data", "--timeout=120s"]);
    cluster.run(&["wait", "--for=delete", &format!("pv/{volume}"), "--timeout=120s"]);
    gone(&path);

    // Deleted by its user, the class does not come back.
    cluster.run(&["delete", "storageclass", "local-path"]);
    cluster.crash();
    cluster.up(&[&archive]);
    assert_eq!(cluster.get(&["storageclass"])["items"].as_array().unwrap().len(), 0);
}

#[test]
fn a_volume_made_by_hand_is_retained() {
    let (cluster, _) = cluster();
    let path = cluster.directory.path().join("by-hand");
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("file"), "before\n").unwrap();
    cluster.apply(&format!(
        r#"
apiVersion: v1
kind: PersistentVolume
metadata: {{name: by-hand}}
spec:
  accessModes: [ReadWriteOnce]
  capacity: {{storage: 5Gi}}
  storageClassName: ""
  hostPath: {{path: {}, type: Directory}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: mine}}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: ""
  resources: {{requests: {{storage: 1Gi}}}}
"#,
        path.display()
    ));
    cluster.wait(&["pvc", "mine"], |claim| claim["status"]["phase"] == "Bound");
    let reader =
        user("reader", "mine").replace("subPath: deep/er", "readOnly: true").replace("runAsUser: 1000", "runAsUser: 0");
    cluster.apply(&reader);
    cluster.run(&["wait", "--for=condition=Ready", "pod/reader", "--timeout=120s"]);
    assert_eq!(read(&cluster, "reader", "/data/file"), "before\n");
    write(&cluster, "reader", "after", "/data/file");
    assert!(cluster.refuse(&["exec", "reader", "--", "sh", "-c", "echo no > /sub/file"]).contains("Read-only"));
    delete_pod(&cluster, "reader");
    cluster.run(&["delete", "pvc", "mine", "--timeout=120s"]);
    cluster.wait(&["pv", "by-hand"], |volume| volume["status"]["phase"] == "Released");
    assert_eq!(std::fs::read_to_string(path.join("file")).unwrap(), "after\n");
}

const SET: &str = r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  replicas: 2
  serviceName: db
  selector: {matchLabels: {app: db}}
  persistentVolumeClaimRetentionPolicy: {whenDeleted: Delete, whenScaled: Retain}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: db
        image: BUSYBOX
        imagePullPolicy: IfNotPresent
        command: [sh, -c, 'test -e /data/name || hostname > /data/name; exec sleep 100000']
        readinessProbe: {exec: {command: [test, -s, /data/name]}, periodSeconds: 1}
        volumeMounts: [{name: data, mountPath: /data}, {name: scratch, mountPath: /scratch}]
      volumes:
      - name: scratch
        ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}}}
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
"#;

#[test]
fn each_replica_of_a_stateful_set_keeps_its_own_data() {
    let (cluster, _) = cluster();
    cluster.apply(&SET.replace("BUSYBOX", BUSYBOX));
    cluster.run(&["rollout", "status", "statefulset/db", "--timeout=180s"]);
    let names = || ["db-0", "db-1"].map(|pod| read(&cluster, pod, "/data/name"));
    assert_eq!(names(), ["db-0\n", "db-1\n"]);
    write(&cluster, "db-1", "mark", "/data/mark");
    write(&cluster, "db-1", "mark", "/scratch/mark");
    let scratch = directory(&cluster, "db-1-scratch");
    assert!(scratch.join("mark").exists());

    let before = cluster.get(&["pod", "db-1"])["metadata"]["uid"].clone();
    delete_pod(&cluster, "db-1");
    cluster.wait(&["pod", "db-1"], |pod| pod["metadata"]["uid"] != before);
    cluster.run(&["rollout", "status", "statefulset/db", "--timeout=180s"]);
    assert_eq!((read(&cluster, "db-1", "/data/mark"), names()), ("mark\n".into(), ["db-0\n".into(), "db-1\n".into()]));
    gone(&scratch); // a generic ephemeral volume goes with its pod

    cluster.run(&["scale", "statefulset/db", "--replicas=1"]);
    cluster.run(&["wait", "--for=delete", "pod/db-1", "--timeout=120s"]);
    assert_eq!(cluster.get(&["pvc", "data-db-1"])["status"]["phase"], "Bound");
    cluster.run(&["scale", "statefulset/db", "--replicas=2"]);
    cluster.run(&["rollout", "status", "statefulset/db", "--timeout=180s"]);
    assert_eq!(read(&cluster, "db-1", "/data/mark"), "mark\n");

    let data = directory(&cluster, "data-db-1");
    cluster.run(&["delete", "statefulset", "db"]);
    eventually("claims and volumes go with the set", || {
        let left = cluster.run(&["get", "pvc,pv", "-o", "name"]);
        left.is_empty().then_some(()).ok_or(left)
    });
    gone(&data);
}

#[test]
fn an_image_is_a_volume() {
    let (cluster, _) = cluster();
    cluster.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: viewer}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: {BUSYBOX}
    imagePullPolicy: IfNotPresent
    command: [sleep, "100000"]
    volumeMounts: [{{name: image, mountPath: /image}}, {{name: image, mountPath: /part, subPath: etc}}]
  volumes: [{{name: image, image: {{reference: {BUSYBOX}, pullPolicy: IfNotPresent}}}}]
"#
    ));
    cluster.run(&["wait", "--for=condition=Ready", "pod/viewer", "--timeout=120s"]);
    assert!(read(&cluster, "viewer", "/image/etc/passwd").contains("nobody"));
    assert!(read(&cluster, "viewer", "/part/passwd").contains("nobody"));
    assert!(cluster.refuse(&["exec", "viewer", "--", "touch", "/image/new"]).contains("Read-only"));
}

#[test]
fn a_claim_for_one_pod_refuses_the_second() {
    let (cluster, _) = cluster();
    cluster.apply(&CLAIM.replace("ReadWriteOnce", "ReadWriteOncePod"));
    run_user(&cluster, "one", "data");
    cluster.apply(&user("two", "data"));
    cluster.wait(&["pod", "two"], |pod| {
        let message = pod["status"]["conditions"][0]["message"].as_str().unwrap_or_default();
        message.starts_with(
            "0/1 nodes are available: 1 node has pod using PersistentVolumeClaim with the same name and \
             ReadWriteOncePod access mode.",
        )
    });
    delete_pod(&cluster, "one");
    cluster.run(&["wait", "--for=condition=Ready", "pod/two", "--timeout=120s"]);
}
