//! Two electors and one lease, held by a service that keeps just that.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client::election::{LeaderElector, Timing};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The lease, and whether the server answers at all.
type Server = Arc<Mutex<(Option<Value>, bool)>>;

fn client(server: &Server) -> client::Client {
    let server = server.clone();
    client::in_process(
        tower::service_fn(move |request: Request<kube::client::Body>| {
            let server = server.clone();
            async move {
                let method = request.method().clone();
                let body = request.into_body().collect().await?.to_bytes();
                let (code, answer) = respond(&mut server.lock(), method, &body);
                let response = Response::builder().status(code).body(Full::new(Bytes::from(answer.to_string())));
                Ok::<_, tower::BoxError>(response?)
            }
        }),
        "test",
    )
}

fn respond((lease, alive): &mut (Option<Value>, bool), method: Method, body: &[u8]) -> (StatusCode, Value) {
    let failure = |code: u16, reason| {
        let status = json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": reason});
        (StatusCode::from_u16(code).unwrap(), status)
    };
    if !*alive {
        return failure(503, "ServiceUnavailable");
    }
    let version = |lease: &Value| lease["metadata"]["resourceVersion"].as_str().map(|v| v.parse::<u32>().unwrap());
    let found = lease.as_ref().and_then(version);
    if method == Method::GET {
        return lease.clone().map_or_else(|| failure(404, "NotFound"), |lease| (StatusCode::OK, lease));
    }
    let mut new: Value = serde_json::from_slice(body).unwrap();
    if version(&new) != found {
        return failure(409, "Conflict");
    }
    new["metadata"]["resourceVersion"] = json!((found.unwrap_or(0) + 1).to_string());
    *lease = Some(new.clone());
    (StatusCode::OK, new)
}

fn elector(server: &Server, identity: &str) -> LeaderElector {
    let milliseconds = Duration::from_millis;
    let timing = Timing { lease: Duration::from_secs(1), renew: milliseconds(300), retry: milliseconds(20) };
    LeaderElector::new(client(server), "kube-system", "lock", identity).timing(timing)
}

#[tokio::test]
async fn one_leads_until_it_hands_over() {
    let server: Server = Arc::new(Mutex::new((None, true)));
    let leader = watch::Sender::new(String::new());
    let run = |identity: &'static str, stop: CancellationToken| {
        let (elector, leader) = (elector(&server, identity), leader.clone());
        tokio::spawn(elector.run(stop, move |leading| async move {
            leader.send_replace(identity.into());
            leading.cancelled().await;
            identity
        }))
    };
    let (first_stop, second_stop) = (CancellationToken::new(), CancellationToken::new());
    let mut leaders = leader.subscribe();
    let first = run("first", first_stop.clone());
    leaders.wait_for(|leader| leader == "first").await.unwrap();
    let second = run("second", second_stop.clone());
    first_stop.cancel();
    assert_eq!(first.await.unwrap().unwrap(), Some("first"));
    leaders.wait_for(|leader| leader == "second").await.unwrap();
    assert_eq!(server.lock().0.as_ref().unwrap()["spec"]["leaseTransitions"], 1);
    second_stop.cancel();
    assert_eq!(second.await.unwrap().unwrap(), Some("second"));
    assert_eq!(server.lock().0.as_ref().unwrap()["spec"]["holderIdentity"], "");
}

#[tokio::test]
async fn a_leader_that_cannot_renew_stops_before_its_lease_is_taken() {
    let server: Server = Arc::new(Mutex::new((None, true)));
    let stopped = elector(&server, "first")
        .run(CancellationToken::new(), |leading| {
            server.lock().1 = false;
            async move { leading.cancelled().await }
        })
        .await;
    assert_eq!(stopped.unwrap_err().to_string(), "lost the lease kube-system/lock");

    server.lock().1 = true;
    let took_over = elector(&server, "second").run(CancellationToken::new(), |_| async { "led" }).await;
    assert_eq!(took_over.unwrap(), Some("led"), "a lease that nobody renews runs out");
}
