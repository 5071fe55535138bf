//! Pods with user namespaces of their own: root inside, nobody outside, and volumes that belong to whom they say.

mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Stdio;

use common::{cluster, container, output, pod, shell, with};
use serde_json::{Value, json};
use testkit::{Cluster, eventually};

type Act = fn(&Cluster, &str);

#[test]
fn pods_have_users_of_their_own() {
    let (cluster, archive) = cluster();
    let handlers = &cluster.get(&["nodes"])["items"][0]["status"]["runtimeHandlers"];
    let features = json!({"recursiveReadOnlyMounts": true, "userNamespaces": true});
    assert_eq!(*handlers, json!([{"name": "", "features": features}]));
    let acts: &[(&str, Act)] =
        &[("ids", ids), ("volumes", volumes), ("rights", rights), ("debugging", debugging), ("probes", probes)];
    testkit::beside(&cluster, acts, |namespace, act| act(&cluster, namespace));

    // The next main process knows what ids pods have, and gives the same to their next containers.
    let old = host_ids(&cluster, "ids", "one");
    cluster.crash();
    cluster.up(&[&archive]);
    eventually("the next main process knows the pod", || {
        let output = cluster.kubectl(&["-n", "ids", "exec", "one", "--", "touch", "/tmp/end"]).output().unwrap();
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    });
    cluster.wait(&["-n", "ids", "pod", "one"], |pod| {
        let status = &pod["status"]["containerStatuses"][0];
        status["restartCount"] == 1 && status["ready"] == true
    });
    assert_eq!(host_ids(&cluster, "ids", "one"), old);
}

/// A pod's spec with its own users.
fn owning(extra: Value) -> Value {
    with(json!({"hostUsers": false}), extra)
}

fn run(cluster: &Cluster, namespace: &str, name: &str, spec: Value) {
    let mut pod = pod(name, spec);
    pod["metadata"]["namespace"] = namespace.into();
    cluster.apply(&pod.to_string());
    cluster.run(&["-n", namespace, "wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=120s"]);
}

fn exec(cluster: &Cluster, namespace: &str, name: &str, script: &str) -> String {
    cluster.run(&["-n", namespace, "exec", name, "--", "sh", "-c", script])
}

/// The first of a pod's ids, as the pod's directory has it.
fn recorded(cluster: &Cluster, namespace: &str, name: &str) -> u32 {
    let uid = cluster.get(&["-n", namespace, "pod", name])["metadata"]["uid"].as_str().unwrap().to_owned();
    let file = format!("/var/lib/isopod/clusters/{}/kubelet/pods/{uid}/userns", cluster.name);
    let kept: Value = serde_json::from_slice(&std::fs::read(&file).unwrap_or_else(|e| panic!("{file}: {e}"))).unwrap();
    kept["uidMappings"][0]["hostId"].as_u64().unwrap() as u32
}

/// The same as a process inside sees it, which must agree.
fn host_ids(cluster: &Cluster, namespace: &str, name: &str) -> u32 {
    let map = exec(cluster, namespace, name, "cat /proc/self/uid_map /proc/self/gid_map");
    let fields: Vec<u32> = map.split_whitespace().map(|field| field.parse().unwrap()).collect();
    let first = recorded(cluster, namespace, name);
    assert!(first >= 65_536 && first.is_multiple_of(65_536), "{first}");
    assert_eq!(fields, [0, first, 65_536, 0, first, 65_536]);
    first
}

/// Owners, as the machine knows them, of the cluster's processes whose command line is this.
fn owners(cluster: &Cluster, command: &str) -> Vec<u32> {
    let cgroups = format!("/{}/", cluster.name);
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let matching = processes.filter(|path| {
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ").trim_end() == command
            && std::fs::read_to_string(path.join("cgroup")).is_ok_and(|paths| paths.contains(&cgroups))
    });
    matching.filter_map(|path| Some(std::fs::metadata(path.join("stat")).ok()?.uid())).collect()
}

