//! The kubelet's side of CRI: calls with time limits, and pods read into [`Runtime`].
//!
//! Knows messages, no pods' specs. Errors keep the runtime's own words, since users see them.

use crate::state::{Instance, POD_UID, Runtime, Sandbox};
use cri::v1::{self, image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;
use tonic::transport::Channel;

/// Calls that answer from memory.
const SHORT: Duration = Duration::from_secs(120);
/// Calls that build things.
const LONG: Duration = Duration::from_secs(240);

#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct CriError {
    pub code: tonic::Code,
    pub message: String,
}

impl From<tonic::Status> for CriError {
    fn from(status: tonic::Status) -> Self {
        CriError { code: status.code(), message: status.message().to_owned() }
    }
}

impl CriError {
    pub fn is_not_found(&self) -> bool {
        self.code == tonic::Code::NotFound
    }

    pub fn is_unimplemented(&self) -> bool {
        self.code == tonic::Code::Unimplemented
    }
}

pub type Result<T> = std::result::Result<T, CriError>;

#[derive(Clone)]
pub struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

fn request<T>(message: T, limit: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(limit);
    request
}

/// One method per call: `name(message) -> response`, each with its time limit.
macro_rules! calls {
    ($($service:ident.$name:ident($message:ty) -> $response:ty, $limit:expr;)*) => {
        $(pub async fn $name(&self, message: $message) -> Result<$response> {
            Ok(self.$service.clone().$name(request(message, $limit)).await?.into_inner())
        })*
    };
}

impl Cri {
    pub fn connect(endpoint: &str) -> Cri {
        let channel = cri::connect(endpoint);
        Cri {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(cri::MAX_MESSAGE_BYTES),
            images: ImageServiceClient::new(channel).max_decoding_message_size(cri::MAX_MESSAGE_BYTES),
        }
    }

    calls! {
        runtime.version(v1::VersionRequest) -> v1::VersionResponse, SHORT;
        runtime.status(v1::StatusRequest) -> v1::StatusResponse, SHORT;
        runtime.update_runtime_config(v1::UpdateRuntimeConfigRequest) -> v1::UpdateRuntimeConfigResponse, SHORT;
        runtime.run_pod_sandbox(v1::RunPodSandboxRequest) -> v1::RunPodSandboxResponse, LONG;
        runtime.stop_pod_sandbox(v1::StopPodSandboxRequest) -> v1::StopPodSandboxResponse, LONG;
        runtime.remove_pod_sandbox(v1::RemovePodSandboxRequest) -> v1::RemovePodSandboxResponse, SHORT;
        runtime.create_container(v1::CreateContainerRequest) -> v1::CreateContainerResponse, LONG;
        runtime.start_container(v1::StartContainerRequest) -> v1::StartContainerResponse, LONG;
        runtime.update_container_resources(v1::UpdateContainerResourcesRequest) -> v1::UpdateContainerResourcesResponse, SHORT;
        runtime.remove_container(v1::RemoveContainerRequest) -> v1::RemoveContainerResponse, SHORT;
        runtime.reopen_container_log(v1::ReopenContainerLogRequest) -> v1::ReopenContainerLogResponse, SHORT;
        runtime.exec(v1::ExecRequest) -> v1::ExecResponse, SHORT;
        runtime.attach(v1::AttachRequest) -> v1::AttachResponse, SHORT;
        runtime.port_forward(v1::PortForwardRequest) -> v1::PortForwardResponse, SHORT;
        runtime.list_pod_sandbox_stats(v1::ListPodSandboxStatsRequest) -> v1::ListPodSandboxStatsResponse, SHORT;
        images.list_images(v1::ListImagesRequest) -> v1::ListImagesResponse, SHORT;
        images.remove_image(v1::RemoveImageRequest) -> v1::RemoveImageResponse, SHORT;
        images.image_fs_info(v1::ImageFsInfoRequest) -> v1::ImageFsInfoResponse, SHORT;
    }

    /// Pulls take as long as the registry does.
    pub async fn pull_image(&self, message: v1::PullImageRequest) -> Result<String> {
        Ok(self.images.clone().pull_image(message).await?.into_inner().image_ref)
    }

    pub async fn image(&self, image: &str) -> Result<Option<v1::Image>> {
        let spec = v1::ImageSpec { image: image.to_owned(), ..Default::default() };
        let message = v1::ImageStatusRequest { image: Some(spec), verbose: false };
        Ok(self.images.clone().image_status(request(message, SHORT)).await?.into_inner().image)
    }

