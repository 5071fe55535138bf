//! A runtime of its own for each test: its directories, its cgroups, its process; gone when dropped,
//! also when the test fails.
//!
//! Shared by several test binaries, none of which uses all of it.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cri::v1::image_service_client::ImageServiceClient;
use cri::v1::runtime_service_client::RuntimeServiceClient;
use cri::v1::*;
use testkit::{Containerd, Host};
use tonic::transport::Channel;

pub const EXE: &str = env!("CARGO_BIN_EXE_isopod-runtime");
pub const IMAGE: &str = "test/busybox:1";

pub struct Stack {
    pub base: tempfile::TempDir,
    pub cgroup_root: String,
    pub service: Child,
    pub pods: RuntimeServiceClient<Channel>,
    pub images: ImageServiceClient<Channel>,
    /// What a runtime that is not ours runs on; it takes cgroup parents for whole paths.
    host: Option<Host>,
    /// Of the pods that run; containerd wants them again for each container.
    configs: HashMap<String, PodSandboxConfig>,
}

impl Stack {
    /// A served runtime with the test image.
    pub async fn start() -> Stack {
        let mut stack = Stack::empty().await;
        let archive = stack.path("busybox.tar");
        std::fs::write(&archive, docker_archive(IMAGE, &[busybox_layer()])).unwrap();
        stack.import(&archive);
        assert_eq!(stack.images.list_images(ListImagesRequest::default()).await.unwrap().into_inner().images.len(), 1);
        stack
    }

