//! Components alone, each a process with only a kubeconfig, and the kubelet on a runtime that is not ours:
//! Debian's containerd, in a host of the test's own.

mod common;

use std::fs;
use std::process::{Child, Command};

use common::{BUSYBOX, ISOPOD};
use serde_json::{Value, json};
use testkit::{Containerd, Host, eventually};

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: BUSYBOX
        imagePullPolicy: IfNotPresent
        command: [sh, -c, 'echo serving as $(hostname); hostname > /www/index.html; exec httpd -f -p 8080 -h /www']
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
        resources: {limits: {memory: 64Mi, cpu: 500m}}
---
apiVersion: v1
kind: Pod
metadata: {name: brief}
spec:
  restartPolicy: Never
  containers: [{name: brief, image: BUSYBOX, imagePullPolicy: IfNotPresent, command: [sh, -c, exit 7]}]
"#;

/// The processes, ended in the order they were started.
struct Stack {
    running: Vec<Child>,
    host: Host,
}

impl Stack {
    fn component(&mut self, name: &str, arguments: &[&str]) {
        let child = self.host.spawn(name, &mut self.host.isopod(arguments));
        self.running.push(child);
    }

    fn path(&self, name: &str) -> String {
        self.host.path(name).display().to_string()
    }

    fn kubectl(&self, arguments: &[&str]) -> String {
        self.try_kubectl(arguments).unwrap_or_else(|complaint| panic!("kubectl {arguments:?}: {complaint}"))
    }

