//! Lists: pages at one revision, continue tokens, selectors, resourceVersion rules.

use super::*;

async fn maps(cluster: &Cluster, names: &[&str]) -> Vec<Value> {
    let mut created = Vec::new();
    for name in names {
        created.push(cluster.create(MAPS, config_map(name)).await);
    }
    created
}

#[tokio::test]
async fn pages_show_one_revision() {
    let cluster = Cluster::start().await;
    let created = maps(&cluster, &["a", "b", "c", "d", "e"]).await;
    let first = cluster.get(&format!("{MAPS}?limit=2")).await.expect(200);
    let metadata = first["metadata"].clone();
    assert_eq!((names(&first), &metadata["remainingItemCount"]), (vec!["a".into(), "b".into()], &json!(3)));
    assert!(version(&first) >= version(&created[4]));
    // What happens now is not seen by the later pages.
    cluster.call("DELETE", &format!("{MAPS}/c"), &Value::Null).await.expect(200);
    cluster.create(MAPS, config_map("bb")).await;
    let next = |page: &Value| format!("{MAPS}?limit=2&continue={}", text(&page["metadata"]["continue"]));
    let second = cluster.get(&next(&first)).await.expect(200);
    assert_eq!((names(&second), version(&second)), (vec!["c".into(), "d".into()], version(&first)));
    let third = cluster.get(&next(&second)).await.expect(200);
    assert_eq!((names(&third), &third["metadata"]["continue"]), (vec!["e".to_owned()], &Value::Null));
    assert_eq!(names(&cluster.get(MAPS).await.expect(200)), ["a", "b", "bb", "d", "e"]);
    // The old revision can still be asked for by name.
    let exact = format!("{MAPS}?resourceVersionMatch=Exact&resourceVersion={}", version(&first));
    assert_eq!(names(&cluster.get(&exact).await.expect(200)), ["a", "b", "c", "d", "e"]);
}

#[tokio::test]
async fn a_lost_page_can_be_continued() {
    let cluster = Cluster::start().await;
    let created = maps(&cluster, &["a", "b", "c"]).await;
    // A token of a revision from before the store's history.
    let lost = apiserver::list::token("default/a", Some(version(&created[0])));
    cluster.compact(version(&created[2])).await;
    let answer = cluster.get(&format!("{MAPS}?limit=1&continue={lost}")).await;
    let status = answer.fails(410, "Expired", "The provided continue parameter is too old to display a consistent list result. \
        You can start a new list without the continue parameter, or use the continue token in this response to retrieve \
        the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that \
        were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.");
    let rest = format!("{MAPS}?continue={}", text(&status["metadata"]["continue"]));
    assert_eq!(names(&cluster.get(&rest).await.expect(200)), ["b", "c"]);
}

#[tokio::test]
async fn selectors_select() {
    let cluster = Cluster::start().await;
    for (name, label) in [("a", "x"), ("b", "y"), ("c", "x")] {
        let mut object = config_map(name);
        object["metadata"]["labels"] = json!({"l": label});
        cluster.create(MAPS, object).await;
    }
    let cases = [
        ("labelSelector=l%3Dx", vec!["a", "c"]),
        ("labelSelector=l+in+(y),l", vec!["b"]),
        ("labelSelector=!l", vec![]),
        ("fieldSelector=metadata.name%3Db", vec!["b"]),
        ("fieldSelector=metadata.name!%3Db", vec!["a", "c"]),
        ("fieldSelector=metadata.namespace%3Dother", vec![]),
    ];
    for (query, want) in cases {
        assert_eq!(names(&cluster.get(&format!("{MAPS}?{query}")).await.expect(200)), want, "{query}");
    }
    let message = r#""spec.x" is not a known field selector: only "metadata.name", "metadata.namespace""#;
    cluster.get(&format!("{MAPS}?fieldSelector=spec.x%3D1")).await.fails(400, "BadRequest", message);
    cluster.get(&format!("{MAPS}?labelSelector=a+b")).await.expect(400);

    cluster.create(PODS, pod("p")).await;
    let pods = |query: &str| format!("/api/v1/pods?fieldSelector={query}");
    assert_eq!(names(&cluster.get(&pods("status.phase%3DPending")).await.expect(200)), ["p"]);
    assert_eq!(names(&cluster.get(&pods("spec.nodeName%3Dn")).await.expect(200)), Vec::<String>::new());
}

