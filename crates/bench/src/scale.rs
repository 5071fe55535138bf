//! The scale scenario: one Deployment from no pods to many, over to another template, and back to none, on nodes without
//! processes ([`fleet`](crate::fleet)). What it measures is the control plane and the kubelets' traffic with it.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    Context,
    api::{counted, resource_version},
    connection::{Call, Connection, Watch},
    fleet::{self, Fleet},
    report::{Report, Row},
};

/// The annotation whose value tells the templates apart.
const TEMPLATE: &str = "template";

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Up,
    RollOver,
    Down,
}

impl Phase {
    const ALL: [Phase; 3] = [Phase::Up, Phase::RollOver, Phase::Down];

    fn measure(self) -> &'static str {
        match self {
            Phase::Up => "scale a Deployment up until all pods are Ready",
            Phase::RollOver => "roll it over until only new pods are left, all Ready",
            Phase::Down => "scale it to zero until all pods are gone",
        }
    }
}

pub async fn run(context: &Context<'_>, report: &mut Report) -> anyhow::Result<()> {
    let options = context.options;
    context.namespace.wait_for("serviceaccounts", "default").await?;
    // Room for a rollout's surplus, and for an uneven spread.
    let _fleet = Fleet::start(context, options.nodes, options.replicas * 2).await?;
    let mut rates = HashMap::<&str, (Vec<f64>, Vec<f64>)>::new();
    let mut resident = Vec::new();
    for number in 0..options.runs {
        let mut deployment = Deployment::create(context, &format!("scale-{number}")).await?;
        for phase in Phase::ALL {
            let before = Metrics::read(context).await?;
            let took = deployment.pass(phase).await?.as_secs_f64();
            let after = Metrics::read(context).await?;
            let (pods, writes) = rates.entry(phase.measure()).or_default();
            pods.push(options.replicas as f64 / took);
            writes.push((after.writes - before.writes) / took);
            if phase == Phase::RollOver {
                resident.push(after.resident / f64::from(1 << 20));
            }
        }
        deployment.delete().await?;
    }
    let load = format!("{}, {}", counted(options.replicas, "pod"), counted(options.nodes, "node"));
    for phase in Phase::ALL {
        let (pods, writes) = rates.remove(phase.measure()).unwrap_or_default();
        report.add(Row::new(phase.measure(), &load, "pods/s", &pods, vec![]));
        report.add(Row::new("… writes to the API meanwhile", &load, "/s", &writes, vec![]));
    }
    report.add(Row::new("resident memory of the API server's process, rolled over", &load, "MiB", &resident, vec![]));
    Ok(())
}

struct Deployment<'a> {
    context: &'a Context<'a>,
    watch: Watch,
    pods: Pods,
    path: String,
}

impl<'a> Deployment<'a> {
    /// With no pods yet.
    async fn create(context: &'a Context<'a>, name: &str) -> anyhow::Result<Deployment<'a>> {
        let collection = format!("/apis/apps/v1/namespaces/{}/deployments", context.namespace.name());
        let pods = context.namespace.collection("pods");
        let mut connection = Connection::open(context.target).await?;
        let version = resource_version(&mut connection, &pods).await?;
        let watch =
            Connection::open(context.target).await?.watch(format!("{pods}?watch=1&resourceVersion={version}")).await?;
        let body = deployment(name, context.namespace.name(), &context.options.image);
        connection.call(&Call::post(&collection, body.to_string())).await?;
        Ok(Deployment { context, watch, pods: Pods::default(), path: format!("{collection}/{name}") })
    }

    /// How long from the call until all pods are as they should be.
    async fn pass(&mut self, phase: Phase) -> anyhow::Result<Duration> {
        let replicas = self.context.options.replicas;
        let start = Instant::now();
        match phase {
            Phase::Up => self.change("/spec/replicas", json!(replicas)).await?,
            Phase::RollOver => self.change("/spec/template/metadata/annotations", json!({TEMPLATE: "second"})).await?,
            Phase::Down => self.change("/spec/replicas", json!(0)).await?,
        }
        let limit = self.context.options.pod_timeout;
        match tokio::time::timeout(limit, self.settle(phase, replicas)).await {
            Ok(settled) => settled.map(|end| end.duration_since(start)),
            Err(_) => anyhow::bail!(
                "after {limit:?} still not done: {}: {} pods, Ready by template: {:?}",
                phase.measure(),
                self.pods.all,
                self.pods.ready
            ),
        }
    }

    async fn settle(&mut self, phase: Phase, replicas: usize) -> anyhow::Result<Instant> {
        loop {
            let event = self.watch.next().await?;
            self.pods.observe(&event.kind, event.object.get())?;
            let done = match phase {
                Phase::Up => self.pods.are("first", replicas),
                Phase::RollOver => self.pods.are("second", replicas),
                Phase::Down => self.pods.all == 0,
            };
            if done {
                return Ok(event.at);
            }
        }
    }

    async fn change(&mut self, pointer: &str, value: Value) -> anyhow::Result<()> {
        // A connection of its own: the server closes one that was idle for a whole pass.
        let mut connection = Connection::open(self.context.target).await?;
        let body = connection.call(&Call::get(&self.path)).await?;
        let mut object: Value = serde_json::from_slice(&body).context("read the deployment")?;
        // The controller writes status meanwhile: that is no conflict of ours.
        object["metadata"].as_object_mut().map(|metadata| metadata.remove("resourceVersion"));
        *object.pointer_mut(pointer).context("the deployment lacks a field")? = value;
        connection.call(&Call::put(&self.path, object.to_string())).await.map(drop)
    }

    async fn delete(self) -> anyhow::Result<()> {
        Connection::open(self.context.target).await?.call(&Call::delete(&self.path)).await.map(drop)
    }
}

