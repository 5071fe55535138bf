//! Pods near and far from each other, and spread over topologies.

use super::*;

fn zones() -> Vec<Value> {
    let zone = |zone: &str| json!({"metadata": {"labels": {"zone": zone}}});
    vec![node("a1", zone("a")), node("a2", zone("a")), node("b1", zone("b")), node("none", json!({}))]
}

fn web(name: &str, change: Value) -> Value {
    with(pod(name, "", json!({"metadata": {"labels": {"app": "web"}}})), change)
}

fn term(app: &str, key: &str) -> Value {
    json!({"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": key})
}

fn required(kind: &str, term: Value) -> Value {
    json!({"spec": {"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}})
}

fn preferred(kind: &str, term: Value) -> Value {
    let weighted = json!([{"weight": 100, "podAffinityTerm": term}]);
    json!({"spec": {"affinity": {kind: {"preferredDuringSchedulingIgnoredDuringExecution": weighted}}}})
}

#[test]
fn affinity_joins_and_separates() {
    const NEAR: &str = "node(s) didn't match pod affinity rules";
    const FAR: &str = "node(s) didn't match pod anti-affinity rules";
    const THEIRS: &str = "node(s) didn't satisfy existing pods anti-affinity rules";
    let near = |app| required("podAffinity", term(app, "zone"));
    let far = |key| required("podAntiAffinity", term("web", key));
    let nowhere = |reasons: &str| format!("0/4 nodes are available: {reasons}.");
    for (what, on_b1, wanted, expected) in [
        ("near another", web("x", json!({})), pod("p", "", near("web")), "b1".to_owned()),
        ("nobody to be near to", web("x", json!({})), pod("p", "", near("db")), nowhere(&format!("4 {NEAR}"))),
        (
            "far from another and itself",
            web("x", json!({})),
            web("p", with(far("zone"), near("web"))),
            nowhere(&format!("1 {FAR}, 3 {NEAR}")),
        ),
        (
            "far from a whole zone",
            web("x", json!({})),
            with(pod("p", "", far("zone")), json!({"spec": {"nodeSelector": {"zone": "b"}}})),
            nowhere(&format!("1 {FAR}, 3 node(s) didn't match Pod's node affinity/selector")),
        ),
        (
            "unwelcome",
            web("x", far("zone")),
            with(web("p", json!({})), json!({"spec": {"nodeSelector": {"zone": "b"}}})),
            nowhere(&format!("1 {THEIRS}, 3 node(s) didn't match Pod's node affinity/selector")),
        ),
        (
            "in another namespace",
            web("x", json!({"metadata": {"namespace": "other"}})),
            pod("p", "", near("web")),
            nowhere(&format!("4 {NEAR}")),
        ),
    ] {
        assert_eq!(outcome(&snapshot(zones(), [("b1", on_b1)]), wanted), expected, "{what}");
    }
}

#[test]
fn the_first_of_a_group_may_go_anywhere_in_the_topology() {
    let wanted = web("p", required("podAffinity", term("web", "zone")));
    let placement = outcome(&snapshot(zones(), []), wanted);
    assert!(["a1", "a2", "b1"].contains(&placement.as_str()), "{placement}");
}

#[test]
fn other_namespaces_are_chosen_by_name_or_label() {
    let other = web("x", json!({"metadata": {"namespace": "other"}}));
    for (choice, matches) in [
        (json!({"namespaces": ["other"]}), true),
        (json!({"namespaces": ["third"]}), false),
        (json!({"namespaceSelector": {}}), true),
        (json!({"namespaceSelector": {"matchLabels": {"team": "x"}}}), true),
        (json!({"namespaceSelector": {"matchLabels": {"team": "y"}}}), false),
    ] {
        let mut snapshot = snapshot(zones(), [("b1", other.clone())]);
        snapshot.set_namespace("other", Some([("team".to_owned(), "x".to_owned())].into()));
        let wanted = pod("p", "", required("podAffinity", with(term("web", "zone"), choice.clone())));
        assert_eq!(outcome(&snapshot, wanted) == "b1", matches, "{choice}");
    }
}

#[test]
fn preferences_attract_and_repel() {
    let only_zones = json!({"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        {"nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "Exists"}]}]}}}}});
    let near = with(preferred("podAffinity", term("web", "zone")), only_zones.clone());
    assert_eq!(outcome(&snapshot(zones(), [("b1", web("x", json!({})))]), pod("p", "", near)), "b1");
    let far = with(preferred("podAntiAffinity", term("web", "zone")), only_zones.clone());
    assert_eq!(outcome(&snapshot(zones(), [("a1", web("x", json!({})))]), pod("p", "", far)), "b1");
    // The preference of a pod that is there already counts as well.
    let theirs = web("x", preferred("podAntiAffinity", term("web", "zone")));
    assert_eq!(outcome(&snapshot(zones(), [("a1", theirs)]), web("p", only_zones)), "b1");
}

