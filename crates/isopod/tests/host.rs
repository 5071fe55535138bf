//! `isopod server` on a host: configured by file and environment, reached from host and pods, killed, stopped,
//! started again, and taken away.

mod common;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Child;

use common::{BUSYBOX, ISOPOD};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::{Host, eventually};

const CONFIG: &str = "node-name: from-file\ncluster-domain: host.test\ntls-san: [api.host.test]\nsecure-port: 7443\n";

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
        command: [sh, -c, 'hostname > /www/index.html; exec httpd -f -p 8080 -h /www']
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: client, image: isopod.local/hello, imagePullPolicy: IfNotPresent}]
"#;

struct Server {
    process: Child,
    host: Host,
}

impl Server {
    fn start(host: Host) -> Server {
        let process = spawn(&host);
        Server { process, host }
    }

    /// Ends it with a signal and starts it again.
    fn restart(&mut self, signal: Signal) {
        kill(Pid::from_raw(self.process.id() as i32), signal).unwrap();
        let status = self.process.wait().unwrap();
        assert!(signal == Signal::SIGKILL || status.success(), "{signal} gave {status}: {}", self.host.log("server"));
        self.process = spawn(&self.host);
    }

    fn kubeconfig(&self) -> PathBuf {
        self.host.path("data/kubeconfig")
    }

    fn kubectl(&self, arguments: &[&str]) -> String {
        self.host
            .kubectl(&self.kubeconfig(), arguments)
            .unwrap_or_else(|complaint| panic!("kubectl {arguments:?}: {complaint}\n{}", self.host.log("server")))
    }

    fn settled(&self) {
        eventually("the API answers", || self.host.kubectl(&self.kubeconfig(), &["get", "--raw", "/readyz"]));
        eventually("the node exists", || self.host.kubectl(&self.kubeconfig(), &["get", "node", "from-env"]));
        self.kubectl(&["wait", "--for=condition=Ready", "node/from-env", "--timeout=120s"]);
    }

    /// Answers to 40 requests from the host and from a pod, through each way in.
    fn everything_answers(&self) {
        let pods = self.kubectl(&["get", "pods", "-l", "app=web", "-o", "name"]);
        let pods: BTreeSet<String> = pods.lines().map(|name| name.trim_start_matches("pod/").to_owned()).collect();
        let address = self.kubectl(&["get", "service/web", "-o", "jsonpath={.spec.clusterIP}"]);
        let answers = |told: String| -> BTreeSet<String> {
            told.lines().filter(|line| !line.ends_with("answers:") && !line.is_empty()).map(str::to_owned).collect()
        };
        let fetch = ["fetch", "--repeat", "40"];
        for url in [format!("http://{address}"), format!("http://{}:30080", Host::IP), "http://127.0.0.1:30080".into()]
        {
            eventually(&format!("{url} answers the host"), || {
                let told = self.host.isopod(&[&fetch[..], &[&url]].concat()).output().unwrap();
                let told = answers(String::from_utf8(told.stdout).unwrap());
                (told == pods).then_some(()).ok_or(format!("{told:?} of {pods:?}"))
            });
        }
        for url in ["http://web", "http://web.default.svc.host.test", &format!("http://{}:30080", Host::IP)] {
            eventually(&format!("{url} answers a pod"), || {
                let exec = [&["exec", "client", "--", "/isopod"][..], &fetch, &[url]].concat();
                let told = answers(self.host.kubectl(&self.kubeconfig(), &exec)?);
                (told == pods).then_some(()).ok_or(format!("{told:?} of {pods:?}"))
            });
        }
    }

