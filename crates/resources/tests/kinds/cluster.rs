//! The kinds by which a cluster is set up: storage, networking, admission, certificates and the like.

use base64::Engine;
use serde_json::{Value, json};

use crate::{create, kind, merge, update};

/// A valid object of each kind.
fn valid(path: &str) -> Value {
    let spec = |spec: Value| json!({"metadata": {"name": "a"}, "spec": spec});
    let webhook = json!({"name": "a.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"service": {"name": "s", "namespace": "n", "path": "/validate"}},
        "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]});
    let mut object = match path {
        "scheduling.k8s.io/v1/PriorityClass" => json!({"metadata": {"name": "a"}, "value": 5}),
        "node.k8s.io/v1/RuntimeClass" => json!({"metadata": {"name": "a"}, "handler": "runc"}),
        "storage.k8s.io/v1/StorageClass" => json!({"metadata": {"name": "a"}, "provisioner": "example.com/p"}),
        "storage.k8s.io/v1/CSIDriver" => spec(json!({})),
        "storage.k8s.io/v1/CSINode" => {
            spec(json!({"drivers": [{"name": "d", "nodeID": "n", "topologyKeys": ["zone"]}]}))
        }
        "storage.k8s.io/v1/VolumeAttachment" => {
            spec(json!({"attacher": "d", "nodeName": "n", "source": {"persistentVolumeName": "v"}}))
        }
        "storage.k8s.io/v1/CSIStorageCapacity" => {
            json!({"metadata": {"name": "a", "namespace": "b"}, "storageClassName": "s", "capacity": "1Gi"})
        }
        "storage.k8s.io/v1/VolumeAttributesClass" => {
            json!({"metadata": {"name": "a"}, "driverName": "d", "parameters": {"iops": "5"}})
        }
        "networking.k8s.io/v1/Ingress" => json!({"metadata": {"name": "a", "namespace": "b"}, "spec": {"rules": [
            {"host": "example.com", "http": {"paths": [{"path": "/", "pathType": "Prefix",
                "backend": {"service": {"name": "s", "port": {"number": 80}}}}]}}]}}),
        "networking.k8s.io/v1/IngressClass" => spec(json!({"controller": "example.com/c"})),
        "networking.k8s.io/v1/NetworkPolicy" => json!({"metadata": {"name": "a", "namespace": "b"},
            "spec": {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}],
                "ports": [{"port": 80, "endPort": 90}]}]}}),
        "networking.k8s.io/v1/IPAddress" => json!({"metadata": {"name": "10.43.0.1"},
            "spec": {"parentRef": {"resource": "services", "namespace": "default", "name": "kubernetes"}}}),
        "networking.k8s.io/v1/ServiceCIDR" => spec(json!({"cidrs": ["10.43.0.0/16"]})),
        "admissionregistration.k8s.io/v1/MutatingWebhookConfiguration"
        | "admissionregistration.k8s.io/v1/ValidatingWebhookConfiguration" => {
            json!({"metadata": {"name": "a"}, "webhooks": [webhook]})
        }
        "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy" => spec(json!({
            "matchConstraints": {"resourceRules": [webhook["rules"][0]]},
            "validations": [{"expression": "object.spec.replicas <= 5"}]})),
        "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicyBinding" => {
            spec(json!({"policyName": "p", "validationActions": ["Deny"]}))
        }
        "certificates.k8s.io/v1/CertificateSigningRequest" => {
            spec(json!({"signerName": "example.com/s", "usages": ["client auth"], "request": pem(&[0x30, 1, 0])}))
        }
        "flowcontrol.apiserver.k8s.io/v1/FlowSchema" => spec(json!({"priorityLevelConfiguration": {"name": "p"},
            "rules": [{"subjects": [{"kind": "User", "user": {"name": "u"}}],
                "resourceRules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "namespaces": ["*"]}]}]})),
        "flowcontrol.apiserver.k8s.io/v1/PriorityLevelConfiguration" => {
            spec(json!({"type": "Limited", "limited": {"limitResponse": {"type": "Queue", "queuing": {}}}}))
        }
        other => panic!("no example of {other}"),
    };
    object["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
    object
}

/// A request in PEM, as JSON carries bytes.
fn pem(der: &[u8]) -> String {
    let base64 = base64::engine::general_purpose::STANDARD;
    let body = base64.encode(der);
    base64.encode(format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n"))
}

const PRIORITY_CLASS: &str = "scheduling.k8s.io/v1/PriorityClass";
const STORAGE_CLASS: &str = "storage.k8s.io/v1/StorageClass";
const CSI_DRIVER: &str = "storage.k8s.io/v1/CSIDriver";
const CSI_NODE: &str = "storage.k8s.io/v1/CSINode";
const ATTACHMENT: &str = "storage.k8s.io/v1/VolumeAttachment";
const CAPACITY: &str = "storage.k8s.io/v1/CSIStorageCapacity";
const ATTRIBUTES: &str = "storage.k8s.io/v1/VolumeAttributesClass";
const INGRESS: &str = "networking.k8s.io/v1/Ingress";
const INGRESS_CLASS: &str = "networking.k8s.io/v1/IngressClass";
const NETWORK_POLICY: &str = "networking.k8s.io/v1/NetworkPolicy";
const IP_ADDRESS: &str = "networking.k8s.io/v1/IPAddress";
const SERVICE_CIDR: &str = "networking.k8s.io/v1/ServiceCIDR";
const MUTATING: &str = "admissionregistration.k8s.io/v1/MutatingWebhookConfiguration";
const VALIDATING: &str = "admissionregistration.k8s.io/v1/ValidatingWebhookConfiguration";
const POLICY: &str = "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy";
const BINDING: &str = "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicyBinding";
const CSR: &str = "certificates.k8s.io/v1/CertificateSigningRequest";
const FLOW_SCHEMA: &str = "flowcontrol.apiserver.k8s.io/v1/FlowSchema";
const PRIORITY_LEVEL: &str = "flowcontrol.apiserver.k8s.io/v1/PriorityLevelConfiguration";
const RUNTIME_CLASS: &str = "node.k8s.io/v1/RuntimeClass";

#[test]
fn rows_of_valid_objects() {
    let now = "2026-01-01T00:05:00Z".parse().expect("a time");
    let table = [
        (PRIORITY_CLASS, json!(["a", 5, false, "5m", "PreemptLowerPriority"])),
        (RUNTIME_CLASS, json!(["a", "runc", "5m"])),
        (STORAGE_CLASS, json!(["a", "example.com/p", "Delete", "Immediate", false, "5m"])),
        (CSI_DRIVER, json!(["a", true, false, false, "<unset>", false, "Persistent", "5m"])),
        (CSI_NODE, json!(["a", 1, "5m"])),
        (ATTACHMENT, json!(["a", "d", "v", "n", false, "5m"])),
        (CAPACITY, json!(["a", "s", "1Gi"])),
        (ATTRIBUTES, json!(["a", "d", "5m"])),
        (INGRESS, json!(["a", "<none>", "example.com", "", "80", "5m"])),
        (INGRESS_CLASS, json!(["a", "example.com/c", "<none>", "5m"])),
        (NETWORK_POLICY, json!(["a", "<none>", "5m"])),
        (IP_ADDRESS, json!(["10.43.0.1", "services/default/kubernetes"])),
        (SERVICE_CIDR, json!(["a", "10.43.0.0/16", "5m"])),
        (MUTATING, json!(["a", 1, "5m"])),
        (VALIDATING, json!(["a", 1, "5m"])),
        (POLICY, json!(["a", 1, "<unset>", "5m"])),
        (BINDING, json!(["a", "p", "<unset>", "5m"])),
        (CSR, json!(["a", "5m", "example.com/s", "", "<none>", "Pending"])),
        (FLOW_SCHEMA, json!(["a", "p", 1000, "<none>", "5m", "?"])),
        (PRIORITY_LEVEL, json!(["a", "Limited", 30, 64, 8, 50, "5m"])),
    ];
    for (path, expected) in table {
        let mut object = valid(path);
        assert_eq!(create(path, &mut object), Vec::<String>::new(), "{path}");
        assert_eq!(update(path, &mut object.clone(), &object), Vec::<String>::new(), "{path}: no change, no error");
        assert_eq!(json!(kind(path).cells(&object, now)), expected, "{path}");
    }
}

#[test]
fn defaults() {
    let table = [
        (MUTATING, "/webhooks/0/reinvocationPolicy", json!("Never")),
        (VALIDATING, "/webhooks/0/timeoutSeconds", json!(10)),
        (VALIDATING, "/webhooks/0/failurePolicy", json!("Fail")),
        (VALIDATING, "/webhooks/0/namespaceSelector", json!({})),
        (VALIDATING, "/webhooks/0/rules/0/scope", json!("*")),
        (VALIDATING, "/webhooks/0/clientConfig/service/port", json!(443)),
        (POLICY, "/spec/matchConstraints/matchPolicy", json!("Equivalent")),
        (NETWORK_POLICY, "/spec/policyTypes", json!(["Ingress"])),
        (NETWORK_POLICY, "/spec/ingress/0/ports/0/protocol", json!("TCP")),
        (CSI_DRIVER, "/spec/fsGroupPolicy", json!("ReadWriteOnceWithFSType")),
        (
            PRIORITY_LEVEL,
            "/spec/limited/limitResponse/queuing",
            json!({"queues": 64, "handSize": 8, "queueLengthLimit": 50}),
        ),
    ];
    for (path, pointer, expected) in table {
        let mut object = valid(path);
        kind(path).default(&mut object);
        assert_eq!(object.pointer(pointer), Some(&expected), "{path} {pointer}");
    }
}

#[test]
fn mistakes() {
    let webhook = |patch: Value| {
        let mut webhook = valid(VALIDATING)["webhooks"][0].clone();
        merge(&mut webhook, patch);
        json!({"webhooks": [webhook]})
    };
    let route = |patch: Value| {
        let mut route = valid(INGRESS).pointer("/spec/rules/0/http/paths/0").cloned().expect("a path");
        merge(&mut route, patch);
        json!({"spec": {"rules": [{"http": {"paths": [route]}}]}})
    };
    let rule = |resources: Value| {
        webhook(
            json!({"rules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": resources}]}),
        )
    };
    let table = [
        (
            PRIORITY_CLASS,
            json!({"value": 1_000_000_001}),
            "value: Forbidden: maximum allowed value of a user defined priority is 1000000000",
        ),
        (
            PRIORITY_CLASS,
            json!({"metadata": {"name": "system-mine"}}),
            "metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. error: system-mine is not a known system priority class",
        ),
        (RUNTIME_CLASS, json!({"handler": "A"}), r#"handler: Invalid value: "A": a lowercase RFC 1123 label"#),
        (STORAGE_CLASS, json!({"provisioner": null}), "provisioner: Required value"),
        (STORAGE_CLASS, json!({"reclaimPolicy": "Recycle"}), r#"reclaimPolicy: Unsupported value: "Recycle""#),
        (
            CSI_DRIVER,
            json!({"spec": {"tokenRequests": [{"audience": "a", "expirationSeconds": 5}]}}),
            "spec.tokenRequests[0].expirationSeconds: Invalid value: 5: may not specify a duration less than 10 minutes",
        ),
        (CSI_NODE, json!({"spec": {"drivers": [{"name": "d"}]}}), "spec.drivers[0].nodeID: Required value"),
        (
            ATTACHMENT,
            json!({"spec": {"source": {"persistentVolumeName": null}}}),
            "spec.source: Required value: must specify exactly one",
        ),
        (CAPACITY, json!({"capacity": "-1"}), r#"capacity: Invalid value: "-1": must be greater than or equal to 0"#),
        (
            ATTRIBUTES,
            json!({"parameters": null}),
            "parameters: Required value: must contain at least one key/value pair",
        ),
        (
            INGRESS,
            json!({"spec": {"rules": null}}),
            "spec: Invalid value: \"null\": either `defaultBackend` or `rules` must be specified",
        ),
        (
            INGRESS,
            route(json!({"path": "a"})),
            r#"spec.rules[0].http.paths[0].path: Invalid value: "a": must be an absolute path"#,
        ),
        (
            INGRESS,
            route(json!({"path": "/a//b"})),
            r#"spec.rules[0].http.paths[0].path: Invalid value: "/a//b": must not contain '//'"#,
        ),
        (
            INGRESS,
            route(json!({"pathType": null})),
            "spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified",
        ),
        (
            INGRESS,
            route(json!({"backend": {"service": {"port": null}}})),
            "spec.rules[0].http.paths[0].backend: Required value: port name or number is required",
        ),
        (
            INGRESS,
            json!({"spec": {"rules": [{"host": "1.2.3.4"}]}}),
            r#"spec.rules[0].host: Invalid value: "1.2.3.4": must be a DNS name, not an IP address"#,
        ),
        (
            INGRESS_CLASS,
            json!({"spec": {"controller": "c"}}),
            r#"spec.controller: Invalid value: "c": must be a domain-prefixed path"#,
        ),
        (
            INGRESS_CLASS,
            json!({"spec": {"parameters": {"kind": "K", "name": "n", "scope": "Namespace"}}}),
            "spec.parameters.namespace: Required value: `parameters.scope` is set to 'Namespace'",
        ),
        (
            NETWORK_POLICY,
            json!({"spec": {"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}]}]}}),
            r#"spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: "11.0.0.0/16": must be a strict subset of `cidr`"#,
        ),
        (
            NETWORK_POLICY,
            json!({"spec": {"egress": [{"to": [{}]}]}}),
            "spec.egress[0].to[0]: Required value: must specify a peer",
        ),
        (
            NETWORK_POLICY,
            json!({"spec": {"egress": [{"ports": [{"port": 80, "endPort": 79}]}]}}),
            "spec.egress[0].ports[0].endPort: Invalid value: 79: must be greater than or equal to `port`",
        ),
        (
            IP_ADDRESS,
            json!({"metadata": {"name": "010.1.1.1"}}),
            r#"metadata.name: Invalid value: "010.1.1.1": must be a valid IP address"#,
        ),
        (IP_ADDRESS, json!({"spec": {"parentRef": null}}), "spec.parentRef: Required value"),
        (SERVICE_CIDR, json!({"spec": {"cidrs": []}}), "spec.cidrs: Required value: at least one CIDR required"),
        (
            SERVICE_CIDR,
            json!({"spec": {"cidrs": ["10.0.0.0/16", "10.1.0.0/16"]}}),
            r#"spec.cidrs: Invalid value: ["10.0.0.0/16","10.1.0.0/16"]: may specify no more than one IP for each IP family"#,
        ),
        (
            VALIDATING,
            webhook(json!({"name": "a.b"})),
            r#"webhooks[0].name: Invalid value: "a.b": should be a domain with at least three segments separated by dots"#,
        ),
        (
            VALIDATING,
            webhook(json!({"sideEffects": "Some"})),
            r#"webhooks[0].sideEffects: Unsupported value: "Some": supported values: "None", "NoneOnDryRun""#,
        ),
        (
            VALIDATING,
            webhook(json!({"admissionReviewVersions": ["v2"]})),
            r#"webhooks[0].admissionReviewVersions: Invalid value: ["v2"]: must include at least one of v1, v1beta1"#,
        ),
        (
            MUTATING,
            webhook(json!({"clientConfig": {"service": null, "url": "http://example.com/"}})),
            r#"webhooks[0].clientConfig.url: Invalid value: "http": 'https' is the only allowed URL scheme; desired format: https://host[:port]/path"#,
        ),
        (
            MUTATING,
            webhook(json!({"clientConfig": {"url": "https://example.com/"}})),
            "webhooks[0].clientConfig: Required value: exactly one of url or service is required",
        ),
        (
            MUTATING,
            rule(json!(["*", "pods"])),
            r#"webhooks[0].rules[0].resources: Invalid value: ["*","pods"]: if '*' is present, must not specify other resources without subresources"#,
        ),
        (
            MUTATING,
            webhook(json!({"timeoutSeconds": 31})),
            "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds",
        ),
        (POLICY, json!({"spec": {"matchConstraints": null}}), "spec.matchConstraints: Required value"),
        (
            POLICY,
            json!({"spec": {"validations": [{"expression": " "}]}}),
            "spec.validations[0].expression: Required value",
        ),
        (
            BINDING,
            json!({"spec": {"validationActions": ["Deny", "Warn"]}}),
            r#"spec.validationActions: Invalid value: ["Deny","Warn"]: must not contain both Deny and Warn"#,
        ),
        (
            BINDING,
            json!({"spec": {"paramRef": {"parameterNotFoundAction": "Deny"}}}),
            "spec.paramRef: Required value: one of name or selector must be specified",
        ),
        (
            CSR,
            json!({"spec": {"request": "AA=="}}),
            r#"spec.request: Invalid value: "AA==": PEM block type must be CERTIFICATE REQUEST"#,
        ),
        (CSR, json!({"spec": {"usages": null}}), "spec.usages: Required value: usages required"),
        (
            CSR,
            json!({"spec": {"signerName": "s"}}),
            r#"spec.signerName: Invalid value: "s": must be a fully qualified domain and path"#,
        ),
        (
            CSR,
            json!({"spec": {"expirationSeconds": 599}}),
            "spec.expirationSeconds: Invalid value: 599: may not specify a duration less than 600 seconds (10 minutes)",
        ),
        (
            FLOW_SCHEMA,
            json!({"spec": {"matchingPrecedence": 1}}),
            "spec.matchingPrecedence: Invalid value: 1: only the schema named 'exempt' may have matchingPrecedence 1",
        ),
        (
            FLOW_SCHEMA,
            json!({"spec": {"rules": [{"subjects": [{"kind": "Group", "user": {"name": "u"}}], "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]}]}}),
            "spec.rules[0].subjects[0].group: Required value: group is required when subject kind is 'Group'",
        ),
        (
            PRIORITY_LEVEL,
            json!({"spec": {"limited": {"limitResponse": {"queuing": {"handSize": 65}}}}}),
            "spec.limited.limitResponse.queuing.handSize: Invalid value: 65: should not be greater than queues (64)",
        ),
        (
            PRIORITY_LEVEL,
            json!({"spec": {"limited": null}}),
            "spec.limited: Required value: must not be empty when type is Limited",
        ),
    ];
    for (path, patch, expected) in table {
        let mut object = valid(path);
        merge(&mut object, patch);
        let errors = create(path, &mut object);
        assert!(errors.iter().any(|error| error.starts_with(expected)), "{path}\nwants {expected}\n got {errors:#?}");
        assert!(errors.len() <= 2, "{path} {expected}: one mistake, one message: {errors:#?}");
    }
}

#[test]
fn what_may_not_change() {
    let table = [
        (PRIORITY_CLASS, json!({"value": 6}), "value: Forbidden: may not be changed in an update."),
        (RUNTIME_CLASS, json!({"handler": "kata"}), r#"handler: Invalid value: "kata": field is immutable"#),
        (
            STORAGE_CLASS,
            json!({"parameters": {"a": "b"}}),
            "parameters: Forbidden: updates to parameters are forbidden.",
        ),
        (
            CSI_DRIVER,
            json!({"spec": {"attachRequired": false}}),
            "spec.attachedRequired: Invalid value: false: field is immutable",
        ),
        (
            CSI_NODE,
            json!({"spec": {"drivers": [{"name": "d", "nodeID": "m", "topologyKeys": ["zone"]}]}}),
            "spec.drivers[0]: Invalid value: ",
        ),
        (ATTACHMENT, json!({"spec": {"nodeName": "m"}}), "spec: Invalid value: "),
        (ATTRIBUTES, json!({"driverName": "e"}), "driverName: Forbidden: updates to driverName are forbidden."),
        (INGRESS_CLASS, json!({"spec": {"controller": "example.com/d"}}), "spec.controller: Invalid value: "),
        (IP_ADDRESS, json!({"spec": {"parentRef": {"name": "b"}}}), "spec.parentRef: Invalid value: "),
        (SERVICE_CIDR, json!({"spec": {"cidrs": ["10.44.0.0/16"]}}), "spec.cidrs: Invalid value: "),
    ];
    for (path, patch, expected) in table {
        let mut old = valid(path);
        create(path, &mut old);
        let mut new = old.clone();
        merge(&mut new, patch);
        let errors = update(path, &mut new, &old);
        assert!(errors.iter().any(|error| error.starts_with(expected)), "{path}\nwants {expected}\n got {errors:#?}");
    }
}

#[test]
fn each_writer_of_a_signing_request_has_its_part() {
    let csr = kind(CSR);
    let mut old = valid(CSR);
    assert_eq!(create(CSR, &mut old), Vec::<String>::new());
    let condition = |type_: &str| json!({"type": type_, "status": "True"});
    let types = |object: &Value| -> Vec<String> {
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().map(|condition| condition["type"].as_str().unwrap_or_default().to_owned()).collect()
    };

    let mut approved = old.clone();
    approved["status"] = json!({"conditions": [condition("Approved"), condition("Failed")], "certificate": "AA=="});
    approved["spec"]["username"] = json!("somebody else");
    csr.prepare_subresource_update("approval", &mut approved, &old);
    assert_eq!(types(&approved), ["Approved", "Failed"], "conditions are the approver's");
    assert_eq!((&approved["status"]["certificate"], &approved["spec"]), (&Value::Null, &old["spec"]));
    assert!(approved["status"]["conditions"][0]["lastUpdateTime"].is_string());
    assert_eq!(csr.validate_subresource_update("approval", &approved, &old), []);

    let mut both = approved.clone();
    both["status"]["conditions"] = json!([condition("Approved"), condition("Denied")]);
    csr.prepare_subresource_update("approval", &mut both, &approved);
    let errors = csr.validate_subresource_update("approval", &both, &approved);
    assert!(errors[0].to_string().contains("mutually exclusive"), "{errors:?}");

    let mut failed = approved.clone();
    failed["status"]["conditions"] = json!([condition("Denied"), condition("Failed")]);
    csr.prepare_status_update(&mut failed, &approved);
    let errors = crate::messages(csr.validate_status_update(&failed, &approved));
    let forbidden = |what: &str| format!("status.conditions: Forbidden: updates may not {what}");
    assert!(errors.contains(&forbidden(r#"remove a condition of type "Approved""#)), "{errors:?}");
    assert!(
        errors.contains(&forbidden(r#"add a condition of type "Denied""#)),
        "a signer does not approve: {errors:?}"
    );

    let mut plain = approved.clone();
    plain["spec"]["request"] = json!("");
    plain["status"] = json!({});
    assert_eq!(update(CSR, &mut plain, &approved), Vec::<String>::new());
    assert_eq!((&plain["spec"], &plain["status"]), (&approved["spec"], &approved["status"]));
}

#[test]
fn default_storage_classes_say_so() {
    let mut class = valid(STORAGE_CLASS);
    class["metadata"]["annotations"] = json!({"storageclass.kubernetes.io/is-default-class": "true"});
    let now = "2026-01-01T00:05:00Z".parse().expect("a time");
    assert_eq!(kind(STORAGE_CLASS).cells(&class, now)[0], "a (default)");
}

#[test]
fn system_classes_are_valid() {
    for mut class in resources::bootstrap::priority_classes() {
        assert_eq!(create(PRIORITY_CLASS, &mut class), Vec::<String>::new(), "{class}");
    }
}
