//! Packets through the rules: a node with a bridge's worth of pods, all in network namespaces of the
//! test's own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use proxy::nftables::{Change, Nftables};
use proxy::plan::{Action, Backend, Masquerade, Protocol, ServiceRules};

const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 43, 0, 5);
const CLUSTER: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 42, 0, 0), 16);
const SERVICES: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 43, 0, 0), 16);

/// Runs `work` on a thread in a fresh network namespace.
fn on_a_node(work: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let node = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
            ip("link set lo up");
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            work();
        });
        node.join().unwrap();
    });
}

fn ip(arguments: &str) {
    let output =
        Command::new("ip").args(arguments.split(' ')).output().expect("ip is missing: install Debian's iproute2");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A routed pod `10.42.0.N` that tells its number to TCP port 8080 and UDP port 8080.
struct Pod {
    number: u8,
    namespace: File,
}

impl Pod {
    fn new(number: u8) -> Pod {
        let node = File::open(format!("/proc/self/task/{}/ns/net", nix::unistd::gettid())).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let own = File::open(format!("/proc/self/task/{}/ns/net", nix::unistd::gettid())).unwrap();
            let veth = format!("pod{number}");
            // The pod's end is born here and moved by the thread that the namespace can be named after.
            setns(node.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            ip(&format!("link add {veth} type veth peer name eth0-{number}"));
            std::thread::scope(|scope| {
                let (done, wait) = std::sync::mpsc::channel::<()>();
                let (entered, inside) = std::sync::mpsc::channel();
                let own = &own;
                scope.spawn(move || {
                    setns(own.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
                    entered.send(nix::unistd::gettid()).unwrap();
                    let _ = wait.recv();
                });
                ip(&format!("link set eth0-{number} netns {} name eth0", inside.recv().unwrap()));
                drop(done);
            });
            ip(&format!("link set {veth} up"));
            ip(&format!("addr add 10.42.1.1/32 dev {veth}"));
            ip(&format!("route add 10.42.0.{number}/32 dev {veth}"));
            setns(own.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            ip("link set lo up");
            ip("link set eth0 up");
            ip(&format!("addr add 10.42.0.{number}/32 dev eth0"));
            ip("route add 10.42.1.1 dev eth0 scope link");
            ip("route add default via 10.42.1.1 dev eth0");
            let tcp = TcpListener::bind(("0.0.0.0", 8080)).unwrap();
            let udp = UdpSocket::bind(("0.0.0.0", 8080)).unwrap();
            std::thread::spawn(move || {
                for stream in tcp.incoming() {
                    let mut stream = stream.unwrap();
                    let peer = stream.peer_addr().unwrap().ip();
                    let _ = write!(stream, "{number} sees {peer}");
                }
            });
            std::thread::spawn(move || {
                let mut buffer = [0; 16];
                while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                    let _ = udp.send_to(number.to_string().as_bytes(), peer);
                }
            });
            sender.send(own).unwrap();
        });
        Pod { number, namespace: receiver.recv().expect("a pod's namespace was not set up") }
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

    fn endpoint(&self) -> (Ipv4Addr, u16) {
        (Ipv4Addr::new(10, 42, 0, self.number), 8080)
    }
}

fn fetch(ip: Ipv4Addr, port: u16) -> Result<String, ErrorKind> {
    let mut stream =
        TcpStream::connect_timeout(&SocketAddr::from((ip, port)), Duration::from_secs(5)).map_err(|e| e.kind())?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|e| e.kind())?;
    Ok(text)
}

/// How often each pod answered.
fn count(requests: usize, mut ask: impl FnMut() -> String) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..requests {
        *counts.entry(ask().split(' ').next().unwrap().to_owned()).or_default() += 1;
    }
    counts
}

fn rules(pods: &[&Pod], protocol: Protocol, affinity: Option<Duration>, masquerade: Masquerade) -> ServiceRules {
    let endpoints = pods.iter().map(|pod| pod.endpoint()).collect();
    let backend = Backend { protocol, endpoints, affinity, masquerade, allowed_sources: vec![] };
    let action = Action::Balance("svc-ns/web/x/80".into());
    ServiceRules {
        backends: [("svc-ns/web/x/80".into(), backend)].into(),
        addresses: [((SERVICE, protocol, 80), action.clone())].into(),
        node_ports: [((protocol, 30080), action)].into(),
    }
}

fn applier(rules: &ServiceRules) -> Nftables {
    let mut applier = Nftables::new(CLUSTER, SERVICES).unwrap();
    applier.replace([("ns/web", rules)].into_iter()).unwrap();
    applier
}

