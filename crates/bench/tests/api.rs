//! The `bench` command as a user runs it, against a real API server on a loopback port: what it prints, and that
//! nothing is left behind, not even after a Ctrl-C.

use std::{
    process::{Output, Stdio},
    sync::Arc,
    time::Duration,
};

use apiserver::{
    Config, Server,
    pki::{Pki, PkiOptions, kubeconfig},
    upgrade::TcpDialer,
};
use bench::{Call, Connection, Options, Target};
use clap::Parser;
use serde_json::{Value, json};
use tokio::{process::Command, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

/// How long anything that should happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);
const NAMESPACES: &str = "/api/v1/namespaces";
const TINY: &str =
    "api --connections 1,3 --count 20 --list-items 30 --list-bytes 60000 --watchers 4 --events 5 --runs 2";

/// An API server, and a stand-in for the rest of a cluster. Dropped, both end.
struct Cluster {
    dir: tempfile::TempDir,
    target: Arc<Target>,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Cluster {
    async fn start() -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let options = PkiOptions { server_names: vec![], server_ips: vec![], cluster_domain: "cluster.local".into() };
        let pki = Arc::new(Pki::load_or_create(&dir.path().join("pki"), options).unwrap());
        let store = Arc::new(store::FjallStore::open(dir.path().join("store"), store::Options::default()).unwrap());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let advertise = listener.local_addr().unwrap();
        let service_cidr = "10.43.0.0/16".parse().unwrap();
        let dialer = Arc::new(TcpDialer);
        let config = Config { store, pki: pki.clone(), advertise, service_cidr, node_ports: 30000..=32767, dialer };
        let server = Server::new(config).await.unwrap();
        let admin = pki.client("kubernetes-admin", &["system:masters"]).unwrap();
        let text = kubeconfig(&format!("https://{advertise}"), pki.ca(), &admin.cert, &admin.key, "isopod");
        let path = dir.path().join("admin.conf");
        std::fs::write(&path, text).unwrap();
        let stop = CancellationToken::new();
        let serving = {
            let stop = stop.clone();
            tokio::spawn(async move { server.serve(listener, stop).await.unwrap() })
        };
        let options = Options::parse_from(["bench".as_ref(), "--kubeconfig".as_ref(), path.as_os_str()]);
        let target = Arc::new(Target::load(&options).await.unwrap());
        let standing_in = tokio::spawn(stand_in(target.clone()));
        Cluster { dir, target, stop, tasks: vec![serving, standing_in] }
    }

    fn bench(&self, arguments: &str) -> tokio::process::Child {
        Command::new(env!("CARGO_BIN_EXE_bench"))
            .args(arguments.split_whitespace())
            .arg("--kubeconfig")
            .arg(self.dir.path().join("admin.conf"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    async fn list(&self, path: &str) -> Vec<Value> {
        list(&mut Connection::open(&self.target).await.unwrap(), path).await
    }

    /// The namespaces of runs.
    async fn benched(&self) -> Vec<String> {
        let names =
            self.list(NAMESPACES).await.into_iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_owned());
        names.filter(|name| name.starts_with("bench-")).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.cancel();
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn list(connection: &mut Connection, path: &str) -> Vec<Value> {
    let body = connection.call(&Call::get(path)).await.unwrap();
    let list: Value = serde_json::from_slice(&body).unwrap();
    list["items"].as_array().unwrap().clone()
}

/// What a cluster's controllers and kubelets do for the benchmark's namespaces: fill new ones, let deleted ones go once
/// they are empty (which the benchmark must have made them), and call every pod Ready.
async fn stand_in(target: Arc<Target>) {
    let mut connection = Connection::open(&target).await.unwrap();
    loop {
        for namespace in list(&mut connection, NAMESPACES).await {
            let name = namespace["metadata"]["name"].as_str().unwrap();
            if name.starts_with("bench-") {
                let path = format!("{NAMESPACES}/{name}");
                stand_in_for(&mut connection, &path, namespace).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn stand_in_for(connection: &mut Connection, path: &str, mut namespace: Value) {
    if namespace["metadata"]["deletionTimestamp"].is_null() {
        for (kind, plural, name) in
            [("ServiceAccount", "serviceaccounts", "default"), ("ConfigMap", "configmaps", "kube-root-ca.crt")]
        {
            let object = json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}});
            connection.answer(&Call::post(format!("{path}/{plural}"), object.to_string())).await.unwrap();
        }
        for mut pod in list(connection, &format!("{path}/pods")).await {
            pod["status"] = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
            let path = format!("{path}/pods/{}/status", pod["metadata"]["name"].as_str().unwrap());
            connection.answer(&Call::put(path, pod.to_string())).await.unwrap();
        }
    } else if list(connection, &format!("{path}/configmaps")).await.is_empty() {
        namespace["spec"]["finalizers"] = json!([]);
        connection.answer(&Call::put(format!("{path}/finalize"), namespace.to_string())).await.unwrap();
    }
}

/// Creates a node that is Ready.
async fn add_node(cluster: &Cluster) {
    let mut connection = Connection::open(&cluster.target).await.unwrap();
    let mut node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}});
    connection.call(&Call::post("/api/v1/nodes", node.to_string())).await.unwrap();
    node["status"] = json!({"conditions": [{"type": "Ready", "status": "True"}]});
    connection.call(&Call::put("/api/v1/nodes/n/status", node.to_string())).await.unwrap();
}

/// The row of `report` whose measure starts with `measure`.
fn row<'a>(report: &'a Value, measure: &str, load: &str) -> &'a Value {
    let starts = |row: &&Value| row["measure"].as_str().unwrap().starts_with(measure) && row["load"] == load;
    let rows = report["rows"].as_array().unwrap();
    let row = rows.iter().find(starts).unwrap_or_else(|| panic!("no {measure}, {load} in {report}"));
    assert!(row["median"].as_f64().unwrap() > 0.0 && row["runs"].as_u64() >= Some(1), "{row}");
    row
}

async fn measured(bench: tokio::process::Child) -> Value {
    let output = ended(bench).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

async fn ended(bench: tokio::process::Child) -> Output {
    timeout(PATIENCE, bench.wait_with_output()).await.expect("bench ends").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_scenario_measures_and_cleans_up() {
    let cluster = Cluster::start().await;
    let report = measured(cluster.bench(&format!("{TINY} --json --pid {}", std::process::id()))).await;
    assert!(report["version"].as_str().unwrap().starts_with("v1.36"), "{report}");
    assert_eq!(report["protocol"], "HTTP/1.1 over TLS");
    for (measure, load, samples) in [
        ("create ConfigMap", "1 connection", 40),
        ("get ConfigMap", "3 connections", 40),
        ("delete ConfigMap", "3 connections", 40),
        ("list 30 ConfigMaps, 0.1 MB, warm", "1 connection", 6),
        ("list 30 ConfigMaps, 0.1 MB, warm", "3 connections", 18),
        ("watch: create sent to answer", "4 watchers", 10),
        ("watch: create sent to event, each watcher", "4 watchers", 40),
    ] {
        assert_eq!(row(&report, measure, load)["latency"]["samples"], samples, "{measure}, {load}");
    }
    assert_eq!(row(&report, "list 30 ConfigMaps, 0.1 MB, cold", "1 connection")["runs"], 2);
    row(&report, "memory of ", "before");
    row(&report, "memory of ", "after api");
    assert!(cluster.benched().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_timed_until_ready_and_gone() {
    let cluster = Cluster::start().await;
    add_node(&cluster).await;
    let report = measured(cluster.bench("pods --pods 1,40 --runs 2 --image example.com/image --json")).await;
    for (load, samples) in [("1 pod", 2), ("40 pods", 80)] {
        assert_eq!(row(&report, "create pods until all are Ready", load)["latency"]["samples"], samples);
        assert_eq!(row(&report, "delete pods until all are gone", load)["latency"]["samples"], samples);
    }
    assert!(cluster.benched().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_prints_a_table() {
    let cluster = Cluster::start().await;
    let output = ended(cluster.bench(&format!("{TINY} --http2"))).await;
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(table.contains("HTTP/2 over TLS") && table.contains("\n| watch: create sent to answer "), "{table}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_leaves_nothing_behind() {
    let cluster = Cluster::start().await;
    let bench = cluster.bench("api --count 1000000 --seconds 600");
    let working = async {
        loop {
            if let [name] = &cluster.benched().await[..]
                && !cluster.list(&format!("{NAMESPACES}/{name}/configmaps")).await.is_empty()
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, working).await.expect("bench creates ConfigMaps");
    let pid = bench.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().await.unwrap().success());
    let output = ended(bench).await;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{errors}");
    assert!(errors.ends_with("bench: interrupted\n"), "{errors}");
    assert!(cluster.benched().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_name_their_cause() {
    let cluster = Cluster::start().await;
    let output = ended(cluster.bench("pods")).await;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("none of the cluster's 0 nodes is Ready"), "{errors}");
    assert!(cluster.benched().await.is_empty());

    let output = ended(cluster.bench("api --timeout 1 --count 1000000 --seconds 600")).await;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains("not done after 1s"), "{errors}");
    assert!(cluster.benched().await.is_empty());
}
