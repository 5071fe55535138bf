//! Validation messages: paths and words are upstream's.

use serde_json::{Value, json};

use crate::{create, deployment, pod, service, update};

#[test]
fn valid_objects_pass() {
    for (path, mut object) in [
        ("v1/Pod", pod(json!({}))),
        ("v1/Service", service(json!({}))),
        ("apps/v1/Deployment", deployment(json!({}))),
        ("v1/ConfigMap", json!({"metadata": {"name": "a", "namespace": "b"}, "data": {"k": "v"}})),
        ("v1/Namespace", json!({"metadata": {"name": "a"}})),
        ("v1/Node", json!({"metadata": {"name": "a"}, "spec": {"podCIDRs": ["10.42.0.0/24"]}})),
        ("v1/Secret", json!({"metadata": {"generateName": "a-", "name": "a-x", "namespace": "b"}})),
        ("rbac.authorization.k8s.io/v1/ClusterRole", json!({"metadata": {"name": "system:a:b"}})),
        ("coordination.k8s.io/v1/Lease", json!({"metadata": {"name": "a", "namespace": "b"}})),
    ] {
        assert_eq!(create(path, &mut object), Vec::<String>::new(), "{path}");
    }
}

#[test]
fn pods() {
    let container = |patch: Value| {
        let mut container = json!({"name": "main", "image": "nginx"});
        crate::merge(&mut container, patch);
        json!({"spec": {"containers": [container]}})
    };
    let mount = |name: &str, path: &str| container(json!({"volumeMounts": [{"name": name, "mountPath": path}]}));
    let file_key = |volume: &str, path: &str| {
        let key = json!({"volumeName": volume, "path": path, "key": "k"});
        json!({"env": [{"name": "a", "valueFrom": {"fileKeyRef": key}}]})
    };
    let table: Vec<(Value, &str)> = vec![
        (json!({"spec": {"containers": []}}), "spec.containers: Required value"),
        (container(json!({"name": ""})), "spec.containers[0].name: Required value"),
        (container(json!({"image": null})), "spec.containers[0].image: Required value"),
        (
            container(json!({"image": " a"})),
            r#"spec.containers[0].image: Invalid value: " a": must not have leading or trailing whitespace"#,
        ),
        (
            json!({"spec": {"containers": [{"name": "a", "image": "b"}, {"name": "a", "image": "b"}]}}),
            r#"spec.containers[1].name: Duplicate value: "a""#,
        ),
        (
            container(json!({"imagePullPolicy": "Maybe"})),
            r#"spec.containers[0].imagePullPolicy: Unsupported value: "Maybe": supported values: "Always", "IfNotPresent", "Never""#,
        ),
        (
            container(json!({"ports": [{"containerPort": 70000}]})),
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        (
            json!({"spec": {"containers": [
                {"name": "a", "image": "b", "ports": [{"containerPort": 1, "hostPort": 2}]},
                {"name": "c", "image": "b", "ports": [{"containerPort": 3, "hostPort": 2}]},
            ]}}),
            r#"spec.containers[1].ports[0].hostPort: Duplicate value: "TCP//2""#,
        ),
        (mount("none", "/a"), r#"spec.containers[0].volumeMounts[0].name: Not found: "none""#),
        (
            container(json!({"env": [{"name": "a=b", "value": "c"}]})),
            r#"spec.containers[0].env[0].name: Invalid value: "a=b": "#,
        ),
        (
            container(
                json!({"env": [{"name": "a", "value": "b", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "d"}}}]}),
            ),
            r#"spec.containers[0].env[0].valueFrom: Invalid value: "": may not be specified when `value` is not empty"#,
        ),
        (
            container(file_key("none", "f")),
            r#"spec.containers[0].env[0].valueFrom.fileKeyRef.volumeName: Not found: "none""#,
        ),
        (
            json!({"spec": {
                "volumes": [{"name": "v", "configMap": {"name": "m"}}],
                "containers": [{"name": "a", "image": "b", "env": file_key("v", "f")["env"]}],
            }}),
            r#"spec.containers[0].env[0].valueFrom.fileKeyRef.volumeName: Invalid value: "v": referenced volume must be of type emptyDir"#,
        ),
        (
            json!({"spec": {
                "volumes": [{"name": "v", "emptyDir": {}}],
                "containers": [{"name": "a", "image": "b", "env": file_key("v", "../f")["env"]}],
            }}),
            r#"spec.containers[0].env[0].valueFrom.fileKeyRef.path: Invalid value: "../f": must not contain '..'"#,
        ),
        (
            container(json!({"env": [{"name": "a", "valueFrom": {"fieldRef": {"fieldPath": "spec.x"}}}]})),
            r#"spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Unsupported value: "spec.x""#,
        ),
        (
            container(json!({"livenessProbe": {"tcpSocket": {"port": 1}, "successThreshold": 2}})),
            "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
        ),
        (
            container(json!({"livenessProbe": {}})),
            "spec.containers[0].livenessProbe: Required value: must specify a handler type",
        ),
        (
            container(json!({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}})),
            r#"spec.containers[0].resources.requests: Invalid value: "2": must be less than or equal to cpu limit of 1"#,
        ),
        (
            container(json!({"resources": {"limits": {"cpu": "-1"}}})),
            r#"spec.containers[0].resources.limits[cpu]: Invalid value: "-1": must be greater than or equal to 0"#,
        ),
        (
            container(json!({"resources": {"requests": {"example.com/gpu": "1"}, "limits": {"example.com/gpu": "2"}}})),
            r#"spec.containers[0].resources.requests: Invalid value: "1": must be equal to example.com/gpu limit of 2"#,
        ),
        (
            container(json!({"securityContext": {"privileged": true, "allowPrivilegeEscalation": false}})),
            "spec.containers[0].securityContext: Invalid value: ",
        ),
        (
            json!({"spec": {"initContainers": [{"name": "i", "image": "b", "readinessProbe": {"tcpSocket": {"port": 1}}}]}}),
            "spec.initContainers[0].readinessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
        ),
        (
            json!({"spec": {"restartPolicy": "Sometimes"}}),
            r#"spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "OnFailure", "Never""#,
        ),
        (
            json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/"}}]}}),
            "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
        ),
        (
            json!({"spec": {"volumes": [{"name": "v", "configMap": {}}]}}),
            "spec.volumes[0].configMap.name: Required value",
        ),
        (
            json!({"spec": {"volumes": [{"name": "v", "secret": {"secretName": "s", "items": [{"key": "k", "path": "../p"}]}}]}}),
            r#"spec.volumes[0].secret.items[0].path: Invalid value: "../p": must not contain '..'"#,
        ),
        (
            json!({"spec": {"tolerations": [{"operator": "Equal", "value": "b"}]}}),
            r#"spec.tolerations[0].operator: Invalid value: "Equal": operator must be Exists when `key` is empty"#,
        ),
        (
            json!({"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}}}),
            "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Required value: must have at least one node selector term",
        ),
        (
            json!({"spec": {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": ""}]}}}}),
            "spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: Required value: can not be empty",
        ),
        (
            json!({"spec": {"topologySpreadConstraints": [{"maxSkew": 0, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule"}]}}),
            "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero",
        ),
        (
            json!({"spec": {"dnsPolicy": "None"}}),
            "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None",
        ),
        (
            json!({"spec": {"shareProcessNamespace": true, "hostPID": true}}),
            "spec.shareProcessNamespace: Invalid value: true: ShareProcessNamespace and HostPID cannot both be enabled",
        ),
        (
            json!({"spec": {"hostUsers": false, "hostNetwork": true}}),
            "spec.hostNetwork: Forbidden: when `hostUsers` is false",
        ),
        (json!({"spec": {"hostUsers": false, "hostPID": true}}), "spec.hostPID: Forbidden: when `hostUsers` is false"),
        (json!({"spec": {"hostUsers": false, "hostIPC": true}}), "spec.hostIPC: Forbidden: when `hostUsers` is false"),
        (
            json!({"spec": {"hostUsers": false,
                "containers": [{"name": "a", "image": "b", "volumeDevices": [{"name": "v", "devicePath": "/dev/v"}]}],
                "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "v"}}]}}),
            "spec.containers[0].volumeDevices: Forbidden: when `hostUsers` is false",
        ),
        (
            container(json!({"securityContext": {"procMount": "Unmasked"}})),
            r#"spec.containers[0].securityContext.procMount: Invalid value: "Unmasked": `hostUsers` must be false to use"#,
        ),
        (
            json!({"spec": {"ephemeralContainers": [{"name": "e", "image": "b"}]}}),
            "spec.ephemeralContainers: Forbidden: cannot be set on create",
        ),
        (json!({"metadata": {"name": "A"}}), r#"metadata.name: Invalid value: "A": a lowercase RFC 1123 subdomain"#),
        (json!({"metadata": {"name": null}}), "metadata.name: Required value: name or generateName is required"),
        (json!({"metadata": {"namespace": null}}), "metadata.namespace: Required value"),
        (
            json!({"metadata": {"finalizers": ["mine"]}}),
            r#"metadata.finalizers[0]: Invalid value: "mine": name is neither a standard finalizer name nor is it fully qualified"#,
        ),
        (
            json!({"metadata": {"labels": {"a": "b c"}}}),
            r#"metadata.labels: Invalid value: "b c": a valid label must be"#,
        ),
    ];
    for (patch, expected) in table {
        let shown = patch.to_string();
        let errors = create("v1/Pod", &mut pod(patch));
        assert!(errors.iter().any(|error| error.starts_with(expected)), "{shown}\nwants {expected}\n got {errors:#?}");
        // An empty topology key is missing, and no label's name in two ways.
        let most = if expected.contains("topologyKey") { 3 } else { 2 };
        assert!(errors.len() <= most, "{shown}: one mistake, one message: {errors:#?}");
    }
}

#[test]
fn pod_updates() {
    let mut old = pod(json!({}));
    create("v1/Pod", &mut old);
    let allowed = json!({"spec": {"activeDeadlineSeconds": 5, "tolerations": [{"operator": "Exists"}]}});
    for patch in [allowed, json!({"metadata": {"labels": {"a": "b"}}})] {
        let mut new = old.clone();
        crate::merge(&mut new, patch);
        assert_eq!(update("v1/Pod", &mut new, &old), Vec::<String>::new());
    }
    let mut image = old.clone();
    image["spec"]["containers"][0]["image"] = json!("nginx:2");
    assert_eq!(update("v1/Pod", &mut image, &old), Vec::<String>::new());
    for (patch, expected) in [
        (
            json!({"spec": {"restartPolicy": "Never"}}),
            "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n",
        ),
        (
            json!({"spec": {"containers": []}}),
            "spec.containers: Forbidden: pod updates may not add or remove containers",
        ),
        (json!({"metadata": {"uid": "x"}}), r#"metadata.uid: Invalid value: "x": field is immutable"#),
    ] {
        let mut new = old.clone();
        crate::merge(&mut new, patch);
        let errors = update("v1/Pod", &mut new, &old);
        assert!(errors.iter().any(|error| error.starts_with(expected)), "wants {expected}\n got {errors:#?}");
    }
}

#[test]
fn other_kinds() {
    let meta = json!({"name": "a", "namespace": "b"});
    let table = [
        (
            "apps/v1/Deployment",
            deployment(json!({"spec": {"template": {"metadata": {"labels": {"app": "b"}}}}})),
            r#"spec.template.metadata.labels: Invalid value: {"app":"b"}: `selector` does not match template `labels`"#,
        ),
        (
            "apps/v1/Deployment",
            deployment(json!({"spec": {"selector": null}})),
            "spec.selector: Invalid value: {}: empty selector is invalid for deployment",
        ),
        (
            "apps/v1/Deployment",
            deployment(json!({"spec": {"template": {"spec": {"restartPolicy": "Never"}}}})),
            r#"spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always""#,
        ),
        (
            "apps/v1/Deployment",
            deployment(json!({"spec": {"replicas": -1}})),
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            "apps/v1/Deployment",
            deployment(json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}}})),
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
        ),
        ("v1/Service", service(json!({"spec": {"ports": null}})), "spec.ports: Required value"),
        (
            "v1/Service",
            service(json!({"spec": {"ports": [{"port": 1}, {"port": 2, "name": "b"}]}})),
            "spec.ports[0].name: Required value",
        ),
        (
            "v1/Service",
            service(json!({"spec": {"ports": [{"port": 1, "nodePort": 30000}]}})),
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ),
        (
            "v1/Service",
            service(json!({"metadata": {"name": "1a"}})),
            r#"metadata.name: Invalid value: "1a": a DNS-1035 label"#,
        ),
        (
            "v1/ConfigMap",
            json!({"metadata": meta, "data": {"a/b": "c"}}),
            r#"data[a/b]: Invalid value: "a/b": a valid config key must consist of"#,
        ),
        (
            "v1/Secret",
            json!({"metadata": meta, "type": "kubernetes.io/tls", "data": {"tls.crt": ""}}),
            "data[tls.key]: Required value",
        ),
        (
            "v1/PersistentVolumeClaim",
            json!({"metadata": meta, "spec": {"accessModes": ["ReadWriteOnce"]}}),
            "spec.resources[storage]: Required value",
        ),
        (
            "v1/PersistentVolume",
            json!({"metadata": {"name": "a"}, "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}}}),
            "spec: Required value: must specify a volume type",
        ),
        (
            "rbac.authorization.k8s.io/v1/Role",
            json!({"metadata": meta, "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": []}]}),
            "rules[0].verbs: Required value: verbs must contain at least one value",
        ),
        (
            "authorization.k8s.io/v1/SelfSubjectAccessReview",
            json!({"spec": {}}),
            "spec.resourceAttributes: Invalid value: \"null\": exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ),
        (
            "discovery.k8s.io/v1/EndpointSlice",
            json!({"metadata": meta, "addressType": "IPv4", "endpoints": [{"addresses": ["::1"]}]}),
            r#"endpoints[0].addresses[0]: Invalid value: "::1": must be an IPv4 address"#,
        ),
        (
            "v1/LimitRange",
            json!({"metadata": meta, "spec": {"limits": [{"type": "Pod", "min": {"cpu": "2"}, "max": {"cpu": "1"}}]}}),
            "spec.limits[0].min[cpu]: Invalid value: 2: min value 2 is greater than max value 1",
        ),
    ];
    for (path, mut object, expected) in table {
        let errors = create(path, &mut object);
        assert!(errors.iter().any(|error| error.starts_with(expected)), "{path}\nwants {expected}\n got {errors:#?}");
    }
}

#[test]
fn what_may_not_change() {
    let meta = json!({"name": "a", "namespace": "b"});
    let table = [
        (
            "apps/v1/Deployment",
            deployment(json!({})),
            json!({"spec": {"selector": {"matchLabels": {"b": "c"}}, "template": {"metadata": {"labels": {"b": "c"}}}}}),
            r#"spec.selector: Invalid value: {"matchLabels":{"app":"a","b":"c"}}: field is immutable"#,
        ),
        (
            "v1/ConfigMap",
            json!({"metadata": meta, "immutable": true, "data": {"a": "b"}}),
            json!({"data": {"a": "c"}}),
            "data: Forbidden: field is immutable when `immutable` is set",
        ),
        (
            "v1/Secret",
            json!({"metadata": meta}),
            json!({"type": "other"}),
            r#"type: Invalid value: "other": field is immutable"#,
        ),
        (
            "v1/Service",
            service(json!({})),
            json!({"spec": {"clusterIP": "10.43.0.8"}}),
            r#"spec.clusterIPs[0]: Invalid value: ["10.43.0.8"]: may not change once set"#,
        ),
        (
            "rbac.authorization.k8s.io/v1/RoleBinding",
            json!({"metadata": meta, "roleRef": {"kind": "Role", "name": "a"}}),
            json!({"roleRef": {"name": "b"}}),
            "roleRef: Invalid value: ",
        ),
        (
            "v1/PersistentVolumeClaim",
            json!({"metadata": meta, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}),
            json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}}),
            "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        ),
    ];
    for (path, mut old, patch, expected) in table {
        assert_eq!(create(path, &mut old), Vec::<String>::new(), "{path}");
        assert_eq!(update(path, &mut old.clone(), &old), Vec::<String>::new(), "{path}: no change, no error");
        let mut new = old.clone();
        crate::merge(&mut new, patch);
        let errors = update(path, &mut new, &old);
        assert!(errors.iter().any(|error| error.starts_with(expected)), "{path}\nwants {expected}\n got {errors:#?}");
    }
}

/// All that is said, in upstream's order.
#[test]
fn everything_that_is_wrong() {
    let meta = json!({"name": "a", "namespace": "b"});
    let quota = |spec: Value| ("v1/ResourceQuota", json!({"metadata": meta, "spec": spec}));
    let limits = |item: Value| ("v1/LimitRange", json!({"metadata": meta, "spec": {"limits": [item]}}));
    let node = |spec: Value| ("v1/Node", json!({"metadata": {"name": "a"}, "spec": spec}));
    let svc = |patch: Value| ("v1/Service", service(patch));
    let limited = |list: Value| {
        ("v1/Pod", pod(json!({"spec": {"containers": [{"name": "m", "image": "i", "resources": {"limits": list}}]}})))
    };
    let binding = |subject: Value| {
        let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"});
        ("rbac.authorization.k8s.io/v1/RoleBinding", json!({"metadata": meta, "roleRef": role, "subjects": [subject]}))
    };
    let at = "spec.containers[0].resources.limits";
    let table: Vec<((&str, Value), Vec<String>)> = vec![
        (
            quota(json!({"hard": {"things": "1", "pods": "1500m", "example.com/x": "1"}})),
            vec![
                "spec.hard[pods]: Invalid value: 1500m: must be an integer".into(),
                r#"spec.hard[things]: Invalid value: "things": must be a standard resource type or fully qualified"#.into(),
                r#"spec.hard[things]: Invalid value: "things": must be a standard resource for quota"#.into(),
            ],
        ),
        (
            quota(json!({"hard": {"configmaps": "1"}, "scopes": ["BestEffort", "NotBestEffort"]})),
            vec![
                r#"spec.scopes: Invalid value: ["BestEffort","NotBestEffort"]: unsupported scope applied to resource"#.into(),
                r#"spec.scopes: Invalid value: ["BestEffort","NotBestEffort"]: unsupported scope applied to resource"#.into(),
                r#"spec.scopes: Invalid value: ["BestEffort","NotBestEffort"]: conflicting scopes"#.into(),
            ],
        ),
        (
            quota(json!({"hard": {"pods": "1"}, "scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In"}]}})),
            vec!["spec.scopeSelector.matchExpressions.values: Required value: must be at least one value when `operator` is 'In' or 'NotIn' for scope selector".into()],
        ),
        (quota(json!({"hard": {"hugepages-2Mi": "1", "requests.storage": "1Gi", "count/x.y": "1"}})), vec![]),
        (
            limits(json!({"type": "Node"})),
            vec![r#"spec.limits[0].type: Invalid value: "Node": must be a standard limit type or fully qualified"#.into()],
        ),
        (
            limits(json!({"type": "Pod", "max": {"cpu": "1"}, "min": {"cpu": "500m"}, "maxLimitRequestRatio": {"cpu": "3"}})),
            vec!["spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: 3: ratio 3 is greater than max/min = 2.000000".into()],
        ),
        (
            limits(json!({"type": "Container", "min": {"cpu": "2"}, "defaultRequest": {"cpu": "1"}, "default": {"cpu": "1"}})),
            vec![
                "spec.limits[0].defaultRequest[cpu]: Invalid value: 1: min value 2 is greater than default request value 1".into(),
                "spec.limits[0].default[cpu]: Invalid value: 2: min value 2 is greater than default value 1".into(),
            ],
        ),
        (
            limits(json!({"type": "PersistentVolumeClaim", "default": {"storage": "1"}})),
            vec!["spec.limits[0].limits: Required value: either minimum or maximum storage value is required, but neither was provided".into()],
        ),
        (
            node(json!({"taints": [{"key": "a", "effect": "Never"}, {"key": "b", "effect": "NoExecute"}, {"key": "b", "effect": "NoExecute"}]})),
            vec![
                r#"metadata.taints[0].effect: Unsupported value: "Never": supported values: "NoSchedule", "PreferNoSchedule", "NoExecute""#.into(),
                r#"metadata.taints[2]: Duplicate value: {"effect":"NoExecute","key":"b"}: taints must be unique by key and effect pair"#.into(),
            ],
        ),
        (
            node(json!({"podCIDRs": ["10.0.0.0/24", "10.0.1.0/24"]})),
            vec![r#"spec.podCIDRs: Invalid value: ["10.0.0.0/24","10.0.1.0/24"]: may specify no more than one CIDR for each IP family"#.into()],
        ),
        (
            svc(json!({"spec": {"type": "ExternalName", "externalName": "a.b", "clusterIP": "", "ipFamilyPolicy": "SingleStack"}})),
            vec!["spec.ipFamilyPolicy: Forbidden: may not be set for ExternalName services".into()],
        ),
        (
            svc(json!({"spec": {"loadBalancerSourceRanges": ["x"]}})),
            vec![
                "spec.LoadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'".into(),
                r#"spec.LoadBalancerSourceRanges[0]: Invalid value: "x": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"#.into(),
            ],
        ),
        (
            svc(json!({"spec": {"externalIPs": ["169.254.0.1"]}})),
            vec![r#"spec.externalIPs[0]: Invalid value: "169.254.0.1": may not be in the link-local range (169.254.0.0/16, fe80::/10)"#.into()],
        ),
        (
            limited(json!({"things": "1"})),
            ["limits", "requests"]
                .into_iter()
                .flat_map(|list| {
                    let at = format!(r#"spec.containers[0].resources.{list}[things]: Invalid value: "things""#);
                    [
                        format!("{at}: must be a standard resource type or fully qualified"),
                        format!("{at}: must be a standard resource for containers"),
                    ]
                })
                .collect(),
        ),
        (
            limited(json!({"hugepages-2Mi": "3Mi", "cpu": "1"})),
            vec![format!(r#"{at}[hugepages-2Mi]: Invalid value: "3Mi": 3Mi is not positive integer multiple of hugepages-2Mi"#),
                 r#"spec.containers[0].resources.requests[hugepages-2Mi]: Invalid value: "3Mi": 3Mi is not positive integer multiple of hugepages-2Mi"#.into()],
        ),
        (
            limited(json!({"example.com/x": "1500m"})),
            vec![format!("{at}[example.com/x]: Invalid value: 1500m: must be an integer"),
                 "spec.containers[0].resources.requests[example.com/x]: Invalid value: 1500m: must be an integer".into()],
        ),
        (binding(json!({"kind": "ServiceAccount", "name": "s"})), vec![]),
        (
            binding(json!({"kind": "User", "name": ""})),
            vec![
                "subjects[0].name: Required value".into(),
                r#"subjects[0].name: Invalid value: "": user name cannot be empty"#.into(),
            ],
        ),
        (
            binding(json!({"kind": "Robot", "name": "s"})),
            vec![r#"subjects[0].kind: Unsupported value: "Robot": supported values: "ServiceAccount", "User", "Group""#.into()],
        ),
        (
            ("v1/Secret", json!({"metadata": meta, "type": "kubernetes.io/ssh-auth", "data": {"ssh-privatekey": ""}})),
            vec!["data[ssh-privatekey]: Required value".into()],
        ),
        (
            ("v1/Secret", json!({"metadata": meta, "type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "ew=="}})),
            vec![r#"data[.dockerconfigjson]: Invalid value: "<secret contents redacted>": unexpected end of JSON input"#.into()],
        ),
        (
            ("v1/Pod", pod(json!({"metadata": {"annotations": {
                "controller.kubernetes.io/pod-deletion-cost": "+1", "seccomp.security.alpha.kubernetes.io/pod": "x",
                "container.apparmor.security.beta.kubernetes.io/none": "y"}}}))),
            vec![
                r#"metadata.annotations[container.apparmor.security.beta.kubernetes.io/none]: Invalid value: "none": container not found"#.into(),
                r#"metadata.annotations[container.apparmor.security.beta.kubernetes.io/none]: Invalid value: "y": invalid AppArmor profile name: "y""#.into(),
                r#"metadata.annotations[controller.kubernetes.io/pod-deletion-cost]: Invalid value: "+1": must be a 32bit integer"#.into(),
                r#"metadata.annotations.seccomp.security.alpha.kubernetes.io/pod: Invalid value: "x": must be a valid seccomp profile"#.into(),
            ],
        ),
    ];
    for ((path, mut object), expected) in table {
        let shown = object.to_string();
        assert_eq!(create(path, &mut object), expected, "{path} {shown}");
    }
}

#[test]
fn statuses() {
    let meta = json!({"name": "a", "namespace": "b"});
    let balanced = json!({"spec": {"type": "LoadBalancer"}, "status": {"loadBalancer": {"ingress": [{"ip": "x"}, {"hostname": "1.2.3.4"}]}}});
    let table = [
        (
            "v1/Service",
            service(json!({"status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}}})),
            vec![r#"status.loadBalancer.ingress: Forbidden: may only be used when `spec.type` is "LoadBalancer""#],
        ),
        (
            "v1/Service",
            service(balanced),
            vec![
                r#"status.loadBalancer.ingress[0].ip: Invalid value: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"#,
                r#"status.loadBalancer.ingress[1].hostname: Invalid value: "1.2.3.4": must be a DNS name, not an IP address"#,
            ],
        ),
        (
            "v1/ReplicationController",
            json!({"metadata": meta, "status": {"replicas": 1, "readyReplicas": 2}}),
            vec!["status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas"],
        ),
        (
            "v1/Node",
            json!({"metadata": {"name": "a"}, "status": {"capacity": {"cpu": "-1"}}}),
            vec![
                r#"status.capacity.cpu: Invalid value: "-1": must be greater than or equal to 0"#,
                r#"status.allocatable.cpu: Invalid value: "-1": must be greater than or equal to 0"#,
            ],
        ),
    ];
    for (path, mut object, expected) in table {
        let kind = crate::kind(path);
        kind.default(&mut object);
        let old = object.clone();
        assert_eq!(crate::messages(kind.validate_status_update(&object, &old)), expected, "{path} {object}");
    }
}
