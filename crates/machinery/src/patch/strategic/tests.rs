//! Every directive, every refusal, and idempotence over all small lists.

use serde_json::json;

use super::*;
use crate::schema::testing::TYPES;

fn patched(type_: &str, mut target: Value, patch: Value) -> Result<Value> {
    let type_ = TYPES.iter().find(|candidate| candidate.short_name() == type_).unwrap();
    strategic(&TYPES, type_, &mut target, &patch).map(|()| target)
}

#[test]
fn patches_merge_as_upstream_s_do() {
    let ab = || json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}]});
    for (what, type_, target, patch, expected) in [
        (
            "elements merge by key, new ones come first where the patch puts them",
            "PodSpec",
            ab(),
            json!({"containers": [{"name": "c"}, {"name": "b", "image": "3"}]}),
            json!({"containers": [{"name": "c"}, {"name": "a", "image": "1"}, {"name": "b", "image": "3"}]}),
        ),
        (
            "an element is deleted",
            "PodSpec",
            ab(),
            json!({"containers": [{"name": "a", "$patch": "delete"}]}),
            json!({"containers": [{"name": "b", "image": "2"}]}),
        ),
        (
            "a keyed list is replaced",
            "PodSpec",
            ab(),
            json!({"containers": [{"$patch": "replace"}, {"name": "c", "image": null}]}),
            json!({"containers": [{"name": "c"}]}),
        ),
        (
            "a map is replaced",
            "PodSpec",
            json!({"nodeSelector": {"a": "b"}, "dnsPolicy": "x"}),
            json!({"nodeSelector": {"$patch": "replace", "c": "d"}}),
            json!({"nodeSelector": {"c": "d"}, "dnsPolicy": "x"}),
        ),
        (
            "a map is emptied",
            "PodSpec",
            json!({"nodeSelector": {"a": "b"}}),
            json!({"nodeSelector": {"$patch": "delete"}}),
            json!({"nodeSelector": {}}),
        ),
        (
            "lists without strategy are replaced",
            "PodSpec",
            json!({"tolerations": [{"key": "a"}, {"key": "b"}]}),
            json!({"tolerations": [{"key": "c"}]}),
            json!({"tolerations": [{"key": "c"}]}),
        ),
        (
            "null deletes, and says nothing where there is nothing",
            "PodSpec",
            json!({"dnsPolicy": "x"}),
            json!({"dnsPolicy": null, "nodeSelector": {"a": null, "b": "c"}, "volumes": null}),
            json!({"nodeSelector": {"b": "c"}}),
        ),
        (
            "nested lists merge by their own key",
            "PodSpec",
            json!({"containers": [{"name": "a", "ports": [{"containerPort": 80}],
                "env": [{"name": "x", "value": "1"}]}]}),
            json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "protocol": "UDP"}],
                "env": [{"name": "y", "value": "2"}]}]}),
            json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "protocol": "UDP"}],
                "env": [{"name": "y", "value": "2"}, {"name": "x", "value": "1"}]}]}),
        ),
        (
            "the order directive orders, and keeps what only the server has in its place",
            "PodSpec",
            json!({"containers": [{"name": "a"}, {"name": "s"}, {"name": "b"}]}),
            json!({"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}, {"name": "b"}],
                "containers": [{"name": "c", "image": "i"}]}),
            json!({"containers": [{"name": "c", "image": "i"}, {"name": "a"}, {"name": "s"}, {"name": "b"}]}),
        ),
        (
            "the order directive alone",
            "PodSpec",
            ab(),
            json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}),
            json!({"containers": [{"name": "b", "image": "2"}, {"name": "a", "image": "1"}]}),
        ),
        (
            "order with a deleted element",
            "PodSpec",
            ab(),
            json!({"$setElementOrder/containers": [{"name": "b"}],
                "containers": [{"name": "a", "$patch": "delete"}]}),
            json!({"containers": [{"name": "b", "image": "2"}]}),
        ),
        (
            "retained keys drop the others",
            "PodSpec",
            json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
            json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/"}}]}),
            json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}),
        ),
        (
            "retained keys of a struct",
            "DeploymentSpec",
            json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}),
            json!({"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}),
            json!({"strategy": {"type": "Recreate"}}),
        ),
        (
            "primitive lists are unions",
            "ObjectMeta",
            json!({"finalizers": ["a", "b"]}),
            json!({"finalizers": ["b", "c"]}),
            json!({"finalizers": ["a", "b", "c"]}),
        ),
        (
            "primitives are deleted, the rest ordered",
            "ObjectMeta",
            json!({"finalizers": ["a", "b", "c"]}),
            json!({"$deleteFromPrimitiveList/finalizers": ["b"], "$setElementOrder/finalizers": ["c", "a"]}),
            json!({"finalizers": ["c", "a"]}),
        ),
        (
            "directives never end up in the object",
            "PodSpec",
            json!({}),
            json!({"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "a", "env":
                [{"name": "x", "$patch": "delete"}], "$setElementOrder/env": [], "$retainKeys": ["name"]}]}),
            json!({"containers": [{"name": "a", "env": []}]}),
        ),
        (
            "another type replaces",
            "PodSpec",
            json!({"containers": "nonsense"}),
            json!({"containers": [{"name": "a"}]}),
            json!({"containers": [{"name": "a"}]}),
        ),
    ] {
        assert_eq!(patched(type_, target, patch).unwrap(), expected, "{what}");
    }
}

