//! The CRI runtime service: each call as one operation of [`Runtime`], with gRPC's codes for errors.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use cri::v1::runtime_service_server::RuntimeService;
use cri::v1::*;
use futures::Stream;
use std::pin::Pin;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::BroadcastStream;
use tonic::{Code, Request, Response, Status};

use super::container::NotFound;
use super::exec::TimedOut;
use super::{Runtime, stats, status};
use crate::streaming;

pub(super) struct Api {
    pub(super) runtime: Arc<Runtime>,
    pub(super) streams: streaming::Server,
}

type Answer<T> = Result<Response<T>, Status>;

/// Errors with their causes in one line, which is what becomes the pod's message.
pub(super) fn answer<T>(result: Result<T>) -> Answer<T> {
    result.map(Response::new).map_err(|error| {
        let code = match &error {
            error if error.is::<NotFound>() => Code::NotFound,
            error if error.is::<TimedOut>() => Code::DeadlineExceeded,
            _ => Code::Unknown,
        };
        Status::new(code, format!("{error:#}"))
    })
}

/// Runs to its end even if the caller hangs up: half a pod is worse than one nobody asks for.
async fn complete<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Answer<T> {
    answer(tokio::spawn(work).await.unwrap_or_else(|error| Err(error.into())))
}

/// Runs work that waits for disks.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Answer<T> {
    answer(tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.into())))
}

fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(seconds.max(0) as u64)
}

