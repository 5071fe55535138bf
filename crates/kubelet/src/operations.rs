//! What a plan's actions do: each is one function that runs beside its pod's task and returns what
//! came of it.
//!
//! They decide nothing about what comes next. A start gives up between its steps when `stop` is
//! cancelled; a call to the runtime once made is always awaited, so nothing comes into being unseen.

use crate::check::Target;
use crate::cri_client::CriError;
use crate::env::{self, References};
use crate::images::{ImageError, Progress};
use crate::objects::PodObjects;
use crate::plan::{KillReason, MINIMUM_GRACE};
use crate::pod::{self, Kind, Member};
use crate::resize::Outdated;
use crate::security;
use crate::shared::Shared;
use crate::state::{Instance, Sandbox};
use crate::{cgroup, convert, dns, userns, volume};
use client::EventType::{Normal, Warning};
use cri::v1;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{LifecycleHandler, Pod};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::Api;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// One pod, as its operations see it.
#[derive(Clone)]
pub struct Job {
    pub shared: Arc<Shared>,
    pub pod: Arc<Pod>,
    pub objects: PodObjects,
    pub sandbox: Option<Sandbox>,
    /// Cancelled when the pod begins to end.
    pub stop: CancellationToken,
}

/// Why a container did not start; the state's reason and message.
#[derive(Debug)]
pub struct StartError {
    pub reason: String,
    pub message: String,
    pub retry_at: Timestamp,
    /// What was made nevertheless.
    pub instance: Option<Instance>,
}

/// Seconds between attempts at something whose failure has no back-off of its own.
const RETRY_SECONDS: i64 = 10;

fn after(seconds: i64) -> Timestamp {
    Timestamp::now() + jiff::SignedDuration::from_secs(seconds)
}

impl Job {
    fn sandbox_ips(&self) -> &[String] {
        self.sandbox.as_ref().map_or(&[], |sandbox| &sandbox.ips)
    }

    /// Volumes from nothing, or brought up to date.
    pub async fn mount_volumes(self) -> Result<(), String> {
        let references = self.objects.references().await?;
        let facts = self.shared.facts(&self.pod, self.sandbox_ips());
        let context = volume::Context {
            pod: &self.pod,
            references: &references,
            facts: &facts,
            tokens: &self.shared.tokens,
            client: &self.shared.client,
            local_volumes: self.shared.config.local_volumes_dir.as_deref(),
        };
        volume::set_up(&self.shared.config, &context).await
    }

    /// What the runtime calls the pod's runtime class.
    async fn runtime_handler(&self) -> Result<String, String> {
        let Some(name) = pod::spec(&self.pod).runtime_class_name.as_deref().filter(|name| !name.is_empty()) else {
            return Ok(String::new());
        };
        let classes: Api<RuntimeClass> = Api::all(self.shared.client.clone());
        let class = classes.get(name).await;
        class.map(|class| class.handler).map_err(|error| format!("failed to get runtime class {name:?}: {error}"))
    }

    pub async fn create_sandbox(self, attempt: u32) -> Result<Sandbox, String> {
        let shared = &self.shared;
        cgroup::create(&self.pod, &shared.config);
        let runtime_handler = self.runtime_handler().await?;
        if userns::wanted(&self.pod) {
            let status = shared.runtime_status.read();
            userns::supported(status.as_ref().map(|status| &status.runtime_handlers[..]), &runtime_handler)?;
        }
        let users = shared.users.of(&self.pod)?;
        let config = convert::sandbox(&self.pod, &shared.config, attempt, &shared.host_resolv(), users.as_ref())?;
        std::fs::create_dir_all(&config.log_directory).map_err(|e| format!("create {}: {e}", config.log_directory))?;
        let request = v1::RunPodSandboxRequest { config: Some(config), runtime_handler };
        let id = shared.cri.run_pod_sandbox(request).await.map_err(|error| error.to_string())?.pod_sandbox_id;
        let status = shared.cri.sandbox_status(&id).await.map_err(|error| error.to_string())?;
        Ok(Sandbox::from_cri(status))
    }

