//! What containers find in the volumes made of API objects and of nothing: contents, modes and owners to the last bit,
//! and how they follow their objects.

mod common;

use common::{cluster, field, first_status, output, pod, shell, with};
use serde_json::{Value, json};
use testkit::{Cluster, eventually};

type Act = fn(&Cluster, &str);

#[test]
fn volumes_hold_what_they_should() {
    let (cluster, _archive) = cluster();
    let acts: &[(&str, Act)] = &[
        ("modes", modes),
        ("owners", owners),
        ("empty_dirs", empty_dirs),
        ("updates", updates),
        ("sub_paths", sub_paths),
        ("many", many),
        ("files_of_variables", files_of_variables),
    ];
    testkit::beside(&cluster, acts, |namespace, act| act(&cluster, namespace));
}

/// A pod's spec with these volumes, each mounted at `/v/NAME`.
fn mounting(volumes: &[(String, Value)], script: &str, context: &Value) -> Value {
    let mounts: Vec<Value> =
        volumes.iter().map(|(name, _)| json!({"name": name, "mountPath": format!("/v/{name}")})).collect();
    let sources: Vec<Value> =
        volumes.iter().map(|(name, source)| with(json!({"name": name}), source.clone())).collect();
    let main = shell(
        "main",
        script,
        json!({"volumeMounts": mounts, "resources": {"limits": {"cpu": "120m", "memory": "64Mi"}}}),
    );
    json!({"securityContext": context, "containers": [main], "volumes": sources})
}

fn objects(cluster: &Cluster, namespace: &str) {
    cluster.run(&["-n", namespace, "create", "configmap", "settings", "--from-literal=one=1", "--from-literal=two=2"]);
    cluster.run(&[
        "-n",
        namespace,
        "create",
        "secret",
        "generic",
        "hidden",
        "--from-literal=one=1",
        "--from-literal=two=2",
    ]);
}

/// Every sort of source, bare and within a projected volume, with `extra` in the volume and `item` in its items.
fn sources(extra: &Value, item: &Value) -> Vec<(String, Value)> {
    let key = with(json!({"key": "two", "path": "dir/file"}), item.clone());
    let name = with(json!({"path": "dir/file", "fieldRef": {"fieldPath": "metadata.name"}}), item.clone());
    let bare = [
        ("config", "configMap", json!({"name": "settings", "items": [key]})),
        ("secret", "secret", json!({"secretName": "hidden", "items": [key]})),
        ("downward", "downwardAPI", json!({"items": [name]})),
    ];
    let mut all = Vec::new();
    for (volume, kind, source) in bare {
        let mut projected = source.clone();
        if let Some(name) = projected.as_object_mut().unwrap().remove("secretName") {
            projected["name"] = name;
        }
        let projected = with(json!({"sources": [{kind: projected}]}), extra.clone());
        all.push((format!("{volume}-projected"), json!({"projected": projected})));
        all.push((volume.to_owned(), json!({kind: with(source, extra.clone())})));
    }
    all
}

