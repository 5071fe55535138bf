//! Watches: replay, order, selectors, bookmarks, initial events, expiry, time-outs.

use super::*;

#[tokio::test]
async fn a_watch_tells_everything_in_order() {
    let cluster = Cluster::start().await;
    let before = version(&cluster.get(MAPS).await.expect(200));
    let mut live = cluster.watch(&format!("{MAPS}?watch=true&resourceVersion={before}")).await;
    cluster.create(MAPS, config_map("a")).await;
    let updated = cluster.call("PATCH", &format!("{MAPS}/a"), &json!({"data": {"x": "y"}})).await.expect(200);
    cluster.call("DELETE", &format!("{MAPS}/a"), &Value::Null).await.expect(200);
    let mut late = cluster.watch(&format!("{MAPS}?watch=true&resourceVersion={before}")).await;
    for watch in [&mut live, &mut late] {
        assert_eq!(watch.told().await, "ADDED a");
        let event = watch.event().await;
        assert_eq!((event.0.as_str(), event.2), ("MODIFIED", version(&updated)));
        let event = watch.next().await.unwrap();
        assert_eq!((text(&event["type"]), &event["object"]["data"]["x"]), ("DELETED".into(), &json!("y")));
        // The last event carries the revision of the deletion.
        assert!(version(&event["object"]) > version(&updated));
    }
    let mut middle = cluster.watch(&format!("{MAPS}?watch=true&resourceVersion={}", version(&updated))).await;
    assert_eq!(middle.told().await, "DELETED a");
}

#[tokio::test]
async fn a_watch_from_nowhere_begins_with_the_present() {
    let cluster = Cluster::start().await;
    cluster.create(MAPS, config_map("a")).await;
    for uri in [
        format!("{MAPS}?watch=1"),
        format!("{MAPS}?watch=1&resourceVersion=0"),
        "/api/v1/watch/namespaces/default/configmaps".into(),
    ] {
        let mut watch = cluster.watch(&uri).await;
        assert_eq!(watch.told().await, "ADDED a", "{uri}");
        cluster.call("PATCH", &format!("{MAPS}/a"), &json!({"data": {"u": uri}})).await.expect(200);
        assert_eq!(watch.told().await, "MODIFIED a", "{uri}");
    }
}

#[tokio::test]
async fn objects_enter_and_leave_a_selection() {
    let cluster = Cluster::start().await;
    let label = |value: &str| json!({"metadata": {"labels": {"l": value}}});
    let uri = format!("{MAPS}/a");
    let mut chosen = cluster.watch(&format!("{MAPS}?watch=1&labelSelector=l%3Dx")).await;
    cluster.create(MAPS, config_map("a")).await;
    for (value, want) in [("x", Some("ADDED a")), ("x2", Some("DELETED a")), ("y", None), ("x", Some("ADDED a"))] {
        let patched = cluster.call("PATCH", &uri, &label(value)).await.expect(200);
        if let Some(want) = want {
            let event = chosen.event().await;
            assert_eq!((format!("{} {}", event.0, event.1), event.2), (want.to_owned(), version(&patched)));
        }
    }
    cluster.call("PATCH", &uri, &json!({"data": {"q": "r"}})).await.expect(200);
    assert_eq!(chosen.told().await, "MODIFIED a");
    cluster.call("DELETE", &uri, &Value::Null).await.expect(200);
    assert_eq!(chosen.told().await, "DELETED a");
}

#[tokio::test]
async fn watchers_of_one_field_hear_only_of_it() {
    let cluster = Cluster::start().await;
    let mut node = cluster.watch("/api/v1/pods?watch=1&fieldSelector=spec.nodeName%3Dn1").await;
    let mut named = cluster.watch(&format!("{MAPS}?watch=1&fieldSelector=metadata.name%3Db")).await;
    let mut everywhere = cluster.watch("/api/v1/configmaps?watch=1&fieldSelector=metadata.name%3Db").await;
    for name in ["a", "b"] {
        cluster.create(MAPS, config_map(name)).await;
        cluster.create(PODS, pod(name)).await;
        let target = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
            "target": {"kind": "Node", "name": if name == "a" { "n0" } else { "n1" }}});
        cluster.create(&format!("{PODS}/{name}/binding"), target).await;
    }
    assert_eq!(node.told().await, "ADDED b");
    assert_eq!(named.told().await, "ADDED b");
    assert_eq!(everywhere.told().await, "ADDED b");
}