    pub async fn stop_sandbox(self, id: String) -> Result<(), CriError> {
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: id };
        match self.shared.cri.stop_pod_sandbox(request).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Image, configuration, create, start, postStart hook.
    pub async fn start(self, name: String, attempt: u32, target_id: Option<String>) -> Result<Instance, StartError> {
        let pod = self.pod.clone();
        let Some(member) = pod::member(&pod, &name) else {
            return Err(self.failed("CreateContainerConfigError", format!("container {name} is not in the pod"), None));
        };
        let references = self.objects.references().await;
        let references = references.map_err(|error| self.config_error(&member, error))?;
        let sandbox_id = self.sandbox.as_ref().map(|sandbox| sandbox.id.clone()).unwrap_or_default();
        let users = self.shared.users.of(&pod).map_err(|error| self.config_error(&member, error))?;
        let sandbox = convert::sandbox(&pod, &self.shared.config, 0, &self.shared.host_resolv(), users.as_ref())
            .map_err(|error| self.config_error(&member, error))?;
        let (image, volumes) = tokio::select! {
            images = self.images(&member, &references, &sandbox) => images?,
            () = self.stop.cancelled() => {
                return Err(self.failed("ContainerCreating", String::new(), None));
            }
        };
        let config = self
            .container_config(&member, attempt, &references, (&image, &volumes), target_id.as_deref(), users.as_ref())
            .await
            .map_err(|error| self.config_error(&member, error))?;
        if self.stop.is_cancelled() {
            return Err(self.failed("ContainerCreating", String::new(), None));
        }
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox_id.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox),
        };
        let warn = |reason: &str, message: String| self.shared.container_event(&pod, &member, Warning, reason, message);
        let tell = |reason: &str, message: String| self.shared.container_event(&pod, &member, Normal, reason, message);
        let id = match self.shared.cri.create_container(request).await {
            Ok(created) => created.container_id,
            Err(error) => {
                warn("Failed", format!("Error: {error}"));
                return Err(self.failed("CreateContainerError", error.to_string(), None));
            }
        };
        tell("Created", format!("Container created: {name}"));
        if let Err(error) =
            self.shared.cri.start_container(v1::StartContainerRequest { container_id: id.clone() }).await
        {
            warn("Failed", format!("Error: {error}"));
            let instance = self.instance(&id, &sandbox_id).await.ok();
            return Err(self.failed("RunContainerError", error.to_string(), instance));
        }
        tell("Started", format!("Container started: {name}"));
        let hook = member.container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref());
        if let Some(hook) = hook
            && let Err(error) = self.hook(hook, &id, &member, Duration::from_secs(86_400)).await
        {
            tracing::warn!(pod = pod::full_name(&pod), container = name, error, "postStart hook failed");
            warn("FailedPostStartHook", "PostStartHook failed".to_owned());
            let grace = pod::spec(&pod).termination_grace_period_seconds.unwrap_or(30);
            let instance = match self.instance(&id, &sandbox_id).await {
                Ok(instance) => self.clone().kill(instance, grace, KillReason::PostStart).await,
                Err(_) => None,
            };
            return Err(self.failed("PostStartHookError", error, instance));
        }
        self.instance(&id, &sandbox_id).await.map_err(|error| self.failed("RunContainerError", error.to_string(), None))
    }

    /// Brings the cgroups up to date and returns the new figures by container id.
    pub async fn resize(self, outdated: Vec<Outdated>) -> Result<Vec<(String, v1::LinuxContainerResources)>, String> {
        // No child may have more than its parent at any time: the parent is first when it grows, and last
        // when it shrinks, so the first attempt may fail.
        let _ = cgroup::update(&self.pod, &self.shared.config);
        let mut done = Vec::new();
        for Outdated { id, name, wanted, .. } in outdated {
            let linux = Some(wanted.clone());
            let request = v1::UpdateContainerResourcesRequest { container_id: id.clone(), linux, ..Default::default() };
            match self.shared.cri.update_container_resources(request).await {
                Err(error) if !error.is_not_found() => return Err(format!("resize container {name}: {error}")),
                _ => done.push((id, wanted)),
            }
        }
        cgroup::update(&self.pod, &self.shared.config).map(|()| done)
    }

    async fn instance(&self, id: &str, sandbox: &str) -> Result<Instance, CriError> {
        Ok(Instance::from_cri(self.shared.cri.container_status(id).await?, sandbox))
    }

    fn failed(&self, reason: &str, message: String, instance: Option<Instance>) -> StartError {
        StartError { reason: reason.to_owned(), message, retry_at: after(RETRY_SECONDS), instance }
    }

    fn config_error(&self, member: &Member<'_>, message: String) -> StartError {
        self.shared.container_event(&self.pod, member, Warning, "Failed", format!("Error: {message}"));
        self.failed("CreateContainerConfigError", message, None)
    }

    /// The container's image, and those of the image volumes it mounts.
    async fn images(
        &self,
        member: &Member<'_>,
        references: &References,
        sandbox: &v1::PodSandboxConfig,
    ) -> Result<(crate::images::Present, volume::Images), StartError> {
        let container = &member.container;
        let own = (container.image.as_deref().unwrap_or_default(), container.image_pull_policy.as_deref());
        let mut volumes = volume::Images::new();
        for volume in pod::spec(&self.pod).volumes.iter().flatten() {
            let Some(source) = &volume.image else { continue };
            if container.volume_mounts.iter().flatten().any(|mount| mount.name == volume.name) {
                let asked = (source.reference.as_deref().unwrap_or_default(), source.pull_policy.as_deref());
                let found = self.image(member, asked, references, sandbox).await?;
                volumes.insert(volume.name.clone(), found.reference);
            }
        }
        Ok((self.image(member, own, references, sandbox).await?, volumes))
    }

    async fn image(
        &self,
        member: &Member<'_>,
        (image, policy): (&str, Option<&str>),
        references: &References,
        sandbox: &v1::PodSandboxConfig,
    ) -> Result<crate::images::Present, StartError> {
        let secrets = pod::spec(&self.pod).image_pull_secrets.iter().flatten();
        let mut found = Vec::new();
        for secret in secrets {
            match references.secret(&secret.name) {
                Ok(secret) => found.push(secret.clone()),
                Err(_) => {
                    let text = format!(
                        "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                        secret.name
                    );
                    self.shared.event(&self.pod, Warning, "FailedToRetrieveImagePullSecret", text);
                }
            }
        }
        let (shared, pod) = (&self.shared, &self.pod);
        let report = |progress: Progress| match progress {
            Progress::Pulling => {
                shared.container_event(pod, member, Normal, "Pulling", format!("Pulling image \"{image}\""))
            }
            Progress::Pulled(text) => shared.container_event(pod, member, Normal, "Pulled", text),
            Progress::Failed(reason, text) => shared.container_event(pod, member, Warning, reason, text),
            Progress::BackOff => {
                shared.container_event(pod, member, Normal, "BackOff", format!("Back-off pulling image \"{image}\""));
            }
        };
        let uid = pod::uid(pod);
        shared.images.ensure(uid, image, policy, &found, sandbox, &report).await.map_err(|error| {
            let ImageError { reason, message } = error;
            let retry_at = match reason {
                // Soon afterwards the state tells that it is waiting.
                "ErrImagePull" => after(1),
                _ => shared.images.retry_at(uid, image).unwrap_or_else(|| after(RETRY_SECONDS)),
            };
            StartError { reason: reason.to_owned(), message, retry_at, instance: None }
        })
    }

    async fn container_config(
        &self,
        member: &Member<'_>,
        attempt: u32,
        references: &References,
        (image, images): (&crate::images::Present, &volume::Images),
        target_id: Option<&str>,
        users: Option<&v1::UserNamespace>,
    ) -> Result<v1::ContainerConfig, String> {
        let (shared, pod) = (&self.shared, &self.pod);
        security::check_non_root(pod, &member.container, &image.user)?;
        shared.services.synced().await;
        let links = pod::spec(pod).enable_service_links != Some(false);
        let services = env::linked_services(&shared.services.store().list(), pod::namespace(pod), links);
        let facts = shared.facts(pod, self.sandbox_ips());
        let environment = env::build(&env::Input {
            pod,
            container: &member.container,
            references,
            services: &services,
            facts: &facts,
            volume: &|name| volume::path(&shared.config, pod, name),
        })?;
        for (source, keys) in environment.skipped {
            let text = format!(
                "Keys [{}] from the EnvFrom {source} were skipped since they are considered invalid environment variable names.",
                keys.join(", ")
            );
            shared.event(pod, Warning, "InvalidEnvironmentVariableNames", text);
        }
        let host_file = std::fs::read_to_string(&shared.config.hosts_file).unwrap_or_default();
        let hosts = dns::hosts(pod, &facts.pod_ips, &shared.config.cluster_domain, &host_file);
        let mounts = volume::mounts(&shared.config, pod, member, &environment.variables, images, &hosts)?;
        let log_directory = convert::log_directory(&shared.config, pod).join(member.name());
        std::fs::create_dir_all(&log_directory).map_err(|e| format!("create {}: {e}", log_directory.display()))?;
        let prepared = convert::Prepared {
            attempt,
            image: &image.reference,
            image_user: &image.user,
            environment: &environment.variables,
            mounts,
            users,
            devices: volume::devices(&shared.config, pod, member)?,
            target_id,
            node_memory: shared.node_memory(),
        };
        Ok(convert::container(pod, member, &shared.config, prepared))
    }

    /// preStop hook, TERM, and KILL when the grace is over. A new call with less grace may overtake it.
    pub async fn kill(self, instance: Instance, grace: i64, reason: KillReason) -> Option<Instance> {
        let began = Instant::now();
        let mut left = grace;
        if let Some(member) = pod::member(&self.pod, &instance.name) {
            self.shared.container_event(&self.pod, &member, Normal, "Killing", reason.message(&instance.name));
            let hook = member.container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref());
            if let Some(hook) = hook.filter(|_| grace > 0) {
                let limit = Duration::from_secs(grace as u64);
                if let Err(error) = self.hook(hook, &instance.id, &member, limit).await {
                    tracing::warn!(
                        pod = pod::full_name(&self.pod),
                        container = instance.name,
                        error,
                        "preStop hook failed"
                    );
                    self.shared.container_event(&self.pod, &member, Warning, "FailedPreStopHook", "PreStopHook failed");
                }
                left -= began.elapsed().as_secs() as i64;
            }
        }
        if let Err(error) = self.shared.cri.stop_container(&instance.id, left.max(MINIMUM_GRACE)).await {
            tracing::warn!(pod = pod::full_name(&self.pod), container = instance.name, %error, "cannot stop container");
            if let Some(member) = pod::member(&self.pod, &instance.name) {
                let text = format!("error killing pod: failed to \"KillContainer\" for \"{}\": {error}", instance.name);
                self.shared.container_event(&self.pod, &member, Warning, "FailedKillPod", text);
            }
        }
        self.instance(&instance.id, &instance.sandbox).await.ok()
    }

    async fn hook(
        &self,
        hook: &LifecycleHandler,
        id: &str,
        member: &Member<'_>,
        limit: Duration,
    ) -> Result<(), String> {
        let ips = self.shared.facts(&self.pod, self.sandbox_ips()).pod_ips;
        let target = Target {
            cri: self.shared.cri.clone(),
            container_id: id.to_owned(),
            container: Arc::new(member.container.clone().into_owned()),
            pod_ip: ips.first().cloned().unwrap_or_default(),
        };
        let run = async {
            if let Some(exec) = &hook.exec {
                target.run(exec.command.clone().unwrap_or_default(), limit).await
            } else if let Some(get) = &hook.http_get {
                if let Some(host) = target.tell(get).await? {
                    let text =
                        format!("request to HTTPS lifecycle hook {host} got HTTP response, retry with HTTP succeeded");
                    self.shared.event(&self.pod, Warning, "LifecycleHTTPFallback", text);
                }
                Ok(())
            } else if let Some(sleep) = &hook.sleep {
                tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0) as u64)).await;
                Ok(())
            } else {
                Err("invalid handler".to_owned())
            }
        };
        match tokio::time::timeout(limit, run).await {
            Ok(result) => result,
            Err(_) => Err(format!("hook did not complete within {} seconds", limit.as_secs())),
        }
    }

    /// Gives back what the pod had on this node, but its dead containers and logs.
    pub async fn tear_down(self) -> Result<(), String> {
        let (shared, pod) = (self.shared.clone(), self.pod.clone());
        let uid = pod::uid(&pod).to_owned();
        self.shared.images.forget_pod(&uid);
        self.shared.tokens.forget(&uid);
        let work = tokio::task::spawn_blocking(move || {
            let result = volume::tear_down(&shared.config, pod::uid(&pod));
            cgroup::remove(&pod, &shared.config);
            result.inspect(|()| shared.users.release(pod::uid(&pod)))
        });
        work.await.map_err(|error| error.to_string())?
    }

    /// Removes what is left in the runtime and on disk once the API has forgotten the pod.
    pub async fn erase(self, sandboxes: Vec<String>, containers: Vec<String>) {
        for container_id in containers {
            let request = v1::RemoveContainerRequest { container_id };
            if let Err(error) = self.shared.cri.remove_container(request).await {
                tracing::debug!(%error, "container not removed");
            }
        }
        for id in sandboxes {
            let _ = self.clone().stop_sandbox(id.clone()).await;
            let request = v1::RemovePodSandboxRequest { pod_sandbox_id: id };
            if let Err(error) = self.shared.cri.remove_pod_sandbox(request).await {
                tracing::debug!(%error, "sandbox not removed");
            }
        }
        let logs = convert::log_directory(&self.shared.config, &self.pod);
        let _ = tokio::fs::remove_dir_all(logs).await;
    }
}

/// Whether a start has to wait for a hook before its container counts as running.
pub fn has_post_start(member: &Member<'_>) -> bool {
    let hook = member.container.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.post_start.is_some());
    hook && member.kind != Kind::Ephemeral
}
