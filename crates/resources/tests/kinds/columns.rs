//! What `kubectl get` shows.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::{deployment, kind, pod, service};

const CREATED: &str = "2026-01-01T00:00:00Z";

/// The cells of an object created five minutes ago.
fn row(path: &str, mut object: Value) -> Value {
    object["metadata"]["creationTimestamp"] = json!(CREATED);
    let created: Timestamp = CREATED.parse().expect("a time");
    Value::Array(kind(path).cells(&object, created + SignedDuration::from_mins(5)))
}

#[test]
fn the_status_of_a_pod() {
    let container = |state: Value| json!({"name": "main", "image": "", "imageID": "", "ready": state["running"].is_object(), "restartCount": 0, "state": state});
    let running = container(json!({"running": {}}));
    let init_spec = json!({"initContainers": [{"name": "i"}, {"name": "j"}]});
    let table = [
        (json!({}), json!({"phase": "Pending"}), ["0/1", "Pending", "0"]),
        (json!({}), json!({"phase": "Running", "containerStatuses": [running]}), ["1/1", "Running", "0"]),
        (
            json!({}),
            json!({"phase": "Running", "containerStatuses": [container(json!({"waiting": {"reason": "CrashLoopBackOff"}}))]}),
            ["0/1", "CrashLoopBackOff", "0"],
        ),
        (
            json!({}),
            json!({"phase": "Succeeded", "containerStatuses": [container(json!({"terminated": {"exitCode": 0, "reason": "Completed"}}))]}),
            ["0/1", "Completed", "0"],
        ),
        (
            json!({}),
            json!({"phase": "Failed", "containerStatuses": [container(json!({"terminated": {"exitCode": 3}}))]}),
            ["0/1", "ExitCode:3", "0"],
        ),
        (
            json!({}),
            json!({"phase": "Running", "containerStatuses": [
                {"name": "main", "image": "", "imageID": "", "ready": true, "restartCount": 2, "state": {"running": {}},
                    "lastState": {"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T00:04:00Z"}}}]}),
            ["1/1", "Running", "2 (60s ago)"],
        ),
        (
            init_spec.clone(),
            json!({"phase": "Pending", "initContainerStatuses": [
                {"name": "i", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": {"terminated": {"exitCode": 0}}},
                {"name": "j", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": {"running": {}}}]}),
            ["0/1", "Init:1/2", "0"],
        ),
        (
            init_spec,
            json!({"phase": "Pending", "initContainerStatuses": [
                {"name": "i", "image": "", "imageID": "", "ready": false, "restartCount": 1, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
            ["0/1", "Init:CrashLoopBackOff", "1"],
        ),
        (
            json!({"initContainers": [{"name": "i", "restartPolicy": "Always"}]}),
            json!({"phase": "Running",
                "initContainerStatuses": [{"name": "i", "image": "", "imageID": "", "ready": true, "started": true, "restartCount": 0, "state": {"running": {}}}],
                "containerStatuses": [running]}),
            ["2/2", "Running", "0"],
        ),
        (
            json!({}),
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}),
            ["0/1", "SchedulingGated", "0"],
        ),
        (json!({}), json!({"phase": "Failed", "reason": "Evicted"}), ["0/1", "Evicted", "0"]),
    ];
    for (spec, status, expected) in table {
        let cells = row("v1/Pod", pod(json!({"spec": spec, "status": status})));
        assert_eq!([&cells[1], &cells[2], &cells[3]], expected.map(|text| json!(text)).each_ref(), "{status}");
        assert_eq!(cells[4], "5m");
    }
    let deleted = json!({"metadata": {"deletionTimestamp": CREATED}, "status": {"phase": "Running"}});
    assert_eq!(row("v1/Pod", pod(deleted))[2], "Terminating");
}

#[test]
fn rows() {
    let table = [
        (
            "v1/Pod",
            pod(json!({"spec": {"nodeName": "n"}, "status": {"podIPs": [{"ip": "10.42.0.5"}]}})),
            json!(["a", "0/1", "", "0", "5m", "10.42.0.5", "n", "<none>", "<none>"]),
        ),
        (
            "apps/v1/Deployment",
            deployment(
                json!({"spec": {"replicas": 3}, "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2}}),
            ),
            json!(["a", "2/3", 3, 2, "5m", "main", "nginx", "app=a"]),
        ),
        (
            "v1/Service",
            service(
                json!({"spec": {"type": "NodePort", "selector": {"a": "b"}, "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}]}}),
            ),
            json!(["a", "NodePort", "10.43.0.7", "<none>", "80:30080/TCP", "5m", "a=b"]),
        ),
        (
            "v1/Service",
            service(json!({"spec": {"type": "LoadBalancer", "ports": [{"port": 80, "protocol": "TCP"}]}})),
            json!(["a", "LoadBalancer", "10.43.0.7", "<pending>", "80/TCP", "5m", "<none>"]),
        ),
        (
            "v1/Node",
            json!({"metadata": {"name": "n", "labels": {"node-role.kubernetes.io/control-plane": ""}},
                "spec": {"unschedulable": true},
                "status": {"conditions": [{"type": "Ready", "status": "True"}],
                    "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}], "nodeInfo": {"kubeletVersion": "v1.36.0"}}}),
            json!([
                "n",
                "Ready,SchedulingDisabled",
                "control-plane",
                "5m",
                "v1.36.0",
                "10.0.0.1",
                "<none>",
                "<unknown>",
                "<unknown>",
                "<unknown>"
            ]),
        ),
        (
            "v1/Event",
            json!({"metadata": {"name": "e"}, "type": "Normal", "reason": "Pulled", "message": "it is there\n",
                "involvedObject": {"kind": "Pod", "name": "a", "fieldPath": "spec"}, "source": {"component": "kubelet", "host": "n"},
                "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:04:00Z", "count": 3}),
            json!(["60s", "Normal", "Pulled", "pod/a", "spec", "kubelet, n", "it is there", "5m", 3, "e"]),
        ),
        (
            "v1/Endpoints",
            json!({"metadata": {"name": "e"}, "subsets": [{"addresses": [{"ip": "1.1.1.1"}, {"ip": "1.1.1.2"}],
                "ports": [{"port": 1}, {"port": 2}]}]}),
            json!(["e", "1.1.1.1:1,1.1.1.2:1,1.1.1.1:2 + 1 more...", "5m"]),
        ),
        (
            "v1/PersistentVolumeClaim",
            json!({"metadata": {"name": "c"}, "spec": {"volumeName": "v", "storageClassName": "s", "volumeMode": "Filesystem"},
                "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]}}),
            json!(["c", "Bound", "v", "1Gi", "RWO", "s", "<unset>", "5m", "Filesystem"]),
        ),
        (
            "v1/ResourceQuota",
            json!({"metadata": {"name": "q"}, "status": {"hard": {"pods": "2", "limits.cpu": "4"}, "used": {"pods": "1"}}}),
            json!(["q", "pods: 1/2", "limits.cpu: 0/4", "5m"]),
        ),
        (
            "discovery.k8s.io/v1/EndpointSlice",
            json!({"metadata": {"name": "e"}, "addressType": "IPv4", "endpoints": [], "ports": [{"port": 80}]}),
            json!(["e", "IPv4", "80", "<unset>", "5m"]),
        ),
        (
            "rbac.authorization.k8s.io/v1/RoleBinding",
            json!({"metadata": {"name": "r"}, "roleRef": {"kind": "Role", "name": "x"},
                "subjects": [{"kind": "ServiceAccount", "name": "s", "namespace": "n"}, {"kind": "User", "name": "u"}]}),
            json!(["r", "Role/x", "5m", "u", "", "n/s"]),
        ),
    ];
    for (path, object, expected) in table {
        assert_eq!(row(path, object), expected, "{path}");
    }
}

#[test]
fn fields_can_be_selected() {
    for (path, object, field, expected) in [
        ("v1/Pod", json!({"spec": {"nodeName": "n"}}), "spec.nodeName", "n"),
        ("v1/Pod", json!({}), "spec.nodeName", ""),
        ("v1/Pod", json!({}), "spec.hostNetwork", "false"),
        ("v1/Pod", json!({"status": {"podIPs": [{"ip": "1.2.3.4"}]}}), "status.podIP", "1.2.3.4"),
        ("v1/Node", json!({"spec": {"unschedulable": true}}), "spec.unschedulable", "true"),
        ("v1/Node", json!({}), "spec.unschedulable", "false"),
        ("v1/Event", json!({"involvedObject": {"name": "a"}}), "involvedObject.name", "a"),
        ("v1/Event", json!({"reportingComponent": "k"}), "source", "k"),
        ("v1/Secret", json!({"type": "Opaque"}), "type", "Opaque"),
        ("apps/v1/ReplicaSet", json!({}), "status.replicas", "0"),
    ] {
        assert_eq!(kind(path).field(&object, field).as_deref(), Some(expected), "{path} {field}");
    }
}
