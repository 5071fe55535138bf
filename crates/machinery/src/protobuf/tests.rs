//! The codec against bytes as Go writes them, and against itself.

use serde_json::json;

use super::*;
use crate::schema::{
    Type,
    decode::{FieldValidation, check},
    testing::TYPES,
};

fn type_named(name: &str) -> &'static Type {
    TYPES.iter().find(|candidate| candidate.short_name() == name).unwrap()
}

/// What Go's generated marshaller writes for a small Pod: zeroes of fields held by value included.
fn go_pod() -> Vec<u8> {
    use wire::{bytes, message, varint};
    let mut out = b"k8s\0".to_vec();
    message(&mut out, 1, |out| {
        bytes(out, 1, b"v1");
        bytes(out, 2, b"Pod");
    });
    message(&mut out, 2, |out| {
        message(out, 1, |out| {
            bytes(out, 1, b"a"); // name
            bytes(out, 3, b""); // namespace
            varint(out, 7, 0); // generation
            bytes(out, 8, b""); // creationTimestamp: the zero time is an empty message
            message(out, 11, |out| {
                bytes(out, 1, b"k");
                bytes(out, 2, b"");
            });
        });
        message(out, 2, |out| {
            message(out, 1, |out| {
                bytes(out, 1, b"v");
                message(out, 2, |out| message(out, 2, |out| bytes(out, 1, b""))); // volumeSource.emptyDir.medium
            });
            message(out, 2, |out| {
                bytes(out, 1, b"c");
                bytes(out, 2, b"i");
                message(out, 6, |out| {
                    varint(out, 2, 0); // hostPort
                    varint(out, 3, 80);
                    bytes(out, 4, b""); // protocol
                });
                message(out, 8, |out| {
                    message(out, 1, |out| {
                        bytes(out, 1, b"cpu");
                        message(out, 2, |out| bytes(out, 1, b"100m"));
                    });
                });
            });
            varint(out, 4, 30); // terminationGracePeriodSeconds
            varint(out, 5, 0); // activeDeadlineSeconds: a pointer to 0
            bytes(out, 6, b""); // dnsPolicy
            varint(out, 11, 0); // hostNetwork
        });
        bytes(out, 3, b""); // status
    });
    bytes(&mut out, 3, b"");
    bytes(&mut out, 4, b"");
    out
}

#[test]
fn go_s_bytes_are_read() {
    let bytes = go_pod();
    let envelope = Envelope::parse(&bytes).unwrap();
    assert_eq!((envelope.api_version, envelope.kind, envelope.content_type), ("v1", "Pod", ""));
    let type_ = type_named("Pod");
    let mut pod = decode(&TYPES, type_, envelope.raw).unwrap();
    check(&TYPES, type_, &mut pod, FieldValidation::Strict).unwrap();
    assert_eq!(
        pod,
        json!({"metadata": {"name": "a", "labels": {"k": ""}}, "status": {}, "spec": {
            "volumes": [{"name": "v", "emptyDir": {}}],
            "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "100m"}}}],
            "activeDeadlineSeconds": 0, "terminationGracePeriodSeconds": 30}})
    );
}

#[test]
fn every_kind_of_field_survives() {
    for (name, value) in [
        (
            "Pod",
            json!({"metadata": {"name": "é", "creationTimestamp": "2024-05-01T10:00:00Z", "finalizers": ["a", "b"],
                "managedFields": [{"manager": "m", "fieldsV1": {"f:spec": {}}}], "generation": -1,
                "ownerReferences": [{"apiVersion": "v1", "kind": "X", "name": "x", "uid": "u", "controller": false}]},
                "spec": {"nodeSelector": {"a": "", "b": "c"}, "overhead": {"cpu": "1500m"}, "containers": [
                    {"name": "a", "env": [{"name": "e", "valueFrom": {"name": "n", "key": "k"}}],
                        "livenessProbe": {"periodSeconds": 5, "httpGet": {"port": "http"}, "exec": {"command": ["x"]}}}],
                    "volumes": [{"name": "v", "hostPath": {"path": "/", "type": ""}}]}}),
        ),
        ("Lease", json!({"spec": {"renewTime": "2024-05-01T10:00:00.123456Z"}})),
        ("Secret", json!({"data": {"a": "AAH/", "b": ""}, "immutable": false})),
        ("RollingUpdateDeployment", json!({"maxSurge": "25%", "maxUnavailable": 0})),
        ("ControllerRevision", json!({"data": {"any": [1, {"deep": null}]}, "revision": 5_000_000_000i64})),
        ("UserInfo", json!({"extra": {"k": ["a", "b"], "none": []}})),
        (
            "JSONSchemaProps",
            json!({"maximum": 1.5, "default": [1], "additionalProperties": {"type": "x"}, "items": [{"type": "y"}],
                "dependencies": {"a": ["b"], "c": {"type": "z"}}, "properties": {"p": {"additionalProperties": false,
                    "items": {"type": "w"}}}}),
        ),
    ] {
        let type_ = type_named(name);
        let bytes = encode(&TYPES, type_, &value);
        let mut back = decode(&TYPES, type_, &bytes).unwrap();
        check(&TYPES, type_, &mut back, FieldValidation::Strict).unwrap();
        assert_eq!(back, value, "{name}");
    }
}

#[test]
fn damage_is_refused() {
    let type_ = type_named("Pod");
    let bytes = go_pod();
    let raw = Envelope::parse(&bytes).unwrap().raw;
    assert_eq!(Envelope::parse(b"{}").unwrap_err().code(), 400);
    assert_eq!(decode(&TYPES, type_, &raw[..raw.len() - 3]).unwrap_err().code(), 400);
    // A truncated message never panics.
    for end in 0..raw.len() {
        let _ = decode(&TYPES, type_, &raw[..end]);
    }
    // Unknown numbers are skipped.
    assert_eq!(decode(&TYPES, type_, &[0xfa, 0x3f, 1, 0]).unwrap(), json!({}));
    let mut deep = Vec::new();
    for _ in 0..200 {
        let inner = std::mem::take(&mut deep);
        wire::message(&mut deep, 24, |out| wire::message(out, 1, |out| out.extend(inner)));
    }
    assert!(decode(&TYPES, type_named("JSONSchemaProps"), &deep).unwrap_err().to_string().contains("too deep"));
}

#[test]
fn objects_and_watch_frames_are_enveloped() {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}});
    let bytes = object(&TYPES, type_named("Pod"), &pod);
    let envelope = Envelope::parse(&bytes).unwrap();
    assert_eq!((envelope.api_version, envelope.kind), ("v1", "Pod"));
    assert_eq!(decode(&TYPES, type_named("Pod"), envelope.raw).unwrap(), json!({"metadata": {"name": "a"}}));
    assert_eq!(parse_object(&TYPES, &bytes, |_, kind| Some(type_named(kind))).unwrap(), pod);
    assert_eq!(
        parse_object(&TYPES, &bytes, |_, _| None).unwrap_err().to_string(),
        r#"no kind "Pod" is registered for version "v1""#
    );
    let frame = watch_frame("ADDED", &bytes);
    assert_eq!(u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]) as usize, frame.len() - 4);
    assert!(frame.ends_with(&bytes));
}
