//! The decoder against what the Go server answers.

use serde_json::json;

use super::{super::testing::TYPES, *};

fn type_of(value: &Value) -> &'static Type {
    let gvk = GroupVersionKind::of(value).unwrap();
    let group = match &*gvk.group {
        "" => "core",
        "coordination.k8s.io" => "coordination",
        group => group,
    };
    TYPES.get(&format!("io.k8s.api.{group}.{}.{}", gvk.version, gvk.kind)).unwrap()
}

fn checked(mut value: Value, validation: FieldValidation) -> Result<(Value, Vec<String>)> {
    let warnings = check(&TYPES, type_of(&value), &mut value, validation)?;
    Ok((value, warnings))
}

fn pod(spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "spec": spec})
}

fn deployment(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": spec})
}

#[test]
fn wrong_types_are_refused_in_go_s_words() {
    for (object, error) in [
        (
            deployment(json!({"replicas": "3"})),
            "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal string into Go \
             struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            deployment(json!({"replicas": 1.5})),
            "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal number 1.5 into Go \
             struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            deployment(json!({"replicas": 4294967296u64})),
            "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal number 4294967296 \
             into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            pod(json!({"containers": [{"name": "a", "image": 5}]})),
            "Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal number into Go struct field \
             Container.spec.containers.image of type string",
        ),
        (
            pod(json!({"containers": {}})),
            "Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal object into Go struct field \
             PodSpec.spec.containers of type []v1.Container",
        ),
        (
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {"a": true}}}),
            "Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal bool into Go struct field \
             ObjectMeta.metadata.labels of type string",
        ),
        (
            pod(json!({"containers": [{"resources": {"limits": {"cpu": "1x"}}}]})),
            "Pod in version \"v1\" cannot be handled as a Pod: quantities must match the regular expression \
             '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        (
            json!({"apiVersion": "v1", "kind": "Secret", "data": {"a": "%%%"}}),
            "Secret in version \"v1\" cannot be handled as a Secret: illegal base64 data at input byte 0",
        ),
    ] {
        assert_eq!(checked(object, FieldValidation::Ignore).unwrap_err().to_string(), error);
    }
    let error = check(&TYPES, type_of(&pod(json!({}))), &mut json!([]), FieldValidation::Strict).unwrap_err();
    assert_eq!((error.code(), &*error.to_string()), (400, "json: cannot unmarshal array into Go value of type v1.Pod"));
}

#[test]
fn unknown_fields_are_pruned_warned_about_or_refused() {
    let object = || pod(json!({"foo": 1, "containers": [{"name": "a", "bar": {}}], "nodeSelector": {"any": "key"}}));
    let pruned = pod(json!({"containers": [{"name": "a"}], "nodeSelector": {"any": "key"}}));
    let warnings = [r#"unknown field "spec.containers[0].bar""#, r#"unknown field "spec.foo""#];
    assert_eq!(checked(object(), FieldValidation::Ignore).unwrap(), (pruned.clone(), vec![]));
    assert_eq!(checked(object(), FieldValidation::Warn).unwrap(), (pruned, warnings.map(String::from).to_vec()));
    assert_eq!(
        checked(object(), FieldValidation::Strict).unwrap_err().to_string(),
        format!(
            "Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: {}, {}",
            warnings[0], warnings[1]
        )
    );
}

#[test]
fn values_come_out_canonical() {
    for (given, canonical) in [
        // Null is absent, zero is absent unless it is a statement.
        (
            pod(json!({"hostNetwork": false, "dnsPolicy": "", "activeDeadlineSeconds": 0, "volumes": null,
                "tolerations": [], "nodeSelector": {}})),
            pod(json!({"activeDeadlineSeconds": 0})),
        ),
        (
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"creationTimestamp": null, "labels": {"a": null}},
                "status": {}}),
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {"a": ""}}, "status": {}}),
        ),
        (
            pod(json!({"containers": [{"name": "", "resources": {"limits": {"cpu": 1.5, "memory": "1024Mi"}}}],
                "volumes": [{"name": "a", "emptyDir": {"sizeLimit": "0.5Gi"}}]})),
            pod(json!({"containers": [{"name": "", "resources": {"limits": {"cpu": "1500m", "memory": "1Gi"}}}],
                "volumes": [{"name": "a", "emptyDir": {"sizeLimit": "512Mi"}}]})),
        ),
        (
            json!({"apiVersion": "v1", "kind": "Pod", "status": {"startTime": "2024-05-01T12:00:00.5+02:00"}}),
            json!({"apiVersion": "v1", "kind": "Pod", "status": {"startTime": "2024-05-01T10:00:00Z"}}),
        ),
        (
            json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "spec": {"renewTime": "2024-05-01T12:00:00Z"}}),
            json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "spec": {"renewTime": "2024-05-01T12:00:00.000000Z"}}),
        ),
        (
            json!({"apiVersion": "v1", "kind": "Secret", "data": {"a": "YWJj\nZGVm\n", "b": null}}),
            json!({"apiVersion": "v1", "kind": "Secret", "data": {"a": "YWJjZGVm", "b": ""}}),
        ),
        (
            deployment(json!({"replicas": 0, "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}}})),
            deployment(json!({"replicas": 0, "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}}})),
        ),
        (
            json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "data": {"any": [{"thing": null}]}}),
            json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "data": {"any": [{"thing": null}]}}),
        ),
    ] {
        assert_eq!(checked(given, FieldValidation::Strict).unwrap(), (canonical, vec![]));
    }
}