    fn try_kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        self.host.kubectl(&self.host.path("data/kubeconfig"), arguments)
    }

    fn get(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.kubectl(&[&["get", "-o", "json"], arguments].concat())).expect("kubectl prints JSON")
    }

    /// A kubeconfig from a client certificate, as an operator would write it.
    fn kubeconfig(&self, name: &str, certificate: &str, key: &str) -> String {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_else(|error| panic!("read {path}: {error}"));
        let base64 = |path: &str| self.host.run(Command::new("base64").args(["-w0", path])).trim().to_owned();
        assert!(read(certificate).contains("CERTIFICATE"));
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{ "name": "test", "cluster": {
                "server": "https://127.0.0.1:6443",
                "certificate-authority-data": base64(&self.path("data/pki/ca.crt")),
            }}],
            "users": [{ "name": "test", "user": {
                "client-certificate-data": base64(certificate), "client-key-data": base64(key),
            }}],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
        });
        let path = self.path(&format!("{name}.kubeconfig"));
        fs::write(&path, config.to_string()).unwrap();
        path
    }

    /// Signs a certificate with the cluster's authority; the paths of certificate and key.
    fn sign(&self, name: &str, subject: &str, extensions: &str) -> (String, String) {
        let (certificate, key) = (self.path(&format!("{name}.crt")), self.path(&format!("{name}.key")));
        let script = format!(
            "openssl req -new -newkey rsa:2048 -nodes -keyout {key} -subj '{subject}' | \
             openssl x509 -req -days 1 -CA {0}/ca.crt -CAkey {0}/ca.key -CAcreateserial -CAserial {1} \
             -extfile {2} -out {certificate}",
            self.path("data/pki"),
            self.path("serial"),
            self.path(&format!("{name}.ext"))
        );
        fs::write(self.path(&format!("{name}.ext")), extensions).unwrap();
        self.host.run(Command::new("bash").args(["-o", "pipefail", "-c", &script]));
        (certificate, key)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in ["containerd", "apiserver", "scheduler", "controller-manager", "kubelet"] {
                eprintln!("last lines of {name}:\n{}", self.host.log(name));
            }
            eprintln!("{}", self.try_kubectl(&["get", "events,pods", "-A"]).unwrap_or_default());
        }
        for child in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn a_kubelet_on_containerd_runs_a_deployment() {
    let host = Host::new(ISOPOD);
    let containerd = Containerd::start(&host);
    containerd.import(&host, &testkit::busybox_archive(host.directory.path(), BUSYBOX));
    let endpoint = format!("unix://{}", containerd.socket.display());
    let mut stack = Stack { running: vec![containerd.process], host };

    stack.component("apiserver", &["apiserver"]);
    eventually("the API answers", || stack.try_kubectl(&["get", "--raw", "/readyz"]));
    for name in ["scheduler", "controller-manager"] {
        let pki = |extension: &str| stack.path(&format!("data/pki/{name}.{extension}"));
        let kubeconfig = stack.kubeconfig(name, &pki("crt"), &pki("key"));
        stack.component(name, &[name, "--kubeconfig", &kubeconfig]);
    }
    let (certificate, key) = stack.sign("node", "/O=system:nodes/CN=system:node:worker", "extendedKeyUsage=clientAuth");
    let kubeconfig = stack.kubeconfig("node", &certificate, &key);
    let names = format!("subjectAltName=IP:{},DNS:worker\nextendedKeyUsage=serverAuth", Host::IP);
    let (certificate, key) = stack.sign("serving", "/O=system:nodes/CN=system:node:worker", &names);
    let ca = stack.path("data/pki/ca.crt");
    let flags = ["--kubeconfig", &kubeconfig, "--node-name", "worker", "--container-runtime-endpoint", &endpoint];
    let serving = ["--client-ca-file", &ca, "--tls-cert-file", &certificate, "--tls-private-key-file", &key];
    stack.component("kubelet", &[&["kubelet"][..], &flags, &serving].concat());

    eventually("the node exists", || stack.try_kubectl(&["get", "node", "worker"]));
    stack.kubectl(&["wait", "--for=condition=Ready", "node/worker", "--timeout=120s"]);
    let node = stack.get(&["node", "worker"]);
    let version = node["status"]["nodeInfo"]["containerRuntimeVersion"].as_str().unwrap();
    assert!(version.starts_with("containerd://"), "{version}");

    eventually("the service account exists", || stack.try_kubectl(&["get", "serviceaccount", "default"]));
    fs::write(stack.path("web.yaml"), WEB.replace("BUSYBOX", BUSYBOX)).unwrap();
    stack.kubectl(&["apply", "-f", &stack.path("web.yaml")]);
    stack.kubectl(&["rollout", "status", "deployment/web", "--timeout=150s"]);
    let pods = stack.get(&["pods", "-l", "app=web"]);
    for pod in pods["items"].as_array().unwrap() {
        let name = pod["metadata"]["name"].as_str().unwrap();
        let ip = pod["status"]["podIP"].as_str().unwrap();
        assert!(ip.starts_with("10.42.0."), "{ip}");
        assert!(pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap().starts_with("containerd://"));
        assert_eq!(stack.kubectl(&["logs", name]), format!("serving as {name}\n"));
        assert_eq!(
            stack.kubectl(&["exec", name, "--", "wget", "-q", "-O", "-", &format!("http://{ip}:8080/")]),
            format!("{name}\n")
        );
    }

    // How a container ended is told, though this runtime tells no events.
    eventually("the short pod's end is told", || {
        let state = &stack.get(&["pod", "brief"])["status"];
        let code = &state["containerStatuses"][0]["state"]["terminated"]["exitCode"];
        (state["phase"] == "Failed" && *code == 7).then_some(()).ok_or(state.to_string())
    });

    // A container that dies is started again, and what is deleted goes.
    let processes = stack.host.processes();
    let served = processes.iter().find(|process| process.contains("httpd")).expect("httpd runs");
    stack.host.run(Command::new("kill").args(["-9", served.split(' ').next().unwrap()]));
    eventually("the container is started again", || {
        let path = "jsonpath={.items[*].status.containerStatuses[0].restartCount}";
        let counts = stack.kubectl(&["get", "pods", "-l", "app=web", "-o", path]);
        counts.contains('1').then_some(()).ok_or(counts)
    });
    stack.kubectl(&["delete", "deployment/web", "pod/brief"]);
    eventually("the containers are gone", || {
        let left = stack.host.processes();
        let pods = stack.kubectl(&["get", "pods", "-o", "name"]);
        (left.is_empty() && pods.is_empty()).then_some(()).ok_or(format!("{left:#?} {pods}"))
    });
}