#[tokio::test]
async fn versions_are_waited_for() {
    let cluster = Cluster::start().await;
    let created = cluster.create(MAPS, config_map("a")).await;
    for uri in [
        format!("{MAPS}?resourceVersion=0"),
        format!("{MAPS}?resourceVersion={}", version(&created)),
        format!("{MAPS}?resourceVersionMatch=NotOlderThan&resourceVersion=1"),
    ] {
        assert_eq!(names(&cluster.get(&uri).await.expect(200)), ["a"], "{uri}");
    }
    let future = cluster.get(&format!("{MAPS}?resourceVersion={}", version(&created) + 1000)).await;
    assert_eq!(future.headers["retry-after"], "1");
    let status = future.expect(504);
    assert_eq!(
        (&status["reason"], &status["details"]["causes"][0]["reason"]),
        (&json!("Timeout"), &json!("ResourceVersionTooLarge"))
    );
}

#[tokio::test]
async fn answers_come_as_tables_and_metadata() {
    let cluster = Cluster::start().await;
    maps(&cluster, &["a", "b"]).await;
    let get = async |uri: &str, accept: &str| {
        Answer::of(cluster.send("GET", uri, &[("accept", accept)], Body::empty()).await).await
    };
    let table = get(MAPS, "application/json;as=Table;v=v1;g=meta.k8s.io,application/json").await.expect(200);
    let columns: Vec<_> =
        table["columnDefinitions"].as_array().unwrap().iter().map(|column| text(&column["name"])).collect();
    assert_eq!((&table["kind"], columns), (&json!("Table"), vec!["Name".to_owned(), "Data".into(), "Age".into()]));
    assert_eq!(
        (&table["rows"][1]["cells"][0], &table["rows"][1]["object"]["metadata"]["name"]),
        (&json!("b"), &json!("b"))
    );
    let one = get(&format!("{MAPS}/a"), "application/json;as=Table;v=v1;g=meta.k8s.io").await.expect(200);
    assert_eq!(one["rows"].as_array().unwrap().len(), 1);
    let partial = get(MAPS, "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io").await.expect(200);
    assert_eq!((&partial["kind"], &partial["items"][0]["data"]), (&json!("PartialObjectMetadataList"), &Value::Null));
    assert_eq!(partial["items"][0]["kind"], "PartialObjectMetadata");
    let pretty = get(&format!("{MAPS}/a?pretty=true"), "application/json").await;
    assert!(pretty.text.starts_with("{\n"), "{}", pretty.text);
    get(MAPS, "text/html").await.expect(406);
}

#[tokio::test]
async fn protobuf_lists_hold_what_json_lists_hold() {
    let cluster = Cluster::start().await;
    maps(&cluster, &["a", "b"]).await;
    let headers = [("accept", "application/vnd.kubernetes.protobuf")];
    let response = cluster.send("GET", MAPS, &headers, Body::empty()).await;
    assert_eq!(response.headers()["content-type"], "application/vnd.kubernetes.protobuf");
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let envelope = machinery::protobuf::Envelope::parse(&bytes).unwrap();
    assert_eq!((envelope.kind, envelope.api_version), ("ConfigMapList", "v1"));
    let schema = resources::types().get("io.k8s.api.core.v1.ConfigMapList").unwrap();
    let list = machinery::protobuf::decode(resources::types(), schema, envelope.raw).unwrap();
    assert_eq!((names(&list), &list["items"][1]["data"]["a"]), (vec!["a".into(), "b".into()], &json!("b")));
}

#[tokio::test]
async fn big_lists_are_compressed() {
    use std::io::Read;
    let cluster = Cluster::start().await;
    for n in 0..40 {
        let mut object = config_map(&format!("m{n:02}"));
        object["data"]["big"] = "x".repeat(10_000).into();
        cluster.create(MAPS, object).await;
    }
    let plain = cluster.get(MAPS).await;
    assert!(plain.headers.get("content-encoding").is_none());
    let response = cluster.send("GET", MAPS, &[("accept-encoding", "gzip")], Body::empty()).await;
    assert_eq!(response.headers()["content-encoding"], "gzip");
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let mut text = String::new();
    flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut text).unwrap();
    assert_eq!(text, plain.text);
    assert!(bytes.len() < text.len() / 10);
}

#[tokio::test]
async fn one_broken_object_hides_nothing() {
    let cluster = Cluster::start().await;
    maps(&cluster, &["a"]).await;
    let mut watch = cluster.watch(&format!("{MAPS}?watch=1")).await;
    assert_eq!(watch.told().await, "ADDED a");
    for value in ["not JSON", r#"{"metadata":{"labels":7}}"#] {
        let put = store::Write::Put { key: "/registry/configmaps/default/b".into(), value: value.into(), lease: 0 };
        cluster.store.txn(store::Txn { compares: vec![], writes: vec![put] }).await.unwrap();
    }
    maps(&cluster, &["c"]).await;
    assert_eq!(names(&cluster.get(MAPS).await.expect(200)), ["a", "c"]);
    assert_eq!(watch.told().await, "ADDED c");
    let cluster = cluster.restart().await;
    assert_eq!(names(&cluster.get(MAPS).await.expect(200)), ["a", "c"]);
}
