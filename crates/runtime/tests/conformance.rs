//! What the kubelet relies on in any CRI runtime: one suite, run on ours and on Debian's containerd.
//!
//! Where containerd does otherwise than we assumed, we are wrong: it is the judge.

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use cri::v1::*;
use support::{IMAGE, Stack, container, messages};
use tonic::Code;

#[tokio::test]
async fn the_embedded_runtime_conforms() {
    conforms(Stack::start().await).await;
}

#[tokio::test]
async fn containerd_conforms() {
    conforms(Stack::containerd().await).await;
}

async fn conforms(mut stack: Stack) {
    tells_version_and_status(&mut stack).await;
    lists_images(&mut stack).await;
    let pod = runs_a_pod(&mut stack).await;
    runs_a_container(&mut stack, &pod).await;
    executes(&mut stack, &pod).await;
    ends_containers(&mut stack, &pod).await;
    kills_what_takes_too_much_memory(&mut stack, &pod).await;
    measures(&mut stack, &pod).await;
    refuses_what_is_not_there(&mut stack).await;
    removes_a_pod(&mut stack, &pod).await;
    removes_images(&mut stack).await;
}

async fn tells_version_and_status(stack: &mut Stack) {
    let version = stack.pods.version(VersionRequest::default()).await.unwrap().into_inner();
    assert_eq!(version.runtime_api_version, "v1");
    assert!(!version.runtime_name.is_empty() && !version.runtime_version.is_empty(), "{version:?}");
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let status = stack.pods.status(StatusRequest::default()).await.unwrap().into_inner().status.unwrap();
        let holds = |name: &str| status.conditions.iter().any(|c| c.r#type == name && c.status);
        if holds("RuntimeReady") && holds("NetworkReady") {
            return;
        }
        assert!(Instant::now() < deadline, "{status:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn image(stack: &mut Stack, name: &str) -> Option<Image> {
    let spec = Some(ImageSpec { image: name.into(), ..Default::default() });
    stack.images.image_status(ImageStatusRequest { image: spec, verbose: false }).await.unwrap().into_inner().image
}

async fn lists_images(stack: &mut Stack) {
    let found = image(stack, IMAGE).await.expect("the test image is there");
    let full = format!("docker.io/{IMAGE}");
    assert!(found.id.starts_with("sha256:") && found.repo_tags.contains(&full) && found.size > 0, "{found:?}");
    for name in [&full, &found.id] {
        assert_eq!(image(stack, name).await.map(|image| image.id).as_ref(), Some(&found.id), "{name}");
    }
    assert_eq!(image(stack, "test/nonesuch:1").await, None);
    let all = stack.images.list_images(ListImagesRequest::default()).await.unwrap().into_inner().images;
    assert!(all.iter().any(|image| image.id == found.id));
    let disk = stack.images.image_fs_info(ImageFsInfoRequest {}).await.unwrap().into_inner().image_filesystems;
    assert!(Path::new(&disk[0].fs_id.as_ref().unwrap().mountpoint).exists(), "{disk:?}");
}

async fn runs_a_pod(stack: &mut Stack) -> String {
    let pod = stack.pod("conforming").await;
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod.clone(), verbose: false };
    let status = stack.pods.pod_sandbox_status(request).await.unwrap().into_inner().status.unwrap();
    let metadata = status.metadata.clone().unwrap();
    assert_eq!((status.id.as_str(), status.state()), (pod.as_str(), PodSandboxState::SandboxReady));
    assert_eq!((metadata.name.as_str(), metadata.uid.as_str()), ("conforming", "uid-conforming"));
    assert_eq!(status.labels["app"], "conforming");
    assert!(status.network.as_ref().unwrap().ip.parse::<std::net::IpAddr>().is_ok(), "{status:?}");
    let filter = PodSandboxFilter { label_selector: status.labels.clone(), ..Default::default() };
    let request = ListPodSandboxRequest { filter: Some(filter) };
    let items = stack.pods.list_pod_sandbox(request).await.unwrap().into_inner().items;
    assert_eq!(items.iter().map(|item| &item.id).collect::<Vec<_>>(), [&pod]);
    pod
}

async fn runs_a_container(stack: &mut Stack, pod: &str) {
    let mut config = container("talker", &["sh", "-c", "echo out; echo err >&2; hostname; echo $OWN; exit 3"]);
    config.envs.push(KeyValue { key: "OWN".into(), value: "mine".into() });
    let id = stack.create(pod, config).await.unwrap();
    assert_eq!(stack.status(&id).await.state(), ContainerState::ContainerCreated);
    stack.launch(&id).await.unwrap();
    let status = stack.wait(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"));
    assert!(0 < status.created_at && status.created_at <= status.started_at, "{status:?}");
    // A short run may end before its start is noted.
    assert!(status.created_at <= status.finished_at && status.started_at > 0, "{status:?}");
    assert!(status.image_ref.contains("sha256:") && !status.log_path.is_empty(), "{status:?}");
    let mut lines: Vec<String> = messages(Path::new(&status.log_path)).lines().map(str::to_owned).collect();
    lines.sort(); // two streams
    assert_eq!(lines, ["conforming", "err", "mine", "out"]);
    let text = std::fs::read_to_string(&status.log_path).unwrap();
    for line in text.lines() {
        let fields: Vec<&str> = line.splitn(4, ' ').collect();
        assert!(fields[0].parse::<jiff::Timestamp>().is_ok() && fields[2] == "F", "{line}");
        assert_eq!(fields[1] == "stderr", fields[3] == "err", "{line}");
    }
    let filter = ContainerFilter { pod_sandbox_id: pod.into(), ..Default::default() };
    let request = ListContainersRequest { filter: Some(filter) };
    let listed = stack.pods.list_containers(request).await.unwrap().into_inner().containers;
    assert_eq!((listed[0].id.as_str(), listed[0].state()), (id.as_str(), ContainerState::ContainerExited));
}

async fn executes(stack: &mut Stack, pod: &str) {
    let id = stack.run(pod, container("sleeper", &["sleep", "1000"])).await;
    assert_eq!(stack.status(&id).await.state(), ContainerState::ContainerRunning);
    let script = "echo told; echo complained >&2; exit 7";
    let cmd = ["sh", "-c", script].map(String::from).to_vec();
    let request = ExecSyncRequest { container_id: id.clone(), cmd, timeout: 20 };
    let told = stack.pods.exec_sync(request).await.unwrap().into_inner();
    let output = (told.exit_code, told.stdout.as_slice(), told.stderr.as_slice());
    assert_eq!(output, (7, &b"told\n"[..], &b"complained\n"[..]));
    let cmd = vec!["sleep".into(), "100".into()];
    let late = stack.pods.exec_sync(ExecSyncRequest { container_id: id.clone(), cmd, timeout: 1 }).await;
    assert_eq!(late.unwrap_err().code(), Code::DeadlineExceeded);
    let missing = stack.exec(&id, &["nonesuch"]).await.unwrap_err();
    assert!(missing.message().contains("executable file not found in $PATH"), "{missing}");
    let request =
        ExecRequest { container_id: id.clone(), cmd: vec!["true".into()], stdout: true, ..Default::default() };
    let url = stack.pods.exec(request).await.unwrap().into_inner().url;
    assert!(url.starts_with("http://127.0.0.1:") && url.contains("/exec/"), "{url}");
}

async fn ends_containers(stack: &mut Stack, pod: &str) {
    for (name, script, expected) in [
        ("polite", "trap 'exit 5' TERM; touch /tmp/up; while true; do sleep 0.1; done", 5),
        ("stubborn", "trap '' TERM; touch /tmp/up; while true; do sleep 0.1; done", 137),
    ] {
        let id = stack.run(pod, container(name, &["sh", "-c", script])).await;
        let deadline = Instant::now() + Duration::from_secs(20);
        while stack.exec(&id, &["ls", "/tmp/up"]).await.unwrap().0 != 0 {
            assert!(Instant::now() < deadline, "{name} does not start");
        }
        let timeout = if expected == 137 { 1 } else { 20 };
        for _ in 0..2 {
            let request = StopContainerRequest { container_id: id.clone(), timeout };
            stack.pods.stop_container(request).await.unwrap();
        }
        let status = stack.status(&id).await;
        assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, expected), "{name}");
        for _ in 0..2 {
            stack.pods.remove_container(RemoveContainerRequest { container_id: id.clone() }).await.unwrap();
        }
        let request = ContainerStatusRequest { container_id: id, verbose: false };
        assert_eq!(stack.pods.container_status(request).await.unwrap_err().code(), Code::NotFound);
    }
}