#[test]
fn schema_unions_take_both_forms() {
    let type_ = TYPES.get("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps").unwrap();
    let mut schema = json!({"items": [{"type": "string"}], "additionalProperties": false, "default": {"any": [1]},
        "properties": {"a": {"items": {"type": "x"}, "additionalProperties": {"type": "y"}}},
        "dependencies": {"b": ["c"]}});
    let before = schema.clone();
    assert_eq!(check(&TYPES, type_, &mut schema, FieldValidation::Strict).unwrap(), [""; 0]);
    assert_eq!(schema, before);
    let wrong = check(&TYPES, type_, &mut json!({"additionalProperties": 1}), FieldValidation::Strict);
    assert_eq!(wrong.unwrap_err().to_string(), "boolean or JSON schema expected");
}

#[test]
fn json_duplicates_are_found_and_joined_with_unknown_fields() {
    let text = br#"{"apiVersion":"v1","kind":"Pod","spec":{"dnsPolicy":"a","x":1,"dnsPolicy":"b",
        "containers":[{"name":"a","name":"b"}]}}"#;
    let (mut value, mut duplicates) = json(text).unwrap();
    assert_eq!(duplicates, [r#"duplicate field "spec.dnsPolicy""#, r#"duplicate field "spec.containers[0].name""#]);
    assert_eq!(value["spec"]["dnsPolicy"], "b");
    let type_ = type_of(&value);
    duplicates.extend(unknown(&TYPES, type_, &mut value).unwrap());
    let error = judge(&value, in_order(text, duplicates), FieldValidation::Strict).unwrap_err().to_string();
    assert!(
        error.ends_with(
            r#"strict decoding error: unknown field "spec.x", duplicate field "spec.dnsPolicy", duplicate field "spec.containers[0].name""#
        ),
        "{error}"
    );
}

#[test]
fn syntax_errors_read_as_go_s() {
    for (text, error) in [
        ("", "unexpected end of JSON input"),
        ("{", "unexpected end of JSON input"),
        ("{} x", "invalid character 'x' after top-level value"),
        ("hello", "invalid character 'h' looking for beginning of value"),
        ("{a: 1}", "invalid character 'a' looking for beginning of object key string"),
        ("{\"a\" 1}", "invalid character '1' after object key"),
        ("{\"a\": 1 \"b\": 2}", "invalid character '\"' after object key:value pair"),
        ("{\n\"a\": [1 2]}", "invalid character '2' after array element"),
        ("{\"a\": 1,}", "invalid character '}' looking for beginning of object key string"),
        ("{\"a\": nil}", "invalid character 'i' in literal null (expecting 'u')"),
        ("[1,]", "invalid character ']' looking for beginning of value"),
    ] {
        assert_eq!(json(text.as_bytes()).unwrap_err(), error, "{text}");
    }
}

#[test]
fn yaml_duplicates_read_as_go_s() {
    let (mut value, mut duplicates) = yaml(b"apiVersion: v1\nkind: Pod\nkind: Pod\nspec: {foo: 1}\n").unwrap();
    let type_ = type_of(&value);
    duplicates.extend(unknown(&TYPES, type_, &mut value).unwrap());
    let error = judge(&value, duplicates, FieldValidation::Strict).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: yaml: unmarshal errors:\n  \
         line 3: key \"kind\" already set in map, unknown field \"spec.foo\""
    );
}

#[test]
fn applied_configurations_keep_zeroes() {
    let mut value = pod(json!({"hostNetwork": false, "dnsPolicy": null}));
    check_applied(&TYPES, type_of(&value), &mut value, FieldValidation::Strict).unwrap();
    assert_eq!(value, pod(json!({"hostNetwork": false})));
}
