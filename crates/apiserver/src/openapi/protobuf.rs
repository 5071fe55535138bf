//! The v2 document as gnostic's `openapi.v2.Document`, the only form in which kubectl asks for it.
//!
//! Knows where each key of the document goes, not what the document says. The tables cover what our documents
//! use; a key without a place is left out and named, since a client can do without a hint but not without
//! the document.

use std::collections::BTreeSet;

use machinery::protobuf::wire;
use serde_json::{Map, Value};

/// What one kind of message holds.
struct Shape {
    /// Key, field number, kind.
    fields: &'static [(&'static str, u32, Kind)],
    /// Keys by prefix, kept as a list of names and values under the number.
    named: &'static [(&'static str, u32, Kind)],
}

#[derive(Clone, Copy)]
enum Kind {
    Text,
    Flag,
    Integer,
    Number,
    /// Any JSON, as YAML text.
    Any,
    List(&'static Kind),
    Message(&'static Shape),
    /// Inside messages that hold nothing else, reached by these numbers, outermost first.
    Within(&'static [u32], &'static Kind),
    /// What it is shows in the value.
    Choice(fn(&Value) -> Kind),
}

use Kind::{Any, Choice, Flag, Integer, List, Message, Number, Text, Within};

const fn extension(number: u32) -> (&'static str, u32, Kind) {
    ("x-", number, Any)
}

static DOCUMENT: Shape = Shape {
    fields: &[
        ("swagger", 1, Text),
        ("info", 2, Message(&INFO)),
        ("paths", 8, Message(&PATHS)),
        ("definitions", 9, Message(&SCHEMAS)),
    ],
    named: &[extension(16)],
};
static INFO: Shape =
    Shape { fields: &[("title", 1, Text), ("version", 2, Text), ("description", 3, Text)], named: &[extension(7)] };
static PATHS: Shape = Shape { fields: &[], named: &[extension(1), ("/", 2, Message(&PATH))] };
static PATH: Shape = Shape {
    fields: &[
        ("get", 2, OPERATION),
        ("put", 3, OPERATION),
        ("post", 4, OPERATION),
        ("delete", 5, OPERATION),
        ("options", 6, OPERATION),
        ("head", 7, OPERATION),
        ("patch", 8, OPERATION),
        ("parameters", 9, List(&PARAMETER)),
    ],
    named: &[extension(10)],
};
const OPERATION: Kind = Message(&Shape {
    fields: &[
        ("tags", 1, List(&Text)),
        ("description", 3, Text),
        ("operationId", 5, Text),
        ("produces", 6, List(&Text)),
        ("consumes", 7, List(&Text)),
        ("parameters", 8, List(&PARAMETER)),
        ("responses", 9, Message(&RESPONSES)),
        ("schemes", 10, List(&Text)),
        ("deprecated", 11, Flag),
    ],
    named: &[extension(13)],
});
static RESPONSES: Shape = Shape { fields: &[], named: &[extension(2), ("", 1, Within(&[1], &RESPONSE))] };
const RESPONSE: Kind = Message(&Shape {
    fields: &[("description", 1, Text), ("schema", 2, Within(&[1], &A_SCHEMA))],
    named: &[extension(5)],
});

/// Parameters of each place are messages of their own, which differ in their numbers.
const PARAMETER: Kind = Choice(|parameter| match parameter["in"].as_str() {
    Some("body") => Within(&[1, 1], &BODY),
    Some("query") => Within(&[1, 2, 3], &QUERY),
    _ => Within(&[1, 2, 4], &PLACE),
});
const BODY: Kind = Message(&Shape {
    fields: &[
        ("description", 1, Text),
        ("name", 2, Text),
        ("in", 3, Text),
        ("required", 4, Flag),
        ("schema", 5, Message(&SCHEMA)),
    ],
    named: &[extension(6)],
});
const QUERY: Kind = Message(&Shape {
    fields: &[
        ("required", 1, Flag),
        ("in", 2, Text),
        ("description", 3, Text),
        ("name", 4, Text),
        ("type", 6, Text),
        ("format", 7, Text),
        ("uniqueItems", 20, Flag),
    ],
    named: &[extension(23)],
});
const PLACE: Kind = Message(&Shape {
    fields: &[
        ("required", 1, Flag),
        ("in", 2, Text),
        ("description", 3, Text),
        ("name", 4, Text),
        ("type", 5, Text),
        ("format", 6, Text),
        ("uniqueItems", 19, Flag),
    ],
    named: &[extension(22)],
});

/// Schemas by name.
static SCHEMAS: Shape = Shape { fields: &[], named: &[("", 1, Message(&SCHEMA))] };
static A_SCHEMA: Kind = Message(&SCHEMA);
static SCHEMA: Shape = Shape {
    fields: &[
        ("$ref", 1, Text),
        ("format", 2, Text),
        ("title", 3, Text),
        ("description", 4, Text),
        ("default", 5, Any),
        ("multipleOf", 6, Number),
        ("maximum", 7, Number),
        ("exclusiveMaximum", 8, Flag),
        ("minimum", 9, Number),
        ("exclusiveMinimum", 10, Flag),
        ("maxLength", 11, Integer),
        ("minLength", 12, Integer),
        ("pattern", 13, Text),
        ("maxItems", 14, Integer),
        ("minItems", 15, Integer),
        ("uniqueItems", 16, Flag),
        ("maxProperties", 17, Integer),
        ("minProperties", 18, Integer),
        ("required", 19, List(&Text)),
        ("enum", 20, List(&Any)),
        ("additionalProperties", 21, ADDITIONAL),
        ("type", 22, Within(&[1], &Text)),
        ("items", 23, Within(&[1], &A_SCHEMA)),
        ("allOf", 24, List(&A_SCHEMA)),
        ("properties", 25, Message(&SCHEMAS)),
        ("readOnly", 27, Flag),
        ("example", 30, Any),
    ],
    named: &[extension(31)],
};
const ADDITIONAL: Kind = Choice(|value| match value {
    Value::Bool(_) => Within(&[2], &Flag),
    _ => Within(&[1], &A_SCHEMA),
});

/// The message, and the keys that have no place in it.
pub fn encode(document: &Map<String, Value>) -> (Vec<u8>, BTreeSet<&str>) {
    let mut lost = BTreeSet::new();
    let mut out = Vec::new();
    fields(&mut out, &DOCUMENT, document, &mut lost);
    (out, lost)
}

fn fields<'a>(out: &mut Vec<u8>, shape: &Shape, map: &'a Map<String, Value>, lost: &mut BTreeSet<&'a str>) {
    for (key, value) in map {
        if let Some((_, number, kind)) = shape.fields.iter().find(|(name, ..)| name == key) {
            field(out, *number, *kind, value, lost);
        } else if let Some((_, number, kind)) = shape.named.iter().find(|(prefix, ..)| key.starts_with(prefix)) {
            wire::message(out, *number, |out| {
                wire::bytes(out, 1, key.as_bytes());
                field(out, 2, *kind, value, lost);
            });
        } else {
            lost.insert(key);
        }
    }
}

fn field<'a>(out: &mut Vec<u8>, number: u32, kind: Kind, value: &'a Value, lost: &mut BTreeSet<&'a str>) {
    match (kind, value) {
        (Text, Value::String(text)) => wire::bytes(out, number, text.as_bytes()),
        (Flag, Value::Bool(flag)) => wire::varint(out, number, u64::from(*flag)),
        (Integer, value) => wire::varint(out, number, value.as_i64().unwrap_or(0) as u64),
        (Number, value) => wire::fixed64(out, number, value.as_f64().unwrap_or(0.0).to_bits()),
        // JSON is YAML.
        (Any, value) => wire::message(out, number, |out| wire::bytes(out, 2, value.to_string().as_bytes())),
        (List(kind), Value::Array(items)) => items.iter().for_each(|item| field(out, number, *kind, item, lost)),
        (Message(shape), Value::Object(map)) => {
            wire::message(out, number, |out| fields(out, shape, map, lost));
        }
        (Within([], kind), value) => field(out, number, *kind, value, lost),
        (Within([inner, rest @ ..], kind), value) => {
            wire::message(out, number, |out| field(out, *inner, Within(rest, kind), value, lost));
        }
        (Choice(choose), value) => field(out, number, choose(value), value, lost),
        (Text | Flag | List(_) | Message(_), _) => {}
    }
}