#[test]
fn connections_are_balanced_and_changes_take_effect() {
    on_a_node(|| {
        let (a, b, c, client) = (Pod::new(2), Pod::new(3), Pod::new(4), Pod::new(9));
        // Addresses of no Service must be routable to be refused.
        ip("route add default dev pod9");
        let before = rules(&[&a, &b], Protocol::Tcp, None, Masquerade::OffCluster);
        let mut applier = applier(&before);
        let seen = count(60, || client.inside(|| fetch(SERVICE, 80).unwrap()));
        assert_eq!(seen.keys().collect::<Vec<_>>(), ["2", "3"], "both answer");
        assert!(client.inside(|| fetch(SERVICE, 80).unwrap()).ends_with("sees 10.42.0.9"), "pods see each other");
        let node_port = client.inside(|| fetch(Ipv4Addr::new(10, 42, 1, 1), 30080).unwrap());
        assert!(node_port.ends_with("sees 10.42.0.9"), "{node_port}");
        assert!(count(4, || a.inside(|| fetch(SERVICE, 80).unwrap())).len() <= 2, "a pod reaches its own Service");

        let after = rules(&[&b, &c], Protocol::Tcp, None, Masquerade::OffCluster);
        applier.update(&[Change { service: "ns/web", old: Some(&before), new: Some(&after) }]).unwrap();
        let seen = count(60, || client.inside(|| fetch(SERVICE, 80).unwrap()));
        assert_eq!(seen.keys().collect::<Vec<_>>(), ["3", "4"], "the new endpoints answer, the old one does not");

        let nobody =
            ServiceRules { addresses: [((SERVICE, Protocol::Tcp, 80), Action::Reject)].into(), ..Default::default() };
        applier.update(&[Change { service: "ns/web", old: Some(&after), new: Some(&nobody) }]).unwrap();
        assert_eq!(client.inside(|| fetch(SERVICE, 80)), Err(ErrorKind::ConnectionRefused));
        assert_eq!(
            client.inside(|| fetch(Ipv4Addr::new(10, 43, 9, 9), 80)),
            Err(ErrorKind::ConnectionRefused),
            "no Service"
        );
        applier.update(&[Change { service: "ns/web", old: Some(&nobody), new: None }]).unwrap();
        applier.update(&[Change { service: "ns/web", old: None, new: Some(&before) }]).unwrap();
        assert_eq!(count(40, || client.inside(|| fetch(SERVICE, 80).unwrap())).len(), 2);

        Nftables::clean_up().unwrap();
        let left =
            Command::new("nft").args(["list", "tables"]).output().expect("nft is missing: install Debian's nftables");
        assert_eq!(String::from_utf8_lossy(&left.stdout), "");
    });
}

#[test]
fn the_same_client_keeps_its_endpoint() {
    on_a_node(|| {
        let (a, b, client) = (Pod::new(2), Pod::new(3), Pod::new(9));
        let hour = Some(Duration::from_secs(3600));
        let before = rules(&[&a, &b], Protocol::Tcp, hour, Masquerade::OffCluster);
        let mut applier = applier(&before);
        let seen = count(20, || client.inside(|| fetch(SERVICE, 80).unwrap()));
        assert_eq!(seen.len(), 1, "{seen:?}");
        let (gone, left) = if seen.contains_key("2") { (&a, &b) } else { (&b, &a) };
        let after = rules(&[left], Protocol::Tcp, hour, Masquerade::OffCluster);
        applier.update(&[Change { service: "ns/web", old: Some(&before), new: Some(&after) }]).unwrap();
        let seen = count(5, || client.inside(|| fetch(SERVICE, 80).unwrap()));
        assert!(!seen.contains_key(&gone.number.to_string()), "{seen:?}");
        applier.update(&[Change { service: "ns/web", old: Some(&after), new: None }]).unwrap();
    });
}

#[test]
fn udp_and_masquerading() {
    on_a_node(|| {
        let (a, b, client) = (Pod::new(2), Pod::new(3), Pod::new(9));
        let _udp = applier(&rules(&[&a, &b], Protocol::Udp, None, Masquerade::OffCluster));
        let ask = || {
            client.inside(|| {
                let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                socket.connect((SERVICE, 80)).unwrap();
                socket.send(b"?").unwrap();
                let mut buffer = [0; 16];
                let length = socket.recv(&mut buffer).unwrap();
                String::from_utf8_lossy(&buffer[..length]).into_owned()
            })
        };
        let seen: BTreeSet<String> = (0..40).map(|_| ask()).collect();
        assert_eq!(seen.len(), 2, "{seen:?}");

        let mut tcp = rules(&[&a], Protocol::Tcp, None, Masquerade::Always);
        let _tcp = applier(&tcp);
        assert_eq!(client.inside(|| fetch(SERVICE, 80)).unwrap(), "2 sees 10.42.1.1");
        tcp.backends.get_mut("svc-ns/web/x/80").unwrap().allowed_sources = vec![(Ipv4Addr::new(10, 42, 0, 9), 32)];
        let _tcp = applier(&tcp);
        assert_eq!(client.inside(|| fetch(SERVICE, 80)).unwrap(), "2 sees 10.42.1.1");
        assert_eq!(b.inside(|| fetch(SERVICE, 80)), Err(ErrorKind::TimedOut), "other sources are dropped");
    });
}

#[test]
fn ten_thousand_services_are_one_batch() {
    on_a_node(|| {
        let service = |n: u32| {
            let name = format!("svc-ns/s{n}/tcp/80");
            let endpoints =
                vec![(Ipv4Addr::from_bits(0x0a2a_0002 + n), 8080), (Ipv4Addr::from_bits(0x0a2a_8002 + n), 8080)];
            let backend = Backend {
                protocol: Protocol::Tcp,
                endpoints,
                affinity: None,
                masquerade: Masquerade::OffCluster,
                allowed_sources: vec![],
            };
            let address = (Ipv4Addr::from_bits(0x0a2b_0100 + n), Protocol::Tcp, 80);
            ServiceRules {
                backends: [(name.clone(), backend)].into(),
                addresses: [(address, Action::Balance(name))].into(),
                ..Default::default()
            }
        };
        let all: Vec<(String, ServiceRules)> = (0..10_000).map(|n| (format!("ns/s{n}"), service(n))).collect();
        let mut applier = Nftables::new(CLUSTER, SERVICES).unwrap();
        let started = std::time::Instant::now();
        applier.replace(all.iter().map(|(key, rules)| (key.as_str(), rules))).unwrap();
        let full = started.elapsed();
        let started = std::time::Instant::now();
        applier.update(&[Change { service: "ns/s0", old: Some(&all[0].1), new: None }]).unwrap();
        println!("10,000 Services: {full:?}; one change: {:?}", started.elapsed());
    });
}
