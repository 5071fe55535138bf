//! `isopod demo`: the path of a Deployment through the whole system, told as it happens.
//!
//! Everything here is done by an ordinary API client; it stands in for kubectl, so that the first
//! look needs nothing installed.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use client::Informer;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{Api, DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams};
use serde::Deserialize as _;
use serde_json::json;

use super::preflight;
use crate::cli::Name;
use crate::hello::image;
use crate::sandbox::Sandbox;

const REPLICAS: usize = 3;
const REQUESTS: u32 = 30;
/// Longer than any healthy start by far; a demo that cannot end helps nobody.
const PATIENCE: Duration = Duration::from_secs(120);

pub fn run(name: &Name, verbose: u8) -> anyhow::Result<()> {
    let sandbox = Sandbox::new(&name.name)?;
    preflight::node()?;
    if sandbox.lock().is_ok() {
        start(&name.name, verbose)?;
    }
    let state = sandbox.state().context("read the cluster's state")?;
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?.block_on(async {
        let client = client::remote(&state.kubeconfig, None, "isopod-demo").await?;
        tokio::time::timeout(PATIENCE, show(client))
            .await
            .context("the demo did not finish in time; see `kubectl get events`")?
    })?;
    let kubeconfig = state.kubeconfig.display();
    println!(
        "\nThe cluster goes on running. Try:\n  export KUBECONFIG={kubeconfig}\n  kubectl get pods,services -o wide\n  \
         kubectl scale deployment hello --replicas=5\n  kubectl logs -f deployment/hello\n  \
         kubectl port-forward service/hello 8080:80\nand in the end:\n  isopod down --name {}",
        name.name
    );
    Ok(())
}

fn start(name: &str, verbose: u8) -> anyhow::Result<()> {
    let mut up = Command::new("/proc/self/exe");
    up.args(["up", "--detach", "--name", name]).args((0..verbose).map(|_| "-v")).stdin(Stdio::null());
    if !up.status().context("run `isopod up`")?.success() {
        bail!("`isopod up --name {name}` failed");
    }
    Ok(())
}

async fn show(client: kube::Client) -> anyhow::Result<()> {
    let started = Instant::now();
    let say = |text: String| println!("{:7.3} s  {text}", started.elapsed().as_secs_f64());
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "default");
    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");

    println!("\nA Deployment of {REPLICAS} pods, and a Service in front of them:");
    apply(&deployments, "hello", &deployment()?).await?;
    say("deployment hello is stored; its controller makes a ReplicaSet, whose controller makes pods".into());
    apply(&services, "hello", &service()?).await?;
    let address = services.get("hello").await?.spec.and_then(|spec| spec.cluster_ip).unwrap_or_default();
    say(format!("service hello has the address {address}"));
    ready_pods(&pods, &say).await;

    println!("\nA client pod asks http://hello {REQUESTS} times, by name, through the Service:");
    let pages = visit(&pods).await?;
    print!("{pages}");
    let seen = pages.matches("pod: ").count();
    if seen != REPLICAS {
        bail!("{seen} of {REPLICAS} pods answered");
    }
    say(format!("all {REPLICAS} pods answered"));
    Ok(())
}

async fn apply<K>(api: &Api<K>, name: &str, object: &K) -> anyhow::Result<()>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    match api.create(&PostParams::default(), object).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {
            api.patch(name, &PatchParams::default(), &Patch::Merge(object)).await?;
        }
        result => drop(result?),
    }
    Ok(())
}

/// Tells each pod's progress until all of them are ready.
async fn ready_pods(pods: &Api<Pod>, say: impl Fn(String)) {
    let informer = Informer::start(pods.clone(), ListParams::default().labels("app=hello"), |_| {});
    let mut events = informer.subscribe();
    let mut told = BTreeSet::new();
    while told.iter().filter(|(_, stage)| *stage == "ready").count() < REPLICAS {
        let Some(event) = events.recv().await else { return };
        let pod = event.object();
        let name = pod.metadata.name.clone().unwrap_or_default();
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        let status = pod.status.clone().unwrap_or_default();
        let is_ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
        if let Some(node) = node.filter(|_| told.insert((name.clone(), "bound"))) {
            say(format!("pod {name} is bound to node {node} by the scheduler"));
        }
        if is_ready && told.insert((name.clone(), "ready")) {
            say(format!("pod {name} runs and is ready at {}", status.pod_ip.unwrap_or_default()));
        }
    }
}

/// Runs a client pod to its end and returns what it printed.
async fn visit(pods: &Api<Pod>) -> anyhow::Result<String> {
    let _ = pods.delete("visitor", &DeleteParams::default().grace_period(0)).await;
    client::await_condition(pods.clone(), "visitor", |pod: Option<&Pod>| pod.is_none()).await;
    let visitor = Pod::deserialize(&json!({
        "metadata": { "name": "visitor" },
        "spec": {
            "restartPolicy": "Never",
            "containers": [{
                "name": "visitor", "image": image::NAME, "imagePullPolicy": "IfNotPresent",
                "command": ["/isopod", "fetch", "--repeat", REQUESTS.to_string(), "http://hello/"],
            }],
        },
    }))?;
    pods.create(&PostParams::default(), &visitor).await?;
    let ended = |pod: Option<&Pod>| {
        let phase = pod.and_then(|p| p.status.as_ref()).and_then(|s| s.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    };
    client::await_condition(pods.clone(), "visitor", ended).await;
    let log = pods.logs("visitor", &LogParams::default()).await?;
    let pod = pods.get("visitor").await?;
    pods.delete("visitor", &DeleteParams::default()).await?;
    match pod.status.and_then(|s| s.phase).as_deref() {
        Some("Succeeded") => Ok(log),
        _ => bail!("the client pod failed: {log}"),
    }
}

fn deployment() -> serde_json::Result<Deployment> {
    let field = |path: &str| json!({ "fieldRef": { "fieldPath": path } });
    Deployment::deserialize(&json!({
        "metadata": { "name": "hello", "labels": { "app": "hello" } },
        "spec": {
            "replicas": REPLICAS,
            "selector": { "matchLabels": { "app": "hello" } },
            "template": {
                "metadata": { "labels": { "app": "hello" } },
                "spec": { "containers": [{
                    "name": "hello", "image": image::NAME, "imagePullPolicy": "IfNotPresent",
                    "ports": [{ "containerPort": image::PORT }],
                    "env": [
                        { "name": "POD_NAME", "valueFrom": field("metadata.name") },
                        { "name": "NODE_NAME", "valueFrom": field("spec.nodeName") },
                    ],
                    "readinessProbe": { "httpGet": { "path": "/", "port": image::PORT }, "periodSeconds": 1 },
                }] },
            },
        },
    }))
}

fn service() -> serde_json::Result<Service> {
    Service::deserialize(&json!({
        "metadata": { "name": "hello", "labels": { "app": "hello" } },
        "spec": { "selector": { "app": "hello" }, "ports": [{ "port": 80, "targetPort": image::PORT }] },
    }))
}
