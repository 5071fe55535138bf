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
    client: kube::Client,
    facts: Facts,
    references: References,
}

impl Fixture {
    fn context<'a>(&'a self, pod: &'a Pod, references: &'a References) -> Context<'a> {
        Context {
            pod,
            references,
            facts: &self.facts,
            tokens: &self.tokens,
            client: &self.client,
            local_volumes: self.config.local_volumes_dir.as_deref(),
        }
    }
}

fn fixture() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let mut config = Config::new("node", [127, 0, 0, 1].into(), "none");
    config.root_dir = directory.path().to_owned();
    let unreachable = tower::service_fn(|_: http::Request<kube::client::Body>| async {
        Err::<http::Response<kube::client::Body>, _>(std::io::Error::other("no API here"))
    });
    let client = kube::Client::new(unreachable, "default");
    config.local_volumes_dir = Some(directory.path().join("local"));
    let (tokens, facts, references) = (Tokens::new(client.clone()), Facts::default(), References::default());
    Fixture { _directory: directory, config, tokens, client, facts, references }
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
    let context = fixture.context(&pod, &references);
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
    let error = set_up(&fixture.config, &fixture.context(&pod, &none)).await.unwrap_err();
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
    let context = fixture.context(&pod, &references);
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
        mounts(&fixture.config, &pod, &member, &environment, &Images::new(), "hosts")
    };
    let pod = pod_with(json!({"containers": [{"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        "volumes": [{"name": "v", "emptyDir": {}}]}));
    let references = References::default();
    let context = fixture.context(&pod, &references);
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

fn local_volume(path: &Path, annotations: serde_json::Value) -> k8s_openapi::api::core::v1::PersistentVolume {
    serde_json::from_value(json!({"metadata": {"name": "pv", "annotations": annotations},
        "spec": {"local": {"path": path}, "accessModes": ["ReadWriteOnce"]}}))
    .unwrap()
}

#[test]
fn persistent_volumes_are_mounted_and_stay_when_the_pod_goes() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let fixture = fixture();
    let pod = pod_with(json!({"securityContext": {"fsGroup": 4321},
        "containers": [{"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c", "readOnly": true}}]}));
    let context = fixture.context(&pod, &fixture.references);
    let root = fixture.config.local_volumes_dir.clone().unwrap();
    let (path, target) = (root.join("pvc-1"), path(&fixture.config, &pod, "v").unwrap());
    create_dir(&target).unwrap();

    let missing = claim::place(&context, &local_volume(&path, json!({})), false, &target).unwrap_err();
    let text = format!("MountVolume.NewMounter initialization failed for volume \"pv\" : path {path:?} does not exist");
    assert_eq!(missing, text, "only what was provisioned here is made here");

    let ours = local_volume(&path, json!({"pv.kubernetes.io/provisioned-by": "isopod.io/local-path"}));
    claim::place(&context, &ours, false, &target).unwrap();
    fs::write(target.join("data"), "kept").unwrap();
    assert_eq!(fs::read_to_string(path.join("data")).unwrap(), "kept");
    let top = fs::metadata(&path).unwrap();
    assert_eq!((top.gid(), top.mode() & 0o7777), (4321, 0o2777));
    let member = pod::member(&pod, "c").unwrap();
    let mounts = mounts(&fixture.config, &pod, &member, &[], &Images::new(), "hosts").unwrap();
    assert_eq!((mounts[0].host_path.as_str(), mounts[0].readonly), (target.to_str().unwrap(), true));

    tear_down(&fixture.config, "u").unwrap();
    assert!(!target.exists() && path.join("data").exists());
    for name in ["..", "a/b", "", "/etc"] {
        assert!(remove_local(&root, name).is_err(), "{name:?}");
    }
    assert!(remove_local(&root, "pvc-1").is_ok() && !path.exists() && remove_local(&root, "pvc-1").is_ok());
}

#[test]
fn a_host_path_volume_may_be_a_file() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let fixture = fixture();
    let pod =
        pod_with(json!({"containers": [], "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}));
    let context = fixture.context(&pod, &fixture.references);
    let (file, target) = (fixture.config.root_dir.join("file"), path(&fixture.config, &pod, "v").unwrap());
    create_dir(&target).unwrap();
    let volume = |kind: &str| -> k8s_openapi::api::core::v1::PersistentVolume {
        serde_json::from_value(json!({"metadata": {"name": "pv"}, "spec": {"hostPath": {"path": file, "type": kind}}}))
            .unwrap()
    };
    let refusal = claim::place(&context, &volume("File"), false, &target).unwrap_err();
    let text = format!(
        "MountVolume.SetUp failed for volume \"pv\" : hostPath type check failed: {} is not a file",
        file.display()
    );
    assert_eq!(refusal, text);
    claim::place(&context, &volume("FileOrCreate"), false, &target).unwrap();
    fs::write(&target, "through").unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "through");
    tear_down(&fixture.config, "u").unwrap();
    assert!(file.exists());
}

#[test]
fn claims_must_be_bound_to_their_volume() {
    let volume = |source: serde_json::Value| -> Volume { serde_json::from_value(source).unwrap() };
    let of_claim = volume(json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}}));
    let ephemeral = volume(json!({"name": "v", "ephemeral": {}}));
    let pod = pod_with(json!({"containers": []}));
    let claim = |change: serde_json::Value| -> k8s_openapi::api::core::v1::PersistentVolumeClaim {
        let mut claim = json!({"metadata": {"name": "p-v", "namespace": "n", "uid": "1"},
            "spec": {"volumeName": "pv"}, "status": {"phase": "Bound"}});
        change.as_object().unwrap().iter().for_each(|(key, value)| claim[key] = value.clone());
        serde_json::from_value(claim).unwrap()
    };
    let deleted = json!({"metadata": {"name": "c", "deletionTimestamp": "2024-01-01T00:00:00Z"}});
    let not_owner = "PVC n/p-v was not created for pod n/p (pod is not owner)";
    for (volume, claim, expected) in [
        (&of_claim, claim(json!({})), Ok("pv")),
        (&of_claim, claim(json!({"status": {"phase": "Pending"}})), Err("PVC is not bound")),
        (&of_claim, claim(json!({"spec": {}})), Err("PVC has empty pvc.Spec.VolumeName")),
        (&of_claim, claim(deleted), Err("PVC is being deleted")),
        (&ephemeral, claim(json!({})), Err(not_owner)),
    ] {
        assert_eq!(claim::volume_of(&pod, volume, &claim), expected.map_err(str::to_owned));
    }
    let mut found = local_volume(Path::new("/x"), json!({}));
    assert!(claim::is_bound(&found, &claim(json!({}))).unwrap_err().contains("nil pv.Spec.ClaimRef"));
    found.spec.as_mut().unwrap().claim_ref = serde_json::from_value(json!({"uid": "1"})).unwrap();
    assert_eq!(claim::is_bound(&found, &claim(json!({}))), Ok(()));
}

#[test]
fn image_volumes_are_left_to_the_runtime() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let fixture = fixture();
    let pod = pod_with(json!({
        "containers": [{"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": "etc"}]}],
        "volumes": [{"name": "v", "image": {"reference": "app"}}]}));
    let member = pod::member(&pod, "c").unwrap();
    let images = [("v".to_owned(), "sha256:1".to_owned())].into();
    let mounts = mounts(&fixture.config, &pod, &member, &[], &images, "hosts").unwrap();
    let image = mounts[0].image.as_ref().unwrap();
    assert_eq!(
        (image.image.as_str(), mounts[0].image_sub_path.as_str(), mounts[0].readonly),
        ("sha256:1", "etc", true)
    );
}
