//! Pods in network namespaces of the test's own: packets, host ports, restart, clean-up.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use network::bridge::{Bridge, Config, clean_up};
use network::{PodAttachment, PodNetwork, PortMapping, Protocol};
use nix::sched::{CloneFlags, setns, unshare};

/// Runs `work` on a single-threaded executor in a fresh network namespace.
fn on_a_node(work: impl AsyncFnOnce(Config) + Send) {
    let directory = tempfile::tempdir().unwrap();
    let config = Config {
        bridge: "cni0".into(),
        state_dir: directory.path().join("network"),
        cluster_cidr: "10.42.0.0/16".parse().unwrap(),
    };
    std::thread::scope(|scope| {
        let node = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
            run("ip", &["link", "set", "lo", "up"]);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(work(config));
        });
        node.join().unwrap();
    });
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output =
        output.unwrap_or_else(|error| panic!("{program} is missing ({error}): install Debian's iproute2 and nftables"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A thread that holds a pod's namespace and answers connections with its name.
struct Pod {
    attachment: PodAttachment,
    namespace: File,
}

impl Pod {
    fn new(id: &str, ports: Vec<PortMapping>) -> Pod {
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            sender.send(File::open(format!("/proc/self/task/{}/ns/net", nix::unistd::gettid())).unwrap()).unwrap();
        });
        let namespace = receiver.recv().unwrap();
        let netns = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd()));
        let attachment =
            PodAttachment { sandbox_id: id.into(), netns, name: id.into(), port_mappings: ports, ..Default::default() };
        Pod { attachment, namespace }
    }

    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(self.namespace.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    /// Serves for the rest of the test, telling the client's address.
    fn serve(&self) {
        let listener = self.inside(|| TcpListener::bind(("0.0.0.0", 80)).unwrap());
        let name = self.attachment.name.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let peer = stream.peer_addr().unwrap().ip();
                let _ = write!(stream, "{name} to {peer}");
            }
        });
    }
}

fn fetch(address: impl Into<SocketAddr>) -> String {
    let mut stream = TcpStream::connect_timeout(&address.into(), Duration::from_secs(10)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn host_port(port: u16) -> PortMapping {
    PortMapping { host_ip: None, host_port: port, container_port: 80, protocol: Protocol::Tcp }
}

#[test]
fn pods_reach_one_another_and_host_ports() {
    on_a_node(async |config| {
        let bridge = Bridge::new(config.clone()).unwrap();
        assert!(bridge.ready().await.unwrap_err().contains("no pod CIDR"));
        bridge.set_pod_cidr("10.42.0.0/24");
        bridge.ready().await.unwrap();
        let (a, b) = (Pod::new("aaaaaaaaaaaa", vec![]), Pod::new("bbbbbbbbbbbb", vec![host_port(8080)]));
        let first = bridge.attach(&a.attachment).await.unwrap();
        let second = bridge.attach(&b.attachment).await.unwrap();
        assert_eq!(first.ips, [Ipv4Addr::new(10, 42, 0, 2)]);
        assert_eq!(second.ips, [Ipv4Addr::new(10, 42, 0, 3)]);
        assert_eq!(bridge.attach(&b.attachment).await.unwrap(), second, "attaching again changes nothing");
        a.serve();
        b.serve();

        // Between pods, and from the node; each sees the other's true address.
        assert_eq!(a.inside(|| fetch(([10, 42, 0, 3], 80))), "bbbbbbbbbbbb to 10.42.0.2");
        assert_eq!(fetch(([10, 42, 0, 2], 80)), "aaaaaaaaaaaa to 10.42.0.1");
        // Through the host port: from the node's loopback, from another pod, from the pod itself.
        assert_eq!(fetch(([127, 0, 0, 1], 8080)), "bbbbbbbbbbbb to 10.42.0.1");
        assert_eq!(a.inside(|| fetch(([10, 42, 0, 1], 8080))), "bbbbbbbbbbbb to 10.42.0.2");
        assert_eq!(b.inside(|| fetch(([10, 42, 0, 1], 8080))), "bbbbbbbbbbbb to 10.42.0.1");

        // A second pod with the same host port is refused and holds nothing.
        let c = Pod::new("cccccccccccc", vec![host_port(8080)]);
        let error = format!("{:#}", bridge.attach(&c.attachment).await.unwrap_err());
        assert!(error.contains("open host ports 8080/TCP; is another pod using one of them?"), "{error}");

        // A new process takes up where the old one was.
        drop(bridge);
        let bridge = Bridge::new(config.clone()).unwrap();
        bridge.ready().await.unwrap();
        assert_eq!(fetch(([127, 0, 0, 1], 8080)), "bbbbbbbbbbbb to 10.42.0.1");
        bridge.detach(&b.attachment).await.unwrap();
        bridge.detach(&b.attachment).await.unwrap();
        assert!(TcpStream::connect(("127.0.0.1", 8080)).is_err());
        assert_eq!(bridge.attach(&c.attachment).await.unwrap().ips, [Ipv4Addr::new(10, 42, 0, 4)]);
        bridge.retain(|sandbox| sandbox == "aaaaaaaaaaaa").await.unwrap();
        assert!(!run("ip", &["link"]).contains("vethccc"));

        clean_up(&config).await.unwrap();
        clean_up(&config).await.unwrap();
        assert_eq!(run("nft", &["list", "ruleset"]), "");
        assert_eq!(run("ip", &["-br", "link"]).lines().count(), 1, "only lo is left");
        assert!(!config.state_dir.exists());
    });
}

#[test]
fn a_hundred_pods_attach_at_once() {
    on_a_node(async |config| {
        let bridge = Bridge::new(config.clone()).unwrap();
        bridge.set_pod_cidr("10.42.0.0/24");
        let pods: Vec<Pod> =
            (0..100).map(|n| Pod::new(&format!("{n:03}000000000"), vec![host_port(9000 + n)])).collect();
        let attached = futures::future::join_all(pods.iter().map(|pod| bridge.attach(&pod.attachment))).await;
        let addresses: std::collections::BTreeSet<_> = attached.into_iter().map(|a| a.unwrap().ips[0]).collect();
        assert_eq!(addresses.len(), 100);
    });
}
