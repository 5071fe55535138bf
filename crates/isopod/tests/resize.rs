//! Resources of a running pod change in place, or wait for room, or restart their container.

mod common;

use common::{cluster, events, first_status, pod, shell};
use serde_json::{Value, json};
use testkit::{Cluster, condition, eventually};

fn resources(cpu: &str, memory: &str) -> Value {
    json!({"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu, "memory": memory}})
}

fn resize(cluster: &Cluster, cpu: &str, memory: &str) {
    let patch = json!({"spec": {"containers": [{"name": "main", "resources": resources(cpu, memory)}]}}).to_string();
    cluster.run(&["patch", "pod", "subject", "--subresource=resize", "-p", &patch]);
}

/// The container's own figures, as it sees them: CPU time per 100 ms in microseconds, and bytes.
fn figures(cluster: &Cluster) -> (String, String) {
    let read = |v1: &str, v2: &str| {
        let script = format!("cat /sys/fs/cgroup/{v1} 2>/dev/null || cut -d' ' -f1 /sys/fs/cgroup/{v2}");
        cluster.run(&["exec", "subject", "--", "sh", "-c", &script]).trim().to_owned()
    };
    (read("cpu*/cpu.cfs_quota_us", "cpu.max"), read("memory*/memory.limit_in_bytes", "memory.max"))
}

#[test]
fn a_running_pod_is_resized() {
    let (cluster, _archive) = cluster();
    let policy = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
    let extra = json!({"resources": resources("100m", "32Mi"), "resizePolicy": policy});
    let main = shell("main", "sleep 100000", extra);
    cluster.apply(&pod("subject", json!({"containers": [main]})).to_string());
    let before = cluster.wait(&["pod", "subject"], |pod| first_status(pod)["ready"] == true);
    assert_eq!(figures(&cluster), ("10000".into(), (32 << 20).to_string()));
    let id = &first_status(&before)["containerID"];

    resize(&cluster, "200m", "32Mi");
    let done = |pod: &Value, cpu: &str, memory: &str| {
        let status = first_status(pod);
        status["resources"] == resources(cpu, memory)
            && status["allocatedResources"] == resources(cpu, memory)["requests"]
            && condition(pod, "PodResizeInProgress").is_null()
            && condition(pod, "PodResizePending").is_null()
    };
    let after = cluster.wait(&["pod", "subject"], |pod| done(pod, "200m", "32Mi"));
    assert_eq!(figures(&cluster).0, "20000");
    let status = first_status(&after);
    assert_eq!((&status["containerID"], &status["restartCount"]), (id, &json!(0)), "it ran on");
    assert_eq!(after["status"]["observedGeneration"], after["metadata"]["generation"]);

    // Smaller again: the container's share shrinks before the pod's.
    resize(&cluster, "50m", "32Mi");
    cluster.wait(&["pod", "subject"], |pod| done(pod, "50m", "32Mi"));
    assert_eq!(figures(&cluster).0, "5000");

    // More than the node has stays a wish, and is told.
    resize(&cluster, "1000", "32Mi");
    let pending = cluster.wait(&["pod", "subject"], |pod| !condition(pod, "PodResizePending").is_null());
    let told = condition(&pending, "PodResizePending");
    assert_eq!((&told["status"], &told["reason"]), (&json!("True"), &json!("Infeasible")));
    let message = told["message"].as_str().unwrap();
    assert!(message.starts_with("Node didn't have enough capacity: cpu, requested: 1000000, capacity: "), "{message}");
    assert_eq!(first_status(&pending)["allocatedResources"]["cpu"], "50m");
    let shown = cluster.run(&["describe", "pod", "subject"]);
    assert!(shown.contains("PodResizePending"), "{shown}");

    // Memory asks for a restart.
    resize(&cluster, "50m", "48Mi");
    let restarted = cluster.wait(&["pod", "subject"], |pod| {
        done(pod, "50m", "48Mi") && first_status(pod)["restartCount"] == 1 && first_status(pod)["ready"] == true
    });
    assert_ne!(&first_status(&restarted)["containerID"], id);
    assert_eq!(figures(&cluster), ("5000".into(), (48 << 20).to_string()));
    eventually("events tell of it", || {
        let reasons: Vec<String> = events(&cluster, "subject").into_iter().map(|(reason, _)| reason).collect();
        let all = ["ResizeStarted", "ResizeCompleted", "ResizeInfeasible"];
        let missing = all.iter().find(|wanted| !reasons.iter().any(|reason| reason == *wanted));
        missing.map_or(Ok(()), |missing| Err(format!("{missing} is not among {reasons:?}")))
    });
}

/// What the pod as a whole may have, from its cgroup on the node: CPU time per 100 ms in microseconds, and bytes.
fn whole(pod: &Value) -> (String, String) {
    let read = |v1: &str, v2: &str| {
        let uid = pod["metadata"]["uid"].as_str().unwrap();
        let script = format!(
            "for d in $(find /sys/fs/cgroup -type d -name pod{uid}); do \
             cat $d/{v1} 2>/dev/null || cut -d' ' -f1 $d/{v2} 2>/dev/null; done | head -n1"
        );
        let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    (read("cpu.cfs_quota_us", "cpu.max"), read("memory.limit_in_bytes", "memory.max"))
}

/// A pod that has resources of its own and containers without any (KEP-5419).
fn pods_as_a_whole_are_resized(cluster: &Cluster) {
    let mut manifest = pod("whole", json!({"containers": [shell("main", "sleep 100000", json!({}))]}));
    manifest["spec"]["resources"] = resources("100m", "32Mi");
    cluster.apply(&manifest.to_string());
    let before = cluster.wait(&["pod", "whole"], |pod| first_status(pod)["ready"] == true);
    assert_eq!(whole(&before), ("10000".into(), (32 << 20).to_string()));
    for (cpu, memory, quota, bytes) in [("200m", "64Mi", "20000", 64 << 20), ("50m", "48Mi", "5000", 48 << 20)] {
        let patch = json!({"spec": {"resources": resources(cpu, memory)}}).to_string();
        cluster.run(&["patch", "pod", "whole", "--subresource=resize", "-p", &patch]);
        let after = cluster.wait(&["pod", "whole"], |pod| {
            pod["status"]["resources"] == resources(cpu, memory) && condition(pod, "PodResizeInProgress").is_null()
        });
        assert_eq!(whole(&after), (quota.into(), (bytes as u64).to_string()));
        assert_eq!(after["status"]["allocatedResources"], resources(cpu, memory)["requests"]);
        assert_eq!(first_status(&after)["containerID"], first_status(&before)["containerID"]);
    }
    // A kubelet that comes back brings the cgroup up to what was granted.
    cluster.crash();
    let script = format!(
        "for d in $(find /sys/fs/cgroup -type d -name pod{}); do for f in cpu.cfs_quota_us cpu.max; do \
         [ ! -e $d/$f ] || echo 7000 > $d/$f; done; done",
        before["metadata"]["uid"].as_str().unwrap()
    );
    assert!(std::process::Command::new("sh").args(["-c", &script]).status().unwrap().success());
    assert_eq!(whole(&before).0, "7000");
    cluster.up(&[]);
    eventually("the cgroup is put right", || {
        let quota = whole(&before).0;
        if quota == "5000" { Ok(()) } else { Err(quota) }
    });
    let patch = json!({"spec": {"resources": {"limits": {"cpu": null}}}}).to_string();
    let refused = cluster.refuse(&["patch", "pod", "whole", "--subresource=resize", "-p", &patch]);
    assert!(refused.contains("spec.resources.limits: Forbidden: resource limits cannot be removed"), "{refused}");
}

#[test]
fn a_resize_without_room_waits_for_it() {
    let (cluster, _archive) = cluster();
    pods_as_a_whole_are_resized(&cluster);
    let node = cluster.get(&["nodes"]);
    let cpus: u64 = node["items"][0]["status"]["allocatable"]["cpu"].as_str().unwrap().parse().unwrap();
    let big = format!("{}m", cpus * 1000 - 300);
    for (name, cpu) in [("other", big.as_str()), ("subject", "100m")] {
        let main = shell("main", "sleep 100000", json!({"resources": resources(cpu, "32Mi")}));
        cluster.apply(&pod(name, json!({"containers": [main]})).to_string());
        cluster.wait(&["pod", name], |pod| first_status(pod)["ready"] == true);
    }
    resize(&cluster, "500m", "32Mi");
    let reason = |pod: &Value| condition(pod, "PodResizePending")["reason"].clone();
    cluster.wait(&["pod", "subject"], |pod| reason(pod) == "Deferred");
    assert_eq!(figures(&cluster).0, "10000");
    cluster.run(&["delete", "pod", "other"]);
    let resized = cluster.wait(&["pod", "subject"], |pod| reason(pod).is_null());
    assert_eq!(first_status(&resized)["allocatedResources"]["cpu"], "500m");
    eventually("the cgroup follows", || {
        let quota = figures(&cluster).0;
        if quota == "50000" { Ok(()) } else { Err(quota) }
    });
}
