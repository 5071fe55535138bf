//! Informers and in-process clients against a scripted service: what is asked of a server, and what becomes of its
//! answers.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client::{Event, Informers, Subscription};
use futures::StreamExt as _;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use k8s_openapi::api::core::v1::ConfigMap;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

/// Answers: each request takes the next script line: pieces of a body that stays open until its sender is dropped.
#[derive(Clone, Default)]
struct Script {
    answers: Arc<Mutex<VecDeque<mpsc::UnboundedReceiver<String>>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Script {
    fn answer(&self, first: Value) -> mpsc::UnboundedSender<String> {
        let (sender, receiver) = mpsc::unbounded_channel();
        sender.send(format!("{first}\n")).unwrap();
        self.answers.lock().push_back(receiver);
        sender
    }

    fn client(&self) -> client::Client {
        let script = self.clone();
        client::in_process(
            tower::service_fn(move |request: Request<kube::client::Body>| {
                let script = script.clone();
                async move {
                    assert_eq!(request.headers()["user-agent"], "test");
                    script.asked.lock().push(request.uri().to_string());
                    let Some(pieces) = script.answers.lock().pop_front() else { return std::future::pending().await };
                    let frames = UnboundedReceiverStream::new(pieces).map(|piece| Ok(Frame::data(Bytes::from(piece))));
                    Ok::<_, Infallible>(Response::new(StreamBody::new(frames.map(|f: Result<_, Infallible>| f))))
                }
            }),
            "test",
        )
    }
}

fn config_map(name: &str, version: u32) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {
        "name": name, "namespace": "ns", "uid": name, "resourceVersion": version.to_string(),
        "managedFields": [{"manager": "m"}]}})
}

fn list(version: u32, items: Vec<Value>) -> Value {
    json!({"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {"resourceVersion": version.to_string()}, "items": items})
}

async fn next(events: &mut Subscription<ConfigMap>) -> String {
    let version = |object: &ConfigMap| {
        assert!(object.metadata.managed_fields.is_none());
        format!("{}@{}", object.metadata.name.as_ref().unwrap(), object.metadata.resource_version.as_ref().unwrap())
    };
    let event = tokio::time::timeout(Duration::from_secs(10), events.recv()).await;
    match event.expect("an event within ten seconds").unwrap() {
        Event::Added(object) => format!("+{}", version(&object)),
        Event::Modified { old, new } => format!("{}>{}", version(&old), version(&new)),
        Event::Deleted(object) => format!("-{}", version(&object)),
    }
}

#[tokio::test]
async fn lists_once_watches_from_there_and_lists_anew_after_410() {
    let script = Script::default();
    drop(script.answer(list(5, vec![config_map("a", 3), json!({"metadata": 7}), config_map("b", 5)])));
    let watch = script.answer(json!({"type": "ADDED", "object": config_map("c", 6)}));
    drop(script.answer(list(20, vec![config_map("a", 3), config_map("b", 15)])));
    let second_watch = script.answer(json!({"type": "ADDED", "object": config_map("d", 21)}));

    let informers = Informers::new(script.client());
    let informer = informers.get::<ConfigMap>();
    informer.add_index("uid", |map| map.metadata.uid.iter().cloned().collect());
    informer.synced().await;
    let mut events = informers.get::<ConfigMap>().subscribe();
    assert_eq!(next(&mut events).await, "+a@3");
    assert_eq!(next(&mut events).await, "+b@5", "the broken item cost only itself");
    assert_eq!(next(&mut events).await, "+c@6");

    watch.send(format!("{}\n", json!({"type": "MODIFIED", "object": config_map("c", 7)}))).unwrap();
    assert_eq!(next(&mut events).await, "c@6>c@7");
    watch.send("{\"type\":\"MODIFIED\",\"object\":{\"metadata\":4}}\n".into()).unwrap();
    let bookmark = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"resourceVersion": "9"}});
    watch.send(format!("{}\n", json!({"type": "BOOKMARK", "object": bookmark}))).unwrap();
    let gone = json!({"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old"});
    watch.send(format!("{}\n", json!({"type": "ERROR", "object": gone}))).unwrap();

    let mut after: Vec<String> = vec![next(&mut events).await, next(&mut events).await, next(&mut events).await];
    after.sort();
    assert_eq!(after, ["+d@21", "-c@7", "b@5>b@15"]);
    assert_eq!(informer.store().by_index("uid", "b").len(), 1);
    assert!(informer.store().by_index("uid", "c").is_empty());
    assert_eq!(informer.store().list_namespace("ns").len(), 3);
    drop(second_watch);

    let asked = script.asked.lock().clone();
    assert_eq!(asked[0], "/api/v1/configmaps?&resourceVersion=0");
    assert!(asked[1].contains("watch=true") && asked[1].contains("allowWatchBookmarks=true"), "{}", asked[1]);
    assert!(asked[1].ends_with("resourceVersion=5"));
    assert_eq!(asked[2], "/api/v1/configmaps?", "after 410 the newest state is asked for");
    assert!(asked[3].ends_with("resourceVersion=20"));
}

