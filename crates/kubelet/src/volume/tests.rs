//! Volumes on real directories.

use super::atomic::{File, Payload, write};
use super::ownership::Owner;
use super::*;
use serde_json::json;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::sync::Arc;

fn payload(files: &[(&str, &str)]) -> Payload {
    let file = |data: &str| File { data: data.as_bytes().to_vec(), mode: 0o640, uid: None };
    files.iter().map(|(path, data)| ((*path).to_owned(), file(data))).collect()
}

const NOBODY: Owner = Owner { group: None, read_only: true };

#[test]
fn atomic_writes_swap_one_link() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    assert_eq!(write(root, &payload(&[("a", "1"), ("deep/b", "2")]), NOBODY), Ok(true));
    assert_eq!((read("a"), read("deep/b")), ("1".into(), "2".into()));
    assert_eq!(fs::read_link(root.join("a")).unwrap(), Path::new("..data/a"));
    assert_eq!(fs::metadata(root.join("a")).unwrap().mode() & 0o777, 0o640);
    let before = fs::read_link(root.join("..data")).unwrap();
    assert_eq!(write(root, &payload(&[("a", "1"), ("deep/b", "2")]), NOBODY), Ok(false), "nothing to do");
    assert_eq!(fs::read_link(root.join("..data")).unwrap(), before);
    assert_eq!(write(root, &payload(&[("a", "3"), ("c", "4")]), NOBODY), Ok(true));
    assert_eq!((read("a"), read("c")), ("3".into(), "4".into()));
    assert!(!root.join("deep").exists() && !root.join(&before).exists());
    for bad in ["../x", "/x", "a/../b", "", "..x"] {
        assert!(write(root, &payload(&[(bad, "")]), NOBODY).is_err(), "{bad}");
    }
}

struct Fixture {
    _directory: tempfile::TempDir,
    config: Config,
    tokens: Tokens,
    facts: Facts,
}

fn fixture() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let mut config = Config::new("node", [127, 0, 0, 1].into(), "none");
    config.root_dir = directory.path().to_owned();
    let unreachable = tower::service_fn(|_: http::Request<kube::client::Body>| async {
        Err::<http::Response<kube::client::Body>, _>(std::io::Error::other("no API here"))
    });
    let tokens = Tokens::new(kube::Client::new(unreachable, "default"));
    Fixture { _directory: directory, config, tokens, facts: Facts::default() }
}

fn pod_with(spec: serde_json::Value) -> Pod {
    serde_json::from_value(
        json!({"metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"v": "1"}}, "spec": spec}),
    )
    .unwrap()
}

#[tokio::test]
async fn content_volumes_follow_their_sources() {
    let fixture = fixture();
    let map = |value: &str| References {
        config_maps: [(
            "m".to_owned(),
            Some(Arc::new(serde_json::from_value(json!({"data": {"k": value, "other": "x"}})).unwrap())),
        )]
        .into(),
        ..References::default()
    };
    let pod = pod_with(json!({
    "securityContext": {"fsGroup": 4321},
    "containers": [{"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/v"}, {"name": "d", "mountPath": "/d"}]}],
    "volumes": [
        {"name": "v", "configMap": {"name": "m", "items": [{"key": "k", "path": "dir/file", "mode": 256}]}},
        {"name": "d", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
        {"name": "unused", "configMap": {"name": "absent"}}
    ]}));
    let references = map("one");
    let context = Context { pod: &pod, references: &references, facts: &fixture.facts, tokens: &fixture.tokens };
    set_up(&fixture.config, &context).await.unwrap();
    let volume = path(&fixture.config, &pod, "v").unwrap();
    let file = volume.join("dir/file");
    assert_eq!(fs::read_to_string(&file).unwrap(), "one");
    let metadata = fs::metadata(&file).unwrap();
    assert_eq!((metadata.gid(), metadata.mode() & 0o777), (4321, 0o440));
    let labels = path(&fixture.config, &pod, "d").unwrap().join("labels");
    assert_eq!(fs::read_to_string(labels).unwrap(), "v=\"1\"");

    let references = map("two");
    set_up(&fixture.config, &Context { references: &references, ..context }).await.unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "two");

    let none = References::default();
    let error = set_up(
        &fixture.config,
        &Context { pod: &pod, references: &none, facts: &fixture.facts, tokens: &fixture.tokens },
    )
    .await
    .unwrap_err();
    assert_eq!(error, "MountVolume.SetUp failed for volume \"v\" : configmap \"m\" not found");
    tear_down(&fixture.config, "u").unwrap();
    assert!(!fixture.config.pod_dir("u").exists());
}

