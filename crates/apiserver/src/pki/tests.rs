//! Certificates: created, reloaded, renewed, damaged; and what TLS makes of them.

use std::os::unix::fs::PermissionsExt;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::authn::PeerCertificates;

fn options() -> PkiOptions {
    PkiOptions {
        server_names: vec!["api.example".into()],
        server_ips: vec!["10.43.0.1".parse().unwrap()],
        cluster_domain: "cluster.local".into(),
    }
}

fn pki(dir: &Path) -> Pki {
    Pki::load_or_create(dir, options()).unwrap()
}

fn failure(dir: &Path) -> String {
    format!("{:#}", Pki::load_or_create(dir, options()).err().expect("must not load"))
}

#[test]
fn creates_kubeadms_layout_and_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    let first = pki(dir.path());
    for stem in ["ca", "apiserver", "apiserver-kubelet-client", "front-proxy-ca", "front-proxy-client", "admin"] {
        for extension in ["crt", "key"] {
            let file = dir.path().join(format!("{stem}.{extension}"));
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
        }
    }
    let second = pki(dir.path());
    assert_eq!(first.ca(), second.ca());
    assert_eq!(first.stored("admin"), second.stored("admin"));
    assert_eq!(first.stored(SERVER), second.stored(SERVER));
    assert!(first.tokens().is_ok());
    assert_eq!(first.renew().unwrap(), Vec::<&str>::new());
}

#[test]
fn renews_what_is_due_and_reissues_what_changed() {
    let dir = tempfile::tempdir().unwrap();
    let running = pki(dir.path());
    let (_, authority, request) = running.requests().into_iter().find(|(stem, ..)| *stem == "admin").unwrap();
    for (days, kept) in [(200, true), (260, false), (400, false)] {
        let old = authority.issue_at(&request, Duration::from_secs(days * 24 * 3600)).unwrap();
        std::fs::write(dir.path().join("admin.crt"), &old.cert).unwrap();
        std::fs::write(dir.path().join("admin.key"), &old.key).unwrap();
        assert_eq!(running.renew().unwrap(), ["admin"], "{days} days: taken over or renewed");
        assert_eq!(running.stored("admin") == Some(old), kept, "{days} days");
    }
    let more = PkiOptions { server_names: vec!["other.example".into()], ..options() };
    let changed = Pki::load_or_create(dir.path(), more).unwrap();
    assert_ne!(changed.stored(SERVER), running.stored(SERVER));
    assert_eq!(changed.stored("scheduler"), running.stored("scheduler"));

    // Another authority signs everything anew.
    std::fs::remove_file(dir.path().join("ca.crt")).unwrap();
    std::fs::remove_file(dir.path().join("ca.key")).unwrap();
    assert_ne!(pki(dir.path()).stored("scheduler"), running.stored("scheduler"));
}

#[test]
fn signs_what_others_ask() {
    let dir = tempfile::tempdir().unwrap();
    let pki = pki(dir.path());
    let key = rcgen::KeyPair::generate().unwrap();
    let request = |groups: &[&str]| {
        let mut params = rcgen::CertificateParams::new(["own.example".to_owned()]).unwrap();
        let kinds = [rcgen::DnType::OrganizationName, rcgen::DnType::CustomDnType(vec![2, 5, 4, 10])];
        kinds.into_iter().zip(groups).for_each(|(kind, group)| params.distinguished_name.push(kind, *group));
        params.serialize_request(&key).unwrap().pem().unwrap()
    };
    let signed = pki.sign_client(&request(&["readers"]), Some(Duration::from_secs(3600))).unwrap();
    let (_, pem) = x509_parser::pem::parse_x509_pem(signed.as_bytes()).unwrap();
    let certificate = pem.parse_x509().unwrap();
    assert_eq!(certificate.subject().iter_organization().next().unwrap().as_str().unwrap(), "readers");
    assert!(!certificate.is_ca() && certificate.validity().time_to_expiration().unwrap().whole_seconds() <= 3600);
    assert_eq!(*certificate.public_key().subject_public_key.data, *key.public_key_raw());
    let complaint = format!("{:#}", pki.sign_client(&request(&["readers", "writers"]), None).unwrap_err());
    assert!(complaint.contains("more than one attribute of a kind"), "{complaint}");
    assert!(pki.sign_client("nonsense", None).is_err());
}

