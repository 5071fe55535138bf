//! Defaults that the schema does not know.

use serde_json::{Value, json};

use crate::{deployment, kind, pod, service};

fn defaulted(path: &str, mut object: Value) -> Value {
    kind(path).default(&mut object);
    object
}

fn at<'a>(object: &'a Value, pointer: &str) -> &'a Value {
    object.pointer(pointer).unwrap_or(&Value::Null)
}

#[test]
fn a_pod_gets_what_upstream_gives_it() {
    let pod = defaulted(
        "v1/Pod",
        pod(json!({"spec": {
            "serviceAccount": "robot",
            "hostNetwork": true,
            "containers": [{
                "name": "main", "image": "nginx",
                "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m"}},
                "livenessProbe": {"httpGet": {"port": 80}, "timeoutSeconds": 0},
                "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "lifecycle": {"preStop": {"httpGet": {"port": 80}}},
            }],
            "volumes": [
                {"name": "empty"},
                {"name": "secret", "secret": {"secretName": "s"}},
                {"name": "host", "hostPath": {"path": "/a"}},
                {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}},
            ],
        }})),
    );
    for (pointer, expected) in [
        ("/spec/dnsPolicy", json!("ClusterFirst")),
        ("/spec/restartPolicy", json!("Always")),
        ("/spec/schedulerName", json!("default-scheduler")),
        ("/spec/securityContext", json!({})),
        ("/spec/terminationGracePeriodSeconds", json!(30)),
        ("/spec/enableServiceLinks", json!(true)),
        ("/spec/serviceAccountName", json!("robot")),
        ("/spec/containers/0/imagePullPolicy", json!("Always")),
        ("/spec/containers/0/terminationMessagePath", json!("/dev/termination-log")),
        ("/spec/containers/0/terminationMessagePolicy", json!("File")),
        ("/spec/containers/0/ports/0", json!({"containerPort": 80, "hostPort": 80, "protocol": "TCP"})),
        ("/spec/containers/0/resources/requests", json!({"cpu": "100m", "memory": "1Gi"})),
        (
            "/spec/containers/0/livenessProbe",
            json!({"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10,
                "successThreshold": 1, "failureThreshold": 3}),
        ),
        ("/spec/containers/0/env/0/valueFrom/fieldRef/apiVersion", json!("v1")),
        ("/spec/containers/0/lifecycle/preStop/httpGet/scheme", json!("HTTP")),
        ("/spec/volumes/0/emptyDir", json!({})),
        ("/spec/volumes/1/secret/defaultMode", json!(420)),
        ("/spec/volumes/2/hostPath/type", json!("")),
        ("/spec/volumes/3/projected/defaultMode", json!(420)),
        ("/spec/volumes/3/projected/sources/0/serviceAccountToken/expirationSeconds", json!(3600)),
    ] {
        assert_eq!(at(&pod, pointer), &expected, "{pointer}");
    }
}

#[test]
fn the_tag_decides_when_an_image_is_pulled() {
    for (image, expected) in [
        ("nginx", "Always"),
        ("nginx:latest", "Always"),
        ("nginx:1.2", "IfNotPresent"),
        ("registry:5000/nginx", "Always"),
        ("registry:5000/nginx:1", "IfNotPresent"),
        ("nginx@sha256:aa", "IfNotPresent"),
        ("nginx:latest@sha256:aa", "Always"),
    ] {
        assert_eq!(resources::pod::image_pull_policy(image), expected, "{image}");
    }
}

#[test]
fn templates_get_no_defaults_of_real_pods() {
    let deployment = defaulted(
        "apps/v1/Deployment",
        deployment(json!({"spec": {"template": {"spec": {"hostNetwork": true, "containers": [
            {"name": "main", "image": "a:1", "ports": [{"containerPort": 80}], "resources": {"limits": {"cpu": "1"}}},
        ]}}}})),
    );
    let spec = at(&deployment, "/spec/template/spec");
    assert_eq!(spec["enableServiceLinks"], Value::Null);
    assert_eq!(spec["containers"][0]["ports"][0]["hostPort"], Value::Null);
    assert_eq!(spec["containers"][0]["resources"]["requests"], Value::Null);
    assert_eq!(spec["dnsPolicy"], "ClusterFirst");
}

