//! The CRI service: records, decisions and the gRPC surface. Processes are the shims' business.
//!
//! State is one record per pod and container behind its own lock, saved with every change. An
//! operation on a pod or container holds that object's turn (an async mutex), so that requests for
//! the same object queue and others do not.

mod api;
mod container;
mod exec;
mod images;
mod records;
mod sandbox;
mod shims;
mod specs;
mod stats;
mod status;
mod users;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use cri::v1::image_service_server::ImageServiceServer;
use cri::v1::runtime_service_server::RuntimeServiceServer;
use cri::v1::{ContainerEventResponse, ContainerEventType};
use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio::sync::{broadcast, watch};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;

use crate::Config;
use crate::cgroup::Cgroups;
use crate::images::Images;
use crate::shim::log::now;
use crate::streaming::{Server, Streams};
use records::{ContainerRecord, PodRecord};
use shims::Spawner;

/// Events kept for a slow reader of `GetContainerEvents`; it loses the oldest beyond that.
const EVENTS: usize = 1024;

/// Calls in progress get this long after a shutdown is asked for.
const DRAIN: Duration = Duration::from_secs(2);

pub(crate) struct Runtime {
    config: Config,
    images: Images,
    cgroups: Cgroups,
    spawner: Spawner,
    pods: Mutex<BTreeMap<String, Arc<Pod>>>,
    containers: Mutex<BTreeMap<String, Arc<Container>>>,
    events: broadcast::Sender<ContainerEventResponse>,
    /// Capabilities that this process can hand on.
    permitted: u64,
    /// Pods may have user namespaces of their own.
    user_namespaces: bool,
    pulls: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

pub(crate) struct Pod {
    id: String,
    record: Mutex<PodRecord>,
    turn: tokio::sync::Mutex<()>,
}

pub(crate) struct Container {
    id: String,
    record: Mutex<ContainerRecord>,
    turn: tokio::sync::Mutex<()>,
    exited: watch::Sender<bool>,
    samples: Mutex<stats::Samples>,
}

impl Pod {
    fn new(record: PodRecord) -> Arc<Pod> {
        Arc::new(Pod { id: record.id.clone(), record: Mutex::new(record), turn: tokio::sync::Mutex::default() })
    }

    fn record(&self) -> PodRecord {
        self.record.lock().clone()
    }
}

impl Container {
    fn new(record: ContainerRecord) -> Arc<Container> {
        Arc::new(Container {
            id: record.id.clone(),
            exited: watch::Sender::new(record.finished_at > 0),
            record: Mutex::new(record),
            turn: tokio::sync::Mutex::default(),
            samples: Mutex::default(),
        })
    }

    fn record(&self) -> ContainerRecord {
        self.record.lock().clone()
    }

    fn is_running(&self) -> bool {
        let record = self.record.lock();
        record.started_at > 0 && record.finished_at == 0
    }

    /// Returns at once if it is not running.
    async fn wait_for_exit(&self) {
        let mut exited = self.exited.subscribe();
        // The sender lives as long as `self`.
        let _ = exited.wait_for(|exited| *exited).await;
    }
}

impl Runtime {
    fn open(config: Config) -> Result<Arc<Runtime>> {
        for directory in [
            config.root.join("pods"),
            config.root.join("containers"),
            config.root.join("rootfs"),
            config.state.join("seccomp"),
        ] {
            std::fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        }
        let images = Images::open(&config.root)?;
        let cgroups = Cgroups::detect()?;
        let permitted = crate::sys::credentials::permitted().context("read own capabilities")?;
        const SYS_RESOURCE: u64 = 1 << 24;
        if permitted & SYS_RESOURCE == 0 {
            tracing::warn!(
                "CAP_SYS_RESOURCE is missing: containers keep our oom_score_adj where theirs would be lower"
            );
        }
        let users = crate::container::users::supported(&images.layers_directory());
        if let Err(reason) = &users {
            tracing::info!(reason, "pods cannot have user namespaces of their own here");
        }
        let empty = images.layers_directory().join(crate::images::EMPTY_LAYER);
        let runtime = Runtime {
            spawner: Spawner::new(config.shim_exe.clone(), empty),
            pods: Mutex::default(),
            containers: Mutex::default(),
            events: broadcast::Sender::new(EVENTS),
            pulls: Mutex::default(),
            images,
            cgroups,
            permitted,
            user_namespaces: users.is_ok(),
            config,
        };
        runtime.load()?;
        Ok(Arc::new(runtime))
    }

    fn load(&self) -> Result<()> {
        for record in records::load_all::<PodRecord>(&self.config.root.join("pods")).context("read pod records")? {
            self.pods.lock().insert(record.id.clone(), Pod::new(record));
        }
        let containers = records::load_all::<ContainerRecord>(&self.config.root.join("containers"));
        for record in containers.context("read container records")? {
            self.containers.lock().insert(record.id.clone(), Container::new(record));
        }
        Ok(())
    }

    /// Where a pod's control socket and specs are.
    fn pod_state(&self, id: &str) -> PathBuf {
        self.config.state.join(id)
    }

    fn pod_directory(&self, id: &str) -> PathBuf {
        self.config.root.join("pods").join(id)
    }

    fn container_directory(&self, id: &str) -> PathBuf {
        self.config.root.join("containers").join(id)
    }