    fn containers(&self) -> String {
        let path = "jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[0].containerID} \
            {.status.containerStatuses[0].restartCount}{\"\\n\"}{end}";
        self.kubectl(&["get", "pods", "-o", path])
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The name in the environment wins over that in the file.
fn spawn(host: &Host) -> Child {
    host.spawn("server", host.isopod(&["server"]).env("ISOPOD_NODE_NAME", "from-env"))
}

#[test]
fn a_server_on_a_host_lives_and_goes() {
    let host = Host::new(ISOPOD);
    std::fs::write(host.path("config.yaml"), CONFIG).unwrap();
    let archive = testkit::busybox_archive(host.directory.path(), BUSYBOX);
    assert_eq!(host.traces(), [""; 0], "before the start");
    let data = host.path("data").display().to_string();
    let mut server = Server::start(host);
    server.settled();
    server.host.run(server.host.isopod(&["image", "import", "--data-dir", &data]).arg(&archive));
    let manifest = server.host.path("web.yaml");
    std::fs::write(&manifest, WEB.replace("BUSYBOX", BUSYBOX)).unwrap();
    eventually("the default service account exists", || {
        server.host.kubectl(&server.kubeconfig(), &["get", "serviceaccount", "default"])
    });
    server.kubectl(&["apply", "-f", &manifest.to_string_lossy()]);
    server.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"]);
    server.kubectl(&["wait", "--for=condition=Ready", "pod/client", "--timeout=120s"]);
    server.everything_answers();

    // A second one is refused in one sentence.
    let second = server.host.isopod(&["server"]).output().unwrap();
    let complaint = String::from_utf8(second.stderr).unwrap();
    let expected = format!("this host is a node already (pid {})", server.process.id());
    assert_eq!(second.status.code(), Some(1));
    assert!(complaint.contains(&expected) && complaint.lines().count() == 1, "{complaint}");

    // Pods outlive a crash and a stop.
    let (containers, processes) = (server.containers(), server.host.processes());
    assert!(processes.iter().filter(|process| process.contains("httpd")).count() == 2, "{processes:#?}");
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        server.restart(signal);
        server.settled();
        assert_eq!(server.containers(), containers, "after {signal}");
        assert_eq!(server.host.processes(), processes, "after {signal}");
        server.everything_answers();
    }

    // Stopped as a whole it leaves its data; a new start runs the pods again.
    let told = server.host.run(&mut server.host.isopod(&["down", "--server"]));
    assert!(told.contains(&format!("its data stay in {data}")), "{told}");
    assert!(server.process.wait().unwrap().success(), "{}", server.host.log("server"));
    assert_eq!(server.host.traces(), [""; 0]);
    server.process = spawn(&server.host);
    server.settled();
    server.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"]);
    eventually("the client runs again", || {
        server.host.kubectl(&server.kubeconfig(), &["exec", "client", "--", "/isopod", "--version"])
    });
    server.everything_answers();

    // After a crash, with everything, and again.
    server.process.kill().unwrap();
    server.process.wait().unwrap();
    for _ in 0..2 {
        server.host.run(&mut server.host.isopod(&["down", "--server", "--purge"]));
        assert_eq!(server.host.traces(), [""; 0]);
        assert!(!server.host.path("data").exists());
    }
}

#[test]
fn a_full_disk_is_told_and_got_over() {
    let host = Host::new(ISOPOD);
    std::fs::write(host.path("config.yaml"), CONFIG).unwrap();
    let archive = testkit::busybox_archive(host.directory.path(), BUSYBOX);
    let data = host.path("data").display().to_string();
    std::fs::create_dir(&data).unwrap();
    host.run(host.command("mount").args(["-t", "tmpfs", "-o", "size=400m", "disk", &data]));
    let server = Server::start(host);
    server.settled();
    server.kubectl(&["create", "configmap", "kept", "--from-literal=a=b"]);

    let filler = format!("of={data}/filler");
    let _ = server.host.command("dd").args(["if=/dev/zero", &filler, "bs=1M"]).output();
    let refused = eventually("a write is refused", || {
        let created = server.host.kubectl(&server.kubeconfig(), &["create", "configmap", "refused"]);
        created.err().ok_or_else(|| server.kubectl(&["delete", "configmap", "refused"]))
    });
    assert!(refused.contains("the disk under") && refused.contains("is full"), "{refused}");
    let import = || server.host.isopod(&["image", "import", "--data-dir", &data]).arg(&archive).output().unwrap();
    let output = import();
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{complaint}");
    assert!(complaint.contains("No space left on device"), "{complaint}");
    let kept = || server.kubectl(&["get", "configmap", "kept", "-o", "jsonpath={.data.a}"]);
    assert_eq!(kept(), "b", "what is there can be read");

    server.host.run(server.host.command("rm").arg(format!("{data}/filler")));
    eventually("writes are taken again", || {
        server.host.kubectl(&server.kubeconfig(), &["create", "configmap", "accepted"])
    });
    assert_eq!(kept(), "b");
    let output = import();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
