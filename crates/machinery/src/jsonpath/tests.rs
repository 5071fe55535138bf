//! kubectl's documented examples, and what it refuses.

use serde_json::json;

use super::*;

#[test]
fn templates_render_as_kubectl_s() {
    let value = json!({
        "kind": "List",
        "items": [
            {"metadata": {"name": "a", "labels": {"app.kubernetes.io/name": "x"}}, "n": 1, "ok": true,
                "conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}]},
            {"metadata": {"name": "b"}, "n": 2, "ports": [80, 443]},
            {"metadata": {"name": "c"}, "n": 3},
        ],
    });
    for (template, expected) in [
        ("kind is {.kind}", "kind is List"),
        ("{$.kind}", "List"),
        ("{kind}", "List"),
        ("{.items[*].metadata.name}", "a b c"),
        ("{.items[0].metadata.name}", "a"),
        ("{.items[-1].metadata.name}", "c"),
        ("{.items[0:2].metadata.name}", "a b"),
        ("{.items[::2].metadata.name}", "a c"),
        ("{.items[-2:].metadata.name}", "b c"),
        ("{.items[0,2].metadata.name}", "a c"),
        ("{.items[1]['metadata.name', 'n']}", "2"),
        ("{.items[1].ports}", "[80,443]"),
        ("{.items[1].ports[*]}", "80 443"),
        ("{..name}", "a b c"),
        ("{.items..name}", "a b c"),
        ("{.items[1].metadata.*}", "b"),
        (r"{.items[0].metadata.labels.app\.kubernetes\.io/name}", "x"),
        ("{.items[0].metadata.labels['app\\.kubernetes\\.io/name']}", "x"),
        (r#"{range .items[*]}{.metadata.name}{"\t"}{.n}{"\n"}{end}"#, "a\t1\nb\t2\nc\t3\n"),
        ("{range .items[*]}[{range .ports[*]}{@},{end}]{end}", "[][80,443,][]"),
        (r#"{.items[?(@.metadata.name=="b")].n}"#, "2"),
        ("{.items[?(@.n>1)].metadata.name}", "b c"),
        ("{.items[?(@.n != 2)].metadata.name}", "a c"),
        ("{.items[?(@.ports)].metadata.name}", "b"),
        ("{.items[?(@.ok==true)].metadata.name}", "a"),
        (r#"{.items[0].conditions[?(@.type=="Ready")].status}"#, "True"),
        ("{range .items[?(@.n<=2)]}{.metadata.name}{end}", "ab"),
        ("{.items[*]['n']}", "1 2 3"),
        ("{.nothing.here}", ""),
        ("{range .items[*]}{$.kind} {end}", "List List List "),
        ("no paths", "no paths"),
    ] {
        let path = JsonPath::parse(template).unwrap_or_else(|error| panic!("{template}: {error}"));
        assert_eq!(path.render(&value).unwrap(), expected, "{template}");
    }
    let error = JsonPath::parse("{.items[7]}").unwrap().render(&value).unwrap_err();
    assert_eq!(error, "array index out of bounds: index 7, length 3");
}

#[test]
fn columns_find_values() {
    let value = json!({"spec": {"replicas": 3, "list": [{"a": 1}, {"a": 2}]}});
    let find = |path| -> Vec<Value> {
        JsonPath::parse_path(path).unwrap().find(&value).unwrap().into_iter().cloned().collect()
    };
    assert_eq!(find(".spec.replicas"), vec![json!(3)]);
    assert_eq!(find(".spec.list[*].a"), vec![json!(1), json!(2)]);
    assert_eq!(find(".status.x"), Vec::<Value>::new());
}

#[test]
fn mistakes_are_refused() {
    for template in ["{.a", "{range .a}", "{end}", "{.a[}", "{.a['x}", "{.a[?(@.x==]}", "{.a[1:2:0]}", "{.a[x]}"] {
        assert!(JsonPath::parse(template).is_err(), "{template}");
    }
    assert!(JsonPath::parse_path(".a b").is_err());
}
