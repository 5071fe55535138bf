//! Records as CRI's answers, and CRI's filters.

use std::collections::HashMap;

use cri::v1::{
    Container as CriContainer, ContainerFilter, ContainerResources, ContainerStatus, ContainerUser, ImageSpec,
    LinuxContainerUser, LinuxPodSandboxStatus, Namespace, PodIp, PodSandbox, PodSandboxFilter, PodSandboxNetworkStatus,
    PodSandboxStatus,
};

use super::records::{ContainerRecord, PodRecord};
use super::{Runtime, container, sandbox};

pub(super) fn pod_status(record: &PodRecord) -> PodSandboxStatus {
    let config = record.config();
    let mut ips = record.ips.iter().cloned();
    PodSandboxStatus {
        id: record.id.clone(),
        metadata: config.metadata.clone(),
        state: record.state().into(),
        created_at: record.created_at,
        network: Some(PodSandboxNetworkStatus {
            ip: ips.next().unwrap_or_default(),
            additional_ips: ips.map(|ip| PodIp { ip }).collect(),
        }),
        linux: Some(LinuxPodSandboxStatus {
            namespaces: Some(Namespace { options: Some(sandbox::namespaces(config)) }),
        }),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
    }
}

pub(super) fn pod_item(record: &PodRecord) -> PodSandbox {
    let config = record.config();
    PodSandbox {
        id: record.id.clone(),
        metadata: config.metadata.clone(),
        state: record.state().into(),
        created_at: record.created_at,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
    }
}

pub(super) fn container_item(record: &ContainerRecord) -> CriContainer {
    let config = record.config();
    CriContainer {
        id: record.id.clone(),
        pod_sandbox_id: record.pod.clone(),
        metadata: config.metadata.clone(),
        image: config.image.clone(),
        image_ref: record.image_ref.clone(),
        image_id: record.image_id.clone(),
        state: record.state().into(),
        created_at: record.created_at,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
    }
}

impl Runtime {
    pub(super) fn container_status(&self, record: &ContainerRecord) -> ContainerStatus {
        let config = record.config();
        // The name that was asked for, as long as the image still has one.
        let asked = config.image.clone().unwrap_or_default();
        let image = self.images.get(&record.image_id).ok().flatten();
        let name = image.and_then(|image| image.tags.first().cloned()).unwrap_or(asked.image.clone());
        let resources = config.linux.as_ref().and_then(|linux| linux.resources.clone());
        let user = LinuxContainerUser {
            uid: record.uid.into(),
            gid: record.gid.into(),
            supplemental_groups: record.groups.iter().map(|gid| (*gid).into()).collect(),
        };
        ContainerStatus {
            id: record.id.clone(),
            metadata: config.metadata.clone(),
            state: record.state().into(),
            created_at: record.created_at,
            started_at: record.started_at,
            finished_at: record.finished_at,
            exit_code: record.exit_code,
            image: Some(ImageSpec { image: name, ..asked }),
            image_ref: record.image_ref.clone(),
            image_id: record.image_id.clone(),
            reason: record.reason.clone(),
            message: record.message.clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            mounts: config.mounts.clone(),
            log_path: record.log_path.clone(),
            resources: Some(ContainerResources { linux: resources, windows: None }),
            stop_signal: container::cri_signal(container::signal_number(&record.stop_signal)).into(),
            user: (record.started_at > 0).then_some(ContainerUser { linux: Some(user) }),
        }
    }
}

pub(super) fn has_labels(labels: &HashMap<String, String>, wanted: &HashMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

pub(super) fn pod_matches(record: &PodRecord, filter: &PodSandboxFilter) -> bool {
    record.id.starts_with(&filter.id)
        && filter.state.as_ref().is_none_or(|wanted| wanted.state() == record.state())
        && has_labels(&record.config().labels, &filter.label_selector)
}

pub(super) fn container_matches(record: &ContainerRecord, filter: &ContainerFilter) -> bool {
    record.id.starts_with(&filter.id)
        && record.pod.starts_with(&filter.pod_sandbox_id)
        && filter.state.as_ref().is_none_or(|wanted| wanted.state() == record.state())
        && has_labels(&record.config().labels, &filter.label_selector)
}
