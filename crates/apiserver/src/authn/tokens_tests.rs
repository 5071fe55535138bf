//! Tokens: issued, verified, tampered with, revoked with what they are bound to.

use serde_json::json;

use super::*;
use crate::authn::lookup::memory::Memory;

fn key_pair() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    (key.serialize_pem(), key.public_key_pem())
}

fn tokens(keys: &(String, String)) -> Tokens {
    Tokens::new(&Tokens::default_issuer("cluster.local"), &keys.0, &keys.1).unwrap()
}

fn object(namespace: &str, name: &str, uid: &str) -> Value {
    json!({"metadata": {"namespace": namespace, "name": name, "uid": uid}})
}

fn reference(name: &str, uid: &str) -> Reference {
    Reference { name: name.into(), uid: uid.into() }
}

fn spec() -> TokenSpec {
    TokenSpec {
        namespace: "ns".into(),
        service_account: reference("sa", "1"),
        pod: Some(reference("p", "2")),
        node: Some(reference("n", "3")),
        expiration_seconds: 3600,
        ..TokenSpec::default()
    }
}

fn world() -> Arc<Memory> {
    Memory::new([(SERVICE_ACCOUNTS, object("ns", "sa", "1")), (PODS, object("ns", "p", "2"))])
}

#[tokio::test]
async fn a_token_says_who_holds_it() {
    let tokens = tokens(&key_pair());
    let issued = tokens.issue(spec()).unwrap();
    let user = tokens.authenticate(&issued.token, world().as_ref()).await.unwrap();
    assert_eq!(user.name, "system:serviceaccount:ns:sa");
    assert_eq!(user.uid, "1");
    assert_eq!(user.groups, ["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"]);
    let extra = |key: &str| user.extra[&format!("authentication.kubernetes.io/{key}")][0].clone();
    assert_eq!(["pod-name", "pod-uid", "node-name", "node-uid"].map(extra), ["p", "2", "n", "3"]);
    assert_eq!(extra("credential-id"), format!("JTI={}", issued.id));
}

#[tokio::test]
async fn tampering_is_noticed() {
    let (keys, others) = (key_pair(), key_pair());
    let tokens = tokens(&keys);
    let good = tokens.issue(spec()).unwrap().token;
    let world = world();
    assert!(tokens.authenticate(&good, world.as_ref()).await.is_ok());

    let parts: Vec<_> = good.split('.').collect();
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let mut raised = claims.clone();
    raised["sub"] = json!("system:serviceaccount:kube-system:admin");
    let header = |alg: &str| encode(&json!({"alg": alg}));
    let flipped = if parts[2].starts_with('A') { "B" } else { "A" };
    let cases = [
        ("claims", format!("{}.{}.{}", parts[0], encode(&raised), parts[2])),
        ("signature", format!("{}.{}.{flipped}{}", parts[0], parts[1], &parts[2][1..])),
        ("no signature", format!("{}.{}.", parts[0], parts[1])),
        ("alg none", format!("{}.{}.", header("none"), parts[1])),
        ("alg HS256", format!("{}.{}.{}", header("HS256"), parts[1], parts[2])),
        ("no dots", parts.concat()),
        ("empty", String::new()),
        ("other key", super::tests::tokens(&others).issue(spec()).unwrap().token),
        ("too long", format!("{good}{}", "A".repeat(MAX_TOKEN_BYTES))),
    ];
    for (what, token) in cases {
        assert!(tokens.authenticate(&token, world.as_ref()).await.is_err(), "{what}");
    }
    let elsewhere = Tokens::new("https://elsewhere", &keys.0, &keys.1).unwrap().issue(spec()).unwrap().token;
    let error = tokens.authenticate(&elsewhere, world.as_ref()).await.unwrap_err();
    assert!(matches!(error, TokenError::Issuer(_)), "{error}");
}

#[tokio::test]
async fn audiences_must_meet() {
    let tokens = tokens(&key_pair());
    let vault = tokens.issue(TokenSpec { audiences: vec!["vault".into(), "x".into()], ..spec() }).unwrap().token;
    let world = world();
    assert!(matches!(tokens.authenticate(&vault, world.as_ref()).await, Err(TokenError::Audience(_))));
    let wanted = ["y".to_owned(), "vault".to_owned()];
    assert_eq!(tokens.verify(&vault, &wanted, world.as_ref()).await.unwrap().audiences, ["vault"]);
}

