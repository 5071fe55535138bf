//! What a container finds when it starts: its environment, files, identity and kernel settings.

mod common;

use common::{cluster, container, events, field, first_status, output, pod, shell};
use serde_json::{Value, json};
use testkit::eventually;

fn resource(name: &str, resource: &str) -> Value {
    json!({"name": name, "valueFrom": {"resourceFieldRef": {"resource": resource}}})
}

#[test]
fn variables_come_from_everywhere_and_expand() {
    let (cluster, _archive) = cluster();
    cluster.run(&["create", "configmap", "settings", "--from-literal=one=1"]);
    cluster.run(&["create", "secret", "generic", "hidden", "--from-literal=key=secret"]);
    let env = json!([
        field("NAME", "metadata.name"), field("NS", "metadata.namespace"), field("UID", "metadata.uid"),
        field("IP", "status.podIP"), field("HOST", "status.hostIP"), field("NODE", "spec.nodeName"),
        resource("CPU", "limits.cpu"), resource("MEMORY", "requests.memory"),
        {"name": "CONFIG", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "one"}}},
        {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "hidden", "key": "key"}}},
        {"name": "ABSENT", "valueFrom": {"secretKeyRef": {"name": "none", "key": "key", "optional": true}}},
        {"name": "BOTH", "value": "$(NAME)-$(SECRET)-$$(NAME)-$(UNKNOWN)"},
    ]);
    let from = json!([{"configMapRef": {"name": "settings"}}, {"prefix": "P_", "secretRef": {"name": "hidden"}}]);
    let main = container(
        "main",
        json!({
            "env": env, "envFrom": from, "resources": {"limits": {"cpu": "1500m", "memory": "64Mi"}},
            "command": ["sh", "-c", "echo command '$(BOTH)' $0; env"], "args": ["argument-$(CONFIG)"],
        }),
    );
    let log = output(&cluster, "default", "variables", json!({"containers": [main]}));
    let pod = cluster.get(&["pod", "variables"]);
    let lines: Vec<&str> = log.lines().collect();
    let expect = |line: String| assert!(lines.contains(&line.as_str()), "{line:?} is not in {log}");
    assert!(lines[0].starts_with("command variables-secret-") && lines[0].ends_with(" argument-1"), "{}", lines[0]);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    for (name, value) in [
        ("NAME", "variables".to_owned()),
        ("NS", "default".to_owned()),
        ("UID", text(&pod["metadata"]["uid"])),
        ("IP", text(&pod["status"]["podIP"])),
        ("HOST", text(&pod["status"]["hostIP"])),
        ("NODE", text(&pod["spec"]["nodeName"])),
        ("CPU", "2".to_owned()),
        ("MEMORY", (64 << 20).to_string()),
        ("CONFIG", "1".to_owned()),
        ("BOTH", "variables-secret-$(NAME)-$(UNKNOWN)".to_owned()),
        ("one", "1".to_owned()),
        ("P_key", "secret".to_owned()),
        ("KUBERNETES_SERVICE_HOST", "10.43.0.1".to_owned()),
        ("HOSTNAME", "variables".to_owned()),
    ] {
        expect(format!("{name}={value}"));
    }
    assert!(!log.contains("ABSENT="), "{log}");
}