    pub async fn empty() -> Stack {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let cgroup_root = format!("/isopod-test/{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let base = tempfile::tempdir().unwrap();
        let (service, socket) = (spawn(base.path(), &cgroup_root), base.path().join("runtime.sock"));
        Stack::connect(base, cgroup_root, service, &socket, None).await
    }

    /// containerd with the test image, for what must hold on every runtime.
    pub async fn containerd() -> Stack {
        let host = Host::new(EXE);
        let containerd = Containerd::start(&host);
        let archive = host.path("busybox.tar");
        std::fs::write(&archive, docker_archive(IMAGE, &[busybox_layer()])).unwrap();
        containerd.import(&host, &archive);
        let (base, cgroup) = (tempfile::tempdir().unwrap(), host.cgroup.clone());
        Stack::connect(base, cgroup, containerd.process, &containerd.socket, Some(host)).await
    }

    async fn connect(
        base: tempfile::TempDir,
        cgroup_root: String,
        service: Child,
        socket: &Path,
        host: Option<Host>,
    ) -> Stack {
        let channel = cri::connect(socket.to_str().unwrap());
        let pods = RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(cri::MAX_MESSAGE_BYTES);
        let images = ImageServiceClient::new(channel);
        let mut stack = Stack { pods, images, cgroup_root, service, base, host, configs: HashMap::new() };
        stack.ready().await;
        stack
    }

    pub async fn ready(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.pods.version(VersionRequest::default()).await.is_err() {
            assert!(Instant::now() < deadline, "the runtime does not answer");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Kill -9 and a new process.
    pub async fn restart(&mut self) {
        self.service.kill().unwrap();
        self.service.wait().unwrap();
        self.service = spawn(self.base.path(), &self.cgroup_root);
        self.ready().await;
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.base.path().join(name)
    }

    /// By another process, as `isopod image import` does it.
    pub fn import(&self, archive: &Path) {
        let base = self.base.path();
        let output = Command::new(EXE).arg("import").arg(base).arg(&self.cgroup_root).arg(archive).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn pod_config(&self, name: &str) -> PodSandboxConfig {
        let root = self.host.as_ref().map_or("", |host| &host.cgroup);
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: format!("uid-{name}"),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: name.into(),
            log_directory: self.path("logs").join(name).to_string_lossy().into_owned(),
            dns_config: Some(DnsConfig { servers: vec!["10.43.0.10".into()], ..DnsConfig::default() }),
            labels: [("app".to_string(), name.to_string())].into(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("{root}/kubepods/pod-{name}"),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..PodSandboxConfig::default()
        }
    }

    pub async fn pod(&mut self, name: &str) -> String {
        let config = self.pod_config(name);
        self.pod_from(config).await
    }

    pub async fn pod_from(&mut self, config: PodSandboxConfig) -> String {
        let request = RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        let id = self.pods.run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id;
        self.configs.insert(id.clone(), config);
        id
    }

    pub async fn create(&mut self, pod: &str, config: ContainerConfig) -> Result<String, tonic::Status> {
        let sandbox_config = Some(self.configs.get(pod).cloned().unwrap_or_default());
        let request = CreateContainerRequest { pod_sandbox_id: pod.into(), config: Some(config), sandbox_config };
        Ok(self.pods.create_container(request).await?.into_inner().container_id)
    }

    pub async fn launch(&mut self, id: &str) -> Result<(), tonic::Status> {
        self.pods.start_container(StartContainerRequest { container_id: id.into() }).await.map(drop)
    }

    /// Creates and starts.
    pub async fn run(&mut self, pod: &str, config: ContainerConfig) -> String {
        let id = self.create(pod, config).await.unwrap();
        self.launch(&id).await.unwrap();
        id
    }

    pub async fn status(&mut self, id: &str) -> ContainerStatus {
        let request = ContainerStatusRequest { container_id: id.into(), verbose: false };
        self.pods.container_status(request).await.unwrap().into_inner().status.unwrap()
    }

    pub async fn pid(&mut self, id: &str) -> i64 {
        let request = ContainerStatusRequest { container_id: id.into(), verbose: true };
        let info = self.pods.container_status(request).await.unwrap().into_inner().info;
        serde_json::from_str::<serde_json::Value>(&info["info"]).unwrap()["pid"].as_i64().unwrap()
    }

    pub async fn wait(&mut self, id: &str) -> ContainerStatus {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let status = self.status(id).await;
            if status.state() == ContainerState::ContainerExited {
                return status;
            }
            assert!(Instant::now() < deadline, "container {id} does not exit");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Runs a shell script as a container to its end; its exit code and what it printed.
    pub async fn script(
        &mut self,
        pod: &str,
        name: &str,
        script: &str,
        change: impl FnOnce(&mut ContainerConfig),
    ) -> (i32, String) {
        let mut config = container(name, &["sh", "-c", script]);
        change(&mut config);
        let id = self.run(pod, config).await;
        let status = self.wait(&id).await;
        (status.exit_code, messages(Path::new(&status.log_path)))
    }

    pub async fn exec(&mut self, id: &str, command: &[&str]) -> Result<(i32, String), tonic::Status> {
        let cmd = command.iter().map(ToString::to_string).collect();
        let request = ExecSyncRequest { container_id: id.into(), cmd, timeout: 20 };
        let response = self.pods.exec_sync(request).await?.into_inner();
        let output = [response.stdout, response.stderr].concat();
        Ok((response.exit_code, String::from_utf8_lossy(&output).trim().into()))
    }

    /// Directories of this stack's cgroups, in every hierarchy.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let base = Path::new("/sys/fs/cgroup");
        let relative = self.cgroup_root.trim_start_matches('/');
        let hierarchies = std::fs::read_dir(base).unwrap().flatten().map(|entry| entry.path().join(relative));
        std::iter::once(base.join(relative)).chain(hierarchies).filter(|path| path.exists()).collect()
    }
}

fn spawn(base: &Path, cgroup_root: &str) -> Child {
    Command::new(EXE).arg("serve").arg(base).arg(cgroup_root).stdin(Stdio::null()).spawn().unwrap()
}

impl Drop for Stack {
    fn drop(&mut self) {
        let _ = self.service.kill();
        let _ = self.service.wait();
        let cleaned = Command::new(EXE).arg("clean").arg(self.base.path()).arg(&self.cgroup_root).output();
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = std::fs::remove_dir(hierarchy.path().join("isopod-test")); // the last test's, when it is empty
        }
        let failure = match cleaned {
            Ok(output) if output.status.success() => return,
            Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(error) => error.to_string(),
        };
        if !std::thread::panicking() {
            panic!("clean-up failed: {failure}");
        }
    }
}

pub fn namespaces() -> NamespaceOption {
    NamespaceOption { pid: NamespaceMode::Container.into(), ..NamespaceOption::default() }
}

pub fn container(name: &str, command: &[&str]) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(ImageSpec { image: IMAGE.into(), ..ImageSpec::default() }),
        command: command.iter().map(ToString::to_string).collect(),
        log_path: format!("{name}.log"),
        linux: Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(namespaces()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..ContainerConfig::default()
    }
}

pub fn security(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap()
}

/// The messages of a CRI log, timestamps and tags removed.
pub fn messages(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap();
    let lines: Vec<&str> = text.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or("")).collect();
    lines.join("\n")
}

pub fn tar(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    build(&mut builder);
    builder.into_inner().unwrap()
}

pub fn add(
    builder: &mut tar::Builder<Vec<u8>>,
    path: &str,
    kind: tar::EntryType,
    mode: u32,
    link: &str,
    content: &[u8],
) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    header.set_mtime(1_000_000_000);
    header.set_uid(0);
    header.set_gid(0);
    if link.is_empty() {
        builder.append_data(&mut header, path, content).unwrap();
    } else {
        builder.append_link(&mut header, path, link).unwrap();
    }
}