fn ids(cluster: &Cluster, namespace: &str) {
    let waits = shell("main", "until [ -e /tmp/end ]; do sleep 0.2; done; exit 1", json!({}));
    run(cluster, namespace, "one", owning(json!({"shareProcessNamespace": true, "containers": [waits]})));
    let sleeps = |seconds: &str| json!({"containers": [container("main", json!({"command": ["sleep", seconds]}))]});
    run(cluster, namespace, "two", owning(sleeps("314159")));
    run(cluster, namespace, "plain", sleeps("271828"));
    let (one, two) = (host_ids(cluster, namespace, "one"), host_ids(cluster, namespace, "two"));
    assert_ne!(one, two);
    assert_eq!(
        exec(cluster, namespace, "two", "id -u; id -g; stat -c %u:%g / /bin/busybox /etc/hosts /dev/null"),
        "0\n0\n0:0\n0:0\n0:0\n0:0\n"
    );
    assert_eq!((owners(cluster, "sleep 314159"), owners(cluster, "sleep 271828")), (vec![two], vec![0]));
    assert_eq!(exec(cluster, namespace, "plain", "echo $(cat /proc/self/uid_map)"), "0 0 4294967295\n");
    let user = json!({"runAsUser": 1000, "runAsGroup": 1001});
    run(cluster, namespace, "user", owning(with(sleeps("161803"), json!({"securityContext": user}))));
    let user = recorded(cluster, namespace, "user");
    assert_eq!(owners(cluster, "sleep 161803"), [user + 1000]);
    assert_eq!(
        exec(cluster, namespace, "user", "id -u; id -g; touch /tmp/x; stat -c %u:%g /tmp/x"),
        "1000\n1001\n1000:1001\n"
    );
    // Its ids are free again once it is gone.
    let uid = cluster.get(&["-n", namespace, "pod", "user"])["metadata"]["uid"].as_str().unwrap().to_owned();
    cluster.run(&["-n", namespace, "delete", "pod", "user", "--wait"]);
    let directory = format!("/var/lib/isopod/clusters/{}/kubelet/pods/{uid}", cluster.name);
    eventually("the pod's directory goes", || match Path::new(&directory).exists() {
        true => Err(directory.clone()),
        false => Ok(()),
    });
}