#[tokio::test]
async fn initial_events_end_with_a_bookmark() {
    let cluster = Cluster::start().await;
    let created = cluster.create(MAPS, config_map("a")).await;
    let uri =
        format!("{MAPS}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true");
    let mut watch = cluster.watch(&uri).await;
    assert_eq!(watch.told().await, "ADDED a");
    let bookmark = watch.next().await.unwrap();
    assert_eq!((text(&bookmark["type"]), text(&bookmark["object"]["kind"])), ("BOOKMARK".into(), "ConfigMap".into()));
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert!(version(&bookmark["object"]) >= version(&created));
    cluster.create(MAPS, config_map("b")).await;
    assert_eq!(watch.told().await, "ADDED b");
    let without = cluster.send("GET", &format!("{MAPS}?watch=1&sendInitialEvents=true"), &[], Body::empty()).await;
    assert_eq!(without.status(), 422);
}

#[tokio::test]
async fn bookmarks_come_before_the_end() {
    let cluster = Cluster::start().await;
    cluster.create(MAPS, config_map("a")).await;
    let mut watch = cluster.watch(&format!("{MAPS}?watch=1&allowWatchBookmarks=true&timeoutSeconds=3")).await;
    assert_eq!(watch.told().await, "ADDED a");
    // Somebody else's write moves the revision that the bookmark tells.
    let pod = cluster.create(PODS, pod("p")).await;
    let (kind, _, revision) = watch.event().await;
    assert_eq!(kind, "BOOKMARK");
    assert!(revision >= version(&pod));
    assert!(watch.next().await.is_none(), "the timeout ends the watch");
    let mut plain = cluster.watch(&format!("{MAPS}?watch=1&timeoutSeconds=1&resourceVersion={revision}")).await;
    assert!(plain.next().await.is_none(), "no bookmark unasked");
}

#[tokio::test]
async fn forgotten_revisions_are_gone() {
    let cluster = Cluster::start().await;
    let created = cluster.create(MAPS, config_map("a")).await;
    let cluster = cluster.restart().await;
    let last = cluster.create(PODS, pod("p")).await;
    cluster.compact(version(&last)).await;
    let mut watch = cluster.watch(&format!("{MAPS}?watch=1&resourceVersion={}", version(&created) - 1)).await;
    let event = watch.next().await.unwrap();
    assert_eq!(
        (text(&event["type"]), &event["object"]["code"], text(&event["object"]["reason"])),
        ("ERROR".into(), &json!(410), "Expired".into())
    );
    assert!(text(&event["object"]["message"]).starts_with("too old resource version: "), "{event}");
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn events_are_served_in_both_versions() {
    let cluster = Cluster::start().await;
    let uri = "/apis/events.k8s.io/v1/namespaces/default/events";
    let mut watch = cluster.watch(&format!("{uri}?watch=1")).await;
    let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "message": "hello", "reason": "R", "type": "Normal",
        "involvedObject": {"kind": "Pod", "namespace": "default", "name": "p"}, "source": {"component": "c"}});
    cluster.create("/api/v1/namespaces/default/events", event).await;
    let newer = cluster.get(&format!("{uri}/e")).await.expect(200);
    assert_eq!(
        (&newer["apiVersion"], &newer["note"], &newer["regarding"]["name"]),
        (&json!("events.k8s.io/v1"), &json!("hello"), &json!("p"))
    );
    let seen = watch.next().await.unwrap();
    assert_eq!((&seen["object"]["apiVersion"], &seen["object"]["note"]), (&json!("events.k8s.io/v1"), &json!("hello")));
    assert_eq!(seen["object"]["metadata"]["resourceVersion"], newer["metadata"]["resourceVersion"]);
}