#[test]
fn damage_is_named_with_its_remedy() {
    let cases: &[(&str, Option<&str>, &[&str])] = &[
        ("ca.key", None, &["ca.crt exists but", "ca.key does not", "restore ca.crt and ca.key from a backup"]),
        ("ca.crt", Some("garbage"), &["ca.crt is unusable: no certificate in PEM form", "remove both"]),
        ("apiserver.key", Some("garbage"), &["apiserver.crt is unusable", "remove apiserver.crt and apiserver.key"]),
        ("apiserver.crt", None, &["apiserver.key exists but", "to have them issued again"]),
        ("sa.key", None, &["sa.pub exists but", "every service-account token becomes invalid"]),
        ("sa.pub", Some("garbage"), &["sa.pub is unusable"]),
    ];
    for (file, content, words) in cases {
        let dir = tempfile::tempdir().unwrap();
        pki(dir.path());
        match content {
            None => std::fs::remove_file(dir.path().join(file)).unwrap(),
            Some(text) => std::fs::write(dir.path().join(file), text).unwrap(),
        }
        let message = failure(dir.path());
        for word in *words {
            assert!(message.contains(word), "{file}: {message}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    pki(dir.path());
    std::fs::copy(dir.path().join("front-proxy-ca.key"), dir.path().join("ca.key")).unwrap();
    assert!(failure(dir.path()).contains("the key does not belong to the certificate"));
}

/// Who the server takes a client with this credential for.
async fn handshake(server: &Pki, client: &Credential, server_ca: &str) -> Result<PeerCertificates> {
    let trust = server.client_trust()?;
    let acceptor = TlsAcceptor::from(Arc::new(server.server_config(&trust)?));
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(server_ca)?)
        .with_client_auth_cert(
            CertificateDer::pem_slice_iter(client.cert.as_bytes()).collect::<Result<_, _>>()?,
            PrivateKeyDer::from_pem_slice(client.key.as_bytes())?,
        )?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let (near, far) = tokio::io::duplex(1 << 16);
    let name = ServerName::try_from("kubernetes.default.svc.cluster.local")?;
    let connect = async {
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, near).await?;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        stream.write_all(b"x").await?;
        Ok::<_, anyhow::Error>(stream)
    };
    let accept = async {
        let mut stream = acceptor.accept(far).await?;
        stream.read_u8().await?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
        Ok::<_, anyhow::Error>(trust.judge(&chain))
    };
    let (_client, peer) = tokio::try_join!(connect, accept)?;
    Ok(peer)
}

#[tokio::test]
async fn certificates_prove_identities_over_tls() {
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (server, other) = (pki(dir.path()), pki(other_dir.path()));

    let admin =
        handshake(&server, &server.stored("admin").unwrap(), server.ca()).await.unwrap().user().unwrap().unwrap();
    assert_eq!((admin.name.as_str(), &admin.groups[..]), ("kubernetes-admin", &[MASTERS.to_owned()][..]));
    assert!(admin.extra["authentication.kubernetes.io/credential-id"][0].starts_with("X509SHA256="));

    let node = handshake(&server, &server.node_client("n1").unwrap(), server.ca()).await.unwrap().user().unwrap();
    assert_eq!(node.unwrap().node(), Some("n1"));

    let two = server.client("jane", &["a", "b"]).unwrap();
    assert_eq!(handshake(&server, &two, server.ca()).await.unwrap().user().unwrap().unwrap().groups, ["a", "b"]);

    // A stranger's certificate passes the handshake and proves nothing; so does a server's.
    assert!(handshake(&server, &other.stored("admin").unwrap(), server.ca()).await.unwrap().user().is_err());
    let serving = server.node_serving("n1", &[], &[]).unwrap();
    assert!(handshake(&server, &serving, server.ca()).await.unwrap().user().is_err());
    assert!(handshake(&server, &two, other.ca()).await.is_err(), "the client must refuse an unknown server");

    let proxy = handshake(&server, &server.stored(FRONT_PROXY_CLIENT).unwrap(), server.ca()).await.unwrap();
    let headers = [("x-remote-user", "jane"), ("x-remote-group", "devs"), ("x-remote-extra-scope", "s")];
    let headers = headers.into_iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
    let jane = proxy.front_proxy_user(&headers).unwrap();
    assert_eq!((jane.name.as_str(), &jane.groups[0], &jane.extra["scope"][0]), ("jane", &"devs".into(), &"s".into()));
    let direct = handshake(&server, &two, server.ca()).await.unwrap();
    assert_eq!(direct.front_proxy_user(&headers), None, "headers count from the proxy only");
}

#[test]
fn kubeconfig_is_yaml_with_everything_in_it() {
    let text = kubeconfig("https://127.0.0.1:6443", "CA", "CERT", "KEY", "isopod");
    let value: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
    assert_eq!(value["current-context"], "isopod");
    assert_eq!(value["clusters"][0]["cluster"]["server"], "https://127.0.0.1:6443");
    assert_eq!(value["users"][0]["user"]["client-key-data"], STANDARD.encode("KEY"));
    assert_eq!(value["contexts"][0]["context"]["user"], "isopod");
}

/// A kubelet's end: serves `credential` and judges clients as the API server does.
pub(crate) fn server_config(credential: &Credential, trust: &ClientTrust) -> ServerConfig {
    ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(trust.handshake_verifier())
        .with_cert_resolver(Arc::new(Leaf::new(credential.clone()).unwrap()))
}