#[test]
fn security_settings_hold() {
    let (cluster, _archive) = cluster();
    let context = json!({"runAsUser": 1001, "runAsGroup": 2002, "fsGroup": 3003, "supplementalGroups": [4004],
        "sysctls": [{"name": "kernel.shm_rmid_forced", "value": "1"}]});
    let script = "id; cat /proc/sys/kernel/shm_rmid_forced; touch /file 2>&1; touch /data/file && stat -c %g /data/file; \
                  grep -E '^(CapEff|NoNewPrivs)' /proc/self/status; grep foo.remote /etc/hosts";
    let own = json!({"readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false});
    let mounts = json!([{"name": "data", "mountPath": "/data"}]);
    let main = shell("main", script, json!({"securityContext": own, "volumeMounts": mounts}));
    let spec = json!({"securityContext": context, "containers": [main], "volumes": [{"name": "data", "emptyDir": {}}],
        "hostAliases": [{"ip": "123.45.67.89", "hostnames": ["foo.remote", "bar.remote"]}]});
    let log = output(&cluster, "default", "secured", spec);
    let lines: Vec<&str> = log.lines().collect();
    assert!(lines[0].starts_with("uid=1001 gid=2002"), "{log}");
    assert!(lines[0].contains("3003") && lines[0].contains("4004"), "{log}");
    assert_eq!(lines[1], "1");
    assert!(lines[2].contains("Read-only file system"), "{log}");
    assert_eq!(lines[3], "3003", "files in the volume belong to the pod's group");
    assert!(log.contains("CapEff:\t0000000000000000") && log.contains("NoNewPrivs:\t1"), "{log}");
    assert!(log.contains("123.45.67.89\tfoo.remote\tbar.remote"), "{log}");

    // What a node does not allow is refused by it, and what nobody may do is not even created.
    let unsafe_sysctl = json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "10000"}]},
        "containers": [shell("main", "true", json!({}))]});
    cluster.apply(&pod("unsafe", unsafe_sysctl).to_string());
    let refused = cluster.wait(&["pod", "unsafe"], |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(refused["status"]["reason"], "SysctlForbidden");
    let message = "Pod was rejected: forbidden sysctl: \"kernel.msgmax\" not allowlisted";
    assert_eq!(refused["status"]["message"], message);

    let root = json!({"securityContext": {"runAsNonRoot": true}, "containers": [shell("main", "true", json!({}))]});
    cluster.apply(&pod("root", root).to_string());
    let waiting = cluster
        .wait(&["pod", "root"], |pod| first_status(pod)["state"]["waiting"]["reason"] == "CreateContainerConfigError");
    let message = first_status(&waiting)["state"]["waiting"]["message"].as_str().unwrap();
    assert!(message.starts_with("container has runAsNonRoot and image will run as root"), "{message}");
}

#[test]
fn runtime_classes_choose_the_runtime() {
    let (cluster, _archive) = cluster();
    cluster.apply(
        &json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "unknown"},
            "handler": "no-such-handler", "overhead": {"podFixed": {"cpu": "10m", "memory": "1Mi"}}})
        .to_string(),
    );
    let main = json!([shell("main", "sleep 100000", json!({}))]);
    cluster.apply(&pod("chosen", json!({"runtimeClassName": "unknown", "containers": main})).to_string());
    let pod_object = cluster.get(&["pod", "chosen"]);
    assert_eq!(pod_object["spec"]["overhead"], json!({"cpu": "10m", "memory": "1Mi"}));
    eventually("the runtime's refusal is told", || {
        let all = events(&cluster, "chosen");
        let told = all.iter().any(|(reason, message)| {
            reason == "FailedCreatePodSandBox" && message.contains("no runtime for \"no-such-handler\" is configured")
        });
        if told { Ok(()) } else { Err(format!("{all:?}")) }
    });
    let file = cluster.directory.path().join("missing.json");
    std::fs::write(&file, pod("missing", json!({"runtimeClassName": "none", "containers": main})).to_string()).unwrap();
    let complaint = cluster.refuse(&["create", "-f", &file.to_string_lossy()]);
    assert!(complaint.contains("pod rejected: RuntimeClass \"none\" not found"), "{complaint}");
}

#[test]
fn paths_in_volumes_expand_and_stay_inside() {
    let (cluster, _archive) = cluster();
    let env = json!([field("NAME", "metadata.name"), field("ANNOTATION", "metadata.annotations['path']")]);
    let mount = |expression: &str| json!([{"name": "data", "mountPath": "/sub", "subPathExpr": expression}, {"name": "data", "mountPath": "/all"}]);
    let volumes = json!([{"name": "data", "emptyDir": {}}]);
    let script = "echo hello > /sub/file && cat /all/expanded/file";
    let main = shell("main", script, json!({"env": env, "volumeMounts": mount("$(NAME)")}));
    let log = output(&cluster, "default", "expanded", json!({"containers": [main], "volumes": volumes}));
    assert_eq!(log, "hello\n");

    // A path that leads out is an error until the pod's annotation mends it.
    let main = shell("main", "sleep 100000", json!({"env": env, "volumeMounts": mount("$(ANNOTATION)")}));
    let mut leading_out = pod("mended", json!({"containers": [main], "volumes": volumes}));
    leading_out["metadata"]["annotations"] = json!({"path": "/tmp"});
    cluster.apply(&leading_out.to_string());
    cluster.wait(&["pod", "mended"], |pod| {
        first_status(pod)["state"]["waiting"]["reason"] == "CreateContainerConfigError"
    });
    cluster.run(&["annotate", "--overwrite", "pod", "mended", "path=mypath"]);
    cluster.wait(&["pod", "mended"], |pod| first_status(pod)["ready"] == true);
}
