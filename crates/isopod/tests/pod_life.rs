//! The life of pods as their users see it: images' own settings, init and ephemeral containers, termination messages,
//! logs, deadlines, changes and evictions.

mod common;

use common::{cluster, container, first_status, output, pod, seconds, shell, with};
use serde_json::{Value, json};
use testkit::{Cluster, condition, eventually};

type Act = fn(&Cluster, &str);

/// An image with settings of its own.
const CONFIGURED: &str = "docker.io/library/configured:test";

#[test]
fn pods_live_as_upstreams_do() {
    let (cluster, _archive) = cluster();
    let archive = cluster.directory.path().join("configured.tar");
    let config = json!({"Entrypoint": ["/bin/echo", "entry"], "Cmd": ["command"], "User": "nobody",
        "WorkingDir": "/made/for/it", "Env": ["PATH=/bin", "GREETING=hello"]});
    testkit::configured_archive(&archive, CONFIGURED, &config);
    let imported = cluster.isopod(&["image", "import"]).arg(&archive).output().unwrap();
    assert!(imported.status.success(), "{imported:?}");
    let acts: &[(&str, Act)] = &[
        ("images", images),
        ("messages", messages),
        ("init", init),
        ("ephemeral", ephemeral),
        ("logs", logs),
        ("hosts", hosts),
        ("deadlines", deadlines),
        ("changes", changes),
        ("hooks", hooks),
    ];
    testkit::beside(&cluster, acts, |namespace, act| act(&cluster, namespace));
    evictions(&cluster);
}

/// Creates a pod in a namespace.
fn create(cluster: &Cluster, namespace: &str, name: &str, spec: Value) {
    let mut pod = pod(name, spec);
    pod["metadata"]["namespace"] = namespace.into();
    cluster.apply(&pod.to_string());
}

fn wait(cluster: &Cluster, namespace: &str, name: &str, condition: impl Fn(&Value) -> bool) -> Value {
    cluster.wait(&["-n", namespace, "pod", name], condition)
}