#[tokio::test]
async fn empty_dirs_keep_their_content_and_memory_is_a_tmpfs() {
    let fixture = fixture();
    let pod = pod_with(json!({
        "containers": [{"name": "c", "volumeMounts": [{"name": "disk", "mountPath": "/d"}, {"name": "mem", "mountPath": "/m"}]}],
        "volumes": [{"name": "disk", "emptyDir": {}}, {"name": "mem", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]}));
    let references = References::default();
    let context = Context { pod: &pod, references: &references, facts: &fixture.facts, tokens: &fixture.tokens };
    set_up(&fixture.config, &context).await.unwrap();
    let (disk, memory) = (path(&fixture.config, &pod, "disk").unwrap(), path(&fixture.config, &pod, "mem").unwrap());
    assert_eq!(fs::metadata(&disk).unwrap().permissions().mode() & 0o7777, 0o777);
    assert_eq!(fs::metadata(&memory).unwrap().permissions().mode() & 0o7777, 0o777);
    assert_eq!(mounts_below(&memory), std::slice::from_ref(&memory));
    let size = nix::sys::statvfs::statvfs(&memory).unwrap();
    assert_eq!(size.blocks() * size.fragment_size(), 1 << 20);
    fs::write(disk.join("keep"), "x").unwrap();
    fs::write(memory.join("keep"), "x").unwrap();
    fs::set_permissions(&disk, fs::Permissions::from_mode(0o700)).unwrap();
    set_up(&fixture.config, &context).await.unwrap();
    assert!(disk.join("keep").exists() && memory.join("keep").exists());
    assert_eq!(fs::metadata(&disk).unwrap().permissions().mode() & 0o777, 0o700, "the pod's own chmod stays");
    tear_down(&fixture.config, "u").unwrap();
    assert!(mounts_below(&memory).is_empty() && !disk.exists());
}

#[tokio::test]
async fn sub_paths_stay_inside_their_volume() {
    let fixture = fixture();
    let mounts_of = |sub_path: &str| {
        let pod = pod_with(json!({
            "containers": [{"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/v", "subPathExpr": sub_path}]}],
            "volumes": [{"name": "v", "emptyDir": {}}]}));
        let member = pod::member(&pod, "c").unwrap();
        let environment = [("NAME".to_owned(), "made".to_owned())];
        mounts(&fixture.config, &pod, &member, &environment, "hosts")
    };
    let pod = pod_with(json!({"containers": [{"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        "volumes": [{"name": "v", "emptyDir": {}}]}));
    let references = References::default();
    let context = Context { pod: &pod, references: &references, facts: &fixture.facts, tokens: &fixture.tokens };
    set_up(&fixture.config, &context).await.unwrap();
    let volume = path(&fixture.config, &pod, "v").unwrap();
    std::os::unix::fs::symlink("/etc", volume.join("out")).unwrap();
    std::os::unix::fs::symlink("made", volume.join("in")).unwrap();

    let first = mounts_of("$(NAME)/deep").unwrap();
    fs::write(volume.join("made/deep/file"), "x").unwrap();
    assert!(Path::new(&first[0].host_path).join("file").exists());
    assert_eq!(
        first.iter().map(|mount| mount.container_path.as_str()).collect::<Vec<_>>(),
        ["/v", "/etc/hosts", "/dev/termination-log"]
    );
    let again = mounts_of("in/deep").unwrap();
    assert!(Path::new(&again[0].host_path).join("file").exists(), "a link inside is fine");
    for bad in ["out", "out/passwd", "../x", "$(MISSING)", "/abs"] {
        assert!(mounts_of(bad).is_err(), "{bad}");
    }
    clean_container(&fixture.config, "u", "c");
    tear_down(&fixture.config, "u").unwrap();
    assert!(!volume.exists() && Path::new("/etc/passwd").exists());
}