fn modes(cluster: &Cluster, namespace: &str) {
    objects(cluster, namespace);
    let script = "cd /v; for f in */dir/file; do echo $(stat -L -c '%a %u:%g' $f) $f $(cat $f); done";
    let cases = [
        ("plain", json!({}), json!({}), "644"),
        ("default", json!({"defaultMode": 0o400}), json!({}), "400"),
        ("item", json!({"defaultMode": 0o440}), json!({"mode": 0o400}), "400"),
    ];
    for (name, extra, item, mode) in cases {
        let log = output(cluster, namespace, name, mounting(&sources(&extra, &item), script, &json!({})));
        let lines: Vec<&str> = log.lines().collect();
        assert_eq!(lines.len(), 6, "{log}");
        for line in lines {
            let content = if line.contains("downward") { name } else { "2" };
            assert!(line.starts_with(&format!("{mode} 0:0 ")) && line.ends_with(content), "{name}: {line}");
        }
    }

    // Names without items, binary data, and every field and resource there is.
    let binary = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "binary", "namespace": namespace},
        "data": {"text": "a"}, "binaryData": {"bytes": "3srK/vD/"}});
    cluster.apply(&binary.to_string());
    let resource = |path: &str, resource: &str, divisor: &str| json!({"path": path, "resourceFieldRef": {"containerName": "main", "resource": resource, "divisor": divisor}});
    let label = json!({"path": "label", "fieldRef": {"fieldPath": "metadata.labels['app']"}});
    let items = json!([
        label, resource("cpu", "limits.cpu", "1m"), resource("cpus", "requests.cpu", "0"),
        resource("memory", "limits.memory", "1Mi"), resource("disk", "limits.ephemeral-storage", "0"),
        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
        {"path": "annotations", "fieldRef": {"fieldPath": "metadata.annotations"}},
    ]);
    let projected = json!({"projected": {"sources": [
        {"configMap": {"name": "settings", "items": [{"key": "one", "path": "map"}]}},
        {"secret": {"name": "hidden", "items": [{"key": "two", "path": "secret"}]}},
        {"downwardAPI": {"items": items}}]}});
    let volumes = [("binary".to_owned(), json!({"configMap": {"name": "binary"}})), ("all".to_owned(), projected)];
    let script = "base64 /v/binary/bytes; cat /v/binary/text; echo; ls /v/binary | wc -l; cd /v/all; stat -L -c %a .;
        for f in map secret label cpu cpus memory labels annotations; do echo $f $(cat $f); done; [ $(cat disk) -gt 0 ] && echo disk";
    let mut described =
        pod("described", with(json!({"restartPolicy": "Never"}), mounting(&volumes, script, &json!({}))));
    described["metadata"]["namespace"] = namespace.into();
    described["metadata"]["labels"] = json!({"app": "it", "z": "1"});
    described["metadata"]["annotations"] = json!({"note": "a \"b\"\nc"});
    cluster.apply(&described.to_string());
    cluster.wait(&["-n", namespace, "pod", "described"], |pod| pod["status"]["phase"] == "Succeeded");
    let log = cluster.run(&["-n", namespace, "logs", "described"]);
    let start = "3srK/vD/\na\n2\n777\nmap 1\nsecret 2\nlabel it\ncpu 120\ncpus 1\nmemory 64\nlabels app=\"it\" z=\"1\"\nannotations ";
    assert!(log.starts_with(start) && log.contains("note=\"a \\\"b\\\"\\nc\"") && log.ends_with("disk\n"), "{log}");
}

/// A user that is not root reads what the group may.
fn owners(cluster: &Cluster, namespace: &str) {
    objects(cluster, namespace);
    let script = "cd /v; for f in */dir/file; do echo $(stat -L -c '%a %u:%g' $f) $(stat -c %a:%g $(dirname $(dirname $f))) $f $(cat $f); done";
    let stranger = json!({"runAsUser": 1000});
    let log = output(cluster, namespace, "stranger", mounting(&sources(&json!({}), &json!({})), script, &stranger));
    assert_eq!(log.lines().filter(|line| line.starts_with("644 0:0 777:0 ")).count(), 6, "{log}");
    let grouped = json!({"runAsUser": 1000, "fsGroup": 1001});
    let volumes = sources(&json!({"defaultMode": 0o440}), &json!({}));
    let log = output(cluster, namespace, "grouped", mounting(&volumes, script, &grouped));
    assert_eq!(log.lines().filter(|line| line.starts_with("440 0:1001 2777:1001 ")).count(), 6, "{log}");
}

fn empty_dirs(cluster: &Cluster, namespace: &str) {
    let volumes: Vec<(String, Value)> = ["disk", "memory"]
        .map(|name| (name.to_owned(), json!({"emptyDir": {"medium": if name == "memory" { "Memory" } else { "" }}})))
        .into();
    let script = "for v in disk memory; do cd /v/$v; stat -c %a .; for m in 0644 0666 0777; do umask 0; echo x > $m; chmod $m $m;
        stat -c '%a %u' $m; cat $m; done; done; grep -c ' /v/memory tmpfs ' /proc/mounts";
    for (name, context, user) in
        [("root", json!({}), 0), ("user", json!({"runAsUser": 1001, "runAsNonRoot": true}), 1001)]
    {
        let log = output(cluster, namespace, name, mounting(&volumes, script, &context));
        let one = format!("777\n644 {user}\nx\n666 {user}\nx\n777 {user}\nx\n");
        assert_eq!(log, format!("{one}{one}1\n"), "{name}");
    }
}

