//! Pods that use more of the disk than they may are evicted, and tell why.

mod common;

use common::{cluster, events, first_status, pod, shell};
use serde_json::{Value, json};
use testkit::eventually;

#[test]
fn limits_on_disk_are_enforced() {
    let (cluster, _archive) = cluster();
    let on_volume = |limit: &str, resources: Value| {
        let mounts = json!([{"name": "data", "mountPath": "/data"}]);
        let extra = json!({"volumeMounts": mounts, "resources": resources});
        let volumes = json!([{"name": "data", "emptyDir": {"sizeLimit": limit}}]);
        let script = "dd if=/dev/zero of=/data/file bs=1M count=3; sleep 100000";
        json!({"restartPolicy": "Never", "containers": [shell("main", script, extra)], "volumes": volumes})
    };
    let limit = |limit: &str| json!({"limits": {"ephemeral-storage": limit}});
    let script = "dd if=/dev/zero of=/file bs=1M count=3; sleep 100000";
    let in_layer = shell("main", script, json!({"resources": limit("2Mi")}));
    cluster.apply(&pod("volume", on_volume("1Mi", json!({}))).to_string());
    cluster.apply(&pod("layer", json!({"restartPolicy": "Never", "containers": [in_layer]})).to_string());
    cluster.apply(&pod("within", on_volume("50Mi", limit("50Mi"))).to_string());
    for (name, message) in [
        ("volume", "Usage of EmptyDir volume \"data\" exceeds the limit \"1Mi\". "),
        ("layer", "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. "),
    ] {
        let pod = cluster.wait(&["pod", name], |pod| pod["status"]["phase"] == "Failed");
        let status = &pod["status"];
        assert_eq!((&status["reason"], &status["message"]), (&Value::from("Evicted"), &Value::from(message)));
        let ended = &first_status(&pod)["state"]["terminated"];
        assert_eq!(ended["exitCode"], 137, "{status:#}");
        eventually("the eviction is told", || {
            let all = events(&cluster, name);
            let told = all.iter().any(|(reason, text)| reason == "Evicted" && text == message);
            if told { Ok(()) } else { Err(format!("{all:?}")) }
        });
    }
    let within = cluster.get(&["pod", "within"]);
    assert_eq!(within["status"]["phase"], "Running", "within its limits: {:#}", within["status"]);
    assert_eq!(first_status(&within)["restartCount"], 0);
}