#[test]
fn other_kinds() {
    let table = [
        ("apps/v1/Deployment", deployment(json!({})), "/spec/replicas", json!(1)),
        ("apps/v1/Deployment", deployment(json!({})), "/spec/revisionHistoryLimit", json!(10)),
        ("apps/v1/Deployment", deployment(json!({})), "/spec/progressDeadlineSeconds", json!(600)),
        (
            "apps/v1/Deployment",
            deployment(json!({})),
            "/spec/strategy",
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}),
        ),
        (
            "apps/v1/Deployment",
            deployment(json!({"spec": {"strategy": {"type": "Recreate"}}})),
            "/spec/strategy",
            json!({"type": "Recreate"}),
        ),
        ("apps/v1/DaemonSet", json!({"spec": {}}), "/spec/updateStrategy/rollingUpdate/maxUnavailable", json!(1)),
        ("apps/v1/StatefulSet", json!({"spec": {}}), "/spec/updateStrategy/rollingUpdate/partition", json!(0)),
        (
            "apps/v1/StatefulSet",
            json!({"spec": {}}),
            "/spec/persistentVolumeClaimRetentionPolicy",
            json!({"whenDeleted": "Retain", "whenScaled": "Retain"}),
        ),
        ("v1/Service", service(json!({})), "/spec/ports/0", json!({"port": 80, "protocol": "TCP", "targetPort": 80})),
        ("v1/Service", service(json!({})), "/spec/internalTrafficPolicy", json!("Cluster")),
        ("v1/Service", service(json!({})), "/spec/externalTrafficPolicy", Value::Null),
        (
            "v1/Service",
            service(json!({"spec": {"type": "LoadBalancer"}})),
            "/spec/allocateLoadBalancerNodePorts",
            json!(true),
        ),
        (
            "v1/Service",
            service(json!({"spec": {"sessionAffinity": "ClientIP"}})),
            "/spec/sessionAffinityConfig/clientIP/timeoutSeconds",
            json!(10800),
        ),
        ("v1/Secret", json!({"stringData": {"a": "b"}}), "/data/a", json!("Yg==")),
        ("v1/Secret", json!({"stringData": {"a": "b"}}), "/stringData", Value::Null),
        ("v1/Secret", json!({}), "/type", json!("Opaque")),
        (
            "v1/Namespace",
            json!({"metadata": {"name": "n"}}),
            "/metadata/labels/kubernetes.io~1metadata.name",
            json!("n"),
        ),
        ("v1/PersistentVolume", json!({}), "/spec/persistentVolumeReclaimPolicy", json!("Retain")),
        ("v1/PersistentVolumeClaim", json!({}), "/spec/volumeMode", json!("Filesystem")),
        (
            "v1/LimitRange",
            json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"cpu": "1"}}]}}),
            "/spec/limits/0/defaultRequest",
            json!({"cpu": "2"}),
        ),
        (
            "v1/ReplicationController",
            json!({"spec": {"template": {"metadata": {"labels": {"a": "b"}}}}}),
            "/spec/selector",
            json!({"a": "b"}),
        ),
        (
            "rbac.authorization.k8s.io/v1/RoleBinding",
            json!({"roleRef": {"kind": "Role"}, "subjects": [{"kind": "User"}, {"kind": "ServiceAccount"}]}),
            "/subjects",
            json!([{"kind": "User", "apiGroup": "rbac.authorization.k8s.io"}, {"kind": "ServiceAccount"}]),
        ),
        ("authentication.k8s.io/v1/TokenRequest", json!({}), "/spec/expirationSeconds", json!(3600)),
        ("discovery.k8s.io/v1/EndpointSlice", json!({"ports": [{"port": 1}]}), "/ports/0/protocol", json!("TCP")),
        ("v1/Node", json!({"status": {"capacity": {"cpu": "4"}}}), "/status/allocatable", json!({"cpu": "4"})),
    ];
    for (path, object, pointer, expected) in table {
        assert_eq!(at(&defaulted(path, object), pointer), &expected, "{path} {pointer}");
    }
}