fn updates(cluster: &Cluster, namespace: &str) {
    objects(cluster, namespace);
    cluster.run(&["-n", namespace, "create", "configmap", "goes", "--from-literal=key=there"]);
    let optional = |name: &str| json!({"configMap": {"name": name, "optional": true}});
    let own = json!({"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]});
    let volumes = [
        ("map".to_owned(), json!({"configMap": {"name": "settings"}})),
        ("secret".to_owned(), json!({"projected": {"sources": [{"secret": {"name": "hidden"}}]}})),
        ("labels".to_owned(), json!({"downwardAPI": own})),
        ("goes".to_owned(), optional("goes")),
        ("comes".to_owned(), optional("comes")),
    ];
    let mut reader = pod("reader", mounting(&volumes, "sleep 100000", &json!({})));
    reader["metadata"]["namespace"] = namespace.into();
    reader["metadata"]["labels"] = json!({"step": "0"});
    cluster.apply(&reader.to_string());
    cluster.run(&["-n", namespace, "wait", "--for=condition=Ready", "pod/reader", "--timeout=120s"]);
    let read = |path: &str, expected: &str| {
        eventually(&format!("{path} reads {expected:?}"), || {
            let script = format!("cat /v/{path} 2>/dev/null; true");
            let found = cluster.run(&["-n", namespace, "exec", "reader", "--", "sh", "-c", &script]);
            if found == expected { Ok(()) } else { Err(found) }
        });
    };
    read("map/one", "1");
    read("goes/key", "there");
    let patch = |object: &str, patch: Value| {
        cluster.run(&["-n", namespace, "patch", object, "--type=merge", "-p", &patch.to_string()]);
    };
    patch("configmap/settings", json!({"data": {"one": "uno", "two": null, "three": "tre"}}));
    patch("secret/hidden", json!({"stringData": {"one": "uno"}}));
    patch("pod/reader", json!({"metadata": {"labels": {"step": "1"}}}));
    cluster.run(&["-n", namespace, "delete", "configmap", "goes"]);
    cluster.run(&["-n", namespace, "create", "configmap", "comes", "--from-literal=key=here"]);
    for (path, expected) in [
        ("map/one", "uno"),
        ("map/two", ""),
        ("map/three", "tre"),
        ("secret/one", "uno"),
        ("labels/labels", "step=\"1\""),
        ("goes/key", ""),
        ("comes/key", "here"),
    ] {
        read(path, expected);
    }
}

fn sub_paths(cluster: &Cluster, namespace: &str) {
    objects(cluster, namespace);
    let all = sources(&json!({}), &json!({}));
    let volumes: Vec<Value> = all.iter().map(|(name, source)| with(json!({"name": name}), source.clone())).collect();
    let mount =
        |(name, _): &(String, Value)| json!({"name": name, "mountPath": format!("/v/{name}"), "subPath": "dir/file"});
    let mut mounts: Vec<Value> = all.iter().map(mount).collect();
    // One takes the place of a file that is always there, one is a directory.
    mounts.push(json!({"name": "config", "mountPath": "/etc/resolv.conf", "subPath": "dir/file"}));
    mounts.push(json!({"name": "secret", "mountPath": "/v/directory", "subPath": "dir"}));
    let script = "cat /v/config /v/config-projected /v/secret /v/secret-projected /v/downward /v/downward-projected /etc/resolv.conf /v/directory/file";
    let main = shell("main", script, json!({"volumeMounts": mounts}));
    let log = output(cluster, namespace, "pinned", json!({"containers": [main], "volumes": volumes}));
    assert_eq!(log, "2222pinnedpinned22");

    // Upstream's words for paths that are none.
    let env = json!([field("ANNOTATION", "metadata.annotations['path']"), {"name": "UP", "value": ".."}, {"name": "ABSOLUTE", "value": "/tmp"}]);
    let cases = [
        ("empty", "$(ANNOTATION)/x", "missing value for ANNOTATION"),
        ("up", "$(UP)", "unable to provision SubPath `..`: must not contain '..'"),
        ("absolute", "$(ABSOLUTE)", "error SubPath `/tmp` must not be an absolute path"),
    ];
    for (name, expression, _) in cases {
        let mounts = json!([{"name": "data", "mountPath": "/sub", "subPathExpr": expression}]);
        let main = shell("main", "sleep 100000", json!({"env": env, "volumeMounts": mounts}));
        let mut refused = pod(name, json!({"containers": [main], "volumes": [{"name": "data", "emptyDir": {}}]}));
        refused["metadata"]["namespace"] = namespace.into();
        cluster.apply(&refused.to_string());
    }
    for (name, _, message) in cases {
        let waiting = json!({"reason": "CreateContainerConfigError", "message": message});
        cluster.wait(&["-n", namespace, "pod", name], |pod| first_status(pod)["state"]["waiting"] == waiting);
    }
    cluster.run(&["-n", namespace, "annotate", "pod", "empty", "path=mended"]);
    cluster.wait(&["-n", namespace, "pod", "empty"], |pod| first_status(pod)["ready"] == true);
}

/// Many volumes at the same time, in several pods.
fn many(cluster: &Cluster, namespace: &str) {
    const MAPS: usize = 50;
    let maps: Vec<Value> = (0..MAPS)
        .map(|index| {
            json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"key": index.to_string()},
                "metadata": {"name": format!("map-{index}"), "namespace": namespace}})
        })
        .collect();
    cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": maps}).to_string());
    let volumes: Vec<(String, Value)> =
        (0..MAPS).map(|index| (format!("v{index}"), json!({"configMap": {"name": format!("map-{index}")}}))).collect();
    let spec = mounting(&volumes, "cat /v/*/key | wc -c; sleep 100000", &json!({}));
    let spec = with(spec, json!({"terminationGracePeriodSeconds": 0}));
    let set = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "many", "namespace": namespace},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "many"}},
            "template": {"metadata": {"labels": {"app": "many"}}, "spec": spec}}});
    cluster.apply(&set.to_string());
    cluster.wait(&["-n", namespace, "replicaset", "many"], |set| set["status"]["readyReplicas"] == 3);
    eventually("all files are there", || {
        let log = cluster.run(&["-n", namespace, "logs", "-l", "app=many"]);
        if log == "90\n90\n90\n" { Ok(()) } else { Err(log) }
    });
}

