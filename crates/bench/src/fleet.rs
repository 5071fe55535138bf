//! Nodes of the benchmark's own: real kubelets in this process, each on a runtime without processes, so that any machine
//! can run any number of pods. Only pods that ask for them are scheduled to them.
//!
//! They act under the kubeconfig's credentials, one client for all, as nothing hands out credentials for nodes here.

use std::{collections::BTreeMap, net::Ipv4Addr};

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Taint;
use kubelet::fake_cri::FakeCri;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    Context, Target,
    connection::{Call, Connection},
};

/// The key of the nodes' label and taint; the value is the run's namespace.
const RUN: &str = "isopod.dev/bench";

/// Running kubelets; dropped, they stop, and their nodes are to be removed by [`remove`].
pub struct Fleet {
    _stop: DropGuard,
    directory: tempfile::TempDir,
}

impl Fleet {
    /// Starts `count` kubelets with room for `pods` each, and waits for their nodes.
    pub async fn start(context: &Context<'_>, count: usize, pods: usize) -> anyhow::Result<Fleet> {
        let stop = CancellationToken::new();
        let directory = tempfile::tempdir().context("make a directory for the kubelets")?;
        let fleet = Fleet { _stop: stop.clone().drop_guard(), directory };
        let config = crate::target::config(context.options).await?;
        let client = kube::Client::try_from(config).context("build a client for the kubelets")?;
        for number in 0..count {
            let config = fleet.config(context.namespace.name(), number, pods);
            let (runtime, socket) = (FakeCri::default(), config.cri_endpoint.clone());
            let (serving, running) = (stop.clone(), kubelet::run(config, client.clone(), stop.clone()));
            tokio::spawn(async move { report("runtime", runtime.serve(socket.as_ref(), serving).await) });
            tokio::spawn(async move { report("kubelet", running.await) });
        }
        let mut connection = Connection::open(context.target).await?;
        let ready = async {
            while ready(&connection.call(&Call::get(nodes(context.namespace.name()))).await?)? < count {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(context.options.pod_timeout, ready)
            .await
            .context("the kubelets' nodes are not Ready")??;
        Ok(fleet)
    }

    fn config(&self, run: &str, number: usize, pods: usize) -> kubelet::Config {
        let directory = self.directory.path().join(number.to_string());
        let socket = self.directory.path().join(format!("{number}.sock")).display().to_string();
        let mut config = kubelet::Config::new(&format!("{run}-{number}"), Ipv4Addr::LOCALHOST.into(), &socket);
        config.pod_logs_dir = directory.join("logs");
        config.cgroup_mount = directory.join("no-cgroups");
        config.root_dir = directory;
        config.max_pods = u32::try_from(pods).unwrap_or(u32::MAX);
        config.labels = BTreeMap::from([(RUN.to_owned(), run.to_owned())]);
        let (key, value) = (RUN.to_owned(), Some(run.to_owned()));
        config.taints = vec![Taint { key, value, effect: "NoSchedule".to_owned(), time_added: None }];
        config
    }
}

fn report(what: &str, ended: anyhow::Result<()>) {
    if let Err(error) = ended {
        eprintln!("bench: a {what} failed: {error:#}");
    }
}

/// The path of a run's nodes.
fn nodes(run: &str) -> String {
    format!("/api/v1/nodes?labelSelector={RUN}%3D{run}")
}

/// Nodes of a list that are ready.
fn ready(list: &[u8]) -> anyhow::Result<usize> {
    let list: Value = serde_json::from_slice(list).context("read the nodes")?;
    let is_ready = |node: &&Value| {
        let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
        conditions.into_iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    };
    Ok(list["items"].as_array().into_iter().flatten().filter(is_ready).count())
}

/// What makes a pod go to the nodes of a run: a pod spec's fields. Every taint is tolerated: that the machine's disk is
/// nearly full does not matter to pods without processes.
pub fn placement(run: &str) -> Value {
    json!({"nodeSelector": {RUN: run}, "tolerations": [{"operator": "Exists", "effect": "NoSchedule"}]})
}

/// Removes the nodes of a run, whose kubelets have stopped, and at once what is left of pods on them.
pub async fn remove(target: &std::sync::Arc<Target>, run: &str) -> anyhow::Result<()> {
    let mut connection = Connection::open(target).await?;
    connection.drain(&Call::delete(nodes(run))).await?;
    connection.drain(&Call::delete(format!("/api/v1/namespaces/{run}/pods?gracePeriodSeconds=0"))).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_nodes_are_counted() {
        let node = |ready: &str| json!({"status": {"conditions": [{"type": "Ready", "status": ready}]}});
        let list = json!({"items": [node("True"), node("False"), {"status": {}}, node("True")]});
        assert_eq!(ready(list.to_string().as_bytes()).unwrap(), 2);
    }
}