#[test]
fn bad_patches_are_refused() {
    let target = || json!({"containers": [{"name": "a"}], "nodeSelector": {"a": "b"}});
    for (patch, code, message) in [
        (json!({"containers": [{"image": "x"}]}), 500, "map: map[image:x] does not contain declared merge key: name"),
        (json!({"nodeSelector": {"$patch": "fly"}}), 500, "unknown patch type: fly in map: map[$patch:fly]"),
        (
            json!({"nodeSelector": {"$retainKeys": ["x"], "y": "z"}}),
            422,
            "the server rejected our request due to an error in our request",
        ),
        (json!({"nodeSelector": {"$retainKeys": "x"}}), 400, "invalid patch format of retainKeys"),
        (
            json!({"$setElementOrder/containers": [{"name": "b"}], "containers": [{"name": "a", "image": "x"}]}),
            500,
            "The order in patch list:\n[map[image:x name:a]]\n doesn't match $setElementOrder list:\n[map[name:b]]\n",
        ),
        (json!([]), 400, "invalid JSON document"),
    ] {
        let error = patched("PodSpec", target(), patch).unwrap_err();
        assert_eq!((error.code(), &*error.to_string()), (code, message));
    }
}

/// Any patch made of plain values is idempotent, and the empty patch changes nothing.
#[test]
fn patches_are_idempotent() {
    let names = ["a", "b", "c", "d"];
    let container = |bits: usize, name: &str| match bits % 3 {
        0 => json!({"name": name}),
        1 => json!({"name": name, "image": "x"}),
        _ => json!({"name": name, "env": [{"name": name, "value": "y"}]}),
    };
    let list = |seed: usize| -> Vec<Value> {
        let picked = names.iter().enumerate().filter(|(index, _)| seed >> index & 1 == 1);
        let mut picked: Vec<_> = picked.map(|(index, name)| container(seed + index, name)).collect();
        let middle = seed % picked.len().max(1);
        picked.rotate_left(middle);
        picked
    };
    for seed in 0..16 * 16 {
        let (target, patch) = (json!({"containers": list(seed / 16)}), json!({"containers": list(seed % 16)}));
        let once = patched("PodSpec", target.clone(), patch.clone()).unwrap();
        let twice = patched("PodSpec", once.clone(), patch.clone()).unwrap();
        assert_eq!(once, twice, "{target} {patch}");
        assert_eq!(patched("PodSpec", target.clone(), json!({})).unwrap(), target);
        let count = once["containers"].as_array().unwrap().len();
        assert_eq!(count, ((seed / 16) | (seed % 16)).count_ones() as usize, "every name once");
    }
}
