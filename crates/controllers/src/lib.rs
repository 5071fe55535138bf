//! The controllers: each in its own file, each a `reconcile(key)` that compares what is with what should be and writes the
//! difference. They know only the Kubernetes API: nothing here would notice if it ran against a stock kube-apiserver.
//!
//! To add one: a file that implements [`framework::Controller`], and a line in [`registry`].

pub mod common;
pub mod framework;

pub mod certificate_signing;
pub mod clusterrole_aggregation;
pub mod cron_job;
pub mod daemon_set;
pub mod deployment;
pub mod disruption;
pub mod endpoints;
pub mod endpointslice;
pub mod ephemeral_volume;
pub mod garbage;
pub mod job;
pub mod local_path;
pub mod namespace;
pub mod node_ipam;
pub mod node_lifecycle;
pub mod persistent_volume;
pub mod pod_gc;
pub mod replicas;
pub mod resource_quota;
pub mod root_ca;
pub mod service_account;
pub mod service_cidrs;
pub mod stateful_set;
pub mod storage_protection;
pub mod ttl_after_finished;

use client::Informers;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use framework::Config;
use framework::{Entry, entry};

/// Every controller there is.
pub fn registry() -> Vec<Entry> {
    vec![
        entry::<namespace::NamespaceController>(),
        entry::<service_account::ServiceAccountController>(),
        entry::<root_ca::RootCaPublisher>(),
        entry::<certificate_signing::CertificateSigning>(),
        entry::<clusterrole_aggregation::ClusterRoleAggregation>(),
        entry::<deployment::DeploymentController>(),
        entry::<replicas::ReplicaSetController>(),
        entry::<replicas::ReplicationManager>(),
        entry::<job::JobController>(),
        entry::<cron_job::CronJobController>(),
        entry::<stateful_set::StatefulSetController>(),
        entry::<daemon_set::DaemonSetController>(),
        entry::<disruption::DisruptionController>(),
        entry::<resource_quota::ResourceQuotaController>(),
        entry::<ttl_after_finished::TtlAfterFinished>(),
        entry::<endpoints::EndpointsController>(),
        entry::<endpointslice::EndpointSliceController>(),
        entry::<endpointslice::mirroring::EndpointSliceMirroring>(),
        entry::<garbage::GarbageCollector>(),
        entry::<pod_gc::PodGarbageCollector>(),
        entry::<node_lifecycle::NodeLifecycle>(),
        entry::<node_lifecycle::eviction::TaintEviction>(),
        entry::<node_ipam::NodeIpam>(),
        entry::<persistent_volume::PersistentVolumeBinder>(),
        entry::<storage_protection::ClaimProtection>(),
        entry::<storage_protection::VolumeProtection>(),
        entry::<ephemeral_volume::EphemeralVolumeController>(),
        entry::<local_path::LocalPathProvisioner>(),
        entry::<service_cidrs::ServiceCidrController>(),
    ]
}

/// Runs the controllers until shut down. `informers` are shared with whatever else runs in the process under an identity
/// that may list and watch everything; writes go through `config.clients`, one identity per controller.
pub async fn run(config: Config, informers: Informers, shutdown: CancellationToken) -> anyhow::Result<()> {
    let identity = config.election.clone();
    let client = informers.client().clone();
    let lead = |leading| start(config, informers, leading);
    match identity {
        None => lead(shutdown).await,
        Some(identity) => {
            let elector =
                client::election::LeaderElector::new(client, "kube-system", "kube-controller-manager", &identity);
            return elector.run(shutdown, lead).await.map(drop);
        }
    }
    Ok(())
}

async fn start(config: Config, informers: Informers, shutdown: CancellationToken) {
    let config = std::sync::Arc::new(config);
    let mut running = JoinSet::new();
    for entry in registry().into_iter().filter(|entry| config.enables(entry.name)) {
        running.spawn((entry.run)(config.clone(), informers.clone(), shutdown.clone()));
    }
    while running.join_next().await.is_some() {}
}
