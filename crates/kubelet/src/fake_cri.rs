//! A CRI runtime without processes: behind a real kubelet it lets tests and benchmarks run any number
//! of pods, and see what the kubelet asked for.
//!
//! Containers run until stopped, unless their command is `exit CODE`. `exec` of `false` fails, of
//! anything else succeeds. Images are present once pulled; names that contain `missing` never are.

use cri::v1::{self, image_service_server as images, runtime_service_server as runtime};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::broadcast;
use tokio_stream::{Stream, StreamExt as _, wrappers::BroadcastStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// Events kept for a slow listener.
const EVENTS: usize = 65_536;

struct Container {
    status: v1::ContainerStatus,
    sandbox: String,
    config: v1::ContainerConfig,
}

#[derive(Default)]
struct World {
    sandboxes: BTreeMap<String, v1::PodSandboxStatus>,
    containers: BTreeMap<String, Container>,
    images: BTreeMap<String, v1::Image>,
    calls: Vec<String>,
    user_namespaces: bool,
}

/// Cheap to clone; clones share the same pods.
#[derive(Clone)]
pub struct FakeCri {
    world: Arc<Mutex<World>>,
    serial: Arc<AtomicU64>,
    events: broadcast::Sender<v1::ContainerEventResponse>,
}

impl Default for FakeCri {
    fn default() -> Self {
        FakeCri { world: Arc::default(), serial: Arc::default(), events: broadcast::channel(EVENTS).0 }
    }
}

fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

impl FakeCri {
    /// Serves both services on a Unix socket until `shutdown`.
    pub async fn serve(self, socket: &Path, shutdown: CancellationToken) -> anyhow::Result<()> {
        let listener = tokio::net::UnixListener::bind(socket)?;
        let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
        tonic::transport::Server::builder()
            .add_service(runtime::RuntimeServiceServer::new(self.clone()))
            .add_service(images::ImageServiceServer::new(self))
            .serve_with_incoming_shutdown(incoming, shutdown.cancelled_owned())
            .await?;
        Ok(())
    }

    /// The calls that changed something, in order: `CreateContainer NAME`.
    pub fn calls(&self) -> Vec<String> {
        self.world.lock().calls.clone()
    }

    /// The configuration a container of this name was last created with.
    pub fn container(&self, name: &str) -> Option<v1::ContainerConfig> {
        let world = self.world.lock();
        let matching = world.containers.values().filter(|c| c.status.metadata.as_ref().is_some_and(|m| m.name == name));
        matching.max_by_key(|container| container.status.created_at).map(|container| container.config.clone())
    }

    /// From now on it tells of a handler with user namespaces, and of none before.
    pub fn support_user_namespaces(&self) {
        self.world.lock().user_namespaces = true;
    }

    pub fn sandboxes(&self) -> usize {
        self.world.lock().sandboxes.len()
    }

    /// Ends the running container of this name, as if its process had exited.
    pub fn exit(&self, name: &str, code: i32) {
        let id = {
            let world = self.world.lock();
            let running = |c: &&Container| c.status.state() == v1::ContainerState::ContainerRunning;
            let named = world.containers.values().filter(running);
            let mut named = named.filter(|c| c.status.metadata.as_ref().is_some_and(|m| m.name == name));
            named.next().map(|container| container.status.id.clone())
        };
        id.into_iter().for_each(|id| self.end(&id, code));
    }

    fn next_id(&self, kind: &str) -> String {
        format!("{kind}{:08}", self.serial.fetch_add(1, Ordering::Relaxed))
    }

    fn log(&self, call: String) {
        self.world.lock().calls.push(call);
    }

    fn end(&self, id: &str, code: i32) {
        let sandbox = {
            let mut world = self.world.lock();
            let Some(container) = world.containers.get_mut(id) else { return };
            if container.status.state() == v1::ContainerState::ContainerExited {
                return;
            }
            container.status.set_state(v1::ContainerState::ContainerExited);
            container.status.finished_at = now();
            container.status.exit_code = code;
            container.status.reason = if code == 0 { "Completed" } else { "Error" }.to_owned();
            container.sandbox.clone()
        };
        self.tell(id, &sandbox, v1::ContainerEventType::ContainerStoppedEvent);
    }

    fn tell(&self, id: &str, sandbox: &str, kind: v1::ContainerEventType) {
        let world = self.world.lock();
        let statuses = world.containers.values().filter(|container| container.sandbox == sandbox);
        let event = v1::ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind.into(),
            created_at: now(),
            pod_sandbox_status: world.sandboxes.get(sandbox).cloned(),
            containers_statuses: statuses.map(|container| container.status.clone()).collect(),
        };
        // Nobody listening is fine.
        let _ = self.events.send(event);
    }
}