fn volumes(cluster: &Cluster, namespace: &str) {
    cluster.run(&["-n", namespace, "create", "configmap", "settings", "--from-literal=key=mapped"]);
    cluster.run(&["-n", namespace, "create", "secret", "generic", "hidden", "--from-literal=key=secret"]);
    let host = cluster.directory.path().join("host");
    std::fs::create_dir(&host).unwrap();
    std::fs::set_permissions(&host, PermissionsExt::from_mode(0o777)).unwrap();
    std::fs::write(host.join("file"), "of the host\n").unwrap();
    chown(host.join("file"), Some(1234), Some(4321)).unwrap();
    let volumes = json!([
        {"name": "disk", "emptyDir": {}},
        {"name": "memory", "emptyDir": {"medium": "Memory"}},
        {"name": "map", "configMap": {"name": "settings", "defaultMode": 0o440}},
        {"name": "secret", "secret": {"secretName": "hidden", "defaultMode": 0o440}},
        {"name": "host", "hostPath": {"path": host, "type": "Directory"}},
        {"name": "image", "image": {"reference": common::BUSYBOX, "pullPolicy": "IfNotPresent"}},
    ]);
    let mounts: Vec<Value> = ["disk", "memory", "map", "secret", "host", "image"]
        .iter()
        .map(|name| json!({"name": name, "mountPath": format!("/v/{name}")}))
        .chain([json!({"name": "disk", "mountPath": "/sub", "subPath": "deep"})])
        .collect();
    let script = "cd /v; id -G; for v in disk memory; do echo x > $v/file; stat -c '%u:%g %n' $v $v/file; done
        cat map/key secret/key; echo; stat -L -c '%u:%g %a' map/key secret/key
        wc -c < /var/run/secrets/kubernetes.io/serviceaccount/token | grep -q '^[1-9]' && echo token
        stat -c %u:%g host/file; cat host/file; touch host/new; touch /sub/x; stat -c %u:%g /sub /sub/x image/bin/busybox
        echo ended > /dev/termination-log; { echo '127.0.0.2 more' >> /etc/hosts; } 2>/dev/null || echo kept";
    let main = shell("main", script, json!({"volumeMounts": mounts}));
    let context = json!({"runAsUser": 1000, "fsGroup": 2000});
    let spec = owning(json!({"securityContext": context, "containers": [main], "volumes": volumes}));
    let log = output(cluster, namespace, "user", spec);
    assert_eq!(
        log,
        "0 2000\n0:2000 disk\n1000:2000 disk/file\n0:2000 memory\n1000:2000 memory/file\nmappedsecret\n0:2000 440\n0:2000 440\n\
         token\n1234:4321\nof the host\n0:2000\n1000:2000\n0:0\nkept\n"
    );
    let ended = cluster.get(&["-n", namespace, "pod", "user"]);
    assert_eq!(common::first_status(&ended)["state"]["terminated"]["message"], "ended\n");
    let new = std::fs::metadata(host.join("new")).unwrap();
    assert_eq!((new.uid(), new.gid()), (1000, 0), "the host has the ids of the container");

    let main = shell(
        "main",
        "chown 5:6 /v/host/new && stat -c %u:%g /v/host/new; echo '127.0.0.2 more' >> /etc/hosts && echo wrote",
        json!({"volumeMounts": [{"name": "host", "mountPath": "/v/host"}]}),
    );
    let spec = owning(json!({"containers": [main], "volumes": [volumes[4]]}));
    assert_eq!(output(cluster, namespace, "root", spec), "5:6\nwrote\n");
    let new = std::fs::metadata(host.join("new")).unwrap();
    assert_eq!((new.uid(), new.gid()), (5, 6));
}

fn rights(cluster: &Cluster, namespace: &str) {
    // Should the write succeed, it changes nothing.
    let script = "exec 2>&1; mount -t tmpfs tmpfs /tmp && touch /tmp/x && echo mounted
        v=$(cat /proc/sys/kernel/panic); echo $v > /proc/sys/kernel/panic || echo kept
        grep -q ' /proc/sys proc ro' /proc/mounts && echo guarded; true";
    let context =
        |context: Value| owning(json!({"containers": [shell("main", script, json!({"securityContext": context}))]}));
    let admin = json!({"capabilities": {"add": ["SYS_ADMIN"]}});
    let unmasked = with(admin.clone(), json!({"procMount": "Unmasked"}));
    let denied = "sh: can't create /proc/sys/kernel/panic: Permission denied";
    for (name, context, expected) in [
        (
            "admin",
            context(admin),
            "mounted\nsh: can't create /proc/sys/kernel/panic: Read-only file system\nkept\nguarded\n".to_owned(),
        ),
        ("unmasked", context(unmasked), format!("mounted\n{denied}\nkept\n")),
        ("privileged", context(json!({"privileged": true})), format!("mounted\n{denied}\nkept\n")),
    ] {
        assert_eq!(output(cluster, namespace, name, context), expected, "{name}");
    }
}

