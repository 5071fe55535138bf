//! The image store: archives of every make, layers shared and collected, overlays that hide.

mod support;

use cri::v1::*;
use support::{IMAGE, Stack, add, busybox_layer, config_json, container, digest, docker_archive, tar};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Hides a file and a directory of the layer below, and replaces another.
fn upper_layer() -> Vec<u8> {
    use tar::EntryType::{Directory, Regular};
    tar(|layer| {
        add(layer, "etc/.wh.hello", Regular, 0o644, "", b"");
        add(layer, "home", Directory, 0o755, "", b"");
        add(layer, "home/.wh..wh..opq", Regular, 0o644, "", b"");
        add(layer, "home/new", Regular, 0o644, "", b"new\n");
    })
}

/// As `skopeo copy ... oci-archive:` writes it, with an index of two platforms.
fn oci_archive(name: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    let config = config_json(layers);
    let blobs: Vec<Vec<u8>> = layers.iter().map(|layer| gzip(layer)).collect();
    let describe = |media_type: &str, blob: &[u8]| serde_json::json!({ "mediaType": media_type, "digest": digest(blob), "size": blob.len() });
    let layer_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    let manifest = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2,
        "config": describe("application/vnd.oci.image.config.v1+json", &config),
        "layers": blobs.iter().map(|blob| describe(layer_type, blob)).collect::<Vec<_>>(),
    }))
    .unwrap();
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let mut here = describe(manifest_type, &manifest);
    here["platform"] = serde_json::json!({ "os": "linux", "architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" } });
    let mut other = describe(manifest_type, b"of a platform that is not in the archive");
    other["platform"] = serde_json::json!({ "os": "linux", "architecture": "s390x" });
    let list = serde_json::to_vec(&serde_json::json!({ "schemaVersion": 2, "manifests": [other, here] })).unwrap();
    let mut entry = describe("application/vnd.oci.image.index.v1+json", &list);
    entry["annotations"] = serde_json::json!({ "io.containerd.image.name": name });
    let index = serde_json::to_vec(&serde_json::json!({ "schemaVersion": 2, "manifests": [entry] })).unwrap();
    tar(|archive| {
        let mut file = |path: &str, content: &[u8]| add(archive, path, tar::EntryType::Regular, 0o644, "", content);
        file("index.json", &index);
        file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
        for blob in blobs.iter().chain([&config, &manifest, &list]) {
            file(&format!("blobs/{}", digest(blob).replace(':', "/")), blob);
        }
    })
}

fn layer_count(stack: &Stack) -> usize {
    let names = std::fs::read_dir(stack.path("root/layers")).unwrap().flatten().map(|entry| entry.file_name());
    names.filter(|name| !name.to_string_lossy().ends_with(".json") && name != "empty").count()
}

fn spec(image: &str) -> Option<ImageSpec> {
    Some(ImageSpec { image: image.into(), ..ImageSpec::default() })
}

#[tokio::test]
async fn layers_hide_what_lies_below() {
    let mut stack = Stack::empty().await;
    let archive = stack.path("a.tar.gz");
    std::fs::write(&archive, gzip(&docker_archive(IMAGE, &[busybox_layer(), upper_layer()]))).unwrap();
    stack.import(&archive);
    let pod = stack.pod("layers").await;
    let script = "ls /etc/hello 2>&1; ls /home; echo mine > /home/new; cat /home/new; cat /etc/group | head -n 1";
    let expected = "ls: /etc/hello: No such file or directory\nnew\nmine\nroot:x:0:";
    for name in ["one", "two"] {
        // What one container writes, the next does not see.
        assert_eq!(stack.script(&pod, name, script, |_| {}).await.1, expected);
    }
    let root = std::fs::metadata(stack.path("root")).unwrap();
    let mode = std::os::unix::fs::MetadataExt::mode(&root) & 0o777;
    assert_eq!(mode, 0o700, "what images bring is not for the host's users");
}

#[tokio::test]
async fn images_share_layers_which_go_with_their_last_user() {
    let mut stack = Stack::empty().await;
    let base = busybox_layer();
    let (one, two) = (stack.path("one.tar"), stack.path("two.tar"));
    std::fs::write(&one, oci_archive("docker.io/test/one:v1", std::slice::from_ref(&base))).unwrap();
    std::fs::write(&two, docker_archive("two", &[base.clone(), upper_layer()])).unwrap();
    stack.import(&one);
    stack.import(&two);
    assert_eq!(layer_count(&stack), 2);
    let status =
        stack.images.image_status(ImageStatusRequest { image: spec("test/one:v1"), verbose: true }).await.unwrap();
    let status = status.into_inner();
    let image = status.image.unwrap();
    assert_eq!(image.repo_tags, ["docker.io/test/one:v1"]);
    assert!(image.repo_digests[0].starts_with("docker.io/test/one@sha256:"), "{:?}", image.repo_digests);
    assert!(status.info["info"].contains("FROM_IMAGE"));
    for name in [&image.id[7..19], &image.repo_digests[0], &image.id] {
        let found = stack.images.image_status(ImageStatusRequest { image: spec(name), verbose: false }).await.unwrap();
        assert_eq!(found.into_inner().image.unwrap().id, image.id, "{name}");
    }

    // A container keeps the layers of an image that is removed.
    let pod = stack.pod("user").await;
    let mut config = container("main", &["sleep", "1000"]);
    config.image = spec("two:latest");
    let id = stack.run(&pod, config).await;
    stack.images.remove_image(RemoveImageRequest { image: spec("two") }).await.unwrap();
    stack.images.remove_image(RemoveImageRequest { image: spec("two") }).await.unwrap();
    assert_eq!(layer_count(&stack), 2);
    assert_eq!(stack.exec(&id, &["cat", "/home/new"]).await.unwrap().1, "new");
    stack.pods.remove_container(RemoveContainerRequest { container_id: id }).await.unwrap();
    assert_eq!(layer_count(&stack), 1);
    stack.images.remove_image(RemoveImageRequest { image: spec(&image.id) }).await.unwrap();
    assert_eq!(layer_count(&stack), 0);
    assert!(stack.images.list_images(ListImagesRequest::default()).await.unwrap().into_inner().images.is_empty());
}