#[tokio::test]
async fn time_ends_tokens() {
    let keys = key_pair();
    let past = |seconds| Timestamp::now() - jiff::SignedDuration::from_secs(seconds);
    let hour_ago = tokens(&keys).with_clock(|| Timestamp::now() - jiff::SignedDuration::from_secs(3601));
    let ahead = tokens(&keys).with_clock(|| Timestamp::now() + jiff::SignedDuration::from_secs(120));
    let (now, world) = (tokens(&keys), world());

    let expired = hour_ago.issue(spec()).unwrap();
    assert!(matches!(now.authenticate(&expired.token, world.as_ref()).await, Err(TokenError::Expired)));
    let future = ahead.issue(spec()).unwrap();
    assert!(matches!(now.authenticate(&future.token, world.as_ref()).await, Err(TokenError::NotYet)));

    // A kubelet's token is to be replaced after an hour, yet old clients that do not are let in.
    let extended = hour_ago.issue(TokenSpec { expiration_seconds: WARN_ONLY_SECONDS, ..spec() }).unwrap();
    assert!(extended.expires < past(-60));
    assert!(now.authenticate(&extended.token, world.as_ref()).await.is_ok());
}

#[tokio::test]
async fn deleting_what_it_is_bound_to_revokes_a_token() {
    let tokens = tokens(&key_pair());
    let token = tokens.issue(spec()).unwrap().token;
    let node_token = TokenSpec { pod: None, ..spec() };
    let node_token = tokens.issue(node_token).unwrap().token;
    let revoked = async |world: &Memory, token: &str| {
        matches!(tokens.authenticate(token, world).await, Err(TokenError::Revoked(..)))
    };
    let world = world();
    assert!(!revoked(&world, &token).await);
    assert!(revoked(&world, &node_token).await, "bound to a node that does not exist");
    world.put(NODES, object("", "n", "3"));
    assert!(!revoked(&world, &node_token).await);

    let mut dying = object("ns", "p", "2");
    dying["metadata"]["deletionTimestamp"] = json!(Timestamp::now());
    world.put(PODS, dying.clone());
    assert!(!revoked(&world, &token).await, "within the leeway");
    dying["metadata"]["deletionTimestamp"] = json!(Timestamp::now() - jiff::SignedDuration::from_secs(120));
    world.put(PODS, dying);
    assert!(revoked(&world, &token).await);
    world.put(PODS, object("ns", "p", "another"));
    assert!(revoked(&world, &token).await);
    world.put(PODS, object("ns", "p", "2"));
    world.delete(SERVICE_ACCOUNTS, "ns", "sa");
    assert!(revoked(&world, &token).await);
}

#[tokio::test]
async fn secrets_hold_tokens_that_do_not_expire() {
    let tokens = tokens(&key_pair());
    let token = tokens.issue_legacy("ns", &reference("sa", "1"), "sa-token").unwrap();
    let world = world();
    assert!(tokens.authenticate(&token, world.as_ref()).await.is_err(), "not stored in its secret");
    let mut secret = object("ns", "sa-token", "9");
    secret["data"] = json!({"token": base64::engine::general_purpose::STANDARD.encode(&token)});
    world.put(SECRETS, secret);
    assert_eq!(tokens.authenticate(&token, world.as_ref()).await.unwrap().name, "system:serviceaccount:ns:sa");
    world.delete(SECRETS, "ns", "sa-token");
    assert!(tokens.authenticate(&token, world.as_ref()).await.is_err());
}

#[test]
fn discovery_describes_the_keys() {
    let keys = key_pair();
    let tokens = tokens(&keys);
    let jwks = tokens.jwks();
    let header = tokens.issue(spec()).unwrap().token;
    let header: Value =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header.split('.').next().unwrap()).unwrap()).unwrap();
    let key = &jwks["keys"][0];
    assert_eq!(
        (&key["kty"], &key["crv"], &key["alg"], &key["kid"]),
        (&json!("EC"), &json!("P-256"), &json!("ES256"), &header["kid"])
    );
    assert_eq!(tokens.openid_configuration("u")["issuer"], "https://kubernetes.default.svc.cluster.local");
    assert!(Tokens::new("i", &keys.0, &key_pair().1).is_err(), "public keys without the signing one");
}

#[test]
fn lifetimes_are_bounded() {
    for (seconds, good) in [(599, false), (600, true), (3607, true), (1 << 32, true), ((1 << 32) + 1, false)] {
        assert_eq!(check_expiration(seconds).is_ok(), good, "{seconds}");
    }
}