fn spread(skew: i64, key: &str, change: Value) -> Value {
    let constraint = json!({"maxSkew": skew, "topologyKey": key, "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}}});
    json!({"spec": {"topologySpreadConstraints": [with(constraint, change)]}})
}

#[test]
fn spreading_keeps_the_skew() {
    let two_in_a = || [("a1", web("x", json!({}))), ("a2", web("y", json!({})))];
    let ending = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    assert_eq!(outcome(&snapshot(zones(), two_in_a()), web("p", spread(1, "zone", json!({})))), "b1");
    let in_a = json!({"spec": {"nodeSelector": {"zone": "a"}}});
    for (what, pods, constraint, fits) in [
        ("three against none", two_in_a().to_vec(), spread(1, "zone", json!({"nodeAffinityPolicy": "Ignore"})), false),
        ("three in the only domain that counts", two_in_a().to_vec(), spread(1, "zone", json!({})), true),
        ("a larger skew", two_in_a().to_vec(), spread(3, "zone", json!({"nodeAffinityPolicy": "Ignore"})), true),
        ("too few domains", two_in_a().to_vec(), spread(2, "zone", json!({"minDomains": 2})), false),
        (
            "ending pods do not count",
            vec![("a1", web("x", ending.clone()))],
            spread(1, "zone", json!({"nodeAffinityPolicy": "Ignore"})),
            true,
        ),
    ] {
        let found = outcome(&snapshot(zones(), pods), web("p", with(constraint, in_a.clone())));
        assert_eq!(found.starts_with('a'), fits, "{what}: {found}");
    }
    let message = outcome(
        &snapshot(zones(), two_in_a()),
        web(
            "p",
            with(spread(1, "zone", json!({})), json!({"spec": {"tolerations": [], "overhead": {"cpu": "4500m"}}})),
        ),
    );
    assert_eq!(message, "0/4 nodes are available: 4 Insufficient cpu.");
    let blocked = zones().into_iter().filter(|node| node["metadata"]["name"] != "b1").chain([node(
        "b1",
        json!({"metadata": {"labels": {"zone": "b"}}, "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}}),
    )]);
    assert_eq!(
        outcome(&snapshot(blocked, two_in_a()), web("p", spread(1, "zone", json!({})))),
        "0/4 nodes are available: 1 node(s) didn't match pod topology spread constraints (missing required label), \
         1 node(s) had untolerated taint(s), 2 node(s) didn't match pod topology spread constraints."
    );
}

#[test]
fn spreading_may_be_a_wish() {
    let wish = json!({"whenUnsatisfiable": "ScheduleAnyway"});
    let pods = [("a1", web("x", json!({}))), ("a2", web("y", json!({})))];
    assert_eq!(outcome(&snapshot(zones(), pods), web("p", spread(1, "zone", wish))), "b1");
}

#[test]
fn siblings_are_spread_by_default() {
    let owned = |uid: &str, set: &str| {
        let owner =
            json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": set, "uid": set, "controller": true}]);
        web(uid, json!({"metadata": {"ownerReferences": owner}}))
    };
    let group = |namespace: &str, kind: &'static str| scheduler::groups::Group {
        namespace: namespace.into(),
        kind: kind.into(),
        name: "set".into(),
        selector: Some(machinery::labels::Selector::parse("app=web").unwrap()),
    };
    // Otherwise emptier than b: only the sibling speaks against a.
    let mut snapshot = snapshot(
        [node("a", json!({})), node("b", json!({}))],
        [("a", web("x", json!({}))), ("b", pod("y", "500m", json!({})))],
    );
    for (what, wanted, group, expected) in [
        ("no group", owned("p", "set"), group("other", "ReplicaSet"), "a"),
        ("another set", owned("p", "other"), group("default", "ReplicaSet"), "a"),
        ("its set", owned("p", "set"), group("default", "ReplicaSet"), "b"),
        ("its service", owned("p", "other"), group("default", "Service"), "b"),
    ] {
        snapshot.set_group(group);
        assert_eq!(outcome(&snapshot, wanted), expected, "{what}");
    }
}