/// Reason and message of a pod's events.
fn events(cluster: &Cluster, namespace: &str, name: &str) -> Vec<(String, String)> {
    let list = cluster.get(&["-n", namespace, "events", "--field-selector", &format!("involvedObject.name={name}")]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    list["items"].as_array().unwrap().iter().map(|event| (text(&event["reason"]), text(&event["message"]))).collect()
}

fn phase(wanted: &str) -> impl Fn(&Value) -> bool {
    move |pod| pod["status"]["phase"] == wanted
}

fn images(cluster: &Cluster, namespace: &str) {
    let image = |extra: Value| json!({"containers": [with(container("main", json!({"image": CONFIGURED})), extra)]});
    let cases = [
        ("defaults", json!({}), "entry command\n"),
        ("arguments", json!({"args": ["mine"]}), "entry mine\n"),
        ("command", json!({"command": ["/bin/echo", "own"]}), "own\n"),
        ("both", json!({"command": ["/bin/echo", "own"], "args": ["mine"]}), "own mine\n"),
        (
            "settings",
            json!({"command": ["sh", "-c", "id -un; pwd; echo $HOME $GREETING"]}),
            "nobody\n/made/for/it\n/ hello\n",
        ),
        ("workdir", json!({"command": ["sh", "-c", "pwd"], "workingDir": "/not/there"}), "/not/there\n"),
    ];
    for (name, extra, expected) in cases {
        assert_eq!(output(cluster, namespace, name, image(extra)), expected, "{name}");
    }
    create(
        cluster,
        namespace,
        "named-user",
        with(image(json!({})), json!({"securityContext": {"runAsNonRoot": true}})),
    );
    let waiting = wait(cluster, namespace, "named-user", |pod| {
        first_status(pod)["state"]["waiting"]["reason"] == "CreateContainerConfigError"
    });
    let message = first_status(&waiting)["state"]["waiting"]["message"].as_str().unwrap();
    let expected = "container has runAsNonRoot and image has non-numeric user (nobody), cannot verify user is non-root";
    assert!(message.starts_with(expected), "{message}");
}

fn messages(cluster: &Cluster, namespace: &str) {
    let fall_back = json!({"terminationMessagePolicy": "FallbackToLogsOnError"});
    let custom = json!({"terminationMessagePath": "/dev/custom-log", "securityContext": {"runAsUser": 10000}});
    let cases = [
        ("file", "echo -n DONE > /dev/termination-log", json!({}), "Succeeded", json!("DONE")),
        ("custom", "echo -n DONE > /dev/custom-log", custom, "Succeeded", json!("DONE")),
        ("fails", "echo -n DONE; false", fall_back.clone(), "Failed", json!("DONE")),
        ("succeeds", "echo -n DONE", fall_back.clone(), "Succeeded", Value::Null),
        ("prefers", "echo -n OK > /dev/termination-log; echo no; false", fall_back.clone(), "Failed", json!("OK")),
        ("silent", "echo -n DONE; false", json!({}), "Failed", Value::Null),
        (
            "tail",
            "seq 1 100; false",
            fall_back,
            "Failed",
            json!((21..=100).map(|n| format!("{n}\n")).collect::<String>()),
        ),
    ];
    for (name, script, extra, ..) in &cases {
        let main = shell("main", script, extra.clone());
        create(cluster, namespace, name, json!({"restartPolicy": "Never", "containers": [main]}));
    }
    for (name, _, _, end, message) in &cases {
        let pod = wait(cluster, namespace, name, phase(end));
        assert_eq!(first_status(&pod)["state"]["terminated"]["message"], *message, "{name}");
    }
}

fn init(cluster: &Cluster, namespace: &str) {
    let script = |name: &str, script: &str| shell(name, script, json!({}));
    let sidecar = shell(
        "beside",
        "sleep 100000",
        json!({"restartPolicy": "Always",
        "startupProbe": {"exec": {"command": ["true"]}, "periodSeconds": 1}}),
    );
    let cases = [
        ("passes", "Never", [script("one", "true"), script("two", "true")], script("main", "true")),
        ("fails", "Never", [script("one", "true"), script("two", "false")], script("main", "true")),
        ("again", "Always", [script("one", "false"), script("two", "true")], script("main", "sleep 100000")),
        ("sidecar", "Never", [sidecar, script("two", "true")], script("main", "sleep 2")),
    ];
    for (name, policy, init, main) in &cases {
        create(
            cluster,
            namespace,
            name,
            json!({"restartPolicy": policy, "initContainers": init, "containers": [main]}),
        );
    }
    let inits = |pod: &Value| pod["status"]["initContainerStatuses"].as_array().cloned().unwrap_or_default();
    let initialized = |pod: &Value| condition(pod, "Initialized")["status"].clone();
    let waits = json!({"waiting": {"reason": "PodInitializing"}});

    let passes = wait(cluster, namespace, "passes", phase("Succeeded"));
    assert_eq!(
        (initialized(&passes), condition(&passes, "Initialized")["reason"].clone()),
        (json!("True"), json!("PodCompleted"))
    );
    for status in inits(&passes) {
        assert_eq!((&status["ready"], &status["state"]["terminated"]["exitCode"]), (&json!(true), &json!(0)));
    }
    let fails = wait(cluster, namespace, "fails", phase("Failed"));
    assert_eq!((initialized(&fails), &first_status(&fails)["state"]), (json!("False"), &waits));
    assert_eq!(condition(&fails, "Initialized")["message"], "containers with incomplete status: [two]");
    let again = wait(cluster, namespace, "again", |pod| inits(pod).first().is_some_and(|one| one["restartCount"] == 2));
    assert_eq!((&again["status"]["phase"], initialized(&again)), (&json!("Pending"), json!("False")));
    assert_eq!((&inits(&again)[1]["state"], &first_status(&again)["state"]), (&waits, &waits));
    assert_eq!(condition(&again, "Initialized")["message"], "containers with incomplete status: [one two]");
    // A sidecar neither keeps a pod from its end nor decides it.
    let sidecar = wait(cluster, namespace, "sidecar", phase("Succeeded"));
    assert_eq!(inits(&sidecar)[0]["state"]["terminated"]["exitCode"], 137);
}

fn ephemeral(cluster: &Cluster, namespace: &str) {
    create(cluster, namespace, "debugged", json!({"containers": [shell("main", "sleep 100000", json!({}))]}));
    wait(cluster, namespace, "debugged", |pod| first_status(pod)["ready"] == true);
    let path = format!("/api/v1/namespaces/{namespace}/pods/debugged/ephemeralcontainers");
    let add = |name: &str, extra: Value| json!({"spec": {"ephemeralContainers": [with(shell(name, "sleep 100000", extra), json!({}))]}});
    let api = cluster.api();
    api.patch(&path, &add("first", json!({"targetContainerName": "main"})));
    let mut whole = api.get(&path);
    let more = add("second", json!({}))["spec"]["ephemeralContainers"][0].clone();
    // The kubelet writes the status at the same time.
    whole["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    whole["spec"]["ephemeralContainers"].as_array_mut().unwrap().push(more);
    api.put(&path, &whole);
    wait(cluster, namespace, "debugged", |pod| {
        let all = pod["status"]["ephemeralContainerStatuses"].as_array().cloned().unwrap_or_default();
        all.len() == 2 && all.iter().all(|status| !status["state"]["running"].is_null())
    });
    let run = |container: &str, script: &str| {
        cluster.run(&["-n", namespace, "exec", "debugged", "-c", container, "--", "sh", "-c", script])
    };
    assert_eq!(run("first", "echo marco"), "marco\n");
    // The first one sees its target's processes, the second one only its own.
    for (name, sleepers) in [("first", "2\n"), ("second", "1\n")] {
        assert_eq!(run(name, "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep -c '^100000$'"), sleepers, "{name}");
    }
}

fn logs(cluster: &Cluster, namespace: &str) {
    create(
        cluster,
        namespace,
        "speaks",
        json!({"containers": [shell("main", "echo one; echo -n two; sleep 100000", json!({}))]}),
    );
    wait(cluster, namespace, "speaks", |pod| first_status(pod)["ready"] == true);
    let path = format!("/api/v1/namespaces/{namespace}/pods/speaks/log?container=main");
    let api = cluster.api();
    let text = |protocol: &str| api.messages(&path, protocol).concat();
    eventually("the first line is there", || {
        let found = text("binary.k8s.io");
        if found == b"one\n" { Ok(()) } else { Err(format!("{found:?}")) }
    });
    assert_eq!(text("unknown, base64.binary.k8s.io"), b"b25lCg==");

    // What failed last is the previous run, even before the next one; an unfinished line ends without a newline.
    create(cluster, namespace, "crashes", json!({"containers": [shell("main", "echo -n gone; false", json!({}))]}));
    let crashed = |pod: &Value| first_status(pod)["state"]["waiting"]["reason"] == "CrashLoopBackOff";
    wait(cluster, namespace, "crashes", crashed);
    for arguments in [&["logs", "crashes"][..], &["logs", "--previous", "crashes"]] {
        let all: Vec<&str> = ["-n", namespace].iter().chain(arguments).copied().collect();
        assert_eq!(cluster.run(&all), "gone");
    }
    let none = cluster.refuse(&["-n", namespace, "logs", "--previous", "speaks"]);
    assert!(none.contains("previous terminated container \"main\" in pod \"speaks\" not found"), "{none}");
    create(
        cluster,
        namespace,
        "missing",
        json!({"containers": [container("main", json!({"image": "localhost:1/none:1"}))]}),
    );
    let refused = |pod: &Value| first_status(pod)["state"]["waiting"]["reason"] == "ImagePullBackOff";
    wait(cluster, namespace, "missing", refused);
    let none = cluster.refuse(&["-n", namespace, "logs", "missing"]);
    assert!(
        none.contains("container \"main\" in pod \"missing\" is waiting to start: trying and failing to pull image"),
        "{none}"
    );
}

fn hosts(cluster: &Cluster, namespace: &str) {
    let volume = json!([{"name": "hosts", "hostPath": {"path": "/etc/hosts", "type": "FileOrCreate"}}]);
    let mounts = |paths: &[&str]| {
        let mounts: Vec<Value> = paths.iter().map(|path| json!({"name": "hosts", "mountPath": path})).collect();
        json!({"volumeMounts": mounts})
    };
    let original = "/etc/hosts-original";
    let spec = json!({"hostname": "given", "subdomain": "sub", "setHostnameAsFQDN": true, "volumes": volume, "containers": [
        shell("managed", "sleep 100000", mounts(&[original])), shell("mounted", "sleep 100000", mounts(&[original, "/etc/hosts"]))]});
    create(cluster, namespace, "own", spec);
    let spec = json!({"hostNetwork": true, "volumes": volume, "containers": [shell("managed", "sleep 100000", mounts(&[original]))]});
    create(cluster, namespace, "hosts", spec);
    for name in ["own", "hosts"] {
        cluster.run(&["-n", namespace, "wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=120s"]);
    }
    let read = |pod: &str, container: &str, file: &str| {
        cluster.run(&["-n", namespace, "exec", pod, "-c", container, "--", "cat", file])
    };
    const MANAGED: &str = "# Kubernetes-managed hosts file.";
    let managed = read("own", "managed", "/etc/hosts");
    assert!(managed.starts_with(MANAGED) && managed != read("own", "managed", original), "{managed}");
    let address = cluster.get(&["-n", namespace, "pod", "own"])["status"]["podIP"].as_str().unwrap().to_owned();
    assert!(managed.ends_with(&format!("{address}\tgiven.sub.{namespace}.svc.cluster.local\tgiven\n")), "{managed}");
    assert_eq!(read("own", "mounted", "/etc/hosts"), read("own", "mounted", original));
    assert!(!read("hosts", "managed", "/etc/hosts").starts_with(MANAGED));
    let hostname = cluster.run(&["-n", namespace, "exec", "own", "-c", "managed", "--", "hostname"]);
    assert_eq!(hostname, format!("given.sub.{namespace}.svc.cluster.local\n"));
}

fn deadlines(cluster: &Cluster, namespace: &str) {
    let spec = |seconds: u32| json!({"spec": {"activeDeadlineSeconds": seconds}}).to_string();
    fn patch<'a>(namespace: &'a str, patch: &'a str) -> [&'a str; 7] {
        ["-n", namespace, "patch", "pod/limited", "--type=merge", "-p", patch]
    }
    create(cluster, namespace, "limited", json!({"containers": [shell("main", "sleep 100000", json!({}))]}));
    wait(cluster, namespace, "limited", |pod| first_status(pod)["ready"] == true);
    assert!(is_known(cluster, namespace, "pods") && is_known(cluster, namespace, "runningpods"));
    cluster.run(&patch(namespace, &spec(2)));
    let ended = wait(cluster, namespace, "limited", phase("Failed"));
    let message = "Pod was active on the node longer than the specified deadline";
    assert_eq!(
        (&ended["status"]["reason"], &ended["status"]["message"]),
        (&json!("DeadlineExceeded"), &json!(message))
    );
    let more = cluster.refuse(&patch(namespace, &spec(9)));
    assert!(more.contains("must be less than or equal to previous value"), "{more}");
    assert!(is_known(cluster, namespace, "pods") && !is_known(cluster, namespace, "runningpods"));
}

/// Whether the kubelet lists the pod `limited` of a namespace.
fn is_known(cluster: &Cluster, namespace: &str, list: &str) -> bool {
    let node = cluster.get(&["nodes"])["items"][0]["metadata"]["name"].as_str().unwrap().to_owned();
    let answer = cluster.run(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/{list}/")]);
    let pods: Value = serde_json::from_str(&answer).unwrap();
    let mut metadata = pods["items"].as_array().unwrap().iter().map(|pod| &pod["metadata"]);
    metadata.any(|metadata| metadata["namespace"] == namespace && metadata["name"] == "limited")
}

/// A new image takes effect at once.
fn changes(cluster: &Cluster, namespace: &str) {
    create(cluster, namespace, "swapped", json!({"containers": [shell("main", "sleep 100000", json!({}))]}));
    wait(cluster, namespace, "swapped", |pod| first_status(pod)["ready"] == true);
    cluster.run(&["-n", namespace, "set", "image", "pod/swapped", &format!("main={CONFIGURED}")]);
    let running = |pod: &Value| first_status(pod)["restartCount"] == 1 && first_status(pod)["ready"] == true;
    let swapped = wait(cluster, namespace, "swapped", running);
    assert_eq!(first_status(&swapped)["image"], CONFIGURED);
    let told = events(cluster, namespace, "swapped");
    let message = "Container main definition changed, will be restarted".to_owned();
    assert!(told.contains(&("Killing".to_owned(), message)), "{told:?}");

    // The back-off of earlier failures, of 40 seconds by now, does not hold back a change.
    let greets = shell("main", "[ $GREETING = hello ] && sleep 100000", json!({}));
    create(cluster, namespace, "crashes", json!({"containers": [greets]}));
    wait(cluster, namespace, "crashes", |pod| {
        first_status(pod)["restartCount"] == 3 && first_status(pod)["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    });
    cluster.run(&["-n", namespace, "set", "image", "pod/crashes", &format!("main={CONFIGURED}")]);
    let mended = wait(cluster, namespace, "crashes", |pod| first_status(pod)["ready"] == true);
    let status = first_status(&mended);
    let pause =
        seconds(&status["state"]["running"]["startedAt"]) - seconds(&status["lastState"]["terminated"]["finishedAt"]);
    assert!(pause < 40, "{status:#}");
}

/// A hook's request is heard whatever is answered; a hook that fails ends its container.
fn hooks(cluster: &Cluster, namespace: &str) {
    create(cluster, namespace, "server", json!({"containers": [shell("main", "httpd -f -p 8080 -h /www", json!({}))]}));
    let server = wait(cluster, namespace, "server", |pod| first_status(pod)["ready"] == true);
    let address = &server["status"]["podIP"];
    let get = |scheme: &str| json!({"httpGet": {"host": address, "port": 8080, "path": "/none", "scheme": scheme}});
    let hooked = |post: Value| {
        let pre = json!({"exec": {"command": ["sh", "-c", "echo stopped > /proc/1/fd/1"]}});
        let lifecycle = json!({"lifecycle": {"postStart": post, "preStop": pre}});
        let main = shell("main", "trap exit TERM; while true; do sleep 0.1; done", lifecycle);
        json!({"terminationGracePeriodSeconds": 60, "containers": [main]})
    };
    for (name, post) in
        [("answered", get("HTTP")), ("plain", get("HTTPS")), ("fails", json!({"exec": {"command": ["false"]}}))]
    {
        create(cluster, namespace, name, hooked(post));
    }
    for name in ["answered", "plain"] {
        wait(cluster, namespace, name, |pod| {
            first_status(pod)["ready"] == true && first_status(pod)["restartCount"] == 0
        });
    }
    let told = |name: &str, expected: &[(&str, &str)]| {
        eventually(&format!("the events of {name}"), || {
            let all = events(cluster, namespace, name);
            let there = |(reason, message): &(&str, &str)| all.iter().any(|(r, m)| r == reason && m == message);
            if expected.iter().all(there) { Ok(()) } else { Err(format!("{all:?}")) }
        });
    };
    let host = address.as_str().unwrap();
    let fallback = format!("request to HTTPS lifecycle hook {host}:8080 got HTTP response, retry with HTTP succeeded");
    told("plain", &[("LifecycleHTTPFallback", &fallback)]);
    told("fails", &[("FailedPostStartHook", "PostStartHook failed"), ("Killing", "FailedPostStartHook")]);
    wait(cluster, namespace, "fails", |pod| !first_status(pod)["lastState"]["terminated"].is_null());
    assert_eq!(cluster.run(&["-n", namespace, "logs", "--previous", "fails"]), "stopped\n");
}

/// A node's NoExecute taint ends pods when their patience does. The cluster's one node is the whole cluster's.
fn evictions(cluster: &Cluster) {
    let taint = |seconds: Value| json!([{"key": "example.com/leave", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}]);
    let pods = [
        ("intolerant", json!([])),
        ("brief", taint(json!(2))),
        ("patient", taint(json!(3600))),
        ("tolerant", taint(Value::Null)),
    ];
    for (name, tolerations) in &pods {
        let main = shell("main", "sleep 100000", json!({}));
        create(cluster, "default", name, json!({"tolerations": tolerations, "containers": [main]}));
    }
    for (name, _) in &pods {
        wait(cluster, "default", name, |pod| first_status(pod)["ready"] == true);
    }
    let node = cluster.get(&["nodes"])["items"][0]["metadata"]["name"].as_str().unwrap().to_owned();
    cluster.run(&["taint", "node", &node, "example.com/leave=now:NoExecute"]);
    for name in ["intolerant", "brief"] {
        cluster.run(&["wait", "--for=delete", &format!("pod/{name}"), "--timeout=120s"]);
        let told = events(cluster, "default", name);
        let marked = ("TaintManagerEviction".to_owned(), format!("Marking for deletion Pod default/{name}"));
        assert!(told.contains(&marked), "{told:?}");
    }
    cluster.run(&["taint", "node", &node, "example.com/leave-"]);
    eventually("the eviction of the patient one is cancelled", || {
        let all = events(cluster, "default", "patient");
        let cancelled = all.iter().any(|(_, message)| message == "Cancelling deletion of Pod default/patient");
        if cancelled { Ok(()) } else { Err(format!("{all:?}")) }
    });
    for name in ["patient", "tolerant"] {
        let pod = cluster.get(&["pod", name]);
        assert!(first_status(&pod)["ready"] == true && pod["metadata"]["deletionTimestamp"].is_null(), "{pod:#}");
    }
}
