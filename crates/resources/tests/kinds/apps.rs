//! StatefulSets and DaemonSets.

use serde_json::{Value, json};

use crate::{create, kind, merge, update};

fn workload(kind: &str, spec: Value) -> Value {
    let mut all = json!({"selector": {"matchLabels": {"app": "a"}}, "template": {
        "metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "main", "image": "nginx:1"}]}}});
    merge(&mut all, spec);
    json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "a", "namespace": "default"}, "spec": all})
}

const SET: &str = "StatefulSet";
const DAEMON: &str = "DaemonSet";

#[test]
fn workloads_are_validated() {
    let strategy = |strategy: Value| json!({"updateStrategy": strategy});
    let rolling = |rolling: Value| json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": rolling}});
    let pod = |spec: Value| json!({"template": {"spec": spec}});
    let table = [
        (
            SET,
            json!({"podManagementPolicy": "Sorted"}),
            r#"spec.podManagementPolicy: Invalid value: "Sorted": must be 'OrderedReady' or 'Parallel'"#,
        ),
        (
            SET,
            strategy(json!({"type": "Never"})),
            r#"spec.updateStrategy: Invalid value: {"type":"Never"}: must be 'RollingUpdate' or 'OnDelete'"#,
        ),
        (
            SET,
            strategy(json!({"type": "OnDelete", "rollingUpdate": {"partition": 1}})),
            r#"spec.updateStrategy.rollingUpdate: Invalid value: {"partition":1}: only allowed for updateStrategy 'RollingUpdate'"#,
        ),
        (
            SET,
            rolling(json!({"partition": -1})),
            "spec.updateStrategy.rollingUpdate.partition: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            SET,
            rolling(json!({"maxUnavailable": 0})),
            "spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: 0: cannot be 0",
        ),
        (
            SET,
            rolling(json!({"maxUnavailable": "101%"})),
            r#"spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: "101%": must not be greater than 100%"#,
        ),
        (
            SET,
            json!({"ordinals": {"start": -1}}),
            "spec.ordinals.start: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            SET,
            json!({"persistentVolumeClaimRetentionPolicy": {"whenScaled": "Never"}}),
            r#"spec.persistentVolumeClaimRetentionPolicy.whenScaled: Unsupported value: "Never""#,
        ),
        (
            SET,
            json!({"selector": {"matchLabels": {"app": null}}}),
            r#"spec.selector: Invalid value: {"matchLabels":{}}: empty selector is invalid for statefulset"#,
        ),
        (
            SET,
            pod(json!({"activeDeadlineSeconds": 5})),
            "spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in StatefulSet is not Supported",
        ),
        (
            SET,
            pod(json!({"restartPolicy": "Never"})),
            r#"spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always""#,
        ),
        (
            DAEMON,
            strategy(json!({"type": "Never"})),
            r#"spec.updateStrategy: Unsupported value: {"type":"Never"}: supported values: "RollingUpdate", "OnDelete""#,
        ),
        (
            DAEMON,
            rolling(json!({"maxUnavailable": 0})),
            "spec.updateStrategy.rollingUpdate.maxUnavailable: Required value: cannot be 0 when maxSurge is 0",
        ),
        (
            DAEMON,
            rolling(json!({"maxSurge": 1})),
            "spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero",
        ),
        (
            DAEMON,
            rolling(json!({"maxUnavailable": "x"})),
            r#"spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: "x": a valid percent string"#,
        ),
        (
            DAEMON,
            pod(json!({"activeDeadlineSeconds": 5})),
            "spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in DaemonSet is not Supported",
        ),
        (
            DAEMON,
            json!({"selector": {"matchLabels": {"app": "b"}}}),
            r#"spec.template.metadata.labels: Invalid value: {"app":"a"}: `selector` does not match template `labels`"#,
        ),
    ];
    for (kind, spec, expected) in table {
        let errors = create(&format!("apps/v1/{kind}"), &mut workload(kind, spec));
        assert!(errors.iter().any(|error| error.starts_with(expected)), "wants {expected}\n got {errors:#?}");
    }
}

#[test]
fn what_may_change() {
    let fixed = "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
    let other = json!({"selector": {"matchLabels": {"app": "b"}}, "template": {"metadata": {"labels": {"app": "b"}}}});
    let table = [
        (SET, json!({"replicas": 5, "minReadySeconds": 1, "revisionHistoryLimit": 2, "ordinals": {"start": 3}}), None),
        (SET, json!({"serviceName": "b"}), Some(fixed)),
        (SET, json!({"podManagementPolicy": "Parallel"}), Some(fixed)),
        (SET, other.clone(), Some(fixed)),
        (DAEMON, json!({"minReadySeconds": 1}), None),
        (DAEMON, other, Some(r#"spec.selector: Invalid value: {"matchLabels":{"app":"b"}}: field is immutable"#)),
    ];
    for (kind, patch, expected) in table {
        let name = format!("apps/v1/{kind}");
        let mut old = workload(kind, json!({}));
        assert_eq!(create(&name, &mut old), Vec::<String>::new());
        let mut new = old.clone();
        merge(&mut new["spec"], patch);
        assert_eq!(update(&name, &mut new, &old), expected.into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn statuses_are_validated() {
    let table = [
        (SET, json!({"replicas": 2, "readyReplicas": 2, "availableReplicas": 1}), None),
        (
            SET,
            json!({"replicas": 1, "readyReplicas": 2}),
            Some("status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas"),
        ),
        (
            SET,
            json!({"replicas": 2, "availableReplicas": 1}),
            Some("status.availableReplicas: Invalid value: 1: cannot be greater than status.readyReplicas"),
        ),
        (
            SET,
            json!({"replicas": 0, "collisionCount": 1}),
            Some("status.collisionCount: Invalid value: 1: cannot be decremented"),
        ),
        (
            DAEMON,
            json!({"numberReady": -1}),
            Some("status.numberReady: Invalid value: -1: must be greater than or equal to 0"),
        ),
        (DAEMON, json!({}), Some("status.collisionCount: Invalid value: 0: cannot be decremented")),
    ];
    for (name, status, expected) in table {
        let mut old = workload(name, json!({}));
        create(&format!("apps/v1/{name}"), &mut old);
        let mut new = old.clone();
        old["status"]["collisionCount"] = json!(2);
        merge(&mut new["status"], status);
        if expected.is_none_or(|expected| !expected.contains("collision")) {
            new["status"]["collisionCount"] = json!(2);
        }
        let errors = kind(&format!("apps/v1/{name}")).validate_status_update(&new, &old);
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(errors, expected.into_iter().collect::<Vec<_>>());
    }
}