#[tokio::test]
async fn a_watch_that_ends_resumes_from_the_last_bookmark() {
    let script = Script::default();
    drop(script.answer(list(5, vec![])));
    let bookmark = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"resourceVersion": "42"}});
    drop(script.answer(json!({"type": "BOOKMARK", "object": bookmark})));
    let _open = script.answer(json!({"type": "ADDED", "object": config_map("a", 43)}));
    let informers = Informers::new(script.client());
    let mut events = informers.get::<ConfigMap>().subscribe();
    assert_eq!(next(&mut events).await, "+a@43");
    assert!(script.asked.lock()[2].ends_with("resourceVersion=42"));
}

#[tokio::test]
async fn a_slow_subscriber_misses_no_life_and_no_final_state() {
    let script = Script::default();
    drop(script.answer(list(1, vec![])));
    let watch = script.answer(json!({"type": "ADDED", "object": config_map("a", 2)}));
    let informers = Informers::new(script.client());
    let informer = informers.get::<ConfigMap>();
    let (mut slow, mut quick) = (informer.subscribe(), informer.subscribe());
    assert_eq!(next(&mut quick).await, "+a@2");
    let send = |kind: &str, name: &str, version| {
        watch.send(format!("{}\n", json!({"type": kind, "object": config_map(name, version)}))).unwrap();
    };
    send("MODIFIED", "a", 3);
    send("MODIFIED", "a", 4);
    send("DELETED", "a", 5);
    send("ADDED", "a", 6);
    send("DELETED", "a", 7);
    send("ADDED", "a", 8);
    send("ADDED", "z", 9);
    while next(&mut quick).await != "+z@9" {}
    let seen: Vec<String> =
        vec![next(&mut slow).await, next(&mut slow).await, next(&mut slow).await, next(&mut slow).await];
    let of_a: Vec<&String> = seen.iter().filter(|event| !event.contains('z')).collect();
    assert_eq!(of_a, ["+a@4", "-a@5", "+a@8"]);
    assert!(slow.try_recv().is_none());
}

#[tokio::test]
async fn an_object_replaced_under_the_same_name_is_deleted_and_added() {
    let script = Script::default();
    drop(script.answer(list(1, vec![config_map("a", 1)])));
    let mut replaced = config_map("a", 9);
    replaced["metadata"]["uid"] = json!("other");
    let _watch = script.answer(json!({"type": "MODIFIED", "object": replaced}));
    let informers = Informers::new(script.client());
    let mut events = informers.get::<ConfigMap>().subscribe();
    assert_eq!(next(&mut events).await, "+a@1");
    assert_eq!(next(&mut events).await, "-a@1");
    assert_eq!(next(&mut events).await, "+a@9");
}
