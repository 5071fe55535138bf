//! Access and token reviews answer as the authorizers and authenticators decide.

use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::authn::lookup::memory::Memory;
use crate::authn::lookup::{CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES};

static SELF_ACCESS: Facts = facts("authorization.k8s.io", "SelfSubjectAccessReview");
static ACCESS: Facts = facts("authorization.k8s.io", "SubjectAccessReview");
static LOCAL: Facts = facts("authorization.k8s.io", "LocalSubjectAccessReview");
static RULES: Facts = facts("authorization.k8s.io", "SelfSubjectRulesReview");
static TOKEN: Facts = facts("authentication.k8s.io", "TokenReview");
static SELF: Facts = facts("authentication.k8s.io", "SelfSubjectReview");

const fn facts(group: &'static str, kind: &'static str) -> Facts {
    Facts::cluster(group, "v1", kind, "", "", "").posted()
}

async fn reviews() -> (Arc<Memory>, Reviews) {
    let rules = json!([
        {"verbs": ["list"], "apiGroups": [""], "resources": ["pods"]},
        {"verbs": ["get"], "nonResourceURLs": ["/healthz"]},
    ]);
    let bound = json!([{"kind": "User", "name": "bob"}]);
    let object = |name: &str, uid: &str| json!({"metadata": {"namespace": "ns", "name": name, "uid": uid}});
    let mut pod = object("p", "2");
    pod["spec"] = json!({"serviceAccountName": "sa", "nodeName": "n"});
    let memory = Memory::new([
        (CLUSTER_ROLES, json!({"metadata": {"name": "r"}, "rules": rules})),
        (
            CLUSTER_ROLE_BINDINGS,
            json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "r"}, "subjects": bound}),
        ),
        (SERVICE_ACCOUNTS, object("sa", "1")),
        (PODS, pod),
        (NODES, json!({"metadata": {"name": "n", "uid": "3"}})),
    ]);
    let key = rcgen::KeyPair::generate().unwrap();
    let tokens = Tokens::new("https://issuer", &key.serialize_pem(), &key.public_key_pem()).unwrap();
    let lookup: Arc<dyn Lookup> = memory.clone();
    let union = Union::start(lookup.clone());
    union.synced().await;
    (memory, Reviews::new(Arc::new(tokens), union, lookup))
}

fn pods(verb: &str) -> Value {
    json!({"resourceAttributes": {"namespace": "ns", "verb": verb, "resource": "pods"}})
}

