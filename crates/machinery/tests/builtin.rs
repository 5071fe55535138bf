//! The committed table of built-in types: every type survives JSON and protobuf, and the facts others rely on hold.

use std::{collections::BTreeSet, sync::LazyLock, time::Instant};

use machinery::{
    protobuf,
    schema::{
        Alternative, FieldKind, ListType, Type, Types,
        decode::{FieldValidation, check},
        defaults,
    },
};
use serde_json::{Map, Value, json};

const TABLE: &str = include_str!("../../resources/src/schema/v1_36.txt");

static TYPES: LazyLock<Types> = LazyLock::new(|| Types::parse(TABLE).expect("the table parses"));

fn core(name: &str) -> &'static Type {
    TYPES.get(&format!("io.k8s.api.core.v1.{name}")).expect(name)
}

/// A value with every field set, nested structs down to `depth`.
fn sample(type_: &Type, depth: usize) -> Value {
    let fields =
        type_.fields.iter().filter_map(|field| Some(((*field.json_name).to_owned(), sample_of(&field.kind, depth)?)));
    Value::Object(fields.collect())
}

fn sample_of(kind: &FieldKind, depth: usize) -> Option<Value> {
    Some(match kind {
        FieldKind::String => "text".into(),
        FieldKind::Bool => true.into(),
        FieldKind::Int32 => (-7).into(),
        FieldKind::Int64 => 5_000_000_000i64.into(),
        FieldKind::Double => 1.5.into(),
        FieldKind::Bytes => "AAEC/w==".into(),
        FieldKind::Quantity => "1500m".into(),
        FieldKind::IntOrString => "25%".into(),
        FieldKind::Time => "2024-05-01T10:00:00Z".into(),
        FieldKind::MicroTime => "2024-05-01T10:00:00.123456Z".into(),
        FieldKind::Duration => "1m0s".into(),
        FieldKind::Raw | FieldKind::Json | FieldKind::FieldsV1 => json!({"any": [1, null]}),
        FieldKind::Struct(_) if depth == 0 => return None,
        FieldKind::Struct(id) => sample(TYPES.type_(*id), depth - 1),
        FieldKind::Union(..) if depth == 0 => return None,
        FieldKind::Union(_, Alternative::Bool) => false.into(),
        FieldKind::Union(_, Alternative::Strings) => json!(["a", "b"]),
        FieldKind::Union(id, Alternative::Structs) => json!([sample(TYPES.type_(*id), depth - 1)]),
        FieldKind::List(inner) | FieldKind::Wrapped(inner) => {
            let item = sample_of(inner, depth)?;
            Value::Array(vec![item.clone(), item])
        }
        FieldKind::Map(inner) => Value::Object(Map::from_iter([("k".to_owned(), sample_of(inner, depth)?)])),
    })
}

#[test]
fn every_type_survives_json_and_protobuf() {
    let mut seen = 0;
    for type_ in TYPES.iter() {
        let mut value = sample(type_, 3);
        let before = value.clone();
        let unknown = check(&TYPES, type_, &mut value, FieldValidation::Warn).unwrap();
        assert_eq!((&unknown[..], &value), (&[][..], &before), "{}", type_.name);
        let bytes = protobuf::encode(&TYPES, type_, &value);
        let back = protobuf::decode(&TYPES, type_, &bytes).unwrap();
        assert_eq!(back, value, "{}", type_.name);
        seen += 1;
    }
    assert!(seen > 740, "only {seen} types");
}

#[test]
fn protobuf_numbers_are_unique_within_a_message() {
    for type_ in TYPES.iter() {
        let mut seen = BTreeSet::new();
        for field in &type_.fields {
            assert!(field.number > 0, "{}.{}", type_.name, field.json_name);
            assert!(seen.insert((&field.outer, field.number)), "{}.{}", type_.name, field.json_name);
        }
    }
}

#[test]
fn merge_and_list_keys_name_fields() {
    for type_ in TYPES.iter() {
        for field in &type_.fields {
            let keys: Vec<_> = match &field.list {
                ListType::Map(keys) => keys.iter().chain(&field.merge.key).collect(),
                _ => field.merge.key.iter().collect(),
            };
            let element = || TYPES.type_(field.kind.type_id().expect("keys belong to lists of structs"));
            assert!(keys.iter().all(|key| element().field(key).is_some()), "{}.{}", type_.name, field.json_name);
        }
    }
}

#[test]
fn defaults_have_their_field_s_type() {
    for type_ in TYPES.iter() {
        for field in &type_.fields {
            let Some(default) = &field.default else { continue };
            let mut object = Value::Object(Map::from_iter([((*field.json_name).to_owned(), default.clone())]));
            let before = object.clone();
            check(&TYPES, type_, &mut object, FieldValidation::Strict).unwrap();
            assert_eq!(object, before, "{}.{} defaults to what Go would omit", type_.name, field.json_name);
        }
    }
}

fn nginx() -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "nginx", "creationTimestamp": null,
            "labels": {"app": "nginx"}},
        "spec": {"containers": [{"name": "nginx", "image": "nginx", "ports": [{"containerPort": 80}],
            "resources": {"limits": {"cpu": "1000m"}},
            "livenessProbe": {"httpGet": {"port": 80}}}],
            "volumes": [{"name": "v", "configMap": {"name": "c"}}]},
        "status": {}})
}

#[test]
fn a_pod_is_filled_in_as_upstream_does() {
    let mut pod = nginx();
    check(&TYPES, core("Pod"), &mut pod, FieldValidation::Strict).unwrap();
    defaults::apply(&TYPES, core("Pod"), &mut pod);
    let expected = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "nginx", "labels": {"app": "nginx"}},
        "spec": {"containers": [{"name": "nginx", "image": "nginx",
                "ports": [{"containerPort": 80, "protocol": "TCP"}], "resources": {"limits": {"cpu": "1"}},
                "livenessProbe": {"httpGet": {"path": "/", "port": 80, "scheme": "HTTP"}, "timeoutSeconds": 1,
                    "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
            "volumes": [{"name": "v", "configMap": {"name": "c", "defaultMode": 420}}],
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
            "securityContext": {}, "schedulerName": "default-scheduler", "enableServiceLinks": true},
        "status": {}});
    assert_eq!(pod, expected);
}

/// The bounds are loose (a debug build on a busy machine), and still far below what a regression would cost.
#[test]
fn the_table_parses_and_checks_quickly() {
    let start = Instant::now();
    Types::parse(TABLE).unwrap();
    let parsed = start.elapsed();
    let pod = nginx();
    let start = Instant::now();
    for _ in 0..100 {
        let mut pod = pod.clone();
        check(&TYPES, core("Pod"), &mut pod, FieldValidation::Strict).unwrap();
        defaults::apply(&TYPES, core("Pod"), &mut pod);
    }
    let checked = start.elapsed() / 100;
    println!("parse {parsed:?}, check and default a Pod {checked:?}");
    assert!(parsed.as_millis() < 1_000 && checked.as_millis() < 20, "parse {parsed:?}, check {checked:?}");
}
