//! The pods scenario: how long pods take from the create call to the event that shows them Ready, and from the delete
//! call to the event that shows them gone. Both ends are seen from here, as a user sees them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::json;

use crate::{
    Context,
    api::{counted, resource_version},
    connection::{Call, Connection, Watch},
    load::{Load, Pool},
    report::{Report, Row},
    stats::milliseconds,
};

/// Connections that create and delete; more pods than that share them.
const CONNECTIONS: usize = 32;
/// Waiting for a container with one of these reasons is waiting for nothing.
const HOPELESS: [&str; 5] =
    ["ErrImageNeverPull", "ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError", "CrashLoopBackOff"];

pub async fn run(context: &Context<'_>, report: &mut Report) -> anyhow::Result<()> {
    preflight(context).await?;
    eprintln!("starting one pod first, so that the image is present");
    batch(context, "first", 1).await?;
    for &count in &context.options.pods {
        let (mut starts, mut ends) = (Phase::default(), Phase::default());
        for run in 0..context.options.runs {
            let (started, ended) = batch(context, &format!("pods-{count}-{run}"), count).await?;
            starts.add(started);
            ends.add(ended);
        }
        let load = counted(count, "pod");
        report.add(starts.row("create pods until all are Ready", &load));
        report.add(ends.row("delete pods until all are gone", &load));
    }
    Ok(())
}

/// A cluster without a usable node, or without controllers, says so now and not as a timeout later.
async fn preflight(context: &Context<'_>) -> anyhow::Result<()> {
    let mut connection = Connection::open(context.target).await?;
    let body = connection.call(&Call::get("/api/v1/nodes")).await?;
    let nodes: k8s_openapi::List<Node> = serde_json::from_slice(&body).context("read the nodes")?;
    anyhow::ensure!(nodes.items.iter().any(usable), "none of the cluster's {} nodes is Ready", nodes.items.len());
    context.namespace.wait_for("serviceaccounts", "default").await?;
    context.namespace.wait_for("configmaps", "kube-root-ca.crt").await
}

fn usable(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    ready && node.spec.as_ref().and_then(|spec| spec.unschedulable) != Some(true)
}

/// One phase of a batch: how long each pod took, and all together.
type Times = (Duration, Vec<Duration>);

#[derive(Default)]
struct Phase {
    all: Vec<f64>,
    each: Vec<Duration>,
}

impl Phase {
    fn add(&mut self, (all, each): Times) {
        self.all.push(milliseconds(all));
        self.each.extend(each);
    }

    fn row(self, measure: &str, load: &str) -> Row {
        Row::new(measure, load, "ms", &self.all, self.each)
    }
}

/// Creates `count` pods and deletes them again.
async fn batch(context: &Context<'_>, prefix: &str, count: usize) -> anyhow::Result<(Times, Times)> {
    let (collection, image) = (context.namespace.collection("pods"), context.options.image.clone());
    let mut connection = Connection::open(context.target).await?;
    let version = resource_version(&mut connection, &collection).await?;
    let watched = format!("{collection}?watch=1&resourceVersion={version}");
    let mut pods = Pods { watch: connection.watch(watched).await?, prefix: format!("{prefix}-"), count };
    let mut pool = Pool::open(context.target, count.min(CONNECTIONS)).await?;
    let name = Arc::new(move |prefix: &str, index: usize| format!("{prefix}-{index}"));
    let limit = context.options.pod_timeout;

    let create = {
        let (collection, name, prefix) = (collection.clone(), name.clone(), prefix.to_owned());
        move |index| Call::post(&collection, pod(&name(&prefix, index), &image))
    };
    let (created, ready) =
        tokio::try_join!(pool.drive(count, Duration::MAX, create), pods.until(Moment::Ready, limit))?;
    let prefix = prefix.to_owned();
    let delete = move |index| Call::delete(format!("{collection}/{}", name(&prefix, index)));
    let (deleted, gone) = tokio::try_join!(pool.drive(count, Duration::MAX, delete), pods.until(Moment::Gone, limit))?;
    Ok((times(&created, &ready), times(&deleted, &gone)))
}

fn times(load: &Load, ends: &HashMap<usize, Instant>) -> Times {
    let each = load.samples.iter().filter_map(|sample| Some(ends.get(&sample.index)?.duration_since(sample.start)));
    let first = load.samples.iter().map(|sample| sample.start).min();
    let all = first.zip(ends.values().max()).map_or(Duration::ZERO, |(first, last)| last.duration_since(first));
    (all, each.collect())
}