async fn kills_what_takes_too_much_memory(stack: &mut Stack, pod: &str) {
    let mut config = container("hog", &["sh", "-c", "x=aaaaaaaaaaaaaaaa; while true; do x=$x$x; done"]);
    config.linux.as_mut().unwrap().resources =
        Some(LinuxContainerResources { memory_limit_in_bytes: 24 << 20, ..Default::default() });
    let id = stack.run(pod, config).await;
    let status = stack.wait(&id).await;
    assert_eq!((status.reason.as_str(), status.exit_code), ("OOMKilled", 137));
}

async fn measures(stack: &mut Stack, pod: &str) {
    let filter = ContainerStatsFilter { pod_sandbox_id: pod.into(), ..Default::default() };
    let request = ListContainerStatsRequest { filter: Some(filter) };
    let stats = stack.pods.list_container_stats(request).await.unwrap().into_inner().stats;
    let name = |stats: &ContainerStats| stats.attributes.as_ref().unwrap().metadata.as_ref().unwrap().name.clone();
    let sleeper = stats.iter().find(|stats| name(stats) == "sleeper").expect("a running container is measured");
    assert!(sleeper.cpu.as_ref().unwrap().usage_core_nano_seconds.unwrap().value > 0);
    assert!(sleeper.memory.as_ref().unwrap().working_set_bytes.unwrap().value > 0);
    let request = ListPodSandboxStatsRequest::default();
    let pods = stack.pods.list_pod_sandbox_stats(request).await.unwrap().into_inner().stats;
    assert!(pods.iter().any(|stats| stats.attributes.as_ref().unwrap().id == pod), "{pods:?}");
}