    /// By id or unambiguous beginning of one.
    fn pod(&self, id: &str) -> Option<Arc<Pod>> {
        find(&self.pods.lock(), id)
    }

    fn container(&self, id: &str) -> Option<Arc<Container>> {
        find(&self.containers.lock(), id)
    }

    fn containers_of(&self, pod: &str) -> Vec<Arc<Container>> {
        self.containers.lock().values().filter(|container| container.record.lock().pod == pod).cloned().collect()
    }

    /// Changes a record and saves it.
    fn update_pod<T>(&self, pod: &Pod, change: impl FnOnce(&mut PodRecord) -> T) -> T {
        let mut record = pod.record.lock();
        let result = change(&mut record);
        if let Err(error) = records::save(&self.pod_directory(&pod.id), &*record) {
            tracing::error!(pod = pod.id, %error, "save the pod's record");
        }
        result
    }

    fn update_container<T>(&self, container: &Container, change: impl FnOnce(&mut ContainerRecord) -> T) -> T {
        let mut record = container.record.lock();
        let result = change(&mut record);
        if let Err(error) = records::save(&self.container_directory(&container.id), &*record) {
            tracing::error!(container = container.id, %error, "save the container's record");
        }
        result
    }

    /// Tells watchers about a container, or about a pod's sandbox under its own id.
    fn publish(&self, id: &str, pod: &str, kind: ContainerEventType) {
        let status = self.pod(pod).map(|pod| status::pod_status(&pod.record()));
        let containers = self.containers_of(pod);
        let statuses = containers.iter().map(|container| self.container_status(&container.record())).collect();
        let event = ContainerEventResponse {
            container_id: id.into(),
            container_event_type: kind.into(),
            created_at: now(),
            pod_sandbox_status: status,
            containers_statuses: statuses,
        };
        let _ = self.events.send(event); // nobody may be listening
    }
}

fn find<T>(objects: &BTreeMap<String, Arc<T>>, id: &str) -> Option<Arc<T>> {
    if id.is_empty() {
        return None;
    }
    let mut matches = objects.range(id.to_string()..).take_while(|(key, _)| key.starts_with(id));
    let found = matches.next()?;
    (found.0 == id || matches.next().is_none()).then(|| found.1.clone())
}

/// 64 hexadecimal digits, as other runtimes name things.
fn new_id() -> String {
    format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())
}

/// An opened runtime: pods of an earlier one are found again, CRI is not served yet.
pub struct Service {
    runtime: Arc<Runtime>,
}

impl Service {
    pub async fn open(config: Config) -> Result<Service> {
        let runtime = tokio::task::spawn_blocking(move || Runtime::open(config)).await??;
        runtime.spawner.warm_up()?;
        runtime.reattach().await;
        Ok(Service { runtime })
    }

    /// Exec, attach and port-forward, for a streaming server.
    pub fn streams(&self) -> Arc<dyn Streams> {
        Arc::new(exec::Sessions(self.runtime.clone()))
    }

    /// Serves CRI on the configured socket until `shutdown`.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<()> {
        let socket = self.runtime.config.socket.clone();
        let listener = listen(&socket)?;
        tracing::info!(socket = %socket.display(), "runtime serves CRI");
        let limit = cri::MAX_MESSAGE_BYTES;
        let streams = Server::bind(self.runtime.config.streaming_listen, self.streams()).await;
        let streams = streams.context("listen for exec, attach and port-forward")?;
        let pods = RuntimeServiceServer::new(api::Api { runtime: self.runtime.clone(), streams });
        let images = ImageServiceServer::new(images::Api(self.runtime.clone()));
        let served = tonic::transport::Server::builder()
            .add_service(pods.max_decoding_message_size(limit).max_encoding_message_size(limit))
            .add_service(images.max_decoding_message_size(limit).max_encoding_message_size(limit))
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown.clone().cancelled_owned());
        // Event streams never end by themselves: the shutdown is not to wait for their readers.
        let drained = async {
            shutdown.cancelled().await;
            tokio::time::sleep(DRAIN).await;
        };
        let result = tokio::select! {
            result = served => result.context("serve CRI"),
            () = drained => Ok(()),
        };
        let _ = std::fs::remove_file(&socket);
        result
    }
}

fn listen(path: &std::path::Path) -> Result<UnixListener> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    // Made aside and renamed into place: never open to others, and no moment without a socket.
    let fresh = path.with_extension("new");
    let _ = std::fs::remove_file(&fresh);
    let listener = UnixListener::bind(&fresh).with_context(|| format!("listen on {}", fresh.display()))?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&fresh, path).with_context(|| format!("listen on {}", path.display()))?;
    Ok(listener)
}

pub(crate) async fn remove_all(config: Config) -> Result<()> {
    let runtime = Runtime::open(config)?;
    runtime.reattach().await;
    let pods: Vec<Arc<Pod>> = runtime.pods.lock().values().cloned().collect();
    for pod in pods {
        runtime.remove_pod(&pod.id).await?;
    }
    let root = runtime.config.cgroup_root.clone();
    runtime.cgroups.destroy(&root, Duration::from_secs(10)).await.with_context(|| format!("remove cgroup {root}"))?;
    Ok(())
}