/// A small pod with upstream's defaults for all it does not say.
fn pod(name: &str, image: &str) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "bench"}},
        "spec": {"containers": [{"name": "main", "image": image, "imagePullPolicy": "IfNotPresent"}]},
    })
    .to_string()
}

/// The batch's pods as the watch shows them.
struct Pods {
    watch: Watch,
    prefix: String,
    count: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Moment {
    Ready,
    Gone,
}

impl Pods {
    /// When each pod, by its index, was first seen at `moment`.
    async fn until(&mut self, moment: Moment, limit: Duration) -> anyhow::Result<HashMap<usize, Instant>> {
        let (mut reached, mut others) = (HashMap::new(), BTreeMap::new());
        let watching = async {
            while reached.len() < self.count {
                let event = self.watch.next().await?;
                let pod: Pod = serde_json::from_str(event.object.get()).context("read a pod")?;
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                let Some(index) = name.strip_prefix(&self.prefix).and_then(|index| index.parse().ok()) else {
                    continue;
                };
                if seen_at(&event.kind, &pod, moment) {
                    others.remove(name);
                    reached.entry(index).or_insert(event.at);
                } else if !reached.contains_key(&index) {
                    let state = state(&pod);
                    let hopeless = moment == Moment::Ready
                        && (event.kind == "DELETED"
                            || HOPELESS.iter().any(|reason| state.starts_with(reason))
                            || state == "Failed");
                    anyhow::ensure!(!hopeless, "pod {name} will not become Ready: {state}");
                    others.insert(name.to_owned(), state);
                }
            }
            anyhow::Ok(())
        };
        match tokio::time::timeout(limit, watching).await {
            Ok(watched) => watched.map(|()| reached),
            Err(_) => {
                let some: Vec<_> = others.iter().take(3).map(|(name, state)| format!("{name}: {state}")).collect();
                let (done, count) = (reached.len(), self.count);
                anyhow::bail!("{done} of {count} pods {moment:?} after {limit:?} (others: {})", some.join("; "))
            }
        }
    }
}

fn seen_at(event: &str, pod: &Pod, moment: Moment) -> bool {
    match moment {
        Moment::Gone => event == "DELETED",
        Moment::Ready => {
            let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
            event != "DELETED"
                && conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
        }
    }
}

/// What the pod waits for, as kubectl's STATUS column has it.
fn state(pod: &Pod) -> String {
    let Some(status) = &pod.status else { return "Unknown".into() };
    let containers = status.container_statuses.iter().flatten();
    let waiting = containers.filter_map(|container| container.state.as_ref()?.waiting.as_ref()).next();
    if let Some(waiting) = waiting {
        let (reason, message) = (waiting.reason.as_deref(), waiting.message.as_deref());
        return [reason, message].into_iter().flatten().collect::<Vec<_>>().join(": ");
    }
    let unscheduled = status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
    let unscheduled = unscheduled.and_then(|condition| condition.message.clone());
    unscheduled.or_else(|| status.phase.clone()).unwrap_or_else(|| "Unknown".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn with_status(status: Value) -> Pod {
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "status": status}))
            .unwrap()
    }

    #[test]
    fn states_tell_what_a_pod_waits_for() {
        let waiting = json!({"name": "main", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ErrImageNeverPull", "message": "no image"}}});
        let cases = [
            (json!({"phase": "Pending", "containerStatuses": [waiting]}), "ErrImageNeverPull: no image"),
            (
                json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes"}]}),
                "0/1 nodes",
            ),
            (json!({"phase": "Failed"}), "Failed"),
        ];
        for (status, expected) in cases {
            assert_eq!(state(&with_status(status)), expected);
        }
    }

    #[test]
    fn moments_are_recognized() {
        let pod = |ready: &str| with_status(json!({"conditions": [{"type": "Ready", "status": ready}]}));
        assert!(seen_at("MODIFIED", &pod("True"), Moment::Ready));
        assert!(!seen_at("MODIFIED", &pod("False"), Moment::Ready));
        assert!(!seen_at("DELETED", &pod("True"), Moment::Ready));
        assert!(seen_at("DELETED", &pod("False"), Moment::Gone));
        assert!(!seen_at("MODIFIED", &pod("True"), Moment::Gone));
    }

    #[test]
    fn times_start_with_each_call() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let sample = |index, ms| crate::load::Sample { index, start: at(ms), took: Duration::ZERO };
        let load = Load { samples: vec![sample(1, 5), sample(0, 0)], elapsed: Duration::ZERO };
        let (all, each) = times(&load, &HashMap::from([(0, at(30)), (1, at(20))]));
        assert_eq!(all, Duration::from_millis(30));
        assert_eq!(each, [Duration::from_millis(15), Duration::from_millis(30)]);
    }
}