#[cfg(test)]
mod tests {
    use machinery::protobuf::wire::{Reader, Wire};
    use serde_json::json;

    use super::*;

    /// All texts under these numbers, outermost first.
    fn at<'a>(bytes: &'a [u8], numbers: &[u32]) -> Vec<&'a str> {
        let [wanted, rest @ ..] = numbers else { return vec![std::str::from_utf8(bytes).unwrap()] };
        let (mut reader, mut found) = (Reader::new(bytes), Vec::new());
        while let Some((number, wire)) = reader.next_field().unwrap() {
            if let (true, Wire::Bytes(inner)) = (number == *wanted, wire) {
                found.extend(at(inner, rest));
            }
        }
        found
    }

    #[test]
    fn each_part_is_where_gnostic_reads_it() {
        let operation = json!({
            "x-kubernetes-action": "list",
            "consumes": ["application/json"],
            "parameters": [{"name": "body", "in": "body", "schema": {"$ref": "#/definitions/Pod"}},
                {"name": "watch", "in": "query", "type": "boolean"}, {"name": "name", "in": "path", "type": "string"}],
            "responses": {"200": {"description": "OK", "schema": {"$ref": "#/definitions/Pod"}}},
        });
        let pod = json!({"type": "object", "x-kubernetes-list-type": "map", "required": ["spec"], "properties": {
            "args": {"type": "array", "items": {"type": "string"}},
            "labels": {"type": "object", "additionalProperties": {"type": "integer"}},
        }});
        let document = json!({"swagger": "2.0", "info": {"title": "Kubernetes", "version": "v1"},
            "paths": {"/api/v1/pods": {"get": operation}}, "definitions": {"Pod": pod}});
        let (bytes, lost) = encode(document.as_object().unwrap());
        assert_eq!(lost, BTreeSet::new());
        let operation = [8, 2, 2, 2];
        let pod = [9, 1, 2];
        for (start, rest, wanted) in [
            (&[][..], &[1][..], "2.0"),
            (&[], &[2, 1], "Kubernetes"),
            (&[8, 2], &[1], "/api/v1/pods"),
            (&operation, &[13, 1], "x-kubernetes-action"),
            (&operation, &[13, 2, 2], "\"list\""),
            (&operation, &[7], "application/json"),
            (&operation, &[8, 1, 1, 5, 1], "#/definitions/Pod"),
            (&operation, &[8, 1, 2, 3, 4], "watch"),
            (&operation, &[8, 1, 2, 4, 5], "string"),
            (&operation, &[9, 1, 1], "200"),
            (&operation, &[9, 1, 2, 1, 2, 1, 1], "#/definitions/Pod"),
            (&[9, 1], &[1], "Pod"),
            (&pod, &[22, 1], "object"),
            (&pod, &[19], "spec"),
            (&pod, &[31, 2, 2], "\"map\""),
            (&pod, &[25, 1, 2, 21, 1, 22, 1], "integer"),
        ] {
            let path = [start, rest].concat();
            assert_eq!(at(&bytes, &path), [wanted], "{path:?}");
        }
    }
}