fn selected(labels: &HashMap<String, String>, selector: Option<&HashMap<String, String>>) -> bool {
    selector.is_none_or(|selector| selector.iter().all(|(key, value)| labels.get(key) == Some(value)))
}

fn missing(kind: &str, id: &str) -> Status {
    Status::not_found(format!("{kind} {id:?} not found"))
}

type Answer<T> = Result<Response<T>, Status>;

macro_rules! unimplemented_calls {
    ($($name:ident($request:ty) -> $response:ty;)*) => {
        // Written out, because `async_trait` does not look into macros.
        $(fn $name<'a, 'async_trait>(
            &'a self,
            _: Request<$request>,
        ) -> Pin<Box<dyn Future<Output = Answer<$response>> + Send + 'async_trait>>
        where
            'a: 'async_trait,
            Self: 'async_trait,
        {
            let error = Status::unimplemented(concat!("the fake runtime has no ", stringify!($name)));
            Box::pin(std::future::ready(Err(error)))
        })*
    };
}

#[tonic::async_trait]
impl runtime::RuntimeService for FakeCri {
    async fn version(&self, _: Request<v1::VersionRequest>) -> Answer<v1::VersionResponse> {
        Ok(Response::new(v1::VersionResponse {
            version: "0.1.0".to_owned(),
            runtime_name: "fake".to_owned(),
            runtime_version: "1".to_owned(),
            runtime_api_version: "v1".to_owned(),
        }))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        let condition =
            |kind: &str| v1::RuntimeCondition { r#type: kind.to_owned(), status: true, ..Default::default() };
        let conditions = vec![condition("RuntimeReady"), condition("NetworkReady")];
        let features = v1::RuntimeHandlerFeatures { user_namespaces: true, ..Default::default() };
        let handler = v1::RuntimeHandler { name: String::new(), features: Some(features) };
        let runtime_handlers = if self.world.lock().user_namespaces { vec![handler] } else { vec![] };
        let status = Some(v1::RuntimeStatus { conditions });
        Ok(Response::new(v1::StatusResponse { status, runtime_handlers, ..Default::default() }))
    }

    async fn run_pod_sandbox(&self, request: Request<v1::RunPodSandboxRequest>) -> Answer<v1::RunPodSandboxResponse> {
        let config = request.into_inner().config.unwrap_or_default();
        let id = self.next_id("sandbox");
        let number = self.serial.load(Ordering::Relaxed);
        let options = config.linux.clone().and_then(|linux| linux.security_context?.namespace_options);
        let status = v1::PodSandboxStatus {
            id: id.clone(),
            metadata: config.metadata.clone(),
            state: v1::PodSandboxState::SandboxReady.into(),
            created_at: now(),
            network: Some(v1::PodSandboxNetworkStatus {
                ip: format!("10.42.{}.{}", number / 250 % 250, number % 250 + 2),
                additional_ips: vec![],
            }),
            linux: Some(v1::LinuxPodSandboxStatus { namespaces: Some(v1::Namespace { options }) }),
            labels: config.labels,
            annotations: config.annotations,
            runtime_handler: String::new(),
        };
        self.log(format!("RunPodSandbox {}", config.metadata.map(|metadata| metadata.name).unwrap_or_default()));
        self.world.lock().sandboxes.insert(id.clone(), status);
        Ok(Response::new(v1::RunPodSandboxResponse { pod_sandbox_id: id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Answer<v1::StopPodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let containers: Vec<String> = {
            let mut world = self.world.lock();
            if let Some(sandbox) = world.sandboxes.get_mut(&id) {
                sandbox.set_state(v1::PodSandboxState::SandboxNotready);
                sandbox.network = None;
            }
            let of = world.containers.iter().filter(|(_, container)| container.sandbox == id);
            of.map(|(id, _)| id.clone()).collect()
        };
        self.log("StopPodSandbox".to_owned());
        containers.iter().for_each(|container| self.end(container, 137));
        Ok(Response::new(v1::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Answer<v1::RemovePodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let mut world = self.world.lock();
        world.sandboxes.remove(&id);
        world.containers.retain(|_, container| container.sandbox != id);
        world.calls.push("RemovePodSandbox".to_owned());
        Ok(Response::new(v1::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Answer<v1::PodSandboxStatusResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let status = self.world.lock().sandboxes.get(&id).cloned().ok_or_else(|| missing("sandbox", &id))?;
        Ok(Response::new(v1::PodSandboxStatusResponse { status: Some(status), ..Default::default() }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Answer<v1::ListPodSandboxResponse> {
        let filter = request.into_inner().filter;
        let world = self.world.lock();
        let selector = filter.as_ref().map(|filter| &filter.label_selector);
        let chosen = world.sandboxes.values().filter(|sandbox| selected(&sandbox.labels, selector));
        let item = |status: &v1::PodSandboxStatus| v1::PodSandbox {
            id: status.id.clone(),
            metadata: status.metadata.clone(),
            state: status.state,
            created_at: status.created_at,
            labels: status.labels.clone(),
            annotations: status.annotations.clone(),
            ..Default::default()
        };
        Ok(Response::new(v1::ListPodSandboxResponse { items: chosen.map(item).collect() }))
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Answer<v1::CreateContainerResponse> {
        let request = request.into_inner();
        let config = request.config.unwrap_or_default();
        let (id, name) = (self.next_id("container"), config.metadata.clone().unwrap_or_default().name);
        let directory = request.sandbox_config.unwrap_or_default().log_directory;
        let log_path = Path::new(&directory).join(&config.log_path);
        let line = format!("{} stdout F {name} runs\n", jiff::Timestamp::now());
        std::fs::write(&log_path, line).map_err(|error| Status::internal(error.to_string()))?;
        let image = config.image.clone().unwrap_or_default();
        let status = v1::ContainerStatus {
            id: id.clone(),
            metadata: config.metadata.clone(),
            state: v1::ContainerState::ContainerCreated.into(),
            created_at: now(),
            image_ref: image.image.clone(),
            image: Some(image),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            mounts: config.mounts.clone(),
            log_path: log_path.display().to_string(),
            ..Default::default()
        };
        {
            let mut world = self.world.lock();
            let ready = world.sandboxes.get(&request.pod_sandbox_id).map(|sandbox| sandbox.state());
            if ready != Some(v1::PodSandboxState::SandboxReady) {
                return Err(missing("sandbox", &request.pod_sandbox_id));
            }
            world.calls.push(format!("CreateContainer {name}"));
            world.containers.insert(id.clone(), Container { status, sandbox: request.pod_sandbox_id.clone(), config });
        }
        self.tell(&id, &request.pod_sandbox_id, v1::ContainerEventType::ContainerCreatedEvent);
        Ok(Response::new(v1::CreateContainerResponse { container_id: id }))
    }

    async fn start_container(&self, request: Request<v1::StartContainerRequest>) -> Answer<v1::StartContainerResponse> {
        let id = request.into_inner().container_id;
        let (sandbox, exit) = {
            let mut world = self.world.lock();
            let container = world.containers.get_mut(&id).ok_or_else(|| missing("container", &id))?;
            container.status.set_state(v1::ContainerState::ContainerRunning);
            container.status.started_at = now();
            let exit = match container.config.command.as_slice() {
                [word, code] if word == "exit" => code.parse().ok(),
                _ => None,
            };
            let (sandbox, name) =
                (container.sandbox.clone(), container.config.metadata.clone().unwrap_or_default().name);
            world.calls.push(format!("StartContainer {name}"));
            (sandbox, exit)
        };
        self.tell(&id, &sandbox, v1::ContainerEventType::ContainerStartedEvent);
        exit.into_iter().for_each(|code| self.end(&id, code));
        Ok(Response::new(v1::StartContainerResponse {}))
    }

    async fn stop_container(&self, request: Request<v1::StopContainerRequest>) -> Answer<v1::StopContainerResponse> {
        let request = request.into_inner();
        let name = self.world.lock().containers.get(&request.container_id).map(|c| c.status.metadata.clone());
        let name = name.ok_or_else(|| missing("container", &request.container_id))?.unwrap_or_default().name;
        self.log(format!("StopContainer {name} {}", request.timeout));
        self.end(&request.container_id, 143);
        Ok(Response::new(v1::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Answer<v1::RemoveContainerResponse> {
        self.world.lock().containers.remove(&request.into_inner().container_id);
        Ok(Response::new(v1::RemoveContainerResponse {}))
    }

    async fn list_containers(&self, request: Request<v1::ListContainersRequest>) -> Answer<v1::ListContainersResponse> {
        let filter = request.into_inner().filter;
        let world = self.world.lock();
        let selector = filter.as_ref().map(|filter| &filter.label_selector);
        let chosen = world.containers.values().filter(|container| selected(&container.status.labels, selector));
        let item = |container: &Container| v1::Container {
            id: container.status.id.clone(),
            pod_sandbox_id: container.sandbox.clone(),
            metadata: container.status.metadata.clone(),
            image: container.status.image.clone(),
            state: container.status.state,
            created_at: container.status.created_at,
            labels: container.status.labels.clone(),
            annotations: container.status.annotations.clone(),
            ..Default::default()
        };
        Ok(Response::new(v1::ListContainersResponse { containers: chosen.map(item).collect() }))
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Answer<v1::ContainerStatusResponse> {
        let id = request.into_inner().container_id;
        let world = self.world.lock();
        let container = world.containers.get(&id).ok_or_else(|| missing("container", &id))?;
        let status = Some(container.status.clone());
        Ok(Response::new(v1::ContainerStatusResponse { status, ..Default::default() }))
    }

    async fn exec_sync(&self, request: Request<v1::ExecSyncRequest>) -> Answer<v1::ExecSyncResponse> {
        let command = request.into_inner().cmd;
        self.log(format!("ExecSync {}", command.join(" ")));
        let exit_code = i32::from(command.first().is_some_and(|word| word == "false"));
        Ok(Response::new(v1::ExecSyncResponse { exit_code, ..Default::default() }))
    }

    async fn update_runtime_config(
        &self,
        request: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Answer<v1::UpdateRuntimeConfigResponse> {
        let network = request.into_inner().runtime_config.and_then(|config| config.network_config);
        self.log(format!("UpdateRuntimeConfig {}", network.unwrap_or_default().pod_cidr));
        Ok(Response::new(v1::UpdateRuntimeConfigResponse {}))
    }

    async fn reopen_container_log(
        &self,
        _: Request<v1::ReopenContainerLogRequest>,
    ) -> Answer<v1::ReopenContainerLogResponse> {
        Ok(Response::new(v1::ReopenContainerLogResponse {}))
    }

    async fn list_pod_sandbox_stats(
        &self,
        _: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Answer<v1::ListPodSandboxStatsResponse> {
        Ok(Response::new(v1::ListPodSandboxStatsResponse::default()))
    }

    type GetContainerEventsStream = Pin<Box<dyn Stream<Item = Result<v1::ContainerEventResponse, Status>> + Send>>;

    async fn get_container_events(&self, _: Request<v1::GetEventsRequest>) -> Answer<Self::GetContainerEventsStream> {
        let events = BroadcastStream::new(self.events.subscribe());
        // A listener that fell behind is cut off and starts again with a listing.
        let events = events.map(|event| event.map_err(|error| Status::data_loss(error.to_string())));
        Ok(Response::new(Box::pin(events)))
    }

    unimplemented_calls! {
        update_container_resources(v1::UpdateContainerResourcesRequest) -> v1::UpdateContainerResourcesResponse;
        exec(v1::ExecRequest) -> v1::ExecResponse;
        attach(v1::AttachRequest) -> v1::AttachResponse;
        port_forward(v1::PortForwardRequest) -> v1::PortForwardResponse;
        container_stats(v1::ContainerStatsRequest) -> v1::ContainerStatsResponse;
        list_container_stats(v1::ListContainerStatsRequest) -> v1::ListContainerStatsResponse;
        pod_sandbox_stats(v1::PodSandboxStatsRequest) -> v1::PodSandboxStatsResponse;
        checkpoint_container(v1::CheckpointContainerRequest) -> v1::CheckpointContainerResponse;
        list_metric_descriptors(v1::ListMetricDescriptorsRequest) -> v1::ListMetricDescriptorsResponse;
        list_pod_sandbox_metrics(v1::ListPodSandboxMetricsRequest) -> v1::ListPodSandboxMetricsResponse;
        runtime_config(v1::RuntimeConfigRequest) -> v1::RuntimeConfigResponse;
    }
}

#[tonic::async_trait]
impl images::ImageService for FakeCri {
    async fn list_images(&self, _: Request<v1::ListImagesRequest>) -> Answer<v1::ListImagesResponse> {
        Ok(Response::new(v1::ListImagesResponse { images: self.world.lock().images.values().cloned().collect() }))
    }

    async fn image_status(&self, request: Request<v1::ImageStatusRequest>) -> Answer<v1::ImageStatusResponse> {
        let name = request.into_inner().image.unwrap_or_default().image;
        let image = self.world.lock().images.get(&name).cloned();
        Ok(Response::new(v1::ImageStatusResponse { image, ..Default::default() }))
    }

    async fn pull_image(&self, request: Request<v1::PullImageRequest>) -> Answer<v1::PullImageResponse> {
        let name = request.into_inner().image.unwrap_or_default().image;
        self.log(format!("PullImage {name}"));
        if name.contains("missing") {
            return Err(Status::not_found(format!("failed to resolve reference {name:?}: not found")));
        }
        let image = v1::Image { id: name.clone(), repo_tags: vec![name.clone()], size: 1000, ..Default::default() };
        self.world.lock().images.insert(name.clone(), image);
        Ok(Response::new(v1::PullImageResponse { image_ref: name }))
    }

    async fn remove_image(&self, request: Request<v1::RemoveImageRequest>) -> Answer<v1::RemoveImageResponse> {
        self.world.lock().images.remove(&request.into_inner().image.unwrap_or_default().image);
        Ok(Response::new(v1::RemoveImageResponse {}))
    }

    async fn image_fs_info(&self, _: Request<v1::ImageFsInfoRequest>) -> Answer<v1::ImageFsInfoResponse> {
        Ok(Response::new(v1::ImageFsInfoResponse::default()))
    }
}
