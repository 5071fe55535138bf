//! Kinds that several components watch. Their decoders and informers are compiled here, once, and not again in each
//! component's crate: generic code is shared with the crates below, never with those beside.

use k8s_openapi::api::apps::v1::{DaemonSet, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{
    ConfigMap, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController, Secret, Service,
    ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Api;

use crate::informer::{Informers, Object};

/// Nobody need call it: that it names the kinds is what makes the compiler put them into this crate.
pub fn compile(informers: &Informers) {
    compile_for::<ConfigMap>(informers);
    compile_for::<DaemonSet>(informers);
    compile_for::<EndpointSlice>(informers);
    compile_for::<Namespace>(informers);
    compile_for::<Node>(informers);
    compile_for::<PersistentVolume>(informers);
    compile_for::<PersistentVolumeClaim>(informers);
    compile_for::<Pod>(informers);
    compile_for::<ReplicaSet>(informers);
    compile_for::<ReplicationController>(informers);
    compile_for::<Secret>(informers);
    compile_for::<Service>(informers);
    compile_for::<ServiceAccount>(informers);
    compile_for::<ServiceCIDR>(informers);
    compile_for::<StatefulSet>(informers);
    compile_for::<StorageClass>(informers);
}

fn compile_for<K: Object<DynamicType = ()>>(informers: &Informers) {
    let informer = informers.get::<K>();
    let _ = (informer.subscribe().try_recv(), informer.store().list());
    let api: Api<K> = Api::all(informers.client().clone());
    tokio::spawn(async move { api.get_opt("").await.is_ok() });
}