/// A root filesystem from this machine's static busybox.
pub fn busybox_layer() -> Vec<u8> {
    let busybox = std::fs::read("/bin/busybox").expect("install busybox-static");
    tar(|layer| {
        use tar::EntryType::{Directory, Regular, Symlink};
        for directory in ["bin", "etc", "data", "home/web"] {
            add(layer, directory, Directory, 0o755, "", b"");
        }
        add(layer, "tmp", Directory, 0o1777, "", b"");
        add(layer, "bin/busybox", Regular, 0o755, "", &busybox);
        for applet in [
            "sh", "cat", "echo", "id", "ls", "mount", "sleep", "true", "false", "touch", "head", "hostname", "kill",
            "ps", "nc", "grep", "tail", "dd", "unshare", "chown", "stat", "tty", "stty", "trap", "mknod", "env", "pwd",
            "wc", "sed",
        ] {
            add(layer, &format!("bin/{applet}"), Symlink, 0o777, "busybox", b"");
        }
        add(
            layer,
            "etc/passwd",
            Regular,
            0o644,
            "",
            b"root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1001::/home/web:/bin/sh\n",
        );
        add(layer, "etc/group", Regular, 0o644, "", b"root:x:0:\nweb:x:1001:\nlogs:x:44:web\n");
        add(layer, "etc/hello", Regular, 0o644, "", b"hello from the image\n");
    })
}

pub fn config_json(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "config": {
            "Env": ["PATH=/bin", "FROM_IMAGE=yes"], "Cmd": ["sh"], "WorkingDir": "/data", "Entrypoint": null,
            "Volumes": { "/data": {} },
        },
    });
    serde_json::to_vec(&config).unwrap()
}

pub fn digest(bytes: &[u8]) -> String {
    use sha2::Digest;
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes)))
}

/// As `docker save` writes it.
pub fn docker_archive(name: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    let names: Vec<String> = (0..layers.len()).map(|index| format!("{index}/layer.tar")).collect();
    let manifest = serde_json::json!([{ "Config": "config.json", "RepoTags": [name], "Layers": names }]);
    tar(|archive| {
        let mut file = |path: &str, content: &[u8]| add(archive, path, tar::EntryType::Regular, 0o644, "", content);
        file("config.json", &config_json(layers));
        names.iter().zip(layers).for_each(|(name, layer)| file(name, layer));
        file("manifest.json", &serde_json::to_vec(&manifest).unwrap());
    })
}

/// Pods with nothing but a loopback interface.
pub struct NoNetwork;

#[async_trait::async_trait]
impl network::PodNetwork for NoNetwork {
    async fn attach(&self, _: &network::PodAttachment) -> anyhow::Result<network::PodAddresses> {
        Ok(network::PodAddresses::default())
    }

    async fn detach(&self, _: &network::PodAttachment) -> anyhow::Result<()> {
        Ok(())
    }

    async fn ready(&self) -> Result<(), String> {
        Ok(())
    }

    fn set_pod_cidr(&self, _: &str) {}
}
