//! Measures now and then, and does what follows: reclaims, and evicts one pod at a time.
//!
//! What is to be done is decided in [`super::state`] and [`super::rank`]. Idle, this costs a look at
//! /proc and two file systems; pods are measured only if one has a limit on disk or the node is short.

use super::rank::{self, Candidate};
use super::signals::{self, Levels};
use super::state::{Pressure, State};
use super::threshold::{Signal, Threshold};
use super::usage;
use crate::pod;
use crate::pods::Pods;
use crate::worker::{Message, Snapshot, Verdict};
use client::EventType::Warning;
use jiff::Timestamp;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const INTERVAL: Duration = Duration::from_secs(10);
/// What a pod gets to end itself when the node cannot wait.
const IMMEDIATE_GRACE: i64 = 1;

pub struct Manager {
    pods: Arc<Pods>,
    imagefs: PathBuf,
    state: State,
}

impl Manager {
    /// Measures once, so that the node registers with the conditions it has.
    pub async fn start(pods: Arc<Pods>) -> Manager {
        let config = &pods.shared().config;
        let info = pods.shared().cri.image_fs_info(cri::v1::ImageFsInfoRequest {}).await.unwrap_or_default();
        let mount = info.image_filesystems.first().and_then(|fs| fs.fs_id.clone()).map(|id| id.mountpoint.into());
        let imagefs = mount.unwrap_or_else(|| config.root_dir.clone());
        let mut manager = Manager { pods, imagefs, state: State::default() };
        manager.observe();
        manager
    }

    pub async fn run(mut self) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            self.synchronize().await;
        }
    }

    fn measure(&self) -> Levels {
        signals::measure(&self.pods.shared().config.root_dir, &self.imagefs)
    }

    /// The threshold to be acted on first, if any; tells everybody the conditions.
    fn observe(&mut self) -> (Option<Threshold>, Levels) {
        let levels = self.measure();
        let eviction = &self.pods.shared().config.eviction;
        let first = self.state.observe(eviction, &levels, Timestamp::now()).first().map(|first| (*first).clone());
        self.pods.shared().set_pressures(self.state.pressures());
        (first, levels)
    }

    async fn synchronize(&mut self) {
        let (first, levels) = self.observe();
        let active: Vec<Snapshot> = self.pods.snapshots().into_iter().filter(|snapshot| !snapshot.ending).collect();
        if self.enforce_disk_limits(&active).await {
            return;
        }
        let Some(threshold) = first else { return };
        let resource = rank::resource(threshold.signal);
        self.pods.shared().node_event(Warning, "EvictionThresholdMet", format!("Attempting to reclaim {resource}"));
        if Pressure::of(threshold.signal) == Pressure::Disk && self.reclaim(threshold.signal).await {
            return;
        }
        self.evict_one(&threshold, &levels, active).await;
    }

    /// Evicts the pods that use more of the disk than their own limits allow.
    async fn enforce_disk_limits(&self, active: &[Snapshot]) -> bool {
        let limited: Vec<Snapshot> = active.iter().filter(|s| rank::has_disk_limits(&s.pod)).cloned().collect();
        if limited.is_empty() {
            return false;
        }
        let usages = usage::collect(&self.pods, &limited).await;
        let mut any = false;
        for (snapshot, usage) in limited.iter().zip(usages) {
            let exceeded = usage.and_then(|usage| rank::exceeded(&snapshot.pod, &usage));
            if let Some(message) = exceeded.filter(|_| !pod::is_critical(&snapshot.pod)) {
                self.evict(snapshot, IMMEDIATE_GRACE, message, false).await;
                any = true;
            }
        }
        any
    }

    /// Frees what nobody uses; true if that was enough.
    async fn reclaim(&self, signal: Signal) -> bool {
        if matches!(signal, Signal::NodefsAvailable | Signal::NodefsInodesFree) || same_device(self) {
            self.pods.send_all(|| Message::DropDead).await;
        }
        match self.pods.shared().images.remove_unused(&self.pods.used_images()).await {
            Ok(removed) => tracing::info!(removed, "removed unused images to reclaim disk"),
            Err(error) => tracing::warn!(error, "cannot remove unused images"),
        }
        let levels = self.measure();
        !self.pods.shared().config.eviction.thresholds.iter().any(|threshold| threshold.is_met(&levels, false))
    }

    async fn evict_one(&self, threshold: &Threshold, levels: &Levels, active: Vec<Snapshot>) {
        let usages = usage::collect(&self.pods, &active).await;
        let candidates: Vec<Candidate> =
            active.iter().zip(usages).map(|(snapshot, usage)| Candidate { pod: snapshot.pod.clone(), usage }).collect();
        let Some(victim) = rank::order(threshold.signal, &candidates).first().copied() else {
            return tracing::warn!(signal = %threshold.signal, "the node is short, and no pod may be evicted");
        };
        let maximum = self.pods.shared().config.eviction.max_pod_grace;
        let own = pod::spec(&victim.pod).termination_grace_period_seconds.unwrap_or(30);
        let grace = match threshold.is_hard() {
            true => IMMEDIATE_GRACE,
            false if maximum < 0 => own,
            false => own.min(maximum),
        };
        let message = rank::message(threshold, levels, victim);
        let snapshot = active.iter().find(|snapshot| pod::uid(&snapshot.pod) == pod::uid(&victim.pod));
        if let Some(snapshot) = snapshot {
            self.evict(snapshot, grace, message, true).await;
        }
    }

    async fn evict(&self, snapshot: &Snapshot, grace: i64, message: String, disruption: bool) {
        let pod = &snapshot.pod;
        tracing::warn!(pod = pod::full_name(pod), message, "evicting");
        self.pods.shared().event(pod, Warning, "Evicted", message.clone());
        let verdict = Verdict { reason: "Evicted".to_owned(), message, disruption };
        self.pods.send(pod::uid(pod), Message::Evict { verdict, grace }).await;
    }
}

/// Images and pods share a file system, so that either's garbage helps both.
fn same_device(manager: &Manager) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let device = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.dev()).ok();
    device(&manager.imagefs) == device(&manager.pods.shared().config.root_dir)
}