fn deployment(name: &str, run: &str, image: &str) -> Value {
    let mut spec = fleet::placement(run);
    spec["containers"] = json!([{"name": "main", "image": image}]);
    // A volume is a mount, and the machine's affair.
    spec["automountServiceAccountToken"] = json!(false);
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": name}}, "template": {
            "metadata": {"labels": {"app": name}, "annotations": {TEMPLATE: "first"}}, "spec": spec}},
    })
}

/// What is read of a pod.
#[derive(Deserialize)]
struct Pod {
    metadata: Metadata,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    #[serde(default)]
    annotations: HashMap<String, String>,
}

#[derive(Default, Deserialize)]
struct Status {
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Deserialize)]
struct Condition {
    r#type: String,
    status: String,
}

/// How many pods there are, and how many of each template are Ready.
#[derive(Debug, Default)]
struct Pods {
    all: usize,
    ready: HashMap<String, usize>,
    /// The template of each pod, if it is Ready.
    known: HashMap<String, Option<String>>,
}

impl Pods {
    fn observe(&mut self, kind: &str, object: &str) -> anyhow::Result<()> {
        let pod: Pod = serde_json::from_str(object).context("read a pod")?;
        if let Some(before) = self.known.remove(&pod.metadata.name) {
            self.all -= 1;
            before.into_iter().for_each(|template| *self.ready.entry(template).or_default() -= 1);
        }
        if kind == "DELETED" {
            return Ok(());
        }
        let is_ready = pod.status.conditions.iter().any(|found| found.r#type == "Ready" && found.status == "True");
        let template = pod.metadata.annotations.get(TEMPLATE).filter(|_| is_ready).cloned();
        template.iter().for_each(|template| *self.ready.entry(template.clone()).or_default() += 1);
        self.all += 1;
        self.known.insert(pod.metadata.name, template);
        Ok(())
    }

    /// Whether there are just so many, all of this template and Ready.
    fn are(&self, template: &str, count: usize) -> bool {
        self.all == count && self.ready.get(template) == Some(&count)
    }
}

/// What the server says of itself, under upstream's names.
struct Metrics {
    writes: f64,
    /// Bytes.
    resident: f64,
}

impl Metrics {
    async fn read(context: &Context<'_>) -> anyhow::Result<Metrics> {
        let body = Connection::open(context.target).await?.call(&Call::get("/metrics")).await?;
        Ok(Metrics::parse(&String::from_utf8_lossy(&body)))
    }

    fn parse(text: &str) -> Metrics {
        let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).unwrap_or(0.0);
        let verbs =
            ["POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"].map(|verb| format!("verb=\"{verb}\""));
        let requests = text.lines().filter(|line| line.starts_with("apiserver_request_total{"));
        let writes = requests.filter(|line| verbs.iter().any(|verb| line.contains(verb))).map(value);
        let resident = text.lines().find(|line| line.starts_with("process_resident_memory_bytes"));
        Metrics { writes: writes.sum(), resident: resident.map_or(0.0, value) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_counted_as_they_come_and_go() {
        let mut pods = Pods::default();
        let pod = |name: &str, template: &str, ready: &str| {
            json!({"metadata": {"name": name, "annotations": {TEMPLATE: template}},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}})
            .to_string()
        };
        for (kind, object, first, second) in [
            ("ADDED", json!({"metadata": {"name": "a"}}).to_string(), false, false),
            ("MODIFIED", pod("a", "first", "False"), false, false),
            ("MODIFIED", pod("a", "first", "True"), true, false),
            ("ADDED", pod("b", "second", "True"), false, false),
            ("DELETED", pod("a", "first", "True"), false, true),
            ("MODIFIED", pod("b", "second", "False"), false, false),
        ] {
            pods.observe(kind, &object).unwrap();
            assert_eq!((pods.are("first", 1), pods.are("second", 1)), (first, second), "{kind} {object}");
        }
    }

    #[test]
    fn writes_are_summed_over_verbs_and_resources() {
        let text = "# TYPE apiserver_request_total counter\n\
            apiserver_request_total{verb=\"POST\",resource=\"pods\",code=\"201\"} 3\n\
            apiserver_request_total{resource=\"pods\",verb=\"GET\",code=\"200\"} 100\n\
            apiserver_request_total{resource=\"leases\",verb=\"PUT\",code=\"200\"} 4\n\
            process_resident_memory_bytes 1.5e+08\n";
        let metrics = Metrics::parse(text);
        assert_eq!((metrics.writes, metrics.resident), (7.0, 150_000_000.0));
    }
}