/// Variables from a file that a container has written, which must not be a way to the host's files.
fn files_of_variables(cluster: &Cluster, namespace: &str) {
    let variable = |key: &str, path: &str, optional: bool| json!({"name": key, "valueFrom": {"fileKeyRef": {"volumeName": "data", "path": path, "key": key, "optional": optional}}});
    let data = json!({"volumeMounts": [{"name": "data", "mountPath": "/data"}]});
    let write = shell("write", "echo ONE=1 > /data/file; ln -s /etc/os-release /data/link", data);
    let spec = |env: Value| {
        let main = shell("main", "echo $ONE$TWO", json!({"env": env}));
        json!({"restartPolicy": "Never", "initContainers": [write], "containers": [main], "volumes": [{"name": "data", "emptyDir": {}}]})
    };
    let found = spec(json!([variable("ONE", "file", false), variable("TWO", "file", true)]));
    assert_eq!(output(cluster, namespace, "found", found), "1\n");
    for (name, env) in [("absent", variable("TWO", "file", false)), ("link", variable("ID", "link", false))] {
        let mut refused = pod(name, spec(json!([env])));
        refused["metadata"]["namespace"] = namespace.into();
        cluster.apply(&refused.to_string());
        cluster.wait(&["-n", namespace, "pod", name], |pod| {
            first_status(pod)["state"]["waiting"]["reason"] == "CreateContainerConfigError"
        });
    }
}
