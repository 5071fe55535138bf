//! What goes on beside the pods: runtime events, listings, log rotation, image removal.

use crate::logs;
use crate::pods::Pods;
use crate::state::RunState;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

const LOG_CHECK: Duration = Duration::from_secs(10);
/// How soon a resize that had no room tries again.
const RESIZE_RETRY: Duration = Duration::from_secs(3);

/// Pods that ended count no more in their class after this long at most, as upstream.
const WEIGH: Duration = Duration::from_secs(60);

/// How often a runtime is asked that tells no events (containerd before 1.7), as upstream does.
const POLL: Duration = Duration::from_secs(1);

/// Feeds runtime events to the pods; after each interruption compares everything once.
pub async fn events(pods: Arc<Pods>) {
    let mut delay = Duration::from_millis(50);
    loop {
        match pods.shared().cri.events().await {
            Ok(mut stream) => {
                // What happened before the stream began is in the listing.
                pods.relist().await;
                delay = Duration::from_millis(50);
                loop {
                    match stream.message().await {
                        Ok(Some(event)) => pods.observe(event).await,
                        Ok(None) => break,
                        Err(error) if error.code() == tonic::Code::Unimplemented => return poll(pods).await,
                        Err(error) => {
                            tracing::warn!(error = error.message(), "runtime event stream broke");
                            break;
                        }
                    }
                }
            }
            Err(error) if error.is_unimplemented() => return poll(pods).await,
            Err(error) => tracing::warn!(%error, "no runtime event stream"),
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(Duration::from_secs(5));
    }
}

async fn poll(pods: Arc<Pods>) {
    tracing::info!("the runtime tells no events; its pods are listed every {POLL:?}");
    pods.relist().await;
    let mut known = BTreeMap::new();
    loop {
        match pods.shared().cri.states().await {
            Ok(states) => {
                let uids: BTreeSet<&String> = known.keys().chain(states.keys()).collect();
                for uid in uids.into_iter().filter(|uid| known.get(*uid) != states.get(*uid)) {
                    pods.relist_pod(uid).await;
                }
                known = states;
            }
            Err(error) => tracing::warn!(%error, "cannot list the runtime's pods"),
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The safety net under the event stream.
pub async fn relist(pods: Arc<Pods>) {
    loop {
        tokio::time::sleep(pods.shared().config.relist_interval).await;
        pods.relist().await;
    }
}

/// Resizes without room, once other pods have made some.
pub async fn resizes(pods: Arc<Pods>) {
    loop {
        tokio::time::sleep(RESIZE_RETRY).await;
        pods.retry_resizes().await;
    }
}

pub async fn weigh_classes(pods: Arc<Pods>) {
    loop {
        pods.weigh_classes().await;
        tokio::time::sleep(WEIGH).await;
    }
}

pub async fn rotate_logs(pods: Arc<Pods>) {
    let (bytes, files) = (pods.shared().config.log_max_bytes, pods.shared().config.log_max_files);
    loop {
        tokio::time::sleep(LOG_CHECK).await;
        for snapshot in pods.snapshots() {
            for instance in snapshot.runtime.instances.iter().filter(|i| i.state == RunState::Running) {
                if let Err(error) =
                    logs::rotate(&pods.shared().cri, &instance.id, &instance.log_path, bytes, files).await
                {
                    tracing::warn!(error, "log not rotated");
                }
            }
        }
    }
}

pub async fn collect_images(pods: Arc<Pods>) {
    let gc = pods.shared().config.image_gc;
    loop {
        tokio::time::sleep(gc.interval).await;
        match pods.shared().images.collect(gc, &pods.used_images()).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "removed unused images"),
            Err(error) => tracing::warn!(error, "image garbage collection failed"),
        }
    }
}
