//! How long the runtime takes: medians of create, start, wait and remove of `true`, of exec, and of a
//! pod with one container, in the host's user namespace and in its own. `figures SOCKET IMAGE [ROUNDS]` against a served runtime.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cri::v1::runtime_service_client::RuntimeServiceClient;
use cri::v1::*;
use tonic::transport::Channel;

type Pods = RuntimeServiceClient<Channel>;

type Users = Option<UserNamespace>;

fn own_users() -> UserNamespace {
    let ids = vec![IdMapping { host_id: 10_000 * 65_536, container_id: 0, length: 65_536 }];
    UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids.clone(), gids: ids }
}

fn pod_config(name: &str, users: &Users) -> PodSandboxConfig {
    let metadata = PodSandboxMetadata { name: name.into(), uid: name.into(), namespace: "figures".into(), attempt: 0 };
    let options = NamespaceOption { userns_options: users.clone(), ..NamespaceOption::default() };
    let security = LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
    let linux = LinuxPodSandboxConfig {
        cgroup_parent: format!("/kubepods/{name}"),
        security_context: Some(security),
        ..Default::default()
    };
    PodSandboxConfig { metadata: Some(metadata), hostname: name.into(), linux: Some(linux), ..Default::default() }
}

fn container(image: &str, users: &Users, command: &[&str], attempt: u32) -> ContainerConfig {
    let own = NamespaceOption {
        pid: NamespaceMode::Container.into(),
        userns_options: users.clone(),
        ..NamespaceOption::default()
    };
    let security = LinuxContainerSecurityContext {
        namespace_options: Some(own),
        seccomp: Some(SecurityProfile::default()),
        ..Default::default()
    };
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: "main".into(), attempt }),
        image: Some(ImageSpec { image: image.into(), ..ImageSpec::default() }),
        command: command.iter().map(ToString::to_string).collect(),
        linux: Some(LinuxContainerConfig { security_context: Some(security), ..Default::default() }),
        ..ContainerConfig::default()
    }
}

async fn launch(pods: &mut Pods, pod: &str, config: ContainerConfig) -> Result<String> {
    let request = CreateContainerRequest { pod_sandbox_id: pod.into(), config: Some(config), sandbox_config: None };
    let id = pods.create_container(request).await?.into_inner().container_id;
    pods.start_container(StartContainerRequest { container_id: id.clone() }).await?;
    Ok(id)
}

async fn run_pod(pods: &mut Pods, name: &str, users: &Users) -> Result<String> {
    let request = RunPodSandboxRequest { config: Some(pod_config(name, users)), ..Default::default() };
    Ok(pods.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
}

async fn remove_pod(pods: &mut Pods, id: &str) -> Result<()> {
    pods.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id.into() }).await?;
    Ok(())
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    println!("{what:28} median {:6.1?}  p90 {:6.1?}", times[times.len() / 2], times[times.len() * 9 / 10]);
}

#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (socket, image) = (args.first().context("SOCKET")?, args.get(1).context("IMAGE")?);
    let rounds: u32 = args.get(2).map_or(Ok(50), |text| text.parse())?;
    let mut pods = RuntimeServiceClient::new(cri::connect(socket));
    for users in [None, Some(own_users())] {
        println!("{} users:", if users.is_some() { "own" } else { "the host's" });
        figures(&mut pods, image, rounds, &users).await?;
    }
    Ok(())
}

async fn figures(pods: &mut Pods, image: &str, rounds: u32, users: &Users) -> Result<()> {
    let (mut starts, mut ends) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let start = Instant::now();
        let pod = run_pod(pods, &format!("pod{round}"), users).await?;
        launch(pods, &pod, container(image, users, &["sleep", "1000"], 0)).await?;
        starts.push(start.elapsed());
        let start = Instant::now();
        remove_pod(pods, &pod).await?;
        ends.push(start.elapsed());
    }
    report("pod with container, start", starts);
    report("pod with container, removal", ends);

    let pod = run_pod(pods, "figures", users).await?;
    let mut events = pods.get_container_events(GetEventsRequest {}).await?.into_inner();
    let mut times = Vec::new();
    for round in 0..rounds {
        let start = Instant::now();
        let id = launch(pods, &pod, container(image, users, &["true"], round)).await?;
        while let Some(event) = events.message().await? {
            if event.container_id == id && event.container_event_type() == ContainerEventType::ContainerStoppedEvent {
                break;
            }
        }
        pods.remove_container(RemoveContainerRequest { container_id: id }).await?;
        times.push(start.elapsed());
    }
    report("true, create to removal", times);

    let id = launch(pods, &pod, container(image, users, &["sleep", "1000"], rounds)).await?;
    let mut times = Vec::new();
    for _ in 0..rounds {
        let start = Instant::now();
        let request = ExecSyncRequest { container_id: id.clone(), cmd: vec!["true".into()], timeout: 10 };
        pods.exec_sync(request).await?;
        times.push(start.elapsed());
    }
    report("exec of true", times);
    remove_pod(pods, &pod).await
}