fn debugging(cluster: &Cluster, namespace: &str) {
    let main = shell(
        "main",
        "echo started; mkdir /work; exec httpd -f -p 8080 -h /work",
        json!({"ports": [{"containerPort": 8080}]}),
    );
    run(cluster, namespace, "target", owning(json!({"containers": [main]})));
    let first = recorded(cluster, namespace, "target").to_string();
    eventually("the log", || match cluster.run(&["-n", namespace, "logs", "target"]) {
        log if log == "started\n" => Ok(()),
        log => Err(log),
    });
    // A terminal, as `script` gives kubectl one; its input stays open, for it would show the end.
    let kubectl = testkit::kubectl();
    let command = format!(
        "{} -n {namespace} exec -it target -- sh -c 'busybox tty; stat -c %u:%g $(busybox tty); id -u'",
        kubectl.display()
    );
    let mut terminal = cluster.with(Path::new("script"), &["-qec", &command, "/dev/null"]);
    let mut terminal = terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let input = terminal.stdin.take();
    let seen = String::from_utf8(terminal.wait_with_output().unwrap().stdout).unwrap().replace('\r', "");
    drop(input);
    assert!(seen.ends_with("/dev/pts/0\n0:5\n0\n"), "{seen:?}");

    let file = cluster.directory.path().join("copied");
    std::fs::write(&file, "there and back\n").unwrap();
    let (local, remote) = (file.to_str().unwrap(), format!("{namespace}/target:/work/copied"));
    cluster.run(&["cp", local, &remote]);
    assert_eq!(
        exec(cluster, namespace, "target", "cat /work/copied; stat -c %u:%g /work/copied"),
        "there and back\n0:0\n"
    );
    cluster.run(&["cp", &remote, &format!("{local}.back")]);
    assert_eq!(std::fs::read_to_string(format!("{local}.back")).unwrap(), "there and back\n");

    cluster.run(&[
        "-n",
        namespace,
        "debug",
        "target",
        &format!("--image={}", common::BUSYBOX),
        "--target=main",
        "-c",
        "debugger",
        "--image-pull-policy=IfNotPresent",
        "--profile=general",
        "--",
        "sh",
        "-c",
        "ps | grep -c 'http[d] -f'; cat /proc/1/root/work/copied; cat /proc/self/uid_map",
    ]);
    let log = eventually("the debugger's log", || {
        let log = cluster.kubectl(&["-n", namespace, "logs", "target", "-c", "debugger"]).output().unwrap();
        let log = String::from_utf8_lossy(&log.stdout).into_owned();
        if log.lines().count() == 3 { Ok(log) } else { Err(log) }
    });
    assert!(log.starts_with("1\nthere and back\n") && log.contains(&first), "{log}");
}

fn probes(cluster: &Cluster, namespace: &str) {
    let probe = json!({"exec": {"command": ["test", "-e", "/tmp/ready"]}, "periodSeconds": 1});
    let http = json!({"httpGet": {"port": 8080, "path": "/"}, "periodSeconds": 1});
    let script = "echo hi > /www/index.html; touch /tmp/ready; exec httpd -f -p 8080 -h /www";
    let main = shell(
        "main",
        script,
        json!({"readinessProbe": probe, "livenessProbe": http,
        "lifecycle": {"postStart": {"exec": {"command": ["sh", "-c", "id -u > /tmp/hook"]}}}}),
    );
    let init = shell("init", "id -u", json!({}));
    run(cluster, namespace, "probed", owning(json!({"initContainers": [init], "containers": [main]})));
    assert_eq!(exec(cluster, namespace, "probed", "cat /tmp/hook"), "0\n");
    let (mut forward, address) = forwarded(cluster, namespace);
    let answer = eventually("the port is forwarded", || get(&address));
    let _ = forward.kill();
    let _ = forward.wait();
    assert!(answer.ends_with("hi\n"), "{answer}");
}

/// `kubectl port-forward` to the probed pod, and the address it listens on.
fn forwarded(cluster: &Cluster, namespace: &str) -> (std::process::Child, String) {
    use std::io::{BufRead, BufReader};
    let mut command = cluster.kubectl(&["-n", namespace, "port-forward", "pod/probed", ":8080", "--address=127.0.0.1"]);
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let address = line.split_whitespace().nth(2).unwrap_or_else(|| panic!("{line:?}")).to_owned();
    (child, address)
}

fn get(address: &str) -> Result<String, String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).map_err(|error| error.to_string())?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").map_err(|error| error.to_string())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|error| error.to_string())?;
    if answer.is_empty() { Err("no answer".to_owned()) } else { Ok(answer) }
}
