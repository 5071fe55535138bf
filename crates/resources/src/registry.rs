//! Every built-in kind, one line each. Adding a kind is one file and one line here.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::kinds::{
    admissionregistration, apps, authentication, authorization, autoscaling, batch, certificates, coordination, core,
    discovery, events, flowcontrol, networking, node, policy, rbac, scheduling, storage,
};
use crate::resource::{Adapter, Kind, Resource};

/// The built-in kinds: served resources, and the kinds that are only bodies of subresources.
pub struct Registry {
    served: Vec<&'static dyn Resource>,
    by_gvr: HashMap<(&'static str, &'static str, &'static str), &'static dyn Resource>,
    by_gvk: HashMap<(&'static str, &'static str, &'static str), &'static dyn Resource>,
}

pub fn registry() -> &'static Registry {
    static REGISTRY: LazyLock<Registry> = LazyLock::new(|| {
        Registry::new(vec![
            kind::<core::Binding>(),
            kind::<core::ComponentStatus>(),
            kind::<core::ConfigMap>(),
            kind::<core::Endpoints>(),
            kind::<core::Event>(),
            kind::<core::LimitRange>(),
            kind::<core::Namespace>(),
            kind::<core::Node>(),
            kind::<core::PersistentVolume>(),
            kind::<core::PersistentVolumeClaim>(),
            kind::<core::Pod>(),
            kind::<core::PodTemplate>(),
            kind::<core::ReplicationController>(),
            kind::<core::ResourceQuota>(),
            kind::<core::Secret>(),
            kind::<core::Service>(),
            kind::<core::ServiceAccount>(),
            kind::<admissionregistration::MutatingWebhookConfiguration>(),
            kind::<admissionregistration::ValidatingAdmissionPolicy>(),
            kind::<admissionregistration::ValidatingAdmissionPolicyBinding>(),
            kind::<admissionregistration::ValidatingWebhookConfiguration>(),
            kind::<apps::ControllerRevision>(),
            kind::<apps::DaemonSet>(),
            kind::<apps::Deployment>(),
            kind::<apps::ReplicaSet>(),
            kind::<apps::StatefulSet>(),
            kind::<authentication::SelfSubjectReview>(),
            kind::<authentication::TokenRequest>(),
            kind::<authentication::TokenReview>(),
            kind::<authorization::LocalSubjectAccessReview>(),
            kind::<authorization::SelfSubjectAccessReview>(),
            kind::<authorization::SelfSubjectRulesReview>(),
            kind::<authorization::SubjectAccessReview>(),
            kind::<autoscaling::Scale>(),
            kind::<autoscaling::HorizontalPodAutoscaler>(),
            kind::<autoscaling::v1::HorizontalPodAutoscaler>(),
            kind::<batch::CronJob>(),
            kind::<batch::Job>(),
            kind::<certificates::CertificateSigningRequest>(),
            kind::<coordination::Lease>(),
            kind::<discovery::EndpointSlice>(),
            kind::<events::Event>(),
            kind::<flowcontrol::FlowSchema>(),
            kind::<flowcontrol::PriorityLevelConfiguration>(),
            kind::<networking::IPAddress>(),
            kind::<networking::Ingress>(),
            kind::<networking::IngressClass>(),
            kind::<networking::NetworkPolicy>(),
            kind::<networking::ServiceCIDR>(),
            kind::<node::RuntimeClass>(),
            kind::<policy::Eviction>(),
            kind::<policy::PodDisruptionBudget>(),
            kind::<rbac::ClusterRole>(),
            kind::<rbac::ClusterRoleBinding>(),
            kind::<rbac::Role>(),
            kind::<rbac::RoleBinding>(),
            kind::<scheduling::PriorityClass>(),
            kind::<storage::CSIDriver>(),
            kind::<storage::CSINode>(),
            kind::<storage::CSIStorageCapacity>(),
            kind::<storage::StorageClass>(),
            kind::<storage::VolumeAttachment>(),
            kind::<storage::VolumeAttributesClass>(),
        ])
    });
    &REGISTRY
}

/// The registry lives as long as the process, and so do its entries.
fn kind<K: Kind>() -> &'static dyn Resource {
    Box::leak(Box::new(Adapter::<K>::new()))
}

impl Registry {
    fn new(kinds: Vec<&'static dyn Resource>) -> Self {
        let served: Vec<_> = kinds.iter().copied().filter(|kind| !kind.facts().plural.is_empty()).collect();
        let by_gvr = served
            .iter()
            .map(|resource| {
                let facts = resource.facts();
                ((facts.group, facts.version, facts.plural), *resource)
            })
            .collect();
        let by_gvk = kinds
            .iter()
            .map(|resource| {
                let facts = resource.facts();
                ((facts.group, facts.version, facts.kind), *resource)
            })
            .collect();
        Registry { served, by_gvr, by_gvk }
    }

    /// Every resource with a path of its own.
    pub fn all(&self) -> &[&'static dyn Resource] {
        &self.served
    }

    pub fn by_gvr(&self, group: &str, version: &str, plural: &str) -> Option<&'static dyn Resource> {
        self.by_gvr.get(&(group, version, plural)).copied()
    }

    /// Finds also the kinds that are only bodies of subresources.
    pub fn by_gvk(&self, group: &str, version: &str, kind: &str) -> Option<&'static dyn Resource> {
        self.by_gvk.get(&(group, version, kind)).copied()
    }

    /// The resource whose storage this one shares; itself for most.
    pub fn storage_of(&self, resource: &'static dyn Resource) -> &'static dyn Resource {
        resource
            .conversion()
            .and_then(|conversion| self.by_gvk(conversion.group, conversion.version, conversion.kind))
            .unwrap_or(resource)
    }
}