#[tonic::async_trait]
impl RuntimeService for Api {
    async fn version(&self, _: Request<VersionRequest>) -> Answer<VersionResponse> {
        answer(Ok(VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "isopod".into(),
            runtime_version: env!("CARGO_PKG_VERSION").into(),
            runtime_api_version: "v1".into(),
        }))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
        let network = self.runtime.config.network.ready().await;
        let condition = |kind: &str, problem: Option<&String>, reason: &str| RuntimeCondition {
            r#type: kind.into(),
            status: problem.is_none(),
            reason: problem.map_or(String::new(), |_| reason.into()),
            message: problem.cloned().unwrap_or_default(),
        };
        let conditions = vec![
            condition("RuntimeReady", None, ""),
            condition("NetworkReady", network.as_ref().err(), "NetworkPluginNotReady"),
        ];
        let config = &self.runtime.config;
        let info = serde_json::json!({
            "root": config.root, "state": config.state, "cgroupRoot": config.cgroup_root,
            "cgroupVersion": if self.runtime.cgroups.is_v2() { 2 } else { 1 },
        });
        let info = request.into_inner().verbose.then(|| ("config".to_string(), info.to_string()));
        let user_namespaces = self.runtime.user_namespaces;
        let features = RuntimeHandlerFeatures { recursive_read_only_mounts: true, user_namespaces };
        answer(Ok(StatusResponse {
            status: Some(RuntimeStatus { conditions }),
            info: info.into_iter().collect(),
            runtime_handlers: vec![RuntimeHandler { name: String::new(), features: Some(features) }],
            features: Some(RuntimeFeatures { supplemental_groups_policy: true }),
        }))
    }

    async fn run_pod_sandbox(&self, request: Request<RunPodSandboxRequest>) -> Answer<RunPodSandboxResponse> {
        let (runtime, request) = (self.runtime.clone(), request.into_inner());
        complete(async move {
            let handler = request.runtime_handler;
            anyhow::ensure!(handler.is_empty(), "no runtime for {handler:?} is configured");
            let pod_sandbox_id = runtime.run_pod(request.config.unwrap_or_default(), handler).await?;
            Ok(RunPodSandboxResponse { pod_sandbox_id })
        })
        .await
    }

    async fn stop_pod_sandbox(&self, request: Request<StopPodSandboxRequest>) -> Answer<StopPodSandboxResponse> {
        let (runtime, request) = (self.runtime.clone(), request.into_inner());
        complete(async move {
            runtime.stop_pod(&request.pod_sandbox_id).await?;
            Ok(StopPodSandboxResponse {})
        })
        .await
    }

    async fn remove_pod_sandbox(&self, request: Request<RemovePodSandboxRequest>) -> Answer<RemovePodSandboxResponse> {
        let (runtime, request) = (self.runtime.clone(), request.into_inner());
        complete(async move {
            runtime.remove_pod(&request.pod_sandbox_id).await?;
            Ok(RemovePodSandboxResponse {})
        })
        .await
    }

    async fn pod_sandbox_status(&self, request: Request<PodSandboxStatusRequest>) -> Answer<PodSandboxStatusResponse> {
        let request = request.into_inner();
        answer(self.runtime.known_pod(&request.pod_sandbox_id).map(|pod| {
            let record = pod.record();
            let containers = self.runtime.containers_of(&pod.id);
            let info = serde_json::json!({ "pid": record.pause, "cgroup": record.cgroup });
            PodSandboxStatusResponse {
                status: Some(status::pod_status(&record)),
                info: request.verbose.then(|| ("info".to_string(), info.to_string())).into_iter().collect(),
                containers_statuses: containers.iter().map(|c| self.runtime.container_status(&c.record())).collect(),
                timestamp: crate::shim::log::now(),
            }
        }))
    }

    async fn list_pod_sandbox(&self, request: Request<ListPodSandboxRequest>) -> Answer<ListPodSandboxResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let pods = self.runtime.pods.lock();
        let records = pods.values().map(|pod| pod.record()).filter(|record| status::pod_matches(record, &filter));
        answer(Ok(ListPodSandboxResponse { items: records.map(|record| status::pod_item(&record)).collect() }))
    }

    async fn create_container(&self, request: Request<CreateContainerRequest>) -> Answer<CreateContainerResponse> {
        let (runtime, request) = (self.runtime.clone(), request.into_inner());
        complete(async move {
            let config = request.config.unwrap_or_default();
            let id = runtime.create_container(&request.pod_sandbox_id, config, request.sandbox_config).await?;
            Ok(CreateContainerResponse { container_id: id })
        })
        .await
    }

    async fn start_container(&self, request: Request<StartContainerRequest>) -> Answer<StartContainerResponse> {
        let (runtime, request) = (self.runtime.clone(), request.into_inner());
        complete(async move {
            runtime.start_container(&request.container_id).await?;
            Ok(StartContainerResponse {})
        })
        .await
    }

    async fn stop_container(&self, request: Request<StopContainerRequest>) -> Answer<StopContainerResponse> {
        let (runtime, request) = (self.runtime.clone(), request.into_inner());
        complete(async move {
            runtime.stop_container(&request.container_id, seconds(request.timeout)).await?;
            Ok(StopContainerResponse {})
        })
        .await
    }

    async fn remove_container(&self, request: Request<RemoveContainerRequest>) -> Answer<RemoveContainerResponse> {
        let (runtime, request) = (self.runtime.clone(), request.into_inner());
        complete(async move {
            runtime.remove_container(&request.container_id).await?;
            Ok(RemoveContainerResponse {})
        })
        .await
    }

    async fn list_containers(&self, request: Request<ListContainersRequest>) -> Answer<ListContainersResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let containers = self.runtime.containers.lock();
        let records = containers.values().map(|container| container.record());
        let matching = records.filter(|record| status::container_matches(record, &filter));
        answer(Ok(ListContainersResponse {
            containers: matching.map(|record| status::container_item(&record)).collect(),
        }))
    }

    async fn container_status(&self, request: Request<ContainerStatusRequest>) -> Answer<ContainerStatusResponse> {
        let request = request.into_inner();
        answer(self.runtime.known_container(&request.container_id).map(|container| {
            let record = container.record();
            let info = serde_json::json!({
                "pid": record.pid, "sandboxID": record.pod, "cgroup": record.cgroup,
                "upper": self.runtime.container_directory(&record.id).join("upper"),
            });
            ContainerStatusResponse {
                status: Some(self.runtime.container_status(&record)),
                info: request.verbose.then(|| ("info".to_string(), info.to_string())).into_iter().collect(),
            }
        }))
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Answer<UpdateContainerResourcesResponse> {
        let (runtime, request) = (self.runtime.clone(), request.into_inner());
        blocking(move || {
            runtime.update_resources(&request.container_id, request.linux.unwrap_or_default())?;
            Ok(UpdateContainerResourcesResponse {})
        })
        .await
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Answer<ReopenContainerLogResponse> {
        answer(
            self.runtime.reopen_log(&request.into_inner().container_id).await.map(|()| ReopenContainerLogResponse {}),
        )
    }

    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
        let (runtime, request) = (self.runtime.clone(), request.into_inner());
        let output = runtime.exec_sync(&request.container_id, request.cmd, seconds(request.timeout)).await;
        answer(output.map(|output| ExecSyncResponse {
            stdout: output.stdout,
            stderr: output.stderr,
            exit_code: output.code,
        }))
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Answer<ExecResponse> {
        let ExecRequest { container_id, cmd, tty, stdin, stdout, stderr } = request.into_inner();
        answer(self.runtime.running(&container_id).map(|record| {
            let request = streaming::ExecRequest { container_id: record.id, cmd, tty, stdin, stdout, stderr };
            ExecResponse { url: self.streams.exec_url(request) }
        }))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Answer<AttachResponse> {
        let AttachRequest { container_id, stdin, tty, stdout, stderr } = request.into_inner();
        answer(self.runtime.running(&container_id).map(|record| {
            let request = streaming::AttachRequest { container_id: record.id, tty, stdin, stdout, stderr };
            AttachResponse { url: self.streams.attach_url(request) }
        }))
    }

    async fn port_forward(&self, request: Request<PortForwardRequest>) -> Answer<PortForwardResponse> {
        let PortForwardRequest { pod_sandbox_id, port } = request.into_inner();
        answer(self.runtime.known_pod(&pod_sandbox_id).map(|pod| {
            let ports = port.into_iter().filter_map(|port| port.try_into().ok()).collect();
            let request = streaming::PortForwardRequest { sandbox_id: pod.id.clone(), ports };
            PortForwardResponse { url: self.streams.port_forward_url(request) }
        }))
    }

    async fn container_stats(&self, request: Request<ContainerStatsRequest>) -> Answer<ContainerStatsResponse> {
        let (runtime, request) = (self.runtime.clone(), request.into_inner());
        blocking(move || {
            let container = runtime.known_container(&request.container_id)?;
            Ok(ContainerStatsResponse { stats: runtime.container_stats(&container) })
        })
        .await
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Answer<ListContainerStatsResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let filter = ContainerFilter {
            id: filter.id,
            pod_sandbox_id: filter.pod_sandbox_id,
            label_selector: filter.label_selector,
            state: Some(ContainerStateValue { state: ContainerState::ContainerRunning.into() }),
        };
        let runtime = self.runtime.clone();
        blocking(move || {
            let all: Vec<_> = runtime.containers.lock().values().cloned().collect();
            let matching = all.iter().filter(|container| status::container_matches(&container.record(), &filter));
            Ok(ListContainerStatsResponse { stats: matching.filter_map(|c| runtime.container_stats(c)).collect() })
        })
        .await
    }

    async fn pod_sandbox_stats(&self, request: Request<PodSandboxStatsRequest>) -> Answer<PodSandboxStatsResponse> {
        let (runtime, request) = (self.runtime.clone(), request.into_inner());
        blocking(move || {
            let pod = runtime.known_pod(&request.pod_sandbox_id)?;
            Ok(PodSandboxStatsResponse { stats: Some(runtime.pod_stats(&pod.record())) })
        })
        .await
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Answer<ListPodSandboxStatsResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let state = Some(PodSandboxStateValue { state: PodSandboxState::SandboxReady.into() });
        let filter = PodSandboxFilter { id: filter.id, label_selector: filter.label_selector, state };
        let runtime = self.runtime.clone();
        blocking(move || {
            let records: Vec<_> = runtime.pods.lock().values().map(|pod| pod.record()).collect();
            let matching = records.iter().filter(|record| status::pod_matches(record, &filter));
            Ok(ListPodSandboxStatsResponse { stats: matching.map(|record| runtime.pod_stats(record)).collect() })
        })
        .await
    }

    async fn update_runtime_config(
        &self,
        request: Request<UpdateRuntimeConfigRequest>,
    ) -> Answer<UpdateRuntimeConfigResponse> {
        let network = request.into_inner().runtime_config.and_then(|config| config.network_config);
        if let Some(network) = network.filter(|network| !network.pod_cidr.is_empty()) {
            self.runtime.config.network.set_pod_cidr(&network.pod_cidr);
        }
        answer(Ok(UpdateRuntimeConfigResponse {}))
    }

    async fn checkpoint_container(
        &self,
        _: Request<CheckpointContainerRequest>,
    ) -> Answer<CheckpointContainerResponse> {
        Err(Status::unimplemented("method CheckpointContainer not implemented"))
    }

    type GetContainerEventsStream = Pin<Box<dyn Stream<Item = Result<ContainerEventResponse, Status>> + Send>>;

    async fn get_container_events(&self, _: Request<GetEventsRequest>) -> Answer<Self::GetContainerEventsStream> {
        let events = BroadcastStream::new(self.runtime.events.subscribe());
        // A reader that fell behind is cut off: it lists again and reconnects, as after any break.
        let events = events.map(|event| event.map_err(|lag| Status::resource_exhausted(lag.to_string())));
        Ok(Response::new(Box::pin(events)))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<ListMetricDescriptorsRequest>,
    ) -> Answer<ListMetricDescriptorsResponse> {
        answer(Ok(ListMetricDescriptorsResponse { descriptors: stats::metric_descriptors() }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Answer<ListPodSandboxMetricsResponse> {
        let runtime = self.runtime.clone();
        blocking(move || {
            let records: Vec<_> = runtime.pods.lock().values().map(|pod| pod.record()).collect();
            let ready = records.iter().filter(|record| record.ready);
            Ok(ListPodSandboxMetricsResponse { pod_metrics: ready.map(|record| runtime.pod_metrics(record)).collect() })
        })
        .await
    }

    async fn runtime_config(&self, _: Request<RuntimeConfigRequest>) -> Answer<RuntimeConfigResponse> {
        let linux = LinuxRuntimeConfiguration { cgroup_driver: CgroupDriver::Cgroupfs.into() };
        answer(Ok(RuntimeConfigResponse { linux: Some(linux) }))
    }
}
