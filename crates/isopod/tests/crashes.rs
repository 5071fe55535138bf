//! kill -9 of the main process, again and again in the middle of things: nothing is lost, doubled or left over.

mod common;

use common::{BUSYBOX, cluster};
use serde_json::Value;
use testkit::{Cluster, Traces, eventually};

const DEPLOYMENT: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: REPLICAS
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: c, image: BUSYBOX, imagePullPolicy: IfNotPresent, command: [sleep, "100000"], env: [{name: V, value: VERSION}]}
"#;

/// Outlives every crash.
const WITNESS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: witness}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: c, image: BUSYBOX, imagePullPolicy: IfNotPresent, command: [sleep, "200000"]}
"#;

/// Size and template of each step; the process dies in the middle of all but the last.
const STEPS: [(usize, &str); 6] = [(3, "a"), (6, "a"), (6, "b"), (2, "c"), (5, "c"), (4, "d")];

fn processes(cluster: &Cluster, of: &str) -> Vec<String> {
    Traces::of(&cluster.name).processes.into_iter().filter(|process| process.contains(of)).collect()
}

fn number(status: &Value, field: &str) -> usize {
    status[field].as_u64().unwrap_or(0) as usize
}

#[test]
fn nothing_is_lost_or_doubled_by_dying_while_rolling() {
    let (cluster, archive) = cluster();
    cluster.apply(&WITNESS.replace("BUSYBOX", BUSYBOX));
    cluster.wait(&["pod", "witness"], |pod| pod["status"]["phase"] == "Running");
    for (step, (replicas, version)) in STEPS.into_iter().enumerate() {
        let manifest = DEPLOYMENT.replace("BUSYBOX", BUSYBOX).replace("VERSION", version);
        cluster.apply(&manifest.replace("REPLICAS", &replicas.to_string()));
        if step + 1 == STEPS.len() {
            break;
        }
        // Sometimes as soon as the change is seen, sometimes a pod or two later.
        cluster.wait(&["deployment", "web"], |web| {
            web["metadata"]["generation"] == web["status"]["observedGeneration"]
                && number(&web["status"], "updatedReplicas") >= step % 3
        });
        cluster.crash();
        cluster.up(&[&archive]);
        // At once: the new kubelet knows the pods that it found, or lets the request wait until it does.
        cluster.run(&["exec", "witness", "--", "true"]);
    }
    let (replicas, version) = STEPS[STEPS.len() - 1];
    cluster.wait(&["deployment", "web"], |web| {
        let status = &web["status"];
        web["metadata"]["generation"] == status["observedGeneration"]
            && ["replicas", "updatedReplicas", "availableReplicas"]
                .iter()
                .all(|field| number(status, field) == replicas)
    });
    cluster.run(&["delete", "pod", "witness"]);
    let pods = cluster.wait(&["pods"], |pods| pods["items"].as_array().is_some_and(|pods| pods.len() == replicas));
    for pod in pods["items"].as_array().unwrap() {
        assert_eq!(pod["spec"]["containers"][0]["env"][0]["value"], version);
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "{pod:#}");
    }
    // As many sandboxes and containers as pods, whatever died when.
    for of in ["pause", "sleep 100000"] {
        eventually(of, || {
            let found = processes(&cluster, of);
            if found.len() == replicas {
                Ok(())
            } else {
                Err(format!("{} instead of {replicas}: {found:?}", found.len()))
            }
        });
    }
}
