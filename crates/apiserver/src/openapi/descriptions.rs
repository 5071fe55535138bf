//! The prose of the built-in types, from k8s-openapi's schemas.

use k8s_openapi::{api, apimachinery::pkg::apis::meta::v1 as meta};
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value};

/// Adds the types of each module to the generator.
macro_rules! add {
    ($generator:ident: $($module:tt { $($kind:ident),+ $(,)? })+) => {
        $($(one!($generator, $module, $kind);)+)+
    };
}

macro_rules! one {
    ($generator:ident, [$($module:tt)+], $kind:ident) => {
        $generator.subschema_for::<$($module)+::$kind>()
    };
}

/// Schemas by type name; only their descriptions are of interest. Built per call: it is large.
pub fn all() -> Map<String, Value> {
    let mut generator: SchemaGenerator = SchemaSettings::openapi3().into_generator();
    add! { generator:
        [api::core::v1] {
            Binding, ComponentStatus, ConfigMap, Endpoints, Event, LimitRange, Namespace, Node, PersistentVolume,
            PersistentVolumeClaim, Pod, PodTemplate, ReplicationController, ResourceQuota, Secret, Service, ServiceAccount,
        }
        [api::admissionregistration::v1] {
            MutatingWebhookConfiguration, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
            ValidatingWebhookConfiguration,
        }
        [api::apps::v1] { ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet }
        [api::authentication::v1] { SelfSubjectReview, TokenRequest, TokenReview }
        [api::authorization::v1] {
            LocalSubjectAccessReview, SelfSubjectAccessReview, SelfSubjectRulesReview, SubjectAccessReview,
        }
        [api::autoscaling::v1] { HorizontalPodAutoscaler, Scale }
        [api::autoscaling::v2] { HorizontalPodAutoscaler }
        [api::batch::v1] { CronJob, Job }
        [api::certificates::v1] { CertificateSigningRequest }
        [api::coordination::v1] { Lease }
        [api::discovery::v1] { EndpointSlice }
        [api::events::v1] { Event }
        [api::flowcontrol::v1] { FlowSchema, PriorityLevelConfiguration }
        [api::networking::v1] { IPAddress, Ingress, IngressClass, NetworkPolicy, ServiceCIDR }
        [api::node::v1] { RuntimeClass }
        [api::policy::v1] { Eviction, PodDisruptionBudget }
        [api::rbac::v1] { ClusterRole, ClusterRoleBinding, Role, RoleBinding }
        [api::scheduling::v1] { PriorityClass }
        [api::storage::v1] {
            CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment, VolumeAttributesClass,
        }
        [meta] { DeleteOptions, ListMeta, Patch, Status }
    }
    generator.take_definitions(true)
}