    pub async fn stop_container(&self, id: &str, grace: i64) -> Result<()> {
        let limit = SHORT + Duration::from_secs(grace.max(0) as u64);
        let message = v1::StopContainerRequest { container_id: id.to_owned(), timeout: grace };
        match self.runtime.clone().stop_container(request(message, limit)).await {
            Err(status) if status.code() != tonic::Code::NotFound => Err(status.into()),
            _ => Ok(()),
        }
    }

    pub async fn exec_sync(&self, id: &str, cmd: Vec<String>, timeout: Duration) -> Result<v1::ExecSyncResponse> {
        let seconds = timeout.as_secs() as i64;
        let message = v1::ExecSyncRequest { container_id: id.to_owned(), cmd, timeout: seconds };
        let limit = if seconds == 0 { Duration::from_secs(86_400) } else { timeout + Duration::from_secs(10) };
        Ok(self.runtime.clone().exec_sync(request(message, limit)).await?.into_inner())
    }

    pub async fn container_status(&self, id: &str) -> Result<v1::ContainerStatus> {
        let message = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let response = self.runtime.clone().container_status(request(message, SHORT)).await?.into_inner();
        response.status.ok_or_else(|| tonic::Status::internal("the runtime sent no container status").into())
    }

    pub async fn sandbox_status(&self, id: &str) -> Result<v1::PodSandboxStatus> {
        let message = v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let response = self.runtime.clone().pod_sandbox_status(request(message, SHORT)).await?.into_inner();
        response.status.ok_or_else(|| tonic::Status::internal("the runtime sent no sandbox status").into())
    }

    pub async fn events(&self) -> Result<tonic::Streaming<v1::ContainerEventResponse>> {
        Ok(self.runtime.clone().get_container_events(v1::GetEventsRequest {}).await?.into_inner())
    }

    pub async fn sandboxes(&self, uid: Option<&str>) -> Result<Vec<v1::PodSandbox>> {
        let filter = v1::PodSandboxFilter { label_selector: selector(uid), ..Default::default() };
        let message = v1::ListPodSandboxRequest { filter: Some(filter) };
        Ok(self.runtime.clone().list_pod_sandbox(request(message, SHORT)).await?.into_inner().items)
    }

    pub async fn containers(&self, uid: Option<&str>) -> Result<Vec<v1::Container>> {
        let filter = v1::ContainerFilter { label_selector: selector(uid), ..Default::default() };
        let message = v1::ListContainersRequest { filter: Some(filter) };
        Ok(self.runtime.clone().list_containers(request(message, SHORT)).await?.into_inner().containers)
    }

    /// Ids and states of everything the runtime holds, by pod uid.
    pub async fn states(&self) -> Result<BTreeMap<String, BTreeSet<(String, i32)>>> {
        let (sandboxes, containers) = tokio::try_join!(self.sandboxes(None), self.containers(None))?;
        let sandboxes = sandboxes.into_iter().map(|sandbox| (sandbox.labels, sandbox.id, sandbox.state));
        let containers = containers.into_iter().map(|container| (container.labels, container.id, container.state));
        let mut states = BTreeMap::<_, BTreeSet<_>>::new();
        for (mut labels, id, state) in sandboxes.chain(containers) {
            states.entry(labels.remove(POD_UID).unwrap_or_default()).or_default().insert((id, state));
        }
        Ok(states)
    }

    /// Everything the runtime holds for one pod, in full.
    pub async fn pod(&self, uid: &str) -> Result<Runtime> {
        let (sandboxes, containers) = tokio::try_join!(self.sandboxes(Some(uid)), self.containers(Some(uid)))?;
        let mut runtime = Runtime::default();
        for sandbox in sandboxes {
            match self.sandbox_status(&sandbox.id).await {
                Ok(status) => runtime.observe_sandbox(Sandbox::from_cri(status)),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        for container in containers {
            match self.container_status(&container.id).await {
                Ok(status) => runtime.observe(Instance::from_cri(status, &container.pod_sandbox_id)),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(runtime)
    }
}

fn selector(uid: Option<&str>) -> HashMap<String, String> {
    uid.map(|uid| (POD_UID.to_owned(), uid.to_owned())).into_iter().collect()
}
