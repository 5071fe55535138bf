//! Packs the prose of the built-in types, which OpenAPI and `explain` show, out of k8s-openapi's schemas.
//!
//! Done at build time, since the code that builds those schemas is megabytes and their prose, packed, is not.

use std::io::Write as _;

use k8s_openapi::{api, apimachinery::pkg::apis::meta::v1 as meta};
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value, json};

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

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let prose: Map<String, Value> = all().into_iter().map(|(name, schema)| (name, prose(&schema))).collect();
    let text = serde_json::to_vec(&prose).expect("prose is JSON");
    let mut packed = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(&text).expect("writing to memory");
    let path = std::path::Path::new(&std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("descriptions");
    std::fs::write(path, packed.finish().expect("writing to memory")).expect("write the packed descriptions");
}

/// `["of the type", {"field": "of the field"}]`.
fn prose(schema: &Value) -> Value {
    let fields = schema["properties"].as_object().into_iter().flatten();
    let fields: Map<_, _> = fields.map(|(name, field)| (name.clone(), field["description"].clone())).collect();
    json!([schema["description"], fields])
}

/// Schemas by type name.
fn all() -> Map<String, Value> {
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