#[tokio::test]
async fn a_name_moves_to_the_newer_image() {
    let stack = Stack::empty().await;
    for (file, layers) in [("old.tar", vec![busybox_layer()]), ("new.tar", vec![upper_layer()])] {
        std::fs::write(stack.path(file), docker_archive("app:v1", &layers)).unwrap();
        stack.import(&stack.path(file));
    }
    let images = runtime::Images::open(&stack.path("root")).unwrap();
    let tagged: Vec<_> = images.list().unwrap().iter().map(|image| image.tags.len()).collect();
    assert_eq!(tagged.iter().sum::<usize>(), 1);
    assert_eq!(images.get("app:v1").unwrap().unwrap().layers, [digest(&upper_layer())]);
}

#[tokio::test]
async fn what_is_no_image_is_refused_and_leaves_nothing() {
    let stack = Stack::empty().await;
    let images = runtime::Images::open(&stack.path("root")).unwrap();
    let mut lying = docker_archive("liar", &[busybox_layer()]);
    // A byte of a file in the layer, so that it no longer is what the configuration says.
    let position = lying.windows(5).position(|window| window == b"hello").unwrap();
    lying[position] = b'j';
    for (name, bytes, message) in [
        ("empty.tar", tar(|_| {}), "not an image archive"),
        ("liar.tar", lying, "the image says sha256:"),
        ("noise.tar", vec![1; 4096], "read the archive"),
    ] {
        std::fs::write(stack.path(name), bytes).unwrap();
        let error = format!("{:#}", images.import(&stack.path(name)).unwrap_err());
        assert!(error.contains(message), "{error}");
    }
    assert_eq!(layer_count(&stack), 0);
    assert_eq!(std::fs::read_dir(stack.path("root/tmp")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_pull_says_why_it_failed() {
    let mut stack = Stack::empty().await;
    // A port that nobody listens on.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let name = format!("127.0.0.1:{port}/app:v1");
    let request = PullImageRequest { image: spec(&name), ..Default::default() };
    let error = stack.images.pull_image(request).await.unwrap_err();
    assert!(error.message().contains(&format!("failed to resolve reference {name:?}")), "{error}");
    assert!(error.message().contains("refused"), "{error}");
}

/// A registry in a few lines: serves files by path.
async fn registry(files: Vec<(String, &'static str, Vec<u8>)>) -> u16 {
    use axum::http::{StatusCode, Uri, header};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = move |uri: Uri| {
        let found = files.iter().find(|(path, ..)| path == uri.path()).cloned();
        async move {
            match found {
                Some((_, kind, bytes)) => (StatusCode::OK, [(header::CONTENT_TYPE, kind)], bytes),
                None if uri.path() == "/v2/" => {
                    (StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], b"{}".to_vec())
                }
                None => {
                    let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#.to_vec();
                    (StatusCode::NOT_FOUND, [(header::CONTENT_TYPE, "application/json")], body)
                }
            }
        }
    };
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(serve)).await });
    port
}

#[tokio::test]
async fn images_are_pulled_from_a_plain_registry_on_loopback() {
    let mut stack = Stack::empty().await;
    let layers = [busybox_layer()];
    let (config, blob) = (config_json(&layers), gzip(&layers[0]));
    let describe =
        |kind: &str, blob: &[u8]| serde_json::json!({ "mediaType": kind, "digest": digest(blob), "size": blob.len() });
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2, "mediaType": kind,
        "config": describe("application/vnd.oci.image.config.v1+json", &config),
        "layers": [describe("application/vnd.oci.image.layer.v1.tar+gzip", &blob)],
    }))
    .unwrap();
    let raw = "application/octet-stream";
    let wanted = digest(&manifest);
    let port = registry(vec![
        ("/v2/app/manifests/v1".into(), kind, manifest.clone()),
        (format!("/v2/app/manifests/{wanted}"), kind, manifest),
        (format!("/v2/app/blobs/{}", digest(&config)), raw, config),
        (format!("/v2/app/blobs/{}", digest(&blob)), raw, blob),
    ])
    .await;
    for name in [format!("127.0.0.1:{port}/app:v1"), format!("127.0.0.1:{port}/app@{wanted}")] {
        let pulled = stack.images.pull_image(PullImageRequest { image: spec(&name), ..Default::default() }).await;
        let id = pulled.unwrap().into_inner().image_ref;
        let status =
            stack.images.image_status(ImageStatusRequest { image: spec(&name), verbose: false }).await.unwrap();
        let image = status.into_inner().image.unwrap();
        assert_eq!((image.id, image.repo_digests), (id, vec![format!("127.0.0.1:{port}/app@{wanted}")]));
    }
    let pod = stack.pod("pulled").await;
    let image = spec(&format!("127.0.0.1:{port}/app:v1"));
    let (code, _) = stack.script(&pod, "main", "cat /etc/hello", |config| config.image = image).await;
    assert_eq!(code, 0);
    let missing = PullImageRequest { image: spec(&format!("127.0.0.1:{port}/app:v2")), ..Default::default() };
    let error = stack.images.pull_image(missing).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::NotFound, "{error}");
    assert!(error.message().ends_with("app:v2: not found"), "{error}");
}