async fn refuses_what_is_not_there(stack: &mut Stack) {
    let id = || "0123456789abcdef".to_owned();
    let status = stack.pods.pod_sandbox_status(PodSandboxStatusRequest { pod_sandbox_id: id(), verbose: false }).await;
    assert_eq!(status.unwrap_err().code(), Code::NotFound);
    let start = stack.pods.start_container(StartContainerRequest { container_id: id() }).await;
    assert_eq!(start.unwrap_err().code(), Code::NotFound);
    assert!(stack.create(&id(), container("orphan", &["true"])).await.is_err());
    // Ending what is not there is no error, or one that says so.
    let gone = |error: Option<tonic::Status>| assert!(error.is_none_or(|error| error.code() == Code::NotFound));
    gone(stack.pods.stop_container(StopContainerRequest { container_id: id(), timeout: 0 }).await.err());
    gone(stack.pods.remove_container(RemoveContainerRequest { container_id: id() }).await.err());
    gone(stack.pods.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id() }).await.err());
    gone(stack.pods.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id() }).await.err());
}

async fn removes_a_pod(stack: &mut Stack, pod: &str) {
    for _ in 0..2 {
        stack.pods.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod.into() }).await.unwrap();
    }
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod.into(), verbose: false };
    let status = stack.pods.pod_sandbox_status(request.clone()).await.unwrap().into_inner().status.unwrap();
    assert_eq!(status.state(), PodSandboxState::SandboxNotready);
    for _ in 0..2 {
        stack.pods.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: pod.into() }).await.unwrap();
    }
    assert_eq!(stack.pods.pod_sandbox_status(request).await.unwrap_err().code(), Code::NotFound);
    let left = stack.pods.list_containers(ListContainersRequest::default()).await.unwrap().into_inner().containers;
    assert!(left.is_empty(), "{left:?}");
}

async fn removes_images(stack: &mut Stack) {
    let spec = || Some(ImageSpec { image: IMAGE.into(), ..Default::default() });
    for _ in 0..2 {
        stack.images.remove_image(RemoveImageRequest { image: spec() }).await.unwrap();
    }
    assert_eq!(image(stack, IMAGE).await, None);
}