#[tokio::test]
async fn access_reviews_answer_as_the_authorizer_does() {
    let (_, reviews) = reviews().await;
    let bob = UserInfo::component("bob");
    let reason = r#"RBAC: allowed by ClusterRoleBinding "b" of ClusterRole "r" to User "bob""#;
    let with_user = |mut spec: Value, user: &str| {
        spec["user"] = json!(user);
        spec
    };
    let health = json!({"nonResourceAttributes": {"path": "/healthz", "verb": "get"}});
    let cases = [
        (&SELF_ACCESS, pods("list"), json!({"allowed": true, "reason": reason})),
        (&SELF_ACCESS, pods("delete"), json!({"allowed": false})),
        (&SELF_ACCESS, health, json!({"allowed": true, "reason": reason})),
        (&ACCESS, with_user(pods("list"), "bob"), json!({"allowed": true, "reason": reason})),
        (&ACCESS, with_user(pods("list"), "eve"), json!({"allowed": false})),
        (&LOCAL, with_user(pods("list"), "bob"), json!({"allowed": true, "reason": reason})),
    ];
    for (facts, spec, status) in cases {
        let answer = reviews.create(facts, "ns", &bob, json!({"spec": spec})).await.unwrap();
        assert_eq!(answer["status"], status, "{} {spec}", facts.kind);
        assert_eq!(answer["spec"], spec);
    }
    let refused = [
        (&SELF_ACCESS, json!({}), 422, "exactly one of nonResourceAttributes or resourceAttributes must be specified"),
        (&ACCESS, pods("list"), 422, "at least one of user or group must be specified"),
        (&RULES, json!({}), 400, "no namespace on request"),
    ];
    for (facts, spec, code, why) in refused {
        let error = reviews.create(facts, "ns", &bob, json!({"spec": spec})).await.unwrap_err();
        assert_eq!(error.status.code, code, "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
    let elsewhere = reviews.create(&LOCAL, "other", &bob, json!({"spec": with_user(pods("list"), "bob")})).await;
    assert_eq!(elsewhere.unwrap_err().status.code, 400);
}

#[tokio::test]
async fn rules_and_identity_are_told() {
    let (_, reviews) = reviews().await;
    let review = json!({"spec": {"namespace": "ns"}});
    let bobs = reviews.create(&RULES, "", &UserInfo::component("bob"), review.clone()).await.unwrap();
    assert_eq!(
        bobs["status"],
        json!({
            "incomplete": false,
            "resourceRules": [{"verbs": ["list"], "apiGroups": [""], "resources": ["pods"]}],
            "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz"]}],
        })
    );
    let masters = reviews.create(&RULES, "", &UserInfo::master("m"), review).await.unwrap();
    assert_eq!(masters["status"]["resourceRules"][0]["resources"], json!(["*"]));
    let me = reviews.create(&SELF, "", &UserInfo::component("bob"), json!({})).await.unwrap();
    assert_eq!(me["status"], json!({"userInfo": {"username": "bob", "groups": ["system:authenticated"]}}));
}

#[tokio::test]
async fn tokens_are_requested_and_reviewed() {
    let (memory, reviews) = reviews().await;
    let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "2"});
    let request = json!({"spec": {"audiences": ["vault"], "expirationSeconds": 600, "boundObjectRef": bound}});
    let issued = reviews.token_request("ns", "sa", request).await.unwrap();
    let token = issued["status"]["token"].as_str().unwrap();
    assert!(issued["status"]["expirationTimestamp"].is_string());

    let review = |audiences: &[&str]| json!({"spec": {"token": token, "audiences": audiences}});
    let bob = UserInfo::component("bob");
    let status = reviews.create(&TOKEN, "", &bob, review(&["vault"])).await.unwrap()["status"].clone();
    assert_eq!((&status["authenticated"], &status["audiences"]), (&json!(true), &json!(["vault"])));
    assert_eq!(status["user"]["username"], "system:serviceaccount:ns:sa");
    assert_eq!(status["user"]["extra"]["authentication.kubernetes.io/node-uid"], json!(["3"]));
    let status = reviews.create(&TOKEN, "", &bob, review(&[])).await.unwrap()["status"].clone();
    assert!(status["authenticated"].is_null() && status["error"].is_string(), "not meant for the API server: {status}");
    memory.delete(PODS, "ns", "p");
    let status = reviews.create(&TOKEN, "", &bob, review(&["vault"])).await.unwrap()["status"].clone();
    assert!(status["authenticated"].is_null(), "{status}");
}

#[tokio::test]
async fn bad_token_requests_are_refused() {
    let (_, reviews) = reviews().await;
    let bound = |kind: &str, name: &str, uid: &str| json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": kind, "name": name, "uid": uid}}});
    let cases = [
        ("sa", json!({"spec": {"expirationSeconds": 60}}), 422, "may not specify a duration less than 10 minutes"),
        ("none", json!({}), 404, r#"serviceaccounts "none" not found"#),
        ("sa", bound("Pod", "p", "other"), 409, "does not match the UID in record"),
        ("sa", bound("Pod", "gone", ""), 404, r#"pods "gone" not found"#),
        ("sa", bound("Service", "p", ""), 400, "cannot bind token to object of type /v1, Kind=Service"),
    ];
    for (account, request, code, why) in cases {
        let error = reviews.token_request("ns", account, request).await.unwrap_err();
        assert_eq!(error.status.code, code, "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
}
