//! The two versions of autoscalers.

use resources::registry;
use serde_json::{Value, json};

use crate::{create, kind};

fn stored() -> Value {
    json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "a", "namespace": "b", "annotations": {"mine": "stays"}},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}, "minReplicas": 1, "maxReplicas": 5,
            "metrics": [
                {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}},
                {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}},
                {"type": "Pods", "pods": {"metric": {"name": "p", "selector": {"matchLabels": {"a": "b"}}},
                    "target": {"type": "AverageValue", "averageValue": "3"}}},
                {"type": "Object", "object": {"describedObject": {"kind": "Ingress", "name": "i"}, "metric": {"name": "o"},
                    "target": {"type": "Value", "value": "10"}}},
                {"type": "External", "external": {"metric": {"name": "e", "selector": {"matchLabels": {"c": "d"}}},
                    "target": {"type": "AverageValue", "averageValue": "7"}}},
                {"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "main",
                    "target": {"type": "Utilization", "averageUtilization": 50}}},
            ],
            "behavior": {"scaleDown": {"selectPolicy": "Max", "policies": [{"type": "Percent", "value": 10, "periodSeconds": 60}]},
                "scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]}},
        },
        "status": {
            "currentReplicas": 2, "desiredReplicas": 3,
            "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 65, "averageValue": "100m"}}}],
            "conditions": [{"type": "AbleToScale", "status": "True"}],
        },
    })
}

#[test]
fn the_old_version_loses_nothing() {
    let old = registry().by_gvk("autoscaling", "v1", "HorizontalPodAutoscaler").expect("registered");
    let conversion = old.conversion().expect("stored in another version");
    let mut object = stored();
    (conversion.from_storage)(&mut object);
    assert_eq!(object["apiVersion"], "autoscaling/v1");
    assert_eq!(object["spec"]["targetCPUUtilizationPercentage"], 70);
    assert_eq!(object["status"]["currentCPUUtilizationPercentage"], 65);
    let spec: Vec<_> = object["spec"].as_object().expect("an object").keys().cloned().collect();
    assert_eq!(spec, ["maxReplicas", "minReplicas", "scaleTargetRef", "targetCPUUtilizationPercentage"]);
    let hidden = object["metadata"]["annotations"]["autoscaling.alpha.kubernetes.io/metrics"].as_str().expect("text");
    let hidden: Value = serde_json::from_str(hidden).expect("JSON");
    assert_eq!(hidden[0], json!({"type": "Resource", "resource": {"name": "memory", "targetAverageValue": "1Gi"}}));
    assert_eq!(
        hidden[2],
        json!({"type": "Object", "object": {"metricName": "o", "target": {"kind": "Ingress", "name": "i"}, "targetValue": "10"}})
    );
    (conversion.to_storage)(&mut object);
    assert_eq!(object, stored());
    assert_eq!(registry().storage_of(old).facts().version, "v2");
}

#[test]
fn an_old_autoscaler_is_stored_with_the_defaults_of_the_new() {
    let old = kind("autoscaling/v1/HorizontalPodAutoscaler");
    let mut object = json!({"metadata": {"name": "a", "namespace": "b"},
        "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "d"}, "maxReplicas": 5}});
    assert_eq!(create("autoscaling/v1/HorizontalPodAutoscaler", &mut object), Vec::<String>::new());
    assert_eq!(object["spec"]["minReplicas"], 1);
    (old.conversion().expect("converted").to_storage)(&mut object);
    assert_eq!(object["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
}

#[test]
fn validation() {
    let target = json!({"kind": "Deployment", "name": "d"});
    let table = [
        (json!({"maxReplicas": 0}), "spec.maxReplicas: Invalid value: 0: must be greater than 0"),
        (
            json!({"minReplicas": 9}),
            "spec.maxReplicas: Invalid value: 5: must be greater than or equal to `minReplicas`",
        ),
        (json!({"scaleTargetRef": {"name": ""}}), "spec.scaleTargetRef.name: Required value"),
        (
            json!({"metrics": [{"type": "Resource", "pods": {"metric": {"name": "p"}, "target": {"type": "AverageValue", "averageValue": "1"}}}]}),
            "spec.metrics[0].resource: Required value: must populate information for the given metric source",
        ),
        (
            json!({"metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization"}}}]}),
            "spec.metrics[0].resource.target.averageUtilization: Required value: must set either a target raw value or a target utilization",
        ),
        (
            json!({"behavior": {"scaleUp": {"stabilizationWindowSeconds": 3601}}}),
            "spec.behavior.scaleUp.stabilizationWindowSeconds: Invalid value: 3601: must be less than or equal to 3600",
        ),
    ];
    for (patch, expected) in table {
        let mut object =
            json!({"metadata": {"name": "a", "namespace": "b"}, "spec": {"scaleTargetRef": target, "maxReplicas": 5}});
        crate::merge(&mut object, json!({"spec": patch}));
        let errors = create("autoscaling/v2/HorizontalPodAutoscaler", &mut object);
        assert!(errors.iter().any(|error| error.starts_with(expected)), "wants {expected}\n got {errors:#?}");
    }
}

#[test]
fn rows() {
    let mut object = stored();
    object["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
    let now = "2026-01-01T00:05:00Z".parse().expect("a time");
    let expected = json!(["a", "Deployment/d", "cpu: 65%/70%, memory: <unknown>/1Gi + 4 more...", "1", 5, 2, "5m"]);
    assert_eq!(json!(kind("autoscaling/v2/HorizontalPodAutoscaler").cells(&object, now)), expected);
    let old = kind("autoscaling/v1/HorizontalPodAutoscaler");
    (old.conversion().expect("converted").from_storage)(&mut object);
    assert_eq!(json!(old.cells(&object, now)), expected);
}
